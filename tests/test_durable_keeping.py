"""What is kept of objects of every kind, and what becomes of it when classes change."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from state_server import codec, replayable
from state_server.host import Host, HostLimits
from state_server.keeping import KeepingLimits, StateKeeper, image, journal
from state_server.keeping.commits import Change, Committer
from state_server.messages import Call
from state_server.replayable import Unchanged
from state_server.sharing import Catalogue, describe_class, readonly
from state_server.store import SqliteStore, StoreFile

from .durable_classes import KINDS, Count, DurableDesk, FakeStore
from .fakes import PATIENCE_S, FakeClock, FakeConnection, code_of, make_call
from .processes import wait_until


def _name(cls: type) -> str:
    return cls.__name__


def ask(host: Host, target: str, *arguments: Any, key: str = "default") -> Any:
    """Make a call, and return what was answered."""
    return answer_to(host, make_call(target, *arguments, key=key))


def answer_to(host: Host, call: Call) -> Any:
    """Run a call; return what was answered."""
    connection = FakeConnection()
    turn = host.submit(call, connection)
    assert turn is not None
    host.run(turn)
    return connection.wait()


@pytest.mark.parametrize("kind", KINDS, ids=_name)
def test_an_object_of_any_kind_comes_back_as_it_was(kind: type) -> None:
    """Slots, own words, containers, self references: the same after a restart."""
    record = describe_class(kind, name="Thing", exposed=("add", "spoil", "shown"))
    with DurableDesk(record) as desk:
        results = [desk.ask("Thing.add") for _ in range(4)]
        shown = desk.ask("Thing.shown")
        store = desk.store
    with DurableDesk(record, store=store) as desk:
        assert desk.ask("Thing.shown") == shown
        desk.ask("Thing.add")
        after = desk.ask("Thing.shown")
    plain = kind()
    assert [plain.add() for _ in range(4)] == results
    assert plain.shown() == shown
    plain.add()
    assert plain.shown() == after


@pytest.mark.parametrize("kind", KINDS, ids=_name)
def test_an_object_of_any_kind_is_put_back(kind: type) -> None:
    """A method that raises leaves it as it was, and it works on."""
    record = describe_class(kind, name="Thing", exposed=("add", "spoil", "shown"))
    with DurableDesk(record) as desk:
        desk.ask("Thing.add")
        shown = desk.ask("Thing.shown")
        assert code_of(desk.ask("Thing.spoil")) == "Raised"
        assert desk.ask("Thing.shown") == shown
        assert len(desk.store.batches) == 1
        desk.ask("Thing.add")
        assert desk.ask("Thing.shown") != shown


def test_an_object_with_items_is_iterated_over_by_them() -> None:
    """As Python does where a class has no ``__iter__``; a class may refuse it."""

    class Page:
        def __init__(self) -> None:
            self.lines = ["a", "b"]

        def __getitem__(self, number: int) -> str:
            return self.lines[number]

    class Book(Page):
        __iter__ = None

    with DurableDesk(Page, Book) as desk:
        assert desk.ask("Page.__iter__") == ["a", "b"]
        assert code_of(desk.ask("Book.__iter__")) == "NotOffered"
    exposed = describe_class(Page, exposed=("__getitem__",)).contract
    assert exposed is not None
    assert exposed.methods == {"__getitem__"}


def singleton_of_new() -> type:
    """Return a class that makes one object, as it is done most often."""

    class Only:
        _only: Any = None

        def __new__(cls) -> Any:
            if cls._only is None:
                cls._only = super().__new__(cls)
            return cls._only

        def __init__(self) -> None:
            self.count = 0

        def add(self) -> int:
            self.count += 1
            return self.count

        def spoil(self) -> None:
            self.more = self.count = 99
            raise ValueError("spoilt")

        def shown(self) -> dict[str, Any]:
            return dict(self.__dict__)

    return Only


def singleton_of_its_class() -> type:
    """Return a class whose own class has calls of it return one object."""

    class Single(type):
        made: dict[type, Any] = {}  # noqa: RUF012 - one for all

        def __call__(cls, *args: Any) -> Any:
            if cls not in cls.made:
                cls.made[cls] = super().__call__(*args)
            return cls.made[cls]

    plain = dict(vars(singleton_of_new()))
    for name in ("__new__", "__dict__", "__weakref__"):
        del plain[name]
    return Single("Only", (), plain)


@pytest.mark.parametrize("make", [singleton_of_new, singleton_of_its_class])
@pytest.mark.parametrize("durable", [True, False])
def test_each_key_of_a_singleton_is_an_object_of_its_own(
    make: Any, durable: bool
) -> None:
    """They change each other neither when made, nor when called, put back or loaded."""
    record = describe_class(make(), name="Thing", durable=durable)
    with DurableDesk(record) as desk:
        assert [desk.ask("Thing.add") for _ in range(3)] == [1, 2, 3]
        assert desk.ask("Thing.add", key="other") == 1
        assert desk.ask("Thing.add") == 4
        if durable:
            assert code_of(desk.ask("Thing.spoil")) == "Raised"
            assert desk.ask("Thing.shown") == {"count": 4}
        assert desk.ask("Thing.add", key="other") == 2
        store = desk.store
    if durable:
        with DurableDesk(record, store=store) as desk:
            assert desk.ask("Thing.add") == 5
            assert desk.ask("Thing.add", key="other") == 3
            assert desk.ask("Thing.add") == 6


def test_a_state_that_cannot_be_pickled_names_the_attribute() -> None:
    """The call is undone; the error says which attribute and what to do about it."""

    class Holds(Count):
        def take(self) -> None:
            self.count += 1
            self.friend = [self]
            self.handle = threading.Lock()

    class Slots:
        __slots__ = ("fine", "handle")

        def take(self) -> None:
            self.fine = 1
            self.handle = threading.Lock()

    for cls in (Holds, Slots):
        with DurableDesk(describe_class(cls, name="Thing")) as desk:
            failure = desk.ask("Thing.take")
            assert code_of(failure) == "Unkeepable"
            assert "'handle'" in failure.text
            assert "transient" in failure.text
            assert "'friend'" not in failure.text
            assert not desk.store.state("Thing") or cls is Slots
    with DurableDesk(describe_class(Holds, name="Thing")) as desk:
        desk.ask("Thing.add")
        desk.ask("Thing.take")
        assert desk.ask("Thing.add") == 2


class Fault(Exception):
    """An error that pickle takes and cannot bring back: it is built from two."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


