"""One connection of a client to the manager, used by one call at a time.

An error in the middle of an exchange closes the link, so a late reply can never be
taken for the answer to the next call.
"""

from __future__ import annotations

import os
import select
import socket
import time

from . import wire
from .errors import (
    Denied,
    NotAllowed,
    Overloaded,
    StateServerError,
    TooLarge,
    Unreachable,
)
from .failures import error_from, unpack
from .messages import Lane

#: A client accepts replies up to this size; the manager's own limit is lower.
_REPLY_BYTES_MAX = 2**40

_READ_BYTES = 65536


class BrokenLink(Exception):
    """The connection ended; ``sent`` tells whether the frame may have gone out."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class TimeIsUp(Exception):
    """The deadline passed; ``sent`` tells whether the frame may have gone out."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__("the deadline passed")
        self.sent = sent


def new_lane(session: bytes) -> Lane:
    """Return a lane of ``session`` that nobody has used before."""
    minted = int(time.time() * 1000).to_bytes(8, "big")
    return Lane(session, minted + os.urandom(8))


class Link:
    """A connection whose both ends have proven that they know the key.

    Owned by one thread at a time: the one whose call it carries, or the pool.
    """

    __slots__ = (
        "__weakref__",
        "_poll",
        "_reader",
        "_timeout_s",
        "boot_id",
        "frame_bytes_max",
        "is_admin",
        "lane",
        "made_at",
        "number",
        "process_id",
        "socket",
    )

    def __init__(
        self,
        address: wire.Address,
        key: bytes,
        lane: Lane,
        deadline: float,
        admin_key: bytes | None = None,
    ) -> None:
        """Connect and shake hands.

        Raises ``Denied`` when a side does not know the key, ``Overloaded`` when the
        manager takes no more connections, ``Unreachable`` for anything else.
        """
        self.lane = lane
        self.number = 0
        self.made_at = time.monotonic()
        self.boot_id = b""
        self.process_id = 0
        self.is_admin = False
        self.frame_bytes_max = 0
        self._reader = wire.FrameReader(_REPLY_BYTES_MAX)
        self._timeout_s = -1.0
        self._poll: select.poll | None = None
        family, target = _target(address)
        try:
            self.socket = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise Unreachable(f"No socket could be made: {error}.") from error
        try:
            self._set_timeout(deadline)
            self.socket.connect(target)
            if family in (socket.AF_INET, socket.AF_INET6):
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._shake_hands(key, admin_key, deadline)
        except StateServerError:
            # Before OSError: Denied and Unanswered are of that family as well.
            self.socket.close()
            raise
        except (OSError, TimeIsUp, BrokenLink) as error:
            self.socket.close()
            raise Unreachable(f"{address} does not answer: {error}.") from error
        except BaseException:
            self.socket.close()
            raise

    def __del__(self) -> None:
        """Give the descriptor back; nothing is sent."""
        if hasattr(self, "socket"):
            self.socket.close()

    def __repr__(self) -> str:
        """Say which socket it is and how many calls it has carried."""
        return f"<Link {self.socket.fileno()} number={self.number}>"

    def exchange(self, frame: bytes, deadline: float) -> wire.Reply:
        """Send one frame and return the reply to it.

        Raises ``BrokenLink`` or ``TimeIsUp``. The caller closes the link after any
        exception, whatever it is.
        """
        self._send(frame, deadline)
        try:
            return wire.unpack_reply(self._receive(deadline))
        except (NotAllowed, TooLarge) as error:
            raise BrokenLink(f"the reply cannot be read ({error})", sent=True) from None

    def is_quiet(self) -> bool:
        """Tell whether nothing has come since the last reply: not even an end."""
        if self._reader.buffered:
            return False
        if self._poll is None:
            if not hasattr(select, "poll"):
                return not select.select([self.socket], [], [], 0)[0]
            self._poll = select.poll()
            self._poll.register(self.socket.fileno(), select.POLLIN)
        return not self._poll.poll(0)

    def close(self, *, goodbye: bool = False) -> None:
        """Close the socket. ``goodbye``: tell the manager to forget the lane."""
        if goodbye:
            try:
                self.socket.setblocking(False)
                self.socket.send(wire.GOODBYE_FRAME)
            except OSError:
                # The manager forgets the lane by itself, later.
                pass
        self.socket.close()

    # Bytes ---------------------------------------------------------------------------

    def _send(self, frame: bytes, deadline: float) -> None:
        self._set_timeout(deadline)
        sent = 0
        try:
            sent = self.socket.send(frame)
            while sent < len(frame):
                self._set_timeout(deadline)
                sent += self.socket.send(memoryview(frame)[sent:])
        except TimeoutError:
            raise TimeIsUp(sent=sent > 0) from None
        except OSError as error:
            # A send that fails at once has given nothing to the other side.
            raise BrokenLink(str(error), sent=sent > 0) from None

    def _receive(self, deadline: float) -> bytes:
        payload = self._reader.next() if self._reader.buffered else None
        while payload is None:
            try:
                data = self.socket.recv(_READ_BYTES)
            except TimeoutError:
                raise TimeIsUp(sent=True) from None
            except OSError as error:
                raise BrokenLink(str(error), sent=True) from None
            if not data:
                raise BrokenLink("the manager closed the connection", sent=True)
            payload = self._reader.feed(data)
            if payload is None:
                self._set_timeout(deadline)
        return payload

    def _set_timeout(self, deadline: float) -> None:
        """Bound the next wait by the deadline; setting it costs a system call."""
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeIsUp(sent=False)
        if abs(self._timeout_s - remaining_s) > 0.01 * remaining_s:
            self._timeout_s = remaining_s
            self.socket.settimeout(remaining_s)

    # Handshake -----------------------------------------------------------------------

    def _shake_hands(
        self, key: bytes, admin_key: bytes | None, deadline: float
    ) -> None:
        handshake = wire.ClientHandshake(key)
        done = False
        while not done:
            payload = self._receive(deadline)
            if payload == wire.FULL:
                raise Overloaded("The manager takes no more connections for now.")
            answers, done = handshake.receive(payload)
            for answer in answers:
                self._send(wire.framed(answer), deadline)
        self._greet(key, admin_key, handshake.nonces, deadline)

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
            wire.proof(key, b"client", nonces),
            bytes(32) if admin_key is None else wire.proof(admin_key, b"admin", nonces),
        )
        self._send(wire.framed(wire.pack_hello(hello)), deadline)
        payload = self._receive(deadline)
        if wire.kind_of(payload) == wire.FAILED:
            raise error_from(unpack(wire.unpack_reply(payload).body))
        welcome = wire.unpack_welcome(payload)
        if not wire.proof_holds(key, b"server", nonces, welcome.proof):
            raise Denied("The server's proof of the key is wrong; it was not called.")
        self.boot_id = welcome.boot_id
        self.process_id = welcome.process_id
        self.is_admin = welcome.is_admin
        self.frame_bytes_max = welcome.frame_bytes_max


def _target(address: wire.Address) -> tuple[int, str | tuple[str, int]]:
    if address.path is not None:
        if not hasattr(socket, "AF_UNIX"):
            raise Unreachable("This platform has no Unix sockets; use tcp://host:port.")
        return socket.AF_UNIX, address.path
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    return family, (address.host, address.port)
