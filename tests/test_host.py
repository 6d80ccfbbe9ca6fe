"""The host, by plain calls: order, first use, memory, deadlines, lanes, limits, errors.

Nothing here opens a socket or sleeps. What other threads could do between two locked
sections of the host is done in hooks instead: in a method, in a constructor, while a
reply is encoded, while it is delivered.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)

from state_server import codec, wire
from state_server.errors import (
    NotShared,
    Overloaded,
    Refused,
    Stale,
    Unanswered,
)
from state_server.host import Host, Resident
from state_server.messages import KEY_LENGTH_MAX, Failure, Lane, running
from state_server.objects import add_ready_made
from state_server.settings import ManagerSettings
from state_server.sharing import ObjectsLimit, describe_class, describe_factory

from .durable_classes import Count, DurableDesk
from .fakes import (
    BOOT_ID,
    OTHER_BOOT_ID,
    PATIENCE_S,
    Desk,
    FakeConnection,
    catalogue_of,
    code_of,
    heard,
    lane_of,
    make_call,
)


class Counter:
    """Counts, and can be read."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, amount: int = 1) -> int:
        """Count, and return the new number."""
        self.count += amount
        return self.count

    def get(self) -> int:
        """Return the number."""
        return self.count


class Journal:
    """Writes down what was called, in order."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def write(self, entry: Any) -> int:
        """Write an entry down, and return how many there are."""
        self.entries.append(entry)
        return len(self.entries)

    def read(self) -> list[Any]:
        """Return the entries."""
        return self.entries


def log_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings that the host has logged."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "state_server.host" and record.levelno >= logging.WARNING
    ]


# Order -------------------------------------------------------------------------------


def test_calls_on_one_object_run_in_order_of_arrival() -> None:
    """Calls that wait for one object run one after the other, as they came."""
    desk = Desk(Journal)
    connections = [FakeConnection() for _ in range(20)]
    first = desk.submit(connections[0], "Journal.write", 0)
    for number in range(1, 20):
        assert desk.submit(connections[number], "Journal.write", number) is None
    desk.run(first)

    assert [[place + 1] for place in range(20)] == [c.replies for c in connections]
    assert list(range(20)) == desk.ask(FakeConnection(), "Journal.read")


def test_a_running_call_does_not_delay_another_object() -> None:
    """While one object's method runs, another object's call is run and answered."""
    seen = []

    class Slow:
        def work(self) -> str:
            seen.append(desk.ask(FakeConnection(), "Counter.add"))
            seen.append(desk.ask(FakeConnection(), "Slow.get", key="other"))
            return "done"

        def get(self) -> str:
            return "other"

    desk = Desk(Slow, Counter)

    assert desk.ask(FakeConnection(), "Slow.work") == "done"
    assert seen == [1, "other"]


def test_objects_of_one_class_have_states_of_their_own() -> None:
    """Each key of a class is an object of its own."""
    desk = Desk(Counter)
    asked = [
        desk.ask(FakeConnection(), "Counter.add", key=key)
        for key in ("a", "b", "a", "default", "a")
    ]

    assert asked == [1, 1, 2, 1, 3]


def test_a_call_that_comes_while_a_method_runs_is_found_by_the_one_who_runs() -> None:
    """A call given in during a method is queued, and the runner is told of it."""
    late = FakeConnection()

    class Meeting:
        def first(self) -> str:
            assert desk.submit(late, "Meeting.second") is None
            return "first"

        def second(self) -> str:
            return "second"

    desk = Desk(Meeting)
    resident = desk.submit(FakeConnection(), "Meeting.first")
    assert resident is not None
    following = desk.host.run(resident)

    assert following is not None
    assert late.replies == []
    assert desk.host.run(following) is None
    assert late.replies == ["second"]


@pytest.mark.parametrize("place", ["encode", "deliver"])
def test_no_wake_up_is_lost_while_a_reply_is_made_or_sent(place: str) -> None:
    """A call that comes while the reply is encoded or delivered is run by somebody."""
    late, to_run = FakeConnection(), []

    def hook(where: str) -> None:
        if where == place and not late.payloads and not to_run:
            to_run.append(desk.submit(late, "Counter.add"))

    desk = Desk(Counter)
    connection = FakeConnection(hook)
    desk.run(desk.submit(connection, "Counter.add"))
    for resident in to_run:
        desk.run(resident)

    assert connection.replies == [1]
    assert late.replies == [2]
    assert desk.host.pending == 0
    desk.host.check()


def test_many_threads_lose_no_call_and_run_none_at_once() -> None:
    """Eight threads that give in and run 300 calls each: the total is exact."""
    inside, most_inside = 0, 0

    class Busy:
        def __init__(self) -> None:
            self.total = 0

        def add(self) -> int:
            nonlocal inside, most_inside
            inside += 1
            most_inside = max(inside, most_inside)
            self.total += 1
            inside -= 1
            return self.total

    desk = Desk(Busy)
    connections = [[FakeConnection() for _ in range(300)] for _ in range(8)]

    def work(mine: list[FakeConnection]) -> None:
        for place, connection in enumerate(mine):
            key = "all" if place % 3 else f"{place % 2}"
            desk.run(desk.submit(connection, "Busy.add", key=key))

    former_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=work, args=(mine,), daemon=True)
            for mine in connections
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
    finally:
        sys.setswitchinterval(former_s)

    desk.host.check()
    assert desk.host.pending == 0
    counts = {"all": 1600, "0": 400, "1": 400}
    for key, count in counts.items():
        asked = [
            connection.replies
            for mine in connections
            for place, connection in enumerate(mine)
            if key == ("all" if place % 3 else f"{place % 2}")
        ]
        assert sorted(asked) == [[number + 1] for number in range(count)]
    assert desk.host.status()["calls"] == 2400
    assert most_inside <= 3, "three objects: at most one call runs in each"


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_no_interleaving_loses_a_call(data: st.DataObject) -> None:
    """Whatever happens between two locked sections, each call is answered once."""
    calls_left = data.draw(st.integers(2, 12), label="calls")
    connections: list[FakeConnection] = []
    to_run: list[Resident] = []
    running_in: set[str] = set()

    def give_in() -> None:
        nonlocal calls_left
        if calls_left:
            calls_left -= 1
            connections.append(FakeConnection(hook))
            key = data.draw(st.sampled_from("ab"))
            resident = desk.submit(connections[-1], "Hooked.add", key, key=key)
            if resident is not None:
                to_run.append(resident)

    def hook(_: str) -> None:
        """Do what other threads might do at this moment."""
        for _ in range(data.draw(st.integers(0, 2))):
            give_in()
        if to_run and len(running_in) < 2 and data.draw(st.booleans()):
            run_one()

    def run_one() -> None:
        place = data.draw(st.integers(0, len(to_run) - 1))
        following = desk.host.run(to_run.pop(place))
        if following is not None:
            to_run.append(following)

    class Hooked:
        def __init__(self) -> None:
            self.count = 0
            hook("construct")

        def add(self, key: str) -> int:
            assert key not in running_in, "two calls run on one object at once"
            running_in.add(key)
            before = self.count
            hook("method")
            self.count = before + 1
            running_in.remove(key)
            return self.count

    desk = Desk(Hooked)
    while calls_left or to_run:
        if calls_left and (not to_run or data.draw(st.booleans())):
            give_in()
        else:
            run_one()
        desk.host.check()

    assert desk.host.pending == 0
    assert all(len(connection.payloads) == 1 for connection in connections)
    total = sum(
        desk.ask(FakeConnection(), "Hooked.add", key, key=key) - 1 for key in "ab"
    )
    assert total == len(connections)


# First use ---------------------------------------------------------------------------


def test_first_calls_build_the_object_once() -> None:
    """However many first calls come while the object is built, it is built once."""
    built = []
    late = [FakeConnection() for _ in range(5)]

    class Built:
        def __init__(self) -> None:
            built.append(self)
            for connection in late:
                assert desk.submit(connection, "Built.me") is None

        def me(self) -> int:
            return built.index(self)

    desk = Desk(Built)

    assert desk.ask(FakeConnection(), "Built.me") == 0
    assert [connection.replies for connection in late] == [[0]] * 5
    assert len(built) == 1


def test_first_calls_of_many_threads_build_the_object_once() -> None:
    """Threads that all make the first call at once get answers of one object."""
    built = []
    barrier = threading.Barrier(6)

    class Built:
        def __init__(self) -> None:
            built.append(self)

        def me(self) -> int:
            return built.index(self)

    desk = Desk(Built)
    connections = [FakeConnection() for _ in range(6)]

    def work(connection: FakeConnection) -> None:
        barrier.wait(PATIENCE_S)
        desk.run(desk.submit(connection, "Built.me"))

    threads = [threading.Thread(target=work, args=(c,)) for c in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert [connection.wait() for connection in connections] == [0] * 6
    assert len(built) == 1


def test_slow_constructor_delays_only_its_own_object() -> None:
    """While one object is built, others of the class are built and answer."""
    inner = []

    class Slow:
        def __init__(self) -> None:
            if not inner:
                inner.append("begun")
                inner.append(desk.ask(FakeConnection(), "Slow.get", key="quick"))

        def get(self) -> str:
            return "here"

    desk = Desk(Slow)

    assert desk.ask(FakeConnection(), "Slow.get", key="slow") == "here"
    assert inner == ["begun", "here"]


def test_failing_constructor_is_reported_and_tried_again() -> None:
    """What a constructor raises goes to its caller; the next call builds anew."""
    attempts = itertools.count()

    class Shy:
        def __init__(self) -> None:
            if next(attempts) < 2:
                raise OSError(5, "not yet")

        def get(self) -> str:
            return "here"

    desk = Desk(Shy)
    first, second = (desk.ask(FakeConnection(), "Shy.get") for _ in range(2))

    assert first.qualname == second.qualname == "OSError"
    assert "not yet" in first.text
    assert desk.ask(FakeConnection(), "Shy.get") == "here"


def test_factory_learns_its_contract_from_the_first_object() -> None:
    """A class made by a factory offers what the object built offers, no more."""
    shared = describe_factory(Counter, name="Made", exposed=("add",))
    desk = Desk(shared)

    with pytest.raises(NotShared):
        desk.host.describe("Made")
    assert code_of(desk.ask(FakeConnection(), "Made.get")) == "NotOffered"
    assert desk.ask(FakeConnection(), "Made.add") == 1

    prepared = desk.host.prepare(shared)
    assert prepared.contract is not None
    assert prepared.contract.methods == {"add"}


def test_describe_gives_the_contract_or_names_what_is_shared() -> None:
    """A class that is shared is described; the refusal of another names those."""
    desk = Desk(Counter, Journal)

    assert desk.host.describe("Counter").methods == {"add", "get"}
    with pytest.raises(
        NotShared, match=r"'Count'; there are: Counter, Journal.*--objects"
    ):
        desk.host.describe("Count")


# The reply memory --------------------------------------------------------------------


def test_repeat_gets_the_remembered_reply_and_runs_nothing() -> None:
    """The same number again gives the same payload; the method ran once."""
    desk = Desk(Counter)
    connection = desk.attached()
    desk.ask(connection, "Counter.add", number=1)
    desk.ask(connection, "Counter.add", number=1)

    assert connection.payloads[0] == connection.payloads[1]
    assert desk.ask(FakeConnection(), "Counter.get") == 1


def test_errors_are_remembered_like_values() -> None:
    """The repeat of a call that raised gets the same failure; it does not run again."""
    ran = []

    class Angry:
        def shout(self) -> None:
            ran.append(1)
            raise KeyError("no")

    desk = Desk(Angry)
    connection = desk.attached()
    desk.ask(connection, "Angry.shout", number=1)
    desk.ask(connection, "Angry.shout", number=1)

    assert connection.payloads[0] == connection.payloads[1]
    assert ran == [1]


def test_repeat_on_a_new_connection_gets_the_remembered_reply() -> None:
    """The memory belongs to the lane, not to the connection."""
    desk = Desk(Counter)
    old = desk.attached()
    desk.ask(old, "Counter.add", number=1)
    desk.host.detach(old.lane, old, finished=False)
    new = desk.attached(old.lane)
    desk.ask(new, "Counter.add", number=1)

    assert new.payloads == old.payloads
    assert desk.ask(new, "Counter.add", number=2) == 2


def test_number_below_the_last_is_stale() -> None:
    """A number below the last of its lane is refused and never run."""
    desk = Desk(Counter)
    connection = desk.attached()
    for number in (1, 2):
        desk.ask(connection, "Counter.add", number=number)

    assert code_of(desk.ask(connection, "Counter.add", number=1)) == "Stale"
    assert desk.ask(FakeConnection(), "Counter.get") == 2


def test_equal_number_while_running_waits_and_is_answered_on_the_newest() -> None:
    """A repeat during the run starts nothing; its connection gets the one reply."""
    ran, connections = [], []

    class Slow:
        def work(self) -> str:
            ran.append(1)
            for _ in range(2):
                connections.append(desk.attached(old.lane))
                again = desk.submit(connections[-1], "Slow.work", number=1)
                assert again is None
            return "done"

    desk = Desk(Slow)
    old = desk.attached()
    desk.run(desk.submit(old, "Slow.work", number=1))
    desk.host.check()

    assert ran == [1]
    assert (old.replies, connections[0].replies) == ([], [])
    assert connections[1].replies == ["done"]


def test_equal_number_while_waiting_waits_and_is_answered_on_the_newest() -> None:
    """A repeat of a call that waits its turn takes over its place, not a second one."""
    desk = Desk(Counter)
    turn = desk.submit(FakeConnection(), "Counter.add")
    old = desk.attached()
    desk.submit(old, "Counter.add", number=1)
    new = desk.attached(old.lane)
    assert desk.submit(new, "Counter.add", number=1) is None
    desk.host.detach(old.lane, old, finished=False)
    desk.host.check()
    desk.run(turn)

    assert old.replies == []
    assert new.replies == [2]
    assert desk.ask(FakeConnection(), "Counter.get") == 2


@pytest.mark.parametrize("number", [1, 3, 99])
def test_other_number_while_running_is_stale(number: int) -> None:
    """While call 2 of a lane runs, no other number of the lane is taken in."""
    refused = []

    class Slow:
        def work(self) -> str:
            connection = desk.attached(old.lane)
            assert desk.submit(connection, "Slow.work", number=number) is None
            refused.extend(connection.replies)
            return "done"

        def rest(self) -> None:
            pass

    desk = Desk(Slow)
    old = desk.attached()
    desk.ask(old, "Slow.rest", number=1)
    desk.run(desk.submit(old, "Slow.work", number=2))

    assert [code_of(failure) for failure in refused] == ["Stale"]


def test_reply_too_large_to_remember_is_unanswered_on_repeat() -> None:
    """Above ``remembered_bytes_max`` only that the call ran is remembered."""
    desk = Desk(Journal, remembered_bytes_max=200)
    connection = desk.attached()

    assert desk.ask(connection, "Journal.write", "x" * 500, number=1) == 1
    assert desk.ask(connection, "Journal.read", number=2) == ["x" * 500]
    assert code_of(desk.ask(connection, "Journal.read", number=2)) == "Unanswered"
    assert desk.ask(connection, "Journal.write", "y", number=3) == 2


@pytest.mark.parametrize("room", [0, -1])
def test_reply_of_exactly_the_limit_is_remembered(room: int) -> None:
    """The largest reply that is remembered has ``remembered_bytes_max`` bytes."""
    desk = Desk(Counter)
    connection = desk.attached()
    desk.ask(connection, "Counter.add", number=1)
    size = len(connection.payloads[0])

    tight = Desk(Counter, remembered_bytes_max=size + room)
    connection = tight.attached()
    tight.ask(connection, "Counter.add", number=1)
    repeat = tight.ask(connection, "Counter.add", number=1)
    assert (repeat == 1) == (room == 0)


def test_first_sending_to_another_boot_is_unanswered() -> None:
    """A call first sent to a manager that has ended since is never run."""
    desk = Desk(Counter)
    connection = desk.attached()
    outcome = desk.ask(connection, "Counter.add", number=1, first_boot=OTHER_BOOT_ID)

    assert code_of(outcome) == "Unanswered"
    assert desk.ask(FakeConnection(), "Counter.get") == 0


def test_memory_comes_before_deadline_boot_and_closing() -> None:
    """A remembered reply is given whatever has changed in the meantime."""
    desk = Desk(Counter)
    connection = desk.attached()
    desk.ask(connection, "Counter.add", number=1)
    again = functools.partial(desk.ask, connection, "Counter.add", number=1)

    assert again(remaining_s=-1.0) == 1
    assert again(first_boot=OTHER_BOOT_ID) == 1
    desk.host.close()
    assert again(remaining_s=0.0, first_boot=OTHER_BOOT_ID) == 1


def test_repeat_while_running_waits_whatever_its_deadline_and_boot() -> None:
    """A repeat of a running call is not refused for being late or from before."""
    answers = []

    class Slow:
        def work(self) -> str:
            for options in ({"remaining_s": 0.0}, {"first_boot": OTHER_BOOT_ID}):
                new = desk.attached(old.lane)
                desk.submit(new, "Slow.work", number=1, **options)
                answers.append(new)
            return "done"

    desk = Desk(Slow)
    old = desk.attached()
    desk.run(desk.submit(old, "Slow.work", number=1))

    assert [connection.replies for connection in answers] == [[], ["done"]]


def test_refused_call_leaves_its_number_open() -> None:
    """A number that was refused before it ran may still be run."""
    desk = Desk(Counter, pending_max=1)
    connection = desk.attached()
    turn = desk.submit(FakeConnection(), "Counter.add")
    desk.submit(connection, "Counter.add", number=1)
    assert code_of(connection.replies[0]) == "Overloaded"
    desk.run(turn)

    assert desk.ask(connection, "Counter.add", number=1) == 2


def test_callers_without_a_lane_are_run_each_time() -> None:
    """Nothing is remembered of a caller without an identity."""
    desk = Desk(Counter)
    connection = FakeConnection()

    assert [desk.ask(connection, "Counter.add") for _ in range(3)] == [1, 2, 3]
    assert desk.host.status()["lanes"] == 0


# Deadlines ---------------------------------------------------------------------------


@pytest.mark.parametrize("remaining_s", [0.0, -0.5, float("nan"), float("-inf")])
def test_call_without_time_left_is_expired(remaining_s: float) -> None:
    """A call whose deadline has passed, or is no number, is refused on arrival."""
    desk = Desk(Counter)
    outcome = desk.ask(FakeConnection(), "Counter.add", remaining_s=remaining_s)

    assert code_of(outcome) == "Expired"
    assert desk.ask(FakeConnection(), "Counter.get") == 0


def test_call_that_expires_while_it_waits_never_runs() -> None:
    """A queued call past its deadline is dropped when its turn comes, and answered."""

    class Slow:
        def __init__(self) -> None:
            self.ran = 0

        def work(self) -> int:
            self.ran += 1
            desk.clock.advance(5)
            return self.ran

    desk = Desk(Slow)
    waiting, patient = desk.attached(), FakeConnection()
    turn = desk.submit(FakeConnection(), "Slow.work")
    desk.submit(waiting, "Slow.work", number=1, remaining_s=4)
    desk.submit(patient, "Slow.work", remaining_s=6)
    desk.run(turn)

    assert code_of(waiting.replies[0]) == "Expired"
    assert patient.replies == [2]
    assert desk.host.pending == 0


def test_call_that_waits_in_vain_is_told_why_while_its_caller_is_there() -> None:
    """Just before its deadline: which object is busy, with what, for how long.

    It has not run, and a repeat is told the same; those with more time keep waiting.
    """
    desk = Desk(Journal)
    first, waiting, patient = FakeConnection(), desk.attached(), FakeConnection()
    turn = desk.submit(first, "Journal.write", "first")
    desk.clock.advance(2)
    desk.submit(waiting, "Journal.write", "late", number=1, remaining_s=5)
    desk.submit(patient, "Journal.write", "second", remaining_s=20)
    desk.clock.advance(4.5)
    desk.host.sweep()
    assert waiting.replies == []
    desk.clock.advance(0.25)
    desk.host.sweep()
    desk.host.check()

    told = waiting.replies[0]
    assert code_of(told) == "Expired"
    assert "Journal/default has been busy with one call of 'write' for 7 s" in told.text
    desk.submit(waiting, "Journal.write", "late", number=1, remaining_s=5)
    assert waiting.replies == [told, told]
    assert patient.replies == []
    desk.run(turn)
    assert (first.replies, patient.replies) == ([1], [2])
    assert desk.ask(FakeConnection(), "Journal.read") == ["first", "second"]
    assert desk.host.pending == 0


def test_call_that_waits_for_a_moment_is_left_to_wait() -> None:
    """An object is busy from the turn on that runs: short ones take nobody's place."""
    desk = Desk(Counter)
    waiting = [FakeConnection() for _ in range(3)]
    turn = desk.submit(FakeConnection(), "Counter.add")
    for connection in waiting:
        desk.submit(connection, "Counter.add", remaining_s=2)
    for _ in waiting:
        desk.clock.advance(0.6)
        desk.host.sweep()
        assert turn is not None
        turn = desk.host.run(turn)
    desk.run(turn)

    assert [connection.replies for connection in waiting] == [[2], [3], [4]]


