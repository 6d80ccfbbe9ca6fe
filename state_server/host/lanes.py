"""What is remembered of each lane: its last call and the reply, so it runs once.

A lane is forgotten when its client has said goodbye, or a while after its connection
ended. What may have been forgotten is answered ``Unanswered``, and never run again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ..errors import Overloaded, Refused, Stale, StoreError, Unanswered
from ..keeping.commits import Committer
from ..limits import Edge
from ..messages import Lane
from .tickets import Destination, HostLimits, LaneMemory

log = logging.getLogger("state_server.host")


#: How far the clocks of a client and the manager may be apart. A lane that was
#: forgotten is refused by its age, so the age must not be off by more than this.
CLOCK_SKEW_MAX_S = 60.0

#: A reply up to this size takes no more than what is kept of a lane besides it. It is
#: always remembered, and not counted: the number of lanes bounds them.
UNCOUNTED_BYTES_MAX = 512


class Lanes:
    """All lanes that are remembered. ``_lock`` is the host's, and guards the tables."""

    def __init__(
        self,
        lock: threading.Lock,
        limits: HostLimits,
        committer: Committer | None,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._lock = lock
        self._limits = limits
        self._committer = committer
        self._clock = clock
        self._wall_clock = wall_clock
        self._lanes: dict[bytes, LaneMemory] = {}
        #: Lanes without a connection, oldest first: those that may be forgotten.
        self._ended: dict[bytes, LaneMemory] = {}
        self._edge = Edge(log, "remembered connections", limits.lanes_max)
        self._bytes = 0
        self._bytes_edge = Edge(
            log, "bytes of remembered replies", limits.lanes_bytes_max
        )
        #: Largest reply that is remembered without asking for room.
        self.unasked_bytes_max = min(UNCOUNTED_BYTES_MAX, limits.remembered_bytes_max)

    def __len__(self) -> int:
        """Return how many lanes are remembered."""
        return len(self._lanes)

    def get(self, lane: Lane, destination: Destination) -> LaneMemory:
        """Return the memory of a lane, for a call that came on ``destination``.

        Called under the lock. Raises ``Stale`` when the lane has another connection.
        """
        memory = self._lanes.get(lane.lane)
        if memory is None or memory.destination is not destination:
            raise Stale("A newer connection has taken over this lane.")
        return memory

    @property
    def counted_bytes(self) -> int:
        """Return how much the remembered replies take, but for the small ones."""
        return self._bytes

    def has_room(self, lane: Lane | None, memory: LaneMemory, size: int) -> bool:
        """Tell whether a lane's next reply can be remembered; count it if so.

        Called under the lock. What is remembered already never makes room: at the limit
        the replies of other lanes stay, and this one's repeat is ``Unanswered``.
        """
        self._bytes -= memory.counted_bytes
        memory.counted_bytes = 0
        if size <= self.unasked_bytes_max:
            return True
        if lane is None or self._lanes.get(lane.lane) is not memory:
            # The client said goodbye before its call had ended.
            return False
        if size > self._limits.remembered_bytes_max:
            return False
        if self._bytes_edge.reached(self._bytes):
            return False
        memory.counted_bytes = size
        self._bytes += size
        return True

    def check(self) -> None:
        """Raise ``AssertionError`` if the tables contradict each other."""
        for lane_id, memory in self._lanes.items():
            ended = memory.destination is None
            assert ended == (lane_id in self._ended), memory.number
            kept_bytes = 0 if memory.payload is None else len(memory.payload)
            is_counted = kept_bytes > self.unasked_bytes_max
            assert memory.counted_bytes == kept_bytes * is_counted, memory.number
        assert set(self._ended) <= set(self._lanes)
        counted = sum(memory.counted_bytes for memory in self._lanes.values())
        assert counted == self._bytes, (counted, self._bytes)

    def attach(
        self, lane: Lane, destination: Destination, *, is_admin: bool = False
    ) -> Destination | None:
        """Bind ``lane`` to a connection; return the connection that it replaces.

        ``is_admin``: it is the operator's, who is let in at a limit as well, to look at
        it. Raises ``Unanswered`` for a lane that may have been forgotten,
        ``Overloaded`` when no further lane can be remembered, ``Stale`` when the lane
        belongs to another session.
        """
        with self._lock:
            self._forget_old()
            memory = self._lanes.get(lane.lane)
        if memory is None:
            memory = self._recall(lane)
        with self._lock:
            # Another connection of the lane may have come while the store was read.
            memory = self._lanes.get(lane.lane, memory)
            if memory.session != lane.session:
                raise Stale("The lane belongs to another session.")
            if lane.lane not in self._lanes:
                if not is_admin:
                    self._check_room()
                self._lanes[lane.lane] = memory
                self._bytes += memory.counted_bytes
            replaced, memory.destination = memory.destination, destination
            self._ended.pop(lane.lane, None)
            return replaced

    def _check_room(self) -> None:
        """Raise ``Overloaded`` when no further lane can be remembered."""
        if self._edge.reached(len(self._lanes)):
            raise Overloaded(
                f"{len(self._lanes)} connections are remembered, the limit (lanes_max)."
            )
        if self._bytes_edge.reached(self._bytes):
            raise Overloaded(
                f"{self._bytes} bytes of replies are remembered, the limit is "
                f"{self._limits.lanes_bytes_max} (lanes_bytes_max)."
            )

    def detach(self, lane: Lane, destination: Destination, *, finished: bool) -> None:
        """Take note that the connection of a lane ended; called under the lock.

        ``finished``: the client has said goodbye, its lane is never asked about again.
        """
        memory = self._lanes.get(lane.lane)
        if memory is None or memory.destination is not destination:
            return
        memory.destination = None
        if finished or (memory.number == 0 and memory.ticket is None):
            self._forget(lane.lane, memory)
            if memory.on_disk and self._committer is not None:
                self._committer.forget(lane.lane)
        else:
            memory.ended_at = self._clock()
            self._ended[lane.lane] = memory

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
            kept_bytes = 0 if reply.payload is None else len(reply.payload)
            if kept_bytes > self.unasked_bytes_max:
                memory.counted_bytes = kept_bytes
            return memory
        age_s = self._wall_clock() - int.from_bytes(lane.lane[:8], "big") / 1000
        if age_s < -CLOCK_SKEW_MAX_S:
            raise Refused(
                f"The client's clock is {-age_s:.0f} s ahead of the manager's; a "
                "repeat could not be told from a new call. Set the clocks."
            )
        if age_s > self._limits.lane_retention_s - CLOCK_SKEW_MAX_S:
            raise Unanswered(
                "The call comes from a connection so old that its replies may have "
                f"been forgotten ({age_s:.0f} s; the limit is {CLOCK_SKEW_MAX_S:g} s "
                f"below lane_retention_s, {self._limits.lane_retention_s:g} s)."
            )
        return memory

    def _forget_old(self) -> None:
        horizon = self._clock() - self._limits.lane_retention_s
        while self._ended:
            lane_id, memory = next(iter(self._ended.items()))
            if memory.ended_at > horizon:
                break
            del self._ended[lane_id]
            if memory.ticket is not None:
                # Its call still runs; it has another turn of being remembered.
                memory.ended_at = self._clock()
                self._ended[lane_id] = memory
                continue
            self._forget(lane_id, memory)

    def _forget(self, lane_id: bytes, memory: LaneMemory) -> None:
        del self._lanes[lane_id]
        self._bytes -= memory.counted_bytes
        memory.counted_bytes = 0
        self._edge.left(len(self._lanes))
        self._bytes_edge.left(self._bytes)
