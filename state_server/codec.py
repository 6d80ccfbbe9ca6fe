"""Values to bytes and back: checked pickle.

This is the only room that touches pickle for the wire. Bytes from the network never
run code, never import, never build what the sender names, and never take more memory
than the limits say. Three gates stand behind each other:

1. ``_Walk`` reads the opcodes before the C unpickler does. It lets through only what
   picklers emit for our types and knows the exact shape of every value: its nesting,
   its number of values and its size, with shared parts counted each time they appear.
2. ``_look_up`` turns a name into an entry of our own table. Nothing is imported.
3. The entries hold our own constructors, which check types, ranges and sizes.

Sockets, files and the environment may not enter.
"""

from __future__ import annotations

import builtins
import copyreg
import dataclasses
import io
import ipaddress
import itertools
import os.path
import pathlib
import pickle
import re
import zoneinfo
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from functools import lru_cache
from types import MethodType
from typing import Any, NamedTuple, TypeVar
from uuid import UUID, SafeUUID

from state_server.errors import ConfigError, NotAllowed, TooLarge
from state_server.messages import Reference

T = TypeVar("T")


class ValueLimits(NamedTuple):
    """How large one value may be, after expansion of everything it shares."""

    #: Values in one frame; a part that is shared counts each time it appears.
    nodes_max: int = 2_000_000
    #: Containers inside containers.
    depth_max: int = 100
    #: Estimated memory; a part that is shared counts each time it appears.
    expanded_bytes_max: int = 256 * 1024 * 1024
    #: Digits of an int, of a Decimal's coefficient, of a Fraction's parts.
    digits_max: int = 4300
    #: Exponent of a Decimal, without its sign.
    exponent_max: int = 10_000


DEFAULT_LIMITS = ValueLimits()


def encode(value: object, limits: ValueLimits = DEFAULT_LIMITS) -> bytes:
    """Return the value as bytes that ``decode`` and stock pickle can read.

    Raises ``NotAllowed`` for a type that may not travel and ``TooLarge`` for a value
    over a limit. What this accepts, ``decode`` accepts under the same limits.
    """
    # A small value has only exact builtin types: pickle cannot run foreign code then.
    small = _is_small(value)
    data = pickle.dumps(value, _PROTOCOL) if small else _dump(value, limits)
    if not _is_tiny(data, limits):
        _checked_walk(data, limits)
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
    if not _is_tiny(data, limits):
        data = bytes(data)
        if _checked_walk(data, limits).names_used:
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
    reason = _reason_against(cls)
    if reason:
        raise ConfigError(f"{_path(cls)} cannot be allowed: {reason}.")
    entry = _entry_of(cls)
    _allowed_names[cls.__module__, cls.__qualname__] = entry
    _allowed_types[cls] = entry
    return cls


def allowed_class(module: str, qualname: str) -> type | None:
    """Return the class that was given to ``allow`` under this name, if any."""
    entry = _allowed_names.get((module, qualname))
    return None if entry is None else entry.make


def builtin_error(name: str) -> type[Exception] | None:
    """Return the builtin error of this name; none that ends a process or thread."""
    found = vars(builtins).get(name)
    if isinstance(found, type) and issubclass(found, Exception):
        return found
    return None


def register_reference(cls: type, describe: Callable[[Any], tuple[str, str]]) -> None:
    """Encode values of ``cls`` (a handle) as a ``Reference``: class name and key."""
    _references[cls] = describe


# Small frames: one regular expression knows them whole.

#: What every stock client from 3.10 to 3.13 reads and writes.
_PROTOCOL = 4
_TINY_BYTES = 512
_ATOMS = frozenset({type(None), bool, int, float, str, bytes})


def _is_small(value: Any) -> bool:
    """Tell whether the value is an atom, or a few atoms in tuples and dicts."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is not tuple or len(value) > 4:
        return False
    for part in value:
        kind = type(part)
        if kind not in _ATOMS and not (
            (kind is tuple and len(part) <= 4 and _ATOMS.issuperset(map(type, part)))
            or (kind is dict and not part)
        ):
            return False
    return True


def _tiny_pattern() -> bytes:
    """Spell the grammar of small frames: scalars in at most two levels of containers.

    Every match is a complete, well-formed pickle without names and without memo
    references, so it needs no walk. Text of up to 32 bytes is spelled out by length,
    because a regular expression cannot count.
    """
    counted = b"|".join(re.escape(bytes([n])) + b".{%d}" % n for n in range(33))
    scalar = (
        b"(?:[N\x88\x89]|K.|M..|J.{4}|G.{8}"
        b"|\x8a(?:\x05.{5}|\x06.{6}|\x07.{7}|\x08.{8})"
        b"|[\x8cC](?:%s)\x94?)" % counted
    )
    flat = (
        b"(?:S(?:\x85\x94|S(?:\x86\x94|S\x87\x94))?|\\)|\\(S{4,}t\x94"
        b"|\\]\x94(?:Sa|\\(S+e)?|\\}\x94(?:SSs|\\((?:SS)+u)?)"
    ).replace(b"S", scalar)
    frame = (
        b"\x80[\x02-\x05](?:\x95.{8})?"
        b"(?:B(?:|\x85\x94|B(?:\x86\x94|B\x87\x94))|\\(B{4,}t\x94)\\."
    )
    return frame.replace(b"B", flat)


_match_tiny = re.compile(_tiny_pattern(), re.DOTALL).fullmatch


def _is_tiny(data: bytes, limits: ValueLimits) -> bool:
    """Tell whether a frame is small and known whole, so that it needs no walk."""
    if len(data) > _TINY_BYTES or _match_tiny(data) is None:
        return False
    # No small frame reaches the usual limits; unusually tight ones want the walk.
    return limits is DEFAULT_LIMITS or (
        limits.nodes_max >= _TINY_BYTES
        and limits.depth_max >= 2
        and limits.expanded_bytes_max >= _TINY_BYTES * _FLAT_SIZE
        and limits.digits_max >= 20
    )


# Encoding.


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
    except _Foreign as error:
        raise NotAllowed(_refusal(value, error.value)) from None
    except Exception as error:
        raise _as_ours(error, "cannot be encoded") from error
    return file.getvalue()


class _Foreign(Exception):
    """A value of a type that may not travel was met."""

    def __init__(self, value: object) -> None:
        super().__init__(value)
        self.value = value


class _OldSpelling(Exception):
    """A class was met whose module has a name that older versions do not know."""


class _Pickler(pickle.Pickler):
    """The C pickler, asking us about every type it does not know by itself."""

    def __init__(self, file: io.BytesIO, limits: ValueLimits) -> None:
        super().__init__(file, _PROTOCOL)
        self.limits = limits
        self.range_items = 0

    def reducer_override(self, value: object) -> Any:
        """Check the type, then say how the value is spelled."""
        if _PATHS_MOVED and type(value) in _PATHS:
            raise _OldSpelling
        return _reduce(self, value)


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

    def reducer_override(self, value: object) -> Any:
        """Check the type, then say how the value is spelled."""
        return _reduce(self, value)

    def save_global(self, obj: Any, name: str | None = None) -> None:
        """Write a name; that of a path class in its old spelling."""
        if getattr(obj, "__module__", "") != "pathlib._local":
            super().save_global(obj, name)  # type: ignore[misc]
            return
        self.save("pathlib")
        self.save(obj.__qualname__)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)


_PATHS_MOVED = pathlib.PurePosixPath.__module__ != "pathlib"


def _reduce(pickler: _Pickler | _PlainPickler, value: Any) -> Any:
    """Return how a value is spelled, ``NotImplemented`` for pickle's own way."""
    kind = type(value)
    spell = _SPELLINGS.get(kind)
    if spell is not None:
        return spell(pickler, value)
    entry = _allowed_types.get(kind)
    if entry is not None:
        return _spell_allowed(value)
    if issubclass(kind, type):
        return _spell_class(value)
    if kind.__module__ == "builtins" and builtin_error(kind.__name__) is kind:
        return NotImplemented
    for base in kind.__mro__:
        if base in _references:
            return Reference, tuple(_references[base](value))
    raise _Foreign(value)


