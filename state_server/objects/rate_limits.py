"""Rate limits: fixed, moving and sliding windows, counted by one clock for everybody.

The three strategies are those of the package limits, release 5.8 (its documentation,
page "Rate limiting strategies"). A sliding window follows the package's Redis script
and not its memory storage: the first window begins with the first hit, not with the
minute, and windows follow each other without a gap.

Times are given out as seconds from now. So one clock decides, the manager's monotonic
one, which nobody sets.
"""

from __future__ import annotations

import bisect
import logging
import math
import sys
import time
from typing import Generic, Protocol, TypeVar

from ..limits import Edge
from .expiry import KEY_BYTES_MAX, ExpiryQueue, check_key

log = logging.getLogger("state_server.objects")

#: Each as many bytes of a key, beyond the first, take as much as another record.
KEY_BYTES_IN_RECORD = 256


class _Window(Protocol):
    """What all kinds of windows have: when they end, and how many records they take."""

    ends_at: float

    @property
    def records(self) -> int: ...


class _Fixed:
    """A fixed window: the hits since it began."""

    __slots__ = ("ends_at", "hits")

    def __init__(self, ends_at: float) -> None:
        self.hits = 0
        self.ends_at = ends_at

    @property
    def records(self) -> int:
        return 1


class _Moving:
    """The hits of the last seconds: (time, how many at once), oldest first.

    In a list and not in a deque, which takes half a kilobyte for a single hit.
    """

    __slots__ = ("amount", "ends_at", "hits")

    def __init__(self, ends_at: float) -> None:
        self.hits: list[tuple[float, int]] = []
        self.amount = 0
        self.ends_at = ends_at

    @property
    def records(self) -> int:
        return len(self.hits)


class _Sliding:
    """Two windows, one after the other; ``started_at`` is when the second began."""

    __slots__ = ("current", "ends_at", "previous", "started_at")

    def __init__(self, started_at: float, expiry_s: float) -> None:
        self.previous = self.current = 0
        self.started_at = started_at
        self.ends_at = started_at + 2 * expiry_s

    @property
    def records(self) -> int:
        return 1


W = TypeVar("W", bound=_Window)


class _Windows(Generic[W]):
    """The windows of one strategy, by key, and how many records they take."""

    def __init__(self) -> None:
        self._by_key: dict[str, W] = {}
        self._ended: ExpiryQueue[str] = ExpiryQueue(self._ends_at, self._by_key.__len__)
        self.records = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def find(self, key: str, now: float) -> W | None:
        """Return the window of ``key``; ``None`` if there is none, or it has ended."""
        window = self._by_key.get(key)
        if window is not None and window.ends_at <= now:
            self.drop(key)
            return None
        return window

    def keep(self, key: str, window: W) -> None:
        """Add a window that was not there."""
        self._by_key[key] = window
        self.records += window.records + _key_records(key)
        self._ended.note(key, window.ends_at)

    def drop(self, key: str) -> bool:
        """Drop a window; tell whether there was one."""
        window = self._by_key.pop(key, None)
        if window is None:
            return False
        self.records -= window.records + _key_records(key)
        self._ended.tidy()
        return True

    def drop_ended(self, now: float) -> bool:
        """Drop a window that has ended; tell whether there was one."""
        key = self._ended.pop_ended(now)
        return key is not None and self.drop(key)

    def _ends_at(self, key: str) -> float | None:
        window = self._by_key.get(key)
        return None if window is None else window.ends_at


