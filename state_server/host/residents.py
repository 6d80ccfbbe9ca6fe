"""The objects in memory: found, built on first use, dropped when nobody calls them."""

from __future__ import annotations

import heapq
import itertools
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator

from ..errors import Overloaded, TooLarge
from ..keeping import Keeper, KeepingLimits, MemoryKeeper, StateKeeper
from ..keeping.commits import Committer, ObjectName, Phase
from ..keeping.journal import JournalKeeper
from ..limits import Edge
from ..messages import KEY_LENGTH_MAX, Call
from ..sharing import Catalogue, SharedClass
from .tickets import HostLimits, Resident
from .turns import check_offered

log = logging.getLogger("state_server.host")


class Residents:
    """All objects in memory. Every method is called under the host's lock."""

    def __init__(
        self,
        catalogue: Catalogue,
        limits: HostLimits,
        keeping: KeepingLimits,
        committer: Committer | None,
        clock: Callable[[], float],
    ) -> None:
        self._catalogue = catalogue
        self._limits = limits
        self._keeping = keeping
        self._committer = committer
        self._clock = clock
        self._residents: dict[ObjectName, Resident] = {}
        #: Those that can come back from disk: by their idle time, then by last use.
        self._evictable: dict[float | None, OrderedDict[ObjectName, Resident]] = {}
        #: Those that have left, see ``take_departed``.
        self._departed: list[Resident] = []
        self._edge = Edge(log, "objects in memory", limits.objects_max)
        #: How many there are, and the limits of single classes, by name of the class.
        self._of_class: Counter[str] = Counter()
        self._class_edges: dict[str, Edge] = {}
        #: What is kept of all of them, in bytes.
        self.counted_bytes = 0
        self._bytes_edge = Edge(
            log, "bytes of objects in memory", limits.objects_bytes_max
        )

    def __len__(self) -> int:
        """Return how many objects are in memory."""
        return len(self._residents)

    def __iter__(self) -> Iterator[Resident]:
        """Return the objects in memory."""
        return iter(self._residents.values())

    def find(self, call: Call) -> Resident:
        """Return the object that a call is for; it is built in its first turn.

        Raises ``NotShared``, ``NotOffered``, ``TooLarge`` for its key, ``Overloaded``.
        """
        name = (call.class_name, call.key)
        resident = self._residents.get(name)
        if resident is not None:
            return resident
        shared = self._catalogue.get(call.class_name)
        if shared is not None and shared.name != call.class_name:
            # A name that the class had before: the same objects.
            return self.find(call._replace(class_name=shared.name))
        if shared is None:
            raise self._catalogue.not_shared(call.class_name)
        if not call.key or len(call.key) > KEY_LENGTH_MAX:
            raise TooLarge(
                f"A key has 1 to {KEY_LENGTH_MAX} characters, this one {len(call.key)}."
            )
        check_offered(shared.contract, call)
        self._check_class(shared)
        if self._edge.reached(len(self._residents)) and not self.make_room():
            raise Overloaded(
                f"{len(self._residents)} objects are in memory, the limit "
                "(objects_max)."
            )
        resident = self.add(name, shared)
        if shared.durable and self._committer is not None:
            alike = self._evictable.setdefault(shared.idle_timeout_s, OrderedDict())
            alike[name] = resident
            resident.is_evictable = True
        return resident

    def get(self, name: ObjectName) -> Resident | None:
        """Return an object if it is in memory."""
        return self._residents.get(name)

    def _check_class(self, shared: SharedClass) -> None:
        """Raise ``Overloaded`` when the class may have no further object in memory."""
        limit = shared.objects_limit
        if limit is None:
            return
        edge = self._class_edges.get(shared.name)
        if edge is None:
            what = f"objects of {shared.name} ({limit.setting})"
            edge = Edge(log, what, limit.objects_max)
            self._class_edges[shared.name] = edge
        if edge.reached(self._of_class[shared.name]):
            raise Overloaded(
                f"{self._of_class[shared.name]} objects of {shared.name} are in "
                f"memory, the limit ({limit.setting}). Call one of them, or raise the "
                "limit."
            )

    def add(self, name: ObjectName, shared: SharedClass) -> Resident:
        """Return a new object, not built yet."""
        resident = Resident(name, shared, self._keeper(name, shared))
        self._residents[name] = resident
        self._of_class[shared.name] += 1
        return resident

    def _keeper(self, name: ObjectName, shared: SharedClass) -> Keeper:
        if shared.durable == "journal" and self._committer is not None:
            limit = self._keeping.journal_bytes_max
            return JournalKeeper(name, shared, self._committer, limit)
        if shared.durable == "journal" and not shared.rollback:
            # Likely too large to be pickled for each call, which an undo would need.
            return MemoryKeeper(shared)
        if shared.durable or shared.rollback:
            committer = self._committer if shared.durable else None
            return StateKeeper(name, shared, committer, self._keeping)
        return MemoryKeeper(shared)

    def note_use(self, resident: Resident) -> None:
        """Take note that an object that can come back from disk was called now."""
        resident.used_at = self._clock()
        self._evictable[resident.shared.idle_timeout_s].move_to_end(
            resident.object_name
        )

    def count(self, resident: Resident) -> bool:
        """Count an object's kept bytes anew; tell whether there is room for another's.

        Called in the object's turn.
        """
        kept_bytes = resident.keeper.kept_bytes
        self.counted_bytes += kept_bytes - resident.counted_bytes
        resident.counted_bytes = kept_bytes
        return not self._bytes_edge.reached(self.counted_bytes)

    def check(self) -> None:
        """Raise ``AssertionError`` if the sums are not those of what is counted."""
        assert Counter(resident.shared.name for resident in self) == self._of_class
        counted = sum(resident.counted_bytes for resident in self)
        assert counted == self.counted_bytes, (counted, self.counted_bytes)

    def sweep(self) -> None:
        """Let objects leave memory that nobody has called for a while."""
        now = self._clock()
        for timeout_s, alike in self._evictable.items():
            horizon = now - (timeout_s or self._limits.idle_timeout_s)
            for resident in list(itertools.islice(alike.values(), 1000)):
                if resident.used_at > horizon:
                    break
                self._evict(resident)
        self._bytes_edge.left(self.counted_bytes)

    def make_room(self) -> bool:
        """Drop the object that was used least recently; tell whether there is one."""
        by_use = [alike.values() for alike in self._evictable.values()]
        oldest = heapq.merge(*by_use, key=lambda resident: resident.used_at)
        # Busy ones are passed over; a bound, because the lock is held.
        return any(self._evict(resident) for resident in itertools.islice(oldest, 1000))

    def take_departed(self) -> list[Resident]:
        """Return those that have left memory since; let go of them without the lock.

        That may run their code (``__del__``), and takes time if they are large.
        """
        departed, self._departed = self._departed, []
        return departed

    def _evict(self, resident: Resident) -> bool:
        """Drop an object if it can come back as it is; tell whether it could."""
        batch = resident.batch
        if resident.current is not None or not resident.used_at:
            return False
        if batch is not None and batch.phase is Phase.FILLING:
            return False
        del self._evictable[resident.shared.idle_timeout_s][resident.object_name]
        del self._residents[resident.object_name]
        self._of_class[resident.shared.name] -= 1
        resident.is_evictable = False
        self.counted_bytes -= resident.counted_bytes
        self._departed.append(resident)
        self._edge.left(len(self._residents))
        return True
