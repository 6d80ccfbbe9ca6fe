"""Each step of a commit is hit on purpose: the manager's process ends right there.

The client repeats by itself; a new manager is started on the same folder. Whatever the
point, the method has run exactly once.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import state_server
from state_server.errors import RemoteError

from .faults.hooks import CRASHED
from .processes import ManagerProcess

OBJECTS = ("--objects", "tests.faults.hooks:Numbers")

POINTS = (
    "before staging",
    "after staging",
    "before the transaction",
    "after BEGIN",
    "after the objects were written",
    "before COMMIT",
    "after the commit",
    "before the reply",
    "after the reply",
)


class Watched:
    """A manager that is started again whenever its process ends."""

    def __init__(self, folder: Path, **environment: str) -> None:
        folder.mkdir(mode=0o700)
        self.flag = folder / "crash"
        self.manager = ManagerProcess(
            folder, *OBJECTS, CRASH_FLAG=str(self.flag), **environment
        )
        self.ends: list[int] = []
        self._stopping = False
        self.manager.start()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopping:
            assert self.manager.process is not None
            self.ends.append(self.manager.process.wait())
            if self._stopping or len(self.ends) > 10:
                return
            try:
                self.manager.start()
            except AssertionError:
                # It crashed again, before it was ready.
                continue

    def arm(self, passes: int = 0) -> None:
        """Have it crash, after the point was passed so many times."""
        self.flag.write_text(str(passes))

    def stop(self) -> None:
        """End it for good."""
        self._stopping = True
        self.manager.kill()
        self._thread.join(30)
        assert self.manager.process is not None
        assert self.manager.process.stdout is not None
        self.manager.process.stdout.close()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Any]:
    """Give a function that starts watched managers."""
    started: list[Watched] = []

    def start(**environment: str) -> Watched:
        started.append(Watched(tmp_path / f"watched-{len(started)}", **environment))
        return started[-1]

    yield start
    for manager in started:
        manager.stop()


def calls_survive(manager: Watched, threads: int = 1, calls: int = 6) -> None:
    """Call across one crash; fail if a number is skipped or given twice."""
    numbers: list[int] = []
    errors: list[BaseException] = []

    def call(who: str) -> None:
        try:
            for _ in range(calls):
                numbers.append(client.get("Numbers").next(who))
        except BaseException as error:
            errors.append(error)

    with manager.manager.client(timeout=40) as client:
        assert client.get("Numbers").next() == 1
        born = client.get("Numbers").born_as()
        manager.arm(passes=2)
        callers = [
            threading.Thread(target=call, args=(f"caller {n}",)) for n in range(threads)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(60)
            assert not caller.is_alive()
        assert not errors, errors
        total = threads * calls
        assert sorted(numbers) == list(range(2, total + 2)), sorted(numbers)
        assert client.get("Numbers").get() == total + 1
        assert client.get("Numbers").times() == {
            f"caller {n}": calls for n in range(threads)
        }
        assert client.get("Numbers").born_as() == born
    assert not manager.flag.exists(), "it never crashed"
    assert manager.ends == [CRASHED]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("threads", [1, 8])
def test_a_crash_at_any_point_of_a_commit_is_not_noticed(
    watched: Any, point: str, threads: int
) -> None:
    """Killed at this point, restarted: every call has run exactly once."""
    calls_survive(watched(CRASH_AT=point), threads)


@pytest.mark.parametrize(
    "point",
    [
        "before recovery",
        "after recovery",
        "before the writer starts",
        "before a reply is recalled",
    ],
)
def test_a_crash_during_recovery_is_not_noticed(watched: Any, point: str) -> None:
    """Killed in a call, and killed again while it comes back: run exactly once."""
    manager = watched(CRASH_AT=point)
    with manager.manager.client(timeout=40) as client:
        numbers = client.get("Numbers")
        assert [numbers.next() for _ in range(5)] == [1, 2, 3, 4, 5]
        for last in (5, 6):
            manager.arm()
            manager.manager.process.kill()
            assert numbers.next() == last + 1
            assert numbers.get() == last + 1
    assert not manager.flag.exists(), "it never crashed"
    assert CRASHED in manager.ends
    assert len(manager.ends) in (3, 4)


@pytest.mark.parametrize(
    "point", ["before staging", "after staging", "before COMMIT", "after the commit"]
)
def test_first_use_is_whole_or_not_at_all(watched: Any, point: str) -> None:
    """Killed in the first call of an object: what is heard of it is one object."""
    manager = watched(CRASH_AT=point)
    manager.arm()
    with manager.manager.client(timeout=40) as client:
        numbers = client.get("Numbers")
        born = numbers.born_as()
        assert numbers.next() == 1
        manager.manager.process.kill()
        assert numbers.born_as() == born
        assert numbers.next() == 2
    assert not manager.flag.exists()


def test_an_error_is_not_a_change_whatever_the_crash(watched: Any) -> None:
    """A call that raises is as if it had not been, also when its manager is killed."""
    manager = watched(CRASH_AT="never")
    with manager.manager.client(timeout=40) as client:
        numbers = client.get("Numbers")
        assert numbers.next() == 1
        with pytest.raises((LookupError, RemoteError)):
            numbers.fail()
        manager.manager.process.kill()
        assert numbers.next() == 2


def test_without_remembered_replies_on_disk_a_call_runs_twice(watched: Any) -> None:
    """These tests have teeth: without the table of replies a number is skipped."""
    manager = watched(CRASH_AT="after the commit", WITHOUT="replies")
    with pytest.raises(AssertionError, match=r"\[2, 3, 5, 6, 7, 8\]"):
        calls_survive(manager)


def what_was_acknowledged_is_kept(manager: Watched) -> None:
    """Call while no commit can pass, kill, look; fail if an answered call is gone."""
    path = manager.manager.data_dir / "state.db"
    with manager.manager.client(timeout=40) as client:
        numbers = client.get("Numbers")
        assert numbers.next() == 1
        other = sqlite3.connect(path, isolation_level=None)
        try:
            other.execute("begin exclusive")
            try:
                acknowledged = numbers.next()
            except state_server.StoreError:
                acknowledged = 1
            manager.manager.process.kill()
        finally:
            other.close()
        assert numbers.get() == acknowledged, "an answered call is gone"


def test_nothing_is_answered_while_no_commit_can_pass(watched: Any) -> None:
    """A locked database: the call fails, and is not there after kill -9 either."""
    what_was_acknowledged_is_kept(watched())


def test_without_the_output_gate_an_acknowledged_call_is_lost(watched: Any) -> None:
    """The test above has teeth: replies that do not wait for the disk are not kept."""
    with pytest.raises(AssertionError, match="an answered call is gone"):
        what_was_acknowledged_is_kept(watched(WITHOUT="gate"))


def test_a_call_that_nobody_waits_for_any_more_has_run_once(watched: Any) -> None:
    """A client that gave up has no answer; its call has run once or not at all."""
    manager = watched(CRASH_AT="after the commit")
    with manager.manager.client(timeout=40) as client:
        assert client.get("Numbers").next() == 1
        manager.arm()
        with manager.manager.client(timeout=0.05) as hasty:
            try:
                outcome: Any = hasty.get("Numbers").next("hasty")
            except (state_server.Unanswered, state_server.Unreachable) as error:
                outcome = error
        last = client.get("Numbers").get()
        assert last in (1, 2)
        if isinstance(outcome, int):
            assert last == 2
        assert client.get("Numbers").next() == last + 1
