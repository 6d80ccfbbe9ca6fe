"""One model in memory, asked by all workers: what is a house worth?

    pip install -e '.[arrays]'
    python start_web.py --app examples.shared_model:create_app \
        --objects examples.shared_model

A model, or a big DataFrame, in a global variable is loaded by every worker process: ten
workers hold it ten times. Here the manager holds it once, and the workers ask it. The
page shows the memory of the manager and of the worker that answered. The workers do not
even import numpy.

``durable=False``: the data come from elsewhere and are loaded anew with the manager, so
there is nothing to keep. ``slow=True``: a question takes a while to compute, which the
manager then leaves to other threads than the one that serves the sockets.

One object answers one question at a time, here in about 20 milliseconds. What is gained
is memory. Where a model is asked more often than that, batch the questions into one
call, or keep the model in each worker after all.
"""

from __future__ import annotations

import importlib.util
import resource
import sys

from flask import Flask, abort, render_template_string, request

from state_server import readonly, share
from state_server.integrations.flask import StateServer

if importlib.util.find_spec("numpy") is None:
    raise ImportError("This example needs numpy; run: pip install -e '.[arrays]'")

SOLD = 1_000_000
NEIGHBOURS = 25

HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>What is a house worth?</title>
<style>
  body { font: 1.1rem/1.6 system-ui; max-width: 36rem; margin: 3rem auto }
  input, button { font: inherit; width: 5rem }
</style>
<h1>What is a house worth?</h1>
<form>
  <label><input name="area" value="{{ area }}"> m²</label>,
  <label><input name="distance" value="{{ distance }}"> km from the centre</label>
  <button>Ask</button>
</form>
<p>About <strong>{{ price }}</strong>: houses like it, among {{ sold }} sold ones, cost
that on average.</p>
<p>Memory of the manager: {{ manager_mib }} MiB. Of the worker process that answered:
{{ worker_mib }} MiB.</p>
</html>
"""


@share(durable=False, slow=True)
class Houses:
    """Sold houses, and what one that is like them may be worth."""

    def __init__(self) -> None:
        import numpy  # Here and not above: only the manager needs it.

        # Made up, where yours would be read: pandas.read_parquet, joblib.load, …
        chance = numpy.random.default_rng(seed=1)
        self._areas = chance.uniform(30, 250, SOLD)
        self._distances = chance.exponential(8, SOLD)
        fair = 5_000 * self._areas * numpy.exp(-self._distances / 25)
        self._prices = fair * chance.normal(1, 0.1, SOLD)

    @readonly
    def estimate(self, area: float, distance: float) -> float:
        """Return the mean price of the houses that are most like this one."""
        unlike = (self._areas - area) ** 2 + (10 * (self._distances - distance)) ** 2
        nearest = unlike.argpartition(NEIGHBOURS)[:NEIGHBOURS]
        return float(self._prices[nearest].mean())

    @readonly
    def memory_mib(self) -> int:
        """Return the most memory that the process of this object has had, in MiB."""
        return peak_memory_mib()


state = StateServer()


def create_app() -> Flask:
    """Return the app."""
    app = Flask(__name__)
    state.init_app(app)

    @app.get("/")
    def page() -> str:
        area = request.args.get("area", 100.0, type=float)
        distance = request.args.get("distance", 5.0, type=float)
        if not (0 < area < 10_000 and 0 <= distance < 10_000):
            abort(400, "There is no such house.")
        houses = state.get(Houses)
        return render_template_string(
            HTML,
            area=area,
            distance=distance,
            price=f"{houses.estimate(area, distance):,.0f}",
            sold=f"{SOLD:,}",
            manager_mib=houses.memory_mib(),
            worker_mib=peak_memory_mib(),
        )

    return app


def peak_memory_mib() -> int:
    """Return the most memory that this process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts it in KiB, macOS in bytes.
    return peak // (1024 * 1024 if sys.platform == "darwin" else 1024)
