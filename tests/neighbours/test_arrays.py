"""Arrays and scalars of numpy: they come back as they were, and hostile ones do not."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state_server import codec
from state_server.codec import arrays, contexts
from state_server.errors import ConfigError, NotAllowed, TooLarge

np = pytest.importorskip("numpy", reason="numpy is not installed")
from hypothesis.extra import numpy as strategies

from ..damage import damaged

DATES = np.array(["2020-01-01", "NaT", "1969-12-31T23:59:59"], "M8[s]")
FIELDS = np.array(
    [(1, [1.5, 2.5], "x", "2020"), (2, [3.5, 4.5], "", "NaT")],
    [("a", "<i2"), ("b", "<f4", (2,)), ("c", "U3"), ("d", "M8[ns]")],
)
TITLED = np.dtype(
    {"names": ["a"], "formats": ["f4"], "titles": ["t"], "offsets": [4], "itemsize": 12}
)
NESTED = np.dtype([("x", [("y", "u1"), ("z", [("w", ">f8", (2, 3))], (2,))])])

CUBE = np.arange(24).reshape(2, 3, 4)

ARRAYS = [
    np.arange(3.0), np.arange(6).reshape(2, 3), np.arange(6.0).reshape(2, 3).T,
    CUBE[::2, ::-1, 1:], CUBE.swapaxes(0, 1), CUBE.T,
    np.array(5), np.array(1 + 2j), np.array(None), np.zeros(0), np.zeros((0, 3)),
    np.zeros((3, 0), order="F"), np.zeros((2, 0, 3), "U5"),
    np.array([True, False]), np.arange(3, dtype="i1"), np.arange(3, dtype="u8"),
    np.arange(3, dtype="f2"), np.arange(3, dtype="c8"), np.arange(3, dtype=">i4"),
    np.arange(3, dtype=">c16"), np.ones(2, "g"), np.ones(2, "G"),
    np.array(["a", "", "\U0001f600"]), np.array(["a", "bcd"], ">U3"),
    np.array([b"x", b"\0y"]), DATES, DATES.astype(">M8[s]"), DATES.astype("M8[25us]"),
    np.array([1, 2], "M8[7D]"), np.arange(2).view("m8"), np.array([-1], "m8[ns]"),
    FIELDS, FIELDS["b"], FIELDS[["a", "d"]], np.zeros(2, TITLED), np.zeros(2, NESTED),
    np.zeros(3, np.dtype([("a", "i1"), ("b", "f8")], align=True)), np.zeros(3, []),
    np.broadcast_to(np.float64(7), (3, 4)), np.arange(9_999.0), np.ones((99, 9), "i2"),
    np.array([1, None, "a", [1, (2,)], {"k": b"v"}, 2**80, np.float32(1)], object),
    np.array([[1, "b"], [None, 2.5]], object, order="F"), np.zeros((2, 0), object),
]  # fmt: skip

SCALARS = [
    np.float64(1.5), np.float64("nan"), np.float16(1), np.longdouble(2), np.int8(-1),
    np.uint64(2**64 - 1), np.complex64(1j), np.clongdouble(1j), np.bool_(True),
    np.str_("ü"), np.str_(""), np.str_("a\0"), np.bytes_(b"x"), np.bytes_(b"\0"),
    np.datetime64("2020-01-01", "m"), np.datetime64("NaT", "s"),
    np.datetime64(5, "25us"), np.timedelta64(-3, "W"), FIELDS[0],
]  # fmt: skip


def assert_same(left: Any, right: Any) -> None:
    """Check that two arrays or scalars are alike in type, dtype, shape and bytes."""
    assert type(left) is type(right)
    assert left.dtype == right.dtype
    assert left.dtype.str == right.dtype.str
    assert left.dtype.isalignedstruct == right.dtype.isalignedstruct
    assert left.shape == right.shape
    if left.dtype.kind == "O":
        assert repr(left.tolist()) == repr(right.tolist())
        kinds = [list(map(type, array.ravel().tolist())) for array in (left, right)]
        assert kinds[0] == kinds[1]
    elif isinstance(left, (np.str_, np.bytes_)):
        assert left[:] == right[:]
    else:
        assert left.tobytes() == right.tobytes()
    if type(left) is np.ndarray and left.dtype.kind != "O" and left.flags.forc:
        assert left.flags.fnc == right.flags.fnc


def shown(value: Any) -> str:
    """Return the name of a case."""
    return f"{type(value).__name__} {value.dtype!s:.40} {value.shape}"


# Round trips -------------------------------------------------------------------------


@pytest.mark.parametrize("value", ARRAYS + SCALARS, ids=shown)
def test_arrays_and_scalars_come_back_as_they_were(value: Any) -> None:
    """Dtype, shape, order and every byte are the same, and one array stays one."""
    again = codec.decode(codec.encode([value, {"key": value}]))
    assert_same(value, again[0])
    assert again[1]["key"] is again[0]


@pytest.mark.parametrize("value", ARRAYS, ids=shown)
def test_what_is_decoded_may_be_written_to_unless_it_is_said_otherwise(
    value: Any,
) -> None:
    """Wherever its memory was, an array is the receiver's own, or constant if asked."""
    constant = value.copy(order="K")
    constant.flags.writeable = False
    for source in (value, constant):
        head, buffers = codec.encode_with_buffers(source, buffer_bytes_min=1)
        received = [bytearray(buffer) for buffer in buffers]
        fixed = [bytes(buffer) for buffer in buffers]
        for given_ in (received, fixed):
            array = codec.decode(head, buffers=given_)
            assert_same(array, codec.decode(codec.encode(source)))
            assert array.flags.writeable
            assert array.flags.aligned
            array = codec.decode(head, buffers=given_, read_only=True)
            assert not array.flags.writeable
        assert not codec.decode(codec.encode(source), read_only=True).flags.writeable


