"""Hostile bytes at the port, before and after the key was shown, and at the client."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import struct
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client as StockConnection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import state_server
from state_server import (
    Denied,
    NotAllowed,
    StateServerError,
    TooLarge,
    Unanswered,
    codec,
    failures,
    handshake,
    wire,
)

from .force_classes import (
    FrameSocket,
    OwnPeer,
    RogueServer,
    Threads,
    dial,
    fresh_lane,
    resident_bytes,
    serve_handshake,
    sharing,
)
from .processes import ManagerProcess, wait_until

MEBIBYTE = 1024 * 1024
GROWTH_MAX = 200 * MEBIBYTE
#: Hostile payloads would make this file, in the folder where they run.
MARKER = "hostile-payload-ran"

bounded = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Target:
    """A manager under attack: alive, the same process, bounded, right answers."""

    def __init__(self, manager: ManagerProcess) -> None:
        self.manager = manager
        self.address, self.key, self.pid = manager.address, manager.key, manager.pid
        self._client = manager.client(timeout=10)
        self._echo = self._client.get("Echo")
        self._number = 0
        self.check()
        self.bytes_before = resident_bytes(self.pid)

    def check(self) -> None:
        """Fail if anything that must not happen has happened."""
        process = self.manager.process
        assert process is not None
        assert process.poll() is None, self.manager.log
        self._number += 1
        assert self._echo.echo(("right", self._number)) == ("right", self._number)
        assert not (self.manager.folder / MARKER).exists()
        assert not Path(MARKER).exists()

    def check_at_the_end(self) -> None:
        """Check what is too slow for every example."""
        self.check()
        assert resident_bytes(self.pid) - self.bytes_before < GROWTH_MAX
        wait_until(lambda: self._client.status()["connections"] == 1)
        status = self._client.status()
        assert (status["handshaking"], status["inbound_bytes"]) == (0, 0)
        assert "The engine failed" not in self.manager.log

    def stranger(self) -> FrameSocket:
        """Return a connection that has shown nothing."""
        return FrameSocket(dial(self.address, 10))

    def peer(self) -> OwnPeer:
        """Return a connection that is through the handshake and has said HELLO."""
        return OwnPeer(self.address, self.key, timeout_s=10).shake_hands().greet()

    def close(self) -> None:
        """Close the client."""
        self._client.close()


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerProcess]:
    """Give one manager to all attacks."""
    options = ("--log-level", "ERROR")
    manager = ManagerProcess(
        tmp_path_factory.mktemp("fuzz"), *sharing("Echo"), *options
    )
    manager.start()
    yield manager
    assert manager.stop() == 0


@pytest.fixture
def target(manager: ManagerProcess) -> Iterator[Target]:
    """Give the manager, and check it before and after."""
    target = Target(manager)
    yield target
    target.check_at_the_end()
    target.close()


def leave(peer: FrameSocket) -> None:
    """Say that nothing more comes, and read until the manager has closed as well."""
    with contextlib.suppress(OSError):
        peer.socket.shutdown(1)
    assert peer.is_closed_by_peer()


# Before the key was shown -------------------------------------------------------------


@bounded
@given(data=st.binary(max_size=2000))
def test_random_bytes_before_the_key(target: Target, data: bytes) -> None:
    """Whatever a stranger sends, it gets no further and harms nobody."""
    with target.stranger() as stranger:
        stranger.send_raw(data)
        leave(stranger)
    target.check()


@bounded
@given(frames=st.lists(st.binary(max_size=256), max_size=5))
def test_random_frames_before_the_key(target: Target, frames: list[bytes]) -> None:
    """Frames of the right form, but without the key, end in a refusal."""
    with target.stranger() as stranger:
        assert (stranger.receive() or b"").startswith(handshake.CHALLENGE)
        for frame in frames:
            stranger.send_raw(wire.framed(frame))
        if frames:
            assert stranger.receive() == handshake.REJECTED
        leave(stranger)
    target.check()


# After it -----------------------------------------------------------------------------


@bounded
@given(data=st.binary(max_size=3000))
def test_random_bytes_after_the_key(target: Target, data: bytes) -> None:
    """Somebody with the key who talks rubbish harms nobody else."""
    with OwnPeer(target.address, target.key, timeout_s=10).shake_hands() as peer:
        peer.send_raw(data)
        leave(peer)
    target.check()


own_frames = st.one_of(
    st.binary(max_size=300),
    st.tuples(st.integers(0, 255), st.binary(max_size=300)).map(
        lambda pair: bytes((wire.MARK, pair[0])) + pair[1]
    ),
)


@bounded
@given(frames=st.lists(own_frames, max_size=4), greeted=st.booleans())
def test_random_frames_after_the_key(
    target: Target, frames: list[bytes], greeted: bool
) -> None:
    """Frames of any kind in any order are refused or answered, never obeyed."""
    with OwnPeer(target.address, target.key, timeout_s=10).shake_hands() as peer:
        if greeted:
            peer.greet()
        for frame in frames:
            peer.send_raw(wire.framed(frame))
        leave(peer)
    target.check()


mutations = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "double", "insert"]),
        st.integers(0, 10_000),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def mutated(frame: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    """Return the frame with some bytes changed, cut off, doubled or put in."""
    data = bytearray(frame)
    for kind, place, byte in changes:
        at = place % (len(data) + 1)
        if kind == "flip" and at < len(data):
            data[at] ^= byte or 1
        elif kind == "cut":
            del data[at:]
        elif kind == "double":
            data[at:at] = data[max(0, at - byte) : at]
        else:
            data.insert(at, byte)
    return bytes(data)


@bounded
@given(changes=mutations)
def test_mutated_greetings(target: Target, changes: list[tuple[str, int, int]]) -> None:
    """A HELLO with changed bytes attaches nobody's lane and proves nothing."""
    with OwnPeer(target.address, target.key, timeout_s=10).shake_hands() as peer:
        lane = fresh_lane()
        hello = peer.hello(lane)
        changed = mutated(hello, changes)
        peer.send_raw(wire.framed(changed))
        # The lane and the admin proof are the client's own choice; nothing else is.
        if changed[:4] + changed[36:68] != hello[:4] + hello[36:68]:
            answer = peer.receive()
            assert answer is None or wire.kind_of(answer) != wire.WELCOME
        leave(peer)
    target.check()