@pytest.mark.parametrize("durable", [True, "journal"])
def test_an_object_that_cannot_be_brought_back_is_not_written_by_a_failed_call(
    durable: bool | str,
) -> None:
    """It is refused at its first call, whatever that does, and never is on disk."""

    class Born:
        def __init__(self) -> None:
            self.fault = Fault(1, "at birth")

        def fail(self) -> None:
            raise LookupError

        def refuse(self) -> None:
            raise Unchanged(LookupError())

        def get(self) -> int:
            return 1

    with DurableDesk(describe_class(Born, durable=durable)) as desk:
        for method in ("fail", "refuse", "get", "fail"):
            failure = desk.ask(f"Born.{method}")
            assert code_of(failure) == "Unkeepable", method
            assert "not brought back" in failure.text
        assert not desk.store.objects


def test_an_object_too_large_at_birth_is_not_written_by_a_failed_call() -> None:
    """The limit of a state holds for the first one, whatever the first call does."""

    class Large(Count):
        def __init__(self) -> None:
            super().__init__()
            self.ballast = bytes(3000)

    limits = KeepingLimits(state_bytes_max=2000)
    with DurableDesk(describe_class(Large, name="Large"), keeping=limits) as desk:
        for method in ("refuse", "get", "refuse"):
            failure = desk.ask(f"Large.{method}")
            assert code_of(failure) == "TooLarge", method
            assert "state_bytes_max" in failure.text
        assert not desk.store.objects


def test_a_value_that_cannot_be_brought_back_is_found_before_it_is_on_disk() -> None:
    """Its class is new to an object that has been written before: the call is undone.

    On disk it would have made the whole object unloadable, at the next start.
    """

    class Meter(Count):
        def note(self, fault: bool) -> int:
            self.count += 1
            self.last: Any = Fault(1, "broken") if fault else Decimal(1)
            return self.count

    with DurableDesk(describe_class(Meter, name="Meter")) as desk:
        assert desk.ask("Meter.add") == 1
        assert desk.ask("Meter.note", False) == 2
        failure = desk.ask("Meter.note", True)
        assert code_of(failure) == "Unkeepable"
        assert "not brought back" in failure.text
        assert desk.ask("Meter.note", False) == 3


class _Door:
    def __init__(self) -> None:
        self.count = 0

    def open(self) -> None:
        """Become another, as the state pattern has it."""
        self.__class__ = _OpenDoor  # type: ignore[assignment]

    def slam(self) -> None:
        """Become another, and raise."""
        self.__class__ = _OpenDoor  # type: ignore[assignment]
        raise ValueError("slammed")

    def kind(self) -> str:
        """Say what it is."""
        self.count += 1
        return type(self).__name__


class _OpenDoor(_Door):
    pass


@pytest.mark.parametrize("durable", ["state", "journal"])
def test_an_object_that_becomes_another_is_put_back(
    tmp_path: Path, durable: str
) -> None:
    """Its class is not kept: the next manager would not have what callers saw."""
    shared = Catalogue()
    shared.add(describe_class(_Door, durable=durable))
    store = SqliteStore(tmp_path / "state.db")
    host = Host(shared, store.epoch + bytes(8), store=store)
    host.start()
    answers = []
    try:
        for method in ("kind", "open", "kind", "slam", "kind"):
            answers.append(ask(host, f"_Door.{method}"))
    finally:
        host.stop()
    assert answers[::2] == ["_Door"] * 3
    assert code_of(answers[1]) == "Unkeepable"
    assert "_OpenDoor" in answers[1].text


class _State(NamedTuple):
    count: int
    table: dict[str, int]


def test_a_state_that_is_a_named_tuple_comes_back_as_one() -> None:
    """A pair with a dictionary is not taken for the state of a class with slots."""

    class Named(Count):
        def __getstate__(self) -> _State:
            return _State(self.count, {})

        def __setstate__(self, state: _State) -> None:
            self.count = state.count

    with DurableDesk(describe_class(Named, name="Named")) as desk:
        assert desk.ask("Named.add") == 1
        desk.ask("Named.fail")
        assert desk.ask("Named.add") == 2


