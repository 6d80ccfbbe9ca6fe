"""The store: state on disk, in SQLite. Only this package touches ``sqlite3``.

Here is what the committer writes to; ``database`` is the file's own life, ``reading``
one moment of it, for all but the manager.

WAL with synchronous=FULL: a commit that returned is on disk. A commit that failed may
be on disk all the same (its pages were written and only the sync failed); a later
restart would find it. So after a failure a fence row is committed by the same
connection: the write-ahead log's index has not moved past the last good commit, so the
fence overwrites the tail of the log, and what followed it no longer fits its checksums
(section "Checkpoint and WAL file format" of https://www.sqlite.org/fileformat2.html).
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError, StoreError
from ..keeping.commits import (
    Change,
    NeverWritten,
    ObjectName,
    RememberedReply,
    ReplyRecord,
    Stored,
)
from .database import (
    FILE_HEAD,
    KEEP_SEED,
    NEW_EPOCH,
    SCHEMA_VERSION,
    StoredRow,
    fold_log,
    look_at,
    make_empty,
    opened,
    unusable,
)
from .reading import StoreFile, hash_seed_of

__all__ = [
    "FILE_HEAD",
    "SCHEMA_VERSION",
    "Inserted",
    "SqliteStore",
    "StoreFile",
    "StoredRow",
    "fold_log",
    "hash_seed_of",
]

log = logging.getLogger("state_server.store")

#: A file up to this size is looked through for damage at each start, in about a quarter
#: of a second; a larger one by `python -m state_server check` only.
_CHECKED_BYTES_MAX = 64 * 1024 * 1024

#: The log grows while somebody reads an old state, a backup for instance. This much of
#: it is kept afterwards: to write into a file is quicker than to make it longer.
_LOG_BYTES_KEPT = 64 * 1024 * 1024

_PUT_OBJECTS = """
insert into objects (class, key, version, generation, image) values {rows}
on conflict (class, key) do update set version = excluded.version,
generation = excluded.generation, image = excluded.image
"""
_PUT_REPLIES = """
insert into replies (lane, session, number, payload, committed_at) values {rows}
on conflict (lane) do update set number = excluded.number,
payload = excluded.payload, committed_at = excluded.committed_at
"""
#: Rows that one statement writes. The interpreter is given up around each statement,
#: and a busy leader is slow to give it back: a few large ones beat many small ones.
_ROWS_AT_ONCE = (64, 16, 4, 1)

#: The largest row of SQLite, where it cannot be asked (before Python 3.11); and what
#: stands in a row beside its image, entry or reply.
_ROW_BYTES_MAX = 1_000_000_000
_ROW_BYTES_BESIDE = 16 * 1024


class Inserted(NamedTuple):
    """What became of objects that were put into a store."""

    added: int
    replaced: int
    kept: int


class SqliteStore:
    """State in one SQLite file.

    ``_writer`` and ``_may_have_entries`` belong to whoever the committer lets write,
    one thread at a time. ``_reader`` is guarded by ``_reader_lock``, ``_recaller`` by
    ``_recaller_lock``: a large object that is loaded must not hold up clients that
    connect. Keeping a reader open keeps the log's index alive, which the fence relies
    on.
    """

    def __init__(self, path: Path, *, busy_timeout_s: float = 2.0) -> None:
        """Open the file, or make it.

        Raises ``ConfigError`` when it is damaged or of another release; it is left as
        it is then.
        """
        self.path = path
        self._reader_lock = threading.Lock()
        self._recaller_lock = threading.Lock()
        try:
            if path.exists():
                look_at(path, bytes_checked=_CHECKED_BYTES_MAX)
            else:
                make_empty(path)
            self._writer = opened(path, busy_timeout_s)
            try:
                self.epoch = self._prepare()
                self.value_bytes_max = _row_bytes_max(self._writer) - _ROW_BYTES_BESIDE
                self._reader = opened(path, busy_timeout_s)
                self._recaller = opened(path, busy_timeout_s)
            except BaseException:
                self._writer.close()
                raise
        except (sqlite3.Error, OSError, ValueError) as error:
            raise unusable(path, error) from error

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
        writer.execute(f"pragma journal_size_limit = {_LOG_BYTES_KEPT}")
        # Former releases kept one, and wrote a page of it with each commit.
        writer.execute("drop index if exists replies_by_age")
        some = writer.execute("select exists (select 1 from entries)").fetchone()
        #: Whether an image may make entries needless that are to be deleted then.
        self._may_have_entries = bool(some[0])
        epoch = "select value from about where name = 'epoch'"
        return bytes(writer.execute(epoch).fetchone()[0])

    def keep_hash_seed(self, seed: int) -> int:
        """Keep a hash seed unless there is one; return the one that is kept.

        Journals are replayed under it, so it goes wherever the state goes. Called at
        the start, or by ``insert`` while it asks for rows. Raises ``StoreError``.
        """
        try:
            self._writer.execute(KEEP_SEED, (str(seed).encode(),))
            query = "select value from about where name = 'hash_seed'"
            return int(self._writer.execute(query).fetchone()[0])
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(f"The hash seed cannot be kept: {error}.") from error

    def class_names(self) -> list[str]:
        """Return the names of all classes that objects are stored of.

        Each is looked up in the index by itself, so the number of objects does not
        matter.
        """
        names: list[str] = []
        with self._reader_lock:
            row = self._reader.execute("select min(class) from objects").fetchone()
            while row[0] is not None:
                names.append(row[0])
                row = self._reader.execute(
                    "select min(class) from objects where class > ?", row
                ).fetchone()
        return names

    def rename(self, old: str, new: str) -> int:
        """Give the objects of one class to another; return how many there were.

        Called at the start, before the writer thread runs. Raises ``ConfigError`` when
        it cannot be done.
        """
        moved = 0
        with self._reader_lock:
            try:
                self._writer.execute("begin immediate")
                for table in ("objects", "entries"):
                    cursor = self._writer.execute(
                        f"update {table} set class = ? where class = ?", (new, old)
                    )
                    moved = max(moved, cursor.rowcount)
                self._writer.execute("commit")
            except sqlite3.Error as error:
                self._roll_back()
                why = str(error)
                if isinstance(error, sqlite3.IntegrityError):
                    why = self._found_twice(old, new)
                raise ConfigError(
                    f"The stored objects of {old!r} could not be given to {new!r}: "
                    f"{why}. Nothing was changed."
                ) from error
        return moved

    def _found_twice(self, old: str, new: str) -> str:
        """Say which objects two classes both have: one began anew when renamed."""
        count, key = self._reader.execute(
            "select count(*), min(key) from objects as former where class = ? and "
            "exists (select 1 from objects where class = ? and key = former.key)",
            (old, new),
        ).fetchone()
        return (
            f"both have objects of the same keys ({count}, such as {key!r}). Write "
            "them out with `python -m state_server dump`, remove the lines of those "
            "that are to go, move the state away, and bring the rest back with "
            "`python -m state_server load`"
        )

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

    def journalled(self) -> Iterator[ObjectName]:
        """Give the names of the objects with journalled calls since their image.

        Each is looked up in the index by itself, as in ``class_names``.
        """
        row = ("", "")
        while row is not None:
            try:
                with self._reader_lock:
                    row = self._reader.execute(
                        "select class, key from entries where (class, key) > (?, ?) "
                        "order by class, key limit 1",
                        row,
                    ).fetchone()
            except sqlite3.Error as error:
                raise StoreError(f"The journals cannot be read: {error}.") from error
            if row is not None:
                yield row

    def reply_of(self, lane: bytes) -> RememberedReply | None:
        """Return the remembered reply of a lane."""
        try:
            with self._recaller_lock:
                row = self._recaller.execute(
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
        """Write everything in one transaction.

        Raises ``StoreError`` if it failed, ``NeverWritten`` if it was not even tried to
        make it valid: without a COMMIT no part of it is ever taken from the log.
        """
        now = time.time()
        kind: type[StoreError] = NeverWritten
        images = [c for c in changes if c.image is not None]
        entries = [c for c in changes if c.entry is not None]
        try:
            writer = self._writer
            writer.execute("begin immediate")
            if images:
                _put(
                    writer,
                    _PUT_OBJECTS,
                    [(*c.name, c.version, c.generation, c.image) for c in images],
                )
                if self._may_have_entries:
                    writer.executemany(
                        "delete from entries where class = ? and key = ? "
                        "and generation <= ?",
                        [(*c.name, c.generation) for c in images],
                    )
            if entries:
                self._may_have_entries = True
                writer.executemany(
                    "insert into entries values (?, ?, ?, ?)",
                    [(*c.name, c.generation, c.entry) for c in entries],
                )
            if replies:
                _put(
                    writer,
                    _PUT_REPLIES,
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
            kind = StoreError
            writer.execute("commit")
        except (sqlite3.Error, ValueError, OverflowError) as error:
            self._roll_back()
            raise kind(f"SQLite says: {error}.") from error

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
        """Forget replies that were committed longer ago than this.

        A lane begins with the time it was minted, so those that were minted since are
        not looked at; an index of ages would be one more page to write with each
        commit.
        """
        horizon_s = time.time() - retention_s
        minted_before = max(0, int(horizon_s * 1000)).to_bytes(8, "big")
        try:
            self._writer.execute(
                "delete from replies where lane < ? and committed_at < ?",
                (minted_before, horizon_s),
            )
        except sqlite3.Error as error:
            raise StoreError(f"SQLite says: {error}.") from error

    def insert(self, rows: Iterable[StoredRow], *, replace: bool) -> Inserted:
        """Put objects in, all or none; return what became of them.

        ``replace``: those that exist already are replaced, and otherwise left alone.
        What has changed begins a new epoch: no call that was made on the former state
        is repeated onto this one. Raises ``StoreError``, or what ``rows`` raises.
        """
        counts = {"added": 0, "replaced": 0, "kept": 0}
        try:
            self._writer.execute("begin immediate")
            for row in rows:
                counts[self._insert_one(row, replace)] += 1
            if counts["added"] or counts["replaced"]:
                self._writer.execute(NEW_EPOCH, (os.urandom(8),))
            self._writer.execute("commit")
        except sqlite3.Error as error:
            self._roll_back()
            raise StoreError(f"SQLite says: {error}.") from error
        except BaseException:
            self._roll_back()
            raise
        return Inserted(**counts)

    def _insert_one(self, row: StoredRow, replace: bool) -> str:
        writer, outcome = self._writer, "added"
        if writer.execute(
            "select 1 from objects where class = ? and key = ?", row.name
        ).fetchone():
            if not replace:
                return "kept"
            outcome = "replaced"
        images = [(*row.name, row.version, row.generation, row.image)]
        _put(writer, _PUT_OBJECTS, images)
        writer.execute("delete from entries where class = ? and key = ?", row.name)
        self._may_have_entries = self._may_have_entries or bool(row.entries)
        writer.executemany(
            "insert into entries values (?, ?, ?, ?)",
            [(*row.name, *entry) for entry in row.entries],
        )
        return outcome

    def close(self) -> None:
        """Close the files."""
        with self._reader_lock:
            self._reader.close()
        with self._recaller_lock:
            self._recaller.close()
        self._writer.close()

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            try:
                self._writer.execute("rollback")
            except sqlite3.Error as error:
                log.warning("The rollback failed as well: %s.", error)


def _put(
    connection: sqlite3.Connection, statement: str, rows: list[tuple[Any, ...]]
) -> None:
    """Write rows with as few statements as possible."""
    done = 0
    for size in _ROWS_AT_ONCE:
        while len(rows) - done >= size:
            connection.execute(
                _for_rows(statement, size, len(rows[0])),
                list(itertools.chain.from_iterable(rows[done : done + size])),
            )
            done += size


@functools.cache
def _for_rows(statement: str, count: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return statement.format(rows=", ".join([row] * count))


def _row_bytes_max(connection: sqlite3.Connection) -> int:
    if sys.version_info < (3, 11):
        return _ROW_BYTES_MAX
    return connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