def test_call_that_runs_past_its_deadline_ends_and_is_remembered() -> None:
    """A running call is not cut short: its reply is given, now and on repeat."""
    ran = []

    class Slow:
        def work(self) -> str:
            ran.append(1)
            desk.clock.advance(100)
            return "done"

    desk = Desk(Slow)
    connection = desk.attached()

    assert desk.ask(connection, "Slow.work", number=1, remaining_s=1) == "done"
    assert desk.ask(connection, "Slow.work", number=1, remaining_s=1) == "done"
    assert ran == [1]


def test_longest_deadline_is_the_limit() -> None:
    """A deadline above ``call_timeout_max_s``, even an endless one, is cut to it."""

    class Slow:
        def work(self) -> None:
            desk.clock.advance(31)

    desk = Desk(Slow, call_timeout_max_s=30.0)
    late = FakeConnection()
    turn = desk.submit(FakeConnection(), "Slow.work")
    desk.submit(late, "Slow.work", remaining_s=float("inf"))
    desk.run(turn)

    assert code_of(late.replies[0]) == "Expired"


# Lanes -------------------------------------------------------------------------------


def test_new_connection_of_a_lane_replaces_and_fences_the_old_one() -> None:
    """The former connection is given back to be closed; its late frames are refused."""
    desk = Desk(Counter)
    old = desk.attached()
    desk.ask(old, "Counter.add", number=1)
    new = FakeConnection()
    assert old.lane is not None

    assert desk.host.attach(old.lane, new) is old
    assert code_of(desk.ask(old, "Counter.add", number=2)) == "Stale"
    assert code_of(desk.ask(old, "Counter.add", number=1)) == "Stale"
    assert desk.ask(FakeConnection(), "Counter.get") == 1


