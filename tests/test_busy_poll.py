"""Waiting without sleeping at first: when it looks, when it sleeps, when it rests."""

from __future__ import annotations

import os
from typing import Any

import pytest

from state_server import busy_poll
from state_server.busy_poll import BusyPoll

EVENT = [(7, 1)]

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_yield"), reason="this platform cannot give way"
)


class Script:
    """A poll that finds something at its n-th look, and a clock that it moves."""

    def __init__(self, finds_at: int, look_s: float = 1e-6) -> None:
        self.finds_at = finds_at
        self.look_s = look_s
        self.timeouts: list[float] = []
        self.now_s = 0.0

    def poll(self, timeout: float) -> list[Any]:
        """Look once."""
        self.timeouts.append(timeout)
        self.now_s += self.look_s
        return EVENT if timeout or len(self.timeouts) >= self.finds_at else []

    def perf_counter(self) -> float:
        """Return the time of the script."""
        return self.now_s


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what makes a busy poll over a script, with the script's clock."""

    def make(script: Script, busy_s: float = 50e-6) -> BusyPoll:
        monkeypatch.setattr(busy_poll, "time", script)
        return BusyPoll(script.poll, busy_s)

    return make


def test_what_comes_at_once_is_found_without_sleeping(make: Any) -> None:
    """Nothing but looks with no timeout while the moment lasts."""
    script = Script(finds_at=5)
    assert make(script)(3.0) == EVENT
    assert script.timeouts == [0] * 5


def test_after_the_moment_it_sleeps_and_then_rests(make: Any) -> None:
    """It sleeps for the timeout given; the next waits sleep at once, then it looks."""
    script = Script(finds_at=10**6)
    poll = make(script)
    assert poll(3.0) == EVENT
    looks = len(script.timeouts) - 1
    assert script.timeouts[:-1] == [0] * looks
    assert 48 <= looks <= 52
    assert script.timeouts[-1] == 3.0
    script.timeouts.clear()
    for _ in range(15):
        poll(3.0)
    assert script.timeouts == [3.0] * 15
    poll(3.0)
    assert script.timeouts[15] == 0


def test_where_others_want_the_processor_it_rests_for_longer(make: Any) -> None:
    """A moment that took far longer than it should was taken from somebody else."""
    script = Script(finds_at=10**6, look_s=0.004)
    poll = make(script)
    for _ in range(256):
        poll(3.0)
    assert script.timeouts.count(0) == 1
    poll(3.0)
    assert script.timeouts.count(0) == 2


@pytest.mark.parametrize(("busy_s", "timeout"), [(0.0, 3.0), (50e-6, 0.0)])
def test_it_looks_once_only_when_asked_for_no_more(
    make: Any, busy_s: float, timeout: float
) -> None:
    """Without a moment it sleeps at once; with no time to wait it only looks."""
    script = Script(finds_at=10**6)
    make(script, busy_s)(timeout)
    assert script.timeouts == [timeout]


def test_without_a_way_to_give_way_it_sleeps(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a platform without ``sched_yield`` it would keep the processor from others."""
    monkeypatch.delattr(os, "sched_yield")
    script = Script(finds_at=10**6)
    make(script)(3.0)
    assert script.timeouts == [3.0]
