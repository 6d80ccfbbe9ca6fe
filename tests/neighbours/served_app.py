"""The app that every WSGI server of ``test_servers`` serves, unchanged."""

from __future__ import annotations

import os

from flask import Flask, Response

from state_server.integrations.flask import StateServer

state = StateServer()

#: Which server runs this: each has objects of its own in the one manager.
KEY = os.environ.get("SERVED_BY", "nobody")


def create_app() -> Flask:
    """Return the app; handles are made, and the client is used, while it loads."""
    app = Flask(__name__)
    state.init_app(app)
    loaded_by = os.getpid()
    with app.app_context():
        numbers = state.get("SomeObj", KEY)
        echo = state.get("Echo", KEY)
        echo.count("loaded")

    @app.get("/")
    def number() -> str:
        return f"{numbers.query()} {os.getpid()} {loaded_by}"

    @app.get("/count/<token>")
    def count(token: str) -> list[object]:
        return list(echo.count(token))

    @app.get("/slow/<key>/<float:seconds>")
    def slow(key: str, seconds: float) -> str:
        answer: str = state.get("Echo", f"{KEY} {key}").slow_echo(key, seconds)
        return answer

    @app.get("/process")
    def process() -> Response:
        return Response(str(os.getpid()), mimetype="text/plain")

    return app


app = create_app()
