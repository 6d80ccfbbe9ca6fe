"""What an operator does with a data folder: beside a manager, and without one."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from time import time as now_s
from types import SimpleNamespace
from typing import Any

import pytest

from state_server import Unanswered, operating
from state_server import __main__ as commands
from state_server.__main__ import main
from state_server.data_folder import DataDirLock, DataDirLocked, lock_holder
from state_server.dumps import line_of
from state_server.errors import ConfigError, StoreError
from state_server.host import Host
from state_server.keeping import image, journal
from state_server.sharing import Catalogue, describe_class
from state_server.store import SqliteStore, StoredRow, StoreFile, database, hash_seed_of

from .conftest import StartManager
from .fakes import FakeConnection, code_of, lane_of, make_call
from .processes import ROOT, ManagerProcess, wait_until


class Number:
    """Counts."""

    def __init__(self) -> None:
        self.value = 0

    def add(self) -> int:
        """Return the next number."""
        self.value += 1
        return self.value


class Thing:
    """Holds attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __eq__(self, other: object) -> bool:
        return type(other) is Thing and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Thing({vars(self)})"


class Shelf(list[Any]):
    """A list with an attribute."""


class Index(dict[Any, Any]):
    """A dictionary with an attribute."""


class Point(tuple[int, ...]):
    """Is made with arguments."""

    __slots__ = ()

    def __new__(cls, x: int, y: int) -> Point:
        """Return a point."""
        return super().__new__(cls, (x, y))

    def __getnewargs__(self) -> tuple[int, ...]:
        """Return what ``__new__`` wants."""
        return tuple(self)


NUMBER = describe_class(Number)


def classes(*shared: Any) -> Catalogue:
    """Return a catalogue of these classes or records."""
    catalogue = Catalogue()
    for item in shared:
        catalogue.add(describe_class(item) if isinstance(item, type) else item)
    return catalogue


def row(value: Any, name: str = "Number/default", version: int = 1) -> StoredRow:
    """Return an object as it is stored."""
    class_name, key = name.split("/")
    return StoredRow((class_name, key), version, 3, image.dump(value, {}))


def put(data_dir: Path, *rows: StoredRow) -> None:
    """Store objects."""
    data_dir.mkdir(mode=0o700, exist_ok=True)
    store = SqliteStore(data_dir / "state.db")
    store.insert(rows, replace=True)
    store.close()


def number(value: int) -> Number:
    """Return a number that has counted so far."""
    made = Number()
    made.value = value
    return made


def rows_of(path: Path) -> list[StoredRow]:
    """Return all objects of a store."""
    with StoreFile(path) as store:
        return list(store.rows())


def value_in(path: Path, name: str = "Number/default") -> int:
    """Return how far a stored number has counted."""
    for found in rows_of(path):
        if "/".join(found.name) == name:
            parts = image.parts_of(found.image)
            return int((parts.state or {}).popitem()[1])
    raise AssertionError(f"{name} is not in {path}")


def epoch_of(path: Path) -> bytes:
    """Return the epoch of a store."""
    with StoreFile(path) as store:
        return store.about["epoch"]


def mode_of(path: Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def flip(path: Path, offset: int) -> None:
    """Damage one byte."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


def command(
    *arguments: str | Path, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "state_server", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": f"{cwd or ROOT}:{ROOT}", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Give a data folder with one number, that has counted to 7."""
    folder = tmp_path / "var"
    put(folder, row(number(7)))
    return folder


# Backup and restore ------------------------------------------------------------------


class Counting:
    """Clients that count on one object until they are told to stop."""

    def __init__(self, manager: ManagerProcess, clients: int) -> None:
        self.numbers: list[int] = []
        self.errors: list[Exception] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._count, args=(manager,))
            for _ in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def _count(self, manager: ManagerProcess) -> None:
        with manager.client() as client:
            handle = client.get("SomeObj")
            while not self._stop.is_set():
                try:
                    self.numbers.append(handle.query())
                except Exception as error:
                    self.errors.append(error)
                    return

    def end(self) -> None:
        """Stop counting."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


def test_a_backup_is_one_moment_and_holds_nobody_up(
    start_manager: StartManager, tmp_path: Path
) -> None:
    """Four clients count on while 40 MB are copied; the copy has a number of then."""
    manager = start_manager()
    manager.stop()
    ballast = Thing(data=os.urandom(20_000))
    put(manager.data_dir, *(row(ballast, f"Ballast/{n}") for n in range(2_000)))
    manager.start()
    counting = Counting(manager, 4)
    try:
        wait_until(lambda: len(counting.numbers) > 100)
        before = max(counting.numbers)
        result = command("backup", tmp_path / "copy", "--data-dir", manager.data_dir)
        after = len(counting.numbers)
        wait_until(lambda: len(counting.numbers) > after + 100 or counting.errors)
    finally:
        counting.end()
    assert (result.returncode, result.stderr) == (0, "")
    assert "Backed up 2001 objects" in result.stdout
    assert counting.errors == []
    assert sorted(counting.numbers) == list(range(1, len(counting.numbers) + 1))
    copied = value_in(tmp_path / "copy", "SomeObj/default")
    assert before <= copied <= after + 4
    assert after > before, "nobody counted while the backup was made"

    other = start_manager()
    other.stop()
    operating.restore(other.data_dir, tmp_path / "copy")
    assert operating.check(other.data_dir, classes(), strict=False).is_good
    other.start()
    with other.client() as client:
        assert client.get("SomeObj").query() == copied + 1


def test_what_is_read_of_a_state_is_one_moment(data_dir: Path, tmp_path: Path) -> None:
    """What is committed after a state was opened is in no count, row or copy of it."""
    with StoreFile(data_dir / "state.db") as store:
        put(data_dir, row(number(8)), row(number(1), "Number/later"))
        assert store.count("objects") == 1
        assert [found.generation for found in store.rows()] == [3]
        store.copy(tmp_path / "copy", hash_seed=None, wal=False)
    assert len(rows_of(tmp_path / "copy")) == 1
    assert value_in(tmp_path / "copy") == 7
    assert len(rows_of(data_dir / "state.db")) == 2


def test_a_backup_of_a_stopped_manager_has_what_only_its_log_has(
    start_manager: StartManager, tmp_path: Path
) -> None:
    """After kill -9 the last calls are in the log next to the file; none is lost."""
    manager = start_manager()
    with manager.client() as client:
        for _ in range(5):
            client.get("SomeObj").query()
    manager.kill()
    assert (manager.data_dir / "state.db-wal").stat().st_size
    operating.back_up(manager.data_dir, tmp_path / "copy")
    assert value_in(tmp_path / "copy", "SomeObj/default") == 5


def test_a_backup_is_private_alone_and_of_a_new_epoch(
    data_dir: Path, tmp_path: Path
) -> None:
    """It is one file with mode 0600, whose epoch is nobody else's."""
    copied = operating.back_up(data_dir, tmp_path / "copy")
    assert copied == (1, (tmp_path / "copy").stat().st_size, None)
    assert mode_of(tmp_path / "copy") == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "var"]
    operating.back_up(data_dir, tmp_path / "second")
    epochs = {
        epoch_of(path)
        for path in (data_dir / "state.db", tmp_path / "copy", tmp_path / "second")
    }
    assert len(epochs) == 3


