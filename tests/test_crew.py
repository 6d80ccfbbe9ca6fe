"""The crew, with real threads: who leads, who is displaced, who serves what waits.

Methods wait for events that the test sets, and the test waits for replies; nothing
sleeps but the monitor itself.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from state_server.engine import crew as crew_module
from state_server.engine.crew import Continuation, Crew

from .fakes import PATIENCE_S, Desk, FakeConnection, make_call
from .processes import wait_until

TAKEOVER_S = 0.005


class Gate:
    """A method's stop: the test learns that it was reached, and opens it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def pass_through(self) -> None:
        """Wait until the gate is opened."""
        self.reached.set()
        # Longer than anybody waits for a reply: a gate that gives up helps nobody.
        assert self.opened.wait(3 * PATIENCE_S), "the gate was never opened"

    def wait(self) -> None:
        """Wait until somebody stands before the gate."""
        assert self.reached.wait(PATIENCE_S), "nobody came to the gate"


class Ship:
    """A crew with a leader that takes calls from a queue instead of from sockets."""

    def __init__(self, **options: Any) -> None:
        self.gates: dict[str, Gate] = {}
        self.ran_by: list[tuple[str, str, bool]] = []
        self.leaders: list[str] = []
        self.jobs: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        ship = self

        class Worker:
            def work(self, name: str) -> str:
                thread = threading.current_thread().name
                ship.ran_by.append((name, thread, ship.crew.leads()))
                if name in ship.gates:
                    ship.gates[name].pass_through()
                return name

        class Slow(Worker):
            pass

        self.desk = Desk(Worker, slow_class(Slow))
        settings = {
            "threads_max": 8,
            "takeover_after_s": TAKEOVER_S,
            "slice_s": 10.0,
            **options,
        }
        self.crew = Crew(self.desk.host, self.lead, self.wake, **settings)

    def lead(self) -> None:
        """Do what the engine's leader does, with jobs in place of events."""
        crew = self.crew
        self.leaders.append(threading.current_thread().name)
        while crew.leads() and not crew.stopping:
            if not crew.handed_back:
                job = self.jobs.get()
                if job is not None and not crew.run_turn(job):
                    return
            for _ in range(len(crew.handed_back)):
                crew.handed_back.popleft()()
                if not crew.leads():
                    return

    def wake(self) -> None:
        """Make the leader look at its queues."""
        self.jobs.put(None)

    def gate(self, name: str) -> Gate:
        """Put a gate into the call of this name."""
        return self.gates.setdefault(name, Gate())

    def call(
        self,
        name: str,
        key: str = "a",
        class_name: str = "Worker",
        then: Continuation | None = None,
    ) -> FakeConnection:
        """Have the leader take in a call; return where its reply will be."""
        connection = FakeConnection()
        call = make_call(f"{class_name}.work", name, key=key, remaining_s=100)

        def step() -> Continuation | None:
            resident = self.desk.host.submit(call, connection)
            if resident is not None:
                self.crew.run(resident)
            return then

        self.jobs.put(step)
        return connection

    def thread_of(self, name: str) -> str:
        """Return the thread that ran the call of this name."""
        return next(thread for ran, thread, _ in self.ran_by if ran == name)

    def ran_on_the_leader(self, name: str) -> bool:
        """Tell whether the call of this name was begun by the leader."""
        return next(leads for ran, _, leads in self.ran_by if ran == name)

    def stop(self) -> None:
        """Open all gates and end every thread."""
        for gate in self.gates.values():
            gate.opened.set()
        assert self.crew.stop(PATIENCE_S), "a thread did not end"
        assert self.desk.host.pending == 0
        self.desk.host.check()


def slow_class(cls: type) -> Any:
    """Return the record of a class that is known to be slow."""
    from state_server.sharing import describe_class

    return describe_class(cls, slow=True, durable=False)


MakeShip = Callable[..., Ship]


class CrewTime:
    """The crew's clock, which a test can move on, and its sleep, which it can end."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self.over = threading.Event()

    def monotonic(self) -> float:
        """Return the time."""
        return time.monotonic() + self.ahead_s

    def sleep(self, seconds: float) -> None:
        """Wait, but not beyond the end of the test."""
        self.over.wait(seconds)


@pytest.fixture
def crew_time(monkeypatch: pytest.MonkeyPatch) -> CrewTime:
    """Give the crew's time."""
    crew_time = CrewTime()
    monkeypatch.setattr(crew_module, "time", crew_time)
    return crew_time