call_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    | st.tuples(inner, inner),
    max_leaves=10,
)  # fmt: skip


@bounded
@given(value=call_values, changes=mutations, body_only=st.booleans())
def test_mutated_calls(
    target: Target, value: Any, changes: list[tuple[str, int, int]], body_only: bool
) -> None:
    """A CALL with changed bytes is refused, or is a call of its lane like any other."""
    with target.peer() as peer:
        body = codec.encode(((value,), {}))
        if body_only:
            body = mutated(body, changes)
        frame = peer.call_frame(1, ("Echo", "fuzz", "echo"), body=body)
        if not body_only:
            frame = mutated(frame, changes)
        peer.send_raw(wire.framed(frame))
        leave(peer)
    target.check()


def stock_connection(target: Target) -> Any:
    """Return a stock connection that was accepted, as a proxy would have it."""
    connection = StockConnection(target.manager.stock_address, authkey=target.key)
    connection.send((None, "accept_connection", ("fuzz",), {}))
    assert connection.recv() == ("#RETURN", None)
    return connection


@bounded
@given(value=call_values, changes=mutations, protocol=st.integers(2, 5))
def test_mutated_stock_requests(
    target: Target, value: Any, changes: list[tuple[str, int, int]], protocol: int
) -> None:
    """A stock request with changed bytes gets one answer, and its connection lives."""
    request = ("Echo/fuzz", "echo", (value,), {})
    data = mutated(pickle.dumps(request, protocol), changes)
    with stock_connection(target) as connection:
        connection.send_bytes(data)
        assert connection.poll(10)
        assert connection.recv()[0] in ("#RETURN", "#ERROR", "#TRACEBACK")
        connection.send(("Echo/fuzz", "echo", ("still here",), {}))
        assert connection.recv() == ("#RETURN", "still here")
    target.check()


# Hostile pickles ----------------------------------------------------------------------

HEAD = b"\x80\x04"


