"""An interface for those who use Flask-Session and stay with it.

    app.session_interface = FlaskSessionInterface(app, state_server.connect())

Flask-Session decides what it has always decided: ids, cookies, ``SESSION_PERMANENT``,
the signer. What is below it is the store of our own sessions, so that overlapping
requests lose no key, types are kept, and values changed in place are noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, cast

from flask import Flask, Request, Response
from flask_session.base import ServerSideSession, ServerSideSessionInterface
from flask_session.defaults import Defaults

from ..client import Client
from ..errors import StateServerError
from ..session_answers import Outcome
from .session_draft import Draft
from .session_store import SessionConfig, SessionStore, name_of, namespace_of
from .sessions import StateServerSession, become_answer


class _Retrieved(dict[str, Any]):
    """What was read, on its way from the interface to the session."""

    def __init__(self, draft: Draft) -> None:
        super().__init__((key, draft.values[key]) for key in draft.values)
        self.draft = draft


class FlaskSession(ServerSideSession):  # type: ignore[misc]
    """A session of Flask-Session with the draft that it was read from.

    ``is_over``: it has ended, or could not be saved. Used by one request.
    """

    def __init__(
        self,
        initial: Mapping[str, Any] | None = None,
        sid: str | None = None,
        permanent: bool | None = None,
    ) -> None:
        self.draft = initial.draft if isinstance(initial, _Retrieved) else None
        self.is_over = False
        super().__init__(initial, sid, permanent)

    def clear(self) -> None:
        """Remove everything; what is put in now begins a session with another id."""
        super().clear()
        if self.draft is not None:
            self.draft.clear()


class FlaskSessionInterface(ServerSideSessionInterface):  # type: ignore[misc]
    """Keeps the sessions of Flask-Session in a manager; for ``app.session_interface``.

    ``client``: what ``state_server.connect`` returned. ``config``: as for our own
    sessions; without it their defaults hold, with the name of the app as namespace.
    The other arguments are those of Flask-Session.
    """

    session_class = FlaskSession
    ttl = True

    def __init__(
        self,
        app: Flask,
        client: Client,
        key_prefix: str = Defaults.SESSION_KEY_PREFIX,
        use_signer: bool = Defaults.SESSION_USE_SIGNER,
        permanent: bool = Defaults.SESSION_PERMANENT,
        sid_length: int = Defaults.SESSION_ID_LENGTH,
        serialization_format: str = Defaults.SESSION_SERIALIZATION_FORMAT,
        config: SessionConfig | None = None,
    ) -> None:
        super().__init__(
            app,
            key_prefix=key_prefix,
            use_signer=use_signer,
            permanent=permanent,
            sid_length=sid_length,
            serialization_format=serialization_format,
        )
        self.store = SessionStore(
            client, config or SessionConfig(namespace_of(app.name))
        )

    def should_set_storage(self, app: Flask, session: FlaskSession) -> bool:
        """Leave it to the comparison of the values whether there is anything to save.

        ``modified`` says nothing of values that were changed in place.
        """
        return True

    def should_set_cookie(self, app: Flask, session: FlaskSession) -> bool:
        """Tell whether to set the cookie: never that of a session that has ended."""
        return not session.is_over and bool(super().should_set_cookie(app, session))

    def open_session(
        self, app: Flask, request: Request
    ) -> FlaskSession | StateServerSession:
        """Return the session of a request.

        Here Flask would answer any error with 500. One that says so when a view looks
        at it is answered as an error of that view.
        """
        try:
            return cast("FlaskSession", super().open_session(app, request))
        except StateServerError as error:
            return StateServerSession(self.store, None, error)

    def save_session(
        self, app: Flask, session: FlaskSession | StateServerSession, response: Response
    ) -> None:
        """Save the session; an error of the family becomes the app's answer to it."""
        if isinstance(session, StateServerSession) or session.is_over:
            return
        draft = session.draft
        try:
            super().save_session(app, session, response)
            former = "" if draft is None or session else draft.former
            if session.modified and former not in ("", self._get_store_id(session.sid)):
                # Flask-Session has ended the new id, which is the one that it knows.
                self._delete_session(former)
        except StateServerError as error:
            session.is_over = True
            become_answer(app, response, error)

    def regenerate(self, session: FlaskSession | StateServerSession) -> None:
        """Give the session a new id when it is saved; the old id is dead then."""
        if isinstance(session, StateServerSession):
            session.regenerate()
            return
        if session.draft is None:
            super().regenerate(session)
            return
        session.draft.regenerate()
        self._name(session, session.draft)
        session.modified = True

    def _retrieve_session_data(self, store_id: str) -> dict[str, Any] | None:
        draft = Draft(self.store, store_id, self._new_store_id)
        return _Retrieved(draft) if draft.former else None

    def _delete_session(self, store_id: str) -> None:
        self.store.end(name_of(store_id))

    def _upsert_session(
        self, session_lifetime: timedelta, session: FlaskSession, store_id: str
    ) -> None:
        draft = session.draft or Draft(self.store, "", self._new_store_id, store_id)
        draft.values.put(session)
        what = draft.save(
            session_lifetime.total_seconds(),
            changed=False,
            renew=self.app.config["SESSION_REFRESH_EACH_REQUEST"],
        )
        session.draft = draft
        session.is_over = what in (Outcome.EMPTIED, Outcome.GONE)
        self._name(session, draft)

    def _new_store_id(self) -> str:
        return str(self._get_store_id(self._generate_sid(self.sid_length)))

    def _name(self, session: FlaskSession, draft: Draft) -> None:
        session.sid = draft.sid.removeprefix(self.key_prefix)
