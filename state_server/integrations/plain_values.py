"""Values of classes that may not travel, as Flask's own session would keep them.

Flask writes JSON, which looks at what a class is built upon: a token that is a kind of
dictionary is written as a dictionary. Apps and extensions rely on that.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from markupsafe import Markup

from ..codec import may_travel

# Not by the name of the class: libraries of tests put another one in its place.
_show, _read = datetime.isoformat, datetime.fromisoformat

#: How an instance of a class that is built upon one of these becomes one of it.
_UPON: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (bytes, b"".__add__),
    (int, int.__int__),
    (float, float.__float__),
    (datetime, lambda value: _read(_show(value))),
)


def plain(value: object) -> object:
    """Return the value, with what may not travel replaced by what it is built upon.

    That is a dictionary, list, tuple, text, bytes, number or datetime; and ``Markup``
    for what has ``__html__``, such as texts that are translated late. Looks into
    dictionaries, lists and tuples. What it cannot replace it leaves as it is.
    """
    try:
        return _plain(value, {})
    except RecursionError:
        # It is nested deeper than any value may be, which its encoder says.
        return value


def _plain(value: Any, made: dict[int, tuple[Any, Any]]) -> Any:
    """Return the value replaced.

    ``made`` holds the containers so far, each with what became of it: what is shared is
    replaced once, or tuples within tuples would take twice as long at each level.
    """
    kind = type(value)
    if kind not in (dict, list, tuple) and may_travel(kind):
        return value
    if id(value) in made:
        return made[id(value)][1]
    if isinstance(value, dict):
        pairs: dict[Any, Any] = {}
        made[id(value)] = value, pairs
        for key, item in value.items():
            pairs[_plain(key, made)] = _plain(item, made)
        return pairs
    if isinstance(value, list):
        items: list[Any] = []
        made[id(value)] = value, items
        items.extend(_plain(item, made) for item in value)
        return items
    if isinstance(value, tuple):
        parts = tuple(_plain(item, made) for item in value)
        made[id(value)] = value, parts
        return parts
    if callable(getattr(kind, "__html__", None)):
        return Markup(value.__html__())
    for base, convert in _UPON:
        if issubclass(kind, base):
            return convert(value)
    return value
