"""Why a value may not travel: which type it has, where it is, what to do about it.

Used by what says how types are written. Bytes and names in pickles may not enter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from .entries import full_name
from .small_pickles import ATOMS


class Foreign(Exception):
    """A value of a type that may not travel was met; ``advice`` says what may."""

    def __init__(self, value: object, advice: str = "") -> None:
        super().__init__(value)
        self.value = value
        self.advice = advice


def refusal(value: object, foreign: Foreign) -> str:
    """Say which type may not travel, where it is in the value, and what to do."""
    found = foreign.value
    place = _place(value, found)
    where = f" (at value{place})" if place else ""
    if foreign.advice:
        kind = _shown(found)
        return f"A value of type {kind} may not travel{where}; {foreign.advice}."
    if isinstance(found, type):
        return (
            f"The class {full_name(found)} is no value{where}; only instances travel."
        )
    cls = type(found)
    if cls.__module__ == "builtins":
        return f"A value of type {cls.__qualname__} may not travel{where}."
    return (
        f"A value of type {full_name(cls)} may not travel{where}; "
        f"call state_server.allow({cls.__qualname__}) on both sides."
    )


def _shown(value: object) -> str:
    """Name the type of a value, and its dtype if it has one."""
    dtype = getattr(value, "dtype", None)
    kind = full_name(type(value))
    return kind if dtype is None else f"{kind} with the dtype {dtype!s:.200}"


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
