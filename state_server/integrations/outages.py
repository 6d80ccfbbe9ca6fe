"""Outages of the manager, as a cache sees them: when they begin, last and end."""

from __future__ import annotations

import logging

from ..clock import monotonic
from ..errors import StateServerError

log = logging.getLogger("state_server.cache")


class Outage:
    """Notices that the manager does not answer, and spares callers the wait.

    Begins with a call that was given up and ends with one that was answered; each is
    one log line. Meanwhile a call is tried every ``pause_s`` seconds.

    An answer to a call that began before the outage did ends nothing: it tells how the
    manager was, and of many calls under way some are always answered.

    Any thread may use it. There is no lock, which a fork could leave held by nobody:
    ``_began`` holds the time at which the outage began, under one key, and
    ``setdefault`` and ``pop`` are one step each. Of ``_try_at`` the worst that a race
    can do is one more try.
    """

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._began: dict[str, float] = {}
        self._try_at = 0.0

    def lasts(self) -> bool:
        """Tell whether a call would be in vain; lets one through now and then."""
        if not self._began:
            return False
        now = monotonic()
        if now < self._try_at:
            return True
        self._try_at = now + self._pause_s
        return False

    def begin(self, error: StateServerError) -> None:
        """Take note of a call that was given up."""
        now = monotonic()
        self._try_at = now + self._pause_s
        if self._began.setdefault("at", now) is now:
            log.warning(
                "The cache is bypassed, calls are tried again every %g s: %s: %s",
                self._pause_s,
                type(error).__name__,
                error,
            )

    def end(self, called_at: float) -> None:
        """Take note of the answer to a call that began at a monotonic time."""
        began = self._began.get("at")
        if began is None or called_at < began:
            return
        if self._began.pop("at", None) is not None:
            log.warning("The cache answers again after %.1f s.", monotonic() - began)
