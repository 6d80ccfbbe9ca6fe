"""State Server: plain Python objects, shared by every worker, each call once.

See the README for the two commands that show it, and docs/ for the rest.
"""

from typing import TYPE_CHECKING, Any

from .client import Client, Handle, connect
from .codec import allow
from .errors import (
    ConfigError,
    Denied,
    Expired,
    NotAllowed,
    NotOffered,
    NotShared,
    Overloaded,
    Refused,
    RemoteError,
    Stale,
    StateServerError,
    Stopping,
    StoreError,
    TooLarge,
    Unanswered,
    Unkeepable,
    Unloadable,
    Unreachable,
)
from .replayable import Unchanged, now, random
from .sharing import readonly, share
from .version import VERSION as __version__

if TYPE_CHECKING:
    from .manager import StateManager

__all__ = [
    "Client",
    "ConfigError",
    "Denied",
    "Expired",
    "Handle",
    "NotAllowed",
    "NotOffered",
    "NotShared",
    "Overloaded",
    "Refused",
    "RemoteError",
    "Stale",
    "StateManager",
    "StateServerError",
    "Stopping",
    "StoreError",
    "TooLarge",
    "Unanswered",
    "Unchanged",
    "Unkeepable",
    "Unloadable",
    "Unreachable",
    "__version__",
    "allow",
    "connect",
    "now",
    "random",
    "readonly",
    "share",
]


def __getattr__(name: str) -> Any:
    """Import the manager's half when it is asked for: workers and clients need none."""
    if name == "StateManager":
        from .manager import StateManager

        return StateManager
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
