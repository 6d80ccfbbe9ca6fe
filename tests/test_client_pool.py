"""The client's links and how a call survives a broken one, with scripted links."""

from __future__ import annotations

import gc
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from state_server import client as client_module
from state_server import codec, failures, wire
from state_server.client import Client, connect
from state_server.client import pool as pool_module
from state_server.client.link import new_lane
from state_server.client.pool import Pool
from state_server.client.stream import BrokenLink, TimeIsUp
from state_server.errors import (
    ConfigError,
    Denied,
    NotShared,
    Overloaded,
    Refused,
    Stale,
    StateServerError,
    Stopping,
    TooLarge,
    Unanswered,
    Unreachable,
)
from state_server.messages import Lane, running
from state_server.settings import ClientSettings

from .fakes import BOOT_ID, OTHER_BOOT_ID, PATIENCE_S, FakeClock
from .processes import ROOT

#: What a scripted link does with a frame: it returns the reply, or raises.
Act = Callable[["FakeLink", bytes], wire.Reply]


class FakeLink:
    """A link without a socket: it does with each frame what the script says next."""

    def __init__(self, lane: Lane, script: deque[Act] | None = None) -> None:
        self.lane = lane
        self.is_local = False
        self.has_leftovers = False
        self.script = deque() if script is None else script
        self.number = 0
        self.boot_id = BOOT_ID
        self.frame_bytes_max = 2**20
        self.made_at = pool_module.monotonic()
        self.quiet = True
        self.closed_with: list[bool] = []
        self.sent: list[Any] = []

    def exchange(self, frame: bytes, _: float, rest: Any) -> wire.Reply:
        """Take a frame and do what the script says."""
        self.sent.append(wire.unpack_call(frame[4:], self.lane))
        return self.script.popleft()(self, frame)

    def is_quiet(self) -> bool:
        """Tell whether nothing has come since the last reply."""
        return self.quiet

    def close(self, *, goodbye: bool = False) -> None:
        """Note how it was closed."""
        self.closed_with.append(goodbye)


class Dialler:
    """Makes fake links, or fails as it is told; keeps all that it made."""

    def __init__(self) -> None:
        self.made: list[FakeLink] = []
        self.script: deque[Act] = deque()
        self.failures: deque[Exception | None] = deque()
        self.boots: deque[bytes] = deque()

    def __call__(self, lane: Lane, deadline: float) -> Any:
        """Make one link."""
        failure = self.failures.popleft() if self.failures else None
        if failure is not None:
            raise failure
        link = FakeLink(lane, self.script)
        if self.boots:
            link.boot_id = self.boots.popleft()
        self.made.append(link)
        return link


FAR = float("inf")


def pool_of(most: int = 3) -> tuple[Pool, Dialler]:
    """Return a pool and what it dials with."""
    dialler = Dialler()
    return Pool(dialler, most), dialler


# The pool ----------------------------------------------------------------------------


def test_last_used_link_is_used_first() -> None:
    """Free links are a stack: the warm one goes out, the others may grow cold."""
    pool, dialler = pool_of()
    one, two = pool.take(FAR), pool.take(FAR)
    pool.give(one)
    pool.give(two)

    assert pool.take(FAR) is two
    assert pool.take(FAR) is one
    assert len(dialler.made) == 2


def test_each_link_has_a_lane_of_its_own_in_one_session() -> None:
    """Lanes differ, sessions do not; another client has another session."""
    pool, dialler = pool_of()
    other, other_dialler = pool_of()
    for _ in range(3):
        pool.take(FAR)
        other.take(FAR)

    assert len({link.lane.lane for link in dialler.made}) == 3
    assert len({link.lane.session for link in dialler.made}) == 1
    assert dialler.made[0].lane.session != other_dialler.made[0].lane.session


def test_link_on_which_something_came_is_not_used() -> None:
    """An end, or a late reply, closes a free link; another one is taken."""
    pool, _ = pool_of()
    one, two = pool.take(FAR), pool.take(FAR)
    pool.give(one)
    pool.give(two)
    two.quiet = False

    assert pool.take(FAR) is one
    assert two.closed_with == [False]
    assert repr(pool) == "<Pool links=1 free=0>"


