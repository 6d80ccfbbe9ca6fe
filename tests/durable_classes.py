"""A store that does what a test says, a desk with a writer, and classes to keep."""

from __future__ import annotations

import sys
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

from state_server.host import Host, HostLimits, Resident
from state_server.keeping import KeepingLimits, image
from state_server.keeping.commits import (
    Change,
    ObjectName,
    RememberedReply,
    ReplyRecord,
    Stored,
)
from state_server.sharing import Catalogue, SharedClass, describe_class, readonly

from .fakes import PATIENCE_S, BareDesk, FakeClock, FakeConnection, heard

EPOCH = b"theepoch"
BOOT = EPOCH + b"theboot1"


class FakeStore:
    """A store in memory. ``hold`` stops commits half way; ``errors`` make them fail.

    Each item of ``errors`` and ``fence_errors`` is what the next one raises, ``None``
    lets it pass; an empty list lets everything pass.
    """

    epoch = EPOCH
    value_bytes_max = 10**9

    def __init__(self) -> None:
        self.objects: dict[ObjectName, Stored] = {}
        self.replies: dict[bytes, RememberedReply] = {}
        self.batches: list[list[Change]] = []
        self.batch_replies: list[list[ReplyRecord]] = []
        self.forgotten: list[bytes] = []
        self.errors: deque[Exception | None] = deque()
        self.fence_errors: deque[Exception | None] = deque()
        self.fences = 0
        self.began = threading.Semaphore(0)
        self.fence_began = threading.Semaphore(0)
        self.tidied = threading.Event()
        self.tidy_error: Exception | None = None
        self.is_closed = False
        self._open = threading.Event()
        self._open.set()
        self._fence_open = threading.Event()
        self._fence_open.set()

    def hold(self) -> None:
        """Have each commit wait, from now on, after it has begun."""
        self._open.clear()

    def release(self) -> None:
        """Let commits go on."""
        self._open.set()

    def hold_fence(self) -> None:
        """Have each fence wait."""
        self._fence_open.clear()

    def release_fence(self) -> None:
        """Let fences go on."""
        self._fence_open.set()

    def wait_for_commit(self) -> None:
        """Wait until one more commit has begun."""
        assert self.began.acquire(timeout=PATIENCE_S), "no commit began"

    def state(self, name: str, key: str = "default") -> Any:
        """Return the state of an object as it is on disk; ``None`` if it is not."""
        stored = self.objects.get((name, key))
        return None if stored is None else image.parts_of(stored.image).state

    def load(self, name: ObjectName) -> Stored | None:
        """Return a stored object."""
        return self.objects.get(name)

    def journalled(self) -> Iterator[ObjectName]:
        """Give no name: nothing journalled is kept here."""
        return iter(())

    def reply_of(self, lane: bytes) -> RememberedReply | None:
        """Return the remembered reply of a lane."""
        return self.replies.get(lane)

    def commit(
        self,
        changes: Collection[Change],
        replies: Collection[ReplyRecord],
        forgotten: Collection[bytes],
    ) -> None:
        """Write everything, or raise what was asked for."""
        self.began.release()
        assert self._open.wait(PATIENCE_S), "a commit was held for ever"
        error = self.errors.popleft() if self.errors else None
        if error is not None:
            raise error
        self.batches.append(list(changes))
        self.batch_replies.append(list(replies))
        for change in changes:
            assert change.image is not None
            stored = Stored(change.version, change.generation, change.image)
            self.objects[change.name] = stored
        for reply in replies:
            record = RememberedReply(reply.lane.session, reply.number, reply.payload)
            self.replies[reply.lane.lane] = record
        for lane in forgotten:
            self.replies.pop(lane, None)
            self.forgotten.append(lane)

    def fence(self) -> None:
        """Count, or raise what was asked for."""
        self.fence_began.release()
        assert self._fence_open.wait(PATIENCE_S), "a fence was held for ever"
        error = self.fence_errors.popleft() if self.fence_errors else None
        if error is not None:
            raise error
        self.fences += 1

    def tidy(self, retention_s: float) -> None:
        """Take note, or raise what was asked for."""
        self.tidied.set()
        if self.tidy_error is not None:
            raise self.tidy_error

    def close(self) -> None:
        """Take note."""
        self.is_closed = True


