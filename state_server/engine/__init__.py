"""The engine: sockets, and what the leader does with them.

The leader polls all sockets, reads frames, hands calls to the host by way of the crew,
and writes what the sockets did not take at once.

Rules, each with a test that fails without it:

* Events that were fetched wait in a shared queue, never in a local list: whoever leads
  next finds them there.
* One call in flight per connection: reading stops until the reply is written, a peer
  that hangs up is still noticed.
* Silent peers, half frames, slow readers, too many of anything: each has a limit, and
  reaching it disturbs nobody else.

Behind this door: ``poller`` tells which sockets are ready, ``connection`` is one of
them; ``conversation`` is what is said on it, with ``stock`` clients in their language;
``crew`` has the threads, and who leads.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import socket
import threading
import time
from collections import deque
from typing import NamedTuple

from .. import handshake, tcp, wire
from ..busy_poll import BusyPoll
from ..errors import StateServerError, TooLarge
from ..host import Host
from ..limits import Edge
from ..messages import Call, Payload
from . import poller as polling
from .connection import Connection
from .conversation import Answer, Manners
from .crew import Continuation, Crew

__all__ = ["Engine", "EngineLimits", "Manners"]

log = logging.getLogger("state_server.engine")

_SWEEP_S = 0.25
_ACCEPTS_AT_ONCE = 64
#: Small, because each read takes that much memory for a moment.
_READ_BYTES = 16384
_READ_BYTES_LARGE = 1024 * 1024
_LISTENER_REST_S = 0.1
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class EngineLimits(NamedTuple):
    """The engine's limits; each is a setting of the same name."""

    connections_max: int = 10_000
    handshakes_max: int = 1024
    handshake_timeout_s: float = 10.0
    inbound_bytes_max: int = 512 * 1024 * 1024
    outbound_bytes_max: int = 512 * 1024 * 1024
    frame_timeout_s: float = 60.0
    write_timeout_s: float = 60.0
    threads_max: int = 64
    takeover_after_s: float = 0.005
    slice_s: float = 0.05
    busy_poll_s: float = 0.0002


