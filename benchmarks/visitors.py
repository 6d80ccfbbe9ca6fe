"""Visitors of a web server: connections that stay open, one request in flight on each.

The requests are built beforehand and the answers are read with as little as it takes to
check them, so that the visitors cost far less than the app; what they cost is reported.
Unlike the generators in ``load`` they sleep while there is nothing to do: a web worker
answers within hundreds of microseconds, and needs the processor for that.
"""

from __future__ import annotations

import collections
import gc
import re
import select
import socket
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import NamedTuple

_READ_BYTES = 65536
_TIMEOUT_S = 30.0
_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n", re.IGNORECASE)
_COOKIE = re.compile(rb"\r\nSet-Cookie: ([^;\r]+)", re.IGNORECASE)

Address = tuple[str, int]


class Visits(NamedTuple):
    """What came of a closed loop, times in seconds.

    ``requests`` counts those answered in time, ``times`` and ``numbers`` have those
    after the end, too; ``numbers`` the answers of each visitor. ``processor_s``: what
    the visitors themselves took.
    """

    requests: int
    seconds: float
    times: list[float]
    numbers: list[list[int]]
    processor_s: float


class Visitor:
    """One visitor, and the connection; a cookie that was set is kept and sent."""

    def __init__(self, address: Address) -> None:
        self.socket = socket.create_connection(address, timeout=_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._host = f"{address[0]}:{address[1]}".encode()
        self._cookie = b""
        self._read = b""
        #: The process that answers here, for a connection belongs to one.
        self.process_id = self._ask_now(b"/process")
        self._frame = self._framed(b"/")

    def _framed(self, path: bytes) -> bytes:
        cookie = b"Cookie: %s\r\n" % self._cookie if self._cookie else b""
        return b"GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (path, self._host, cookie)

    def visit(self) -> int:
        """Visit the page once; keep the cookie that it sets."""
        number = self._ask_now(b"/")
        self._frame = self._framed(b"/")
        return number

    def _ask_now(self, path: bytes) -> int:
        self.socket.sendall(self._framed(path))
        while (number := self.answer()) is None:
            pass
        return number

    def ask(self) -> None:
        """Send the next request."""
        self.socket.sendall(self._frame)

    def answer(self) -> int | None:
        """Read; return the number of the page once it is there in full."""
        data = self.socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionResetError("The web server closed a connection.")
        data = self._read + data
        end = data.find(b"\r\n\r\n")
        length = _LENGTH.search(data, 0, end + 2) if end > 0 else None
        if end < 0 or (length and len(data) < end + 4 + int(length[1])):
            self._read = data
            return None
        body = data[end + 4 :]
        if (
            length is None
            or not data.startswith(b"HTTP/1.1 200 ")
            or not body.isdigit()
        ):
            raise RuntimeError(f"The app answered {data!r:.2000}.")
        self._read = b""
        if not self._cookie and (cookie := _COOKIE.search(data, 0, end + 2)):
            self._cookie = cookie[1]
        return int(body)


def serve_visitors(
    pipe: Connection, addresses: Mapping[str, Address], each: int, processes: int
) -> None:
    """Be the process of the visitors; a request is (way, seconds).

    ``each``: how many connections there are to each of the ``processes`` of a server.
    """
    visitors = {way: _arrive(addresses[way], each, processes) for way in addresses}
    pipe.send({way: {one.process_id for one in visitors[way]} for way in visitors})
    try:
        while True:
            way, seconds = pipe.recv()
            pipe.send(_visit(visitors[way], seconds))
    except EOFError:
        return


def _arrive(address: Address, each: int, processes: int) -> list[Visitor]:
    """Connect until each process has its share: else one would idle, one be late."""
    found: dict[int, list[Visitor]] = collections.defaultdict(list)
    deadline = time.monotonic() + _TIMEOUT_S
    while len(found) < processes or any(len(some) < each for some in found.values()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"The workers do not share connections: {found}.")
        visitor = Visitor(address)
        some = found[visitor.process_id]
        if len(some) < each:
            some.append(visitor)
        else:
            visitor.socket.close()
    visitors = [visitor for some in found.values() for visitor in some]
    for visitor in visitors:
        visitor.visit()
    return visitors


def _visit(visitors: list[Visitor], seconds: float) -> Visits:
    poller = select.epoll()
    by_descriptor = {one.socket.fileno(): one for one in visitors}
    numbers: dict[int, list[int]] = {descriptor: [] for descriptor in by_descriptor}
    times: list[float] = []
    sent_at: dict[int, float] = {}
    for descriptor in by_descriptor:
        poller.register(descriptor, select.EPOLLIN)
    gc.collect()
    clock = time.perf_counter
    processor_before = time.process_time()
    started = now = clock()
    until = started + seconds
    for descriptor, visitor in by_descriptor.items():
        visitor.ask()
        sent_at[descriptor] = clock()
    requests = 0
    while sent_at:
        events = poller.poll(_TIMEOUT_S)
        if not events:
            raise RuntimeError(f"{len(sent_at)} requests were not answered.")
        for descriptor, _ in events:
            visitor = by_descriptor[descriptor]
            number = visitor.answer()
            if number is None:
                continue
            now = clock()
            times.append(now - sent_at.pop(descriptor))
            numbers[descriptor].append(number)
            if now < until:
                requests += 1
                visitor.ask()
                sent_at[descriptor] = now
    processor_s = time.process_time() - processor_before
    poller.close()
    return Visits(requests, seconds, times, list(numbers.values()), processor_s)
