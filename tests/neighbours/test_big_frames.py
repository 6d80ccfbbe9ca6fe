"""Large arrays over real sockets: whole, once, and at the cost of what they are."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import state_server
from state_server import bodies, wire
from state_server.errors import TooLarge, Unreachable

from ..conftest import StartManager
from ..force_classes import OwnPeer, resident_bytes
from ..processes import ManagerProcess, our_manager, wait_until
from ..test_force_connections import peers_of
from ..test_force_manager import CuttingProxy

np = pytest.importorskip("numpy", reason="numpy is not installed")

OBJECTS = ("--objects", "tests.neighbours.big_classes")
MEBIBYTE = 1024 * 1024


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerProcess]:
    """Start one manager for the tests that leave it running."""
    with our_manager(tmp_path_factory.mktemp("big") / "frames", *OBJECTS) as manager:
        yield manager


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_an_array_of_just_the_limit_goes_there_and_back(
    tmp_path: Path, transport: str
) -> None:
    """64 MiB, which is frame_bytes_max, arrive as they were, as a read-only view."""
    options = () if transport == "unix" else ("--address", "tcp://127.0.0.1:0")
    array = np.arange(8 * MEBIBYTE, dtype="f8")
    with (
        our_manager(tmp_path / "m", *OBJECTS, *options) as manager,
        manager.client() as client,
    ):
        mirror = client.get("Mirror")
        back = mirror.echo(array)
        assert (back == array).all()
        assert not back.flags.writeable
        assert not back.flags.owndata
        assert back.flags.aligned
        with pytest.raises(TooLarge, match="frame_bytes_max"):
            mirror.first(np.zeros(9 * MEBIBYTE))
        assert mirror.first(array) == 0.0


def test_many_arrays_in_one_value_keep_their_places(manager: ManagerProcess) -> None:
    """More buffers than the system takes at once, of every size, and text between."""
    chance = random.Random(7)
    value = {
        str(n): [np.full(chance.randrange(8_000, 30_000), n, dtype="i8"), f"text {n}"]
        for n in range(150)
    }
    with manager.client() as client:
        back = client.get("Mirror").echo(value)
    assert list(back) == list(value)
    for key, (array, text) in value.items():
        assert back[key][1] == text
        assert (back[key][0] == array).all()


def test_several_callers_with_large_arrays_hear_their_own(
    manager: ManagerProcess,
) -> None:
    """Sixteen callers at once, each with an array of its own: nobody gets another's."""
    wrong: list[int] = []
    with manager.client() as client:

        def call(number: int) -> None:
            mirror = client.get("Mirror", str(number % 3))
            for _ in range(4):
                array = np.full(400_000, number, dtype="f8")
                if not (mirror.echo(array) == array).all():
                    wrong.append(number)

        threads = [threading.Thread(target=call, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_delivery_that_is_cut_anywhere_is_made_once(
    manager: ManagerProcess, tmp_path: Path
) -> None:
    """A large call whose connection breaks in the middle, however often, runs once."""
    array = np.arange(400_000.0)
    with CuttingProxy(
        tmp_path / "proxy", manager.address, seed=11, bytes_max=5 * array.nbytes
    ) as proxy:
        client = state_server.connect(proxy.address, manager.key, timeout=60)
        depot = client.get("Depot", "cut")
        for number in range(1, 13):
            assert depot.put(array) == (number, float(array.sum()))
        client.close()
        assert proxy.cuts > 0


def test_a_journal_has_the_array_as_it_was_sent(start_manager: StartManager) -> None:
    """A method that changes its argument in place is replayed with what came."""
    manager = start_manager(*OBJECTS)
    array = np.ones(300_000)
    with manager.client() as client:
        scales = client.get("Scales")
        assert [scales.weigh(array) for _ in range(3)] == [6e5, 12e5, 18e5]
        assert array.sum() == 300_000
        manager.kill()
        manager.start()
        assert scales.shown() == 18e5


def test_peers_that_stop_within_an_array_give_its_memory_back(
    start_manager: StartManager,
) -> None:
    """Memory grows with what has come, and is free again when the peer is gone."""
    manager = start_manager(*OBJECTS)
    with ExitStack() as stack:
        client = stack.enter_context(manager.client())
        mirror = client.get("Mirror")
        assert mirror.first(np.zeros(10)) == 0.0
        before = resident_bytes(manager.pid)
        peers = peers_of(manager, 8, stack)
        for peer in peers:
            assert peer.send_raw(struct.pack("!i", 60 * MEBIBYTE) + bytes(4 * MEBIBYTE))
        wait_until(lambda: client.status()["inbound_bytes"] >= 8 * 4 * MEBIBYTE)
        assert mirror.first(np.zeros(10)) == 0.0
        assert resident_bytes(manager.pid) - before < 8 * 12 * MEBIBYTE
        for peer in peers:
            peer.close()
        wait_until(lambda: client.status()["inbound_bytes"] == 0)
        wait_until(lambda: resident_bytes(manager.pid) - before < 8 * 4 * MEBIBYTE)


def test_a_body_that_lies_is_refused_and_nobody_else_notices(
    manager: ManagerProcess,
) -> None:
    """Buffers that do not fit the value are an error of the one call that has them."""
    target = ("Mirror", "default", "echo")
    first, rest = bodies.pack(((np.zeros(50_000),), {}), 0)
    body = b"".join((first, *rest))
    lies = [body[:-8], body + bytes(8), b"\xf5" + body[1:5] + b"\xff" * 4 + body[9:]]
    with manager.client() as client, OwnPeer(manager.address, manager.key) as peer:
        peer.shake_hands().greet()
        for number, lie in enumerate(lies, 1):
            peer.send(peer.call_frame(number, target, body=lie))
            payload = peer.receive()
            assert payload is not None
            reply = wire.unpack_reply(payload)
            assert (reply.number, reply.failed) == (number, True)
            assert b"NotAllowed" in bytes(reply.body)
        assert client.get("Mirror").echo("still here") == "still here"


def test_a_call_that_is_too_large_is_not_sent(manager: ManagerProcess) -> None:
    """The client says so by itself: no connection is spoilt, no byte is sent."""
    with manager.client() as client:
        mirror = client.get("Mirror")
        mirror.echo(1)
        accepted = client.status()["accepted"]
        for _ in range(3):
            with pytest.raises(TooLarge):
                mirror.first(np.zeros(9 * MEBIBYTE))
        assert client.status()["accepted"] == accepted
    with pytest.raises(Unreachable):
        state_server.connect("unix:///nowhere", "key", timeout=0.1).get("Mirror").first(
            np.zeros(100_000)
        )
