"""What the names in a pickle stand for: checked constructors, and the table of names.

The C unpickler gets these instead of the types that a sender names. A name is exact,
module and all; nothing is imported to find it. Each constructor checks the types, the
ranges and the sizes of its arguments. Bytes, pickle, sockets and the environment
may not enter; of files only the question whether a time zone exists.
"""

from __future__ import annotations

import builtins
import ipaddress
import os.path
import pathlib
import re
import zoneinfo
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from functools import lru_cache
from typing import Any
from uuid import UUID, SafeUUID

from ..errors import NotAllowed
from ..messages import Reference
from . import arrays, dataframes, large_bytes, stock_arrays, wire_names
from .contexts import ReadContext
from .entries import ITEMS, MAY, MUST, PAIRS, Entry
from .measures import measured_decimal, measured_range, over
from .own_classes import POSITIONED_ERRORS, allowed_names, allowed_types


def builtin_error(name: str) -> type[Exception] | None:
    """Return the builtin error of this name; none that ends a process or thread."""
    found = vars(builtins).get(name)
    if isinstance(found, type) and issubclass(found, Exception):
        return found
    return None


def _positioned_error_maker(cls: type[Exception]) -> Callable[..., object]:
    """Return the constructor of an error that says where in its object it is.

    To tell its text it takes the item there, and does not look whether there is one: a
    negative position reads memory of anybody's, or ends the process. A state could set
    another position later, so there is none.
    """

    def make(*parts: Any) -> object:
        error: Any = cls(*parts)
        if error.start < 0:
            raise NotAllowed(f"An error in the pickle is at position {error.start}.")
        return error

    return make


def _typed(values: tuple[object, ...], *kinds: type) -> None:
    """Refuse arguments that are not exactly of these types."""
    if tuple(map(type, values)) != kinds:
        given = ", ".join(type(value).__name__ for value in values)
        raise NotAllowed(f"A constructor in the pickle got the wrong types: {given}.")


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


def _make_range(reader: ReadContext, *parts: Any) -> range:
    """Make a range of three ints, counting its items."""
    _typed(parts, int, int, int)
    return measured_range(reader, range(*parts))


def _make_deque(items: Any = (), maxlen: Any = None) -> deque[Any]:
    """Make an empty deque; its items follow."""
    if type(items) is not tuple or items or type(maxlen) not in (int, type(None)):
        raise NotAllowed("A deque in the pickle is not made empty.")
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
        raise NotAllowed("A date in the pickle is not four bytes long.")
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
        raise NotAllowed(f"A time in the pickle is not {size} bytes long.")
    if zone is not None and not isinstance(zone, tzinfo):
        raise NotAllowed("A time in the pickle has a time zone that is none.")
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
    return zoneinfo.ZoneInfo(zone_key(*parts))


def _unpickle_zone(*parts: Any) -> zoneinfo.ZoneInfo:
    """Make a time zone of its key in the stock form."""
    key, _from_cache = parts
    return _make_zone(key)


_ZONE_KEY = re.compile(r"[A-Za-z0-9_+-]{1,40}(?:/[A-Za-z0-9_+-]{1,40}){0,3}")


def zone_key(key: Any) -> str:
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


def _make_decimal(reader: ReadContext, *parts: Any) -> Decimal:
    """Make a decimal of its text."""
    _typed(parts, str)
    (text,) = parts
    longest = reader.limits.digits_max + reader.limits.exponent_max
    if len(text) > longest + 32:
        raise over("digits_max", len(text), reader.limits.digits_max)
    if not _DECIMAL.fullmatch(text):
        raise NotAllowed(f"{text!r:.100} is no decimal.")
    return measured_decimal(Decimal(text), reader.limits)


_FRACTION = re.compile(r"(-?[0-9]+)(?:/([0-9]+))?")


def _make_fraction(reader: ReadContext, *parts: Any) -> Fraction:
    """Make a fraction of two ints, or of text without a power of ten."""
    if len(parts) == 2:
        _typed(parts, int, int)
        return Fraction(*parts)
    _typed(parts, str)
    (text,) = parts
    if len(text) > 2 * reader.limits.digits_max + 2:
        raise over("digits_max", len(text), reader.limits.digits_max)
    match = _FRACTION.fullmatch(text)
    if match is None:
        raise NotAllowed(f"{text!r:.100} is no fraction.")
    longest = max(len(match[1].lstrip("-")), len(match[2] or ""))
    if longest > reader.limits.digits_max:
        raise over("digits_max", longest, reader.limits.digits_max)
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
            raise NotAllowed("An identifier in the pickle is not of 128 bits.")
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
            raise NotAllowed("A chain of mappings in the pickle has none.")
        if not all(isinstance(part, Mapping) for part in maps):
            raise NotAllowed("A chain of mappings in the pickle has something else.")
        self.maps = maps
        self.__class__ = ChainMap  # type: ignore[assignment]


