"""A limit that is reached is logged once on entering that state, once on leaving it.

The log itself has one as well: so many lines of one kind in a second.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable


class Edge:
    """Watches one quantity against its limit. Guarded by its owner's lock."""

    __slots__ = ("_log", "_name", "_over", "limit")

    def __init__(self, log: logging.Logger, name: str, limit: int) -> None:
        self._log = log
        self._name = name
        self._over = False
        self.limit = limit

    def reached(self, quantity: int) -> bool:
        """Tell whether there is no room for one more, and log when that begins."""
        if quantity < self.limit:
            if self._over:
                self.left(quantity)
            return False
        if not self._over:
            self._over = True
            self._log.warning("Limit reached: %d %s.", self.limit, self._name)
        return True

    def left(self, quantity: int) -> None:
        """Log when there is room again, with a tenth to spare so as not to flutter."""
        if self._over and quantity <= self.limit * 0.9:
            self._over = False
            self._log.warning("Back below the limit of %d %s.", self.limit, self._name)


class LineLimit(logging.Filter):
    """Lets so many lines of each kind through in a second, and says which is the last.

    A kind is a place in the source of this package, so there are few; lines of others,
    such as a shared class, are let through. Whoever has the key can cause a line with
    each call. ``_lock`` guards ``_places``.
    """

    def __init__(
        self, lines_max: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._lines_max = lines_max
        self._clock = clock
        self._lock = threading.Lock()
        #: When the second of a kind began, and how many lines there were since.
        self._places: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is to be written."""
        if not record.name.startswith("state_server."):
            return True
        place, now = (record.name, record.lineno), self._clock()
        with self._lock:
            began, lines = self._places.get(place, (now, 0))
            if now - began >= 1.0:
                began, lines = now, 0
            lines += 1
            self._places[place] = began, lines
        if lines == self._lines_max:
            record.msg = (
                f"{record.msg} (More lines of this kind are left out for a second; "
                "log_lines_max.)"
            )
        return lines <= self._lines_max
