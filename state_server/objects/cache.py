"""A cache region: values that the manager never looks into, with time and size bounds.

Eviction is by least recent use, as in memcached and ``functools.lru_cache``. One
computation for each miss is arranged with leases: whoever misses first may compute and
store, everybody else is told to wait or to take the value that has just ended. A
deletion takes the lease away, so that a value computed from older data is not stored
after it (R. Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013, section 3.2.1).
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..limits import Edge
from .expiry import KEY_BYTES_MAX, ExpiryQueue, check_key

log = logging.getLogger("state_server.objects")

#: What one entry takes beside its key and value: measured with CPython 3.11, rounded
#: up. It keeps a cache of a million tiny values within its bound, too.
ENTRY_BYTES = 350

#: The same for one lease.
LEASE_BYTES = 350

#: An integer of more digits is refused by the codec (``digits_max``), so that nobody
#: could read it.
DIGITS_MAX = 4300
_INTEGERS_END = 10**DIGITS_MAX

#: A value is opaque, except that an integer can be counted up and down.
Value = bytes | int

#: Identity of a lease, opaque to its holder.
Token = tuple[int, int]


class _Entry(NamedTuple):
    """One value; ``fresh_until`` and ``stays_until`` are monotonic times."""

    value: Value
    fresh_until: float
    stays_until: float
    size: int


class _Lease(NamedTuple):
    """The right to compute one value.

    ``generation`` is new after each deletion or change of the key, ``grant`` after
    each time that the lease changed hands.
    """

    generation: int
    grant: int
    until: float

    @property
    def token(self) -> Token:
        """Return what the holder shows."""
        return (self.generation, self.grant)


class CacheRegion:
    """One cache: entries by key, bounded in number and bytes, forgotten with time.

    ``entries_max``: entries. ``bytes_max``: keys, values and leases with their
    bookkeeping, in bytes of memory. ``leases_max``: computations under way; above it
    the oldest lease is forgotten, so that its value is not stored. ``key_bytes_max``:
    one key in UTF-8, in bytes; nothing is stored or leased under a longer one.

    Its fields are used in the object's own turns only, as those of every shared
    object. Times come from the manager's monotonic clock, which nobody sets.
    """

    def __init__(
        self,
        entries_max: int = 100_000,
        bytes_max: int = 256 * 1024 * 1024,
        leases_max: int = 10_000,
        key_bytes_max: int = KEY_BYTES_MAX,
    ) -> None:
        #: By use, least recent first.
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0
        self._ended: ExpiryQueue[str] = ExpiryQueue(
            self._stays_until, self._entries.__len__
        )
        #: By grant, oldest first.
        self._leases: OrderedDict[str, _Lease] = OrderedDict()
        #: A holder of the time before a restart must not be taken for one of now.
        self._generations = itertools.count(random.getrandbits(62))
        self._grants = itertools.count()
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._key_bytes_max = key_bytes_max
        self._has_been_full = False
        self._leases_edge = Edge(
            log, "computations for a cache region (leases_max)", leases_max
        )
        self._hits = self._misses = self._evictions = 0

    # Reading -------------------------------------------------------------------------

    def get(self, key: str) -> Value | None:
        """Return the value, or ``None`` if there is none."""
        entry = self._fresh(key)
        if entry is None:
            self._misses += 1
            return None
        self._hits += 1
        self._entries.move_to_end(key)
        return entry.value

    def get_many(self, keys: Iterable[str]) -> list[Value | None]:
        """Return the values in the order of the keys, ``None`` where there is none."""
        return [self.get(key) for key in keys]

    def has(self, key: str) -> bool:
        """Tell whether there is a value; this is no use that eviction heeds."""
        return self._fresh(key) is not None

    def info(self) -> dict[str, int]:
        """Return the numbers of this region, counted since it was made."""
        return {
            "entries": len(self._entries),
            "entries_max": self._entries_max,
            "bytes": self._bytes,
            "bytes_max": self._bytes_max,
            "leases": len(self._leases),
            "hits": self._hits,
            "misses": self._misses,
            "evictions": self._evictions,
        }

    # Writing -------------------------------------------------------------------------

    def set(
        self, key: str, value: Value, timeout_s: float = 0, stale_s: float = 0
    ) -> bool:
        """Store a value for ``timeout_s`` seconds; 0: until it is evicted.

        Below 0 it has ended already. For ``stale_s`` more seconds it may be given to
        those who would have to wait for another. Raises ``ValueError`` for a value
        that is larger than the whole region may be, for a key that is too long, for an
        integer of more than 4300 digits, and for times that are no number.
        """
        self._drop_lease(key)
        self._put(key, value, timeout_s, stale_s)
        return True

    def set_many(self, values: Mapping[str, Value], timeout_s: float = 0) -> list[str]:
        """Store several values; return their keys. An error stores none of them."""
        for key, value in values.items():
            self._check_size(key, value)
        for key, value in values.items():
            self.set(key, value, timeout_s)
        return list(values)

    def add(self, key: str, value: Value, timeout_s: float = 0) -> bool:
        """Store a value unless there is one; tell whether it was stored."""
        if self._fresh(key) is not None:
            return False
        return self.set(key, value, timeout_s)

    def inc(self, key: str, delta: int = 1, timeout_s: float = 0) -> int:
        """Add ``delta`` to an integer and return the sum; a missing one counts as 0.

        ``timeout_s`` is for one that was missing; another ends when it would have.
        Raises ``TypeError`` for a value or a ``delta`` that is no integer, and
        ``ValueError`` for a sum that ``set`` would refuse.
        """
        if not isinstance(delta, int):
            raise TypeError(
                f"The cached value of {key!r:.100} is counted by integers, not by a "
                f"{type(delta).__name__}."
            )
        now = self._now()
        entry = self._fresh(key)
        if entry is None:
            total = int(delta)
            self.set(key, total, timeout_s)
            return total
        if not isinstance(entry.value, int):
            raise TypeError(
                f"The cached value of {key!r:.100} is no integer, so nothing can be "
                "added to it; set it to an integer first."
            )
        total = entry.value + delta
        size = self._check_size(key, total)
        self._drop_lease(key)
        self._keep(key, entry._replace(value=total, size=size), now)
        return total

    def delete(self, key: str) -> bool:
        """Delete a value; tell whether there was one."""
        there = self._fresh(key) is not None
        self._drop_lease(key)
        if key in self._entries:
            self._drop(key)
        return there

    def delete_many(self, keys: Iterable[str]) -> list[str]:
        """Delete several values; return the keys of those that were there."""
        return [key for key in keys if self.delete(key)]

    def clear(self, prefix: str = "") -> int:
        """Delete all values whose keys begin with ``prefix``; return how many."""
        keys = [key for key in self._entries if key.startswith(prefix)]
        for key in keys:
            self._drop(key)
        for key in [key for key in self._leases if key.startswith(prefix)]:
            self._drop_lease(key)
        return len(keys)

    # One computation for each miss ---------------------------------------------------

    def get_or_lease(
        self, key: str, lease_s: float, stale: bool = False
    ) -> tuple[str, Value | Token | None]:
        """Return the value, or say who computes it.

        ``("value", value)``: here it is; with ``stale`` also one that has ended while
        another is being computed. ``("lease", token)``: the caller computes it and
        calls ``set_leased`` or ``release``, within ``lease_s`` seconds, after which
        somebody else may. ``("wait", None)``: it is being computed; ask again. Raises
        ``ValueError`` for a key that is too long.
        """
        check_key(key, self._key_bytes_max)
        if self._fresh(key) is not None:
            return "value", self.get(key)
        now = self._now()
        lease = self._leases.get(key)
        if lease is not None and lease.until > now:
            entry = self._entries.get(key)
            if stale and entry is not None:
                self._entries.move_to_end(key)
                return "value", entry.value
            return "wait", None
        self._misses += 1
        # The next holder has the same generation: whoever ends first may store.
        generation = next(self._generations) if lease is None else lease.generation
        granted = _Lease(generation, next(self._grants), now + lease_s)
        if lease is None and not self._make_room_for_lease(key, now):
            return "lease", granted.token
        self._leases[key] = granted
        self._leases.move_to_end(key)
        return "lease", granted.token

    def set_leased(
        self,
        key: str,
        token: Token,
        value: Value,
        timeout_s: float = 0,
        stale_s: float = 0,
    ) -> bool:
        """Store what a lease was given for; tell whether the key was left alone since.

        A lease that has run out still counts: the value is as good as the next one.
        """
        lease = self._leases.get(key)
        if lease is None or lease.generation != token[0]:
            return False
        return self.set(key, value, timeout_s, stale_s)

    def release(self, key: str, token: Token) -> bool:
        """Give a lease back without a value; tell whether it was still held."""
        lease = self._leases.get(key)
        if lease is None or lease.token != token:
            return False
        self._drop_lease(key)
        return True

    # Inside --------------------------------------------------------------------------

    def _now(self) -> float:
        return time.monotonic()

    def _stays_until(self, key: str) -> float | None:
        entry = self._entries.get(key)
        return None if entry is None else entry.stays_until

    def _fresh(self, key: str) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is None or entry.fresh_until > self._now():
            return entry
        if entry.stays_until <= self._now():
            self._drop(key)
        return None

    def _check_size(self, key: str, value: Value) -> int:
        if not isinstance(key, str) or not isinstance(value, (bytes, int)):
            raise TypeError(
                "A cache region keeps bytes and integers under a text, not a "
                f"{type(value).__name__} under {key!r:.100}."
            )
        check_key(key, self._key_bytes_max)
        size, limit = _size(key, value), self._bytes_max
        if size > limit:
            raise ValueError(
                f"The value of {key!r:.100} takes {size} bytes in the cache, which has "
                f"{limit} in all (cache_bytes_max). It was not stored."
            )
        if isinstance(value, int) and not -_INTEGERS_END < value < _INTEGERS_END:
            raise ValueError(
                f"The value of {key!r:.100} is an integer of more than {DIGITS_MAX} "
                "digits (digits_max), which cannot travel. It was not stored."
            )
        return size

    def _put(self, key: str, value: Value, timeout_s: float, stale_s: float) -> None:
        size = self._check_size(key, value)
        now = self._now()
        fresh_until = now + timeout_s if timeout_s else math.inf
        stays_until = fresh_until + stale_s
        if math.isnan(stays_until):
            raise ValueError(
                f"The value of {key!r:.100} was to be kept for {timeout_s!r} s and "
                f"{stale_s!r} s more, which is no time. It was not stored."
            )
        former = self._stays_until(key)
        if former is not None and min(former, stays_until) <= now:
            self._drop(key)
        if stays_until > now:
            self._keep(key, _Entry(value, fresh_until, stays_until, size), now)

    def _keep(self, key: str, entry: _Entry, now: float) -> None:
        """Put an entry where none is or another one stays; others leave for it."""
        former = self._entries.get(key)
        growth, stay = entry.size, 0
        if former is not None:
            # It is there until its place is taken: while it were away, the queue
            # would forget when the key ends.
            growth, stay = entry.size - former.size, 1
            self._entries.move_to_end(key)
        self._make_room(1 - stay, growth, stay, now)
        self._entries[key] = entry
        self._bytes += growth
        former_until = None if former is None else former.stays_until
        self._ended.note(key, entry.stays_until, former_until)

    def _make_room(self, more: int, growth: int, stay: int, now: float) -> None:
        """Let go of what has ended, then of what was used least recently, then leases.

        The ``stay`` entries that were used last remain.
        """
        # Two for each that comes: what has ended leaves quicker than it gathers, and
        # no call pays for thousands.
        for _ in range(2):
            self._drop_ended(now)
        while (
            len(self._entries) + more > self._entries_max
            or self._bytes + growth > self._bytes_max
        ):
            if self._drop_ended(now):
                continue
            if len(self._entries) > stay:
                self._evict()
            else:
                self._drop_lease(next(iter(self._leases)))

    def _make_room_for_lease(self, key: str, now: float) -> bool:
        """Take up the room for one more lease; tell whether the region can have it."""
        size = _lease_size(key)
        if size > self._bytes_max:
            return False
        if self._leases_edge.reached(len(self._leases)):
            self._drop_lease(next(iter(self._leases)))
        self._make_room(0, size, 0, now)
        self._bytes += size
        return True

    def _drop_lease(self, key: str) -> None:
        if self._leases.pop(key, None) is not None:
            self._bytes -= _lease_size(key)

    def _evict(self) -> None:
        if not self._has_been_full:
            # Once and not each time: to be full is the normal life of a cache.
            self._has_been_full = True
            log.warning(
                "A cache region is full (%d entries, %d bytes): from now on what was "
                "used least recently leaves (cache_entries_max, cache_bytes_max).",
                len(self._entries),
                self._bytes,
            )
        self._drop(next(iter(self._entries)))
        self._evictions += 1

    def _drop_ended(self, now: float) -> bool:
        key = self._ended.pop_ended(now)
        if key is None:
            return False
        self._drop(key)
        return True

    def _drop(self, key: str) -> None:
        self._bytes -= self._entries.pop(key).size
        self._ended.tidy()


def _size(key: str, value: Value) -> int:
    return sys.getsizeof(key) + sys.getsizeof(value) + ENTRY_BYTES


def _lease_size(key: str) -> int:
    return sys.getsizeof(key) + LEASE_BYTES
