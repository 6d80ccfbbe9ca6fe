"""No reply before its commit, all or nothing, failed batches: the host and its writer.

No sockets and no files: the store is one that stops and fails when the test says so.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import Any

import pytest

from state_server.errors import Overloaded, Stale, StoreError
from state_server.host import Host
from state_server.keeping import KeepingLimits, StateKeeper, commits, image
from state_server.keeping.commits import Committer, NeverWritten
from state_server.messages import Failure
from state_server.sharing import describe_class

from .durable_classes import Count, DurableDesk, FakeStore, WatchingConnection
from .fakes import PATIENCE_S, Desk, FakeConnection, code_of, lane_of, make_call
from .processes import wait_until

DISK_FULL = "the disk is full"


def shown(outcome: Any) -> int:
    """Return the number that a reply shows, be it a value, a text or an error."""
    if isinstance(outcome, Failure):
        assert outcome.code == "Raised", outcome
        return int(outcome.text)
    return int(str(outcome).strip("<>"))


def _fail(desk: DurableDesk, *errors: Exception | None) -> None:
    desk.store.errors.extend(errors)


# The gate ----------------------------------------------------------------------------


def nothing_leaves_before_its_commit() -> None:
    """Call in every way while a commit is held; fail if anything is answered early."""
    with DurableDesk(Count) as desk:
        assert desk.ask("Count.add") == 1
        desk.store.wait_for_commit()
        desk.store.hold()
        waiting = [desk.start("Count.add")]
        desk.store.wait_for_commit()
        for method in ("get", "look", "refuse", "fail", "leak", "__repr__"):
            waiting.append(desk.start(f"Count.{method}"))
        waiting.append(desk.start("Count.add"))
        early = [connection.replies for connection in waiting if connection.payloads]
        desk.store.release()
        assert not early, f"answered early: {early}"
        answers = [connection.wait() for connection in waiting]
        assert [shown(a) for a in answers if code(a) in ("", "Raised")] == [
            *(2, 2, 2, 2, 2),
            *(2, 3),
        ]
        assert code(answers[5]) == "NotAllowed"


def code(outcome: Any) -> str:
    """Return the code of a failure, nothing for a value."""
    return outcome.code if isinstance(outcome, Failure) else ""


def test_no_reply_leaves_before_the_state_it_shows_is_committed() -> None:
    """A write, a read, an unchanged call, an error and a repr wait for the commit."""
    nothing_leaves_before_its_commit()


def test_without_the_output_gate_replies_leave_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The test above has teeth: it fails when replies do not wait."""
    gate = Host._gate

    def open_gate(self: Host, *args: Any) -> Any:
        payload, batch = gate(self, *args)
        if batch is not None:
            batch.waiting.clear()
        return payload, None

    monkeypatch.setattr(Host, "_gate", open_gate)
    with pytest.raises(AssertionError, match="answered early"):
        nothing_leaves_before_its_commit()


