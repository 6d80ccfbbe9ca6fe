"""Frames, addresses and the handshake, as bytes, without a socket."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
import struct
from collections import deque
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing import connection as stock_connection
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from state_server import wire
from state_server.errors import (
    ConfigError,
    Denied,
    NotAllowed,
    StateServerError,
    TooLarge,
)
from state_server.messages import Call, Lane
from state_server.wire import Address, ClientHandshake, FrameReader, ServerHandshake

KEY = b"the key of both"
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


# Handshake ---------------------------------------------------------------------------


class Wire:
    """Stands between a stock peer and our side of the handshake: no socket, no thread.

    The stock functions send and receive on it; what they send is given to our side at
    once, and what that answers waits to be received.
    """

    def __init__(self, ours: Callable[[bytes], list[bytes]], *opening: bytes) -> None:
        self.ours = ours
        self.waiting = deque(opening)
        self.error: StateServerError | None = None

    def send_bytes(self, payload: bytes) -> None:
        """Give one payload to our side."""
        try:
            self.waiting.extend(self.ours(payload))
        except StateServerError as error:
            self.error = self.error or error
            self.waiting.append(wire.REJECTED)

    def recv_bytes(self, _: int = 0) -> bytes:
        """Return the next payload of our side."""
        if not self.waiting:
            raise EOFError
        return self.waiting.popleft()


def server_wire(server: ServerHandshake, finished: list[bool]) -> Wire:
    """Return the wire on which a stock client finds ``server``."""

    def ours(payload: bytes) -> list[bytes]:
        answer, done = server.receive(payload)
        finished.append(done)
        return [answer] if answer else []

    return Wire(ours, server.first())


# How CPython 3.12 and newer do it, in Lib/multiprocessing/connection.py, and how 3.10
# and 3.11 did. The interpreter that runs the tests has one of the two.


def new_answer(peer: Any, key: bytes) -> None:
    """Answer a challenge as 3.12 and newer do."""
    message = peer.recv_bytes(256)
    assert message.startswith(b"#CHALLENGE#")
    message = message[len(b"#CHALLENGE#") :]
    if len(message) == 20:
        digest = hmac.new(key, message, "md5").digest()
    else:
        assert message.startswith(b"{sha256}")
        digest = b"{sha256}" + hmac.new(key, message, hashlib.sha256).digest()
    peer.send_bytes(digest)
    if peer.recv_bytes(256) != b"#WELCOME#":
        raise AuthenticationError("digest sent was rejected")


def new_deliver(peer: Any, key: bytes, digest_name: str = "sha256") -> None:
    """Deliver a challenge as 3.12 and newer do."""
    message = b"{%s}" % digest_name.encode() + os.urandom(40)
    peer.send_bytes(b"#CHALLENGE#" + message)
    response = peer.recv_bytes(256)
    right = (
        b"{%s}" % digest_name.encode() + hmac.new(key, message, digest_name).digest()
    )
    if not hmac.compare_digest(right, response):
        peer.send_bytes(b"#FAILURE#")
        raise AuthenticationError("digest received was wrong")
    peer.send_bytes(b"#WELCOME#")


def old_answer(peer: Any, key: bytes) -> None:
    """Answer a challenge as 3.10 and 3.11 do."""
    message = peer.recv_bytes(256)
    assert message.startswith(b"#CHALLENGE#")
    peer.send_bytes(hmac.new(key, message[len(b"#CHALLENGE#") :], "md5").digest())
    if peer.recv_bytes(256) != b"#WELCOME#":
        raise AuthenticationError("digest sent was rejected")


def old_deliver(peer: Any, key: bytes) -> None:
    """Deliver a challenge as 3.10 and 3.11 do."""
    message = os.urandom(20)
    peer.send_bytes(b"#CHALLENGE#" + message)
    if peer.recv_bytes(256) != hmac.new(key, message, "md5").digest():
        peer.send_bytes(b"#FAILURE#")
        raise AuthenticationError("digest received was wrong")
    peer.send_bytes(b"#WELCOME#")


THIS = (stock_connection.answer_challenge, stock_connection.deliver_challenge)
OLD = (old_answer, old_deliver)
NEW = (new_answer, new_deliver)
THIS_IS_OLD = not hasattr(stock_connection, "_create_response")
PEERS = pytest.mark.parametrize(
    ("peer", "is_old"),
    [(THIS, THIS_IS_OLD), (OLD, True), (NEW, False)],
    ids=["this interpreter", "3.10 and 3.11", "3.12 and newer"],
)
Peer = tuple[Callable[..., None], Callable[..., None]]


@PEERS
def test_stock_clients_shake_hands_with_our_server(peer: Peer, is_old: bool) -> None:
    """Each release's client is accepted, and accepts us."""
    finished: list[bool] = []
    server = ServerHandshake(KEY, allow_md5=True)
    line = server_wire(server, finished)
    peer[0](line, KEY)
    peer[1](line, KEY)

    assert finished == [False, False, True]
    assert not line.waiting
    assert server.bare == is_old


