"""The fixtures of the suite of limits, on our storage; is its conftest.py."""

from __future__ import annotations

import time
from typing import Any

import pytest

import state_server
import state_server.integrations.limits


@pytest.fixture(autouse=True)
def empty_storage() -> None:
    """Forget what the test before has counted."""
    state_server.connect().get("RateLimits").reset()


@pytest.fixture(autouse=True)
def time_of_the_test(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let time pass in pauses only, in this process and in the manager alike."""
    if "concurrency" in request.module.__name__:
        return
    storage = state_server.connect().get("RateLimits")
    now = time.time()

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        storage.advance(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "time", lambda: now)
