"""The shared object.

One manager process has the counter and runs one call at a time on it. Each number is on
disk before anybody sees it.
"""

from state_server.integrations.flask import StateServer

state = StateServer()


def next_number(run: str) -> int:
    """Return the next number of ``run``."""
    number: int = state.get("DemonstrationCounter").next_number(run)
    return number
