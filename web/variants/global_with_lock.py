"""A global variable and a lock.

The lock keeps the threads of one process apart. The other processes have locks and
counters of their own.
"""

import threading

from state_server.objects.demonstration import DemonstrationCounter

counter = DemonstrationCounter()
lock = threading.Lock()


def next_number(run: str) -> int:
    """Return the next number of ``run``."""
    with lock:
        return counter.next_number(run)
