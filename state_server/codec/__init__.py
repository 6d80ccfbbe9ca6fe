"""Values to bytes and back: checked pickle.

Pickle is this room's door: only here is anything pickled or unpickled for the wire.
Bytes from the network never run code, never import or build what the sender names, and
never take more memory than the limits say. Three gates stand behind each other:

1. ``walk`` reads the opcodes before the C unpickler does, and refuses what no pickler
   emits for our types and what is over a limit. (``small_pickles`` knows the commonest
   ones whole.)
2. ``constructors.look_up`` turns a name into an entry of our own table, or of the
   user's ``own_classes``. Nothing is imported but numpy and pandas, by our own
   constructors, when the first value of theirs is met.
3. The entries hold our own constructors, which check types, ranges and sizes.

The other way, ``spellings`` says how each type is written. The memory of large arrays
may travel beside the pickle, in buffers that are neither copied nor looked into.
Sockets, files and the environment may not enter.
"""

from __future__ import annotations

import copyreg
import io
import pathlib
import pickle
import queue
from collections import Counter
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, ClassVar, TypeVar

from ..errors import ConfigError, NotAllowed, TooLarge, full_name
from ..messages import Reference
from . import own_classes
from .constructors import PATHS, TABLE, builtin_error, look_up
from .contexts import BUFFER_BYTES_MIN, BUFFERS_MAX, ReadContext, WriteContext
from .large_bytes import enveloped
from .measures import DEFAULT_LIMITS, ValueLimits
from .refusals import Foreign, refusal
from .small_pickles import SMALL_BYTES_MAX, is_small, is_tiny
from .spellings import may_travel, references, spelling
from .stock_arrays import Recorded
from .stock_replies import iterator_reply, proxy_reply
from .walk import checked_walk

__all__ = [
    "BUFFERS_MAX",
    "BUFFER_BYTES_MIN",
    "DEFAULT_LIMITS",
    "ValueLimits",
    "allow",
    "allowed_class",
    "builtin_error",
    "decode",
    "decode_measured",
    "encode",
    "encode_with_buffers",
    "iterator_reply",
    "may_travel",
    "proxy_reply",
    "reference_of",
    "register_reference",
]

T = TypeVar("T")

#: What every stock client from 3.10 to 3.13 reads and writes.
_PROTOCOL = 4
#: What the picklers write as a bare instance (NEWOBJ).
_NEW_OBJECT: Callable[..., object] = copyreg.__newobj__  # type: ignore[attr-defined]
_PATHS_MOVED = pathlib.PurePosixPath.__module__ != "pathlib"

_SCALARS = frozenset({type(None), bool, float})
_WORD = 2**63
#: What reading a small pickle raises. A signal handler may raise anything besides, a
#: timeout for instance, and its caller must see that.
_ERRORS_OF_SMALL = (
    pickle.PickleError, EOFError, ValueError, OverflowError, MemoryError,
)  # fmt: skip
_NO_BUFFERS: Sequence[memoryview] = ()

#: Fewer keys whose hashes a sender can choose are compared in some milliseconds; of
#: more of them so many may have one hash.
_CHOSEN_KEYS_MAX = 1000
_SAME_HASH_MAX = 200

#: Of a frame up to this size it does not matter what its value takes in memory.
_UNMEASURED_BYTES_MAX = 512


def encode(
    value: object, limits: ValueLimits = DEFAULT_LIMITS, *, stock: bool = False
) -> bytes:
    """Return the value as bytes that ``decode`` and stock pickle can read.

    ``stock``: for a peer that does not have this package; arrays of numpy are then
    spelled as numpy itself does, and pandas' values are refused.

    Raises ``NotAllowed`` for a type that may not travel and ``TooLarge`` for a value
    over a limit. What this accepts, ``decode`` accepts under the same limits, but for
    hundreds of keys with one hash.
    """
    data = _small(value, limits)
    if data is None:
        data, _ = _dump(value, limits, stock=stock)
        if not is_tiny(data, limits):
            checked_walk(data, limits)
    return data


