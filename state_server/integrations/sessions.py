"""Server-side sessions for Flask: the session of a request, and its cookie.

    app.config["STATE_SERVER_SESSIONS"] = True
    state = StateServer(app)            # see ``flask`` in this package

``session`` is used as ever. It is read from the manager when a view first looks at it,
and saved in one call that changes only the keys that this request has changed. The
cookie holds a random id and nothing else, so it needs neither a signature nor a
``SECRET_KEY``; an id that the manager does not know is never taken over.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, cast

from flask import Flask, Request, Response
from flask.globals import app_ctx
from flask.sessions import SessionInterface, SessionMixin

from ..errors import StateServerError
from ..session_answers import Outcome
from .session_draft import Draft
from .session_store import SessionStore, name_of

#: What an id of ours looks like; anything else in a cookie is not asked for.
_ID = re.compile(r"[A-Za-z0-9_-]{43}")

_USER_LENGTH_MAX = 255


class StateServerSession(SessionMixin):
    """The session of one visitor in one request, and used by its thread alone.

    Nothing is read before the first access. With a ``failure``, reading it has failed
    already, and every access says so.
    """

    def __init__(
        self,
        store: SessionStore,
        cookie: str | None,
        failure: StateServerError | None = None,
    ) -> None:
        self.accessed = False
        self._assigned = False
        self._is_forced = False
        self._store = store
        self._cookie = cookie
        self._draft: Draft | None = None
        self._failure = failure

    # A mapping ---------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        """Return a value."""
        return self._read().values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        """Set a value; its key is text."""
        if not isinstance(key, str):
            raise TypeError(f"The key of a value in the session is text, not {key!r}.")
        self._read().values[key] = value
        self._assigned = True

    def __delitem__(self, key: str) -> None:
        """Remove a value."""
        del self._read().values[key]
        self._assigned = True

    def __contains__(self, key: object) -> bool:
        """Tell whether there is a value."""
        return key in self._read().values

    def __iter__(self) -> Iterator[str]:
        """Return the keys."""
        return iter(self._read().values)

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._read().values)

    def __or__(self, other: Any) -> Any:
        """Return a dictionary of the values and those of ``other``, which win."""
        if not isinstance(other, (dict, StateServerSession)):
            return NotImplemented
        return {**self, **other}

    def __ror__(self, other: Any) -> Any:
        """Return a dictionary of those of ``other`` and the values, which win."""
        return {**other, **self} if isinstance(other, dict) else NotImplemented

    def __ior__(self, other: Any) -> Any:
        """Set the values of a mapping, or of pairs, as ``update`` does."""
        self.update(other)
        return self

    def __repr__(self) -> str:
        """Name the keys, not the values; read nothing for that."""
        keys = "not read yet" if self._draft is None else list(self._draft.values)
        return f"<session: {keys}>"

    def copy(self) -> dict[str, Any]:
        """Return the values as a dictionary."""
        return dict(self)

    def clear(self) -> None:
        """Remove everything, and end the session: its id is dead from then on.

        What is put in afterwards begins a new session, with a new id.
        """
        self._read().clear()
        self._assigned = True

    # What else there is to a session -----------------------------------------------

    @property
    def new(self) -> bool:  # type: ignore[override]
        """Tell whether there is no such session in the manager yet."""
        return not self._read().former

    @property
    def modified(self) -> bool:
        """Tell whether anything was assigned; once saved, whether it has changed.

        Need not be set for values that are changed in place. Setting it renews the
        session and its cookie, whether anything has changed or not.
        """
        return self._assigned or self._is_forced

    @modified.setter
    def modified(self, is_modified: bool) -> None:
        """Have the session and its cookie renewed."""
        self._assigned = self._is_forced = is_modified

    @property
    def sid(self) -> str:
        """Return what the cookie holds, or will hold: a secret of the visitor's."""
        return self._read().sid

    @property
    def id(self) -> str:
        """Return the id of the session in lists (``SessionInfo.id``); no secret."""
        return name_of(self.sid)

    @property
    def user(self) -> str | None:
        """Return whom the session is bound to."""
        return self._read().user or None

    def bind_user(self, user: str | None) -> None:
        """Bind the session to a user, so that it is among the sessions of that user.

        It gets a new id with that (``regenerate``), unless it is theirs already: who
        knew the id before the login shall not know it afterwards. ``None``: unbind.
        Raises ``ValueError`` for a user that is not text of 1 to 255 characters.
        """
        if user is not None and not (
            isinstance(user, str) and 0 < len(user) <= _USER_LENGTH_MAX
        ):
            raise ValueError(
                f"A session is bound to a user by text of 1 to {_USER_LENGTH_MAX} "
                f"characters, not {user!r:.300}; for a number, use str()."
            )
        draft = self._read()
        if (user or "") != draft.user:
            draft.user = user or ""
            self.regenerate()

    def regenerate(self) -> None:
        """Give the session a new id when it is saved; the old id is dead then."""
        self._read().regenerate()
        self._assigned = True

    def save(self, lifetime_s: float, *, renew: bool) -> Outcome | None:
        """Save what this request changed; return what became of the session.

        ``None``: nothing. ``renew``: whether to prolong a session that was only read,
        if that is due. After an error the session is as it was.
        """
        draft = self._draft
        if draft is None:
            return None
        what = draft.save(lifetime_s, changed=self._is_forced, renew=renew)
        # The comparison knows better: of changes in place, and of values assigned that
        # were there already, as the flag ``permanent`` is in many an app.
        self._assigned = draft.has_changed
        return what

    def _read(self) -> Draft:
        """Return the draft; ask the manager for it at the first access.

        What went wrong then goes wrong again: a request waits for that once.
        """
        if self._draft is None:
            self.accessed = True
            if self._failure is not None:
                raise self._failure
            session_id = self._cookie or ""
            if not _ID.fullmatch(session_id):
                session_id = ""
            try:
                self._draft = Draft(self._store, session_id)
            except StateServerError as error:
                self._failure = error
                raise
        return self._draft


