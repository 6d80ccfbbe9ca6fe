"""The objects that are called, the same classes in every manager that is measured.

They are not durable, because those of the rivals cannot be.
"""

from __future__ import annotations

import time
from typing import Any

from state_server import share


@share(durable=False)
class Bench:
    """A number, and one more each time it is asked: the cheapest call that changes."""

    def __init__(self) -> None:
        self.number = 0

    def query(self) -> int:
        self.number += 1
        return self.number

    def read(self) -> int:
        return self.number


@share(durable=False)
class Slow:
    """Methods that take long, for what they do to the callers of other objects."""

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def compute(self, seconds: float) -> int:
        until = time.perf_counter() + seconds
        total = 0
        while time.perf_counter() < until:
            for number in range(100):
                total += number * number
        return total


@share(durable=False)
class Echo:
    """Hands back what it is given."""

    def echo(self, value: Any) -> Any:
        return value