@PEERS
def test_stock_client_with_another_key_is_rejected(peer: Peer, is_old: bool) -> None:
    """A wrong answer is Denied, and the client is told so in its language."""
    line = server_wire(ServerHandshake(KEY, allow_md5=True), [])

    with pytest.raises(AuthenticationError, match="rejected"):
        peer[0](line, b"another key")
    assert isinstance(line.error, Denied)


@PEERS
def test_md5_answers_can_be_switched_off(peer: Peer, is_old: bool) -> None:
    """Without ``allow_md5`` the old releases are denied, the new ones are not."""
    line = server_wire(ServerHandshake(KEY, allow_md5=False), [])
    if not is_old:
        peer[0](line, KEY)
        peer[1](line, KEY)
        return

    with pytest.raises(AuthenticationError, match="rejected"):
        peer[0](line, KEY)
    assert "MD5 is switched off" in str(line.error)


def test_md5_answer_is_given_to_those_only_who_gave_one() -> None:
    """Who has shown SHA-256 gets no weaker answer out of us."""
    line = server_wire(ServerHandshake(KEY, allow_md5=True), [])
    new_answer(line, KEY)

    with pytest.raises(AuthenticationError):
        old_deliver(line, KEY)
    assert isinstance(line.error, Denied)


@pytest.mark.parametrize("digest_name", ["md5", "sha1", "sha512"])
def test_digests_other_than_sha256_are_denied(digest_name: str) -> None:
    """A challenge that names another digest is not answered."""
    line = server_wire(ServerHandshake(KEY, allow_md5=True), [])
    new_answer(line, KEY)

    with pytest.raises(AuthenticationError):
        new_deliver(line, KEY, digest_name)
    assert "other than sha256" in str(line.error)


def start_of_server(allow_md5: bool = True) -> tuple[ServerHandshake, bytes]:
    """Return a server and what it has sent first."""
    server = ServerHandshake(KEY, allow_md5)
    return server, server.first()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"x",
        bytes(16),
        bytes(32),
        b"{sha256}" + bytes(32),
        b"{md5}" + bytes(16),
        b"#WELCOME#",
        b"\x80\x04N.",
    ],
)
def test_answers_that_are_no_answer_are_denied(answer: bytes) -> None:
    """Whatever stands in place of the answer, it is Denied, never another error."""
    server, _ = start_of_server()

    with pytest.raises(Denied):
        server.receive(answer)


def test_answer_without_its_digest_name_is_denied() -> None:
    """The bare HMAC-SHA256 is no spelling that any client uses."""
    server, first = start_of_server()
    message = first.removeprefix(wire.CHALLENGE)

    with pytest.raises(Denied):
        server.receive(hmac.new(KEY, message, "sha256").digest())


