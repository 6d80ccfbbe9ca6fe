"""One call: find, permit, order, run, remember. No sockets and no files.

The engine gives calls in with ``submit`` and lends its threads to ``run``. What the
host decides, it decides under its one lock; the object's own code runs outside it.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import logging
import threading
import time
import types
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

from . import codec
from .commits import (
    Batch,
    Change,
    Committer,
    ObjectName,
    Phase,
    ReplyRecord,
    Store,
)
from .errors import (
    Expired,
    NotAllowed,
    NotOffered,
    NotShared,
    Overloaded,
    RemoteError,
    Stale,
    StateServerError,
    Stopping,
    StoreError,
    TooLarge,
    Unanswered,
)
from .journal import JournalKeeper, Unchanged
from .keeping import Keeper, KeepingLimits, MemoryKeeper, StateKeeper
from .limits import Edge
from .messages import DEFAULT_KEY, Call, Contract, Lane, running
from .sharing import Catalogue, SharedClass, contract_of

log = logging.getLogger("state_server.host")

#: Longest key of an object, in characters.
KEY_LENGTH_MAX = 1024


class Form(Protocol):
    """How one kind of caller wants its replies spelled."""

    def done(self, call: Call, value: object) -> bytes:
        """Return the payload that carries ``value``; raise when it cannot travel."""

    def refused(self, call: Call, error: StateServerError) -> bytes:
        """Return the payload that carries what the server itself has to say."""

    def raised(self, call: Call, error: BaseException) -> bytes:
        """Return the payload that carries what the object's own code raised."""


class Destination(Protocol):
    """Where the reply of a call goes: one connection of the engine."""

    ticket: Ticket | None

    @property
    def form(self) -> Form:
        """Return how this caller wants its replies spelled."""

    def deliver(self, payload: bytes) -> None:
        """Send the payload; called at most once for each call, from any thread."""


class HostLimits(NamedTuple):
    """The host's limits; each is a setting of the same name."""

    queue_max: int = 10_000
    pending_max: int = 100_000
    objects_max: int = 1_000_000
    call_timeout_max_s: float = 300.0
    lanes_max: int = 100_000
    lane_retention_s: float = 900.0
    idle_timeout_s: float = 300.0
    remembered_bytes_max: int = 64 * 1024
    frame_bytes_max: int = 64 * 1024 * 1024


class Ticket:
    """One call on its way. Its fields are guarded by the host's lock until it runs."""

    __slots__ = ("call", "deadline", "destination", "memory", "resident", "started")

    def __init__(
        self,
        call: Call,
        destination: Destination,
        deadline: float,
        resident: Resident,
        memory: LaneMemory | None,
    ) -> None:
        self.call = call
        self.destination = destination
        self.deadline = deadline
        self.resident = resident
        self.memory = memory
        self.started = False


class Resident:
    """One object in memory and the calls that wait for it.

    ``current``, ``queue`` and ``used_at`` are guarded by the host's lock. ``keeper``,
    ``contract`` and ``batch`` belong to the thread that runs ``current``; ``batch`` is
    the last one that holds a change of the object. ``poisoned`` is set under the
    committer's lock, when a change could not be saved.
    """

    __slots__ = (
        "batch",
        "contract",
        "current",
        "is_full",
        "keeper",
        "key",
        "name",
        "poisoned",
        "queue",
        "shared",
        "used_at",
    )

    def __init__(self, key: ObjectName, shared: SharedClass, keeper: Keeper) -> None:
        self.key = key
        self.name = "/".join(key)
        self.shared = shared
        self.contract = shared.contract
        self.keeper = keeper
        self.batch: Batch | None = None
        self.poisoned = False
        self.used_at = 0.0
        self.current: Ticket | None = None
        self.is_full = False
        self.queue: deque[Ticket] = deque()

    def __repr__(self) -> str:
        """Say what it is, whether it runs, and how many calls wait."""
        state = "idle" if self.current is None else "busy"
        return f"<{self.name} {state}, {len(self.queue)} waiting>"


class LaneMemory:
    """What is remembered of one lane: its last number and what came of it.

    Guarded by the host's lock. ``on_disk``: the store remembers it as well. ``payload``
    is ``None`` when the reply was too large to keep; ``ticket`` is the call that waits
    or runs. ``ended_at`` is when the lane's connection went away, on the host's clock.
    """

    __slots__ = (
        "destination",
        "ended_at",
        "number",
        "on_disk",
        "payload",
        "session",
        "ticket",
    )

    def __init__(self, session: bytes) -> None:
        self.session = session
        self.destination: Destination | None = None
        self.number = 0
        self.payload: bytes | None = None
        self.ticket: Ticket | None = None
        self.ended_at = 0.0
        self.on_disk = False


