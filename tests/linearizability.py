"""Is there an order of the calls, one at a time, that explains what everybody saw?

The search of Wing and Gong with Lowe's memory of configurations already tried, over the
history of one object, or of one key of it: histories of parts that do not know of each
other are checked one by one. A call whose outcome is unknown may have happened at any
time after its start, or never.

A search is bounded in steps and seconds. One that was given up says so: ``UNDECIDED``
is neither the one nor the other.
"""

from __future__ import annotations

import bisect
import itertools
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol

State = Hashable

_EVER = float("inf")


class _Mark(Enum):
    UNKNOWN = "unknown"
    IMPOSSIBLE = "impossible"


#: The result of a call whose answer nobody has seen.
UNKNOWN = _Mark.UNKNOWN
#: What a model says of a call that cannot have had this result in this state.
IMPOSSIBLE = _Mark.IMPOSSIBLE


class Op(NamedTuple):
    """One call: what was called, by whom, from when to when, and what came of it.

    ``end`` is ``None`` for a call that may happen later, or never; then ``result`` is
    ``UNKNOWN``. One that must have happened before ``end`` may have that result, too.
    """

    start: int
    end: int | None
    call: tuple[Any, ...]
    result: Any
    who: str = ""

    def __str__(self) -> str:
        name, *args = self.call
        shown = ", ".join(map(repr, args))
        result = "?" if self.result is UNKNOWN else repr(self.result)
        end = "…" if self.end is None else f"{self.end / 1e6:.3f}"
        return f"{self.start / 1e6:.3f}-{end} ms {self.who}: {name}({shown}) = {result}"


class Model(Protocol):
    """What one object does when it is called by one caller at a time.

    Made for one history, of which it may make use.
    """

    initial: State

    def step(self, state: State, op: Op) -> State | _Mark:
        """Return the state after ``op``; ``IMPOSSIBLE`` if its result does not fit."""

    def is_safe(self, state: State, op: Op) -> bool:
        """Tell whether ``op``, which is possible now, may as well be the next one.

        That is when every order that has it later stays right if it is moved here, as
        it is with a call that changes nothing.
        """

    def limit(self, op: Op) -> float:
        """Return a number whose least, of all calls left, ``sift`` is to know."""

    def sift(self, state: State, candidates: list[Op], least: float) -> list[Op]:
        """Return those that may come next, the likeliest first."""


#: Makes the model for a history, and returns what of the history matters.
Prepare = Callable[[Iterable[Op]], "tuple[Model, list[Op]]"]


class Outcome(Enum):
    """What a check has found."""

    VALID = "valid"
    VIOLATION = "violation"
    UNDECIDED = "undecided"


class Verdict(NamedTuple):
    """What a check has found, in how many steps; ``explained`` is the order found.

    In a violation it is the longest order that could be found, and ``stuck`` are the
    calls none of which can come next.
    """

    outcome: Outcome
    steps: int
    explained: list[Op]
    stuck: list[Op]


class _Budget:
    """How much may be searched."""

    def __init__(self, steps_max: int, seconds_max: float) -> None:
        self.steps = 0
        self._steps_max = steps_max
        self._end = time.monotonic() + seconds_max

    def spend(self) -> bool:
        """Take one step; tell whether there was one left."""
        self.steps += 1
        if self.steps > self._steps_max:
            return False
        return self.steps % 1024 != 0 or time.monotonic() < self._end


class _Place(NamedTuple):
    """How far an order has come.

    All known calls before ``low`` are in it, and those of the bits in ``mask``, from
    there on; of each kind of unknown call as many as ``used`` says.
    """

    low: int
    mask: int
    used: tuple[int, ...]
    state: State


