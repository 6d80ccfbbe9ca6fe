"""Options of the neighbours' storages, checked where they are given."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from ..errors import ConfigError

#: What the regions of a manager take as a key (``key_bytes_max``), in bytes of UTF-8;
#: what comes before it; and the characters that stay of a longer one.
KEY_BYTES_MAX = 4096
PREFIX_BYTES_MAX = 1024
_SHOWN = 100


def text(option: str, value: Any) -> str:
    """Return a text that is not empty; raises ``ConfigError`` naming the option."""
    if not isinstance(value, str) or not value:
        raise ConfigError(
            f"{option} is {value!r:.100}; expected text that is not empty."
        )
    return value


def is_number(value: Any) -> bool:
    """Tell whether something is a number: ``True`` and ``False`` are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def seconds(option: str, value: Any, *, above_zero: bool = False) -> float:
    """Return seconds from 0, or above it; raises ``ConfigError`` naming the option."""
    fits = is_number(value) and 0 <= value < float("inf")
    if not fits or (above_zero and value == 0):
        least = "above 0" if above_zero else "from 0"
        raise ConfigError(f"{option} is {value!r:.100}; expected seconds {least}.")
    return float(value)


def lifetime(option: str, value: Any, error: type[Exception]) -> None:
    """Raise ``error`` for what a value cannot be cached for: no time, not ``None``."""
    if is_number(value) and not math.isnan(value):
        return
    if value is not None and not isinstance(value, timedelta):
        raise error(
            f"{option} is {value!r:.100}; expected seconds or a timedelta, and 0 for "
            "as long as there is room."
        )


def bounded_key(key: str, prefix: str = "") -> str:
    """Return ``prefix`` and key; of a long key its beginning and its SHA-256.

    Long is more than ``KEY_BYTES_MAX`` bytes in UTF-8 for both together. Raises
    ``ConfigError`` for a prefix of more than ``PREFIX_BYTES_MAX`` bytes.
    """
    if prefix:
        check_prefix(prefix)
    full = prefix + key
    if 4 * len(full) <= KEY_BYTES_MAX or len(_utf8(full)) <= KEY_BYTES_MAX:
        return full
    return f"{prefix}{key[:_SHOWN]}... sha256:{hashlib.sha256(_utf8(key)).hexdigest()}"


def check_prefix(prefix: str) -> None:
    """Raise ``ConfigError`` for a prefix that leaves too little room for keys."""
    size = len(_utf8(prefix))
    if size > PREFIX_BYTES_MAX:
        raise ConfigError(
            f"key_prefix is {prefix!r:.100}, {size} bytes in UTF-8; it has at most "
            f"{PREFIX_BYTES_MAX}. Take a shorter one."
        )


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def refuse_unknown(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``ConfigError`` for the first option that ``owner`` does not have."""
    there = sorted(known)
    for name in sorted(set(given) - set(there)):
        nearest = difflib.get_close_matches(name, there, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"{owner} has no option {name}; did you mean {nearest}? There are "
            f"{', '.join(there)}."
        )
