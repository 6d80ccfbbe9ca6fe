"""Is the history one that callers of plain objects could have seen?"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..linearizability import (
    Op,
    Outcome,
    Prepare,
    check,
    faults_of_counter,
    faults_of_queue,
    first_unexplained,
    queue,
    register,
)
from . import history
from .history import Record
from .objects import sealed

#: How much of a history is shown with a violation, and how many violations.
SHOWN_MAX = 40

#: After so many violations no more histories are searched.
ENOUGH = 10

#: What one search may cost; one that is given up is reported as undecided.
STEPS_MAX, SECONDS_MAX = 200_000, 20.0


class Violation(NamedTuple):
    """Something that must not be: what, and the part of the history that shows it."""

    what: str
    part: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n    ".join((self.what, *self.part))


class Findings(NamedTuple):
    """What the checks have found."""

    violations: list[Violation]
    numbers: int
    histories: int
    undecided: list[str]


def judge(records: Iterable[Record], seconds_max: float = 300.0) -> Findings:
    """Check everything; once enough was found, no more is searched for."""
    parts: dict[tuple[str, ...], list[Op]] = defaultdict(list)
    violations = []
    for record in records:
        if record.outcome == history.WRONG:
            violations.append(Violation(f"an unexpected error: {record}"))
        op = record.as_op()
        if op is None:
            continue
        place: tuple[str, ...] = record.target
        if "Dictionary" in record.target[0]:
            # Words of one dictionary do not know of each other.
            name, word, *rest = op.call
            place, op = (*place, word), op._replace(call=(name, *rest))
        parts[place].append(op)
    numbers = 0
    to_search: list[tuple[str, Prepare, list[Op]]] = []
    for place, ops in sorted(parts.items()):
        shown = "/".join(place)
        if place[0] in ("SomeObj", "Ledger"):
            numbers += sum(op.end is not None for op in ops)
            violations += _counter(place[0], shown, ops)
        elif place[0] == "Queue":
            faults = [f"{shown}: {fault}" for fault in faults_of_queue(ops)]
            violations += map(Violation, faults)
            if not faults:
                to_search.append((shown, queue, ops))
        else:
            to_search.append((shown, register, ops))
    undecided = []
    end = time.monotonic() + (SECONDS_MAX if violations else seconds_max)
    for number, (shown, prepare, ops) in enumerate(to_search):
        seconds_left = min(SECONDS_MAX, end - time.monotonic())
        if seconds_left <= 0 or len(violations) >= ENOUGH:
            undecided += [each[0] for each in to_search[number:]]
            break
        found = _explained(shown, prepare, ops, seconds_left)
        if isinstance(found, Violation):
            violations.append(found)
            end = min(end, time.monotonic() + SECONDS_MAX)
        elif not found:
            undecided.append(shown)
    return Findings(violations, numbers, len(parts), undecided)


def _explained(
    shown: str, prepare: Prepare, ops: list[Op], seconds_max: float
) -> Violation | bool:
    """Return whether an order explains it, as far as is known, or a violation."""
    verdict = check(prepare, ops, steps_max=STEPS_MAX, seconds_max=seconds_max)
    if verdict.outcome is not Outcome.VIOLATION:
        return verdict.outcome is Outcome.VALID
    what = f"{shown}: no order of its calls explains the answers"
    found = first_unexplained(prepare, ops, seconds_max=seconds_max)
    if found is None:
        return Violation(what, tuple(map(str, verdict.stuck)))
    op, verdict = found
    lines = [f"the first answer that cannot be: {op}", "explained until then:"]
    lines += map(str, verdict.explained[-SHOWN_MAX // 2 :])
    lines += ["none of these comes next:", *map(str, verdict.stuck)]
    lines += ["of unknown outcome until then:"]
    lines += [
        str(each) for each in ops if each.end is None and each.start <= (op.end or 0)
    ][-SHOWN_MAX:]
    return Violation(what, tuple(lines))


def _counter(class_name: str, shown: str, ops: list[Op]) -> Iterator[Violation]:
    def number_of(op: Op) -> int:
        return int(op.result) if class_name == "SomeObj" else int(op.result[0])

    for fault in faults_of_counter(ops, number_of):
        yield Violation(f"{shown}: {fault}")
    if class_name == "Ledger":
        seen = {op.result[0]: op for op in ops if op.end is not None}
        for number, op in seen.items():
            before = seen.get(number - 1)
            if number > 1 and before is None:
                continue
            seal = "" if before is None else before.result[2]
            if sealed(seal, number, op.result[1]) != op.result[2]:
                yield Violation(f"{shown}: the seal does not follow: {before}; {op}")


class Numbers(NamedTuple):
    """The history in numbers."""

    calls: Counter[str]
    repeats: int
    lost_with_client: int
    longest_s: dict[str, float]
    reasons: Counter[str]


def count(records: Iterable[Record]) -> Numbers:
    """Return the history in numbers."""
    calls: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    repeats = lost = 0
    longest_s: dict[str, float] = {}
    for record in records:
        repeats += record.repeats
        if record.end is None or record.outcome is None:
            lost += 1
            continue
        calls[record.outcome] += 1
        if record.outcome != history.OK:
            reasons[_reason(str(record.value))] += 1
        way = record.who.partition("-")[0]
        passed_s = (record.end - record.start) / 1e9
        longest_s[way] = max(passed_s, longest_s.get(way, 0.0))
    return Numbers(calls, repeats, lost, longest_s, reasons)


def _reason(text: str) -> str:
    """Return the name of the error, or the status of the response."""
    return " ".join(text.partition(":")[0].split()[: 2 if text[0].islower() else 1])