@pytest.fixture
def make_ship(crew_time: CrewTime) -> Iterator[MakeShip]:
    """Give a function that starts crews; all of them are ended afterwards."""
    ships: list[Ship] = []

    def make(*, start: bool = True, **options: Any) -> Ship:
        ship = Ship(**options)
        if start:
            ships.append(ship)
            ship.crew.start()
        return ship

    former_s = sys.getswitchinterval()
    yield make
    crew_time.over.set()
    for ship in ships:
        ship.stop()
    assert sys.getswitchinterval() == former_s, "the switch interval was left changed"


def displaced(ship: Ship, times: int = 1) -> None:
    """Wait until the leader was displaced so many times, and another leads.

    A displaced thread that ends its turn before anybody took the place may lead again.
    """
    wait_until(
        lambda: ship.crew.displacements >= times and len(ship.leaders) > times,
        what="another leader",
    )


# Taking over -------------------------------------------------------------------------


def test_short_calls_are_run_by_the_leader(make_ship: MakeShip) -> None:
    """Nobody but the leader runs what ends at once."""
    ship = make_ship(takeover_after_s=60.0)
    assert [ship.call(f"{n}").wait() for n in range(50)] == [f"{n}" for n in range(50)]

    assert len({thread for _, thread, _ in ship.ran_by}) == 1
    assert all(leads for _, _, leads in ship.ran_by)
    assert ship.crew.displacements == 0


def test_another_thread_leads_while_a_method_blocks(make_ship: MakeShip) -> None:
    """A call that blocks delays its own object; the others are served meanwhile."""
    ship = make_ship()
    gate = ship.gate("blocked")
    blocked = ship.call("blocked")
    gate.wait()

    assert ship.call("other", key="b").wait() == "other"
    assert ship.thread_of("other") != ship.thread_of("blocked")
    assert blocked.payloads == []
    gate.opened.set()
    assert blocked.wait() == "blocked"


def test_each_blocked_turn_is_taken_over(make_ship: MakeShip) -> None:
    """Several leaders may get stuck one after the other; somebody always leads."""
    ship = make_ship(threads_max=12)
    gates = [ship.gate(f"{n}") for n in range(5)]
    blocked = []
    for number, gate in enumerate(gates):
        blocked.append(ship.call(f"{number}", key=f"{number}"))
        gate.wait()
        # The second time the method is known to block, and goes to a spare at once.
        assert ship.call(f"q{number}", key=f"q{number}").wait() == f"q{number}"

    assert len({ship.thread_of(f"{n}") for n in range(5)}) == 5
    for gate in gates:
        gate.opened.set()
    assert [c.wait() for c in blocked] == [f"{n}" for n in range(5)]


def test_displaced_thread_does_not_go_on_as_leader(make_ship: MakeShip) -> None:
    """After its turn a displaced thread sees that it leads no more, and stops."""
    ship = make_ship()
    gate, went_on = ship.gate("blocked"), []
    step_done = threading.Event()
    blocked = FakeConnection()
    call = make_call("Worker.work", "blocked", key="a", remaining_s=100)

    def job() -> None:
        resident = ship.desk.host.submit(call, blocked)
        assert resident is not None
        ship.crew.run(resident)

    run_turn = ship.crew.run_turn

    def watched(step: Any) -> bool:
        leads = run_turn(step)
        if step is job:
            went_on.append((leads, ship.crew.leads()))
            step_done.set()
        return leads

    ship.crew.run_turn = watched  # type: ignore[method-assign]
    ship.jobs.put(job)
    gate.wait()
    displaced(ship)
    gate.opened.set()
    assert step_done.wait(PATIENCE_S)

    assert went_on == [(False, False)]
    assert ship.call("next").wait() == "next"
    assert ship.thread_of("next") != ship.thread_of("blocked")