def encode_with_buffers(
    value: object,
    limits: ValueLimits = DEFAULT_LIMITS,
    *,
    buffer_bytes_min: int = BUFFER_BYTES_MIN,
    is_call: bool = False,
) -> tuple[bytes, Sequence[memoryview]]:
    """Return the value as bytes, and beside them the memory of its large arrays.

    ``buffer_bytes_min``: the memory of smaller arrays is in the bytes. ``is_call``: the
    value is the positional and the named arguments of a call, and an error names the
    argument. The buffers are views on the live arrays, not copies: who sends them later
    than the value may change copies them first. Raises as ``encode`` does.
    """
    small = _small(value, limits)
    if small is not None:
        return small, _NO_BUFFERS
    data, buffers = _dump(
        enveloped(value, buffer_bytes_min),
        limits,
        buffer_bytes_min=buffer_bytes_min,
        is_call=is_call,
    )
    if buffers or not is_tiny(data, limits):
        checked_walk(data, limits, [buffer.nbytes for buffer in buffers])
    return data, buffers


def decode(
    data: bytes | memoryview,
    limits: ValueLimits = DEFAULT_LIMITS,
    reference: Callable[[str, str], object] = Reference,
    *,
    buffers: Sequence[bytes | bytearray | memoryview] = (),
    read_only: bool = False,
) -> Any:
    """Return the value that the bytes describe.

    ``reference`` makes a handle of a class name and a key. ``buffers`` are those that
    ``encode_with_buffers`` gave: arrays are made over them without a copy, unless they
    are constant and the array is to be written to. ``read_only``: no array of the
    value can be written to, whatever its memory is. For any bytes whatsoever the only
    errors are ``NotAllowed`` and ``TooLarge``.
    """
    if buffers or not is_tiny(data, limits):
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        context = ReadContext(limits, reference, views, read_only)
        return _decode_walked(bytes(data), context, views)[0]
    try:
        return pickle.loads(data)
    except _ERRORS_OF_SMALL as error:
        raise _as_ours(error, "cannot be read") from error


def decode_measured(data: bytes | memoryview) -> tuple[Any, int]:
    """Return the value that the bytes describe, and about how much memory it takes.

    For a small frame that is the size of the frame. Raises as ``decode`` does.
    """
    if len(data) <= _UNMEASURED_BYTES_MAX:
        return decode(data), len(data)
    context = ReadContext(DEFAULT_LIMITS, Reference, (), False)
    return _decode_walked(bytes(data), context, ())


def allow(cls: T) -> T:
    """Let values of the user's own class travel, by its exact module and name.

    For data classes, named tuples, enums, exceptions and plain classes; both sides
    must call it. Usable as a decorator. Data classes and plain classes are rebuilt
    from their state, without ``__init__``.
    """
    if not isinstance(cls, type):
        raise ConfigError(
            f"allow() takes a class, not {cls!r:.100}; call allow(type(value))."
        )
    reason = own_classes.reason_against(cls, TABLE)
    if reason:
        raise ConfigError(f"{full_name(cls)} cannot be allowed: {reason}.")
    entry = own_classes.entry_of(cls)
    own_classes.allowed_names[cls.__module__, cls.__qualname__] = entry
    own_classes.allowed_types[cls] = entry
    return cls


# A queue is what managers are asked for most, and these are its ordinary answers: who
# calls it has an ``except`` for them.
allow(queue.Empty)
allow(queue.Full)


def allowed_class(module: str, qualname: str) -> type | None:
    """Return the class that was given to ``allow`` under this name, if any."""
    entry = own_classes.allowed_names.get((module, qualname))
    return None if entry is None else entry.make


def register_reference(cls: type, describe: Callable[[Any], tuple[str, str]]) -> None:
    """Encode values of ``cls`` (a handle) as a ``Reference``: class name and key."""
    references[cls] = describe


def reference_of(value: object) -> Reference | None:
    """Return the reference that a value is or stands for, or ``None``."""
    if isinstance(value, Reference):
        return value
    describe = references.get(type(value))
    return None if describe is None else Reference(*describe(value))


