"""Waiting for what is likely to come at once, without going to sleep for it.

To wake a process that sleeps costs more than a call: on a virtual machine whose
processor has gone idle, tens of microseconds each way. So who waits looks again and
again for a moment first, and sleeps only then. Linux does the same for its own sockets
(net.core.busy_poll). Where that is in vain, because the other side takes longer or
others want the processor, it is tried less and less often.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from .clock import monotonic

#: After a moment spent in vain, so many waits go without one; twice as many after the
#: next such moment, up to the most.
_PAUSE_FIRST = 15
_PAUSE_MAX = 1920

#: The moment has so many parts. After each the processor is offered to others, and who
#: was kept from it for longer than that takes by itself has seen that it is wanted.
_PARTS = 4
_OFFER_S = 0.000005

_offer_processor: Callable[[], None] | None = getattr(os, "sched_yield", None)

Poll = Callable[[float], list[Any]]


class BusyPoll:
    """A ``poll`` that looks for a moment before it sleeps.

    Used by one thread at a time: the leader, or the one whose call a link carries.
    ``poll`` takes a timeout, in whatever unit, and returns at once for 0. ``busy_s`` is
    the moment in seconds, a quarter of it where others want the processor; with 0 it
    always sleeps. ``is_alone`` tells whether no other thread of the process is likely
    to want the interpreter meanwhile.
    """

    __slots__ = ("_busy_s", "_is_alone", "_pause", "_poll", "_waits_left")

    def __init__(
        self, poll: Poll, busy_s: float, is_alone: Callable[[], bool] | None = None
    ) -> None:
        self._poll = poll
        self._busy_s = busy_s
        self._is_alone = is_alone
        self._pause = _PAUSE_FIRST
        self._waits_left = 0

    def __repr__(self) -> str:
        """Say how long it looks, and for how many waits it does not."""
        return f"<BusyPoll {self._busy_s * 1e6:g} µs, not for {self._waits_left} waits>"

    def __call__(self, timeout: float) -> list[Any]:
        """Wait for events and return them; an empty list when the time is over."""
        poll = self._poll
        if self._waits_left:
            self._waits_left -= 1
            return poll(timeout)
        if not timeout or not self._busy_s:
            return poll(timeout)
        if self._is_alone is not None and not self._is_alone():
            self._waits_left = _PAUSE_FIRST
            return poll(timeout)
        clock = monotonic
        part_s = self._busy_s / _PARTS
        for _ in range(_PARTS):
            until = clock() + part_s
            while clock() < until:
                found = poll(0)
                if found:
                    self._pause = _PAUSE_FIRST
                    return found
            if _processor_is_wanted():
                break
        self._waits_left = self._pause
        self._pause = min(2 * self._pause, _PAUSE_MAX)
        return poll(timeout)


def _processor_is_wanted() -> bool:
    """Tell whether others wait for this processor, after they had it."""
    if _offer_processor is None:
        return True
    offered_at = monotonic()
    _offer_processor()
    return monotonic() - offered_at > _OFFER_S
