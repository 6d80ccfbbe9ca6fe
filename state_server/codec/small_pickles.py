"""Small pickles: one regular expression knows them whole, so that they need no walk.

Most calls and replies are small. This room only tells which values and pickles are;
it neither writes nor reads them. Pickle, names and the walk may not enter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from .measures import DEFAULT_LIMITS, FLAT_SIZE, ValueLimits

_TINY_BYTES = 512
#: Parts of one small container.
_PARTS_MAX = 8
_CONTAINERS = frozenset({tuple, dict, list})
#: Fewer bytes than those of an int with too many digits.
SMALL_BYTES_MAX = 1024
#: Longest text or bytes in a small pickle: a digest in hexadecimal digits.
_TEXT_BYTES_MAX = 64
_NUMBERS = frozenset({type(None), bool, int, float})
ATOMS = _NUMBERS | {str, bytes}


def is_small(value: Any, levels: int = 3) -> bool:
    """Tell whether the value is an atom, or a few of them in a few containers.

    Pickle runs no foreign code for such a value, and its pickle reaches no limit if it
    has at most ``SMALL_BYTES_MAX`` bytes. ``levels``: containers within each other.
    """
    kind = type(value)
    if kind in _NUMBERS:
        return True
    if kind is str or kind is bytes:
        return len(value) <= SMALL_BYTES_MAX
    if kind not in _CONTAINERS or not levels or len(value) > _PARTS_MAX:
        return False
    if kind is dict:
        if not ATOMS.issuperset(map(type, value)):
            return False
        value = value.values()
    for part in value:
        if type(part) not in _NUMBERS and not is_small(part, levels - 1):
            return False
    return True


def _tiny_pattern() -> bytes:
    """Spell the grammar of small pickles: scalars in at most two levels of containers.

    In the arguments of a call, of which there are four at least, in three. Every match
    is a complete, well-formed pickle without names and without memo references, so it
    needs no walk. Text is spelled out by length, because a regular expression cannot
    count.
    """
    counted = b"|".join(
        re.escape(bytes([n])) + b".{%d}" % n for n in range(_TEXT_BYTES_MAX + 1)
    )
    scalar = (
        b"(?:[N\x88\x89]|K.|M..|J.{4}|G.{8}"
        b"|\x8a(?:\x05.{5}|\x06.{6}|\x07.{7}|\x08.{8})"
        b"|[\x8cC](?:%s)\x94?)" % counted
    )
    flat = (
        b"(?:S(?:\x85\x94|S(?:\x86\x94|S\x87\x94))?|\\)|\\(S{4,}t\x94"
        b"|\\]\x94(?:Sa|\\(S+e)?|\\}\x94(?:SSs|\\((?:SS)+u)?)"
    ).replace(b"S", scalar)
    whole = (
        b"\x80[\x02-\x05](?:\x95.{8})?"
        b"(?:B(?:|\x85\x94|B(?:\x86\x94|B\x87\x94))|\\(B{4,}t\x94(?:B\x86\x94)?)\\."
    )
    return whole.replace(b"B", flat)


def _match_first(data: bytes | memoryview) -> object:
    """Compile the grammar, which takes long, when the first small pickle is there.

    One thread does so; the others walk meanwhile, because all of them would be at it
    for as long as it takes once for each. From then on the name stands for the matcher
    itself: the quick path pays nothing.
    """
    global _match_tiny
    _match_tiny = _match_none
    try:
        _match_tiny = re.compile(_tiny_pattern(), re.DOTALL).fullmatch
    finally:
        if _match_tiny is _match_none:
            # A signal handler has raised an error.
            _match_tiny = _match_first
    return _match_tiny(data)


def _match_none(_data: bytes | memoryview) -> object:
    """Know no pickle, so that each is walked over."""
    return None


def _after_fork_in_child() -> None:
    """Begin anew where the thread that was to compile is the parent's."""
    global _match_tiny
    if _match_tiny is _match_none:
        _match_tiny = _match_first


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

_match_tiny: Callable[[bytes | memoryview], object] = _match_first


def is_tiny(data: bytes | memoryview, limits: ValueLimits) -> bool:
    """Tell whether a pickle is small and known whole, so that it needs no walk."""
    if len(data) > _TINY_BYTES or _match_tiny(data) is None:
        return False
    # No small pickle reaches the usual limits; unusually tight ones want the walk.
    return limits is DEFAULT_LIMITS or (
        limits.nodes_max >= _TINY_BYTES
        and limits.depth_max >= 3
        and limits.expanded_bytes_max >= _TINY_BYTES * FLAT_SIZE
        and limits.digits_max >= 20
    )
