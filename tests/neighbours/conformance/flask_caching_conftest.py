"""The fixtures of Flask-Caching's suite, on a backend of ours; is its conftest.py."""

from __future__ import annotations

import os
from typing import Any

import flask
import flask_caching
import pytest

import state_server
from state_server.integrations import caching
from state_server.integrations import flask_caching as ours

# The suite is about values, not about time: a busy machine is not an outage.
caching.StateServerCache.__init__.__kwdefaults__["call_timeout_s"] = 10.0


class ManagersClock:
    """Moves the time of the manager's default region."""

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        state_server.connect().get("CacheRegion").advance(seconds)


@pytest.fixture
def clock() -> ManagersClock:
    """Return a clock that a test can move."""
    return ManagersClock()


@pytest.fixture
def app(request: Any) -> flask.Flask:
    """Return an app with an empty cache of ours."""
    state_server.connect().get("CacheRegion").clear()
    app = flask.Flask(
        request.module.__name__, template_folder=os.path.dirname(__file__)
    )
    app.testing = True
    app.config["CACHE_TYPE"] = ours.CACHE_TYPE
    return app


class SharingCache(ours.Cache):
    """Our extension, with every computation shared."""

    def cached(self, *args: Any, **kwargs: Any) -> Any:
        """Decorate a view."""
        return super().cached(*args, single_flight=True, **kwargs)

    def memoize(self, *args: Any, **kwargs: Any) -> Any:
        """Decorate a function."""
        return super().memoize(*args, single_flight=True, **kwargs)


@pytest.fixture(
    params=[flask_caching.Cache, ours.Cache, SharingCache],
    ids=["theirs", "ours", "sharing"],
)
def cache(request: Any, app: flask.Flask) -> Any:
    """Return the extension: theirs, ours on top of it, and ours with leases."""
    return request.param(app)


@pytest.fixture(
    params=flask_caching.SUPPORTED_HASH_FUNCTIONS,
    ids=lambda method: method.__name__,
)
def hash_method(request: Any) -> Any:
    """Return each of the hash functions that keys may be made with."""
    return request.param
