"""DataFrames, series, indexes and values of pandas: they come back unchanged."""

from __future__ import annotations

import datetime
import decimal
import functools
import pickle
import subprocess
import sys
import warnings
import zoneinfo
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state_server import codec
from state_server.codec import arrays, dataframe_spellings, dataframes
from state_server.codec.contexts import WriteContext
from state_server.errors import ConfigError, NotAllowed, TooLarge

np = pytest.importorskip("numpy", reason="numpy is not installed")
pd = pytest.importorskip("pandas", reason="pandas is not installed")
import pandas.testing as tm

from ..damage import damaged
from .test_arrays import Call, Unknown, dtype_call, hostile_pickles, python

ROWS = 6
PLACE = zoneinfo.ZoneInfo("Europe/Berlin")
EAST = datetime.timezone(datetime.timedelta(hours=2))


def days(**options: Any) -> Any:
    """Return a day for each row."""
    return pd.date_range("2020-10-23", periods=ROWS, **options)


#: One column for each kind; the names are those of the cases.
COLUMNS: dict[str, Any] = {
    "int": np.arange(ROWS),
    "small int": np.arange(ROWS, dtype="i1"),
    "unsigned": np.arange(ROWS, dtype="u8"),
    "float": np.linspace(0, 1, ROWS),
    "half": np.arange(ROWS, dtype="f2"),
    "big-endian": np.arange(ROWS, dtype=">f4"),
    "complex": np.arange(ROWS, dtype="c8"),
    "bool": np.array([True, False] * 3),
    "text": pd.Series(["a", "", "ü", "\U0001f600", "e", "f"]),
    "text as objects": pd.Series(["a", None, np.nan, "d", "e", "f"], dtype=object),
    "text as string": pd.array(["a", None] * 3, dtype="string"),
    "objects": pd.Series(
        [1, 2**80, decimal.Decimal("1.50"), [1, (2,)], {"k": b"v"}, None], dtype=object
    ),
    "days": pd.Series([datetime.date(2020, 1, 1)] * ROWS, dtype=object),
    "missing": pd.Series(
        [pd.NaT, pd.NA, None, np.nan, np.float32(1), np.datetime64("NaT", "s")],
        dtype=object,
    ),
    "moments": pd.Series(
        [
            pd.Timestamp("2020", tz="UTC"),
            pd.Timestamp("2020-10-25 00:30", tz="UTC").tz_convert(PLACE),
            pd.Timedelta("1s"),
            pd.Period("2020", "M"),
            pd.Interval(0, 1),
            np.arange(2),
        ],
        dtype=object,
    ),
    "dates ns": days(unit="ns"),
    "dates us": days(unit="us"),
    "dates ms": days(unit="ms"),
    "dates s": days(unit="s"),
    "dates with a gap": days().where(np.arange(ROWS) > 2),
    "dates UTC": days(tz="UTC"),
    "dates in Berlin": days(tz="Europe/Berlin", freq="h"),
    "dates by zoneinfo": days(tz=PLACE),
    "dates by offset": days(tz=EAST),
    "differences": pd.timedelta_range("1h", periods=ROWS),
    "differences in s": pd.Series(np.arange(ROWS).view("m8[s]")),
    "categories": pd.Categorical(["a", "a", "b", None, "c", "b"]),
    "categories in order": pd.Categorical([3, 2, 1] * 2, [1, 2, 3, 4], ordered=True),
    "categories of dates": pd.Categorical(days(tz="Asia/Tokyo")),
    "categories of intervals": pd.cut(np.arange(ROWS), 3),
    "masked int": pd.array([1, None] * 3, dtype="Int8"),
    "masked unsigned": pd.array([1, None] * 3, dtype="UInt64"),
    "masked float": pd.array([1.5, None] * 3, dtype="Float64"),
    "masked bool": pd.array([True, None, False] * 2, dtype="boolean"),
    "months": pd.period_range("2020", periods=ROWS, freq="M"),
    "quarters": pd.period_range("2020", periods=ROWS, freq="Q-NOV"),
    "spans of hours": pd.period_range("2020", periods=ROWS, freq="2h"),
    "intervals": pd.interval_range(0, ROWS, closed="left"),
    "intervals of dates": pd.arrays.IntervalArray.from_breaks(
        days()[:1].append(days())
    ),
}
#: What no index can be made of: half floats, and values that cannot be hashed.
NO_INDEX = {"half", "objects", "moments"}


def frame_of_all() -> Any:
    """Return a DataFrame with a column of each kind."""
    return pd.DataFrame({name: pd.Series(values) for name, values in COLUMNS.items()})