@pytest.mark.parametrize(
    "challenge",
    [
        b"",
        b"#CHALLENGE#",
        b"#CHALLENGE#" + bytes(19),
        b"no challenge at all, but long enough",
        b"#CHALLENGE#" + bytes(40),
    ],
)
def test_challenges_that_are_no_challenge_are_denied(challenge: bytes) -> None:
    """Too short, unnamed or missing: the server answers no such challenge."""
    server, first = start_of_server()
    message = first.removeprefix(wire.CHALLENGE)
    server.receive(b"{sha256}" + hmac.new(KEY, message, "sha256").digest())

    with pytest.raises(Denied):
        server.receive(challenge)


def test_client_that_does_not_accept_the_server_is_denied() -> None:
    """The handshake ends only with the client's word of acceptance."""
    server, client = ServerHandshake(KEY, True), ClientHandshake(KEY)
    (answer,), _ = client.receive(server.first())
    accepted, _ = server.receive(answer)
    (challenge,), _ = client.receive(accepted)
    server.receive(challenge)

    with pytest.raises(Denied, match="did not accept"):
        server.receive(wire.REJECTED)


def test_our_client_and_our_server_agree() -> None:
    """Both sides finish, and both hold the nonces of both."""
    server, client = ServerHandshake(KEY, False), ClientHandshake(KEY)
    to_server, from_server = shake(client, server)

    assert (to_server, from_server) == (3, 3)
    assert client.nonces == server.nonces
    assert all(len(nonce) == 48 for nonce in server.nonces)
    assert not server.bare


def shake(client: ClientHandshake, server: ServerHandshake) -> tuple[int, int]:
    """Lead both sides through the handshake; return how much each has sent."""
    to_client = deque([server.first()])
    sent, received, done = 0, 1, False
    while to_client:
        answers, _ = client.receive(to_client.popleft())
        for answer in answers:
            sent += 1
            reply, done = server.receive(answer)
            if reply:
                received += 1
                to_client.append(reply)
    assert done
    return sent, received


def test_our_client_with_another_key_is_told() -> None:
    """A rejected key is Denied at the client, with both possible reasons named."""
    client = ClientHandshake(b"another")
    client.receive(ServerHandshake(KEY, True).first())

    with pytest.raises(Denied, match="different ones"):
        client.receive(wire.REJECTED)


def test_our_client_denies_a_server_without_the_key() -> None:
    """A server that accepts everybody, and knows nothing, is found out."""
    client = ClientHandshake(KEY)
    client.receive(ServerHandshake(KEY, True).first())
    client.receive(wire.ACCEPTED)

    with pytest.raises(Denied, match="does not know the key"):
        client.receive(b"{sha256}" + bytes(32))


@pytest.mark.parametrize(
    ("challenge", "reason"),
    [
        (b"#CHALLENGE#" + bytes(20), "weaker"),
        (b"#CHALLENGE#" + bytes(40), "weaker"),
        (b"#CHALLENGE#{md5}" + bytes(40), "weaker"),
        (b"#CHALLENGE#{sha256}", "weaker"),
        (b"#CHALLENGE#{sha256}" + bytes(19), "weaker"),
        (b"HTTP/1.1 400 Bad Request", "no challenge"),
        (b"", "no challenge"),
    ],
)
def test_our_client_answers_strong_challenges_only(
    challenge: bytes, reason: str
) -> None:
    """An unnamed, short or foreign challenge gets no answer made with our key."""
    with pytest.raises(Denied, match=reason):
        ClientHandshake(KEY).receive(challenge)


def test_our_client_takes_part_with_a_stock_server_of_today() -> None:
    """Against 3.12 and newer the handshake works; what follows is another matter."""
    client = ClientHandshake(KEY)
    finished: list[bool] = []

    def ours(payload: bytes) -> list[bytes]:
        answers, done = client.receive(payload)
        finished.append(done)
        return answers

    line = Wire(ours)
    new_deliver(line, KEY)
    new_answer(line, KEY)
    assert finished == [False, False, True]


