"""Connections: how many, how quick, and what the silent and the greedy cost.

Scenarios also run against the standard library's manager, which must show the pain.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import selectors
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Client as StockConnection
from pathlib import Path
from typing import Any

import pytest

import state_server

from .processes import (
    Outcome,
    Side,
    cpu_s,
    descriptor_count,
    freeze,
    is_running,
    our_manager,
    run_bounded,
    side_of,
    stock_manager,
    thread_count,
    wait_until,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
LOOPBACK = ("127.0.0.1", 0)


@contextlib.contextmanager
def both(folder: Path, *options: str, tcp: bool = False) -> Iterator[tuple[Side, Side]]:
    """Run a manager of ours and one of the standard library."""
    options += ("--address", "tcp://127.0.0.1:0") if tcp else ()
    with (
        our_manager(folder / "ours", *options) as manager,
        stock_manager(folder / "stock", LOOPBACK if tcp else None) as stock,
    ):
        yield side_of(manager), stock


def open_socket(side: Side) -> socket.socket:
    """Return a connected socket on which nothing was said."""
    family = socket.AF_UNIX if isinstance(side.address, str) else socket.AF_INET
    peer = socket.socket(family)
    peer.connect(side.address)
    peer.settimeout(10)
    return peer


def close_all(peers: list[socket.socket]) -> None:
    """Close all sockets."""
    for peer in peers:
        peer.close()


# Threads and descriptors ---------------------------------------------------------


def keep_sixty_threads(side: Side) -> tuple[int, int]:
    """Call once in each of 60 threads that stay; return the server's threads, sockets.

    One after the other: no two calls are made at once.
    """
    handle = side.get("Echo")
    turn, stay = threading.Lock(), threading.Event()
    called = threading.Semaphore(0)

    def call() -> None:
        with turn:
            handle.echo(1)
        called.release()
        stay.wait()

    threads = [threading.Thread(target=call) for _ in range(60)]
    for thread in threads:
        thread.start()
    for _ in threads:
        called.acquire()
    found = thread_count(side.pid), descriptor_count(side.pid)
    stay.set()
    for thread in threads:
        thread.join()
    return found


@linux
def test_idle_client_threads_cost_nothing(tmp_path: Path) -> None:
    """Sixty client threads that have called and now idle hold no sixty connections.

    Each would otherwise pin a thread and a descriptor of the server while it lives.
    """
    with both(tmp_path) as (ours, stock):
        threads, descriptors = run_bounded(ours, keep_sixty_threads).value
        assert threads < 20
        assert descriptors < 30
        threads, descriptors = run_bounded(stock, keep_sixty_threads).value
        assert threads >= 60
        assert descriptors >= 60


def test_connections_of_one_client_are_bounded(tmp_path: Path) -> None:
    """Forty threads that call at once share the few connections a client may have."""
    with (
        our_manager(tmp_path / "ours") as manager,
        manager.client(connections_max=4) as client,
    ):
        found: list[int] = []
        threads = [
            threading.Thread(
                target=lambda n=n: found.append(
                    client.get("Echo", str(n)).echo_late(n, 0.02)
                )
            )
            for n in range(40)
        ]
        for thread in threads:
            thread.start()
        most = 0
        with manager.client() as watcher:
            while any(thread.is_alive() for thread in threads):
                most = max(most, watcher.status()["connections"] - 1)
        for thread in threads:
            thread.join()
        assert sorted(found) == list(range(40))
        assert 1 <= most <= 4


def starve_and_measure(side: Side) -> tuple[float, float]:
    """Leave no descriptor for new connections; return how busy that keeps the server.

    The share of looks at which a thread of it wanted to run, which a busy machine makes
    larger, and the share of one processor that it got, which that makes smaller.
    """
    side.get("Echo").echo(1)
    used = descriptor_count(side.pid)
    limits = resource.prlimit(side.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(side.pid, resource.RLIMIT_NOFILE, (used + 8, limits[1]))
    peers = []
    for _ in range(40):
        peer = socket.socket(
            socket.AF_UNIX if isinstance(side.address, str) else socket.AF_INET
        )
        peer.settimeout(2)
        with contextlib.suppress(OSError):
            peer.connect(side.address)
        peers.append(peer)
    looks = 100
    wanted = 0
    started, used_s = time.monotonic(), cpu_s(side.pid)
    for _ in range(looks):
        time.sleep(0.01)
        wanted += is_running(side.pid)
    got = (cpu_s(side.pid) - used_s) / (time.monotonic() - started)
    close_all(peers)
    resource.prlimit(side.pid, resource.RLIMIT_NOFILE, limits)
    return wanted / looks, got


@linux
def test_out_of_descriptors(tmp_path: Path) -> None:
    """Without a descriptor left the manager rests, says so, and recovers by itself.

    Trying again at once, for ever, takes a whole processor.
    """
    with both(tmp_path) as (ours, stock):
        quiet = ours.connect()
        assert quiet.get("Echo").echo("before") == "before"
        resting = run_bounded(ours, starve_and_measure)
        assert min(resting.value) < 0.3, resting
        assert quiet.get("Echo").echo("same connection") == "same connection"
        quiet.close()
        with ours.connect() as fresh:
            assert fresh.get("Echo").echo("after") == "after"
        assert "descriptor" in (ours.folder / "manager.log").read_text()
        greedy = run_bounded(stock, starve_and_measure)
        assert max(greedy.value) > 0.7, greedy


def starve_of_threads(side: Side) -> str:
    """Take the server's threads away for a while; call afterwards."""
    threads = side.get("Threads")
    threads.starve()
    with contextlib.suppress(Exception):
        if side.ours:
            # Many at once, so that the manager wants more threads than it has.
            calls = [
                threading.Thread(
                    target=side.get("Echo", str(n)).echo_late, args=(n, 0.3)
                )
                for n in range(6)
            ]
            for call in calls:
                call.start()
            for call in calls:
                call.join()
        else:
            peer = open_socket(side)
            peer.recv(100)
            peer.close()
    threads.feed()
    handle = side.connect().get("Echo") if side.ours else side.get("Echo")
    return handle.echo("heard")


