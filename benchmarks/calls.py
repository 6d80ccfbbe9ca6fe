"""Compare a call of ours with a bare echo and with the standard library's manager.

``python -m benchmarks.calls`` (``--help`` shows the options). Everything is measured in
one run, in rounds that take turns, so that a machine whose speed drifts, drifts for
all. What each figure means stands in the README of this folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from .lines import connect_own, connect_stock
from .load import (
    Count,
    Worker,
    allow_many_descriptors,
    serve_caller,
    serve_generator,
)
from .servers import Server

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

CONNECTIONS_FEW, CONNECTIONS_MANY = 16, 1000
PACED_CONNECTIONS = 33


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


FULL = Plan(5, 3000, 300, 1.0, 1.5, 1.0, 2000.0, 2.0, 200.0)
QUICK = Plan(2, 1500, 200, 0.5, 0.7, 1.0, 2000.0, 1.0, 200.0)


class Expectation(NamedTuple):
    """A ratio or a difference, round by round, and what it is hoped to be."""

    text: str
    values: list[float]
    unit: str
    least: float | None = None
    most: float | None = None

    def outcome(self) -> str:
        """Say whether the median is as expected, or nothing if nothing was."""
        middle = statistics.median(self.values)
        if self.least is not None:
            return f"at least {self.least:g}: {'yes' if middle >= self.least else 'NO'}"
        if self.most is not None:
            return f"at most {self.most:g}: {'yes' if middle <= self.most else 'NO'}"
        return ""


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
        self._servers: dict[str, Server] = {}
        for kind in ("echo", "stock", "ours"):
            server = Server(kind, self._folder, self._key, self._server_cpus, tcp=tcp)
            stack.callback(server.stop)
            self._servers[kind] = server
        self._counters: dict[str, Callable[[], int]] = self._connect_counters()
        #: figure → way → one value for each round
        self.figures: dict[str, dict[str, list[float]]] = {}

    def _connect_counters(self) -> dict[str, Callable[[], int]]:
        stock: Any = connect_stock(self._servers["stock"].address, self._key.encode())
        own = connect_own(self._servers["ours"].address, self._key.encode())
        self._stack.callback(own.close)
        proxy = stock.Bench()
        # The proxy dies with its reference, and with the last proxy the stock object.
        return {"stock": lambda: proxy.query(), "ours": own.get("Bench").query}

    def _note(self, figure: str, way: str, value: float) -> None:
        self.figures.setdefault(figure, {}).setdefault(way, []).append(value)

    def _say(self, text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)

    # One caller ----------------------------------------------------------------------

    def one_caller(self) -> None:
        """One process calls, one call after another."""
        plan = self._plan
        addresses = {way: self._servers[WAYS[way][0]].address for way in WAYS}
        worker = Worker(self._caller_cpus, serve_caller, addresses, self._key.encode())
        try:
            for turn in range(plan.rounds):
                self._say(f"one caller, round {turn + 1} of {plan.rounds}")
                for way in WAYS:
                    times = worker.ask(way, plan.calls, plan.calls_unmeasured)
                    microseconds = sorted(1e6 * seconds for seconds in times)
                    for name, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99)):
                        value = percentile(microseconds, share)
                        self._note(f"one caller, {name}, µs", way, value)
                    self._note("one caller, max, µs", way, microseconds[-1])
        finally:
            worker.stop()

    # Many callers --------------------------------------------------------------------

    def capacity(self, connections: int, seconds: float) -> None:
        """Many connections, each with one call in flight at all times."""
        workers = {
            way: self._generator(way, connections) for way in WAYS if way in LINES
        }
        name = f"{connections:,} connections"
        try:
            for turn in range(self._plan.rounds):
                self._say(f"{name}, round {turn + 1} of {self._plan.rounds}")
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
            given = counter() - number_before - 1
            if given != count.all_calls:
                print(
                    f"NOTE: {WAYS[way][1]}: {count.all_calls} calls were answered, the "
                    f"object counted {given}.",
                    file=sys.stderr,
                )
        self._note(f"{name}, calls per second", way, count.calls / count.seconds)
        self._note(f"{name}, server CPU per call, µs", way, 1e6 * cpu_s / count.calls)
        share = 100 * count.waiting
        self._note(f"{name}, looks of the generator that found none, %", way, share)

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
                self._say(f"others, round {turn + 1} of {plan.rounds}")
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
            self._note(f"others, {when}, {name}, ms", way, value)

    # What follows --------------------------------------------------------------------

    def expectations(self) -> list[Expectation]:
        """Return the ratios, round by round."""
        few = f"{CONNECTIONS_FEW:,} connections, calls per second"
        many = f"{CONNECTIONS_MANY:,} connections, calls per second"
        one = "one caller, median, µs"
        slept, control = (
            self.figures[f"others, {when}, p99.9, ms"]["ours"]
            for when in ("while a method sleeps", "control of sleep")
        )
        return [
            Expectation(
                f"capacity, {CONNECTIONS_FEW} connections: ours / stock",
                self._ratios(few, "ours", "stock"),
                "x",
                least=4,
            ),
            Expectation(
                f"capacity, {CONNECTIONS_MANY:,} connections: ours / stock",
                self._ratios(many, "ours", "stock"),
                "x",
                least=10,
            ),
            Expectation(
                "one caller, median: ours / echo",
                self._ratios(one, "ours", "echo"),
                "x",
                most=1.7,
            ),
            Expectation(
                "one caller, median: stock / ours",
                self._ratios(one, "stock", "ours"),
                "x",
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
                self.figures["others, while a method computes, median, ms"]["ours"],
                "ms",
                most=3,
            ),
            Expectation(
                f"capacity, {CONNECTIONS_FEW} connections: ours / echo",
                self._ratios(few, "ours", "echo"),
                "x",
            ),
            Expectation(
                f"capacity, {CONNECTIONS_FEW} connections: ours with stock client / "
                "stock",
                self._ratios(few, "ours, stock client", "stock"),
                "x",
            ),
            Expectation(
                f"capacity, {CONNECTIONS_MANY:,} connections: ours with stock client / "
                "stock",
                self._ratios(many, "ours, stock client", "stock"),
                "x",
            ),
            Expectation(
                "one caller, median: stock / ours with stock client",
                self._ratios(one, "stock", "ours, stock client"),
                "x",
            ),
        ]

    def _ratios(self, figure: str, way: str, other: str) -> list[float]:
        values = self.figures[figure]
        return [a / b for a, b in zip(values[way], values[other], strict=True)]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of the sorted values that ``share`` of them do not exceed."""
    return values[max(0, -int(-share * len(values) // 1) - 1)]


def spread(values: Sequence[float]) -> str:
    """Return the median and, in brackets, the least and the most."""
    middle, least, most = statistics.median(values), min(values), max(values)
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:,.{digits}f} ({least:,.{digits}f}-{most:,.{digits}f})"


def facts(tcp: bool, apart: bool) -> dict[str, str]:
    """Return what has to be known of the machine."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "Python": platform.python_version(),
        "processors": str(len(os.sched_getaffinity(0))),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "busy before": f"{busy_share():.0%} of the processors, with other things",
        "placement": "callers and servers apart" if apart else "the system's",
        "sockets": "TCP, 127.0.0.1" if tcp else "Unix",
    }


def busy_share() -> float:
    """Return which share of the processors is in use at this moment."""

    def read() -> tuple[int, int]:
        # user, nice, system, idle, waiting for disks, … (proc_stat(5))
        values = [int(text) for text in Path("/proc/stat").read_text().split()[1:9]]
        return sum(values), values[3] + values[4]

    total_before, idle_before = read()
    time.sleep(1.0)
    total, idle = read()
    return 1 - (idle - idle_before) / (total - total_before)


def report(bench: Bench, machine: dict[str, str]) -> None:
    """Print what was found."""
    print(CAVEAT)
    print()
    machine["busy after"] = f"{busy_share():.0%} of the processors, with other things"
    for name, value in machine.items():
        print(f"{name + ':':13} {value}")
    print("\nEach figure: median over the rounds (least-most).\n")
    for figure, ways in bench.figures.items():
        print(figure)
        for way, values in ways.items():
            print(f"    {WAYS[way][1]:30} {spread(values):>28}")
    print("\nRatios, round by round: median (least-most), and what was expected.\n")
    for line in bench.expectations():
        value = f"{spread(line.values)} {line.unit}"
        print(f"{line.text:68} {value:>24}  {line.outcome()}".rstrip())


def main(arguments: list[str] | None = None) -> int:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(prog="benchmarks.calls", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a rough look, under a minute"
    )
    parser.add_argument(
        "--tcp", action="store_true", help="TCP instead of Unix sockets"
    )
    parser.add_argument(
        "--apart",
        action="store_true",
        help="callers on the last processor alone, servers on the others",
    )
    parser.add_argument("--rounds", type=int, help="how many rounds of each figure")
    parser.add_argument("--json", metavar="FILE", help="write every round's figures")
    options = parser.parse_args(arguments)
    plan = QUICK if options.quick else FULL
    if options.rounds is not None:
        plan = plan._replace(rounds=max(1, options.rounds))
    if options.apart and len(os.sched_getaffinity(0)) < 2:
        parser.error("--apart needs two processors")
    machine = facts(options.tcp, options.apart)
    allow_many_descriptors()
    with ExitStack() as stack:
        bench = Bench(plan, stack, tcp=options.tcp, apart=options.apart)
        bench.one_caller()
        bench.capacity(CONNECTIONS_FEW, plan.few_s)
        bench.others()
        bench.capacity(CONNECTIONS_MANY, plan.many_s)
    report(bench, machine)
    if options.json:
        document = {
            "machine": machine,
            "plan": plan._asdict(),
            "figures": bench.figures,
            "ratios": {line.text: line.values for line in bench.expectations()},
        }
        Path(options.json).write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
