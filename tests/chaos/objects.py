"""The shared classes of the chaos run, and what its manager counts or does without.

Loaded with ``--objects tests.chaos.objects``. ``CHAOS_COUNT`` names a file that gets
one letter for each remembered reply that was given again: ``d`` where the call was
first sent to a manager that has ended, so that the reply came from disk, ``m``
otherwise. A file, because a manager that is killed takes its own numbers along.

``CHAOS_WITHOUT`` names safeties that are switched off, to show that the run notices.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import state_server
from state_server import readonly, share
from state_server.host import Host
from state_server.store import SqliteStore

from ..faults import hooks


@share
class Dictionary:
    """Words and their values; every call returns the value before it."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    @readonly
    def get(self, word: str) -> str | None:
        """Return the value."""
        return self.values.get(word)

    def put(self, word: str, value: str) -> str | None:
        """Set the value."""
        before = self.values.get(word)
        self.values[word] = value
        return before

    def remove(self, word: str) -> str | None:
        """Remove the value."""
        return self.values.pop(word, None)

    def swap(self, word: str, expected: str | None, value: str) -> str | None:
        """Set the value if it is the expected one."""
        before = self.values.get(word)
        if before == expected:
            self.values[word] = value
        return before


@share(durable="journal")
class JournalDictionary(Dictionary):
    """The same, kept as a journal."""


@share
class Queue:
    """First in, first out."""

    def __init__(self) -> None:
        self.values: deque[str] = deque()

    def put(self, value: str) -> None:
        """Append a value."""
        self.values.append(value)

    def get(self) -> str | None:
        """Take the first value."""
        return self.values.popleft() if self.values else None


@share(durable="journal")
class Ledger:
    """Counts in a journal, with a seal over all random numbers that were drawn."""

    def __init__(self) -> None:
        self.number = 0
        self.seal = ""

    def query(self) -> tuple[int, float, str]:
        """Return the next number, a random one, and the seal over all until now."""
        drawn = state_server.random()
        self.number += 1
        self.seal = sealed(self.seal, self.number, drawn)
        return self.number, drawn, self.seal


def sealed(seal: str, number: int, drawn: float) -> str:
    """Return the seal that follows ``seal``."""
    return hashlib.sha256(f"{seal} {number} {drawn!r}".encode()).hexdigest()[:16]


def _count_remembered(path: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    remembered = Host._remembered

    def counting(self: Host, call: Any, memory: Any, destination: Any) -> Any:
        payload = remembered(self, call, memory, destination)
        if payload is not None:
            os.write(descriptor, b"m" if call.first_boot == self.boot_id else b"d")
        return payload

    Host._remembered = counting  # type: ignore[method-assign]


def _without_memory() -> None:
    """Have the manager run a call again whenever it is sent again."""
    admit = Host._admit

    def forgetful(self: Host, call: Any, destination: Any) -> Any:
        if call.lane is not None:
            memory = self._lanes.get(call.lane, destination)
            if memory.ticket is None:
                memory.number = 0
        return admit(self, call, destination)

    Host._admit = forgetful  # type: ignore[method-assign]


def _without_gate() -> None:
    """Have replies leave before the commit, and the disk be slow."""
    hooks._SAFETIES["gate"]()
    commit = SqliteStore.commit

    def slow(self: SqliteStore, *args: Any) -> None:
        time.sleep(0.05)
        commit(self, *args)

    SqliteStore.commit = slow  # type: ignore[method-assign, assignment]


def _without(safety: str) -> None:
    own: dict[str, Callable[[], None]] = {
        "memory": _without_memory,
        "gate": _without_gate,
    }
    if safety in own:
        own[safety]()
    else:
        hooks._SAFETIES[safety]()


if "CHAOS_COUNT" in os.environ:
    _count_remembered(os.environ["CHAOS_COUNT"])
for _safety in os.environ.get("CHAOS_WITHOUT", "").split():
    _without(_safety)
