"""Power cuts: only what was synced is left, as a preloaded shim has kept it.

Killing a process proves nothing about fsync: what it wrote is in the page cache.
"""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from state_server.errors import StateServerError

from .faults.disk import Disk, built_shim
from .processes import ManagerProcess

OBJECTS = ("--objects", "tests.faults.hooks:Numbers")
CALLERS = 6


class Lost(AssertionError):
    """An acknowledged call is gone, or has run twice."""


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the compiled shim."""
    return built_shim(tmp_path_factory.mktemp("shim"))


def acknowledged_calls_survive(
    folder: Path,
    shim: Path,
    seed: int,
    *,
    torn: bool = False,
    without: str = "",
    timeout_s: float = 40.0,
) -> None:
    """Cut the power under load, twice; fail if an acknowledged call is lost.

    ``torn``: any part of what was not synced is on disk as well.
    """
    chance = random.Random(seed)
    disk = Disk(shim, folder / "var", power=True)
    manager = ManagerProcess(folder, *OBJECTS, WITHOUT=without, **disk.environment)
    manager.start()
    numbers: list[int] = []
    errors: list[BaseException] = []
    enough = threading.Event()

    def call(key: str) -> None:
        handle = client.get("Numbers")
        try:
            while not enough.is_set():
                numbers.append(handle.next(key))
                client.get("Numbers", key).next()
        except StateServerError as error:
            errors.append(error)

    client = manager.client(timeout=timeout_s)
    callers = [
        threading.Thread(target=call, args=(f"key {n}",)) for n in range(CALLERS)
    ]
    try:
        for caller in callers:
            caller.start()
        for _ in range(2):
            calls = len(numbers) + chance.randrange(100, 400)
            deadline = time.monotonic() + 30
            while len(numbers) < calls and time.monotonic() < deadline:
                time.sleep(0.001)
            manager.kill()
            disk.cut_power(chance if torn else None)
            manager.start()
        enough.set()
        for caller in callers:
            caller.join(60)
            assert not caller.is_alive()
        assert not errors, errors
        last = client.get("Numbers").get()
        if sorted(numbers) != list(range(1, last + 1)):
            raise Lost(
                f"{len(numbers)} numbers, up to {max(numbers)}; {last} at the end"
            )
        assert sum(client.get("Numbers").times().values()) == last
        assert manager.stop() == 0
    finally:
        enough.set()
        client.close()
        if manager.process is not None and manager.process.poll() is None:
            manager.kill()
        for caller in callers:
            caller.join(60)
        assert manager.process is not None
        assert manager.process.stdout is not None
        manager.process.stdout.close()


@pytest.mark.parametrize("seed", range(2))
def test_a_power_cut_loses_no_acknowledged_call(
    tmp_path: Path, shim: Path, seed: int
) -> None:
    """What was answered is there when nothing is left but what was synced."""
    acknowledged_calls_survive(tmp_path, shim, seed)


@pytest.mark.parametrize("seed", range(2))
def test_a_torn_power_cut_loses_no_acknowledged_call(
    tmp_path: Path, shim: Path, seed: int
) -> None:
    """Nor when any sectors of what was not synced are on disk, too, in any order."""
    acknowledged_calls_survive(tmp_path, shim, seed + 100, torn=True)


@pytest.mark.parametrize("seed", range(2))
def test_without_synced_commits_a_power_cut_loses_calls(
    tmp_path: Path, shim: Path, seed: int
) -> None:
    """The shim has teeth: with synchronous=OFF acknowledged calls are lost."""
    with pytest.raises(Lost):
        acknowledged_calls_survive(tmp_path, shim, seed, without="sync", timeout_s=10)
