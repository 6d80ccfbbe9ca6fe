"""The SQLite file of a store: its tables, how it is made, looked at, opened, closed up.

It is whole from its first moment on, and a file that is none of ours is left as it is.
"""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path
from typing import NamedTuple

from ..data_folder import sync
from ..errors import ConfigError, StoreError
from ..keeping.commits import ObjectName, Stored

#: The number of the tables below; a file with another one is not opened.
SCHEMA_VERSION = 1

#: What every file of SQLite begins with.
FILE_HEAD = b"SQLite format 3\0"

#: Problems of one file that SQLite is asked for.
_PROBLEMS_MAX = 100

#: What gives a store, or a copy of one, an epoch of its own: eight random bytes.
NEW_EPOCH = "update about set value = ? where name = 'epoch'"

#: What keeps the hash seed of journals, unless there is one.
KEEP_SEED = "insert or ignore into about values ('hash_seed', ?)"

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

#: The tables that a store has.
TABLES = frozenset(re.findall(r"create table (\w+)", _SCHEMA))


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


def make_empty(path: Path) -> None:
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


def unusable(path: Path, error: Exception) -> ConfigError:
    """Return the error for a state that a manager cannot start with."""
    return ConfigError(
        f"The state in {path} cannot be used: {error}. Nothing was changed. Look at "
        "the file with `python -m state_server check`, restore a backup with "
        "`python -m state_server restore`, or move the file away to begin anew."
    )


def look_at(path: Path, *, bytes_checked: int = 0) -> dict[str, bytes]:
    """Return what a file says of itself; raise an error if it is none of ours.

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
            problems = damage_in(connection, "quick_check")
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


def opened(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """Return a connection that any thread may use, one at a time."""
    return sqlite3.connect(
        path,
        timeout=busy_timeout_s,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=64,
    )


def damage_in(connection: sqlite3.Connection, pragma: str) -> list[str]:
    """Return what ``quick_check`` or ``integrity_check`` finds wrong with a file."""
    try:
        rows = connection.execute(f"pragma {pragma}({_PROBLEMS_MAX})").fetchall()
    except sqlite3.Error as error:
        return [str(error)]
    return [text for (text,) in rows if text != "ok"]


def fold_log(path: Path, hash_seed: int | None) -> bool:
    """Bring the log of a store into its file, so that the file alone is the state.

    ``hash_seed``: that of its folder, which is put into it as well. Returns whether
    that was possible; it is not when the file is damaged. Raises ``StoreError`` while
    another process has the file open, and when the file cannot be written.
    """
    try:
        # SQLite may write to a damaged file, or delete the log of an empty one.
        look_at(path)
        connection = opened(path, 2.0)
    except (sqlite3.Error, ValueError) as error:
        if "locked" not in str(error):
            return False
        raise _in_use(path) from error
    try:
        (mode,) = connection.execute("pragma journal_mode = delete").fetchone()
        if mode != "delete":
            raise _in_use(path)
        if hash_seed is not None:
            connection.execute(KEEP_SEED, (str(hash_seed).encode(),))
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
