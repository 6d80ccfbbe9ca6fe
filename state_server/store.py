"""The store: state on disk, in SQLite. The only room that touches ``sqlite3``.

WAL with synchronous=FULL: a commit that returned is on disk. A commit that failed may
be on disk all the same (its pages were written and only the sync failed); a later
restart would find it. So after a failure a fence row is committed by the same
connection: the write-ahead log's index has not moved past the last good commit, so the
fence overwrites the tail of the log, and what followed it no longer fits its checksums
(section "Checkpoint and WAL file format" of https://www.sqlite.org/fileformat2.html).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Collection
from pathlib import Path

from .commits import Change, ObjectName, RememberedReply, ReplyRecord, Stored
from .errors import ConfigError, StoreError

log = logging.getLogger("state_server.store")

SCHEMA_VERSION = 1

_SCHEMA = """
create table about (name text primary key, value blob not null) without rowid;
create table objects (
    class text not null,
    key text not null,
    version integer not null,
    generation integer not null,
    image blob not null,
    primary key (class, key)
);
create table entries (
    class text not null,
    key text not null,
    generation integer not null,
    entry blob not null,
    primary key (class, key, generation)
) without rowid;
create table replies (
    lane blob primary key,
    session blob not null,
    number integer not null,
    payload blob,
    committed_at real not null
) without rowid;
create index replies_by_age on replies (committed_at);
create table fence (id integer primary key check (id = 1), count integer not null);
insert into fence values (1, 0);
"""

_PUT_OBJECT = """
insert into objects (class, key, version, generation, image) values (?, ?, ?, ?, ?)
on conflict (class, key) do update set version = excluded.version,
generation = excluded.generation, image = excluded.image
"""
_PUT_REPLY = """
insert into replies (lane, session, number, payload, committed_at)
values (?, ?, ?, ?, ?) on conflict (lane) do update set number = excluded.number,
payload = excluded.payload, committed_at = excluded.committed_at
"""


class SqliteStore:
    """State in one SQLite file.

    ``_writer`` belongs to the writer thread, ``_reader`` is guarded by
    ``_reader_lock``. Keeping the reader open keeps the log's index alive, which the
    fence relies on.
    """

    def __init__(self, path: Path, *, busy_timeout_s: float = 2.0) -> None:
        """Open the file, or make it.

        Raises ``ConfigError`` when it is damaged or of another release; it is left as
        it is then.
        """
        self.path = path
        self._reader_lock = threading.Lock()
        try:
            if not path.exists():
                _make(path)
            elif path.stat().st_size == 0:
                raise sqlite3.DatabaseError("the file is empty")
            self._writer = _opened(path, busy_timeout_s)
            try:
                self.epoch = self._prepare()
                self._reader = _opened(path, busy_timeout_s)
            except BaseException:
                self._writer.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(
                f"The state in {path} cannot be used: {error}. Nothing was changed. "
                "Look at the file with `python -m state_server check`, restore a "
                "backup with `python -m state_server restore`, or move the file away "
                "to begin anew."
            ) from error

    def __repr__(self) -> str:
        """Say which file it is."""
        return f"<SqliteStore {self.path}>"

    def _prepare(self) -> bytes:
        """Set the file up; return the epoch."""
        writer = self._writer
        (mode,) = writer.execute("pragma journal_mode = wal").fetchone()
        if mode != "wal":
            raise sqlite3.OperationalError(f"the journal mode is {mode}, not wal")
        writer.execute("pragma synchronous = full")
        about = dict(writer.execute("select name, value from about").fetchall())
        version = int(about.get("schema_version", 0))
        if version != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(
                f"it was written by a release with schema {version}, this one has "
                f"{SCHEMA_VERSION}"
            )
        return bytes(about["epoch"])

    def rename(self, old: str, new: str) -> int:
        """Give the objects of one class to another; return how many there were."""
        moved = 0
        with self._reader_lock:
            self._writer.execute("begin immediate")
            for table in ("objects", "entries"):
                cursor = self._writer.execute(
                    f"update or ignore {table} set class = ? where class = ?",
                    (new, old),
                )
                moved = max(moved, cursor.rowcount)
            self._writer.execute("commit")
        return moved

    def count(self) -> int:
        """Return how many objects are stored."""
        with self._reader_lock:
            row = self._reader.execute("select count(*) from objects").fetchone()
        return int(row[0])

    def load(self, name: ObjectName) -> Stored | None:
        """Return a stored object; raise ``StoreError`` when it cannot be read."""
        try:
            with self._reader_lock:
                # One statement each, but one snapshot: a commit between the two would
                # show an image with entries that it contains already.
                self._reader.execute("begin")
                try:
                    row = self._reader.execute(
                        "select version, generation, image from objects "
                        "where class = ? and key = ?",
                        name,
                    ).fetchone()
                    if row is None:
                        return None
                    entries = self._reader.execute(
                        "select entry from entries where class = ? and key = ? "
                        "and generation > ? order by generation",
                        (*name, row[1]),
                    ).fetchall()
                finally:
                    self._reader.execute("rollback")
        except sqlite3.Error as error:
            raise StoreError(f"{'/'.join(name)} cannot be read: {error}.") from error
        version, generation, image = row
        return Stored(version, generation, image, tuple(e for (e,) in entries))

    def reply_of(self, lane: bytes) -> RememberedReply | None:
        """Return the remembered reply of a lane."""
        try:
            with self._reader_lock:
                row = self._reader.execute(
                    "select session, number, payload from replies where lane = ?",
                    (lane,),
                ).fetchone()
        except sqlite3.Error as error:
            raise StoreError(f"The replies cannot be read: {error}.") from error
        return None if row is None else RememberedReply(*row)

    def commit(
        self,
        changes: Collection[Change],
        replies: Collection[ReplyRecord],
        forgotten: Collection[bytes],
    ) -> None:
        """Write everything in one transaction; raise ``StoreError`` if it failed."""
        now = time.time()
        images = [c for c in changes if c.image is not None]
        entries = [c for c in changes if c.entry is not None]
        try:
            writer = self._writer
            writer.execute("begin immediate")
            if images:
                writer.executemany(
                    _PUT_OBJECT,
                    [(*c.name, c.version, c.generation, c.image) for c in images],
                )
                writer.executemany(
                    "delete from entries where class = ? and key = ? "
                    "and generation <= ?",
                    [(*c.name, c.generation) for c in images],
                )
            if entries:
                writer.executemany(
                    "insert into entries values (?, ?, ?, ?)",
                    [(*c.name, c.generation, c.entry) for c in entries],
                )
            if replies:
                writer.executemany(
                    _PUT_REPLY,
                    [
                        (r.lane.lane, r.lane.session, r.number, r.payload, now)
                        for r in replies
                    ],
                )
            if forgotten:
                writer.executemany(
                    "delete from replies where lane = ?",
                    [(lane,) for lane in forgotten],
                )
            writer.execute("commit")
        except sqlite3.Error as error:
            self._roll_back()
            raise StoreError(f"SQLite says: {error}.") from error

    def fence(self) -> None:
        """Make sure that a commit that failed is not on disk; raise ``StoreError``."""
        try:
            self._writer.execute("begin immediate")
            self._writer.execute("update fence set count = count + 1")
            self._writer.execute("commit")
        except sqlite3.Error as error:
            self._roll_back()
            raise StoreError(f"SQLite says: {error}.") from error

    def tidy(self, retention_s: float) -> None:
        """Forget replies that were committed longer ago than this."""
        try:
            self._writer.execute(
                "delete from replies where committed_at < ?",
                (time.time() - retention_s,),
            )
        except sqlite3.Error as error:
            raise StoreError(f"SQLite says: {error}.") from error

    def close(self) -> None:
        """Close the files."""
        with self._reader_lock:
            self._reader.close()
        self._writer.close()

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            try:
                self._writer.execute("rollback")
            except sqlite3.Error as error:
                log.warning("The rollback failed as well: %s.", error)


def _opened(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    return sqlite3.connect(
        path,
        timeout=busy_timeout_s,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=64,
    )


def _make(path: Path) -> None:
    """Make an empty store; whole or not at all, so an empty file is always a damage."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    connection = sqlite3.connect(fresh, isolation_level=None)
    try:
        connection.execute("begin")
        for statement in _SCHEMA.split(";"):
            if statement.strip():
                connection.execute(statement)
        put = "insert into about values (?, ?)"
        connection.execute(put, ("schema_version", str(SCHEMA_VERSION).encode()))
        connection.execute(put, ("epoch", os.urandom(8)))
        connection.execute("commit")
    finally:
        connection.close()
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