def _spell_allowed(value: Any) -> Any:
    """Spell a value of one of the user's own classes."""
    cls = type(value)
    if isinstance(value, Enum):
        # Some releases of 3.11 would name the member through getattr instead.
        return cls, (value._value_,)
    if isinstance(value, Exception) and _has_own_init(cls):
        # The stock spelling calls the class with ``args``, which need not be what its
        # own __init__ takes; rebuilding from args and attributes always fits.
        state = value.__dict__ or None
        return copyreg.__newobj__, (cls, *value.args), state  # type: ignore[attr-defined]
    return NotImplemented


def _has_own_init(cls: type[Exception]) -> bool:
    """Tell whether an error class has an __init__ and only attributes in Python."""
    base = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    return (
        not _inherits(cls, base, "__init__")
        and _inherits(cls, base, "__reduce__", "__reduce_ex__")
        and base.__basicsize__ == Exception.__basicsize__
    )


def _inherits(cls: type, base: type, *names: str) -> bool:
    """Tell whether a class has these methods from its base, unchanged."""
    return all(getattr(cls, name) is getattr(base, name) for name in names)


def _spell_class(cls: type) -> Any:
    """Let the classes through that stand for their instances in a frame.

    The walk refuses them wherever they are not needed for that.
    """
    if cls in _NAMED_CLASSES or cls in _allowed_types:
        return NotImplemented
    if cls.__module__ == "builtins" and builtin_error(cls.__name__) is cls:
        return NotImplemented
    raise _Foreign(cls)


def _spell_plainly(_pickler: object, _value: object) -> Any:
    """Leave the spelling to pickle."""
    return NotImplemented


def _spell_reference(_pickler: object, value: Reference) -> Any:
    """Spell a reference as a call of its class."""
    return Reference, tuple(value)


def _spell_view(_pickler: object, value: Iterable[object]) -> Any:
    """Spell a view of a dictionary as a list."""
    return list, (), None, iter(value)


def _spell_address(_pickler: object, value: ipaddress.IPv6Address) -> Any:
    """Spell an address as text; 3.10 would drop its scope."""
    return type(value), (str(value),)


def _spell_zone(_pickler: object, value: zoneinfo.ZoneInfo) -> Any:
    """Spell a time zone by its key."""
    return zoneinfo.ZoneInfo, (_zone_key(value.key),)


def _spell_fraction(_pickler: object, value: Fraction) -> Any:
    """Spell a fraction as two ints, which the walk measures."""
    return Fraction, (value.numerator, value.denominator)


def _spell_decimal(pickler: _Pickler, value: Decimal) -> Any:
    """Check the size of a decimal."""
    _measured_decimal(value, pickler.limits)
    return NotImplemented


def _spell_range(pickler: _Pickler, value: range) -> Any:
    """Check the length of a range."""
    return _spell_plainly(pickler, _measured_range(pickler, value))


def _refusal(value: object, foreign: object) -> str:
    """Say which type may not travel, where it is, and what to do about it."""
    place = _place(value, foreign)
    where = f" (at value{place})" if place else ""
    if isinstance(foreign, type):
        return f"The class {_path(foreign)} is no value{where}; only instances travel."
    cls = type(foreign)
    if cls.__module__ == "builtins":
        return f"A value of type {cls.__qualname__} may not travel{where}."
    return (
        f"A value of type {_path(cls)} may not travel{where}; "
        f"call state_server.allow({cls.__qualname__}) on both sides."
    )


def _place(value: object, wanted: object) -> str:
    """Return where in the value the wanted object is, as far as it is cheap to see."""
    seen: set[int] = set()
    queue: deque[tuple[object, str]] = deque([(value, "")])
    while queue and len(seen) < 10_000:
        found, place = queue.popleft()
        if found is wanted:
            return place
        if id(found) in seen or len(place) > 200:
            continue
        seen.add(id(found))
        pairs: Iterable[tuple[object, object]] = ()
        if type(found) is dict:
            pairs = found.items()
        elif type(found) in (list, tuple):
            pairs = enumerate(found)  # type: ignore[arg-type]
        for key, part in pairs:
            shown = repr(key)[:40] if type(key) in _ATOMS else "..."
            queue.append((part, f"{place}[{shown}]"))
    return ""


# Decoding.


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
        entry = _look_up(module_name, global_name)
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


def _look_up(module: str, name: str) -> _Entry:
    """Return the entry of a name, or refuse it."""
    entry = _TABLE.get((module, name)) or _allowed_names.get((module, name))
    if entry is None:
        shown = f"{module:.100}.{name:.100}"
        raise NotAllowed(
            f"The name {shown!r} may not travel; if it is a value type of yours, "
            f"call state_server.allow() with it on both sides."
        )
    return entry


# The walk over the opcodes.

_NOTHING, _ITEMS, _PAIRS, _MEMBERS = "nothing", "items", "pairs", "members"
_NEVER, _MAY, _MUST = "never", "may", "must"
_NAME, _TUPLE, _DICT, _RUN, _OTHER = "name", "tuple", "dict", "run", "other"


@dataclasses.dataclass(frozen=True)
class _Entry:
    """What a name in a frame stands for."""

    #: What the C unpickler gets for the name.
    make: Any
    #: It may be called with a tuple of arguments (REDUCE).
    call: bool = False
    #: It is a class whose bare instances may be made (NEWOBJ).
    new: bool = False
    #: What its instances take afterwards: nothing, items or pairs.
    grows: str = _NOTHING
    #: Whether its instances take a state (BUILD).
    state: str = _NEVER
    #: Its instances take any state, because they check it themselves.
    own_state: bool = False
    #: What it is for others when it is an argument; empty: never one.
    role: str = ""
    #: The roles its own arguments may have, by position.
    takes: tuple[str, ...] = ()
    #: It may only be called without arguments.
    bare: bool = False
    #: It is a value itself, not a function.
    value: bool = False
    #: It runs through its arguments, so they must be containers that were counted.
    iterates: bool = False
    #: It is called with the unpickler first.
    bound: bool = False


