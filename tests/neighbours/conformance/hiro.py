"""What Flask-Limiter's suite needs of the package hiro: a test's own time.

It is the time of that suite and of the packages under test, and moves the manager's
clock along. The client keeps the real one, by which a manager knows its connections.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from types import ModuleType, TracebackType
from unittest import mock

import state_server

#: Whose time it is: packages, and our storage, which says when a window ends.
CONCERNED = ("limits", "flask_limiter", "tests", "state_server.integrations.limits")


class Timeline:
    """Time that stands still and goes forward when it is told to."""

    def __init__(self) -> None:
        self._now = time.time()
        self._patches = ExitStack()

    def freeze(self) -> Timeline:
        """Return the timeline, which stands still in any case."""
        return self

    def forward(self, step: float | timedelta) -> None:
        """Let time pass: a number of seconds."""
        seconds = step.total_seconds() if isinstance(step, timedelta) else step
        self._now += seconds
        state_server.connect().get("RateLimits").advance(seconds)

    def __enter__(self) -> Timeline:
        """Replace the time."""
        ours = ModuleType("time")
        vars(ours).update(vars(time), time=lambda: self._now)
        for name, module in list(sys.modules.items()):
            concerned = name.startswith(CONCERNED)
            if concerned and getattr(module, "time", None) is time:
                self._patches.enter_context(mock.patch.object(module, "time", ours))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put the time back."""
        self._patches.close()