@settings(max_examples=150, deadline=None)
@given(
    strategies.arrays(
        strategies.scalar_dtypes()
        | strategies.nested_dtypes(max_itemsize=60)
        | strategies.array_dtypes(allow_subarrays=True),
        strategies.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
    st.integers(1, 3),
    st.booleans(),
)
def test_any_array_of_the_allowed_kinds_comes_back(
    value: Any, step: int, transposed: bool
) -> None:
    """Whatever the dtype, shape and strides are, the array is rebuilt exactly."""
    if value.ndim:
        value = value[::step]
    value = value.T if transposed else value
    if arrays.dtype_form(value.dtype) is None:
        with pytest.raises(NotAllowed, match="may not travel"):
            codec.encode(value)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = repr(value)
    assert repr(codec.decode(codec.encode(value))) == wanted
    head, buffers = codec.encode_with_buffers(value, buffer_bytes_min=1)
    assert repr(codec.decode(head, buffers=buffers)) == wanted


def test_objects_in_an_array_are_values_like_others() -> None:
    """Dates, numbers, containers and arrays inside an array of objects travel."""
    import datetime
    import decimal

    items = [
        datetime.date(2020, 1, 1),
        decimal.Decimal("1.50"),
        np.arange(3),
        [np.int8(1)],
    ]
    value = np.empty(4, object)
    value[:] = items
    again = codec.decode(codec.encode(value))
    assert again[:2].tolist() == items[:2]
    assert_same(again[2], items[2])
    assert_same(again[3][0], items[3][0])  # type: ignore[index]


# Buffers -----------------------------------------------------------------------------


def test_a_large_array_is_one_buffer_and_is_not_copied() -> None:
    """64 MB cost a head of a few bytes; the ends of both sides are the same memory."""
    value = np.arange(8_000_000, dtype="f8")
    head, (buffer,) = codec.encode_with_buffers({"array": value, "note": "x"})
    assert len(head) < 300
    assert buffer.nbytes == 64_000_000
    assert np.shares_memory(value, np.frombuffer(buffer))
    again = codec.decode(head, buffers=[buffer], read_only=True)["array"]
    assert np.shares_memory(value, again)
    assert_same(again, value)


def test_small_arrays_stay_in_the_head() -> None:
    """Below the threshold, and for values without memory, there are no buffers."""
    least = codec.BUFFER_BYTES_MIN
    head, buffers = codec.encode_with_buffers(np.zeros(least - 1, "u1"))
    assert (len(buffers), len(head) > least) == (0, True)
    head, buffers = codec.encode_with_buffers(np.zeros(least, "u1"))
    assert (len(buffers), len(head) < 200) == (1, True)
    for value in (1, "x", (1, {}), ["x" * 100_000], ((), {"a": [1]})):
        head, buffers = codec.encode_with_buffers(value)
        assert (head, len(buffers)) == (codec.encode(value), 0)


def test_buffers_come_in_the_order_in_which_they_are_taken() -> None:
    """Many arrays beside one head find their own memory; a shared one is sent once."""
    arrays_of = [np.full((50, 7), i, dtype=kind) for i, kind in enumerate("ihfd" * 9)]
    value = {"list": arrays_of, "again": arrays_of[::-1], "small": np.arange(3)}
    head, buffers = codec.encode_with_buffers(value, buffer_bytes_min=100)
    assert len(buffers) == len(arrays_of)
    again = codec.decode(head, buffers=buffers)
    for left, right in zip(arrays_of, again["list"], strict=True):
        assert_same(left, right)
    assert again["again"][0] is again["list"][-1]


def test_the_number_of_buffers_is_bounded() -> None:
    """What one vectored write cannot take stays in the head."""
    value = [np.full(10, i) for i in range(contexts.BUFFERS_MAX + 5)]
    head, buffers = codec.encode_with_buffers(value, buffer_bytes_min=1)
    assert len(buffers) == contexts.BUFFERS_MAX - contexts.ENVELOPES_MAX
    again = codec.decode(head, buffers=buffers)
    assert [array[0] for array in again] == list(range(len(value)))


def test_buffers_that_do_not_fit_are_refused() -> None:
    """One too few, one too many, and ones of another size: each is told."""
    value = [np.arange(10), np.arange(5)]
    head, buffers = codec.encode_with_buffers(value, buffer_bytes_min=1)
    wrong: list[tuple[list[Any], str]] = [
        (buffers[:1], "more buffers than came"),
        ([], "more buffers than came"),
        ([*buffers, b"x"], "nothing takes it"),
        (buffers[::-1], "needs 80 bytes, but 40 came"),
        ([b"", b""], "needs 80 bytes, but 0 came"),
    ]
    for given_, words in wrong:
        with pytest.raises(NotAllowed, match=words):
            codec.decode(head, buffers=given_)
    for data in (codec.encode(5), codec.encode([1]), codec.encode(np.arange(3))):
        with pytest.raises(NotAllowed, match="nothing takes it"):
            codec.decode(data, buffers=[b"x"])


def test_buffers_count_for_the_limits() -> None:
    """The memory beside a pickle counts like that in it, each time it is taken up."""
    limits = codec.DEFAULT_LIMITS._replace(expanded_bytes_max=100_000)
    value = np.zeros(90_000, "u1")
    for bad in ([value, value], np.zeros(100_001, "u1")):
        with pytest.raises(TooLarge, match="expanded_bytes_max"):
            codec.encode_with_buffers(bad, limits, buffer_bytes_min=1)
        head, buffers = codec.encode_with_buffers(bad, buffer_bytes_min=1)
        with pytest.raises(TooLarge, match="expanded_bytes_max"):
            codec.decode(head, limits, buffers=buffers)
    head, buffers = codec.encode_with_buffers(value, limits, buffer_bytes_min=1)
    assert_same(value, codec.decode(head, limits, buffers=buffers))


def test_what_repeats_one_value_without_end_is_refused_before_it_is_copied() -> None:
    """An array of 80 terabytes that takes eight bytes is not made real."""
    for value in (np.broadcast_to(1.0, (10**9, 10**4)), np.zeros((0, 10**9))):
        with pytest.raises(TooLarge, match=r"expanded_bytes_max|nodes_max"):
            codec.encode(value)
    endless = np.broadcast_to(np.array(None), (10**9, 10**9))
    with pytest.raises(TooLarge, match="nodes_max"):
        codec.encode(endless)


def test_memory_between_the_fields_does_not_leave_the_process() -> None:
    """What is copied to be sent is made of zeros where it is not made of values."""
    dtype = np.dtype({"names": ["a"], "formats": ["u1"], "itemsize": 64})
    source = np.zeros(20, dtype)[::2]
    used = [np.full(640, 0xAA, "u1") for _ in range(20)]
    del used
    assert codec.encode(source).count(b"\xaa") == 0


# What is refused ---------------------------------------------------------------------


class Subclass(np.ndarray):  # type: ignore[misc, name-defined]
    """A class that somebody built upon arrays."""


class Unknown:
    """A class that nobody allowed."""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            np.ma.array([1]),
            r"MaskedArray .* may not travel; send its data and its mask",
        ),
        (np.eye(2).view(np.matrix), r"numpy.matrix .*; send numpy.asarray"),
        (np.eye(2).view(Subclass), r"Subclass .*; send numpy.asarray"),
        ([{"k": np.ma.array([1])}], r"\(at value\[0\]\['k'\]\); send its data"),
        (np.rec.array([(1,)], [("a", "i4")]), r"recarray .*; send value.view"),
        (np.zeros(2, "V5"), r"the dtype \|V5 may not travel; send it with a dtype of"),
        (np.zeros(2, [("a", "V5")]), "may not travel; send it with a dtype of numbers"),
        (np.zeros(2, [("a", "O")]), "may not travel; send it with a dtype of numbers"),
        (np.array([Unknown()]), r"Unknown may not travel; call state_server.allow"),
        (np.array([object()]), "type object may not travel"),
        (np.dtype("f8"), "of numpy, only arrays and scalars do"),
        (np.sin, "of numpy, only arrays and scalars do"),
        (np.float64, "numpy.float64 is no value; only instances travel"),
        (np.ndarray, "numpy.ndarray is no value; only instances travel"),
        (np.random.default_rng(1), "of numpy, only arrays and scalars do"),
        (arrays.array, "type function may not travel|is used as a value"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_plain_array_is_refused_with_the_way_out(
    value: Any, words: str
) -> None:
    """The refusal names the type and its dtype, and says what to send in its place."""
    for encode in (codec.encode, codec.encode_with_buffers):
        with pytest.raises(NotAllowed, match=words):
            encode(value)


def test_what_could_not_be_read_is_not_written() -> None:
    """Truths and text that are none, made by looking at other memory, are refused."""
    truths = np.array([0, 1, 2], "u1").view(bool)
    text = np.array([1, 0x110000], "u4").view("U2")
    fields = np.array([2], "u1").view([("a", "?")])
    for value in (truths, text, fields, fields[0]):
        with pytest.raises(NotAllowed, match=r"none of its dtype '.*': (?:2|1114112)"):
            codec.encode(value)


def test_classes_upon_arrays_cannot_be_allowed() -> None:
    """Their state would be numpy's own; allow() says so at once."""
    for cls in (Subclass, np.ndarray, np.float64, np.ma.MaskedArray):
        with pytest.raises(ConfigError, match="cannot be allowed"):
            codec.allow(cls)


def test_text_of_variable_length_is_refused() -> None:
    """The newer text arrays of numpy hold pointers; the error says what does."""
    if not hasattr(np.dtypes, "StringDType"):
        pytest.skip("this numpy has no such arrays")
    with pytest.raises(NotAllowed, match=r"StringDType\(\) .*value.astype\(object\)"):
        codec.encode(np.array(["a"], np.dtypes.StringDType()))


# numpy's own spelling, from and to stock clients -------------------------------------


def spelled(data: bytes, core: str) -> bytes:
    """Return a pickle with the modules' names of the other releases of numpy."""
    for old, new in (
        (b"numpy._core.", b"numpy.core."),
        (b"numpy.core.", b"numpy._core."),
    ):
        if new.startswith(core.encode()) and old in data:
            return renamed(data, old, new)
    return data


def renamed(data: bytes, old: bytes, new: bytes) -> bytes:
    """Replace a part of names, and put their lengths and those of FRAME right."""
    made, position = b"", 0
    for opcode, argument, place in pickle_opcodes(data):
        if isinstance(argument, str) and argument.encode().startswith(old):
            name = argument.encode().replace(old, new)
            made += data[position:place]
            if opcode == "GLOBAL":
                module, qualname = name.split(b" ")
                made += b"c" + module + b"\n" + qualname + b"\n"
                position = place + 3 + len(argument) - 1
            else:
                made += b"\x8c" + bytes([len(name)]) + name
                position = place + 2 + len(argument)
    made += data[position:]
    if made[2:3] == b"\x95":
        # One FRAME, of everything behind its own head.
        made = made[:3] + struct.pack("<Q", len(made) - 11) + made[11:]
    return made


def pickle_opcodes(data: bytes) -> list[tuple[str, Any, int]]:
    """Return name, argument and place of each opcode."""
    import pickletools

    return [
        (opcode.name, argument, place)
        for opcode, argument, place in pickletools.genops(data)
        if place is not None
    ]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", ARRAYS + SCALARS, ids=shown)
def test_stock_pickles_are_read(value: Any, protocol: int) -> None:
    """What a stock client's pickler writes for arrays and scalars is decoded."""
    data = pickle.dumps([value, value], protocol)
    again = codec.decode(data)
    assert again[0] is again[1]
    if isinstance(value, np.ndarray):
        assert again[0].flags.writeable
        assert not codec.decode(data, read_only=True)[0].flags.writeable
    if not isinstance(value, (np.str_, np.bytes_)):
        # numpy's own spelling drops the zeros at the end of text.
        assert_same(value, again[0])
    if len(data) < 10_000:
        for core in ("numpy.core.", "numpy._core."):
            assert_same(again[0], codec.decode(spelled(data, core))[0])


@pytest.mark.parametrize("value", ARRAYS + SCALARS, ids=shown)
def test_stock_clients_read_what_is_written_for_them(value: Any) -> None:
    """Replies to them have numpy's spelling, which needs nothing of this package."""
    data = codec.encode(("#RETURN", [value]), stock=True)
    assert b"state_server" not in data
    _, (again,) = pickle.loads(data)
    assert type(again) is type(value)
    if not isinstance(value, (np.str_, np.bytes_)):
        assert again.dtype.newbyteorder("=") == value.dtype.newbyteorder("=")
    assert repr(again.tolist()) == repr(value.tolist())


def test_arrays_beside_other_values_of_a_stock_pickle_are_put_in_their_places() -> None:
    """Recorded values and common ones may be mixed and shared in one pickle."""
    import datetime

    array, when = np.arange(3), datetime.date(2020, 1, 1)
    value = {"a": array, (1, np.int64(5)): [array, when, {when}], "d": array.dtype}
    again = codec.decode(pickle.dumps(value, 4))
    assert again["a"] is again[1, 5][0]
    assert again[1, 5][1:] == [when, {when}]
    assert again["d"] == array.dtype


# Without numpy -----------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules["numpy"] = sys.modules["pandas"] = None
from state_server import codec
from state_server.errors import NotAllowed
assert codec.decode(codec.encode([b"opaque", 1])) == [b"opaque", 1]
data, stock = eval(sys.stdin.read())
for written in (data, stock):
    try:
        codec.decode(written)
    except NotAllowed as error:
        print(error)
"""
NOT_IMPORTED = """
import sys
import state_server, state_server.manager, state_server.service
from state_server import codec
codec.decode(codec.encode(["x", b"opaque", 1.5, {"a": (1,)}]))
print(sorted({"numpy", "pandas"} & set(sys.modules)))
"""


def python(script: str, told: str = "") -> str:
    """Run a script in another interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script], input=told, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_where_numpy_is_missing_the_error_says_so() -> None:
    """A process without numpy reads everything else, and names what it needs."""
    told = repr((codec.encode(np.arange(3)), pickle.dumps(np.arange(3), 4)))
    lines = python(WITHOUT, told).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "needs numpy" in line
        assert "pip install numpy" in line


