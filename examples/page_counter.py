"""A counter for each page, kept on disk.

    python start_web.py --app examples.page_counter:create_app \
        --objects examples.page_counter

Every visit counts once, whichever worker process answers it. Stop everything, start it
again, and the numbers go on.

``PageCounter`` is an ordinary class without a lock: the manager lets one call at a time
into each object, and has written the number to disk before the visitor sees it. Each
page has an object of its own, whose key is the path of the page. An object is made when
it is first asked for, so the view lets nobody make up paths.
"""

from __future__ import annotations

from flask import Flask, abort, render_template_string, request

from state_server import readonly, share
from state_server.integrations.flask import StateServer

PAGES = {"home": "Welcome", "news": "What is new", "about": "About us"}

HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>body { font: 1.1rem/1.6 system-ui; max-width: 36rem; margin: 3rem auto }</style>
<h1>{{ title }}</h1>
<p>You are visitor number <strong>{{ visits }}</strong> of this page.</p>
<nav>
  {% for name in pages %}<a href="{{ url_for('page', name=name) }}">{{ name }}</a>
  {% endfor %}
</nav>
</html>
"""


@share
class PageCounter:
    """How often one page was visited."""

    def __init__(self) -> None:
        self._visits = 0

    def visit(self) -> int:
        """Count one visit; return how many there were with it."""
        self._visits += 1
        return self._visits

    @readonly
    def visits(self) -> int:
        """Return how many there were."""
        return self._visits


state = StateServer()


def create_app() -> Flask:
    """Return the app."""
    app = Flask(__name__)
    state.init_app(app)

    @app.get("/", defaults={"name": "home"})
    @app.get("/<name>")
    def page(name: str) -> str:
        if name not in PAGES:
            abort(404)
        counter = state.get(PageCounter, name)
        # HEAD comes here as well, and shows nobody the page.
        visits = counter.visit() if request.method == "GET" else counter.visits()
        return render_template_string(
            HTML, title=PAGES[name], pages=PAGES, visits=visits
        )

    return app
