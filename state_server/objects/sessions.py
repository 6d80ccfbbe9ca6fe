"""The sessions of a web app: one shard of them is one object.

A session is kept whole in one shard, its values as bytes that the web side has packed
and that nobody here looks into. A session is named by a digest of the id in the
visitor's cookie, so that what is on disk lets nobody in.
"""

from __future__ import annotations

import heapq
import operator
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..replayable import now
from ..session_answers import Answer, Outcome, Rule, holds_something
from ..sharing import readonly

#: Sessions looked at for their expiry with each change, and when the shard is full.
_LOOKED_AT = 4
_LOOKED_AT_WHEN_FULL = 256


@dataclass(slots=True)
class _Session:
    """One session. A value is kept with the version in which it was last changed."""

    user: str
    created: float
    seen: float
    expires: float
    version: int = 0
    values: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def size(self) -> int:
        """Return the bytes of all keys and values."""
        return _size({key: value for key, (_, value) in self.values.items()})


class SessionShard:
    """Some of the sessions of one app, by name.

    Journalled: nothing here may depend on anything but the arguments, the object and
    ``now()``, and there are no sets whose order could matter, which its record says as
    well (``keeps_order``). Times are seconds since 1970 by the manager's clock, sizes
    are bytes.

    ``_sessions`` is in the order of the clearing hand, see ``_clear_away``. ``_users``
    holds the names of the sessions that were bound to a user, under that user.
    """

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._users: dict[str, dict[str, None]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what is kept: plain rows, in order; the users are in them."""
        fields = operator.attrgetter(*_Session.__slots__)
        return {
            "sessions": [
                (name, *fields(session)) for name, session in self._sessions.items()
            ]
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Bring the sessions back, and the index of their users."""
        SessionShard.__init__(self)
        for name, user, *fields in state["sessions"]:
            session = self._sessions[name] = _Session("", *fields)
            self._bind(name, session, user)

    @readonly
    def load(self, name: str) -> tuple[int, float, str, dict[str, bytes]] | None:
        """Return version, seconds since it was last seen, user, and values.

        ``None``: there is no such session, or it has ended.
        """
        time = now()
        session = self._living(name, time)
        if session is None:
            return None
        values = {key: value for key, (_, value) in session.values.items()}
        return session.version, max(0.0, time - session.seen), session.user, values

    def create(
        self,
        name: str,
        values: Mapping[str, bytes],
        *,
        user: str,
        lifetime_s: float,
        bytes_max: int,
        sessions_max: int,
        in_place_of: str = "",
    ) -> Answer:
        """Begin a session; one that it takes the place of has ended with that.

        ``name`` must be new: what exists is never overwritten. ``in_place_of`` must
        live: who has read a session that has ended meanwhile begins none with what it
        held. Return an answer, see ``Outcome``.
        """
        time = now()
        self._clear_away(time, _LOOKED_AT)
        if name in self._sessions or (
            in_place_of and self._living(in_place_of, time) is None
        ):
            return Outcome.GONE.value, 0
        if _size(values) > bytes_max:
            return Outcome.TOO_LARGE.value, _largest(values)
        if not in_place_of and not self._has_room(sessions_max, time):
            return Outcome.FULL.value, 0
        self._end(in_place_of)
        session = _Session("", time, time, time + lifetime_s, 1)
        session.values = {key: (1, value) for key, value in values.items()}
        self._sessions[name] = session
        self._bind(name, session, user)
        return Outcome.SAVED.value, 1

    def save(
        self,
        name: str,
        base: int,
        added: Mapping[str, bytes],
        replaced: Mapping[str, bytes],
        removed: Iterable[str],
        *,
        rule: str,
        user: str | None,
        lifetime_s: float,
        bytes_max: int,
        new_name: str = "",
    ) -> Answer:
        """Change a session as one request did that had read version ``base`` of it.

        ``rule``: ``"merge"`` takes over the keys that the request changed and leaves
        all others, ``"error"`` does so unless somebody else has changed one of them
        since, ``"last"`` leaves nothing but ``added``. Without changes, the session is
        only marked as seen. ``user``: whom to bind it to; ``""`` for nobody, ``None``
        for no change. ``new_name``: what the session is called from now on.

        Only what exists is changed: a session that has ended is not brought back.
        Return an answer, see ``Outcome``. Raises ``ValueError`` for another rule.
        """
        chosen = Rule(rule)
        time = now()
        self._clear_away(time, _LOOKED_AT)
        session = self._living(name, time)
        if session is None or (new_name and new_name in self._sessions):
            return Outcome.GONE.value, 0
        gone = dict.fromkeys(removed)
        changed = {**added, **replaced}
        if changed or gone:
            if chosen is Rule.ERROR:
                key = _contested(session, base, added, [*replaced, *gone])
                if key is not None:
                    return Outcome.CONFLICT.value, key
            former = session.size()
            values = _merged(session, changed, gone, whole=chosen is Rule.LAST)
            size = _size({key: value for key, (_, value) in values.items()})
            # A session may always shrink, even where the limit was lowered since.
            if size > bytes_max and size > former:
                return Outcome.TOO_LARGE.value, _largest(changed)
            if holds_something(session.values) and not holds_something(values):
                self._end(name)
                return Outcome.EMPTIED.value, 0
            session.version += 1
            session.values = values
        session.seen, session.expires = time, time + lifetime_s
        self._bind(name, session, user)
        if new_name:
            self._rename(name, new_name)
        return Outcome.SAVED.value, session.version

    def end(self, name: str) -> bool:
        """End a session; tell whether there was one."""
        self._clear_away(now(), _LOOKED_AT)
        return self._end(name)

    def end_user(self, user: str, keep: str = "") -> int:
        """End the sessions of a user, except for one; return how many there were."""
        time = now()
        self._clear_away(time, _LOOKED_AT)
        names = [name for name in self._users.get(user, ()) if name != keep]
        living = [name for name in names if self._living(name, time)]
        for name in names:
            self._end(name)
        return len(living)

    @readonly
    def overview(
        self, user: str | None, count_max: int
    ) -> list[tuple[str, str, float, float, float, int]]:
        """Return name, user, created, seen, expires and bytes of each session.

        ``user``: whose; ``None`` for all. The ``count_max`` that were seen latest, and
        of these the latest first.
        """
        time = now()
        names = self._sessions if user is None else self._users.get(user, {})
        living = ((name, self._living(name, time)) for name in names)
        found = heapq.nlargest(
            count_max,
            ((name, session) for name, session in living if session is not None),
            key=lambda item: item[1].seen,
        )
        return [
            (
                name,
                session.user,
                session.created,
                session.seen,
                session.expires,
                session.size(),
            )
            for name, session in found
        ]

    def _living(self, name: str, time: float) -> _Session | None:
        session = self._sessions.get(name)
        return None if session is None or session.expires <= time else session

    def _clear_away(self, time: float, count: int) -> None:
        """Remove what has expired among the next few sessions, as a clock's hand goes.

        Each change looks at four sessions and adds one at most: the hand comes round
        quickly enough that, where sessions come and go steadily, a quarter of those in
        memory have expired at most. Nobody can read them meanwhile.
        """
        for _ in range(min(count, len(self._sessions))):
            name = next(iter(self._sessions))
            if self._sessions[name].expires <= time:
                self._end(name)
            else:
                self._sessions.move_to_end(name)

    def _has_room(self, sessions_max: int, time: float) -> bool:
        if len(self._sessions) >= sessions_max:
            self._clear_away(time, _LOOKED_AT_WHEN_FULL)
        return len(self._sessions) < sessions_max

    def _bind(self, name: str, session: _Session, user: str | None) -> None:
        if user is None or user == session.user:
            return
        self._unbind(name, session.user)
        session.user = user
        if user:
            self._users.setdefault(user, {})[name] = None

    def _unbind(self, name: str, user: str) -> None:
        names = self._users.get(user)
        if names is not None:
            names.pop(name, None)
            if not names:
                del self._users[user]

    def _end(self, name: str) -> bool:
        session = self._sessions.pop(name, None)
        if session is None:
            return False
        self._unbind(name, session.user)
        return True

    def _rename(self, name: str, new_name: str) -> None:
        session = self._sessions[name]
        self._end(name)
        self._sessions[new_name] = session
        if session.user:
            self._users.setdefault(session.user, {})[new_name] = None


def _contested(
    session: _Session, base: int, added: Iterable[str], held: Iterable[str]
) -> str | None:
    """Return a key that is not as the request saw it, or ``None``.

    What it added was not there, what it replaced or removed was there and not newer.
    """
    for key in added:
        if key in session.values:
            return key
    for key in held:
        if key not in session.values or session.values[key][0] > base:
            return key
    return None


def _merged(
    session: _Session,
    changed: Mapping[str, bytes],
    gone: Mapping[str, None],
    *,
    whole: bool,
) -> dict[str, tuple[int, bytes]]:
    kept = {} if whole else session.values
    values = {key: value for key, value in kept.items() if key not in gone}
    version = session.version + 1
    values.update((key, (version, value)) for key, value in changed.items())
    return values


def _size(values: Mapping[str, bytes]) -> int:
    return sum(
        len(key.encode(errors="surrogatepass")) + len(value)
        for key, value in values.items()
    )


def _largest(values: Mapping[str, bytes]) -> str:
    return max(values, key=lambda key: len(values[key]), default="")
