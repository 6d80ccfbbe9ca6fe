"""Waiting without sleeping at first: when it looks, when it sleeps, when it rests."""

from __future__ import annotations

from typing import Any

import pytest

from state_server import busy_poll
from state_server.busy_poll import BusyPoll

EVENT = [(7, 1)]


class Script:
    """A poll that finds something at its n-th look, and a clock that it moves."""

    def __init__(self, finds_at: int) -> None:
        self.finds_at = finds_at
        self.timeouts: list[float] = []
        self.now_s = 0.0
        self.offers = 0
        #: How long others keep a processor that they are offered.
        self.others_s = 0.0

    def poll(self, timeout: float) -> list[Any]:
        """Look once, which takes a microsecond."""
        self.timeouts.append(timeout)
        self.now_s += 1e-6
        return EVENT if timeout or len(self.timeouts) >= self.finds_at else []

    def monotonic(self) -> float:
        """Return the time of the script."""
        return self.now_s

    def offer_processor(self) -> None:
        """Let others have the processor."""
        self.offers += 1
        self.now_s += self.others_s

    def looks_at(self, waits: int, poll: BusyPoll) -> list[int]:
        """Wait so often; return which of the waits began with a look."""
        found = []
        for number in range(waits):
            self.timeouts.clear()
            poll(3.0)
            if self.timeouts[0] == 0:
                found.append(number)
        return found


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what makes a busy poll over a script, with the script's clock."""

    def make(script: Script, busy_s: float = 50e-6, **options: Any) -> BusyPoll:
        monkeypatch.setattr(busy_poll, "monotonic", script.monotonic)
        monkeypatch.setattr(busy_poll, "_offer_processor", script.offer_processor)
        return BusyPoll(script.poll, busy_s, **options)

    return make


def test_what_comes_at_once_is_found_without_sleeping(make: Any) -> None:
    """Nothing but looks with no timeout while the moment lasts, however often."""
    script = Script(finds_at=5)
    poll = make(script)
    assert poll(3.0) == EVENT
    assert script.timeouts == [0] * 5
    assert script.looks_at(50, poll) == list(range(50))


def test_after_the_moment_it_sleeps_for_the_timeout(make: Any) -> None:
    """The moment is bounded, and what is left of the wait is slept."""
    script = Script(finds_at=10**6)
    assert make(script)(3.0) == EVENT
    looks = len(script.timeouts) - 1
    assert script.timeouts == [0] * looks + [3.0]
    assert 48 <= looks <= 52


def test_where_others_want_the_processor_it_sleeps_sooner(make: Any) -> None:
    """A quarter of the moment, one offer, and whoever took it keeps it."""
    script = Script(finds_at=10**6)
    script.others_s = 1e-3
    assert make(script, 200e-6)(3.0) == EVENT
    assert script.offers == 1
    assert 48 <= len(script.timeouts) - 1 <= 52


def test_an_idle_processor_is_offered_now_and_then_only(make: Any) -> None:
    """Each offer is a system call that nobody needs as long as something comes."""
    script = Script(finds_at=120)
    assert make(script, 200e-6)(3.0) == EVENT
    assert script.offers == 2
    assert 3.0 not in script.timeouts


def test_where_no_processor_can_be_offered_it_sleeps_sooner(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell there that others do not want it."""
    script = Script(finds_at=10**6)
    poll = make(script, 200e-6)
    monkeypatch.setattr(busy_poll, "_offer_processor", None)
    poll(3.0)
    assert 48 <= len(script.timeouts) - 1 <= 52


def test_what_is_in_vain_is_tried_less_and_less(make: Any) -> None:
    """Each moment in vain doubles the pause, and one that was not ends that."""
    script = Script(finds_at=10**6)
    poll = make(script)
    assert script.looks_at(120, poll) == [0, 16, 47, 108]
    script.looks_at(120, poll)
    script.finds_at = 3
    quick = script.looks_at(4000, poll)
    assert quick == list(range(quick[0], 4000))
    script.finds_at = 10**6
    assert script.looks_at(20, poll) == [0, 16]


def test_the_pause_is_bounded(make: Any) -> None:
    """However long it was in vain, now and then it looks again."""
    script = Script(finds_at=10**6)
    poll = make(script)
    script.looks_at(10_000, poll)
    assert 2 <= len(script.looks_at(5_000, poll)) <= 3


@pytest.mark.parametrize(("busy_s", "timeout"), [(0.0, 3.0), (50e-6, 0.0)])
def test_it_looks_once_only_when_asked_for_no_more(
    make: Any, busy_s: float, timeout: float
) -> None:
    """Without a moment it sleeps at once; with no time to wait it only looks."""
    script = Script(finds_at=10**6)
    make(script, busy_s)(timeout)
    assert script.timeouts == [timeout]


def test_beside_other_threads_it_sleeps_at_once(make: Any) -> None:
    """Looking keeps the interpreter from the others, who may well have work to do."""
    script = Script(finds_at=3)
    alone = False
    poll = make(script, is_alone=lambda: alone)
    assert script.looks_at(100, poll) == []
    alone = True
    assert script.looks_at(100, poll)[0] < 16
