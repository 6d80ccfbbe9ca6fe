"""One connection of a client to the manager, used by one call at a time.

An error in the middle of an exchange closes the link, so a late reply can never be
taken for the answer to the next call.
"""

from __future__ import annotations

import functools
import itertools
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from . import handshake, tcp, wire
from .addresses import Address
from .busy_poll import BusyPoll
from .errors import (
    Denied,
    NotAllowed,
    Overloaded,
    StateServerError,
    TooLarge,
    Unreachable,
)
from .failures import error_from, unpack
from .messages import Lane, Payload

#: A client accepts replies up to this size; the manager's own limit is lower.
_REPLY_BYTES_MAX = 2**40

#: The first own frame of a server: its greeting, or why it refuses.
_REFUSAL_BYTES_MAX = 64 * 1024

#: Small, because each read takes that much memory for a moment; a reply that is larger
#: is read in pieces of growing number.
_READ_BYTES = 16384

#: Parts of one frame that are given to the system together; it takes 1,024 at most.
_PARTS_AT_ONCE = 64

#: The system counts a wait in milliseconds, in 31 bits; longer ones go around again.
_WAIT_MAX_S = 3600.0


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
        "_wait",
        "boot_id",
        "frame_bytes_max",
        "is_admin",
        "is_local",
        "lane",
        "made_at",
        "number",
        "process_id",
        "socket",
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
        self.made_at = time.monotonic()
        self.boot_id = b""
        self.process_id = 0
        self.is_admin = False
        self.frame_bytes_max = 0
        # Until the server has proven that it knows the key it is heard out shortly.
        self._reader = wire.FrameReader(handshake.HANDSHAKE_BYTES_MAX)
        self._wait: Callable[[float], list[Any]]
        #: A send to a peer that has closed a Unix socket fails at once, and gives it
        #: nothing; over TCP it may succeed.
        self.is_local = address.path is not None
        family, target = _target(address)
        try:
            self.socket = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise Unreachable(f"No socket could be made: {error}.") from error
        try:
            self._connect(target, deadline, busy_poll_s)
            tcp.tune(self.socket)
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

    def exchange(
        self, frame: bytes, deadline: float, rest: Sequence[Payload] = ()
    ) -> wire.Reply:
        """Send one frame and return the reply to it.

        ``rest``: what follows in the same frame, memory that is sent from where it is.
        Raises ``BrokenLink`` or ``TimeIsUp``. The caller closes the link after any
        exception, whatever it is.
        """
        if rest:
            self._send_parts(frame, rest, deadline)
        else:
            self._send(frame, deadline)
        try:
            if not self._reader.buffered:
                data = self._receive_some(deadline)
                reply = wire.whole_reply(data)
                if reply is not None:
                    return reply
                payload = self._reader.feed(data)
                if payload is not None:
                    return wire.unpack_reply(payload)
            return wire.unpack_reply(self._receive(deadline))
        except (NotAllowed, TooLarge) as error:
            raise BrokenLink(f"the reply cannot be read ({error})", sent=True) from None

    @property
    def has_leftovers(self) -> bool:
        """Tell whether more has come than the reply that was read."""
        return self._reader.buffered > 0

    def is_quiet(self) -> bool:
        """Tell whether nothing has come since the last reply: not even an end."""
        return not self._reader.buffered and not self._wait(0)

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
    #
    # The socket never blocks, and there is one wait: a timeout of the socket's own
    # would cost a system call before each send and each receive.

    def _connect(
        self, target: str | tuple[str, int], deadline: float, busy_poll_s: float
    ) -> None:
        self.socket.settimeout(_remaining_s(deadline, sent=False))
        self.socket.connect(target)
        self.socket.setblocking(False)
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self.socket.fileno(), select.POLLIN)
            # A poll that gevent has put in its place gives way by itself.
            is_native = type(poll).__module__ == "select"
            busy_s = busy_poll_s if is_native else 0.0
            self._wait = BusyPoll(poll.poll, busy_s, _is_only_thread)
        else:
            self._wait = functools.partial(_select, self.socket)

    def _send(self, frame: bytes, deadline: float) -> None:
        sent = 0
        try:
            while True:
                try:
                    sent += self.socket.send(
                        memoryview(frame)[sent:] if sent else frame
                    )
                except BlockingIOError:
                    _await_writable(self.socket, _remaining_s(deadline, sent=sent > 0))
                if sent == len(frame):
                    return
        except OSError as error:
            # A send that fails at once has given nothing to the other side.
            raise BrokenLink(str(error), sent=sent > 0) from None

    def _send_parts(
        self, frame: bytes, rest: Sequence[Payload], deadline: float
    ) -> None:
        parts = deque(memoryview(part) for part in (frame, *rest))
        started = False
        try:
            while parts:
                try:
                    if hasattr(self.socket, "sendmsg"):
                        some = itertools.islice(parts, _PARTS_AT_ONCE)
                        sent = self.socket.sendmsg(some)
                    else:
                        sent = self.socket.send(parts[0])
                except BlockingIOError:
                    _await_writable(self.socket, _remaining_s(deadline, sent=started))
                    continue
                started = True
                while parts and sent >= len(parts[0]):
                    sent -= len(parts.popleft())
                if sent:
                    parts[0] = parts[0][sent:]
        except OSError as error:
            raise BrokenLink(str(error), sent=started) from None

    def _receive(self, deadline: float) -> Payload:
        reader = self._reader
        try:
            payload = reader.next() if reader.buffered else None
            while payload is None:
                room = reader.room
                if room is None:
                    payload = reader.feed(self._receive_some(deadline))
                else:
                    payload = reader.fill(self._receive_into(room, deadline))
        except (NotAllowed, TooLarge) as error:
            raise BrokenLink(f"what came is no answer ({error})", sent=True) from None
        return payload

    def _receive_into(self, room: memoryview, deadline: float) -> int:
        while True:
            wait_s = min(_remaining_s(deadline, sent=True), _WAIT_MAX_S)
            try:
                self._wait(wait_s * 1000)
                count = self.socket.recv_into(room)
            except BlockingIOError:
                continue
            except OSError as error:
                raise BrokenLink(str(error), sent=True) from None
            if not count:
                raise BrokenLink("the manager closed the connection", sent=True)
            return count

    def _receive_some(self, deadline: float) -> bytes:
        while True:
            wait_s = min(_remaining_s(deadline, sent=True), _WAIT_MAX_S)
            try:
                self._wait(wait_s * 1000)
                data = self.socket.recv(_READ_BYTES)
            except BlockingIOError:
                # Nothing came; the deadline is looked at again.
                continue
            except OSError as error:
                raise BrokenLink(str(error), sent=True) from None
            if not data:
                raise BrokenLink("the manager closed the connection", sent=True)
            return data

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
                self._send(wire.framed(answer), deadline)
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
        self._send(wire.framed(wire.pack_hello(hello)), deadline)
        payload = self._receive(deadline)
        if wire.kind_of(payload) == wire.FAILED:
            raise error_from(unpack(wire.unpack_reply(payload).body))
        welcome = wire.unpack_welcome(payload)
        if not handshake.proof_holds(key, b"server", nonces, welcome.proof):
            raise Denied("The server's proof of the key is wrong; it was not called.")
        self._reader.bytes_max = _REPLY_BYTES_MAX
        self.boot_id = welcome.boot_id
        self.process_id = welcome.process_id
        self.is_admin = welcome.is_admin
        self.frame_bytes_max = welcome.frame_bytes_max


def _is_only_thread() -> bool:
    return threading.active_count() == 1


def _target(address: Address) -> tuple[int, str | tuple[str, int]]:
    if address.path is not None:
        if not hasattr(socket, "AF_UNIX"):
            raise Unreachable("This platform has no Unix sockets; use tcp://host:port.")
        return socket.AF_UNIX, address.path
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    return family, (address.host, address.port)


def _remaining_s(deadline: float, *, sent: bool) -> float:
    """Return the seconds until the deadline; raise ``TimeIsUp`` when it has passed."""
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise TimeIsUp(sent=sent)
    return remaining_s


def _select(peer: socket.socket, timeout_ms: float) -> list[Any]:
    """Wait for something to come, where there is no poll."""
    return select.select([peer], [], [], timeout_ms / 1000)[0]


def _await_writable(peer: socket.socket, timeout_s: float) -> None:
    if hasattr(select, "poll"):
        # Unlike select, it takes descriptors above 1,023.
        poll = select.poll()
        poll.register(peer.fileno(), select.POLLOUT)
        poll.poll(min(timeout_s, _WAIT_MAX_S) * 1000)
    else:
        select.select([], [peer], [], timeout_s)