@linux
def test_threads_that_cannot_be_started(tmp_path: Path) -> None:
    """A thread that cannot be started costs a log line; the manager still listens.

    Otherwise the accepting thread dies of it: the process lives and is deaf for ever.
    """
    with both(tmp_path) as (ours, stock):
        outcome = run_bounded(ours, starve_of_threads)
        assert outcome.value == "heard", outcome
        log = (ours.folder / "manager.log").read_text()
        assert "thread could not be started" in log
        outcome = run_bounded(stock, starve_of_threads, timeout_s=4)
        assert outcome.value != "heard", outcome


@linux
def test_silent_peers(tmp_path: Path) -> None:
    """A hundred peers that never show a key get no thread, and are closed in time."""
    with both(tmp_path, "--handshake-timeout-s", "1.5") as (ours, stock):
        before = thread_count(ours.pid)
        peers = [open_socket(ours) for _ in range(100)]
        with ours.connect() as client:
            assert client.get("Echo").echo("heard") == "heard"
            assert thread_count(ours.pid) <= before + 3
            wait_until(lambda: client.status()["handshaking"] == 0)
        for peer in peers:
            # The challenge, then the end.
            assert len(list(iter(lambda peer=peer: peer.recv(1000), b""))) <= 2
        close_all(peers)
        peers = [open_socket(stock) for _ in range(100)]
        wait_until(lambda: thread_count(stock.pid) > 100)
        close_all(peers)


def test_too_many_silent_peers(tmp_path: Path) -> None:
    """Beyond the limit, the peer that has been silent for longest makes room."""
    with our_manager(tmp_path / "ours", "--handshakes-max", "20") as manager:
        side = side_of(manager)
        peers = [open_socket(side) for _ in range(60)]
        with manager.client() as client:
            assert client.get("Echo").echo("heard") == "heard"
            assert client.status()["handshaking"] <= 20
        close_all(peers)


def test_too_many_connections(tmp_path: Path) -> None:
    """Beyond the limit a client gets a clear refusal, and is served later."""
    with our_manager(tmp_path / "ours", "--connections-max", "3") as manager:
        clients = [manager.client(timeout=20) for _ in range(3)]
        for client in clients:
            assert client.get("Echo").echo(1) == 1
        with (
            manager.client(timeout=3) as late,
            pytest.raises(state_server.Overloaded) as caught,
        ):
            late.get("Echo").echo(2)
        assert caught.value.retryable
        clients.pop().close()
        with manager.client(timeout=20) as late:
            assert late.get("Echo").echo(3) == 3
        for client in clients:
            client.close()


# Bursts --------------------------------------------------------------------------


def count_late_connects(side: Side, wanted: int) -> int:
    """Connect many sockets while the server is busy elsewhere; return the late ones."""
    freeze(side.pid)
    peers, late = [], 0
    family = socket.AF_UNIX if isinstance(side.address, str) else socket.AF_INET
    with selectors.DefaultSelector() as selector:
        for _ in range(wanted):
            peer = socket.socket(family)
            peer.setblocking(False)
            peers.append(peer)
            result = peer.connect_ex(side.address)
            if result == errno.EAGAIN:
                late += 1
            elif result == errno.EINPROGRESS:
                selector.register(peer, selectors.EVENT_WRITE)
        until = time.monotonic() + 1.0
        while selector.get_map() and time.monotonic() < until:
            for key, _ in selector.select(0.1):
                selector.unregister(key.fileobj)
        late += len(selector.get_map())
    os.kill(side.pid, signal.SIGCONT)
    close_all(peers)
    return late