class _Search:
    """The search through the orders of one history."""

    def __init__(self, model: Model, ops: Iterable[Op], budget: _Budget) -> None:
        self._model = model
        self._budget = budget
        by_start = sorted(ops, key=lambda op: op.start)
        self._known = [op for op in by_start if op.end is not None]
        self._index = {id(op): place for place, op in enumerate(self._known)}
        # Unknown calls of the same arguments are as good as each other, once they have
        # started: the first is always taken first.
        groups: dict[tuple[Any, ...], list[Op]] = {}
        for op in by_start:
            if op.end is None:
                groups.setdefault(op.call, []).append(op)
        self._groups = list(groups.values())
        limits = [model.limit(op) for op in self._known]
        #: The least limit of each known call and all that start after it.
        self._least = list(itertools.accumulate(reversed([*limits, _EVER]), min))[::-1]

    def run(self) -> Verdict:
        """Return what the search finds."""
        start = _Place(0, 0, (0,) * len(self._groups), self._model.initial)
        tried = {start}
        path: list[Op] = []
        best: list[Op] = []
        stuck: list[Op] = self._next_known(start)[0]
        ways = [self._ways(start)]
        if not self._known:
            return Verdict(Outcome.VALID, 0, [], [])
        while ways:
            for op, place in ways[-1]:
                if place in tried:
                    continue
                if not self._budget.spend():
                    return Verdict(Outcome.UNDECIDED, self._budget.steps, best, stuck)
                tried.add(place)
                path.append(op)
                if place.low == len(self._known):
                    return Verdict(Outcome.VALID, self._budget.steps, path, [])
                if len(path) > len(best):
                    best, stuck = list(path), self._next_known(place)[0]
                ways.append(self._ways(place))
                break
            else:
                ways.pop()
                if path:
                    path.pop()
        return Verdict(Outcome.VIOLATION, self._budget.steps, best, stuck)

    def _next_known(self, place: _Place) -> tuple[list[Op], float]:
        """Return the known calls that started before all others left had ended."""
        found, earliest_end = [], _EVER
        mask = place.mask
        for index in range(place.low, len(self._known)):
            op = self._known[index]
            if op.start > earliest_end:
                break
            if not mask & 1:
                assert op.end is not None
                found.append(op)
                earliest_end = min(earliest_end, op.end)
            mask >>= 1
        return found, earliest_end

    def _ways(self, place: _Place) -> Iterator[tuple[Op, _Place]]:
        found, earliest_end = self._next_known(place)
        for op in found:
            if self._model.is_safe(place.state, op):
                state = self._model.step(place.state, op)
                if state is not IMPOSSIBLE:
                    yield op, self._after(place, self._index[id(op)], state)
                    return
        for op in self._model.sift(place.state, found, self._least_left(place)):
            state = self._model.step(place.state, op)
            if state is not IMPOSSIBLE:
                yield op, self._after(place, self._index[id(op)], state)
        for number, group in enumerate(self._groups):
            used = place.used[number]
            if used == len(group) or group[used].start > earliest_end:
                continue
            state = self._model.step(place.state, group[used])
            if state is not IMPOSSIBLE and state != place.state:
                counts = (*place.used[:number], used + 1, *place.used[number + 1 :])
                yield group[used], place._replace(used=counts, state=state)

    def _least_left(self, place: _Place) -> float:
        first, mask, least = place.low, place.mask, _EVER
        while mask:
            if not mask & 1:
                least = min(least, self._model.limit(self._known[first]))
            first, mask = first + 1, mask >> 1
        return min(least, self._least[first])

    def _after(self, place: _Place, index: int, state: State) -> _Place:
        mask = place.mask | 1 << (index - place.low)
        trailing = (~mask & (mask + 1)).bit_length() - 1
        return _Place(place.low + trailing, mask >> trailing, place.used, state)


def check(
    prepare: Prepare,
    history: Iterable[Op],
    *,
    steps_max: int = 1_000_000,
    seconds_max: float = 30.0,
) -> Verdict:
    """Look for an order that explains ``history``."""
    model, ops = prepare(history)
    return _Search(model, ops, _Budget(steps_max, seconds_max)).run()


def first_unexplained(
    prepare: Prepare, history: Sequence[Op], *, seconds_max: float = 30.0
) -> tuple[Op, Verdict] | None:
    """Return the first answer that cannot be explained, and how far one gets with it.

    What is explained up to a moment is explained up to every earlier one. ``None`` if
    everything is explained, or the time was up.
    """
    give_up_at = time.monotonic() + seconds_max
    ends = sorted({op.end for op in history if op.end is not None})
    low, high = 0, len(ends)
    found = None
    while low < high:
        middle = (low + high) // 2
        left_s = give_up_at - time.monotonic()
        if left_s <= 0:
            return None
        moment = ends[middle]
        part = list(until(history, moment))
        verdict = check(prepare, part, seconds_max=left_s)
        if verdict.outcome is Outcome.UNDECIDED:
            return None
        if verdict.outcome is Outcome.VIOLATION:
            high = middle
            found = next(op for op in part if op.end == moment), verdict
        else:
            low = middle + 1
    return found


