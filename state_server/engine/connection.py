"""One client's connection: its socket, what waits to be sent, whether a call is out.

A reply may be sent by any thread; everything else is done by the engine's leader.
"""

from __future__ import annotations

import socket
import threading
from typing import Protocol

from .. import handshake, wire
from ..host import Form, Ticket
from ..messages import Payload
from . import poller as polling
from .conversation import Conversation, Manners


class Owner(Protocol):
    """What a connection asks of the engine; any thread may call these."""

    def watch(self, connection: Connection, events: int) -> None:
        """Change what is watched for on a connection that is not closed."""

    def unwatch(self, connection: Connection) -> None:
        """Watch a connection no longer."""

    def revisit(self, connection: Connection) -> None:
        """Have the leader look at a connection although its socket is quiet."""

    def await_writable(self, connection: Connection, new_bytes: int) -> None:
        """Note that a reply waits for its reader."""

    def written(self, connection: Connection) -> None:
        """Note that a reply has been taken whole."""

    def count_outbound(self, change: int) -> None:
        """Keep account of the replies that wait to be read."""


class Connection:
    """One client's socket, and its place in the host.

    ``reader`` and ``buffered`` belong to the leader, as do ``skips``, how many bytes of
    a frame that is too large are still to come and to be thrown away, and
    ``skipped_answer``, what is said then; so does ``conversation`` while
    ``in_flight`` is false, and otherwise to the thread whose turn the frame is (a
    connection that is closed meanwhile is the exception: its lane is read then).
    ``ticket`` is guarded by the host's lock, the rest by ``_lock``; the leader looks at
    ``in_flight``, ``out`` and ``ends`` without it.
    """

    __slots__ = (
        "__weakref__",
        "_lock",
        "_owner",
        "buffered",
        "closed",
        "conversation",
        "ends",
        "fd",
        "in_flight",
        "out",
        "paused",
        "reader",
        "skipped_answer",
        "skips",
        "socket",
        "ticket",
    )

    def __init__(self, owner: Owner, peer: socket.socket, manners: Manners) -> None:
        self._owner = owner
        self._lock = threading.Lock()
        self.socket = peer
        self.fd = peer.fileno()
        self.reader = wire.FrameReader(handshake.HANDSHAKE_BYTES_MAX)
        self.conversation = Conversation(manners, self)
        self.ticket: Ticket | None = None
        self.buffered = 0
        self.skips = 0
        self.skipped_answer: Payload = b""
        self.in_flight = False
        self.paused = False
        self.closed = False
        self.ends = False
        self.out: memoryview | None = None

    def __repr__(self) -> str:
        """Say which socket it is and what it is doing."""
        state = "closed" if self.closed else "in flight" if self.in_flight else "idle"
        return f"<Connection {self.fd} {state}>"

    @property
    def form(self) -> Form:
        """Return how replies are spelled on this connection."""
        return self.conversation.form

    def send(self, payload: Payload, *, ends: bool = False) -> None:
        """Send ``payload``; what the socket does not take now, the leader sends later.

        ``ends``: the connection is closed once everything is sent.
        """
        is_large = len(payload) >= wire.LARGE_BYTES
        data = payload if is_large else wire.framed(payload)
        with self._lock:
            self.in_flight = False
            if self.closed:
                return
            self.ends = ends
            if self.out is not None:
                data = bytes(self.out) + wire.framed(payload)
                self._owner.count_outbound(-len(self.out))
                self.out = None
            elif is_large:
                data = self._begin(payload)
            try:
                sent = self.socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                # The poller reports the broken socket to the leader, who closes it.
                sent = len(data)
            if sent < len(data):
                self.out = memoryview(data)[sent:]
                self.paused = False
                self._owner.await_writable(self, len(self.out))
                return
            if self.paused:
                self.paused = False
                self._owner.watch(self, polling.READ)
        if ends or self.buffered:
            self._owner.revisit(self)

    #: How the host has the reply of the call in flight sent, from any thread.
    deliver = send

    def _begin(self, payload: Payload) -> Payload:
        """Send what stands in front of a large frame; return what is left to send.

        The payload is not copied for the sake of the few bytes before it.
        """
        head = wire.frame_head(len(payload))
        try:
            sent = self.socket.send(head)
        except OSError:
            # A broken socket says so again when the rest is sent.
            sent = 0
        return payload if sent == len(head) else head[sent:] + payload

    def resume(self) -> None:
        """Listen again, after a frame that asked for no answer."""
        with self._lock:
            self.in_flight = False
            if self.paused and not self.closed:
                self.paused = False
                self._owner.watch(self, polling.READ)
        if self.buffered:
            self._owner.revisit(self)

    def flush(self) -> None:
        """Send more of what is left; called by the leader when the socket takes it."""
        with self._lock:
            if self.out is None or self.closed:
                return
            try:
                sent = self.socket.send(self.out)
            except BlockingIOError:
                return
            except OSError:
                sent = len(self.out)
            self._owner.count_outbound(-sent)
            self.out = self.out[sent:] if sent < len(self.out) else None
            if self.out is None:
                self._owner.watch(self, polling.READ)
                self._owner.written(self)
            else:
                self._owner.await_writable(self, 0)
        if self.out is None and (self.ends or self.buffered):
            self._owner.revisit(self)

    def trim(self) -> None:
        """Keep of a reply what is unread, if most is read; called by the leader.

        A view keeps the whole reply, however little of it is counted. Now and then
        only: a reader that is quick has taken all of it before that.
        """
        with self._lock:
            if self.out is None:
                return
            whole = memoryview(self.out.obj)
            if 2 * len(self.out) < len(whole):
                self.out = memoryview(bytes(self.out))

    def pause_if_in_flight(self) -> bool:
        """Stop reading while a call is in flight; tell whether one is."""
        with self._lock:
            if self.in_flight and not self.paused and not self.closed:
                self.paused = True
                self._owner.watch(self, polling.QUIET)
            return self.in_flight

    def hung_up(self) -> bool:
        """Tell whether the peer is gone (an event may be older than the socket).

        The socket itself does not tell while something unread is before the end.
        """
        return polling.is_gone(self.fd)

    def shut(self) -> int:
        """Close the socket; return how many bytes were left unsent."""
        with self._lock:
            if self.closed:
                return 0
            self.closed = True
            self._owner.unwatch(self)
            self.socket.close()
            unsent = 0 if self.out is None else len(self.out)
            # Given back now: connection and conversation refer to each other, so the
            # rest goes only when the garbage collector comes round.
            self.out = None
            self.reader = wire.FrameReader(0)
            return unsent
