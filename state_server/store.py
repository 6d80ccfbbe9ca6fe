"""The store: state on disk, in SQLite. The only room that touches ``sqlite3``.

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
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from .data_folder import STATE_FILE, hash_seed_in_file, sync
from .errors import ConfigError, StoreError
from .keeping.commits import (
    Change,
    NeverWritten,
    ObjectName,
    RememberedReply,
    ReplyRecord,
    Stored,
)

log = logging.getLogger("state_server.store")

SCHEMA_VERSION = 1

#: A file up to this size is looked through for damage at each start, in about a quarter
#: of a second; a larger one by `python -m state_server check` only.
_CHECKED_BYTES_MAX = 64 * 1024 * 1024

#: The log grows while somebody reads an old state, a backup for instance. This much of
#: it is kept afterwards: to write into a file is quicker than to make it longer.
_LOG_BYTES_KEPT = 64 * 1024 * 1024

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
create table fence (id integer primary key check (id = 1), count integer not null);
insert into fence values (1, 0);
"""

_TABLES = frozenset(re.findall(r"create table (\w+)", _SCHEMA))

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
_NEW_EPOCH = "update about set value = ? where name = 'epoch'"
_KEEP_SEED = "insert or ignore into about values ('hash_seed', ?)"

#: The largest row of SQLite, where it cannot be asked (before Python 3.11); and what
#: stands in a row beside its image, entry or reply.
_ROW_BYTES_MAX = 1_000_000_000
_ROW_BYTES_BESIDE = 16 * 1024

#: Pages that are copied at a stretch; a signal is heard in between.
_COPIED_PAGES = 1024
_PROBLEMS_MAX = 100


class StoredRow(NamedTuple):
    """An object on disk, and its journalled calls, each with its generation."""

    name: ObjectName
    version: int
    generation: int
    image: bytes
    entries: tuple[tuple[int, bytes], ...] = ()

    @property
    def stored(self) -> Stored:
        """Return it as the host loads it."""
        entries = tuple(entry for _, entry in self.entries)
        return Stored(self.version, self.generation, self.image, entries)


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
                _look_at(path, bytes_checked=_CHECKED_BYTES_MAX)
            else:
                _make(path)
            self._writer = _opened(path, busy_timeout_s)
            try:
                self.epoch = self._prepare()
                self.value_bytes_max = _row_bytes_max(self._writer) - _ROW_BYTES_BESIDE
                self._reader = _opened(path, busy_timeout_s)
                self._recaller = _opened(path, busy_timeout_s)
            except BaseException:
                self._writer.close()
                raise
        except (sqlite3.Error, OSError, ValueError) as error:
            raise _unusable(path, error) from error

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
            self._writer.execute(_KEEP_SEED, (str(seed).encode(),))
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
            f"both have {count} objects of the same keys, such as {key!r}. Write them "
            "out with `python -m state_server dump`, remove the lines of those that "
            "are to go, move the state away, and bring the rest back with "
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
                self._writer.execute(_NEW_EPOCH, (os.urandom(8),))
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


def _unusable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"The state in {path} cannot be used: {error}. Nothing was changed. Look at "
        "the file with `python -m state_server check`, restore a backup with "
        "`python -m state_server restore`, or move the file away to begin anew."
    )


def _look_at(path: Path, *, bytes_checked: int = 0) -> dict[str, bytes]:
    """Return what a file says of itself; raise an error if it is none of ours.

    Not a byte of it is changed.

    Opening a database for writing may change it: its journal mode, or what the log
    next to it brings. Hence this comes first, by a connection that cannot write.
    ``bytes_checked``: a file up to this size is looked through for damage as well.
    """
    if path.stat().st_size == 0:
        raise sqlite3.DatabaseError("the file is empty")
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None
    )
    try:
        about = dict(connection.execute("select name, value from about").fetchall())
        if path.stat().st_size <= bytes_checked:
            problems = _damage(connection, "quick_check")
            if problems:
                raise sqlite3.DatabaseError(problems[0])
    finally:
        connection.close()
    version = int(about.get("schema_version", 0))
    if version != SCHEMA_VERSION or "epoch" not in about:
        raise sqlite3.DatabaseError(
            f"it was written by a release with schema {version}, this one has "
            f"{SCHEMA_VERSION}"
        )
    return about