def until(history: Iterable[Op], moment: int) -> Iterator[Op]:
    """Yield what was known of the history at a moment."""
    for op in history:
        if op.start > moment:
            continue
        if op.end is not None and op.end > moment:
            op = op._replace(end=None, result=UNKNOWN)
        yield op


# Models ------------------------------------------------------------------------------


class Register:
    """One key of a dictionary; ``None`` when it is not there.

    ``get()``, ``put(value)``, ``remove()`` and ``swap(expected, value)`` all return
    what was there before; ``swap`` puts its value only if that was what it expected.
    """

    initial: State = None

    def __init__(self, history: Collection[Op]) -> None:
        #: What found a value that was there only once, and left another one.
        self._changers: dict[Any, list[Op]] = {}
        writers = Counter(map(_written, history))
        for op in history:
            if op.result is UNKNOWN or writers[op.result] != 1 or op.result is None:
                continue
            if self.step(op.result, op) != op.result:
                self._changers.setdefault(op.result, []).append(op)

    def step(self, state: State, op: Op) -> State | _Mark:
        """Return the value after the call."""
        if op.result is not UNKNOWN and op.result != state:
            return IMPOSSIBLE
        name, *args = op.call
        if name == "get":
            return state
        if name == "put":
            return args[0]  # type: ignore[no-any-return]
        if name == "remove":
            return None
        expected, value = args
        return value if state == expected else state

    def is_safe(self, state: State, op: Op) -> bool:
        """Tell whether the call changes nothing."""
        return op.result is not UNKNOWN and self.step(state, op) == state

    def limit(self, op: Op) -> float:
        """Return nothing of interest."""
        return _EVER

    def sift(self, state: State, candidates: list[Op], least: float) -> list[Op]:
        """Return those that found this value, first what has the earliest end.

        Where a value was there only once, what changed it must follow: it is looked
        at together with what wrote it. If it starts after another candidate has ended,
        that one would come too late.
        """
        fitting = []
        for op in candidates:
            if op.result is not UNKNOWN and op.result != state:
                continue
            chain = self._chain(op)
            latest_start = max(each.start for each in chain)
            inside = {state, *(_written(each) for each in chain)}
            others = [each for each in candidates if each.result not in inside]
            if latest_start <= min(map(_by_end, others), default=_EVER):
                fitting.append((min(map(_by_end, chain)), op))
        return [op for _, op in sorted(fitting, key=lambda each: each[0])]

    def _chain(self, op: Op) -> list[Op]:
        chain = [op]
        while len(chain) < _CHAIN_MAX and op.result is not UNKNOWN:
            following = self._changers.get(self.step(op.result, op), ())
            if len(following) != 1:
                break
            op = following[0]
            chain.append(op)
        return chain


#: How far a register's check looks ahead.
_CHAIN_MAX = 100


def register(history: Iterable[Op]) -> tuple[Register, list[Op]]:
    """Prepare the check of a register.

    Every call tells the value before it. So an unknown write whose value nobody saw,
    and no unknown ``swap`` expected, explains nothing and is left out; one whose value
    was seen, and which alone wrote it, has happened before that was seen.
    """
    ops = list(history)
    seen_at: dict[Any, int] = {}
    for op in ops:
        if op.result is not UNKNOWN and op.end is not None:
            earlier = seen_at.get(op.result, op.end)
            seen_at[op.result] = min(earlier, op.end)
    writers = Counter(_written(op) for op in ops)
    kept = [op for op in ops if op.end is not None]
    unknown = [op for op in ops if op.end is None]
    wanted = set(seen_at)
    while True:
        useful = [
            op for op in unknown if op.call[0] != "get" and _written(op) in wanted
        ]
        more = wanted | {op.call[1] for op in useful if op.call[0] == "swap"}
        if more == wanted:
            break
        wanted = more
    for op in useful:
        value = _written(op)
        if value is not None and value in seen_at and writers[value] == 1:
            # A swap that wrote has found what it expected.
            found = op.call[1] if op.call[0] == "swap" else UNKNOWN
            op = op._replace(end=max(seen_at[value], op.start), result=found)
        kept.append(op)
    return Register(kept), kept