class RateLimits:
    """The windows of all rate limits that share one storage.

    ``records_max``: windows, and times of hits within moving windows; a window of a
    long key takes one more for each 256 bytes of it. When it is reached, a hit that
    needs another record raises ``OverflowError`` and counts nothing: forgetting a
    window would let somebody exceed the limit. ``key_bytes_max``: one key in UTF-8, in
    bytes; a hit of a longer one raises ``ValueError`` and counts nothing.

    Its fields are used in the object's own turns only, as those of every shared
    object. Amounts are whole numbers from 0; ``expiry_s`` is the length of a window in
    seconds. What is hit under one strategy is not seen by the others.
    """

    def __init__(
        self, records_max: int = 1_000_000, key_bytes_max: int = KEY_BYTES_MAX
    ) -> None:
        self._key_bytes_max = key_bytes_max
        self._fixed: _Windows[_Fixed] = _Windows()
        self._moving: _Windows[_Moving] = _Windows()
        self._sliding: _Windows[_Sliding] = _Windows()
        self._edge = Edge(
            log, "records of rate limits (rate_limit_records_max)", records_max
        )

    # Fixed windows -------------------------------------------------------------------

    def incr(self, key: str, expiry_s: float, amount: int = 1) -> int:
        """Count a hit and return how many the window has, which begins with the first.

        It counts above the limit as well, which is not known here.
        """
        self._check(key, expiry_s, amount)
        now = self._now()
        window = self._fixed.find(key, now)
        if amount == 0:
            return 0 if window is None else window.hits
        if window is None:
            self._make_room(now, 1 + _key_records(key))
            window = _Fixed(now + expiry_s)
            self._fixed.keep(key, window)
        window.hits += amount
        return window.hits

    def get(self, key: str) -> int:
        """Return the hits in the fixed window."""
        window = self._fixed.find(key, self._now())
        return 0 if window is None else window.hits

    def ends_in(self, key: str) -> float:
        """Return the seconds until the fixed window ends, 0 if there is none."""
        now = self._now()
        window = self._fixed.find(key, now)
        return 0.0 if window is None else window.ends_at - now

    def clear(self, key: str) -> None:
        """Forget the fixed and the moving window."""
        self._fixed.drop(key)
        self._moving.drop(key)

    # Moving windows ------------------------------------------------------------------

    def acquire_entry(
        self, key: str, limit: int, expiry_s: float, amount: int = 1
    ) -> bool:
        """Count a hit unless that would be too many; tell whether it was counted."""
        self._check(key, expiry_s, amount)
        now = self._now()
        window = self._recent(key, expiry_s, now)
        if amount + (0 if window is None else window.amount) > limit:
            return False
        if amount == 0:
            return True
        self._make_room(now, 1 if window is not None else 1 + _key_records(key))
        # A hit that is exactly as old as the window is long still counts.
        ends_at = math.nextafter(now + expiry_s, math.inf)
        if window is None:
            window = _Moving(ends_at)
            self._moving.keep(key, window)
        window.hits.append((now, amount))
        window.amount += amount
        window.ends_at = ends_at
        self._moving.records += 1
        return True

    def moving_window(self, key: str, expiry_s: float) -> tuple[float, int]:
        """Return the age of the oldest hit in seconds, and the number of hits."""
        now = self._now()
        window = self._recent(key, expiry_s, now)
        if window is None or not window.hits:
            return 0.0, 0
        return now - window.hits[0][0], window.amount

    # Sliding windows -----------------------------------------------------------------

    def acquire_sliding_window_entry(
        self, key: str, limit: int, expiry_s: float, amount: int = 1
    ) -> bool:
        """Count a hit unless that would be too many; tell whether it was counted.

        The hits of the former window count by the share of it that is still within
        the last ``expiry_s`` seconds.
        """
        self._check(key, expiry_s, amount)
        now = self._now()
        window = self._current(key, expiry_s, now)
        if window is None:
            weighted = 0.0
        else:
            left_s = window.started_at + expiry_s - now
            weighted = window.previous * left_s / expiry_s + window.current
        if math.floor(weighted) + amount > limit:
            return False
        if amount == 0:
            return True
        if window is None:
            self._make_room(now, 1 + _key_records(key))
            window = _Sliding(now, expiry_s)
            self._sliding.keep(key, window)
        window.current += amount
        return True

    def sliding_window(
        self, key: str, expiry_s: float
    ) -> tuple[int, float, int, float]:
        """Return hits of the former window, seconds for which they count, and both
        for the current one.
        """
        now = self._now()
        window = self._current(key, expiry_s, now)
        if window is None:
            return 0, 0.0, 0, 0.0
        left_s = window.started_at + expiry_s - now
        previous_left_s = left_s if window.previous else 0.0
        return window.previous, previous_left_s, window.current, left_s + expiry_s

    def clear_sliding_window(self, key: str) -> None:
        """Forget the sliding window."""
        self._sliding.drop(key)

    # All of them ---------------------------------------------------------------------

    def reset(self) -> int:
        """Forget everything; return how many windows there were."""
        there = len(self._fixed) + len(self._moving) + len(self._sliding)
        self._fixed, self._moving, self._sliding = _Windows(), _Windows(), _Windows()
        return there

    def info(self) -> dict[str, int]:
        """Return the numbers of this storage."""
        return {
            "fixed_windows": len(self._fixed),
            "moving_windows": len(self._moving),
            "sliding_windows": len(self._sliding),
            "records": self._records(),
            "records_max": self._edge.limit,
        }

    # Inside --------------------------------------------------------------------------

    def _now(self) -> float:
        return time.monotonic()

    def _check(self, key: str, expiry_s: float, amount: int) -> None:
        """Refuse what is no hit."""
        if not isinstance(key, str) or not isinstance(amount, int) or amount < 0:
            raise ValueError(
                f"A hit is a whole number from 0 of a text, not {amount!r} of "
                f"{key!r:.100}."
            )
        if not 0 < expiry_s < math.inf:
            raise ValueError(
                f"A window is longer than 0 s, not {expiry_s!r:.100} s long."
            )
        check_key(key, self._key_bytes_max)

    def _records(self) -> int:
        return self._fixed.records + self._moving.records + self._sliding.records

    def _recent(self, key: str, expiry_s: float, now: float) -> _Moving | None:
        """Return a moving window with the hits of the last seconds only."""
        window = self._moving.find(key, now)
        if window is None:
            return None
        passed = bisect.bisect_left(window.hits, (now - expiry_s,))
        if passed:
            window.amount -= sum(amount for _, amount in window.hits[:passed])
            del window.hits[:passed]
            self._moving.records -= passed
        return window

    def _current(self, key: str, expiry_s: float, now: float) -> _Sliding | None:
        """Return a sliding window as it is now."""
        window = self._sliding.find(key, now)
        if window is not None and now - window.started_at >= expiry_s:
            window.previous, window.current = window.current, 0
            window.started_at += expiry_s
            window.ends_at += expiry_s
        return window

    def _make_room(self, now: float, more: int) -> None:
        """See to it that there is room for ``more`` records, or raise."""
        tables = (self._fixed, self._moving, self._sliding)
        # One of each for each that comes, so that what has ended does not gather.
        for table in tables:
            table.drop_ended(now)
        while self._edge.reached(self._records() + more - 1):
            if not any(table.drop_ended(now) for table in tables):
                raise OverflowError(
                    f"There are {self._records()} records of rate limits, and the "
                    f"limit (rate_limit_records_max) is {self._edge.limit}. The hit "
                    "was not counted."
                )


def _key_records(key: str) -> int:
    """Return the records that a key takes beside its window's, by its memory."""
    return sys.getsizeof(key) // KEY_BYTES_IN_RECORD