def _small(value: object, limits: ValueLimits) -> bytes | None:
    """Return the bytes of a value that needs no look at them, or ``None``."""
    kind = type(value)
    if kind in _SCALARS or (kind is int and -_WORD <= value < _WORD):  # type: ignore[operator]
        return pickle.dumps(value, _PROTOCOL)
    if limits is DEFAULT_LIMITS and is_small(value):
        data = pickle.dumps(value, _PROTOCOL)
        if len(data) <= SMALL_BYTES_MAX:
            return data
    return None


def _dump(
    value: object,
    limits: ValueLimits,
    *,
    stock: bool = False,
    buffer_bytes_min: int | None = None,
    is_call: bool = False,
) -> tuple[bytes, list[memoryview]]:
    """Pickle the value, refusing every type that is not ours."""
    try:
        try:
            return _dump_by(_Pickler, value, limits, stock, buffer_bytes_min)
        except _OldSpelling:
            return _dump_by(_PlainPickler, value, limits, stock, buffer_bytes_min)
    except Foreign as error:
        raise NotAllowed(refusal(value, error, TABLE, is_call=is_call)) from None
    except Exception as error:
        raise _as_ours(error, "cannot be encoded") from error


def _dump_by(
    pickler: type[_Pickler] | type[_PlainPickler],
    value: object,
    limits: ValueLimits,
    stock: bool,
    buffer_bytes_min: int | None,
) -> tuple[bytes, list[memoryview]]:
    """Pickle the value with one of the picklers."""
    context = WriteContext(
        limits, _NEW_OBJECT, stock=stock, buffer_bytes_min=buffer_bytes_min
    )
    file = io.BytesIO()
    pickler(file, context).dump(value)
    return file.getvalue(), context.buffers


class _OldSpelling(Exception):
    """A class was met whose module has a name that older versions do not know."""


class _Pickler(pickle.Pickler):
    """The C pickler, asking us about every type it does not know by itself."""

    def __init__(self, file: io.BytesIO, context: WriteContext) -> None:
        super().__init__(file, _PROTOCOL)
        self._context = context

    def reducer_override(self, value: object) -> Any:
        """Check the type, then say how the value is spelled."""
        if _PATHS_MOVED and type(value) in PATHS:
            raise _OldSpelling
        return spelling(self._context, value)


class _PlainPickler(pickle._Pickler):
    """The slow pickler in Python, for values that hold paths on Python 3.13.

    That version alone calls the module of its path classes ``pathlib._local``, which
    3.10 to 3.12 cannot import. The C pickler offers no way to write another name.
    """

    # Known to the library, not to its type stubs.
    save: Callable[[object], None]
    write: Callable[[bytes], object]
    memoize: Callable[[object], None]

    def __init__(self, file: io.BytesIO, context: WriteContext) -> None:
        super().__init__(file, _PROTOCOL)
        self._context = context

    def reducer_override(self, value: object) -> Any:
        """Check the type, then say how the value is spelled."""
        return spelling(self._context, value)

    def save_global(self, obj: Any, name: str | None = None) -> None:
        """Write a name; that of a path class in its old spelling."""
        if getattr(obj, "__module__", "") != "pathlib._local":
            super().save_global(obj, name)  # type: ignore[misc]
            return
        self.save("pathlib")
        self.save(obj.__qualname__)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)


def _decode_walked(
    data: bytes, context: ReadContext, views: Sequence[memoryview]
) -> tuple[Any, int]:
    """Walk over a pickle, then read it; return the value and its memory."""
    walk = checked_walk(data, context.limits, [view.nbytes for view in views])
    try:
        unpickler: type[_Unpickler] | type[_RecordingUnpickler] = _Unpickler
        if walk.chosen_keys > _CHOSEN_KEYS_MAX:
            unpickler = _ComparingUnpickler
        elif walk.records:
            unpickler = _RecordingUnpickler
        elif not walk.names_used:
            return pickle.loads(data), walk.expanded_bytes
        return unpickler(data, context).load(), walk.expanded_bytes
    except Exception as error:
        raise _as_ours(error, "cannot be read") from error