@linux
@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_burst_of_connects(tmp_path: Path, tcp: bool) -> None:
    """Two hundred connects while the server looks elsewhere all succeed at once.

    A backlog of 16, or of 128, refuses the rest, or lets it wait for a second.
    """
    with both(tmp_path, tcp=tcp) as (ours, stock):
        assert run_bounded(ours, count_late_connects, 200).value == 0
        assert run_bounded(stock, count_late_connects, 200).value > 50


def test_two_hundred_clients_at_once(tmp_path: Path) -> None:
    """Two hundred clients at the same instant are all answered, each number once."""
    with our_manager(tmp_path / "ours") as manager:
        barrier, numbers = threading.Barrier(200), []

        def call() -> None:
            with manager.client() as client:
                barrier.wait()
                numbers.append(client.get("Counter").query())

        threads = [threading.Thread(target=call) for _ in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(numbers) == list(range(1, 201))


# Speed ---------------------------------------------------------------------------


def time_large_calls(side: Side) -> float:
    """Return the median seconds of a call with 20 kB."""
    handle = side.get("Echo")
    payload, times = bytes(20_000), []
    for _ in range(25):
        started = time.perf_counter()
        handle.echo(payload)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@linux
def test_calls_of_twenty_kilobytes_over_tcp(tmp_path: Path) -> None:
    """A call of 20 kB over TCP waits for no delayed acknowledgement.

    Header and body in two writes with Nagle's algorithm on cost 88 ms, not 0.1.
    """
    with both(tmp_path, tcp=True) as (ours, stock):
        assert run_bounded(ours, time_large_calls).value < 0.035
        assert run_bounded(stock, time_large_calls).value > 0.038


class Relay:
    """Passes bytes between clients and a manager; counts connections, can cut them.

    ``cut_after``: the reply with this number (from 1, of all connections) does not
    arrive; its connection is closed instead.
    """

    def __init__(self, target: Any, path: Path) -> None:
        self.address = str(path)
        self.opened = 0
        self.cut_next_reply = threading.Event()
        self._target = target
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen(50)
        self._threads: list[threading.Thread] = []
        self._ends: list[socket.socket] = []

    def __enter__(self) -> Relay:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        close_all(self._ends)

    def _start(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.opened += 1
            family = socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET
            server = socket.socket(family)
            server.connect(self._target)
            self._ends += [client, server]
            self._start(self._pump, client, server, False)
            self._start(self._pump, server, client, True)

    def _pump(self, source: socket.socket, sink: socket.socket, replies: bool) -> None:
        try:
            while data := source.recv(65536):
                if replies and self.cut_next_reply.is_set():
                    self.cut_next_reply.clear()
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def make_and_drop_handles(side: Side, how_many: int) -> None:
    """Make handles and let them go; call once."""
    import gc

    client = side.connect()
    for n in range(how_many):
        handle = client.get("Counter", str(n)) if side.ours else client.NewCounter()
        if n == 0:
            handle.peek()
        del handle
    gc.collect()


def test_handles_cost_no_connections(tmp_path: Path) -> None:
    """Fifty handles made and dropped by a client take the one connection it calls on.

    Each stock proxy opens several, to be made, counted and given back.
    """
    with both(tmp_path) as (ours, stock):
        opened = []
        for side in (ours, stock):
            with Relay(side.address, tmp_path / f"relay-{side.ours}") as relay:
                address, side.address = side.address, relay.address
                outcome = run_bounded(side, make_and_drop_handles, 50)
                assert outcome.in_time, outcome
                side.address = address
                opened.append(relay.opened)
        assert opened[0] == 1
        assert opened[1] > 100


def test_lost_reply_is_given_again(tmp_path: Path) -> None:
    """A reply lost with its connection is given again; the method has run once.

    Without a number on each call nobody can know, and a retry counts twice.
    """
    with both(tmp_path) as (ours, stock):
        with Relay(ours.address, tmp_path / "relay") as relay:
            client = state_server.connect(relay.address, ours.key)
            counter = client.get("Counter", "lost")
            assert counter.query() == 1
            relay.cut_next_reply.set()
            assert counter.query() == 2
            assert counter.query() == 3
            client.close()
        with Relay(stock.address, tmp_path / "stock-relay") as relay:
            stock.address = relay.address
            proxy = stock.get("Counter")
            assert proxy.query() == 1
            relay.cut_next_reply.set()
            with pytest.raises((EOFError, OSError)):
                proxy.query()


def keepalive_timers(port: int) -> set[str]:
    """Return the timer of each established socket of the server at ``port``."""
    timers = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[3] == "01":
            timers.add(fields[5].split(":")[0])
    return timers


@linux
def test_vanished_machines(tmp_path: Path) -> None:
    """The server asks over TCP whether its idle peers still exist.

    Without keepalive a machine that lost its power holds its socket for ever.
    """
    with both(tmp_path, tcp=True) as (ours, stock):
        peers = [open_socket(ours), open_socket(stock)]
        wait_until(lambda: keepalive_timers(ours.address[1]) == {"02"})
        wait_until(lambda: keepalive_timers(stock.address[1]) == {"00"})
        close_all(peers)


# Sizes ---------------------------------------------------------------------------


def test_large_payloads(tmp_path: Path) -> None:
    """Sixteen megabytes pass whole, both ways; others are served meanwhile."""
    with our_manager(tmp_path / "ours") as manager, manager.client() as client:
        payload = os.urandom(16 * 1024 * 1024)
        assert client.get("Echo").echo(payload) == payload


def test_payload_above_the_limit(tmp_path: Path) -> None:
    """A call above the size limit is refused soon, with the limit named, and once.

    The connection of nobody else is touched, and the client can go on.
    """
    with (
        our_manager(tmp_path / "ours", "--frame-bytes-max", "100000") as manager,
        manager.client(timeout=20) as client,
        manager.client() as other,
    ):
        echo = client.get("Echo")
        assert other.get("Echo").echo(1) == 1
        started = time.monotonic()
        with pytest.raises(state_server.TooLarge, match=r"100,?000"):
            echo.size(bytes(200_000))
        assert time.monotonic() - started < 10
        assert echo.size(bytes(50_000)) == 50_000
        assert other.status()["accepted"] <= 6


def test_result_above_the_limit(tmp_path: Path) -> None:
    """A result above the size limit is a clear error; the next call is answered."""
    with (
        our_manager(tmp_path / "ours", "--frame-bytes-max", "100000") as manager,
        manager.client(timeout=20) as client,
    ):
        echo = client.get("Echo")
        with pytest.raises(state_server.StateServerError, match=r"100,?000"):
            echo.big(300_000)
        assert echo.size(b"abc") == 3


@pytest.mark.parametrize("size", [100_001, 30_000_000])
def test_payload_of_a_stock_client_above_the_limit(tmp_path: Path, size: int) -> None:
    """It learns why, although it cannot know the limit, and can go on.

    What it sends is thrown away as it comes: it takes no memory.
    """
    with our_manager(tmp_path / "ours", "--frame-bytes-max", "100000") as manager:
        echo = manager.stock_client("Echo").Echo()
        assert echo.size(b"abc") == 3
        before = resident_bytes(manager.pid)
        for _ in range(2):
            with pytest.raises(Exception, match=r"limit of 100000\..*bytes_max"):
                echo.size(bytes(size))
            assert echo.size(bytes(50_000)) == 50_000
        assert resident_bytes(manager.pid) - before < 10_000_000
        assert manager.log.count("above the limit of 100000. It is thrown away") == 2


def test_payload_above_the_limit_has_the_time_of_a_frame(tmp_path: Path) -> None:
    """Who promises more than may be sent, and then sends nothing, is closed."""
    with our_manager(
        *(tmp_path / "ours", "--frame-bytes-max", "100000"),
        *("--frame-timeout-s", "0.5"),
    ) as manager:
        with StockConnection(manager.stock_address, authkey=manager.key) as peer:
            peer.send((None, "accept_connection", ("one",), {}))
            assert peer.recv() == ("#RETURN", None)
            os.write(peer.fileno(), b"\x7f\xff\xff\x00" + bytes(1000))
            assert peer.poll(10)
            with pytest.raises((EOFError, ConnectionResetError)):
                peer.recv()
        assert "the rest of its frame did not come" in manager.log


def allocation_for_a_promise(side: Side) -> int:
    """Promise a frame of 2 GB, send a little; return the server's growth in bytes."""
    size = resident_bytes(side.pid)
    with open_socket(side) as peer:
        peer.recv(200)
        peer.sendall(b"\x7f\xff\xff\x00" + bytes(1000))
        with contextlib.suppress(OSError):
            while peer.recv(1000):
                pass
    return resident_bytes(side.pid) - size


def resident_bytes(pid: int) -> int:
    """Return the memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@linux
def test_promised_sizes_take_no_memory(tmp_path: Path) -> None:
    """A peer that promises 2 GB is closed; memory grows with what has arrived."""
    with our_manager(tmp_path / "ours") as manager:
        outcome: Outcome = run_bounded(side_of(manager), allocation_for_a_promise)
        assert outcome.value < 20_000_000, outcome
