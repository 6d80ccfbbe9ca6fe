"""Classes that hold arrays and DataFrames, for the tests of big and rich values."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd

from state_server import share


@share
class Table:
    """A DataFrame of sales that is kept on disk."""

    def __init__(self) -> None:
        self.frame = pd.DataFrame({"article": ["water"], "price": [0.0]})
        self.seen = np.zeros(3, dtype="i8")

    def add(self, article: str, price: float) -> int:
        """Add a row; return how many there are."""
        self.frame.loc[len(self.frame)] = [article, price]
        self.seen[len(self.frame) % 3] += 1
        return len(self.frame)

    def add_and_fail(self) -> None:
        """Change everything, and raise."""
        self.frame["price"] = -1.0
        self.seen[:] = -1
        raise ValueError("no")

    def replace(self, frame: Any) -> Any:
        """Keep another DataFrame; return its shape."""
        self.frame = frame
        return frame.shape

    def rows(self) -> Any:
        """Return the DataFrame."""
        return self.frame

    def counts(self) -> Any:
        """Return the array."""
        return self.seen

    def total(self) -> Any:
        """Return a scalar of numpy."""
        return self.frame["price"].sum()


@share(durable=False)
class Canvas:
    """A large array that its methods change as a whole."""

    def __init__(self) -> None:
        self.pixels = np.zeros(500_000)

    def fill(self, value: float) -> None:
        """Give each pixel the same value."""
        self.pixels[:] = value

    def pixels_now(self) -> Any:
        """Return the live array, not a copy."""
        return self.pixels

    def doubled(self, array: Any) -> Any:
        """Double an argument in its place, and return it."""
        array *= 2
        return array

    def echo(self, value: Any) -> Any:
        """Return what came."""
        return value

    def modules(self) -> list[str]:
        """Return which of the packages are loaded here."""
        return sorted({"numpy", "pandas"} & set(sys.modules))