def test_continuation_of_a_displaced_turn_is_run_by_the_new_leader(
    make_ship: MakeShip,
) -> None:
    """What touches the engine's tables is done by whoever leads then."""
    ship = make_ship()
    gate = ship.gate("blocked")
    done_by: list[tuple[str, bool]] = []
    done = threading.Event()

    def continuation() -> None:
        done_by.append((threading.current_thread().name, ship.crew.leads()))
        done.set()

    ship.call("blocked", then=continuation)
    gate.wait()
    displaced(ship)
    assert not done.is_set()
    gate.opened.set()
    assert done.wait(PATIENCE_S)

    assert done_by[0][1], "run by a thread that does not lead"
    assert done_by[0][0] != ship.thread_of("blocked")


def test_continuation_of_an_undisturbed_turn_is_run_at_once(
    make_ship: MakeShip,
) -> None:
    """A leader that still leads runs what its step returned, in the same turn."""
    ship = make_ship(takeover_after_s=60.0)
    done = threading.Event()
    order: list[str] = []

    def continuation() -> None:
        order.append(threading.current_thread().name)
        done.set()

    ship.call("quick", then=continuation).wait()
    assert done.wait(PATIENCE_S)

    assert order == [ship.thread_of("quick")]


def test_step_that_fails_leaves_no_turn_open(make_ship: MakeShip) -> None:
    """A defect in a step ends the turn; the thread is not displaced for it later."""
    ship = make_ship()
    failed = threading.Event()

    def job() -> None:
        def step() -> None:
            raise ZeroDivisionError

        try:
            ship.crew.run_turn(step)
        except ZeroDivisionError:
            failed.set()
            # Long enough for the monitor to look twice.
            ship.gate("defect").pass_through()

    ship.crew.hand_back(job)
    assert failed.wait(PATIENCE_S)
    monitor_looks(ship, 4)

    assert ship.crew.displacements == 0
    ship.gate("defect").opened.set()
    assert ship.call("next").wait() == "next"


def monitor_looks(ship: Ship, times: int) -> None:
    """Wait until the monitor has looked so many times."""
    looked = threading.Event()
    left = times

    class Watched:
        """The crew's lock, with a count of who takes it."""

        def __init__(self, lock: Any) -> None:
            self.lock = lock

        def __enter__(self) -> None:
            nonlocal left
            self.lock.__enter__()
            if threading.current_thread().name == "state-server-monitor":
                left -= 1
                if left <= 0:
                    looked.set()

        def __exit__(self, *error: Any) -> None:
            self.lock.__exit__(*error)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.lock, name)

    former = ship.crew._lock
    ship.crew._lock = Watched(former)  # type: ignore[assignment]
    try:
        assert looked.wait(PATIENCE_S), "the monitor rests"
    finally:
        ship.crew._lock = former


# Threads -----------------------------------------------------------------------------


def full_ship(make_ship: MakeShip, crew_time: CrewTime) -> tuple[Ship, list[Any]]:
    """Return a crew of three, two of them stuck in calls, and where those reply.

    The two are so far apart that they are accidents and not a habit.
    """
    ship = make_ship(threads_max=3)
    blocked = []
    for number, name in enumerate(("one", "two")):
        gate = ship.gate(name)
        blocked.append(ship.call(name, key=name))
        gate.wait()
        displaced(ship, number + 1)
        crew_time.ahead_s += 2.5
    return ship, blocked


def test_at_the_thread_limit_one_thread_is_left_to_lead(
    make_ship: MakeShip, crew_time: CrewTime
) -> None:
    """With all others stuck calls queue; the first thread that is free runs them."""
    ship, blocked = full_ship(make_ship, crew_time)
    waiting = [ship.call(f"w{n}", key=f"w{n}") for n in range(4)]
    led = threading.Event()
    ship.crew.hand_back(led.set)
    assert led.wait(PATIENCE_S), "nobody leads"
    # The leader has taken in all four, and runs none of them.
    wait_until(lambda: ship.desk.host.pending == 6, what="taking in")
    assert [c.payloads for c in waiting] == [[]] * 4
    assert ship.crew.status()["threads"] == 3

    ship.gates["one"].opened.set()
    assert [c.wait() for c in waiting] == [f"w{n}" for n in range(4)]
    ship.gates["two"].opened.set()
    assert [c.wait() for c in blocked] == ["one", "two"]
    assert ship.call("after").wait() == "after"


