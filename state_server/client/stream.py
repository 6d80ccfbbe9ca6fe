"""The bytes of one connection, sent and received before a deadline.

What is sent never blocks. What is received is waited for in one of two ways:

* By ``poll``, and then it is taken without blocking. The main thread waits like this,
  as it hears the signals of its process: a receive that a signal has interrupted would
  begin its wait anew. So does every thread where the socket is not the system's own
  (gevent), or where the system is not Linux.
* By the receive itself, in all other threads. To give the interpreter up and to fetch
  it back from busy threads costs a web worker more than a call; one system call fewer
  saves one such round. (Only a thread that is itself sent a signal each second, by
  ``pthread_kill``, is held past its deadline by that.)
"""

from __future__ import annotations

import functools
import itertools
import os
import select
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from .. import tcp
from ..addresses import Address
from ..busy_poll import BusyPoll
from ..clock import monotonic
from ..errors import Unreachable
from ..messages import Payload

#: Small, because each read takes that much memory for a moment; what is larger is read
#: in pieces of growing number.
_READ_BYTES = 16384

#: Parts of one frame that are given to the system together; it takes 1,024 at most.
_PARTS_AT_ONCE = 64

#: The system counts a wait in milliseconds, in 31 bits; longer ones go around again.
_WAIT_MAX_S = 3600.0

#: How long a receive waits before the deadline is looked at again, and the least that
#: it can be told to wait: nothing would mean for ever.
_RECEIVE_WAIT_S = 1.0
_RECEIVE_WAIT_LEAST_S = 0.001

_DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)

#: The C structure ``timeval`` (socket(7), SO_RCVTIMEO).
_TIMEVAL = struct.Struct("ll")


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


class Stream:
    """A connected socket. Owned by one thread at a time.

    Deadlines are those of ``clock.monotonic``. Every method raises ``BrokenLink`` when
    the connection has ended and ``TimeIsUp`` when the deadline has passed.
    """

    __slots__ = ("_blocks", "_receive_wait_s", "_wait", "socket")

    def __init__(self, address: Address, deadline: float, busy_poll_s: float) -> None:
        """Connect; raise ``OSError`` when that fails."""
        family, target = _target(address)
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self._wait: Callable[[float], list[Any]]
        self._receive_wait_s = 0.0
        try:
            self.socket.settimeout(remaining_s(deadline, sent=False))
            self.socket.connect(target)
            tcp.tune(self.socket)
            self._blocks = self._prepare(busy_poll_s)
            self.socket.setblocking(self._blocks)
        except BaseException:
            self.socket.close()
            raise

    def _prepare(self, busy_poll_s: float) -> bool:
        """Choose how to wait; tell whether a receive may wait by itself."""
        if not hasattr(select, "poll"):
            self._wait = functools.partial(_select, self.socket)
            return False
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        # A poll that gevent has put in its place gives way by itself.
        is_native = type(poll).__module__ == "select"
        busy_s = busy_poll_s if is_native else 0.0
        self._wait = BusyPoll(poll.poll, busy_s, _is_only_thread)
        # Its sockets, which may be patched without poll, wait by rules of their own.
        is_native = is_native and type(self.socket).__module__ == "socket"
        return is_native and sys.platform == "linux"

    def send(self, data: bytes, deadline: float) -> None:
        """Send all of ``data``."""
        sent = 0
        try:
            while True:
                try:
                    sent += self.socket.send(
                        memoryview(data)[sent:] if sent else data, _DONT_WAIT
                    )
                except BlockingIOError:
                    _await_writable(self.socket, remaining_s(deadline, sent=sent > 0))
                if sent == len(data):
                    return
        except OSError as error:
            # A send that fails at once has given nothing to the other side.
            raise BrokenLink(str(error), sent=sent > 0) from None

    def send_parts(self, data: Sequence[Payload], deadline: float) -> None:
        """Send the parts one after the other, from where they are."""
        parts = deque(memoryview(part) for part in data)
        started = False
        try:
            while parts:
                try:
                    sent = self._send_some(parts)
                except BlockingIOError:
                    _await_writable(self.socket, remaining_s(deadline, sent=started))
                    continue
                started = True
                while parts and sent >= len(parts[0]):
                    sent -= len(parts.popleft())
                if sent:
                    parts[0] = parts[0][sent:]
        except OSError as error:
            raise BrokenLink(str(error), sent=started) from None

    def _send_some(self, parts: deque[memoryview]) -> int:
        if hasattr(self.socket, "sendmsg"):
            some = itertools.islice(parts, _PARTS_AT_ONCE)
            return self.socket.sendmsg(some, (), _DONT_WAIT)
        return self.socket.send(parts[0], _DONT_WAIT)

    def receive(self, deadline: float) -> bytes:
        """Return what has come, at least one byte."""
        while True:
            try:
                flags = self._get_ready(deadline)
                data = self.socket.recv(_READ_BYTES, flags)
            except BlockingIOError:
                # Nothing came; the deadline is looked at again.
                continue
            except OSError as error:
                raise BrokenLink(str(error), sent=True) from None
            if not data:
                raise BrokenLink("the manager closed the connection", sent=True)
            return data

    def receive_into(self, room: memoryview, deadline: float) -> int:
        """Put what has come into ``room``; return the number of bytes, at least one."""
        while True:
            try:
                flags = self._get_ready(deadline)
                count = self.socket.recv_into(room, 0, flags)
            except BlockingIOError:
                continue
            except OSError as error:
                raise BrokenLink(str(error), sent=True) from None
            if not count:
                raise BrokenLink("the manager closed the connection", sent=True)
            return count

    def is_quiet(self) -> bool:
        """Tell whether nothing has come: not even an end."""
        return not self._wait(0)

    def close(self, last_words: bytes = b"") -> None:
        """Close the socket; send ``last_words`` before, if it takes them at once."""
        if last_words:
            try:
                self.socket.setblocking(False)
                self.socket.send(last_words)
            except OSError:
                # The manager forgets the lane by itself, later.
                pass
        self.socket.close()

    def _get_ready(self, deadline: float) -> int:
        """Wait for something to come, or have the receive wait; return its flags."""
        wait_s = deadline - monotonic()
        if wait_s <= 0:
            raise TimeIsUp(sent=True)
        # The main thread of a process has its number.
        if not self._blocks or os.getpid() == threading.get_native_id():
            self._wait(min(wait_s, _WAIT_MAX_S) * 1000)
            return _DONT_WAIT
        wait_s = max(_RECEIVE_WAIT_LEAST_S, min(wait_s, _RECEIVE_WAIT_S))
        if wait_s != self._receive_wait_s:
            seconds = int(wait_s)
            limit = _TIMEVAL.pack(seconds, int((wait_s - seconds) * 1_000_000))
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._receive_wait_s = wait_s
        return 0


def _target(address: Address) -> tuple[int, str | tuple[str, int]]:
    if address.path is not None:
        if not hasattr(socket, "AF_UNIX"):
            raise Unreachable("This platform has no Unix sockets; use tcp://host:port.")
        return socket.AF_UNIX, address.path
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    return family, (address.host, address.port)


def remaining_s(deadline: float, *, sent: bool) -> float:
    """Return the seconds until the deadline; raise ``TimeIsUp`` when it has passed."""
    left_s = deadline - monotonic()
    if left_s <= 0:
        raise TimeIsUp(sent=sent)
    return left_s


def _is_only_thread() -> bool:
    return threading.active_count() == 1


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