def _written(op: Op) -> Any:
    return op.call[-1] if op.call[0] in ("put", "swap") else None


class Queue:
    """First in, first out; ``get()`` returns ``None`` when nothing is there.

    Every value is put once. ``taken``: from when to when each value was got, if it was.
    """

    initial: State = ()

    def __init__(self, taken: dict[Any, Op], *, loses: bool) -> None:
        self._taken = taken
        # What nobody got is behind everything that was, unless it was lost.
        self._never = (-_EVER if loses else _EVER, _EVER)

    def step(self, state: State, op: Op) -> State | _Mark:
        """Return the values after the call."""
        assert isinstance(state, tuple)
        if op.call[0] == "put":
            return (*state, op.call[1])
        if op.result is UNKNOWN:
            # Only what nobody got may have been lost with an answer.
            return state[1:] if state and state[0] not in self._taken else IMPOSSIBLE
        if op.result is None:
            return IMPOSSIBLE if state else state
        return state[1:] if state and state[0] == op.result else IMPOSSIBLE

    def is_safe(self, state: State, op: Op) -> bool:
        """Tell whether it is a get: until the first is taken, nothing else can be."""
        return bool(op.call[0] == "get")

    def limit(self, op: Op) -> float:
        """Return when the value of a put had been got, or the queue been empty."""
        if op.call[0] == "put":
            return self._got(op)[1]
        return _by_end(op) if op.result is None else _EVER

    def sift(self, state: State, candidates: list[Op], least: float) -> list[Op]:
        """Return the puts, first what was got first.

        What was got after another value had been got was put after it, too; and what
        was got after the queue had been empty was put after that.
        """
        puts = [op for op in candidates if op.call[0] == "put"]
        fitting = [op for op in puts if self._got(op)[0] <= least]
        return sorted(fitting, key=lambda op: (self._got(op)[1], _by_end(op)))

    def _got(self, put: Op) -> tuple[float, float]:
        get = self._taken.get(put.call[1])
        if get is None or get.end is None:
            return self._never
        return get.start, get.end


def queue(history: Iterable[Op]) -> tuple[Queue, list[Op]]:
    """Prepare the check of a queue.

    An unknown put whose value nobody got explains nothing and is left out: had it
    happened, some unknown get would have taken it, and both can be left out. One whose
    value was got has happened before. Unknown gets matter only if a value is missing.
    """
    ops = list(history)
    taken = {
        op.result: op
        for op in ops
        if op.call[0] == "get" and op.result is not None and op.result is not UNKNOWN
    }
    kept = []
    missing = 0
    for op in ops:
        if op.call[0] == "put":
            get = taken.get(op.call[1])
            if op.end is None:
                if get is None or get.end is None:
                    continue
                op = op._replace(end=max(get.end, op.start))
            missing += get is None
        kept.append(op)
    if not missing:
        kept = [op for op in kept if op.end is not None]
    loses = any(op.end is None for op in kept)
    return Queue(taken, loses=loses), kept


def _by_end(op: Op) -> float:
    return _EVER if op.end is None else op.end