DATAFRAMES: dict[str, Any] = {
    "every kind": frame_of_all(),
    "nothing": pd.DataFrame(),
    "rows without columns": pd.DataFrame(index=range(5)),
    "columns without rows": pd.DataFrame(columns=["a", "b"]),
    "numbers without rows": pd.DataFrame(np.zeros((0, 3))),
    "numbers": pd.DataFrame(np.arange(12.0).reshape(4, 3)),
    "numbers in Fortran order": pd.DataFrame(np.arange(12.0).reshape(3, 4).T),
    "every second row": pd.DataFrame(np.arange(12.0).reshape(4, 3))[::2],
    "one column": pd.DataFrame({"a": [1.5, 2.5]}),
    "big-endian numbers": pd.DataFrame(np.arange(4, dtype=">i4").reshape(2, 2)),
    "dates": pd.DataFrame(np.array([["2020", "NaT"], ["1969", "2021"]], "M8[s]")),
    "the same label twice": pd.DataFrame([[1, "a"], [2, "b"]], columns=["x", "x"]),
    "labels of all sorts": pd.DataFrame({1: [1], (1, "a"): [2], None: [3], 1.5: [4]}),
    "text labels as objects": pd.DataFrame(
        {"a": [1]}, columns=pd.Index(["a"], dtype=object)
    ),
    "dates as rows": pd.DataFrame({"a": range(5)}, index=days(tz="Europe/Berlin")[:5]),
    "months as columns": pd.DataFrame(
        np.eye(3), columns=days(freq="ME")[:3].rename("m")
    ),
    "several levels": pd.DataFrame(
        np.eye(4),
        index=pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["l", None]),
        columns=pd.MultiIndex.from_arrays([["u", None] * 2, days()[:4]]),
    ),
    "a selection of levels": pd.DataFrame(
        {"a": range(4)}, index=pd.MultiIndex.from_product([["a", "b"], [1, 2]])
    ).iloc[1:2],
    "a steep range": pd.DataFrame(
        {"a": [1, 2]}, index=pd.RangeIndex(10, 4, -3, name="r")
    ),
    "a summary": pd.DataFrame({"a": [1, 2], "b": ["x", "x"]})
    .groupby("b")
    .agg(["sum", "mean"]),
    "more parts than pandas likes": pd.DataFrame(
        {f"c{i}": [i, str(i)][i % 2] for i in range(250)}, index=[0]
    ),
    "pieces put together": pd.concat(
        [pd.DataFrame({i: [1.0, 2.0]}) for i in range(3)], axis=1
    ),
}

INDEXES: dict[str, Any] = {
    **{
        name: pd.Index(pd.Series(v), name=name)
        for name, v in COLUMNS.items()
        if name not in NO_INDEX
    },
    "range": pd.RangeIndex(5, name=("a", 1)),
    "range down": pd.RangeIndex(10, 0, -3),
    "nothing": pd.Index([]),
    "tuples": pd.Index([(1, 2), (3,)], tupleize_cols=False),
    "levels with gaps": pd.MultiIndex.from_arrays(
        [[1, None], [pd.NaT, pd.Timestamp("2020")]]
    ),
    "categories of nothing": pd.CategoricalIndex([]),
}
FREQUENCIES = ["D", "2D", "h", "5min", "s", "ms", "us", "ns", "B", "MS", "ME", "W-WED",
               "BME", "SME-15", "SMS", "QE-JAN", "QS", "YE-MAR", "YS", "2W",
               "-1D"]  # fmt: skip

MOMENTS = [
    pd.Timestamp("2020"),
    pd.Timestamp("2020-10-25 00:30", tz="UTC").tz_convert("Europe/Berlin"),
    pd.Timestamp("2020-10-25 01:30", tz="UTC").tz_convert(PLACE),
    pd.Timestamp.min,
    pd.Timestamp.max,
    pd.Timestamp(-1, unit="s", tz=EAST),
    pd.Timestamp(1, unit="ns"),
    pd.Timedelta("1ns"),
    pd.Timedelta(-5, "D"),
    pd.Timedelta.max,
    pd.NaT,
    pd.NA,
    pd.Period("2020-01-01", "D"),
    pd.Period("2020Q1"),
    pd.Period("2020", "W-WED"),
    pd.Interval(0, 1.5, "both"),
    pd.Interval(pd.Timestamp("2020"), pd.Timestamp("2021")),
]


def assert_same_dataframe(left: Any, right: Any) -> None:
    """Check that two DataFrames are alike in values, dtypes, labels and attributes."""
    tm.assert_frame_equal(left, right, check_freq=True)
    assert type(left.index) is type(right.index)
    assert type(left.columns) is type(right.columns)
    assert list(map(str, left.dtypes)) == list(map(str, right.dtypes))
    assert (left.attrs, left.flags) == (right.attrs, right.flags)
    for name in left.columns if left.columns.is_unique else ():
        if left[name].dtype == object:
            kinds = [list(map(type, dataframe[name])) for dataframe in (left, right)]
            assert kinds[0] == kinds[1]


