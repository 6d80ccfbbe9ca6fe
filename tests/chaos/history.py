"""What clients write down, line by line, and how it is read afterwards.

Before a call ``["i", id, time, who, object, call]``, after it ``["o", id, time,
outcome, value, repeats]``. Each line is one ``write`` to the file, so that whatever was
written before a kill -9 is there. Times are those of ``time.monotonic_ns``: one clock
for all.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..linearizability import UNKNOWN, Op

#: How a call ended. ``FAILED``: it is promised that nothing happened. ``WRONG``: in a
#: way that should not be, whatever is killed.
OK, FAILED, UNCLEAR, WRONG = "ok", "failed", "unclear", "wrong"


class Writer:
    """The history of one process."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._descriptor = os.open(path, flags, 0o600)
        self._ids = itertools.count()

    def begin(self, who: str, target: tuple[str, str], call: tuple[Any, ...]) -> int:
        """Note that a call is going to be made; return its id."""
        number = next(self._ids)
        self._write(["i", number, time.monotonic_ns(), who, target, call])
        return number

    def end(self, number: int, outcome: str, value: Any, repeats: int) -> None:
        """Note what came of it."""
        self._write(["o", number, time.monotonic_ns(), outcome, value, repeats])

    def _write(self, fields: list[Any]) -> None:
        os.write(self._descriptor, json.dumps(fields).encode() + b"\n")


class Record(NamedTuple):
    """One call, whole. ``end`` and ``outcome`` are ``None`` if its client died."""

    who: str
    target: tuple[str, str]
    call: tuple[Any, ...]
    start: int
    end: int | None
    outcome: str | None
    value: Any
    repeats: int

    def as_op(self) -> Op | None:
        """Return what a check needs; ``None`` if nothing happened."""
        if self.outcome == FAILED:
            return None
        if self.outcome == OK:
            return Op(self.start, self.end, self.call, self.value, self.who)
        return Op(self.start, None, self.call, UNKNOWN, self.who)


def read(folder: Path) -> Iterator[Record]:
    """Yield all calls of all histories in a folder, by file."""
    for path in sorted(folder.glob("*.history")):
        begun: dict[int, list[Any]] = {}
        for line in path.read_bytes().split(b"\n"):
            try:
                kind, number, *fields = json.loads(line)
            except ValueError:
                # The last line of a client that was killed while it wrote.
                continue
            if kind == "i":
                begun[number] = fields
            else:
                yield _record(begun.pop(number), fields)
        for fields in begun.values():
            yield _record(fields, [None, None, None, 0])


def _record(begun: list[Any], ended: list[Any]) -> Record:
    start, who, target, call = begun
    end, outcome, value, repeats = ended
    place = (target[0], target[1])
    return Record(who, place, tuple(call), start, end, outcome, value, repeats)
