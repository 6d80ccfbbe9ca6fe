"""The processes that put load on a server, with frames built beforehand.

Each is started once, keeps its connections open between rounds, and works only while it
is told to, so that rounds of different servers can take turns.
"""

from __future__ import annotations

import gc
import multiprocessing
import resource
import select
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from state_server import wire
from state_server.addresses import Address

from .disks import SqliteCounter
from .lines import Line, open_lines
from .processes import on_processors

_context = multiprocessing.get_context("spawn")
_READ_BYTES = 65536
_START_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 60.0
_DRAIN_TIMEOUT_S = 30.0


class Count(NamedTuple):
    """What came of a closed loop; ``all_calls`` counts those after its end, too.

    ``waiting``: the share of the generator's looks that found no reply to take.
    """

    calls: int
    all_calls: int
    seconds: float
    waiting: float


class Timed(NamedTuple):
    """What came of a closed loop whose calls were timed, in seconds.

    ``calls`` counts those whose answer came, ``all_calls`` those after the end, too.
    """

    calls: int
    all_calls: int
    seconds: float
    times: list[float]


class Worker:
    """A process that does what it is told, one thing at a time."""

    def __init__(
        self, cpus: set[int], target: Callable[..., None], *arguments: Any
    ) -> None:
        self._pipe, theirs = _context.Pipe()
        # Not a daemon, because those may have no children; the pipe's end ends it.
        self._process = _context.Process(target=target, args=(theirs, *arguments))
        with on_processors(cpus):
            self._process.start()
        theirs.close()
        try:
            #: What the process said when it was ready.
            self.greeting: Any = self._answer(_START_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise

    def ask(self, *request: Any) -> Any:
        """Have the process do something; return what came of it."""
        self.begin(*request)
        return self.result()

    def begin(self, *request: Any) -> None:
        """Have the process begin something."""
        self._pipe.send(request)

    def result(self) -> Any:
        """Return what came of it, once it has ended."""
        return self._answer(ANSWER_TIMEOUT_S)

    def _answer(self, timeout_s: float) -> Any:
        if not self._pipe.poll(timeout_s):
            raise RuntimeError(f"A load generator was silent for {timeout_s:g} s.")
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError("A load generator ended; see its error above.") from None

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def allow_many_descriptors() -> None:
    """Raise this process's limit of open files, and so that of its children."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# Many at once ------------------------------------------------------------------------


def serve_generator(
    pipe: Connection, kind: str, address: Address, key: bytes, connections: int
) -> None:
    """Be the process of a load generator with so many connections of one kind."""
    with open_lines(kind, address, key, connections) as lines:
        for line in lines:
            line.socket.setblocking(False)
        pipe.send("ready")
        try:
            while True:
                what, *arguments = pipe.recv()
                if what == "count":
                    pipe.send(_count_calls(lines, *arguments))
                elif what == "time":
                    pipe.send(_time_lines(lines, *arguments))
                else:
                    pipe.send(_pace_calls(lines, *arguments))
        except EOFError:
            return


def _count_calls(lines: list[Line], seconds: float) -> Count:
    """Keep one call in flight on every connection, and count the replies.

    The generator never sleeps: a server that had to wake it for each reply would pay
    for that, and the system would put both on one processor.
    """
    poller = select.epoll()
    by_descriptor = {line.socket.fileno(): line for line in lines}
    for descriptor in by_descriptor:
        poller.register(descriptor, select.EPOLLIN)
    gc.collect()
    clock, calls, looks, idle_looks = time.perf_counter, 0, 0, 0
    started = now = clock()
    until = started + seconds
    for line in lines:
        line.send(line.request())
    while now < until:
        looks += 1
        events = poller.poll(0)
        if not events:
            idle_looks += 1
        for descriptor, _ in events:
            line = by_descriptor[descriptor]
            if not line.recv(_READ_BYTES):
                raise RuntimeError("The server closed a connection.")
            calls += 1
            line.send(line.request())
        now = clock()
    waiting = set(by_descriptor)
    drained_until = now + _DRAIN_TIMEOUT_S
    while waiting and clock() < drained_until:
        for descriptor, _ in poller.poll(0.1):
            by_descriptor[descriptor].recv(_READ_BYTES)
            waiting.discard(descriptor)
    poller.close()
    if waiting:
        raise RuntimeError(f"{len(waiting)} calls were never answered.")
    return Count(calls, calls + len(lines), now - started, idle_looks / looks)


def _time_lines(lines: list[Line], seconds: float) -> Timed:
    """Keep one call in flight on every connection, and time each of them.

    Like ``_count_calls`` it never sleeps. It ends after ``seconds``, but not before one
    call was answered: a disk that others use can keep a sync for that long. When the
    server goes away in the middle, that is the end, and what was answered until then is
    returned.
    """
    poller = select.epoll()
    by_descriptor = {line.socket.fileno(): line for line in lines}
    for descriptor in by_descriptor:
        poller.register(descriptor, select.EPOLLIN)
    gc.collect()
    clock, gone = time.perf_counter, False
    times: list[float] = []
    started = now = clock()
    until = started + seconds
    sent_at = {}
    for descriptor, line in by_descriptor.items():
        line.send(line.request())
        sent_at[descriptor] = clock()
    try:
        while now < until or (not times and now < until + _DRAIN_TIMEOUT_S):
            for descriptor, _ in poller.poll(0):
                line = by_descriptor[descriptor]
                _check(line, line.recv(_READ_BYTES))
                now = clock()
                times.append(now - sent_at[descriptor])
                line.send(line.request())
                sent_at[descriptor] = now
            now = clock()
    except ConnectionError:
        gone = True
    waiting = set() if gone else set(by_descriptor)
    late, drained_until = 0, clock() + _DRAIN_TIMEOUT_S
    while waiting and clock() < drained_until:
        for descriptor, _ in poller.poll(0.1):
            line = by_descriptor[descriptor]
            _check(line, line.recv(_READ_BYTES))
            waiting.discard(descriptor)
            late += 1
    poller.close()
    if waiting or not times:
        raise RuntimeError("Calls were never answered.")
    return Timed(len(times), len(times) + late, now - started, times)


def _check(line: Line, reply: bytes) -> None:
    if not reply:
        raise ConnectionResetError("The server closed a connection.")
    if not line.is_answer(reply):
        raise RuntimeError(f"A call failed: {reply!r}")


def serve_commits(pipe: Connection, path: str) -> None:
    """Be a process that commits to SQLite, one transaction after another."""
    counter = SqliteCounter(Path(path))
    clock = time.perf_counter
    pipe.send("ready")
    try:
        while True:
            (seconds,) = pipe.recv()
            times, started = [], clock()
            before, until = started, started + seconds
            while before < until:
                counter.add()
                now = clock()
                times.append(now - before)
                before = now
            pipe.send(Timed(len(times), len(times), before - started, times))
    except EOFError:
        counter.close()


def _pace_calls(
    lines: list[Line], rate: float, seconds: float, method: str, slow_s: float
) -> list[float]:
    """Call at fixed moments; return how long each reply took, counted from its moment.

    A server that pauses is not asked less often, and every call that was due during the
    pause shows it. One connection first calls the slow ``method``, if there is one.
    """
    slow_line, lines = lines[0], lines[1:]
    by_descriptor = {line.socket.fileno(): line for line in lines}
    free = list(by_descriptor)
    due_at: dict[int, float] = {}
    times: list[float] = []
    clock = time.perf_counter
    gc.collect()
    if method:
        slow_line.send(slow_line.slow_request(method, slow_s))
    started, sent, total = clock(), 0, int(rate * seconds)
    give_up_at = started + seconds + _DRAIN_TIMEOUT_S
    while len(times) < total:
        now = clock()
        if now > give_up_at:
            raise RuntimeError(f"{total - len(times)} calls were not answered in time.")
        while free and sent < total and (due := started + sent / rate) <= now:
            descriptor = free.pop()
            line = by_descriptor[descriptor]
            line.send(line.request())
            due_at[descriptor] = due
            sent += 1
        wait_s = 0.1
        if free and sent < total:
            wait_s = max(0.0, started + sent / rate - now)
        for descriptor in select.select(list(due_at), [], [], wait_s)[0]:
            if not by_descriptor[descriptor].recv(_READ_BYTES):
                raise RuntimeError("The server closed a connection.")
            times.append(clock() - due_at.pop(descriptor))
            free.append(descriptor)
    if method:
        _await_reply(slow_line)
    return times


def _await_reply(line: Line) -> None:
    if not select.select([line.socket], [], [], _DRAIN_TIMEOUT_S)[0]:
        raise RuntimeError("The slow method never ended.")
    reply = line.recv(_READ_BYTES)
    if reply[4:6] != bytes((wire.MARK, wire.DONE)) and b"#RETURN" not in reply:
        raise RuntimeError(f"The slow method failed: {reply!r}")