class DurableDesk(BareDesk):
    """A host with a store and a writer thread, and short words for calling it."""

    def __init__(
        self,
        *shared: type | SharedClass,
        store: FakeStore | None = None,
        keeping: KeepingLimits = KeepingLimits(),  # noqa: B008 - frozen
        **limits: Any,
    ) -> None:
        self.store = FakeStore() if store is None else store
        self.clock = FakeClock()
        catalogue = Catalogue()
        for item in shared:
            record = item if isinstance(item, SharedClass) else describe_class(item)
            catalogue.add(record)
        self.host = Host(
            catalogue,
            BOOT,
            HostLimits(**limits),
            keeping,
            self.store,
            clock=self.clock,
            wall_clock=self.clock,
        )

    def resident(self, class_name: str, key: str) -> Resident:
        """Return an object that is in memory."""
        return next(
            r for r in self.host._residents if r.object_name == (class_name, key)
        )

    def __enter__(self) -> DurableDesk:
        """Start the writer thread."""
        self.host.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.store.release()
        self.store.release_fence()
        self.host.stop()

    def submit(
        self, connection: FakeConnection, target: str, *args: Any, **options: Any
    ) -> Resident | None:
        """Give a call in, first sent to this manager unless the options say other."""
        options.setdefault("first_boot", BOOT)
        return super().submit(connection, target, *args, **options)

    def start(
        self,
        target: str,
        *args: Any,
        connection: FakeConnection | None = None,
        **options: Any,
    ) -> FakeConnection:
        """Make a call, as far as it goes without its commit; return its connection."""
        connection = FakeConnection() if connection is None else connection
        self.run(self.submit(connection, target, *args, **options))
        return connection

    def ask(
        self,
        target: str,
        *args: Any,
        connection: FakeConnection | None = None,
        **options: Any,
    ) -> Any:
        """Make one call and return what was answered."""
        connection = FakeConnection() if connection is None else connection
        before = len(connection.payloads)
        self.start(target, *args, connection=connection, **options)
        return connection.wait(before + 1)


class WatchingConnection(FakeConnection):
    """Calls ``watch`` with what it hears, at the moment when it hears it."""

    def __init__(self, watch: Callable[[Any], None]) -> None:
        super().__init__()
        self._watch = watch

    def deliver(self, payload: bytes) -> None:
        """Hear one payload."""
        self._watch(heard(payload))
        super().deliver(payload)


# Classes -----------------------------------------------------------------------------


class Count:
    """Counts, in all the ways a call can end."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, amount: int = 1) -> int:
        """Count, and return the new number."""
        self.count += amount
        return self.count

    def get(self) -> int:
        """Return the number: an unchanged call."""
        return self.count

    @readonly
    def look(self) -> int:
        """Return the number: a read-only call."""
        return self.count

    def fail(self) -> None:
        """Raise with the number, after a change."""
        shown = self.count
        self.count += 1000
        raise LookupError(shown)

    def refuse(self) -> None:
        """Raise with the number, without a change."""
        raise LookupError(self.count)

    def leak(self) -> Any:
        """Change, and return what cannot travel."""
        self.count += 1000
        return threading.Lock()

    def grow(self, size: int) -> None:
        """Become large."""
        self.ballast = bytes(size)

    def __repr__(self) -> str:
        return f"<{self.count}>"


class Slotted:
    """Has slots and no dictionary."""

    __slots__ = ("left", "right")

    def __init__(self) -> None:
        self.left = 0

    def add(self) -> int:
        """Count."""
        self.left += 1
        return self.left

    def spoil(self) -> None:
        """Change, and raise."""
        self.left += 10
        self.right = 1
        raise ValueError("spoilt")

    def shown(self) -> Any:
        """Return the state."""
        return self.left, hasattr(self, "right")


class SlottedChild(Slotted):
    """Has slots and a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.other = [0]

    def add(self) -> int:
        """Count twice."""
        self.other[0] += 1
        return super().add()

    def shown(self) -> Any:
        """Return the state."""
        return self.left, hasattr(self, "right"), self.other


