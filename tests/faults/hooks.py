"""Objects for real managers that crash on purpose, or do without a safety of theirs.

Loaded with ``--objects tests.faults.hooks:Numbers``. ``CRASH_AT`` names a point and
``CRASH_FLAG`` a file that holds how many times the point is still passed; the process
ends there without a word, once: the file is removed first. ``WITHOUT`` names safeties
that are switched off, to show that tests notice.
"""

from __future__ import annotations

import functools
import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from state_server.engine.connection import Connection
from state_server.host import Host
from state_server.keeping import StateKeeper
from state_server.keeping.commits import Committer
from state_server.store import SqliteStore
from state_server.wire import DONE, kind_of

#: As a process that was killed with -9 would look to its parent's shell.
CRASHED = 137


class Numbers:
    """Gives each number once, and remembers for whom."""

    def __init__(self) -> None:
        self.token = random.SystemRandom().randrange(2**60)
        self.last = 0
        self.given: dict[str, int] = {}

    def next(self, who: str = "") -> int:
        """Return the next number."""
        self.last += 1
        if who:
            self.given[who] = self.given.get(who, 0) + 1
        return self.last

    def fail(self) -> None:
        """Raise after a change."""
        self.last += 1000
        raise LookupError(self.last)

    def get(self) -> int:
        """Return the last number."""
        return self.last

    def times(self) -> dict[str, int]:
        """Return how many numbers each one got."""
        return self.given

    def born_as(self) -> int:
        """Return what chance said when the object was built."""
        return self.token


def crash(point: str) -> None:
    """End the process if this is the point and its time has come."""
    if os.environ.get("CRASH_AT") != point:
        return
    flag = Path(os.environ["CRASH_FLAG"])
    try:
        left = int(flag.read_text())
    except FileNotFoundError:
        return
    if left > 0:
        flag.write_text(str(left - 1))
        return
    flag.unlink()
    os._exit(CRASHED)


def _around(owner: type, name: str, before: str = "", after: str = "") -> None:
    function: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        crash(before)
        result = function(*args, **kwargs)
        crash(after)
        return result

    setattr(owner, name, wrapped)


class _Writer:
    """The writer's connection to SQLite, with points inside a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *args: Any) -> Any:
        if statement == "commit" and self._replies:
            crash("before COMMIT")
        result = self._connection.execute(statement, *args)
        if statement == "begin immediate":
            crash("after BEGIN")
            self._replies = False
        self._note(statement)
        return result

    def executemany(self, statement: str, *args: Any) -> Any:
        result = self._connection.executemany(statement, *args)
        self._note(statement)
        return result

    def _note(self, statement: str) -> None:
        if "into objects" in statement:
            crash("after the objects were written")
        if "into replies" in statement:
            self._replies = True

    _replies = False


def _wrap_deliveries() -> None:
    deliver = Connection.deliver

    def wrapped(self: Connection, payload: bytes) -> None:
        is_result = kind_of(payload) == DONE
        if is_result:
            crash("before the reply")
        deliver(self, payload)
        if is_result:
            crash("after the reply")

    Connection.deliver = wrapped  # type: ignore[method-assign]


def _wrap_preparation() -> None:
    prepare = SqliteStore._prepare

    def wrapped(self: SqliteStore) -> bytes:
        crash("before recovery")
        epoch = prepare(self)
        crash("after recovery")
        self._writer = _Writer(self._writer)  # type: ignore[assignment]
        return epoch

    SqliteStore._prepare = wrapped  # type: ignore[method-assign]


def _install() -> None:
    _around(Committer, "stage", "before staging", "after staging")
    _around(SqliteStore, "commit", "before the transaction", "after the commit")
    _around(SqliteStore, "reply_of", "before a reply is recalled")
    _around(Host, "start", "before the writer starts")
    _wrap_deliveries()
    _wrap_preparation()


def _without_replies() -> None:
    commit = SqliteStore.commit

    def wrapped(self: SqliteStore, changes: Any, _: Any, forgotten: Any) -> None:
        commit(self, changes, (), forgotten)

    SqliteStore.commit = wrapped  # type: ignore[method-assign]


def _without_fence() -> None:
    SqliteStore.fence = lambda self: None  # type: ignore[method-assign]


def _without_rollback() -> None:
    StateKeeper.undo = lambda self, **_: None  # type: ignore[method-assign]


def _without_gate() -> None:
    gate = Host._gate

    def wrapped(self: Host, *args: Any) -> Any:
        payload, _ = gate(self, *args)
        batch = args[0].batch
        if batch is not None:
            batch.waiting.clear()
        return payload, None

    Host._gate = wrapped  # type: ignore[method-assign]


def _without_sync() -> None:
    prepare = SqliteStore._prepare

    def wrapped(self: SqliteStore) -> bytes:
        epoch = prepare(self)
        self._writer.execute("pragma synchronous = off")
        return epoch

    SqliteStore._prepare = wrapped  # type: ignore[method-assign]


_SAFETIES = {
    "replies": _without_replies,
    "fence": _without_fence,
    "rollback": _without_rollback,
    "gate": _without_gate,
    "sync": _without_sync,
}

# Only a manager asks for faults; a test that imports this module changes nothing.
if "CRASH_AT" in os.environ:
    _install()
for _safety in os.environ.get("WITHOUT", "").split():
    _SAFETIES[_safety]()
