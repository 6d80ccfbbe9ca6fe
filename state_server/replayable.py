"""What a method takes from outside, where its calls may be replayed: the time, chance.

A journalled object is loaded by making its calls again. ``now`` and ``random`` give
them what they got the first time; ``Unchanged`` says that nothing needs to be replayed.
"""

from __future__ import annotations

import random as chance
import threading
import time
from collections import deque
from collections.abc import Callable


class Unchanged(Exception):
    """Raised by a method in place of ``error``, to say that it has changed nothing.

    The caller sees ``error``. A journalled object is then not loaded anew, as it is
    after any other error of a method that is not read-only.

    ``error``: an error, or its class, as ``raise`` takes them.
    """

    def __init__(self, error: Exception | type[Exception]) -> None:
        if isinstance(error, type) and issubclass(error, Exception):
            error = error()
        if not isinstance(error, Exception):
            raise TypeError(
                "Unchanged takes the error that the caller is to see, not "
                f"{error!r:.100}."
            )
        super().__init__(error)
        self.error = error


class _Taps(threading.local):
    """Where ``now`` and ``random`` of this thread take from, or are written to."""

    record: list[float] | None = None
    replay: deque[float] | None = None


taps = _Taps()


def now() -> float:
    """Return the time (seconds since 1970); in a replay, the time of the first run."""
    return _drawn(time.time)


def random() -> float:
    """Return a random number in [0, 1); in a replay, that of the first run."""
    return _drawn(chance.random)


def _drawn(source: Callable[[], float]) -> float:
    if taps.replay is not None:
        return taps.replay.popleft()
    value = float(source())
    if taps.record is not None:
        taps.record.append(value)
    return value
