"""The links of one client: how many there are, which are free, whose they are.

A link belongs to the process that made it. After a fork the child closes its copies
and makes its own; using the parent's would mix up their replies.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable

from ..clock import monotonic
from ..errors import Overloaded, Refused
from ..limits import Edge
from ..messages import Lane
from .link import Link, new_lane

log = logging.getLogger("state_server.client")

#: An older link is replaced: a manager that was started anew may refuse to repeat a
#: call of a lane that is older than what it remembers (lane_retention_s).
_LINK_AGE_MAX_S = 300.0

#: Who waits for a free link looks again after this long: a lost one tells nobody.
_LOOK_AGAIN_S = 1.0

Dial = Callable[[Lane, float], Link]


class _Place:
    """Stands in the pool for a link that is being made."""

    __slots__ = ("__weakref__",)


class Pool:
    """Links by last use. ``_lock`` guards every field; no I/O is done under it.

    A signal handler or a finalizer may call the client while its own thread holds the
    lock, so a thread may take it again. A handler may also raise at any point of the
    bookkeeping here; so of links in use and of links being made the pool holds no more
    than a weak reference: what is lost that way makes room by itself.
    """

    def __init__(self, dial: Dial, connections_max: int) -> None:
        self._dial = dial
        self._connections_max = connections_max
        #: One lock for each process this was forked into: those of the parent may be
        #: held by threads that are not here.
        self._renewing: dict[int, threading.RLock] = {}
        self._closed = False
        self._renew()
        _pools.add(self)

    def __repr__(self) -> str:
        """Return the numbers an operator asks for first."""
        return f"<Pool links={len(self._links)} free={len(self._free)}>"

    def _renew(self) -> None:
        self._lock = threading.RLock()
        self._freed = threading.Condition(self._lock)
        self._session = os.urandom(16)
        self._free: list[Link] = []
        self._links: weakref.WeakSet[Link] = weakref.WeakSet()
        self._dialling: weakref.WeakSet[_Place] = weakref.WeakSet()
        self._waiting = 0
        self._edge = Edge(log, "connections of one client", self._connections_max)
        # At last: from now on no thread of this process renews it again.
        self._process_id = os.getpid()

    def forget_parent(self) -> None:
        """Close the copies of another process's links, without a word to the manager.

        Locks are made anew: a thread that exists in the parent only may have held them.
        """
        process_id = os.getpid()
        # A server that forks without Python's hooks may have many threads here.
        with self._renewing.setdefault(process_id, threading.RLock()):
            if process_id == self._process_id:
                return
            inherited = list(self._links)
            self._renew()
        for link in inherited:
            link.close()

    def take(self, deadline: float) -> Link:
        """Return a free link, or make one.

        Raises ``Overloaded`` when all are in use until the deadline, ``Refused`` when
        the client is closed, and what ``Link`` raises.
        """
        if os.getpid() != self._process_id:
            self.forget_parent()
        while True:
            link = self._take_free(deadline)
            if isinstance(link, _Place):
                return self._make(link, new_lane(self._session), deadline)
            if link.is_local or link.is_quiet():
                return link
            self.drop(link)

    def redial(self, lane: Lane, deadline: float) -> Link:
        """Return a new link of the lane that a broken one had.

        Raises ``Refused`` for a lane of the process that this one was forked from: its
        connection would be cut off, and the answer is to a call of its own.
        """
        if os.getpid() != self._process_id:
            self.forget_parent()
        place = _Place()
        with self._lock:
            if lane.session != self._session:
                raise Refused("it was sent before this process was forked.")
            self._dialling.add(place)
        return self._make(place, lane, deadline)

    def give(self, link: Link) -> None:
        """Take back a link whose last call was answered."""
        worn = monotonic() - link.made_at > _LINK_AGE_MAX_S or link.has_leftovers
        with self._lock:
            # A child that was forked in the meantime has other lanes, and says nothing
            # on one of its parent's.
            is_ours = link.lane.session == self._session
            if is_ours and not self._closed and not worn:
                self._free.append(link)
                if self._waiting:
                    self._freed.notify()
                return
            self._links.discard(link)
            self._freed.notify()
        link.close(goodbye=is_ours)

    def drop(self, link: Link) -> None:
        """Close a link that must not be used again."""
        with self._lock:
            self._links.discard(link)
            self._freed.notify()
        link.close()

    def close(self) -> None:
        """Close the free links now, and each one in use when its call ends."""
        if os.getpid() != self._process_id:
            self.forget_parent()
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
            self._links.difference_update(free)
            self._freed.notify_all()
        for link in free:
            link.close(goodbye=True)

    def _take_free(self, deadline: float) -> Link | _Place:
        """Return a free link, or a place when the caller is to make one."""
        with self._lock:
            while True:
                if self._closed:
                    raise Refused("The client is closed; make another with connect().")
                try:
                    return self._free.pop()
                except IndexError:
                    # None is free; a handler may have taken the last just now.
                    in_use = len(self._links) + len(self._dialling)
                if not self._edge.reached(in_use):
                    place = _Place()
                    self._dialling.add(place)
                    return place
                remaining_s = deadline - monotonic()
                if remaining_s <= 0:
                    raise Overloaded(
                        f"The connections of this client ({in_use}) were all in use "
                        "until the deadline (client_connections_max)."
                    )
                self._waiting += 1
                try:
                    self._freed.wait(min(remaining_s, _LOOK_AGAIN_S))
                finally:
                    self._waiting -= 1

    def _make(self, place: _Place, lane: Lane, deadline: float) -> Link:
        link = None
        try:
            link = self._dial(lane, deadline)
            return link
        finally:
            with self._lock:
                self._dialling.discard(place)
                if link is not None:
                    self._links.add(link)
                else:
                    self._freed.notify()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for pool in list(_pools):
        pool.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