def text(value: str) -> bytes:
    """Return the opcodes of a short text."""
    data = value.encode()
    return b"\x8c" + bytes((len(data),)) + data


def name(module: str, path: str) -> bytes:
    """Return the opcodes of a global in the newest spelling."""
    return text(module) + text(path) + b"\x93"


def long_of(size: int) -> bytes:
    """Return the opcodes of an int of so many bytes."""
    return b"\x8b" + struct.pack("<i", size) + b"\x7f" * size


def shared_tuples(levels: int) -> bytes:
    """Return a tuple of twice the tuple below, and so on, ``levels`` times."""
    data = b")\x94"
    for level in range(levels):
        data += b"h" + bytes((level,)) + b"\x86\x94"
    return data


TOUCH = text(f"touch {MARKER}")
CLASS = name("collections", "OrderedDict")

#: What an attacker with the key could send as a value. Each is the inside of a pickle.
HOSTILE: dict[str, bytes] = {
    "os.system": name("os", "system") + TOUCH + b"\x85R",
    "posix.system": name("posix", "system") + TOUCH + b"\x85R",
    "os.system, oldest spelling": b"cos\nsystem\n" + TOUCH + b"\x85R",
    "INST": b"(" + b"S'touch " + MARKER.encode() + b"'\nios\nsystem\n",
    "OBJ": b"(" + name("os", "system") + TOUCH + b"o",
    "subprocess": name("subprocess", "getoutput") + TOUCH + b"\x85R",
    "eval": name("builtins", "eval")
    + text(f"open({MARKER!r}, 'w').close()") + b"\x85R",
    "exec": name("builtins", "exec")
    + text(f"open({MARKER!r}, 'w').close()") + b"\x85R",
    "open": name("builtins", "open") + text(MARKER) + text("w") + b"\x86R",
    "pathlib's touch by a dotted name": name("pathlib", "Path.touch")
    + name("pathlib", "PosixPath") + text(MARKER) + b"\x85R" + b"\x85R",
    "a dotted name under an allowed module": name("uuid", "os.system")
    + TOUCH + b"\x85R",
    "a dotted name under our own module": name(
        "state_server.messages", "threading._os.system"
    ) + TOUCH + b"\x85R",
    "getattr": name("builtins", "getattr") + name("os", "__dict__")
    + text("system") + b"\x86R",
    "getattr of a class": name("builtins", "getattr")
    + name("datetime", "datetime") + text("__subclasses__") + b"\x86R" + b")R",
    "import": name("builtins", "__import__") + text("os") + b"\x85R",
    "NEWOBJ of Popen": name("subprocess", "Popen") + TOUCH + b"\x85\x81",
    "NEWOBJ_EX of Popen": name("subprocess", "Popen") + TOUCH + b"\x85}\x92",
    "BUILD on a class": CLASS + b"}" + text("__reduce__") + b"Nsb",
    "BUILD with slots on a class": CLASS + b"N}" + text("update") + b"Ns\x86b",
    "BUILD on a function": name("codecs", "encode") + b"}" + text("x") + b"Nsb",
    "BUILD with a foreign class": CLASS + b")R}" + text("__class__")
    + CLASS + b"sb",
    "memory by nine bytes": long_of(0)[:1] + struct.pack("<i", 0x7FFFFFFF),
    "memory by a length of bytes": b"\x8e" + struct.pack("<Q", 2**40),
    "memory by a length of text": b"\x8d" + struct.pack("<Q", 2**62),
    "memory by a memo index": b"Nr" + struct.pack("<I", 0x7FFFFFFF),
    "memory by FRAME": b"\x95" + struct.pack("<Q", 2**60) + b"N",
    "memory by BYTEARRAY8": b"\x96" + struct.pack("<Q", 2**40),
    "memory by bytes(n)": name("builtins", "bytes") + b"J\xff\xff\xff\x7f\x85R",
    "memory by bytearray(n)": name("builtins", "bytearray")
    + b"J\xff\xff\xff\x7f\x85R",
    "memory by a list of a range": name("builtins", "list")
    + name("builtins", "range") + b"J\xff\xff\xff\x7f\x85R" + b"\x85R",
    "a set of a range": name("builtins", "set")
    + name("builtins", "range") + b"J\xff\xff\xff\x7f\x85R" + b"\x85R",
    "many ranges": b"(" + (
        name("builtins", "range") + b"K\x00J\xff\xff\xff\x7fK\x01\x87R"
    ) * 50 + b"l",
    "a nested tuple as a key": b"}" + b")" + b"\x85" * 3000 + b"Ns",
    "a deeply nested tuple as a key": b"}" + b")" + b"\x85" * 200_000 + b"Ns",
    "shared tuples as a key": b"}" + shared_tuples(60) + b"Ns",
    "shared tuples": shared_tuples(100),
    "shared tuples in a set": b"\x8f(" + shared_tuples(60) + b"\x90",
    "nested lists": b"]" * 100_000 + b"a" * 99_999,
    "a list in itself, often": b"]\x94" + b"h\x00a" * 10,
    "a huge number": long_of(60_000),
    "a huge number as text": b"L" + b"9" * 100_000 + b"L\n",
    "a fraction without end": name("fractions", "Fraction")
    + text("1e30000000") + b"\x85R",
    "a decimal without end": name("decimal", "Decimal")
    + text("1e999999999") + b"\x85R",
    "an int of text": name("builtins", "int") + b"X" + struct.pack("<I", 50_000)
    + b"7" * 50_000 + b"\x85R",
    "a power": name("operator", "pow") + b"K\x09J\xff\xff\xff\x7f\x86R",
    "PERSID": b"Pos.system\n",
    "BINPERSID": TOUCH + b"Q",
    "EXT1": b"\x82\x01",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "an out-of-band buffer": b"\x97",
    "numpy's _frombuffer": name("numpy.core.numeric", "_frombuffer")
    + b"C\x08" + b"A" * 8 + name("numpy", "dtype") + text("O8")
    + b"\x89\x88\x87R" + b"\x86R",
    "copyreg": name("copyreg", "_reconstructor") + CLASS + CLASS + b"N\x87R",
    "types.CodeType": name("types", "CodeType") + b")R",
    "a stock AutoProxy elsewhere": name("multiprocessing.managers", "AutoProxy")
    + b")R",
    "a stock RebuildProxy elsewhere": name("multiprocessing.managers", "RebuildProxy")
    + name("os", "system") + TOUCH + b")}" + b"tR",
    "a shared class": name("tests.force_classes", "Echo") + b")R",
    "no end at all": b"(" * 1000,
    "marks without end": b"(" * 500_000,
    "POP of nothing": b"0" * 10,
    "a stack of many": b"N" * 3_000_000 + b"0" * 2_999_999,
    "DUP without end": b"]" + b"2" * 3_000_000 + b"0" * 3_000_000,
}  # fmt: skip
assert len(HOSTILE) >= 20

