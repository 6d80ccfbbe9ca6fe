"""The log of the web processes, to standard error."""

from __future__ import annotations

import logging
import time

from state_server import log_lines

#: The least time between two lines about requests that wait for a thread.
QUEUE_LINE_EVERY_S = 10.0


class Seldom(logging.Filter):
    """Lets one line through, then none for a while: waitress has one per request."""

    def __init__(self, every_s: float) -> None:
        super().__init__()
        self._every_s = every_s
        self._next_at = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether ``record`` is to be written."""
        now = time.monotonic()
        if now < self._next_at:
            return False
        self._next_at = now + self._every_s
        return True


def configure(level: str) -> None:
    """Send log lines from ``level`` upwards to standard error."""
    log_lines.to_stderr(level)
    logging.getLogger("waitress.queue").addFilter(Seldom(QUEUE_LINE_EVERY_S))
