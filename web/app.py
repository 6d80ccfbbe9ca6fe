"""The web application: one shared counter, a page that shows why, and two questions.

``GET /`` answers the next number. ``GET /demo`` is the demonstration, see ``web.demo``.
``GET /healthz`` tells that this process turns, ``GET /readyz`` whether the manager
answers it.
"""

from __future__ import annotations

from collections.abc import Mapping

from flask import Blueprint, Flask, Response, current_app, request

from state_server.errors import StateServerError
from state_server.integrations.flask import StateServer

from . import demo

#: Seconds that ``/readyz`` waits for the manager.
READY_TIMEOUT_S = 1.0

state = StateServer()
views = Blueprint("views", __name__)


def create_app(config: Mapping[str, object] | None = None) -> Flask:
    """Return the application; ``config`` wins over the environment (``FLASK_…``)."""
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config.setdefault("READY_TIMEOUT_S", READY_TIMEOUT_S)
    app.config.update(config or {})
    state.init_app(app)
    app.register_blueprint(views)
    demo.init_app(app)
    return app


@views.get("/")
def number() -> Response:
    """Answer the next number."""
    if request.method == "HEAD":
        # Flask answers HEAD by the view of GET, and a number must not be lost on it.
        return plain("")
    return plain(str(state.get("SomeObj").query()))


@views.get("/healthz")
def alive() -> Response:
    """Answer that this process turns, whatever becomes of the manager."""
    return plain("alive\n")


@views.get("/readyz")
def ready() -> Response:
    """Answer 200 when the manager answers in time, else 503."""
    try:
        state.client.ping(timeout=current_app.config["READY_TIMEOUT_S"])
    except StateServerError as error:
        current_app.logger.warning("not ready: %s: %s", type(error).__name__, error)
        return plain("the manager does not answer\n", status=503)
    return plain("ready\n")


def plain(text: str, status: int = 200) -> Response:
    """Return ``text`` as a response that nobody on the way may keep."""
    response = Response(text, status=status, mimetype="text/plain")
    response.headers["Cache-Control"] = "no-store"
    return response
