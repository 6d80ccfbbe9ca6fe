"""Compare requests per second of one Flask app that keeps its number in many ways.

``python -m benchmarks.web`` (``--help`` shows the options). Everything is measured in
one run, in rounds that take turns. What each figure means stands in the README of this
folder.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from .disks import Redis, redis_missing
from .load import Worker
from .processes import cpu_s
from .report import Expectation, Figures, Machine, Report, parser, say
from .servers import Server, WebServer
from .visitors import Visits, serve_visitors
from .web_app import RIVAL_VARIABLE, WAY_VARIABLE

TITLE = "Web requests"
CAVEAT = """\
Visitors, web workers and what is behind them share the processors of this machine. The
app does next to nothing: an app that works for milliseconds makes all ways equal. Under
a plain global each process counts for itself, so it answers wrong numbers; it is here
to show what Flask and the web server take alone."""

WORKERS, THREADS = 2, 4
#: As many as threads: with more, requests would wait for one, and waitress log that.
VISITORS_EACH = 4

#: What the numbers that one turn answers must be: each given out once, to whomever;
#: or for each visitor one more every time.
EACH_ONCE, OWN_COUNT = "each once", "own count"


class Way(NamedTuple):
    """How the number is kept.

    ``kind``: the way of the app; ``behind``: the name of the server that is asked;
    ``packages``: what has to be installed for it; ``tcp``: whether that server is asked
    over TCP instead of a Unix socket.
    """

    label: str
    kind: str
    behind: str
    rule: str = ""
    packages: tuple[str, ...] = ()
    tcp: bool = False


GLOBAL, MEMORY, STOCK = "global", "memory", "stock"
REDIS, REDIS_TCP = "redis", "redis tcp"
DURABLE, REDIS_DURABLE = "durable", "redis durable"
CACHE, CACHE_REDIS = "cache", "cache redis"
SESSION, SESSION_REDIS = "session", "session redis"
SESSION_DURABLE, SESSION_REDIS_DURABLE = "session durable", "session redis durable"

_CACHING = ("flask_caching",)
_SESSIONS = ("flask_session", "msgspec")
WAYS = {
    GLOBAL: Way("a plain global, no server", "global", ""),
    MEMORY: Way("our object, in memory", "memory", "ours", EACH_ONCE),
    REDIS: Way("redis-py, Redis keeps nothing", "redis", "redis", EACH_ONCE),
    REDIS_TCP: Way(
        "redis-py over TCP, Redis keeps nothing", "redis", "redis", EACH_ONCE, (), True
    ),
    STOCK: Way("stock manager", "stock", "stock", EACH_ONCE),
    DURABLE: Way("our object, durable", "durable", "ours", EACH_ONCE),
    REDIS_DURABLE: Way(
        "redis-py, appendfsync always", "redis", "redis durable", EACH_ONCE
    ),
    CACHE: Way("Flask-Caching, our backend", "cache", "ours", "", _CACHING),
    CACHE_REDIS: Way("Flask-Caching, Redis", "cache", "redis", "", _CACHING),
    SESSION: Way("our sessions, --memory", "session", "ours in memory", OWN_COUNT),
    SESSION_REDIS: Way(
        "Flask-Session, Redis keeps nothing", "session", "redis", OWN_COUNT, _SESSIONS
    ),
    SESSION_DURABLE: Way("our sessions, durable", "session", "ours", OWN_COUNT),
    SESSION_REDIS_DURABLE: Way(
        "Flask-Session, appendfsync always",
        "session",
        "redis durable",
        OWN_COUNT,
        _SESSIONS,
    ),
}
LABELS = {name: way.label for name, way in WAYS.items()}


class Plan(NamedTuple):
    """How much is measured."""

    rounds: int
    seconds: float


FULL = Plan(11, 0.4)
QUICK = Plan(3, 0.3)


class Bench:
    """One run: the servers, the visitors, and what was found."""

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        self._plan = plan
        self._stack = stack
        self._folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        )
        self._cpus = os.sched_getaffinity(0)
        self._key = secrets.token_hex(32)
        self.figures = Figures()
        self.redis_version = ""
        self._behind: dict[str, Server | Redis] = {}
        self._web: dict[str, WebServer] = {}

    # Servers -------------------------------------------------------------------------

    def start(self) -> None:
        """Start what keeps the numbers, and a web server for each way."""
        for name in ("ours", "ours in memory", "stock"):
            self._add(name, self._server(name))
        reason = redis_missing(package=True)
        if reason:
            say(f"Redis is left out: {reason}.")
        else:
            for name in ("redis", "redis durable"):
                redis = Redis(self._folder, self._cpus, durable=name != "redis")
                self._add(name, redis)
                self.redis_version = redis.version()
        for name, way in WAYS.items():
            missing = [each for each in way.packages if find_spec(each) is None]
            if missing:
                say(
                    f"{way.label} is left out: it needs {' and '.join(missing)} "
                    "(pip install -e '.[bench]')."
                )
            elif not way.behind or way.behind in self._behind:
                self._web[name] = self._web_server(name, way)
                self._stack.callback(self._web[name].stop)
        for server in self._web.values():
            server.wait_until_ready()

    def _add(self, name: str, server: Server | Redis) -> None:
        self._stack.callback(server.stop)
        self._behind[name] = server

    def _server(self, name: str) -> Server:
        folder = self._folder / name.replace(" ", "-")
        folder.mkdir()
        kind = name.partition(" ")[0]
        objects = ("benchmarks.workload", "benchmarks.kept")
        memory = name == "ours in memory"
        return Server(
            kind, folder, self._key, self._cpus, objects=objects, memory=memory
        )

    def _web_server(self, name: str, way: Way) -> WebServer:
        behind = self._behind.get(way.behind)
        rival, ours = "", self._behind["ours"]
        if way.behind.startswith("ours"):
            ours = self._behind[way.behind]
        elif isinstance(behind, Redis) and way.tcp:
            rival = str(behind.port)
        elif behind is not None and behind.address.path is not None:
            rival = behind.address.path
        return WebServer(
            self._folder / f"web {name}.log",
            ours.address,
            self._key,
            {WAY_VARIABLE: way.kind, RIVAL_VARIABLE: rival},
            workers=WORKERS,
            threads=THREADS,
        )

    # Requests ------------------------------------------------------------------------

    def requests(self) -> None:
        """Ask each app in turns, forwards and backwards."""
        addresses = {name: server.address for name, server in self._web.items()}
        visitors = Worker(self._cpus, serve_visitors, addresses, VISITORS_EACH, WORKERS)
        workers: dict[str, set[int]] = visitors.greeting
        self._stack.callback(visitors.stop)
        for name in self._web:
            visitors.ask(name, 0.1)
        for turn in range(self._plan.rounds):
            say(f"requests, round {turn + 1} of {self._plan.rounds}")
            for name in list(self._web)[:: -1 if turn % 2 else 1]:
                self._visit(name, visitors, workers[name])

    def _visit(self, name: str, visitors: Worker, workers: set[int]) -> None:
        way, note = WAYS[name], self.figures.note
        behind = self._behind.get(way.behind)
        web_before = sum(map(cpu_s, workers))
        behind_before = behind.cpu_s() if behind else 0.0
        visits: Visits = visitors.ask(name, self._plan.seconds)
        web_s = sum(map(cpu_s, workers)) - web_before
        behind_s = (behind.cpu_s() if behind else 0.0) - behind_before
        if not _is_right(visits.numbers, way.rule):
            self.figures.doubts.append(f"{way.label}: numbers were lost or doubled.")
        note("requests per second", name, visits.requests / visits.seconds)
        self.figures.note_times("request", name, visits.times, "ms")
        answers = len(visits.times)
        for figure, seconds in (
            ("web workers' CPU per request, µs", web_s),
            ("CPU behind them per request, µs", behind_s),
            ("visitors' CPU per request, µs", visits.processor_s),
        ):
            note(figure, name, 1e6 * seconds / answers)

    # What follows --------------------------------------------------------------------

    def expectations(self) -> list[Expectation]:
        """Return the ratios, round by round."""
        lines = []
        for way, other, least in (
            (MEMORY, GLOBAL, 0.65),
            (MEMORY, REDIS, 1.2),
            (MEMORY, REDIS_TCP, 1.2),
            (MEMORY, STOCK, None),
            (DURABLE, REDIS_DURABLE, 1),
            (DURABLE, GLOBAL, None),
            (DURABLE, REDIS, None),
            (CACHE, CACHE_REDIS, None),
            (SESSION, SESSION_REDIS, None),
            (SESSION_DURABLE, SESSION_REDIS_DURABLE, None),
            (SESSION_DURABLE, SESSION_REDIS, None),
        ):
            figure = "requests per second"
            if self.figures.has(figure, way) and self.figures.has(figure, other):
                text = f"requests: {LABELS[way]} / {LABELS[other]}"
                values = self.figures.ratios(figure, way, other)
                lines.append(Expectation(text, values, least=least))
        return lines


def _is_right(numbers: list[list[int]], rule: str) -> bool:
    """Tell whether the numbers of a turn are what the rule says."""
    if rule == EACH_ONCE:
        numbers = [sorted(chain.from_iterable(numbers))]
    elif rule != OWN_COUNT:
        return True
    return all(some == list(range(some[0], some[0] + len(some))) for some in numbers)


def main(arguments: list[str] | None = None) -> int:
    """Run everything and print it."""
    options = parser("web", __doc__).parse_args(arguments)
    plan = QUICK if options.quick else FULL
    if options.rounds is not None:
        plan = plan._replace(rounds=max(1, options.rounds))
    machine = Machine(
        {
            "web server": f"start_web.py, {WORKERS} workers of {THREADS} threads",
            "visitors": f"{VISITORS_EACH} connections to each worker",
        }
    )
    with ExitStack() as stack:
        bench = Bench(plan, stack)
        bench.start()
        bench.requests()
    machine.end()
    machine.facts["Redis"] = bench.redis_version or "left out"
    return Report(
        "web",
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
