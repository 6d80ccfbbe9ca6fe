"""Frames as bytes, without a socket."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from state_server import wire
from state_server.errors import NotAllowed, TooLarge
from state_server.messages import Call, Lane
from state_server.wire import FrameReader

LANE = Lane(b"s" * 16, b"l" * 16)


# Frames ------------------------------------------------------------------------------


def frames_in(reader: FrameReader, chunks: list[bytes]) -> list[bytes]:
    """Return the frames that come out when these chunks go in."""
    frames = []
    for chunk in chunks:
        frame = reader.feed(chunk)
        while frame is not None:
            frames.append(frame)
            frame = reader.next() if reader.buffered else None
    return frames


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Return ``data`` in pieces, cut at these places."""
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=8),
    st.lists(st.integers(0, 5000), max_size=20),
)
@example([b"", b"", b"x"], [1, 2, 3, 4, 5])
def test_frames_survive_any_chunking(payloads: list[bytes], places: list[int]) -> None:
    """However the stream is cut, the same frames come out, and nothing is left."""
    stream = b"".join(map(wire.framed, payloads))
    reader = FrameReader(300)

    assert frames_in(reader, cut(stream, places)) == payloads
    assert reader.buffered == 0


def test_stream_of_many_frames_keeps_no_memory() -> None:
    """Bytes of frames that were taken out are let go, even if one is always begun."""
    payload = bytes(40_000)
    stream = wire.framed(payload) * 20
    reader = FrameReader(50_000)
    frames = frames_in(
        reader, [stream[:1_000], *cut(stream[1_000:], [70_001, 400_000])]
    )

    assert frames == [payload] * 20
    assert len(reader._buffer) < 200_000


@pytest.mark.parametrize("long_form", [False, True])
@pytest.mark.parametrize("step", [1, 5, 1000])
def test_both_spellings_of_a_length_are_read(long_form: bool, step: int) -> None:
    """A length of 4 bytes and one of 8 after -1 are the same to us."""
    payload = b"x" * 100
    framed = wire.framed(payload)
    if long_form:
        framed = struct.pack("!iQ", -1, 100) + payload
    chunks = [framed[at : at + step] for at in range(0, len(framed), step)]

    assert frames_in(FrameReader(100), chunks) == [payload]


@pytest.mark.parametrize("size", [-2, -100, -(2**31)])
def test_negative_length_is_not_allowed(size: int) -> None:
    """No frame has a length below zero, but for -1, which announces 8 more bytes."""
    with pytest.raises(NotAllowed, match=str(size)):
        FrameReader(100).feed(struct.pack("!i", size) + b"abcdefghijkl")


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("!i", 101),
        struct.pack("!i", 2**31 - 1),
        struct.pack("!iQ", -1, 101),
        struct.pack("!iQ", -1, 2**40),
        struct.pack("!iQ", -1, 2**64 - 1),
    ],
)
def test_length_above_the_limit_is_too_large_at_once(head: bytes) -> None:
    """A frame over the limit is refused by its head; no byte of it is waited for."""
    reader = FrameReader(100)

    with pytest.raises(TooLarge, match="above the limit of 100"):
        reader.feed(head)


@pytest.mark.parametrize("long_form", [False, True])
@pytest.mark.parametrize("come", [12, 50, 301, 312, 340])
def test_a_frame_that_is_too_large_is_skipped(long_form: bool, come: int) -> None:
    """However much of it is here, and of the next one: how much will come is told."""
    head = struct.pack("!iQ", -1, 300) if long_form else struct.pack("!i", 300)
    stream = wire.framed(b"before") + head + bytes(300) + wire.framed(b"next")
    begin, end = len(wire.framed(b"before")), len(stream) - len(wire.framed(b"next"))
    reader = FrameReader(100)
    assert reader.feed(stream[:begin] + stream[begin:][:come]) == b"before"
    with pytest.raises(TooLarge):
        reader.next()

    rest = reader.skip()
    assert rest == max(0, end - begin - come)
    assert reader.feed(stream[begin + come + rest :]) == b"next"
    assert reader.buffered == 0


def test_promised_length_takes_no_memory() -> None:
    """Memory grows with what has arrived, never with what a length promises."""
    reader = FrameReader(2**40)
    assert reader.feed(struct.pack("!iQ", -1, 2**39)) is None

    assert reader.buffered == 12
    assert len(reader._buffer) == 12


