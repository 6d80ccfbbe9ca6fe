"""Values to bytes and back: checked pickle.

Pickle is this room's door: only here is anything pickled or unpickled for the wire.
Bytes from the network never run code, never import, never build what the sender
names, and never take more memory than the limits say. Three gates stand behind each
other:

1. ``walk`` reads the opcodes before the C unpickler does, and refuses what no pickler
   emits for our types and what is over a limit. (``small_frames`` knows the commonest
   frames whole.)
2. ``constructors.look_up`` turns a name into an entry of our own table, or of the
   user's ``own_classes``. Nothing is imported.
3. The entries hold our own constructors, which check types, ranges and sizes.

The other way, ``spellings`` says how each type is written. Sockets, files and the
environment may not enter.
"""

from __future__ import annotations

import copyreg
import io
import pathlib
import pickle
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

from . import own_classes
from .constructors import PATHS, TABLE, builtin_error, look_up
from .entries import full_name
from .errors import ConfigError, NotAllowed, TooLarge
from .measures import DEFAULT_LIMITS, ValueLimits
from .messages import Reference
from .small_frames import is_small, is_tiny
from .spellings import Foreign, references, refusal, spelling
from .walk import checked_walk

__all__ = [
    "DEFAULT_LIMITS",
    "ValueLimits",
    "allow",
    "allowed_class",
    "builtin_error",
    "decode",
    "encode",
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


def encode(value: object, limits: ValueLimits = DEFAULT_LIMITS) -> bytes:
    """Return the value as bytes that ``decode`` and stock pickle can read.

    Raises ``NotAllowed`` for a type that may not travel and ``TooLarge`` for a value
    over a limit. What this accepts, ``decode`` accepts under the same limits.
    """
    kind = type(value)
    if kind in _SCALARS or (kind is int and -_WORD <= value < _WORD):  # type: ignore[operator]
        # A few bytes of our own making: there is nothing to look at.
        return pickle.dumps(value, _PROTOCOL)
    # A small value has only exact builtin types: pickle cannot run foreign code then.
    small = is_small(value)
    data = pickle.dumps(value, _PROTOCOL) if small else _dump(value, limits)
    if not is_tiny(data, limits):
        checked_walk(data, limits)
    return data


def decode(
    data: bytes,
    limits: ValueLimits = DEFAULT_LIMITS,
    reference: Callable[[str, str], object] = Reference,
) -> Any:
    """Return the value that the bytes describe.

    ``reference`` makes a handle of a class name and a key. For any bytes whatsoever
    the only errors are ``NotAllowed`` and ``TooLarge``.
    """
    if not is_tiny(data, limits):
        data = bytes(data)
        if checked_walk(data, limits).names_used:
            return _load(data, limits, reference)
    try:
        return pickle.loads(data)
    except Exception as error:
        raise _as_ours(error, "cannot be read") from error


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


def allowed_class(module: str, qualname: str) -> type | None:
    """Return the class that was given to ``allow`` under this name, if any."""
    entry = own_classes.allowed_names.get((module, qualname))
    return None if entry is None else entry.make


def register_reference(cls: type, describe: Callable[[Any], tuple[str, str]]) -> None:
    """Encode values of ``cls`` (a handle) as a ``Reference``: class name and key."""
    references[cls] = describe


def _dump(value: object, limits: ValueLimits) -> bytes:
    """Pickle the value, refusing every type that is not ours."""
    file = io.BytesIO()
    pickler: _Pickler | _PlainPickler = _Pickler(file, limits)
    try:
        try:
            pickler.dump(value)
        except _OldSpelling:
            file = io.BytesIO()
            pickler = _PlainPickler(file, limits)
            pickler.dump(value)
    except Foreign as error:
        raise NotAllowed(refusal(value, error.value)) from None
    except Exception as error:
        raise _as_ours(error, "cannot be encoded") from error
    return file.getvalue()


class _OldSpelling(Exception):
    """A class was met whose module has a name that older versions do not know."""


class _Pickler(pickle.Pickler):
    """The C pickler, asking us about every type it does not know by itself."""

    def __init__(self, file: io.BytesIO, limits: ValueLimits) -> None:
        super().__init__(file, _PROTOCOL)
        self.limits = limits
        self.range_items = 0
        self.new_object = _NEW_OBJECT

    def reducer_override(self, value: object) -> Any:
        """Check the type, then say how the value is spelled."""
        if _PATHS_MOVED and type(value) in PATHS:
            raise _OldSpelling
        return spelling(self, value)


class _PlainPickler(pickle._Pickler):
    """The slow pickler in Python, for values that hold paths on Python 3.13.

    That version alone calls the module of its path classes ``pathlib._local``, which
    3.10 to 3.12 cannot import. The C pickler offers no way to write another name.
    """

    # Known to the library, not to its type stubs.
    save: Callable[[object], None]
    write: Callable[[bytes], object]
    memoize: Callable[[object], None]

    def __init__(self, file: io.BytesIO, limits: ValueLimits) -> None:
        super().__init__(file, _PROTOCOL)
        self.limits = limits
        self.range_items = 0
        self.new_object = _NEW_OBJECT

    def reducer_override(self, value: object) -> Any:
        """Check the type, then say how the value is spelled."""
        return spelling(self, value)

    def save_global(self, obj: Any, name: str | None = None) -> None:
        """Write a name; that of a path class in its old spelling."""
        if getattr(obj, "__module__", "") != "pathlib._local":
            super().save_global(obj, name)  # type: ignore[misc]
            return
        self.save("pathlib")
        self.save(obj.__qualname__)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)


def _load(
    data: bytes, limits: ValueLimits, reference: Callable[[str, str], object]
) -> Any:
    """Unpickle a frame that was walked and that uses names."""
    try:
        return _Unpickler(data, limits, reference).load()
    except Exception as error:
        raise _as_ours(error, "cannot be read") from error


class _Unpickler(pickle.Unpickler):
    """The C unpickler with our table in place of the import system."""

    def __init__(
        self,
        data: bytes,
        limits: ValueLimits,
        reference: Callable[[str, str], object],
    ) -> None:
        super().__init__(io.BytesIO(data))
        self.limits = limits
        self.reference = reference
        self.range_items = 0

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return our own constructor for a name; never import, never look further."""
        entry = look_up(module_name, global_name)
        return MethodType(entry.make, self) if entry.bound else entry.make


def _as_ours(error: Exception, what: str) -> NotAllowed | TooLarge:
    """Translate an error of pickle, of a constructor or of a user's class."""
    if isinstance(error, (NotAllowed, TooLarge)):
        return error
    if isinstance(error, RecursionError):
        return TooLarge(f"The value {what}: it is nested too deeply (depth_max).")
    if isinstance(error, MemoryError):
        return TooLarge(f"The value {what}: there is not enough memory.")
    return NotAllowed(f"The value {what}: {type(error).__name__}: {error!s:.200}")
