"""The page ``/demo``: the original question, asked in the visitor's browser.

``GET /demo`` is the page. ``POST /demo/<variant>/<run>`` answers the next number of a
run of one variant, and says which worker process gave it. Each variant is a file in
``web/variants``; the page shows the text of that file as it was when it was loaded. The
one with the session is there only where that is Flask's signed cookie.

Configuration, from ``app.config``:

    DEMO                    whether the page is there (default: true)
    DEMO_REQUESTS_MAX       requests for numbers that each worker process takes at once
                            or in quick succession (default: 4000); more get 429
    DEMO_REQUESTS_PER_S     how quickly that allowance comes back (default: 500)
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    current_app,
    render_template,
    session,
)
from flask.sessions import SecureCookieSessionInterface

from state_server.errors import ConfigError
from state_server.integrations.flask import EXTENSION
from state_server.limits import Edge
from state_server.objects import demonstration

from .stock_process import NotAvailable, kept_key
from .variants import (
    global_with_lock,
    plain_global,
    session_cookie,
    shared_object,
    stock_manager,
)

logger = logging.getLogger("state_server.web.demo")

#: The page takes nothing from elsewhere, and runs no script but its own file.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

#: A run is named by the browser, at random.
RUN = re.compile(r"[0-9a-f]{16}")

#: Seconds in the header ``Retry-After`` of a 429.
RETRY_AFTER_S = 5

#: The key in ``app.extensions``.
ALLOWANCE = "state_server_demo"

demo = Blueprint("demo", __name__, url_prefix="/demo")


@dataclass(frozen=True)
class Variant:
    """One place for the counter: how a number is got, and what the page says of it."""

    name: str
    title: str
    text: str
    path: str
    source: str
    next_number: Callable[[str], int]


def variant_of(module: ModuleType) -> Variant:
    """Return the variant that ``module`` is; its text is read now, and never again."""
    title, _, text = (inspect.getdoc(module) or "").partition("\n\n")
    return Variant(
        name=module.__name__.rpartition(".")[2].replace("_", "-"),
        title=title.rstrip("."),
        text=" ".join(text.split()),
        path=module.__name__.replace(".", "/") + ".py",
        source=source_of(module),
        next_number=module.next_number,
    )


def source_of(module: ModuleType) -> str:
    """Return the text of a module, or say that it is not there."""
    try:
        return inspect.getsource(module)
    except OSError:
        return "This installation has no source text.\n"


VARIANTS = {
    variant.name: variant
    for variant in map(
        variant_of,
        (
            plain_global,
            global_with_lock,
            stock_manager,
            session_cookie,
            shared_object,
        ),
    )
}
IN_SESSION = VARIANTS["session-cookie"]
COUNTER = source_of(demonstration)


class Allowance:
    """What one worker process lets through: many at once, fewer in the long run.

    ``_lock`` guards the level, which rises with each request and sinks with time.
    """

    def __init__(self, requests_max: int, requests_per_s: float) -> None:
        self._lock = threading.Lock()
        self._edge = Edge(logger, "requests of the demonstration", requests_max)
        self._per_s = requests_per_s
        self._level = 0.0
        self._looked_at = time.monotonic()

    def __repr__(self) -> str:
        return f"<Allowance level={self._level:.0f} of={self._edge.limit}>"

    def take(self) -> bool:
        """Tell whether one more request is let through."""
        with self._lock:
            now = time.monotonic()
            sunk = (now - self._looked_at) * self._per_s
            self._level = max(0.0, self._level - sunk)
            self._looked_at = now
            if self._edge.reached(math.ceil(self._level)):
                return False
            self._level += 1
            return True


def init_app(app: Flask) -> None:
    """Give ``app`` the page, unless its configuration says no.

    Without a SECRET_KEY Flask's own session has none that all workers know: then one is
    kept in the data folder.
    """
    wanted = app.config.setdefault("DEMO", True)
    requests_max = app.config.setdefault("DEMO_REQUESTS_MAX", 4000)
    requests_per_s = app.config.setdefault("DEMO_REQUESTS_PER_S", 500)
    if not isinstance(wanted, bool):
        raise ConfigError(f"DEMO is {wanted!r}; expected true or false")
    for key, value in (
        ("DEMO_REQUESTS_MAX", requests_max),
        ("DEMO_REQUESTS_PER_S", requests_per_s),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise ConfigError(f"{key} is {value!r}; expected a number above 0")
    if not wanted:
        return
    app.extensions[ALLOWANCE] = Allowance(requests_max, requests_per_s)
    app.register_blueprint(demo)
    needs_key = isinstance(app.session_interface, SecureCookieSessionInterface)
    if needs_key and not app.secret_key:
        _, data_dir = app.extensions[EXTENSION].client.location
        try:
            app.secret_key = kept_key(Path(data_dir) / "sessionkey")
        except ConfigError as error:
            logger.warning("the demonstration has no sessions: %s", error)


@demo.get("")
def page() -> str:
    """Answer the page."""
    variants = offered()
    return render_template(
        "demo.html",
        variants=variants,
        counter=COUNTER,
        runs_max=demonstration.RUNS_MAX,
        left_out="" if IN_SESSION in variants else why_left_out(),
    )


@demo.post("/<variant>/<run>")
def answer(variant: str, run: str) -> Response:
    """Answer the next number of a run, and who gave it."""
    chosen = VARIANTS.get(variant)
    if chosen is None or not RUN.fullmatch(run):
        abort(404)
    if chosen not in offered():
        return said(why_left_out(), 404)
    if not current_app.extensions[ALLOWANCE].take():
        refused = said("Too many requests; wait a few seconds.", 429)
        refused.headers["Retry-After"] = str(RETRY_AFTER_S)
        return refused
    if chosen is IN_SESSION and has_no_session():
        return said("This app has no SECRET_KEY, so it has no sessions.", 503)
    try:
        number = chosen.next_number(run)
    except NotAvailable as error:
        return said(str(error), 503)
    return as_json({"number": number, "worker": worker_name()})


def offered() -> list[Variant]:
    """Return the variants for the current app: with the session only if a cookie is it.

    Elsewhere each stranger who asks would leave a session in the app's store.
    """
    is_cookie = isinstance(current_app.session_interface, SecureCookieSessionInterface)
    return [v for v in VARIANTS.values() if is_cookie or v is not IN_SESSION]


def why_left_out() -> str:
    """Say why the session is not among the variants."""
    interface = type(current_app.session_interface).__name__
    return (
        f"“{IN_SESSION.title}” is left out: this app does not keep its sessions in "
        f"Flask's signed cookie, but with {interface}, where each visitor of this page "
        "would leave one."
    )


def has_no_session() -> bool:
    """Tell whether nothing can be put into the session of this request."""
    return current_app.session_interface.is_null_session(session)


@demo.after_request
def guard(response: Response) -> Response:
    """Tell the browser what the page may do, and to keep nothing."""
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"
    return response


def said(message: str, status: int) -> Response:
    """Return an error as JSON."""
    return as_json({"message": message}, status)


def as_json(content: dict[str, object], status: int = 200) -> Response:
    """Return ``content`` in a response whose length is not announced.

    Waitress ends a connection with such a response. So each request comes on a new one,
    as those of different visitors do, and the system deals them out to the workers; six
    connections that stay open may all belong to one.
    """
    text = json.dumps(content) + "\n"
    return Response(iter([text]), status=status, mimetype="application/json")


_worker_names: dict[int, str] = {}


def worker_name() -> str:
    """Return the name of this process, drawn on first use and anew after a fork."""
    return _worker_names.setdefault(os.getpid(), secrets.token_hex(4))
