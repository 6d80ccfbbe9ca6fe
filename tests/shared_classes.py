"""Classes to share in tests, and how the standard library's manager serves them.

It serves each class three times: ``Counter`` gives every caller the one instance (the
usual recipe, a factory that keeps it), ``LateCounter`` does so after 2 ms, and
``NewCounter`` is the class itself, registered.
"""

from __future__ import annotations

import ast
import functools
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

from state_server import allow, share

STOCK_KEY = b"the key of the stock manager"


@share
class Counter:
    """Counts, with every way of losing a number that a class without a lock has."""

    def __init__(self) -> None:
        self.number = 0

    def query(self) -> int:
        """Return the next number."""
        self.number += 1
        return self.number

    def query_slowly(self, seconds: float, mark: str | None = None) -> int:
        """Return the next number, and let others in between reading and writing."""
        number = self.number
        touch(mark)
        time.sleep(seconds)
        self.number = number + 1
        return self.number

    def peek(self) -> int:
        """Return the number as it is."""
        return self.number

    def __repr__(self) -> str:
        return f"Counter at {self.number}"


@share(durable=False)
class Echo:
    """Gives back what it is given."""

    def echo(self, value: Any) -> Any:
        """Return ``value``."""
        return value

    def size(self, value: Any) -> int:
        """Return the length of ``value``."""
        return len(value)

    def big(self, size: int) -> bytes:
        """Return that many bytes."""
        return bytes(size)

    def echo_late(self, value: Any, seconds: float, mark: str | None = None) -> Any:
        """Return ``value`` after a while; ``mark`` is a file made at the beginning."""
        touch(mark)
        time.sleep(seconds)
        return value

    def compute(self, seconds: float, mark: str | None = None) -> int:
        """Count for that long, in Python."""
        touch(mark)
        until, steps = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            for _ in range(1000):
                steps += 1
        return steps


class OwnError(Exception):
    """An error that wants two arguments but keeps one."""

    def __init__(self, user: str, limit: int) -> None:
        super().__init__(f"{user} is over {limit}")
        self.user = user
        self.limit = limit


@allow
class AllowedError(Exception):
    """The same, given to ``allow``."""

    def __init__(self, user: str, limit: int) -> None:
        super().__init__(f"{user} is over {limit}")
        self.user = user
        self.limit = limit


class HeldError(Exception):
    """An error that holds what cannot be pickled."""


class SpitefulError(Exception):
    """An error whose every method raises, and not gently."""

    def __str__(self) -> str:
        raise SystemExit("no text")

    def __repr__(self) -> str:
        raise KeyboardInterrupt("no repr")

    def __reduce__(self) -> Any:
        raise SystemExit("no pickle")

    @property
    def args(self) -> Any:  # type: ignore[override]
        """Raise."""
        raise SystemExit("no arguments")


class Unpicklable:
    """A value that cannot travel and says so rudely."""

    def __reduce__(self) -> Any:
        raise RuntimeError("it will not be pickled")


@share(durable=False)
class Trouble:
    """Ends badly in every way that there is; ``ran`` counts how often."""

    def __init__(self) -> None:
        self.ran = 0

    def count(self) -> int:
        """Return how many methods have run."""
        return self.ran

    def leave(self) -> None:
        """End the process, or try to."""
        self.ran += 1
        sys.exit(3)

    def interrupt(self) -> None:
        """Raise what Ctrl-C raises."""
        self.ran += 1
        raise KeyboardInterrupt

    def divide(self) -> float:
        """Raise an error of Python's own."""
        self.ran += 1
        return 1 / 0

    def look_up(self) -> None:
        """Raise a builtin error with arguments."""
        self.ran += 1
        raise KeyError("room-7", 3)

    def raise_group(self) -> None:
        """Raise an error that Python 3.10 does not have."""
        self.ran += 1
        raise ExceptionGroup("both", [KeyError("k"), ValueError("v")])  # noqa: F821 - since 3.11

    def raise_own(self) -> None:
        """Raise an error whose constructor wants two arguments."""
        self.ran += 1
        raise OwnError("ann", 3)

    def raise_allowed(self) -> None:
        """Raise an error that may travel."""
        self.ran += 1
        raise AllowedError("ann", 3)

    def raise_held(self) -> None:
        """Raise an error that cannot be pickled."""
        self.ran += 1
        raise HeldError("the cause", threading.Lock())

    def raise_spiteful(self) -> None:
        """Raise an error that cannot even be looked at."""
        self.ran += 1
        raise SpitefulError

    def return_lock(self) -> Any:
        """Return what cannot be pickled."""
        self.ran += 1
        return threading.Lock()

    def return_unpicklable(self) -> Any:
        """Return what raises when it is pickled."""
        self.ran += 1
        return Unpicklable()