class StateServerSessionInterface(SessionInterface):
    """Opens and saves the sessions of one app; set by ``StateServer``."""

    session_class = StateServerSession

    def __init__(self, store: SessionStore) -> None:
        self.store = store

    def open_session(self, app: Flask, request: Request) -> StateServerSession:
        """Return the session of a request; nothing is asked yet."""
        cookie = request.cookies.get(self.get_cookie_name(app))
        return self.session_class(self.store, cookie)

    def save_session(
        self, app: Flask, session: SessionMixin, response: Response
    ) -> None:
        """Save what a request changed, and set or delete the cookie.

        Where that fails with an error of the family, the response becomes the one that
        the app has for that error, as if a view had raised it.
        """
        session = cast("StateServerSession", session)
        try:
            what = session.save(
                app.permanent_session_lifetime.total_seconds(),
                renew=app.config["SESSION_REFRESH_EACH_REQUEST"],
            )
        except StateServerError as error:
            become_answer(app, response, error)
            what = None
        if session.accessed:
            response.vary.add("Cookie")
        name = self.get_cookie_name(app)
        if what is Outcome.EMPTIED:
            response.delete_cookie(name, **self._attributes(app))
        elif what is Outcome.SAVED and self.should_set_cookie(app, session):
            response.set_cookie(
                name,
                session.sid,
                expires=self.get_expiration_time(app, session),
                **self._attributes(app),
            )

    def regenerate(self, session: SessionMixin) -> None:
        """Give a session a new id; the old one is dead when this request ends."""
        cast("StateServerSession", session).regenerate()

    def _attributes(self, app: Flask) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            "domain": self.get_cookie_domain(app),
            "path": self.get_cookie_path(app),
            "secure": self.get_cookie_secure(app),
            "httponly": self.get_cookie_httponly(app),
            "samesite": self.get_cookie_samesite(app),
        }
        # Flask has it since 3.1.
        partitioned = getattr(self, "get_cookie_partitioned", None)
        if partitioned is not None:
            attributes["partitioned"] = partitioned(app)
        return attributes


def become_answer(app: Flask, response: Response, error: StateServerError) -> None:
    """Turn a response into the one that the app's error handlers have for ``error``.

    Sessions are saved after Flask's own place for error handlers. Raises ``error``
    again where no handler answers it; to be called while it is handled.
    """
    handle: Callable[..., Any] = app.handle_user_exception
    # Flask 3.2 hands its context on.
    wants_context = len(inspect.signature(handle).parameters) > 1
    context = [app_ctx._get_current_object()] if wants_context else []  # type: ignore[attr-defined]
    answer = app.make_response(handle(*context, error))
    close = getattr(response.response, "close", None)
    if close is not None:
        close()
    response.direct_passthrough = answer.direct_passthrough
    response.status = answer.status
    response.headers = answer.headers
    response.response = answer.response