#: Those that are values like any other, or too small to harm: they may be answered.
HARMLESS = {"a list in itself, often"}

hostile = pytest.mark.parametrize("inside", HOSTILE.values(), ids=HOSTILE.keys())


def arguments(inside: bytes) -> bytes:
    """Return the body of a call whose only argument is hostile."""
    return HEAD + inside + b"\x85}\x86."


def request(inside: bytes) -> bytes:
    """Return a stock request whose only argument is hostile."""
    return HEAD + b"(" + text("Echo/fuzz") + text("echo") + inside + b"\x85}t."


def is_harmless(inside: bytes) -> bool:
    """Tell whether the payload may be answered."""
    return any(HOSTILE[name] == inside for name in HARMLESS)


@hostile
def test_hostile_arguments_of_our_own_calls(target: Target, inside: bytes) -> None:
    """A hostile argument is NotAllowed or TooLarge, and the connection goes on."""
    with target.peer() as peer:
        answer = peer.call(1, ("Echo", "fuzz", "echo"), body=arguments(inside))
        assert isinstance(answer, (NotAllowed, TooLarge)) or is_harmless(inside), answer
        assert peer.call(2, ("Echo", "fuzz", "echo"), "here") == "here"
        # The same as the whole of the arguments, and as those of a control call.
        answer = peer.call(3, ("Echo", "fuzz", "echo"), body=HEAD + inside + b".")
        assert isinstance(answer, (NotAllowed, TooLarge)), answer
        answer = peer.call(4, ("", "", "describe"), body=HEAD + inside + b".")
        assert isinstance(answer, Exception), answer
    target.check()


