"""The SQLite store by itself: what a commit writes, and what is forgotten when."""

from __future__ import annotations

import itertools
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from state_server.client.link import new_lane
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
