"""How the encoder writes each type, and which types it refuses.

Every answer is of the form that ``reducer_override`` gives. Pickle itself, bytes and
the way back (see ``constructors``) may not enter.
"""

from __future__ import annotations

import ipaddress
import zoneinfo
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, ItemsView, Iterable, KeysView, ValuesView
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from types import BuiltinFunctionType, FunctionType
from typing import Any
from uuid import UUID

from ..messages import Reference
from . import arrays, dataframe_spellings, large_bytes
from .constructors import ADDRESSES, PATHS, TABLE, builtin_error, zone_key
from .contexts import WriteContext
from .measures import measured_decimal, measured_range
from .own_classes import allowed_types, inherits
from .refusals import Foreign

#: The classes of handles, and what tells a handle's class name and key.
references: dict[type, Callable[[Any], tuple[str, str]]] = {}


def may_travel(kind: type) -> bool:
    """Tell whether values of a class have a spelling."""
    return (
        kind in _SPELLINGS
        or kind in allowed_types
        or _is_builtin_error(kind)
        or any(base in references or _package(base) for base in kind.__mro__)
    )


def spelling(writer: WriteContext, value: Any) -> Any:
    """Return how a value is spelled, ``NotImplemented`` for pickle's own way."""
    kind = type(value)
    spell = _SPELLINGS.get(kind)
    if spell is not None:
        return spell(writer, value)
    entry = allowed_types.get(kind)
    if entry is not None:
        return _spell_allowed(writer, value)
    if issubclass(kind, type):
        return _spell_class(writer, value)
    if _is_builtin_error(kind):
        return NotImplemented
    for base in kind.__mro__:
        if base in references:
            return _spell_reference(writer, Reference(*references[base](value)))
        package = _package(base)
        if package is not None:
            return package(writer, value)
    raise Foreign(value)


def _is_builtin_error(kind: type) -> bool:
    return kind.__module__ == "builtins" and builtin_error(kind.__name__) is kind


def _package(kind: type) -> Callable[[WriteContext, Any], Any] | None:
    """Return what spells the values of the package that a class is of, if any."""
    return _PACKAGES.get(str(kind.__module__).partition(".")[0])


#: Packages whose values have spellings of their own; they are not imported for that.
_PACKAGES: dict[str, Callable[[WriteContext, Any], Any]] = {
    "numpy": arrays.spelling,
    "pandas": dataframe_spellings.spelling,
}


def _spell_allowed(writer: WriteContext, value: Any) -> Any:
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


def _spell_class(writer: WriteContext, cls: type) -> Any:
    """Let the classes through that stand for their instances in a pickle.

    The walk refuses them wherever they are not needed for that.
    """
    if cls in _NAMED_CLASSES or cls in allowed_types:
        return NotImplemented
    if writer.stock and (cls.__module__, cls.__qualname__) in TABLE:
        return NotImplemented
    if _is_builtin_error(cls):
        return NotImplemented
    raise Foreign(cls)


def _spell_function(writer: WriteContext, value: Any) -> Any:
    """Let the functions through that make values of a pickle, as with classes."""
    entry = TABLE.get((value.__module__, value.__qualname__))
    if entry is not None and (writer.stock or entry.make is value):
        return NotImplemented
    raise Foreign(value)


def _spell_plainly(_writer: object, _value: object) -> Any:
    """Leave the spelling to pickle."""
    return NotImplemented


def _spell_reference(writer: WriteContext, value: Reference) -> Any:
    """Spell a reference as a call of its class, which stock clients do not have."""
    if writer.stock:
        raise Foreign(
            value, "a client of the standard library can be given one as a result only"
        )
    return Reference, tuple(value)


def _spell_view(_writer: object, value: Iterable[object]) -> Any:
    """Spell a view of a dictionary, or of another mapping, as a list."""
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


def _spell_decimal(writer: WriteContext, value: Decimal) -> Any:
    """Check the size of a decimal."""
    measured_decimal(value, writer.limits)
    return NotImplemented


def _spell_range(writer: WriteContext, value: range) -> Any:
    """Check the length of a range."""
    return _spell_plainly(writer, measured_range(writer, value))


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
            KeysView, ValuesView, ItemsView,
        ),
        _spell_view,
    ),
    FunctionType: _spell_function,
    BuiltinFunctionType: _spell_function,
    Reference: _spell_reference,
    ipaddress.IPv6Address: _spell_address,
    zoneinfo.ZoneInfo: _spell_zone,
    Fraction: _spell_fraction,
    Decimal: _spell_decimal,
    range: _spell_range,
    large_bytes.Envelope: large_bytes.spelling,
}  # fmt: skip
_NAMED_CLASSES = frozenset(_SPELLINGS) - {
    FunctionType,
    BuiltinFunctionType,
    large_bytes.Envelope,
}
