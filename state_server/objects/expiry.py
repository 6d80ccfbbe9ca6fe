"""Keys by the time at which they end, for objects that let things expire."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")

#: A queue with fewer entries than this is never cleaned up as a whole.
_SMALL = 1000


class ExpiryQueue(Generic[Key]):
    """Finds what has ended without looking at what has not.

    A heap of (time, key), and ``ends_at``, which tells when a key ends now: ``None``
    for one that is not there, infinity for one that never does. A key that ends later
    than the heap says is put back when its turn comes, so putting an end off costs
    nothing. What deletions leave behind is cleaned up when the heap has doubled.

    Belongs to one shared object; used in that object's turns only.
    """

    def __init__(self, ends_at: Callable[[Key], float | None]) -> None:
        self._ends_at = ends_at
        self._heap: list[tuple[float, Key]] = []
        self._clean_up_at = _SMALL

    def __len__(self) -> int:
        """Return how many entries there are, those left behind included."""
        return len(self._heap)

    def note(self, key: Key, at: float, former: float | None = None) -> None:
        """Take note that ``key`` ends at ``at`` and not, as until now, at ``former``.

        ``former`` is ``None`` for a key that was not there.
        """
        if at == math.inf or (former is not None and former <= at):
            return
        heapq.heappush(self._heap, (at, key))
        if len(self._heap) > self._clean_up_at:
            self._clean_up()

    def pop_ended(self, now: float) -> Key | None:
        """Return a key that has ended by ``now``, or ``None``; its owner deletes it."""
        while self._heap and self._heap[0][0] <= now:
            _, key = heapq.heappop(self._heap)
            at = self._ends_at(key)
            if at is not None and at <= now:
                return key
            if at is not None and at != math.inf:
                heapq.heappush(self._heap, (at, key))
        return None

    def _clean_up(self) -> None:
        ends = {key: self._ends_at(key) for _, key in self._heap}
        self._heap = [
            (at, key) for key, at in ends.items() if at is not None and at != math.inf
        ]
        heapq.heapify(self._heap)
        self._clean_up_at = 2 * len(self._heap) + _SMALL
