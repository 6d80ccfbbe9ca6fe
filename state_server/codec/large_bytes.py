"""Large ``bytes``: their memory travels beside the pickle, as that of arrays does.

A pickler writes bytes by itself, asking nobody, and copies them more than once. So
they are put into an envelope before, wherever large ones are: as the value itself, or
in the first few parts of the containers at its top, which is where arguments and
results are. Pickle may not enter.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from ..errors import NotAllowed
from . import wire_names
from .contexts import ENVELOPES_MAX, ReadContext, WriteContext
from .entries import Entry

#: Containers within each other that are looked into, and parts of each: a call's
#: arguments are two deep, and a result may be a dictionary or a list.
_LEVELS = 3
_PARTS_MAX = 8


class Envelope:
    """Stands for large bytes while their value is pickled."""

    __slots__ = ("memory",)

    def __init__(self, memory: bytes) -> None:
        self.memory = memory


class _HoldsItself(Exception):
    """A container is among its own parts."""


def enveloped(value: Any, bytes_min: int) -> Any:
    """Return the value with envelopes around bytes of at least ``bytes_min``.

    Containers that hold some are made anew, each once however often it appears. Where
    there are none, or a container holds itself, the value is returned as it is.
    """
    try:
        return _Wrapping(bytes_min).wrapped(value, _LEVELS)
    except _HoldsItself:
        return value


class _Wrapping:
    """The wrapping of one value: what has become of its containers and large bytes."""

    def __init__(self, bytes_min: int) -> None:
        self._bytes_min = bytes_min
        self._envelopes_left = ENVELOPES_MAX
        self._made: dict[int, Any] = {}

    def wrapped(self, value: Any, levels: int) -> Any:
        """Return a value with its large bytes in envelopes."""
        kind = type(value)
        if kind is bytes:
            return self._envelope(value)
        if kind not in (tuple, list, dict) or not levels or len(value) > _PARTS_MAX:
            return value
        if id(value) not in self._made:
            self._made[id(value)] = _HoldsItself
            self._made[id(value)] = self._made_anew(value, levels - 1)
        elif self._made[id(value)] is _HoldsItself:
            raise _HoldsItself
        return self._made[id(value)]

    def _made_anew(self, value: Any, levels: int) -> Any:
        kind = type(value)
        parts = list(value.values() if kind is dict else value)
        wrapped = [self.wrapped(part, levels) for part in parts]
        if all(map(operator.is_, wrapped, parts)):
            return value
        return dict(zip(value, wrapped, strict=True)) if kind is dict else kind(wrapped)

    def _envelope(self, value: bytes) -> Any:
        if len(value) < self._bytes_min:
            return value
        # Bytes that appear twice have one envelope, and travel once.
        if id(value) not in self._made:
            if not self._envelopes_left:
                return value
            self._envelopes_left -= 1
            self._made[id(value)] = Envelope(value)
        return self._made[id(value)]


def spelling(writer: WriteContext, envelope: Envelope) -> Any:
    """Return how enveloped bytes are spelled."""
    writer.put_aside(memoryview(envelope.memory))
    return large_bytes, ()


def large_bytes(reader: ReadContext, *parts: Any) -> bytes:
    """Make bytes of the next buffer."""
    if parts:
        raise NotAllowed("Large bytes in the pickle have parts.")
    return bytes(reader.next_buffer())


#: The name in pickles, for good: it is not the function's.
_NAMED = {"large_bytes": large_bytes}
wire_names.keep(wire_names.LARGE_BYTES, _NAMED)


def names() -> Iterator[tuple[str, str, Entry]]:
    """Yield the name in pickles that stands for the function of this room."""
    entry = Entry(large_bytes, call=True, bound=True, bare=True, takes_buffer=True)
    yield wire_names.LARGE_BYTES, "large_bytes", entry