def test_thread_that_comes_free_while_a_call_is_queued_finds_it(
    make_ship: MakeShip, crew_time: CrewTime
) -> None:
    """Between "nobody is free" and "so it waits" a thread may come free: no matter.

    Otherwise the call would wait for the next one to come free, which may take hours.
    """
    ship, _ = full_ship(make_ship, crew_time)
    waiting: list[FakeConnection] = []
    crew, lock = ship.crew, ship.crew._lock

    class Interrupted:
        """The crew's lock; when the leader gives it back, "one" comes free."""

        def __enter__(self) -> None:
            lock.__enter__()

        def __exit__(self, *error: Any) -> None:
            lock.__exit__(*error)
            if crew.leads():
                crew._lock = lock
                ship.gates["one"].opened.set()
                wait_until(
                    lambda: crew._idle == 1 or waiting[0].payloads, what="a free thread"
                )

    queued = threading.Event()

    def watch() -> None:
        crew._lock = Interrupted()  # type: ignore[assignment]
        queued.set()

    crew.hand_back(watch)
    assert queued.wait(PATIENCE_S)
    waiting.append(ship.call("late", key="late"))

    assert waiting[0].wait() == "late"
    assert not ship.gates["two"].opened.is_set()


def test_slow_calls_leave_the_leader_free_for_short_ones(make_ship: MakeShip) -> None:
    """Slow calls never take the last spare: without it the leader runs nothing."""
    ship = make_ship(threads_max=3)
    gates = [ship.gate(f"slow {n}") for n in range(2)]
    slow = [ship.call(f"slow {n}", key=f"{n}", class_name="Slow") for n in range(2)]
    gates[0].wait()

    assert [ship.call(f"{n}").wait() for n in range(20)] == [f"{n}" for n in range(20)]
    assert not gates[1].reached.is_set()
    gates[0].opened.set()
    gates[1].wait()
    gates[1].opened.set()
    assert [c.wait() for c in slow] == ["slow 0", "slow 1"]


def test_burst_of_slow_calls_gets_a_thread_each(make_ship: MakeShip) -> None:
    """Blocking calls that come faster than spares wake up all run at the same time.

    A spare that has been woken counts as idle until it runs, so that it seemed to be
    there for each of them.
    """
    ship = make_ship(threads_max=8)
    names = [f"slow {n}" for n in range(6)]
    gates = [ship.gate(name) for name in names]
    crew = ship.crew

    def burst() -> None:
        with pytest.MonkeyPatch.context() as patch:
            # No spare wakes up before the last of them has come.
            patch.setattr(crew._changed, "notify", lambda: None)
            for name in names:
                call = make_call("Slow.work", name, key=name, remaining_s=100)
                resident = ship.desk.host.submit(call, FakeConnection())
                assert resident is not None
                crew.run(resident)
        with crew._lock:
            crew._changed.notify_all()

    ship.jobs.put(burst)
    for gate in gates:
        gate.wait()


def test_thread_limit_is_logged_once_on_entering(
    make_ship: MakeShip, caplog: pytest.LogCaptureFixture
) -> None:
    """Reaching the limit of threads is one line, however many calls wait."""
    ship = make_ship(threads_max=3)
    gates = [ship.gate(f"s{n}") for n in range(6)]
    replies = [ship.call(f"s{n}", key=f"s{n}", class_name="Slow") for n in range(6)]
    gates[0].wait()
    wait_until(lambda: caplog.records, what="a line of the log")
    for gate in gates:
        gate.opened.set()
    assert [c.wait() for c in replies] == [f"s{n}" for n in range(6)]

    lines = [r.getMessage() for r in caplog.records if "threads" in r.getMessage()]
    assert lines == ["Limit reached: 3 threads."]


def test_slow_class_is_never_run_by_the_leader(make_ship: MakeShip) -> None:
    """A class shared as slow runs on spare threads only, its whole queue."""
    ship = make_ship(takeover_after_s=60.0, slice_s=1e-9)
    replies = [ship.call(f"{n}", key=f"{n % 3}", class_name="Slow") for n in range(60)]

    assert [c.wait() for c in replies] == [f"{n}" for n in range(60)]
    assert not any(leads for _, _, leads in ship.ran_by)
    assert ship.crew.displacements == 0


