"""A shopping cart in the session, filled from two tabs at the same time.

    python start_web.py --app examples.shopping_cart:create_app

``STATE_SERVER_SESSIONS`` keeps ``flask.session`` in the manager instead of the cookie.
Two requests of one visitor that overlap, as from two tabs, save only the keys that they
have changed. So each thing in the cart gets a key of its own: whatever the tabs do at
the same time, nothing is lost. In one list under one key, the later of two requests
would win. The values come back as what they were, here a tuple and a ``Decimal``.

It needs no ``--objects``: every manager has the class that holds the sessions.
"""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal
from uuid import uuid4

from flask import (
    Flask,
    abort,
    redirect,
    render_template_string,
    request,
    session,
    url_for,
)
from werkzeug.wrappers import Response

from state_server.integrations.flask import StateServer

PRICES = {"Tea": Decimal("4.20"), "Cup": Decimal("9.50"), "Honey": Decimal("6.00")}
LINES_MAX = 200

HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Your cart</title>
<style>
  body { font: 1.1rem/1.6 system-ui; max-width: 36rem; margin: 3rem auto }
  button { font: inherit }
  form { display: inline }
</style>
<h1>Your cart</h1>
<ul>
  {% for line, (product, price) in lines.items() %}
  <li>{{ product }}, {{ price }}
    <form method="post" action="{{ url_for('remove', line=line) }}">
      <button>Remove</button>
    </form>
  </li>
  {% else %}
  <li>Nothing yet.</li>
  {% endfor %}
</ul>
<p>Together <strong>{{ total }}</strong></p>
<form method="post" action="{{ url_for('add') }}">
  {% for product, price in prices.items() %}
  <button name="product" value="{{ product }}">{{ product }}, {{ price }}</button>
  {% endfor %}
</form>
<form method="post" action="{{ url_for('empty') }}"><button>Empty it</button></form>
</html>
"""

state = StateServer()


def create_app() -> Flask:
    """Return the app."""
    app = Flask(__name__)
    app.config["STATE_SERVER_SESSIONS"] = True
    # A form on another site can be sent here, but not with this site's cookie. It then
    # meets an empty session, and the visitor's own cart stays as it is.
    app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
    state.init_app(app)

    @app.get("/")
    def cart() -> str:
        # The session begins here and not with the first thing put in: two first things
        # at once would begin two sessions, of which the browser keeps one.
        session.setdefault("began", datetime.now(timezone.utc))
        lines = cart_lines()
        total = sum((price for _, price in lines.values()), Decimal(0))
        return render_template_string(HTML, lines=lines, prices=PRICES, total=total)

    @app.post("/add")
    def add() -> Response:
        product = request.form.get("product", "")
        if product not in PRICES:
            abort(400, "There is no such product.")
        if len(cart_lines()) >= LINES_MAX:
            abort(409, "The cart is full.")
        session[f"line:{uuid4().hex}"] = (product, PRICES[product])
        return redirect(url_for("cart"), 303)

    @app.post("/remove/<line>")
    def remove(line: str) -> Response:
        # Twice is as good as once: another tab may have removed it.
        if line.startswith("line:"):
            session.pop(line, None)
        return redirect(url_for("cart"), 303)

    @app.post("/empty")
    def empty() -> Response:
        # The session ends. What another tab still wanted to put in is not kept.
        session.clear()
        return redirect(url_for("cart"), 303)

    return app


def cart_lines() -> dict[str, tuple[str, Decimal]]:
    """Return what is in the cart, by the key that it has in the session."""
    return {key: value for key, value in session.items() if key.startswith("line:")}