def test_first_connection_of_a_lane_replaces_none() -> None:
    """A lane that is new, or whose connection has ended, gives none back."""
    desk = Desk(Counter)
    lane, old, new = lane_of(), FakeConnection(), FakeConnection()

    assert desk.host.attach(lane, old) is None
    old.lane = lane
    desk.ask(old, "Counter.add", number=1)
    desk.host.detach(lane, old, finished=False)
    assert desk.host.attach(lane, new) is None


def test_replaced_connection_that_ends_does_not_end_its_lane() -> None:
    """Detaching a connection that was replaced leaves the lane with the newer one."""
    desk = Desk(Counter)
    old = desk.attached()
    new = desk.attached(old.lane)
    desk.host.detach(old.lane, old, finished=False)
    desk.host.check()

    assert desk.ask(new, "Counter.add", number=1) == 1


def test_second_connection_of_a_new_lane_fences_the_first_while_it_is_looked_up() -> (
    None
):
    """Of two connections that come at once on a new lane, the later one has it."""
    desk = Desk(Counter)
    lane, first, second = lane_of(), FakeConnection(), FakeConnection()
    first.lane = second.lane = lane
    looked_up = []

    def wall_clock() -> float:
        if not looked_up:
            looked_up.append(True)
            assert host.attach(lane, first) is None
        return desk.clock()

    host = desk.host = Host(
        catalogue_of(describe_class(Counter, durable=False)),
        BOOT_ID,
        clock=desk.clock,
        wall_clock=wall_clock,
    )

    assert host.attach(lane, second) is first
    assert code_of(desk.ask(first, "Counter.add", number=1)) == "Stale"
    assert desk.ask(second, "Counter.add", number=1) == 1


def test_lane_of_another_session_is_refused() -> None:
    """Nobody takes over a lane without knowing the session it belongs to."""
    desk = Desk(Counter)
    connection = desk.attached()
    assert connection.lane is not None
    stolen = Lane(b"t" * 16, connection.lane.lane)

    with pytest.raises(Stale, match="another session"):
        desk.host.attach(stolen, FakeConnection())
    assert desk.ask(connection, "Counter.add", number=1) == 1


def test_replies_are_kept_for_the_retention_after_the_connection_ended() -> None:
    """Just within the retention the reply is still there, however old the lane is."""
    desk = Desk(Counter, lane_retention_s=900.0)
    old = desk.attached()
    desk.clock.advance(5000)
    desk.ask(old, "Counter.add", number=1)
    desk.host.detach(old.lane, old, finished=False)
    desk.clock.advance(899)
    new = desk.attached(old.lane)

    assert desk.ask(new, "Counter.add", number=1) == 1
    assert desk.ask(FakeConnection(), "Counter.get") == 1


def test_lane_that_was_forgotten_is_unanswered_and_never_run() -> None:
    """After the retention the lane is gone; a connection of it is refused."""
    desk = Desk(Counter, lane_retention_s=900.0)
    old = desk.attached()
    desk.ask(old, "Counter.add", number=1)
    desk.host.detach(old.lane, old, finished=False)
    desk.clock.advance(901)

    with pytest.raises(Unanswered, match="900 s"):
        desk.attached(old.lane)
    assert desk.host.status()["lanes"] == 0
    assert desk.ask(FakeConnection(), "Counter.get") == 1