class _Node:
    """One value on the abstract stack that is more than a leaf.

    Leaves are tuples ``(payload_bytes, start, end)``; start and end say where the text
    is, and are 0 for what is not text. They are by far the most, and never change.
    """

    # Defaults of the class, not of the instance: most nodes keep most of them, and
    # making nodes is half of the work of a walk.
    count = 1
    payload = 0
    depth = 1
    #: It, or something directly in it, is a name: only REDUCE may take it.
    special = False
    state = _NEVER
    entry: _Entry | None = None
    #: The parts of a tuple; the keys of a dict.
    items: Any = ()

    def __init__(self, kind: str, grows: str = _NOTHING) -> None:
        self.kind = kind
        self.grows = grows
        #: It may grow, as the place where it was made is still on the stack.
        self.open = grows is not _NOTHING

    def as_it_is(self) -> _Node:
        """Return a closed copy, for a reference to a value that is still open."""
        copy = _Node(self.kind)
        copy.count, copy.payload, copy.depth = self.count, self.payload, self.depth
        copy.entry, copy.items = self.entry, self.items
        return copy


_Leaf = tuple[int, int, int]
_PLAIN: _Leaf = (0, 0, 0)
_STRANGE_SIZE = 600
_FLAT_SIZE = 100
_SET_SIZE = 150
_BATCH = 65_536


