"""The threads of a manager: one leads, some run methods that take long, some are spare.

The leader serves the sockets and runs short methods itself. A monitor looks every few
milliseconds whether it is still inside the same turn; if so a spare becomes leader. The
displaced thread finishes what it runs, serves that object's queue for a bounded slice,
hands the rest back and joins the spares. The monitor also starts spares where an object
waits for one. Nothing here knows sockets.

Rules, each with a test that fails without it:

* Leadership changes under one lock, and the leader looks at it again after each turn.
* One thread is always left to lead. When none is, the leader runs no method itself; it
  queues, and the first thread that comes free takes over what waits.
* The main thread never leads, so no signal handler runs inside a method.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from threading import get_ident

from ..host import Host, Resident
from ..limits import Edge

log = logging.getLogger("state_server.crew")

#: While a method runs beside the leader, threads change this often, so that a
#: computation leaves the others quick (the interpreter's default is 0.005).
_BUSY_SWITCH_INTERVAL_S = 0.0002

#: A method that displaced the leader twice within this time is run by a spare thread
#: for as long: one long call is an accident, two are a habit.
_HABIT_S = 2.0

#: Methods of which it is noted that they displaced the leader.
_METHODS_NOTED_MAX = 1000

#: With nothing to do for this long, the monitor stops looking until there is.
_REST_AFTER_S = 1.0

#: What a turn leaves to be done by whoever leads then.
Continuation = Callable[[], None]
Method = tuple[str, str]


class Crew:
    """The threads, and who leads.

    ``_lock`` guards ``_leader``, ``_ready``, ``_idle``, ``_busy``, ``_threads``,
    ``_displaced_at`` and ``_habit_until``. ``_turn`` and ``_in_turn`` are written by
    the leader, and ``_in_turn`` is cleared under the lock. ``_method`` is a hint: a
    thread that lost its place within this turn may overwrite it.
    """

    def __init__(
        self,
        host: Host,
        lead: Callable[[], None],
        wake: Callable[[], None],
        *,
        threads_max: int,
        takeover_after_s: float,
        slice_s: float,
    ) -> None:
        self._host = host
        self._lead = lead
        self._wake_leader = wake
        self._threads_max = threads_max
        self._takeover_after_s = takeover_after_s
        self._slice_s = slice_s
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._leader: int | None = None
        self._in_turn = False
        self._turn = 0
        self._method: Method | None = None
        self._ready: deque[Resident] = deque()
        self._idle = 0
        self._busy = 0
        self._threads: list[threading.Thread] = []
        self._displaced_at: dict[Method, float] = {}
        self._habit_until: dict[Method, float] = {}
        self._monitor_looks = threading.Event()
        self._monitor_rests = False
        self._monitor = threading.Thread(
            target=self._watch, name="state-server-monitor", daemon=True
        )
        self._threads_edge = Edge(log, "threads", threads_max)
        self._usual_switch_interval_s = sys.getswitchinterval()
        #: What displaced threads handed back; run by the leader between two polls.
        self.handed_back: deque[Continuation] = deque()
        self.displacements = 0
        self.stopping = False

    def __repr__(self) -> str:
        """Return the numbers an operator asks for first."""
        return (
            f"<Crew threads={len(self._threads)} idle={self._idle} busy={self._busy} "
            f"ready={len(self._ready)} displaced={self.displacements}>"
        )

    def status(self) -> dict[str, int]:
        """Return the crew's numbers."""
        with self._lock:
            return {
                "threads": len(self._threads),
                "busy_threads": self._busy,
                "displacements": self.displacements,
            }

    def start(self) -> None:
        """Start the leader, one spare, and the monitor."""
        with self._lock:
            started = self._spawn() and self._spawn()
        if not started:
            raise RuntimeError("The manager needs three threads and could not start.")
        self._monitor.start()

    def stop(self, timeout_s: float) -> bool:
        """End the threads; tell whether all did. A method that runs is left behind."""
        with self._lock:
            self.stopping = True
            self._changed.notify_all()
        self._monitor_looks.set()
        self._wake_leader()
        deadline = time.monotonic() + timeout_s
        threads = [t for t in (self._monitor, *self._threads) if t.ident is not None]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def leads(self) -> bool:
        """Tell whether the calling thread is the leader."""
        return self._leader == get_ident()

    # Turns of the leader -------------------------------------------------------------

    def run_turn(self, step: Callable[[], Continuation | None]) -> bool:
        """Run one step that may take long; tell whether the caller leads after it.

        What the step returns is run by whoever leads then.
        """
        self._method = None
        self._turn += 1
        self._in_turn = True
        # In this order: the monitor rests only if it sees no turn after it said so.
        if self._monitor_rests:
            self._monitor_looks.set()
        try:
            continuation = step()
        finally:
            # After a defect as well: a turn left open would cost a leader its place
            # while it polls, and two would lead for a moment.
            with self._lock:
                leads = self._leader == get_ident()
                if leads:
                    self._in_turn = False
        if continuation is not None:
            if leads:
                continuation()
            else:
                self.hand_back(continuation)
        return leads

    def run(self, resident: Resident) -> None:
        """Run the object's next call, here or on a spare; part of a leader's turn."""
        ticket = resident.current
        assert ticket is not None, resident
        self._method = (ticket.call.class_name, ticket.call.method)
        if self._is_for_spares(resident):
            self._enqueue(resident)
            return
        if not self._may_run_here(resident):
            return
        following = self._host.run(resident)
        if following is None:
            return
        if self.leads():
            self._pass_on(following)
        else:
            self._serve(following)

    def can_be_relieved(self) -> bool:
        """Tell whether another thread could lead if this one were stuck."""
        with self._lock:
            return self._idle + self._startable() > 0

    def hand_back(self, continuation: Continuation) -> None:
        """Have the leader run something between two polls; called by any thread."""
        self.handed_back.append(continuation)
        self._wake_leader()

    def _may_run_here(self, resident: Resident) -> bool:
        """Tell whether somebody could take over if the leader ran a method now.

        If not, the object is made ready under the same lock: a thread that comes free
        either was counted here or finds it.
        """
        if self._idle > 1 or len(self._threads) < self._threads_max:
            return True
        with self._lock:
            if self._idle + self._startable() > 0:
                return True
            self._ready.append(resident)
            return False

    def _startable(self) -> int:
        return self._threads_max - len(self._threads)

    def _is_for_spares(self, resident: Resident) -> bool:
        if resident.shared.slow:
            return True
        if not self._habit_until:
            return False
        ticket = resident.current
        assert ticket is not None, resident
        method = (ticket.call.class_name, ticket.call.method)
        with self._lock:
            until = self._habit_until.get(method)
            if until is None or time.monotonic() < until:
                return until is not None
            del self._habit_until[method]
            return False

    # Threads beside the leader -------------------------------------------------------

    def _spawn(self) -> bool:
        """Start one more spare; the caller holds the lock. Tell whether it started."""
        if self._threads_edge.reached(len(self._threads)):
            return False
        name = f"state-server-{len(self._threads)}"
        thread = threading.Thread(target=self._serve_in_turns, name=name, daemon=True)
        # Counted before it runs: it can be relied on from here.
        self._threads.append(thread)
        self._idle += 1
        try:
            thread.start()
        except RuntimeError as error:
            self._threads.remove(thread)
            self._idle -= 1
            log.error("A thread could not be started: %s.", error)
            return False
        return True

    def _serve_in_turns(self) -> None:
        """Be a spare; lead when nobody does; run what is ready."""
        resident: Resident | None = None
        while True:
            if resident is None:
                with self._lock:
                    while not (self.stopping or self._leader is None):
                        # One is kept back, to lead when the leader gets stuck.
                        if self._ready and self._idle + self._startable() > 1:
                            break
                        self._changed.wait()
                    self._idle -= 1
                    if self.stopping:
                        return
                    if self._leader is None:
                        self._leader = get_ident()
                        self._in_turn = False
                    else:
                        resident = self._ready.popleft()
                        self._count_busy(1)
            try:
                if resident is None:
                    self._lead()
                else:
                    self._serve(resident)
            except BaseException:
                # The border around the life of a thread: what gets here is a defect of
                # ours, and must not cost a thread as well.
                log.exception("A thread of the manager failed; it goes on.")
            with self._lock:
                if self._leader == get_ident():
                    self._leader = None
                    resident = None
                elif self._ready:
                    # Taken at once, by a thread that is busy already: what waits was
                    # queued because nobody else was free.
                    resident = self._ready.popleft()
                    continue
                else:
                    self._count_busy(-1)
                    resident = None
                self._idle += 1

    def _count_busy(self, change: int) -> None:
        self._busy += change
        if self._busy == 0:
            sys.setswitchinterval(self._usual_switch_interval_s)
        elif self._busy == 1 and change == 1:
            sys.setswitchinterval(_BUSY_SWITCH_INTERVAL_S)

    def _serve(self, resident: Resident) -> None:
        """Run calls of one object, for a bounded slice of time."""
        until = time.monotonic() + self._slice_s
        following: Resident | None = resident
        while following is not None:
            following = self._host.run(following)
            if following is not None and time.monotonic() > until:
                self._pass_on(following)
                return

    def _pass_on(self, resident: Resident) -> None:
        if self._is_for_spares(resident):
            self._enqueue(resident)
        else:
            self.hand_back(lambda: self._run_handed_back(resident))

    def _run_handed_back(self, resident: Resident) -> None:
        def step() -> None:
            self.run(resident)

        self.run_turn(step)

    def _enqueue(self, resident: Resident) -> None:
        """Let a spare run the object's next call."""
        with self._lock:
            self._ready.append(resident)
            if self._idle < 2 and self._startable():
                self._spawn()
            self._changed.notify()
        # Should the spares be stuck, it is the monitor that starts more of them.
        if self._monitor_rests:
            self._monitor_looks.set()

    # The monitor ---------------------------------------------------------------------

    def _watch(self) -> None:
        """Take the place of leader away from a thread that is stuck in one turn.

        And start spares where an object waits for one: those that there are may all be
        stuck in methods.
        """
        stuck_in, last_turn, changed_at = -1, -1, time.monotonic()
        waiting: Resident | None = None
        while not self.stopping:
            time.sleep(self._takeover_after_s)
            with self._lock:
                turn = self._turn if self._in_turn else -1
                if turn != -1 and turn == stuck_in:
                    self._displace()
                    turn = -1
                if waiting is not None and self._ready and self._ready[0] is waiting:
                    self._spawn_for_ready()
                waiting = self._ready[0] if self._ready else None
            stuck_in = turn
            now = time.monotonic()
            if turn != -1 or self._turn != last_turn:
                last_turn, changed_at = self._turn, now
            elif now - changed_at > _REST_AFTER_S:
                self._rest()
                changed_at = time.monotonic()

    def _rest(self) -> None:
        self._monitor_looks.clear()
        self._monitor_rests = True
        if not self._in_turn and not self._ready and not self.stopping:
            self._monitor_looks.wait(60.0)
        self._monitor_rests = False

    def _displace(self) -> None:
        """Make room for another leader; the caller holds the lock."""
        if self._idle == 0 and not self._spawn():
            return
        self.displacements += 1
        self._leader = None
        self._in_turn = False
        self._count_busy(1)
        self._note_habit()
        # All of them: the one that wakes first may be waiting for work only.
        self._changed.notify_all()
        if self._idle < 2 and self._startable():
            self._spawn()

    def _spawn_for_ready(self) -> None:
        """Start a spare for each object that waits; the caller holds the lock."""
        # Asked at the limit as well, which is told then.
        while self._idle <= len(self._ready) and self._spawn():
            pass

    def _note_habit(self) -> None:
        method, now = self._method, time.monotonic()
        if method is None:
            return
        log.debug("The leader was displaced from %s.%s.", *method)
        for table in (self._displaced_at, self._habit_until):
            # Callers choose the names of methods, also of those that no class has.
            if len(table) > _METHODS_NOTED_MAX:
                table.clear()
        if now - self._displaced_at.get(method, -_HABIT_S) < _HABIT_S:
            self._habit_until[method] = now + _HABIT_S
        self._displaced_at[method] = now
