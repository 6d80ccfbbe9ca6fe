"""Too many connections, silent and slow peers, wrong keys, no descriptors left."""

from __future__ import annotations

import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import state_server
from state_server import Denied, NotOffered, Overloaded, codec, handshake, wire

from .conftest import StartManager
from .force_classes import (
    FrameSocket,
    OwnPeer,
    Prober,
    Threads,
    dial,
    open_descriptors,
    processor_seconds,
    resident_bytes,
    sharing,
)
from .processes import ManagerProcess, wait_until

MEBIBYTE = 1024 * 1024
OTHERS_MAX_S = 5.0
QUERY = ("SomeObj", "default", "query")


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Let this process and its children open a few thousand files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if wanted < 2600:
        pytest.skip(f"the system allows no more than {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def peers_of(manager: ManagerProcess, count: int, stack: ExitStack) -> list[OwnPeer]:
    """Return so many peers of ours, connected and greeted."""
    peers = []
    for _ in range(count):
        peer = stack.enter_context(OwnPeer(manager.address, manager.key))
        peers.append(peer.shake_hands().greet())
    return peers


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.parametrize("address", ["unix", "tcp"])
def test_a_thousand_idle_connections_cost_nobody_time(
    start_manager: StartManager, address: str
) -> None:
    """With 1,000 idle connections calls are quick, and the idle ones still work."""
    options = ["--address", "tcp://127.0.0.1:0"] if address == "tcp" else []
    manager = start_manager(*options)
    with ExitStack() as stack:
        peers = peers_of(manager, 1000, stack)
        client = stack.enter_context(manager.client())
        handle = client.get("SomeObj", "mine")
        waits = []
        for number in range(300):
            began = time.monotonic()
            assert handle.query() == number + 1
            waits.append(time.monotonic() - began)
        assert sorted(waits)[150] < 0.05
        assert client.status()["connections"] == 1001
        before = processor_seconds(manager.pid)
        time.sleep(1)
        assert processor_seconds(manager.pid) - before < 0.3
        for number, peer in enumerate(peers[::50]):
            assert peer.call(1, QUERY) == number + 1
    with manager.client() as client:
        wait_until(lambda: client.status()["connections"] == 1)


@pytest.mark.parametrize("address", ["unix", "tcp"])
def test_two_hundred_connections_at_the_same_instant(
    start_manager: StartManager, address: str
) -> None:
    """Two hundred callers that connect at once are all served, each number once."""
    options = ["--address", "tcp://127.0.0.1:0"] if address == "tcp" else []
    manager = start_manager(*options)
    count = 200
    barrier = threading.Barrier(count)
    numbers: list[int] = []
    threads = Threads()

    def call() -> None:
        barrier.wait(60)
        with OwnPeer(manager.address, manager.key) as peer:
            numbers.append(peer.shake_hands().greet().call(1, QUERY))

    for _ in range(count):
        threads.start(call)
    threads.join()
    assert sorted(numbers) == list(range(1, count + 1))


def test_out_of_descriptors_and_back(start_manager: StartManager) -> None:
    """Without descriptors: a log line, no spin, open connections work, and it ends."""
    manager = start_manager(*sharing("Echo"))
    with ExitStack() as stack:
        client = stack.enter_context(manager.client())
        handle = client.get("Echo")
        assert handle.echo(1) == 1
        limit = open_descriptors(manager.pid) + 20
        _, hard = resource.prlimit(manager.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(manager.pid, resource.RLIMIT_NOFILE, (limit, hard))
        waiting = [stack.enter_context(dial(manager.address)) for _ in range(60)]
        wait_until(lambda: "No descriptor for a new connection" in manager.log)
        before = processor_seconds(manager.pid)
        time.sleep(1.0)
        used = processor_seconds(manager.pid) - before
        assert used < 0.5, f"{used} s of processor time in one second"
        # Who is connected is served; who is not hears that the manager is full.
        assert handle.echo(2) == 2
        with (
            state_server.connect(manager.address, manager.key, timeout=0.5) as late,
            pytest.raises((Overloaded, state_server.Unreachable)),
        ):
            late.ping()
        for peer in waiting:
            peer.close()
        with manager.client(timeout=10) as new:
            assert new.get("Echo").echo(3) == 3
        wait_until(lambda: "There are descriptors for new connections" in manager.log)
        assert manager.log.count("No descriptor for a new connection") < 10
        assert "The engine failed" not in manager.log


def test_out_of_descriptors_while_a_method_takes_each_one_that_comes_free(
    start_manager: StartManager,
) -> None:
    """The descriptor in reserve may be lost to a method; nobody is harmed by that."""
    manager = start_manager(*sharing("Echo", "FileOpener"))
    with ExitStack() as stack:
        # Each has a client of its own: none may need a second connection later.
        handle = stack.enter_context(manager.client()).get("Echo")
        opener = stack.enter_context(manager.client()).get("FileOpener")
        others = [
            stack.enter_context(manager.client()).get("FileOpener", key)
            for key in ("second", "third")
        ]
        for each in (opener, *others):
            each.give_back()
        threads = Threads()
        with Prober(handle) as prober:
            # Everybody has a connection before the descriptors run out.
            wait_until(lambda: len(prober.seconds) > 3)
            _, hard = resource.prlimit(manager.pid, resource.RLIMIT_NOFILE)
            limit = open_descriptors(manager.pid) + 10
            resource.prlimit(manager.pid, resource.RLIMIT_NOFILE, (limit, hard))
            opener.take_all()
            for each in others:
                threads.start(each.open_and_close, 2.0)
            until = time.monotonic() + 1.8
            while time.monotonic() < until:
                with dial(manager.address):
                    time.sleep(0.01)
            threads.join()
            before = processor_seconds(manager.pid)
            time.sleep(1.0)
            assert processor_seconds(manager.pid) - before < 0.6
            opener.give_back()
        # Two methods computed all the time; nobody was lost or left waiting.
        assert prober.worst < 10
        with manager.client(timeout=10) as new:
            assert new.get("Echo").echo(2) == 2
        assert "The engine failed" not in manager.log, manager.log


def test_silent_peers_are_closed_in_time(start_manager: StartManager) -> None:
    """Who shows no key is closed after the time set, whatever it has said before."""
    manager = start_manager(*sharing("Echo"), "--handshake-timeout-s", "0.5")
    with ExitStack() as stack:
        client = stack.enter_context(manager.client())
        prober = stack.enter_context(Prober(client.get("Echo")))
        silent = [
            stack.enter_context(FrameSocket(dial(manager.address))) for _ in range(30)
        ]
        for peer in silent[10:20]:
            peer.send_raw(b"\0\0")
        shaken = [
            stack.enter_context(OwnPeer(manager.address, manager.key)).shake_hands()
            for _ in range(5)
        ]
        began = time.monotonic()
        for peer in silent + shaken:
            assert peer.is_closed_by_peer()
        assert time.monotonic() - began < 5
        wait_until(lambda: client.status()["handshaking"] == 0)
    assert prober.worst < OTHERS_MAX_S


def test_half_frames_are_closed_in_time(start_manager: StartManager) -> None:
    """A frame that does not come whole in time ends its connection, with a log line."""
    manager = start_manager(*sharing("Echo"), "--frame-timeout-s", "0.5")
    with ExitStack() as stack:
        client = stack.enter_context(manager.client())
        prober = stack.enter_context(Prober(client.get("Echo")))
        peers = peers_of(manager, 12, stack)
        target = ("Echo", "default", "echo")
        for place, peer in enumerate(peers):
            frame = wire.framed(peer.call_frame(1, target, "x" * 100))
            peer.send_raw(frame[: 1 + place * 11])
        began = time.monotonic()
        for peer in peers:
            assert peer.is_closed_by_peer()
        assert time.monotonic() - began < 5
        wait_until(lambda: client.status()["inbound_bytes"] == 0)
    assert manager.log.count("the rest of its frame did not come") == 12
    assert prober.worst < OTHERS_MAX_S


def test_a_frame_that_comes_byte_by_byte_is_served(start_manager: StartManager) -> None:
    """Slow is not wrong: a frame in single bytes is a call like any other."""
    manager = start_manager(*sharing("Echo"))
    with OwnPeer(manager.address, manager.key).shake_hands().greet() as peer:
        target = ("Echo", "default", "echo")
        for byte in wire.framed(peer.call_frame(1, target, "slow")):
            assert peer.send_raw(bytes((byte,)))
        assert peer.answer(1) == "slow"
        # Two calls in one piece are answered one after the other.
        first, second = (
            wire.framed(peer.call_frame(number, target, number)) for number in (2, 3)
        )
        assert peer.send_raw(first + second)
        assert [peer.answer(2), peer.answer(3)] == [2, 3]


def test_slow_readers_are_bounded_and_closed(start_manager: StartManager) -> None:
    """Who never reads its replies is closed soon, and leaves no memory taken."""
    manager = start_manager(
        *sharing("Echo"),
        *("--write-timeout-s", "1", "--outbound-bytes-max", str(32 * MEBIBYTE)),
        # What the C library keeps for each thread is not what is measured here.
        MALLOC_ARENA_MAX="1",
    )
    readers, waves = 40, 3
    left = []
    with ExitStack() as stack:
        client = stack.enter_context(manager.client())
        prober = stack.enter_context(Prober(client.get("Echo")))
        for _ in range(waves):
            peers = peers_of(manager, readers, stack)
            for place, peer in enumerate(peers):
                target = ("Echo", f"reader-{place}", "bytes_of")
                for number in range(1, 6):
                    peer.send_raw(
                        wire.framed(peer.call_frame(number, target, 8 * MEBIBYTE))
                    )
            # The client's own connection stays, and the prober's.
            wait_until(lambda: client.status()["connections"] <= 2)
            wait_until(lambda: client.status()["pending"] == 0)
            assert client.status()["outbound_bytes"] == 0
            left.append(resident_bytes(manager.pid))
    assert max(left) < 120 * MEBIBYTE, left
    closed = manager.log.count("it does not take its reply")
    assert closed == readers * waves
    assert prober.worst < OTHERS_MAX_S


def test_frames_above_the_limit_are_closed_with_a_log_line(
    start_manager: StartManager,
) -> None:
    """A length above the limit ends the connection before anything is read."""
    manager = start_manager(*sharing("Echo"), "--frame-bytes-max", "65536")
    lengths = [
        struct.pack("!i", 65537),
        struct.pack("!i", 0x7FFFFFFF),
        struct.pack("!iQ", -1, 2**62),
        struct.pack("!iQ", -1, 2**64 - 1),
        struct.pack("!i", -2),
        struct.pack("!i", -(2**31)),
    ]
    with manager.client() as client, Prober(client.get("Echo")) as prober:
        for length in lengths:
            with OwnPeer(manager.address, manager.key) as peer:
                peer.shake_hands().greet()
                lines = manager.log.count("closed: ")
                peer.send_raw(length)
                assert peer.is_closed_by_peer()
                assert manager.log.count("closed: ") == lines + 1
            # Before the key was shown, 256 bytes are all anybody gets.
            with FrameSocket(dial(manager.address)) as stranger:
                stranger.send_raw(struct.pack("!i", 257))
                assert stranger.is_closed_by_peer()
        wait_until(lambda: len(prober.seconds) > 10)
    assert prober.worst < OTHERS_MAX_S


def test_a_declared_length_without_data_takes_no_memory(
    start_manager: StartManager,
) -> None:
    """A hundred promises of 60 MiB each cost what has come, not what was promised."""
    manager = start_manager(*sharing("Echo"))
    with ExitStack() as stack:
        client = stack.enter_context(manager.client())
        peers = peers_of(manager, 100, stack)
        before = resident_bytes(manager.pid)
        for peer in peers:
            assert peer.send_raw(struct.pack("!i", 60 * MEBIBYTE) + bytes(1000))
        wait_until(lambda: client.status()["inbound_bytes"] == 100 * 1004)
        assert resident_bytes(manager.pid) - before < 20 * MEBIBYTE
    with manager.client() as client:
        wait_until(lambda: client.status()["inbound_bytes"] == 0)


def test_unfinished_frames_are_bounded_together(start_manager: StartManager) -> None:
    """All unfinished frames together stay below their limit; the others are closed."""
    manager = start_manager(*sharing("Echo"), "--inbound-bytes-max", str(8 * MEBIBYTE))
    with ExitStack() as stack:
        client = stack.enter_context(manager.client())
        before = resident_bytes(manager.pid)
        peers = peers_of(manager, 20, stack)
        for peer in peers:
            peer.send_raw(struct.pack("!i", 60 * MEBIBYTE) + bytes(MEBIBYTE))
        wait_until(lambda: client.status()["connections"] < 12)
        assert client.status()["inbound_bytes"] <= 8 * MEBIBYTE
        assert resident_bytes(manager.pid) - before < 60 * MEBIBYTE
        assert client.get("Echo").echo("x") == "x"
        assert "bytes of unfinished frames" in manager.log


def test_connections_above_the_limit_are_refused_clearly(
    start_manager: StartManager,
) -> None:
    """One connection too many is Overloaded; it is let in when there is room again."""
    manager = start_manager(*sharing("Echo"), "--connections-max", "20")
    with ExitStack() as stack:
        client = stack.enter_context(manager.client())
        prober = stack.enter_context(Prober(client.get("Echo")))
        connections = client.status()["connections"]
        peers = peers_of(manager, 20 - connections, stack)
        with (
            manager.client(timeout=0.5) as late,
            pytest.raises(Overloaded, match="takes no more connections"),
        ):
            late.ping()
        with FrameSocket(dial(manager.address)) as raw:
            assert raw.receive() == handshake.FULL
            assert raw.is_closed_by_peer()
        threads = Threads()
        answers: list[Any] = []
        patient = stack.enter_context(manager.client(timeout=20))
        threads.start(lambda: answers.append(patient.get("Echo").echo("in")))
        time.sleep(0.2)
        assert not answers
        peers[0].close()
        threads.join()
        assert answers == ["in"]
    assert prober.worst < OTHERS_MAX_S
    assert manager.log.count("Limit reached: 20 open connections") >= 1


def test_a_stock_client_above_the_limit_gets_an_error(
    start_manager: StartManager,
) -> None:
    """A stock client that is turned away raises at once and does not hang."""
    manager = start_manager("--connections-max", "2")
    with ExitStack() as stack:
        peers_of(manager, 2, stack)
        began = time.monotonic()
        with pytest.raises(Exception, match=r"OVERLOADED|Protocol error"):
            manager.stock_client("SomeObj")
        assert time.monotonic() - began < 5


def test_handshakes_above_the_limit_push_out_the_oldest(
    start_manager: StartManager,
) -> None:
    """Strangers can fill the waiting room and still not keep others out."""
    manager = start_manager(*sharing("Echo"), "--handshakes-max", "10")
    with ExitStack() as stack:
        strangers = [
            stack.enter_context(FrameSocket(dial(manager.address))) for _ in range(50)
        ]
        with manager.client(timeout=10) as client:
            assert client.get("Echo").echo(1) == 1
            assert client.status()["handshaking"] <= 10
        assert strangers[0].is_closed_by_peer()


def test_a_wrong_key_is_denied_once(start_manager: StartManager) -> None:
    """A wrong key is one clear error after one attempt, and the manager says so."""
    manager = start_manager(*sharing("Echo"))
    with manager.client() as right, Prober(right.get("Echo")) as prober:
        accepted = right.status()["accepted"]
        for attempt in range(1, 4):
            began = time.monotonic()
            with (
                state_server.connect(manager.address, b"wrong", timeout=10) as client,
                pytest.raises(Denied, match="key"),
            ):
                client.get("Echo").echo(1)
            assert time.monotonic() - began < 3
            # At most the prober may have opened one more.
            assert right.status()["accepted"] - accepted <= attempt + 1
        assert manager.log.count("does not know the key") == 3
        wait_until(lambda: len(prober.seconds) > 10)
    assert prober.worst < OTHERS_MAX_S


def test_large_calls_that_wait_are_bounded_in_bytes(
    start_manager: StartManager, tmp_path: Path
) -> None:
    """Behind a method that sleeps, large calls take no more than they may together."""
    limit = 8 * MEBIBYTE
    options = ("--pending-bytes-max", str(limit), "--frame-bytes-max", str(limit))
    manager = start_manager(*sharing("Gate"), *options)
    large = codec.encode(((bytes(6 * MEBIBYTE),), {}))
    with ExitStack() as stack:
        client = stack.enter_context(manager.client())
        gate = client.get("Gate")
        threads = Threads()
        threads.start(gate.with_options(timeout=60).hold, str(tmp_path / "open"))
        wait_until(lambda: client.status()["pending"] == 1)
        peers = peers_of(manager, 30, stack)
        before = resident_bytes(manager.pid)
        for peer in peers:
            peer.send_call(1, ("Gate", "default", "size"), body=large)
        # Those that are refused are answered while the others wait.
        refused = [peer.answer(1) for peer in peers[2:]]
        assert {type(answer) for answer in refused} == {Overloaded}
        assert "pending_bytes_max" in str(refused[0])
        status = client.status()
        assert limit <= status["pending_bytes"] < 2 * limit
        assert resident_bytes(manager.pid) - before < 5 * limit
        assert manager.log.count("Limit reached") == 1
        (tmp_path / "open").touch()
        threads.join()
        assert [peer.answer(1) for peer in peers[:2]] == [6 * MEBIBYTE] * 2
        wait_until(lambda: client.status()["pending_bytes"] == 0)
        assert peers[5].call(2, ("Gate", "default", "size"), body=large) > 0
        wait_until(lambda: "Back below the limit" in manager.log)


def test_readers_that_stop_before_the_end_hold_no_more_than_they_left(
    start_manager: StartManager,
) -> None:
    """What is read of a large reply leaves memory, although the rest is not read."""
    manager = start_manager(*sharing("Echo"))
    # Large enough for the system to have the memory back as soon as it is free.
    size = 40 * MEBIBYTE
    with ExitStack() as stack:
        peers = peers_of(manager, 6, stack)
        client = stack.enter_context(manager.client())
        before = resident_bytes(manager.pid)
        for peer in peers:
            peer.send_call(1, ("Echo", "default", "bytes_of"), size)
            left = size - MEBIBYTE
            while left > 0:
                left -= len(peer.socket.recv(min(left, MEBIBYTE)))
        assert client.status()["outbound_bytes"] > 3 * MEBIBYTE
        wait_until(lambda: resident_bytes(manager.pid) < before + 60 * MEBIBYTE)
        # The rest is still to be had.
        for peer in peers:
            left = MEBIBYTE
            while left > 0:
                left -= len(peer.socket.recv(min(left, MEBIBYTE)))
        wait_until(lambda: client.status()["outbound_bytes"] == 0)


def test_calls_that_are_refused_do_not_fill_the_log(
    start_manager: StartManager,
) -> None:
    """Who is refused without end gets each refusal, and few of them are logged."""
    manager = start_manager(*sharing("Echo"), "--log-lines-max", "5")
    began = time.monotonic()
    with OwnPeer(manager.address, manager.key) as peer:
        peer.shake_hands().greet()
        for number in range(1, 501):
            answer = peer.call(number, ("Echo", "default", "no_such_method"))
            assert isinstance(answer, NotOffered)
    seconds = int(time.monotonic() - began) + 2
    assert 5 <= manager.log.count("no_such_method refused") <= 5 * seconds < 500
    assert "log_lines_max" in manager.log


def test_a_peer_that_leaves_in_the_middle_of_its_call_is_cleaned_up(
    start_manager: StartManager,
) -> None:
    """Callers that vanish leave no connection, no waiting call and no descriptor."""
    manager = start_manager(*sharing("Echo"))
    with manager.client() as client:
        handle = client.get("Echo")
        assert handle.echo(1) == 1
        descriptors = open_descriptors(manager.pid)
        for place in range(50):
            with OwnPeer(manager.address, manager.key).shake_hands().greet() as peer:
                peer.send_call(1, ("Echo", "default", "slow_count"), str(place), 0.02)
                linger = struct.pack("ii", 1, 0)
                if place % 2:
                    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        wait_until(lambda: client.status()["pending"] == 0)
        wait_until(lambda: client.status()["connections"] == 1)
        assert open_descriptors(manager.pid) <= descriptors + 1
        token, times, _ = handle.count("0")
        assert (token, times) in {("0", 1), ("0", 2)}


def test_a_peer_that_asks_again_and_leaves_is_gone_at_once(
    start_manager: StartManager,
) -> None:
    """What it left unread keeps no connection, and the leader does not spin over it."""
    manager = start_manager(*sharing("Echo"))
    with manager.client() as client:
        assert client.get("Echo").echo(1) == 1
        for leave in (socket.socket.close, lambda it: it.shutdown(socket.SHUT_WR)):
            target = ("Echo", "default", "slow_echo")
            peer = OwnPeer(manager.address, manager.key).shake_hands().greet()
            peer.send_call(1, target, "a", 2.0)
            wait_until(lambda: client.status()["pending"] == 1)
            peer.send_call(2, target, "b", 0.0)
            before_s = processor_seconds(manager.pid)
            leave(peer.socket)
            wait_until(lambda: client.status()["connections"] == 1)
            assert client.status()["pending"] == 1, "its call still runs"
            wait_until(lambda: client.status()["pending"] == 0)
            assert processor_seconds(manager.pid) - before_s < 1.0
            peer.close()


def test_a_flood_of_strangers_disturbs_nobody(start_manager: StartManager) -> None:
    """While strangers connect, send rubbish and leave, callers get quick answers."""
    manager = start_manager(*sharing("Echo"))
    stop = threading.Event()
    threads = Threads()
    rounds = [0]

    def flood() -> None:
        while not stop.is_set():
            try:
                with FrameSocket(dial(manager.address)) as peer:
                    peer.send_raw(os.urandom(64))
            except BlockingIOError:
                # The system's queue of new connections is full.
                time.sleep(0.01)
            rounds[0] += 1

    with manager.client() as client, Prober(client.get("Echo")) as prober:
        for _ in range(2):
            threads.start(flood)
        try:
            wait_until(lambda: rounds[0] > 300 and len(prober.seconds) > 20)
        finally:
            stop.set()
            threads.join()
    assert prober.worst < OTHERS_MAX_S
