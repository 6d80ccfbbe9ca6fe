"""Ready-made shared classes, one file each. Every manager hosts them."""

from __future__ import annotations

import dataclasses

from ..settings import ManagerSettings
from ..sharing import Catalogue, describe_class
from .cache import CacheRegion
from .demonstration import DemonstrationCounter
from .rate_limits import RateLimits
from .sessions import SessionShard
from .some_obj import SomeObj

__all__ = ["CacheRegion", "RateLimits", "SessionShard", "SomeObj", "add_ready_made"]


def add_ready_made(
    catalogue: Catalogue, settings: ManagerSettings | None = None
) -> None:
    """Add every ready-made class; one of the user's own with the same name wins.

    ``settings``: where their limits are taken from; the defaults if left out.
    """
    if settings is None:
        settings = ManagerSettings()
    catalogue.add(describe_class(SomeObj, ready_made=True))
    catalogue.add(describe_class(DemonstrationCounter, ready_made=True))
    shard = describe_class(SessionShard, durable="journal", ready_made=True)
    catalogue.add(dataclasses.replace(shard, keeps_order=True))
    cache_limits = {
        "entries_max": settings.cache_entries_max,
        "bytes_max": settings.cache_bytes_max,
    }
    # A cache may forget, and a rate limit ends by itself: neither is worth a disk.
    catalogue.add(
        describe_class(CacheRegion, kwargs=cache_limits, durable=False, ready_made=True)
    )
    records_max = {"records_max": settings.rate_limit_records_max}
    catalogue.add(
        describe_class(RateLimits, kwargs=records_max, durable=False, ready_made=True)
    )