def test_a_file_is_replaced_only_on_demand(data_dir: Path, tmp_path: Path) -> None:
    """Without --force nothing is overwritten, and files of the folder never are."""
    target = tmp_path / "copy"
    target.write_text("precious")
    with pytest.raises(ConfigError, match=r"exists already.*--force"):
        operating.back_up(data_dir, target)
    assert target.read_text() == "precious"
    for path in (data_dir / "state.db", data_dir / "." / "manager.lock"):
        path.touch()
        with pytest.raises(ConfigError, match="none of those is ever replaced"):
            operating.back_up(data_dir, path, force=True)
    operating.back_up(data_dir, target, force=True)
    assert value_in(target) == 7


def test_a_backup_that_fails_leaves_nothing(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk leaves the former backup as it was, and no half of a new one."""
    target = tmp_path / "copy"
    target.write_text("precious")

    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("state_server.store.reading.sync", fail)
    with pytest.raises(OSError, match="No space"):
        operating.back_up(data_dir, target, force=True)
    assert target.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "var"]


def test_a_damaged_state_is_not_backed_up_as_a_good_one(
    data_dir: Path, tmp_path: Path
) -> None:
    """The copy is verified, and one that is damaged does not get the name."""
    _damage_a_page(data_dir / "state.db")
    with pytest.raises(StoreError, match=r"damaged|could not be copied"):
        operating.back_up(data_dir, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_restore_is_refused_while_a_manager_runs(
    start_manager: StartManager, data_dir: Path, tmp_path: Path
) -> None:
    """The message says which process, the code is 3, and the manager is unharmed."""
    operating.back_up(data_dir, tmp_path / "copy")
    manager = start_manager()
    result = command("restore", tmp_path / "copy", "--data-dir", manager.data_dir)
    assert result.returncode == 3
    assert f"process {manager.pid}" in result.stderr
    (tmp_path / "dump").write_text(GOOD)
    result = command("load", tmp_path / "dump", "--data-dir", manager.data_dir)
    assert result.returncode == 3
    with manager.client() as client:
        assert client.get("SomeObj").query() == 1
    assert not list(manager.data_dir.glob("*before-restore*"))


def test_a_restore_keeps_the_old_state_with_its_last_calls(
    start_manager: StartManager, data_dir: Path, tmp_path: Path
) -> None:
    """What was there is kept aside whole, log included; no log is left to the new."""
    manager = start_manager()
    with manager.client() as client:
        for _ in range(3):
            client.get("SomeObj").query()
    manager.kill()
    operating.back_up(data_dir, tmp_path / "copy")
    copied = operating.restore(manager.data_dir, tmp_path / "copy")
    assert copied.kept is not None
    assert copied.kept.name.startswith("state.db.before-restore-")
    assert value_in(copied.kept, "SomeObj/default") == 3
    assert mode_of(copied.kept) == mode_of(manager.data_dir / "state.db") == 0o600
    assert not (manager.data_dir / "state.db-wal").exists()
    assert value_in(manager.data_dir / "state.db") == 7
    assert not (manager.data_dir / "state.db.new").exists()


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_a_damaged_state_is_kept_as_it_is(
    data_dir: Path, tmp_path: Path, content: bytes
) -> None:
    """A restore over a damaged file keeps each byte of it, its log and its seed."""
    operating.back_up(data_dir, tmp_path / "copy")
    (data_dir / "hashseed").write_text("42\n")
    path = data_dir / "state.db"
    path.write_bytes(content)
    (data_dir / "state.db-wal").write_bytes(b"the log")
    kept = operating.restore(data_dir, tmp_path / "copy").kept
    assert kept is not None
    assert kept.read_bytes() == content
    assert kept.with_name(kept.name + "-wal").read_bytes() == b"the log"
    assert kept.with_name(kept.name + "-hashseed").read_bytes() == b"42\n"
    assert not (data_dir / "state.db-wal").exists()
    assert value_in(path) == 7


def test_a_restore_that_is_cut_off_leaves_the_old_state_whole(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the one rename, the old state is in its place with all its calls."""
    operating.back_up(data_dir, tmp_path / "copy")
    store = SqliteStore(data_dir / "state.db")
    store.insert([row(number(9))], replace=True)
    log = (data_dir / "state.db-wal").read_bytes()
    image_before = (data_dir / "state.db").read_bytes()
    store.close()
    (data_dir / "state.db").write_bytes(image_before)
    (data_dir / "state.db-wal").write_bytes(log)

    def end(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", end)
    with pytest.raises(KeyboardInterrupt):
        operating.restore(data_dir, tmp_path / "copy")
    monkeypatch.undo()
    assert value_in(data_dir / "state.db") == 9
    assert operating.check(data_dir, classes(NUMBER), strict=True).is_good
    operating.restore(data_dir, tmp_path / "copy")
    assert value_in(data_dir / "state.db") == 7


def test_a_file_system_without_links_is_copied_on(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old state is kept aside as a copy then."""
    operating.back_up(data_dir, tmp_path / "copy")
    put(data_dir, row(number(8)))

    def fail(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    kept = operating.restore(data_dir, tmp_path / "copy").kept
    assert kept is not None
    assert value_in(kept) == 8
    assert mode_of(kept) == 0o600


def test_a_restore_begins_a_folder_and_a_new_epoch_each_time(
    data_dir: Path, tmp_path: Path
) -> None:
    """Restored to a folder that is new, a backup is a state; twice, two histories."""
    operating.back_up(data_dir, tmp_path / "copy")
    fresh = tmp_path / "elsewhere"
    assert operating.restore(fresh, tmp_path / "copy").kept is None
    first = epoch_of(fresh / "state.db")
    operating.restore(fresh, tmp_path / "copy")
    epochs = {first, epoch_of(fresh / "state.db"), epoch_of(tmp_path / "copy")}
    assert len(epochs) == 3
    assert mode_of(fresh) == 0o700


def state_and_seed(data_dir: Path) -> tuple[int, int | None]:
    """Return how far the number has counted, and the seed of its folder."""
    return value_in(data_dir / "state.db"), hash_seed_of(data_dir)


def test_the_hash_seed_goes_with_the_state(data_dir: Path, tmp_path: Path) -> None:
    """Journals are replayed under the seed they were written under, to and fro."""
    (data_dir / "hashseed").write_text("42\n")
    operating.back_up(data_dir, tmp_path / "copy")
    (data_dir / "hashseed").write_text("43\n")
    put(data_dir, row(number(8)))
    kept = operating.restore(data_dir, tmp_path / "copy").kept
    assert kept is not None
    assert state_and_seed(data_dir) == (7, 42)
    operating.restore(data_dir, kept)
    assert state_and_seed(data_dir) == (8, 43)
    operating.back_up(data_dir, tmp_path / "another")
    operating.restore(tmp_path / "fresh", tmp_path / "another")
    assert state_and_seed(tmp_path / "fresh") == (8, 43)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_restore_that_is_killed_parts_no_state_from_its_hash_seed(
    data_dir: Path, tmp_path: Path
) -> None:
    """Killed before each thing that it does, it leaves both old or both new."""
    (data_dir / "hashseed").write_text("42\n")
    operating.back_up(data_dir, tmp_path / "copy")
    (data_dir / "hashseed").write_text("43\n")
    put(data_dir, row(number(8)))
    found = []
    for steps in itertools.count():
        folder = tmp_path / f"killed-{steps}"
        shutil.copytree(data_dir, folder)
        child = os.fork()
        if not child:
            _end_after(steps)
            operating.restore(folder, tmp_path / "copy")
            os._exit(0)
        was_killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
        found.append(state_and_seed(folder))
        assert operating.check(folder, classes(NUMBER), strict=True).is_good
        if not was_killed:
            break
    assert set(found) == {(8, 43), (7, 42)}
    assert found == sorted(found, reverse=True)


def _end_after(steps: int) -> None:
    """End this process before it opens, renames, links or removes one file more."""
    left = steps

    def count(event: str, _: Any) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.link", "os.remove", "sqlite3.connect"):
            if not left:
                os._exit(1)
            left -= 1

    sys.addaudithook(count)


def test_a_state_that_cannot_be_folded_is_not_parted_from_its_log(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk is full, say: the restore fails, and the last calls are there."""
    operating.back_up(data_dir, tmp_path / "copy")

    class FullDisk:
        """A connection that can read, and cannot write."""

        def execute(self, _: str) -> Any:
            raise sqlite3.OperationalError("database or disk is full")

        def close(self) -> None:
            """Do nothing."""

    monkeypatch.setattr(database, "opened", lambda *_: FullDisk())
    (data_dir / "state.db-wal").touch()
    with pytest.raises(StoreError, match="brought into it: database or disk is full"):
        operating.restore(data_dir, tmp_path / "copy")
    assert (data_dir / "state.db-wal").exists()
    assert not list(data_dir.glob("*before-restore*"))


def test_a_restore_waits_for_nobody_who_reads(data_dir: Path, tmp_path: Path) -> None:
    """While a check reads the old state, a restore is refused, and nothing changes."""
    operating.back_up(data_dir, tmp_path / "copy")
    with (
        StoreFile(data_dir / "state.db"),
        pytest.raises(StoreError, match="open in another process"),
    ):
        operating.restore(data_dir, tmp_path / "copy")
    assert value_in(data_dir / "state.db") == 7
    assert not list(data_dir.glob("*before-restore*"))
    DataDirLock(data_dir).release()


def test_a_backup_that_others_may_have_written_needs_trust(
    data_dir: Path, tmp_path: Path
) -> None:
    """Images run code when they are loaded, so a foreign file needs a yes."""
    operating.back_up(data_dir, tmp_path / "copy")
    (tmp_path / "copy").chmod(0o666)
    with pytest.raises(ConfigError, match=r"mode 0666.*--trust"):
        operating.restore(data_dir, tmp_path / "copy")
    operating.restore(data_dir, tmp_path / "copy", trust=True)


@pytest.mark.parametrize("ending", ["-wal", "-journal"])
def test_what_others_have_laid_beside_a_backup_needs_trust(
    data_dir: Path, tmp_path: Path, ending: str
) -> None:
    """SQLite takes pages from a log beside a file, though the file is ours alone."""
    operating.back_up(data_dir, tmp_path / "copy")
    beside = tmp_path / f"copy{ending}"
    beside.touch()
    beside.chmod(0o666)
    with pytest.raises(ConfigError, match=rf"copy{ending} .*mode 0666.*--trust"):
        operating.restore(data_dir, tmp_path / "copy")
    beside.chmod(0o600)
    operating.restore(data_dir, tmp_path / "copy")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"x" * 5000), "cannot be read as state"),
        (lambda path: path.write_bytes(b""), "cannot be read as state"),
        (lambda path: _damage_a_page(path), "is damaged.*Use another"),
        (lambda path: _set_schema(path, 99), "schema 99"),
        (lambda path: _run_in(path, "drop table fence"), "no table fence"),
        (lambda path: _run_in(path, "delete from about where name = 'epoch'"), "epoch"),
    ],
)
def test_a_bad_backup_is_refused_before_anything_changes(
    data_dir: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    """A file that is damaged, none of ours or of a newer release is not restored."""
    copy = tmp_path / "copy"
    operating.back_up(data_dir, copy)
    damage(copy)
    put(data_dir, row(number(8)))
    with pytest.raises(StoreError, match=message):
        operating.restore(data_dir, copy)
    assert value_in(data_dir / "state.db") == 8
    assert not list(data_dir.glob("*before-restore*"))


def _set_schema(path: Path, version: int) -> None:
    _run_in(
        path,
        f"update about set value = cast('{version}' as blob) "
        "where name = 'schema_version'",
    )


def _run_in(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(statement)
    connection.close()


def _damage_a_page(path: Path) -> None:
    """Flip bytes in the head of the page that holds the objects."""
    connection = sqlite3.connect(path)
    query = "select rootpage from sqlite_master where name = 'objects'"
    (page,) = connection.execute(query).fetchone()
    (size,) = connection.execute("pragma page_size").fetchone()
    connection.close()
    for offset in range(8):
        flip(path, (page - 1) * size + offset)


# Exactly once across a restore -------------------------------------------------------


def _ask(host: Host, lane: Any, call: Any) -> Any:
    """Make a call on a lane, on a connection of its own; return what is answered."""
    connection = FakeConnection()
    host.attach(lane, connection)
    resident = host.submit(call, connection)
    while resident is not None:
        resident = host.run(resident)
    return connection.wait()


@pytest.fixture
def hosts(data_dir: Path) -> Iterator[Any]:
    """Give a function that starts hosts on the folder, as a manager does."""
    started: list[Host] = []

    def start() -> Host:
        store = SqliteStore(data_dir / "state.db")
        host = Host(classes(NUMBER), store.epoch + os.urandom(8), store=store)
        host.start()
        started.append(host)
        return host

    yield start
    for host in started:
        host.stop()


@pytest.mark.parametrize("restored", [False, True])
def test_a_call_of_the_old_history_never_runs_on_a_restored_one(
    data_dir: Path, tmp_path: Path, hosts: Any, restored: bool
) -> None:
    """A call that never arrived is run after a restart, and not after a restore."""
    before = hosts()
    lane = lane_of(now_s())
    first = make_call("Number.add", number=1, lane=lane, first_boot=before.boot_id)
    lost = make_call("Number.add", number=2, lane=lane, first_boot=before.boot_id)
    assert _ask(before, lane, first) == 8
    operating.back_up(data_dir, tmp_path / "copy")
    before.stop()
    if restored:
        operating.restore(data_dir, tmp_path / "copy")
    after = hosts()
    # What ran before the backup was made is remembered in it.
    assert _ask(after, lane, first) == 8
    answer = _ask(after, lane, lost)
    if restored:
        assert code_of(answer) == "Unanswered"
    else:
        assert answer == 9
    after.stop()
    assert value_in(data_dir / "state.db") == (8 if restored else 9)


def test_a_client_whose_call_was_under_way_is_told_so(
    start_manager: StartManager, tmp_path: Path
) -> None:
    """The manager dies in a call and is restored: Unanswered, and no second run."""
    manager = start_manager()
    manager.stop()
    (manager.folder / "slow.py").write_text(
        textwrap.dedent("""
            import time
            from pathlib import Path
            from state_server import share

            @share
            class Slow:
                def __init__(self):
                    self.count = 0

                def add(self, pause_s):
                    self.count += 1
                    Path("runs").open("a").write("x")
                    time.sleep(pause_s)
                    return self.count
        """)
    )
    manager.options = ("--objects", "slow")
    manager.start()
    outcomes: list[Any] = []
    runs = manager.folder / "runs"

    def call() -> None:
        with manager.client(timeout=60) as client:
            try:
                outcomes.append(client.get("Slow").add(60))
            except Exception as error:
                outcomes.append(error)

    with manager.client() as client:
        assert client.get("Slow").add(0) == 1
        operating.back_up(manager.data_dir, tmp_path / "copy")
        caller = threading.Thread(target=call)
        caller.start()
        wait_until(lambda: runs.read_text() == "xx")
    manager.kill()
    operating.restore(manager.data_dir, tmp_path / "copy")
    manager.start()
    caller.join(30)
    assert [type(outcome) for outcome in outcomes] == [Unanswered]
    with manager.client() as client:
        assert client.get("Slow").add(0) == 2
    assert runs.read_text() == "xxx"


# Check -------------------------------------------------------------------------------


def test_a_good_state_has_no_problem(data_dir: Path) -> None:
    """Every object is loaded, and the folder is left as it was."""
    before = (data_dir / "state.db").read_bytes()
    report = operating.check(data_dir, classes(NUMBER), strict=True)
    assert report.is_good
    assert (report.objects, report.loaded, report.migrations) == (1, 1, 0)
    assert (data_dir / "state.db").read_bytes() == before
    assert report.lines()[-1] == "no problem"


@pytest.mark.parametrize(
    ("absent", "count"), [("", 2), ("-shm", 2), ("-wal", 1), ("-shm -wal", 1)]
)
def test_a_state_that_nothing_can_be_written_beside_is_read(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    absent: str,
    count: int,
) -> None:
    """A snapshot that is mounted read-only: with the log that is there, or without."""
    store = SqliteStore(data_dir / "state.db")
    store.insert([row(number(8), "Number/in the log")], replace=False)
    snapshot = shutil.copytree(data_dir, tmp_path / "snapshot")
    store.close()
    for ending in absent.split():
        (snapshot / f"state.db{ending}").unlink()
    names = {path.name for path in snapshot.iterdir()}
    monkeypatch.setattr(os, "access", lambda path, mode: path != snapshot)
    with StoreFile(snapshot / "state.db") as found:
        assert found.count("objects") == count
        assert found.damage() == []
        assert {path.name for path in snapshot.iterdir()} == names


def test_a_class_that_is_not_given_is_told_and_counted(data_dir: Path) -> None:
    """It is a problem only for a strict check."""
    put(data_dir, row(number(1), "Gone/a"), row(number(1), "Gone/b"))
    report = operating.check(data_dir, classes(NUMBER))
    assert report.is_good
    assert report.classes_not_given == {"Gone": 2}
    assert any("2 objects of 'Gone' not loaded" in line for line in report.lines())
    assert not operating.check(data_dir, classes(NUMBER), strict=True).is_good


class Migrated(Number):
    """Knows how to read its older states."""

    @classmethod
    def migrate(cls, old_version: int, state: dict[str, int]) -> dict[str, int]:
        """Return the state as this version has it."""
        return {"value": state["value"] // (old_version - 1)}


def test_migrations_are_tried_and_counted(data_dir: Path) -> None:
    """States of older versions go through migrate; one that fails is a problem."""
    put(data_dir, row(number(4), "Number/old", 2), row(number(4), "Number/new", 3))
    report = operating.check(
        data_dir, classes(describe_class(Migrated, name="Number", version=3))
    )
    assert (report.loaded, report.migrations, report.problem_count) == (2, 1, 1)
    assert "Number/default" in report.problems[0]
    assert "ZeroDivisionError" in report.problems[0]


def test_a_newer_version_and_a_broken_image_are_named(data_dir: Path) -> None:
    """What this code cannot load is a problem each, and the rest is looked at."""
    good = row(number(1), "Number/good")
    put(
        data_dir,
        good,
        row(number(1), "Number/newer", version=9),
        good._replace(name=("Number", "broken"), image=b"nonsense"),
    )
    report = operating.check(data_dir, classes(NUMBER))
    assert (report.loaded, report.problem_count) == (2, 2)
    broken, newer = report.problems
    assert "Number/broken" in broken
    assert "Number/newer was stored by version 9" in newer


class Diary:
    """Is journalled."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def write(self, word: str) -> None:
        """Write a word down, but no empty one."""
        if not word:
            raise ValueError("empty")
        self.words.append(word)


def _entry(method: str, *args: Any) -> bytes:
    from state_server import codec

    return journal.pack(journal.Entry(1, method, codec.encode((args, {})), ()))


def test_journals_are_replayed(data_dir: Path) -> None:
    """Each journalled call is made again; one that raises is a problem."""
    good = row(Diary(), "Diary/good")._replace(
        entries=((4, _entry("write", "dear")), (5, _entry("write", "diary")))
    )
    bad = good._replace(name=("Diary", "bad"), entries=((4, _entry("write", "")),))
    worse = good._replace(name=("Diary", "worse"), entries=((4, b"garbage"),))
    put(data_dir, good, bad, worse)
    report = operating.check(
        data_dir, classes(NUMBER, describe_class(Diary, durable="journal"))
    )
    assert (report.loaded, report.journalled_calls) == (2, 4)
    assert "Diary/bad (write) raised ValueError" in report.problems[0]
    assert "Diary/worse" in report.problems[1]


def test_damage_is_found(data_dir: Path) -> None:
    """Flipped bytes in a page, a cut file, an empty one and none of ours are told."""
    path = data_dir / "state.db"
    whole = path.read_bytes()

    def problems() -> str:
        return "\n".join(operating.check(data_dir, classes(NUMBER)).problems)

    assert problems() == ""
    _damage_a_page(path)
    assert "btree" in problems().lower() or "malformed" in problems()
    path.write_bytes(whole[: len(whole) // 2])
    assert problems()
    path.write_bytes(b"")
    assert "cannot be read as state" in problems()
    path.write_bytes(b"nonsense" * 1000)
    assert "not a database" in problems()
    path.write_bytes(whole)
    _set_schema(path, 2)
    assert "schema 2" in problems()


def test_problems_are_told_up_to_a_limit(data_dir: Path) -> None:
    """A hundred are told one by one, the rest are counted."""
    broken = row(number(1))._replace(image=b"nonsense")
    put(data_dir, *(broken._replace(name=("Number", str(n))) for n in range(150)))
    report = operating.check(data_dir, classes(NUMBER))
    assert (len(report.problems), report.problem_count) == (100, 150)
    assert "PROBLEM: and 50 more" in report.lines()


def test_check_works_beside_a_manager(start_manager: StartManager) -> None:
    """The command reads while the manager runs, and reports as JSON."""
    manager = start_manager()
    with manager.client() as client:
        client.get("SomeObj").query()
        result = command("check", "--json", "--data-dir", manager.data_dir)
        assert client.get("SomeObj").query() == 2
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert (report["loaded"], report["remembered_replies"]) == (1, 1)


def test_what_a_damaged_log_leaves_can_be_brought_back(
    start_manager: StartManager, tmp_path: Path
) -> None:
    """A check tells it; what was before the damage is dumped, and loaded elsewhere."""
    manager = start_manager()
    with manager.client() as client:
        for number in range(1, 9):
            assert client.get("SomeObj").query() == number
    manager.kill()
    log = manager.data_dir / "state.db-wal"
    whole = log.read_bytes()
    # Each commit but the first is of two pages: from here on three cannot be read.
    log.write_bytes(whole[: -6 * 4120] + bytes(100) + whole[-6 * 4120 + 100 :])
    report = operating.check(manager.data_dir, Catalogue())
    assert any("log (state.db-wal) is damaged" in text for text in report.problems)
    with pytest.raises(ConfigError, match="python -m state_server dump"):
        operating.load(manager.data_dir, [])

    lines = io.StringIO()
    assert operating.dump(manager.data_dir, lines) == 1
    operating.load(tmp_path / "new", lines.getvalue().splitlines())
    with StoreFile(tmp_path / "new" / "state.db") as store:
        (row,) = store.rows()
    assert image.parts_of(row.image).state == {"param": 5}


def test_check_loads_modules_where_the_command_was_typed(tmp_path: Path) -> None:
    """--objects names a module; journals are replayed under the folder's hash seed."""
    (tmp_path / "diaries.py").write_text(
        textwrap.dedent("""
            import sys
            from state_server import share

            @share(durable="journal")
            class Diary:
                def __init__(self):
                    self.words = []

                def write(self, word):
                    assert sys.flags.hash_randomization, "no seed is fixed"
                    assert hash("a") == HASH, "the seed is another"

            HASH = None
        """)
    )
    diary = row(Thing(words=[]), "Diary/default")
    put(tmp_path / "var", diary._replace(entries=((4, _entry("write", "dear")),)))
    (tmp_path / "var" / "hashseed").write_text("1234")
    answer = subprocess.run(
        [sys.executable, "-c", "print(hash('a'))"],
        env={**os.environ, "PYTHONHASHSEED": "1234"},
        capture_output=True,
        text=True,
        check=True,
    )
    with (tmp_path / "diaries.py").open("a") as file:
        file.write(f"HASH = {answer.stdout}")
    result = command("check", "--objects", "diaries", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    assert "1 object, 1 loaded" in result.stdout
    result = command("check", "--objects", "absent", cwd=tmp_path)
    assert result.returncode == 2
    assert "'absent' cannot be loaded" in result.stderr


# Dump and load -----------------------------------------------------------------------


def _cycle() -> Thing:
    thing = Thing(name="me")
    vars(thing)["me"] = [thing]
    return thing


def _twice() -> Thing:
    shared = [1]
    return Thing(left=shared, right=shared)


def _shelf() -> Shelf:
    shelf = Shelf([1, (2, 3)])
    shelf.label = "a"  # type: ignore[attr-defined]
    return shelf


def _index() -> Index:
    index = Index({(1, 2): "a", "b": {1}})
    index.label = "a"  # type: ignore[attr-defined]
    return index


@pytest.mark.parametrize(
    ("make", "needs_trust"),
    [
        (lambda: number(3), False),
        (lambda: Thing(text="é", pair=(1, 1), other=(1, 1)), False),
        (_cycle, False),
        (_shelf, False),
        (_index, False),
        (lambda: Point(1, 2), False),
        (lambda: Thing(), False),
        (_twice, True),
        (lambda: Thing(inner=Thing(a=1)), True),
    ],
    ids=(
        *("number", "text", "cycle", "shelf", "index", "point"),
        *("empty", "twice", "inner"),
    ),
)
def test_an_object_is_loaded_as_it_was_dumped(
    tmp_path: Path, make: Any, needs_trust: bool
) -> None:
    """State, items, arguments and references to itself come back; so does identity."""
    value = make()
    put(tmp_path / "var", row(value, "Class/key", version=4))
    with (tmp_path / "dump").open("w+") as file:
        assert operating.dump(tmp_path / "var", file) == 1
        file.seek(0)
        line = file.read()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    if needs_trust:
        with pytest.raises(ConfigError, match=r"line 1 has .*runs code.*--trust"):
            operating.load(tmp_path / "elsewhere", [line])
    operating.load(tmp_path / "elsewhere", [line], trust=needs_trust)
    (loaded,) = rows_of(tmp_path / "elsewhere" / "state.db")
    assert loaded[:3] == (("Class", "key"), 4, 3)
    back = image.rebuild(loaded.image, type(value), {})
    if make is _cycle:
        assert back.me == [back]
        assert back.name == "me"
    else:
        assert isinstance(value, Number) or back == value
        assert getattr(back, "__dict__", None) == getattr(value, "__dict__", None)
    if make is _twice:
        assert back.left is back.right
    assert line_of(loaded) + "\n" == line


def test_journalled_calls_are_dumped_too(tmp_path: Path) -> None:
    """They are part of the state; who loads them trusts them."""
    calls = ((4, _entry("write", "dear")), (5, _entry("write", "diary")))
    diary = row(Diary(), "Diary/default")._replace(entries=calls)
    line = line_of(diary)
    assert [call["method"] for call in json.loads(line)["calls"]] == ["write", "write"]
    with pytest.raises(ConfigError, match=r"\$entry"):
        operating.load(tmp_path / "var", [line])
    operating.load(tmp_path / "var", [line], trust=True)
    assert rows_of(tmp_path / "var" / "state.db") == [diary]


def test_journalled_calls_are_loaded_under_their_hash_seed_or_not_at_all(
    data_dir: Path, tmp_path: Path
) -> None:
    """A folder takes the seed with its first ones, and refuses those of another."""
    calls = ((4, _entry("write", "dear")),)
    put(data_dir, row(Diary(), "Diary/default")._replace(entries=calls))
    (data_dir / "hashseed").write_text("42\n")
    output = io.StringIO()
    operating.dump(data_dir, output)
    lines = output.getvalue().splitlines()
    fresh = tmp_path / "fresh"
    with pytest.raises(ConfigError, match="line 3 does not fit"):
        operating.load(fresh, [*lines, "{}"], trust=True)
    assert hash_seed_of(fresh) is None
    assert operating.load(fresh, lines, trust=True).added == len(lines)
    assert hash_seed_of(fresh) == 42
    other = tmp_path / "other"
    put(other)
    (other / "hashseed").write_text("43\n")
    with pytest.raises(ConfigError, match=r"Nothing was loaded.*another hash seed"):
        operating.load(other, lines, replace=True, trust=True)
    assert hash_seed_of(other) == 43


def test_a_dump_needs_no_classes(tmp_path: Path) -> None:
    """Builtin state is readable without the class; a class that is gone is kept."""
    (tmp_path / "gone.py").write_text("class Gone:\n    pass\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import gone  # type: ignore[import-not-found]

        inner = gone.Gone()
    finally:
        sys.path.remove(str(tmp_path))
    put(
        tmp_path / "var", row(Thing(a=1), "Unknown/a"), row(Thing(g=inner), "Unknown/b")
    )
    (tmp_path / "gone.py").unlink()
    result = command("dump", "--data-dir", tmp_path / "var")
    assert (result.returncode, result.stderr) == (0, "")
    assert command("dump", "-", "--data-dir", tmp_path / "var").stdout == result.stdout
    first, second = map(json.loads, result.stdout.splitlines())
    assert first == {
        "class": "Unknown",
        "key": "a",
        "version": 1,
        "generation": 3,
        "state": {"a": 1},
    }
    assert "No module named 'gone'" in second["state"]["repr"]
    again = tmp_path / "again"
    operating.load(again, result.stdout.splitlines(), trust=True)
    assert rows_of(again / "state.db") == rows_of(tmp_path / "var" / "state.db")


def test_existing_objects_are_kept_or_replaced(data_dir: Path) -> None:
    """They are kept unless --replace is said; journals go with what is replaced."""
    path = data_dir / "state.db"
    put(data_dir, row(number(7))._replace(entries=((4, b"entry"),)))
    lines = [line_of(row(number(1), f"Number/{key}")) for key in "ab"]
    lines += ["", line_of(row(number(1)))]
    epoch = epoch_of(path)
    assert operating.load(data_dir, lines) == (2, 0, 1)
    assert value_in(path) == 7
    assert epoch_of(path) != epoch
    epoch = epoch_of(path)
    assert operating.load(data_dir, lines) == (0, 0, 3)
    assert epoch_of(path) == epoch
    assert operating.load(data_dir, lines, replace=True) == (0, 3, 0)
    assert value_in(path) == 1
    assert [found.entries for found in rows_of(path)] == [(), (), ()]
    assert epoch_of(path) != epoch


GOOD = line_of(row(number(1), "Number/new"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 does not fit: JSONDecodeError"),
        ("[1]", "one JSON object"),
        ("[" * 100_000, "RecursionError"),
        ('{"key": "a"}', "the field 'class' is missing"),
        (GOOD.replace('"new"', '""'), "a key is text"),
        (GOOD.replace("Number", "a/b"), "without a slash"),
        (GOOD.replace('"version": 1', '"version": true'), "version is a whole number"),
        (GOOD.replace('"generation": 3', '"generation": -1'), "generation is a whole"),
        (GOOD.replace("1}", '{"$what": 1}}'), "no mark that is known"),
        (GOOD.replace("1}", '{"$set": [[]]}}'), "unhashable"),
        (GOOD.replace("1}", '{"$bytes": "?"}}'), "does not fit"),
        (GOOD.replace("1}", '{"$pickle": "gASVAA=="}}'), r"\$pickle.*--trust"),
        (GOOD, "lines 1 and 2 are both of Number/new"),
    ],
)
def test_a_dump_with_one_bad_line_is_not_loaded_at_all(
    data_dir: Path, line: str, message: str
) -> None:
    """The error names the line and what is wrong with it."""
    with pytest.raises(ConfigError, match=message):
        operating.load(data_dir, [GOOD, line])
    assert [found.name for found in rows_of(data_dir / "state.db")] == [
        ("Number", "default")
    ]


def test_a_pickle_in_a_dump_does_not_run(data_dir: Path, tmp_path: Path) -> None:
    """Without trust, not one byte of it is looked at."""

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    for mark in ("$pickle", "$image"):
        payload = base64.b64encode(image.pickled(Bomb())).decode()
        line = json.dumps({**json.loads(GOOD), "state": {mark: payload}})
        with pytest.raises(ConfigError, match="--trust"):
            operating.load(data_dir, [line])
        assert not (tmp_path / "ran").exists()


# The command -------------------------------------------------------------------------


def run(
    capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, str, str]:
    """Run the command in this process; return its exit code and what it wrote."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = int(ended.code or 0)
    written = capsys.readouterr()
    return code, written.out, written.err


def test_the_verbs_do_what_they_say(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Back up, restore, check, dump and load by the command, with private files."""
    here = ("--data-dir", data_dir)
    code, out, err = run(capsys, "backup", tmp_path / "copy", *here)
    assert (code, err) == (0, "")
    assert f"Backed up 1 object of {data_dir} to {tmp_path / 'copy'}" in out
    code, out, err = run(capsys, "restore", tmp_path / "copy", *here)
    assert (code, err) == (0, "")
    assert "Restored 1 object from" in out
    assert "before-restore" in out
    code, out, err = run(capsys, "check", *here)
    assert (code, err) == (0, "")
    assert "\n1 object of 'Number' not loaded" in out
    assert out.endswith("no problem\n")
    assert run(capsys, "check", "--strict", *here)[0] == 1
    code, out, err = run(capsys, "dump", tmp_path / "dump", *here)
    assert (code, out, err) == (
        0,
        f"Dumped 1 object of {data_dir} to {tmp_path / 'dump'}.\n",
        "",
    )
    code, out, err = run(capsys, "load", tmp_path / "dump", "--replace", *here)
    assert (code, err) == (0, "")
    assert "0 objects added, 1 replaced, 0 kept" in out
    assert mode_of(tmp_path / "dump") == mode_of(tmp_path / "copy") == 0o600
    for path in data_dir.iterdir():
        assert mode_of(path) == 0o600, path


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["backup"], 2, "required: FILE"),
        (["sing"], 2, "invalid choice"),
        (["backup", "{tmp}/copy", "--data-dir", "{tmp}/none"], 2, "no state in"),
        (["check", "--data-dir", "{tmp}/none"], 2, "Name the manager's data folder"),
        (["backup", "{tmp}"], 2, "is a folder"),
        (["backup", "{tmp}/no/copy"], 2, "there is no folder"),
        (["dump", "{tmp}/there"], 2, "exists already"),
        (["restore", "{tmp}/none"], 2, "there is no backup file"),
        (["restore", "{tmp}/there"], 1, "cannot be read as state"),
        (["restore", "{tmp}/var/state.db"], 2, "is the state itself"),
        (["load", "{tmp}/none"], 2, "cannot be read"),
        (["load", "{tmp}/there"], 2, "line 1 does not fit"),
        (["load", "{tmp}/var/state.db"], 2, "Say `restore` in place of `load`"),
        (["restore", "{tmp}/dump"], 2, "Say `load` in place of `restore`"),
        (["load", "{tmp}/bytes"], 2, "bytes is no dump: 'utf-8'"),
        (["check", "--objects", "no.such"], 2, "'no.such' cannot be loaded"),
        (["ping", "--timeout", "0.1"], 1, "No manager runs with"),
        (["ping", "--timeout", "-1"], 2, "seconds above 0"),
        (["ping", "--data-dir", ""], 2, "expected a folder, not nothing"),
        (["stop", "--timeout", "0.1"], 1, "state-server stop: No manager runs with"),
        (["ping", "--address", "http://there"], 2, "http://there"),
    ],
)
def test_errors_say_what_to_do(
    data_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    """Each has its exit code, and a sentence without a traceback."""
    monkeypatch.setenv("STATE_SERVER_DATA_DIR", str(data_dir))
    (tmp_path / "there").write_text("something\n")
    (tmp_path / "bytes").write_bytes(b"\x1f\x8b\x08")
    (tmp_path / "dump").write_text(GOOD)
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    before = sorted(path.name for path in tmp_path.iterdir())
    found, out, err = run(capsys, *given)
    assert (found, out) == (code, "")
    assert message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert value_in(data_dir / "state.db") == 7


def test_a_stop_that_waits_speaks_of_stopping(
    data_dir: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Who says ``stop`` where no manager runs is told so after a second."""
    assert run(capsys, "stop", "--data-dir", data_dir, "--timeout", "3")[0] == 1
    told = [line for line in caplog.messages if "waits" in line]
    assert len(told) == 1
    assert told[0].startswith("The request 'stop' to the manager waits: No manager")


def test_a_verb_that_is_interrupted_says_so(tmp_path: Path) -> None:
    """Ctrl-C ends it with one sentence, and the code that a shell expects."""
    # A shell has what it starts in the background ignore Ctrl-C, these tests perhaps.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from state_server.__main__ import main; "
        "raise SystemExit(main(['ping', '--timeout', '60']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "ping' to the manager waits" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read() == "state-server ping: interrupted\n"


def test_a_manager_that_was_named_by_the_environment_is_told_to_stop(
    start_manager: StartManager,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of an address nobody knows the folder: it is not claimed that it has stopped."""
    manager = start_manager()
    address = (manager.data_dir / "address").read_text().strip()
    (tmp_path / "elsewhere").mkdir()
    key = (manager.data_dir / "adminkey").read_bytes()
    (tmp_path / "elsewhere" / "adminkey").write_bytes(key)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STATE_SERVER_ADDRESS", address)
    monkeypatch.setenv("STATE_SERVER_AUTHKEY_FILE", str(manager.data_dir / "authkey"))
    monkeypatch.setenv("STATE_SERVER_DATA_DIR", "elsewhere")
    process_id = lock_holder(manager.data_dir)
    code, out, _ = run(capsys, "stop")
    assert (code, out) == (
        0,
        f"The manager (process {process_id}) was told to stop.\n",
    )
    manager.stop()


def test_a_stop_waits_longer_for_calls_to_end_than_for_an_answer(
    start_manager: StartManager,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A manager takes ten seconds to drain, unless told otherwise; ``stop`` has them.

    The clock of the command goes on by six seconds with each look.
    """
    manager = start_manager()
    process_id = lock_holder(manager.data_dir)
    holders, seconds = iter([process_id] * 3), itertools.count(0, 6)
    monkeypatch.setattr(commands, "lock_holder", lambda _: next(holders, None))
    clock = SimpleNamespace(monotonic=lambda: next(seconds), sleep=time.sleep)
    monkeypatch.setattr(commands, "time", clock)
    code, out, err = run(capsys, "stop", "--data-dir", manager.data_dir)
    assert (code, err) == (0, "")
    assert out == f"The manager (process {process_id}) has stopped.\n"
    manager.stop()


@pytest.mark.parametrize("verb", ["backup", "restore", "check", "dump", "load", ""])
def test_help_tells_the_exit_codes(
    capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """Each page of help has them."""
    code, out, _ = run(capsys, *[verb] if verb else [], "--help")
    assert code == 0
    assert "exit codes:" in out
    assert "3    it was not tried: a manager uses the data folder" in out


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no owners")
@pytest.mark.parametrize("verb", ["backup", "restore", "check", "dump", "load"])
def test_only_the_owner_may(
    data_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    """Another user, root too, would leave files that the manager cannot use."""
    copy = tmp_path / "copy"
    if verb == "load":
        copy.write_text(GOOD)
    else:
        operating.back_up(data_dir, copy)
    before = sorted(path.name for path in data_dir.iterdir())
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 12345)
    arguments = [] if verb == "check" else [tmp_path / "other"]
    if verb in ("restore", "load"):
        arguments = [copy]
    if verb == "restore":
        arguments.append(Path("--trust"))
    code, out, err = run(capsys, verb, *arguments, "--data-dir", data_dir)
    assert (code, out) == (2, "")
    assert "belongs to" in err
    assert f"user {os.getuid() + 12345}" in err
    assert sorted(path.name for path in data_dir.iterdir()) == before


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    """``dump | head`` ends quietly."""
    put(tmp_path / "var", *(row(number(n), f"Number/{n}") for n in range(20_000)))
    with subprocess.Popen(
        [sys.executable, "-m", "state_server", "dump"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 1
        assert process.stderr.read() == b""


def test_the_lock_is_held_while_a_dump_is_loaded(data_dir: Path) -> None:
    """No manager can start in the middle."""

    def lines() -> Iterator[str]:
        with pytest.raises(DataDirLocked):
            DataDirLock(data_dir)
        yield GOOD

    assert operating.load(data_dir, lines()) == (1, 0, 0)
    DataDirLock(data_dir).release()


# Renamed classes ---------------------------------------------------------------------


def test_a_class_that_began_anew_before_its_alias_was_told_can_be_put_right(
    data_dir: Path, tmp_path: Path
) -> None:
    """Two objects of one key cannot become one: the error says what to do about it."""
    put(data_dir, row(number(1), "Tally/default"), row(number(2), "Tally/other"))
    store = SqliteStore(data_dir / "state.db")
    with pytest.raises(ConfigError, match=r"both have .* \(1, such as 'default'\)"):
        store.rename("Number", "Tally")
    store.close()
    assert value_in(data_dir / "state.db") == 7
    output = io.StringIO()
    operating.dump(data_dir, output)
    chosen = [
        line for line in output.getvalue().splitlines() if '"value": 1}' not in line
    ]
    (data_dir / "state.db").rename(tmp_path / "away")
    for ending in ("-wal", "-shm"):
        (data_dir / f"state.db{ending}").unlink(missing_ok=True)
    assert operating.load(data_dir, chosen).added == 2
    store = SqliteStore(data_dir / "state.db")
    assert store.rename("Number", "Tally") == 1
    store.close()
    assert value_in(data_dir / "state.db", "Tally/default") == 7