class _StockToken:
    """What a stock proxy knows of its object: data only, no way to connect."""

    __slots__ = ("id", "typeid")

    def __setstate__(self, state: Any) -> None:
        typeid, _address, identity = state
        _typed((typeid, identity), str, str)
        self.typeid, self.id = typeid, identity


def _make_stock_proxy(reader: ReadContext, *parts: Any) -> object:
    """Make a handle of a stock proxy, by name; its address is never looked at."""
    _kind, token, _serializer, _options = parts
    if type(token) is not _StockToken:
        raise NotAllowed("A proxy in the pickle names no object.")
    class_name, slash, key = token.id.partition("/")
    if not slash or class_name != token.typeid:
        raise NotAllowed(f"A proxy in the pickle names no object: {token.id!r:.100}.")
    return reader.reference(class_name, key)


def _make_reference(reader: ReadContext, *parts: Any) -> object:
    """Make a handle of a class name and a key."""
    _typed(parts, str, str)
    return reader.reference(*parts)


def _address_maker(cls: type) -> Callable[..., object]:
    """Return the constructor of a network address type: of text, or of a number."""

    def make(*parts: Any) -> object:
        if len(parts) != 1 or type(parts[0]) not in (str, int):
            raise NotAllowed("A network address in the pickle is no text or number.")
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
    if isinstance(owner, type) and issubclass(owner, Enum) and owner in allowed_types:
        return owner.__members__[name]
    raise NotAllowed(f"The pickle asks for the attribute {name!r:.100}.")


def _checked_or(*parts: Any) -> object:
    """Join two flags of one allowed class, as some releases of 3.11 spell them."""
    left, right = parts
    if not isinstance(left, Flag) or type(right) not in (type(left), int):
        raise NotAllowed("The pickle joins values that are no flags.")
    return left | right if type(right) is type(left) else type(left)(left.value | right)


def _make_latin1(*parts: Any) -> bytes:
    """Make bytes of text, as protocol 2 spells them."""
    text, encoding = parts
    _typed(parts, str, str)
    if encoding != "latin1":
        raise NotAllowed("The pickle encodes text in another way than protocol 2.")
    return text.encode("latin1")  # type: ignore[no-any-return]


def _never_called(*_parts: Any) -> object:
    """Stand for a class that is only ever named."""
    raise NotAllowed("The pickle calls a class that is only named.")


# The table of names.


def _builtin_names() -> Iterator[tuple[str, str, Entry]]:
    """Yield the names of the language itself."""
    for name in ("dict", "set", "int", "str", "float", "tuple"):
        yield "builtins", name, Entry(vars(builtins)[name], role="factory")
    bare_list = Entry(list, call=True, bare=True, grows=ITEMS, role="factory")
    yield "builtins", "list", bare_list
    for name in vars(builtins):
        error = builtin_error(name)
        if error in POSITIONED_ERRORS:
            yield "builtins", name, Entry(_positioned_error_maker(error), call=True)
        elif error is not None:
            yield "builtins", name, Entry(error, call=True, state=MAY)
    yield "builtins", "complex", Entry(_make_complex, call=True)
    yield "builtins", "bytearray", Entry(_make_bytearray, call=True)
    yield "builtins", "slice", Entry(_make_slice, call=True)
    yield "builtins", "range", Entry(_make_range, call=True, bound=True)
    yield "builtins", "Ellipsis", Entry(..., value=True)
    yield "builtins", "getattr", GETATTR
    yield "_operator", "or_", Entry(_checked_or, call=True)
    yield "_codecs", "encode", Entry(_make_latin1, call=True)
    # Protocol 2 calls this for empty bytes, and names the module as Python 2 did.
    yield "__builtin__", "bytes", Entry(bytes, call=True, bare=True)