def test_at_the_limit_callers_wait_for_a_free_link() -> None:
    """With all links in use a caller waits, and gets the next that is given back."""
    pool, dialler = pool_of(2)
    links = [pool.take(FAR), pool.take(FAR)]
    got: list[Any] = []
    thread = threading.Thread(
        target=lambda: got.append(pool.take(time.monotonic() + PATIENCE_S))
    )
    thread.start()
    pool.give(links[1])
    thread.join(PATIENCE_S)

    assert got == [links[1]]
    assert len(dialler.made) == 2


def test_dropped_link_makes_room_for_another() -> None:
    """A broken link counts no longer: who waits makes a new one."""
    pool, dialler = pool_of(1)
    link = pool.take(FAR)
    got: list[Any] = []
    thread = threading.Thread(
        target=lambda: got.append(pool.take(time.monotonic() + PATIENCE_S))
    )
    thread.start()
    pool.drop(link)
    thread.join(PATIENCE_S)

    assert got == [dialler.made[1]]
    assert dialler.made[0].closed_with == [False]


def test_all_links_in_use_until_the_deadline_is_overloaded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Waiting ends at the deadline, with the name of the setting; logged once."""
    pool, _ = pool_of(2)
    links = [pool.take(FAR), pool.take(FAR)]
    for _ in range(3):
        with pytest.raises(Overloaded, match="client_connections_max"):
            pool.take(time.monotonic() + 0.001)
    for link in links:
        pool.give(link)
    pool.take(FAR)
    pool.drop(pool.take(FAR))

    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "Limit reached: 2 connections of one client."
    assert len(lines) <= 2


def test_failed_dial_leaves_no_trace() -> None:
    """When no link can be made the place is free again, for the next or who waits."""
    pool, dialler = pool_of(1)
    dialler.failures.extend([Unreachable("no"), Denied("key"), KeyboardInterrupt()])
    for expected in (Unreachable, Denied, KeyboardInterrupt):
        with pytest.raises(expected):
            pool.take(FAR)

    assert pool.take(time.monotonic()) is dialler.made[0]


def test_closed_pool_refuses_and_closes_with_a_goodbye() -> None:
    """Free links say goodbye at once; those in use when their call ends."""
    pool, _ = pool_of()
    free, used = pool.take(FAR), pool.take(FAR)
    pool.give(free)
    pool.close()

    assert free.closed_with == [True]
    assert used.closed_with == []
    pool.give(used)
    assert used.closed_with == [True]
    with pytest.raises(Refused, match="closed"):
        pool.take(FAR)
    assert repr(pool) == "<Pool links=0 free=0>"
    pool.close()


def test_who_waits_is_woken_by_the_close() -> None:
    """Closing a client does not leave its threads waiting for a link."""
    pool, _ = pool_of(1)
    pool.take(FAR)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            pool.take(time.monotonic() + PATIENCE_S)
        except Refused as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    pool.close()
    thread.join(PATIENCE_S)

    assert len(errors) == 1


def test_old_link_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link is given up, with a goodbye, long before its lane may be forgotten."""
    clock = FakeClock()
    monkeypatch.setattr(pool_module, "monotonic", clock)
    pool, dialler = pool_of(1)
    link = pool.take(FAR)
    clock.advance(299)
    pool.give(link)
    assert pool.take(FAR) is link
    clock.advance(2)
    pool.give(link)

    assert link.closed_with == [True]
    assert pool.take(FAR) is dialler.made[1]


