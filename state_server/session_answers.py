"""What both halves know of sessions: rules, answers, and what makes a session.

The words travel as plain text. Each half turns them into a member here, which raises
``ValueError`` for a word that there is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class Rule(str, Enum):
    """How two requests that change one session at the same time come together."""

    #: The keys that each has changed are taken over, and all others left.
    MERGE = "merge"
    #: The later one replaces the whole session.
    LAST = "last"
    #: As ``MERGE``, but a key that another has changed meanwhile is refused.
    ERROR = "error"


class Outcome(str, Enum):
    """What became of a change: the first part of its answer; brackets: the second."""

    #: It was made. (the new version)
    SAVED = "saved"
    #: Nothing was left of the session, and it has ended. (0)
    EMPTIED = "emptied"
    #: There is no such session, now or any more; nothing was kept. (0)
    GONE = "gone"
    #: Another request has changed the same key; nothing was kept. (the key)
    CONFLICT = "conflict"
    #: The session would be over its limit; nothing was kept. (the largest changed key)
    TOO_LARGE = "too large"
    #: The shard holds as many sessions as it may; none was begun. (0)
    FULL = "full"


#: An outcome as text, and what it brings with it.
Answer = tuple[str, int | str]

#: Whether the cookie outlives the browser; an app may set it in every request.
PERMANENT = "_permanent"


def holds_something(keys: Iterable[str]) -> bool:
    """Tell whether these keys make a session: ``PERMANENT`` by itself does not."""
    return any(key != PERMANENT for key in keys)
