"""A poll whose votes appear in every open browser at once.

    python start_web.py --app examples.live_poll:create_app \
        --objects examples.live_poll

Open it in several browsers and vote. Everybody has one vote and may change it; two
votes at the same moment, taken by two worker processes, both count.

The totals come as server-sent events. Where a thread serves each request, as under
waitress, an open stream occupies one, and streams without an end would soon leave none
for the votes. So each worker process gives a place to ``STREAMS_MAX`` streams, half of
its eight threads, for ``STREAM_S`` seconds each. The browser connects again by itself,
after ``RETRY_MS``. Where no place is free, it is told the totals and asks again then: a
large crowd sees the votes up to two seconds late, but votes without delay. A browser
that has gone keeps its place until the next vote, or to the end of the stream. Under
gunicorn's gevent workers a stream costs next to nothing; raise ``STREAMS_MAX`` there.

A stream looks at the totals every ``LOOK_EVERY_S``. That is a call of some 50
microseconds, and as ``totals`` is ``@readonly``, nothing is written. (The manager does
not call back, and a method that waited for the next vote would keep the votes out.)

``durable="journal"`` writes each vote to disk and not all of them with each vote.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from uuid import uuid4

from flask import (
    Flask,
    Response,
    abort,
    redirect,
    render_template_string,
    request,
    session,
    url_for,
)
from werkzeug.wrappers import Response as BaseResponse

from state_server import StateServerError, readonly, share
from state_server.integrations.flask import StateServer

QUESTION = "What shall we drink?"
CHOICES = ("Coffee", "Tea", "Water")
VOTERS_MAX = 100_000

STREAMS_MAX = 4
STREAM_S = 5.0
LOOK_EVERY_S = 0.2
RETRY_MS = 2000

HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ question }}</title>
<style>
  body { font: 1.1rem/1.6 system-ui; max-width: 36rem; margin: 3rem auto }
  button { font: inherit; width: 8rem; margin: .2rem 1rem .2rem 0 }
</style>
<h1>{{ question }}</h1>
<form method="post" action="{{ url_for('vote') }}">
  {% for choice in choices %}
  <div>
    <button name="choice" value="{{ choice }}">{{ choice }}</button>
    <output data-choice="{{ choice }}">{{ totals.get(choice, 0) }}</output>
  </div>
  {% endfor %}
</form>
<script>
  new EventSource({{ url_for('events') | tojson }}).onmessage = (event) => {
    const totals = JSON.parse(event.data);
    for (const output of document.querySelectorAll("output"))
      output.textContent = totals[output.dataset.choice] ?? 0;
  };
</script>
</html>
"""


@share(durable="journal")
class Poll:
    """Who chose what, and how often each choice was made."""

    def __init__(self) -> None:
        self._choices: dict[str, str] = {}
        self._totals: Counter[str] = Counter()

    def vote(self, voter: str, choice: str) -> bool:
        """Take a vote, in place of the voter's former one; tell whether it counts."""
        former = self._choices.get(voter)
        if former is None and len(self._choices) >= VOTERS_MAX:
            return False
        if former is not None:
            self._totals[former] -= 1
        self._choices[voter] = choice
        self._totals[choice] += 1
        return True

    @readonly
    def totals(self) -> dict[str, int]:
        """Return the votes for each choice."""
        return dict(self._totals)


state = StateServer()
places = threading.BoundedSemaphore(STREAMS_MAX)


def create_app() -> Flask:
    """Return the app."""
    app = Flask(__name__)
    app.config["STATE_SERVER_SESSIONS"] = True
    # A form on another site can send a vote here, but not with this site's cookie.
    app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
    state.init_app(app)

    @app.get("/")
    def page() -> str:
        session.setdefault("voter", uuid4().hex)
        totals = state.get(Poll).totals()
        return render_template_string(
            HTML, question=QUESTION, choices=CHOICES, totals=totals
        )

    @app.post("/vote")
    def vote() -> BaseResponse:
        choice = request.form.get("choice")
        if choice not in CHOICES:
            abort(400, "There is no such choice.")
        if "voter" not in session:
            abort(400, "Open the page first, and let it set a cookie.")
        if not state.get(Poll).vote(session["voter"], choice):
            abort(409, "The poll is full.")
        return redirect(url_for("page"), 303)

    @app.get("/events")
    def events() -> Response:
        stream = changes(state.get(Poll, timeout=STREAM_S))
        headers = {"Cache-Control": "no-store"}
        return Response(stream, mimetype="text/event-stream", headers=headers)

    return app


def changes(poll: Poll) -> Iterator[str]:
    """Yield the totals as events: once, and with a place whenever they change."""
    yield f"retry: {RETRY_MS}\n\n"
    has_place = places.acquire(blocking=False)
    ends_at = time.monotonic() + (STREAM_S if has_place else 0.0)
    shown = None
    try:
        while True:
            totals = poll.totals()
            if totals != shown:
                yield f"data: {json.dumps(totals)}\n\n"
                shown = totals
            if time.monotonic() >= ends_at:
                return
            time.sleep(LOOK_EVERY_S)
    except StateServerError:
        # The status was sent long ago. The browser comes again, as after any end.
        return
    finally:
        if has_place:
            places.release()