@hostile
def test_hostile_requests_of_stock_clients(target: Target, inside: bytes) -> None:
    """A hostile stock request is answered with an error; nothing of it is built."""
    with stock_connection(target) as connection:
        for data in (request(inside), HEAD + inside + b"."):
            connection.send_bytes(data)
            assert connection.poll(10)
            kind, _ = connection.recv()
            allowed = is_harmless(inside) and data == request(inside)
            assert kind == "#TRACEBACK" or allowed
        connection.send(("Echo/fuzz", "echo", ("still here",), {}))
        assert connection.recv() == ("#RETURN", "still here")
    # As the first words after the handshake, too.
    with StockConnection(target.manager.stock_address, authkey=target.key) as first:
        first.send_bytes(HEAD + inside + b".")
        assert first.poll(10)
        with contextlib.suppress(EOFError, ConnectionError):
            assert first.recv()[0] == "#TRACEBACK"
    target.check()


def test_verbs_that_are_not_for_everybody(target: Target) -> None:
    """No stock verb ends the manager, shows its objects or reaches inside one."""
    verbs = [
        (None, "shutdown", (), {}),
        (None, "debug_info", (), {}),
        (None, "number_of_objects", (), {}),
        (None, "serve_client", (), {}),
        (None, "__init__", (), {}),
        (None, "create", ("Echo", 1, 2), {}),
        (None, "create", ("Echo",), {"self": 1}),
        (None, "create", (), {}),
        (None, "create", (["Echo"],), {}),
        (None, "get_methods", ("Echo",), {}),
        (None, "get_methods", (), {}),
        ("Echo/fuzz", "#GETVALUE", (), {}),
        ("Echo/fuzz", "__class__", (), {}),
        ("Echo/fuzz", "__init__", (), {}),
        ("Echo/fuzz", "__dict__", (), {}),
        ("Echo/fuzz", "__getattribute__", ("__class__",), {}),
        ("Echo/fuzz", "__getattribute__", ("times",), {}),
        ("Echo/fuzz", "__setattr__", ("number", 5), {}),
        ("Echo/fuzz", "__reduce__", (), {}),
        ("", "echo", (), {}),
        ("/", "echo", (), {}),
        (5, "echo", (), {}),
    ]
    for verb in verbs:
        with StockConnection(target.manager.stock_address, authkey=target.key) as plain:
            plain.send(verb)
            assert plain.poll(10)
            assert plain.recv()[0] in ("#TRACEBACK", "#ERROR"), verb
        with stock_connection(target) as accepted:
            accepted.send(verb)
            assert accepted.poll(10)
            assert accepted.recv()[0] in ("#TRACEBACK", "#ERROR"), verb
    target.check()


# The handshake ------------------------------------------------------------------------


def test_a_server_that_reflects_the_handshake_is_found_out(tmp_path: Path) -> None:
    """A server without the key that passes the stock handshake gets no call."""
    key = b"the right key"
    challenges: queue.Queue[bytes] = queue.Queue()
    answers: queue.Queue[bytes] = queue.Queue()
    heard: list[bytes] = []
    passed: list[bool] = []

    def serve(frames: FrameSocket) -> None:
        if server.accepted % 2:
            frames.send(handshake.CHALLENGE + b"{sha256}" + os.urandom(40))
            frames.receive()
            frames.send(handshake.ACCEPTED)
            challenge = frames.receive()
            assert challenge is not None
            challenges.put(challenge)
            # What the victim says to its own challenge, on its other connection.
            frames.send(answers.get(timeout=2))
            passed.append(frames.receive() == handshake.ACCEPTED)
            hello = frames.receive()
            assert hello is not None
            assert wire.kind_of(hello) == wire.HELLO
            theirs = wire.unpack_hello(hello)
            frames.send(
                wire.pack_welcome(wire.Welcome(b"b" * 16, 1, theirs.proof, True, 2**20))
            )
            while payload := frames.receive():
                heard.append(payload)
        else:
            frames.send(challenges.get(timeout=2))
            answer = frames.receive()
            assert answer is not None
            answers.put(answer)

    errors: list[BaseException] = []

    def call() -> None:
        with (
            state_server.connect(server.address, key, timeout=1.5) as client,
            pytest.raises(StateServerError) as caught,
        ):
            client.control("secret", "the argument of a call")
        errors.append(caught.value)

    with RogueServer(tmp_path / "rogue", serve) as server:
        threads = Threads()
        threads.start(call)
        wait_until(lambda: challenges.qsize() == 1)
        threads.start(call)
        threads.join()
    assert passed[:1] == [True], "the attack itself did not get through the handshake"
    assert not heard, heard
    assert any(isinstance(error, Denied) for error in errors), errors


