"""The project's own web application, with one more view: any call by POST."""

from __future__ import annotations

from flask import Flask, Response, jsonify, request

import web.app

from . import repeats


def create_app() -> Flask:
    """Return the application."""
    app = web.app.create_app()

    @app.post("/call/<class_name>/<key>/<method>")
    def call(class_name: str, key: str, method: str) -> Response:
        timeout = float(request.headers["X-Timeout"])
        repeats.taken()
        handle = web.app.state.get(class_name, key, timeout=timeout)
        return jsonify(getattr(handle, method)(*request.get_json()))

    @app.after_request
    def tell_repeats(response: Response) -> Response:
        response.headers["X-Repeats"] = str(repeats.taken())
        return response

    return app
