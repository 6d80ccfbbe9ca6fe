"""How often the client of this thread has sent a call again."""

from __future__ import annotations

import threading
from typing import Any

from state_server.client import _Exchange


class _Count(threading.local):
    value = 0


_count = _Count()
_exchange = _Exchange._exchange


def _counting(self: _Exchange, link: Any) -> Any:
    # A lane is noted once the call may have reached a manager.
    if self.lane is not None:
        _count.value += 1
    return _exchange(self, link)


_Exchange._exchange = _counting  # type: ignore[method-assign]


def taken() -> int:
    """Return the number since this was asked last, in this thread."""
    count, _count.value = _count.value, 0
    return count
