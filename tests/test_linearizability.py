"""The checker itself: what is right is accepted, what was planted is found."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .linearizability import (
    UNKNOWN,
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


def outcome(prepare: Prepare, *ops: Op) -> Outcome:
    """Return what the check says of a history."""
    return check(prepare, ops).outcome


def op(start: int, end: int | None, *call: Any, result: Any = UNKNOWN) -> Op:
    """Return one call of a history."""
    return Op(start, end, call, result)


# Planted by hand ---------------------------------------------------------------------


def test_a_stale_read_is_found() -> None:
    """A value that was overwritten before the read began is not read."""
    history = [
        op(0, 1, "put", "a", result=None),
        op(2, 3, "put", "b", result="a"),
        op(4, 5, "get", result="a"),
    ]
    assert outcome(register, *history) is Outcome.VIOLATION
    overlapping = history[2]._replace(start=2)
    assert outcome(register, *history[:2], overlapping) is Outcome.VALID


def test_a_lost_update_is_found() -> None:
    """Two swaps from the same value cannot both have found it."""
    history = [
        op(0, 1, "put", "a", result=None),
        op(2, 5, "swap", "a", "b", result="a"),
        op(2, 5, "swap", "a", "c", result="a"),
    ]
    assert outcome(register, *history) is Outcome.VIOLATION
    second_failed = history[2]._replace(result="b")
    assert outcome(register, *history[:2], second_failed) is Outcome.VALID


def test_a_write_that_was_lost_is_found() -> None:
    """What was put is there for whoever reads afterwards."""
    history = [op(0, 1, "put", "a", result=None), op(2, 3, "get", result=None)]
    assert outcome(register, *history) is Outcome.VIOLATION


def test_a_write_made_twice_is_found() -> None:
    """A put that happens again after another one shows itself."""
    history = [
        op(0, 9, "put", "a", result=None),
        op(1, 2, "put", "b", result="a"),
        op(3, 4, "get", result="a"),
    ]
    assert outcome(register, *history) is Outcome.VIOLATION


@pytest.mark.parametrize("seen", ["a", "b", None])
def test_an_unknown_write_may_have_happened_or_not(seen: str | None) -> None:
    """Until somebody saw it, both are possible; and it may happen late."""
    history = [
        op(0, 1, "put", "a", result=None),
        op(2, None, "put", "b"),
        op(2, None, "remove"),
        op(5, 6, "get", result=seen),
    ]
    assert outcome(register, *history) is Outcome.VALID
    back_again = op(7, 8, "get", result="a")
    expected = Outcome.VALID if seen == "a" else Outcome.VIOLATION
    assert outcome(register, *history, back_again) is expected


def test_an_unknown_write_does_not_happen_before_it_starts() -> None:
    """The future explains nothing."""
    history = [op(0, 1, "get", result="a"), op(2, None, "put", "a")]
    assert outcome(register, *history) is Outcome.VIOLATION


def test_an_unknown_swap_may_have_led_from_one_unknown_value_to_the_next() -> None:
    """A value that nobody saw matters if an unknown swap expected it."""
    history = [
        op(0, None, "put", "a"),
        op(0, None, "swap", "a", "b"),
        op(5, 6, "get", result="b"),
    ]
    assert outcome(register, *history) is Outcome.VALID
    assert outcome(register, *history[1:]) is Outcome.VIOLATION


def test_a_double_dequeue_is_found() -> None:
    """One value goes to one caller."""
    history = [
        op(0, 1, "put", 1, result=None),
        op(2, 3, "get", result=1),
        op(2, 3, "get", result=1),
    ]
    assert outcome(queue, *history) is Outcome.VIOLATION
    assert len(faults_of_queue(history)) == 1
    assert faults_of_queue(history[:2]) == []


def test_a_reordering_is_found() -> None:
    """What was put first is got first."""
    history = [
        op(0, 1, "put", 1, result=None),
        op(2, 3, "put", 2, result=None),
        op(4, 5, "get", result=2),
        op(6, 7, "get", result=1),
    ]
    assert outcome(queue, *history) is Outcome.VIOLATION
    found = first_unexplained(queue, history)
    assert found is not None
    assert found[0] == history[2]
    together = history[1]._replace(start=0)
    assert outcome(queue, history[0], together, *history[2:]) is Outcome.VALID


def test_a_queue_that_says_empty_in_vain_is_found() -> None:
    """A value that was put and not got yet is there."""
    history = [op(0, 1, "put", 1, result=None), op(2, 3, "get", result=None)]
    assert outcome(queue, *history) is Outcome.VIOLATION
    assert faults_of_queue(history) != []
    taken = op(0, None, "get")
    assert outcome(queue, *history, taken) is Outcome.VALID
    assert faults_of_queue([*history, taken]) == []


def test_a_value_from_nowhere_is_found() -> None:
    """Only what was put is got."""
    history = [op(2, 3, "get", result=1)]
    assert outcome(queue, *history) is Outcome.VIOLATION
    assert faults_of_queue(history) != []


def test_a_search_that_is_too_long_says_so() -> None:
    """Giving up is neither yes nor no."""
    ops = [op(0, 100, "put", n, result=None) for n in range(12)]
    ops += [op(101 + n, 101 + n, "get", result=n) for n in range(12)]
    assert check(queue, ops).outcome is Outcome.VALID
    assert check(queue, ops, steps_max=5).outcome is Outcome.UNDECIDED


def test_the_counters_faults_are_found() -> None:
    """Twice, skipped, and out of order; unknown calls account for what is missing."""
    good = [op(0, 10, "query", result=2), op(5, 15, "query", result=1)]
    assert faults_of_counter(good) == []
    assert "twice" in faults_of_counter([*good, op(20, 21, "query", result=2)])[0]
    late = op(20, 21, "query", result=4)
    assert "3 was skipped" in faults_of_counter([*good, late])[0]
    assert faults_of_counter([*good, late, op(1, None, "query")]) == []
    assert faults_of_counter([*good, late, op(22, None, "query")]) != []
    early = op(30, 31, "query", result=3)
    faults = faults_of_counter([*good, late, early])
    assert len(faults) == 1
    assert "smaller" in faults[0]


# Histories of a real object ----------------------------------------------------------


class Words:
    """One key of a dictionary."""

    def __init__(self) -> None:
        self.value: Any = None

    def get(self) -> Any:
        """Return the value."""
        return self.value

    def put(self, value: Any) -> Any:
        """Set the value; return the one before."""
        before, self.value = self.value, value
        return before

    def remove(self) -> Any:
        """Remove the value; return it."""
        return self.put(None)

    def swap(self, expected: Any, value: Any) -> Any:
        """Set the value if it is the expected one; return the one before."""
        return self.put(value) if self.value == expected else self.value


class Line:
    """A queue."""

    def __init__(self) -> None:
        self.values: deque[Any] = deque()

    def put(self, value: Any) -> None:
        """Append a value."""
        self.values.append(value)

    def get(self) -> Any:
        """Take the first value."""
        return self.values.popleft() if self.values else None


class Counts:
    """A counter."""

    def __init__(self) -> None:
        self.number = 0

    def query(self) -> int:
        """Return the next number."""
        self.number += 1
        return self.number


def call_of_register(chance: random.Random, number: int) -> tuple[Any, ...]:
    """Return a call with a value of its own."""
    name = chance.choice(["get", "put", "remove", "swap"])
    if name == "put":
        return name, number
    if name == "swap":
        return name, chance.choice([None, *range(max(0, number - 4), number)]), number
    return (name,)


def call_of_queue(chance: random.Random, number: int) -> tuple[Any, ...]:
    """Return a call with a value of its own."""
    return ("put", number) if chance.random() < 0.5 else ("get",)


def recorded(
    target: Any,
    make_call: Callable[[random.Random, int], tuple[Any, ...]],
    chance: random.Random,
    *,
    calls: int,
    callers: int,
    unknown: float = 0.0,
) -> list[Op]:
    """Return what callers would record who call a real object, all at the same time.

    Each call takes effect at a moment between its start and its end. Some callers are
    lost in the middle of one, whose effect then comes at any time later, or never.
    """
    free = [(0.0, caller) for caller in range(callers)]
    pending: list[tuple[float, float, float | None, tuple[Any, ...], bool]] = []
    for number in range(calls):
        start, caller = heapq.heappop(free)
        call = make_call(chance, number)
        if chance.random() < unknown:
            moment = start + chance.expovariate(0.3)
            happens = chance.random() < 0.6
            pending.append((moment, start, None, call, happens))
            heapq.heappush(free, (start + 1, caller))
            continue
        moment = start + chance.expovariate(1)
        end = moment + chance.expovariate(1)
        pending.append((moment, start, end, call, True))
        heapq.heappush(free, (end + chance.expovariate(5), caller))
    history = []
    for _, start, until, call, happens in sorted(pending, key=lambda each: each[0]):
        result = getattr(target, call[0])(*call[1:]) if happens else UNKNOWN
        if until is None:
            history.append(Op(int(start * 1e6), None, call, UNKNOWN))
        else:
            history.append(Op(int(start * 1e6), int(until * 1e6) + 1, call, result))
    return history


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    calls=st.integers(1, 120),
    callers=st.integers(1, 16),
    unknown=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_what_a_real_object_did_is_accepted(
    seed: int, calls: int, callers: int, unknown: float
) -> None:
    """However the calls overlap, and whoever is lost."""
    options: dict[str, Any] = {"calls": calls, "callers": callers, "unknown": unknown}
    chance = random.Random(seed)
    words = recorded(Words(), call_of_register, chance, **options)
    assert check(register, words).outcome is Outcome.VALID
    line = recorded(Line(), call_of_queue, chance, **options)
    assert faults_of_queue(line) == []
    assert check(queue, line).outcome is Outcome.VALID
    counts = recorded(Counts(), lambda *_: ("query",), chance, **options)
    assert faults_of_counter(counts) == []


def by_all_orders(target: Callable[[], Any], history: list[Op]) -> bool:
    """Tell by trying everything whether an order explains a short history."""

    def explained(done: list[Op], left: list[Op]) -> bool:
        known = [each for each in left if each.end is not None]
        if not known:
            return True
        earliest = min(each.end for each in known if each.end is not None)
        for each in left:
            if each.start > earliest:
                continue
            fresh = target()
            for former in done:
                getattr(fresh, former.call[0])(*former.call[1:])
            result = getattr(fresh, each.call[0])(*each.call[1:])
            if each.result is not UNKNOWN and each.result != result:
                continue
            if explained([*done, each], [other for other in left if other is not each]):
                return True
        return False

    return explained([], history)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), wrong=st.booleans())
def test_the_search_agrees_with_trying_everything(seed: int, wrong: bool) -> None:
    """On short histories, true ones and ones with two answers exchanged."""
    chance = random.Random(seed)
    options: dict[str, Any] = {"calls": 6, "callers": 3, "unknown": 0.25}
    for target, make_call, prepare in (
        (Words, call_of_register, register),
        (Line, call_of_queue, queue),
    ):
        history = recorded(target(), make_call, chance, **options)
        if wrong:
            history = exchanged(history, chance) or history
        expected = by_all_orders(target, history)
        found = check(prepare, history).outcome
        if prepare is queue and not any(each.end is None for each in history):
            assert bool(faults_of_queue(history)) is not expected, history
        if prepare is queue and faults_of_queue(history):
            assert not expected, history
        assert found is (Outcome.VALID if expected else Outcome.VIOLATION), history


def exchanged(history: list[Op], chance: random.Random) -> list[Op] | None:
    """Return the history with the answers of two calls exchanged."""
    known = [n for n, each in enumerate(history) if each.end is not None]
    pairs = [
        (one, other)
        for one in known
        for other in known
        if history[one].call[0] == history[other].call[0]
        and history[one].result != history[other].result
    ]
    if not pairs:
        return None
    one, other = chance.choice(pairs)
    changed = list(history)
    changed[one] = history[one]._replace(result=history[other].result)
    changed[other] = history[other]._replace(result=history[one].result)
    return changed


@pytest.mark.parametrize(
    ("target", "make_call", "prepare"),
    [(Words, call_of_register, register), (Line, call_of_queue, queue)],
    ids=["register", "queue"],
)
def test_exchanged_answers_are_mostly_found(
    target: Callable[[], Any], make_call: Any, prepare: Prepare
) -> None:
    """Two answers that were exchanged can seldom be explained, and never hang it."""
    chance = random.Random(5)
    found = tried = 0
    for _ in range(40):
        history = recorded(
            target(), make_call, chance, calls=150, callers=8, unknown=0.02
        )
        changed = exchanged(history, chance)
        if changed is not None:
            tried += 1
            if prepare is queue and faults_of_queue(changed):
                found += 1
                continue
            verdict = check(prepare, changed, steps_max=200_000)
            found += verdict.outcome is Outcome.VIOLATION
    assert tried > 30
    assert found > 0.8 * tried, (found, tried)


def test_a_long_history_of_many_callers_is_decided() -> None:
    """As long as the chaos run's, and longer, in little time."""
    chance = random.Random(7)
    for target, make_call, prepare in (
        (Words, call_of_register, register),
        (Line, call_of_queue, queue),
    ):
        history = recorded(
            target(), make_call, chance, calls=3000, callers=24, unknown=0.01
        )
        verdict = check(prepare, history)
        assert verdict.outcome is Outcome.VALID, verdict.steps