@share(durable=False)
class SlowToBuild:
    """Takes its time to be built."""

    def __init__(self) -> None:
        folder = os.environ.get("TEST_FOLDER")
        touch(folder and f"{folder}/building")
        time.sleep(1.5)
        self.ready = True

    def is_ready(self) -> bool:
        """Return true."""
        return self.ready


#: How often the properties of ``Room`` were computed, in this process.
_reads = 0


@share(
    durable=False,
    exposed=(
        "title",
        "loud_title",
        "__len__",
        "__getitem__",
        "__setitem__",
        "__delitem__",
        "__contains__",
        "__iter__",
        "words",
        "reads",
    ),
)
class Room:
    """A container with properties, one of which must not be run by accident."""

    def __init__(self) -> None:
        self._words = {"a": 1, "b": 2}
        self._title = "hall"
        self.secret = "never sent"

    @property
    def title(self) -> str:
        """Return the title."""
        return self._title

    @title.setter
    def title(self, title: str) -> None:
        self._title = title

    @property
    def loud_title(self) -> str:
        """Return the title aloud, and count that it was asked for."""
        global _reads
        _reads += 1
        return self._title.upper()

    def reads(self) -> int:
        """Return how often ``loud_title`` was computed in this process."""
        return _reads

    def words(self) -> Iterator[str]:
        """Yield the words."""
        yield from self._words

    def reveal(self) -> str:
        """Return what is not for callers: the class does not expose this."""
        return self.secret

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, word: str) -> int:
        return self._words[word]

    def __setitem__(self, word: str, number: int) -> None:
        self._words[word] = number

    def __delitem__(self, word: str) -> None:
        del self._words[word]

    def __contains__(self, word: object) -> bool:
        return word in self._words

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)


@share(durable=False)
class Basket:
    """Keeps lists, and gives them out."""

    def __init__(self) -> None:
        self._items: list[Any] = []

    def items(self) -> list[Any]:
        """Return all items."""
        return self._items

    def add(self, item: Any) -> int:
        """Add an item; return how many there are."""
        self._items.append(item)
        return len(self._items)


@share(durable=False)
class Store:
    """Gives out items once, with a lock of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items = ["first", "second"]

    def block(self, mark: str, until: str) -> None:
        """Keep everybody waiting until there is a file ``until``."""
        with self._lock:
            touch(mark)
            while not os.path.exists(until):
                time.sleep(0.01)

    def take(self, mark: str | None = None) -> str | None:
        """Take an item out; ``mark`` is a file made when the method begins."""
        touch(mark)
        with self._lock:
            return self._items.pop(0) if self._items else None

    def left(self) -> int:
        """Return how many items there are."""
        return len(self._items)


@share(durable=False)
class Threads:
    """Makes the process unable to start threads, and able again."""

    def starve(self) -> None:
        """Ask for stacks that do not fit into what the process may have."""
        page = resource.getpagesize()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * page
        self._limit = resource.getrlimit(resource.RLIMIT_AS)
        limit = used + 512 * 1024 * 1024
        resource.setrlimit(resource.RLIMIT_AS, (limit, self._limit[1]))
        threading.stack_size(1024 * 1024 * 1024)

    def feed(self) -> None:
        """Undo ``starve``."""
        threading.stack_size(0)
        resource.setrlimit(resource.RLIMIT_AS, self._limit)


CLASSES: tuple[type, ...] = (
    Counter,
    Echo,
    Trouble,
    SlowToBuild,
    Room,
    Basket,
    Store,
    Threads,
)


def touch(mark: str | None) -> None:
    """Make a file, so that another process can see how far this one is."""
    if mark:
        Path(mark).touch()


_instances: dict[type, Any] = {}


def _the_one(cls: type) -> Any:
    if cls not in _instances:
        _instances[cls] = cls()
    return _instances[cls]


def _with_delay(cls: type) -> Any:
    time.sleep(0.002)
    return _the_one(cls)


def serve_stock(address: Any) -> None:
    """Serve the classes with the standard library's manager, for ever."""

    class StockManager(BaseManager):
        pass

    for cls in CLASSES:
        name = cls.__name__
        StockManager.register(name, callable=functools.partial(_the_one, cls))
        StockManager.register(f"New{name}", callable=cls)
        late = functools.partial(_with_delay, cls)
        StockManager.register(f"Late{name}", callable=late)
    server = StockManager(address=address, authkey=STOCK_KEY).get_server()
    print("ready", repr(server.address), flush=True)
    server.serve_forever()


def serve() -> None:
    """Be the stock manager's process: the argument is the address, as Python."""
    serve_stock(ast.literal_eval(sys.argv[1]))