def test_child_after_a_fork_uses_none_of_the_parents_links(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The copies are closed without a word; session, lanes and locks are new."""
    pool, dialler = pool_of(2)
    free, used = pool.take(FAR), pool.take(FAR)
    pool.give(free)
    session = dialler.made[0].lane.session
    # As in a child whose parent held the lock while it forked.
    holder = threading.Thread(target=pool._lock.acquire)
    holder.start()
    holder.join()
    monkeypatch.setattr(pool_module.os, "getpid", lambda: 4242)
    fresh = pool.take(FAR)

    assert fresh is dialler.made[2]
    assert fresh.lane.session != session
    assert [free.closed_with, used.closed_with] == [[False], [False]]
    assert fresh.closed_with == []
    pool.give(used)
    assert pool.take(FAR) is dialler.made[3], "the parent's link is not kept"


def test_child_leaves_the_calls_of_its_parent_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A call that was on its way at the fork, in a greenlet for instance, ends there.

    Repeated, it would cut the parent off; kept, its link would count on in the parent's
    lane, and bring the parent's answers.
    """
    pool, dialler = pool_of(2)
    link = pool.take(FAR)
    monkeypatch.setattr(pool_module.os, "getpid", lambda: 4242)
    with pytest.raises(Refused, match="before this process was forked"):
        pool.redial(link.lane, FAR)
    pool.give(link)

    assert pool.take(FAR) is not link
    assert len(dialler.made) == 2
    assert link.closed_with == [False, False], "not a word to the manager"


def test_closed_client_stays_closed_after_a_fork(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A child does not open again what its parent had closed."""
    pool, _ = pool_of()
    pool.close()
    monkeypatch.setattr(pool_module.os, "getpid", lambda: 4242)

    with pytest.raises(Refused, match="closed"):
        pool.take(FAR)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 4))
def test_links_are_never_more_than_the_limit(steps: list[int], most: int) -> None:
    """Whatever is taken, given, dropped or fails: none is shared, all counted."""
    pool, dialler = pool_of(most)
    out: list[Any] = []
    for step in steps:
        if step <= 1 or not out:
            if step == 1:
                dialler.failures.append(Unreachable("no"))
            try:
                link = pool.take(0.0)
                assert all(link is not other for other in out)
                out.append(link)
            except (Overloaded, Unreachable):
                pass
            dialler.failures.clear()
        elif step == 2:
            pool.drop(out.pop(0))
        elif step == 3:
            link = out.pop()
            link.quiet = len(steps) % 2 == 0
            pool.give(link)
        else:
            pool.give(out.pop(0))
        assert len(pool._links) <= most
        assert len(pool._links) == len(pool._free) + len(out)
        assert not pool._dialling


def test_a_signal_handler_may_call_while_its_thread_is_at_the_pool() -> None:
    """It finds the pool's lock taken by its own thread, and gets a link all the same.

    It takes the last free link from under that thread, which then makes another.
    """
    pool, dialler = pool_of(3)
    kept: list[Any] = []

    class Interrupted(list[Any]):
        """Has a signal come just when a free link is taken."""

        def pop(self, *_: Any) -> Any:
            self.pop = super().pop  # type: ignore[method-assign]
            kept.append(pool.take(FAR))
            return self.pop()

    pool.give(pool.take(FAR))
    pool._free = Interrupted(pool._free)
    thread = threading.Thread(target=lambda: kept.append(pool.take(FAR)), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "it waits for itself"
    assert kept == dialler.made
    assert len(dialler.made) == 2


@pytest.mark.parametrize("step", ["take", "_take_free"])
def test_a_link_that_an_exception_made_nobodys_leaves_no_gap(step: str) -> None:
    """A signal handler may raise between any two steps; the limit is not eaten up."""
    pool, dialler = pool_of(1)
    for _ in range(3):
        lost = getattr(pool, step)(0.0)
        assert lost is not None
        dialler.made.clear()
        del lost
        gc.collect()
    pool.give(pool.take(0.0))
    assert repr(pool) == "<Pool links=1 free=1>"


def test_new_lanes_carry_the_time_they_were_minted() -> None:
    """The first 8 bytes are milliseconds, the last 8 differ."""
    before = int(time.time() * 1000)
    lanes = [new_lane(b"s" * 16) for _ in range(10)]
    after = int(time.time() * 1000)

    assert all(before <= int.from_bytes(n.lane[:8], "big") <= after for n in lanes)
    assert len({n.lane[8:] for n in lanes}) == 10
    assert {n.session for n in lanes} == {b"s" * 16}


# Calls -------------------------------------------------------------------------------


class Clocks:
    """Stands for the time module: the clock goes on when somebody sleeps."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        """Let the time pass at once."""
        self.slept.append(seconds)
        self._clock.advance(seconds)


class FakeClient(Client):
    """A client whose links are scripted."""

    def __init__(self, dialler: Dialler) -> None:
        self.dialler = dialler
        super().__init__(ClientSettings(timeout_s=10.0), b"key")

    def _dial(self, lane: Lane, deadline: float) -> Any:
        return self.dialler(lane, deadline)


class Scene:
    """A client, what it dials with, and the time."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.times = Clocks(self.clock)
        self.dialler = Dialler()

    def set_time(self, patch: pytest.MonkeyPatch) -> None:
        """Have the client live in the time of this scene."""
        patch.setattr(client_module, "time", self.times)
        for module in (client_module, pool_module):
            patch.setattr(module, "monotonic", self.clock)

    def client(self) -> FakeClient:
        """Return a client of this scene."""
        return FakeClient(self.dialler)

    def script(self, *acts: Act) -> None:
        """Say what the links do with the frames to come, in order."""
        self.dialler.script.extend(acts)

    def ask(self, *args: Any, timeout: float | None = None) -> Any:
        """Make one call."""
        if not hasattr(self, "_client"):
            self._client = self.client()
        return self._client.call(("Room", "k", "say"), args, {}, timeout)

    @property
    def sent(self) -> list[Any]:
        """Return every call that was sent, with the number of its link."""
        return [call for link in self.dialler.made for call in link.sent]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Give a scene in which no time passes by itself."""
    scene = Scene()
    scene.set_time(monkeypatch)
    return scene


def answer(value: Any) -> Act:
    """Answer with a value."""

    def act(link: FakeLink, _: bytes) -> wire.Reply:
        return wire.Reply(link.number, False, codec.encode(value))

    return act


def refuse(error: StateServerError) -> Act:
    """Answer with a refusal."""

    def act(link: FakeLink, _: bytes) -> wire.Reply:
        body = failures.pack(failures.refusal(error))
        return wire.Reply(link.number, True, body)

    return act


def fail(error: BaseException) -> Act:
    """Do not answer: raise."""

    def act(link: FakeLink, _: bytes) -> wire.Reply:
        raise error

    return act


BROKEN_BEFORE = fail(BrokenLink("refused", sent=False))
BROKEN_AFTER = fail(BrokenLink("reset", sent=True))


def test_call_returns_its_value_and_the_link_is_used_again(scene: Scene) -> None:
    """One link carries one call after the other, numbered from one."""
    scene.script(answer("a"), answer("b"), answer("c"))

    assert [scene.ask(n) for n in range(3)] == ["a", "b", "c"]
    assert [call.number for call in scene.sent] == [1, 2, 3]
    assert len(scene.dialler.made) == 1
    assert [codec.decode(call.body) for call in scene.sent] == [
        ((n,), {}) for n in range(3)
    ]


def test_call_that_was_sent_is_repeated_under_its_identity(scene: Scene) -> None:
    """After a break the same lane, number, boot and body are sent again."""
    scene.script(answer("first"), BROKEN_AFTER, BROKEN_AFTER, answer("second"))
    scene.ask("one")

    assert scene.ask("two") == "second"
    repeats = scene.sent[1:]
    assert len(scene.dialler.made) == 3
    assert {(c.lane, c.number, c.first_boot, c.body) for c in repeats} == {
        (repeats[0].lane, 2, BOOT_ID, repeats[0].body)
    }
    assert scene.dialler.made[0].closed_with == [False]


def test_numbers_go_on_after_a_repeat(scene: Scene) -> None:
    """The link on which a repeat was answered goes on counting from there."""
    scene.script(answer(1), BROKEN_AFTER, answer(2), answer(3))
    for _ in range(3):
        scene.ask()

    assert [call.number for call in scene.sent] == [1, 2, 2, 3]
    assert len({call.lane for call in scene.sent}) == 1


def test_repeat_carries_the_boot_of_its_first_sending(scene: Scene) -> None:
    """A manager that was started anew can tell that the call is older than it is."""
    scene.dialler.boots.extend([BOOT_ID, OTHER_BOOT_ID, OTHER_BOOT_ID])
    scene.script(BROKEN_AFTER, BROKEN_AFTER, refuse(Unanswered("may have run")))

    with pytest.raises(Unanswered, match="may have run"):
        scene.ask()
    assert [call.first_boot for call in scene.sent] == [BOOT_ID] * 3


def test_call_that_was_not_sent_is_made_anew(scene: Scene) -> None:
    """Before anything went out a call has no identity yet: a new lane, a new boot."""
    scene.dialler.boots.extend([OTHER_BOOT_ID, BOOT_ID])
    scene.script(BROKEN_BEFORE, answer("here"))

    assert scene.ask() == "here"
    first, second = scene.sent
    assert first.lane != second.lane
    assert (first.first_boot, second.first_boot) == (OTHER_BOOT_ID, BOOT_ID)


def test_remaining_time_shrinks_with_each_repeat(scene: Scene) -> None:
    """Each sending says what is left until the deadline, not the time-out."""
    scene.script(*[BROKEN_AFTER] * 4, answer("here"))
    scene.ask(timeout=5.0)
    left = [call.remaining_s for call in scene.sent]

    assert left[0] == 5.0
    assert left == sorted(left, reverse=True)
    assert len(set(left)) == len(left)


def test_pauses_grow_and_never_pass_the_deadline(scene: Scene) -> None:
    """Between repeats the client waits longer and longer, with a little chance."""
    scene.dialler.failures.extend(Unreachable("down") for _ in range(1000))

    with pytest.raises(Unreachable, match="down"):
        scene.ask(timeout=8.0)
    slept = scene.times.slept
    assert 0.005 <= slept[0] <= 0.01
    assert max(slept) <= 0.5
    assert slept[-1] > 0.2
    assert sum(slept) <= 8.0
    assert len(slept) < 60


def test_sent_call_without_an_answer_is_unanswered(scene: Scene) -> None:
    """Once it was sent, nobody says that it was not: Unanswered at the deadline."""
    scene.script(BROKEN_AFTER)
    scene.dialler.failures.append(None)
    scene.dialler.failures.extend(Unreachable("down") for _ in range(1000))

    with pytest.raises(Unanswered, match=r"Room/k\.say was sent, the connection broke"):
        scene.ask(timeout=3.0)


def test_time_that_is_up_before_sending_is_unreachable(scene: Scene) -> None:
    """A call that never went out is safe to make again."""

    def time_is_up(_: FakeLink, __: bytes) -> wire.Reply:
        scene.clock.advance(11.0)
        raise TimeIsUp(sent=False)

    scene.script(time_is_up)
    with pytest.raises(Unreachable, match="could not be sent in time"):
        scene.ask()
    assert scene.dialler.made[0].closed_with == [False]


def test_time_that_is_up_after_sending_is_unanswered(scene: Scene) -> None:
    """A call that is out, and not answered in time, may have run."""
    for first in ((), (BROKEN_AFTER,)):
        scene.script(*first, fail(TimeIsUp(sent=not first)))
        with pytest.raises(Unanswered, match=r"Room/k\.say was sent.* may have run"):
            scene.ask()


def test_a_call_for_a_property_is_named_as_one(scene: Scene) -> None:
    """Nobody who reads ``room.size`` has to know how that is called on the wire."""
    scene.script(fail(TimeIsUp(sent=True)))
    client = scene.client()
    with pytest.raises(Unanswered, match="call for a property of Room/k was sent"):
        client.call(("Room", "k", "__getattribute__"), ("size",), {}, None)


@pytest.mark.parametrize(
    "error",
    [
        Denied("another key now"),
        Stale("of another session"),
        Unanswered("so old"),
        ConfigError("the key file is empty"),
        TooLarge("odd"),
        Refused("no"),
    ],
)
def test_refused_connection_is_no_refusal_of_what_was_sent(
    scene: Scene, error: Exception
) -> None:
    """A sent call that can no longer be asked about is Unanswered, not refused.

    A refusal says that nothing ran, which nobody knows here.
    """
    scene.script(BROKEN_AFTER)
    scene.dialler.failures.extend([None, error])

    with pytest.raises(Unanswered, match=str(error)) as caught:
        scene.ask()
    assert caught.value.maybe_executed
    assert not caught.value.retryable


def test_refused_connection_refuses_a_call_that_was_not_sent(scene: Scene) -> None:
    """Before anything was sent the refusal is the answer, at once."""
    scene.dialler.failures.append(Denied("wrong key"))

    with pytest.raises(Denied, match="wrong key"):
        scene.ask()
    assert scene.times.slept == []


def test_overloaded_manager_is_asked_again(scene: Scene) -> None:
    """A manager that takes no more connections for now may take one soon."""
    scene.dialler.failures.extend([Overloaded("full"), Overloaded("full"), None])
    scene.script(answer("here"))

    assert scene.ask() == "here"
    assert len(scene.times.slept) == 2


def test_stopping_manager_is_followed_by_the_next(scene: Scene) -> None:
    """A call that came too late for one manager is made anew to the next."""
    scene.dialler.boots.extend([OTHER_BOOT_ID, BOOT_ID])
    scene.script(refuse(Stopping("draining")), answer("here"))

    assert scene.ask() == "here"
    assert [call.first_boot for call in scene.sent] == [OTHER_BOOT_ID, BOOT_ID]
    assert scene.sent[0].lane != scene.sent[1].lane


def test_stopping_manager_that_nobody_follows_is_told(scene: Scene) -> None:
    """At the deadline the caller learns why: the manager was stopping."""
    scene.script(*[refuse(Stopping("draining"))] * 500)

    with pytest.raises(Stopping, match="draining"):
        scene.ask(timeout=2.0)


def test_refusals_are_not_repeated(scene: Scene) -> None:
    """What the server said no to is not asked a second time; the link is good."""
    for error in (NotShared("nobody"), Overloaded("queue"), Stale("old")):
        scene.script(refuse(error))
        with pytest.raises(type(error), match=str(error)):
            scene.ask()

    assert len(scene.dialler.made) == 1
    assert [call.number for call in scene.sent] == [1, 2, 3]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), GeneratorExit()])
def test_interrupted_call_closes_its_link(scene: Scene, error: BaseException) -> None:
    """A late reply can never be taken for the answer to the next call."""
    scene.script(fail(error), answer("next"))

    with pytest.raises(type(error)):
        scene.ask()
    assert scene.dialler.made[0].closed_with == [False]
    assert scene.ask() == "next"
    assert len(scene.dialler.made) == 2


def test_reply_to_another_call_is_never_believed(scene: Scene) -> None:
    """A number that is not the call's breaks the link; the call is repeated."""

    def other(link: FakeLink, _: bytes) -> wire.Reply:
        return wire.Reply(link.number + 1, False, codec.encode("not yours"))

    scene.script(other, answer("yours"))

    assert scene.ask() == "yours"
    assert scene.sent[0].lane == scene.sent[1].lane
    assert scene.sent[0].number == scene.sent[1].number
    assert scene.dialler.made[0].closed_with == [False]


def test_method_may_not_wait_for_its_own_manager(scene: Scene) -> None:
    """A client inside a method refuses to call the manager that runs the method."""
    running.boot_id, running.name = BOOT_ID, "Room/k"
    try:
        with pytest.raises(Refused, match="its own manager"):
            scene.ask()
        scene.dialler.boots.append(OTHER_BOOT_ID)
        scene.script(answer("elsewhere"))
        assert scene.ask() == "elsewhere"
    finally:
        running.boot_id, running.name = None, ""


def test_arguments_that_may_not_travel_cost_no_connection(scene: Scene) -> None:
    """They are refused before anything is dialled."""
    with pytest.raises(StateServerError):
        scene.ask(object())

    assert scene.dialler.made == []


def test_call_above_the_managers_limit_is_not_sent(scene: Scene) -> None:
    """The caller learns size and limit; nothing went out, nothing is repeated."""
    with pytest.raises(TooLarge, match=r"1048576 \(frame_bytes_max\)"):
        scene.ask("x" * 2**20)

    assert scene.sent == []
    assert scene.times.slept == []


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.sampled_from(
            ["answer", "before", "after", "lost", "down", "full", "other", "stopping"]
        ),
        max_size=12,
    )
)
def test_no_sequence_of_breaks_runs_a_call_twice(events: list[str]) -> None:
    """Against a manager that keeps its word, every call ends right.

    The model remembers what it ran, by lane and number, as the host does.
    """
    scene = Scene()
    patch = pytest.MonkeyPatch()
    scene.set_time(patch)
    ran: dict[tuple[bytes, int], int] = {}
    counter = itertools.count(1)
    left = deque(events)

    def manager(link: FakeLink, _: bytes) -> wire.Reply:
        scene.dialler.script.append(manager)
        event = left.popleft() if left else "answer"
        call = link.sent[-1]
        if event == "before":
            raise BrokenLink("refused", sent=False)
        if event == "after":
            raise BrokenLink("reset before it arrived", sent=True)
        if event == "stopping" and (call.lane.lane, call.number) not in ran:
            return refuse(Stopping("draining"))(link, b"")
        value = ran.setdefault((call.lane.lane, call.number), next(counter))
        if event == "lost":
            raise BrokenLink("reset after it ran", sent=True)
        if event == "other":
            return wire.Reply(call.number + 7, False, codec.encode("another's"))
        if event in ("down", "full"):
            error = Unreachable("down") if event == "down" else Overloaded("full")
            scene.dialler.failures.extend([error, error])
        return wire.Reply(call.number, False, codec.encode(value))

    scene.script(manager)
    try:
        values = [scene.ask(timeout=1000.0) for _ in range(4)]
    except Stopping:
        # The first sending was lost on its way, the repeat met a manager that stops:
        # that is an answer, too. Nothing has run under this number.
        call = scene.sent[-1]
        assert (call.lane.lane, call.number) not in ran
        return
    finally:
        patch.undo()

    assert len(set(values)) == 4
    assert sorted(values) == sorted(ran.values()), "something ran that nobody asked for"


