"""Both kinds of poller: what they report, from any thread, with real sockets."""

from __future__ import annotations

import os
import select
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from state_server.engine import poller as polling
from state_server.engine.poller import EpollPoller, Poller, SelectorPoller

from .fakes import PATIENCE_S

needs_epoll = pytest.mark.skipif(
    not hasattr(select, "epoll"), reason="epoll is Linux's"
)

KINDS = [
    pytest.param("epoll", marks=needs_epoll),
    "DefaultSelector",
    "SelectSelector",
    pytest.param(
        "PollSelector",
        marks=pytest.mark.skipif(
            not hasattr(selectors, "PollSelector"), reason="no poll() here"
        ),
    ),
]


class Bench:
    """A poller, two connected sockets, and how often it asked to be woken."""

    def __init__(self, kind: str) -> None:
        self.woken = 0
        self.poller: Poller
        if kind == "epoll":
            self.poller = EpollPoller()
        else:
            self.poller = SelectorPoller(self.wake, getattr(selectors, kind)())
        self.is_epoll = kind == "epoll"
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.fd = self.ours.fileno()

    def wake(self) -> None:
        """Count one wake-up."""
        self.woken += 1

    def events(self) -> dict[int, int]:
        """Return what is ready now."""
        return dict(self.poller.poll(0))

    def close(self) -> None:
        """Give everything back."""
        self.poller.close()
        self.ours.close()
        self.theirs.close()


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Give a bench with each kind of poller."""
    bench = Bench(request.param)
    yield bench
    bench.close()


def test_readable_is_reported(bench: Bench) -> None:
    """A descriptor watched for reading is reported when there is something."""
    bench.poller.register(bench.fd, polling.READ)
    assert bench.events() == {}
    bench.theirs.send(b"x")

    assert bench.events()[bench.fd] & polling.IN


def test_writable_is_reported(bench: Bench) -> None:
    """A descriptor watched for writing is reported as long as it takes bytes."""
    bench.poller.register(bench.fd, polling.WRITE)

    assert bench.events()[bench.fd] & polling.OUT
    bench.theirs.send(b"x")
    assert not bench.events()[bench.fd] & polling.IN


def test_reading_and_writing_follow_each_other(bench: Bench) -> None:
    """``modify`` changes what is watched for, back and forth."""
    bench.theirs.send(b"x")
    bench.poller.register(bench.fd, polling.READ)
    for _ in range(3):
        assert bench.events()[bench.fd] & polling.IN
        bench.poller.modify(bench.fd, polling.WRITE)
        assert bench.events()[bench.fd] & polling.OUT
        assert not bench.events()[bench.fd] & polling.IN
        bench.poller.modify(bench.fd, polling.READ)


def test_quiet_watches_for_nothing_but_the_end(bench: Bench) -> None:
    """What comes while a call is in flight stays unread, and wakes nobody."""
    bench.poller.register(bench.fd, polling.READ)
    bench.poller.modify(bench.fd, polling.QUIET)
    bench.theirs.send(b"x")
    assert bench.events() == {}
    bench.poller.modify(bench.fd, polling.READ)
    assert bench.events()[bench.fd] & polling.IN
    bench.poller.modify(bench.fd, polling.QUIET)
    bench.theirs.close()

    gone = bench.events().get(bench.fd, 0) & polling.GONE
    # Only epoll can tell; elsewhere the end is seen when reading goes on.
    assert bool(gone) == bench.is_epoll
    bench.poller.modify(bench.fd, polling.READ)
    assert bench.events()[bench.fd] & (polling.IN | polling.GONE)


def test_end_of_the_peer_is_readable(bench: Bench) -> None:
    """A peer that hangs up is reported to who reads."""
    bench.poller.register(bench.fd, polling.READ)
    bench.theirs.close()

    assert bench.events()[bench.fd] & (polling.IN | polling.GONE)


def test_unregistered_descriptor_is_not_reported(bench: Bench) -> None:
    """After ``unregister`` nothing is reported; twice is as once."""
    bench.theirs.send(b"x")
    bench.poller.register(bench.fd, polling.READ)
    assert bench.events()
    bench.poller.unregister(bench.fd)
    bench.poller.unregister(bench.fd)

    assert bench.events() == {}
    bench.poller.unregister(12345)
    assert bench.events() == {}


def test_descriptor_that_was_closed_can_be_unregistered(bench: Bench) -> None:
    """A socket that is closed before its watch ended does no harm."""
    bench.poller.register(bench.fd, polling.READ)
    bench.events()
    bench.ours.close()
    bench.poller.unregister(bench.fd)

    assert bench.events() == {}


def test_number_of_a_closed_descriptor_can_be_used_again(bench: Bench) -> None:
    """A new socket that gets the number of an old one is watched as itself."""
    bench.poller.register(bench.fd, polling.READ)
    bench.events()
    bench.poller.unregister(bench.fd)
    left, right = socket.socketpair()
    bench.ours.close()
    os.dup2(left.fileno(), bench.fd)
    try:
        bench.poller.register(bench.fd, polling.READ)
        assert bench.events() == {}
        right.send(b"x")
        assert bench.events()[bench.fd] & polling.IN
        bench.poller.unregister(bench.fd)
    finally:
        os.close(bench.fd)
        left.close()
        right.close()


def test_watch_by_another_thread_counts_for_a_poll_under_way(bench: Bench) -> None:
    """What another thread asks to be watched is reported by the thread that polls.

    epoll sees it at once; the others ask to be woken and look again.
    """
    receiver, sender = socket.socketpair()
    receiver.setblocking(False)
    bench.wake = lambda: sender.send(b"\0")  # type: ignore[assignment, method-assign]
    if isinstance(bench.poller, SelectorPoller):
        bench.poller._wake = bench.wake
    bench.poller.register(receiver.fileno(), polling.READ)
    polls, seen = threading.Event(), threading.Event()
    bench.theirs.send(b"x")

    def poll() -> None:
        polls.set()
        while not seen.is_set():
            for descriptor, _ in bench.poller.poll(PATIENCE_S):
                if descriptor == bench.fd:
                    seen.set()
                    return
                receiver.recv(100)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    assert polls.wait(PATIENCE_S)
    bench.poller.register(bench.fd, polling.READ)
    thread.join(PATIENCE_S)

    assert seen.is_set()
    receiver.close()
    sender.close()


@pytest.mark.parametrize("change", ["register", "modify"])
def test_selector_is_woken_by_changes_of_other_threads_only(change: str) -> None:
    """The thread that polls applies its own changes with its next poll."""
    bench = Bench("DefaultSelector")
    bench.poller.register(bench.fd, polling.READ)
    bench.events()
    before = bench.woken
    getattr(bench.poller, change)(bench.fd, polling.WRITE)
    assert bench.woken == before
    other = threading.Thread(
        target=getattr(bench.poller, change), args=(bench.fd, polling.READ)
    )
    other.start()
    other.join(PATIENCE_S)

    assert bench.woken == before + 1
    assert bench.events() == {}
    bench.close()


def test_selector_without_descriptors_does_not_wait() -> None:
    """A poll of nothing returns at once, on every platform."""
    bench = Bench("SelectSelector")

    assert bench.poller.poll(PATIENCE_S) == []
    bench.close()


@needs_epoll
def test_linux_uses_epoll() -> None:
    """The quickest poller of the platform is chosen."""
    poller = polling.make_poller(lambda: None)

    assert isinstance(poller, EpollPoller)
    poller.close()


def test_platforms_without_epoll_use_a_selector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where there is no epoll the selectors of the standard library do it."""
    without: Callable[..., object] = SimpleNamespace
    monkeypatch.setattr(polling, "select", without())
    poller = polling.make_poller(lambda: None)

    assert isinstance(poller, SelectorPoller)
    poller.close()
