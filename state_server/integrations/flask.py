"""The Flask extension: shared objects in views, errors as responses.

    state = StateServer(app)            # or StateServer() and state.init_app(app)
    state.get("SomeObj").query()        # in a view, or inside app.app_context()

Configuration is read once, in ``init_app``, from ``app.config``; what was passed to the
constructor stands in for keys that are not there. Values may come from
``app.config.from_prefixed_env()``, which reads them as JSON.

    STATE_SERVER_ADDRESS        unix:///path or tcp://host:port
    STATE_SERVER_DATA_DIR       the data folder of the manager, if not the address
    STATE_SERVER_AUTHKEY        the key as text
    STATE_SERVER_AUTHKEY_FILE   a file that holds the key
    STATE_SERVER_TIMEOUT        seconds until a call is given up
    STATE_SERVER_HANDLE_ERRORS  whether errors become responses (default: true)
    STATE_SERVER_SESSIONS       whether ``flask.session`` is kept here (default: false)

and, where it is:

    STATE_SERVER_SESSION_NAMESPACE    whose sessions (default: the name of the app)
    STATE_SERVER_SESSION_CONFLICT     "merge" (default), "last" or "error"
    STATE_SERVER_SESSION_BYTES_MAX    size of one session (default: 1 MiB)
    STATE_SERVER_SESSION_TOUCH_SHARE  part of the lifetime that passes before a session
                                      that is only read is renewed (default: 0.01)
    STATE_SERVER_SESSION_TIMEOUT      seconds until a call of a session is given up
                                      (default: 5, or STATE_SERVER_TIMEOUT if less)
    STATE_SERVER_SESSIONS_MAX         sessions of the app (default: 1,000,000)

Nothing connects before the first call, and nothing here owns a socket or a thread: an
app may be loaded before its server forks.

Errors become responses like this. An error of the family whose ``status`` is not 500
(see ``state_server.errors``) is an answer to the visitor: it is logged once, and sent
as plain text, or as JSON to those who prefer it, with ``Retry-After`` when the same
call may succeed later. This is an ordinary error handler, so it also answers under
``TESTING``, and a handler of the app's own for a class of the family takes precedence.
An error whose status is 500 is a mistake in code or configuration, and so is whatever a
method raised: Flask treats it as it treats any other, with its log line, its signal,
the app's own page for 500, the debugger, and propagation under ``TESTING`` and
``PROPAGATE_EXCEPTIONS``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from flask import Flask, Response, current_app, has_app_context, json, request

import state_server

from ..errors import StateServerError
from ..messages import DEFAULT_KEY
from ..settings import variable
from .app_config import Config, read_config
from .session_store import SessionStore
from .sessions import StateServerSessionInterface

T = TypeVar("T")

#: The key in ``app.extensions``.
EXTENSION = "state_server"

#: The key there of the client of an app without the extension.
CLIENT = "state_server.client"

#: The text for visitors: it names neither the address nor what was called.
ANSWERS = {
    409: "Another request changed the same thing at the same time; please try again.",
    503: "The service is not available at the moment; please try again.",
    504: "The service did not answer in time; it is not known whether it did the work.",
}

#: Seconds in the header ``Retry-After`` of errors after which a call may be repeated.
RETRY_AFTER_S = 1


@dataclass(frozen=True)
class AppState:
    """What one app has of this extension, in ``app.extensions``."""

    client: state_server.Client
    config: Config
    sessions: SessionStore | None = None


class StateServer:
    """Gives the views of an app the shared objects of a manager.

    Holds no app and no connection: one instance serves any number of apps, each with
    its own configuration. Each key of the configuration has an option, which is its
    default: ``StateServer(session_conflict="error")`` stands for
    ``STATE_SERVER_SESSION_CONFLICT``, and so on. All are checked in ``init_app``.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        address: str | None = None,
        data_dir: str | Path | None = None,
        authkey: str | bytes | None = None,
        authkey_file: str | Path | None = None,
        timeout: float | None = None,
        handle_errors: bool = True,
        sessions: bool = False,
        session_namespace: str | None = None,
        session_conflict: str | None = None,
        session_bytes_max: int | None = None,
        session_touch_share: float | None = None,
        session_timeout: float | None = None,
        sessions_max: int | None = None,
    ) -> None:
        # Taken here, where the arguments are all there is: each but the app is an
        # option, called as its key is.
        given = dict(locals())
        del given["self"], given["app"]
        self._defaults = {variable(option): value for option, value in given.items()}
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the configuration of ``app`` and register with it; connect nothing.

        Raises ``ConfigError`` for a value that does not fit and ``RuntimeError`` when
        the app has a State Server already.
        """
        if EXTENSION in app.extensions:
            raise RuntimeError(
                "A State Server is registered with this app already; use that one "
                "instead of calling init_app() again."
            )
        for key, value in self._defaults.items():
            app.config.setdefault(key, value)
        config = read_config(app.config, app.name)
        client = config.connect()
        sessions = None
        if config.sessions is not None:
            sessions = SessionStore(client, config.sessions)
            app.session_interface = StateServerSessionInterface(sessions)
        app.extensions[EXTENSION] = AppState(client, config, sessions)
        handlers = app.error_handler_spec[None][None]
        if config.handle_errors and StateServerError not in handlers:
            app.register_error_handler(StateServerError, answer_error)

    @overload
    def get(
        self, cls: type[T], key: str = DEFAULT_KEY, *, timeout: float | None = None
    ) -> T: ...

    @overload
    def get(
        self, cls: str, key: str = DEFAULT_KEY, *, timeout: float | None = None
    ) -> Any: ...

    def get(
        self,
        cls: type[Any] | str,
        key: str = DEFAULT_KEY,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Return a handle of the object ``key`` of a shared class or its name.

        Costs nothing until it is used. ``timeout`` is for calls through this handle.
        """
        return self.client.get(cls, key, timeout=timeout)

    @property
    def client(self) -> state_server.Client:
        """Return the client of the current app."""
        return self._state.client

    @property
    def sessions(self) -> SessionStore:
        """Return the sessions of the current app, to be listed and revoked."""
        sessions = self._state.sessions
        if sessions is None:
            raise RuntimeError(
                f"The app {current_app.name!r} does not keep its sessions here; set "
                "STATE_SERVER_SESSIONS = True before init_app(app)."
            )
        return sessions

    @property
    def _state(self) -> AppState:
        try:
            extensions = current_app.extensions
        except RuntimeError:
            raise RuntimeError(
                "The State Server needs an application context; use it in a view, or "
                "inside 'with app.app_context():'. Outside an app, use "
                "state_server.connect()."
            ) from None
        state: AppState | None = extensions.get(EXTENSION)
        if state is None:
            raise RuntimeError(
                f"The app {current_app.name!r} has no State Server; call "
                "init_app(app) when the app is made."
            )
        return state