def _library_names() -> Iterator[tuple[str, str, Entry]]:
    """Yield the names of the standard library's value types."""
    bare_dict = Entry(OrderedDict, call=True, bare=True, grows=PAIRS)
    yield "collections", "OrderedDict", bare_dict
    default = Entry(defaultdict, call=True, grows=PAIRS, takes=("factory",))
    yield "collections", "defaultdict", default
    yield "collections", "deque", Entry(_make_deque, call=True, grows=ITEMS)
    yield "collections", "Counter", Entry(_make_counter, call=True)
    yield "collections", "ChainMap", _whole(_CheckedChainMap)
    yield "datetime", "date", Entry(_make_date, call=True, secret_hash=True)
    yield "datetime", "time", Entry(_make_time, call=True, secret_hash=True)
    moment = Entry(_make_datetime, call=True, secret_hash=True)
    yield "datetime", "datetime", moment
    yield "datetime", "timedelta", Entry(_make_timedelta, call=True)
    yield "datetime", "timezone", Entry(_make_timezone, call=True)
    yield "zoneinfo", "ZoneInfo", ZONE
    yield "decimal", "Decimal", Entry(_make_decimal, call=True, bound=True)
    yield "fractions", "Fraction", Entry(_make_fraction, call=True, bound=True)
    yield "uuid", "UUID", _whole(_CheckedUUID)
    for cls in ADDRESSES:
        yield "ipaddress", cls.__name__, Entry(_address_maker(cls), call=True)
    for cls in PATHS:
        pure = _PURE[cls.__name__.removeprefix("Pure")]
        for module in ("pathlib", "pathlib._local"):
            yield module, cls.__name__, Entry(_path_maker(cls, pure), call=True)


def _object_names() -> Iterator[tuple[str, str, Entry]]:
    """Yield the names that stand for a shared object: our own and the stock ones."""
    reference = Entry(_make_reference, call=True, bound=True)
    yield wire_names.REFERENCES, "Reference", reference
    proxy = Entry(_make_stock_proxy, call=True, bound=True, takes=("proxy", "token"))
    yield _MANAGERS, "RebuildProxy", proxy
    yield _MANAGERS, "Token", _whole(_StockToken, role="token")
    for name in _STOCK_PROXIES:
        yield _MANAGERS, name, Entry(_never_called, role="proxy")


def _whole(cls: type, role: str = "") -> Entry:
    """Return the entry of a class that is complete only with its checked state."""
    return Entry(cls, new=True, state=MUST, own_state=True, role=role)


_MANAGERS = "multiprocessing.managers"
_STOCK_PROXIES = (
    "AutoProxy", "BaseProxy", "IteratorProxy", "AcquirerProxy", "ConditionProxy",
    "EventProxy", "BarrierProxy", "NamespaceProxy", "ValueProxy", "ListProxy",
    "DictProxy", "ArrayProxy", "PoolProxy",
)  # fmt: skip
ADDRESSES: tuple[type, ...] = (
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
    ipaddress.IPv4Interface,
    ipaddress.IPv6Interface,
)
PATHS: tuple[type, ...] = (
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
    pathlib.PosixPath,
    pathlib.WindowsPath,
)
_PURE = {"PosixPath": pathlib.PurePosixPath, "WindowsPath": pathlib.PureWindowsPath}
GETATTR = Entry(_checked_getattr, call=True, takes=("named",))
ZONE = Entry(_make_zone, call=True, role="named")
UNPICKLE_ZONE = Entry(_unpickle_zone, call=True)
wire_names.keep(wire_names.REFERENCES, {"Reference": Reference})
#: Every name that may stand in a pickle, but for the user's own classes.
TABLE = {
    (module, name): entry
    for names in (
        _builtin_names(),
        _library_names(),
        _object_names(),
        arrays.names(),
        stock_arrays.names(),
        dataframes.names(),
        large_bytes.names(),
    )
    for module, name, entry in names
}


def look_up(module: str, name: str) -> Entry:
    """Return the entry of a name, or refuse it."""
    entry = TABLE.get((module, name)) or allowed_names.get((module, name))
    if entry is None:
        shown = f"{module:.100}.{name:.100}"
        advice = _ADVICE.get(module.partition(".")[0])
        if advice:
            raise NotAllowed(f"The name {shown!r} may not travel; {advice}.")
        raise NotAllowed(
            f"The name {shown!r} may not travel; if it is a value type of yours, "
            f"call state_server.allow() with it on both sides."
        )
    return entry


#: What to do about names of packages whose values do travel, in other spellings.
_ADVICE = {
    "numpy": "send plain arrays and scalars, as numpy.asarray() makes them",
    "pandas": "pandas' own pickles are not read: use state_server.connect() in place "
    "of a client that knows only the standard library",
}
