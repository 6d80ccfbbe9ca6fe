"""Ready-made shared classes, one file each. Every manager hosts them."""

from __future__ import annotations

from ..sharing import Catalogue, describe_class
from .some_obj import SomeObj

__all__ = ["SomeObj", "add_ready_made"]


def add_ready_made(catalogue: Catalogue) -> None:
    """Add every ready-made class; one of the user's own with the same name wins."""
    catalogue.add(describe_class(SomeObj, ready_made=True))
