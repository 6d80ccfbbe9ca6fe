"""The object of the original question: a number, and one more each time it is asked."""

from __future__ import annotations

import threading
from typing import Any


class SomeObj:
    """Count up: ``query()`` returns each number once.

    ``_lock`` guards ``param``. The manager runs one call at a time on an object, so the
    lock is never waited for there; it makes the class right on its own as well, where
    several threads of one process use it.
    """

    def __init__(self, param: int = 0) -> None:
        self._lock = threading.Lock()
        self.param = param

    def query(self) -> int:
        """Return the next number."""
        with self._lock:
            self.param += 1
            return self.param

    def __getstate__(self) -> dict[str, Any]:
        """Return what is kept of the object: the number, not the lock."""
        return {"param": self.param}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Bring the object back with a lock of its own."""
        SomeObj.__init__(self, state["param"])
