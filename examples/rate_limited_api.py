"""An API that answers each caller ten times a minute, in all worker processes together.

    pip install -e '.[limits]' flask-limiter
    python start_web.py --app examples.rate_limited_api:create_app

With a count in each worker process the limit would be ten times the number of workers.
Here the count is kept in the manager, and each request is one atomic step there: of a
thousand requests at the same moment ten are answered.

It is Flask-Limiter with a storage address of ours; importing our module makes the
address known. A caller is an IP address here. Behind a reverse proxy add werkzeug's
``ProxyFix``, or all callers have the address of the proxy.

If the manager is away, each worker process counts for itself until it is back
(``in_memory_fallback_enabled``). It needs no ``--objects``.
"""

from __future__ import annotations

from flask import Flask, Response, jsonify
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from werkzeug.exceptions import TooManyRequests

import state_server.integrations.limits  # noqa: F401 - makes stateserver:// known

LIMIT = "10 per minute"

limiter = Limiter(
    get_remote_address,
    storage_uri="stateserver://?call_timeout_s=3",
    strategy="moving-window",
    headers_enabled=True,
    in_memory_fallback_enabled=True,
)


def create_app() -> Flask:
    """Return the app."""
    app = Flask(__name__)
    limiter.init_app(app)

    @app.get("/")
    @limiter.limit(LIMIT)
    def answer() -> Response:
        return jsonify(answer=42)

    @app.get("/healthz")
    def alive() -> Response:
        return jsonify(alive=True)

    @app.errorhandler(TooManyRequests)
    def too_many(error: TooManyRequests) -> tuple[Response, int]:
        return jsonify(error=f"The limit is {error.description}."), 429

    return app
