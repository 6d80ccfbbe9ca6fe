"""Classes that are hard on their manager, and peers that speak the wire by hand.

The classes are not decorated: a manager shares them by ``--objects``, and nothing is
added to the catalogue of the test's own process.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from state_server import codec, failures, handshake, wire
from state_server.addresses import parse_address
from state_server.client.link import new_lane
from state_server.messages import Lane

MODULE = "tests.force_classes"


def sharing(*names: str) -> list[str]:
    """Return the options of a manager that shares these classes of this module."""
    return [part for name in names for part in ("--objects", f"{MODULE}:{name}")]


# Shared classes ----------------------------------------------------------------------


class Echo:
    """Give back what was said, and count how often each thing was said."""

    def __init__(self) -> None:
        self.number = 0
        self.times: dict[str, int] = {}

    def echo(self, token: Any) -> Any:
        """Return ``token``."""
        return token

    def slow_echo(self, token: str, seconds: float) -> str:
        """Return ``token`` after some time."""
        time.sleep(seconds)
        return token

    def count(self, token: str) -> tuple[str, int, int]:
        """Return ``token``, how often it has been counted, and a number of its own."""
        self.number += 1
        self.times[token] = self.times.get(token, 0) + 1
        return token, self.times[token], self.number

    def slow_count(self, token: str, seconds: float) -> tuple[str, int, int]:
        """Count after some time."""
        time.sleep(seconds)
        return self.count(token)

    def total(self) -> int:
        """Return how many calls were counted."""
        return self.number

    def bytes_of(self, size: int) -> bytes:
        """Return so many bytes."""
        return bytes(size)


class Gate:
    """Hold calls up until a file is there, and tell how much was said."""

    def hold(self, path: str) -> None:
        """Wait until there is a file at ``path``."""
        while not os.path.exists(path):
            time.sleep(0.01)

    def size(self, content: bytes) -> int:
        """Return how much was said."""
        return len(content)


class Unsendable(Exception):
    """An error that cannot be pickled, copied or printed."""

    def __init__(self) -> None:
        super().__init__(threading.Lock(), lambda: None)
        self.lock = threading.Lock()

    def __reduce__(self) -> Any:
        """Refuse to be pickled."""
        raise RuntimeError("never")

    def __str__(self) -> str:
        """Refuse to be printed."""
        raise RuntimeError("no text")

    __repr__ = __str__


class Rough:
    """Do what a method should not do."""

    def sleep(self, seconds: float) -> str:
        """Block without using the processor."""
        time.sleep(seconds)
        return "slept"

    def compute(self, seconds: float) -> str:
        """Use the processor, in Python."""
        until, number = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            number = (number * 31 + 7) % 1_000_003
        return "computed"

    def leave(self) -> None:
        """End the process, or try to."""
        sys.exit(3)

    def interrupt(self) -> None:
        """Raise what Ctrl-C raises."""
        raise KeyboardInterrupt

    def raise_exit(self) -> None:
        """Raise the third error that is no Exception."""
        raise GeneratorExit

    def raise_unsendable(self) -> None:
        """Raise what cannot travel."""
        raise Unsendable

    def recurse(self) -> None:
        """Never come back."""
        self.recurse()

    def return_unsendable(self) -> Any:
        """Return what cannot travel."""
        return threading.Lock()

    def return_bytes(self, size: int) -> bytes:
        """Return so many bytes."""
        return bytes(size)

    def return_nested(self) -> Any:
        """Return lists in lists, deeper than may travel."""
        value: list[Any] = []
        for _ in range(5000):
            value = [value]
        return value

    def count_for_ever(self) -> Iterator[int]:
        """Yield without end."""
        number = 0
        while True:
            yield number
            number += 1

    def fine(self) -> str:
        """Be good."""
        return "fine"


class Forker:
    """Forks its manager, as ``multiprocessing.Process`` does."""

    def leave_child(self) -> int:
        """Start a child that sleeps; return its process id."""
        child = multiprocessing.get_context("fork").Process(
            target=time.sleep, args=(99,)
        )
        child.start()
        assert child.pid is not None
        return child.pid

    def return_twice(self) -> int:
        """Return in the manager, and in a child as well; return the child's id."""
        return os.fork()

    def await_child(self, process_id: int) -> int:
        """Wait for a child; return its exit status."""
        return os.waitpid(process_id, 0)[1]


