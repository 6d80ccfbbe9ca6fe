"""A class that keeps bytes, in a module that needs neither numpy nor pandas."""

from __future__ import annotations

import sys

from state_server import share


@share
class Shelf:
    """Keeps what it does not understand."""

    def __init__(self) -> None:
        self.data = b""

    def put(self, data: bytes) -> None:
        """Keep bytes."""
        self.data = data

    def get(self) -> bytes:
        """Return the bytes."""
        return self.data

    def loaded(self) -> list[str]:
        """Return which of the packages are loaded in the manager."""
        return sorted({"numpy", "pandas"} & set(sys.modules))
