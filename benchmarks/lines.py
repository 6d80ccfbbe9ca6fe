"""Raw connections: shaken hands for real, then fed with frames built beforehand.

A load generator must not be what is measured. So it neither pickles nor waits for one
connection at a time; it writes the bytes that the real client would have written.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client as StockConnection
from multiprocessing.managers import BaseManager
from typing import Any

import state_server
from state_server import codec, wire
from state_server.addresses import Address
from state_server.client.link import Link, new_lane

from .disks import resp
from .kept import COMMON_KEY

CALL_TIMEOUT_S = 60.0
_HANDSHAKE_TIMEOUT_S = 30.0
#: The number of a call, and where it is in the frame: after length, mark and kind.
_NUMBER = struct.Struct("!Q")
_NUMBER_AT = 6
_DONE = bytes((wire.MARK, wire.DONE))


class Line:
    """One connection of one kind; the frame to send next is ready in ``request``."""

    def __init__(self, peer: socket.socket) -> None:
        self.socket = peer
        self.recv = peer.recv
        self.send = peer.send

    def request(self) -> bytes | bytearray:
        """Return the frame of a call of ``Bench.query``."""
        raise NotImplementedError

    def is_answer(self, reply: bytes) -> bool:
        """Tell whether a reply says that the call was done."""
        return bool(reply)

    def slow_request(self, method: str, seconds: float) -> bytes:
        """Return the frame of a call of ``Slow.sleep`` or ``Slow.compute``."""
        raise NotImplementedError


class EchoLine(Line):
    """A connection to the echo server; the frame has the size of our own call."""

    def __init__(self, address: Address) -> None:
        family = socket.AF_INET if address.path is None else socket.AF_UNIX
        peer = socket.socket(family, socket.SOCK_STREAM)
        peer.connect(address.stock)
        if address.path is None:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().__init__(peer)
        self._frame = call_frame(1, bytes(16), "Bench", "query", b"")

    def request(self) -> bytes:
        return self._frame


class OwnLine(Line):
    """A connection as our own client makes it; it calls one method of one object."""

    def __init__(
        self,
        address: Address,
        key: bytes,
        target: tuple[str, str, str] = ("Bench", "default", "query"),
        arguments: tuple[Any, ...] = (),
    ) -> None:
        deadline = time.monotonic() + _HANDSHAKE_TIMEOUT_S
        self._link = Link(address, key, new_lane(os.urandom(16)), deadline)
        super().__init__(socket.socket(fileno=os.dup(self._link.fileno())))
        self._number = 0
        body = codec.encode((arguments, {})) if arguments else b""
        packed = wire.pack_target(*target)
        self._frame = bytearray(
            wire.framed(
                wire.pack_call(0, CALL_TIMEOUT_S, self._link.boot_id, packed, body)
            )
        )

    def request(self) -> bytes | bytearray:
        self._number += 1
        _NUMBER.pack_into(self._frame, _NUMBER_AT, self._number)
        return self._frame

    def is_answer(self, reply: bytes) -> bool:
        return reply[4:6] == _DONE

    def slow_request(self, method: str, seconds: float) -> bytes:
        self._number += 1
        body = pickle.dumps(((seconds,), {}), 4)
        return call_frame(self._number, self._link.boot_id, "Slow", method, body)


class RedisLine(Line):
    """A connection to Redis, which needs no handshake here; it adds one to a number."""

    def __init__(self, path: str) -> None:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        peer.connect(path)
        super().__init__(peer)
        self._frame = resp(b"INCR", COMMON_KEY.encode())

    def request(self) -> bytes:
        return self._frame

    def is_answer(self, reply: bytes) -> bool:
        return reply[:1] == b":"


class StockLine(Line):
    """A connection as a proxy of the standard library makes it."""

    def __init__(
        self, address: Address, key: bytes, identities: dict[str, str]
    ) -> None:
        self._connection = StockConnection(address.stock, authkey=key)
        self._connection.send((None, "accept_connection", ("benchmark",), {}))
        kind, _ = self._connection.recv()
        if kind != "#RETURN":
            raise RuntimeError(f"The manager answered {kind} to accept_connection.")
        super().__init__(socket.socket(fileno=os.dup(self._connection.fileno())))
        self._identities = identities
        self._frame = self._framed("Bench", "query", ())

    def _framed(self, name: str, method: str, args: tuple[Any, ...]) -> bytes:
        request: tuple[Any, ...] = (self._identities[name], method, args, {})
        return wire.framed(pickle.dumps(request))

    def request(self) -> bytes:
        return self._frame

    def slow_request(self, method: str, seconds: float) -> bytes:
        return self._framed("Slow", method, (seconds,))


def call_frame(
    number: int, boot_id: bytes, class_name: str, method: str, body: bytes
) -> bytes:
    """Return one call as our own client writes it."""
    target = wire.pack_target(class_name, "default", method)
    return wire.framed(wire.pack_call(number, CALL_TIMEOUT_S, boot_id, target, body))


def echo_call(address: Address) -> Callable[[], None]:
    """Connect to the echo server; return a function that sends and gets back a frame.

    The frame has the size of our own call.
    """
    line = EchoLine(address)
    frame, peer = line.request(), line.socket

    def call() -> None:
        peer.sendall(frame)
        missing = len(frame)
        while missing:
            missing -= len(peer.recv(missing))

    return call


class BenchManager(BaseManager):
    """A stock client."""


BenchManager.register("Bench")
BenchManager.register("Slow")
BenchManager.register("Echo")


def connect_stock(address: Address, key: bytes) -> BenchManager:
    """Return a stock client that is connected."""
    manager = BenchManager(address=address.stock, authkey=key)
    manager.connect()
    return manager


def connect_own(address: Address, key: bytes) -> state_server.Client:
    """Return a client of ours."""
    return state_server.connect(str(address), key, timeout=CALL_TIMEOUT_S)


@contextmanager
def open_lines(
    kind: str, address: Address, key: bytes, count: int
) -> Iterator[list[Line]]:
    """Make connections.

    ``kind`` is ``echo``, ``own`` or ``stock``; durable are ``common`` (ours, all call
    one object), ``each`` (ours, each calls an object of its own), ``table`` and ``small
    table`` (ours, one key of a journalled dictionary), ``sqlite`` and ``redis``.
    """
    lines: list[Line] = []
    proxies = []
    if kind == "stock":
        manager: Any = connect_stock(address, key)
        # Kept until the end: a stock object is gone with its last proxy.
        proxies = [manager.Bench(), manager.Slow()]
    try:
        for number in range(count):
            if kind in ("echo", "sqlite"):
                lines.append(EchoLine(address))
            elif kind == "redis":
                assert address.path is not None
                lines.append(RedisLine(address.path))
            elif kind == "stock":
                identities = {
                    name: proxy._token.id
                    for name, proxy in zip(("Bench", "Slow"), proxies, strict=True)
                }
                lines.append(StockLine(address, key, identities))
            elif kind == "own":
                lines.append(OwnLine(address, key))
            else:
                lines.append(OwnLine(address, key, *_durable_call(kind, number)))
        yield lines
    finally:
        for line in lines:
            line.socket.close()


def _durable_call(
    kind: str, number: int
) -> tuple[tuple[str, str, str], tuple[Any, ...]]:
    if kind == "common":
        return ("Counter", COMMON_KEY, "next"), ()
    if kind == "each":
        return ("Counter", own_key(number), "next"), ()
    return ("Table", kind.replace(" ", "-"), "put"), (7, "another value")


def own_key(number: int) -> str:
    """Return the key of the object that one caller has for itself."""
    return f"caller-{number}"