# Round trips -------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATAFRAMES)
def test_dataframes_come_back_as_they_were(name: str) -> None:
    """Values, dtypes, row and column labels, names, frequencies: all are the same."""
    value = DATAFRAMES[name]
    assert_same_dataframe(value, codec.decode(codec.encode(value)))
    head, buffers = codec.encode_with_buffers({"key": [value]}, buffer_bytes_min=1)
    received = [bytearray(buffer) for buffer in buffers]
    again = codec.decode(head, buffers=received)["key"][0]
    assert_same_dataframe(value, again)


@pytest.mark.parametrize("name", COLUMNS)
def test_series_come_back_as_they_were(name: str) -> None:
    """A series of each kind is the same again, and so is pandas' own array of it."""
    series = pd.Series(COLUMNS[name], name=(name, 1))
    again = codec.decode(codec.encode(series))
    tm.assert_series_equal(series, again, check_freq=True)
    assert str(series.dtype) == str(again.dtype)
    if not isinstance(series.array, pd.arrays.NumpyExtensionArray):
        array = codec.decode(codec.encode([series.array]))[0]
        tm.assert_extension_array_equal(series.array, array)


@pytest.mark.parametrize("name", INDEXES)
def test_indexes_come_back_as_they_were(name: str) -> None:
    """An index of each kind is the same again, its names included."""
    index = INDEXES[name]
    again = codec.decode(codec.encode(index))
    tm.assert_index_equal(index, again, exact=True)
    assert index.names == again.names


@pytest.mark.parametrize("frequency", FREQUENCIES)
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_dates_keep_their_frequency(frequency: str, zone: str | None) -> None:
    """The step from date to date comes back, over changes of the clock as well."""
    if frequency == "-1D":
        index = pd.date_range("2020-10-28", periods=8, freq="D", tz=zone)[::-1]
    else:
        index = pd.date_range("2020-10-23", periods=8, freq=frequency, tz=zone)
    again = codec.decode(codec.encode(index))
    assert index.freq is not None
    assert index.freq == again.freq
    assert index.equals(again)


def test_a_frequency_that_cannot_be_told_is_left_away() -> None:
    """Holidays of one's own are not in the name of a frequency; the dates are kept."""
    free = pd.offsets.CustomBusinessDay(holidays=["2020-10-26"])
    index = pd.date_range("2020-10-23", periods=5, freq=free)
    again = codec.decode(codec.encode(index))
    assert again.freq is None
    assert list(again) == list(index)


@pytest.mark.parametrize("value", MOMENTS, ids=repr)
def test_single_values_come_back_as_they_were(value: Any) -> None:
    """Points, differences and spans of time, intervals, and what stands for none."""
    again = codec.decode(codec.encode({"key": value}))["key"]
    assert type(again) is type(value)
    assert repr(again) == repr(value)
    assert again is value or again == value
    assert getattr(again, "unit", None) == getattr(value, "unit", None)


def test_a_zone_by_name_is_told_as_such() -> None:
    """The reader makes it in the way of its own pandas, which may be another."""
    context = WriteContext(codec.DEFAULT_LIMITS, object)
    for value in (pd.Timestamp(0, tz="Europe/Berlin"), days(tz="Europe/Berlin").array):
        _, (_, zone, native) = dataframe_spellings.spelling(context, value)
        assert (zone, native) == (PLACE, True)


def test_attributes_and_flags_travel() -> None:
    """What was written to attrs, and that labels are unique, comes back."""
    dataframe = pd.DataFrame({"a": [1, 2]}).set_flags(allows_duplicate_labels=False)
    dataframe.attrs["note"] = {"from": [datetime.date(2020, 1, 1)]}
    again = codec.decode(codec.encode(dataframe))
    assert_same_dataframe(dataframe, again)
    assert again.attrs == dataframe.attrs
    assert not again.flags.allows_duplicate_labels
    series = dataframe["a"]
    assert codec.decode(codec.encode(series)).attrs == series.attrs


