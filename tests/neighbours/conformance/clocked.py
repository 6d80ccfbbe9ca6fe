"""The ready-made classes with a clock that only a test moves, for a manager of tests.

They take the place of the ready-made ones, because a class of the user's own wins.
"""

from __future__ import annotations

from typing import Any

from state_server import share
from state_server.objects import CacheRegion, RateLimits


class Clock:
    """Time that stands still, but for a microsecond at each look and ``advance``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.time_s = 1000.0
        super().__init__(*args, **kwargs)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.time_s += seconds

    def _now(self) -> float:
        self.time_s += 1e-6
        return self.time_s


@share(name="CacheRegion", durable=False)
class ClockedCacheRegion(Clock, CacheRegion):
    """A cache region whose entries end when a test says so."""


@share(name="RateLimits", durable=False)
class ClockedRateLimits(Clock, RateLimits):
    """Rate limits whose windows end when a test says so."""
