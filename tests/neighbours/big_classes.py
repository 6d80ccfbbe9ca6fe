"""Classes that are called with large arrays, without keeping them."""

from __future__ import annotations

from typing import Any

from state_server import share


@share(durable=False)
class Mirror:
    """Gives back what it is given."""

    def echo(self, value: Any) -> Any:
        """Return what came."""
        return value

    def first(self, array: Any) -> Any:
        """Return the first item alone."""
        return array[0].item()


@share
class Depot:
    """Counts what is delivered, once each."""

    def __init__(self) -> None:
        self.delivered = 0

    def put(self, array: Any) -> tuple[int, float]:
        """Take one delivery; return how many there were, and its sum."""
        self.delivered += 1
        return self.delivered, float(array.sum())


@share(durable="journal")
class Scales:
    """Weighs arrays, and spoils them."""

    def __init__(self) -> None:
        self.total = 0.0

    def weigh(self, array: Any) -> float:
        """Add twice the sum of an array, which is doubled in its place."""
        array *= 2
        self.total += float(array.sum())
        return self.total

    def shown(self) -> float:
        """Return the total."""
        return self.total
