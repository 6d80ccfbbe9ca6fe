"""What is said between client and server: frozen, plain records.

Nothing here knows bytes (see codec), frames (see wire) or sockets. The records on the
quick path are named tuples because they are built about three times as fast as frozen
data classes and are just as unchangeable.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

#: One frame without its length; a large one is a view on memory of its own.
Payload = bytes | memoryview

#: The key of an object when the caller names none.
DEFAULT_KEY = "default"

#: Longest key of an object, in characters.
KEY_LENGTH_MAX = 1024


class Lane(NamedTuple):
    """One numbered sequence of calls of one client connection.

    ``session``: 16 random bytes, one per client object and process. ``lane``: 8 bytes
    of the time it was minted (milliseconds since 1970, big-endian), then 8 random ones.
    """

    session: bytes
    lane: bytes


class Call(NamedTuple):
    """One method call, as the host sees it.

    ``body`` is ``(args, kwargs)``, encoded or (from a stock client, whose frames are
    one value) decoded already; empty stands for none at all.
    ``remaining_s`` is the time left until the caller's deadline. ``lane`` is ``None``
    for callers without an identity (stock clients): theirs run at most once.
    ``first_boot`` is the boot id of the manager that the call was first sent to.
    ``held_bytes`` is the memory that the call holds until it is answered: that of its
    frame, or about that of its values where these are decoded already.
    """

    class_name: str
    key: str
    method: str
    body: bytes | memoryview | tuple[object, ...]
    remaining_s: float
    lane: Lane | None = None
    number: int = 0
    first_boot: bytes = b""
    held_bytes: int = 0

    @property
    def name(self) -> str:
        """Return the identity of the object: ``Class/key``."""
        return f"{self.class_name}/{self.key}"


class Failure(NamedTuple):
    """An error as data: it is named, described, and rebuilt by the receiver.

    ``code`` is a name of ``errors.FAMILY``, or ``"Raised"`` when the object's own code
    raised; only then the other fields are filled. ``args`` is the encoded tuple of the
    error's arguments, empty when they cannot travel. ``shown_args`` holds their repr.
    """

    code: str
    text: str
    module: str = ""
    qualname: str = ""
    args: bytes = b""
    shown_args: tuple[str, ...] = ()
    traceback: str = ""


#: Follows every error that says that something is not offered.
WHAT_IS_OFFERED = (
    "Only public methods and properties of the class are offered; reach an attribute "
    "through one of them."
)


class Contract(NamedTuple):
    """What a shared class offers to callers, decided from the class alone."""

    class_name: str
    methods: frozenset[str]
    properties: frozenset[str]
    settable: frozenset[str]


class Reference(NamedTuple):
    """A shared object named inside a value; the receiver makes a handle of it."""

    class_name: str
    key: str


class _Running(threading.local):
    """What this thread is running for a host, if anything."""

    boot_id: bytes | None = None
    name: str = ""


#: Set by the host around the object's code, so that a client used inside a method can
#: refuse to call its own manager (the object would wait for itself).
running = _Running()