# connect() ---------------------------------------------------------------------------


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take our variables out of the environment."""
    for name in list(client_module.os.environ):
        if name.startswith("STATE_SERVER_"):
            monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_environment")
def test_connect_connects_to_nothing() -> None:
    """A client costs nothing before its first call; it says where it would go."""
    client = connect("tcp://no-such-host.invalid:1", b"key")

    assert repr(client) == (
        "<Client of tcp://no-such-host.invalid:1 <Pool links=0 free=0>>"
    )
    client.close()


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"address": "http://x"}, "scheme"),
        ({"timeout": 0}, "seconds above 0"),
        ({"timeout": -1}, "seconds above 0"),
        ({"timeout": float("nan")}, "seconds above 0"),
        ({"timeout": float("inf")}, "seconds above 0"),
        ({"timeout": "5"}, "seconds above 0"),
        ({"connections_max": 0}, "whole number from 1"),
        ({"connections_max": "x"}, "whole number from 1"),
        ({"data_dir": ""}, "A data folder is a path, not ''"),
        ({"data_dir": 5}, "A data folder is a path, not 5"),
        ({"authkey": b""}, "empty"),
        ({"authkey": ""}, "empty"),
        ({"authkey": 5}, "bytes or text"),
    ],
)
def test_connect_refuses_what_does_not_fit(
    options: dict[str, Any], reason: str
) -> None:
    """A mistake in the arguments is told at once, not at the first call."""
    with pytest.raises(ConfigError, match=reason):
        connect(**options)


@pytest.mark.usefixtures("no_environment")
def test_environment_stands_in_for_what_is_not_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Address and time-out come from the environment, and are checked as well."""
    monkeypatch.setenv("STATE_SERVER_ADDRESS", "tcp://h:1")
    monkeypatch.setenv("STATE_SERVER_TIMEOUT_S", "7")
    client = connect()
    assert client.location[0] == "tcp://h:1"
    assert client._settings.timeout_s == 7.0

    monkeypatch.setenv("STATE_SERVER_ADDRESS", "gopher://h:1")
    with pytest.raises(ConfigError, match="gopher"):
        connect()


