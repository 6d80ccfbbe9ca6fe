"""Methods that do what a method should not do, while others call other objects."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from state_server import Expired, NotAllowed, RemoteError, TooLarge, Unanswered

from .conftest import StartManager
from .force_classes import Prober, Threads, resident_bytes, sharing
from .processes import ManagerProcess, wait_until

MEBIBYTE = 1024 * 1024
#: Longest wait of anybody else; what is expected is a few milliseconds.
OTHERS_MAX_S = 2.5


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerProcess]:
    """Give one manager to all tests here: none of them may harm it."""
    folder: Path = tmp_path_factory.mktemp("methods")
    manager = ManagerProcess(folder, *sharing("Rough", "Echo"))
    manager.start()
    pid = manager.pid
    yield manager
    assert manager.process is not None
    assert manager.process.poll() is None, manager.log
    assert manager.pid == pid
    assert manager.stop() == 0
    assert "The engine failed" not in manager.log


#: A result that cannot travel: undone and refused, or said to have run.
NOT_DONE = (RemoteError, NotAllowed, TooLarge)
ERRORS = [
    pytest.param("leave", (), RemoteError, "SystemExit", id="sys.exit"),
    pytest.param("interrupt", (), RemoteError, "KeyboardInterrupt", id="Ctrl-C"),
    pytest.param("raise_exit", (), RemoteError, "GeneratorExit", id="exit"),
    pytest.param("raise_unsendable", (), RemoteError, "Unsendable", id="unpicklable"),
    pytest.param("recurse", (), RecursionError, "recursion", id="recursion"),
    pytest.param("return_unsendable", (), NOT_DONE, "lock", id="a lock"),
    pytest.param("return_nested", (), NOT_DONE, "depth_max", id="nested"),
    pytest.param("count_for_ever", (), RemoteError, "items", id="endless"),
    pytest.param(
        "return_bytes", (100 * MEBIBYTE,), NOT_DONE, "frame_bytes_max", id="100 MB"
    ),
]


@pytest.mark.parametrize(("method", "args", "error", "words"), ERRORS)
def test_what_goes_wrong_is_its_callers_error_alone(
    manager: ManagerProcess, method: str, args: tuple[Any, ...], error: Any, words: str
) -> None:
    """The caller gets a clear error, others quick answers, and the object works on."""
    with manager.client() as client, manager.client() as other:
        handle = client.get("Rough", method)
        with Prober(other.get("Echo")) as prober:
            for _ in range(2):
                with pytest.raises(error, match=words):
                    getattr(handle, method)(*args)
                assert handle.fine() == "fine"
            wait_until(lambda: len(prober.seconds) > 10)
        assert prober.worst < OTHERS_MAX_S


@pytest.mark.parametrize(
    ("method", "result"), [("sleep", "slept"), ("compute", "computed")]
)
def test_a_long_method_delays_only_its_own_object(
    manager: ManagerProcess, method: str, result: str
) -> None:
    """While a method takes 5 s, others are answered, callers of its object after it."""
    ends: list[tuple[str, float]] = []
    with manager.client() as client, manager.client() as other:
        handle = client.get("Rough", f"long-{method}")
        assert handle.fine() == "fine"
        threads = Threads()
        began = time.monotonic()

        def call(name: str, *args: float) -> None:
            answer = getattr(handle, name)(*args)
            ends.append((answer, time.monotonic() - began))

        with Prober(other.get("Echo")) as prober:
            threads.start(call, method, 5.0)
            wait_until(lambda: other.status()["pending"] == 1)
            threads.start(call, "fine")
            threads.join()
        assert prober.worst < OTHERS_MAX_S
        assert len(prober.seconds) > 50
    # Both replies leave at once; which thread wakes first is the system's choice.
    assert {answer for answer, _ in ends} == {result, "fine"}
    assert all(seconds > 4.9 for _, seconds in ends)


def test_who_waits_for_an_object_in_vain_learns_what_it_is_busy_with(
    manager: ManagerProcess,
) -> None:
    """The error comes before the deadline, names object and method: nothing has run."""
    with manager.client() as client:
        handle = client.get("Rough", "wedged")
        threads = Threads()
        threads.start(handle.sleep, 4.0)
        wait_until(lambda: client.status()["pending"] == 1)
        said = r"Rough/wedged has been busy with one call of 'sleep' for [23] s"
        with pytest.raises(Expired, match=said):
            handle.with_options(timeout=2.6).fine()
        threads.join()


def test_a_result_over_the_limit_leaves_no_memory_behind(
    manager: ManagerProcess,
) -> None:
    """Ten results of 100 MB, refused one after another, do not add up."""
    with manager.client() as client:
        handle = client.get("Rough", "large")
        sizes = []
        for _ in range(10):
            with pytest.raises(NOT_DONE, match="frame_bytes_max"):
                handle.return_bytes(100 * MEBIBYTE)
            sizes.append(resident_bytes(manager.pid))
        assert handle.fine() == "fine"
    assert sizes[-1] < sizes[0] + 150 * MEBIBYTE, sizes


def test_a_result_just_below_the_limit_arrives(manager: ManagerProcess) -> None:
    """A reply of 63 MiB comes through whole, while others are answered."""
    with manager.client() as client, manager.client() as other:
        with Prober(other.get("Echo")) as prober:
            assert len(client.get("Rough").return_bytes(63 * MEBIBYTE)) == 63 * MEBIBYTE
            wait_until(lambda: len(prober.seconds) > 10)
        assert prober.worst < OTHERS_MAX_S


def test_an_argument_over_the_limit_is_refused_clearly(manager: ManagerProcess) -> None:
    """A call of 100 MB is TooLarge, at once, and is not sent again and again."""
    with manager.client(timeout=20) as client:
        handle = client.get("Echo", "large")
        accepted = client.status()["accepted"]
        began = time.monotonic()
        with pytest.raises(TooLarge, match="frame_bytes_max"):
            handle.echo(bytes(100 * MEBIBYTE))
        assert time.monotonic() - began < 10
        assert client.status()["accepted"] - accepted <= 2
        assert handle.echo(1) == 1


def test_a_stock_client_gets_the_same_errors(manager: ManagerProcess) -> None:
    """A stock client's connection survives every one of them."""
    stock = manager.stock_client("Rough")
    proxy = stock.Rough()
    for parameter in ERRORS:
        method, args, _, words = parameter.values
        with pytest.raises(Exception, match=words):
            # Of which class it is is the standard library's choice.
            proxy._callmethod(method, args)
        assert proxy.fine() == "fine"
    del proxy