columns = st.one_of(
    st.lists(st.floats(), min_size=3, max_size=3),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3),
    st.lists(st.text(), min_size=3, max_size=3),
    st.lists(
        st.none() | st.text() | st.integers() | st.booleans(), min_size=3, max_size=3
    ),
    st.lists(st.booleans() | st.none(), min_size=3, max_size=3).map(
        lambda items: pd.array(items, dtype="boolean")
    ),
    st.lists(st.sampled_from("abc"), min_size=3, max_size=3).map(pd.Categorical),
    st.lists(
        st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1)),
        min_size=3, max_size=3,
    ).map(lambda items: pd.DatetimeIndex(items, tz="UTC").tz_convert("Asia/Tokyo")),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text() | st.integers(), columns, max_size=5))
def test_any_dataframe_of_the_usual_columns_comes_back(data: dict[Any, Any]) -> None:
    """Whatever is in the columns and however they are called, it is the same."""
    value = pd.DataFrame(data)
    assert_same_dataframe(value, codec.decode(codec.encode(value)))


# Memory ------------------------------------------------------------------------------


def test_a_large_frame_is_few_buffers_and_is_not_copied() -> None:
    """Numbers of one dtype are one buffer, columns of several are one each."""
    numbers = pd.DataFrame(np.zeros((100_000, 20)))
    head, buffers = codec.encode_with_buffers(numbers)
    assert (len(buffers), len(head) < 1_000) == (1, True)
    assert np.shares_memory(numbers.to_numpy(), np.frombuffer(buffers[0]))
    mixed = pd.DataFrame(
        {"a": np.zeros(100_000), "b": np.zeros(100_000, "i4"), "c": "x"}
    )
    mixed["c"] = pd.Categorical(mixed["c"])
    head, buffers = codec.encode_with_buffers(mixed)
    assert [buffer.nbytes for buffer in buffers] == [800_000, 400_000, 100_000]
    received = [bytearray(buffer) for buffer in buffers]
    again = codec.decode(head, buffers=received)
    assert np.shares_memory(again["a"].to_numpy(), np.frombuffer(received[0]))
    assert_same_dataframe(mixed, again)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_dataframes_may_always_be_written_to(read_only: bool, kind: type) -> None:
    """Half of what pandas does would fail on constant memory; so theirs never is."""
    for value in (DATAFRAMES["numbers"], DATAFRAMES["every kind"]):
        head, buffers = codec.encode_with_buffers([value], buffer_bytes_min=1)
        received = [kind(buffer) for buffer in buffers]
        for data, given_ in ((head, received), (codec.encode([value]), [])):
            dataframe = codec.decode(data, buffers=given_, read_only=read_only)[0]
            name = dataframe.columns[0]
            dataframe.loc[0, name] = 77
            assert dataframe[name].tolist() == [77, *value[name].tolist()[1:]]
            assert_same_dataframe(value.iloc[1:], dataframe.iloc[1:])


def test_a_dataframe_of_many_parts_is_put_together() -> None:
    """pandas warns when a column is added to a DataFrame of very many parts."""
    dataframe = codec.decode(codec.encode(DATAFRAMES["more parts than pandas likes"]))
    dataframe["one more"] = 1


def test_rows_that_are_there_are_not_counted_again() -> None:
    """Three million rows of one byte pass, though that many values would not."""
    rows = 3_000_000
    value = pd.DataFrame({"a": np.zeros(rows, "i1"), "b": np.zeros(rows, bool)})
    assert codec.decode(codec.encode(value)).shape == (rows, 2)
    assert len(codec.decode(codec.encode(value["a"]))) == rows
    for bad in (value[[]], pd.DataFrame(index=value.index), value.index):
        with pytest.raises(TooLarge, match="nodes_max"):
            codec.decode(codec.encode(bad))


# What is refused ---------------------------------------------------------------------


class OwnFrame(pd.DataFrame):  # type: ignore[misc, name-defined]
    """A class that somebody built upon DataFrames."""