class OwnWords:
    """Says itself what its state is."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0

    def add(self) -> int:
        """Count."""
        with self.lock:
            self.count += 1
            return self.count

    def spoil(self) -> None:
        """Change, and raise."""
        self.count += 10
        raise ValueError("spoilt")

    def shown(self) -> Any:
        """Return the state."""
        return self.count, self.lock.locked()

    def __getstate__(self) -> tuple[str, int]:
        return "count", self.count

    def __setstate__(self, state: tuple[str, int]) -> None:
        self.lock = threading.Lock()
        self.count = state[1]


class Book(dict):  # type: ignore[type-arg]
    """A dictionary that counts what is put in."""

    puts = 0

    def __setitem__(self, key: Any, value: Any) -> None:
        self.puts += 1
        super().__setitem__(key, value)

    def add(self) -> int:
        """Put one item in."""
        self[len(self)] = {"n": len(self)}
        return len(self)

    def spoil(self) -> None:
        """Change, and raise."""
        self[0] = "spoilt"
        self["more"] = 1
        raise ValueError("spoilt")

    def shown(self) -> Any:
        """Return the state."""
        return dict(self), self.puts


class Row(list):  # type: ignore[type-arg]
    """A list that counts what is appended."""

    def __init__(self) -> None:
        super().__init__()
        self.appended = 0

    def append(self, value: Any) -> None:
        """Append."""
        self.appended += 1
        super().append(value)

    def add(self) -> int:
        """Append one item."""
        self.append({"n": len(self)})
        return len(self)

    def spoil(self) -> None:
        """Change, and raise."""
        self.append("spoilt")
        self[0] = "spoilt"
        raise ValueError("spoilt")

    def shown(self) -> Any:
        """Return the state."""
        return list(self), self.appended


class Bag(set):  # type: ignore[type-arg]
    """A set with an attribute."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.adds = 0

    def add(self, value: Any = None) -> int:
        """Add one item, or the next number."""
        self.adds += 1
        super().add(len(self) if value is None else value)
        return len(self)

    def spoil(self) -> None:
        """Change, and raise."""
        super().add("spoilt")
        raise ValueError("spoilt")

    def shown(self) -> Any:
        """Return the state."""
        return set(self), self.adds


class Tally(Counter):  # type: ignore[type-arg]
    """A counter of the standard library."""

    def add(self) -> int:
        """Count."""
        self["n"] += 1
        return self["n"]

    def spoil(self) -> None:
        """Change, and raise."""
        self["n"] += 10
        raise ValueError("spoilt")

    def shown(self) -> Any:
        """Return the state."""
        return dict(self)


class Ordered(OrderedDict):  # type: ignore[type-arg]
    """An ordered dictionary."""

    def add(self) -> int:
        """Put an item in and turn the order."""
        self[len(self)] = len(self)
        self.move_to_end(0)
        return len(self)

    def spoil(self) -> None:
        """Change, and raise."""
        self.clear()
        raise ValueError("spoilt")

    def shown(self) -> Any:
        """Return the state."""
        return list(self.items())


class Line(deque):  # type: ignore[type-arg]
    """A double-ended queue of limited length."""

    def __init__(self, items: Any = (), maxlen: int | None = 3) -> None:
        super().__init__(items, maxlen)

    def add(self) -> int:
        """Append one item."""
        self.append((self[-1] if self else 0) + 1)
        return int(self[-1])

    def spoil(self) -> None:
        """Change, and raise."""
        self.clear()
        raise ValueError("spoilt")

    def shown(self) -> Any:
        """Return the state."""
        return list(self), self.maxlen


