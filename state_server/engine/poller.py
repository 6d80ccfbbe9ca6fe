"""Which sockets are ready: epoll where there is one, ``selectors`` elsewhere.

Bits are those of epoll. ``QUIET`` watches for nothing but a peer that hung up, which
only epoll can do; elsewhere such a connection is simply not watched for a while.
"""

from __future__ import annotations

import select
import selectors
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

IN, OUT, ERROR, HANGUP, PEER_CLOSED = 0x1, 0x4, 0x8, 0x10, 0x2000

READ = IN | PEER_CLOSED
WRITE = OUT | PEER_CLOSED
QUIET = PEER_CLOSED
GONE = ERROR | HANGUP | PEER_CLOSED


class Poller(Protocol):
    """What the engine needs; all but ``poll`` may be called by any thread."""

    def register(self, descriptor: int, events: int) -> None:
        """Begin to watch a descriptor."""

    def modify(self, descriptor: int, events: int) -> None:
        """Watch for other events."""

    def unregister(self, descriptor: int) -> None:
        """Stop watching a descriptor; one that is not watched is ignored."""

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        """Wait for events and return them as (descriptor, bits)."""

    def close(self) -> None:
        """Give the poller's own descriptor back."""


class EpollPoller:
    """Linux's epoll: changes made by one thread are seen by another that waits."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.register = self._epoll.register
        self.modify = self._epoll.modify
        self.poll: Callable[[float], list[tuple[int, int]]] = self._epoll.poll

    def unregister(self, descriptor: int) -> None:
        """Stop watching a descriptor; one that is not watched is ignored."""
        try:
            self._epoll.unregister(descriptor)
        except (OSError, ValueError):
            # Not watched, or closed already: epoll forgets those by itself.
            return

    def close(self) -> None:
        """Give the poller's own descriptor back."""
        self._epoll.close()


class SelectorPoller:
    """Any platform's selector. Changes are applied by the thread that polls.

    ``_changes`` may be appended to by any thread; everything else belongs to the one
    that polls. ``wake`` is called after a change by another thread.
    """

    def __init__(
        self,
        wake: Callable[[], None],
        selector: selectors.BaseSelector | None = None,
    ) -> None:
        self._wake = wake
        self._selector = selector or selectors.DefaultSelector()
        self._changes: deque[tuple[int, int | None]] = deque()
        self._polling_thread: int | None = None

    def register(self, descriptor: int, events: int) -> None:
        """Begin to watch a descriptor."""
        self.modify(descriptor, events)

    def modify(self, descriptor: int, events: int) -> None:
        """Watch for other events."""
        self._changes.append((descriptor, events))
        if self._polling_thread != threading.get_ident():
            self._wake()

    def unregister(self, descriptor: int) -> None:
        """Stop watching a descriptor; it is about to be closed, so at once."""
        self._changes.append((descriptor, None))
        if self._polling_thread == threading.get_ident():
            self._apply_changes()

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        """Wait for events and return them as (descriptor, bits)."""
        self._polling_thread = threading.get_ident()
        self._apply_changes()
        if not self._selector.get_map():
            return []
        return [(key.fd, _bits(mask)) for key, mask in self._selector.select(timeout_s)]

    def close(self) -> None:
        """Give the poller's own descriptor back."""
        self._selector.close()

    def _apply_changes(self) -> None:
        while self._changes:
            descriptor, events = self._changes.popleft()
            mask = 0
            if events is not None:
                mask |= selectors.EVENT_READ if events & IN else 0
                mask |= selectors.EVENT_WRITE if events & OUT else 0
            watched = self._selector.get_map()
            if descriptor in watched:
                self._selector.unregister(descriptor)
            if mask:
                self._selector.register(descriptor, mask)


def _bits(mask: int) -> int:
    bits = IN if mask & selectors.EVENT_READ else 0
    return bits | (OUT if mask & selectors.EVENT_WRITE else 0)


def is_gone(descriptor: int) -> bool:
    """Tell whether the other side of a socket has closed, whatever is still unread.

    For platforms with epoll only: no other tells of a peer that hung up.
    """
    poll = select.poll()
    poll.register(descriptor, PEER_CLOSED)
    return bool(poll.poll(0))


def make_poller(wake: Callable[[], None]) -> Poller:
    """Return the quickest poller of this platform."""
    if hasattr(select, "epoll"):
        return EpollPoller()
    return SelectorPoller(wake)