class _Unpickler(pickle.Unpickler):
    """The C unpickler with our table in place of the import system."""

    def __init__(self, data: bytes, context: ReadContext) -> None:
        super().__init__(io.BytesIO(data))
        self._context = context

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return our own constructor for a name; never import, never look further."""
        return _constructor(self._context, module_name, global_name)


class _RecordingUnpickler(pickle._Unpickler):
    """The slow unpickler in Python, for values that are noted down first.

    What numpy's own pickles make and then give a state to is put in the place of what
    was noted, on the stack and in the memo. The C unpickler shows neither.
    """

    # Known to the library, not to its type stubs.
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def __init__(self, data: bytes, context: ReadContext) -> None:
        super().__init__(io.BytesIO(data))
        self._context = context
        self.memo = _Memo()

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return our own constructor for a name; never import, never look further."""
        return _constructor(self._context, module_name, global_name)

    def load_build(self) -> None:
        """Give a state to the last value; make what was only noted down until now."""
        recorded = self.stack[-2]
        if not isinstance(recorded, Recorded):
            super().load_build()  # type: ignore[misc]
            return
        value = recorded.finished(self.stack.pop())
        self.stack[-1] = value
        for place in recorded.places:
            self.memo[place] = value

    dispatch[pickle.BUILD[0]] = load_build


class _ComparingUnpickler(_RecordingUnpickler):
    """The slow unpickler, for many keys whose hashes the sender can choose.

    A key is compared with each one before it that has the same hash: a hundred thousand
    such keys, a megabyte, would keep the C unpickler, and with it the interpreter, for
    minutes.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_RecordingUnpickler.dispatch)
    metastack: list[list[Any]]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, data: bytes, context: ReadContext) -> None:
        super().__init__(data, context)
        #: By the place of an open container on the stack: itself, its keys' hashes.
        self._hashes: dict[tuple[int, int], tuple[object, Counter[int]]] = {}

    def _check(self, container: object, keys: list[Any]) -> None:
        """Refuse keys when too many of one container have the same hash."""
        place = len(self.metastack), len(self.stack)
        known, counts = self._hashes.get(place, (None, Counter()))
        if known is not container:
            counts = Counter()
            self._hashes[place] = (container, counts)
        hashes = list(map(hash, keys))
        counts.update(hashes)
        if hashes and max(map(counts.__getitem__, hashes)) > _SAME_HASH_MAX:
            raise NotAllowed(
                f"More than {_SAME_HASH_MAX} keys of one container in the pickle have "
                "the same hash."
            )

    def load_setitem(self) -> None:
        """Add one pair."""
        value, key = self.stack.pop(), self.stack.pop()
        container = self.stack[-1]
        self._check(container, [key])
        container[key] = value

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        """Add a group of pairs."""
        items = self.pop_mark()
        container = self.stack[-1]
        self._check(container, items[::2])
        for key, value in zip(items[::2], items[1::2], strict=True):
            container[key] = value

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_additems(self) -> None:
        """Add a group of members to a set."""
        items = self.pop_mark()
        container = self.stack[-1]
        self._check(container, items)
        container.update(items)

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def load_frozenset(self) -> None:
        """Make a frozenset of a group."""
        items = self.pop_mark()
        self._check(items, items)
        self.stack.append(frozenset(items))

    dispatch[pickle.FROZENSET[0]] = load_frozenset


class _Memo(dict[int, Any]):
    """What a pickle remembers; what is noted down learns where it stands here."""

    def __setitem__(self, place: int, value: Any) -> None:
        if isinstance(value, Recorded):
            value.places.append(place)
        super().__setitem__(place, value)


def _constructor(context: ReadContext, module_name: str, global_name: str) -> Any:
    """Return what makes values of a name, told about this reading if it asks."""
    entry = look_up(module_name, global_name)
    return MethodType(entry.make, context) if entry.bound else entry.make


def _as_ours(error: Exception, what: str) -> NotAllowed | TooLarge:
    """Translate an error of pickle, of a constructor or of a user's class."""
    if isinstance(error, (NotAllowed, TooLarge)):
        return error
    if isinstance(error, RecursionError):
        return TooLarge(f"The value {what}: it is nested too deeply (depth_max).")
    if isinstance(error, MemoryError):
        return TooLarge(f"The value {what}: there is not enough memory.")
    return NotAllowed(f"The value {what}: {type(error).__name__}: {error!s:.200}")
