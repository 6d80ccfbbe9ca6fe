"""One moment of a store, beside a running manager or without one: read, and copied."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from ..data_folder import STATE_FILE, hash_seed_in_file, sync
from ..errors import StoreError
from .database import (
    KEEP_SEED,
    NEW_EPOCH,
    TABLES,
    StoredRow,
    damage_in,
    look_at,
    unusable,
)

#: Pages that are copied at a stretch; a signal is heard in between.
_COPIED_PAGES = 1024


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
            self._connection = _opened_for_reading(path, busy_timeout_s)
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
        problems += [f"it has no table {name}" for name in sorted(TABLES - tables)]
        return problems + damage_in(self._connection, "integrity_check")

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
                copy.execute(NEW_EPOCH, (os.urandom(8),))
                if hash_seed is not None:
                    copy.execute(KEEP_SEED, (str(hash_seed).encode(),))
                problems = damage_in(copy, "quick_check")
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


def _opened_for_reading(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """Return a connection that only reads.

    Beside a file that a manager keeps, SQLite makes two others, even to read it: its
    log and the index of that. In a folder that cannot be written, such as a snapshot
    that is mounted read-only, it is told that nobody else has the file open. Then it
    needs no log, and of one that is there it keeps the index to itself. Where both are,
    a manager may be running, and they are used.
    """
    log, index, journal = (
        path.with_name(path.name + ending).exists()
        for ending in ("-wal", "-shm", "-journal")
    )
    address, is_alone = f"{path.absolute().as_uri()}?mode=ro", False
    if not os.access(path.parent, os.W_OK):
        is_alone = log and not index
        if is_alone:
            address += "&vfs=unix-none"
        elif not log and not journal:
            address += "&immutable=1"
    connection = sqlite3.connect(
        address, uri=True, timeout=busy_timeout_s, isolation_level=None
    )
    if is_alone:
        connection.execute("pragma locking_mode = exclusive")
    return connection


def hash_seed_of(data_dir: Path) -> int | None:
    """Return the hash seed of a data folder; ``None`` if it has none yet.

    It is kept in the state, so that both are replaced at once; in a folder of a former
    release it is in a file. Raises ``ConfigError`` when it cannot be read.
    """
    path = data_dir / STATE_FILE
    try:
        about = look_at(path) if path.exists() else {}
        if "hash_seed" in about:
            return int(about["hash_seed"])
    except (sqlite3.Error, OSError, ValueError) as error:
        raise unusable(path, error) from error
    return hash_seed_in_file(data_dir)
