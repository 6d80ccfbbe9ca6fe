"""A region with bounds of its own, as the documentation says."""

from __future__ import annotations

from state_server import share
from state_server.objects import CacheRegion


@share(durable=False, kwargs={"entries_max": 5})
class Thumbnails(CacheRegion):
    """Pictures, which may not take the place of pages."""