class FileOpener:
    """Hold and give back descriptors of the manager's process."""

    def __init__(self) -> None:
        self._held: list[int] = []

    def take_all(self) -> int:
        """Open files until there is no descriptor left; return how many."""
        while True:
            try:
                self._held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                return len(self._held)

    def open_and_close(self, seconds: float) -> int:
        """Take every descriptor that comes free, again and again, for some time."""
        until, taken = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            try:
                descriptor = os.open(os.devnull, os.O_RDONLY)
            except OSError:
                continue
            taken += 1
            os.close(descriptor)
        return taken

    def give_back(self) -> None:
        """Close them all."""
        while self._held:
            os.close(self._held.pop())


# Peers -------------------------------------------------------------------------------


def dial(address: str, timeout_s: float = 20.0) -> socket.socket:
    """Return a socket that is connected to a manager's address."""
    where = parse_address(address)
    family = socket.AF_INET if where.path is None else socket.AF_UNIX
    peer = socket.socket(family, socket.SOCK_STREAM)
    peer.settimeout(timeout_s)
    try:
        peer.connect(where.stock)
        if where.path is None:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        peer.close()
        raise
    return peer


class FrameSocket:
    """A socket that sends and receives whole frames, or whatever it is told to."""

    def __init__(self, peer: socket.socket) -> None:
        self.socket = peer
        self.reader = wire.FrameReader(2**31)

    def __enter__(self) -> Any:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def send(self, payload: bytes) -> None:
        """Send one frame."""
        self.socket.sendall(wire.framed(payload))

    def send_raw(self, data: bytes) -> bool:
        """Send bytes as they are; tell whether the peer was there to take them."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def receive(self) -> bytes | None:
        """Return the next frame, ``None`` when the peer has closed the connection."""
        payload = self.reader.next() if self.reader.buffered else None
        while payload is None:
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                raise
            except OSError:
                return None
            if not data:
                return None
            payload = self.reader.feed(data)
        return payload

    def is_closed_by_peer(self) -> bool:
        """Read until the end; tell whether it comes before the socket's timeout."""
        try:
            while self.receive() is not None:
                pass
        except TimeoutError:
            return False
        return True


class OwnPeer(FrameSocket):
    """A client of ours by hand: every frame is under the test's control."""

    def __init__(self, address: str, key: bytes, *, timeout_s: float = 20.0) -> None:
        super().__init__(dial(address, timeout_s))
        self._key = key
        self.nonces = (b"", b"")
        self.welcome: wire.Welcome | None = None

    def shake_hands(self) -> OwnPeer:
        """Go through the stock handshake."""
        client, done = handshake.ClientHandshake(self._key), False
        while not done:
            payload = self.receive()
            assert payload is not None, "closed in the middle of the handshake"
            answers, done = client.receive(payload)
            for answer in answers:
                self.send(answer)
        self.nonces = client.nonces
        return self

    def hello(self, lane: Lane) -> bytes:
        """Return the payload of a right HELLO."""
        right = handshake.proof(self._key, b"client", self.nonces)
        return wire.pack_hello(wire.Hello(1, lane, right, bytes(32)))

    def greet(self, lane: Lane | None = None) -> OwnPeer:
        """Say HELLO and hear WELCOME."""
        self.send(self.hello(lane or fresh_lane()))
        return self.hear_welcome()

    def hear_welcome(self) -> OwnPeer:
        """Read the WELCOME."""
        payload = self.receive()
        assert payload is not None, "closed after HELLO"
        self.welcome = wire.unpack_welcome(payload)
        return self

    def call_frame(
        self,
        number: int,
        target: tuple[str, str, str],
        *args: Any,
        remaining_s: float = 20.0,
        body: bytes | None = None,
    ) -> bytes:
        """Return the payload of a call."""
        assert self.welcome is not None
        if body is None:
            body = codec.encode((args, {})) if args else b""
        return wire.pack_call(
            number, remaining_s, self.welcome.boot_id, wire.pack_target(*target), body
        )

    def send_call(
        self, number: int, target: tuple[str, str, str], *args: Any, **options: Any
    ) -> None:
        """Send a call, and do not wait."""
        self.send(self.call_frame(number, target, *args, **options))

    def call(
        self, number: int, target: tuple[str, str, str], *args: Any, **options: Any
    ) -> Any:
        """Call; return the value, or the error as an object."""
        self.send_call(number, target, *args, **options)
        return self.answer(number)

    def answer(self, number: int) -> Any:
        """Read the reply to a call; return the value, or the error as an object."""
        payload = self.receive()
        assert payload is not None, "closed before the reply"
        reply = wire.unpack_reply(payload)
        assert reply.number == number
        if reply.failed:
            return failures.error_from(failures.unpack(reply.body))
        return codec.decode(reply.body)