def test_challenges_are_never_the_same() -> None:
    """Each handshake has nonces of its own."""
    firsts = {ServerHandshake(KEY, True).first() for _ in range(50)}
    nonces = {ClientHandshake(KEY).nonces[1] for _ in range(50)}

    assert (len(firsts), len(nonces)) == (50, 50)


# Proofs ------------------------------------------------------------------------------

NONCES = (b"{sha256}" + b"a" * 40, b"{sha256}" + b"b" * 40)


def test_proof_holds_for_what_it_was_made_for() -> None:
    """The proof of a role over two nonces convinces who knows the key."""
    for role in (b"client", b"server", b"admin"):
        given = wire.proof(KEY, role, NONCES)
        assert wire.proof_holds(KEY, role, NONCES, given)


@pytest.mark.parametrize(
    ("key", "role", "nonces"),
    [
        (b"other", b"client", NONCES),
        (KEY, b"server", NONCES),
        (KEY, b"admin", NONCES),
        (KEY, b"client", (NONCES[1], NONCES[0])),
        (KEY, b"client", (NONCES[0], NONCES[1][:-1] + b"c")),
        (KEY, b"client", (NONCES[0][:-1] + b"c", NONCES[1])),
    ],
)
def test_proof_is_bound_to_key_role_and_nonces(
    key: bytes, role: bytes, nonces: tuple[bytes, bytes]
) -> None:
    """A proof is worth nothing in another role, handshake or direction."""
    assert not wire.proof_holds(key, role, nonces, wire.proof(KEY, b"client", NONCES))


def test_no_proof_is_no_proof() -> None:
    """Zeros, nothing, or a part of the proof do not hold."""
    right = wire.proof(KEY, b"client", NONCES)
    for shown in (bytes(32), b"", right[:-1], right + b"\0"):
        assert not wire.proof_holds(KEY, b"client", NONCES, shown)


def test_reflected_handshake_proves_nothing() -> None:
    """A server without the key that relays to a second connection has no proof.

    It passes the stock handshake by handing the victim's challenge to another of the
    victim's connections. The nonces of the two then differ, and so does the proof.
    """
    first, second = ClientHandshake(KEY), ClientHandshake(KEY)
    own_challenge = wire.CHALLENGE + b"{sha256}" + os.urandom(40)
    first.receive(own_challenge)
    (victims_challenge,), _ = first.receive(wire.ACCEPTED)
    (reflected,), _ = second.receive(victims_challenge)
    (_,), passed = first.receive(reflected)
    assert passed, "the stock handshake alone does not notice"

    hellos = [wire.proof(KEY, b"client", side.nonces) for side in (first, second)]
    for shown in hellos:
        assert not wire.proof_holds(KEY, b"server", first.nonces, shown)
        assert not wire.proof_holds(KEY, b"server", second.nonces, shown)


