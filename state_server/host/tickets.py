"""The host's records: a call on its way, the object it is for, what a lane remembers.

They hold state and no rules; whose lock guards which field stands at each class.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from ..errors import StateServerError
from ..keeping import Keeper
from ..keeping.commits import Batch, ObjectName
from ..messages import Call, Payload
from ..sharing import SharedClass


class Form(Protocol):
    """How one kind of caller wants its replies spelled."""

    def done(self, call: Call, value: object) -> Payload:
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

    def deliver(self, payload: Payload) -> None:
        """Send the payload; called at most once for each call, from any thread."""


class HostLimits(NamedTuple):
    """The host's limits; each is a setting of the same name."""

    queue_max: int = 10_000
    pending_max: int = 100_000
    pending_bytes_max: int = 1024 * 1024 * 1024
    batch_bytes_max: int = 256 * 1024 * 1024
    objects_max: int = 1_000_000
    objects_bytes_max: int = 1024 * 1024 * 1024
    call_timeout_max_s: float = 300.0
    lanes_max: int = 100_000
    lanes_bytes_max: int = 1024 * 1024 * 1024
    lane_retention_s: float = 900.0
    idle_timeout_s: float = 300.0
    remembered_bytes_max: int = 64 * 1024
    frame_bytes_max: int = 64 * 1024 * 1024


class Ticket:
    """One call on its way.

    ``started`` and ``destination`` are guarded by the host's lock; a repeat on a newer
    connection changes the destination even while the call runs. The rest never changes.
    """

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

    ``object_name`` is the pair of class and key, ``name`` the same as one text.
    ``current``, ``busy_since`` (when its turn began), ``queue``, ``is_full``,
    ``is_evictable`` (whether it can come back from disk), ``used_at`` and
    ``counted_bytes`` (what it counts among the kept bytes of all objects) are guarded
    by the host's lock.
    ``keeper``, ``contract`` and ``batch`` belong to the thread that runs ``current``;
    ``batch`` is the last one that holds a change of the object. ``poisoned`` is set
    under the committer's lock, when a change could not be saved.
    """

    __slots__ = (
        "batch",
        "busy_since",
        "contract",
        "counted_bytes",
        "current",
        "is_evictable",
        "is_full",
        "keeper",
        "name",
        "object_name",
        "poisoned",
        "queue",
        "shared",
        "used_at",
    )

    def __init__(
        self, object_name: ObjectName, shared: SharedClass, keeper: Keeper
    ) -> None:
        self.object_name = object_name
        self.name = "/".join(object_name)
        self.shared = shared
        self.contract = shared.contract
        self.keeper = keeper
        self.batch: Batch | None = None
        self.poisoned = False
        self.used_at = 0.0
        self.counted_bytes = 0
        self.current: Ticket | None = None
        self.busy_since = 0.0
        self.is_evictable = False
        self.is_full = False
        self.queue: deque[Ticket] = deque()

    def __repr__(self) -> str:
        """Say what it is, whether it runs, and how many calls wait."""
        state = "idle" if self.current is None else "busy"
        return f"<{self.name} {state}, {len(self.queue)} waiting>"


class LaneMemory:
    """What is remembered of one lane: its last number and what came of it.

    Guarded by the host's lock. ``on_disk``: the store remembers it as well. ``payload``
    is ``None`` when there was no room for the reply, and ``counted_bytes`` what it
    counts among the replies of all lanes; ``ticket`` is the call that waits or runs.
    ``ended_at`` is when the lane's connection went away, on the host's clock.
    """

    __slots__ = (
        "counted_bytes",
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
        self.payload: Payload | None = None
        self.counted_bytes = 0
        self.ticket: Ticket | None = None
        self.ended_at = 0.0
        self.on_disk = False
