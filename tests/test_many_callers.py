"""20,000 calls of 64 threads in 8 processes: each number once, and in real time."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import state_server

from .conftest import StartManager
from .processes import ManagerProcess, wait_until

PROCESSES, THREADS, CALLS = 8, 8, 20_000

#: Each process would import all this anew; here one does, and the others are its forks.
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


class Observation(NamedTuple):
    """One call: when it started, when it ended (nanoseconds), the number it got."""

    started: int
    ended: int
    number: int


def first_reversal(
    calls: list[Observation],
) -> tuple[Observation, Observation] | None:
    """Return a call that started after another ended and has the smaller number.

    From the largest number down: the earliest end among the larger numbers must not
    lie before the start of this one.
    """
    earliest: Observation | None = None
    for call in sorted(calls, key=lambda call: call.number, reverse=True):
        if earliest is not None and earliest.ended < call.started:
            return earliest, call
        if earliest is None or call.ended < earliest.ended:
            earliest = call
    return None


def call_in_threads(
    address: Any, key: bytes, stock: bool, counts: list[int], gate: str
) -> list[Observation]:
    """Call ``query`` in threads; the work of one process."""
    if stock:

        class StockManager(BaseManager):
            pass

        StockManager.register("SomeObj")
        manager = StockManager(address, authkey=key)
        manager.connect()
        handle, client = manager.SomeObj(), None  # type: ignore[attr-defined]
    else:
        client = state_server.connect(address, key)
        handle = client.get("SomeObj")
    calls: list[Observation] = []
    errors: list[BaseException] = []

    def work(count: int) -> None:
        mine = []
        try:
            for _ in range(count):
                started = time.monotonic_ns()
                number = handle.query()
                mine.append(Observation(started, time.monotonic_ns(), number))
        except BaseException as error:
            errors.append(error)
        calls.extend(mine)

    threads = [threading.Thread(target=work, args=(count,)) for count in counts]
    Path(f"{gate}.{random.getrandbits(64)}").touch()
    wait_until(Path(gate).exists, 60, "the start")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if client is not None:
        client.close()
    if errors:
        raise errors[0]
    return calls


def observe(manager: ManagerProcess, folder: Path, stock: int) -> list[Observation]:
    """Run all callers; in so many processes, they are stock clients."""
    gate = folder / "gate"
    share, rest = divmod(CALLS, PROCESSES * THREADS)
    counts = [share + (place < rest) for place in range(PROCESSES * THREADS)]
    assert sum(counts) == CALLS
    with ProcessPoolExecutor(PROCESSES, CONTEXT) as pool:
        futures = []
        for place in range(PROCESSES):
            uses_stock = place < stock
            futures.append(
                pool.submit(
                    call_in_threads,
                    manager.stock_address if uses_stock else manager.address,
                    manager.key,
                    uses_stock,
                    counts[place::PROCESSES],
                    str(gate),
                )
            )

        def all_here() -> bool:
            for future in futures:
                if future.done():
                    future.result()
            return len(list(folder.glob("gate.*"))) == PROCESSES

        try:
            wait_until(all_here, 60, "all processes")
        finally:
            gate.touch()
        return [call for future in futures for call in future.result(100)]


@pytest.mark.parametrize(
    ("address", "stock"),
    [("unix", 0), ("unix", PROCESSES // 2), ("tcp", PROCESSES // 2)],
    ids=["ours", "half stock", "half stock, tcp"],
)
def test_no_number_is_skipped_or_doubled_and_real_time_is_respected(
    start_manager: StartManager, tmp_path: Path, address: str, stock: int
) -> None:
    """Callers see exactly 1 to 20,000, and a later call has the larger number."""
    options = ["--address", "tcp://127.0.0.1:0"] if address == "tcp" else []
    manager = start_manager(*options)
    calls = observe(manager, tmp_path, stock)
    assert sorted(call.number for call in calls) == list(range(1, CALLS + 1))
    assert first_reversal(calls) is None
    with manager.client() as client:
        assert client.get("SomeObj").query() == CALLS + 1


def test_the_check_of_real_time_finds_what_it_should() -> None:
    """A reversal is found wherever it is, and calls that overlap are in any order."""
    overlapping = [Observation(0, 10, 2), Observation(5, 15, 1), Observation(11, 20, 3)]
    assert first_reversal(overlapping) is None
    assert first_reversal([*overlapping, Observation(21, 22, 0)]) is not None
    assert first_reversal([Observation(0, 1, 2), Observation(2, 3, 1)]) is not None