def test_method_that_displaces_twice_runs_on_spares_for_a_while(
    make_ship: MakeShip, crew_time: CrewTime
) -> None:
    """Two long calls within two seconds are a habit; after it, the leader tries."""
    ship = make_ship()
    for name in ("first", "second"):
        gate = ship.gate(name)
        reply = ship.call(name)
        gate.wait()
        displaced(ship, ("first", "second").index(name) + 1)
        gate.opened.set()
        reply.wait()
    for number in range(5):
        ship.call(f"habit {number}", key=f"{number}").wait()
    crew_time.ahead_s += 2.5
    ship.call("forgiven").wait()

    assert [ship.ran_on_the_leader(n) for n in ("first", "second")] == [True, True]
    assert not any(ship.ran_on_the_leader(f"habit {n}") for n in range(5))
    assert ship.ran_on_the_leader("forgiven")
    assert ship.crew.displacements == 2


def test_habits_are_noted_of_so_many_methods_only(make_ship: MakeShip) -> None:
    """Whatever names callers invent, the tables of long methods stay small."""
    crew = make_ship().crew
    with crew._lock:
        for number in range(3000):
            crew._method = ("Worker", f"no such method {number}")
            crew._note_habit()
            crew._note_habit()
            assert crew._displaced_at[crew._method] > 0

    assert len(crew._displaced_at) <= 1001
    assert len(crew._habit_until) <= 1001


def test_one_long_call_is_an_accident(make_ship: MakeShip, crew_time: CrewTime) -> None:
    """Long calls more than two seconds apart leave the method with the leader."""
    ship = make_ship()
    for number in range(3):
        gate = ship.gate(f"long {number}")
        reply = ship.call(f"long {number}")
        gate.wait()
        displaced(ship, number + 1)
        gate.opened.set()
        reply.wait()
        crew_time.ahead_s += 2.5
    ship.call("quick").wait()

    assert all(ship.ran_on_the_leader(f"long {n}") for n in range(3))
    assert ship.ran_on_the_leader("quick")


@pytest.mark.parametrize("slice_s", [1e-9, 100.0])
def test_displaced_thread_serves_its_queue_for_a_slice(
    make_ship: MakeShip, slice_s: float
) -> None:
    """What queued up is run by the displaced thread; past its slice, by the leader."""
    ship = make_ship(slice_s=slice_s)
    gate = ship.gate("blocked")
    blocked = ship.call("blocked")
    gate.wait()
    displaced(ship)
    queued = [ship.call(f"{n}") for n in range(4)]
    wait_until(lambda: ship.desk.host.pending == 5, what="queueing")
    gate.opened.set()

    assert [c.wait() for c in (blocked, *queued)] == ["blocked", *"0123"]
    displaced_thread = ship.thread_of("blocked")
    by_it = [ship.thread_of(f"{n}") == displaced_thread for n in range(4)]
    assert by_it[0]
    assert by_it[1:] == [slice_s > 1] * 3
    if slice_s < 1:
        assert all(ship.ran_on_the_leader(f"{n}") for n in range(1, 4))


def test_long_queue_of_one_object_lets_others_in_between(make_ship: MakeShip) -> None:
    """The leader runs one call of a long queue at a time, between other events."""
    ship = make_ship(takeover_after_s=60.0)
    first_gate = Gate()
    order: list[str] = []

    def hold() -> None:
        # Whatever is put into the queue meanwhile is there when the leader looks.
        first_gate.pass_through()

    ship.crew.hand_back(hold)
    first_gate.wait()
    replies = [ship.call(f"x{n}", key="x") for n in range(3)]
    replies.append(ship.call("y", key="y"))
    first_gate.opened.set()
    for reply in replies:
        reply.wait()
    order = [name for name, _, _ in ship.ran_by]

    assert order == ["x0", "x1", "x2", "y"]


