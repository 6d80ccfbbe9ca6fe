"""Options of the neighbours' storages, checked where they are given."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from state_server.errors import ConfigError


def text(option: str, value: Any) -> str:
    """Return a text that is not empty; raises ``ConfigError`` naming the option."""
    if not isinstance(value, str) or not value:
        raise ConfigError(
            f"{option} is {value!r:.100}; it is a text that is not empty."
        )
    return value


def seconds(option: str, value: Any, *, above_zero: bool = False) -> float:
    """Return seconds from 0, or above it; raises ``ConfigError`` naming the option."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < float("inf") or (above_zero and value == 0):
        least = "above 0" if above_zero else "from 0"
        raise ConfigError(f"{option} is {value!r:.100}; it is seconds, {least}.")
    return float(value)


def lifetime(option: str, value: Any, error: type[Exception]) -> None:
    """Raise ``error`` for what a value cannot be cached for: no time, not ``None``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and not math.isnan(value):
        return
    if value is not None and not isinstance(value, timedelta):
        raise error(
            f"{option} is {value!r:.100}; it is seconds or a timedelta, and 0 for as "
            "long as there is room."
        )


def refuse_unknown(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``ConfigError`` for the first option that ``owner`` does not have."""
    there = sorted(known)
    for name in sorted(set(given) - set(there)):
        nearest = difflib.get_close_matches(name, there, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"{owner} has no option {name}; did you mean {nearest}? There are "
            f"{', '.join(there)}."
        )
