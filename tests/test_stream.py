"""The bytes of one connection: every wait ends at its deadline, in every thread."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from state_server.addresses import parse_address
from state_server.client.stream import BrokenLink, Stream, TimeIsUp

from .fakes import PATIENCE_S

Run = Callable[[Callable[[], Any]], Any]


class Peer:
    """The other end of a stream."""

    def __init__(self, folder: Path) -> None:
        path = str(folder / "peer.sock")
        self.address = parse_address(path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen()
        self.stream = Stream(self.address, soon(PATIENCE_S), 0.0)
        self.socket, _ = self.listener.accept()


def soon(seconds: float) -> float:
    """Return a deadline so many seconds from now."""
    return time.monotonic() + seconds


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    """Return the other end of a stream that is connected."""
    peer = Peer(tmp_path)
    yield peer
    for each in (peer.stream, peer.socket, peer.listener):
        each.close()


def _here(run: Callable[[], Any]) -> Any:
    return run()


def _in_a_thread(run: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


@pytest.fixture(params=[_here, _in_a_thread], ids=["main thread", "another thread"])
def run(request: pytest.FixtureRequest) -> Any:
    """Run something in the main thread, and in another: they wait differently."""
    assert threading.current_thread() is threading.main_thread()
    return request.param


@pytest.mark.parametrize("wait_s", [0.2, 1.3])
def test_a_mute_peer_is_waited_for_until_the_deadline(
    peer: Peer, run: Run, wait_s: float
) -> None:
    """Not less, although the socket's own wait may be shorter, and not much longer."""
    started = time.monotonic()
    with pytest.raises(TimeIsUp):
        run(lambda: peer.stream.receive(started + wait_s))
    assert wait_s <= time.monotonic() - started < wait_s + PATIENCE_S / 4


def test_what_comes_late_is_received(peer: Peer, run: Run) -> None:
    """Bytes that come after the first second of a wait end it."""
    timer = threading.Timer(1.2, peer.socket.sendall, [b"at last"])
    timer.start()
    assert run(lambda: peer.stream.receive(soon(PATIENCE_S))) == b"at last"
    timer.join()


def test_a_short_wait_does_not_shorten_the_next(peer: Peer, run: Run) -> None:
    """The socket's own wait is that of the deadline at hand, whatever it was before."""

    def twice() -> None:
        with pytest.raises(TimeIsUp):
            peer.stream.receive(soon(0.05))
        timer = threading.Timer(0.3, peer.socket.sendall, [b"x"])
        timer.start()
        assert peer.stream.receive_into(memoryview(bytearray(9)), soon(60.0)) == 1
        timer.join()

    run(twice)


def test_an_end_is_noticed(peer: Peer, run: Run) -> None:
    """A peer that hangs up ends the wait at once, and nothing was left unsent."""
    peer.socket.close()
    with pytest.raises(BrokenLink) as caught:
        run(lambda: peer.stream.receive(soon(PATIENCE_S)))
    assert caught.value.sent


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_peer_that_reads_nothing_is_given_up(
    peer: Peer, run: Run, in_parts: bool
) -> None:
    """A send that the socket does not take ends at its deadline as well."""
    data = bytes(8 * 1024 * 1024)

    def send() -> None:
        if in_parts:
            peer.stream.send_parts([data[:5], data], soon(0.2))
        else:
            peer.stream.send(data, soon(0.2))

    with pytest.raises(TimeIsUp) as caught:
        run(send)
    assert caught.value.sent


def test_signals_do_not_prolong_a_wait(peer: Peer) -> None:
    """In the main thread, which hears them, a wait goes on where it was interrupted."""
    heard: list[int] = []
    former = signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    started = time.monotonic()
    try:
        with pytest.raises(TimeIsUp):
            peer.stream.receive(started + 0.4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert heard
    assert time.monotonic() - started < PATIENCE_S / 4
