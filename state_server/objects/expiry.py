"""Keys of objects that let things expire: how long they are, and when they end."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")

#: What a key may take in UTF-8, in bytes, unless its owner says otherwise.
KEY_BYTES_MAX = 4096

#: A queue with fewer entries than this is never cleaned up as a whole.
_SMALL = 100


def check_key(key: str, bytes_max: int) -> None:
    """Raise ``ValueError`` for a key of more than ``bytes_max`` bytes in UTF-8."""
    if 4 * len(key) <= bytes_max:
        return
    size = len(key.encode("utf-8", "surrogatepass"))
    if size > bytes_max:
        raise ValueError(
            f"The key {key!r:.100} takes {size} bytes, and the limit (key_bytes_max) "
            f"is {bytes_max}. Nothing was stored under it; hash it, or shorten it."
        )


class ExpiryQueue(Generic[Key]):
    """Finds what has ended without looking at what has not.

    A heap of (time, key), and ``ends_at``, which tells when a key ends now: ``None``
    for one that is not there, infinity for one that never does. A key that ends later
    than the heap says is put back when its turn comes, so putting an end off costs
    nothing. What deletions leave behind is cleaned up when the heap is more than twice
    as long as ``live`` says that there are keys.

    Belongs to one shared object; used in that object's turns only.
    """

    def __init__(
        self, ends_at: Callable[[Key], float | None], live: Callable[[], int]
    ) -> None:
        self._ends_at = ends_at
        self._live = live
        self._heap: list[tuple[float, Key]] = []

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
        self.tidy()

    def tidy(self) -> None:
        """Let go of the keys of what was deleted, once they are most; after each."""
        if len(self._heap) > 2 * self._live() + _SMALL:
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
