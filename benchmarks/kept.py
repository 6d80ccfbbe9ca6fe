"""The durable objects that are called; what is kept of them is on disk."""

from __future__ import annotations

from state_server import readonly, share

#: The key of the object that all callers share.
COMMON_KEY = "common"


@share
class Counter:
    """A number, and one more each time it is asked: the smallest durable change."""

    def __init__(self) -> None:
        self.number = 0

    def next(self) -> int:
        self.number += 1
        return self.number

    @readonly
    def read(self) -> int:
        return self.number


@share(durable="journal")
class Table:
    """A dictionary of any size, one key of which changes at a time."""

    def __init__(self) -> None:
        self.rows: dict[int, str] = {}

    def fill(self, count: int, length: int) -> None:
        self.rows = {number: f"{number:0{length}}" for number in range(count)}

    def put(self, key: int, value: str) -> int:
        self.rows[key] = value
        return len(self.rows)

    @readonly
    def read(self, key: int) -> str:
        return self.rows[key]
