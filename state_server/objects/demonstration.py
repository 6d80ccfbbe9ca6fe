"""The counter of the page ``/demo``: an ordinary class, without a lock."""

from __future__ import annotations

#: Runs that one counter remembers; the first ones are forgotten.
RUNS_MAX = 64


class DemonstrationCounter:
    """Count from 1 upwards, for each run of the demonstration by itself."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def next_number(self, run: str) -> int:
        """Return the next number of ``run``."""
        number = self.numbers.get(run, 0) + 1
        self.numbers[run] = number
        for first in list(self.numbers)[:-RUNS_MAX]:
            self.numbers.pop(first, None)
        return number
