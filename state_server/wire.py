"""Frames: what is said on the wire between client and server, as bytes, no sockets.

The wire is that of ``multiprocessing.connection``: a length (4 bytes, signed, network
order; -1 and then 8 bytes for a frame above 2 GiB) and the payload. After the stock
handshake (see ``handshake``) a stock client sends pickles; ours sends frames that begin
with ``MARK``, a byte that no pickle begins with.

    own frame   offset  size  meaning
    every one   0       1     MARK
                1       1     kind
    HELLO       2       2     version of the protocol
                4       16    session
                20      16    lane
                36      32    proof: HMAC-SHA256 of the key over role and both nonces
                68      32    the same of the admin key, or zeros
    WELCOME     2       16    boot id of the manager
                18      8     its process id
                26      32    proof
                58      1     1 when the admin key was shown
                59      8     size of the largest frame that the manager takes
    CALL        2       8     number of the call in its lane
                10      8     seconds left until its deadline (double)
                18      16    boot id of the manager it was first sent to
                34      1     bytes of the class name
                35      2     bytes of the key
                37      1     bytes of the method
                38            class name, key, method (UTF-8), encoded arguments
    DONE        2       8     number of the call; then the encoded value
    FAILED      2       8     number of the call; then the encoded failure
    GOODBYE                   nothing: every reply of this lane has been read
"""

from __future__ import annotations

import functools
import mmap
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from .errors import NotAllowed, TooLarge
from .messages import Call, Lane, Payload

MARK = 0xF5
HELLO, WELCOME, CALL, DONE, FAILED, GOODBYE = range(1, 7)
PROTOCOL_VERSION = 1
#: How every call of our own client begins.
CALL_BEGINS = bytes((MARK, CALL))

_LENGTH = struct.Struct("!i")
_LENGTH_BYTES = _LENGTH.size
_LENGTH_MAX = 0x7FFFFFFF
_LONG_LENGTH = struct.Struct("!Q")
_HELLO = struct.Struct("!BBH16s16s32s32s")
_WELCOME = struct.Struct("!BB16sQ32sBQ")
_CALL_HEAD = struct.Struct("!BBQd16s")
_NAME_SIZES = struct.Struct("!BHB")
_CALL = struct.Struct(_CALL_HEAD.format + _NAME_SIZES.format.lstrip("!"))
_REPLY = struct.Struct("!BBQ")
_REPLY_FRAME = struct.Struct(_LENGTH.format + _REPLY.format.lstrip("!"))

#: Where in a call its target begins (the sizes of the names, and the names); where in a
#: call, and in a target, the names themselves do.
_TARGET_AT = _CALL_HEAD.size
_NAMES_AT = _CALL.size
_NAMES_AT_IN_TARGET = _NAME_SIZES.size

#: How many bytes of a reply stand before its value, and how many of one in a frame.
REPLY_HEAD_BYTES = _REPLY.size
_REPLY_FRAME_HEAD_BYTES = _REPLY_FRAME.size


# Frames ------------------------------------------------------------------------------


def framed(payload: Payload) -> bytes:
    """Return ``payload`` with its length in front."""
    size = len(payload)
    if size <= _LENGTH_MAX:
        return _LENGTH.pack(size) + payload
    return frame_head(size) + payload


def frame_head(size: int) -> bytes:
    """Return what stands in front of a payload of ``size`` bytes."""
    if size <= _LENGTH_MAX:
        return _LENGTH.pack(size)
    return _LENGTH.pack(-1) + _LONG_LENGTH.pack(size)


def whole_payload(data: bytes, bytes_max: int) -> bytes | None:
    """Return the payload if ``data`` is exactly one frame of at most ``bytes_max``.

    This is the common case, and needs no ``FrameReader``.
    """
    if len(data) < _LENGTH_BYTES:
        return None
    (size,) = _LENGTH.unpack_from(data)
    is_whole = 0 <= size == len(data) - _LENGTH_BYTES
    return data[_LENGTH_BYTES:] if is_whole and size <= bytes_max else None


