"""Waiting for what is likely to come at once, without going to sleep for it.

To wake a process that sleeps costs more than a call: on a virtual machine whose
processor has gone idle, 30 to 40 µs each way. So who waits looks again and again for a
moment first, gives way to anybody who wants to run in between, and sleeps only then.
Linux does the same for its own sockets (net.core.busy_poll).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

#: After a moment spent in vain, so many waits go without one.
_REST_WAITS = 15

#: The same where others kept the processor meanwhile: it is better left to them.
_REST_WAITS_CROWDED = 255

Poll = Callable[[float], list[Any]]


class BusyPoll:
    """A ``poll`` that looks for a moment before it sleeps.

    Used by one thread at a time: the leader, or the one whose call a link carries.
    ``poll`` takes a timeout, in whatever unit, and returns at once for 0. ``busy_s`` is
    the moment in seconds; with 0 it always sleeps.
    """

    __slots__ = ("_busy_s", "_poll", "_rest")

    def __init__(self, poll: Poll, busy_s: float) -> None:
        self._poll = poll
        self._busy_s = busy_s if hasattr(os, "sched_yield") else 0.0
        self._rest = 0

    def __repr__(self) -> str:
        """Say how long it looks, and for how many waits it rests."""
        return f"<BusyPoll {self._busy_s * 1e6:g} µs, resting for {self._rest}>"

    def __call__(self, timeout: float) -> list[Any]:
        """Wait for events and return them; an empty list when the time is over."""
        if self._rest or not timeout or not self._busy_s:
            self._rest -= self._rest > 0
            return self._poll(timeout)
        poll, clock = self._poll, time.perf_counter
        started = clock()
        while True:
            found = poll(0)
            if found:
                return found
            elapsed_s = clock() - started
            if elapsed_s >= self._busy_s:
                break
            os.sched_yield()
        crowded = elapsed_s > 2 * self._busy_s
        self._rest = _REST_WAITS_CROWDED if crowded else _REST_WAITS
        return poll(timeout)
