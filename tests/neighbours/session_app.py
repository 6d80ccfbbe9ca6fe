"""Apps whose sessions a manager keeps, by three routes; and values for them to hold."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask, Response, request, session

import state_server
from state_server.integrations.flask import StateServer

DEADLINE_S = 30.0

state = StateServer()
numbers = itertools.count()


@state_server.allow
@dataclasses.dataclass
class Basket:
    """A class of the user's own, allowed to travel."""

    owner: str
    items: list[str]


@state_server.allow
class Colour(enum.Enum):
    """An enumeration of the user's own."""

    RED = "red"


class Foreign:
    """A class that nobody has allowed."""


class Token(dict[str, object]):
    """A dictionary with more to it, as packages for OAuth have them; not allowed."""


class Word(str):
    """A text that remembers something besides; not allowed."""


class Size(enum.IntEnum):
    """Named numbers; not allowed."""

    SMALL = 1


class Late:
    """A text that is made when a page is, as those of translations; not allowed."""

    def __html__(self) -> str:
        """Return the text."""
        return "<b>late</b>"


def unnamed(prefix: str = "app") -> str:
    """Return a name that no app has had, whose sessions are its own then."""
    return f"{prefix}-{os.getpid()}-{next(numbers)}"


def own_route(name: str, data_dir: Path, **config: Any) -> Flask:
    """Return an app with the sessions of ``StateServer``."""
    app = bare_app(name, data_dir, **{"STATE_SERVER_SESSIONS": True, **config})
    state.init_app(app)
    return app


def flask_session_route(name: str, data_dir: Path, **config: Any) -> Flask:
    """Return an app with the interface that is a subclass of Flask-Session's."""
    from state_server.integrations.flask_session import FlaskSessionInterface
    from state_server.integrations.session_store import SessionConfig

    app = bare_app(name, data_dir, **config)
    state.init_app(app)
    timeout_s = config.get("STATE_SERVER_TIMEOUT")
    with app.app_context():
        app.session_interface = FlaskSessionInterface(
            app,
            state.client,
            permanent=False,
            config=timeout_s and SessionConfig(name, call_timeout_s=timeout_s),
        )
    return app


def cachelib_route(name: str, data_dir: Path, **config: Any) -> Flask:
    """Return an app with Flask-Session, unmodified, and a cache of ours below it."""
    from flask_session import Session

    from state_server.integrations.caching import StateServerCache

    app = bare_app(name, data_dir, **config)
    state.init_app(app)
    with app.app_context():
        cache = StateServerCache(
            state.client, region=name, ignore_outages=False, call_timeout_s=30.0
        )
    app.config.update(
        SESSION_TYPE="cachelib", SESSION_CACHELIB=cache, SESSION_PERMANENT=False
    )
    Session(app)
    return app


ROUTES: dict[str, Callable[..., Flask]] = {
    "ours": own_route,
    "flask-session": flask_session_route,
    "cachelib": cachelib_route,
}


def bare_app(name: str, data_dir: Path | None = None, **config: Any) -> Flask:
    """Return an app with views that use the session, and no sessions yet."""
    app = Flask(name)
    app.testing = True
    app.config["LATE_VIEWS"] = {}
    if data_dir is not None:
        app.config["STATE_SERVER_DATA_DIR"] = str(data_dir)
    app.config.update(config)

    @app.get("/nothing")
    def nothing() -> str:
        return "nothing"

    @app.get("/all")
    def everything() -> dict[str, Any]:
        return {key: str(value) for key, value in sorted(session.items())}

    @app.get("/get/<key>")
    def get(key: str) -> str:
        return str(session.get(key, "nothing"))

    @app.get("/set/<key>/<value>")
    def put(key: str, value: str) -> str:
        session[key] = value
        return "set"

    @app.get("/delete/<key>")
    def delete(key: str) -> str:
        del session[key]
        return "deleted"

    @app.get("/clear")
    def clear() -> str:
        session.clear()
        return "cleared"

    @app.get("/renew/<key>/<value>")
    def renew(key: str, value: str) -> str:
        session.clear()
        session[key] = value
        return "renewed"

    @app.get("/append/<key>/<value>")
    def append(key: str, value: str) -> str:
        session[key]["inner"].append(value)
        return "appended"

    @app.get("/nested/<key>")
    def nest(key: str) -> str:
        session[key] = {"inner": []}
        return "nested"

    @app.get("/permanent/<yes>")
    def permanent(yes: str) -> str:
        session.permanent = yes == "yes"
        return "permanent"

    @app.get("/regenerate")
    def regenerate() -> str:
        app.session_interface.regenerate(session)  # type: ignore[attr-defined]
        return "regenerated"

    @app.get("/late/<name>")
    def late_view(name: str) -> Any:
        return app.config["LATE_VIEWS"][name]()

    return app


def late(app: Flask, name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Add a view at ``/late/<name>``; Flask takes no new ones after a request."""

    def register(view: Callable[[], Any]) -> Callable[[], Any]:
        app.config["LATE_VIEWS"][name] = view
        return view

    return register


def create_app() -> Flask:
    """Return the app whose requests wait for each other; for several processes.

    A request with ``here`` and ``go``, names of files, reads its session, makes the
    one, waits for the other, and goes on after ``pause`` seconds.
    """
    folder = Path(os.environ["SESSION_TEST_FOLDER"])
    rule = os.environ["SESSION_TEST_RULE"]
    app = own_route("served", folder / "var", STATE_SERVER_SESSION_CONFLICT=rule)
    app.testing = False

    @app.before_request
    def wait_for_the_others() -> None:
        if "here" not in request.args:
            return
        assert session["seed"] == "1"
        (folder / request.args["here"]).touch()
        give_up_at = time.monotonic() + DEADLINE_S
        while not (folder / request.args["go"]).exists():
            assert time.monotonic() < give_up_at, "the others have not come"
            time.sleep(0.01)
        time.sleep(float(request.args["pause"]))

    @app.after_request
    def tell_the_process(response: Response) -> Response:
        response.headers["X-Process"] = str(os.getpid())
        return response

    return app