def test_nothing_imports_numpy_before_it_is_needed() -> None:
    """The package, its manager and common values leave numpy and pandas alone."""
    assert python(NOT_IMPORTED).strip() == "[]"


# Hostile pickles ---------------------------------------------------------------------


class Call:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, make: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (make, arguments) if state is None else (make, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


def dtype_call(text: Any = "f8", order: Any = "<", **changes: Any) -> Call:
    """Spell a dtype as numpy does, with changes of its state."""
    state = {
        "version": 3, "order": order, "subarray": None, "names": None, "fields": None,
        "itemsize": -1, "alignment": -1, "flags": 0, **changes,
    }  # fmt: skip
    return Call(np.dtype, text, False, True, state=tuple(state.values()))


def array_call(shape: Any, dtype: Any, memory: Any, fortran: Any = False) -> Call:
    """Spell an array as numpy does."""
    make = np.empty(0).__reduce__()[0]
    return Call(make, np.ndarray, (0,), b"b", state=(1, shape, dtype, fortran, memory))


FROM_MEMORY = np.arange(1).__reduce_ex__(5)[0]
SCALAR = np.float64(1).__reduce__()[0]


def nested_form(depth: int) -> Any:
    """Return a form of fields inside fields."""
    form: Any = "|u1"
    for _ in range(depth):
        form = (1, False, (("f", 0, form, (), None),))
    return form


def doubled_form(levels: int) -> Any:
    """Return a form that doubles with every level, though it is small."""
    form: Any = (0, False, ())
    for level in range(levels):
        pair = ((f"a{level}", 0, form, (), None), (f"b{level}", 0, form, (), None))
        form = (0, False, pair)
    return form


def of(form: Any, shape: Any = (1,), order: Any = "C", memory: Any = b"x" * 8) -> Call:
    """Spell an array in our own form."""
    return Call(arrays.array, form, shape, order, memory)


HUGE_FIELD = (8, False, (("a", 0, "<f8", (2**40, 2**40), None),))
EMPTY_FIELD = (8, False, (("a", 0, "<f8", (0, 10**12), None),))
HOSTILE: list[tuple[str, Any, str]] = [
    ("a dtype of pointers", of("O"), "no dtype"),
    ("a dtype of pointers with an order", of("|O8"), "no dtype"),
    ("a dtype of unknown kind", of("<x8"), "no dtype"),
    ("a dtype of raw bytes", of("|V8"), "no dtype"),
    ("a dtype of a gigabyte", of("|V1000000000"), "no dtype"),
    ("a dtype that is a list of dtypes", of("f8,f8"), "no dtype"),
    ("a dtype that repeats", of("3<f8"), "no dtype"),
    ("a dtype with a shape", of("(9,9)<f8"), "no dtype"),
    ("a dtype without an order", of("f8"), "no dtype"),
    ("a dtype of three bytes", of("<i3"), "no dtype"),
    ("a dtype with an order that it has not", of("<b1"), "no dtype"),
    ("a dtype without the order that it has", of("|f8"), "no dtype"),
    ("a dtype with a unit that it has not", of("<f8[ns]"), "no dtype"),
    ("a dtype of dates with a strange unit", of("<M8[xs]"), "no dtype"),
    ("a dtype of dates with a unit of nothing", of("<M8[0s]"), "no dtype"),
    (
        "a dtype of dates with a huge unit",
        of("<M8[999999999s]", memory=b"x" * 9),
        "need",
    ),
    ("a dtype of text without end", of("<U999999999"), "needs 3999999996 bytes"),
    ("a dtype of bytes without end", of("|S" + "9" * 30), "no dtype"),
    ("a dtype that is a number", of(8), "no dtype"),
    ("a dtype that is none", of(None), "no dtype"),
    ("a dtype that is a list", of(["<f8"]), "no dtype"),
    ("a dtype that is a short tuple", of((8, False)), "form of one"),
    ("a dtype of negative size", of((-8, False, ())), "form of one"),
    ("a dtype whose size is text", of(("8", False, ())), "form of one"),
    ("a dtype whose fields are a list", of((8, False, [])), "list of fields"),
    ("a field that is a number", of((8, False, (1,))), "form of one"),
    ("a field without a name", of((8, False, ((1, 0, "<f8", (), None),))), "no name"),
    ("a field with a strange title", of((8, False, (("a", 0, "<f8", (), 1),))), "name"),
    ("a field behind the end", of((8, False, (("a", 1, "<f8", (), None),))), "outside"),
    ("a field before the start", of((8, False, (("a", -1, "|i1", (), None),))), "outs"),
    ("a field of no dtype", of((8, False, (("a", 0, "|O8", (), None),))), "no dtype"),
    (
        "a field of a negative shape",
        of((8, False, (("a", 0, "<f8", (-1,), None),))),
        "sha",
    ),
    ("a field of a huge shape", of(HUGE_FIELD), "outside"),
    ("a field of an empty huge shape", of(EMPTY_FIELD), "nodes_max"),
    (
        "two fields of one name",
        of((2, False, (("a", 0, "|u1", (), None),) * 2), memory=b"xx"),
        "ValueError",
    ),
    ("fields in fields without end", of(nested_form(60)), "depth_max"),
    ("fields that double", of(doubled_form(60)), "max"),
    (
        "an aligned dtype that is not",
        of((9, True, (("a", 1, "<f8", (), None),)), memory=b"x" * 9),
        "ValueError",
    ),
    ("a negative length", of("<f8", (-1,)), "shape"),
    ("lengths whose product overflows", of("<f8", (2**32, 2**32)), "needs"),
    (
        "lengths whose product overflows to nothing",
        of("|u1", (2**63,), memory=b""),
        "shape",
    ),
    ("a length beyond all numbers", of("<f8", (10**4000,)), "shape"),
    ("a length that is a float", of("<f8", (1.0,)), "shape"),
    ("a length that is a truth", of("<f8", (True,)), "shape"),
    ("a shape that is a list", of("<f8", [1]), "shape"),
    ("a shape that is a number", of("<f8", 1), "shape"),
    ("a shape of a hundred dimensions", of("<f8", (1,) * 100), "dimensions"),
    ("a shape of 64 dimensions of an old numpy", of("<f8", (1,) * 65), "dimensions"),
    ("a huge shape of no memory", of("<f8", (0, 10**12), memory=b""), "nodes_max"),
    (
        "a huge shape of no memory, twice",
        of("<f8", (2**62, 0, 2**62), memory=b""),
        "nodes_max",
    ),
    ("many items without a size", of("<U0", (10**9,), memory=b""), "nodes_max"),
    ("many items of no fields", of((0, False, ()), (10**9,), memory=b""), "nodes_max"),
    ("no items of a huge size", of("|S999999999", (0,), memory=b""), "nodes_max"),
    ("an unknown order", of("<f8", order="K"), "order"),
    ("an order that is a list", of("<f8", order=["C"]), "order"),
    ("memory that is too short", of("<f8", (2,)), "needs 16 bytes, but 8 came"),
    ("memory that is too long", of("<i1", (1,), memory=b"xx"), "no dtype"),
    ("memory that is longer than the items", of("|i1", (1,), memory=b"xx"), "needs 1"),
    ("memory that is text", of("<f8", memory="x" * 8), "not bytes"),
    ("memory that is another array", of("<f8", memory=of("<f8")), "not bytes"),
    ("memory that is a number", of("<f8", memory=8), "not bytes"),
    ("too few arguments", Call(arrays.array, "<f8"), "ValueError"),
    (
        "a buffer that did not come",
        Call(arrays.array_aside, "<f8", (1,), "C"),
        "more buf",
    ),
    ("objects that are too few", Call(arrays.object_array, (2,), [1]), "not as many"),
    ("objects in a tuple", Call(arrays.object_array, (1,), (1,)), "not as many"),
    (
        "objects of a huge shape",
        Call(arrays.object_array, (0, 10**12), []),
        "nodes_max",
    ),
    ("objects of a shape that is none", Call(arrays.object_array, None, []), "shape"),
    (
        "a truth that is none",
        of("|b1", (8,), memory=b"\1" * 7 + b"\2"),
        "is none of its dtype",
    ),
    ("a character that is none", of("<U2", (1,)), "is none of its dtype"),
    (
        "a character in a field that is none",
        of(
            (
                9,
                False,
                (("a", 1, (8, False, (("b", 0, ">U1", (2,), None),)), (), None),),
            ),
            memory=b"x" * 9,
        ),
        "is none of its dtype",
    ),
    (
        "a scalar that is no truth",
        Call(arrays.scalar, "|b1", b"\xff"),
        "is none of its dtype",
    ),
    (
        "a scalar of too few bytes",
        Call(arrays.scalar, "<f8", b"x"),
        "has not the bytes",
    ),
    (
        "a scalar of text as bytes",
        Call(arrays.scalar, "<f8", "x" * 8),
        "has not the byt",
    ),
    ("a scalar of pointers", Call(arrays.scalar, "|O8", b"x" * 8), "no dtype"),
    (
        "a scalar that is text of bytes",
        Call(arrays.scalar, "U", b"x"),
        "not the bytes|no dt",
    ),
    # numpy's own spelling, each part of it forged.
    (
        "stock: a dtype of pointers",
        Call(FROM_MEMORY, b"x" * 8, dtype_call("O8", "|"), (1,), "C"),
        "no dtype",
    ),
    (
        "stock: objects from bytes",
        array_call((1,), dtype_call("O8", "|"), b"x" * 8),
        "no dty",
    ),
    (
        "stock: numbers from a list",
        array_call((1,), dtype_call(), [1]),
        "list of numbers",
    ),
    (
        "stock: a dtype whose text lies",
        array_call((1,), dtype_call("i3"), b"x" * 8),
        "no dt",
    ),
    (
        "stock: a dtype with the size of another",
        array_call((1,), dtype_call("f8", itemsize=1), b"x"),
        "needs 8 bytes, but 1 came",
    ),
    (
        "stock: a dtype of flags",
        array_call((1,), dtype_call("V8", "|", flags=255), b"x" * 8),
        "no dtype",
    ),
    (
        "stock: raw bytes",
        array_call((1,), dtype_call("V8", "|", itemsize=8), b"x" * 8),
        "no dt",
    ),
    (
        "stock: a huge raw dtype",
        array_call((1,), dtype_call("V1000000000", "|"), b"x"),
        "no d",
    ),
    (
        "stock: fields that are no dict",
        dtype_call("V8", "|", names=("a",), fields=[]),
        "fields",
    ),
    (
        "stock: fields that are missing",
        dtype_call("V8", "|", names=("a",), fields={}),
        "KeyErr",
    ),
    (
        "stock: a field of text",
        dtype_call("V8", "|", names=("a",), fields={"a": ("f8", 0)}),
        "no dtype",
    ),
    (
        "stock: a field outside",
        dtype_call(
            "V8", "|", names=("a",), fields={"a": (dtype_call(), 9)}, itemsize=8
        ),
        "outside",
    ),
    (
        "stock: a field of pointers",
        dtype_call(
            "V8",
            "|",
            names=("a",),
            fields={"a": (dtype_call("O8", "|"), 0)},
            itemsize=8,
        ),
        "no dtype",
    ),
    (
        "stock: a huge subarray",
        dtype_call("V8", "|", subarray=(dtype_call(), (2**40, 2**40))),
        "Error",
    ),
    (
        "stock: a subarray of text",
        dtype_call("V8", "|", subarray=("f8", (1,))),
        "no dtype",
    ),
    (
        "stock: a strange unit",
        dtype_call("M8", metadata=({}, (b"[s]", 1, 1, 1))),
        "unit",
    ),
    ("stock: a unit of text", dtype_call("M8", metadata=({}, ("s", 1, 1, 1))), "unit"),
    ("stock: no unit", dtype_call("M8", metadata=None), "dtype|Error"),
    (
        "stock: a state that is short",
        Call(np.dtype, "f8", False, True, state=(3,)),
        "Error",
    ),
    (
        "stock: a state that is a number",
        Call(np.dtype, "f8", False, True, state=7),
        "Error",
    ),
    (
        "stock: a dtype without a state",
        Call(np.dtype, "f8", False, True),
        "before its state",
    ),
    (
        "stock: a dtype that is no text",
        Call(np.dtype, [("a", "O")], state=(3,) * 8),
        "text|Er",
    ),
    ("stock: a list of dtypes as text", dtype_call("f8,O"), "no dtype"),
    (
        "stock: an array without a state",
        Call(np.empty(0).__reduce__()[0], np.ndarray, (0,), b"b"),
        "before its state",
    ),
    (
        "stock: an array of another class",
        Call(
            np.empty(0).__reduce__()[0],
            int,
            (0,),
            b"b",
            state=(1, (1,), dtype_call(), False, b"x" * 8),
        ),
        "a name as argument|class",
    ),
    (
        "stock: an array of no class",
        Call(np.empty(0).__reduce__()[0], 1, state=(1, 2, 3, 4, 5)),
        "class that is not",
    ),
    (
        "stock: an array of a matrix",
        Call(np.empty(0).__reduce__()[0], np.matrix, (0,), b"b", state=()),
        "numpy.* may not travel; send plain arrays",
    ),
    (
        "stock: an array with a negative length",
        array_call((-1,), dtype_call(), b""),
        "shape",
    ),
    (
        "stock: an array of a huge shape",
        array_call((2**40, 2**40), dtype_call(), b""),
        "needs",
    ),
    (
        "stock: an array of a huge empty shape",
        array_call((0, 2**40), dtype_call(), b""),
        "nodes",
    ),
    (
        "stock: an array of text as memory",
        array_call((1,), dtype_call(), "x" * 8),
        "not bytes",
    ),
    (
        "stock: an array of too little",
        array_call((2,), dtype_call(), b"x" * 8),
        "needs 16",
    ),
    ("stock: an array of a number as dtype", array_call((1,), 8, b"x" * 8), "no dtype"),
    (
        "stock: memory of a huge shape",
        Call(FROM_MEMORY, b"", dtype_call(), (2**40,), "C"),
        "need",
    ),
    (
        "stock: memory of text",
        Call(FROM_MEMORY, "x", dtype_call(), (1,), "C"),
        "not bytes",
    ),
    (
        "stock: axes that are none",
        Call(FROM_MEMORY, b"x" * 8, dtype_call(), (1,), "K", (5,)),
        "Error",
    ),
    (
        "stock: a scalar of pointers",
        Call(SCALAR, dtype_call("O8", "|"), b"x" * 8),
        "no dtype",
    ),
    (
        "stock: a scalar of too little",
        Call(SCALAR, dtype_call(), b"x"),
        "has not the bytes",
    ),
    (
        "stock: a scalar of an object",
        Call(SCALAR, dtype_call("O8", "|"), [1]),
        "no dtype",
    ),
    ("stock: a masked array", np.ma.array([1]), "may not travel; send plain arrays"),
    ("stock: a generator of numbers", np.random.PCG64(1), "may not travel"),
]


def hostile_pickles() -> list[tuple[str, bytes, str]]:
    """Return what is tried, the bytes, and words of the refusal."""
    return [(name, pickle.dumps(value, 4), words) for name, value, words in HOSTILE]


@pytest.mark.parametrize(
    ("data", "words"),
    [row[1:] for row in hostile_pickles()],
    ids=[row[0] for row in HOSTILE],
)
def test_a_forged_array_is_refused(data: bytes, words: str) -> None:
    """No dtype, shape or memory is taken at its word; each refusal has its reason."""
    with pytest.raises((NotAllowed, TooLarge), match=words):
        codec.decode(data)


def test_damaged_arrays_raise_only_our_errors() -> None:
    """Valid pickles with bytes changed, removed or mixed give arrays or our errors."""
    small = [value for value in ARRAYS + SCALARS if value.nbytes < 2_000]
    pickles = [codec.encode(value) for value in small]
    pickles += [
        pickle.dumps(value, protocol) for value in small for protocol in (2, 4, 5)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in damaged(pickles, 30_000, seed=3):
            try:
                codec.encode(codec.decode(data))
            except (NotAllowed, TooLarge):
                continue
