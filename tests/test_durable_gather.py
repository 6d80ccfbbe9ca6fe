"""Commits by the thread that staged them: the leader's promise, and who breaks it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from state_server.errors import StateServerError, StoreError
from state_server.keeping import commits
from state_server.keeping.commits import Batch, Change, Committer, Phase

from .durable_classes import Count, DurableDesk, FakeStore
from .fakes import PATIENCE_S, FakeConnection
from .processes import wait_until


class Desk:
    """A committer over a store in memory; ``settled`` has (what waited, the error)."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.settled: list[tuple[str, StateServerError | None, int]] = []
        self.committer = Committer(self.store, self._settle, 900.0)
        self.generation = 0
        self.poisoned = False

    def _settle(
        self, waiting: list[tuple[Any, bytes]], error: StateServerError | None
    ) -> None:
        thread = threading.get_ident()
        self.settled += [(name, error, thread) for name, _ in waiting]

    def stage(self, name: str) -> Batch:
        """Stage one change, of an object of that name."""
        self.generation += 1
        change = Change((name, "x"), 1, self.generation, b"state")
        return self.committer.stage(change, self, None, (name, b""))

    def can_stage(self, name: str) -> bool:
        """Stage one change, unless the store fails; tell whether that was done."""
        try:
            self.stage(name)
        except StoreError:
            return False
        return True

    def names(self) -> list[str]:
        """Return what was settled so far."""
        return [name for name, _, _ in self.settled]


@pytest.fixture
def desk() -> Iterator[Desk]:
    """Return a desk whose writer thread runs, gathered by the test's thread."""
    desk = Desk()
    desk.committer.start()
    desk.committer.gather()
    yield desk
    desk.store.release()
    desk.committer.stop()


def elsewhere(run: Any) -> Any:
    """Run something in another thread; return what it returned."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(run()))
    thread.start()
    thread.join(PATIENCE_S)
    assert results, "the other thread did not end"
    return results[0]


def test_the_one_who_promised_commits_what_it_staged(desk: Desk) -> None:
    """No other thread is woken; everything staged until then goes in one commit."""
    for name in ("a", "b", "c"):
        desk.stage(name)
    desk.committer.flush(may_wait=True)
    assert desk.names() == ["a", "b", "c"]
    assert {thread for *_, thread in desk.settled} == {threading.get_ident()}
    assert len(desk.store.batches) == 1


def test_who_may_not_wait_leaves_the_commit_to_the_writer(desk: Desk) -> None:
    """The last thread that could lead never waits for the disk."""
    desk.stage("a")
    desk.committer.flush(may_wait=False)
    wait_until(lambda: desk.names() == ["a"])
    assert desk.settled[0][2] != threading.get_ident()


def test_a_slow_disk_is_left_to_the_writer(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has seen commits take long does not wait for the next one itself."""
    monkeypatch.setattr(commits, "_QUICK_COMMIT_S", -1.0)
    desk.stage("a")
    desk.committer.flush(may_wait=True)
    wait_until(lambda: desk.names() == ["a"])
    assert desk.settled[0][2] != threading.get_ident()


def test_what_another_thread_stages_needs_no_promise(desk: Desk) -> None:
    """A thread that did not promise wakes the writer itself."""
    elsewhere(lambda: desk.stage("a"))
    wait_until(lambda: desk.names() == ["a"])


def test_a_promise_ends_when_another_makes_it(desk: Desk) -> None:
    """A leader that lost its place and stages after that wakes the writer."""
    elsewhere(lambda: desk.committer.gather() or True)
    desk.stage("a")
    wait_until(lambda: desk.names() == ["a"])


def test_the_next_leader_commits_what_the_last_one_left(desk: Desk) -> None:
    """What was staged under a promise that was taken over is still flushed."""
    desk.stage("a")

    def lead() -> bool:
        desk.committer.gather()
        assert desk.committer.has_staged
        desk.committer.flush(may_wait=True)
        return True

    elsewhere(lead)
    assert desk.names() == ["a"]


