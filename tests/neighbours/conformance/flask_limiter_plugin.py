"""Puts Flask-Limiter's suite on our storage; pytest loads it beside their conftest."""

from __future__ import annotations

from typing import Any

import flask_limiter
import pytest

import state_server
import state_server.integrations.limits

_init_app = flask_limiter.Limiter.init_app


def _init_app_here(limiter: Any, app: Any) -> None:
    if limiter._storage_uri is None:
        app.config.setdefault("RATELIMIT_STORAGE_URI", "stateserver://")
    _init_app(limiter, app)


@pytest.fixture(autouse=True)
def our_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let limiters that name no storage use ours, which is empty."""
    monkeypatch.setattr(flask_limiter.Limiter, "init_app", _init_app_here)
    state_server.connect().get("RateLimits").reset()