@pytest.mark.parametrize(
    "challenge",
    [
        handshake.CHALLENGE + bytes(20),
        handshake.CHALLENGE + b"{md5}" + bytes(40),
        handshake.CHALLENGE + b"{sha256}",
        b"",
        b"{sha256}" + bytes(40),
        handshake.ACCEPTED,
        bytes(200),
    ],
)
def test_a_server_with_a_weak_challenge_gets_no_answer(
    tmp_path: Path, challenge: bytes
) -> None:
    """Our client answers nothing but HMAC-SHA256 over a long nonce."""
    heard: list[bytes | None] = []

    def serve(frames: FrameSocket) -> None:
        frames.send(challenge)
        heard.append(frames.receive())

    with (
        RogueServer(tmp_path / "rogue", serve) as server,
        state_server.connect(server.address, b"key", timeout=5) as client,
        pytest.raises(Denied),
    ):
        client.ping()
    assert heard == [None]


# A hostile server ---------------------------------------------------------------------

KEY = b"the key of the hostile server"


def reply_with(
    tmp_path: Path, answer: Callable[[int], bytes], timeout_s: float = 10
) -> Any:
    """Call a server that knows the key; return the result or the error."""

    def serve(frames: FrameSocket) -> None:
        serve_handshake(frames, KEY)
        while (payload := frames.receive()) and wire.kind_of(payload) == wire.CALL:
            number = wire.unpack_call(payload, fresh_lane()).number
            frames.send(answer(number))

    with (
        RogueServer(tmp_path / "rogue", serve) as server,
        state_server.connect(server.address, KEY, timeout=timeout_s) as client,
    ):
        try:
            return client.control("anything")
        except Exception as error:
            return error


@hostile
def test_hostile_replies_are_refused_by_our_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bytes
) -> None:
    """Nothing that a server sends runs in the client, as a value or as a failure."""
    monkeypatch.chdir(tmp_path)
    before = resident_bytes(os.getpid())
    for failed in (False, True):
        place = tmp_path / str(failed)
        place.mkdir()
        result = reply_with(
            place,
            lambda number, failed=failed: wire.pack_reply(
                number, failed, HEAD + inside + b"."
            ),
        )
        harmless = is_harmless(inside)
        assert isinstance(result, StateServerError) or harmless, result
    assert not (tmp_path / MARKER).exists()
    assert resident_bytes(os.getpid()) - before < GROWTH_MAX


FAILURES: list[tuple[Any, ...]] = [
    ("Raised", "x", "builtins", "SystemExit", codec.encode(((), {})), (), ""),
    ("Raised", "x", "builtins", "KeyboardInterrupt", codec.encode(((), {})), (), ""),
    ("Raised", "x", "os", "system", codec.encode((("id",), {})), (), ""),
    ("Raised", "x", "builtins", "eval", codec.encode((("1",), {})), (), ""),
    ("Raised", "x", "builtins", "ValueError", b"rubbish", (), ""),
    ("Raised", "x", "builtins", "ValueError", codec.encode(5), (), ""),
    ("Raised", "x", "builtins", "ValueError", codec.encode((5, 5)), (), ""),
    ("Raised", "x", "builtins", "OSError", codec.encode(((), {"a": 1})), (), ""),
    ("Raised", "x", "builtins", "UnicodeDecodeError", codec.encode(((), {})), (), ""),
    ("Raised", "x", "builtins", "ExceptionGroup", codec.encode(((), {})), (), ""),
    ("Raised", "x", ["builtins"], ["ValueError"], b"", (), ""),
    ("Raised", "x", "builtins", "ValueError", codec.encode(((), {})), 5, 5),
    ("Raised", 5, 5, 5, 5, 5, 5),
    ("Raised", None, None, None, None, None, None),
    ("NoSuchCode", "x", "", "", b"", (), ""),
    (["Denied"], "x", "", "", b"", (), ""),
    ({}, {}, {}, {}, {}, {}, {}),
    ("Stopping", ["x"], "", "", b"", (), ""),
    (),
    ("Denied",),
]