class Host:
    """All objects of one manager, the calls that wait for them, and the reply memory.

    ``_lock`` guards every table and every ``Resident`` queue. It is never held while an
    object's code runs, while anything is encoded, or while a reply is delivered.
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
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._residents: dict[ObjectName, Resident] = {}
        #: Those that can come back from disk: by their idle time, then by last use.
        self._evictable: dict[float | None, OrderedDict[ObjectName, Resident]] = {}
        self._keeping = keeping
        self._committer: Committer | None = None
        if store is not None:
            self._committer = Committer(store, self._settle, limits.lane_retention_s)
        self._lanes: dict[bytes, LaneMemory] = {}
        #: Lanes without a connection, oldest first: those that may be forgotten.
        self._ended: dict[bytes, LaneMemory] = {}
        self._closing = False
        self._pending = 0
        self._given_again = 0
        self._calls = 0
        self._objects_edge = Edge(log, "objects in memory", limits.objects_max)
        self._lanes_edge = Edge(log, "remembered connections", limits.lanes_max)
        self._pending_edge = Edge(log, "calls waiting", limits.pending_max)

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

    def stop(self) -> None:
        """Commit what is staged, write images of journalled objects, close the store.

        Called when no thread runs a call any more.
        """
        if self._committer is None:
            return
        for resident in self._residents.values():
            keeper = resident.keeper
            if isinstance(keeper, JournalKeeper) and keeper.has_entries:
                self._write_image(resident, keeper)
        self._committer.stop()

    def _write_image(self, resident: Resident, keeper: JournalKeeper) -> None:
        assert self._committer is not None
        if resident.current is not None:
            return
        try:
            self._committer.stage(keeper.snapshot(), resident, None, None)
        except StoreError as error:
            # Its journal says the same; only the next start takes longer.
            log.warning("No image of %s was written: %s", resident.name, error)

    def close(self) -> None:
        """Refuse new calls from here on; those that wait or run are finished."""
        with self._lock:
            self._closing = True

    def status(self) -> dict[str, int]:
        """Return the host's numbers."""
        with self._lock:
            return {
                "objects": len(self._residents),
                "pending": self._pending,
                "lanes": len(self._lanes),
                "calls": self._calls,
                "replies_given_again": self._given_again,
            }

    def check(self) -> None:
        """Raise ``AssertionError`` if the tables contradict each other."""
        with self._lock:
            waiting = 0
            for resident in self._residents.values():
                waiting += len(resident.queue) + (resident.current is not None)
                assert resident.current is not None or not resident.queue, resident
            # Calls that have run and wait for their commit are pending as well.
            assert waiting <= self._pending, (waiting, self._pending)
            assert self._committer or waiting == self._pending
            for lane_id, memory in self._lanes.items():
                ended = memory.destination is None
                assert ended == (lane_id in self._ended), memory.number
            assert set(self._ended) <= set(self._lanes)

    # Lanes ---------------------------------------------------------------------------

    def attach(self, lane: Lane, destination: Destination) -> Destination | None:
        """Bind ``lane`` to a connection; return the connection that it replaces.

        Raises ``Unanswered`` for a lane that may have been forgotten, ``Overloaded``
        when no further lane can be remembered, ``Denied``-like ``Stale`` when the lane
        belongs to another session.
        """
        with self._lock:
            self._forget_old_lanes()
            memory = self._lanes.get(lane.lane)
        if memory is None:
            memory = self._recall(lane)
        with self._lock:
            # Another connection of the lane may have come while the store was read.
            memory = self._lanes.get(lane.lane, memory)
            if memory.session != lane.session:
                raise Stale("The lane belongs to another session.")
            if lane.lane not in self._lanes:
                if self._lanes_edge.reached(len(self._lanes)):
                    raise Overloaded(
                        f"{len(self._lanes)} connections are remembered, the limit "
                        "(lanes_max)."
                    )
                self._lanes[lane.lane] = memory
            replaced, memory.destination = memory.destination, destination
            self._ended.pop(lane.lane, None)
            return replaced

    def _recall(self, lane: Lane) -> LaneMemory:
        """Return the memory of a lane that this process has not met yet."""
        memory = LaneMemory(lane.session)
        reply = None
        if self._committer is not None:
            try:
                reply = self._committer.reply_of(lane.lane)
            except StoreError as error:
                # Not as it is: the call that is repeated on this lane may have run.
                raise Overloaded(f"{error} Try again.") from error
        if reply is not None:
            memory.session = reply.session
            memory.number, memory.payload = reply.number, reply.payload
            memory.on_disk = True
            return memory
        minted_s = int.from_bytes(lane.lane[:8], "big") / 1000
        if self._wall_clock() - minted_s > self.limits.lane_retention_s:
            raise Unanswered(
                "The call comes from a connection so old that its replies may have "
                f"been forgotten (more than {self.limits.lane_retention_s:g} s)."
            )
        return memory

    def detach(
        self, lane: Lane | None, destination: Destination, *, finished: bool
    ) -> None:
        """Take note that a connection ended.

        A call that still waits its turn is dropped: nobody is there to be answered, and
        our own client sends it again. ``finished``: the client has said goodbye, its
        lane is never asked about again.
        """
        with self._lock:
            ticket, destination.ticket = destination.ticket, None
            if (
                ticket is not None
                and not ticket.started
                and ticket.destination is destination
            ):
                self._drop(ticket)
            memory = None if lane is None else self._lanes.get(lane.lane)
            if lane is None or memory is None or memory.destination is not destination:
                return
            memory.destination = None
            if finished or (memory.number == 0 and memory.ticket is None):
                del self._lanes[lane.lane]
                self._lanes_edge.left(len(self._lanes))
                if memory.on_disk and self._committer is not None:
                    self._committer.forget(lane.lane)
            else:
                memory.ended_at = self._clock()
                self._ended[lane.lane] = memory

    def _drop(self, ticket: Ticket) -> None:
        try:
            ticket.resident.queue.remove(ticket)
        except ValueError:
            return
        self._pending -= 1
        if ticket.memory is not None:
            ticket.memory.ticket = None

    def _forget_old_lanes(self) -> None:
        horizon = self._clock() - self.limits.lane_retention_s
        while self._ended:
            lane_id, memory = next(iter(self._ended.items()))
            if memory.ended_at > horizon or memory.ticket is not None:
                return
            del self._ended[lane_id]
            del self._lanes[lane_id]
        self._lanes_edge.left(len(self._lanes))

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
            log.info("%s.%s refused: %s", call.name, call.method, error)
            payload, resident = destination.form.refused(call, error), None
        if payload is not None:
            destination.deliver(payload)
        return resident

    def _admit(
        self, call: Call, destination: Destination
    ) -> tuple[bytes | None, Resident | None]:
        memory = None
        if call.lane is not None:
            memory = self._lanes.get(call.lane.lane)
            if memory is None or memory.destination is not destination:
                raise Stale("A newer connection has taken over this lane.")
            if call.number <= memory.number or memory.ticket is not None:
                return self._remembered(call, memory, destination), None
            self._check_history(call)
        if self._closing:
            raise Stopping("The manager is stopping and takes no more calls.")
        if not call.remaining_s > 0:
            raise Expired(f"The deadline of {call.name}.{call.method} has passed.")
        if self._pending_edge.reached(self._pending):
            raise Overloaded(f"{self._pending} calls wait, the limit (pending_max).")
        resident = self._resident(call)
        if len(resident.queue) >= self.limits.queue_max:
            if not resident.is_full:
                resident.is_full = True
                log.warning(
                    "Limit reached: %d calls wait for %s.",
                    len(resident.queue),
                    call.name,
                )
            raise Overloaded(
                f"{len(resident.queue)} calls wait for {call.name}, the limit "
                "(queue_max)."
            )
        remaining_s = min(call.remaining_s, self.limits.call_timeout_max_s)
        ticket = Ticket(
            call, destination, self._clock() + remaining_s, resident, memory
        )
        destination.ticket = ticket
        if memory is not None:
            memory.ticket = ticket
        self._pending += 1
        if resident.current is None:
            resident.current = ticket
            ticket.started = True
            return None, resident
        resident.queue.append(ticket)
        return None, None

    def _check_history(self, call: Call) -> None:
        """Refuse a call that another manager may have run, unless the store can tell.

        A boot id begins with the epoch of the store. Within one epoch every changing
        call of a durable object that was answered is remembered on disk.
        """
        if call.first_boot == self.boot_id:
            return
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
    ) -> bytes | None:
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
                f"remembered (over {self.limits.remembered_bytes_max} bytes)."
            )
        self._given_again += 1
        return memory.payload

    def _resident(self, call: Call) -> Resident:
        key = (call.class_name, call.key)
        resident = self._residents.get(key)
        if resident is not None:
            return resident
        shared = self._catalogue.get(call.class_name)
        if shared is not None and shared.name != call.class_name:
            # A name that the class had before: the same objects.
            return self._resident(call._replace(class_name=shared.name))
        if shared is None:
            raise NotShared(
                f"No class is shared as {call.class_name!r}; there are: "
                f"{', '.join(self._catalogue.names()) or 'none'}."
            )
        if not call.key or len(call.key) > KEY_LENGTH_MAX:
            raise TooLarge(
                f"A key has 1 to {KEY_LENGTH_MAX} characters, this one {len(call.key)}."
            )
        self._check_offered(shared.contract, call)
        if self._objects_edge.reached(len(self._residents)) and not self._make_room():
            raise Overloaded(
                f"{len(self._residents)} objects are in memory, the limit "
                "(objects_max)."
            )
        resident = Resident(key, shared, self._keeper(key, shared))
        self._residents[key] = resident
        if shared.durable and self._committer is not None:
            alike = self._evictable.setdefault(shared.idle_timeout_s, OrderedDict())
            alike[key] = resident
        return resident

    def _keeper(self, name: ObjectName, shared: SharedClass) -> Keeper:
        if shared.durable == "journal" and self._committer is not None:
            limit = self._keeping.journal_bytes_max
            return JournalKeeper(name, shared, self._committer, limit)
        if shared.durable or shared.rollback:
            committer = self._committer if shared.durable else None
            return StateKeeper(name, shared, committer, self._keeping)
        return MemoryKeeper(shared)

    # Idle objects --------------------------------------------------------------------

    def sweep(self) -> None:
        """Let objects leave memory that nobody has called for a while."""
        if not self._evictable:
            return
        with self._lock:
            now = self._clock()
            for timeout_s, alike in self._evictable.items():
                horizon = now - (timeout_s or self.limits.idle_timeout_s)
                for resident in list(itertools.islice(alike.values(), 1000)):
                    if resident.used_at > horizon:
                        break
                    self._evict(resident)

    def _make_room(self) -> bool:
        """Drop the object that was used least recently; tell whether there is one."""
        by_use = [alike.values() for alike in self._evictable.values()]
        oldest = heapq.merge(*by_use, key=lambda resident: resident.used_at)
        # Busy ones are passed over; a bound, because the lock is held.
        return any(self._evict(resident) for resident in itertools.islice(oldest, 1000))

    def _evict(self, resident: Resident) -> bool:
        """Drop an object if it can come back as it is; tell whether it could."""
        batch = resident.batch
        if resident.current is not None or not resident.used_at:
            return False
        if batch is not None and batch.phase is Phase.FILLING:
            return False
        del self._evictable[resident.shared.idle_timeout_s][resident.key]
        del self._residents[resident.key]
        self._objects_edge.left(len(self._residents))
        return True

    @staticmethod
    def _check_offered(contract: Contract | None, call: Call) -> None:
        """Refuse a method that no object of the class has, before one is built."""
        if contract is None or call.method in contract.methods:
            return
        if call.method not in _ALWAYS_ANSWERED and call.method not in _PROPERTY_VERBS:
            raise NotOffered(f"{call.class_name} offers no method {call.method!r}.")

    # Turns ---------------------------------------------------------------------------

    def run(self, resident: Resident) -> Resident | None:
        """Run the call whose turn it is; return the object if another call waits.

        The reply has been delivered when this returns.
        """
        ticket = resident.current
        assert ticket is not None, resident
        try:
            payload, change = self._perform(resident, ticket)
        except BaseException as error:
            payload, change = self._broken(resident, ticket, error), None
        gate = None
        if change is not None or resident.batch is not None:
            payload, gate = self._gate(resident, ticket, payload, change)
        return self._finish(resident, ticket, payload, waits=gate is not None)

    def _perform(
        self, resident: Resident, ticket: Ticket
    ) -> tuple[bytes, Change | None]:
        """Run the call; return its reply, and what is to be on disk before that."""
        call, form, keeper = ticket.call, ticket.destination.form, resident.keeper
        running.boot_id, running.name = self.boot_id, resident.name
        ran = False
        try:
            if self._clock() > ticket.deadline:
                raise Expired(
                    f"The deadline of {call.name}.{call.method} passed while it waited."
                )
            arguments, keywords = arguments_of(call)
            if resident.poisoned:
                resident.poisoned = False
                resident.batch = None
                keeper.drop()
            if keeper.instance is None:
                self._bring(resident)
            step = self._step(resident, call, arguments)
            keeper.begin()
            ran = True
            value = step(*arguments, **keywords)
            if isinstance(value, types.GeneratorType):
                value = _snapshot(value)
        except BaseException as error:
            # The border to the object's own code: whatever it raises, sys.exit()
            # included, is an answer to its caller and ends nothing here.
            payload = self._failed(resident, ticket, error, ran=ran)
            return payload, _first_image(keeper, ran=ran)
        finally:
            running.boot_id = None
        try:
            payload = form.done(call, value)
            if len(payload) > self.limits.frame_bytes_max:
                raise TooLarge(
                    f"it has {len(payload)} bytes, the limit is "
                    f"{self.limits.frame_bytes_max} (frame_bytes_max)."
                )
            return payload, keeper.kept(call, readonly=_is_readonly(resident, call))
        except StateServerError as error:
            log.warning("%s.%s was not done: %s", call.name, call.method, error)
            self._undo(resident, call)
            if not keeper.undoes:
                error = RemoteError(
                    f"{call.name}.{call.method} ran, but its result cannot travel: "
                    f"{error}"
                )
            return form.refused(call, error), None

    def _failed(
        self, resident: Resident, ticket: Ticket, error: BaseException, *, ran: bool
    ) -> bytes:
        call, form = ticket.call, ticket.destination.form
        if isinstance(error, StateServerError) and not ran:
            log.info("%s.%s refused: %s", call.name, call.method, error)
            return form.refused(call, error)
        if isinstance(error, Unchanged):
            error = error.error
        elif ran:
            self._undo(resident, call)
        log.info(
            "%s.%s raised %s: %s",
            call.name,
            call.method,
            type(error).__qualname__,
            _shown(error),
            exc_info=error if log.isEnabledFor(logging.DEBUG) else None,
        )
        return form.raised(call, error)

    def _broken(
        self, resident: Resident, ticket: Ticket, error: BaseException
    ) -> bytes:
        """Answer a call whose object raised where no code of its own was expected.

        Pickling is such a place, and so is the text of an error.
        """
        call = ticket.call
        log.exception("%s.%s ended outside its method.", call.name, call.method)
        if resident.keeper.undoes:
            resident.keeper.drop()
        return ticket.destination.form.refused(
            call,
            RemoteError(
                f"{call.name}.{call.method} ended in {type(error).__qualname__}, "
                "raised outside the method itself; it may have run."
            ),
        )

    def _undo(self, resident: Resident, call: Call) -> None:
        try:
            resident.keeper.undo(readonly=_is_readonly(resident, call))
        except Exception:
            # The class's own code again. The object leaves memory; what is on disk is
            # what it was before the call.
            log.exception("%s could not be put back; it is loaded anew.", resident.name)
            resident.keeper.drop()

    def _bring(self, resident: Resident) -> None:
        """Build or load the object, in its own turn: slowness delays only itself."""
        if resident.batch is not None and self._committer is not None:
            # What was staged last must be on disk before the disk is asked.
            self._committer.wait_for(resident.batch)
        resident.keeper.bring()
        if resident.contract is None:
            resident.contract = contract_of(
                type(resident.keeper.instance),
                resident.shared.name,
                resident.shared.exposed,
            )

    def _gate(
        self,
        resident: Resident,
        ticket: Ticket,
        payload: bytes,
        change: Change | None,
    ) -> tuple[bytes, Batch | None]:
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
                    keep = len(payload) <= self.limits.remembered_bytes_max
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

    def _step(
        self, resident: Resident, call: Call, arguments: tuple[Any, ...]
    ) -> Callable[..., Any]:
        contract = resident.contract
        assert contract is not None, resident
        method, instance = call.method, resident.keeper.instance
        if method in contract.methods:
            if method == "__iter__":
                return lambda: _snapshot(iter(instance))
            return getattr(instance, method)  # type: ignore[no-any-return]
        if method in _ALWAYS_ANSWERED:
            return lambda: _ALWAYS_ANSWERED[method](instance)
        if method in _PROPERTY_VERBS and arguments:
            offered = contract.properties if method == _READ else contract.settable
            if arguments[0] in offered:
                verb = _PROPERTY_VERBS[method]
                return lambda *rest: verb(instance, *rest)
            raise NotOffered(f"{contract.class_name} offers no {arguments[0]!r}.")
        raise NotOffered(f"{contract.class_name} offers no method {method!r}.")

    def _finish(
        self, resident: Resident, ticket: Ticket, payload: bytes, *, waits: bool
    ) -> Resident | None:
        """End the turn: settle the call unless it waits, and find the next one."""
        with self._lock:
            self._calls += 1
            if not waits:
                destination = self._end(ticket, payload)
            # Busy is cleared under the lock that finds the queue empty: a call that
            # arrives in between either sees it busy and is found here, or runs itself.
            following = resident.queue.popleft() if resident.queue else None
            if following is not None:
                following.started = True
            resident.current = following
            if resident.shared.durable and self._committer is not None:
                self._note_use(resident)
            if resident.is_full and len(resident.queue) <= self.limits.queue_max * 0.9:
                resident.is_full = False
                log.warning("There is room again in the queue of %s.", resident.name)
        if not waits:
            destination.deliver(payload)
        return None if following is None else resident

    def _note_use(self, resident: Resident) -> None:
        resident.used_at = self._clock()
        alike = self._evictable.get(resident.shared.idle_timeout_s)
        if alike is not None and resident.key in alike:
            alike.move_to_end(resident.key)

    def _end(self, ticket: Ticket, payload: bytes) -> Destination:
        """Remember the reply and return whom to give it; the caller holds the lock."""
        self._pending -= 1
        memory = ticket.memory
        if memory is not None:
            keep = len(payload) <= self.limits.remembered_bytes_max
            memory.number = ticket.call.number
            memory.payload = payload if keep else None
            memory.ticket = None
        destination = ticket.destination
        if destination.ticket is ticket:
            destination.ticket = None
        return destination

    def _settle(
        self, waiting: list[tuple[Any, bytes]], error: StateServerError | None
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
            destination.deliver(payload)

    def prepare(self, shared: SharedClass) -> SharedClass:
        """Build the default object of a factory, to learn what it offers."""
        key = (shared.name, DEFAULT_KEY)
        resident = Resident(key, shared, self._keeper(key, shared))
        self._bring(resident)
        with self._lock:
            self._residents[key] = resident
        return dataclasses.replace(shared, contract=resident.contract)

    def describe(self, class_name: str) -> Contract:
        """Return what a shared class offers; raise ``NotShared`` if there is none."""
        shared = self._catalogue.get(class_name)
        if shared is None or shared.contract is None:
            raise NotShared(
                f"No class is shared as {class_name!r}; there are: "
                f"{', '.join(self._catalogue.names()) or 'none'}."
            )
        return shared.contract


#: The verbs that read and set a property, as the standard library's NamespaceProxy
#: spells them.
_READ = "__getattribute__"
_PROPERTY_VERBS: dict[str, Callable[..., Any]] = {
    _READ: getattr,
    "__setattr__": setattr,
}

_ALWAYS_ANSWERED: dict[str, Callable[[Any], str]] = {"__repr__": repr, "__str__": str}


def arguments_of(call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call; raise ``NotAllowed`` when they are not such."""
    if not call.body:
        return (), {}
    decoded = call.body if isinstance(call.body, tuple) else codec.decode(call.body)
    if (
        isinstance(decoded, tuple)
        and len(decoded) == 2
        and isinstance(decoded[0], tuple)
        and isinstance(decoded[1], dict)
        and all(isinstance(name, str) for name in decoded[1])
    ):
        return cast("tuple[tuple[Any, ...], dict[str, Any]]", decoded)
    raise NotAllowed("The arguments of a call are a tuple and a dictionary of names.")


def _first_image(keeper: Keeper, *, ran: bool) -> Change | None:
    """Return what puts a new object on disk: an error may show how it is built."""
    return keeper.first() if ran and isinstance(keeper, StateKeeper) else None


def _is_readonly(resident: Resident, call: Call) -> bool:
    return call.method in resident.shared.readonly


def _snapshot(iterator: Any) -> list[Any]:
    """Return the items as a list; an endless iterator ends in ``TooLarge``."""
    limit = codec.DEFAULT_LIMITS.nodes_max
    items = list(itertools.islice(iterator, limit + 1))
    if len(items) > limit:
        raise TooLarge(f"An iteration gave more than {limit} items.")
    return items


def _shown(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except BaseException as failure:
        # Logged in its place: an error that cannot be printed must not end the turn.
        return f"<text failed: {type(failure).__name__}>"