# Addresses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_address", "expected", "url"),
    [
        ("unix:///run/s.sock", Address(path="/run/s.sock"), "unix:///run/s.sock"),
        ("unix://run/s.sock", Address(path="run/s.sock"), "unix://run/s.sock"),
        ("unix:///a%20b", Address(path="/a b"), None),
        ("/run/s.sock", Address(path="/run/s.sock"), "unix:///run/s.sock"),
        (Path("/run/s.sock"), Address(path="/run/s.sock"), "unix:///run/s.sock"),
        ("s.sock", Address(path="s.sock"), "unix://s.sock"),
        ("tcp://h:1", Address(host="h", port=1), "tcp://h:1"),
        ("tcp://h:1/", Address(host="h", port=1), "tcp://h:1"),
        ("tcp://127.0.0.1:0", Address(host="127.0.0.1"), "tcp://127.0.0.1:0"),
        ("tcp://:80", Address(port=80), "tcp://:80"),
        ("tcp://h:65535", Address(host="h", port=65535), "tcp://h:65535"),
        ("tcp://[::1]:5", Address(host="::1", port=5), "tcp://[::1]:5"),
        ("tcp://[fe80::1%eth0]:5", Address(host="fe80::1%eth0", port=5), None),
        (("h", 7), Address(host="h", port=7), "tcp://h:7"),
        (("::1", 7), Address(host="::1", port=7), "tcp://[::1]:7"),
        (("", 0), Address(), "tcp://:0"),
    ],
)
def test_addresses_are_read_and_written(
    given_address: Any, expected: Address, url: str | None
) -> None:
    """Each spelling means one address; its URL means the same address again."""
    address = wire.parse_address(given_address)

    assert address == expected
    if url is not None:
        assert str(address) == url
    assert wire.parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("given_address", "reason"),
    [
        ("", "needs a path"),
        ("unix://", "needs a path"),
        ("http://h:1", "scheme 'http'"),
        ("TCP://h:1", "scheme 'TCP'"),
        ("127.0.0.1:7995", "write tcp://127.0.0.1:7995"),
        ("localhost:80", "write tcp://localhost:80"),
        ("[::1]:5", "write tcp://"),
        ("tcp://h", "tcp://host:port"),
        ("tcp://h:", "tcp://host:port"),
        ("tcp://h:65536", "tcp://host:port"),
        ("tcp://h:99999", "tcp://host:port"),
        ("tcp://h:123456", "tcp://host:port"),
        ("tcp://h:-1", "tcp://host:port"),
        ("tcp://h:x", "tcp://host:port"),
        ("tcp://::1:5", "tcp://host:port"),
        ("tcp://[::1]", "tcp://host:port"),
        ("tcp://user@h/path:5", "tcp://host:port"),
        ("/" + "x" * 120, "shorter data folder"),
        ("unix:///" + "ж" * 60, "shorter data folder"),
        (("h", 65536), "65536"),
        (("h", -1), "-1"),
        (("h", "80"), "'80'"),
        ((80, "h"), "host"),
        (("h",), "host"),
        (("h", 1, 2, 3), "host"),
    ],
)
def test_addresses_that_do_not_fit_are_config_errors(
    given_address: Any, reason: str
) -> None:
    """What is wrong with an address is said, with the address itself."""
    with pytest.raises(ConfigError, match=reason):
        wire.parse_address(given_address)


def test_longest_path_is_taken() -> None:
    """A path of exactly the system's limit is an address."""
    path = "/" + "x" * (wire._PATH_BYTES_MAX - 1)

    assert wire.parse_address(path).path == path
    with pytest.raises(ConfigError, match="at most"):
        wire.parse_address(path + "x")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("", True),
        ("*", True),
        ("0.0.0.0", True),
        ("::", True),
        ("0", True),
        ("0.0", True),
        ("0x0", True),
        ("000.000.000.000", True),
        ("::0", True),
        ("0:0:0:0:0:0:0:0", True),
        ("::ffff:0.0.0.0", True),
        ("::FFFF:0:0", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("10.0.0.0", False),
        ("localhost", False),
        ("db", False),
    ],
)
def test_wildcards_are_known_in_every_spelling(host: str, expected: bool) -> None:
    """An address that any machine can reach is recognised, however it is spelled."""
    assert Address(host=host, port=1).is_wildcard == expected


def test_paths_are_never_wildcards() -> None:
    """A Unix socket is on this machine."""
    assert not Address(path="0.0.0.0").is_wildcard


def test_stock_spelling_is_a_path_or_a_pair() -> None:
    """The standard library takes a path or ``(host, port)``."""
    assert wire.parse_address("unix:///run/s").stock == "/run/s"
    assert wire.parse_address("tcp://[::1]:5").stock == ("::1", 5)
