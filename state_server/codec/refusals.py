"""Why a value may not travel: which type it has, where it is, what to do about it.

Used by what says how types are written. Bytes and names in pickles may not enter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

from ..errors import full_name
from .own_classes import reason_against
from .small_pickles import ATOMS

#: What to do about values of packages and their bases, whatever ``allow`` says.
_INSTEAD = {
    **dict.fromkeys(("_io", "tempfile"), "read it first and send what it holds"),
    **dict.fromkeys(("flask", "werkzeug"), "send the plain values you need of it"),
    "state_server": "send a handle (client.get(...)) or plain values",
    **dict.fromkeys(
        (
            "_thread", "threading", "_queue", "queue", "_asyncio", "asyncio",
            "concurrent", "multiprocessing", "subprocess", "_socket", "socket",
            "sqlite3", "_weakref", "weakref", "_contextvars", "contextvars",
        ),
        "it belongs to its process: send plain values instead",
    ),
}  # fmt: skip


class Foreign(Exception):
    """A value of a type that may not travel was met; ``advice`` says what may."""

    def __init__(self, value: object, advice: str = "") -> None:
        super().__init__(value)
        self.value = value
        self.advice = advice


def refusal(
    value: object,
    foreign: Foreign,
    taken: Container[tuple[str, str]],
    *,
    is_call: bool = False,
) -> str:
    """Say which type may not travel, where it is in the value, and what to do.

    ``taken``: the names that ``allow`` takes from nobody. ``is_call``: the value is the
    positional and the named arguments of a call.
    """
    found = foreign.value
    place = _place(_arguments(value) if is_call else {"": value}, found)
    where = f" ({place})" if place else ""
    if foreign.advice:
        kind = _shown(found)
        return f"A value of type {kind} may not travel{where}; {foreign.advice}."
    if isinstance(found, type):
        return (
            f"The class {full_name(found)} is no value{where}; only instances travel."
        )
    cls = type(found)
    kind = cls.__qualname__ if cls.__module__ == "builtins" else full_name(cls)
    advice = _advice(cls, taken)
    return f"A value of type {kind} may not travel{where}; {advice}."


def _advice(cls: type, taken: Container[tuple[str, str]]) -> str:
    """Say what to do about a value of the class: allow it, or send something else."""
    for base in cls.__mro__:
        advice = _INSTEAD.get(str(base.__module__).partition(".")[0])
        if advice and not issubclass(cls, BaseException):
            return advice
    reason = reason_against(cls, taken)
    if not reason:
        return f"call state_server.allow({cls.__qualname__}) on both sides"
    if issubclass(cls, Iterator):
        return "send a list of what it gives"
    if issubclass(cls, Callable):  # type: ignore[arg-type]
        return "send plain values; code belongs into a method of the shared class"
    if cls.__module__ == "builtins":
        return "send plain values instead"
    return f"allow() does not take it, because {reason}: send plain values instead"


def _shown(value: object) -> str:
    """Name the type of a value, and its dtype if it has one."""
    dtype = getattr(value, "dtype", None)
    kind = full_name(type(value))
    return kind if dtype is None else f"{kind} with the dtype {dtype!s:.200}"


def _arguments(value: Any) -> dict[str, object]:
    """Return the arguments of a call by the names that their caller has for them."""
    positional, named = value
    numbered = {f"argument {n}": part for n, part in enumerate(positional, 1)}
    return numbered | {f"argument {name!r:.60}": named[name] for name in named}


def _place(values: dict[str, object], wanted: object) -> str:
    """Say where in the values the wanted object is, as far as it is cheap to see.

    Nothing is said of the only value, which has no name.
    """
    seen: set[int] = set()
    queue = deque((value, name, "") for name, value in values.items())
    while queue and len(seen) < 10_000:
        found, name, place = queue.popleft()
        if found is wanted:
            of_name = f" of {name}" if name else ""
            return f"at value{place}{of_name}" if place else name
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
            queue.append((part, name, f"{place}[{shown}]"))
    return ""