@pytest.mark.parametrize("fields", FAILURES, ids=range(len(FAILURES)))
def test_failures_of_any_form_end_in_an_error(
    tmp_path: Path, fields: tuple[Any, ...]
) -> None:
    """A failure with wrong fields is an error of the family or a builtin one."""
    body = codec.encode(fields)
    result = reply_with(
        tmp_path, lambda number: wire.pack_reply(number, True, body), timeout_s=1
    )
    assert isinstance(result, Exception)
    if fields[:2] == ("Raised", "x") and fields[2] == "builtins":
        return
    assert isinstance(result, StateServerError), repr(result)


@pytest.mark.parametrize("offset", [-1, 1, 2**32])
def test_a_reply_to_another_call_is_never_taken(tmp_path: Path, offset: int) -> None:
    """A reply with a wrong number is nobody's answer: the call ends as Unanswered."""
    result = reply_with(
        tmp_path,
        lambda number: wire.pack_reply(
            number + offset, False, codec.encode("another's")
        ),
        timeout_s=1,
    )
    assert type(result) is Unanswered, result


def test_a_reply_that_came_before_its_call_is_never_taken() -> None:
    """A TCP link on which something waits already is not used for the next call."""
    calls: list[int] = []

    def serve(frames: FrameSocket) -> None:
        serve_handshake(frames, KEY)
        while (payload := frames.receive()) and wire.kind_of(payload) == wire.CALL:
            number = wire.unpack_call(payload, fresh_lane()).number
            calls.append(number)
            body = codec.encode(f"answer {len(calls)}")
            frames.send(wire.pack_reply(number, False, body))
            early = codec.encode("forged")
            frames.send(wire.pack_reply(number + 1, False, early))

    with (
        RogueServer(None, serve) as server,
        state_server.connect(server.address, KEY, timeout=5) as client,
    ):
        assert client.control("anything") == "answer 1"
        wait_until(lambda: not next(iter(client._pool._free)).is_quiet())
        assert client.control("anything") == "answer 2"
        assert server.accepted == 2


replies = st.one_of(
    st.binary(max_size=200),
    st.tuples(st.integers(0, 7), st.integers(0, 3), st.binary(max_size=100)).map(
        lambda parts: struct.pack("!BBQ", wire.MARK, parts[0], parts[1]) + parts[2]
    ),
)


@settings(bounded, max_examples=60)
@given(
    data=st.one_of(st.binary(max_size=300), replies.map(wire.framed)),
    after=st.sampled_from(["connect", "handshake", "call"]),
)
def test_random_answers_of_a_server(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, after: str
) -> None:
    """Whatever a server says and whenever, a call ends in an error of the family."""
    path = tmp_path_factory.mktemp("rogue") / "s"

    def serve(frames: FrameSocket) -> None:
        if after != "connect":
            serve_handshake(frames, KEY)
        if after == "call":
            frames.receive()
        frames.send_raw(data)

    with (
        RogueServer(path, serve) as server,
        state_server.connect(server.address, KEY, timeout=0.15) as client,
    ):
        try:
            client.control("anything")
        except StateServerError:
            return
    # A right reply by chance: the number and the kind fit, and the body is a value.
    assert after == "call"


def test_failures_travel_as_themselves() -> None:
    """What is tested above as hostile is what failures look like when they are not."""
    failure = failures.raised(ValueError("x"))
    assert isinstance(failures.error_from(failures.unpack(failures.pack(failure))),
                      ValueError)  # fmt: skip