class _Walk:
    """An abstract run of one frame: what pickle would build, only measured."""

    __slots__ = (
        "data", "digits_bytes", "limits", "marks", "memo", "names_used", "stack",
    )  # fmt: skip

    def __init__(self, data: bytes, limits: ValueLimits) -> None:
        self.data = data
        self.limits = limits
        #: An int of at most so many bytes cannot have too many digits.
        self.digits_bytes = limits.digits_max * 415 // 1000  # log2(10) / 8
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: list[Any] = []
        self.names_used = False

    def run(self) -> None:
        """Walk from the first opcode to the last, or refuse the frame.

        The three commonest opcodes are taken here, to save a call each.
        """
        data, memo, steps = self.data, self.memo, _STEPS
        if data[0] != 0x80 or not 2 <= data[1] <= 5:
            raise NotAllowed("The frame does not begin as a pickle of protocol 2 to 5.")
        position = 2
        while True:
            for _ in itertools.repeat(None, _BATCH):
                opcode = data[position]
                if opcode == 0x94:  # MEMOIZE
                    memo.append(self.stack[-1])
                    position += 1
                elif opcode == 0x8C:  # SHORT_BINUNICODE
                    size = data[position + 1]
                    start = position + 2
                    position = start + size
                    self.stack.append((size, start, position))
                # BINGET, of a leaf.
                elif opcode == 0x68 and type(memo[data[position + 1]]) is tuple:
                    self.stack.append(memo[data[position + 1]])
                    position += 2
                else:
                    position = steps[opcode](self, position + 1)
                    if position < 0:
                        return
            self._check_work()

    def _check_work(self) -> None:
        """Bound what is on the stack and not part of any container yet."""
        waiting = len(self.memo) + len(self.stack) + sum(map(len, self.marks))
        if waiting > 2 * self.limits.nodes_max + 2 * _BATCH:
            raise _over("nodes_max", waiting, self.limits.nodes_max)

    def push(self, node: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(node)

    def pop_mark(self) -> list[Any]:
        """Return everything above the last mark."""
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def add(self, node: _Node, items: Iterable[Any], parts: bool = False) -> None:
        """Put parts into a node and measure it again; ``parts`` may hold names."""
        count, payload, depth = node.count, node.payload, node.depth - 1
        for item in items:
            if type(item) is tuple:
                count += 1
                payload += item[0]
                continue
            if item.special or item.state is _MUST:
                if not parts or item.kind is _TUPLE or item.state is _MUST:
                    raise _misplaced(item)
                node.special = True
            item.open = False
            count += item.count
            payload += item.payload
            if item.depth > depth:
                depth = item.depth
        node.count, node.payload, node.depth = count, payload, depth + 1
        size = payload + count * _FLAT_SIZE
        nodes_max, depth_max, size_max, _, _ = self.limits
        if depth >= depth_max:
            raise _over("depth_max", depth + 1, depth_max)
        if count > nodes_max:
            raise _over("nodes_max", count, nodes_max)
        if size > size_max:
            raise _over("expanded_bytes_max", size, size_max)

    def growing(self, grows: str) -> _Node:
        """Return the container on top of the stack that takes what comes."""
        node = self.stack[-1]
        if type(node) is not _Node or not node.open or node.grows is not grows:
            raise NotAllowed(
                f"The frame adds {grows} to a value that does not take them, or that "
                f"is complete."
            )
        return node

    def text(self, leaf: Any) -> str:
        """Return the text of a leaf, refusing everything else."""
        if type(leaf) is not tuple or not leaf[1]:
            raise NotAllowed("The frame has a value where a name must be.")
        return str(self.data[leaf[1] : leaf[2]], "utf-8", "surrogatepass")

    def arguments(self) -> _Node:
        """Take a tuple of arguments from the stack."""
        node = self.stack.pop()
        if type(node) is not _Node or node.kind is not _TUPLE:
            raise NotAllowed("The frame calls a name with something else than a tuple.")
        return node

    def name(self) -> _Entry:
        """Take a name from the stack."""
        node = self.stack.pop()
        if type(node) is not _Node or node.kind is not _NAME:
            raise NotAllowed("The frame calls a value that is no name.")
        entry = node.entry
        assert entry is not None
        return entry

    def made(self, entry: _Entry, parts: list[Any]) -> None:
        """Put an instance on the stack that was made from parts."""
        node = _Node(_OTHER, entry.grows)
        node.entry = entry
        node.state = entry.state
        node.payload = _STRANGE_SIZE
        if entry.iterates and not all(map(_is_counted, parts)):
            raise NotAllowed(
                f"{_shown(entry)} in the frame is not made of a container."
            )
        self.add(node, parts, parts=True)
        node.open = entry.grows is not _NOTHING or entry.state is not _NEVER
        node.special = entry.role == "token"
        self.stack.append(node)


def _is_counted(item: Any) -> bool:
    """Tell whether an argument is a builtin container, or too small to run through."""
    if type(item) is tuple:
        return bool(item[0] == 0)
    return item.entry is None or item.special


def _checked_walk(data: bytes, limits: ValueLimits) -> _Walk:
    """Walk over a frame and return what was seen; refuse what may not pass."""
    walk = _Walk(data, limits)
    try:
        walk.run()
    except IndexError:
        raise NotAllowed(
            "The frame is truncated, or takes more from the stack than is there."
        ) from None
    except UnicodeDecodeError:
        raise NotAllowed("The frame has a name that is not valid text.") from None
    return walk


def _over(limit: str, value: int, allowed: int) -> TooLarge:
    """Say which limit was reached."""
    return TooLarge(f"The value is over the limit {limit}: {value} of {allowed}.")


def _misplaced(node: _Node) -> NotAllowed:
    """Say that a name is used as a value, or an instance before it is complete."""
    if node.state is _MUST:
        return NotAllowed("The frame uses an instance before its state is there.")
    entry = node.entry
    shown = _path(entry.make) if entry and isinstance(entry.make, type) else "A name"
    return NotAllowed(f"{shown} is used as a value; only instances travel.")


# One function for each opcode: it takes the position of its argument and returns that
# of the next opcode; a negative one ends the walk.

_Step = Callable[[_Walk, int], int]


def _refuse(walk: _Walk, position: int) -> int:
    """Refuse an opcode that no pickler writes for our types."""
    opcode = walk.data[position - 1]
    name = _OPCODE_NAMES.get(opcode, "unknown")
    hint = "; it may hold a tuple that holds itself" if opcode in b"01" else ""
    raise NotAllowed(f"The frame uses the opcode {name} (0x{opcode:02x}){hint}.")


def _scalar(size: int) -> _Step:
    """Return the step for a number of fixed size."""

    def step(walk: _Walk, position: int) -> int:
        walk.stack.append(_PLAIN)
        return position + size

    return step


def _long(width: int) -> _Step:
    """Return the step for an int whose length is given in so many bytes."""

    def step(walk: _Walk, position: int) -> int:
        start = position + width
        size = int.from_bytes(walk.data[position:start], "little", signed=width > 1)
        end = _end(walk, start, size)
        if size > walk.digits_bytes:
            number = abs(int.from_bytes(walk.data[start:end], "little", signed=True))
            digits = size * 2.408 if size > 2 * walk.digits_bytes + 8 else 0
            if digits or number >= 10**walk.limits.digits_max:
                digits = max(int(digits), walk.limits.digits_max + 1)
                raise _over("digits_max", digits, walk.limits.digits_max)
        walk.stack.append((size, 0, 0))
        return end

    return step


def _text(width: int) -> _Step:
    """Return the step for text whose length is given in so many bytes."""

    def step(walk: _Walk, position: int) -> int:
        start = position + width
        size = int.from_bytes(walk.data[position:start], "little")
        end = _end(walk, start, size)
        # One character outside the basic plane makes every character four bytes wide.
        payload = size if walk.data[start:end].isascii() else 4 * size
        walk.stack.append((payload, start, end))
        return end

    return step


def _binary(width: int) -> _Step:
    """Return the step for bytes whose length is given in so many bytes."""

    def step(walk: _Walk, position: int) -> int:
        start = position + width
        size = int.from_bytes(walk.data[position:start], "little")
        end = _end(walk, start, size)
        walk.stack.append((size, 0, 0))
        return end

    return step


def _end(walk: _Walk, start: int, size: int) -> int:
    """Return where a part ends, checking that it is there before pickle reserves it."""
    if not 0 <= size <= len(walk.data) - start:
        raise NotAllowed(f"The frame announces {size} bytes that are not there.")
    return start + size


def _frame(walk: _Walk, position: int) -> int:
    """Check the length of a frame of opcodes; it has no other meaning."""
    size = int.from_bytes(walk.data[position : position + 8], "little")
    _end(walk, position + 8, size)
    return position + 8


def _container(kind: str, grows: str, payload: int = 0) -> _Step:
    """Return the step that makes an empty container."""

    def step(walk: _Walk, position: int) -> int:
        node = _Node(kind, grows)
        node.payload = payload
        if kind is _DICT:
            node.items = []
        walk.stack.append(node)
        return position

    return step


def _mark(walk: _Walk, position: int) -> int:
    """Open a group; measure a group of nothing but numbers as one node."""
    if len(walk.marks) > walk.limits.depth_max + 8:
        raise _over("depth_max", len(walk.marks), walk.limits.depth_max)
    walk.marks.append(walk.stack)
    walk.stack = []
    if walk.data[position] not in _NUMBER_OPCODES:
        return position
    end, count = _numbers(walk, position)
    if not count or walk.data[end] not in _GROUP_ENDS:
        return position
    if walk.data[end] == pickle.SETITEMS[0] and count % 2:
        raise NotAllowed("The frame has a key without a value.")
    node = _Node(_RUN)
    node.count = count
    node.depth = 0
    walk.stack.append(node)
    return end


_NUMBER = (
    rb"K.|M..|J.{4}|G.{8}|[N\x88\x89]"
    rb"|\x8a(?:\x05.{5}|\x06.{6}|\x07.{7}|\x08.{8})"
)
#: Of bounded length, because the matcher keeps notes about every repetition.
_NUMBERS = re.compile(rb"(?:%s){1,4096}" % _NUMBER, re.DOTALL)
_ONE_NUMBER = re.compile(_NUMBER, re.DOTALL)
_NUMBER_WIDTHS = {b"K": 2, b"M": 3, b"J": 5, b"G": 9, b"N": 1, b"\x88": 1, b"\x89": 1}
_NUMBER_OPCODES = b"".join((*_NUMBER_WIDTHS, pickle.LONG1))
_GROUP_ENDS = b"".join(
    (pickle.APPENDS, pickle.TUPLE, pickle.SETITEMS, pickle.ADDITEMS, pickle.FROZENSET)
)


def _numbers(walk: _Walk, start: int) -> tuple[int, int]:
    """Return where a run of numbers ends, and how many they are.

    Numbers of one kind have their opcodes at equal distances, so a slice with a step
    counts them. A mixture is left to a regular expression.
    """
    data, end, count, reach = walk.data, start, 0, 32
    while True:
        opcode = data[end : end + 1]
        width = _NUMBER_WIDTHS.get(opcode)
        if width is None and opcode == pickle.FRAME and count:
            # Picklers begin a new frame every 64 KiB, also in the middle of a group.
            end = _frame(walk, end + 1)
        elif width is None and opcode != pickle.LONG1:
            return end, count
        elif width is not None:
            opcodes = data[end : end + width * reach : width]
            same = len(opcodes) - len(opcodes.lstrip(opcode))
            end += same * width
            count += same
            reach = 4096 if same == reach else 32
        if width is None or reach == 32:
            match = _NUMBERS.match(data, end)
            if match is not None:
                end = match.end()
                count += len(_ONE_NUMBER.findall(match[0]))
            elif opcode == pickle.LONG1:
                return end, count


def _append(walk: _Walk, position: int) -> int:
    """Add one item to a list."""
    item = walk.stack.pop()
    walk.add(walk.growing(_ITEMS), (item,))
    return position


def _appends(walk: _Walk, position: int) -> int:
    """Add a group of items to a list."""
    items = walk.pop_mark()
    walk.add(walk.growing(_ITEMS), items)
    return position


def _add_items(walk: _Walk, position: int) -> int:
    """Add a group of members to a set."""
    items = walk.pop_mark()
    walk.add(walk.growing(_MEMBERS), items)
    return position


def _set_item(walk: _Walk, position: int) -> int:
    """Add one pair to a dict."""
    value, key = walk.stack.pop(), walk.stack.pop()
    node = walk.growing(_PAIRS)
    if node.kind is _DICT:
        node.items.append(key)
    walk.add(node, (key, value))
    return position


def _set_items(walk: _Walk, position: int) -> int:
    """Add a group of pairs to a dict."""
    items = walk.pop_mark()
    is_run = len(items) == 1 and type(items[0]) is _Node and items[0].kind is _RUN
    if len(items) % 2 and not is_run:
        raise NotAllowed("The frame has a key without a value.")
    node = walk.growing(_PAIRS)
    if node.kind is _DICT:
        node.items.extend(items[::2])
    walk.add(node, items)
    return position


def _tuple_of(walk: _Walk, items: list[Any]) -> None:
    """Put a tuple on the stack."""
    node = _Node(_TUPLE)
    walk.add(node, items, parts=True)
    node.items = items
    walk.stack.append(node)


def _tuple(walk: _Walk, position: int) -> int:
    """Make a tuple of a group."""
    _tuple_of(walk, walk.pop_mark())
    return position


def _tuple_1_to_3(size: int) -> _Step:
    """Return the step that makes a tuple of so many values."""

    def step(walk: _Walk, position: int) -> int:
        items = walk.stack[-size:]
        if len(items) < size:
            raise IndexError
        del walk.stack[-size:]
        _tuple_of(walk, items)
        return position

    return step


def _frozenset(walk: _Walk, position: int) -> int:
    """Make a frozenset of a group."""
    node = _Node(_OTHER)
    node.payload = _SET_SIZE
    walk.add(node, walk.pop_mark())
    walk.stack.append(node)
    return position


def _put(width: int) -> _Step:
    """Return the step that remembers a value under a number.

    Picklers count from nought. Any other number is refused: pickle makes a table as
    long as the largest number, four gigabytes for a frame of nine bytes.
    """

    def step(walk: _Walk, position: int) -> int:
        end = position + width
        number = int.from_bytes(walk.data[position:end], "little")
        if number != len(walk.memo):
            raise NotAllowed(f"The frame remembers a value under number {number}.")
        walk.memo.append(walk.stack[-1])
        return end

    return step


def _get(width: int) -> _Step:
    """Return the step that takes up a remembered value again.

    A value that may still grow is taken as it is now, and cannot grow through the
    reference. That is exact: it can grow only once it is on top of the stack again,
    and then everything that holds the reference has gone into it. It holds itself.
    """

    def step(walk: _Walk, position: int) -> int:
        end = position + width
        node = walk.memo[int.from_bytes(walk.data[position:end], "little")]
        if type(node) is _Node and node.open:
            if node.state is _MUST or node.special:
                raise _misplaced(node)
            node = node.as_it_is()
        walk.stack.append(node)
        return end

    return step


def _stack_global(walk: _Walk, position: int) -> int:
    """Look a name up in the table."""
    name, module = walk.stack.pop(), walk.stack.pop()
    _push_name(walk, _look_up(walk.text(module), walk.text(name)))
    return position


def _push_name(walk: _Walk, entry: _Entry) -> None:
    """Put a name on the stack."""
    walk.names_used = True
    if entry.value:
        walk.stack.append(_PLAIN)
        return
    node = _Node(_NAME)
    node.depth = 0
    node.entry = entry
    node.special = True
    walk.stack.append(node)


def _call(walk: _Walk, position: int) -> int:
    """Call a function of the table with a tuple of arguments."""
    arguments = walk.arguments()
    entry = walk.name()
    if not entry.call:
        raise NotAllowed(f"The frame calls {_shown(entry)}, which is no function.")
    if entry.bare and arguments.items:
        raise NotAllowed(f"The frame calls {_shown(entry)} with arguments.")
    if arguments.special:
        roles = map(_role, arguments.items)
        for role, taken in itertools.zip_longest(roles, entry.takes, fillvalue=""):
            if role not in ("", taken):
                raise NotAllowed(f"The frame gives {_shown(entry)} a name as argument.")
        if entry is _GETATTR and arguments.items[0].entry is _ZONE:
            _push_name(walk, _UNPICKLE_ZONE)
            return position
    walk.made(entry, arguments.items)
    return position


def _role(item: Any) -> str:
    """Return what an argument is beyond a value: the role of a name, or nothing."""
    if type(item) is not _Node or not item.special:
        return ""
    return (item.entry and item.entry.role) or "name"


def _new(walk: _Walk, position: int) -> int:
    """Make a bare instance of a class with a tuple of arguments."""
    arguments = walk.arguments()
    return _new_from(walk, position, arguments.items)


def _new_with_names(walk: _Walk, position: int) -> int:
    """Make a bare instance of a class with a tuple and a dict of arguments."""
    keywords = walk.stack.pop()
    if type(keywords) is not _Node or keywords.kind is not _DICT:
        raise NotAllowed("The frame makes an instance with names that are no dict.")
    arguments = walk.arguments()
    return _new_from(walk, position, [*arguments.items, keywords])


def _new_from(walk: _Walk, position: int, parts: list[Any]) -> int:
    """Put a bare instance on the stack."""
    entry = walk.name()
    if not entry.new:
        raise NotAllowed(f"The frame makes a bare instance of {_shown(entry)}.")
    if any(_role(part) for part in parts):
        raise NotAllowed(f"The frame gives {_shown(entry)} a name as argument.")
    walk.made(entry, parts)
    return position


def _build(walk: _Walk, position: int) -> int:
    """Give a state to an instance that was made in this frame just before."""
    state = walk.stack.pop()
    node = walk.stack[-1]
    if type(node) is not _Node or not node.open or node.state is _NEVER:
        raise NotAllowed("The frame gives a state to a value that takes none.")
    entry = node.entry
    assert entry is not None
    if not entry.own_state:
        _check_state(walk, state)
    node.state = _NEVER
    walk.add(node, (state,))
    return position


def _check_state(walk: _Walk, state: Any) -> None:
    """Let only named attributes through: a dict, or a pair with that of the slots."""
    dicts = [state]
    if type(state) is _Node and state.kind is _TUPLE and len(state.items) == 2:
        dicts = [part for part in state.items if part != _PLAIN]
    for part in dicts:
        if type(part) is not _Node or part.kind is not _DICT:
            raise NotAllowed("The frame gives a state that is no dict of attributes.")
        for key in part.items:
            name = walk.text(key)
            # __class__, __dict__ or __setstate__ would turn the instance into another.
            if name.startswith("__") and name.endswith("__") and name != "__notes__":
                raise NotAllowed(f"The frame sets the attribute {name!r:.100}.")


def _stop(walk: _Walk, position: int) -> int:
    """End the walk: one complete value, and nothing behind it."""
    if walk.marks or len(walk.stack) != 1 or position != len(walk.data):
        raise NotAllowed("The frame does not end with exactly one value.")
    value = walk.stack[0]
    if type(value) is _Node and (value.special or value.state is _MUST):
        raise _misplaced(value)
    if type(value) is tuple and value[0] > walk.limits.expanded_bytes_max:
        maximum = walk.limits.expanded_bytes_max
        raise _over("expanded_bytes_max", value[0], maximum)
    return -1


def _empty_tuple(walk: _Walk, position: int) -> int:
    """Put the empty tuple on the stack."""
    walk.stack.append(_Node(_TUPLE))
    return position


_KNOWN_STEPS: dict[bytes, _Step] = {
    pickle.FRAME: _frame,
    pickle.STOP: _stop,
    pickle.NONE: _scalar(0),
    pickle.NEWTRUE: _scalar(0),
    pickle.NEWFALSE: _scalar(0),
    pickle.BININT: _scalar(4),
    pickle.BININT1: _scalar(1),
    pickle.BININT2: _scalar(2),
    pickle.BINFLOAT: _scalar(8),
    pickle.LONG1: _long(1),
    pickle.LONG4: _long(4),
    pickle.SHORT_BINUNICODE: _text(1),
    pickle.BINUNICODE: _text(4),
    pickle.BINUNICODE8: _text(8),
    pickle.SHORT_BINBYTES: _binary(1),
    pickle.BINBYTES: _binary(4),
    pickle.BINBYTES8: _binary(8),
    pickle.BYTEARRAY8: _binary(8),
    pickle.EMPTY_LIST: _container(_OTHER, _ITEMS),
    pickle.EMPTY_DICT: _container(_DICT, _PAIRS),
    pickle.EMPTY_SET: _container(_OTHER, _MEMBERS, _SET_SIZE),
    pickle.EMPTY_TUPLE: _empty_tuple,
    pickle.MARK: _mark,
    pickle.APPEND: _append,
    pickle.APPENDS: _appends,
    pickle.ADDITEMS: _add_items,
    pickle.SETITEM: _set_item,
    pickle.SETITEMS: _set_items,
    pickle.TUPLE: _tuple,
    pickle.TUPLE1: _tuple_1_to_3(1),
    pickle.TUPLE2: _tuple_1_to_3(2),
    pickle.TUPLE3: _tuple_1_to_3(3),
    pickle.FROZENSET: _frozenset,
    pickle.BINPUT: _put(1),
    pickle.LONG_BINPUT: _put(4),
    pickle.BINGET: _get(1),
    pickle.LONG_BINGET: _get(4),
    pickle.STACK_GLOBAL: _stack_global,
    pickle.REDUCE: _call,
    pickle.NEWOBJ: _new,
    pickle.NEWOBJ_EX: _new_with_names,
    pickle.BUILD: _build,
}
_STEPS: list[_Step] = [_KNOWN_STEPS.get(bytes([i]), _refuse) for i in range(256)]
_OPCODE_NAMES = {
    code[0]: name
    for name, code in vars(pickle).items()
    if name.isupper() and isinstance(code, bytes) and len(code) == 1
}


# Constructors: what the C unpickler gets instead of the types a sender names.


def _typed(values: tuple[object, ...], *kinds: type) -> None:
    """Refuse arguments that are not exactly of these types."""
    if tuple(map(type, values)) != kinds:
        given = ", ".join(type(value).__name__ for value in values)
        raise NotAllowed(f"A constructor in the frame got the wrong types: {given}.")


def _make_complex(*parts: Any) -> complex:
    """Make a complex number of two floats."""
    _typed(parts, float, float)
    return complex(*parts)


def _make_bytearray(*parts: Any) -> bytearray:
    """Make a bytearray of bytes, never of a length."""
    if parts:
        _typed(parts, bytes)
    return bytearray(*parts)


def _make_slice(*parts: Any) -> slice:
    """Make a slice of its three parts."""
    start, stop, step = parts
    return slice(start, stop, step)


def _make_range(unpickler: _Unpickler, *parts: Any) -> range:
    """Make a range of three ints, counting its items."""
    _typed(parts, int, int, int)
    return _measured_range(unpickler, range(*parts))


def _measured_range(
    counter: _Unpickler | _Pickler | _PlainPickler, value: range
) -> range:
    """Count the items of a range: a loop over it takes as long as over a list."""
    counter.range_items += _length(value)
    if counter.range_items > counter.limits.nodes_max:
        raise _over("nodes_max", counter.range_items, counter.limits.nodes_max)
    return value


def _length(value: range) -> int:
    """Return the length of a range that may be too long for ``len``."""
    first, last, step = value.start, value.stop, value.step
    return max(0, -((first - last) // step))


def _make_deque(items: Any = (), maxlen: Any = None) -> deque[Any]:
    """Make an empty deque; its items follow."""
    if type(items) is not tuple or items or type(maxlen) not in (int, type(None)):
        raise NotAllowed("A deque in the frame is not made empty.")
    return deque(maxlen=maxlen)


def _make_counter(*parts: Any) -> Counter[Any]:
    """Make a counter of a dict."""
    if parts:
        _typed(parts, dict)
    return Counter(*parts)


def _make_date(*parts: Any) -> date:
    """Make a date of four bytes, checking every field (the stock form checks one)."""
    _typed(parts, bytes)
    (data,) = parts
    if len(data) != 4:
        raise NotAllowed("A date in the frame is not four bytes long.")
    return date(int.from_bytes(data[:2], "big"), data[2], data[3])


def _make_time(*parts: Any) -> time:
    """Make a time of six bytes and perhaps a time zone."""
    data, zone = _with_zone(parts, 6)
    fold, hour = divmod(data[0], 128)
    second_parts = int.from_bytes(data[3:6], "big")
    return time(hour, data[1], data[2], second_parts, zone, fold=fold)


def _make_datetime(*parts: Any) -> datetime:
    """Make a date and time of ten bytes and perhaps a time zone."""
    data, zone = _with_zone(parts, 10)
    year = int.from_bytes(data[:2], "big")
    fold, month = divmod(data[2], 128)
    second_parts = int.from_bytes(data[7:10], "big")
    day, hour, minute, second = data[3:7]
    clock = time(hour, minute, second, second_parts, zone, fold=fold)
    return datetime.combine(date(year, month, day), clock)


def _with_zone(parts: tuple[Any, ...], size: int) -> tuple[bytes, tzinfo | None]:
    """Return the bytes and the time zone of a time."""
    data, zone = parts if len(parts) == 2 else (*parts, None)
    if type(data) is not bytes or len(data) != size:
        raise NotAllowed(f"A time in the frame is not {size} bytes long.")
    if zone is not None and not isinstance(zone, tzinfo):
        raise NotAllowed("A time in the frame has a time zone that is none.")
    return data, zone


def _make_timedelta(*parts: Any) -> timedelta:
    """Make a time difference of days, seconds and microseconds."""
    _typed(parts, int, int, int)
    return timedelta(*parts)


def _make_timezone(*parts: Any) -> timezone:
    """Make a time zone of a difference and perhaps a name."""
    _typed(parts, timedelta, *[str][: len(parts) - 1])
    return timezone(*parts)


def _make_zone(*parts: Any) -> zoneinfo.ZoneInfo:
    """Make a time zone of its key."""
    _typed(parts, str)
    return zoneinfo.ZoneInfo(_zone_key(*parts))


def _unpickle_zone(*parts: Any) -> zoneinfo.ZoneInfo:
    """Make a time zone of its key in the stock form."""
    key, _from_cache = parts
    return _make_zone(key)


_ZONE_KEY = re.compile(r"[A-Za-z0-9_+-]{1,40}(?:/[A-Za-z0-9_+-]{1,40}){0,3}")


def _zone_key(key: Any) -> str:
    """Check the key of a time zone: it names a file, or a module, to the library."""
    if type(key) is not str or not _ZONE_KEY.fullmatch(key):
        raise NotAllowed(f"There is no time zone {key!r:.100}.")
    found = any(os.path.isfile(os.path.join(root, key)) for root in zoneinfo.TZPATH)
    if not found and key not in _known_zones():
        raise NotAllowed(f"There is no time zone {key!r:.100} on this machine.")
    return key


@lru_cache(1)
def _known_zones() -> set[str]:
    """Return all keys; asked where the time zones come as a package."""
    return zoneinfo.available_timezones()


_DECIMAL = re.compile(
    r"-?(?:[0-9]+(?:\.[0-9]*)?(?:E[+-]?[0-9]{1,9})?|Infinity|s?NaN[0-9]*)"
)


def _make_decimal(unpickler: _Unpickler, *parts: Any) -> Decimal:
    """Make a decimal of its text."""
    _typed(parts, str)
    (text,) = parts
    longest = unpickler.limits.digits_max + unpickler.limits.exponent_max
    if len(text) > longest + 32:
        raise _over("digits_max", len(text), unpickler.limits.digits_max)
    if not _DECIMAL.fullmatch(text):
        raise NotAllowed(f"{text!r:.100} is no decimal.")
    return _measured_decimal(Decimal(text), unpickler.limits)


def _measured_decimal(value: Decimal, limits: ValueLimits) -> Decimal:
    """Check digits and exponent: arithmetic takes as long as they are large."""
    _sign, digits, exponent = value.as_tuple()
    if len(digits) > limits.digits_max:
        raise _over("digits_max", len(digits), limits.digits_max)
    if isinstance(exponent, int) and abs(exponent) > limits.exponent_max:
        raise _over("exponent_max", abs(exponent), limits.exponent_max)
    return value


_FRACTION = re.compile(r"(-?[0-9]+)(?:/([0-9]+))?")


def _make_fraction(unpickler: _Unpickler, *parts: Any) -> Fraction:
    """Make a fraction of two ints, or of text without a power of ten."""
    if len(parts) == 2:
        _typed(parts, int, int)
        return Fraction(*parts)
    _typed(parts, str)
    (text,) = parts
    if len(text) > 2 * unpickler.limits.digits_max + 2:
        raise _over("digits_max", len(text), unpickler.limits.digits_max)
    match = _FRACTION.fullmatch(text)
    if match is None:
        raise NotAllowed(f"{text!r:.100} is no fraction.")
    longest = max(len(match[1].lstrip("-")), len(match[2] or ""))
    if longest > unpickler.limits.digits_max:
        raise _over("digits_max", longest, unpickler.limits.digits_max)
    return Fraction(int(match[1]), int(match[2] or 1))


class _CheckedUUID(UUID):
    """An identifier that checks its state, and then is an ordinary one."""

    __slots__ = ()

    def __new__(cls) -> _CheckedUUID:
        return object.__new__(cls)

    def __init__(self) -> None:
        """Wait for the state."""

    def __setstate__(self, state: Any) -> None:
        state = dict(state)
        number, safe = state.pop("int"), state.pop("is_safe", None)
        if type(number) is not int or not 0 <= number < 1 << 128 or state:
            raise NotAllowed("An identifier in the frame is not of 128 bits.")
        object.__setattr__(self, "int", number)
        object.__setattr__(self, "is_safe", SafeUUID(safe))
        object.__setattr__(self, "__class__", UUID)


class _CheckedChainMap(ChainMap):  # type: ignore[type-arg]
    """A chain of mappings that checks its state, and then is an ordinary one."""

    def __new__(cls) -> _CheckedChainMap:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        maps = state["maps"]
        if type(maps) is not list or not maps or len(state) != 1:
            raise NotAllowed("A chain of mappings in the frame has none.")
        if not all(isinstance(part, Mapping) for part in maps):
            raise NotAllowed("A chain of mappings in the frame has something else.")
        self.maps = maps
        self.__class__ = ChainMap  # type: ignore[assignment]


class _StockToken:
    """What a stock proxy knows of its object: data only, no way to connect."""

    __slots__ = ("id", "typeid")

    def __setstate__(self, state: Any) -> None:
        typeid, _address, identity = state
        _typed((typeid, identity), str, str)
        self.typeid, self.id = typeid, identity


def _make_stock_proxy(unpickler: _Unpickler, *parts: Any) -> object:
    """Make a handle of a stock proxy, by name; its address is never looked at."""
    _kind, token, _serializer, _options = parts
    if type(token) is not _StockToken:
        raise NotAllowed("A proxy in the frame names no object.")
    class_name, slash, key = token.id.partition("/")
    if not slash or class_name != token.typeid:
        raise NotAllowed(f"A proxy in the frame names no object: {token.id!r:.100}.")
    return unpickler.reference(class_name, key)


def _make_reference(unpickler: _Unpickler, *parts: Any) -> object:
    """Make a handle of a class name and a key."""
    _typed(parts, str, str)
    return unpickler.reference(*parts)


def _address_maker(cls: type) -> Callable[..., object]:
    """Return the constructor of a network address type: of text, or of a number."""

    def make(*parts: Any) -> object:
        if len(parts) != 1 or type(parts[0]) not in (str, int):
            raise NotAllowed("A network address in the frame is no text or number.")
        return cls(*parts)

    return make


def _path_maker(cls: type, pure: type) -> Callable[..., object]:
    """Return the constructor of a path type, or of its pure one on other systems."""

    def make(*parts: Any) -> object:
        _typed(parts, *[str] * len(parts))
        try:
            return cls(*parts)
        except NotImplementedError:
            return pure(*parts)

    return make


def _checked_getattr(*parts: Any) -> object:
    """Return a member of an allowed enum, or the stock constructor of time zones."""
    owner, name = parts
    if owner is _make_zone and name == "_unpickle":
        return _unpickle_zone
    if isinstance(owner, type) and issubclass(owner, Enum) and owner in _allowed_types:
        return owner.__members__[name]
    raise NotAllowed(f"The frame asks for the attribute {name!r:.100}.")


def _checked_or(*parts: Any) -> object:
    """Join two flags of one allowed class, as some releases of 3.11 spell them."""
    left, right = parts
    if not isinstance(left, Flag) or type(right) not in (type(left), int):
        raise NotAllowed("The frame joins values that are no flags.")
    return left | right if type(right) is type(left) else type(left)(left.value | right)


def _never_called(*_parts: Any) -> object:
    """Stand for a class that is only ever named."""
    raise NotAllowed("The frame calls a class that is only named.")


# The table of names.


def _table() -> Iterator[tuple[str, str, _Entry]]:
    """Yield every name that may stand in a frame, but for allowed classes."""
    for name in ("dict", "set", "int", "str", "float", "tuple"):
        yield "builtins", name, _Entry(vars(builtins)[name], role="factory")
    bare_list = _Entry(list, call=True, bare=True, grows=_ITEMS, role="factory")
    yield "builtins", "list", bare_list
    for name in vars(builtins):
        error = builtin_error(name)
        if error is not None:
            yield "builtins", name, _Entry(error, call=True, state=_MAY)
    yield "builtins", "complex", _Entry(_make_complex, call=True)
    yield "builtins", "bytearray", _Entry(_make_bytearray, call=True)
    yield "builtins", "slice", _Entry(_make_slice, call=True)
    yield "builtins", "range", _Entry(_make_range, call=True, bound=True)
    yield "builtins", "Ellipsis", _Entry(..., value=True)
    yield "builtins", "getattr", _GETATTR
    yield "_operator", "or_", _Entry(_checked_or, call=True)
    bare_dict = _Entry(OrderedDict, call=True, bare=True, grows=_PAIRS)
    yield "collections", "OrderedDict", bare_dict
    default = _Entry(defaultdict, call=True, grows=_PAIRS, takes=("factory",))
    yield "collections", "defaultdict", default
    yield "collections", "deque", _Entry(_make_deque, call=True, grows=_ITEMS)
    yield "collections", "Counter", _Entry(_make_counter, call=True)
    yield "collections", "ChainMap", _whole(_CheckedChainMap)
    yield "datetime", "date", _Entry(_make_date, call=True)
    yield "datetime", "time", _Entry(_make_time, call=True)
    yield "datetime", "datetime", _Entry(_make_datetime, call=True)
    yield "datetime", "timedelta", _Entry(_make_timedelta, call=True)
    yield "datetime", "timezone", _Entry(_make_timezone, call=True)
    yield "zoneinfo", "ZoneInfo", _ZONE
    yield "decimal", "Decimal", _Entry(_make_decimal, call=True, bound=True)
    yield "fractions", "Fraction", _Entry(_make_fraction, call=True, bound=True)
    yield "uuid", "UUID", _whole(_CheckedUUID)
    for cls in _ADDRESSES:
        yield "ipaddress", cls.__name__, _Entry(_address_maker(cls), call=True)
    for cls in _PATHS:
        pure = _PURE[cls.__name__.removeprefix("Pure")]
        for module in ("pathlib", "pathlib._local"):
            yield module, cls.__name__, _Entry(_path_maker(cls, pure), call=True)
    reference = _Entry(_make_reference, call=True, bound=True)
    yield Reference.__module__, Reference.__qualname__, reference
    proxy = _Entry(_make_stock_proxy, call=True, bound=True, takes=("proxy", "token"))
    yield _MANAGERS, "RebuildProxy", proxy
    yield _MANAGERS, "Token", _whole(_StockToken, role="token")
    for name in _STOCK_PROXIES:
        yield _MANAGERS, name, _Entry(_never_called, role="proxy")


def _whole(cls: type, role: str = "") -> _Entry:
    """Return the entry of a class that is complete only with its checked state."""
    return _Entry(cls, new=True, state=_MUST, own_state=True, role=role)


_MANAGERS = "multiprocessing.managers"
_STOCK_PROXIES = (
    "AutoProxy", "BaseProxy", "IteratorProxy", "AcquirerProxy", "ConditionProxy",
    "EventProxy", "BarrierProxy", "NamespaceProxy", "ValueProxy", "ListProxy",
    "DictProxy", "ArrayProxy", "PoolProxy",
)  # fmt: skip
_ADDRESSES: tuple[type, ...] = (
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
    ipaddress.IPv4Interface,
    ipaddress.IPv6Interface,
)
_PATHS: tuple[type, ...] = (
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
    pathlib.PosixPath,
    pathlib.WindowsPath,
)
_PURE = {"PosixPath": pathlib.PurePosixPath, "WindowsPath": pathlib.PureWindowsPath}
_GETATTR = _Entry(_checked_getattr, call=True, takes=("named",))
_ZONE = _Entry(_make_zone, call=True, role="named")
_UNPICKLE_ZONE = _Entry(_unpickle_zone, call=True)
_TABLE = {(module, name): entry for module, name, entry in _table()}

_SPELLINGS: dict[type, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(
        (
            type(None), bool, int, float, str, bytes, list, tuple, dict, set, frozenset,
            complex, bytearray, slice, type(...),
            OrderedDict, defaultdict, deque, Counter, ChainMap,
            date, time, datetime, timedelta, timezone, UUID, *_ADDRESSES, *_PATHS,
        ),
        _spell_plainly,
    ),
    **dict.fromkeys(
        (
            type({}.keys()), type({}.values()), type({}.items()),
            type(OrderedDict().keys()), type(OrderedDict().values()),
            type(OrderedDict().items()),
        ),
        _spell_view,
    ),
    Reference: _spell_reference,
    ipaddress.IPv6Address: _spell_address,
    zoneinfo.ZoneInfo: _spell_zone,
    Fraction: _spell_fraction,
    Decimal: _spell_decimal,
    range: _spell_range,
}  # fmt: skip
_NAMED_CLASSES = frozenset(_SPELLINGS)


# The user's own classes.

_allowed_names: dict[tuple[str, str], _Entry] = {}
_allowed_types: dict[type, _Entry] = {}
_references: dict[type, Callable[[Any], tuple[str, str]]] = {}

#: Types whose own constructors take much time or memory for little, or check nothing.
_COSTLY_BASES = (bytes, bytearray, Decimal, Fraction, type, date, time, timedelta)
#: Types written in C that are safe to build upon.
_SAFE_BASES = (
    object, list, tuple, dict, set, frozenset, int, float, complex, str,
    OrderedDict, defaultdict, deque, tzinfo,
)  # fmt: skip
_CONTAINERS = (list, tuple, dict, set, frozenset, deque)
#: Py_TPFLAGS_IMMUTABLETYPE and Py_TPFLAGS_HEAPTYPE; classes written in Python have
#: only the second.
_IMMUTABLE, _HEAP = 1 << 8, 1 << 9


def _reason_against(cls: type) -> str:
    """Return why a class may never travel, or nothing."""
    if cls.__module__ == "builtins" or (cls.__module__, cls.__qualname__) in _TABLE:
        return "it is a type of the language itself, allowed already or never"
    if "<" in cls.__qualname__:
        return "it is defined inside a function, so the other side cannot name it"
    for base in cls.__mro__:
        written_in_c = base.__flags__ & (_IMMUTABLE | _HEAP) != _HEAP
        safe = base in _SAFE_BASES or issubclass(base, BaseException)
        if base in _COSTLY_BASES or (written_in_c and not safe):
            return f"it is built upon {_path(base)}, which checks too little itself"
    if issubclass(cls, BaseException) and not issubclass(cls, Exception):
        return "it would end the receiver"
    return ""


def _entry_of(cls: type) -> _Entry:
    """Decide from the class how its instances are rebuilt.

    Classes are called only where pickle does so: enums by value, errors by their
    arguments, classes on top of builtin ones, and those that say so themselves.
    """
    is_enum = issubclass(cls, Enum)
    own_reduce = not _inherits(cls, object, "__reduce__", "__reduce_ex__")
    grows = _NOTHING
    if issubclass(cls, (list, deque)):
        grows = _ITEMS
    elif issubclass(cls, dict):
        grows = _PAIRS
    return _Entry(
        cls,
        call=own_reduce,
        new=not is_enum,
        grows=grows,
        state=_NEVER if is_enum else _MAY,
        own_state=_sets_own_state(cls),
        role="named" if is_enum else "",
        takes=("factory",) if issubclass(cls, defaultdict) else (),
        # A named tuple takes its fields, the builtin constructor one iterable.
        iterates=issubclass(cls, _CONTAINERS)
        and any(cls.__new__ is base.__new__ for base in _CONTAINERS),
    )


def _sets_own_state(cls: type) -> bool:
    """Tell whether a class has a __setstate__ of its own, beyond that of errors."""
    stock = getattr(BaseException, "__setstate__")  # noqa: B009 - unknown to typeshed
    return getattr(cls, "__setstate__", stock) is not stock


def _shown(entry: _Entry) -> str:
    """Name an entry in an error."""
    make = entry.make
    return _path(make) if isinstance(make, type) else str(make.__name__).lstrip("_")


def _path(cls: type) -> str:
    """Return the module and name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"
