"""Many processes that hit one rate limit at the same time, forked from one parent.

Run as ``python -m tests.neighbours.limiter_children URI PROCESSES HITS LIMIT``. Prints,
for each strategy, how many hits were let through in all processes together.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from limits import RateLimitItemPerHour
from limits.storage import storage_from_string
from limits.strategies import STRATEGIES

import state_server.integrations.limits  # noqa: F401 - makes stateserver:// known


def hit_together(
    limiter: Any, item: RateLimitItemPerHour, processes: int, hits: int
) -> int:
    """Return how many hits of all processes were let through."""
    go_read, go_write = os.pipe()
    told_read, told_write = os.pipe()
    children = []
    for _ in range(processes):
        child = os.fork()
        if child == 0:
            os.close(go_write)
            os.read(go_read, 1)
            passed = sum(limiter.hit(item, "visitor") for _ in range(hits))
            os.write(told_write, b"%d " % passed)
            os._exit(0)
        children.append(child)
    # All of them read the end of the pipe at the same time.
    os.close(go_write)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    os.close(told_write)
    with os.fdopen(told_read) as told:
        passed_by = [int(text) for text in told.read().split()]
    os.close(go_read)
    assert len(passed_by) == processes
    return sum(passed_by)


def main() -> None:
    """Be the parent."""
    uri = sys.argv[1]
    processes, hits, limit = map(int, sys.argv[2:5])
    storage = storage_from_string(uri)
    # The storage was used before the forks, so that a connection is there.
    storage.check()
    item = RateLimitItemPerHour(limit)
    print(
        json.dumps(
            {
                name: hit_together(
                    strategy(storage), RateLimitItemPerHour(limit), processes, hits
                )
                for name, strategy in STRATEGIES.items()
                if not storage.clear(item.key_for("visitor"))
            }
        )
    )


if __name__ == "__main__":
    main()
