"""A client process: threads that call at random, and write down what they see.

``python -m tests.chaos.client ORDERS``, JSON. It ends by SIGTERM, each thread after the
call that it makes, and at once when its standard input closes.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import state_server
from state_server.errors import (
    Expired,
    Overloaded,
    StateServerError,
    Stopping,
    StoreError,
    Unanswered,
    Unkeepable,
    Unloadable,
    Unreachable,
)

from . import history, repeats

WORDS = ("red", "green", "blue")

#: With these nothing has happened, and they may come where managers are killed.
NOTHING_HAPPENED = (Unreachable, Overloaded, Stopping, Expired, StoreError)
NEVER = (Unkeepable, Unloadable)


class Orders(NamedTuple):
    """What the process is told."""

    name: str
    way: str
    address: str | None
    data_dir: str
    history: str
    threads: int
    seed: int
    epoch_ns: int
    window_s: float
    pause_s: float


class Way(Protocol):
    """How a call is made: directly, or through a web worker."""

    def call(
        self, target: tuple[str, str], call: tuple[Any, ...], timeout_s: float
    ) -> tuple[str, Any, int]:
        """Make a call; return its outcome, its value or a reason, and the repeats."""


class Direct:
    """Calls with our own client, which all threads of the process share."""

    def __init__(self, orders: Orders) -> None:
        self._client = state_server.connect(orders.address, data_dir=orders.data_dir)

    def call(
        self, target: tuple[str, str], call: tuple[Any, ...], timeout_s: float
    ) -> tuple[str, Any, int]:
        """Make a call."""
        repeats.taken()
        try:
            handle = self._client.get(*target, timeout=timeout_s)
            value = getattr(handle, call[0])(*call[1:])
        except StateServerError as error:
            text = f"{type(error).__name__}: {error}"
            if isinstance(error, Unanswered):
                return history.UNCLEAR, text, repeats.taken()
            expected = isinstance(error, NOTHING_HAPPENED)
            expected = expected and not isinstance(error, NEVER)
            outcome = history.FAILED if expected else history.WRONG
            return outcome, text, repeats.taken()
        except Exception as error:
            return history.WRONG, f"{type(error).__name__}: {error}", repeats.taken()
        return history.OK, value, repeats.taken()


class OverHttp:
    """Calls through the web workers, on a connection of its own."""

    def __init__(self, orders: Orders) -> None:
        assert orders.address is not None
        host, _, port = orders.address.rpartition(":")
        self._place = host, int(port)
        self._connection: http.client.HTTPConnection | None = None

    def call(
        self, target: tuple[str, str], call: tuple[Any, ...], timeout_s: float
    ) -> tuple[str, Any, int]:
        """Make a call."""
        if self._connection is None:
            connection = http.client.HTTPConnection(*self._place, timeout=30)
            try:
                connection.connect()
            except OSError as error:
                connection.close()
                return history.FAILED, f"not connected: {error}", 0
            self._connection = connection
        connection = self._connection
        try:
            if target == ("SomeObj", "default"):
                connection.request("GET", "/")
            else:
                connection.request(
                    "POST",
                    f"/call/{target[0]}/{target[1]}/{call[0]}",
                    json.dumps(call[1:]),
                    {"Content-Type": "application/json", "X-Timeout": str(timeout_s)},
                )
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self._connection = None
            return history.UNCLEAR, f"no answer: {type(error).__name__}: {error}", 0
        if response.will_close:
            connection.close()
            self._connection = None
        count = int(response.headers.get("X-Repeats", "0"))
        if response.status == 200:
            return history.OK, json.loads(body), count
        outcomes = {503: history.FAILED, 504: history.UNCLEAR}
        outcome = outcomes.get(response.status, history.WRONG)
        return outcome, f"{response.status} {body[:300].decode()}", count


class Caller:
    """One thread: chooses calls, makes them, writes them down."""

    def __init__(self, orders: Orders, number: int, writer: history.Writer) -> None:
        self._who = f"{orders.name}.{number}"
        self._orders = orders
        self._writer = writer
        self._chance = random.Random(f"{orders.seed} {self._who}")
        self._count = 0
        self._seen: dict[tuple[tuple[str, str], str], Any] = {}

    def run(self, way: Way, stop: threading.Event) -> None:
        """Call until told to stop."""
        while not stop.is_set():
            target, call = self._choose()
            number = self._writer.begin(self._who, target, call)
            outcome, value, count = way.call(target, call, self._timeout_s())
            self._writer.end(number, outcome, value, count)
            if outcome == history.OK and "Dictionary" in target[0]:
                before = call[-1] if call[0] in ("put", "swap") else value
                self._seen[target, call[1]] = before
            if outcome != history.OK:
                # Where nobody answers, asking all the time only fills the history.
                stop.wait(self._chance.uniform(0.0, 0.1))
            stop.wait(self._chance.expovariate(1 / self._orders.pause_s))

    def _timeout_s(self) -> float:
        kind = self._chance.random()
        if kind < 0.04:
            return self._chance.uniform(0.02, 0.5)
        return 2.0 if kind < 0.15 else 10.0

    def _choose(self) -> tuple[tuple[str, str], tuple[Any, ...]]:
        kind = self._chance.random()
        if kind < 0.3:
            return ("SomeObj", "default"), ("query",)
        if kind < 0.4:
            return ("Ledger", "default"), ("query",)
        passed_s = (time.monotonic_ns() - self._orders.epoch_ns) / 1e9
        window = f"window-{int(passed_s / self._orders.window_s)}"
        self._count += 1
        value = f"{self._who}:{self._count}"
        if kind < 0.65:
            put = self._chance.random() < 0.5
            return ("Queue", window), ("put", value) if put else ("get",)
        target = ("Dictionary" if kind < 0.9 else "JournalDictionary", window)
        word = self._chance.choice(WORDS)
        method = self._chance.choice(["get", "put", "put", "swap", "swap", "remove"])
        if method == "put":
            return target, ("put", word, value)
        if method == "swap":
            return target, ("swap", word, self._seen.get((target, word)), value)
        return target, (method, word)


def main() -> None:
    """Do as ordered."""
    orders = Orders(*json.loads(sys.argv[1]))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    writer = history.Writer(Path(orders.history))
    shared = None if orders.way == "http" else Direct(orders)
    threads = []
    for number in range(orders.threads):
        way = shared or OverHttp(orders)
        caller = Caller(orders, number, writer)
        threads.append(threading.Thread(target=caller.run, args=(way, stop)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