def test_what_is_staged_during_a_commit_is_committed_after_it(desk: Desk) -> None:
    """Another leader's flush does not wait for the commit; nothing stays behind."""
    desk.stage("a")
    desk.store.hold()
    thread = threading.Thread(target=desk.committer.flush, kwargs={"may_wait": True})
    thread.start()
    desk.store.wait_for_commit()
    desk.stage("b")
    desk.committer.flush(may_wait=True)
    assert desk.names() == []
    desk.store.release()
    thread.join(PATIENCE_S)
    wait_until(lambda: desk.names() == ["a", "b"])
    assert [len(batch) for batch in desk.store.batches] == [1, 1]


def test_a_commit_that_fails_does_not_keep_the_one_who_tried(desk: Desk) -> None:
    """The writer deals with it, however long the disk stays broken; then all works."""
    desk.store.errors.append(StoreError("the disk is full"))
    desk.store.hold_fence()
    batch = desk.stage("a")
    desk.committer.flush(may_wait=True)
    with pytest.raises(StoreError, match="disk is full"):
        wait_until(lambda: desk.stage("b") and False)
    desk.store.release_fence()
    wait_until(lambda: desk.names()[:1] == ["a"])
    assert batch.phase is Phase.FAILED
    assert isinstance(desk.settled[0][1], StoreError)
    desk.poisoned = False

    wait_until(lambda: desk.can_stage("c"))
    desk.committer.flush(may_wait=True)
    wait_until(lambda: ("c", None) in [settled[:2] for settled in desk.settled])


def test_who_waits_for_its_own_batch_does_not_wait_for_itself(desk: Desk) -> None:
    """An object that is loaded anew waits for its batch before anybody flushed it."""
    batch = desk.stage("a")
    started = time.monotonic()
    desk.committer.wait_for(batch)
    assert batch.phase is Phase.COMMITTED
    assert time.monotonic() - started < PATIENCE_S


def test_a_stop_commits_what_was_promised(desk: Desk) -> None:
    """A change that nobody flushed is committed when the manager stops."""
    desk.stage("a")
    desk.committer.stop()
    assert desk.names() == ["a"]


def test_a_stop_is_heard_by_a_writer_that_waits_for_another_commit(
    desk: Desk,
) -> None:
    """It is woken when that has ended; by itself it looks each half a minute."""
    committer = desk.committer
    desk.store.hold()
    desk.stage("a")
    threads = [
        threading.Thread(target=committer.flush, kwargs={"may_wait": True}),
        threading.Thread(target=committer.stop),
    ]

    def waits_again() -> bool:
        with committer._lock:
            return committer._stopping and len(committer._staged._waiters) == 1  # type: ignore[attr-defined]

    threads[0].start()
    desk.store.wait_for_commit()
    threads[1].start()
    wait_until(waits_again)
    desk.store.release()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not committer._thread.is_alive()
    assert desk.names() == ["a"]


def test_a_reply_that_cannot_be_given_leaves_the_writer_at_work() -> None:
    """A defect while one batch is settled does not cost the next one its commit."""
    desk = Desk()
    settled: list[str] = []

    def settle(waiting: list[tuple[Any, Any]], error: StateServerError | None) -> None:
        settled.extend(name for name, _ in waiting)
        if settled == ["a"]:
            raise MemoryError

    desk.committer = Committer(desk.store, settle, 900.0)
    desk.committer.start()
    desk.stage("a")
    wait_until(lambda: settled == ["a"])
    desk.stage("b")
    wait_until(lambda: settled == ["a", "b"])
    desk.store.errors.append(StoreError("the disk is full"))
    settled.clear()
    desk.stage("a")
    wait_until(lambda: settled == ["a"])
    desk.poisoned = False

    wait_until(lambda: desk.can_stage("c"))
    wait_until(lambda: "c" in settled)
    desk.committer.stop()


def test_one_reply_that_cannot_be_given_costs_no_other() -> None:
    """Each caller of a batch is answered, whatever becomes of its neighbours."""

    class Broken(FakeConnection):
        def deliver(self, payload: Any) -> None:
            raise MemoryError

    with DurableDesk(Count) as desk:
        desk.ask("Count.add")
        desk.store.wait_for_commit()
        desk.store.hold()
        first = desk.start("Count.add")
        desk.store.wait_for_commit()
        desk.start("Count.add", connection=Broken())
        last = desk.start("Count.add")
        desk.store.release()
        assert (first.wait(), last.wait()) == (2, 4)
        wait_until(lambda: desk.host.pending == 0)