@overload
def client_of(app: Flask) -> state_server.Client: ...


@overload
def client_of(app: None = None) -> state_server.Client | None: ...


def client_of(app: Flask | None = None) -> state_server.Client | None:
    """Return the client of ``app``, for extensions that stand beside this one.

    Without ``app`` that of the current one, ``None`` outside of any. An app that has no
    State Server gets one client, made of its configuration; raises ``ConfigError``.
    """
    if app is None:
        return client_of(current_app) if has_app_context() else None
    state: AppState | None = app.extensions.get(EXTENSION)
    if state is not None:
        return state.client
    made: state_server.Client | None = app.extensions.get(CLIENT)
    if made is None:
        client = read_config(app.config, app.name).connect()
        made = app.extensions.setdefault(CLIENT, client)
    return made


def answer_error(error: StateServerError) -> Response:
    """Return the response to ``error``, or raise it again when it is a mistake."""
    answer = ANSWERS.get(error.status)
    if answer is None:
        raise error
    current_app.logger.error(
        "%s %r ended with %d: %s: %s",
        request.method,
        request.path,
        error.status,
        type(error).__name__,
        error,
        exc_info=current_app.debug,
    )
    accepted = request.accept_mimetypes
    if accepted.best_match(("text/plain", "application/json")) == "application/json":
        body = {
            "error": type(error).__name__,
            "message": answer,
            "retryable": error.retryable,
        }
        response = Response(json.dumps(body), mimetype="application/json")
    else:
        response = Response(answer + "\n", mimetype="text/plain")
    response.status_code = error.status
    response.headers["Cache-Control"] = "no-store"
    if error.retryable:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response
