"""What is remembered of each lane: its last call and the reply, so it runs once.

A lane is forgotten when its client has said goodbye, or a while after its connection
ended. What may have been forgotten is answered ``Unanswered``, and never run again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from .commits import Committer
from .errors import Overloaded, Refused, Stale, StoreError, Unanswered
from .limits import Edge
from .messages import Lane
from .tickets import Destination, HostLimits, LaneMemory

log = logging.getLogger("state_server.host")


#: How far the clocks of a client and the manager may be apart. A lane that was
#: forgotten is refused by its age, so the age must not be off by more than this.
CLOCK_SKEW_MAX_S = 60.0


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

    def check(self) -> None:
        """Raise ``AssertionError`` if the tables contradict each other."""
        for lane_id, memory in self._lanes.items():
            ended = memory.destination is None
            assert ended == (lane_id in self._ended), memory.number
        assert set(self._ended) <= set(self._lanes)

    def attach(self, lane: Lane, destination: Destination) -> Destination | None:
        """Bind ``lane`` to a connection; return the connection that it replaces.

        Raises ``Unanswered`` for a lane that may have been forgotten, ``Overloaded``
        when no further lane can be remembered, ``Stale`` when the lane
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
                if self._edge.reached(len(self._lanes)):
                    raise Overloaded(
                        f"{len(self._lanes)} connections are remembered, the limit "
                        "(lanes_max)."
                    )
                self._lanes[lane.lane] = memory
            replaced, memory.destination = memory.destination, destination
            self._ended.pop(lane.lane, None)
            return replaced

    def detach(self, lane: Lane, destination: Destination, *, finished: bool) -> None:
        """Take note that the connection of a lane ended; called under the lock.

        ``finished``: the client has said goodbye, its lane is never asked about again.
        """
        memory = self._lanes.get(lane.lane)
        if memory is None or memory.destination is not destination:
            return
        memory.destination = None
        if finished or (memory.number == 0 and memory.ticket is None):
            del self._lanes[lane.lane]
            self._edge.left(len(self._lanes))
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
            del self._lanes[lane_id]
        self._edge.left(len(self._lanes))