def test_unknown_lane_is_taken_within_the_retention_only() -> None:
    """A lane never heard of is new when it is young and may be forgotten when old."""
    desk = Desk(Counter, lane_retention_s=900.0)

    desk.attached(lane_of(desk.clock() - 839))
    with pytest.raises(Unanswered):
        desk.attached(lane_of(desk.clock() - 841))


def test_clock_that_is_ahead_does_not_make_a_call_run_twice() -> None:
    """A forgotten lane is refused even if its client's clock is ahead by a minute."""
    desk = Desk(Counter, lane_retention_s=900.0)
    lane = lane_of(desk.clock() + 59)
    connection = desk.attached(lane)
    desk.ask(connection, "Counter.add", number=1)
    desk.host.detach(lane, connection, finished=False)
    desk.clock.advance(901)

    with pytest.raises(Unanswered):
        desk.attached(lane)
    with pytest.raises(Refused, match="clock"):
        desk.attached(lane_of(desk.clock() + 61))


def test_lane_that_is_connected_again_is_not_forgotten() -> None:
    """The retention counts from the last end of the lane's connection."""
    desk = Desk(Counter, lane_retention_s=900.0)
    connection = desk.attached()
    desk.ask(connection, "Counter.add", number=1)
    for _ in range(5):
        desk.host.detach(connection.lane, connection, finished=False)
        desk.clock.advance(800)
        connection = desk.attached(connection.lane)
        desk.attached()
        desk.host.check()

    desk.clock.advance(5000)
    desk.attached()
    assert desk.ask(connection, "Counter.add", number=1) == 1


def test_lane_whose_call_still_runs_is_not_forgotten() -> None:
    """A lane is kept while its call runs, even past the retention."""

    class Slow:
        def work(self) -> str:
            desk.host.detach(connection.lane, connection, finished=False)
            desk.clock.advance(2000)
            desk.attached()
            again.append(desk.attached(connection.lane))
            desk.submit(again[0], "Slow.work", number=1)
            return "done"

    again: list[FakeConnection] = []
    desk = Desk(Slow, lane_retention_s=900.0)
    connection = desk.attached()
    desk.run(desk.submit(connection, "Slow.work", number=1))

    assert again[0].replies == ["done"]


