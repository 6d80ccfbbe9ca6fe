"""The engine's leader, fed by hand: what becomes of one connection, and who commits."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import state_server
from state_server import wire
from state_server.engine import Engine, EngineLimits
from state_server.engine.connection import Connection
from state_server.engine.conversation import Manners
from state_server.host import Host
from state_server.sharing import Catalogue, describe_class

from .durable_classes import BOOT, Count, FakeStore
from .fakes import PATIENCE_S
from .processes import wait_until

KEY = b"key"


class Slow:
    """Has a method that lasts until the test ends it."""

    entered = threading.Semaphore(0)
    release = threading.Event()

    def wait(self) -> None:
        """Keep the thread that runs this."""
        Slow.entered.release()
        assert Slow.release.wait(PATIENCE_S)


class Bench:
    """An engine over a store in memory, and where clients find it."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        catalogue = Catalogue()
        catalogue.add(describe_class(Count))
        catalogue.add(describe_class(Slow, durable=False, slow=True))
        catalogue.add(describe_class(Slow, name="Long", durable=False))
        self.store = FakeStore()
        self.host = Host(catalogue, BOOT, store=self.store)
        manners = Manners(KEY, b"admin", self.host, lambda *_: None, 2**26)
        self.engine = Engine(manners, EngineLimits(**limits))
        self.path = str(folder / "engine.sock")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        listener.listen(64)
        self.host.start()
        self.engine.start(listener)

    def client(self) -> state_server.Client:
        """Return a client of the engine."""
        client = state_server.connect(self.path, KEY, timeout=PATIENCE_S)
        for name in ("Count", "Slow", "Long"):
            client._contracts[name] = self.host.describe(name)
        return client

    def stop(self) -> None:
        """End everything."""
        Slow.release.set()
        self.store.release()
        self.engine.drain(PATIENCE_S)
        self.engine.stop()
        self.host.stop()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    """Return what makes a bench with other limits."""
    benches: list[Bench] = []
    Slow.release.clear()

    def make(**limits: Any) -> Bench:
        benches.append(Bench(tmp_path, **limits))
        return benches[-1]

    yield make
    for bench in benches:
        bench.stop()


def test_the_leader_commits_what_it_ran(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk is quick no other thread is woken for a commit."""
    bench = make()
    commit, names = bench.store.commit, set()

    def watched(*batch: Any) -> None:
        names.add(threading.current_thread().name)
        commit(*batch)

    monkeypatch.setattr(bench.store, "commit", watched)
    with bench.client() as client:
        assert [client.get("Count").add() for _ in range(20)] == list(range(1, 21))
    assert not any("writer" in name for name in names), names
    assert bench.host._committer is not None
    assert bench.host._committer._gatherer == bench.engine._crew._leader


def test_at_the_limit_of_threads_nobody_could_relieve_the_leader(make: Any) -> None:
    """That is what decides whether it may wait for the disk."""
    bench = make(threads_max=3)
    crew = bench.engine._crew
    with bench.client() as client:
        assert crew.can_be_relieved()
        # One spare runs the slow one, and the leader itself is displaced by the other.
        stuck = [
            threading.Thread(target=client.get(name).wait) for name in ("Slow", "Long")
        ]
        for thread in stuck:
            thread.start()
            assert Slow.entered.acquire(timeout=PATIENCE_S)
        wait_until(lambda: not crew.can_be_relieved())
        Slow.release.set()
        for thread in stuck:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        wait_until(crew.can_be_relieved)


def test_the_last_thread_that_could_lead_never_waits_for_the_disk(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody could relieve the leader, a stuck disk holds up changes only."""
    bench = make()
    monkeypatch.setattr(bench.engine._crew, "can_be_relieved", lambda: False)
    # The leader would lose its place to a spare; here it must not need to.
    monkeypatch.setattr(bench.engine._crew, "_displace", lambda: None)
    with bench.client() as client:
        assert client.get("Count").add() == 1
        bench.store.wait_for_commit()
        bench.store.hold()
        changing = threading.Thread(target=client.get("Count").add)
        changing.start()
        bench.store.wait_for_commit()
        assert client.ping(timeout=5) < 5
        bench.store.release()
        changing.join(PATIENCE_S)
        assert not changing.is_alive()


def test_a_frame_for_which_there_is_no_memory_ends_its_connection(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of it is lost, so nothing more is taken from that connection."""
    bench = make(handshake_timeout_s=1000.0)

    def feed(self: wire.FrameReader, data: bytes) -> None:
        raise MemoryError

    with bench.client() as client:
        assert client.get("Count").add() == 1
        with monkeypatch.context() as patch:
            patch.setattr(wire.FrameReader, "feed", feed)
            peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            peer.settimeout(PATIENCE_S)
            peer.connect(bench.path)
            assert peer.recv(100)
            peer.send(b"\0\0\0\1")
            assert peer.recv(100) == b""
            peer.close()
        assert client.get("Count").add() == 2


class Owner:
    """What a connection asks of the engine; counts what is left to send."""

    def __init__(self) -> None:
        self.waiting = 0

    def watch(self, connection: Connection, events: int) -> None:
        """Do nothing."""

    def unwatch(self, connection: Connection) -> None:
        """Do nothing."""

    def revisit(self, connection: Connection) -> None:
        """Do nothing."""

    def await_writable(self, connection: Connection, new_bytes: int) -> None:
        """Count."""
        self.waiting += new_bytes

    def written(self, connection: Connection) -> None:
        """Do nothing."""

    def count_outbound(self, change: int) -> None:
        """Count."""
        self.waiting += change


@pytest.mark.parametrize("is_full", [True, False])
def test_a_large_reply_arrives_whole_however_little_fits(is_full: bool) -> None:
    """Even its length may not fit any more: nothing is lost or doubled."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(PATIENCE_S)
    filler = 0
    if is_full:
        while True:
            try:
                filler += ours.send(bytes(1000))
            except BlockingIOError:
                break
    manners = Manners(KEY, b"a", Host(Catalogue(), BOOT), lambda *_: None, 2**26)
    connection = Connection(Owner(), ours, manners)
    payload = os.urandom(wire.LARGE_BYTES)
    connection.send(payload)
    received = bytearray()
    while len(received) < filler + 4 + len(payload):
        connection.flush()
        received += theirs.recv(10**6)
    assert received[filler:] == wire.framed(payload)
    assert connection.out is None
    ours.close()
    theirs.close()
