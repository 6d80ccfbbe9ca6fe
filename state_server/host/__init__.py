"""One call: find, permit, order, run, remember. No sockets and no files.

The engine gives calls in with ``submit`` and lends its threads to ``run``. What the
host decides, it decides under its one lock; the object's own code runs outside it.

Behind this door: ``tickets`` has the records, ``residents`` the objects in memory,
``lanes`` what is remembered of each lane; ``turns`` runs an object's code.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from ..errors import (
    Expired,
    Overloaded,
    Stale,
    StateServerError,
    Stopping,
    StoreError,
    Unanswered,
)
from ..keeping import KeepingLimits
from ..keeping.commits import (
    Batch,
    Change,
    Committer,
    ObjectName,
    Phase,
    ReplyRecord,
    Store,
)
from ..keeping.journal import JournalKeeper
from ..limits import Edge
from ..messages import DEFAULT_KEY, Call, Contract, Lane, Payload
from ..sharing import Catalogue, SharedClass, waits_for_others
from .lanes import Lanes
from .residents import Residents
from .tickets import Destination, Form, HostLimits, LaneMemory, Resident, Ticket
from .turns import Performer

__all__ = [
    "Destination",
    "Form",
    "Host",
    "HostLimits",
    "Resident",
    "Ticket",
    "warn_of_waiting",
]

log = logging.getLogger("state_server.host")

#: A call that waits for an object which has been busy with one call for so long is
#: answered so long before its deadline: more than the time between two sweeps, so that
#: its caller is still there and learns why it waited.
_BUSY_FOR_LONG_S, _BEFORE_DEADLINE_S = 2.0, 0.3


class Host:
    """All objects of one manager, the calls that wait for them, and the reply memory.

    ``_lock`` guards every table, those of ``_residents`` and ``_lanes`` included, and
    every ``Resident`` queue. It is never held while an object's code runs, while
    anything is encoded, or while a reply is delivered.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        boot_id: bytes,
        limits: HostLimits = HostLimits(),  # noqa: B008 - frozen, so sharing is safe
        keeping: KeepingLimits = KeepingLimits(),  # noqa: B008 - frozen as well
        store: Store | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.boot_id = boot_id
        self.limits = limits
        self._catalogue = catalogue
        self._clock = clock
        self._lock = threading.Lock()
        self._committer: Committer | None = None
        if store is not None:
            self._committer = Committer(store, self._settle, limits.lane_retention_s)
        committer = self._committer
        #: A reply of more bytes is remembered as "ran, reply lost".
        self._recorded_bytes_max = limits.remembered_bytes_max
        if committer is not None:
            self._recorded_bytes_max = min(
                limits.remembered_bytes_max, committer.value_bytes_max
            )
        self._residents = Residents(catalogue, limits, keeping, committer, clock)
        self._lanes = Lanes(self._lock, limits, committer, clock, wall_clock)
        self._performer = Performer(
            boot_id, limits.frame_bytes_max, committer, self._check_room, clock
        )
        self._is_started = False
        self._closing = False
        #: Objects that calls have waited for since the last sweep.
        self._awaited: set[Resident] = set()
        self._pending = 0
        #: What the pending calls hold; a call that waits for its commit counts, as it
        #: is kept until then, and its arguments may be what is to be written.
        self._pending_bytes = 0
        self._given_again = 0
        self._calls = 0
        self._pending_edge = Edge(log, "calls waiting", limits.pending_max)
        self._pending_bytes_edge = Edge(
            log, "bytes of calls waiting", limits.pending_bytes_max
        )
        self._batch_edge = Edge(
            log, "bytes of replies waiting for a commit", limits.batch_bytes_max
        )

    def __repr__(self) -> str:
        """Return the numbers an operator asks for first."""
        return (
            f"<Host objects={len(self._residents)} pending={self._pending} "
            f"lanes={len(self._lanes)} calls={self._calls}>"
        )

    @property
    def pending(self) -> int:
        """Return how many calls wait or run."""
        return self._pending

    def start(self) -> None:
        """Start the writer thread, if there is a store."""
        if self._committer is not None:
            self._committer.start()
            self._is_started = True

    def stop(self, timeout_s: float = 10.0) -> None:
        """Commit what is staged, write images of journalled objects, close the store.

        Called when no thread takes in calls any more. A method that outlasts the drain
        may still run: its object gets no image, and its caller no answer. After
        ``timeout_s`` no further object is loaded for its image.
        """
        if self._committer is None:
            return
        if self._is_started:
            self._write_images(self._committer, timeout_s)
        self._committer.stop()

    def _write_images(self, committer: Committer, timeout_s: float) -> None:
        """Write the image of each object with journalled calls, in memory or on disk.

        An image needs no journal: another version of the class can read it.
        """
        deadline = self._clock() + timeout_s
        done, left = set(), 0
        with self._lock:
            # A method that outlasts the drain may have others leave when it ends.
            residents = list(self._residents)
        for resident in residents:
            keeper = resident.keeper
            if isinstance(keeper, JournalKeeper) and keeper.has_entries:
                done.add(resident.object_name)
                if resident.current is None:
                    self._write_image(resident, keeper)
                else:
                    left += 1
        try:
            for name in committer.journalled():
                if name not in done and not self._write_stored_image(name, deadline):
                    left += 1
        except StoreError as error:
            log.warning("Images of journalled objects were not written: %s", error)
        if left:
            log.warning(
                "Objects that keep their journalled calls: %d. Their methods, the disk "
                "or their images took longer than drain_timeout_s. Before their class "
                "is changed, start the manager and stop it once more.",
                left,
            )

    def _write_stored_image(self, name: ObjectName, deadline: float) -> bool:
        """Write the image of an object that is on disk; tell whether there was time.

        Nothing for one whose class keeps no journal here.
        """
        shared = self._catalogue.get(name[0])
        if shared is None or shared.durable != "journal":
            return True
        if self._clock() > deadline:
            return False
        with self._lock:
            resident = self._residents.get(name) or self._residents.add(name, shared)
        if resident.current is not None or not self._is_settled(resident, deadline):
            return False
        assert isinstance(resident.keeper, JournalKeeper), resident
        self._write_image(resident, resident.keeper)
        # One image at a time: together they may be more than memory holds.
        self._is_settled(resident, deadline)
        resident.keeper.drop()
        return True

    def _is_settled(self, resident: Resident, deadline: float) -> bool:
        """Tell whether what was staged of an object is resolved; wait until then."""
        assert self._committer is not None
        left_s = max(0.0, deadline - self._clock())
        batch = resident.batch
        return batch is None or self._committer.wait_for(batch, left_s)

    def _write_image(self, resident: Resident, keeper: JournalKeeper) -> None:
        assert self._committer is not None
        try:
            if keeper.instance is None:
                self._performer.bring(resident)
            if keeper.has_entries:
                resident.batch = self._committer.stage(
                    keeper.snapshot(), resident, None, None
                )
        except StateServerError as error:
            # Its journal says the same; only the next start takes longer.
            log.warning("No image of %s was written: %s", resident.name, error)
        except BaseException:
            # The class's own code, which an image is made with, sys.exit() included:
            # the store must be closed in order all the same.
            log.exception("No image of %s was written.", resident.name)

    def gather(self) -> None:
        """Promise to call ``flush`` after each few calls; the latest promise holds."""
        if self._committer is not None:
            self._committer.gather()

    def flush(self, *, may_wait: bool) -> None:
        """Have what was changed committed, here if ``may_wait`` and that is quick."""
        if self._committer is not None:
            self._committer.flush(may_wait=may_wait)

    @property
    def has_staged(self) -> bool:
        """Tell whether a change waits to be committed."""
        return self._committer is not None and self._committer.has_staged

    def abandon(self) -> None:
        """Have a method end the process, where that is a child it has forked itself."""
        self._performer.is_copy = True

    def close(self) -> None:
        """Refuse new calls from here on; those that wait or run are finished."""
        with self._lock:
            self._closing = True

    def status(self) -> dict[str, int]:
        """Return the host's numbers."""
        with self._lock:
            return {
                "objects": len(self._residents),
                "objects_bytes": self._residents.counted_bytes,
                "pending": self._pending,
                "pending_bytes": self._pending_bytes,
                "lanes": len(self._lanes),
                "lanes_bytes": self._lanes.counted_bytes,
                "calls": self._calls,
                "replies_given_again": self._given_again,
            }

    def check(self) -> None:
        """Raise ``AssertionError`` if the tables contradict each other."""
        with self._lock:
            waiting: list[Ticket] = []
            for resident in self._residents:
                assert resident.current is not None or not resident.queue, resident
                waiting += resident.queue
                if resident.current is not None:
                    waiting.append(resident.current)
            held = sum(ticket.call.held_bytes for ticket in waiting)
            found, counted = (len(waiting), held), (self._pending, self._pending_bytes)
            # Calls that have run and wait for their commit are pending as well.
            assert found[0] <= counted[0], (found, counted)
            assert found[1] <= counted[1], (found, counted)
            assert self._committer or found == counted, (found, counted)
            assert self._pending or not self._pending_bytes, counted
            self._lanes.check()
            self._residents.check()

    # Connections ---------------------------------------------------------------------

    def attach(
        self, lane: Lane, destination: Destination, *, is_admin: bool = False
    ) -> Destination | None:
        """Bind ``lane`` to a connection; return the connection that it replaces.

        ``is_admin``: it is the operator's, who is let in at a limit as well. Raises
        ``Unanswered`` for a lane that may have been forgotten, ``Overloaded`` when no
        further lane can be remembered, ``Stale`` when it is another session's.
        """
        return self._lanes.attach(lane, destination, is_admin=is_admin)

    def detach(
        self, lane: Lane | None, destination: Destination, *, finished: bool
    ) -> None:
        """Take note that a connection ended.

        A call that still waits its turn is dropped: nobody is there to be answered, and
        our own client sends it again. ``finished``: the client has said goodbye.
        """
        with self._lock:
            ticket, destination.ticket = destination.ticket, None
            if (
                ticket is not None
                and not ticket.started
                and ticket.destination is destination
            ):
                self._drop(ticket)
            if lane is not None:
                self._lanes.detach(lane, destination, finished=finished)

    def _drop(self, ticket: Ticket) -> None:
        try:
            ticket.resident.queue.remove(ticket)
        except ValueError:
            return
        self._pending -= 1
        self._pending_bytes -= ticket.call.held_bytes
        if ticket.memory is not None:
            ticket.memory.ticket = None

    # Calls ---------------------------------------------------------------------------

    def submit(self, call: Call, destination: Destination) -> Resident | None:
        """Take in a call; return the object whose turn the caller must now run.

        ``None`` means that there is nothing to run: the call waits its turn, has been
        answered already, or was refused.
        """
        try:
            with self._lock:
                payload, resident = self._admit(call, destination)
        except StateServerError as error:
            # A key may be refused because of its length.
            log.info("%.1300s.%s refused: %s", call.name, call.method, error)
            payload, resident = destination.form.refused(call, error), None
        if payload is not None:
            destination.deliver(payload)
        return resident

    def _admit(
        self, call: Call, destination: Destination
    ) -> tuple[Payload | None, Resident | None]:
        """Return a reply that is remembered, or the object whose turn it is now.

        Under the lock, and without a function of its own for each step: every call of
        every object comes through here. What refuses a call is apart.
        """
        memory = None
        if call.lane is not None:
            memory = self._lanes.get(call.lane, destination)
            if call.number <= memory.number or memory.ticket is not None:
                return self._remembered(call, memory, destination), None
            if call.first_boot != self.boot_id:
                self._check_history(call)
        if self._closing:
            raise Stopping("The manager is stopping and takes no more calls.")
        if not call.remaining_s > 0:
            raise Expired(f"The deadline of {call.name}.{call.method} has passed.")
        if self._pending >= self.limits.pending_max:
            raise self._too_many_wait()
        if self._pending_bytes >= self.limits.pending_bytes_max:
            raise self._too_many_bytes_wait()
        resident = self._residents.find(call)
        if len(resident.queue) >= self.limits.queue_max:
            raise self._too_many_wait_for(resident)
        now = self._clock()
        remaining_s = min(call.remaining_s, self.limits.call_timeout_max_s)
        ticket = Ticket(call, destination, now + remaining_s, resident, memory)
        destination.ticket = ticket
        if memory is not None:
            memory.ticket = ticket
        self._pending += 1
        self._pending_bytes += call.held_bytes
        if resident.current is None:
            resident.current = ticket
            resident.busy_since = now
            ticket.started = True
            return None, resident
        resident.queue.append(ticket)
        self._awaited.add(resident)
        return None, None

    def _too_many_wait(self) -> Overloaded:
        self._pending_edge.reached(self._pending)
        return Overloaded(f"{self._pending} calls wait, the limit (pending_max).")

    def _too_many_bytes_wait(self) -> Overloaded:
        self._pending_bytes_edge.reached(self._pending_bytes)
        return Overloaded(
            f"{self._pending_bytes} bytes of calls wait, the limit is "
            f"{self.limits.pending_bytes_max} (pending_bytes_max)."
        )

    def _too_many_wait_for(self, resident: Resident) -> Overloaded:
        waiting = len(resident.queue)
        if not resident.is_full:
            resident.is_full = True
            log.warning("Limit reached: %d calls wait for %s.", waiting, resident.name)
        return Overloaded(
            f"{waiting} calls wait for {resident.name}, the limit (queue_max)."
        )

    def _check_history(self, call: Call) -> None:
        """Refuse a call that another manager may have run, unless the store can tell.

        A boot id begins with the epoch of the store. Within one epoch every changing
        call of a durable object that was answered is remembered on disk.
        """
        shared = self._catalogue.get(call.class_name)
        keeps = self._committer is not None and shared is not None and shared.durable
        if keeps and call.first_boot[:8] == self.boot_id[:8]:
            return
        raise Unanswered(
            f"{call.name}.{call.method} was first sent to a manager that has ended "
            "since; it may have run there."
        )

    def _remembered(
        self, call: Call, memory: LaneMemory, destination: Destination
    ) -> Payload | None:
        """Return the remembered reply; ``None`` when the call still waits or runs."""
        ticket = memory.ticket
        if ticket is not None:
            if call.number != ticket.call.number:
                raise Stale(
                    f"Call {call.number} came while call {ticket.call.number} of the "
                    "same lane was not answered yet."
                )
            ticket.destination = destination
            destination.ticket = ticket
            return None
        if call.number < memory.number:
            raise Stale(
                f"Call {call.number} came after call {memory.number} of the same lane."
            )
        if memory.payload is None:
            raise Unanswered(
                f"{call.name}.{call.method} has run, but its reply was too large to be "
                f"remembered: over {self.limits.remembered_bytes_max} bytes "
                "(remembered_bytes_max), or over the room for all replies "
                "(lanes_bytes_max)."
            )
        self._given_again += 1
        return memory.payload

    # Turns ---------------------------------------------------------------------------

    def run(self, resident: Resident) -> Resident | None:
        """Run the call whose turn it is; return the object if another call waits.

        The reply has been delivered when this returns.
        """
        ticket = resident.current
        assert ticket is not None, resident
        payload, change = self._performer.perform(resident, ticket)
        gate = None
        if change is not None or resident.batch is not None:
            payload, gate = self._gate(resident, ticket, payload, change)
            if gate is not None and gate.waiting_bytes >= self.limits.batch_bytes_max:
                self._await_commit(gate)
        if resident.keeper.kept_bytes != resident.counted_bytes:
            self._make_room(resident)
        return self._finish(resident, ticket, payload, waits=gate is not None)

    def _make_room(self, resident: Resident) -> bool:
        """Count an object anew, in its turn; tell whether there is room for another.

        Those that were used least recently leave memory for it, but not this one.
        """
        while True:
            # The lock is given up after each: there may be many, and small.
            with self._lock:
                if self._residents.count(resident):
                    return True
                if not self._residents.make_room():
                    return False
                departed = self._residents.take_departed()
            departed.clear()

    def _check_room(self, resident: Resident) -> None:
        """Raise ``Overloaded`` when there is no room to bring an object into memory."""
        if not self._make_room(resident):
            raise Overloaded(
                f"{resident.name} has no room in memory: of the objects there "
                f"{self._residents.counted_bytes} bytes are kept, the limit is "
                f"{self.limits.objects_bytes_max} (objects_bytes_max), and none of "
                "them can leave now."
            )

    def _await_commit(self, batch: Batch) -> None:
        """Keep the turn until a commit has ended that many bytes of replies wait for.

        Where a disk stalls, each thread adds one reply more at the most. Like a method
        that blocks, this costs a leader its place, and only its own object waits.
        """
        assert self._committer is not None
        with self._lock:
            self._batch_edge.reached(batch.waiting_bytes)
        self._committer.wait_for(batch)

    def _gate(
        self,
        resident: Resident,
        ticket: Ticket,
        payload: Payload,
        change: Change | None,
    ) -> tuple[Payload, Batch | None]:
        """Have the reply wait until what it shows is on disk.

        Return the payload, and the batch it waits for, or ``None`` if it may go now.
        """
        committer = self._committer
        assert committer is not None
        call, form = ticket.call, ticket.destination.form
        try:
            if change is not None:
                reply = None
                if call.lane is not None:
                    keep = len(payload) <= self._recorded_bytes_max
                    record = payload if keep else None
                    reply = ReplyRecord(call.lane, call.number, record)
                resident.batch = committer.stage(
                    change, resident, reply, (ticket, payload)
                )
                if ticket.memory is not None:
                    ticket.memory.on_disk = True
                return payload, resident.batch
            assert resident.batch is not None
            phase = committer.join(resident.batch, (ticket, payload))
            if phase is Phase.FILLING:
                return payload, resident.batch
            resident.batch = None
            if phase is Phase.FAILED:
                raise StoreError(
                    f"{call.name}.{call.method} saw a state that could not be saved."
                )
        except StoreError as error:
            resident.keeper.drop()
            return form.refused(call, error), None
        return payload, None

    def _finish(
        self, resident: Resident, ticket: Ticket, payload: Payload, *, waits: bool
    ) -> Resident | None:
        """End the turn: settle the call unless it waits, and find the next one."""
        with self._lock:
            self._calls += 1
            if not waits:
                self._pending -= 1
                destination = self._end(ticket, payload)
            # Busy is cleared under the lock that finds the queue empty: a call that
            # arrives in between either sees it busy and is found here, or runs itself.
            following = resident.queue.popleft() if resident.queue else None
            if following is not None:
                following.started = True
                resident.busy_since = self._clock()
            resident.current = following
            if resident.is_evictable:
                self._residents.note_use(resident)
            if resident.is_full and len(resident.queue) <= self.limits.queue_max * 0.9:
                resident.is_full = False
                log.warning("There is room again in the queue of %s.", resident.name)
        if not waits:
            destination.deliver(payload)
        return None if following is None else resident

    def _end(self, ticket: Ticket, payload: Payload) -> Destination:
        """Remember the reply and return whom to give it; the caller holds the lock."""
        self._pending_bytes -= ticket.call.held_bytes
        memory, lanes = ticket.memory, self._lanes
        if memory is not None:
            size = len(payload)
            # Small replies, one after the other, cost nothing to account for.
            keep = size <= lanes.unasked_bytes_max and not memory.counted_bytes
            keep = keep or lanes.has_room(ticket.call.lane, memory, size)
            memory.number = ticket.call.number
            memory.payload = payload if keep else None
            memory.ticket = None
        destination = ticket.destination
        if destination.ticket is ticket:
            destination.ticket = None
        return destination

    def _settle(
        self, waiting: list[tuple[Any, Payload]], error: StateServerError | None
    ) -> None:
        """Let replies go whose batch was committed, or refuse them if it failed."""
        if error is not None:
            waiting = [
                (ticket, ticket.destination.form.refused(ticket.call, error))
                for ticket, _ in waiting
            ]
        with self._lock:
            replies = [
                (self._end(ticket, payload), payload) for ticket, payload in waiting
            ]
        for destination, payload in replies:
            try:
                destination.deliver(payload)
            except Exception:
                # A defect of ours, or no memory: it must not cost the others theirs.
                log.exception("A reply could not be delivered.")
        with self._lock:
            # Only now: a manager that drains waits until the replies have gone.
            self._pending -= len(replies)

    def sweep(self) -> None:
        """Let objects leave memory that nobody has called for a while.

        Calls that wait in vain are answered. Called every now and then, by the leader.
        """
        with self._lock:
            waits_in_vain = self._take_from_queues()
        if waits_in_vain:
            self._settle(
                [
                    (ticket, ticket.destination.form.refused(ticket.call, error))
                    for ticket, error in waits_in_vain
                ],
                None,
            )
        with self._lock:
            self._residents.sweep()
            # Here and not where a call ends: that would cost each of them.
            self._pending_edge.left(self._pending)
            self._pending_bytes_edge.left(self._pending_bytes)
            if self._committer is not None:
                self._batch_edge.left(self._committer.waiting_bytes)
            departed = self._residents.take_departed()
        departed.clear()

    def _take_from_queues(self) -> list[tuple[Ticket, Expired]]:
        """Take out the calls whose turn will not come in time; say of each why not.

        A method that waits for another call of its object, as ``queue.get()`` does,
        would keep them until their deadline, and their callers would not know whether
        they have run. The caller holds the lock.
        """
        now = self._clock()
        found = []
        for resident in list(self._awaited):
            running, queue = resident.current, resident.queue
            if running is None or not queue:
                self._awaited.discard(resident)
                continue
            busy_s = now - resident.busy_since
            if busy_s < _BUSY_FOR_LONG_S:
                continue
            until = now + _BEFORE_DEADLINE_S
            late = [ticket for ticket in queue if ticket.deadline < until]
            for ticket in late:
                ticket.started = True
                error = Expired(
                    f"{resident.name}.{ticket.call.method} was not run before its "
                    f"deadline: {resident.name} has been busy with one call of "
                    f"{running.call.method!r} for {busy_s:.0f} s."
                )
                log.info("%s", error)
                found.append((ticket, error))
            if late:
                rest = [ticket for ticket in queue if not ticket.started]
                queue.clear()
                queue.extend(rest)
        return found

    def prepare(self, shared: SharedClass) -> SharedClass:
        """Build the default object of a factory, to learn what it offers."""
        key = (shared.name, DEFAULT_KEY)
        with self._lock:
            resident = self._residents.add(key, shared)
        self._performer.bring(resident)
        warn_of_waiting(shared.name, type(resident.keeper.instance))
        return dataclasses.replace(shared, contract=resident.contract)

    def describe(self, class_name: str) -> Contract:
        """Return what a shared class offers; raise ``NotShared`` if there is none."""
        shared = self._catalogue.get(class_name)
        if shared is None or shared.contract is None:
            raise self._catalogue.not_shared(class_name)
        return shared.contract


def warn_of_waiting(name: str, cls: type) -> None:
    """Log that a class has methods which may keep its object from all other callers."""
    if waits_for_others(cls):
        log.warning(
            "%s is a %s.%s: a method of it that waits for another call (get, acquire, "
            "wait) keeps that one waiting, also when its caller has gone. Call only "
            "what does not wait (get_nowait), or share a class of your own.",
            name,
            cls.__module__,
            cls.__qualname__,
        )
