"""The counter of the page ``/demo``: an ordinary class, without a lock."""

from __future__ import annotations

from collections import OrderedDict

#: Runs that one counter remembers; those that asked longest ago are forgotten.
RUNS_MAX = 1024


class DemonstrationCounter:
    """Count from 1 upwards, for each run of the demonstration by itself."""

    def __init__(self) -> None:
        self.numbers: OrderedDict[str, int] = OrderedDict()

    def next_number(self, run: str) -> int:
        """Return the next number of ``run``."""
        number = self.numbers.get(run, 0) + 1
        self.numbers[run] = number
        self.numbers.move_to_end(run)
        if len(self.numbers) > RUNS_MAX:
            self.numbers.popitem(last=False)
        return number