class Engine:
    """The sockets of one manager.

    Sockets, buffers, tables and deadlines belong to the leader, who alone runs the
    methods below, but for those in the last section: ``_events`` may be appended to by
    any thread, and ``_write_deadlines`` and ``_next_sweep`` be set. ``_outbound_lock``
    guards ``_outbound_bytes``.
    """

    def __init__(
        self,
        manners: Manners,
        limits: EngineLimits = EngineLimits(),  # noqa: B008 - frozen
    ) -> None:
        self._manners = manners
        self._host: Host = manners.host
        self._limits = limits
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._poller = polling.make_poller(self.wake)
        self._poller.register(self._wake_receiver.fileno(), polling.READ)
        self._poll = BusyPoll(self._poller.poll, limits.busy_poll_s)
        self._crew = Crew(
            self._host,
            self._lead,
            self.wake,
            threads_max=limits.threads_max,
            takeover_after_s=limits.takeover_after_s,
            slice_s=limits.slice_s,
        )
        self._events: deque[tuple[int, int]] = deque()
        self._listeners: dict[int, socket.socket] = {}
        self._resting: dict[int, float] = {}
        self._connections: dict[int, Connection] = {}
        self._handshaking: dict[Connection, float] = {}
        self._frame_deadlines: dict[Connection, float] = {}
        self._write_deadlines: dict[Connection, float] = {}
        self._next_sweep = 0.0
        self._inbound_bytes = 0
        self._outbound_bytes = 0
        self._outbound_lock = threading.Lock()
        #: A descriptor kept in reserve, to turn a connection away when there is none.
        self._reserve: int | None = os.open(os.devnull, os.O_RDONLY)
        self._accepted = 0
        self._draining = False
        self._out_of_descriptors = False
        self._out_of_descriptors_at = 0.0
        self._connections_edge = Edge(log, "open connections", limits.connections_max)
        self._handshakes_edge = Edge(
            log, "connections without a proven key", limits.handshakes_max
        )
        self._inbound_edge = Edge(
            log, "bytes of unfinished frames", limits.inbound_bytes_max
        )
        self._outbound_edge = Edge(
            log, "bytes of unread replies", limits.outbound_bytes_max
        )

    def __repr__(self) -> str:
        """Return the numbers an operator asks for first."""
        return (
            f"<Engine connections={len(self._connections)} "
            f"handshaking={len(self._handshaking)} {self._crew!r}>"
        )

    def status(self) -> dict[str, int]:
        """Return the engine's numbers."""
        return {
            "connections": len(self._connections),
            "accepted": self._accepted,
            "handshaking": len(self._handshaking),
            "inbound_bytes": self._inbound_bytes,
            "outbound_bytes": self._outbound_bytes,
            **self._crew.status(),
        }

    # The life of the engine ----------------------------------------------------------

    def start(self, *listeners: socket.socket) -> None:
        """Begin to serve the sockets given, which must be listening."""
        for listener in listeners:
            listener.setblocking(False)
            self._listeners[listener.fileno()] = listener
            self._poller.register(listener.fileno(), polling.READ)
        self._crew.start()

    def drain(self, timeout_s: float) -> bool:
        """Refuse new calls and wait for the running ones; tell whether all ended."""
        self._draining = True
        self._host.close()
        self.wake()
        deadline = time.monotonic() + timeout_s
        while self._host.pending or self._outbound_bytes:
            if time.monotonic() > deadline:
                log.warning("Stopping; unfinished calls: %d.", self._host.pending)
                return False
            time.sleep(0.01)
        return True

    def stop(self, timeout_s: float = 5.0) -> None:
        """Close everything. A method that still runs is left behind by the process."""
        ended = self._crew.stop(timeout_s)
        for listener in self._listeners.values():
            listener.close()
        for connection in list(self._connections.values()):
            self._close(connection)
        if ended:
            self._poller.close()
            self._wake_receiver.close()
            self._wake_sender.close()
            if self._reserve is not None:
                os.close(self._reserve)

    def forget_parent(self) -> None:
        """Close the copies of the sockets, in a child that a method has forked.

        Without a word to the poller, which is the parent's as well.
        """
        self._host.abandon()
        for listener in self._listeners.values():
            listener.close()
        for connection in self._connections.values():
            connection.socket.close()

    def wake(self) -> None:
        """Make the leader look at its queues; any thread may call this."""
        try:
            self._wake_sender.send(b"\0")
        except OSError:
            # A full pipe wakes it as well; a closed one has nobody left to wake.
            return

    # The leader ----------------------------------------------------------------------

    def _lead(self) -> None:
        """Serve the sockets until somebody else does or the engine stops."""
        crew, events, handed_back = self._crew, self._events, self._crew.handed_back
        self._host.gather()
        while crew.leads() and not crew.stopping:
            try:
                if self._host.has_staged and not crew.run_turn(self._flush):
                    return
                if not events and not handed_back:
                    events.extend(self._poll(_SWEEP_S))
                if time.monotonic() >= self._next_sweep:
                    self._sweep()
                while events:
                    descriptor, bits = events.popleft()
                    if not self._on_event(descriptor, bits):
                        return
                for _ in range(len(handed_back)):
                    handed_back.popleft()()
                    if not crew.leads():
                        return
            except BaseException:
                # The border around the engine's life: a defect must not end the
                # service of everybody else, and without a leader there is none.
                log.exception("The engine failed; it goes on.")

    def _flush(self) -> None:
        self._host.flush(may_wait=self._crew.can_be_relieved())

    def _on_event(self, descriptor: int, bits: int) -> bool:
        """Handle one event; tell whether this thread is still the leader."""
        connection = self._connections.get(descriptor)
        if connection is None:
            self._on_other_event(descriptor)
        elif connection.in_flight and connection.pause_if_in_flight():
            if bits & polling.GONE and connection.hung_up():
                self._close(connection)
        elif connection.out is not None:
            connection.flush()
            if bits & (polling.ERROR | polling.HANGUP):
                self._close(connection)
        elif connection.ends:
            self._close(connection)
        else:
            return self._read(connection)
        return True

    def _on_other_event(self, descriptor: int) -> None:
        if descriptor in self._listeners:
            self._accept(self._listeners[descriptor])
        elif descriptor == self._wake_receiver.fileno():
            try:
                self._wake_receiver.recv(4096)
            except BlockingIOError:
                return

    def _read(self, connection: Connection) -> bool:
        if connection.skips:
            self._skip(connection)
            return True
        try:
            payload = self._receive(connection)
        except StateServerError as error:
            if isinstance(error, TooLarge) and self._begin_to_skip(connection, error):
                return True
            log.warning("Connection %d closed: %s", connection.fd, error)
            self._close(connection)
            return True
        except MemoryError:
            # What was read may be lost: what follows would be taken for it.
            log.error("Connection %d closed: no memory for its frame.", connection.fd)
            self._close(connection)
            return True
        if payload is None:
            return True
        connection.in_flight = True
        return self._crew.run_turn(functools.partial(self._take, connection, payload))

    def _begin_to_skip(self, connection: Connection, error: TooLarge) -> bool:
        """Throw a frame away, and answer when all of it has come; tell whether so.

        Who is still sending reads no answer. No memory is taken for it, and its time is
        that of any frame.
        """
        answer = connection.conversation.too_large(error)
        if answer is None:
            return False
        log.warning("Connection %d: %s It is thrown away.", connection.fd, error)
        connection.skips = connection.reader.skip()
        connection.skipped_answer = answer
        self._count_inbound(connection)
        if not connection.closed:
            self._frame_deadlines[connection] = (
                time.monotonic() + self._limits.frame_timeout_s
            )
            self._skip(connection)
        return True

    def _skip(self, connection: Connection) -> None:
        if connection.skips:
            size = min(connection.skips, _READ_BYTES_LARGE)
            try:
                count = len(connection.socket.recv(size))
            except BlockingIOError:
                return
            except OSError:
                count = 0
            if not count:
                self._close(connection)
                return
            connection.skips -= count
        if not connection.skips:
            self._frame_deadlines.pop(connection, None)
            connection.send(connection.skipped_answer)

    def _receive(self, connection: Connection) -> Payload | None:
        """Return the next whole frame of a connection, or ``None`` for now."""
        reader = connection.reader
        if connection.buffered:
            return self._receive_more(connection)
        try:
            data = connection.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return None
        payload: Payload | None = wire.whole_payload(data, reader.bytes_max)
        if payload is None:
            payload = reader.feed(data)
            if reader.buffered:
                self._count_inbound(connection)
        return None if connection.closed else payload

    def _receive_more(self, connection: Connection) -> Payload | None:
        """Return the next whole frame where some of it, or of one more, is here."""
        reader = connection.reader
        payload = reader.next()
        if payload is None:
            room = reader.room
            try:
                if room is not None:
                    count = connection.socket.recv_into(room[:_READ_BYTES_LARGE])
                else:
                    buffered = reader.buffered
                    size = _READ_BYTES if buffered < 65536 else _READ_BYTES_LARGE
                    data = connection.socket.recv(size)
                    count = len(data)
            except BlockingIOError:
                return None
            except OSError:
                count = 0
            if not count:
                self._close(connection)
                return None
            payload = reader.feed(data) if room is None else reader.fill(count)
        self._count_inbound(connection)
        return None if connection.closed else payload

    def _count_inbound(self, connection: Connection) -> None:
        """Keep account of unfinished frames, in bytes and in time."""
        before, now = connection.buffered, connection.reader.buffered
        connection.buffered = now
        self._inbound_bytes += now - before
        if self._inbound_edge.reached(self._inbound_bytes):
            log.warning("Connection %d closed: it sent too much.", connection.fd)
            self._close(connection)
        elif now == 0:
            self._frame_deadlines.pop(connection, None)
        elif before == 0:
            deadline = time.monotonic() + self._limits.frame_timeout_s
            self._frame_deadlines[connection] = deadline

    # One frame -----------------------------------------------------------------------

    def _take(self, connection: Connection, payload: Payload) -> Continuation | None:
        """Take one frame to where it belongs, in a turn that may be displaced.

        A call is begun here; what touches the engine's own tables is returned, to be
        done by whoever leads then.
        """
        try:
            heard = connection.conversation.receive(payload)
        except StateServerError as error:
            return functools.partial(self._end_badly, connection, error)
        except Exception:
            # A defect of ours: whoever waits for the answer must not wait for ever.
            log.exception("Connection %d closed: the engine failed.", connection.fd)
            return functools.partial(self._close, connection)
        if not isinstance(heard, Call):
            return functools.partial(self._answer, connection, heard)
        try:
            resident = self._host.submit(heard, connection)
            if resident is not None:
                self._crew.run(resident)
        except Exception:
            log.exception("Connection %d closed: the engine failed.", connection.fd)
            return functools.partial(self._close, connection)
        return None

    def _end_badly(self, connection: Connection, error: StateServerError) -> None:
        log.warning("Connection %d closed: %s", connection.fd, error)
        if connection.conversation.authenticated:
            self._close(connection)
        else:
            connection.send(handshake.REJECTED, ends=True)

    def _answer(self, connection: Connection, answer: Answer) -> None:
        conversation = connection.conversation
        if answer.goodbye:
            self._close(connection, finished=True)
            return
        if conversation.replaced is not None:
            self._close(conversation.replaced)
            conversation.replaced = None
        if self._connections.get(connection.fd) is not connection:
            # It hung up while the frame was heard: its lane may have been bound since.
            self._host.detach(conversation.lane, connection, finished=False)
            return
        if conversation.knows_key:
            connection.reader.bytes_max = conversation.frame_bytes_max
        if conversation.authenticated and connection in self._handshaking:
            del self._handshaking[connection]
            self._handshakes_edge.left(len(self._handshaking))
        if answer.payload is None:
            connection.resume()
        else:
            connection.send(answer.payload, ends=answer.close)

    # Connections ---------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                peer, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    self._refuse_for_want_of_descriptors(listener, error)
                    return
                continue
            self._accepted += 1
            self._welcome(peer)

    def _welcome(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        if self._draining or self._connections_edge.reached(len(self._connections)):
            self._turn_away(peer)
            return
        if self._handshakes_edge.reached(len(self._handshaking)):
            # The one that has been silent for longest makes room.
            self._close(next(iter(self._handshaking)))
        tcp.tune(peer)
        connection = Connection(self, peer, self._manners)
        self._connections[connection.fd] = connection
        self._handshaking[connection] = (
            time.monotonic() + self._limits.handshake_timeout_s
        )
        self._poller.register(connection.fd, polling.READ)
        connection.send(connection.conversation.opening())

    def _turn_away(self, peer: socket.socket) -> None:
        try:
            peer.send(wire.framed(handshake.FULL))
        except OSError:
            pass
        peer.close()

    def _refuse_for_want_of_descriptors(
        self, listener: socket.socket, error: OSError
    ) -> None:
        """Use the descriptor kept in reserve to close the connection that waits.

        Left alone it would wake the leader for ever. The listener then rests a moment.
        """
        self._out_of_descriptors_at = time.monotonic()
        if not self._out_of_descriptors:
            self._out_of_descriptors = True
            log.warning("No descriptor for a new connection: %s.", error)
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None
        try:
            peer, _ = listener.accept()
            self._turn_away(peer)
        except OSError:
            pass
        self._keep_a_reserve()
        self._poller.unregister(listener.fileno())
        self._resting[listener.fileno()] = time.monotonic() + _LISTENER_REST_S

    def _keep_a_reserve(self) -> None:
        try:
            self._reserve = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            # A method was quicker; there may be one when the listener has rested.
            self._reserve = None

    def _close(self, connection: Connection, *, finished: bool = False) -> None:
        """Forget a connection; called by the leader."""
        if self._connections.get(connection.fd) is not connection:
            return
        del self._connections[connection.fd]
        self._handshaking.pop(connection, None)
        self._frame_deadlines.pop(connection, None)
        self._inbound_bytes -= connection.buffered
        self.count_outbound(-connection.shut())
        # After it is shut: until then a reply may set a deadline.
        self._write_deadlines.pop(connection, None)
        self._host.detach(connection.conversation.lane, connection, finished=finished)
        self._connections_edge.left(len(self._connections))
        self._handshakes_edge.left(len(self._handshaking))
        self._inbound_edge.left(self._inbound_bytes)

    def _sweep(self) -> None:
        """Close what is over its time; a few dictionary looks, four times a second."""
        now = time.monotonic()
        self._next_sweep = now + _SWEEP_S
        self._host.sweep()
        while self._handshaking:
            connection, deadline = next(iter(self._handshaking.items()))
            if deadline > now:
                break
            log.info("Connection %d closed: no key was shown in time.", connection.fd)
            self._close(connection)
        for deadlines, what in (
            (self._frame_deadlines, "the rest of its frame did not come"),
            (self._write_deadlines, "it does not take its reply"),
        ):
            for connection, deadline in list(deadlines.items()):
                if deadline < now:
                    log.warning("Connection %d closed: %s.", connection.fd, what)
                    self._close(connection)
        for connection in list(self._write_deadlines):
            connection.trim()
        for descriptor, until in list(self._resting.items()):
            if until <= now:
                del self._resting[descriptor]
                if self._reserve is None:
                    self._keep_a_reserve()
                self._poller.register(descriptor, polling.READ)
        if self._out_of_descriptors and now - self._out_of_descriptors_at > 1.0:
            self._out_of_descriptors = False
            log.warning("There are descriptors for new connections again.")
        if self._draining:
            self._close_listeners()

    def _close_listeners(self) -> None:
        for descriptor, listener in self._listeners.items():
            self._poller.unregister(descriptor)
            listener.close()
        self._listeners.clear()
        self._resting.clear()

    # Called by connections, from any thread ------------------------------------------

    def watch(self, connection: Connection, events: int) -> None:
        """Change what is watched for on a connection that is not closed."""
        self._poller.modify(connection.fd, events)

    def unwatch(self, connection: Connection) -> None:
        """Watch a connection no longer."""
        self._poller.unregister(connection.fd)

    def revisit(self, connection: Connection) -> None:
        """Have the leader look at a connection although its socket is quiet."""
        self._events.append((connection.fd, polling.IN))
        if not self._crew.leads():
            self.wake()

    def await_writable(self, connection: Connection, new_bytes: int) -> None:
        """Note that a reply waits for its reader."""
        self._poller.modify(connection.fd, polling.WRITE)
        self._write_deadlines[connection] = (
            time.monotonic() + self._limits.write_timeout_s
        )
        self.count_outbound(new_bytes)
        if self._outbound_edge.reached(self._outbound_bytes):
            log.warning("Connection %d closed: too many unread replies.", connection.fd)
            self._write_deadlines[connection] = 0.0
            self._next_sweep = 0.0

    def written(self, connection: Connection) -> None:
        """Note that a reply has been taken whole."""
        self._write_deadlines.pop(connection, None)

    def count_outbound(self, change: int) -> None:
        """Keep account of the replies that wait to be read."""
        if change:
            with self._outbound_lock:
                self._outbound_bytes += change
