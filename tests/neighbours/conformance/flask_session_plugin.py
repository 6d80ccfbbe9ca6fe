"""The same by way of Flask-Session: its sessions, with our store below them."""

from __future__ import annotations

from typing import Any

import flask
from sessions_plugin import OurInterface, client

from state_server.integrations.flask_session import FlaskSessionInterface
from state_server.integrations.session_store import SessionConfig


class OurInterfaceForFlaskSession(OurInterface):
    """Makes interfaces for those who use Flask-Session."""

    def made_for(self, app: Any, config: SessionConfig) -> Any:
        """Make the interface of an app."""
        return FlaskSessionInterface(app, client, permanent=False, config=config)


flask.Flask.session_interface = OurInterfaceForFlaskSession()