def faults_of_queue(history: Iterable[Op]) -> list[str]:
    """Return what contradicts a queue and is found without a search.

    Got twice, never put, lost, out of order, said to be empty while something was in
    it. Where no get has an unknown outcome, there is nothing else that can be wrong;
    otherwise a search may still find more.
    """
    put: dict[Any, Op] = {}
    got: dict[Any, Op] = {}
    empty = []
    faults = []
    unknown_gets = 0
    for op in history:
        if op.call[0] == "put":
            put[op.call[1]] = op
        elif op.end is None:
            unknown_gets += 1
        elif op.result is None:
            empty.append(op)
        elif op.result in got:
            faults.append(f"got twice: {got[op.result]}; {op}")
        else:
            got[op.result] = op
    for value, op in got.items():
        if value not in put or _by_end(op) < put[value].start:
            faults.append(f"got before it was put, if ever: {op}")
    lost = [op for value, op in put.items() if value not in got and op.end is not None]
    last_empty = max((op.start for op in empty), default=0)
    vanished = [op for op in lost if _by_end(op) < last_empty]
    if len(vanished) > unknown_gets:
        faults.append(
            f"{len(vanished)} values are not there any more, but only {unknown_gets} "
            f"gets have an unknown outcome; one of them: {vanished[0]}"
        )
    stays = [
        _Stay(_by_end(put[value]), get.start, put[value], _by_end(get))
        for value, get in got.items()
        if value in put
    ]
    if not unknown_gets:
        stays += [_Stay(_by_end(op), _EVER, op, _EVER) for op in lost]
    stays.sort(key=lambda stay: stay.since)
    return faults + list(_overtaken(stays)) + list(_not_empty(stays, empty))


class _Stay(NamedTuple):
    """A value that was in the queue from ``since`` to ``until`` for certain."""

    since: float
    until: float
    put: Op
    taken: float


def _longer(one: _Stay, other: _Stay) -> _Stay:
    return one if one.until >= other.until else other


def _overtaken(stays: list[_Stay]) -> Iterator[str]:
    """Yield what was put after something else, and taken before it."""
    ends = [stay.since for stay in stays]
    longest = list(itertools.accumulate(stays, _longer))
    for stay in stays:
        before = bisect.bisect_left(ends, stay.put.start)
        if before and longest[before - 1].until > stay.taken:
            overtaken = longest[before - 1].put
            yield f"got before what had been put before: {stay.put}; {overtaken}"


def _not_empty(stays: list[_Stay], empty: list[Op]) -> Iterator[str]:
    """Yield the answers ``empty`` during which something was there at every moment."""
    for op in empty:
        moment = float(op.start)
        for stay in stays:
            if stay.since >= moment:
                break
            moment = max(moment, stay.until)
        if moment > _by_end(op):
            yield f"said to be empty while it was not: {op}"


# A counter needs no search -----------------------------------------------------------


def faults_of_counter(
    history: Iterable[Op], number_of: Callable[[Op], int] = lambda op: int(op.result)
) -> list[str]:
    """Return what contradicts a counter whose every call returns the next number.

    Each number at most once; a call that started after another had ended has the larger
    one; and each number that nobody got was given to a call of unknown outcome, of its
    own, which started before a call with a larger number ended.
    """
    acknowledged: dict[int, Op] = {}
    unknown = []
    faults = []
    for op in history:
        if op.end is None:
            unknown.append(op)
            continue
        number = number_of(op)
        if number in acknowledged:
            faults.append(f"{number} was given twice: {acknowledged[number]}; {op}")
        acknowledged[number] = op
    if not acknowledged:
        return faults
    faults += _reversals(acknowledged)
    unknown.sort(key=lambda op: op.start, reverse=True)
    limits = _ends_of_larger(acknowledged)
    for number in range(1, max(acknowledged)):
        if number in acknowledged:
            continue
        if not unknown or unknown[-1].start > limits[number]:
            faults.append(
                f"{number} was skipped: no call of unknown outcome can have got it"
            )
        else:
            unknown.pop()
    return faults


def _ends_of_larger(acknowledged: dict[int, Op]) -> dict[int, float]:
    limits: dict[int, float] = {}
    earliest = _EVER
    for number in range(max(acknowledged), 0, -1):
        limits[number] = earliest
        if number in acknowledged:
            earliest = min(earliest, _by_end(acknowledged[number]))
    return limits


def _reversals(acknowledged: dict[int, Op]) -> Iterator[str]:
    earliest: Op | None = None
    for number in sorted(acknowledged, reverse=True):
        op = acknowledged[number]
        if earliest is not None and _by_end(earliest) < op.start:
            yield f"a later call got the smaller number: {earliest}; {op}"
        if earliest is None or _by_end(op) < _by_end(earliest):
            earliest = op
