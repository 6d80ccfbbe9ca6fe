"""The SQLite store by itself: what a commit writes, and what is forgotten when."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from state_server.client.link import new_lane
from state_server.errors import ConfigError
from state_server.keeping.commits import Change, ReplyRecord
from state_server.messages import Lane
from state_server.store import SqliteStore, StoreFile

#: A page, and what stands before it in the log (https://www.sqlite.org/walformat.html).
_LOGGED_PAGE_BYTES = 4096 + 24


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Return a store of its own."""
    store = SqliteStore(tmp_path / "state.db")
    yield store
    store.close()


def commit(store: SqliteStore, lane: Lane, number: int) -> None:
    """Commit what one call changed, and its reply."""
    change = Change(("Counter", "default"), 1, number, b"state %d" % number)
    store.commit([change], [ReplyRecord(lane, number, b"reply")], [])


def minted(seconds_ago: float) -> Lane:
    """Return a lane that was minted so long ago."""
    minted_ms = int((time.time() - seconds_ago) * 1000)
    return Lane(os.urandom(16), minted_ms.to_bytes(8, "big") + os.urandom(8))


def test_a_commit_of_one_call_writes_two_pages(store: SqliteStore) -> None:
    """One with the object's state and one with the reply; nothing besides."""
    log, lane = store.path.with_name("state.db-wal"), new_lane(os.urandom(16))
    commit(store, lane, 1)
    before = log.stat().st_size
    commit(store, lane, 2)
    assert log.stat().st_size - before == 2 * _LOGGED_PAGE_BYTES


def test_a_log_that_grew_beside_a_reader_shrinks_again(store: SqliteStore) -> None:
    """What a burst of changes has made of it does not stay on disk for ever."""
    log, image = store.path.with_name("state.db-wal"), bytes(1024 * 1024)
    number = itertools.count(1)

    def commit_some(count: int) -> None:
        for _ in range(count):
            name = ("Large", str(next(number)))
            store.commit([Change(name, 1, 1, image)], [], [])

    with StoreFile(store.path):
        commit_some(80)
        assert log.stat().st_size > 80 * len(image)
    commit_some(3)
    assert log.stat().st_size <= 64 * len(image)


# A damaged log -----------------------------------------------------------------------


@pytest.fixture
def killed(store: SqliteStore, tmp_path: Path) -> Path:
    """Return what a manager leaves that is killed after six commits."""
    for number in range(1, 7):
        commit(store, minted(0), number)
    return copied(store, tmp_path / "killed")


def copied(store: SqliteStore, folder: Path) -> Path:
    """Copy a store as it is on disk, with its log."""
    folder.mkdir()
    for ending in ("", "-wal"):
        shutil.copy(f"{store.path}{ending}", folder)
    return folder / store.path.name


def log_of(path: Path) -> Path:
    """Return the log of a store."""
    return path.with_name(path.name + "-wal")


def page_in_log(number: int) -> int:
    """Return where a page begins in the log."""
    return 32 + number * _LOGGED_PAGE_BYTES


@pytest.mark.parametrize("place", [0, 20, *(page_in_log(n) + 2000 for n in range(8))])
@pytest.mark.parametrize("damage", [bytes([0x55]), bytes(4096)])
def test_a_log_that_is_damaged_before_its_last_commit_is_refused(
    killed: Path, place: int, damage: bytes
) -> None:
    """SQLite ends it there, and gives out again what was given out in later commits."""
    log = bytearray(log_of(killed).read_bytes())
    log[place : place + len(damage)] = damage
    log_of(killed).write_bytes(log)
    before = killed.read_bytes()
    for _ in range(2):
        with pytest.raises(ConfigError, match="acknowledged come after the damage"):
            SqliteStore(killed)
        assert log_of(killed).read_bytes() == log
        assert killed.read_bytes() == before


