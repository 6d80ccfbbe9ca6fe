"""Compare durable calls of ours with SQLite, call by call, and with Redis.

``python -m benchmarks.durable`` (``--help`` shows the options). Everything is measured
in one run, in rounds that take turns. What each figure means stands in the README of
this folder.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from state_server.addresses import Address
from state_server.keeping import image
from state_server.store import SqliteStore, StoredRow

from .callers import Target, serve_crowd
from .calls import crowd_name
from .disks import Redis, SqliteCounter, file_system, redis_missing, sync_times
from .kept import COMMON_KEY, Counter
from .lines import connect_own, own_key
from .load import (
    Timed,
    Worker,
    allow_many_descriptors,
    serve_commits,
    serve_generator,
)
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

TITLE = "Durable calls"
CAVEAT = """\
Callers, servers and the disk are shared by everything on this machine. Every call is on
disk before its answer leaves, in every way that is compared; ours keeps the reply as
well, so that a repeated call is not run again, and the others do not. Where the disk
syncs quickly, the interpreter is what is measured, where slowly, the sharing of syncs:
look at the time of a sync before you compare machines."""

CALLERS = (1, 8, 32, 128)
PROCESSES = (1, 8, 32)

COMMON, EACH, SQLITE, REDIS, BARE = "common", "each", "sqlite", "redis", "bare"
#: What client processes call besides ours.
SQLITE_EACH, REDIS_PY = "sqlite each", "redis-py"
WAYS = {
    COMMON: "ours, all call one object",
    EACH: "ours, each calls its own",
    SQLITE: "SQLite server, one transaction a call",
    REDIS: "Redis, appendfsync always",
    BARE: "SQLite alone, no server, no callers",
    SQLITE_EACH: "SQLite, each process has a connection",
    REDIS_PY: "Redis, appendfsync always, redis-py",
}

_KILLED_CALLERS = 32
_KEY_OF_STORED = "stored-{:07}"


class Plan(NamedTuple):
    """How much is measured."""

    rounds: int
    seconds: float
    stored: int
    starts: int
    residents: int
    kills: int
    rows: int
    row_bytes: int
    puts_s: float
    crowd_s: float


FULL = Plan(7, 0.4, 1_000_000, 5, 20_000, 5, 100_000, 1000, 0.4, 0.4)
QUICK = Plan(2, 0.2, 20_000, 2, 5_000, 2, 10_000, 1000, 0.2, 0.2)


class Bench:
    """One run: the servers, the processes that call them, and what was found."""

    def __init__(self, plan: Plan, stack: ExitStack, folder: Path) -> None:
        self._plan = plan
        self._stack = stack
        self._folder = folder
        self._cpus = os.sched_getaffinity(0)
        self._key = secrets.token_hex(32)
        self.figures = Figures()
        self.redis_version = ""

    def _ours(self, folder: Path) -> Server:
        folder.mkdir(exist_ok=True)
        objects = ("benchmarks.kept",)
        return Server("ours", folder, self._key, self._cpus, objects=objects)

    def _generator(self, kind: str, address: Address, callers: int) -> Worker:
        key = self._key.encode()
        return Worker(self._cpus, serve_generator, kind, address, key, callers)

    # Calls ---------------------------------------------------------------------------

    def calls(self) -> None:
        """Durable calls, with few and with many callers."""
        with ExitStack() as stack:
            ours = self._ours(self._folder / "calls")
            stack.callback(ours.stop)
            rival = Server(SQLITE, self._folder, self._key, self._cpus)
            stack.callback(rival.stop)
            servers: dict[str, Server | Redis] = {COMMON: ours, EACH: ours}
            addresses = dict.fromkeys((COMMON, EACH), ours.address)
            servers[SQLITE], addresses[SQLITE] = rival, rival.address
            client = connect_own(ours.address, self._key.encode())
            stack.callback(client.close)

            def own_sum(keys: list[str]) -> int:
                return sum(client.get("Counter", key).read() for key in keys)

            numbers: dict[str, Callable[[int], int]] = {
                COMMON: lambda _: own_sum([COMMON_KEY]),
                EACH: lambda callers: own_sum([own_key(n) for n in range(callers)]),
            }
            reason = redis_missing()
            if reason:
                say(f"Redis is left out: {reason}.")
            else:
                redis = Redis(self._folder, self._cpus)
                stack.callback(redis.stop)
                self.redis_version = redis.version()
                servers[REDIS] = redis
                addresses[REDIS] = redis.address
                numbers[REDIS] = lambda _: redis.number(COMMON_KEY)
            path = str(self._folder / "bare.db")
            bare = Worker(self._cpus, serve_commits, path)
            stack.callback(bare.stop)
            for callers in CALLERS:
                self._calls_of(callers, servers, addresses, numbers, bare)
            self._crowds(stack, addresses, numbers)

    def _calls_of(
        self,
        callers: int,
        servers: dict[str, Server | Redis],
        addresses: dict[str, Address],
        numbers: dict[str, Callable[[int], int]],
        bare: Worker,
    ) -> None:
        name = _callers(callers)
        workers: dict[str, Worker] = {}
        try:
            for way, address in addresses.items():
                workers[way] = self._generator(way, address, callers)
                workers[way].ask("time", 0.1)
            bare.ask(0.1)
            for turn in range(self._plan.rounds):
                say(f"{name}, round {turn + 1} of {self._plan.rounds}")
                for way, worker in workers.items():
                    number = numbers.get(way)
                    before = number(callers) if number else 0
                    cpu_before = servers[way].cpu_s()
                    timed: Timed = worker.ask("time", self._plan.seconds)
                    cpu_s = servers[way].cpu_s() - cpu_before
                    if number:
                        given = number(callers) - before
                        self.figures.compare_counts(WAYS[way], timed.all_calls, given)
                    self.figures.note_calls(name, way, timed)
                    figure = f"{name}, server CPU per call, µs"
                    self.figures.note(figure, way, 1e6 * cpu_s / timed.calls)
                self.figures.note_calls(name, BARE, bare.ask(self._plan.seconds))
        finally:
            for worker in workers.values():
                worker.stop()

    # Callers as users have them ------------------------------------------------------

    def _crowds(
        self,
        stack: ExitStack,
        addresses: dict[str, Address],
        numbers: dict[str, Callable[[int], int]],
    ) -> None:
        """Processes call in a closed loop, each with a real client of its own."""
        sqlite = SqliteCounter(self._folder / "crowd.db")
        stack.callback(sqlite.close)
        path = Address(path=str(self._folder / "crowd.db"))
        targets = {way: Target(way, addresses[way]) for way in (COMMON, EACH)}
        targets[SQLITE_EACH] = Target("sqlite", path)
        counters = {way: numbers[way] for way in (COMMON, EACH)}
        counters[SQLITE_EACH] = lambda _: sqlite.read()
        reason = redis_missing(package=True)
        if REDIS in addresses and not reason:
            targets[REDIS_PY] = Target("redis", addresses[REDIS])
            counters[REDIS_PY] = numbers[REDIS]
        elif reason:
            say(f"Redis with redis-py is left out: {reason}.")
        most = max(PROCESSES)
        crowd = Worker(self._cpus, serve_crowd, targets, self._key.encode(), most)
        stack.callback(crowd.stop)
        for callers in PROCESSES:
            name = crowd_name(callers)
            for turn in range(self._plan.rounds):
                say(f"{name}, round {turn + 1} of {self._plan.rounds}")
                for way, counter in counters.items():
                    before = counter(callers)
                    timed: Timed = crowd.ask(way, callers, self._plan.crowd_s)
                    given = counter(callers) - before
                    self.figures.compare_counts(WAYS[way], timed.all_calls, given)
                    self.figures.note_calls(name, way, timed)

    # Many objects on disk ------------------------------------------------------------

    def stored(self) -> None:
        """Start with many objects stored, and bring some of them into memory."""
        plan = self._plan
        folder, empty = self._folder / "stored", self._folder / "empty"
        say(f"storing {plan.stored:,} objects")
        _store_many(folder, plan.stored)
        many = f"{plan.stored:,} stored"
        for turn in range(plan.starts):
            say(f"start, round {turn + 1} of {plan.starts}")
            for way, where in (("nothing stored", empty), (many, folder)):
                started = time.perf_counter()
                server = self._ours(where)
                try:
                    ready_s = time.perf_counter() - started
                    self.figures.note("start until ready, s", way, ready_s)
                    mebibytes = server.resident_bytes() / 2**20
                    self.figures.note(
                        "memory of the process when ready, MiB", way, mebibytes
                    )
                    if where is folder:
                        self._bring(server, turn)
                finally:
                    server.stop()

    def _bring(self, server: Server, turn: int) -> None:
        """Call objects that are stored; note what each takes in memory."""
        client = connect_own(server.address, self._key.encode())
        try:
            # What the first calls bring with them is not what an object takes.
            for number in range(200):
                client.get("Counter", _KEY_OF_STORED.format(number)).read()
            before, count = server.resident_bytes(), self._plan.residents
            started = time.perf_counter()
            for number in range(200, 200 + count):
                client.get("Counter", _KEY_OF_STORED.format(number)).read()
            each_us = 1e6 * (time.perf_counter() - started) / count
            grown = (server.resident_bytes() - before) / count
        finally:
            client.close()
        self.figures.note("memory of an object brought back, bytes", "ours", grown)
        self.figures.note("first call of a stored object, mean, µs", "ours", each_us)

    # Killed under load ---------------------------------------------------------------

    def killed(self) -> None:
        """Kill the manager under load; how long until somebody is answered again."""
        folder = self._folder / "killed"
        server = self._ours(folder)
        try:
            for turn in range(self._plan.kills):
                say(f"kill, round {turn + 1} of {self._plan.kills}")
                server = self._kill_and_restart(server, folder)
        finally:
            server.stop()

    def _kill_and_restart(self, server: Server, folder: Path) -> Server:
        worker = self._generator(COMMON, server.address, _KILLED_CALLERS)
        client = connect_own(server.address, self._key.encode())
        try:
            counter = client.get("Counter", COMMON_KEY)
            before = counter.read()
            worker.begin("time", 30.0)
            time.sleep(0.5)
            server.kill()
            timed: Timed = worker.result()
            started = time.perf_counter()
            server = self._ours(folder)
            ready_s = time.perf_counter() - started
            after = counter.read()
            answered_s = time.perf_counter() - started
        finally:
            worker.stop()
            client.close()
        if not timed.calls <= after - before <= timed.calls + _KILLED_CALLERS:
            self.figures.doubts.append(
                f"{timed.calls} calls were answered before the kill, {after - before} "
                "are on disk."
            )
        self.figures.note("restart after kill -9 until ready, s", "ours", ready_s)
        self.figures.note(
            "restart after kill -9 until first answer, s", "ours", answered_s
        )
        return server

    # Journal mode --------------------------------------------------------------------

    def journal(self) -> None:
        """Change one key of a large dictionary, and of a small one."""
        plan = self._plan
        megabytes = plan.rows * plan.row_bytes / 1e6
        large = f"one key of {megabytes:,.0f} MB"
        server = self._ours(self._folder / "journal")
        client = connect_own(server.address, self._key.encode())
        with ExitStack() as stack:
            # Killed, not stopped: in good order it would write an image first.
            stack.callback(server.kill)
            stack.callback(client.close)
            for key, rows in (("table", plan.rows), ("small-table", 10)):
                table = client.get("Table", key)
                table.put(0, "")
                table.fill(rows, plan.row_bytes)
            kinds = {large: "table", "one key of 10 kB": "small table"}
            workers = {}
            for way, kind in kinds.items():
                workers[way] = self._generator(kind, server.address, 1)
                stack.callback(workers[way].stop)
                workers[way].ask("time", 0.1)
            bare = Worker(self._cpus, serve_commits, str(self._folder / "bare.db"))
            stack.callback(bare.stop)
            for turn in range(plan.rounds):
                say(f"journal mode, round {turn + 1} of {plan.rounds}")
                medians = {}
                for way, worker in workers.items():
                    timed: Timed = worker.ask("time", plan.puts_s)
                    self.figures.note_calls("journal mode", way, timed)
                    medians[way] = 1e6 * statistics.median(timed.times)
                timed = bare.ask(plan.puts_s)
                self.figures.note_calls("journal mode", BARE, timed)
                commit = 1e6 * statistics.median(timed.times)
                figure = "journal mode, median less a bare commit, µs"
                for way, median in medians.items():
                    self.figures.note(figure, way, median - commit)

    # What follows --------------------------------------------------------------------

    def expectations(self) -> list[Expectation]:
        """Return the ratios, round by round."""
        figures = self.figures
        lines = []
        sizes = [(_callers(each), each, SQLITE, REDIS) for each in CALLERS]
        sizes += [(crowd_name(each), each, SQLITE_EACH, REDIS_PY) for each in PROCESSES]
        for name, callers, sqlite, redis in sizes:
            figure = f"{name}, calls per second"
            for way in (COMMON, EACH):
                for rival, least in ((sqlite, 4), (BARE, None), (redis, 1.2)):
                    if figures.has(figure, rival):
                        text = f"{name}, calls: {_SHORT[way]} / {_SHORT[rival]}"
                        values = figures.ratios(figure, way, rival)
                        expected = least if callers == 32 else None
                        lines.append(Expectation(text, values, least=expected))
        for quantile, most in (("median", 1.3), ("p99", None)):
            figure = f"{_callers(1)}, {quantile}, µs"
            for rival in (BARE, SQLITE, REDIS):
                if figures.has(figure, rival):
                    text = f"1 caller, {quantile}: ours / {_SHORT[rival]}"
                    values = figures.ratios(figure, COMMON, rival)
                    expected = most if rival == BARE else None
                    lines.append(Expectation(text, values, most=expected))
        starts = figures.values["start until ready, s"]
        many = next(way for way in starts if way != "nothing stored")
        lines.append(Expectation(f"start, {many}", starts[many], "s", most=1))
        less = figures.values["journal mode, median less a bare commit, µs"]
        large = next(iter(less))
        thousandths = [value / 1000 for value in less[large]]
        text = f"journal mode, {large}: median less a bare commit"
        lines.append(Expectation(text, thousandths, "ms", most=1))
        return lines


_SHORT = {
    COMMON: "ours, one object",
    EACH: "ours, own objects",
    SQLITE: "SQLite server",
    BARE: "SQLite alone",
    REDIS: "Redis",
    SQLITE_EACH: "SQLite",
    REDIS_PY: "redis-py",
}


def _callers(count: int) -> str:
    return f"{count} caller{'s' if count > 1 else ''}"


def _store_many(folder: Path, count: int) -> None:
    """Fill the store of a manager that does not run."""
    for made in (folder, folder / "var"):
        made.mkdir(mode=0o700)
    counter = Counter()
    counter.number = 1
    stored = image.dump(counter, {})

    def rows() -> Iterator[StoredRow]:
        for number in range(count):
            name = ("Counter", _KEY_OF_STORED.format(number))
            yield StoredRow(name, 1, 1, stored)

    store = SqliteStore(folder / "var" / "state.db")
    try:
        store.insert(rows(), replace=True)
    finally:
        store.close()


def main(arguments: list[str] | None = None) -> int:
    """Run everything and print it."""
    options_parser = parser("durable", __doc__)
    options_parser.add_argument(
        "--folder",
        metavar="FOLDER",
        help="where the files are written for as long as it runs, to choose the disk",
    )
    options = options_parser.parse_args(arguments)
    plan = QUICK if options.quick else FULL
    if options.rounds is not None:
        plan = plan._replace(rounds=max(1, options.rounds))
    machine = Machine({"SQLite": sqlite3.sqlite_version})
    allow_many_descriptors()
    with ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder)
        folder = Path(stack.enter_context(made))
        machine.facts |= _disk_facts(folder)
        bench = Bench(plan, stack, folder)
        bench.calls()
        bench.journal()
        bench.killed()
        bench.stored()
        machine.facts |= _disk_facts(folder, "after")
    machine.end()
    machine.facts["Redis"] = bench.redis_version or "left out"
    return Report(
        "durable",
        TITLE,
        CAVEAT,
        plan._asdict(),
        machine,
        WAYS,
        bench.figures,
        bench.expectations(),
    ).publish(options)


def _disk_facts(folder: Path, when: str = "before") -> dict[str, str]:
    """Return what a sync of one page costs in this folder at this moment."""
    times = sorted(1e6 * seconds for seconds in sync_times(folder, 500))
    shown = [f"{percentile(times, share):,.0f}" for share in (0.5, 0.99)]
    name = file_system(folder)
    warning = ", in memory: nothing is kept here" if name in ("tmpfs", "ramfs") else ""
    return {
        "disk": f"{name}{warning}",
        f"sync {when}": f"one page, µs: median {shown[0]}, p99 {shown[1]}",
    }


if __name__ == "__main__":
    sys.exit(main())
