"""The app that is measured: one page with a number, which is kept in one of many ways.

``start_web.py --app benchmarks.web_app:create_app``. Which way says the variable
``BENCHMARK_WAY``, and ``BENCHMARK_RIVAL`` where its server is, if that is not ours: the
path of a Unix socket, or a port.
Only what the way needs is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from flask import Flask, session

from state_server.addresses import parse_address
from state_server.integrations.flask import StateServer

from .lines import connect_stock

WAY_VARIABLE = "BENCHMARK_WAY"
RIVAL_VARIABLE = "BENCHMARK_RIVAL"

View = Callable[[], str]

_number = 0


def create_app() -> Flask:
    """Return the app: ``/`` answers a number, ``/process`` which process answers."""
    app = Flask(__name__)
    kind = os.environ[WAY_VARIABLE]
    view = KINDS[kind](app, os.environ.get(RIVAL_VARIABLE, ""))
    app.add_url_rule("/", "number", view)
    app.add_url_rule("/process", "process", lambda: str(os.getpid()))
    return app


def _plain_global(app: Flask, rival: str) -> View:
    def number() -> str:
        global _number
        _number += 1
        return str(_number)

    return number


def _shared(class_name: str, method: str) -> Callable[[Flask, str], View]:
    def make(app: Flask, rival: str) -> View:
        state = StateServer(app)

        def number() -> str:
            return str(getattr(state.get(class_name), method)())

        return number

    return make


def _redis(app: Flask, rival: str) -> View:
    import redis

    if rival.isdigit():
        client = redis.Redis(port=int(rival))
    else:
        client = redis.Redis(unix_socket_path=rival)

    def number() -> str:
        return str(client.incr("number"))

    return number


def _stock(app: Flask, rival: str) -> View:
    key = os.environ["STATE_SERVER_AUTHKEY"].encode()
    manager: Any = connect_stock(parse_address(rival), key)
    bench = manager.Bench()

    def number() -> str:
        return str(bench.query())

    return number


def _cache(app: Flask, rival: str) -> View:
    import flask_caching

    kind = "state_server.integrations.flask_caching.StateServerCache"
    if rival:
        app.config["CACHE_REDIS_URL"] = f"unix://{rival}"
        kind = "RedisCache"
    app.config["CACHE_TYPE"] = kind
    cache = flask_caching.Cache(app)

    def number() -> str:
        value = (cache.get("number") or 0) + 1
        cache.set("number", value, timeout=60)
        return str(value)

    return number


def _session(app: Flask, rival: str) -> View:
    if rival:
        import flask_session
        import redis

        app.config["SESSION_TYPE"] = "redis"
        app.config["SESSION_REDIS"] = redis.Redis(unix_socket_path=rival)
        # As ours, and Flask's own: the cookie ends with the browser.
        app.config["SESSION_PERMANENT"] = False
        flask_session.Session(app)
    else:
        app.config["STATE_SERVER_SESSIONS"] = True
        StateServer(app)

    def number() -> str:
        value = session.get("number", 0) + 1
        session["number"] = value
        return str(value)

    return number


KINDS: dict[str, Callable[[Flask, str], View]] = {
    "global": _plain_global,
    "memory": _shared("Bench", "query"),
    "durable": _shared("Counter", "next"),
    "redis": _redis,
    "stock": _stock,
    "cache": _cache,
    "session": _session,
}