@pytest.mark.parametrize(
    ("made", "times"),
    [
        ("connect(); connect()", 1),
        ("connect('tcp://h:1'); connect(data_dir='var')", 0),
        ("connect('tcp://h:1'); connect()", 1),
    ],
)
def test_misspelled_variables_are_told_once(made: str, times: int) -> None:
    """The first client that the environment leads somewhere logs one warning.

    What managers, web processes and Flask apps read is no mistake.
    """
    variables = "ADRESS=tcp://h:1 SESSION=1 SESSIONS=1 QUEUE_MAX=5 WORKERS=3 AUTHKEY=k"
    pairs = [pair.partition("=") for pair in variables.split()]
    done = subprocess.run(
        [sys.executable, "-c", f"from state_server import connect\n{made}"],
        env={f"STATE_SERVER_{name}": value for name, _, value in pairs},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done
    assert done.stderr.count("\n") == times
    if times:
        assert "STATE_SERVER_ADRESS is not a setting" in done.stderr
        assert "did you mean STATE_SERVER_ADDRESS?" in done.stderr
        assert done.stderr.count("is not a setting") == 2


@pytest.mark.usefixtures("no_environment")
def test_client_without_a_manager_says_what_is_missing(tmp_path: Any) -> None:
    """No address, then no key: each is named with the folder and the remedy."""
    client = connect(data_dir=tmp_path, timeout=0.001)
    with pytest.raises(Unreachable, match=f"{tmp_path}. Start one"):
        client.ping()
    (tmp_path / "address").write_text("tcp://127.0.0.1:1\n")
    with pytest.raises(Unreachable, match=f"no key in {tmp_path}"):
        client.ping()
    client.close()


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize("key", [5, None, b"k"])
def test_key_of_an_object_is_text(key: Any) -> None:
    """A key that is no text is refused before the manager is asked."""
    with pytest.raises(NotShared, match="is text"):
        connect("tcp://h:1", b"k").get("Room", key)


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize("cls", [5, None, object()], ids=["number", "none", "object"])
def test_an_object_is_named_by_a_class(cls: Any) -> None:
    """Something else, such as an instance, is refused with a sentence that shows it."""
    with pytest.raises(NotShared, match="by its class or the name") as caught:
        connect("tcp://h:1", b"k").get(cls)
    assert repr(cls) in str(caught.value)


def test_handles_are_kept_and_bounded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Who gets a handle in each request gets the same one; never more than so many."""
    monkeypatch.setattr(client_module, "_HANDLES_MAX", 3)
    with client_module.connect(data_dir=tmp_path) as client:
        assert client.get("Count", "a") is client.get("Count", "a")
        assert client.get("Count", "a") != client.get("Count", "b")
        assert client.get("Count", "a") is not client.get("Count", "a", timeout=2)
        for number in range(10):
            handle = client.get("Count", str(number))
            assert handle == client.get("Count", str(number))
            assert len(client._handles) <= 3


class LinkOfNoSocket:
    """What a pool needs of a link."""

    is_local = True
    has_leftovers = False
    made_at = float("inf")

    def __init__(self, lane: Lane, deadline: float) -> None:
        self.lane = lane
        self.closed = False

    def close(self, *, goodbye: bool = False) -> None:
        """Note that it was closed."""
        self.closed = True


def test_threads_of_a_process_that_was_forked_without_hooks_share_no_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many threads notice it at once, the parent's links go, and only those."""
    switch_interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(100):
            _fork_in_name_only(monkeypatch)
    finally:
        sys.setswitchinterval(switch_interval_s)


def _fork_in_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(LinkOfNoSocket, 64)  # type: ignore[arg-type]
    inherited = pool.take(1e9)
    pool.give(inherited)
    child = os.getpid() + 1
    gate = threading.Barrier(8)
    taken: list[Any] = []

    def take() -> None:
        gate.wait()
        taken.append(pool.take(1e9))

    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: child)
        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(taken) == 8
    assert inherited not in taken
    assert not any(link.closed for link in taken)
    assert inherited.closed