@pytest.mark.parametrize("pages", [(2,), (1,), (2, 1)])
@pytest.mark.parametrize("left", ["nothing", "half", "noise", "the end of the file"])
def test_a_last_commit_that_is_not_whole_is_no_damage(
    killed: Path, pages: tuple[int, ...], left: str
) -> None:
    """A power cut leaves any of its pages away, or half of one: what was before counts.

    It has written two pages, as the first of these tests shows; ``pages`` are counted
    from the end of the log.
    """
    log = bytearray(log_of(killed).read_bytes())
    in_log = len(log) // _LOGGED_PAGE_BYTES
    for page in (in_log - page for page in pages):
        begin = page_in_log(page) + (2000 if left == "half" else 0)
        end = page_in_log(page + 1)
        log[begin:end] = (os.urandom if left == "noise" else bytes)(end - begin)
    if left == "the end of the file":
        del log[page_in_log(in_log - pages[0]) + 100 :]
    log_of(killed).write_bytes(log)
    store = SqliteStore(killed)
    stored = store.load(("Counter", "default"))
    store.close()

    assert stored is not None
    assert stored.generation == 5


def test_pages_of_a_former_log_are_no_damage(
    store: SqliteStore, tmp_path: Path
) -> None:
    """Once it is in the file a log is begun anew, over the old one."""
    for number in range(1, 30):
        commit(store, minted(0), number)
    store._writer.execute("pragma wal_checkpoint(restart)")
    commit(store, minted(0), 30)
    path = copied(store, tmp_path / "killed")
    assert log_of(path).stat().st_size > page_in_log(50)
    again = SqliteStore(path)
    stored = again.load(("Counter", "default"))
    again.close()

    assert stored is not None
    assert stored.generation == 30


def test_what_a_fence_has_written_over_is_no_damage(
    store: SqliteStore, tmp_path: Path
) -> None:
    """Behind it lies the rest of the commit that failed, which counts no more."""
    commit(store, minted(0), 1)
    before = log_of(store.path).read_bytes()
    commit(store, minted(0), 2)
    failed = log_of(store.path).read_bytes()[len(before) :]
    path = copied(store, tmp_path / "killed")
    log_of(path).write_bytes(before)
    fenced = SqliteStore(path)
    fenced.fence()
    log = log_of(path).read_bytes()
    log_of(path).write_bytes(log + failed[len(log) - len(before) :])
    again = copied(fenced, tmp_path / "again")
    fenced.close()
    store = SqliteStore(again)
    stored = store.load(("Counter", "default"))
    store.close()

    assert stored is not None
    assert stored.generation == 1


def test_replies_are_forgotten_by_the_age_of_their_commit(store: SqliteStore) -> None:
    """A lane that was minted long ago keeps a reply that was committed just now."""
    old, young = minted(1000.0), minted(1.0)
    for lane in (old, young):
        commit(store, lane, 7)
    store.tidy(900.0)
    assert store.reply_of(old.lane) is not None
    assert store.reply_of(young.lane) is not None

    with sqlite3.connect(store.path) as other:
        other.execute("update replies set committed_at = committed_at - 950")
    other.close()
    store.tidy(900.0)
    assert store.reply_of(old.lane) is None


def test_the_index_of_a_former_release_is_dropped(tmp_path: Path) -> None:
    """A file that has it serves as before, and commits write it no longer."""
    path, lane = tmp_path / "state.db", new_lane(os.urandom(16))
    store = SqliteStore(path)
    commit(store, lane, 1)
    store.close()
    with sqlite3.connect(path) as former:
        former.execute("create index replies_by_age on replies (committed_at)")
    former.close()

    store = SqliteStore(path)
    try:
        commit(store, lane, 2)
        reply = store.reply_of(lane.lane)
        assert reply is not None
        assert reply.number == 2
    finally:
        store.close()
    with sqlite3.connect(path) as after:
        indexes = after.execute("select name from sqlite_master where type = 'index'")
        assert "replies_by_age" not in {name for (name,) in indexes}
    after.close()
