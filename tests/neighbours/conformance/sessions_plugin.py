"""Puts suites of Flask and its extensions on our sessions, each app on its own."""

from __future__ import annotations

import secrets
from typing import Any

import _pytest.compat
import _pytest.monkeypatch
import flask

import state_server
from state_server.integrations.session_store import SessionConfig, SessionStore
from state_server.integrations.sessions import StateServerSessionInterface

# Flask's conftest wants what newer releases of pytest call otherwise.
if not hasattr(_pytest.monkeypatch, "notset"):
    _pytest.monkeypatch.notset = _pytest.compat.NOTSET

client = state_server.connect()


class OurInterface:
    """Stands for the attribute of the class ``Flask``; a subclass may have another."""

    def __get__(self, app: Any, owner: type | None = None) -> Any:
        """Make the interface of an app when it is first asked for."""
        if app is None:
            return self
        app.session_interface = self.made_for(app, SessionConfig(secrets.token_hex(8)))
        return app.session_interface

    def made_for(self, app: Any, config: SessionConfig) -> Any:
        """Make the interface of an app."""
        return StateServerSessionInterface(SessionStore(client, config))


flask.Flask.session_interface = OurInterface()