@pytest.mark.parametrize("sleepers", [3, 8])
def test_sleeping_methods_at_the_thread_cap_do_not_deadlock(
    start_manager: StartManager, sleepers: int
) -> None:
    """With 4 threads and 8 sleeping objects all calls end, each with its own answer."""
    manager = start_manager(*sharing("Rough", "Echo"), "--threads-max", "4")
    ends: list[str] = []
    waits: list[float] = []
    with manager.client() as client, manager.client() as other:
        client.get("Rough").fine()
        threads = Threads()
        for turn in range(2):
            for place in range(sleepers):
                handle = client.get("Rough", f"sleeper-{place}")
                threads.start(lambda handle=handle: ends.append(handle.sleep(0.4)))
            wait_until(lambda: other.status()["pending"] >= min(sleepers, 3))
            for number in range(20):
                began = time.monotonic()
                assert other.get("Echo").echo((turn, number)) == (turn, number)
                waits.append(time.monotonic() - began)
        # A control call needs no thread beside the leader.
        assert other.ping() < 1.0
        threads.join(60)
        assert other.status()["pending"] == 0
        assert other.status()["threads"] <= 4
        other.get("Echo").echo("after")
    assert ends == ["slept"] * sleepers * 2
    assert max(waits) < 20


def test_a_caller_who_gives_up_on_a_sleeping_method_finds_the_object_whole(
    manager: ManagerProcess,
) -> None:
    """The abandoned call ends on its own; the next one waits for it and is right."""
    with manager.client() as client:
        handle = client.get("Echo", "abandoned")
        assert handle.count("a") == ("a", 1, 1)
        with pytest.raises(Unanswered):
            handle.with_options(timeout=0.3).slow_count("b", 1.0)
        assert handle.count("c") == ("c", 1, 3)