def test_full_table_of_lanes_refuses_and_forgets_none_early(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At ``lanes_max`` new lanes are refused; each remembered reply stays."""
    desk = Desk(Counter, lanes_max=3, lane_retention_s=900.0)
    connections = [desk.attached() for _ in range(3)]
    for connection in connections:
        desk.ask(connection, "Counter.add", number=1)
        desk.host.detach(connection.lane, connection, finished=False)
    for _ in range(5):
        with pytest.raises(Overloaded, match="lanes_max"):
            desk.attached()

    for place, connection in enumerate(connections):
        again = desk.attached(connection.lane)
        assert desk.ask(again, "Counter.add", number=1) == place + 1
        desk.host.detach(again.lane, again, finished=False)
    assert len(log_lines(caplog)) == 1
    desk.clock.advance(901)
    desk.attached()
    assert len(log_lines(caplog)) == 2


def test_replies_are_remembered_within_bytes_and_none_is_forgotten_early(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At ``lanes_bytes_max`` new lanes are refused; each remembered reply stays."""
    desk = Desk(Talker, lanes_bytes_max=5000, lane_retention_s=900.0)
    connections = [desk.attached() for _ in range(3)]
    for connection in connections[:2]:
        desk.ask(connection, "Talker.say", 3000, number=1)
        desk.host.detach(connection.lane, connection, finished=False)
    for _ in range(5):
        with pytest.raises(Overloaded, match="lanes_bytes_max"):
            desk.attached()
    # Who is connected goes on: only a repeat is not answered, nor run again.
    assert desk.ask(connections[2], "Talker.say", 3000, number=1) == "x" * 3000
    assert code_of(desk.ask(connections[2], "Talker.say", 3000, number=1)) == (
        "Unanswered"
    )
    assert 6000 < desk.host.status()["lanes_bytes"] < 6200

    for connection in connections[:2]:
        again = desk.attached(connection.lane)
        assert desk.ask(again, "Talker.say", 3000, number=1) == "x" * 3000
        desk.host.detach(again.lane, again, finished=False)
    assert desk.ask(connections[2], "Talker.total") == 3
    assert log_lines(caplog) == ["Limit reached: 5000 bytes of remembered replies."]
    desk.clock.advance(901)
    desk.attached()
    assert desk.host.status()["lanes_bytes"] == 0
    assert len(log_lines(caplog)) == 2


def test_small_replies_are_remembered_where_large_ones_find_no_room() -> None:
    """The limit in bytes takes no promise away from calls with small replies."""
    desk = Desk(Talker, lanes_bytes_max=1024)
    large, small = desk.attached(), desk.attached()
    desk.ask(large, "Talker.say", 3000, number=1)

    for number in (1, 2):
        assert desk.ask(small, "Talker.say", number, number=number) == "x" * number
        assert desk.ask(small, "Talker.say", number, number=number) == "x" * number


@pytest.mark.parametrize("sizes", [(3000, 10, 3000), (3000, 2000), (600, 70_000, 10)])
@pytest.mark.parametrize("end", ["goodbye", "retention"])
def test_bytes_of_a_lane_are_those_of_its_last_reply(
    sizes: tuple[int, ...], end: str
) -> None:
    """A reply takes the place of the last one; with its lane it is gone."""
    desk = Desk(Talker)
    connection = desk.attached()
    for number, size in enumerate(sizes, 1):
        desk.ask(connection, "Talker.say", size, number=number)
        counted = size if 512 < size < 65_000 else 0
        assert 0 <= desk.host.status()["lanes_bytes"] - counted < 100
    desk.host.detach(connection.lane, connection, finished=end == "goodbye")
    desk.host.check()
    desk.clock.advance(1000)
    desk.attached()

    assert desk.host.status()["lanes_bytes"] == 0
    desk.host.check()


def test_reply_after_a_goodbye_is_not_counted() -> None:
    """A call that outlasts the goodbye of its client leaves nothing behind."""

    class Slow:
        def work(self, size: int) -> str:
            if size == 3000:
                desk.host.detach(connection.lane, connection, finished=True)
            return "x" * size

    desk = Desk(Slow)
    connection = desk.attached()
    desk.ask(connection, "Slow.work", 2000, number=1)
    desk.run(desk.submit(connection, "Slow.work", 3000, number=2))
    desk.host.check()

    assert desk.host.status()["lanes"] == 0
    assert desk.host.status()["lanes_bytes"] == 0


def test_goodbye_forgets_the_lane_at_once() -> None:
    """After a goodbye the lane takes no place, not even a moment."""
    desk = Desk(Counter, lanes_max=1)
    for number in range(5):
        connection = desk.attached()
        assert desk.ask(connection, "Counter.add", number=1) == number + 1
        desk.host.detach(connection.lane, connection, finished=True)

    assert desk.host.status()["lanes"] == 0


def test_lane_that_never_ran_anything_is_forgotten_at_once() -> None:
    """There is nothing to remember of a connection that ended before its first call."""
    desk = Desk(Counter, lanes_max=1)
    for _ in range(5):
        connection = desk.attached()
        desk.host.detach(connection.lane, connection, finished=False)

    assert desk.host.status()["lanes"] == 0


def test_detach_drops_a_waiting_call() -> None:
    """A call that waits when its connection ends is not run; its number stays open."""
    desk = Desk(Journal)
    connection = desk.attached()
    turn = desk.submit(FakeConnection(), "Journal.write", "first")
    desk.submit(connection, "Journal.write", "dropped", number=1)
    desk.host.detach(connection.lane, connection, finished=False)
    desk.host.check()
    assert desk.host.pending == 1
    desk.run(turn)
    assert connection.replies == []

    again = desk.attached(connection.lane)
    desk.ask(again, "Journal.write", "again", number=1)
    assert desk.ask(FakeConnection(), "Journal.read") == ["first", "again"]


def test_detach_drops_a_waiting_call_without_a_lane() -> None:
    """A stock client that hangs up while its call waits leaves nothing behind."""
    desk = Desk(Journal)
    connection = FakeConnection()
    turn = desk.submit(FakeConnection(), "Journal.write", "first")
    desk.submit(connection, "Journal.write", "dropped")
    desk.host.detach(None, connection, finished=False)
    desk.run(turn)

    assert desk.host.pending == 0
    assert desk.ask(FakeConnection(), "Journal.read") == ["first"]


def test_detach_leaves_a_running_call_alone() -> None:
    """A call that runs when its connection ends is finished and remembered."""

    class Slow:
        def __init__(self) -> None:
            self.ran = 0

        def work(self) -> int:
            desk.host.detach(connection.lane, connection, finished=False)
            self.ran += 1
            return self.ran

    desk = Desk(Slow)
    connection = desk.attached()
    desk.run(desk.submit(connection, "Slow.work", number=1))
    desk.host.check()
    again = desk.attached(connection.lane)

    assert desk.ask(again, "Slow.work", number=1) == 1


def test_detach_twice_is_the_same_as_once() -> None:
    """An end that is noticed twice does no harm."""
    desk = Desk(Counter)
    connection = desk.attached()
    desk.ask(connection, "Counter.add", number=1)
    for _ in range(2):
        desk.host.detach(connection.lane, connection, finished=False)
        desk.host.check()

    assert desk.host.status()["lanes"] == 1


# Limits ------------------------------------------------------------------------------


def test_queue_limit_of_an_object_refuses_and_logs_the_edges(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At ``queue_max`` calls are Overloaded: one line on entering, one on leaving."""
    desk = Desk(Counter, queue_max=10)
    turn = desk.submit(FakeConnection(), "Counter.add")
    waiting = [FakeConnection() for _ in range(10)]
    for connection in waiting:
        desk.submit(connection, "Counter.add")
    for _ in range(5):
        refused = FakeConnection()
        desk.submit(refused, "Counter.add")
        assert code_of(refused.replies[0]) == "Overloaded"
        assert "queue_max" in refused.replies[0].text
    assert desk.ask(FakeConnection(), "Counter.add", key="other") == 1

    assert len(log_lines(caplog)) == 1
    desk.run(turn)
    assert [connection.replies for connection in waiting] == [
        [number] for number in range(2, 12)
    ]
    assert len(log_lines(caplog)) == 2
    assert "Counter/default" in log_lines(caplog)[1]


def test_pending_limit_refuses_and_logs_the_edges(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At ``pending_max`` no object takes calls: one line each way."""
    desk = Desk(Counter, pending_max=10)
    turns = [desk.submit(FakeConnection(), "Counter.add", key=f"{n}") for n in range(5)]
    for number in range(5):
        desk.submit(FakeConnection(), "Counter.add", key=f"{number}")
    assert desk.host.pending == 10
    for number in range(5):
        refused = FakeConnection()
        desk.submit(refused, "Counter.add", key=f"{number}")
        assert code_of(refused.replies[0]) == "Overloaded"
        assert "pending_max" in refused.replies[0].text

    assert len(log_lines(caplog)) == 1
    for turn in turns:
        desk.run(turn)
    assert desk.ask(FakeConnection(), "Counter.add", key="0") == 3
    desk.host.sweep()
    assert len(log_lines(caplog)) == 2


def test_pending_bytes_limit_refuses_and_logs_the_edges(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At ``pending_bytes_max`` no object takes calls: one line each way."""
    desk = Desk(Journal, pending_bytes_max=10_000)
    turn = desk.submit(FakeConnection(), "Journal.write", "first")
    waiting = [FakeConnection() for _ in range(3)]
    for connection in waiting:
        desk.submit(connection, "Journal.write", "x" * 4000)
    desk.host.check()
    assert 12_000 < desk.host.status()["pending_bytes"] < 13_000
    for key in ("default", "other") * 3:
        refused = FakeConnection()
        desk.submit(refused, "Journal.write", "y", key=key)
        assert code_of(refused.replies[0]) == "Overloaded"
        assert "pending_bytes_max" in refused.replies[0].text
    desk.host.sweep()

    assert log_lines(caplog) == ["Limit reached: 10000 bytes of calls waiting."]
    desk.run(turn)
    assert [connection.replies for connection in waiting] == [[2], [3], [4]]
    assert desk.ask(FakeConnection(), "Journal.write", "z") == 5
    desk.host.sweep()
    assert len(log_lines(caplog)) == 2
    assert desk.host.status()["pending_bytes"] == 0


def test_a_call_larger_than_all_may_be_together_is_taken_alone() -> None:
    """Where there is room at all, a call of any size comes in, and none after it."""
    desk = Desk(Journal, pending_bytes_max=1000)
    turn = desk.submit(FakeConnection(), "Journal.write", "x" * 5000)
    refused = FakeConnection()
    desk.submit(refused, "Journal.write", "y")
    desk.run(turn)

    assert code_of(refused.replies[0]) == "Overloaded"
    assert desk.ask(FakeConnection(), "Journal.write", "y") == 2


class Talker:
    """Hears and says large things."""

    def __init__(self) -> None:
        self.said = 0

    def say(self, size: int) -> str:
        """Return a text of so many characters."""
        self.said += 1
        return "x" * size

    def total(self) -> int:
        """Return how often something was said."""
        return self.said

    def hear(self, text: str) -> int:
        """Return how much was said."""
        return len(text)

    def fail(self, text: str) -> None:
        """Raise."""
        raise ValueError(len(text))


@pytest.mark.parametrize(
    "events", ["", "end", "expire", "repeat", "repeat end", "repeat repeat expire"]
)
@pytest.mark.parametrize("target", ["Talker.hear", "Talker.fail"])
def test_bytes_of_a_call_count_until_it_has_ended(target: str, events: str) -> None:
    """However a call ends, and whatever happens while it waits, nothing stays."""
    desk = Desk(Talker)
    turn = desk.submit(FakeConnection(), "Talker.hear", "")
    connection = desk.attached()
    desk.submit(connection, target, "x" * 3000, number=1)
    before = desk.host.status()["pending_bytes"]
    assert 3000 < before < 3200
    for event in events.split():
        if event == "expire":
            desk.clock.advance(1000)
            continue
        former = connection
        if event == "repeat":
            connection = desk.attached(former.lane)
            desk.submit(connection, target, "x" * 3000, number=1)
            assert desk.host.status()["pending_bytes"] == before
        desk.host.detach(former.lane, former, finished=False)
        desk.host.check()
    desk.run(turn)
    desk.host.check()

    assert desk.host.pending == 0
    assert desk.host.status()["pending_bytes"] == 0


@pytest.mark.parametrize("target", ["Nobody.hear", "Talker.nothing"])
def test_bytes_of_a_refused_call_do_not_count(target: str) -> None:
    """A call that is not taken in holds nothing."""
    desk = Desk(Talker)
    refused = FakeConnection()
    desk.submit(refused, target, "x" * 3000)

    assert code_of(refused.replies[0]) in ("NotShared", "NotOffered")
    assert desk.host.status()["pending_bytes"] == 0


def test_objects_limit_refuses_new_objects_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At ``objects_max`` the objects in memory go on; one line is logged."""
    desk = Desk(Counter, objects_max=2)
    for key in ("a", "b"):
        assert desk.ask(FakeConnection(), "Counter.add", key=key) == 1
    for key in ("c", "d", "c"):
        outcome = desk.ask(FakeConnection(), "Counter.add", key=key)
        assert code_of(outcome) == "Overloaded"
        assert "objects_max" in outcome.text

    assert desk.ask(FakeConnection(), "Counter.add", key="a") == 2
    assert desk.host.status()["objects"] == 2
    assert len(log_lines(caplog)) == 1


@pytest.mark.parametrize(
    ("class_name", "setting"),
    [
        ("CacheRegion", "cache_regions_max"),
        ("RateLimits", "rate_limit_storages_max"),
    ],
)
def test_regions_and_storages_are_bounded_in_number(
    class_name: str, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Who names one more is refused by the name of the setting; all others go on."""
    catalogue = catalogue_of(Counter)
    add_ready_made(catalogue, ManagerSettings(**{setting: 2}))
    desk = Desk(*catalogue.records())
    for key in "abcdab":
        answer = desk.ask(FakeConnection(), f"{class_name}.info", key=key)
        if key in "ab":
            assert isinstance(answer, dict)
        else:
            assert code_of(answer) == "Overloaded"
            assert f"2 objects of {class_name} are in memory" in answer.text
            assert f"({setting})" in answer.text
    for key in "abcd":
        assert desk.ask(FakeConnection(), "Counter.add", key=key) == 1

    assert desk.host.status()["objects"] == 6
    assert log_lines(caplog) == [
        f"Limit reached: 2 objects of {class_name} ({setting})."
    ]


def test_the_limit_of_a_class_holds_for_its_former_name_as_well() -> None:
    """Objects that are called by an alias are the same ones, and count as such."""
    record = describe_class(Counter, durable=False, aliases=("Former",))
    limit = ObjectsLimit(2, "counters_max")
    desk = Desk(dataclasses.replace(record, objects_limit=limit))
    answers = [
        desk.ask(FakeConnection(), f"{name}.add", key=key)
        for name, key in (
            ("Former", "a"),
            ("Counter", "a"),
            ("Former", "b"),
            ("Former", "c"),
            ("Counter", "c"),
        )
    ]

    assert answers[:3] == [1, 2, 1]
    assert [code_of(answer) for answer in answers[3:]] == ["Overloaded"] * 2


def test_objects_that_have_left_memory_make_room_in_their_class() -> None:
    """The limit of a class counts what is in memory."""
    limit = ObjectsLimit(2, "counts_max")
    record = dataclasses.replace(describe_class(Count), objects_limit=limit)
    with DurableDesk(record, idle_timeout_s=10.0) as desk:
        assert [desk.ask("Count.add", key=key) for key in "ab"] == [1, 1]
        assert code_of(desk.ask("Count.add", key="c")) == "Overloaded"
        desk.clock.advance(60)
        desk.host.sweep()
        desk.host.check()
        assert [desk.ask("Count.add", key=key) for key in "cb"] == [1, 2]


def test_refused_call_takes_no_place_among_the_objects() -> None:
    """A call that is refused as Overloaded leaves no object behind."""
    desk = Desk(Counter, pending_max=1)
    turn = desk.submit(FakeConnection(), "Counter.add")
    for number in range(5):
        desk.submit(FakeConnection(), "Counter.add", key=f"new {number}")
    desk.run(turn)

    assert desk.host.status()["objects"] == 1


def test_key_that_is_refused_for_its_length_is_not_written_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A line of the log has a bounded length, whatever a caller calls an object."""
    caplog.set_level(logging.INFO)
    desk = Desk(Counter)
    desk.ask(FakeConnection(), "Counter.add", key="x" * 60_000)

    (line,) = [record.getMessage() for record in caplog.records]
    assert "60000" in line
    assert len(line) < 2000


@pytest.mark.parametrize("key", ["", "x" * (KEY_LENGTH_MAX + 1)])
def test_keys_that_are_empty_or_too_long_are_refused(key: str) -> None:
    """A key has 1 to ``KEY_LENGTH_MAX`` characters; others name no object."""
    desk = Desk(Counter)

    assert code_of(desk.ask(FakeConnection(), "Counter.add", key=key)) == "TooLarge"
    assert desk.host.status()["objects"] == 0


@pytest.mark.parametrize("key", ["/", "a/b", "ключ", " ", "x" * KEY_LENGTH_MAX])
def test_any_other_text_is_a_key(key: str) -> None:
    """Slashes, blanks and every script may stand in a key."""
    desk = Desk(Counter)

    assert desk.ask(FakeConnection(), "Counter.add", key=key) == 1
    assert desk.ask(FakeConnection(), "Counter.add", key=key) == 2


# The contract ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("Unknown.add", "NotShared"),
        ("Guarded.missing", "NotOffered"),
        ("Guarded._private", "NotOffered"),
        ("Guarded.__init__", "NotOffered"),
        ("Guarded.__class__", "NotOffered"),
        ("Guarded.__getattr__", "NotOffered"),
        ("Guarded.__reduce_ex__", "NotOffered"),
        ("Guarded.__delattr__", "NotOffered"),
        ("Guarded.plain", "NotOffered"),
        ("Guarded.level", "NotOffered"),
        ("Guarded.", "NotOffered"),
    ],
)
def test_what_is_not_offered_is_refused_before_anything_is_built(
    target: str, code: str
) -> None:
    """A class or method that is not offered costs nothing: no object is built."""
    desk = Desk(Guarded)

    outcome = desk.ask(FakeConnection(), target)
    assert code_of(outcome) == code
    assert outcome.text.endswith("through one of them.") == (code == "NotOffered")
    assert desk.host.status()["objects"] == 0


class Guarded:
    """Offers one method, one property to read and one to set."""

    plain = "a class attribute"

    def __init__(self) -> None:
        self.secret = "an attribute"
        self._level = 1

    def ok(self) -> str:
        """Answer."""
        return "ok"

    def _private(self) -> str:
        return "never"

    @property
    def size(self) -> int:
        """Return a number."""
        return 7

    @property
    def level(self) -> int:
        """Return what was set."""
        return self._level

    @level.setter
    def level(self, level: int) -> None:
        self._level = level


def test_properties_are_read_and_set() -> None:
    """A property is read by ``__getattribute__`` and set by ``__setattr__``."""
    desk = Desk(Guarded)
    ask = functools.partial(desk.ask, FakeConnection())

    assert ask("Guarded.__getattribute__", "size") == 7
    assert ask("Guarded.__setattr__", "level", 5) is None
    assert ask("Guarded.__getattribute__", "level") == 5


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("__getattribute__", ("secret",)),
        ("__getattribute__", ("_level",)),
        ("__getattribute__", ("plain",)),
        ("__getattribute__", ("ok",)),
        ("__getattribute__", ("__class__",)),
        ("__getattribute__", ("__dict__",)),
        ("__getattribute__", ()),
        ("__setattr__", ("size", 1)),
        ("__setattr__", ("secret", 1)),
        ("__setattr__", ("ok", 1)),
        ("__setattr__", ("__class__", 1)),
    ],
)
def test_attributes_that_are_no_properties_are_out_of_reach(
    method: str, args: tuple[Any, ...]
) -> None:
    """Neither attributes nor methods nor the machinery can be read or set."""
    desk = Desk(Guarded)
    outcome = desk.ask(FakeConnection(), f"Guarded.{method}", *args)

    assert code_of(outcome) == "NotOffered"
    assert outcome.text.endswith("reach an attribute through one of them.")