def test_under_load_no_reply_shows_more_than_is_on_disk() -> None:
    """Many threads, four objects, every kind of call: each number heard is on disk."""
    early: list[Any] = []

    with DurableDesk(Count) as desk:

        def call(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(150):
                key = str(chance.randrange(4))

                def watch(outcome: Any, key: str = key) -> None:
                    on_disk = desk.store.state("Count", key) or {"count": -1}
                    if code(outcome) in ("", "Raised") and not (
                        shown(outcome) <= on_disk["count"]
                    ):
                        early.append((key, outcome, on_disk))

                connection = WatchingConnection(watch)
                method = chance.choice(("add", "add", "get", "look", "fail", "refuse"))
                desk.start(f"Count.{method}", connection=connection, key=key)
                connection.wait()

        threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not early, early[:3]
        desk.host.check()
        generations: dict[Any, int] = {}
        for batch in desk.store.batches:
            for change in batch:
                assert change.generation > generations.get(change.name, 0)
                generations[change.name] = change.generation


def test_calls_staged_during_a_commit_share_the_next_one() -> None:
    """While one commit is under way the next batch fills: 50 calls, one commit."""
    with DurableDesk(Count) as desk:
        desk.store.hold()
        first = desk.start("Count.add")
        desk.store.wait_for_commit()
        others = [desk.start("Count.add", key=str(n % 10)) for n in range(50)]
        desk.store.release()
        assert first.wait() == 1
        assert [c.wait() for c in others] == [1 + n // 10 for n in range(50)]
        assert len(desk.store.batches) == 2
        assert len(desk.store.batches[1]) == 10, "one image for each object"


def test_replies_leave_in_the_order_of_the_calls() -> None:
    """The replies of one object leave in the order in which its calls ran."""
    order: list[int] = []
    with DurableDesk(Count) as desk:
        desk.store.hold()
        connections = [WatchingConnection(order.append) for _ in range(20)]
        for connection in connections:
            desk.start("Count.add", connection=connection)
        desk.store.release()
        for connection in connections:
            connection.wait()
    assert order == list(range(1, 21))


@pytest.mark.parametrize(
    "method", ["get", "look", "__repr__", "__getattribute__", "refuse"]
)
def test_first_use_is_committed_before_the_first_reply(method: str) -> None:
    """An object that was just built is on disk before anything is heard of it."""

    class Born(Count):
        @property
        def number(self) -> int:
            return self.count

    with DurableDesk(describe_class(Born, name="Count")) as desk:
        desk.store.hold()
        args = ("number",) if method == "__getattribute__" else ()
        connection = desk.start(f"Count.{method}", *args)
        early = list(connection.payloads)
        desk.store.release()
        assert shown(connection.wait()) == 0
        assert not early
        assert desk.store.state("Count") == {"count": 0}


def test_what_is_unchanged_is_not_written() -> None:
    """After first use, reads and calls that change nothing cost no commit."""
    with DurableDesk(Count) as desk:
        desk.ask("Count.add")
        for method in ("get", "look", "refuse", "fail", "leak", "__str__"):
            desk.ask(f"Count.{method}")
        desk.ask("Count.add", 0)
        assert len(desk.store.batches) == 1


def test_stopping_commits_what_is_staged() -> None:
    """What was staged before the stop is committed and answered, then all is closed."""
    desk = DurableDesk(Count)
    with desk:
        desk.store.hold()
        connections = [desk.start("Count.add") for _ in range(3)]
        threading.Timer(0.05, desk.store.release).start()
        desk.host.stop()
        assert [c.wait() for c in connections] == [1, 2, 3]
        assert desk.store.state("Count") == {"count": 3}
    assert desk.store.is_closed


# Failed batches ----------------------------------------------------------------------


def test_a_call_that_saw_what_has_failed_meanwhile_is_refused() -> None:
    """It changed nothing, and ran on a state that is not on disk and never will be."""
    with DurableDesk(Count) as desk:
        desk.store.hold()
        desk.store.errors.append(StoreError(DISK_FULL))
        first = desk.start("Count.add")
        desk.store.wait_for_commit()

        def fail_first(event: str) -> None:
            if event == "encode":
                desk.store.release()
                assert code_of(first.wait()) == "StoreError"

        failure = desk.ask("Count.get", connection=FakeConnection(fail_first))
        assert code_of(failure) == "StoreError"
        assert "Count/default.get saw a state that could not be saved" in failure.text
        wait_until(lambda: "working" in repr(desk.host._committer))
        assert desk.ask("Count.get") == 0
        desk.host.check()


def test_a_failed_batch_fails_everything_staged_since() -> None:
    """The batch, the one that filled meanwhile, reads of both: nothing of it stays."""
    with DurableDesk(Count) as desk:
        for key in "abc":
            assert desk.ask("Count.add", 5, key=key) == 5
        desk.store.hold()
        _fail(desk, StoreError(DISK_FULL))
        failed = [desk.start("Count.add", key="a")]
        for _ in range(4):
            desk.store.wait_for_commit()
        failed += [desk.start("Count.get", key="a"), desk.start("Count.add", key="a")]
        failed += [desk.start("Count.add", key="b"), desk.start("Count.look", key="b")]
        untouched = desk.ask("Count.get", key="c")
        desk.store.release()
        assert [code_of(c.wait()) for c in failed] == ["StoreError"] * 5
        assert untouched == 5
        wait_until(lambda: "working" in repr(desk.host._committer))
        assert [desk.ask("Count.get", key=key) for key in "abc"] == [5, 5, 5]
        assert desk.ask("Count.add", key="a") == 6, "the number was not used up"
        assert desk.store.state("Count", "a") == {"count": 6}
        desk.host.check()


def test_a_call_that_runs_while_its_object_fails_is_failed_when_staged() -> None:
    """It ran on a state that is not on disk: its own change must not be either."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(Count):
        def wait_and_add(self) -> int:
            inside.set()
            assert go_on.wait(PATIENCE_S)
            return self.add()

    with DurableDesk(describe_class(Slow, name="Count")) as desk:
        assert desk.ask("Count.add") == 1
        desk.store.hold()
        _fail(desk, StoreError(DISK_FULL))
        first = desk.start("Count.add", 10)
        desk.store.wait_for_commit()
        desk.store.wait_for_commit()
        second = FakeConnection()
        thread = threading.Thread(
            target=desk.start,
            args=("Count.wait_and_add",),
            kwargs={"connection": second},
        )
        thread.start()
        assert inside.wait(PATIENCE_S)
        desk.store.release()
        assert code_of(first.wait()) == "StoreError"
        wait_until(lambda: "working" in repr(desk.host._committer))
        go_on.set()
        assert code_of(second.wait()) == "StoreError"
        thread.join(PATIENCE_S)
        assert desk.ask("Count.get") == 1
        assert desk.ask("Count.add") == 2


def test_while_it_is_uncertain_calls_are_unanswered_and_service_returns() -> None:
    """Without a fence: Unanswered, others are refused, reads go on; then it works."""
    with DurableDesk(Count) as desk:
        for key in "abcd":
            desk.ask("Count.add", key=key)
            desk.store.wait_for_commit()
        _fail(desk, StoreError(DISK_FULL))
        desk.store.fence_errors.append(StoreError(DISK_FULL))
        desk.store.hold()
        failed = desk.start("Count.add", key="a")
        desk.store.wait_for_commit()
        later = desk.start("Count.add", key="b")
        desk.store.hold_fence()
        desk.store.release()
        assert desk.store.fence_began.acquire(timeout=PATIENCE_S)
        assert not failed.payloads, "nothing is said before the fence was tried"
        assert desk.ask("Count.get", key="c") == 1
        assert code_of(desk.ask("Count.add", key="c")) == "StoreError"
        desk.store.release_fence()
        assert code_of(failed.wait()) == "Unanswered"
        assert code_of(later.wait()) == "StoreError", "it never reached the store"
        wait_until(lambda: "working" in repr(desk.host._committer))
        assert [desk.ask("Count.add", key=key) for key in "abcd"] == [2, 2, 2, 2]


def test_in_doubt_an_object_is_not_shown_but_others_are() -> None:
    """While it is uncertain what is on disk of an object, even a read is refused."""
    with DurableDesk(Count) as desk:
        for key in "ab":
            desk.ask("Count.add", key=key)
        _fail(desk, StoreError(DISK_FULL))
        desk.store.fence_errors.extend([StoreError(DISK_FULL)] * 3)
        assert code_of(desk.ask("Count.add", key="a")) == "Unanswered"
        assert code_of(desk.ask("Count.get", key="a")) == "StoreError"
        assert desk.ask("Count.get", key="b") == 1
        assert desk.ask("Count.get", key="new-one") != 0, "its first use is a change"
        wait_until(lambda: desk.store.fences)
        wait_until(lambda: "working" in repr(desk.host._committer))
        assert desk.ask("Count.get", key="a") == 1


def test_what_was_never_written_needs_no_fence_to_be_certain() -> None:
    """A transaction that did not come to its COMMIT: StoreError, and reads go on."""
    with DurableDesk(Count) as desk:
        desk.ask("Count.add")
        _fail(desk, NeverWritten("database is locked"))
        desk.store.fence_errors.extend([StoreError("database is locked")] * 2)
        assert code_of(desk.ask("Count.add")) == "StoreError"
        assert desk.ask("Count.get") == 1, "it is certain what is on disk"
        wait_until(lambda: desk.store.fences)
        wait_until(lambda: "working" in repr(desk.host._committer))
        assert desk.ask("Count.add") == 2


def test_a_repeat_of_a_failed_call_is_told_the_same() -> None:
    """A call that was told StoreError stays undone, however often it is sent again."""
    with DurableDesk(Count) as desk:
        lane = lane_of(desk.clock())
        connection = desk.attached(lane)
        assert desk.ask("Count.add", connection=connection, number=1) == 1
        _fail(desk, StoreError(DISK_FULL))
        failed = desk.ask("Count.add", connection=connection, number=2)
        again = desk.attached(lane)
        assert desk.ask("Count.add", connection=again, number=2) == failed
        assert code_of(failed) == "StoreError"
        assert desk.store.replies[lane.lane].number == 1
        assert desk.ask("Count.add", connection=again, number=3) == 2


def test_a_repeat_waits_at_the_same_gate() -> None:
    """A repeat that comes during the commit of its original gets its reply, once."""
    with DurableDesk(Count) as desk:
        lane = lane_of(desk.clock())
        original = desk.attached(lane)
        desk.store.hold()
        desk.start("Count.add", connection=original, number=1)
        again = desk.attached(lane)
        desk.start("Count.add", connection=again, number=1)
        assert not original.payloads
        assert not again.payloads
        desk.store.release()
        assert again.wait() == 1
        assert not original.payloads
        assert desk.ask("Count.get") == 1


def test_a_commit_is_not_undone_because_tidying_up_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Forgetting old replies may fail: the batch before it is committed even so."""
    monkeypatch.setattr(commits, "_HOUSEKEEPING_S", 0.0)
    with DurableDesk(Count) as desk:
        desk.store.tidy_error = StoreError("locked")
        assert [desk.ask("Count.add") for _ in range(3)] == [1, 2, 3]
        assert desk.store.tidied.wait(PATIENCE_S)
        assert desk.store.state("Count") == {"count": 3}


@pytest.mark.parametrize(
    "error", [OverflowError("too large"), MemoryError(), KeyError(1)]
)
def test_the_writer_survives_errors_of_any_kind(error: Exception) -> None:
    """Whatever a store raises, its batch fails and the next one is committed."""
    with DurableDesk(Count) as desk:
        assert desk.ask("Count.add") == 1
        _fail(desk, error)
        assert code_of(desk.ask("Count.add")) == "StoreError"
        wait_until(lambda: "working" in repr(desk.host._committer))
        assert desk.ask("Count.add") == 2


def test_lanes_that_said_goodbye_are_forgotten_on_disk() -> None:
    """The remembered reply of a lane that has ended is deleted on disk."""
    with DurableDesk(Count) as desk:
        connection = desk.attached()
        assert connection.lane is not None
        desk.ask("Count.add", connection=connection, number=1)
        assert connection.lane.lane in desk.store.replies
        desk.host.detach(connection.lane, connection, finished=True)
        desk.ask("Count.add")
        assert connection.lane.lane in desk.store.forgotten
        assert not desk.store.replies


def test_a_lane_is_forgotten_where_nothing_changes_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What goodbyes leave to be written goes with the next look at old replies."""
    with DurableDesk(Count) as desk:
        connection = desk.attached()
        assert connection.lane is not None
        desk.ask("Count.add", connection=connection, number=1)
        desk.host.detach(connection.lane, connection, finished=True)
        committer = desk.host._committer
        assert committer is not None
        committer._tidy_at = 0.0
        with committer._lock:
            committer._staged.notify()
        wait_until(lambda: desk.store.forgotten == [connection.lane.lane])


def test_a_lane_on_disk_belongs_to_its_session() -> None:
    """Nobody takes it over from the manager before without knowing the session."""
    store = FakeStore()
    with DurableDesk(Count, store=store) as desk:
        connection = desk.attached()
        assert connection.lane is not None
        desk.ask("Count.add", connection=connection, number=1)
    stolen = connection.lane._replace(session=b"t" * 16)
    with DurableDesk(Count, store=store) as desk:
        with pytest.raises(Stale, match="another session"):
            desk.host.attach(stolen, FakeConnection())
        again = desk.attached(connection.lane)
        assert desk.ask("Count.add", connection=again, number=1) == 1


def test_replies_that_come_back_from_disk_count_as_well() -> None:
    """A lane that the next manager recalls takes what its reply takes."""
    store = FakeStore()
    with DurableDesk(Count, store=store) as desk:
        connection = desk.attached()
        answer = desk.ask("Count.add", 2**8000, connection=connection, number=1)
    with DurableDesk(Count, store=store) as desk:
        again = desk.attached(connection.lane)
        assert desk.host.status()["lanes_bytes"] > 1000
        assert desk.ask("Count.add", connection=again, number=1) == answer
        desk.host.check()
        desk.host.detach(again.lane, again, finished=True)
        assert desk.host.status()["lanes_bytes"] == 0
        desk.host.check()


def test_many_failures_under_load_leave_memory_and_disk_the_same() -> None:
    """Batches fail at random under load: numbers heard are unique and none is lost."""
    heard: dict[str, list[int]] = {key: [] for key in "abc"}
    unsure: dict[str, int] = dict.fromkeys("abc", 0)
    lock = threading.Lock()
    chance = random.Random(7)
    with DurableDesk(Count) as desk:
        for _ in range(60):
            fails = chance.random() < 0.3
            desk.store.errors.append(StoreError(DISK_FULL) if fails else None)

        def call(seed: int) -> None:
            own = random.Random(seed)
            for _ in range(60):
                key = own.choice("abc")
                outcome = desk.ask("Count.add", key=key)
                with lock:
                    if not isinstance(outcome, Failure):
                        heard[key].append(outcome)
                    else:
                        assert outcome.code == "StoreError", outcome
                        unsure[key] += 1

        threads = [threading.Thread(target=call, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert sum(unsure.values()) > 0
        for key, numbers in heard.items():
            assert sorted(numbers) == list(range(1, len(numbers) + 1))
            assert desk.ask("Count.get", key=key) == len(numbers)
            assert desk.store.state("Count", key) == {"count": len(numbers)}
        desk.host.check()


# All or nothing ----------------------------------------------------------------------


def a_failed_call_leaves_the_object_as_it_was(*, durable: bool) -> None:
    """Fail in every way after a change, and look."""
    with DurableDesk(
        describe_class(Count, durable=durable, rollback=not durable),
        keeping=KeepingLimits(state_bytes_max=2000),
    ) as desk:
        assert desk.ask("Count.add") == 1
        assert code_of(desk.ask("Count.fail")) == "Raised"
        assert code_of(desk.ask("Count.leak")) == "NotAllowed"
        assert desk.ask("Count.get") == 1, "it was changed"
        assert code_of(desk.ask("Count.grow", 3000)) == "TooLarge"
        assert desk.ask("Count.get") == 1
        assert desk.ask("Count.add") == 2


@pytest.mark.parametrize("durable", [True, False])
def test_a_failed_call_leaves_the_object_as_it_was(*, durable: bool) -> None:
    """A raise, a result that cannot travel, a state too large: nothing happened."""
    a_failed_call_leaves_the_object_as_it_was(durable=durable)


def test_without_rollback_a_failed_call_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above has teeth: it fails when nothing is put back."""
    monkeypatch.setattr(StateKeeper, "undo", lambda self, **_: None)
    with pytest.raises(AssertionError, match="it was changed"):
        a_failed_call_leaves_the_object_as_it_was(durable=True)


def test_an_error_without_a_change_keeps_the_instance() -> None:
    """A new instance is made only if the failed call had changed something."""
    with DurableDesk(Count) as desk:
        desk.ask("Count.add")
        keeper = desk.resident("Count", "default").keeper
        before = keeper.instance
        desk.ask("Count.refuse")
        assert keeper.instance is before
        desk.ask("Count.fail")
        assert keeper.instance is not before


def test_a_state_too_large_fails_nobody_else() -> None:
    """It is refused before it is staged: calls it would share a commit with go on."""
    with DurableDesk(Count, keeping=KeepingLimits(state_bytes_max=2000)) as desk:
        desk.store.hold()
        others = [desk.start("Count.add", key=str(n)) for n in range(5)]
        large = desk.start("Count.grow", 3000, key="large")
        desk.store.release()
        assert [c.wait() for c in others] == [1] * 5
        failure = large.wait()
        assert code_of(failure) == "TooLarge"
        assert "state_bytes_max" in failure.text
        assert desk.ask("Count.get", key="large") == 0


def test_a_large_state_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """From the size of the warning on, one line names the object."""
    with DurableDesk(Count, keeping=KeepingLimits(state_bytes_warn=1000)) as desk:
        for size in (1500, 1501, 1502):
            desk.ask("Count.grow", size)
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len([r for r in warnings if "Count/default" in r.getMessage()]) == 1


def test_the_numbers_of_a_hostile_client_fail_nobody_else(tmp_path: Any) -> None:
    """A call number that no database column holds fails its own call alone."""
    from state_server.store import SqliteStore

    store: Any = SqliteStore(tmp_path / "state.db")
    with DurableDesk(Count, store=_Held(store)) as desk:  # type: ignore[arg-type]
        desk.store.hold()
        good = desk.start("Count.add", key="good")
        bad = desk.start(
            "Count.add", connection=desk.attached(), number=2**63 + 5, key="bad"
        )
        also_good = desk.start("Count.add", key="also good")
        desk.store.release()
        assert good.wait() == 1
        assert also_good.wait() == 1
        assert code_of(bad.wait()) in (
            "StoreError",
            "Refused",
            "NotAllowed",
            "TooLarge",
        )
        assert desk.ask("Count.add", key="good") == 2


class _Held:
    """A real store whose first commit waits until everybody has staged."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._open = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    release_fence = release

    def commit(self, *args: Any) -> None:
        assert self._open.wait(PATIENCE_S)
        self._store.commit(*args)


# Idle objects ------------------------------------------------------------------------


def test_idle_objects_leave_memory_and_come_back() -> None:
    """After the idle time an object leaves memory; the next call finds it whole."""
    with DurableDesk(Count, idle_timeout_s=100.0) as desk:
        for key in "abc":
            desk.ask("Count.add", 7, key=key)
        desk.clock.advance(60)
        desk.ask("Count.get", key="a")
        desk.clock.advance(60)
        desk.host.sweep()
        assert desk.host.status()["objects"] == 1
        assert [desk.ask("Count.add", key=key) for key in "abc"] == [8, 8, 8]


def test_each_class_has_an_idle_time_of_its_own() -> None:
    """A class with a short idle time does not wait for one with a long one."""
    with DurableDesk(
        describe_class(Count, name="Long"),
        describe_class(Count, name="Short", idle_timeout=5.0),
        describe_class(Count, name="Never", idle_timeout=1e9),
        idle_timeout_s=100.0,
    ) as desk:
        for name in ("Never", "Long", "Short"):
            desk.ask(f"{name}.add")
            desk.clock.advance(1)
        desk.clock.advance(20)
        desk.host.sweep()
        assert {resident.object_name[0] for resident in desk.host._residents} == {
            "Never",
            "Long",
        }
        desk.clock.advance(200)
        desk.host.sweep()
        assert {resident.object_name[0] for resident in desk.host._residents} == {
            "Never"
        }


def test_an_object_that_is_busy_or_not_committed_stays_in_memory() -> None:
    """It would come back without what is being committed."""
    with DurableDesk(Count, idle_timeout_s=1.0) as desk:
        desk.store.hold()
        connection = desk.start("Count.add")
        desk.clock.advance(60)
        desk.host.sweep()
        assert desk.host.status()["objects"] == 1
        desk.store.release()
        assert connection.wait() == 1
        desk.host.sweep()
        assert desk.host.status()["objects"] == 0
        assert desk.ask("Count.add") == 2


def test_objects_of_a_failed_batch_leave_memory_when_idle() -> None:
    """What failed is not kept for ever by nobody calling it again."""
    with DurableDesk(Count, idle_timeout_s=1.0) as desk:
        desk.ask("Count.add")
        _fail(desk, StoreError(DISK_FULL))
        assert code_of(desk.ask("Count.add")) == "StoreError"
        desk.clock.advance(60)
        desk.host.sweep()
        assert desk.host.status()["objects"] == 0
        wait_until(lambda: "working" in repr(desk.host._committer))
        assert desk.ask("Count.add") == 2


def test_at_the_limit_of_objects_the_least_used_leaves() -> None:
    """objects_max bounds memory, not how many objects there are on disk."""
    with DurableDesk(Count, objects_max=3) as desk:
        for _ in range(3):
            for key in range(20):
                desk.ask("Count.add", key=str(key))
                assert desk.host.status()["objects"] <= 3
        assert [desk.ask("Count.get", key=str(key)) for key in range(20)] == [3] * 20


def test_who_is_told_of_the_limit_of_objects_is_told_of_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two lines, however many objects come at the limit and leave it again."""
    with DurableDesk(Count, objects_max=20, idle_timeout_s=10.0) as desk:
        for key in range(25):
            desk.ask("Count.add", key=str(key))
        desk.clock.advance(60)
        desk.host.sweep()
    assert [text for text in caplog.messages if "objects in memory" in text] == [
        "Limit reached: 20 objects in memory.",
        "Back below the limit of 20 objects in memory.",
    ]


def test_at_the_limit_of_kept_bytes_the_least_used_leaves() -> None:
    """objects_bytes_max bounds memory, whatever is on disk and however large it is."""
    with DurableDesk(Count, objects_bytes_max=10_000) as desk:
        for number in range(1, 4):
            for key in range(20):
                desk.ask("Count.grow", 2000, key=str(key))
                assert desk.ask("Count.add", key=str(key)) == number
                assert desk.ask("Count.get", key="used") == 0
                assert desk.host.status()["objects_bytes"] < 13_000
                desk.host.check()
        there = {resident.object_name[1] for resident in desk.host._residents}
        assert {"used", "19"} <= there
        assert len(there) < 7


@pytest.mark.parametrize(
    "limit", ["objects_max", "objects_bytes_max", "idle_timeout_s"]
)
def test_an_object_that_leaves_memory_runs_its_code_without_the_lock(
    limit: str,
) -> None:
    """Its ``__del__`` may take time, or ask something: nobody waits for it."""
    lock_was_free = []

    class Mortal(Count):
        def __del__(self) -> None:
            free = desk.host._lock.acquire(timeout=5)
            if free:
                desk.host._lock.release()
            lock_was_free.append(free)

    limits = {"objects_max": 2, "objects_bytes_max": 1500, "idle_timeout_s": 10.0}
    with DurableDesk(Mortal, **{limit: limits[limit]}) as desk:
        for key in "abcd":
            desk.ask("Mortal.grow", 1000, key=key)
        # Those that were loaded once more, to see whether they can be, have gone too.
        lock_was_free.clear()
        desk.clock.advance(5 if limit != "idle_timeout_s" else 60)
        desk.ask("Mortal.grow", 1000, key="e")
        desk.host.sweep()
        assert lock_was_free
        assert all(lock_was_free)


def test_objects_that_grow_have_others_leave() -> None:
    """The limit of kept bytes holds also when no further object is called."""
    with DurableDesk(Count, objects_bytes_max=10_000) as desk:
        for size in (10, 2000, 4000, 8000):
            for key in "abc":
                desk.ask("Count.grow", size, key=key)
        assert desk.host.status()["objects"] == 1
        assert 8000 < desk.host.status()["objects_bytes"] < 10_000
        desk.host.check()


def test_an_object_larger_than_the_limit_stays_while_it_alone_is_called() -> None:
    """It is not loaded anew for each call; another that is called takes its place."""
    with DurableDesk(Count, objects_bytes_max=10_000) as desk:
        desk.ask("Count.grow", 20_000, key="large")
        large = desk.resident("Count", "large").keeper.instance
        assert [desk.ask("Count.add", key="large") for _ in range(3)] == [1, 2, 3]
        assert desk.resident("Count", "large").keeper.instance is large
        assert desk.ask("Count.add", key="small") == 1
        assert [r.object_name[1] for r in desk.host._residents] == ["small"]


def test_at_the_limit_of_kept_bytes_nothing_comes_in_that_has_no_room(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is not on disk yet cannot leave: others are refused, and told once."""
    other = describe_class(Count, name="Forgotten", durable=False)
    with DurableDesk(Count, other, objects_bytes_max=10_000) as desk:
        desk.store.hold()
        waiting = desk.start("Count.grow", 20_000)
        for target, key in (("Count.add", "b"), ("Count.get", "c")):
            refused = desk.ask(target, key=key)
            assert code_of(refused) == "Overloaded"
            assert "20" in refused.text
            assert "limit is 10000 (objects_bytes_max)" in refused.text
        assert code_of(desk.ask("Forgotten.add")) == "Overloaded"
        desk.store.release()
        assert waiting.wait() is None
        desk.clock.advance(1000)
        desk.host.sweep()
        told = [record.getMessage() for record in caplog.records]
        assert told == [
            "Limit reached: 10000 bytes of objects in memory.",
            "Back below the limit of 10000 bytes of objects in memory.",
        ]
        assert [desk.ask("Count.add", key=key) for key in "bc"] == [1, 1]
        assert desk.ask("Forgotten.add") == 1
        desk.host.check()


@pytest.mark.parametrize("durable", [True, False])
def test_where_nothing_is_on_disk_what_is_there_goes_on(durable: bool) -> None:
    """Objects that only memory holds never leave for others; these are refused."""
    record = describe_class(Count, durable=durable, rollback=True)
    desk = Desk(record, objects_bytes_max=10_000)
    for key in "ab":
        desk.ask(FakeConnection(), "Count.grow", 6000, key=key)
    for _ in range(2):
        refused = desk.ask(FakeConnection(), "Count.add", key="c")
        assert code_of(refused) == "Overloaded"
    # One that could not be put back is built again from what is kept of it.
    desk.host._residents.find(make_call("Count.get", key="b")).keeper.drop()
    assert [desk.ask(FakeConnection(), "Count.add", key=key) for key in "ab"] == [1, 1]
    desk.ask(FakeConnection(), "Count.grow", 10, key="a")
    assert desk.ask(FakeConnection(), "Count.add", key="c") == 1


def test_kept_bytes_are_counted_however_a_call_ends() -> None:
    """After any calls, and failures of the disk, the sum is that of all images."""
    chance = random.Random(5)
    methods = ("add", "get", "look", "fail", "refuse", "leak", "grow")
    with DurableDesk(Count, objects_bytes_max=3000, idle_timeout_s=10.0) as desk:
        for _ in range(400):
            if chance.random() < 0.05:
                _fail(desk, StoreError(DISK_FULL))
            method, key = chance.choice(methods), chance.choice("abcdef")
            arguments = (chance.randrange(1500),) if method == "grow" else ()
            desk.ask(f"Count.{method}", *arguments, key=key)
            wait_until(lambda: "working" in repr(desk.host._committer))
            desk.clock.advance(chance.choice((0, 0, 0, 6)))
            desk.host.sweep()
            desk.host.check()
            kept_bytes = 0
            for resident in desk.host._residents:
                assert isinstance(resident.keeper, StateKeeper)
                kept_bytes += len(resident.keeper._image)
            assert desk.host.status()["objects_bytes"] == kept_bytes < 3000 + 1600


def test_a_busy_object_does_not_keep_the_limit_from_giving_way() -> None:
    """If the least used object is busy, the next one leaves."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(Count):
        def wait(self) -> str:
            inside.set()
            assert go_on.wait(PATIENCE_S)
            return "done"

    with DurableDesk(describe_class(Slow, name="Count"), objects_max=3) as desk:
        busy = FakeConnection()
        desk.ask("Count.get", key="busy")
        thread = threading.Thread(
            target=desk.start,
            args=("Count.wait",),
            kwargs={"connection": busy, "key": "busy"},
        )
        thread.start()
        try:
            assert inside.wait(PATIENCE_S)
            for key in "abcdef":
                assert desk.ask("Count.add", key=key) == 1
        finally:
            go_on.set()
            thread.join(PATIENCE_S)
        assert busy.wait() == "done"


# What holds under other orders -------------------------------------------------------


def test_undo_that_fails_does_not_bring_an_older_state_back() -> None:
    """An object that cannot be put back is loaded only after its last commit."""

    class Moody(Count):
        refuses = False

        def __setstate__(self, state: dict[str, Any]) -> None:
            if Moody.refuses:
                Moody.refuses = False
                raise RuntimeError("not now")
            self.__dict__.update(state)

        def spoil(self) -> None:
            self.count += 100
            Moody.refuses = True
            raise ValueError("spoilt")

    with DurableDesk(describe_class(Moody, name="Count")) as desk:
        assert desk.ask("Count.add") == 1
        desk.store.hold()
        second = desk.start("Count.add")
        spoilt = desk.start("Count.spoil")
        third = FakeConnection()
        thread = threading.Thread(
            target=desk.start, args=("Count.add",), kwargs={"connection": third}
        )
        thread.start()
        desk.store.release()
        thread.join(PATIENCE_S)
        assert second.wait() == 2
        assert code_of(spoilt.wait()) == "Raised"
        assert third.wait() == 3


def test_replies_that_cannot_be_read_are_no_verdict_on_the_call() -> None:
    """A lane whose memory cannot be read is sent away for now, not told StoreError."""

    class Unreadable(FakeStore):
        def reply_of(self, lane: bytes) -> Any:
            raise StoreError("disk I/O error")

    with DurableDesk(Count, store=Unreadable()) as desk, pytest.raises(Overloaded):
        desk.attached()


def test_waiting_for_a_batch_ends_with_it() -> None:
    """Committer.wait_for returns when a batch is committed, and when it has failed."""
    for error in (None, StoreError(DISK_FULL)):
        with DurableDesk(Count) as desk:
            _fail(desk, error)
            desk.store.hold()
            connection = desk.start("Count.add")
            committer = desk.host._committer
            assert isinstance(committer, Committer)
            batch = desk.resident("Count", "default").batch
            assert batch is not None
            thread = threading.Thread(target=committer.wait_for, args=(batch,))
            thread.start()
            desk.store.release()
            began = time.monotonic()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
            assert time.monotonic() - began < PATIENCE_S / 2
            connection.wait()


def test_an_image_holds_no_name_of_the_class() -> None:
    """A class can be renamed: nothing in the image says what it was called."""
    count = Count()
    assert b"Count" not in image.dump(count, {})


@pytest.mark.parametrize("error", [None, StoreError(DISK_FULL)])
def test_bytes_of_a_call_count_until_it_is_on_disk(error: Exception | None) -> None:
    """A call that waits for its commit keeps its bytes; committed or not, they go."""
    with DurableDesk(Count, pending_bytes_max=1000) as desk:
        desk.store.hold()
        desk.store.errors.append(error)
        waiting = desk.start("Count.add", 2**5000)
        desk.host.check()
        assert desk.host.status()["pending_bytes"] > 600
        second = desk.start("Count.add", 2**5000)
        assert code_of(desk.ask("Count.add")) == "Overloaded"
        desk.store.release()
        for connection in (waiting, second):
            connection.wait()
        wait_until(lambda: desk.host.pending == 0)

        desk.host.check()
        assert desk.host.status()["pending_bytes"] == 0


@pytest.mark.parametrize("error", [None, StoreError(DISK_FULL)])
def test_replies_that_wait_for_a_commit_are_bounded_in_bytes(
    caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    """While a disk stalls, an object runs no more calls than may wait in bytes."""

    class Speaker(Count):
        def say(self, size: int) -> str:
            self.count += 1
            return "x" * size

    with DurableDesk(Speaker, batch_bytes_max=10_000) as desk:
        desk.store.hold()
        desk.store.errors.append(error)
        desk.start("Speaker.add")
        desk.store.wait_for_commit()
        connections = [FakeConnection() for _ in range(6)]
        turns = [desk.submit(c, "Speaker.say", 4000) for c in connections]
        assert turns[1:] == [None] * 5
        thread = threading.Thread(target=desk.run, args=(turns[0],))
        thread.start()
        wait_until(lambda: "bytes of replies waiting" in caplog.text)
        resident = desk.resident("Speaker", "default")
        assert len(resident.queue) == 3
        assert not any(connection.payloads for connection in connections)
        desk.store.release()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        answers = [connection.wait() for connection in connections]
        wait_until(lambda: desk.host.pending == 0)

        desk.host.check()
        if error is None:
            assert answers == ["x" * 4000] * 6
        desk.host.sweep()
        limits = [r for r in caplog.records if "bytes of replies" in r.getMessage()]
        assert len(limits) == 2


def test_a_call_is_pending_until_its_reply_has_left() -> None:
    """A manager that drains waits for the replies of the last commit as well."""
    with DurableDesk(Count) as desk:
        seen: list[int] = []
        connection = FakeConnection(
            lambda step: seen.append(desk.host.pending) if step == "deliver" else None
        )
        assert desk.ask("Count.add", connection=connection) == 1
        wait_until(lambda: desk.host.pending == 0)

        assert seen == [1]