def test_words_of_its_own_that_fail_are_an_answer() -> None:
    """__getstate__ that raises undoes the call; the object and the host go on."""

    class Broken(Count):
        def __getstate__(self) -> Any:
            if self.count == 13:
                raise RuntimeError("unlucky")
            return self.__dict__

    with DurableDesk(describe_class(Broken, name="Thing")) as desk:
        assert desk.ask("Thing.add", 12) == 12
        failure = desk.ask("Thing.add")
        assert code_of(failure) == "Unkeepable"
        assert "unlucky" in failure.text
        assert desk.ask("Thing.add", 2) == 14


def test_a_class_that_describes_itself_in_another_way_is_refused() -> None:
    """__reduce__ to a function of its own: a clear error, nothing is kept."""

    class Odd(Count):
        def __reduce_ex__(self, protocol: Any) -> Any:
            return (int, ("3",))

    with DurableDesk(describe_class(Odd, name="Odd")) as desk:
        failure = desk.ask("Odd.add")
        assert code_of(failure) == "Unkeepable"
        assert "__reduce__" in failure.text


def test_transient_attributes_are_not_kept_and_made_anew() -> None:
    """A lock and a cache: not on disk, not a change, there again after a restart."""

    class Cached:
        def __init__(self) -> None:
            self.count = 0
            self.lock = threading.Lock()
            self.cache: dict[str, int] = {}

        def add(self) -> int:
            with self.lock:
                self.count += 1
                return self.count

        def remember(self) -> int:
            self.cache["x"] = self.cache.get("x", 0) + 1
            return self.cache["x"]

        def spoil(self) -> None:
            self.count += 1
            raise ValueError

    record = describe_class(Cached, transient={"lock": threading.Lock, "cache": dict})
    with DurableDesk(record) as desk:
        assert desk.ask("Cached.add") == 1
        assert [desk.ask("Cached.remember") for _ in range(2)] == [1, 2]
        assert desk.store.state("Cached") == {"count": 1}
        assert len(desk.store.batches) == 1
        desk.ask("Cached.spoil")
        assert desk.ask("Cached.add") == 2
        store = desk.store
    with DurableDesk(record, store=store) as desk:
        assert desk.ask("Cached.add") == 3
        assert desk.ask("Cached.remember") == 1


# Read-only ---------------------------------------------------------------------------


class Liar(Count):
    """Declares read-only what changes it."""

    @readonly
    def peek(self) -> int:
        """Change, against its word."""
        self.count += 100
        return self.count


def test_development_mode_catches_a_readonly_method_that_changes() -> None:
    """The lie is an error that names the object, and is undone."""
    keeping = KeepingLimits(development=True)
    with DurableDesk(describe_class(Liar, name="Count"), keeping=keeping) as desk:
        assert desk.ask("Count.add") == 1
        assert desk.ask("Count.look") == 1
        failure = desk.ask("Count.peek")
        assert code_of(failure) == "Refused"
        assert "Count/default" in failure.text
        assert "read-only" in failure.text
        assert desk.ask("Count.get") == 1


def test_readonly_methods_write_and_remember_nothing() -> None:
    """Neither state nor reply goes to the store."""
    with DurableDesk(Count) as desk:
        desk.ask("Count.add")
        connection = desk.attached()
        for number in range(1, 20):
            desk.ask("Count.look", connection=connection, number=number)
        assert len(desk.store.batches) == 1
        assert not desk.store.replies


# Unchanged ---------------------------------------------------------------------------

_SETS = """
import pickle, sys
sys.path[:0] = [{root!r}]
from state_server.keeping import image
from tests.test_durable_keeping import Words
words = Words()
words.words = set({words!r})
words.words.discard("w0")
sys.stdout.buffer.write(image.dump(words, {{}}))
"""


class Words:
    """Holds a set of texts: it iterates in another order under another hash seed."""

    def __init__(self) -> None:
        self.words = set()  # type: ignore[var-annotated]

    def put(self, word: str) -> int:
        """Put a word in."""
        self.words.add(word)
        return len(self.words)

    def size(self) -> int:
        """Return how many there are."""
        return len(self.words)


