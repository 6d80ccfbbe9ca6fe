"""The session.

The number travels in the visitor's cookie, and comes back with the next request. Those
that are on their way at once all bring the same number.
"""

from flask import session


def next_number(run: str) -> int:
    """Return the next number of ``run``."""
    number: int = session.get("demonstration", {}).get(run, 0) + 1
    session["demonstration"] = {run: number}
    return number
