"""One writing and one reading of a value: its limits, and what is counted meanwhile.

Each belongs to one call of the codec and to the thread that makes it. Pickle, names
and types may not enter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import NotAllowed
from .measures import ValueLimits

#: Less memory stays in the pickle: a buffer beside it costs some microseconds.
BUFFER_BYTES_MIN = 64 * 1024
#: One vectored write takes 1,024 pieces (IOV_MAX of Linux and BSD), the head is one.
BUFFERS_MAX = 1000
#: Of these, so many are kept for large bytes, which cannot go into the pickle.
ENVELOPES_MAX = 24


class WriteContext:
    """One writing of a value.

    ``new_object`` is what pickle takes for the making of a bare instance. ``stock``:
    the reader is a client that knows only the standard library and numpy.
    """

    __slots__ = ("_buffer_bytes_min", "buffers", "limits", "new_object",
                 "range_items", "stock")  # fmt: skip

    def __init__(
        self,
        limits: ValueLimits,
        new_object: Callable[..., object],
        *,
        stock: bool = False,
        buffer_bytes_min: int | None = None,
    ) -> None:
        self.limits = limits
        self.new_object = new_object
        self.stock = stock
        self.range_items = 0
        self.buffers: list[memoryview] = []
        self._buffer_bytes_min = buffer_bytes_min

    def puts_aside(self, memory: memoryview) -> bool:
        """Tell whether the memory goes beside the pickle, and not into it."""
        least, most = self._buffer_bytes_min, BUFFERS_MAX - ENVELOPES_MAX
        if least is None or memory.nbytes < least or len(self.buffers) >= most:
            return False
        self.put_aside(memory)
        return True

    def put_aside(self, memory: memoryview) -> None:
        """Have the memory beside the pickle."""
        self.buffers.append(memory)


class ReadContext:
    """One reading of a pickle.

    ``reference`` makes a handle. ``read_only``: nobody may write into the arrays.
    ``calendar_rows`` counts what was spent on checking the frequencies of dates.
    """

    __slots__ = ("_buffers", "calendar_rows", "limits", "range_items", "read_only",
                 "reference")  # fmt: skip

    def __init__(
        self,
        limits: ValueLimits,
        reference: Callable[[str, str], object],
        buffers: Sequence[memoryview],
        read_only: bool,
    ) -> None:
        self.limits = limits
        self.reference = reference
        self.read_only = read_only
        self.range_items = 0
        self.calendar_rows = 0
        self._buffers = iter(buffers)

    def next_buffer(self) -> Any:
        """Return the next of the buffers that came beside the pickle."""
        for buffer in self._buffers:
            return buffer
        raise NotAllowed("The pickle takes more buffers than came with it.")