@pytest.mark.parametrize("name", [["size"], {"a": 1}, 3, None])
def test_name_of_a_property_that_is_no_text_ends_nothing(name: Any) -> None:
    """A name that is no text is refused or raises; the object goes on."""
    desk = Desk(Guarded)
    outcome = desk.ask(FakeConnection(), "Guarded.__getattribute__", name)

    assert isinstance(outcome, Failure)
    assert desk.ask(FakeConnection(), "Guarded.ok") == "ok"


def test_only_what_is_exposed_can_be_called() -> None:
    """With ``exposed`` the other public methods and properties are refused."""
    desk = Desk(describe_class(Guarded, exposed=("ok", "size"), durable=False))
    ask = functools.partial(desk.ask, FakeConnection())

    assert ask("Guarded.ok") == "ok"
    assert ask("Guarded.__getattribute__", "size") == 7
    assert code_of(ask("Guarded.__getattribute__", "level")) == "NotOffered"
    assert code_of(ask("Guarded.__setattr__", "level", 2)) == "NotOffered"


def test_repr_and_str_are_always_answered() -> None:
    """Every object answers ``__repr__`` and ``__str__``, whatever is exposed."""

    class Shown:
        def __repr__(self) -> str:
            return "<shown>"

        def __str__(self) -> str:
            return "text"

        def ok(self) -> None:
            pass

    desk = Desk(describe_class(Shown, exposed=("ok",), durable=False))

    assert desk.ask(FakeConnection(), "Shown.__repr__") == "<shown>"
    assert desk.ask(FakeConnection(), "Shown.__str__") == "text"


def test_container_methods_are_called() -> None:
    """What a container class defines is called like any method."""

    class Box:
        def __init__(self) -> None:
            self.items = {"a": 1}

        def __len__(self) -> int:
            return len(self.items)

        def __getitem__(self, key: str) -> int:
            return self.items[key]

        def __setitem__(self, key: str, value: int) -> None:
            self.items[key] = value

        def __iter__(self) -> Iterator[str]:
            return iter(self.items)

    desk = Desk(Box)
    ask = functools.partial(desk.ask, FakeConnection())

    assert ask("Box.__len__") == 1
    assert ask("Box.__setitem__", "b", 2) is None
    assert ask("Box.__getitem__", "b") == 2
    assert ask("Box.__iter__") == ["a", "b"]
    assert ask("Box.__getitem__", "c").qualname == "KeyError"
    assert code_of(ask("Box.__contains__", "a")) == "NotOffered"


@pytest.mark.parametrize(
    "body",
    [
        codec.encode(1),
        codec.encode(()),
        codec.encode(((), ())),
        codec.encode(([], {})),
        codec.encode(((), {1: 2})),
        codec.encode(((), {}, 1)),
        b"no pickle",
        ((), {3: 4}),
        (1, 2),
    ],
)
def test_arguments_of_another_form_are_refused(body: Any) -> None:
    """A body that is no tuple of arguments and names is refused; nothing runs."""
    desk = Desk(Counter)
    connection = FakeConnection()
    call = make_call("Counter.add")._replace(body=body)
    desk.run(desk.host.submit(call, connection))

    assert code_of(connection.replies[0]) == "NotAllowed"
    assert desk.ask(FakeConnection(), "Counter.get") == 0


def test_arguments_that_were_decoded_already_are_taken() -> None:
    """A stock client's arguments arrive as values; they are used as they are."""
    desk = Desk(Counter)
    connection = FakeConnection()
    call = make_call("Counter.add")._replace(body=((), {"amount": 4}))
    desk.run(desk.host.submit(call, connection))

    assert connection.replies == [4]


# What the object's code does ---------------------------------------------------------


class Own(Exception):
    """An error whose class may not travel."""


