"""Waitress, with an end that fails no request.

A drain goes like this. The listening socket leaves the loop after the connections that
already wait there were taken. From then on every response says ``Connection: close``.
Idle connections stay open for a moment, because a request may be on its way on them,
and are closed then. Running requests end, within the limit; nothing is cut before it.

Leaving waitress's loop by ``SystemExit``, its own way to stop, closes connections that
carry requests; hence this room. Only the main thread touches the loop; ``drain`` alone
may be called from anywhere, also from a signal handler.
"""

from __future__ import annotations

import logging
import resource
import socket
import time
from typing import Any

from waitress import wasyncore  # type: ignore[import-untyped]
from waitress.channel import HTTPChannel  # type: ignore[import-untyped]
from waitress.server import create_server  # type: ignore[import-untyped]
from waitress.task import WSGITask  # type: ignore[import-untyped]

from state_server.settings import WebSettings

logger = logging.getLogger("state_server.web.server")

#: The turn of the loop while draining, when idle connections are looked at.
DRAIN_TURN_S = 0.02

#: Descriptors left for everything that is not a connection of a browser.
SPARE_DESCRIPTORS = 64


class Task(WSGITask):  # type: ignore[misc]
    """One request; says ``Connection: close`` once the server drains."""

    def build_response_header(self) -> bytes:
        """Return the head of the response."""
        if self.channel.server.draining:
            # As if the client had asked for it: waitress then writes the header for
            # either version of HTTP, closes afterwards, and takes no further request.
            self.request.headers["CONNECTION"] = "close"
        head: bytes = super().build_response_header()
        return head

    def get_environment(self) -> dict[str, Any]:
        """Return the WSGI environment, which knows of the other processes."""
        environ: dict[str, Any] = super().get_environment()
        environ["wsgi.multiprocess"] = True
        return environ


class Channel(HTTPChannel):  # type: ignore[misc]
    """One connection of a client."""

    task_class = Task

    def idle(self) -> bool:
        """Tell whether nothing is being read, run or written here."""
        return not (
            self.requests
            or self.request is not None
            or self.total_outbufs_len
            or self.close_when_flushed
            or self.will_close
        )


class Server:
    """A waitress server on a listening socket that other processes share."""

    def __init__(
        self, application: Any, listener: socket.socket, settings: WebSettings
    ) -> None:
        self._settings = settings
        self._sockets: dict[int, Any] = {}
        self._backlog = settings.web_backlog
        self._connections_max = _connections_max(settings)
        self._waitress = create_server(
            application,
            map=self._sockets,
            sockets=[listener],
            threads=settings.threads,
            backlog=self._backlog,
            connection_limit=self._connections_max,
            max_request_body_size=settings.request_bytes_max,
            # X-Forwarded-For and the like are the app's to believe, by ProxyFix, as
            # under other servers; without them all visitors would be the proxy.
            clear_untrusted_proxy_headers=False,
            # select() cannot watch descriptors above 1023.
            asyncore_use_poll=True,
        )
        self._waitress.channel_class = Channel
        self._waitress.draining = False

    def __repr__(self) -> str:
        return (
            f"<Server connections={len(self._waitress.active_channels)} "
            f"draining={self._waitress.draining}>"
        )

    def drain(self) -> None:
        """Make ``serve`` return; safe in a signal handler and in any thread."""
        if not self._waitress.draining:
            self._waitress.draining = True
            self._waitress.pull_trigger()

    def serve(self) -> None:
        """Serve until ``drain`` is called."""
        while not self._waitress.draining:
            self._turn(1.0)

    def finish(self) -> bool:
        """Serve what is on its way; return whether every request was answered."""
        deadline = time.monotonic() + self._settings.drain_timeout_s
        self._stop_listening()
        finished = self._serve_the_rest(deadline)
        threads = self._waitress.task_dispatcher
        threads.shutdown(timeout=max(0.1, deadline - time.monotonic()))
        if threads.threads:
            # One that runs on may still wake the loop: its pipe must stay open.
            return False
        wasyncore.close_all(self._sockets)
        return finished

    def _stop_listening(self) -> None:
        # Whoever connected before this moment may have sent a request already.
        for _ in range(self._backlog):
            before = len(self._sockets)
            if before >= self._connections_max:
                break
            self._waitress.handle_accept()
            if len(self._sockets) == before:
                break
        # The server's own close() would take the pipe that wakes the loop, too.
        wasyncore.dispatcher.close(self._waitress)

    def _serve_the_rest(self, deadline: float) -> bool:
        """Serve what is open until nothing is; return whether the time was enough."""
        channels = self._waitress.active_channels
        idle_since: dict[Channel, float] = {}
        while channels:
            now = time.monotonic()
            if now >= deadline:
                busy = sum(1 for channel in channels.values() if not channel.idle())
                logger.warning("the time to drain is over with %d requests open", busy)
                return False
            for channel in list(channels.values()):
                if not channel.idle():
                    idle_since.pop(channel, None)
                elif now - idle_since.setdefault(channel, now) >= (
                    self._settings.linger_s
                ):
                    channel.will_close = True
            self._turn(DRAIN_TURN_S)
        return True

    def _turn(self, timeout_s: float) -> None:
        wasyncore.loop(timeout=timeout_s, use_poll=True, map=self._sockets, count=1)


def _connections_max(settings: WebSettings) -> int:
    """Return the limit of connections, cut to what the system lets a process open.

    Without descriptors the loop would try again and again to accept what it cannot.
    """
    wanted = settings.worker_connections_max
    descriptors = _descriptors(wanted + SPARE_DESCRIPTORS)
    possible = max(1, descriptors - SPARE_DESCRIPTORS)
    if possible < wanted:
        logger.warning(
            "the limit of open files (%d) allows %d connections, not %d",
            descriptors,
            possible,
            wanted,
        )
        return possible
    return wanted


def _descriptors(wanted: int) -> int:
    """Return how many descriptors there may be, ``wanted`` or fewer; raise the limit.

    Most systems give a process 1024 at first, and more if it asks.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if possible <= soft:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    except (OSError, ValueError):
        return soft
    return possible