#: A frame of this size or more is received into memory of its own, where it stays,
#: once half of this has come: a promise alone costs nothing.
LARGE_BYTES = 2 * 1024 * 1024

#: What a reader keeps of frames that it has given out already; nobody counts it.
_CONSUMED_BYTES_MAX = 4096

#: What our own frame of a large value may have besides the value: names, sizes.
_NAMES_BYTES_MAX = 128 * 1024


class FrameReader:
    """Cuts a stream of bytes into frames. Owned by one thread at a time.

    Memory grows with what has arrived, never with what a length promises: that of a
    large frame is reserved, but the system gives it only as it is written to.
    """

    __slots__ = ("_buffer", "_large", "_received", "_start", "bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._buffer = bytearray()
        self._start = 0
        self._large: memoryview | None = None
        self._received = 0

    @property
    def buffered(self) -> int:
        """Return the number of bytes that wait for the rest of their frame."""
        return len(self._buffer) - self._start + self._received

    @property
    def room(self) -> memoryview | None:
        """Return where the rest of a large frame goes, while one is on its way."""
        return None if self._large is None else self._large[self._received :]

    def fill(self, count: int) -> memoryview | None:
        """Note that ``count`` bytes came into the room; return the frame if whole."""
        large = self._large
        assert large is not None
        self._received += count
        if self._received < len(large):
            return None
        self._large, self._received = None, 0
        return large

    def feed(self, data: bytes) -> Payload | None:
        """Take in ``data``; return the next whole frame, or ``None``.

        Raises ``TooLarge`` for a frame above ``bytes_max`` and ``NotAllowed`` for a
        length that no frame has.
        """
        room = self.room
        if room is not None:
            taken = min(len(data), len(room))
            room[:taken] = data[:taken]
            self._buffer += data[taken:]
            return self.fill(taken)
        self._buffer += data
        return self.next()

    def next(self) -> Payload | None:
        """Return the next frame that is already here whole, or ``None``."""
        available = len(self._buffer) - self._start
        if available < _LENGTH_BYTES:
            return None
        head = _LENGTH_BYTES
        (size,) = _LENGTH.unpack_from(self._buffer, self._start)
        if size == -1:
            head += _LONG_LENGTH.size
            if available < head:
                return None
            (size,) = _LONG_LENGTH.unpack_from(
                self._buffer, self._start + _LENGTH_BYTES
            )
        if size < 0:
            raise NotAllowed(f"A frame cannot have the length {size}.")
        if size > self.bytes_max:
            raise TooLarge(
                f"A frame of {size} bytes is above the limit of {self.bytes_max}."
            )
        end = self._start + head + size
        if len(self._buffer) < end:
            if size >= LARGE_BYTES and available - head >= LARGE_BYTES // 2:
                self._move_to_room(size, self._start + head)
            return None
        payload = bytes(memoryview(self._buffer)[self._start + head : end])
        self._start = end
        if self._start == len(self._buffer):
            self._buffer = bytearray()
            self._start = 0
        elif self._start > _CONSUMED_BYTES_MAX:
            del self._buffer[: self._start]
            self._start = 0
        return payload

    def skip(self) -> int:
        """Leave out a frame that was too large; return how much of it is still to come.

        Called after ``next`` has said so, for a frame that begins what is here.
        """
        head, (size,) = _LENGTH_BYTES, _LENGTH.unpack_from(self._buffer, self._start)
        if size == -1:
            head += _LONG_LENGTH.size
            (size,) = _LONG_LENGTH.unpack_from(
                self._buffer, self._start + _LENGTH_BYTES
            )
        end = self._start + head + size
        rest: int = end - len(self._buffer)
        del self._buffer[:end]
        self._start = 0
        return max(0, rest)

    def _move_to_room(self, size: int, begin: int) -> None:
        """Have the rest of a large frame received where it stays."""
        try:
            self._large = _reserved(size)
        except (OSError, OverflowError):
            # There is not so much: it grows in the buffer, and may be all that came.
            return
        self._received = len(self._buffer) - begin
        self._large[: self._received] = memoryview(self._buffer)[begin:]
        self._buffer = bytearray()
        self._start = 0


def _reserved(size: int) -> memoryview:
    """Return private memory that takes up none before it is written to.

    In large pages where the system has them: to be given a small one, 16,000 times for
    64 MB, takes as long as to fill them all. Raises ``OSError``, ``OverflowError``.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):
        return memoryview(mmap.mmap(-1, size))
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            # A system without them gives small ones.
            pass
    return memoryview(memory)


def _joined(head: bytes, parts: Sequence[Payload]) -> Payload:
    """Return the parts of a frame as one, copied once."""
    size = len(head) + sum(map(len, parts))
    if size < LARGE_BYTES:
        return b"".join((head, *parts))
    try:
        whole = _reserved(size)
    except (OSError, OverflowError):
        return b"".join((head, *parts))
    at = 0
    for part in (head, *parts):
        whole[at : at + len(part)] = part
        at += len(part)
    return whole


def own_frame_bytes_max(value_bytes_max: int) -> int:
    """Return the limit of our own frames where values are limited to so many bytes.

    A value of just the limit, say an array of 64 MiB, fits in.
    """
    if value_bytes_max < LARGE_BYTES:
        return value_bytes_max
    return value_bytes_max + _NAMES_BYTES_MAX


# Our own frames ----------------------------------------------------------------------


class Hello(NamedTuple):
    """The first own frame of a client."""

    version: int
    lane: Lane
    proof: bytes
    admin_proof: bytes


class Welcome(NamedTuple):
    """The first own frame of a server."""

    boot_id: bytes
    process_id: int
    proof: bytes
    is_admin: bool
    frame_bytes_max: int = 2**63


class Reply(NamedTuple):
    """A reply as it arrives: ``body`` is the encoded value or the encoded failure."""

    number: int
    failed: bool
    body: Payload


def kind_of(payload: Payload) -> int:
    """Return the kind of an own frame, or 0 for a frame of a stock peer."""
    if len(payload) >= 2 and payload[0] == MARK:
        return payload[1]
    return 0


def pack_hello(hello: Hello) -> bytes:
    """Return the bytes of ``hello``."""
    session, lane = hello.lane
    return _HELLO.pack(
        MARK, HELLO, hello.version, session, lane, hello.proof, hello.admin_proof
    )


def unpack_hello(payload: Payload) -> Hello:
    """Return the ``Hello`` in ``payload``; raise ``NotAllowed`` if there is none."""
    _, _, version, session, lane, proof, admin = _unpacked(_HELLO, payload)
    return Hello(version, Lane(session, lane), proof, admin)


def pack_welcome(welcome: Welcome) -> bytes:
    """Return the bytes of ``welcome``."""
    return _WELCOME.pack(MARK, WELCOME, *welcome)


def unpack_welcome(payload: Payload) -> Welcome:
    """Return the ``Welcome`` in ``payload``; raise ``NotAllowed`` if there is none."""
    _, _, boot_id, process_id, proof, is_admin, size = _unpacked(_WELCOME, payload)
    return Welcome(boot_id, process_id, proof, bool(is_admin), size)


@functools.lru_cache(maxsize=256)
def pack_target(class_name: str, key: str, method: str) -> bytes:
    """Return what names a method in a call: the three lengths and the three texts.

    The last few are kept. Raises ``TooLarge`` for a name above 255 bytes or a key above
    65,535.
    """
    try:
        name, text, verb = class_name.encode(), key.encode(), method.encode()
    except UnicodeEncodeError as error:
        raise NotAllowed(f"A name or key cannot be sent: {error}.") from None
    if len(name) > 255 or len(verb) > 255 or len(text) > 65535:
        raise TooLarge(
            "A class name and a method have at most 255 bytes, a key 65,535; got "
            f"{len(name)}, {len(verb)} and {len(text)}."
        )
    return _NAME_SIZES.pack(len(name), len(text), len(verb)) + name + text + verb


def pack_call(
    number: int, remaining_s: float, first_boot: bytes, target: bytes, body: bytes
) -> bytes:
    """Return the bytes of a call; ``target`` comes from ``pack_target``."""
    head = _CALL_HEAD.pack(MARK, CALL, number, remaining_s, first_boot)
    return b"".join((head, target, body))


def call_head_bytes(target: bytes) -> int:
    """Return how many bytes of a call stand before its arguments."""
    return _CALL_HEAD.size + len(target)


def unpack_call(payload: Payload, lane: Lane) -> Call:
    """Return the ``Call`` in ``payload``; raise ``NotAllowed`` if there is none."""
    try:
        _, _, number, remaining_s, boot, name_size, key_size, method_size = (
            _CALL.unpack_from(payload)
        )
        body_at = _NAMES_AT + name_size + key_size + method_size
        if body_at > len(payload):
            raise NotAllowed("A call ends in the middle of a name.")
        names_of = _names_kept if body_at <= _NAMES_KEPT_TO else _names
        names = names_of(bytes(payload[_TARGET_AT:body_at]))
        body, size = payload[body_at:], len(payload)
        fields = (*names, body, remaining_s, lane, number, boot, size)
        # As Call(*fields) does, in a third of the time.
        return tuple.__new__(Call, fields)
    except (struct.error, UnicodeDecodeError) as error:
        raise NotAllowed(f"A call could not be read: {error}.") from None


def _names(target: bytes) -> tuple[str, str, str]:
    """Return class name, key and method; ``target`` begins with their lengths."""
    name_size, key_size, _ = _NAME_SIZES.unpack_from(target)
    key_at = _NAMES_AT_IN_TARGET + name_size
    method_at = key_at + key_size
    return (
        str(target[_NAMES_AT_IN_TARGET:key_at], "utf-8"),
        str(target[key_at:method_at], "utf-8"),
        str(target[method_at:], "utf-8"),
    )


#: The last few short ones, whose calls have their names before this offset: most calls
#: name what was named before.
_NAMES_KEPT_TO = 256
_names_kept = functools.lru_cache(maxsize=1024)(_names)


def pack_reply(number: int, failed: bool, body: bytes) -> bytes:
    """Return the bytes of a reply."""
    return _REPLY.pack(MARK, FAILED if failed else DONE, number) + body


def pack_parts(number: int, body: bytes, rest: Sequence[Payload]) -> Payload:
    """Return the bytes of a reply whose value comes in several parts: a copy of all."""
    return _joined(_REPLY.pack(MARK, DONE, number) + body, rest)


def whole_reply(data: bytes) -> Reply | None:
    """Return the reply if ``data`` is one small frame, whole and alone."""
    if len(data) < _REPLY_FRAME_HEAD_BYTES:
        return None
    size, mark, kind, number = _REPLY_FRAME.unpack_from(data)
    if size != len(data) - _LENGTH_BYTES or mark != MARK or not DONE <= kind <= FAILED:
        return None
    # As Reply(…) does, in a third of the time.
    body = data[_REPLY_FRAME_HEAD_BYTES:]
    return tuple.__new__(Reply, (number, kind == FAILED, body))


def unpack_reply(payload: Payload) -> Reply:
    """Return the ``Reply`` in ``payload``; raise ``NotAllowed`` if there is none."""
    try:
        mark, kind, number = _REPLY.unpack_from(payload)
    except struct.error:
        raise NotAllowed("A reply is shorter than its head.") from None
    if mark != MARK or kind not in (DONE, FAILED):
        raise NotAllowed("A frame came where a reply was expected.")
    return Reply(number, kind == FAILED, payload[REPLY_HEAD_BYTES:])


GOODBYE_FRAME = framed(bytes((MARK, GOODBYE)))


def _unpacked(layout: struct.Struct, payload: Payload) -> tuple[Any, ...]:
    try:
        return layout.unpack(payload)
    except struct.error as error:
        raise NotAllowed(f"An own frame has the wrong size: {error}.") from None
