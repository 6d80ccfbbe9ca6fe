"""Callers as users have them: processes that call with real client libraries.

Each calls in a closed loop, one call after another. What ``load`` measures is the
server alone; here the client's work counts as well, as it does in a web worker.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import time
from array import array
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from state_server.addresses import Address

from .disks import SqliteCounter
from .kept import COMMON_KEY
from .lines import connect_own, connect_stock, echo_call, own_key
from .load import ANSWER_TIMEOUT_S, Timed

#: For so long all callers call already when a turn of many begins to count.
_WARM_UP_S = 0.25

#: Only the process of ``serve_crowd`` forks, and it has one thread.
_forking = multiprocessing.get_context("fork")


class Target(NamedTuple):
    """What is called.

    ``kind``: ``echo``, ``stock`` and ``own`` (in memory), ``common`` and ``each`` (ours
    and durable: one object for all, one for each), ``redis``, ``sqlite``. ``address``:
    of the server; for SQLite the path of the file.
    """

    kind: str
    address: Address


def open_call(target: Target, key: bytes, number: int) -> Callable[[], object]:
    """Connect with a client of its own; return what this caller calls.

    ``number``: which caller it is.
    """
    kind, address = target
    query: Callable[[], object]
    if kind == "echo":
        return echo_call(address)
    if kind == "stock":
        manager: Any = connect_stock(address, key)
        query = manager.Bench().query
        return query
    path = address.path
    if kind == "redis":
        import redis

        client = redis.Redis(unix_socket_path=path)
        return functools.partial(client.incr, COMMON_KEY)
    if kind == "sqlite":
        assert path is not None
        return SqliteCounter(Path(path), busy_timeout_s=60.0).add_among_others
    own = connect_own(address, key)
    if kind == "own":
        handle: Any = own.get("Bench")
        query = handle.query
        return query
    handle = own.get("Counter", COMMON_KEY if kind == "common" else own_key(number))
    query = handle.next
    return query


# One caller --------------------------------------------------------------------------


def serve_caller(pipe: Connection, targets: Mapping[str, Target], key: bytes) -> None:
    """Be the process of a caller; a request is (way, calls, calls not counted)."""
    calls = {way: open_call(target, key, 0) for way, target in targets.items()}
    for call in calls.values():
        call()
    pipe.send("ready")
    try:
        while True:
            way, count, unmeasured = pipe.recv()
            pipe.send(_time_calls(calls[way], count, unmeasured))
    except EOFError:
        return


def _time_calls(call: Callable[[], object], count: int, unmeasured: int) -> list[float]:
    clock = time.perf_counter
    for _ in range(unmeasured):
        call()
    times = []
    gc.collect()
    for _ in range(count):
        started = clock()
        call()
        times.append(clock() - started)
    return times


# Many callers ------------------------------------------------------------------------


def serve_crowd(
    pipe: Connection, targets: Mapping[str, Target], key: bytes, count: int
) -> None:
    """Be the parent of so many callers; a request is (way, callers, seconds)."""
    pipes: list[Connection] = []
    processes = []
    # A collection would write to, and so copy, every page that the children share.
    gc.freeze()
    for number in range(count):
        ours, theirs = _forking.Pipe()
        inherited = [pipe, *pipes, ours]
        process = _forking.Process(
            target=_call_on_request,
            args=(theirs, inherited, targets, key, number),
            daemon=True,
        )
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    for each in pipes:
        _heard(each)
    pipe.send("ready")
    try:
        while True:
            way, callers, seconds = pipe.recv()
            start_at = time.perf_counter() + _WARM_UP_S
            for each in pipes[:callers]:
                each.send((way, start_at, seconds))
            found = [_heard(each) for each in pipes[:callers]]
            times = [one for each in found for one in each.times]
            calls = sum(each.calls for each in found)
            all_calls = sum(each.all_calls for each in found)
            pipe.send(Timed(calls, all_calls, seconds, times))
    except EOFError:
        for each in pipes:
            each.close()
        for process in processes:
            process.join(10)


def _heard(pipe: Connection) -> Any:
    if not pipe.poll(ANSWER_TIMEOUT_S):
        raise RuntimeError(f"A caller was silent for {ANSWER_TIMEOUT_S:g} s.")
    return pipe.recv()


def _call_on_request(
    pipe: Connection,
    inherited: list[Connection],
    targets: Mapping[str, Target],
    key: bytes,
    number: int,
) -> None:
    # A pipe ends with its last holder: a copy here would keep the others waiting.
    for each in inherited:
        each.close()
    calls = {way: open_call(target, key, number) for way, target in targets.items()}
    for call in calls.values():
        call()
    pipe.send(os.getpid())
    try:
        while True:
            way, start_at, seconds = pipe.recv()
            pipe.send(_call_until(calls[way], start_at, start_at + seconds))
    except EOFError:
        return


def _call_until(call: Callable[[], object], start_at: float, until: float) -> Timed:
    """Call from now on; count and time what is answered from ``start_at`` on.

    The last answer comes after the end. It is timed, so that the longest wait is not
    hidden, but not counted.
    """
    clock, uncounted, times = time.perf_counter, 0, array("d")
    before = clock()
    while before < until:
        call()
        now = clock()
        if now < start_at:
            uncounted += 1
        else:
            times.append(now - before)
        before = now
    gc.collect()
    if not times:
        raise RuntimeError("The machine is too busy: a caller began after the end.")
    calls, all_calls = len(times) - 1, uncounted + len(times)
    return Timed(calls, all_calls, until - start_at, list(times))
