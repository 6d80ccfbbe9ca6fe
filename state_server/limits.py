"""A limit that is reached is logged once on entering that state, once on leaving it."""

from __future__ import annotations

import logging


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
