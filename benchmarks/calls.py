"""Compare a call of ours with a bare echo and with the standard library's manager.

``python -m benchmarks.calls`` (``--help`` shows the options). Everything is measured in
one run, in rounds that take turns, so that a machine whose speed drifts, drifts for
all. What each figure means stands in the README of this folder.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from .callers import Target, serve_caller, serve_crowd
from .disks import Redis, redis_missing
from .kept import COMMON_KEY
from .lines import connect_own, connect_stock
from .load import Count, Timed, Worker, allow_many_descriptors, serve_generator
from .report import (
    Expectation,
    Figures,
    Machine,
    Report,
    parser,
    percentile,
    say,
)
from .servers import Server

TITLE = "Calls that are not durable"
CAVEAT = """\
Clients and servers share the processors of this machine, and the method does next to
nothing: the figures are the cost of a call, not of your work. The rivals run with their
defaults, and do less: no deadlines, no repeats, no limits, no order. Absolute figures
are this machine's, now. Compare the ratios, and mind their spread: a wide one says
that the machine was busy with other things, and then the run decides nothing."""

#: A way to call: which server, and how.
WAYS = {
    "echo": ("echo", "bare echo"),
    "stock": ("stock", "stock manager, stock client"),
    "ours": ("ours", "our manager, our client"),
    "ours, stock client": ("ours", "our manager, stock client"),
}
LINES = {"echo": "echo", "stock": "stock", "ours": "own", "ours, stock client": "stock"}
REDIS = "redis-py"
LABELS = {
    **{way: label for way, (_, label) in WAYS.items()},
    REDIS: "Redis that keeps nothing, redis-py",
}

CONNECTIONS_FEW, CONNECTIONS_MANY = 16, 1000
PACED_CONNECTIONS = 33
PROCESSES = (1, 4, 16)


class Plan(NamedTuple):
    """How much is measured."""

    rounds: int
    calls: int
    calls_unmeasured: int
    few_s: float
    many_s: float
    sleep_s: float
    sleep_rate: float
    compute_s: float
    compute_rate: float
    crowd_s: float


FULL = Plan(5, 3000, 300, 1.0, 1.5, 1.0, 2000.0, 2.0, 200.0, 0.7)
QUICK = Plan(2, 1500, 200, 0.5, 0.7, 1.0, 2000.0, 1.0, 200.0, 0.3)


class Bench:
    """One run: the servers, the processes that call them, and what was found."""

    def __init__(self, plan: Plan, stack: ExitStack, *, tcp: bool, apart: bool) -> None:
        self._plan = plan
        cpus = os.sched_getaffinity(0)
        self._caller_cpus = {max(cpus)} if apart else cpus
        self._server_cpus = cpus - self._caller_cpus if apart else cpus
        self._stack = stack
        self._folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        )
        self._key = secrets.token_hex(32)
        self._tcp = tcp
        self._servers: dict[str, Server] = {}
        for kind in ("echo", "stock", "ours"):
            server = Server(kind, self._folder, self._key, self._server_cpus, tcp=tcp)
            stack.callback(server.stop)
            self._servers[kind] = server
        self._counters: dict[str, Callable[[], int]] = self._connect_counters()
        self.figures = Figures()
        self.redis_version = ""

    def _connect_counters(self) -> dict[str, Callable[[], int]]:
        stock: Any = connect_stock(self._servers["stock"].address, self._key.encode())
        own = connect_own(self._servers["ours"].address, self._key.encode())
        self._stack.callback(own.close)
        proxy = stock.Bench()
        # The proxy dies with its reference, and with the last proxy the stock object.
        return {"stock": lambda: proxy.read(), "ours": own.get("Bench").read}

    # One caller ----------------------------------------------------------------------

    def one_caller(self) -> None:
        """One process calls, one call after another."""
        plan = self._plan
        targets = {way: self._target(way) for way in WAYS}
        worker = Worker(self._caller_cpus, serve_caller, targets, self._key.encode())
        try:
            for turn in range(plan.rounds):
                say(f"one caller, round {turn + 1} of {plan.rounds}")
                for way in WAYS:
                    times = worker.ask(way, plan.calls, plan.calls_unmeasured)
                    self.figures.note_times("one caller", way, times)
        finally:
            worker.stop()

    def _target(self, way: str) -> Target:
        return Target(LINES[way], self._servers[WAYS[way][0]].address)

    # Many callers --------------------------------------------------------------------

    def capacity(self, connections: int, seconds: float) -> None:
        """Many connections, each with one call in flight at all times."""
        workers = {way: self._generator(way, connections) for way in WAYS}
        name = f"{connections:,} connections"
        try:
            for turn in range(self._plan.rounds):
                say(f"{name}, round {turn + 1} of {self._plan.rounds}")
                for way, worker in workers.items():
                    self._count(name, way, worker, seconds)
        finally:
            for worker in workers.values():
                worker.stop()

    def _generator(self, way: str, connections: int) -> Worker:
        address = self._servers[WAYS[way][0]].address
        key = self._key.encode()
        return Worker(
            self._caller_cpus, serve_generator, LINES[way], address, key, connections
        )

    def _count(self, name: str, way: str, worker: Worker, seconds: float) -> None:
        server = self._servers[WAYS[way][0]]
        counter = self._counters.get(server.kind)
        number_before = counter() if counter else 0
        cpu_before = server.cpu_s()
        count: Count = worker.ask("count", seconds)
        cpu_s = server.cpu_s() - cpu_before
        if counter is not None:
            given = counter() - number_before
            self.figures.compare_counts(LABELS[way], count.all_calls, given)
        note = self.figures.note
        note(f"{name}, calls per second", way, count.calls / count.seconds)
        note(f"{name}, server CPU per call, µs", way, 1e6 * cpu_s / count.calls)
        share = 100 * count.waiting
        note(f"{name}, looks of the generator that found none, %", way, share)

    # Others, while a method takes long -----------------------------------------------

    def others(self) -> None:
        """Calls come at fixed moments while another object's method takes long."""
        plan = self._plan
        ways = ("stock", "ours")
        workers = {way: self._generator(way, PACED_CONNECTIONS) for way in ways}
        cases = (
            ("sleep", plan.sleep_rate, plan.sleep_s),
            ("compute", plan.compute_rate, plan.compute_s),
        )
        try:
            for worker in workers.values():
                worker.ask("pace", plan.sleep_rate, 0.3, "", 0.0)
            for turn in range(plan.rounds):
                say(f"others, round {turn + 1} of {plan.rounds}")
                for method, rate, seconds in cases:
                    for way, worker in workers.items():
                        for during in ("", method):
                            times = worker.ask("pace", rate, seconds, during, seconds)
                            self._note_paced(method, during, way, times)
        finally:
            for worker in workers.values():
                worker.stop()

    def _note_paced(
        self, method: str, during: str, way: str, times: list[float]
    ) -> None:
        milliseconds = sorted(1e3 * seconds for seconds in times)
        when = f"while a method {method}s" if during else f"control of {method}"
        for name, share in (("median", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
            value = percentile(milliseconds, share)
            self.figures.note(f"others, {when}, {name}, ms", way, value)

    # Callers as users have them ------------------------------------------------------

    def crowds(self) -> None:
        """Processes call in a closed loop, each with a real client of its own."""
        targets = {way: self._target(way) for way in ("stock", "ours")}
        with ExitStack() as stack:
            counters = dict(self._counters)
            reason = redis_missing(package=True)
            if self._tcp:
                reason = "only its Unix socket is measured"
            if reason:
                say(f"Redis is left out: {reason}.")
            else:
                redis = Redis(self._folder, self._server_cpus, durable=False)
                stack.callback(redis.stop)
                self.redis_version = redis.version()
                targets[REDIS] = Target("redis", redis.address)
                counters[REDIS] = lambda: redis.number(COMMON_KEY)
            most = max(PROCESSES)
            key = self._key.encode()
            crowd = Worker(self._caller_cpus, serve_crowd, targets, key, most)
            stack.callback(crowd.stop)
            for callers in PROCESSES:
                name = crowd_name(callers)
                for turn in range(self._plan.rounds):
                    say(f"{name}, round {turn + 1} of {self._plan.rounds}")
                    for way in targets:
                        self._time_crowd(callers, way, crowd, counters[way])

    def _time_crowd(
        self, callers: int, way: str, crowd: Worker, counter: Callable[[], int]
    ) -> None:
        before = counter()
        timed: Timed = crowd.ask(way, callers, self._plan.crowd_s)
        given = counter() - before
        self.figures.compare_counts(LABELS[way], timed.all_calls, given)
        self.figures.note_calls(crowd_name(callers), way, timed)

    # What follows --------------------------------------------------------------------

    def expectations(self) -> list[Expectation]:
        """Return the ratios, round by round."""
        figures = self.figures
        few = f"{CONNECTIONS_FEW:,} connections, calls per second"
        many = f"{CONNECTIONS_MANY:,} connections, calls per second"
        one = "one caller, median, µs"
        slept, control = (
            figures.values[f"others, {when}, p99.9, ms"]["ours"]
            for when in ("while a method sleeps", "control of sleep")
        )
        lines = [
            Expectation(
                f"capacity, {CONNECTIONS_FEW} connections: ours / stock",
                figures.ratios(few, "ours", "stock"),
                least=4,
            ),
            Expectation(
                f"capacity, {CONNECTIONS_MANY:,} connections: ours / stock",
                figures.ratios(many, "ours", "stock"),
                least=10,
            ),
            Expectation(
                "one caller, median: ours / echo",
                figures.ratios(one, "ours", "echo"),
                most=1.7,
            ),
            Expectation(
                "one caller, median: stock / ours",
                figures.ratios(one, "stock", "ours"),
                least=1.3,
            ),
            Expectation(
                "others while a method sleeps 1 s, p99.9: ours - control",
                [a - b for a, b in zip(slept, control, strict=True)],
                "ms",
                most=20,
            ),
            Expectation(
                "others while a method computes, median: ours",
                figures.values["others, while a method computes, median, ms"]["ours"],
                "ms",
                most=3,
            ),
            Expectation(
                f"capacity, {CONNECTIONS_FEW} connections: ours / echo",
                figures.ratios(few, "ours", "echo"),
            ),
            Expectation(
                f"capacity, {CONNECTIONS_FEW} connections: ours with stock client / "
                "stock",
                figures.ratios(few, "ours, stock client", "stock"),
            ),
            Expectation(
                f"capacity, {CONNECTIONS_MANY:,} connections: ours with stock client / "
                "stock",
                figures.ratios(many, "ours, stock client", "stock"),
            ),
            Expectation(
                "one caller, median: stock / ours with stock client",
                figures.ratios(one, "stock", "ours, stock client"),
            ),
        ]
        for callers in PROCESSES:
            figure = f"{crowd_name(callers)}, calls per second"
            for rival in ("stock", REDIS):
                if figures.has(figure, rival):
                    lines.append(
                        Expectation(
                            f"{crowd_name(callers)}, calls: ours / {rival}",
                            figures.ratios(figure, "ours", rival),
                            least=4 if (callers, rival) == (16, "stock") else None,
                        )
                    )
        return lines


def crowd_name(callers: int) -> str:
    """Return what so many callers with real clients are called in a figure."""
    return f"{callers} client process{'es' if callers > 1 else ''}"


def main(arguments: list[str] | None = None) -> int:
    """Run everything and print it."""
    options_parser = parser("calls", __doc__)
    options_parser.add_argument(
        "--tcp", action="store_true", help="TCP instead of Unix sockets"
    )
    options_parser.add_argument(
        "--apart",
        action="store_true",
        help="callers on the last processor alone, servers on the others",
    )
    options = options_parser.parse_args(arguments)
    plan = QUICK if options.quick else FULL
    if options.rounds is not None:
        plan = plan._replace(rounds=max(1, options.rounds))
    if options.apart and len(os.sched_getaffinity(0)) < 2:
        options_parser.error("--apart needs two processors")
    machine = Machine(
        {
            "placement": "callers and servers apart"
            if options.apart
            else "the system's",
            "sockets": "TCP, 127.0.0.1" if options.tcp else "Unix",
        }
    )
    allow_many_descriptors()
    with ExitStack() as stack:
        bench = Bench(plan, stack, tcp=options.tcp, apart=options.apart)
        bench.one_caller()
        bench.capacity(CONNECTIONS_FEW, plan.few_s)
        bench.crowds()
        bench.others()
        bench.capacity(CONNECTIONS_MANY, plan.many_s)
    machine.end()
    machine.facts["Redis"] = bench.redis_version or "left out"
    return Report(
        "calls",
        TITLE,
        CAVEAT,
        plan._asdict(),
        machine,
        LABELS,
        bench.figures,
        bench.expectations(),
    ).publish(options)


if __name__ == "__main__":
    sys.exit(main())
