"""One connection of a client to the manager, used by one call at a time.

An error in the middle of an exchange closes the link, so a late reply can never be
taken for the answer to the next call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from .. import handshake, wire
from ..addresses import Address
from ..clock import monotonic
from ..errors import (
    Denied,
    NotAllowed,
    Overloaded,
    StateServerError,
    TooLarge,
    Unreachable,
)
from ..failures import error_from, unpack
from ..messages import Lane, Payload
from .stream import BrokenLink, Stream, TimeIsUp

#: A client accepts replies up to this size; the manager's own limit is lower.
_REPLY_BYTES_MAX = 2**40

#: The first own frame of a server: its greeting, or why it refuses.
_REFUSAL_BYTES_MAX = 64 * 1024


def new_lane(session: bytes) -> Lane:
    """Return a lane of ``session`` that nobody has used before."""
    if hasattr(time, "clock_gettime"):
        # Not time.time(): people's tests set that to another day, and the manager
        # refuses a lane that seems to come from there.
        now_s = time.clock_gettime(time.CLOCK_REALTIME)
    else:
        now_s = time.time()
    minted = int(now_s * 1000).to_bytes(8, "big")
    return Lane(session, minted + os.urandom(8))


class Link:
    """A connection whose both ends have proven that they know the key.

    Owned by one thread at a time: the one whose call it carries, or the pool.
    """

    __slots__ = (
        "__weakref__",
        "_reader",
        "_stream",
        "boot_id",
        "frame_bytes_max",
        "has_leftovers",
        "is_local",
        "lane",
        "made_at",
        "number",
    )

    def __init__(
        self,
        address: Address,
        key: bytes,
        lane: Lane,
        deadline: float,
        admin_key: bytes | None = None,
        busy_poll_s: float = 0.0,
    ) -> None:
        """Connect and shake hands.

        Raises ``Denied`` when a side does not know the key, ``Overloaded`` when the
        manager takes no more connections, ``Unreachable`` for anything else.
        """
        self.lane = lane
        self.number = 0
        self.made_at = monotonic()
        self.boot_id = b""
        self.frame_bytes_max = 0
        #: More has come than the reply that was read: the link is not to be used again.
        self.has_leftovers = False
        # Until the server has proven that it knows the key it is heard out shortly.
        self._reader = wire.FrameReader(handshake.HANDSHAKE_BYTES_MAX)
        #: A send to a peer that has closed a Unix socket fails at once, and gives it
        #: nothing; over TCP it may succeed.
        self.is_local = address.path is not None
        try:
            self._stream = Stream(address, deadline, busy_poll_s)
            self._shake_hands(key, admin_key, deadline)
        except StateServerError:
            # Before OSError: Denied and Unanswered are of that family as well.
            self.close()
            raise
        except (OSError, TimeIsUp, BrokenLink) as error:
            self.close()
            raise Unreachable(f"{address} does not answer: {error}.") from error
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        """Give the descriptor back; nothing is sent."""
        self.close()

    def __repr__(self) -> str:
        """Say which socket it is and how many calls it has carried."""
        return f"<Link {self.fileno()} number={self.number}>"

    def fileno(self) -> int:
        """Return the descriptor of the connection."""
        return self._stream.socket.fileno()

    def exchange(
        self, frame: bytes, deadline: float, rest: Sequence[Payload] = ()
    ) -> wire.Reply:
        """Send one frame and return the reply to it.

        ``rest``: what follows in the same frame, memory that is sent from where it is.
        Raises ``BrokenLink`` or ``TimeIsUp``. The caller closes the link after any
        exception, whatever it is.
        """
        if rest:
            self._stream.send_parts((frame, *rest), deadline)
        else:
            self._stream.send(frame, deadline)
        data = self._stream.receive(deadline)
        try:
            reply = wire.whole_reply(data)
            if reply is not None:
                return reply
            payload = self._reader.feed(data)
            if payload is None:
                payload = self._receive(deadline)
            self.has_leftovers = self._reader.buffered > 0
            return wire.unpack_reply(payload)
        except (NotAllowed, TooLarge) as error:
            raise BrokenLink(f"the reply cannot be read ({error})", sent=True) from None

    def is_quiet(self) -> bool:
        """Tell whether nothing has come since the last reply: not even an end."""
        return not self.has_leftovers and self._stream.is_quiet()

    def close(self, *, goodbye: bool = False) -> None:
        """Close the socket. ``goodbye``: tell the manager to forget the lane."""
        if hasattr(self, "_stream"):
            self._stream.close(wire.GOODBYE_FRAME if goodbye else b"")

    def _receive(self, deadline: float) -> Payload:
        reader = self._reader
        try:
            payload = reader.next() if reader.buffered else None
            while payload is None:
                room = reader.room
                if room is None:
                    payload = reader.feed(self._stream.receive(deadline))
                else:
                    payload = reader.fill(self._stream.receive_into(room, deadline))
        except (NotAllowed, TooLarge) as error:
            raise BrokenLink(f"what came is no answer ({error})", sent=True) from None
        return payload

    # Handshake -----------------------------------------------------------------------

    def _shake_hands(
        self, key: bytes, admin_key: bytes | None, deadline: float
    ) -> None:
        client = handshake.ClientHandshake(key)
        done = False
        while not done:
            payload = self._receive(deadline)
            if payload == handshake.FULL:
                raise Overloaded("The manager takes no more connections for now.")
            answers, done = client.receive(payload)
            for answer in answers:
                self._stream.send(wire.framed(answer), deadline)
        self._greet(key, admin_key, client.nonces, deadline)

    def _greet(
        self,
        key: bytes,
        admin_key: bytes | None,
        nonces: tuple[bytes, bytes],
        deadline: float,
    ) -> None:
        hello = wire.Hello(
            wire.PROTOCOL_VERSION,
            self.lane,
            handshake.proof(key, b"client", nonces),
            bytes(32)
            if admin_key is None
            else handshake.proof(admin_key, b"admin", nonces),
        )
        self._reader.bytes_max = _REFUSAL_BYTES_MAX
        self._stream.send(wire.framed(wire.pack_hello(hello)), deadline)
        payload = self._receive(deadline)
        if wire.kind_of(payload) == wire.FAILED:
            raise error_from(unpack(wire.unpack_reply(payload).body))
        welcome = wire.unpack_welcome(payload)
        if not handshake.proof_holds(key, b"server", nonces, welcome.proof):
            raise Denied("The server's proof of the key is wrong; it was not called.")
        if self._reader.buffered:
            raise BrokenLink("the manager sent more than its greeting", sent=False)
        self._reader.bytes_max = _REPLY_BYTES_MAX
        self.boot_id = welcome.boot_id
        self.frame_bytes_max = welcome.frame_bytes_max
