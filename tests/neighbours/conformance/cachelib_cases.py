"""cachelib's own test classes, on a cache of ours; runs in their folder."""

from __future__ import annotations

from typing import Any

import common
import pytest
from clear import ClearTests
from common import CommonTests
from delete_many_with_prefix import DeleteManyWithPrefixTests
from has import HasTests
from serializer import SerializerTests

import state_server
from state_server.integrations.caching import StateServerCache


@pytest.fixture(autouse=True)
def cache_factory(
    request: Any, key_prefix: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give the test class an empty cache; its pauses move the manager's clock."""
    client = state_server.connect()
    region = client.get("CacheRegion")
    monkeypatch.setattr(common, "sleep", region.advance)

    def factory(_: object, *args: Any, **kwargs: Any) -> StateServerCache:
        kwargs.setdefault("key_prefix", key_prefix)
        region.clear()
        return StateServerCache(client, *args, call_timeout_s=10, **kwargs)

    request.cls.cache_factory = factory


class TestStateServerCache(
    CommonTests, ClearTests, HasTests, DeleteManyWithPrefixTests, SerializerTests
):
    """All that cachelib asks of a cache."""
