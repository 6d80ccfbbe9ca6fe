"""Values with large arrays as they travel: sent from where they are, and not copied."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import pytest

from state_server import bodies, codec, wire
from state_server.errors import NotAllowed, TooLarge

numpy = pytest.importorskip("numpy", reason="arrays need numpy")

LARGE = numpy.arange(100_000.0)


def packed(value: object, offset: int = 10) -> bytearray:
    """Return a body in one piece, behind ``offset`` bytes of something else."""
    body, rest = bodies.pack(value, offset)
    return bytearray(b"".join((bytes(offset), body, *rest)))


@pytest.mark.parametrize("value", [None, 7, "text", [1, (2, 3)], {"a": b"b"}])
def test_a_value_without_arrays_is_what_the_codec_writes(value: object) -> None:
    """Nothing is put around it, so small calls stay small."""
    assert bodies.pack(value, 10) == (codec.encode(value), ())
    assert bodies.unpack(codec.encode(value)) == value


def test_large_arrays_are_sent_from_where_they_are() -> None:
    """The parts are views on the array's own memory."""
    _, rest = bodies.pack({"a": LARGE}, 10)
    views = [part for part in rest if isinstance(part, memoryview)]
    assert [view.nbytes for view in views] == [LARGE.nbytes]
    assert numpy.shares_memory(numpy.frombuffer(views[0]), LARGE)


@pytest.mark.parametrize("offset", [0, 1, 10, 38, 77])
def test_a_large_array_is_a_view_on_the_frame_and_well_placed(offset: int) -> None:
    """Whatever stands before it: no copy, and it begins at a multiple of 16."""
    frame = packed([LARGE, "text"], offset)
    found, _ = bodies.unpack(memoryview(frame)[offset:])
    whole = numpy.frombuffer(frame, "u1")
    assert (found == LARGE).all()
    assert numpy.shares_memory(found, whole)
    assert (found.ctypes.data - whole.ctypes.data) % 16 == 0


def test_a_small_array_does_not_keep_the_large_one_beside_it() -> None:
    """Whoever keeps a part of a value keeps the memory of that part alone."""
    value = [LARGE, LARGE[::2].copy(), numpy.arange(70_000, dtype="u1")]
    frame = packed(value)
    whole = numpy.frombuffer(frame, "u1")
    found = bodies.unpack(memoryview(frame)[10:])
    assert all((a == b).all() for a, b in zip(value, found, strict=True))
    assert [numpy.shares_memory(array, whole) for array in found] == [
        True,
        False,
        False,
    ]


def test_buffers_are_counted_before_anything_is_made_of_them() -> None:
    """Seven million buffers of nothing are refused by their number."""
    count = 7_000_000
    body = struct.pack("!BII", wire.MARK, count, 1) + bytes(9 * count + 1)
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="buffers"):
            bodies.unpack(body)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_what_a_client_reads_cannot_be_written_to() -> None:
    """An array of a reply is a view that is read-only; that of a call is not."""
    body = memoryview(packed(LARGE))[10:]
    assert bodies.unpack(body).flags.writeable
    assert not bodies.unpack(body, read_only=True).flags.writeable


def _changed(place: slice, data: bytes) -> bytes:
    body = packed({"a": LARGE, "b": LARGE.copy()}, 0)
    body[place] = data
    return bytes(body)


HOSTILE: dict[str, Any] = {
    "nothing behind the mark": bytes([wire.MARK]),
    "no table": _changed(slice(9, None), b""),
    "cut in the value": _changed(slice(40, None), b""),
    "cut in the first array": _changed(slice(200_000, None), b""),
    "cut by one byte": _changed(slice(-1, None), b""),
    "one byte more": _changed(slice(10**9, None), b"\0"),
    "more buffers than there are": _changed(slice(1, 5), struct.pack("!I", 3)),
    "buffers without end": _changed(slice(1, 5), struct.pack("!I", 2**32 - 1)),
    "one buffer less": _changed(slice(1, 5), struct.pack("!I", 1)),
    "a value larger than all": _changed(slice(5, 9), struct.pack("!I", 2**32 - 1)),
    "a buffer larger than all": _changed(slice(9, 17), struct.pack("!Q", 2**64 - 1)),
    "a smaller buffer": _changed(slice(9, 17), struct.pack("!Q", 8)),
    "buffers of other sizes": _changed(
        slice(9, 27),
        struct.pack("!QBQB", LARGE.nbytes - 8, 0, LARGE.nbytes + 8, 0),
    ),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_a_body_that_contradicts_itself_is_refused(body: bytes) -> None:
    """Every lie about sizes ends in one of two errors."""
    with pytest.raises((NotAllowed, TooLarge)):
        bodies.unpack(body)


def test_buffers_that_nobody_asks_for_are_refused() -> None:
    """A value that uses fewer arrays than came with it is not what a client sends."""
    head = struct.pack("!BII", wire.MARK, 1, len(codec.encode(7)))
    with pytest.raises(NotAllowed):
        bodies.unpack(head + struct.pack("!QB", 8, 0) + codec.encode(7) + bytes(8))