def test_thread_that_cannot_be_started_is_tried_again(
    make_ship: MakeShip,
    crew_time: CrewTime,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When the system gives no thread that is logged, and tried until there is one."""
    ship = make_ship()
    start, left = threading.Thread.start, 3

    def refuse(thread: threading.Thread) -> None:
        nonlocal left
        if left and thread.name.startswith("state-server"):
            left -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    blocked = []
    for number in range(3):
        gate = ship.gate(f"{number}")
        blocked.append(ship.call(f"{number}", key=f"{number}"))
        gate.wait()
        other = ship.call(f"other {number}", key="other")
        assert other.wait() == f"other {number}"
        crew_time.ahead_s += 2.5
    assert left == 0
    for number, reply in enumerate(blocked):
        ship.gates[f"{number}"].opened.set()
        assert reply.wait() == f"{number}"

    wait_until(lambda: ship.crew.status()["busy_threads"] == 0, what="rest")
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert lines == ["A thread could not be started: can't start new thread."] * 3


def test_manager_without_threads_says_so_at_the_start(
    make_ship: MakeShip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crew that cannot even begin raises, rather than serve nobody."""
    ship = make_ship(start=False)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="needs three threads"):
        ship.crew.start()


def test_switch_interval_is_short_while_a_method_runs_beside_the_leader(
    make_ship: MakeShip,
) -> None:
    """Threads change more often only while a displaced or a slow call runs."""
    usual_s = sys.getswitchinterval()
    ship = make_ship()
    ship.call("quick").wait()
    assert sys.getswitchinterval() == usual_s
    for name, class_name in (("blocked", "Worker"), ("slow", "Slow")):
        gate = ship.gate(name)
        reply = ship.call(name, key=name, class_name=class_name)
        gate.wait()
        wait_until(lambda: sys.getswitchinterval() < usual_s / 10, what="a short one")
        gate.opened.set()
        reply.wait()
        wait_until(lambda: sys.getswitchinterval() == usual_s, what="the usual one")


def test_the_main_thread_never_leads(make_ship: MakeShip) -> None:
    """Neither starting nor calling makes the main thread a leader or a runner."""
    ship = make_ship(takeover_after_s=0.001)
    main = threading.main_thread().name
    for number in range(5):
        gate = ship.gate(f"{number}")
        reply = ship.call(f"{number}", key=f"{number}")
        gate.wait()
        gate.opened.set()
        reply.wait()

    assert main not in ship.leaders
    assert main not in {thread for _, thread, _ in ship.ran_by}
    assert not ship.crew.leads()


def test_all_calls_of_a_stormy_mixture_are_answered(make_ship: MakeShip) -> None:
    """Quick, blocking and slow calls on a few objects: all answered, each in order."""
    ship = make_ship(threads_max=5, slice_s=0.001, takeover_after_s=0.001)
    replies = []
    for number in range(400):
        name = f"{number}"
        if number % 37 == 0:
            ship.gate(name)
        class_name = "Slow" if number % 5 == 0 else "Worker"
        replies.append(ship.call(name, key=f"{number % 7}", class_name=class_name))
        if number % 37 == 20:
            for gate in ship.gates.values():
                gate.opened.set()
    for gate in ship.gates.values():
        gate.opened.set()

    assert [c.wait() for c in replies] == [f"{n}" for n in range(400)]
    order: dict[tuple[int, bool], list[int]] = {}
    for name, _, _ in ship.ran_by:
        number = int(name)
        order.setdefault((number % 7, number % 5 == 0), []).append(number)
    assert all(numbers == sorted(numbers) for numbers in order.values())
    wait_until(lambda: ship.crew.status()["busy_threads"] == 0, what="rest")
    assert ship.crew.status()["threads"] <= 5


def test_stop_leaves_a_stuck_method_behind(make_ship: MakeShip) -> None:
    """Threads that are free end; a method that never returns is reported as such."""
    ship = make_ship()
    gate = ship.gate("stuck")
    ship.call("stuck")
    gate.wait()
    displaced(ship)

    assert not ship.crew.stop(0.05)
    gate.opened.set()