class Mute(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class Abrupt(BaseException):
    """What ``SystemExit`` is, but for pytest, which would end with it."""


class Deadly(Exception):
    """An error whose text ends the thread that asks for it."""

    def __str__(self) -> str:
        raise Abrupt

    __repr__ = __str__


class Wild:
    """Raises and returns what it likes."""

    def fail(self, name: str) -> None:
        """Raise an error."""
        raise {
            "exit": SystemExit(3),
            "interrupt": KeyboardInterrupt(),
            "stop": StopIteration(1),
            "generator": GeneratorExit(),
            "own": Own("mine", object()),
            "family": Stale("said by the object"),
            "mute": Mute(),
            "deadly": Deadly(),
            "key": KeyError("k"),
            "base": BaseException("base"),
        }[name]

    def give(self, name: str) -> Any:
        """Return something that cannot travel."""
        return {
            "object": object(),
            "lambda": lambda: None,
            "self": self,
            "lock": threading.Lock(),
            "deep": _deep(),
            "bomb": Bomb(),
        }[name]

    def ok(self) -> str:
        """Answer."""
        return "ok"


class Bomb:
    """A value whose pickling raises something that is no error."""

    def __reduce_ex__(self, _: Any) -> Any:
        raise Abrupt


def _deep() -> list[Any]:
    return functools.reduce(lambda inner, _: [inner], range(300), [])


@pytest.mark.parametrize(
    ("name", "qualname"),
    [
        ("exit", "SystemExit"),
        ("interrupt", "KeyboardInterrupt"),
        ("stop", "StopIteration"),
        ("generator", "GeneratorExit"),
        ("own", "Own"),
        ("family", "Stale"),
        ("mute", "Mute"),
        ("deadly", "Deadly"),
        ("key", "KeyError"),
        ("base", "BaseException"),
    ],
)
def test_whatever_a_method_raises_is_an_answer_and_ends_nothing(
    name: str, qualname: str
) -> None:
    """Every error of a method, ``sys.exit`` included, goes to its caller as raised."""
    desk = Desk(Wild)
    outcome = desk.ask(FakeConnection(), "Wild.fail", name)

    assert code_of(outcome) == "Raised"
    assert outcome.qualname == qualname
    assert "in fail" in outcome.traceback
    assert desk.ask(FakeConnection(), "Wild.ok") == "ok"


@pytest.mark.parametrize("name", ["object", "lambda", "self", "lock", "deep", "bomb"])
def test_result_that_cannot_travel_is_a_failed_call(name: str) -> None:
    """The caller learns that the method ran and why there is no result."""
    desk = Desk(Wild)
    outcome = desk.ask(FakeConnection(), "Wild.give", name)

    assert code_of(outcome) == "RemoteError"
    assert "Wild/default.give ran, but its result cannot travel" in outcome.text
    assert desk.ask(FakeConnection(), "Wild.ok") == "ok"


def test_failed_call_leaves_the_object_as_it_was_when_it_says_so() -> None:
    """With ``rollback``, an error or a result that cannot travel undoes the call."""

    class Account:
        def __init__(self) -> None:
            self.entries: list[int] = []

        def fail(self) -> None:
            self.entries.append(1)
            raise ValueError("no")

        def leave(self) -> None:
            self.entries.append(2)
            raise SystemExit

        def give(self) -> Any:
            self.entries.append(3)
            return object()

        def read(self) -> list[int]:
            return self.entries

    desk = Desk(describe_class(Account, durable=False, rollback=True))
    ask = functools.partial(desk.ask, FakeConnection())

    assert ask("Account.fail").qualname == "ValueError"
    assert ask("Account.leave").qualname == "SystemExit"
    assert code_of(ask("Account.give")) == "NotAllowed"
    assert ask("Account.read") == []


@pytest.mark.parametrize("name", ["fail", "give"])
def test_calls_that_wait_behind_a_failure_are_run(name: str) -> None:
    """A call that fails in whatever way does not keep the next ones waiting."""
    desk = Desk(Wild)
    turn = desk.submit(FakeConnection(), f"Wild.{name}", "no such key")
    behind = [FakeConnection() for _ in range(3)]
    for connection in behind:
        desk.submit(connection, "Wild.ok")
    desk.run(turn)

    assert [connection.replies for connection in behind] == [["ok"]] * 3


def test_wrong_arguments_are_the_callers_type_error() -> None:
    """Arguments that a method does not take raise the usual error at the caller."""
    desk = Desk(Counter)
    outcome = desk.ask(FakeConnection(), "Counter.add", 1, 2, 3)

    assert (outcome.code, outcome.qualname) == ("Raised", "TypeError")
    assert desk.ask(FakeConnection(), "Counter.get") == 0


def test_generator_arrives_as_a_list() -> None:
    """What a generator yields is taken in one call, and travels as a list."""

    class Source:
        def numbers(self, count: int) -> Iterator[int]:
            yield from range(count)

        def broken(self) -> Iterator[int]:
            yield 1
            raise ValueError("in the middle")

        def endless(self) -> Iterator[int]:
            return (number for number in itertools.count())

    desk = Desk(Source)
    ask = functools.partial(desk.ask, FakeConnection())

    assert ask("Source.numbers", 3) == [0, 1, 2]
    assert ask("Source.broken").qualname == "ValueError"
    outcome = ask("Source.endless")
    assert outcome.qualname == "TooLarge"
    assert "more than" in outcome.text


def test_method_knows_whose_manager_it_runs_in() -> None:
    """A client used inside a method can tell that it would call its own manager."""
    seen = []

    class Curious:
        def look(self) -> None:
            seen.append((running.boot_id, running.name))

    desk = Desk(Curious)
    desk.ask(FakeConnection(), "Curious.look", key="k")

    assert seen == [(BOOT_ID, "Curious/k")]
    assert running.boot_id is None


# The end -----------------------------------------------------------------------------


def test_closing_refuses_new_calls_and_finishes_those_inside() -> None:
    """After ``close`` new calls are Stopping; calls that wait or run are finished."""
    desk = Desk(Counter)
    turn = desk.submit(FakeConnection(), "Counter.add")
    waiting, late = FakeConnection(), FakeConnection()
    desk.submit(waiting, "Counter.add")
    desk.host.close()
    assert desk.submit(late, "Counter.add") is None
    assert code_of(late.replies[0]) == "Stopping"
    assert desk.host.pending == 2
    desk.run(turn)

    assert waiting.replies == [2]
    assert desk.host.pending == 0


def test_status_and_repr_show_the_same_numbers() -> None:
    """What the operator sees is what is there."""
    desk = Desk(Counter)
    desk.ask(desk.attached(), "Counter.add", number=1)
    turn = desk.submit(FakeConnection(), "Counter.add")

    expected = {"objects": 1, "pending": 1, "lanes": 1, "calls": 1}
    assert expected.items() <= desk.host.status().items()
    for name, value in expected.items():
        assert f"{name}={value}" in repr(desk.host)
    desk.run(turn)


def test_resident_says_whether_it_runs_and_how_many_wait() -> None:
    """The one-line form of an object names it, its state and its queue."""
    desk = Desk(Counter)
    turn = desk.submit(FakeConnection(), "Counter.add")
    desk.submit(FakeConnection(), "Counter.add")
    assert "Counter/default busy, 1 waiting" in repr(turn)
    desk.run(turn)

    assert "Counter/default idle, 0 waiting" in repr(turn)


# A random walk -----------------------------------------------------------------------


class Ledger:
    """Counts, and keeps who was counted: one entry for each call that ran."""

    ran: list[tuple[int, int]]
    during: Callable[[], None]

    def __init__(self) -> None:
        self.count = 0

    def add(self, client: int, number: int) -> int:
        """Count, and return the new number."""
        self.ran.append((client, number))
        self.count += 1
        type(self).during()
        return self.count


class Caller:
    """One lane of a client, which repeats its call until it is answered."""

    def __init__(self, name: int, lane: Lane) -> None:
        self.name = name
        self.lane = lane
        self.connection: FakeConnection | None = None
        self.former: FakeConnection | None = None
        self.number = 0
        self.waits = False
        self.key = "a"
        #: What was answered, by number.
        self.answers: dict[int, bytes] = {}


class HostWalk(RuleBasedStateMachine):
    """Calls, repeats, broken and replaced connections, in any order.

    The model: each number of a lane runs at most once, and every number that is
    answered in the end is a number of its object that nobody else was given.
    """

    def __init__(self) -> None:
        super().__init__()
        names = itertools.count()

        class Walked(Ledger):
            """A ledger of this walk alone."""

            ran = []  # noqa: RUF012 - one list for each class made here
            during = staticmethod(self.during_a_method)

        self.shared = Walked
        self.desk = Desk(
            describe_class(Walked, name="Ledger", durable=False), lane_retention_s=900.0
        )
        self.names = names
        self.turns: list[Resident] = []
        self.next_hook: Callable[[], None] | None = None
        self.callers: list[Caller] = []

    callers_made = Bundle("callers_made")

    @rule(target=callers_made)
    def new_caller(self) -> Caller:
        """Somebody connects."""
        caller = Caller(next(self.names), lane_of(self.desk.clock()))
        self.callers.append(caller)
        self._connect(caller)
        return caller

    @rule(caller=callers_made, key=st.sampled_from("ab"))
    def make_the_next_call(self, caller: Caller, key: str) -> None:
        """A caller that waits for nothing makes its next call."""
        if caller.connection is None or caller.waits:
            return
        caller.number += 1
        caller.waits = True
        caller.key = key
        self._send(caller, caller.connection, caller.number)

    @rule(caller=callers_made)
    def repeat(self, caller: Caller) -> None:
        """A call is sent again, answered or not."""
        if caller.connection is not None and caller.number:
            self._send(caller, caller.connection, caller.number)

    @rule(caller=callers_made, back=st.integers(1, 3))
    def send_an_old_number(self, caller: Caller, back: int) -> None:
        """A number below the last one is Stale."""
        number = caller.number - back
        if caller.connection is not None and number > 0:
            before = len(caller.connection.payloads)
            self._send(caller, caller.connection, number)
            assert [code_of(o) for o in caller.connection.replies[before:]] == ["Stale"]
            del caller.connection.payloads[before:]

    @rule(caller=callers_made)
    def late_frame_of_the_former_connection(self, caller: Caller) -> None:
        """A connection that was replaced is fenced."""
        former = caller.former
        if former is not None and caller.number:
            before = len(former.payloads)
            self._send(caller, former, caller.number + 1)
            assert [code_of(o) for o in former.replies[before:]] == ["Stale"]

    @rule(caller=callers_made)
    def replace_the_connection(self, caller: Caller) -> None:
        """A caller connects again before the end of its connection is noticed."""
        former, caller.former = caller.connection, caller.connection
        if former is not None:
            self._hear(caller, lost=True)
        replaced = self._connect(caller)
        assert replaced is former

    @rule(caller=callers_made)
    def the_former_connection_ends(self, caller: Caller) -> None:
        """The engine notices the end of a connection that was replaced."""
        if caller.former is not None:
            self.desk.host.detach(caller.lane, caller.former, finished=False)
            caller.former = None

    @rule(caller=callers_made)
    def lose_the_connection(self, caller: Caller) -> None:
        """A connection ends, with every reply that was not heard yet."""
        if caller.connection is not None:
            self._hear(caller, lost=True)
            self.desk.host.detach(caller.lane, caller.connection, finished=False)
            caller.connection = None

    @rule(caller=consumes(callers_made))
    def say_goodbye(self, caller: Caller) -> None:
        """A caller that waits for nothing leaves for ever."""
        self._hear(caller)
        if caller.connection is None or caller.waits:
            return
        self.desk.host.detach(caller.lane, caller.connection, finished=True)
        caller.connection = None
        caller.lane = lane_of(self.desk.clock())
        caller.number = 0
        caller.name = next(self.names)
        caller.answers = {}

    @rule(caller=callers_made)
    def hear(self, caller: Caller) -> None:
        """A caller reads what was sent to it."""
        self._hear(caller)

    @rule(seconds=st.integers(0, 60))
    def time_passes(self, seconds: int) -> None:
        """Less than any deadline or retention in all."""
        if self.desk.clock() < 1_000_000 + 230:
            self.desk.clock.advance(seconds)

    @precondition(lambda self: self.turns)
    @rule(
        place=st.integers(0, 100),
        caller=callers_made,
        during=st.sampled_from(["repeat", "lose", "replace", ""]),
    )
    def run_a_turn(self, place: int, caller: Caller, during: str) -> None:
        """Somebody runs one call; something else may happen while it runs."""
        self.next_hook = {
            "repeat": functools.partial(self.repeat, caller),
            "lose": functools.partial(self.lose_the_connection, caller),
            "replace": functools.partial(self.replace_the_connection, caller),
        }.get(during)
        self._run(place)

    @invariant()
    def tables_agree(self) -> None:
        """The host finds no contradiction in itself."""
        self.desk.host.check()

    @invariant()
    def no_call_ran_twice(self) -> None:
        """Each number of each lane has run at most once."""
        assert len(self.shared.ran) == len(set(self.shared.ran))

    def teardown(self) -> None:
        """In the end every call is answered, and each number was given once."""
        while self.turns:
            self._run(0)
        given: dict[str, list[int]] = {"a": [], "b": []}
        for caller in self.callers:
            if caller.connection is None:
                self._connect(caller)
            self._hear(caller)
            if caller.waits:
                assert caller.connection is not None
                self._send(caller, caller.connection, caller.number)
                while self.turns:
                    self._run(0)
                self._hear(caller)
            assert not caller.waits, "a call was never answered"
        for client, number in self.shared.ran:
            assert (client, number) in self.answered
        for key, value in self.answered.values():
            given[key].append(value)
        for numbers in given.values():
            assert sorted(numbers) == list(range(1, len(numbers) + 1))
        assert self.desk.host.pending == 0
        self.desk.host.check()

    # What the rules stand on ---------------------------------------------------------

    @property
    def answered(self) -> dict[tuple[int, int], tuple[str, int]]:
        """Return what was answered: (caller, number) to (object, value)."""
        if not hasattr(self, "_answered"):
            self._answered: dict[tuple[int, int], tuple[str, int]] = {}
        return self._answered

    def during_a_method(self) -> None:
        """Do what was chosen to happen while a method runs."""
        hook, self.next_hook = self.next_hook, None
        if hook is not None:
            hook()

    def _connect(self, caller: Caller) -> Any:
        caller.connection = FakeConnection()
        return self.desk.host.attach(caller.lane, caller.connection)

    def _send(self, caller: Caller, connection: FakeConnection, number: int) -> None:
        call = make_call(
            "Ledger.add",
            caller.name,
            number,
            key=caller.key,
            lane=caller.lane,
            number=number,
            remaining_s=10_000,
        )
        resident = self.desk.host.submit(call, connection)
        if resident is not None:
            self.turns.append(resident)

    def _run(self, place: int) -> None:
        resident = self.turns.pop(place % len(self.turns))
        following = self.desk.host.run(resident)
        if following is not None:
            self.turns.append(following)

    def _hear(self, caller: Caller, *, lost: bool = False) -> None:
        if caller.connection is None:
            return
        payloads, caller.connection.payloads = caller.connection.payloads, []
        for payload in () if lost else payloads:
            number = wire.unpack_reply(payload).number
            former = caller.answers.setdefault(number, payload)
            assert payload == former, "a repeat was answered otherwise"
            value = heard(payload)
            assert isinstance(value, int), value
            if number == caller.number:
                self.answered[caller.name, number] = (caller.key, value)
                caller.waits = False


TestHostWalk = HostWalk.TestCase
TestHostWalk.__doc__ = "Each acknowledged call ran once, however connections break."
TestHostWalk.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)


