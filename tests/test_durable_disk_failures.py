"""Disks that fail under a real manager and real SQLite, and files that are damaged."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from state_server.errors import StateServerError, StoreError, Unanswered
from state_server.keeping import KeepingLimits
from state_server.service import EXIT_CONFIG, EXIT_LOCKED
from state_server.sharing import describe_class
from state_server.store import SqliteStore

from .durable_classes import Count, DurableDesk
from .fakes import code_of
from .faults.disk import Disk, built_shim
from .processes import ROOT, ManagerProcess, wait_until

OBJECTS = ("--objects", "tests.faults.hooks:Numbers")
PATIENCE_S = 20.0


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the compiled shim."""
    return built_shim(tmp_path_factory.mktemp("shim"))


@contextlib.contextmanager
def running(folder: Path, **environment: str) -> Iterator[ManagerProcess]:
    """Start a manager; end it, and close what it held, afterwards."""
    manager = ManagerProcess(folder, *OBJECTS, **environment)
    manager.start()
    try:
        yield manager
    finally:
        assert manager.process is not None
        if manager.process.poll() is None:
            manager.kill()
        assert manager.process.stdout is not None
        manager.process.stdout.close()


def start_refused(folder: Path) -> tuple[int, str]:
    """Start a manager that is expected to refuse; return its exit code and its log."""
    ended = subprocess.run(
        [sys.executable, str(ROOT / "start_manager.py"), "--data-dir", "var", *OBJECTS],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    return ended.returncode, ended.stderr


def outcome_of(call: Callable[[], Any]) -> Any:
    """Return what a call gives or raises."""
    try:
        return call()
    except StateServerError as error:
        return error


def number_when_served(numbers: Any) -> int:
    """Wait until a changing call succeeds again; return its number."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        outcome = outcome_of(numbers.next)
        if isinstance(outcome, int):
            return outcome
        assert isinstance(outcome, (StoreError, Unanswered)), outcome
        assert time.monotonic() < deadline, outcome
        time.sleep(0.02)


# While it runs -----------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["enospc", "erofs", "eio-write", "eio-sync"])
def test_while_the_disk_fails_nothing_changes_and_reads_go_on(
    tmp_path: Path, shim: Path, fault: str
) -> None:
    """Changes fail or are Unanswered; then service returns, no number is skipped."""
    disk = Disk(shim, tmp_path / "var")
    with running(tmp_path, **disk.environment) as manager:
        with manager.client(timeout=20) as client:
            numbers, others = client.get("Numbers"), client.get("Numbers", "others")
            assert [numbers.next() for _ in range(3)] == [1, 2, 3]
            assert others.next() == 1
            disk.fail(fault)
            first = outcome_of(numbers.next)
            assert isinstance(first, (StoreError, Unanswered)), first
            for _ in range(5):
                later = outcome_of(others.next)
                assert isinstance(later, StoreError), later
                assert others.get() == 1
            disk.work()
            assert number_when_served(numbers) == 4
            assert others.next() == 2
        manager.kill()
        manager.start()
        with manager.client(timeout=20) as client:
            assert client.get("Numbers").next() == 5
            assert client.get("Numbers", "others").next() == 3


@pytest.mark.parametrize("fault", ["enospc", "erofs", "eio-write", "eio-sync"])
def test_killed_while_the_disk_fails_what_was_said_to_fail_has_not_happened(
    tmp_path: Path, shim: Path, fault: str
) -> None:
    """After kill -9 in the failure only what was Unanswered may be there."""
    disk = Disk(shim, tmp_path / "var")
    with running(tmp_path, **disk.environment) as manager:
        with manager.client(timeout=20) as client:
            numbers = client.get("Numbers")
            assert [numbers.next() for _ in range(3)] == [1, 2, 3]
            disk.fail(fault)
            outcomes = [outcome_of(numbers.next) for _ in range(4)]
        manager.kill()
        disk.work()
        manager.start()
        assert all(isinstance(o, (StoreError, Unanswered)) for o in outcomes), outcomes
        unsure = sum(isinstance(outcome, Unanswered) for outcome in outcomes)
        with manager.client(timeout=20) as client:
            assert 3 <= client.get("Numbers").get() <= 3 + unsure
            assert unsure <= 1, "only the batch that failed can be in doubt"


def failed_write_stays_away(folder: Path, shim: Path, **environment: str) -> None:
    """Fail one sync of a commit, kill -9 after the answer, look at what is on disk."""
    disk = Disk(shim, folder / "var")
    with running(folder, **disk.environment, **environment) as manager:
        with manager.client(timeout=20) as client:
            numbers = client.get("Numbers")
            assert [numbers.next() for _ in range(3)] == [1, 2, 3]
            disk.fail("eio-sync-once")
            outcome = outcome_of(numbers.next)
            assert type(outcome) is StoreError, outcome
        manager.kill()
        manager.start()
        with manager.client(timeout=20) as client:
            assert client.get("Numbers").get() == 3, "what failed is there"
            assert client.get("Numbers").next() == 4


def test_a_failed_commit_does_not_come_back_after_a_restart(
    tmp_path: Path, shim: Path
) -> None:
    """One fsync fails: StoreError is true for ever, by the fence row."""
    failed_write_stays_away(tmp_path, shim)


def test_without_the_fence_a_failed_commit_comes_back(
    tmp_path: Path, shim: Path
) -> None:
    """The test above has teeth: the failed write is in the log, and is found again."""
    with pytest.raises(AssertionError, match="what failed is there"):
        failed_write_stays_away(tmp_path, shim, WITHOUT="fence")


def test_a_locked_database_fails_changes_only(tmp_path: Path) -> None:
    """Another process holds the lock: StoreError, for certain; reads go on."""
    with running(tmp_path) as manager, manager.client(timeout=20) as client:
        numbers = client.get("Numbers")
        assert numbers.next() == 1
        other = sqlite3.connect(manager.data_dir / "state.db", isolation_level=None)
        try:
            other.execute("begin exclusive")
            failed = outcome_of(numbers.next)
            assert type(failed) is StoreError, failed
            assert numbers.get() == 1
            other.execute("rollback")
        finally:
            other.close()
        assert number_when_served(numbers) == 2
        manager.kill()
        manager.start()
        assert numbers.next() == 3


def test_a_second_process_that_reads_disturbs_nothing(tmp_path: Path) -> None:
    """A reader of the file, such as a backup, delays no commit."""
    with running(tmp_path) as manager, manager.client(timeout=20) as client:
        numbers = client.get("Numbers")
        assert numbers.next() == 1
        other = sqlite3.connect(manager.data_dir / "state.db", isolation_level=None)
        try:
            other.execute("begin")
            assert other.execute("select count(*) from objects").fetchone() == (1,)
            assert [numbers.next() for _ in range(50)] == list(range(2, 52))
        finally:
            other.close()


def test_a_full_disk_under_a_first_use_leaves_no_object_behind(
    tmp_path: Path, shim: Path
) -> None:
    """An object that could not be saved when it was built is built anew, whole."""
    disk = Disk(shim, tmp_path / "var")
    with running(tmp_path, **disk.environment) as manager:
        with manager.client(timeout=20) as client:
            assert client.get("Numbers").next() == 1
            disk.fail("enospc")
            new = client.get("Numbers", "new")
            for _ in range(3):
                assert isinstance(outcome_of(new.born_as), (StoreError, Unanswered))
            disk.work()
            number_when_served(client.get("Numbers"))
            born = new.born_as()
        manager.kill()
        manager.start()
        with manager.client(timeout=20) as client:
            assert client.get("Numbers", "new").born_as() == born


# At the start ------------------------------------------------------------------------


def _filled(folder: Path, *, stopped: bool) -> Path:
    """Return the state of a manager that has ended, with 2000 objects in it."""
    with running(folder) as manager:
        with manager.client(timeout=20) as client:
            assert client.get("Numbers").next() == 1
        if stopped:
            assert manager.stop() == 0
        else:
            manager.kill()
    path = folder / "var" / "state.db"
    if stopped:
        connection = sqlite3.connect(path)
        connection.executemany(
            "insert into objects values ('Numbers', ?, 1, 1, zeroblob(200))",
            [(f"object {n}",) for n in range(2000)],
        )
        connection.commit()
        connection.close()
    return path


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _truncate_a_little(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4096)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _spoil_the_head(path: Path) -> None:
    path.write_bytes(b"\xff" * 100 + path.read_bytes()[100:])


def _spoil_the_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8192:-4096] = os.urandom(len(data) - 8192 - 4096)
    path.write_bytes(bytes(data))


def _make_text(path: Path) -> None:
    path.write_text("These are not the states you are looking for.\n" * 500)


def _make_foreign(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("create table customers (name text)")
    connection.execute("insert into customers values ('somebody')")
    connection.commit()
    connection.close()


def _make_newer(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("update about set value = '99' where name = 'schema_version'")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _truncate_a_little,
        _empty,
        _spoil_the_head,
        _spoil_the_middle,
        _make_text,
        _make_foreign,
        _make_newer,
    ],
)
def test_a_damaged_or_foreign_file_is_refused_and_left_as_it_is(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """The start says which file, and what to do; not one byte of it is changed."""
    path = _filled(tmp_path, stopped=True)
    damage(path)
    before = path.read_bytes()
    for _ in range(2):
        code, log = start_refused(tmp_path)
        assert code == EXIT_CONFIG, log
        assert "state.db" in log
        assert "state_server check" in log
        assert "restore" in log
        assert "Traceback" not in log
        assert path.read_bytes() == before


def test_a_newer_file_with_a_log_is_left_as_it_is(tmp_path: Path) -> None:
    """What the log of a refused file holds is not moved into it either."""
    path = _filled(tmp_path, stopped=False)
    connection = sqlite3.connect(path)
    connection.execute("update about set value = '99' where name = 'schema_version'")
    connection.commit()
    files = {p: p.read_bytes() for p in (path, path.with_name("state.db-wal"))}
    copy = tmp_path / "copy"
    copy.mkdir()
    for original in files:
        shutil.copy(original, copy)
    connection.close()
    for original in path.parent.glob("state.db*"):
        original.unlink()
    for copied in copy.iterdir():
        shutil.copy(copied, path.parent)
    code, log = start_refused(tmp_path)
    assert code == EXIT_CONFIG, log
    assert "schema 99" in log
    assert {p: p.read_bytes() for p in files} == files


def test_a_log_without_its_file_is_refused(tmp_path: Path) -> None:
    """SQLite would take the old log for the log of a new file."""
    path = _filled(tmp_path, stopped=False)
    log_path = path.with_name("state.db-wal")
    path.rename(tmp_path / "away")
    before = log_path.read_bytes()
    assert before
    code, log = start_refused(tmp_path)
    assert code == EXIT_CONFIG, log
    assert "state.db-wal" in log
    assert log_path.read_bytes() == before
    assert not path.exists()
    (tmp_path / "away").rename(path)
    with running(tmp_path) as manager, manager.client(timeout=20) as client:
        assert client.get("Numbers").next() == 2


def test_a_torn_tail_of_the_log_is_no_damage(tmp_path: Path) -> None:
    """A commit that was half written when the power went is not there; others are."""
    path = _filled(tmp_path, stopped=False)
    with path.with_name("state.db-wal").open("ab") as log:
        log.write(os.urandom(5000))
    with running(tmp_path) as manager, manager.client(timeout=20) as client:
        assert client.get("Numbers").next() == 2


def test_a_locked_database_does_not_keep_a_manager_from_starting(
    tmp_path: Path,
) -> None:
    """Another process holds the lock at the start: changes wait for it, or fail."""
    path = _filled(tmp_path, stopped=False)
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("begin exclusive")
        with running(tmp_path) as manager, manager.client(timeout=20) as client:
            numbers = client.get("Numbers")
            assert numbers.get() == 1
            assert type(outcome_of(numbers.next)) is StoreError
            other.execute("rollback")
            assert number_when_served(numbers) == 2
    finally:
        other.close()


def test_a_second_manager_on_the_folder_is_refused(tmp_path: Path) -> None:
    """The folder is locked by the living process, which is named; it goes on."""
    with running(tmp_path) as manager, manager.client(timeout=20) as client:
        assert client.get("Numbers").next() == 1
        code, log = start_refused(tmp_path)
        assert code == EXIT_LOCKED, log
        assert str(manager.pid) in log
        assert client.get("Numbers").next() == 2


def test_a_stale_lock_file_is_no_lock(tmp_path: Path) -> None:
    """What a killed manager left behind keeps nobody from starting."""
    with running(tmp_path) as manager:
        manager.kill()
        assert (manager.data_dir / "manager.lock").read_text() == str(manager.pid)
        manager.start()
        with manager.client(timeout=20) as client:
            assert client.get("Numbers").next() == 1


def test_one_object_that_cannot_be_read_does_not_stop_the_others(
    tmp_path: Path,
) -> None:
    """An image that is garbage refuses its own object, by name; the others serve."""
    path = _filled(tmp_path, stopped=True)
    with running(tmp_path) as manager, manager.client(timeout=20) as client:
        with pytest.raises(StoreError, match="Numbers/object 7"):
            client.get("Numbers", "object 7").next()
        assert client.get("Numbers").next() == 2
        assert manager.stop() == 0
    connection = sqlite3.connect(path)
    image = "select image from objects where key = 'object 7'"
    assert connection.execute(image).fetchone() == (bytes(200),), "left as it was"
    connection.close()


def test_the_log_says_when_the_store_fails_and_when_it_works(
    tmp_path: Path, shim: Path
) -> None:
    """One line when it begins, one when it is over, however many calls fail."""
    disk = Disk(shim, tmp_path / "var")
    with running(tmp_path, **disk.environment) as manager:
        with manager.client(timeout=20) as client:
            numbers = client.get("Numbers")
            numbers.next()
            disk.fail("enospc")
            for _ in range(20):
                outcome_of(numbers.next)
            disk.work()
            number_when_served(numbers)
        wait_until(lambda: "The store works again" in manager.log)
        assert manager.log.count("The store failed") == 1


# Too large for the store ------------------------------------------------------------


class Bulk:
    """Gets larger than the store can take, in each way in which it writes."""

    def __init__(self) -> None:
        self.parts: list[bytes] = [bytes(150_000)] if BULK_IS_BORN_LARGE else []

    def put(self, part: bytes) -> int:
        """Take a part in."""
        self.parts.append(part)
        return len(self.parts)

    def grow(self, size: int) -> str:
        """Take a part in; return a text as large."""
        self.parts.append(bytes(size))
        return "x" * size

    def clear(self) -> None:
        """Become small."""
        self.parts.clear()

    def fail(self) -> None:
        """Raise."""
        raise LookupError


BULK_IS_BORN_LARGE = False


class RealStore(SqliteStore):
    """The store, for a desk that releases its store in the end."""

    def release(self) -> None:
        """Do nothing: it was never held."""

    release_fence = release


@pytest.mark.skipif(sys.version_info < (3, 11), reason="setlimit came with 3.11")
@pytest.mark.parametrize("durable", [True, "journal"])
def test_what_the_store_cannot_take_fails_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool | str
) -> None:
    """States, journalled calls and replies above SQLite's largest value: refused."""
    store = RealStore(tmp_path / "state.db")
    store._writer.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
    monkeypatch.setattr(store, "value_bytes_max", 99_000)
    keeping = KeepingLimits(10**9, journal_bytes_max=80_000)
    shared = describe_class(Bulk, durable=durable)
    limits = {"remembered_bytes_max": 10**9}
    with DurableDesk(
        shared,
        Count,
        store=store,  # type: ignore[arg-type]
        keeping=keeping,
        **limits,
    ) as desk:
        # What is staged waits for flush.
        desk.host.gather()

        def ask(target: str, *args: Any, key: str) -> Any:
            """Make one call."""
            call = desk.start(target, *args, key=key)
            desk.host.flush(may_wait=True)
            return call.wait()

        def together(target: str, *args: Any, key: str) -> Any:
            """Make two calls that are committed together; return the first answer."""
            calls = [desk.start("Count.add", key=key)]
            lane = desk.attached()
            calls.append(desk.start(target, *args, connection=lane, number=1, key=key))
            calls.append(desk.start("Count.add", key=key))
            desk.host.flush(may_wait=True)
            assert [calls[0].wait(), calls[2].wait()] == [1, 2]
            return calls[1].wait()

        failure = together("Bulk.put", bytes(150_000), key="at once")
        assert code_of(failure) == "TooLarge"
        assert "the store takes 99000" in failure.text
        assert ask("Bulk.put", b"", key="at once") == 1
        assert ask("Bulk.put", bytes(60_000), key="by and by") == 1
        failure = together("Bulk.put", bytes(60_000), key="by and by")
        if durable == "journal":
            assert failure == 2, "a journal takes it in yet"
            failure = ask("Bulk.put", bytes(60_000), key="by and by")
        assert code_of(failure) == "TooLarge"
        assert ask("Bulk.clear", key="by and by") is None
        assert ask("Bulk.put", b"", key="by and by") == 1
        if durable == "journal":
            assert ask("Bulk.put", b"", key="large reply") == 1
            reply = together("Bulk.grow", 150_000, key="large reply")
            assert len(reply) == 150_000
        monkeypatch.setattr(f"{__name__}.BULK_IS_BORN_LARGE", True)
        assert code_of(together("Bulk.fail", key="born large")) == "TooLarge"
        assert desk.host.status()["pending"] == 0
