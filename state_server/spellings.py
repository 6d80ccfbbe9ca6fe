"""How the encoder writes each type, and which types it refuses.

Every answer is of the form that ``reducer_override`` gives. Pickle itself, bytes and
the way back (see ``constructors``) may not enter.
"""

from __future__ import annotations

import ipaddress
import zoneinfo
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any, Protocol
from uuid import UUID

from .constructors import ADDRESSES, PATHS, builtin_error, zone_key
from .entries import full_name
from .measures import RangeCounter, measured_decimal, measured_range
from .messages import Reference
from .own_classes import allowed_types, inherits
from .small_frames import ATOMS

#: The classes of handles, and what tells a handle's class name and key.
references: dict[type, Callable[[Any], tuple[str, str]]] = {}


class Foreign(Exception):
    """A value of a type that may not travel was met."""

    def __init__(self, value: object) -> None:
        super().__init__(value)
        self.value = value


class Writer(RangeCounter, Protocol):
    """One writing of a value, as far as the spellings need to know of it."""

    #: What pickle takes for the making of a bare instance.
    new_object: Callable[..., object]


def spelling(writer: Writer, value: Any) -> Any:
    """Return how a value is spelled, ``NotImplemented`` for pickle's own way."""
    kind = type(value)
    spell = _SPELLINGS.get(kind)
    if spell is not None:
        return spell(writer, value)
    entry = allowed_types.get(kind)
    if entry is not None:
        return _spell_allowed(writer, value)
    if issubclass(kind, type):
        return _spell_class(value)
    if kind.__module__ == "builtins" and builtin_error(kind.__name__) is kind:
        return NotImplemented
    for base in kind.__mro__:
        if base in references:
            return Reference, tuple(references[base](value))
    raise Foreign(value)


def _spell_allowed(writer: Writer, value: Any) -> Any:
    """Spell a value of one of the user's own classes."""
    cls = type(value)
    if isinstance(value, Enum):
        # Some releases of 3.11 would name the member through getattr instead.
        return cls, (value._value_,)
    if isinstance(value, Exception) and _has_own_init(cls):
        # The stock spelling calls the class with ``args``, which need not be what its
        # own __init__ takes; rebuilding from args and attributes always fits.
        state = value.__dict__ or None
        return writer.new_object, (cls, *value.args), state
    return NotImplemented


def _has_own_init(cls: type[Exception]) -> bool:
    """Tell whether an error class has an __init__ and only attributes in Python."""
    base = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    return (
        not inherits(cls, base, "__init__")
        and inherits(cls, base, "__reduce__", "__reduce_ex__")
        and base.__basicsize__ == Exception.__basicsize__
    )


def _spell_class(cls: type) -> Any:
    """Let the classes through that stand for their instances in a frame.

    The walk refuses them wherever they are not needed for that.
    """
    if cls in _NAMED_CLASSES or cls in allowed_types:
        return NotImplemented
    if cls.__module__ == "builtins" and builtin_error(cls.__name__) is cls:
        return NotImplemented
    raise Foreign(cls)


def _spell_plainly(_writer: object, _value: object) -> Any:
    """Leave the spelling to pickle."""
    return NotImplemented


def _spell_reference(_writer: object, value: Reference) -> Any:
    """Spell a reference as a call of its class."""
    return Reference, tuple(value)


def _spell_view(_writer: object, value: Iterable[object]) -> Any:
    """Spell a view of a dictionary as a list."""
    return list, (), None, iter(value)


def _spell_address(_writer: object, value: ipaddress.IPv6Address) -> Any:
    """Spell an address as text; 3.10 would drop its scope."""
    return type(value), (str(value),)


def _spell_zone(_writer: object, value: zoneinfo.ZoneInfo) -> Any:
    """Spell a time zone by its key."""
    return zoneinfo.ZoneInfo, (zone_key(value.key),)


def _spell_fraction(_writer: object, value: Fraction) -> Any:
    """Spell a fraction as two ints, which the walk measures."""
    return Fraction, (value.numerator, value.denominator)


def _spell_decimal(writer: RangeCounter, value: Decimal) -> Any:
    """Check the size of a decimal."""
    measured_decimal(value, writer.limits)
    return NotImplemented


def _spell_range(writer: RangeCounter, value: range) -> Any:
    """Check the length of a range."""
    return _spell_plainly(writer, measured_range(writer, value))


def refusal(value: object, foreign: object) -> str:
    """Say which type may not travel, where it is, and what to do about it."""
    place = _place(value, foreign)
    where = f" (at value{place})" if place else ""
    if isinstance(foreign, type):
        return (
            f"The class {full_name(foreign)} is no value{where}; only instances travel."
        )
    cls = type(foreign)
    if cls.__module__ == "builtins":
        return f"A value of type {cls.__qualname__} may not travel{where}."
    return (
        f"A value of type {full_name(cls)} may not travel{where}; "
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
            shown = repr(key)[:40] if type(key) in ATOMS else "..."
            queue.append((part, f"{place}[{shown}]"))
    return ""


_SPELLINGS: dict[type, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(
        (
            type(None), bool, int, float, str, bytes, list, tuple, dict, set, frozenset,
            complex, bytearray, slice, type(...),
            OrderedDict, defaultdict, deque, Counter, ChainMap,
            date, time, datetime, timedelta, timezone, UUID, *ADDRESSES, *PATHS,
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
