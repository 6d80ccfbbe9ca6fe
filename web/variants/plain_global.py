"""A global variable.

This is the app of the question. Each worker process has its own counter.
"""

from state_server.objects.demonstration import DemonstrationCounter

counter = DemonstrationCounter()


def next_number(run: str) -> int:
    """Return the next number of ``run``."""
    return counter.next_number(run)
