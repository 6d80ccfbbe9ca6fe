"""Ready-made shared classes, one file each. Every manager hosts them."""

from __future__ import annotations

import dataclasses

from ..settings import ManagerSettings
from ..sharing import Catalogue, ObjectsLimit, describe_class
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
    storage_limits = {"records_max": settings.rate_limit_records_max}
    # A cache may forget, and a rate limit ends by itself: neither is worth a disk.
    for cls, limits, setting in (
        (CacheRegion, cache_limits, "cache_regions_max"),
        (RateLimits, storage_limits, "rate_limit_storages_max"),
    ):
        record = describe_class(cls, kwargs=limits, durable=False, ready_made=True)
        limit = ObjectsLimit(getattr(settings, setting), setting)
        catalogue.add(dataclasses.replace(record, objects_limit=limit))
