"""A page that takes two seconds to make, and is made once for all who ask.

    pip install -e '.[cache]'
    python start_web.py --app examples.slow_page:create_app

Fifty visitors may come at once, to several worker processes, while nothing is cached:
``single_flight=True`` lets one of them compute, and the others wait for that value. The
page shows who computed it and when, so all fifty see the same line. For a minute after
the value has ended, ``stale_s`` gives the old one to those who would have to wait.

Who waits occupies a thread of the worker, as whoever computes does. If the manager is
away the page is computed each time, and nobody gets an error.

``Cache`` is Flask-Caching with State Server as its backend: ``memoize``, ``delete`` and
all else are there. It needs no ``--objects``.
"""

from __future__ import annotations

import os
import time
from datetime import datetime

from flask import Flask, render_template_string

from state_server.integrations.flask_caching import Cache

COMPUTING_S = 2.0

HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>A slow page</title>
<style>body { font: 1.1rem/1.6 system-ui; max-width: 36rem; margin: 3rem auto }</style>
<h1>A slow page</h1>
<p>Computed by process <strong>{{ process }}</strong>
at <strong>{{ moment.strftime("%H:%M:%S.%f") }}</strong>. Ask again: within ten seconds
you will read the same.</p>
</html>
"""

# On a busy machine an answer may take more than the usual second, and a page takes two.
cache = Cache(config={"CACHE_OPTIONS": {"call_timeout_s": 3.0}})


def create_app() -> Flask:
    """Return the app."""
    app = Flask(__name__)
    cache.init_app(app)

    @app.get("/")
    @cache.cached(timeout=10, single_flight=True, stale_s=60, lease_s=30)
    def report() -> str:
        time.sleep(COMPUTING_S)
        return render_template_string(HTML, process=os.getpid(), moment=datetime.now())

    return app
