"""The waitress server of a worker, in this process: limits, and how it drains."""

from __future__ import annotations

import http.client
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from waitress import wasyncore  # type: ignore[import-untyped]
from werkzeug.middleware.proxy_fix import ProxyFix

from state_server.settings import WebSettings
from web.log import Seldom
from web.server import Server

DEADLINE_S = 20.0


class Running:
    """A server in a thread, with an app whose requests a test can hold."""

    def __init__(self, **settings: Any) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.address: tuple[str, int] = self.listener.getsockname()
        self.environ: dict[str, Any] = {}
        self.may_end = threading.Event()
        self.runs = threading.Semaphore(0)
        self.everything_answered: bool | None = None
        self.server = Server(self.application, self.listener, WebSettings(**settings))
        self.thread = threading.Thread(target=self._run)

    def start(self) -> Running:
        """Begin to serve."""
        self.thread.start()
        return self

    def _run(self) -> None:
        self.server.serve()
        self.everything_answered = self.server.finish()

    def application(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer ``done``, at once or, for ``/held``, when the test says so."""
        self.environ = environ
        if environ["PATH_INFO"] == "/held":
            self.runs.release()
            self.may_end.wait(DEADLINE_S)
        text = b"many" if environ["wsgi.multiprocess"] else b"one"
        start_response("200 OK", [("Content-Length", str(len(text)))])
        return [text]

    def connect(self) -> http.client.HTTPConnection:
        """Return an open connection."""
        connection = http.client.HTTPConnection(*self.address, DEADLINE_S)
        connection.connect()
        return connection

    def join(self) -> bool | None:
        """Wait for the end and return whether every request was answered."""
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()
        return self.everything_answered


@pytest.fixture
def make() -> Iterator[Callable[..., Running]]:
    """Return a function that makes a server; it is drained after the test."""
    made: list[Running] = []

    def make_one(**settings: Any) -> Running:
        made.append(Running(**{"linger_s": 0.3, "threads": 2, **settings}))
        return made[-1]

    yield make_one
    for running in made:
        running.may_end.set()
        running.server.drain()
        if running.thread.ident is None:
            running.start()
        if running.join() is False:
            # A worker leaves this to the end of its process.
            running.server._waitress.task_dispatcher.shutdown(timeout=DEADLINE_S)
            wasyncore.close_all(running.server._sockets)


def ask(connection: http.client.HTTPConnection, path: str = "/") -> str | None:
    """Make one request and return the header ``Connection`` of its response."""
    connection.request("GET", path)
    response = connection.getresponse()
    assert response.status == 200
    assert response.read() == b"many"
    return response.getheader("Connection")


def whole_response(client: socket.socket) -> bytes:
    """Return one response, however many pieces it comes in, in small letters."""
    response = b""
    while not response.endswith(b"many"):
        piece = client.recv(4096)
        assert piece, f"closed after {response!r}"
        response += piece
    return response.lower()


def test_connections_stay_open(make: Callable[..., Running]) -> None:
    """Before a drain, a connection is kept for further requests."""
    running = make().start()
    connection = running.connect()
    assert [ask(connection), ask(connection)] == [None, None]
    connection.close()


def test_an_app_behind_a_proxy_learns_who_asks(make: Callable[..., Running]) -> None:
    """What a proxy says reaches ``ProxyFix``, as under other servers; alone, nobody."""
    running = make().start()
    connection = running.connect()
    connection.request("GET", "/", headers={"X-Forwarded-For": "192.0.2.7"})
    connection.getresponse().read()

    assert running.environ["REMOTE_ADDR"] == "127.0.0.1"
    fixed = ProxyFix(running.application)
    list(fixed(dict(running.environ), lambda *_: None))
    assert running.environ["REMOTE_ADDR"] == "192.0.2.7"
    connection.close()


def test_drain_tells_the_client_to_close(make: Callable[..., Running]) -> None:
    """A request that is running when the drain begins is answered with close."""
    running = make().start()
    connection = running.connect()
    connection.request("GET", "/held")
    assert running.runs.acquire(timeout=DEADLINE_S)
    running.server.drain()
    running.may_end.set()
    response = connection.getresponse()
    assert (response.read(), response.getheader("Connection")) == (b"many", "close")
    assert running.join() is True
    connection.close()


def test_drain_serves_a_request_on_its_way(make: Callable[..., Running]) -> None:
    """A request that arrives on an idle connection just after the drain is served."""
    running = make(linger_s=5.0).start()
    connection = running.connect()
    assert ask(connection) is None
    running.server.drain()
    assert ask(connection) == "close"
    assert running.join() is True
    connection.close()


def test_drain_serves_connections_that_wait(make: Callable[..., Running]) -> None:
    """Connections that nobody has accepted yet when the drain begins are served."""
    running = make()
    connections = [running.connect() for _ in range(5)]
    for connection in connections:
        connection.request("GET", "/")
    running.server.drain()
    running.start()
    for connection in connections:
        response = connection.getresponse()
        assert (response.read(), response.getheader("Connection")) == (b"many", "close")
        connection.close()
    assert running.join() is True


def test_drain_closes_idle_connections(make: Callable[..., Running]) -> None:
    """Connections without a request do not keep the server for the whole drain."""
    running = make(drain_timeout_s=DEADLINE_S * 10).start()
    connection = running.connect()
    ask(connection)
    running.server.drain()
    assert running.join() is True
    assert connection.sock.recv(1) == b""
    connection.close()


def test_drain_of_an_old_client(make: Callable[..., Running]) -> None:
    """HTTP/1.0 with keep-alive gets one header that says close, and not both."""
    running = make(linger_s=5.0).start()
    with socket.create_connection(running.address, DEADLINE_S) as client:
        request = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        client.sendall(request)
        assert b"connection: keep-alive" in whole_response(client)
        running.server.drain()
        client.sendall(request)
        head = whole_response(client)
        assert b"connection: close" in head
        assert b"keep-alive" not in head


def test_drain_ends_in_time(
    make: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    """A request that does not end is left when the time is over, and that is logged."""
    running = make(drain_timeout_s=0.2).start()
    connection = running.connect()
    connection.request("GET", "/held")
    assert running.runs.acquire(timeout=DEADLINE_S)
    running.server.drain()
    assert running.join() is False
    assert "the time to drain is over with 1 requests open" in caplog.text
    connection.close()


def test_accept_that_finds_nothing(
    make: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that another process has taken first is no error."""
    running = make()
    caplog.set_level(logging.DEBUG)
    running.server._waitress.handle_accept()
    assert caplog.text == ""


def test_connections_fit_the_descriptors(
    make: Callable[..., Running],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A limit of connections above that of open files is cut, and that is logged."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (100, 100))
    running = make()
    assert running.server._waitress.adj.connection_limit == 36
    assert "the limit of open files (100) allows 36 connections" in caplog.text


def test_descriptors_are_taken_where_the_system_gives_them(
    make: Callable[..., Running],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The usual limit, 1024 that a process may raise, is no reason for a warning."""
    limits = [(1024, 4096)]
    monkeypatch.setattr("resource.getrlimit", lambda _: limits[-1])
    monkeypatch.setattr("resource.setrlimit", lambda _, limit: limits.append(limit))
    running = make()
    assert limits[1:] == [(1064, 4096)]
    assert running.server._waitress.adj.connection_limit == 1000
    assert caplog.text == ""


def test_repr(make: Callable[..., Running]) -> None:
    """The text for operators tells connections and whether the server drains."""
    running = make()
    assert repr(running.server) == "<Server connections=0 draining=False>"
    running.server.drain()
    assert repr(running.server) == "<Server connections=0 draining=True>"


def test_queue_lines_are_seldom() -> None:
    """Of many lines about waiting requests, one is let through."""
    seldom = Seldom(3600.0)
    record = logging.makeLogRecord({})
    assert [seldom.filter(record) for _ in range(3)] == [True, False, False]