def test_a_set_that_dumps_differently_after_a_reload_is_unchanged() -> None:
    """Loading a set made under another hash seed is no change, and a change is one."""
    words = [f"w{n}" for n in range(50)]
    root = str(Path(__file__).resolve().parent.parent)
    images = set()
    for seed in ("1", "2", "3"):
        made = subprocess.run(
            [sys.executable, "-c", _SETS.format(root=root, words=words)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        )
        images.add(made.stdout)
    assert len(images) > 1, "the order of the set must differ for this to show anything"
    for stored in images:
        store = FakeStore()
        name = ("Words", "default")
        store.commit([Change(name, 1, 7, stored)], [], [])
        with DurableDesk(Words, store=store) as desk:
            assert desk.ask("Words.size") == 49
            assert desk.ask("Words.put", "w7") == 49
            assert len(store.batches) == 1, "nothing has changed"
            assert desk.ask("Words.put", "new") == 50
            assert len(store.batches) == 2
            assert store.objects[name].generation == 8
            assert desk.ask("Words.put", "w1") == 50
            assert len(store.batches) == 2


def test_no_change_is_ever_taken_for_none() -> None:
    """Whatever changes in nested values, the next image differs from the last."""

    class Nested:
        def __init__(self) -> None:
            self.shared = [0]
            self.left = {"a": self.shared, "b": [1.0, None, True]}
            self.right = (self.shared, {1, 2})

        def apply(self, what: int) -> None:
            changes: list[Any] = [
                lambda: self.shared.append(1),
                lambda: self.left.__setitem__("b", [1, None, True]),
                lambda: self.left.__setitem__("a", list(self.shared)),
                lambda: self.right[1].add(3),
                lambda: setattr(self, "left", dict(reversed(self.left.items()))),
                lambda: setattr(self, "extra", None),
                lambda: delattr(self, "extra"),
            ]
            changes[what]()

    with DurableDesk(Nested) as desk:
        for what in range(7):
            assert desk.ask("Nested.apply", what) is None
            assert len(desk.store.batches) == what + 1
            kept = desk.store.state("Nested")
            assert (kept["left"]["a"] is kept["shared"]) == (what < 2)


class _Plain:
    """An object of plain attributes, as most are."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class _PlainWords(dict[str, int]):
    """A dictionary with attributes: its items are no part of its state."""


class _Slotted:
    """An object without a ``__dict__``."""

    __slots__ = ("number",)


@pytest.mark.parametrize("transient", [{}, {"lock": None}])
@pytest.mark.parametrize("cls", [_Plain, _PlainWords, _Slotted])
@pytest.mark.parametrize("extra", [[], [1], {"a": {2}}])
def test_the_quick_image_of_plain_attributes_says_what_the_other_one_does(
    cls: type,
    transient: dict[str, None],
    extra: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which of the two ways an object goes changes nothing but the time it takes."""
    instance: Any = cls()
    if cls is not _Slotted:
        instance.__dict__.update(number=1, name="n", data=b"", ratio=0.5, no=None)
        # As plain as the others: it must not be left out for what it is.
        instance.lock = 5
        if extra:
            instance.extra = extra
    else:
        instance.number = 2**70
    if cls is _PlainWords:
        instance["key"] = 5
    quick = image.dump(instance, transient)
    monkeypatch.setattr(image, "_is_plain", lambda state: False)
    slow = image.dump(instance, transient)
    assert image.parts_of(quick) == image.parts_of(slow)
    for data in (quick, slow):
        brought = image.rebuild(data, cls, transient)
        assert type(brought) is cls
        assert getattr(brought, "number", None) == instance.number
        has_lock = cls is not _Slotted and not transient
        assert hasattr(brought, "lock") is has_lock


# Versions ----------------------------------------------------------------------------


class Older:
    """The class as it was."""

    def __init__(self) -> None:
        self.total = 5

    def add(self) -> int:
        """Count."""
        self.total += 1
        return self.total


class Newer:
    """The class as it is now: the attribute has another name."""

    def __init__(self) -> None:
        self.sum = 0

    @classmethod
    def migrate(cls, old_version: int, state: dict[str, int]) -> dict[str, int]:
        """Return the state with today's names."""
        assert old_version == 1
        return {"sum": state["total"]}

    def add(self) -> int:
        """Count."""
        self.sum += 1
        return self.sum

    def get(self) -> int:
        """Return the number."""
        return self.sum


def _stored_by_older() -> FakeStore:
    with DurableDesk(describe_class(Older, name="Sum"), Count) as desk:
        assert desk.ask("Sum.add") == 6
        desk.ask("Count.add")
        return desk.store


def test_an_older_state_is_migrated_and_written_with_the_next_change() -> None:
    """Reading writes nothing; the first change is stored under the new version."""
    store = _stored_by_older()
    name = ("Sum", "default")
    with DurableDesk(describe_class(Newer, name="Sum", version=2), store=store) as desk:
        assert desk.ask("Sum.get") == 6
        assert store.objects[name].version == 1
        assert desk.ask("Sum.add") == 7
        assert store.objects[name].version == 2
        assert store.state("Sum") == {"sum": 7}
    with DurableDesk(describe_class(Newer, name="Sum", version=2), store=store) as desk:
        assert desk.ask("Sum.get") == 7


def _unloadable(*records: Any) -> tuple[str, str]:
    """Call the object stored by the older class; the others must serve."""
    store = _stored_by_older()
    before = dict(store.objects)
    with DurableDesk(*records, Count, store=store) as desk:
        failure = desk.ask("Sum.add")
        assert desk.ask("Count.get") == 1
        assert store.objects == before, "it stays as it is"
        assert desk.ask("Count.add") == 2
    return code_of(failure), failure.text


def test_an_older_state_without_migrate_is_refused_by_name() -> None:
    """The error names the object, both versions and what is missing."""
    code, text = _unloadable(describe_class(Older, name="Sum", version=3))
    assert code == "Unloadable"
    assert "Sum/default" in text
    assert "version 1" in text
    assert "version 3" in text
    assert "migrate" in text


def test_a_migration_that_fails_is_refused_by_name() -> None:
    """Whatever migrate raises: the stored state stays, the error says what happened."""

    class Failing(Newer):
        @classmethod
        def migrate(cls, old_version: int, state: Any) -> Any:
            raise KeyError("nobody thought of this")

    code, text = _unloadable(describe_class(Failing, name="Sum", version=2))
    assert code == "Unloadable"
    assert "Sum/default" in text
    assert "nobody thought of this" in text


def test_a_newer_state_is_refused_by_name() -> None:
    """An older release does not touch what a newer one has written."""
    with DurableDesk(describe_class(Newer, name="Sum", version=2)) as desk:
        desk.ask("Sum.add")
        store = desk.store
    with DurableDesk(describe_class(Older, name="Sum"), Count, store=store) as desk:
        failure = desk.ask("Sum.add")
        assert code_of(failure) == "Unloadable"
        assert "Sum/default" in failure.text
        assert "version 2" in failure.text
        assert desk.ask("Count.add") == 1
        assert store.objects["Sum", "default"].version == 2


def test_a_class_that_is_gone_is_refused_by_name() -> None:
    """The error names the class; what is stored stays."""
    code, text = _unloadable()
    assert code == "NotShared"
    assert "'Sum'" in text


def test_a_value_whose_class_is_gone_refuses_its_object_only() -> None:
    """An attribute whose class cannot be imported: refused by name, left as it is."""
    store = FakeStore()
    parts = image.Parts((), {}, {"count": 1}, None, None)
    good = image.image_of(parts)
    assert pickle.loads(good) == ((), {})
    vanished = pickle.dumps(((), {})) + b"cno_such_module\nThing\n."
    store.commit([Change(("Count", "bad"), 1, 1, vanished)], [], [])
    store.commit([Change(("Count", "good"), 1, 1, good)], [], [])
    with DurableDesk(Count, store=store) as desk:
        failure = desk.ask("Count.add", key="bad")
        assert code_of(failure) == "Unloadable"
        assert "Count/bad" in failure.text
        assert "no_such_module" in failure.text
        assert desk.ask("Count.add", key="good") == 2
        assert store.objects["Count", "bad"].image == vanished


def test_a_renamed_class_finds_its_objects_under_both_names(tmp_path: Path) -> None:
    """aliases=: the same object by its old and its new name, in the real store."""
    from state_server.store import SqliteStore

    store: Any = SqliteStore(tmp_path / "state.db")
    with DurableDesk(describe_class(Count, name="Old"), store=_Real(store)) as desk:  # type: ignore[arg-type]
        assert desk.ask("Old.add", key="x") == 1
    store = SqliteStore(tmp_path / "state.db")
    assert store.rename("Old", "New") == 1
    record = describe_class(Count, name="New", aliases=("Old",))
    with DurableDesk(record, store=_Real(store)) as desk:  # type: ignore[arg-type]
        assert desk.ask("Old.add", key="x") == 2
        assert desk.ask("New.add", key="x") == 3
        assert desk.host.status()["objects"] == 1


class _Real:
    """A real store with the words of the fake one."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def release(self) -> None:
        pass

    release_fence = release


def test_a_keeper_that_lets_go_starts_from_disk() -> None:
    """drop() forgets what was not committed."""
    store = FakeStore()
    committer = Committer(store, lambda *_: None, 900.0)
    keeper = StateKeeper(
        ("Count", "x"), describe_class(Count), committer, KeepingLimits()
    )
    keeper.bring()
    keeper.instance.add()
    call = Call("Count", "x", "add", b"", 1.0)
    change = keeper.kept(call, readonly=False)
    assert change is not None
    store.commit([change], [], [])
    keeper.instance.add()
    keeper.drop()
    keeper.bring()
    assert keeper.instance.count == 1


def test_a_class_that_fails_at_the_last_image_does_not_keep_the_store_open(
    tmp_path: Path,
) -> None:
    """The store is closed in order even if a class raises while the manager stops."""

    class Brittle:
        loads = True

        def __init__(self) -> None:
            self.count = 0

        def add(self) -> int:
            self.count += 1
            return self.count

        def __setstate__(self, state: dict[str, Any]) -> None:
            if not Brittle.loads:
                raise ValueError("not now")
            self.__dict__.update(state)

    shared = Catalogue()
    shared.add(describe_class(Brittle, durable="journal"))
    store = SqliteStore(tmp_path / "state.db")
    host = Host(shared, store.epoch + bytes(8), store=store)
    host.start()
    assert [ask(host, "Brittle.add"), ask(host, "Brittle.add")] == [1, 2]
    Brittle.loads = False

    host.stop()

    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        store.count()


def test_a_journalled_object_costs_no_image_where_nothing_is_kept() -> None:
    """Without a store it is changed in place, however large it has become."""

    class Large:
        def __init__(self) -> None:
            self.chunks: list[bytes] = []

        def grow(self) -> int:
            self.chunks.append(bytes(2 * 1024 * 1024))
            return len(self.chunks)

        def __reduce__(self) -> Any:
            raise AssertionError("an image was made")

    shared = Catalogue()
    shared.add(describe_class(Large, durable="journal"))
    host = Host(shared, bytes(16))
    assert [ask(host, "Large.grow"), ask(host, "Large.grow")] == [1, 2]


def test_of_a_journalled_object_its_image_and_the_calls_since_are_known(
    tmp_path: Path,
) -> None:
    """The kept bytes are those on disk, also of one that was built or loaded."""

    class Till:
        def __init__(self) -> None:
            self.coins: list[bytes] = []

        def take(self, coin: bytes) -> int:
            self.coins.append(coin)
            return len(self.coins)

        def refuse(self) -> None:
            raise Unchanged(LookupError())

        def fail(self) -> None:
            raise LookupError

    shared = Catalogue()
    shared.add(describe_class(Till, durable="journal"))
    limits = HostLimits(objects_bytes_max=5000)
    store = SqliteStore(tmp_path / "state.db")
    host = Host(shared, store.epoch + bytes(8), limits, store=store)
    host.start()

    def till(method: str, *arguments: Any, key: str = "large") -> Any:
        return ask(host, f"Till.{method}", *arguments, key=key)

    def bytes_on_disk() -> int:
        stored = store.load(("Till", "large"))
        assert stored is not None
        return len(stored.image) + sum(map(len, stored.entries))

    try:
        # Built, and not on disk yet.
        assert code_of(till("__getattribute__", "absent")) == "NotOffered"
        assert 0 < host.status()["objects_bytes"] < 100
        for number in range(1, 5):
            assert till("take", bytes(800)) == number
            assert host.status()["objects_bytes"] == bytes_on_disk() > 800 * number
        till("fail")
        assert host.status()["objects_bytes"] == 0
        till("refuse")
        assert host.status()["objects_bytes"] == bytes_on_disk()
        assert till("take", bytes(3000), key="other") == 1
        host.check()
        # There is no room for both any more.
        assert host.status()["objects_bytes"] < 4000
        assert till("take", bytes(1)) == 5
        assert host.status()["objects_bytes"] == bytes_on_disk()
    finally:
        host.stop()


def test_unchanged_takes_an_error_or_its_class() -> None:
    """As ``raise`` does; anything else would be lost on its way to the caller."""
    assert type(Unchanged(LookupError).error) is LookupError
    with pytest.raises(TypeError, match=r"the caller is to see, not 'gone'\."):
        Unchanged("gone")  # type: ignore[arg-type]


def test_a_journal_keeps_nothing_of_a_call_that_has_ended(tmp_path: Path) -> None:
    """However it ends, its arguments leave memory, and its thread records no more."""

    class Till:
        def take(self, coins: bytes) -> int:
            return len(coins)

        def drop(self, coins: bytes) -> None:
            raise ValueError(len(coins))

        def refuse(self, coins: bytes) -> None:
            raise Unchanged(ValueError(len(coins)))

        def leak(self, coins: bytes) -> Any:
            return threading.Lock()

        def __contains__(self, coins: bytes) -> bool:
            return False

    shared = Catalogue()
    shared.add(describe_class(Till, durable="journal"))
    store = SqliteStore(tmp_path / "state.db")
    host = Host(shared, store.epoch + bytes(8), store=store)
    host.start()
    try:
        for method in ("take", "drop", "refuse", "leak", "__contains__", "exit"):
            errors = deque([SystemExit()] if method == "exit" else [])

            def encode(event: str, errors: deque[BaseException] = errors) -> None:
                if errors:
                    raise errors.popleft()

            connection = FakeConnection(encode)
            method = "take" if method == "exit" else method
            turn = host.submit(make_call(f"Till.{method}", bytes(5000)), connection)
            assert turn is not None
            host.run(turn)
            connection.wait()
            assert isinstance(turn.keeper, journal.JournalKeeper)
            assert turn.keeper._arguments == b"", method
            assert replayable.taps.record is None, method
    finally:
        host.stop()


@pytest.mark.parametrize("keeps_order", [False, True])
def test_an_object_that_keeps_its_order_is_not_loaded_from_each_image(
    tmp_path: Path, keeps_order: bool
) -> None:
    """After an image of it the live object goes on, or else the one that was loaded."""
    loads: list[int] = []

    class Roll:
        def __init__(self) -> None:
            self.names: list[str] = []

        def add(self, name: str) -> int:
            self.names.append(name)
            return len(self.names)

        def __setstate__(self, state: dict[str, list[str]]) -> None:
            self.names = state["names"]
            loads.append(len(self.names))

    record = describe_class(Roll, durable="journal")
    limits = KeepingLimits(journal_bytes_max=1024)
    for start in (0, 20):
        shared = Catalogue()
        shared.add(dataclasses.replace(record, keeps_order=keeps_order))
        store = SqliteStore(tmp_path / "state.db")
        host = Host(shared, store.epoch + bytes(8), keeping=limits, store=store)
        host.start()
        loads.clear()
        for number in range(start, start + 20):
            assert ask(host, "Roll.add", "x" * 300) == number + 1
        # The first one of the second host is the load at its start.
        assert len(loads) == (start > 0) if keeps_order else len(loads) > 1
        assert host._committer is not None
        host._committer.stop()


def test_a_journal_has_the_arguments_as_they_were_sent(tmp_path: Path) -> None:
    """A method that empties the list it was given is replayed with the full one."""

    class Till:
        def __init__(self) -> None:
            self.total = 0

        def take(self, coins: list[int]) -> int:
            while coins:
                self.total += coins.pop()
            return self.total

    for total in (6, 12, 18):
        shared = Catalogue()
        shared.add(describe_class(Till, durable="journal"))
        store = SqliteStore(tmp_path / "state.db")
        host = Host(shared, store.epoch + bytes(8), store=store)
        host.start()
        # As from a stock client, whose arguments come decoded.
        call = make_call("Till.take")._replace(body=(([1, 2, 3],), {}))
        assert answer_to(host, call) == total
        # Not stop(), which would write an image: the next one replays the call.
        assert host._committer is not None
        host._committer.stop()


def test_a_journal_begins_with_the_object_that_its_replay_begins_with(
    tmp_path: Path,
) -> None:
    """A set that was built iterates differently from the same set when it was loaded.

    The first call changes nothing, so it is the newly built object that is written.
    """

    class Lots:
        def __init__(self) -> None:
            self.left = set(range(0, 100_000, 7))
            for number in sorted(self.left)[:-20]:
                self.left.discard(number)
            self.drawn: list[int] = []

        def refuse(self) -> None:
            raise Unchanged(LookupError())

        def draw(self) -> list[int]:
            self.drawn.append(self.left.pop())
            return self.drawn

    drawn: list[int] = []
    for method in ("refuse", "draw", "draw", "draw"):
        shared = Catalogue()
        shared.add(describe_class(Lots, durable="journal"))
        store = SqliteStore(tmp_path / "state.db")
        host = Host(shared, store.epoch + bytes(8), store=store)
        host.start()
        for each in (method, "draw"):
            answer = ask(host, f"Lots.{each}")
            if each == "draw":
                assert answer[:-1] == drawn, method
                drawn = answer
        # Not stop(), which would write an image: the next one replays the calls.
        assert host._committer is not None
        host._committer.stop()


def test_journalled_calls_are_not_left_out_when_a_class_gives_its_journal_up(
    tmp_path: Path,
) -> None:
    """Numbers that only the journal has would be given again: refused by name.

    The class with its journal again goes on where it was.
    """
    answers = []
    for durable in ("journal", "state", "journal"):
        shared = Catalogue()
        shared.add(describe_class(Count, durable=durable))
        store = SqliteStore(tmp_path / "state.db")
        host = Host(shared, store.epoch + bytes(8), store=store)
        host.start()
        for _ in range(2):
            answers.append(ask(host, "Count.add"))
        # Not stop(), which would write an image.
        assert host._committer is not None
        host._committer.stop()
    assert answers[:2] + answers[4:] == [1, 2, 3, 4]
    for failure in answers[2:4]:
        assert code_of(failure) == "Unloadable"
        assert "Count/default is stored with 1 journalled calls" in failure.text


class Visits:
    """Counts, by calls that are journalled."""

    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        """Count."""
        self.count += 1
        assert self.count != 3, "three is refused"
        return self.count


def journal_host(
    path: Path, clock: FakeClock, cls: type = Visits, version: int = 1
) -> tuple[Host, SqliteStore]:
    """Return a host that keeps journals of ``cls``, as ``Visits``; and its store."""
    shared = Catalogue()
    shared.add(describe_class(cls, name="Visits", durable="journal", version=version))
    store = SqliteStore(path)
    host = Host(shared, store.epoch + bytes(8), store=store, clock=clock)
    host.start()
    return host, store


def visit(host: Host, key: str) -> Any:
    """Have one of the objects of ``journal_host`` count."""
    return ask(host, "Visits.add", key=key)


def journalled_in(path: Path) -> list[str]:
    """Return the keys of the objects that have journalled calls."""
    with StoreFile(path) as store:
        return [row.name[1] for row in store.rows() if row.entries]


def test_a_stop_in_good_order_leaves_no_journalled_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An image is written also of what was not called, has left memory, or failed."""
    path, clock = tmp_path / "state.db", FakeClock()
    host, store = journal_host(path, clock)
    for key in ("uncalled", "idle", "failed", "called"):
        assert [visit(host, key), visit(host, key)] == [1, 2]
    # As it is after kill -9: the calls are on disk, and no image was written.
    store.close()
    assert journalled_in(path) == ["called", "failed", "idle", "uncalled"]

    host, _ = journal_host(path, clock)
    assert code_of(visit(host, "idle")) == "Raised"
    clock.advance(1000)
    host.sweep()
    assert host.status()["objects"] == 0
    assert code_of(visit(host, "failed")) == "Raised"
    host.stop(timeout_s=-1.0)
    assert journalled_in(path) == ["called", "failed", "idle", "uncalled"]
    assert "keep their journalled calls: 4." in caplog.text

    class Other(Visits):
        def add(self) -> int:
            raise SystemExit if caplog.text.endswith("once more.\n") else ValueError

    host, _ = journal_host(path, clock, Other)
    host.stop()
    assert "No image of Visits/called was written.\n" in caplog.text
    assert "No image of Visits/failed was written: call 1 of the journal" in caplog.text
    assert journalled_in(path) == ["called", "failed", "idle", "uncalled"]

    host, _ = journal_host(path, clock)
    host.stop()
    assert journalled_in(path) == []
    host, _ = journal_host(path, clock)
    assert code_of(visit(host, "idle")) == "Raised"
    host.stop()


def test_a_migrated_journal_begins_with_an_image(tmp_path: Path) -> None:
    """What ``migrate`` made is on disk with the next change, and is not made again."""

    class Older:
        def __init__(self) -> None:
            self.count = 0

        def add(self) -> int:
            self.count += 1
            return self.count

    class Newer(Older):
        migrations = itertools.count(1)

        @classmethod
        def migrate(cls, old_version: int, state: Any) -> Any:
            return {"count": state["count"] + 100 * next(cls.migrations)}

    path = tmp_path / "state.db"
    host, _ = journal_host(path, FakeClock(), Older)
    assert [visit(host, "a"), visit(host, "a")] == [1, 2]
    host.stop()
    host, store = journal_host(path, FakeClock(), Newer, version=2)
    assert [visit(host, "a"), visit(host, "a")] == [103, 104]
    # As it is after kill -9.
    store.close()
    host, _ = journal_host(path, FakeClock(), Newer, version=2)
    assert visit(host, "a") == 105
    host.stop()


def test_calls_of_an_older_version_are_not_made_again_by_the_newer_one(
    tmp_path: Path,
) -> None:
    """What was not stopped in good order is refused by name; the old code has it yet.

    An image that the old code writes at its stop is what the new one begins with.
    """
    path = tmp_path / "state.db"

    class Newer(Visits):
        @classmethod
        def migrate(cls, old_version: int, state: Any) -> Any:
            return state

        def add(self) -> int:
            self.count += 100
            return self.count

    host, store = journal_host(path, FakeClock())
    assert [visit(host, "a"), visit(host, "a")] == [1, 2]
    # As it is after kill -9.
    store.close()
    host, store = journal_host(path, FakeClock(), Newer, version=2)
    failure = visit(host, "a")
    assert code_of(failure) == "Unloadable"
    assert "call 1 of the journal of Visits/a (add) was made by version 1" in (
        failure.text
    )
    assert "stop it with SIGTERM" in failure.text
    store.close()
    journal_host(path, FakeClock())[0].stop()
    host, _ = journal_host(path, FakeClock(), Newer, version=2)
    assert visit(host, "a") == 102
    host.stop()


def test_a_journalled_generator_is_replayed_to_its_end(tmp_path: Path) -> None:
    """Its caller was given all items, so all of its work was done."""

    class Dealer(Visits):
        def deal(self, count: int) -> Iterator[int]:
            for _ in range(count):
                self.count += 1
                yield self.count

    path = tmp_path / "state.db"
    for first in (1, 4, 7):
        host, store = journal_host(path, FakeClock(), Dealer)
        # The first call ever is written as an image, all others as entries.
        assert ask(host, "Visits.deal", 3) == list(range(first, first + 3))
        # As it is after kill -9.
        store.close()


def test_a_disk_that_hangs_does_not_hold_up_a_stop_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Images are written while there is time; then the rest is named in the log."""
    path, is_open = tmp_path / "state.db", threading.Event()
    host, store = journal_host(path, FakeClock())
    for key in ("a", "b"):
        assert [visit(host, key), visit(host, key)] == [1, 2]
    store.close()
    host, store = journal_host(path, FakeClock())
    commit = store.commit

    def hang(*args: Any) -> None:
        assert is_open.wait(PATIENCE_S)
        commit(*args)

    monkeypatch.setattr(store, "commit", hang)
    clock = host._clock

    def later() -> float:
        """Have time pass with each look at the clock."""
        clock.advance(0.05)  # type: ignore[attr-defined]
        return clock()

    monkeypatch.setattr(host, "_clock", later)
    stopping = threading.Thread(target=host.stop, args=(0.1,))
    stopping.start()
    wait_until(lambda: "keep their journalled calls: 1." in caplog.text)
    is_open.set()
    stopping.join(PATIENCE_S)
    assert not stopping.is_alive()
    assert journalled_in(path) == ["b"]


def test_a_method_that_outlasts_the_stop_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its object gets no image: who is about to change the class must know that."""
    began, may_end = threading.Event(), threading.Event()

    class Slow(Visits):
        def add(self) -> int:
            if self.count == 2:
                began.set()
                assert may_end.wait(PATIENCE_S)
            self.count += 1
            return self.count

    path = tmp_path / "state.db"
    host, _ = journal_host(path, FakeClock(), Slow)
    for key in ("slow", "idle"):
        assert [visit(host, key), visit(host, key)] == [1, 2]
    turn = host.submit(make_call("Visits.add", key="slow"), FakeConnection())
    assert turn is not None
    running = threading.Thread(target=host.run, args=(turn,))
    running.start()
    assert began.wait(PATIENCE_S)
    host.stop()
    may_end.set()
    running.join(PATIENCE_S)
    assert not running.is_alive()
    assert "Objects that keep their journalled calls: 1. Their methods" in caplog.text
    assert journalled_in(path) == ["slow"]


def test_a_damaged_journal_is_refused_by_name(tmp_path: Path) -> None:
    """A bit that has turned in a call names the object and the call; others serve."""
    path = tmp_path / "state.db"
    host, store = journal_host(path, FakeClock())
    for key in ("a", "b"):
        assert [visit(host, key), visit(host, key)] == [1, 2]
    store.close()
    for damaged in (
        b"",
        b"\x80\x05damaged",
        codec.encode(5),
        codec.encode((1, "add")),
        codec.encode((1, "add", b"", 0.5)),
    ):
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("update entries set entry = ? where key = 'a'", (damaged,))
        connection.close()
        host, store = journal_host(path, FakeClock())
        failure = visit(host, "a")
        assert code_of(failure) == "Unloadable"
        assert "call 1 of the journal of Visits/a is damaged" in failure.text
        assert code_of(visit(host, "b")) == "Raised"
        store.close()