class StoreFile:
    """One moment of a store, read-only, beside a running manager or without one.

    Everything is read in one transaction: what is read fits together however much the
    manager writes meanwhile, and a copy never begins anew. The manager is not held up,
    but its log cannot be folded into its file before this one is closed.
    """

    def __init__(self, path: Path, *, busy_timeout_s: float = 2.0) -> None:
        """Open the file; raise ``StoreError`` when it is not a store or is damaged."""
        self.path = path
        try:
            self._connection = sqlite3.connect(
                _address_for_reading(path),
                uri=True,
                timeout=busy_timeout_s,
                isolation_level=None,
            )
            try:
                self._connection.execute("begin")
                rows = self._connection.execute("select name, value from about")
                self.about: dict[str, bytes] = dict(rows.fetchall())
                self.schema_version = int(self.about.get("schema_version", 0))
                seed = self.about.get("hash_seed")
                #: What its journals are replayed under, if it has one.
                self.hash_seed = None if seed is None else int(seed)
            except BaseException:
                self._connection.close()
                raise
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(f"{path} cannot be read as state: {error}.") from error

    def __repr__(self) -> str:
        """Say which file it is."""
        return f"<StoreFile {self.path}>"

    def __enter__(self) -> StoreFile:
        """Return the file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def damage(self) -> list[str]:
        """Return what is missing, and up to a hundred faults that SQLite finds."""
        problems = [] if "epoch" in self.about else ["it has no epoch"]
        names = "select name from sqlite_master where type = 'table'"
        try:
            tables = {name for (name,) in self._connection.execute(names)}
        except sqlite3.Error as error:
            return [str(error)]
        problems += [f"it has no table {name}" for name in sorted(_TABLES - tables)]
        return problems + _damage(self._connection, "integrity_check")

    def count(self, table: str) -> int:
        """Return how many rows ``objects``, ``entries`` or ``replies`` has."""
        try:
            rows = self._connection.execute(f"select count(*) from {table}")
            return int(rows.fetchone()[0])
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def rows(self) -> Iterator[StoredRow]:
        """Give every object, by class and key; raise ``StoreError`` for damage."""
        entries_of = (
            "select generation, entry from entries where class = ? and key = ? "
            "and generation > ? order by generation"
        )
        try:
            for class_name, key, version, generation, image in self._connection.execute(
                "select class, key, version, generation, image from objects "
                "order by class, key"
            ):
                name = (class_name, key)
                entries = self._connection.execute(entries_of, (*name, generation))
                yield StoredRow(
                    name, version, generation, image, tuple(entries.fetchall())
                )
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def copy(self, target: Path, *, hash_seed: int | None, wal: bool) -> None:
        """Write a copy with a new epoch to ``target``, which must not exist.

        ``hash_seed``: that of its folder, for the copy if it has none itself. ``wal``:
        leave it as a manager keeps it; otherwise it can be read from a folder that is
        read-only. The copy has been verified and is on disk when this returns. Raises
        ``StoreError``.
        """
        os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            copy = sqlite3.connect(target, isolation_level=None)
            try:
                # A copy that is cut off is thrown away: it is synced once, at the end.
                copy.execute("pragma synchronous = off")
                # Signals are heard only where Python code runs.
                self._connection.backup(
                    copy, pages=_COPIED_PAGES, progress=lambda *_: None
                )
                copy.execute("pragma journal_mode = delete")
                copy.execute(_NEW_EPOCH, (os.urandom(8),))
                if hash_seed is not None:
                    copy.execute(_KEEP_SEED, (str(hash_seed).encode(),))
                problems = _damage(copy, "quick_check")
                if wal:
                    copy.execute("pragma journal_mode = wal")
            finally:
                copy.close()
        except sqlite3.Error as error:
            raise StoreError(
                f"{self.path} could not be copied to {target}: {error}."
            ) from error
        if problems:
            raise StoreError(
                f"The copy of {self.path} is damaged: {'; '.join(problems[:3])}. "
                "Look at the original with `python -m state_server check`."
            )
        sync(target)

    def _unreadable(self, error: sqlite3.Error) -> StoreError:
        return StoreError(f"{self.path} is damaged: {error}.")


def _address_for_reading(path: Path) -> str:
    """Return the URI that a file is opened by to be read only.

    Beside a file that a manager keeps, SQLite makes two others, even to read it. On a
    file system that is read-only there can be none; without a log nobody needs them.
    """
    address = f"{path.absolute().as_uri()}?mode=ro"
    log_is_there = path.with_name(path.name + "-wal").exists()
    if log_is_there or not hasattr(os, "statvfs"):
        return address
    is_fixed = os.statvfs(path.parent).f_flag & os.ST_RDONLY
    return f"{address}&immutable=1" if is_fixed else address


def hash_seed_of(data_dir: Path) -> int | None:
    """Return the hash seed of a data folder; ``None`` if it has none yet.

    It is kept in the state, so that both are replaced at once; in a folder of a former
    release it is in a file. Raises ``ConfigError`` when it cannot be read.
    """
    path = data_dir / STATE_FILE
    try:
        about = _look_at(path) if path.exists() else {}
        if "hash_seed" in about:
            return int(about["hash_seed"])
    except (sqlite3.Error, OSError, ValueError) as error:
        raise _unusable(path, error) from error
    return hash_seed_in_file(data_dir)


def fold_log(path: Path, hash_seed: int | None) -> bool:
    """Bring the log of a store into its file, so that the file alone is the state.

    ``hash_seed``: that of its folder, which is put into it as well. Returns whether
    that was possible; it is not when the file is damaged. Raises ``StoreError`` while
    another process has the file open, and when the file cannot be written.
    """
    try:
        # SQLite may write to a damaged file, or delete the log of an empty one.
        _look_at(path)
        connection = _opened(path, 2.0)
    except (sqlite3.Error, ValueError) as error:
        if "locked" not in str(error):
            return False
        raise _in_use(path) from error
    try:
        (mode,) = connection.execute("pragma journal_mode = delete").fetchone()
        if mode != "delete":
            raise _in_use(path)
        if hash_seed is not None:
            connection.execute(_KEEP_SEED, (str(hash_seed).encode(),))
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise _in_use(path) from error
        # A full disk, say: the file and its log are whole, and must not be parted.
        raise StoreError(
            f"The log of {path} cannot be brought into it: {error}."
        ) from error
    except sqlite3.DatabaseError:
        return False
    finally:
        connection.close()
    return True


def _in_use(path: Path) -> StoreError:
    return StoreError(
        f"{path} is open in another process, perhaps a backup or a check. Wait until "
        "that has ended."
    )


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


def _damage(connection: sqlite3.Connection, pragma: str) -> list[str]:
    try:
        rows = connection.execute(f"pragma {pragma}({_PROBLEMS_MAX})").fetchall()
    except sqlite3.Error as error:
        return [str(error)]
    return [text for (text,) in rows if text != "ok"]


def _opened(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    return sqlite3.connect(
        path,
        timeout=busy_timeout_s,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=64,
    )


def _row_bytes_max(connection: sqlite3.Connection) -> int:
    if sys.version_info < (3, 11):
        return _ROW_BYTES_MAX
    return connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)


def _make(path: Path) -> None:
    """Make an empty store; whole or not at all, so an empty file is always a damage."""
    for suffix in ("-wal", "-journal"):
        # SQLite would take the log of a file that is gone for the log of the new one.
        left = path.with_name(path.name + suffix)
        if left.exists():
            raise sqlite3.DatabaseError(
                f"it is missing, but its log {left.name} is there; put the file back, "
                "or move the log away with it"
            )
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    connection = sqlite3.connect(fresh, isolation_level=None)
    try:
        # From the first moment: changing the mode later leaves a journal file, which a
        # power cut may bring back.
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
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
    sync(path.parent)