class Selfish:
    """Refers to itself, directly, in a container, through a child, by a method."""

    def __init__(self) -> None:
        self.me = self
        self.all = [self, {"me": self}]
        self.child = Child(self)
        self.action = self.add
        self.count = 0

    def add(self) -> int:
        """Count, by way of the references."""
        self.child.parent.me.all[1]["me"].count += 1  # type: ignore[index]
        return self.count

    def spoil(self) -> None:
        """Change, and raise."""
        self.action()
        raise ValueError("spoilt")

    def shown(self) -> Any:
        """Return whether all references still mean this object."""
        method: Any = self.action
        same = (
            self.me is self.all[0] is self.child.parent is method.__self__ is self  # type: ignore[comparison-overlap]
        )
        return self.count, same


class Child:
    """Knows its parent."""

    def __init__(self, parent: Selfish) -> None:
        self.parent = parent


class Pair(tuple):  # type: ignore[type-arg]
    """Is made with arguments that ``__new__`` wants, and has an attribute."""

    def __new__(cls, left: int = 1, right: int = 2) -> Pair:
        """Make the pair."""
        return super().__new__(cls, (left, right))

    def __init__(self, left: int = 1, right: int = 2) -> None:
        self.count = 0

    def __getnewargs__(self) -> tuple[int, int]:
        return self[0], self[1]

    def add(self) -> int:
        """Count."""
        self.count += 1
        return self.count

    def spoil(self) -> None:
        """Change, and raise."""
        self.count += 10
        raise ValueError("spoilt")

    def shown(self) -> Any:
        """Return the state."""
        return tuple(self), self.count


class Span(tuple):  # type: ignore[type-arg]
    """Is made with names that ``__new__`` wants."""

    def __new__(cls, *, first: int = 1, last: int = 2) -> Span:
        """Make the pair."""
        return super().__new__(cls, (first, last))

    def __init__(self, **_: int) -> None:
        self.count = 0

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"first": self[0], "last": self[1]}

    def add(self) -> int:
        """Count."""
        self.count += 1
        return self.count

    def spoil(self) -> None:
        """Change, and raise."""
        self.count += 10
        raise ValueError("spoilt")

    def shown(self) -> Any:
        """Return the state."""
        return tuple(self), self.count


class Facade:
    """Takes what is in its dictionary for attributes; at first there is none."""

    def __init__(self) -> None:
        self._items: dict[str, int] = {"count": 0}

    def __getattr__(self, name: str) -> int:
        try:
            return self._items[name]
        except KeyError:
            raise AttributeError(name) from None

    def add(self) -> int:
        """Count."""
        self._items["count"] = self.count + 1
        return self.count

    def spoil(self) -> None:
        """Change, and raise."""
        self._items["more"] = 1
        raise ValueError("spoilt")

    def shown(self) -> Any:
        """Return the state."""
        return dict(self._items)


class Attributes(dict):  # type: ignore[type-arg]
    """A dictionary whose items are its attributes, in the way that is passed around."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__  # type: ignore[assignment]

    def add(self) -> int:
        """Count."""
        self.count = self.get("count", 0) + 1
        return self.count  # type: ignore[no-any-return]

    def spoil(self) -> None:
        """Change, and raise."""
        self.more = 1
        raise ValueError("spoilt")

    def shown(self) -> Any:
        """Return the state."""
        return dict(self)


#: Each has ``add`` (a change), ``spoil`` (a change, then an error) and ``shown``.
KINDS = [
    Slotted,
    SlottedChild,
    OwnWords,
    Book,
    Row,
    Bag,
    Tally,
    Ordered,
    Line,
    Selfish,
    Pair,
    Span,
    Facade,
    # Python 3.10 asks the object itself for __getstate__, and gets a KeyError.
    *([Attributes] if sys.version_info >= (3, 11) else []),
]