def fresh_lane() -> Lane:
    """Return a lane that nobody has used."""
    return new_lane(os.urandom(16))


class RogueServer:
    """A listening socket; each connection is given to ``serve`` in a thread.

    Without a ``path`` it is a TCP socket.
    """

    def __init__(self, path: Path | None, serve: Callable[[FrameSocket], None]) -> None:
        self.accepted = 0
        self.errors: list[Exception] = []
        self._serve = serve
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(path))
            self.address = f"unix://{path}"
        self._listener.listen(64)
        self._threads: list[threading.Thread] = []
        self._peers: list[FrameSocket] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def __enter__(self) -> RogueServer:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything and wait for the threads."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(20)
        self._listener.close()
        for peer in self._peers:
            try:
                peer.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            peer.settimeout(20)
            self.accepted += 1
            frames = FrameSocket(peer)
            self._peers.append(frames)
            thread = threading.Thread(target=self._run, args=(frames,))
            self._threads.append(thread)
            thread.start()

    def _run(self, frames: FrameSocket) -> None:
        try:
            self._serve(frames)
        except Exception as error:
            # Mostly a peer that left; what matters is what the client reports.
            self.errors.append(error)
        finally:
            frames.close()


def serve_handshake(frames: FrameSocket, key: bytes) -> wire.Hello:
    """Be a server that knows the key, until the client's HELLO has been answered."""
    server, done = handshake.ServerHandshake(key, False), False
    frames.send(server.first())
    while not done:
        payload = frames.receive()
        assert payload is not None
        answer, done = server.receive(payload)
        if answer:
            frames.send(answer)
    payload = frames.receive()
    assert payload is not None
    hello = wire.unpack_hello(payload)
    proof = handshake.proof(key, b"server", server.nonces)
    frames.send(wire.pack_welcome(wire.Welcome(b"b" * 16, 1, proof, False, 2**20)))
    return hello


# Measures ----------------------------------------------------------------------------


def resident_bytes(process_id: int) -> int:
    """Return how much memory a process holds."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {process_id} has no memory; it has ended")


def processor_seconds(process_id: int) -> float:
    """Return how much processor time a process has used."""
    text = Path(f"/proc/{process_id}/stat").read_text()
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_descriptors(process_id: int) -> int:
    """Return how many descriptors a process has open."""
    return len(os.listdir(f"/proc/{process_id}/fd"))


class Prober:
    """Calls another object all the time, and notes how long each answer took."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._probe)
        self.seconds: list[float] = []
        self.wrong: list[Any] = []

    def __enter__(self) -> Prober:
        """Start."""
        self._handle.echo("first")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _probe(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            began = time.monotonic()
            try:
                if self._handle.echo(number) != number:
                    self.wrong.append(number)
            except Exception as error:
                self.wrong.append(error)
                return
            self.seconds.append(time.monotonic() - began)
            self._stop.wait(0.005)

    @property
    def worst(self) -> float:
        """Return the longest wait, and check that there were some and all were right.

        A wait that has not ended counts, because the prober is stopped before.
        """
        assert not self._thread.is_alive()
        assert not self.wrong, self.wrong
        assert len(self.seconds) >= 5, self.seconds
        return max(self.seconds)


class Threads:
    """Runs functions in threads; what one of them raises is raised at the end."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        """Run a function in a thread."""

        def run() -> None:
            try:
                function(*args)
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=run)
        self._threads.append(thread)
        thread.start()

    def join(self, timeout_s: float = 60.0) -> None:
        """Wait for all; fail when one is stuck; raise what one has raised."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        assert not stuck, f"stuck: {stuck}"
        if self.errors:
            raise self.errors[0]