def test_repr_and_status_show_the_threads(make_ship: MakeShip) -> None:
    """What the operator sees is what is there."""
    ship = make_ship()
    gate = ship.gate("blocked")
    reply = ship.call("blocked")
    gate.wait()
    displaced(ship)
    wait_until(lambda: ship.crew.status()["threads"] == 3, what="the third thread")

    assert ship.crew.status() == {
        "threads": 3,
        "busy_threads": 1,
        "displacements": 1,
    }
    assert "threads=3" in repr(ship.crew)
    assert "busy=1" in repr(ship.crew)
    assert "displaced=1" in repr(ship.crew)
    gate.opened.set()
    reply.wait()


# The monitor -------------------------------------------------------------------------


def test_monitor_rests_when_idle_and_wakes_in_time(
    make_ship: MakeShip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a quiet time the monitor stops looking; the next turn wakes it."""
    monkeypatch.setattr(crew_module, "_REST_AFTER_S", 0.01)
    ship = make_ship()
    for number in range(3):
        wait_until(lambda: not ship.crew._monitor_looks.is_set(), what="rest")
        gate = ship.gate(f"{number}")
        blocked = ship.call(f"{number}", key=f"{number}")
        gate.wait()
        assert ship.call(f"q{number}", key="q").wait() == f"q{number}"
        gate.opened.set()
        blocked.wait()


class RaceEvent:
    """The monitor's event, with a turn that begins at the worst moment."""

    def __init__(self) -> None:
        self.before_clear: Callable[[], None] | None = None
        self.before_wait: Callable[[], None] | None = None
        self.after_clear: Callable[[], None] | None = None
        self.waited = 0
        self._set = False

    def is_set(self) -> bool:
        """Tell whether the monitor looks."""
        return self._set

    def set(self) -> None:
        """Wake the monitor."""
        self._set = True

    def clear(self) -> None:
        """Let the monitor rest, unless a turn begins right now."""
        hook, self.before_clear = self.before_clear, None
        if hook is not None:
            hook()
        self._set = False
        hook, self.after_clear = self.after_clear, None
        if hook is not None:
            hook()

    def wait(self, _: float) -> bool:
        """Count that the monitor would have waited, asleep."""
        hook, self.before_wait = self.before_wait, None
        if hook is not None:
            hook()
        self.waited += not self._set
        return True


@pytest.mark.parametrize("moment", ["before_clear", "after_clear", "before_wait"])
def test_monitor_does_not_rest_through_a_turn_that_begins(
    make_ship: MakeShip, moment: str
) -> None:
    """Whenever a turn begins while the monitor goes to rest, it is seen."""
    ship = make_ship(start=False)
    event = RaceEvent()
    event.set()
    ship.crew._monitor_looks = event  # type: ignore[assignment]
    gate = Gate()
    leader = threading.Thread(
        target=ship.crew.run_turn, args=(gate.pass_through,), daemon=True
    )

    def begin_a_turn() -> None:
        leader.start()
        gate.wait()

    setattr(event, moment, begin_a_turn)
    ship.crew._rest()
    gate.opened.set()
    leader.join(PATIENCE_S)

    assert event.waited == 0, "the monitor sleeps while a turn runs"


@pytest.mark.parametrize("moment", ["before_clear", "after_clear", "before_wait"])
def test_monitor_does_not_rest_through_the_stop(
    make_ship: MakeShip, moment: str
) -> None:
    """Whenever the crew stops while the monitor goes to rest, the monitor ends.

    It would rest for a minute otherwise, and the stop would be given up.
    """
    ship = make_ship(start=False)
    event = RaceEvent()
    event.set()
    ship.crew._monitor_looks = event  # type: ignore[assignment]

    def stop() -> None:
        # The first two things that stop() does.
        ship.crew.stopping = True
        event.set()

    setattr(event, moment, stop)
    ship.crew._rest()

    assert event.waited == 0


def test_turn_is_announced_before_the_monitor_is_asked(make_ship: MakeShip) -> None:
    """A leader looks whether the monitor rests only after it has said it is in a turn.

    The other order loses the race in which the monitor goes to rest in between.
    """
    ship = make_ship(start=False)
    seen: list[bool] = []

    class Asked(Crew):
        @property
        def _monitor_rests(self) -> bool:
            seen.append(self._in_turn)
            return True

    ship.crew.__class__ = Asked
    ship.crew.run_turn(lambda: None)

    assert seen == [True]
    assert ship.crew._monitor_looks.is_set()