def test_frame_of_exactly_the_limit_is_taken() -> None:
    """The largest frame has exactly ``bytes_max`` bytes, in one piece or in two."""
    framed = wire.framed(b"x" * 100)

    assert FrameReader(100).feed(framed) == b"x" * 100
    assert frames_in(FrameReader(100), cut(framed, [50])) == [b"x" * 100]
    for pieces in ([framed], cut(framed, [50])):
        with pytest.raises(TooLarge):
            frames_in(FrameReader(99), pieces)


@given(
    st.integers(wire.LARGE_BYTES, wire.LARGE_BYTES + 70_000),
    st.lists(st.integers(1, wire.LARGE_BYTES), max_size=6),
    st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_large_frames_survive_any_chunking(
    size: int, steps: list[int], use_room: bool
) -> None:
    """In whatever pieces it comes, and wherever they are put: whole, and then the next.

    Once half of what counts as large has come, the rest goes where the frame stays.
    """
    payload = bytes(range(256)) * (size // 256 + 1)
    stream = memoryview(wire.framed(payload[:size]) + wire.framed(b"next"))
    reader, moved = FrameReader(2**30), False
    found: list[Any] = []
    while stream:
        step = steps.pop() if steps else 300_000
        room = reader.room
        if room is not None and use_room:
            moved = True
            count = min(step, len(room), len(stream))
            room[:count] = stream[:count]
            frame = reader.fill(count)
        else:
            count = min(step, len(stream))
            frame = reader.feed(bytes(stream[:count]))
        stream = stream[count:]
        while frame is not None:
            found.append(frame)
            frame = reader.next()
    assert [bytes(frame) for frame in found] == [payload[:size], b"next"]
    assert reader.buffered == 0
    assert moved or not use_room or size < wire.LARGE_BYTES + 70_001


def test_a_large_frame_is_not_copied_when_it_is_whole() -> None:
    """What is returned is the memory that it was received into."""
    reader = FrameReader(2**30)
    reader.feed(struct.pack("!i", wire.LARGE_BYTES) + bytes(wire.LARGE_BYTES // 2))
    room = reader.room
    assert room is not None
    room[:] = b"\1" * len(room)
    frame = reader.fill(len(room))
    assert frame is not None
    room[-1:] = b"\2"
    assert frame[-1] == 2


def test_no_memory_is_reserved_for_a_promise() -> None:
    """A large frame of which little has come waits in the buffer like any other."""
    reader = FrameReader(2**30)
    reader.feed(struct.pack("!i", wire.LARGE_BYTES) + bytes(1000))
    assert reader.room is None
    assert reader.buffered == 1004


def test_frames_that_were_given_out_take_no_memory() -> None:
    """A reader that waits with the head of a frame does not keep the one before."""
    reader = FrameReader(2**20)
    assert reader.feed(wire.framed(bytes(60_000)) + b"\0") == bytes(60_000)

    assert reader.buffered == 1
    assert len(reader._buffer) < 5000


def test_own_frames_hold_a_value_of_just_the_limit() -> None:
    """An array of 64 MiB is a value of 64 MiB, whatever its names take besides."""
    assert wire.own_frame_bytes_max(64 * 1024**2) > 64 * 1024**2 + 70_000
    assert wire.own_frame_bytes_max(65536) == 65536


def test_buffered_counts_what_waits() -> None:
    """``buffered`` is what has come of a frame that is not whole yet."""
    reader = FrameReader(100)
    framed = wire.framed(b"abc")
    reader.feed(framed + framed[:5])

    assert reader.buffered == 5
    assert reader.feed(framed[5:]) == b"abc"
    assert reader.buffered == 0


def test_large_frames_are_announced_by_eight_bytes() -> None:
    """From 2 GiB on the length has 8 bytes, as the standard library writes it."""

    class Huge(bytes):
        """Claims a length, so that the test needs no memory."""

        def __len__(self) -> int:
            return 2**31

    assert wire.framed(Huge()) == struct.pack("!iQ", -1, 2**31)


# Own frames --------------------------------------------------------------------------

texts = st.text(max_size=60)
numbers = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(
    numbers,
    st.floats(allow_nan=False),
    st.binary(min_size=16, max_size=16),
    texts,
    texts,
    texts,
    st.binary(max_size=50),
)
def test_call_arrives_as_it_was_sent(
    number: int,
    remaining_s: float,
    boot: bytes,
    class_name: str,
    key: str,
    method: str,
    body: bytes,
) -> None:
    """Packing and unpacking a call gives the same call, for any names."""
    target = wire.pack_target(class_name, key, method)
    payload = wire.pack_call(number, remaining_s, boot, target, body)

    assert wire.kind_of(payload) == wire.CALL
    assert wire.unpack_call(payload, LANE) == Call(
        class_name, key, method, body, remaining_s, LANE, number, boot, len(payload)
    )


@given(st.binary(max_size=120))
def test_bytes_that_are_no_call_are_refused(payload: bytes) -> None:
    """Whatever the bytes are, unpacking gives a call or ``NotAllowed``."""
    try:
        call = wire.unpack_call(payload, LANE)
    except NotAllowed:
        return
    assert isinstance(call, Call)


def test_truncated_calls_are_refused() -> None:
    """A call cut off anywhere in its head or its names is not allowed."""
    target = wire.pack_target("Class", "ключ", "method")
    payload = wire.pack_call(1, 2.0, b"b" * 16, target, b"")
    for size in range(len(payload)):
        with pytest.raises(NotAllowed):
            wire.unpack_call(payload[:size], LANE)


def test_names_that_are_no_text_are_refused() -> None:
    """A name that is not UTF-8 is not allowed."""
    target = wire.pack_target("Class", "key", "method")
    payload = wire.pack_call(1, 2.0, b"b" * 16, target, b"")

    with pytest.raises(NotAllowed, match="could not be read"):
        wire.unpack_call(payload.replace(b"key", b"k\xffy"), LANE)


@pytest.mark.parametrize(
    "names",
    [
        ("x" * 256, "k", "m"),
        ("c", "k" * 65536, "m"),
        ("c", "k", "x" * 256),
        ("ж" * 128, "k", "m"),
    ],
)
def test_names_that_do_not_fit_are_too_large(names: tuple[str, str, str]) -> None:
    """A class name and a method have at most 255 bytes, a key 65,535."""
    with pytest.raises(TooLarge, match="at most 255 bytes"):
        wire.pack_target(*names)


def test_longest_names_fit() -> None:
    """Names of exactly the limits travel."""
    names = ("c" * 255, "k" * 65535, "m" * 255)
    payload = wire.pack_call(1, 2.0, b"b" * 16, wire.pack_target(*names), b"body")
    call = wire.unpack_call(payload, LANE)

    assert (call.class_name, call.key, call.method) == names
    assert call.body == b"body"


@given(numbers, st.booleans(), st.binary(max_size=50))
def test_reply_arrives_as_it_was_sent(number: int, failed: bool, body: bytes) -> None:
    """Packing and unpacking a reply gives the same reply."""
    payload = wire.pack_reply(number, failed, body)

    assert wire.kind_of(payload) == (wire.FAILED if failed else wire.DONE)
    assert wire.unpack_reply(payload) == wire.Reply(number, failed, body)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        wire.pack_reply(1, False, b"")[:-1],
        b"\x80" + wire.pack_reply(1, False, b"")[1:],
        wire.pack_call(1, 1.0, b"b" * 16, wire.pack_target("c", "k", "m"), b""),
        bytes((wire.MARK, 99)) + bytes(8),
    ],
)
def test_frames_that_are_no_reply_are_refused(payload: bytes) -> None:
    """Only a whole DONE or FAILED frame is a reply."""
    with pytest.raises(NotAllowed):
        wire.unpack_reply(payload)


HELLO = wire.Hello(1, LANE, b"p" * 32, b"a" * 32)
WELCOME = wire.Welcome(b"b" * 16, 4242, b"p" * 32, True, 2**40)


def test_greetings_arrive_as_they_were_sent() -> None:
    """Packing and unpacking a greeting gives the same greeting."""
    assert wire.unpack_hello(wire.pack_hello(HELLO)) == HELLO
    assert wire.unpack_welcome(wire.pack_welcome(WELCOME)) == WELCOME


@pytest.mark.parametrize("change", [slice(None, -1), slice(None, 2), slice(0, 0)])
def test_greetings_of_another_size_are_refused(change: slice) -> None:
    """A greeting that is cut off, or has something behind it, is not allowed."""
    hello, welcome = wire.pack_hello(HELLO), wire.pack_welcome(WELCOME)
    for payload in (hello[change], hello + b"\0"):
        with pytest.raises(NotAllowed, match="wrong size"):
            wire.unpack_hello(payload)
    for payload in (welcome[change], welcome + b"\0"):
        with pytest.raises(NotAllowed, match="wrong size"):
            wire.unpack_welcome(payload)


@pytest.mark.parametrize("payload", [b"", b"\xf5", b"\x80\x04", b"#CHALLENGE#"])
def test_frames_of_others_have_no_kind(payload: bytes) -> None:
    """A pickle, a handshake or nothing at all is no own frame."""
    assert wire.kind_of(payload) == 0
