"""A proxy between clients and the manager that cuts connections at random bytes."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from state_server.addresses import Address

_NOW_AND_WITH_RESET = struct.pack("ii", 1, 0)

#: Where a whole call may be under way on each side.
_CHUNK = 65536


class _Pipe:
    """One connection: a client's socket, the manager's, and when it will be cut.

    ``left``: the bytes that still pass from the client, and from the manager.
    """

    def __init__(self, client: socket.socket, manager: socket.socket) -> None:
        self.sides = (client, manager)
        self.left = [float("inf"), float("inf")]
        self.style = "close"
        self.is_cut = False


class CuttingProxy:
    """Listens on a port of its own; ``cuts`` counts what it has cut, by style."""

    STYLES = ("close", "reset", "late", "stall", "half")

    def __init__(self, manager: Address, seed: str, mean_bytes: float) -> None:
        self._manager = manager
        self._chance = random.Random(seed)
        self._mean_bytes = mean_bytes
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._stopping = False
        self.calm = False
        self.failure: BaseException | None = None
        self.cuts = dict.fromkeys(self.STYLES, 0)
        self._thread = threading.Thread(target=self._run, name="proxy")

    @property
    def address(self) -> str:
        """Return where clients find it."""
        return f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def start(self) -> None:
        """Start to forward."""
        self._thread.start()

    def stop(self) -> None:
        """Cut everything and end."""
        self._stopping = True
        self._thread.join(10)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        except BaseException as error:
            self.failure = error
        finally:
            for key in list(self._selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]
            self._selector.close()

    def _turn(self) -> None:
        wait_s = 0.1
        if self._later:
            wait_s = min(wait_s, max(0.0, self._later[0][0] - time.monotonic()))
        for key, _ in self._selector.select(wait_s):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj.fileno() >= 0:  # type: ignore[union-attr]
                pipe, side = key.data
                self._forward(pipe, side)
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        manager = _connected(self._manager)
        if manager is None:
            _end(client, reset=True)
            return
        pipe = _Pipe(client, manager)
        if not self.calm:
            self._choose_cut(pipe)
        for side, end in enumerate(pipe.sides):
            end.settimeout(1.0)
            if end.family != socket.AF_UNIX:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(end, selectors.EVENT_READ, (pipe, side))

    def _choose_cut(self, pipe: _Pipe) -> None:
        pipe.style = self._chance.choice(self.STYLES)
        if self._chance.random() < 0.2:
            # In the middle of the handshake.
            count = self._chance.randrange(500)
        else:
            count = 300 + int(self._chance.expovariate(1 / self._mean_bytes))
        # What comes late can only be a call.
        side = 0 if pipe.style == "late" else self._chance.randrange(2)
        pipe.left[side] = count

    def _forward(self, pipe: _Pipe, side: int) -> None:
        source, target = pipe.sides[side], pipe.sides[1 - side]
        try:
            data = source.recv(_CHUNK)
        except OSError:
            data = b""
        if not data:
            self._close(pipe)
            return
        if self.calm:
            pipe.left[side] = float("inf")
        passing = data[: int(min(len(data), pipe.left[side]))]
        pipe.left[side] -= len(data)
        try:
            if pipe.left[side] < 0 and pipe.style == "late":
                self._deliver_late(pipe, data)
                return
            target.sendall(passing)
        except OSError:
            self._close(pipe)
            return
        if pipe.left[side] < 0:
            self._cut(pipe)

    def _cut(self, pipe: _Pipe) -> None:
        self.cuts[pipe.style] += 1
        if pipe.style == "reset":
            self._close(pipe, reset=True)
        elif pipe.style == "close":
            self._close(pipe)
        else:
            # Nothing passes any more, but one side or both do not know yet.
            self._forget(pipe)
            if pipe.style == "half":
                _end(pipe.sides[self._chance.randrange(2)])
            self._after(self._chance.uniform(0, 1.0), lambda: self._close(pipe))

    def _deliver_late(self, pipe: _Pipe, data: bytes) -> None:
        """The client is told at once; the manager gets the call when it is too late."""
        self.cuts["late"] += 1
        self._forget(pipe)
        client, manager = pipe.sides
        _end(client)

        def deliver() -> None:
            with contextlib.suppress(OSError):
                manager.sendall(data)
            self._after(0.2, lambda: _end(manager))

        self._after(self._chance.uniform(0, 1.0), deliver)

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        moment = time.monotonic() + seconds
        heapq.heappush(self._later, (moment, next(self._order), action))

    def _forget(self, pipe: _Pipe) -> None:
        for end in pipe.sides:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(end)

    def _close(self, pipe: _Pipe, *, reset: bool = False) -> None:
        self._forget(pipe)
        for end in pipe.sides:
            _end(end, reset=reset)


def _connected(address: Address) -> socket.socket | None:
    family: Any = socket.AF_INET if address.path is None else socket.AF_UNIX
    target = (address.host, address.port) if address.path is None else address.path
    manager = socket.socket(family, socket.SOCK_STREAM)
    try:
        manager.settimeout(1.0)
        manager.connect(target)
    except OSError:
        manager.close()
        return None
    return manager


def _end(end: socket.socket, *, reset: bool = False) -> None:
    if reset and end.family == socket.AF_INET and end.fileno() >= 0:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOW_AND_WITH_RESET)
    end.close()
