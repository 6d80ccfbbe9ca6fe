"""The user's own classes: which may travel, and how each of them is rebuilt.

A class is judged here once, when it is given to ``allow``. Values, bytes and pickle
may not enter.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Container
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction

from ..errors import full_name
from .entries import ITEMS, MAY, NEVER, NOTHING, PAIRS, Entry

#: What was given to ``allow``: by module and qualified name, and by class.
allowed_names: dict[tuple[str, str], Entry] = {}
allowed_types: dict[type, Entry] = {}

#: Errors that read memory at the position they are given, wherever that is.
POSITIONED_ERRORS: tuple[type, ...] = (
    UnicodeDecodeError,
    UnicodeEncodeError,
    UnicodeTranslateError,
)
#: Types whose own constructors take much time or memory for little, or check nothing.
_COSTLY_BASES = (
    bytes, bytearray, Decimal, Fraction, type, date, time, timedelta,
    *POSITIONED_ERRORS,
)  # fmt: skip
#: Types written in C that are safe to build upon.
_SAFE_BASES = (
    object, list, tuple, dict, set, frozenset, int, float, complex, str,
    OrderedDict, defaultdict, deque, tzinfo,
)  # fmt: skip
#: Packages whose values travel in forms of our own, which subclasses do not have.
_PACKAGES = ("numpy", "pandas")
_CONTAINERS = (list, tuple, dict, set, frozenset, deque)
#: Py_TPFLAGS_IMMUTABLETYPE and Py_TPFLAGS_HEAPTYPE; classes written in Python have
#: only the second.
_IMMUTABLE, _HEAP = 1 << 8, 1 << 9


def reason_against(cls: type, taken: Container[tuple[str, str]]) -> str:
    """Return why a class may never travel, or nothing; some names are taken."""
    if cls.__module__ == "builtins" or (cls.__module__, cls.__qualname__) in taken:
        return "it is a type of the language itself, allowed already or never"
    if "<" in cls.__qualname__:
        return "it is defined inside a function, so the other side cannot name it"
    for base in cls.__mro__:
        if str(base.__module__).partition(".")[0] in _PACKAGES:
            return f"it is built upon {full_name(base)}, which travels plain or never"
        written_in_c = base.__flags__ & (_IMMUTABLE | _HEAP) != _HEAP
        safe = base in _SAFE_BASES or issubclass(base, BaseException)
        if base in _COSTLY_BASES or (written_in_c and not safe):
            return f"it is built upon {full_name(base)}, which checks too little itself"
    if issubclass(cls, BaseException) and not issubclass(cls, Exception):
        return "it would end the receiver"
    return ""


def entry_of(cls: type) -> Entry:
    """Decide from the class how its instances are rebuilt.

    Classes are called only where pickle does so: enums by value, errors by their
    arguments, classes on top of builtin ones, and those that say so themselves.
    """
    is_enum = issubclass(cls, Enum)
    own_reduce = not inherits(cls, object, "__reduce__", "__reduce_ex__")
    grows = NOTHING
    if issubclass(cls, (list, deque)):
        grows = ITEMS
    elif issubclass(cls, dict):
        grows = PAIRS
    return Entry(
        cls,
        call=own_reduce,
        new=not is_enum,
        grows=grows,
        state=NEVER if is_enum else MAY,
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


def inherits(cls: type, base: type, *names: str) -> bool:
    """Tell whether a class has these methods from its base, unchanged."""
    return all(getattr(cls, name) is getattr(base, name) for name in names)
