"""The app of ``served_app`` as an ASGI application, through a2wsgi."""

from __future__ import annotations

from a2wsgi import WSGIMiddleware

from .served_app import app as wsgi_app

app = WSGIMiddleware(wsgi_app)