@pytest.mark.skipif(not hasattr(time, "clock_gettime"), reason="no other way there")
def test_a_clock_that_a_test_has_stopped_stops_no_deadline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who freezes the time for their own tests still gets an error, and no hang.

    The tools that do so put a function of their own in the place of each of ``time``,
    there and wherever it was imported to.
    """
    began = time.perf_counter()
    stopped = [time.time, time.monotonic, time.perf_counter]
    for module in list(sys.modules.values()):
        if module is time or module.__name__.startswith("state_server"):
            for name, value in list(vars(module).items()):
                if any(value is function for function in stopped):
                    monkeypatch.setattr(module, name, lambda: 5.0)
    mute = socket.socket(socket.AF_UNIX)
    mute.bind(str(tmp_path / "mute"))
    mute.listen()
    for name, says in (("mute", "the deadline passed"), ("nobody", "No such file")):
        client = connect(tmp_path / name, b"key", timeout=0.2)
        with pytest.raises(Unreachable, match=says):
            client.ping()
    mute.close()
    monkeypatch.undo()
    assert 0.2 < time.perf_counter() - began < 5


def test_a_clock_that_a_test_has_set_does_not_make_lanes_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who freezes ``time.time`` for their own tests can still call the manager."""
    now_ms = int.from_bytes(new_lane(bytes(16)).lane[:8], "big")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    then_ms = int.from_bytes(new_lane(bytes(16)).lane[:8], "big")
    assert 0 <= then_ms - now_ms < 60_000
