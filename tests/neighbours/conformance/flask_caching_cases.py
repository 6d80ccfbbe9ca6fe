"""Flask-Caching's generic tests of backends, on ours; runs beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from test_backend_cache import GenericCacheTests

import state_server
from state_server.integrations.flask_caching import StateServerCache


class TestStateServerCache(GenericCacheTests):
    """All that Flask-Caching asks of a backend."""

    @pytest.fixture(params=[None, "prefix:", lambda: "made:"])
    def make_cache(self, request: Any) -> Callable[..., StateServerCache]:
        """Return what makes a cache: without prefix, with one, with a function."""
        client = state_server.connect()
        client.get("CacheRegion").clear()
        return lambda **options: StateServerCache(
            client, key_prefix=request.param, **options
        )
