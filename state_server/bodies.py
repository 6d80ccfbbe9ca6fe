"""A value as it travels: its bytes, and behind them the memory of large arrays.

A body without arrays is what ``codec.encode`` writes. One with arrays begins with a
byte that no pickle begins with:

    offset  size  meaning
    0       1     MARK
    1       4     number of buffers
    5       4     size of the encoded value
    9       9     for each buffer: its size (8), and bytes of nothing before it (1)
                  the encoded value
                  for each buffer: nothing, then its memory

Numbers are in network order. Nothing (zeros) makes the memory of each array begin at a
multiple of 16 in its frame, because arithmetic is slower on memory that does not.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from . import codec
from .errors import NotAllowed, TooLarge
from .messages import Call, Payload, Reference
from .wire import MARK

_HEAD = struct.Struct("!BII")
_BUFFER = struct.Struct("!QB")
_ALIGNMENT = 16
_TEXT = frozenset({str})


def pack(
    value: object, offset: int, *, is_call: bool = False
) -> tuple[bytes, Sequence[Payload]]:
    """Return the body of ``value`` for a frame with ``offset`` bytes before it.

    It comes as bytes, and what follows them: the memory of live arrays, which is not
    copied. ``is_call``: the value is what ``arguments_of`` reads, and an error names
    the argument. Raises what ``codec.encode`` does.
    """
    data, buffers = codec.encode_with_buffers(value, is_call=is_call)
    if not buffers:
        return data, ()
    head_size = _HEAD.size + _BUFFER.size * len(buffers)
    at = offset + head_size + len(data)
    table: list[bytes] = []
    parts: list[Payload] = []
    for buffer in buffers:
        gap = -at % _ALIGNMENT
        table.append(_BUFFER.pack(buffer.nbytes, gap))
        parts += [bytes(gap), buffer.cast("B")] if gap else [buffer.cast("B")]
        at += gap + buffer.nbytes
    head = _HEAD.pack(MARK, len(buffers), len(data))
    return b"".join((head, *table, data)), parts


def unpack(
    body: Payload,
    reference: Callable[[str, str], object] = Reference,
    *,
    read_only: bool = False,
) -> Any:
    """Return the value of a body; its largest array is a view on the body's memory.

    ``reference`` makes a handle of a class name and a key. ``read_only``: no array can
    be written to. Raises ``NotAllowed`` and ``TooLarge`` only.
    """
    if not body or body[0] != MARK:
        return codec.decode(body, reference=reference, read_only=read_only)
    data, buffers = _parts(memoryview(body))
    return codec.decode(data, reference=reference, buffers=buffers, read_only=read_only)


def arguments_of(call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call; raise ``NotAllowed`` when they are not such."""
    if not call.body:
        return (), {}
    decoded: Any = call.body if isinstance(call.body, tuple) else unpack(call.body)
    if type(decoded) is tuple and len(decoded) == 2:
        arguments, keywords = decoded
        if (
            type(arguments) is tuple
            and type(keywords) is dict
            and _TEXT.issuperset(map(type, keywords))
        ):
            return arguments, keywords
    raise NotAllowed("The arguments of a call are a tuple and a dictionary of names.")


def _parts(body: memoryview) -> tuple[bytes, Sequence[memoryview]]:
    try:
        _, count, size = _HEAD.unpack_from(body)
        if count > codec.BUFFERS_MAX:
            raise TooLarge(
                f"A body has {count} buffers; the limit is {codec.BUFFERS_MAX}."
            )
        at = _HEAD.size + _BUFFER.size * count
        if at + size > len(body):
            raise NotAllowed("A body ends before its value.")
        table = list(_BUFFER.iter_unpack(body[_HEAD.size : at]))
    except struct.error as error:
        raise NotAllowed(f"A body could not be read: {error}.") from None
    data = bytes(body[at : at + size])
    at += size
    buffers = []
    for length, gap in table:
        buffer = body[at + gap : at + gap + length]
        # A view keeps the memory of the whole frame: a small array that is kept for
        # long is not to keep the large ones that came with it.
        is_most = 2 * length >= len(body)
        buffers.append(buffer if is_most else memoryview(bytearray(buffer)))
        at += gap + length
    if at != len(body):
        raise NotAllowed("The buffers of a body do not fill it.")
    return data, buffers