def test_check_finds_a_lost_wake_up() -> None:
    """``check`` raises when calls wait for an object that nobody runs."""
    desk = Desk(Counter)
    turn = desk.submit(FakeConnection(), "Counter.add")
    desk.submit(FakeConnection(), "Counter.add")
    assert turn is not None
    former, turn.current = turn.current, None
    with pytest.raises(AssertionError):
        desk.host.check()

    turn.current = former
    desk.run(turn)
    desk.host.check()


def test_check_finds_bytes_that_are_counted_wrongly() -> None:
    """``check`` raises when the bytes of the calls are not those that are counted."""
    desk = Desk(Journal)
    turn = desk.submit(FakeConnection(), "Journal.write", "x" * 100)
    desk.host._pending_bytes += 1
    with pytest.raises(AssertionError):
        desk.host.check()
    desk.run(turn)
    with pytest.raises(AssertionError):
        desk.host.check()

    desk.host._pending_bytes -= 1
    desk.host.check()


def test_host_without_classes_shares_nothing() -> None:
    """An empty catalogue says so in its refusal."""
    host = Host(catalogue_of(), BOOT_ID)
    connection = FakeConnection()
    host.submit(make_call("Counter.add"), connection)

    assert "there are: none" in connection.replies[0].text


def test_call_that_never_ends_does_not_keep_other_lanes_remembered() -> None:
    """One lane whose method hangs holds up the forgetting of no other lane."""
    release = threading.Event()

    class Stuck:
        def work(self) -> None:
            assert release.wait(PATIENCE_S)

    desk = Desk(Stuck, Counter, lane_retention_s=900.0)
    stuck = desk.attached()
    turn = desk.submit(stuck, "Stuck.work", number=1)
    assert turn is not None
    thread = threading.Thread(target=desk.host.run, args=(turn,))
    thread.start()
    try:
        desk.host.detach(stuck.lane, stuck, finished=False)
        other = desk.attached()
        desk.ask(other, "Counter.add", number=1)
        desk.host.detach(other.lane, other, finished=False)
        desk.clock.advance(901)
        desk.attached()

        # The stuck one and the one that has just come.
        assert desk.host.status()["lanes"] == 2
    finally:
        release.set()
        thread.join(PATIENCE_S)
    desk.host.check()