class OwnSeries(pd.Series):  # type: ignore[misc, name-defined]
    """A class that somebody built upon series."""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (OwnFrame({"a": [1]}), r"OwnFrame may not .*; send pandas.DataFrame\(value\)"),
        ([OwnSeries([1])], r"\(at value\[0\]\); send pandas.Series\(value\)"),
        (pd.Series(pd.arrays.SparseArray([1])), r"Sparse\[.*send value.astype"),
        (pd.DataFrame({"a": [Unknown()]}), "Unknown may not travel; call state_server"),
        (pd.DataFrame({"a": [object()]}), "type object may not travel"),
        (pd.Series([1], index=[Unknown()]), "Unknown may not travel"),
        (pd.Series([1]).array, r"send value.to_numpy\(\)"),
        (pd.Series([1], name=Unknown()), "Unknown may not travel"),
        (pd.offsets.Day(), "of pandas, only DataFrames, series, indexes"),
        (pd.CategoricalDtype(), "of pandas, only DataFrames, series, indexes"),
        (pd.Series([1]).rolling(1), "of pandas, only DataFrames, series, indexes"),
        (pd.DataFrame, r"DataFrame is no value; only instances travel"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_what_has_no_form_is_refused_with_the_way_out(value: Any, words: str) -> None:
    """The refusal names the type, and what to send in its place."""
    with pytest.raises(NotAllowed, match=words):
        codec.encode(value)


def test_time_zones_of_other_libraries_are_refused_with_the_way_out() -> None:
    """A zone that is only a file cannot be named; the error says how to convert it."""
    tz = pytest.importorskip("dateutil.tz")
    zone = tz.tzrange("XST", 3600)
    with pytest.raises(NotAllowed, match="to a time zone of zoneinfo"):
        codec.encode(pd.Series(pd.DatetimeIndex(["2020-01-01"], tz=zone)))


def test_classes_upon_dataframes_cannot_be_allowed() -> None:
    """Their state would be pandas' own insides; allow() says so at once."""
    for cls in (OwnFrame, pd.DataFrame, pd.Timestamp):
        with pytest.raises(ConfigError, match="cannot be allowed"):
            codec.allow(cls)


def test_stock_clients_are_told_to_use_ours() -> None:
    """pandas' own pickles are neither read nor written; the error names the way."""
    for value in (DATAFRAMES["numbers"], pd.Series([1]), pd.Timestamp("2020"), pd.NaT):
        with pytest.raises(NotAllowed, match=r"state_server.connect\(\)"):
            codec.decode(pickle.dumps(value, 4))
        with pytest.raises(NotAllowed, match=r"state_server.connect\(\)"):
            codec.encode(("#RETURN", value), stock=True)


WITHOUT = """
import sys
sys.modules["pandas"] = None
from state_server import codec
from state_server.errors import NotAllowed
try:
    codec.decode(eval(sys.stdin.read()))
except NotAllowed as error:
    print(error)
"""


def test_where_pandas_is_missing_the_error_says_so() -> None:
    """A process that has numpy alone names what it needs for a DataFrame."""
    line = python(WITHOUT, repr(codec.encode(DATAFRAMES["numbers"])))
    assert "needs pandas" in line
    assert "pip install pandas" in line


# Hostile values ----------------------------------------------------------------------

THREE = np.arange(3.0)
CODES = np.array([0, 1, -1], "i1")
STEPS = (0, 3, 1, None)


def dataframe(values: Any, columns: Any = (0, 1, 1, None), rows: Any = STEPS) -> Call:
    """Spell a DataFrame with anything as its parts."""
    return Call(dataframes.dataframe, values, columns, rows, {}, False)


def series(values: Any, rows: Any = STEPS, name: Any = None) -> Call:
    """Spell a series with anything as its parts."""
    return Call(dataframes.series, values, rows, name, {}, False)


def index(values: Any, name: Any = None, frequency: Any = None) -> Call:
    """Spell an index with anything as its parts."""
    return Call(dataframes.index, values, name, frequency)


LETTERS = index(np.array(["a", "b"], object))
DATES = np.arange(3).view("M8[D]").astype("M8[s]")
DATE = np.datetime64(0, "s")
HOSTILE: list[tuple[str, Any, str]] = [
    (
        "a DataFrame of a billion rows",
        dataframe([], (0, 0, 1, None), (0, 10**9, 1, None)),
        "nodes_max",
    ),
    (
        "a DataFrame of a billion columns",
        dataframe(np.zeros((0, 1)), (0, 10**9, 1, None)),
        "for 1 val",
    ),
    ("an index of a billion", Call(dataframes.steps, 0, 10**9, 1, None), "nodes_max"),
    (
        "an index without end",
        Call(dataframes.steps, 0, 10**300, 1, None),
        "beyond all numbers",
    ),
    (
        "an index of no steps",
        Call(dataframes.steps, 0, 3, 0, None),
        "not made of numbers",
    ),
    (
        "an index of text steps",
        Call(dataframes.steps, "0", 3, 1, None),
        "not made of numbers",
    ),
    (
        "an index of true steps",
        Call(dataframes.steps, False, 3, True, None),
        "not made of",
    ),
    (
        "columns of other lengths",
        dataframe([THREE, THREE[:2]], (0, 2, 1, None)),
        "not as long",
    ),
    (
        "more labels than columns",
        dataframe([THREE], (0, 2, 1, None)),
        "2 labels for 1 values",
    ),
    (
        "fewer labels than rows",
        dataframe([THREE], rows=(0, 2, 1, None)),
        "2 labels for 3 values",
    ),
    (
        "an index of other length",
        dataframe([THREE], rows=LETTERS),
        "2 labels for 3 values",
    ),
    (
        "a block with other labels",
        dataframe(np.zeros((3, 2)), (0, 3, 1, None)),
        "3 labels for 2",
    ),
    (
        "a block with other rows",
        dataframe(np.zeros((3, 2)), (0, 2, 1, None), LETTERS),
        "2 labels",
    ),
    ("a block of one dimension", dataframe(THREE), "1 dimensions"),
    ("a block of three", dataframe(np.zeros((3, 1, 1))), "3 dimensions"),
    ("a column of two dimensions", dataframe([np.zeros((3, 1))]), "2 dimensions"),
    ("columns in a tuple", dataframe((THREE,)), "not made of an array or a list"),
    ("a column that is a list", dataframe([[1, 2, 3]]), "column is a list"),
    ("a column that is text", dataframe(["abc"]), "column is a str"),
    (
        "a column that is an index",
        dataframe([Call(dataframes.steps, 0, 3, 1, None)]),
        "RangeIndex",
    ),
    (
        "a column of bytes, which pandas makes objects of",
        dataframe([np.array([b"a"] * 3)]),
        "S1",
    ),
    ("a column of characters", dataframe([np.array(["a"] * 3)]), "dtype <U1"),
    ("a column of fields", dataframe([np.zeros(3, [("a", "i1")])]), "dtype"),
    (
        "an index that is a list",
        dataframe([THREE], rows=[0, 1, 2]),
        "An index is a list",
    ),
    (
        "an index that is an array",
        dataframe([THREE], rows=THREE),
        "An index is a ndarray",
    ),
    ("an index of a short tuple", dataframe([THREE], rows=(0, 3)), "ValueError"),
    (
        "attributes that are a list",
        Call(dataframes.dataframe, [THREE], STEPS, STEPS, [], 0),
        "lab|att",
    ),
    (
        "a flag that is a number",
        Call(dataframes.series, THREE, STEPS, None, {}, 1),
        "attributes",
    ),
    (
        "labels that are to be unique and are not",
        Call(dataframes.series, THREE, index(np.zeros(3)), None, {}, True),
        "Duplicate",
    ),
    ("too few parts", Call(dataframes.dataframe, [THREE]), "ValueError"),
    ("a series of two dimensions", series(np.zeros((3, 2))), "2 dimensions"),
    ("a series of other length", series(THREE, (0, 2, 1, None)), "2 labels for 3"),
    ("a name that cannot be hashed", series(THREE, name=[1]), "TypeError"),
    ("an index whose name cannot be hashed", index(THREE, [1]), "TypeError"),
    (
        "steps whose name cannot be hashed",
        Call(dataframes.steps, 0, 3, 1, [1]),
        "TypeError",
    ),
    ("an index of text", index("abc"), "column is a str"),
    ("an index of two dimensions", index(np.zeros((2, 2))), "2 dimensions"),
    ("an index of half floats", index(np.zeros(2, "f2")), "Error"),
    ("a frequency of numbers", index(THREE, None, "D"), "without dates"),
    ("a frequency that is a program", index(DATES, None, "os.system"), "no frequency"),
    (
        "a frequency of business hours",
        index(DATES, None, "999999999cbh"),
        "no frequency",
    ),
    ("a frequency without end", index(DATES, None, "9" * 5000 + "D"), "no frequency"),
    ("a frequency that is a list", index(DATES, None, ["D"]), "no frequency"),
    (
        "codes beyond the categories",
        Call(dataframes.categorical, CODES, index(THREE[:1]), False),
        "ValueError",
    ),
    (
        "codes below none",
        Call(dataframes.categorical, CODES - 5, LETTERS, False),
        "ValueError",
    ),
    (
        "codes that are floats",
        Call(dataframes.categorical, THREE, LETTERS, False),
        "no numbers",
    ),
    (
        "codes of two dimensions",
        Call(dataframes.categorical, np.zeros((2, 2), "i1"), LETTERS, False),
        "2 dimensions",
    ),
    (
        "categories that repeat",
        Call(dataframes.categorical, CODES, index(np.zeros(3)), False),
        "ValueError",
    ),
    (
        "categories that are a list",
        Call(dataframes.categorical, CODES, ["a", "b"], False),
        "no index",
    ),
    (
        "categories that cannot be hashed",
        Call(dataframes.categorical, CODES, index(np.array([[1], [2]], object)), False),
        "2 dimensions|TypeError",
    ),
    (
        "an order that is a number",
        Call(dataframes.categorical, CODES, LETTERS, 1),
        "no index",
    ),
    (
        "a mask of other length",
        Call(dataframes.masked, THREE, np.zeros(2, bool)),
        "do not fit",
    ),
    (
        "a mask of numbers",
        Call(dataframes.masked, THREE, np.zeros(3, "i1")),
        "do not fit",
    ),
    ("a mask that is a list", Call(dataframes.masked, THREE, [True] * 3), "no arrays"),
    (
        "text under a mask",
        Call(dataframes.masked, np.array(["a"]), np.zeros(1, bool)),
        "do not fit",
    ),
    (
        "half floats under a mask",
        Call(dataframes.masked, THREE.astype("f2"), np.zeros(3, bool)),
        "TypeError|NotImpl|Error",
    ),
    (
        "text that is numbers",
        Call(dataframes.strings, "python", True, ["a", 1]),
        "something else",
    ),
    (
        "text in a tuple",
        Call(dataframes.strings, "python", True, ("a",)),
        "something else",
    ),
    ("dates that are numbers", Call(dataframes.dates, THREE, None, False), "none"),
    (
        "dates with a zone of text",
        Call(dataframes.dates, DATES, "UTC", False),
        "zone that is none",
    ),
    ("spans that are floats", Call(dataframes.periods, THREE, "M"), "no numbers"),
    (
        "spans of a strange frequency",
        Call(dataframes.periods, np.arange(3), "C"),
        "no frequency",
    ),
    (
        "spans of a huge frequency",
        Call(dataframes.periods, np.arange(3), "9" * 20 + "D"),
        "no freq",
    ),
    (
        "intervals of arrays",
        Call(dataframes.intervals, THREE, THREE, "left"),
        "no index",
    ),
    (
        "intervals that are upside down",
        Call(dataframes.intervals, index(THREE), index(-THREE), "left"),
        "ValueError",
    ),
    (
        "intervals of other lengths",
        Call(dataframes.intervals, index(THREE), LETTERS, "left"),
        "Error",
    ),
    (
        "intervals with strange ends",
        Call(dataframes.intervals, index(THREE), index(THREE), "up"),
        "no ends",
    ),
    (
        "levels without codes",
        Call(dataframes.multi_index, [LETTERS], [], [None]),
        "not as many",
    ),
    (
        "codes beyond a level",
        Call(dataframes.multi_index, [LETTERS], [CODES + 1], [None]),
        "Error",
    ),
    (
        "codes below a level",
        Call(dataframes.multi_index, [LETTERS], [CODES - 5], [None]),
        "Error",
    ),
    (
        "codes of other lengths",
        Call(dataframes.multi_index, [LETTERS] * 2, [CODES, CODES[:1]], [None] * 2),
        "Error",
    ),
    (
        "codes of a level that are floats",
        Call(dataframes.multi_index, [LETTERS], [THREE], [None]),
        "no numbers",
    ),
    (
        "a level that is a list",
        Call(dataframes.multi_index, [["a"]], [CODES], [None]),
        "no index",
    ),
    (
        "a level that repeats",
        Call(dataframes.multi_index, [index(np.zeros(3))], [CODES], [None]),
        "Error",
    ),
    (
        "levels in levels",
        Call(
            dataframes.multi_index,
            [Call(dataframes.multi_index, [LETTERS], [CODES], [None])],
            [CODES],
            [None],
        ),
        "no index",
    ),
    (
        "names of a level that cannot be hashed",
        Call(dataframes.multi_index, [LETTERS], [CODES], [[1]]),
        "Error",
    ),
    ("no levels", Call(dataframes.multi_index, [], [], []), "Error"),
    (
        "levels that are a tuple",
        Call(dataframes.multi_index, (LETTERS,), [CODES], [None]),
        "lists",
    ),
    ("a moment that is a number", Call(dataframes.moment, 5, None, False), "is none"),
    ("a moment that is text", Call(dataframes.moment, "2020", None, False), "is none"),
    (
        "a moment of years",
        Call(dataframes.moment, np.datetime64(5, "Y"), None, False),
        "unit",
    ),
    (
        "a moment of no time",
        Call(dataframes.moment, np.datetime64("NaT", "s"), None, False),
        "unit",
    ),
    (
        "a moment in no zone",
        Call(dataframes.moment, DATE, "Europe/Berlin", True),
        "zone that is",
    ),
    (
        "a moment in a zone of no key",
        Call(dataframes.moment, DATE, 5, True),
        "zone that is",
    ),
    (
        "a moment beyond the clocks",
        Call(dataframes.moment, np.datetime64(2**62, "s"), EAST, False),
        "years 1 to 9999",
    ),
    (
        "dates beyond the clocks",
        Call(dataframes.dates, np.full(3, -(2**62), "M8[ms]"), EAST, False),
        "years 1 to 9999",
    ),
    ("a span of no number", Call(dataframes.period, "M", 1.5), "no number"),
    ("a span of a huge number", Call(dataframes.period, "M", 2**70), "no number"),
    ("a span of a strange frequency", Call(dataframes.period, "os", 1), "no frequency"),
    ("an interval of text", Call(dataframes.interval, "a", "b", "left"), "Error"),
    ("an interval upside down", Call(dataframes.interval, 2, 1, "left"), "ValueError"),
    (
        "an interval with strange ends",
        Call(dataframes.interval, 1, 2, ["left"]),
        "no ends",
    ),
    ("an unknown missing value", Call(dataframes.absent, "NaN"), "no missing value"),
    (
        "a missing value that is a list",
        Call(dataframes.absent, ["NaT"]),
        "TypeError|no missing",
    ),
    ("a manager of blocks", Call(pd.DataFrame, 1), "pandas' own pickles are not read"),
    (
        "a function of pandas",
        Call(pd.read_pickle, "/etc/passwd"),
        "pandas' own pickles",
    ),
    (
        "a dtype of numpy as a DataFrame",
        dataframe(dtype_call()),
        "not made of an array",
    ),
    (
        "an object array in itself",
        functools.reduce(
            lambda inner, _: Call(arrays.object_array, (1,), [inner]), range(120), 1
        ),
        "depth_max",
    ),
]


@pytest.mark.parametrize(
    ("value", "words"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE]
)
def test_a_forged_value_is_refused(value: Any, words: str) -> None:
    """No length, code, label or frequency is taken at its word."""
    with pytest.raises((NotAllowed, TooLarge), match=words):
        codec.decode(pickle.dumps(value, 4))


def test_a_frequency_that_is_slow_to_check_is_left_away() -> None:
    """A month for each of three million days would take minutes to refute."""
    value = index(np.arange(3_000_000).view("M8[s]"), None, "ME")
    made = codec.decode(pickle.dumps([value] * 2, 4))
    assert made[0].freq is None
    rows = dataframes.CALENDAR_ROWS_MAX
    months = pd.date_range("1000", periods=rows, freq="W", unit="s")
    assert codec.decode(codec.encode(months)).freq == months.freq
    one, two = codec.decode(codec.encode([months[:-9], months[:10]]))
    assert (one.freq, two.freq) == (months.freq, None)
    hours = pd.date_range("2020", periods=50 * rows, freq="h")
    assert codec.decode(codec.encode(hours)).freq == hours.freq


def test_damaged_pickles_raise_only_our_errors() -> None:
    """Valid pickles with bytes changed, removed or mixed give values or our errors."""
    whole = [
        *DATAFRAMES.values(),
        *INDEXES.values(),
        *MOMENTS,
        *map(pd.Series, COLUMNS.values()),
    ]
    data_of = [data for data in map(codec.encode, whole) if len(data) < 3_000]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in damaged(data_of, 20_000, seed=11):
            try:
                codec.encode(codec.decode(data))
            except (NotAllowed, TooLarge):
                continue


WATCHER = """
import pickle, resource, sys, time, warnings
import numpy, pandas
from state_server import codec
from state_server.errors import NotAllowed, TooLarge

warnings.simplefilter("ignore")
# What pandas imports late, for dates and for the texts of its own errors.
value = pandas.DataFrame({"a": pandas.date_range("2020", periods=3)})
repr(codec.decode(codec.encode(value)))
EVENTS = {"import", "open", "exec", "compile", "os.system", "os.listdir",
          "socket.connect", "subprocess.Popen"}
pickles = pickle.load(sys.stdin.buffer)
seen = []
inside = False

def watch(event, arguments):
    if inside and event in EVENTS:
        seen.append((event, str(arguments)[:200]))

sys.addaudithook(watch)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
slowest = 0
for data in pickles:
    inside, began = True, time.process_time()
    try:
        codec.decode(data)
        print("passed", data[:200])
    except (NotAllowed, TooLarge):
        pass
    inside = False
    slowest = max(slowest, time.process_time() - began)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(round(slowest), grown >> 10)
for event in seen:
    print(event)
"""


def test_forged_values_touch_nothing_and_take_bounded_memory() -> None:
    """A process reads all of them: no file, socket or import, no bomb, no wait."""
    data_of = [data for _, data, _ in hostile_pickles()]
    data_of += [pickle.dumps(value, 4) for _, value, _ in HOSTILE]
    done = subprocess.run(
        [sys.executable, "-c", WATCHER],
        input=pickle.dumps(data_of),
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    counts, *events = done.stdout.decode().splitlines()
    slowest_s, grown_mib = map(int, counts.split())
    assert events == [], events
    assert slowest_s < 5
    assert grown_mib < 300
