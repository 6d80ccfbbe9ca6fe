"""Compare the way of a large value there and back: ours, stock, and a bare socket.

``python -m benchmarks.big`` (``--help`` shows the options). Everything is measured in
one run, in rounds that take turns. What each figure means stands in the README of this
folder.
"""

from __future__ import annotations

import functools
import mmap
import os
import secrets
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from state_server.addresses import Address
from state_server.errors import StateServerError

from .lines import connect_own, connect_stock
from .load import Worker
from .report import Expectation, Figures, Machine, Report, parser, say
from .servers import Server, new_memory, receive_exactly

TITLE = "Large values"
CAVEAT = """\
Both ends share the processors and the memory of this machine, and the value is only
handed back. The bare socket checks nothing, packs nothing and limits nothing: it sends
the bytes and receives as many. With buffers that are kept it asks the system for no
memory, which a value that somebody is to own cannot do."""

KEPT, FRESH, STOCK, OURS = "bare, kept", "bare, fresh", "stock", "ours"
WAYS = {
    KEPT: "bare socket, buffers are kept",
    FRESH: "bare socket, new memory each time",
    STOCK: "stock manager, stock client",
    OURS: "our manager, our client",
}
ARRAY, BYTES = "numpy array", "bytes"


class Plan(NamedTuple):
    """How much is measured."""

    rounds: int
    calls: int
    size: int


FULL = Plan(5, 3, 64_000_000)
QUICK = Plan(3, 1, 64_000_000)


class Bench:
    """One run: the servers, the process that calls them, and what was found."""

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        self._plan = plan
        self._stack = stack
        self._cpus = os.sched_getaffinity(0)
        self._key = secrets.token_hex(32)
        self.figures = Figures()

    def round_trips(self) -> None:
        """Send a value there and back in each way, in turns."""
        plan = self._plan
        made = tempfile.TemporaryDirectory(prefix="bench-")
        folder = Path(self._stack.enter_context(made))
        addresses = {}
        for kind in ("bulk", "stock", "ours"):
            server = Server(kind, folder, self._key, self._cpus)
            self._stack.callback(server.stop)
            addresses[kind] = server.address
        worker = Worker(
            self._cpus, serve_values, addresses, self._key.encode(), plan.size
        )
        self._stack.callback(worker.stop)
        for name, reason in worker.greeting["refused"].items():
            say(f"{name} is left out: {reason}")
        for turn in range(plan.rounds):
            say(f"round {turn + 1} of {plan.rounds}")
            for name in worker.greeting["names"]:
                times = worker.ask(name, plan.calls)
                kind, way = name
                figure = f"{kind} of {plan.size / 1e6:g} MB there and back, ms"
                self.figures.note(figure, way, 1e3 * statistics.median(times))

    def expectations(self) -> list[Expectation]:
        """Return the ratios, round by round."""
        lines = []
        for figure in self.figures.values:
            kind = figure.partition(" of ")[0]
            for rival, least in ((STOCK, 3), (FRESH, 0.6), (KEPT, 0.6)):
                if self.figures.has(figure, OURS):
                    text = f"{kind}, speed: ours / {WAYS[rival]}"
                    # The speed of one is the time of the other.
                    values = self.figures.ratios(figure, rival, OURS)
                    expected = least if kind == ARRAY else None
                    lines.append(Expectation(text, values, least=expected))
        return lines


# The process that calls --------------------------------------------------------------


class _Value(NamedTuple):
    """A value of some size; ``same`` tells whether what came back is equal."""

    value: Any
    same: Callable[[Any], bool]


def serve_values(
    pipe: Connection, addresses: dict[str, Address], key: bytes, size: int
) -> None:
    """Be the process of the caller; a request is ((value, way), calls)."""
    values = _values(size)
    manager: Any = connect_stock(addresses["stock"], key)
    echo, own = manager.Echo(), connect_own(addresses["ours"], key)
    ways: dict[str, Callable[[Any], Any]] = {
        KEPT: _bare_call(addresses["bulk"], size, keep=True),
        FRESH: _bare_call(addresses["bulk"], size, keep=False),
        STOCK: echo.echo,
        OURS: own.get("Echo").echo,
    }
    trips: dict[tuple[str, str], Callable[[], Any]] = {}
    refused: dict[str, str] = {}
    for kind, (value, same) in values.items():
        for way, call in ways.items():
            name = f"{kind}, {WAYS[way]}"
            try:
                back = call(value)
            except StateServerError as error:
                refused[name] = f"{type(error).__name__}: {error}"
                continue
            if not same(back):
                raise RuntimeError(f"{name}: another value came back.")
            trips[kind, way] = functools.partial(call, value)
    if ARRAY not in values:
        refused[ARRAY] = "the Python package numpy is missing (pip install '.[bench]')"
    pipe.send({"names": list(trips), "refused": refused})
    try:
        while True:
            name, count = pipe.recv()
            pipe.send([_time(trips[name]) for _ in range(count)])
    except EOFError:
        own.close()


def _values(size: int) -> dict[str, _Value]:
    pattern = os.urandom(1 << 20)
    content = (pattern * (size // len(pattern) + 1))[:size]
    values = {}
    if find_spec("numpy") is not None:
        import numpy

        array = numpy.frombuffer(content, "<u8").copy()
        values[ARRAY] = _Value(
            array, lambda back: memoryview(back).cast("B") == content
        )
    values[BYTES] = _Value(content, lambda back: memoryview(back) == content)
    return values


def _bare_call(address: Address, size: int, keep: bool) -> Callable[[Any], Any]:
    """Connect; return a function that sends the bytes of a value and gets them back."""
    assert address.path is not None
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.connect(address.path)
    # The sign says whether the other side shall keep its buffer, too.
    head = (size if keep else -size).to_bytes(8, "big", signed=True)
    kept = new_memory(size)

    def call(value: Any) -> mmap.mmap:
        peer.sendall(head)
        peer.sendall(memoryview(value).cast("B"))
        buffer = kept if keep else new_memory(size)
        receive_exactly(peer, memoryview(buffer))
        return buffer

    return call


def _time(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    back = call()
    seconds = time.perf_counter() - started
    # What was received is given back to the system outside of the measurement.
    del back
    return seconds


def main(arguments: list[str] | None = None) -> int:
    """Run everything and print it."""
    options = parser("big", __doc__).parse_args(arguments)
    plan = QUICK if options.quick else FULL
    if options.rounds is not None:
        plan = plan._replace(rounds=max(1, options.rounds))
    machine = Machine({"sockets": "Unix"})
    with ExitStack() as stack:
        bench = Bench(plan, stack)
        bench.round_trips()
    machine.end()
    return Report(
        "big",
        TITLE,
        CAVEAT,
        plan._asdict(),
        machine,
        WAYS,
        bench.figures,
        bench.expectations(),
    ).publish(options)


if __name__ == "__main__":
    sys.exit(main())
