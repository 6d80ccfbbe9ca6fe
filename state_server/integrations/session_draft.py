"""A session as one request has it: what was read, what was changed, how it is saved.

Values are packed and compared here, each under its key, and are opaque to the manager.
Flask may not enter; it is met in ``sessions``.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from ..codec import allow, decode, encode
from ..errors import NotAllowed, StateServerError, TooLarge
from ..messages import Reference
from ..session_answers import Outcome, Rule, holds_something
from .plain_values import plain
from .session_store import Loaded, SessionStore, id_beside, name_of

log = logging.getLogger("state_server.sessions")

#: Values of these types are packed as they were unpacked, always.
_ATOMS = (type(None), bool, int, float, str, bytes)

# Text that templates need not escape is a value of Flask's own.
allow(Markup)


class Changes(NamedTuple):
    """What a request did to the values, each packed."""

    added: dict[str, bytes]
    replaced: dict[str, bytes]
    removed: tuple[str, ...]

    def names(self) -> list[str]:
        """Return the keys that were changed."""
        return [*self.added, *self.replaced, *self.removed]


class Values:
    """The values of a session in one request. Used by the thread of that request.

    A value is unpacked when it is first asked for, and packed again in the end, to see
    whether it was changed in place. What it is then compared with was packed in this
    process as well: a set may be packed in another order elsewhere.
    """

    def __init__(
        self,
        packed: Mapping[str, bytes],
        reference: Callable[[str, str], object] = Reference,
    ) -> None:
        self._reference = reference
        self._stored = dict(packed)
        self._now: dict[str, Any] = dict.fromkeys(packed, _NOT_READ)
        self._repacked: dict[str, bytes] = {}

    def __getitem__(self, key: str) -> Any:
        """Return a value; raise ``KeyError``, or ``NotAllowed`` if it is unreadable."""
        value = self._now[key]
        if value is _NOT_READ:
            value = self._unpacked(key)
            if not isinstance(value, _ATOMS):
                self._repacked[key] = pack(key, value)
            self._now[key] = value
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        """Set a value. Its key becomes plain text, if it is text of another class."""
        self._now[_plain_key(key)] = value

    def __delitem__(self, key: str) -> None:
        """Remove a value; raise ``KeyError`` if there is none."""
        del self._now[key]

    def __contains__(self, key: object) -> bool:
        """Tell whether there is a value, without reading it."""
        return key in self._now

    def __iter__(self) -> Iterator[str]:
        """Return the keys."""
        return iter(self._now)

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._now)

    def put(self, values: Mapping[str, Any]) -> None:
        """Let these be the values."""
        self._now = {_plain_key(key): value for key, value in values.items()}

    def changes(self) -> Changes:
        """Return what differs from what was stored.

        Raises ``NotAllowed`` or ``TooLarge`` naming the key of a value that cannot be
        packed.
        """
        added, replaced = {}, {}
        for key, value in self._now.items():
            if value is _NOT_READ:
                continue
            packed = pack(key, value)
            if key not in self._stored:
                added[key] = packed
            elif packed not in (self._stored[key], self._repacked.get(key)):
                replaced[key] = packed
        removed = tuple(key for key in self._stored if key not in self._now)
        return Changes(added, replaced, removed)

    def whole(self) -> dict[str, bytes]:
        """Return all values, packed; what was not read is as it was stored."""
        return {
            key: self._stored[key] if value is _NOT_READ else pack(key, value)
            for key, value in self._now.items()
        }

    def note_saved(self, changes: Changes) -> None:
        """Take what was saved for what is stored."""
        self._stored.update(changes.added)
        self._stored.update(changes.replaced)
        for key in changes.removed:
            del self._stored[key]
        for key in changes.names():
            self._repacked.pop(key, None)

    def _unpacked(self, key: str) -> Any:
        try:
            return decode(self._stored[key], reference=self._reference)
        except StateServerError as error:
            raise type(error)(
                f"The value {key!r} of the session cannot be read: {error}"
            ) from error


_NOT_READ = object()


def _plain_key(key: str) -> str:
    return str.__str__(key) if isinstance(key, str) else key


def pack(key: str, value: object) -> bytes:
    """Return a value as bytes; raise an error that names the key if it cannot be.

    What may not travel in it becomes what Flask's own session would make of it.
    """
    try:
        try:
            return encode(value)
        except NotAllowed:
            return encode(plain(value))
    except (NotAllowed, TooLarge) as error:
        raise type(error)(
            f"The session was not saved and stays as it was: its value {key!r} cannot "
            f"be kept. {error}"
        ) from error


def new_id() -> str:
    """Return a new id: 256 random bits, as 43 characters."""
    return secrets.token_urlsafe(32)


class Draft:
    """One session in one request, and used by the thread of that request alone.

    ``values`` is what the request works with. ``former`` is the id under which the
    session was read, empty for a new one; ``sid`` the one that it will be saved under.
    ``has_changed`` is known after ``save``.
    """

    def __init__(
        self,
        store: SessionStore,
        session_id: str,
        make_id: Callable[[], str] = new_id,
        first_id: str = "",
    ) -> None:
        """Read the session with this id; without one, or if there is none: a new one.

        ``make_id`` makes ids; ``first_id``, if there is one, is taken for a new session
        before that. Raises an error of the family when the manager cannot be asked.
        """
        loaded = store.load(name_of(session_id)) if session_id else None
        self.former = "" if loaded is None else session_id
        self.user = "" if loaded is None else loaded.user
        self.values = Values(
            {} if loaded is None else loaded.packed, reference=store.client.get
        )
        self._store = store
        self._make_id = make_id
        self._loaded = loaded
        self._sid = self.former or first_id
        self._cleared = False
        self.has_changed = False
        self._is_over = False

    @property
    def sid(self) -> str:
        """Return the id under which the session will be saved."""
        if not self._sid:
            self._sid = (
                id_beside(name_of(self.former), self._make_id)
                if self.former
                else self._make_id()
            )
        return self._sid

    def regenerate(self) -> None:
        """Have the session saved under a new id; the old one is dead then."""
        self._sid = ""

    def clear(self) -> None:
        """Remove everything. What is put in now is another session, with a new id."""
        self.values = Values({})
        self.user = self._sid = ""
        self._cleared = True

    def save(self, lifetime_s: float, *, changed: bool, renew: bool) -> Outcome | None:
        """Tell the manager in one call what this request did; return what came of it.

        ``None``: there was nothing to tell. ``changed``: save it even if no value
        differs from what was read. ``renew``: prolong a session that was only read, if
        that is due. After an error the session is as it was, and this draft saves no
        more.
        """
        if self._is_over:
            return None
        # Until the manager has said that all is well.
        self._is_over = True
        changes = self.values.changes()
        renamed = self._sid != self.former
        begins = self._loaded is None or self._cleared
        self.has_changed = changed or renamed or bool(changes.names())
        if begins:
            what, version = self._begun(changes, lifetime_s)
            # One that is bound, or was cleared, may hold nothing.
            self.has_changed = self.has_changed or what is not None
        elif self.has_changed or (renew and self._is_due(lifetime_s)):
            what, version = self._saved(changes, lifetime_s, renamed=renamed)
        else:
            what, version = None, 0
        if what is Outcome.SAVED:
            self._go_on(changes, version)
        if what is Outcome.GONE and self.has_changed:
            log.warning(
                "A session ended (by logout, revocation or expiry) while a request "
                "that changed it still ran; these changes were dropped: %s",
                ", ".join(map(repr, changes.names()[:20])) or "a new id",
            )
        self._is_over = what not in (None, Outcome.SAVED)
        return what

    def _begun(self, changes: Changes, lifetime_s: float) -> tuple[Outcome | None, int]:
        """Begin a session, in the place of one that was cleared or by itself.

        Nothing was stored of it before, so what it holds was added.
        """
        former = self.former and name_of(self.former)
        if self.user or holds_something(self.values):
            return self._store.create(
                name_of(self.sid),
                changes.added,
                lifetime_s=lifetime_s,
                user=self.user,
                in_place_of=former,
            )
        if former:
            self._store.end(former)
        return (Outcome.EMPTIED if self._cleared else None), 0

    def _saved(
        self, changes: Changes, lifetime_s: float, *, renamed: bool
    ) -> tuple[Outcome, int]:
        """Change the session that was read."""
        assert self._loaded is not None
        added, replaced, removed = changes
        if self._store.config.conflict == Rule.LAST and changes.names():
            added, replaced = self.values.whole(), {}
        return self._store.save(
            name_of(self.former),
            self._loaded.version,
            added,
            replaced,
            removed,
            lifetime_s=lifetime_s,
            user=None if self.user == self._loaded.user else self.user,
            new_name=name_of(self.sid) if renamed else "",
        )

    def _go_on(self, changes: Changes, version: int) -> None:
        """Take what was saved for what was read: Flask may save a second time."""
        self.values.note_saved(changes)
        self.former = self.sid
        self._loaded = Loaded(version, 0.0, self.user, {})
        self._cleared = False

    def _is_due(self, lifetime_s: float) -> bool:
        assert self._loaded is not None
        share = self._store.config.touch_share
        return self._loaded.idle_s >= lifetime_s * share
