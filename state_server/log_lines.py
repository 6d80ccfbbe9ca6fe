"""The lines of the log, in all processes of a manager and a web server.

One form; one line for each record, whatever a caller has put into a key; and so many
lines of one kind in a second.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable

_FORM = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"

#: What would begin another line or move the cursor, and how it is shown.
_ESCAPES = {
    number: repr(chr(number))[1:-1]
    for number in (*range(32), *range(127, 160), 0x2028, 0x2029)
}

#: The loggers of this project begin so; lines of others, such as a shared class, are
#: theirs to form.
_OURS = "state_server."


def to_stderr(level: str, lines_max: int | None = None) -> None:
    """Send the log of this process to standard error.

    ``lines_max``: lines of one kind in a second; as many as there are if left out.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(_FORM))
    if lines_max is not None:
        handler.addFilter(LineLimit(lines_max))
    logging.basicConfig(level=level, handlers=[handler])


class OneLine(logging.Formatter):
    """Keeps a record of ours in one line; a traceback follows in lines of its own.

    A key, or the text of an error, could otherwise write lines that nobody logged.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line = super().formatMessage(record)
        return line.translate(_ESCAPES) if record.name.startswith(_OURS) else line


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
        if not record.name.startswith(_OURS):
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
