"""The sessions of one app in the manager: loaded, saved, listed, revoked.

The id in a visitor's cookie stays on this side: the manager knows a session by the
SHA-256 of it. Values come here packed. Flask may not enter.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple, NoReturn

from ..client import Client
from ..errors import ConfigError, Overloaded, Refused, StateServerError, TooLarge
from ..session_answers import Answer, Outcome, Rule
from . import options

log = logging.getLogger("state_server.sessions")

#: The shared class that holds the sessions, and among how many objects of it they are
#: spread. Another number would look for every session in the wrong place.
SHARD_CLASS = "SessionShard"
SHARDS = 64

#: The name of an app is part of the names of its objects.
NAMESPACE_LENGTH_MAX = 200

#: Least limit of the number of sessions. Each shard holds its part of the limit, and
#: chance fills them unevenly: parts of fewer than 16 would be full much too soon.
COUNT_LEAST = 16 * SHARDS


class SessionConflict(Refused):
    """Two requests changed one key of a session, and the rule is ``"error"``."""

    retryable = True
    status = 409


@dataclass(frozen=True)
class SessionConfig:
    """What an app decided about its sessions.

    Raises ``ConfigError`` naming the field and its value when one does not fit.
    """

    #: Whose sessions they are: apps with different names share none. Text of 1 to 200
    #: characters.
    namespace: str
    #: The value of a ``Rule``.
    conflict: str = Rule.MERGE.value
    #: Bytes of all keys and packed values of one session.
    bytes_max: int = 1024 * 1024
    #: Sessions of the app that have not expired; at least ``COUNT_LEAST``.
    count_max: int = 1_000_000
    #: Part of the lifetime after which a session that is only read is renewed.
    touch_share: float = 0.01
    #: Seconds until a call of the session is given up.
    call_timeout_s: float = 5.0

    def __post_init__(self) -> None:
        """Refuse what does not fit."""
        _check_text("namespace", self.namespace, NAMESPACE_LENGTH_MAX)
        rules = [rule.value for rule in Rule]
        if self.conflict not in rules:
            _refuse("conflict", self.conflict, f"one of {', '.join(rules)}")
        _check_count("bytes_max", self.bytes_max, 1)
        _check_count("count_max", self.count_max, COUNT_LEAST)
        if not options.is_number(self.touch_share) or not 0 <= self.touch_share <= 1:
            _refuse("touch_share", self.touch_share, "a number from 0 to 1")
        options.seconds("call_timeout_s", self.call_timeout_s, above_zero=True)


def _check_text(field: str, value: object, length_max: int) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= length_max:
        _refuse(field, value, f"text of 1 to {length_max} characters")


def _check_count(field: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        _refuse(field, value, f"a whole number from {least}")


def _refuse(field: str, value: object, expected: str) -> NoReturn:
    raise ConfigError(f"{field} is {value!r:.300}; expected {expected}")


@dataclass(frozen=True)
class SessionInfo:
    """One session in a list; times are aware, in UTC.

    ``id`` names it for ``revoke``; it is not what the cookie holds, and lets nobody in.
    ``user`` is ``None`` for a session that is not bound. ``last_seen`` is as exact as
    the renewals are frequent. ``size_bytes`` is that of all keys and packed values.
    """

    id: str
    user: str | None
    created: datetime
    last_seen: datetime
    expires: datetime
    size_bytes: int


class Loaded(NamedTuple):
    """A session as it was read."""

    version: int
    #: Seconds since it was last changed or renewed.
    idle_s: float
    user: str
    packed: dict[str, bytes]


class SessionStore:
    """All sessions of one app. Holds no connection and no lock; threads may share it.

    ``overview``, ``revoke`` and ``revoke_user`` are for apps; the rest is for those who
    open and save sessions. Any call may raise an error of the family.
    """

    def __init__(self, client: Client, config: SessionConfig) -> None:
        self.client = client
        self.config = config
        self._shards = [
            client.get(
                SHARD_CLASS,
                f"{config.namespace}:{number}",
                timeout=config.call_timeout_s,
            )
            for number in range(SHARDS)
        ]

    # For apps --------------------------------------------------------------------

    def overview(self, user: str | None = None, limit: int = 1000) -> list[SessionInfo]:
        """Return the sessions of a user, or of all, the latest seen first.

        If there are more than ``limit``, those that were seen latest.
        """
        found = (shard.overview(user, limit) for shard in self._shards)
        rows: list[Any] = heapq.nlargest(
            limit, itertools.chain.from_iterable(found), key=lambda row: row[3]
        )
        return [
            SessionInfo(
                name, bound or None, _moment(made), _moment(seen), _moment(ends), size
            )
            for name, bound, made, seen, ends, size in rows
        ]

    def revoke(self, session_id: str) -> bool:
        """End the session with this ``SessionInfo.id``; tell whether there was one."""
        return bool(self._shard(session_id).end(session_id))

    def revoke_user(self, user: str, keep: str = "") -> int:
        """End all sessions of a user; return how many there were.

        ``keep``: the ``SessionInfo.id`` of one that stays, as ``session.id`` is. Raises
        ``ValueError`` without a user, as ``session.user`` is before ``bind_user``.
        """
        if not user:
            raise ValueError(
                f"revoke_user() takes the user whose sessions are to end, not {user!r}."
            )
        # A session never changes its shard, so none slips from one into another
        # that was asked already. Only those that hold one are changed.
        return sum(
            shard.end_user(user, keep)
            for shard in self._shards
            if shard.overview(user, 1)
        )

    # For those who open and save ---------------------------------------------------

    def load(self, name: str) -> Loaded | None:
        """Return a session, or ``None`` if there is none, or none any more."""
        fields = self._shard(name).load(name)
        return None if fields is None else Loaded(*fields)

    def create(
        self,
        name: str,
        values: Mapping[str, bytes],
        *,
        lifetime_s: float,
        user: str = "",
        in_place_of: str = "",
    ) -> tuple[Outcome, int]:
        """Begin a session, and end the one that it takes the place of.

        Both are in one shard then, see ``id_beside``. If that one has ended meanwhile,
        none begins. Return what became of it and the version. Raises ``TooLarge`` or
        ``Overloaded``.
        """
        self._check_size(values)
        answer = self._shard(name).create(
            name,
            values,
            user=user,
            lifetime_s=lifetime_s,
            bytes_max=self.config.bytes_max,
            sessions_max=self._shard_sessions_max,
            in_place_of=in_place_of,
        )
        return self._judged(answer)

    def save(
        self,
        name: str,
        base: int,
        added: Mapping[str, bytes],
        replaced: Mapping[str, bytes],
        removed: tuple[str, ...],
        *,
        lifetime_s: float,
        user: str | None = None,
        new_name: str = "",
    ) -> tuple[Outcome, int]:
        """Change a session by what a request did that has read version ``base`` of it.

        With the rule ``"last"``, ``added`` is all that the session is to hold.
        ``user``: whom to bind it to, ``""`` for nobody, ``None`` for no change.
        ``new_name``: what it is called from now on, in the same shard. Return what
        became of it and the version. Raises ``TooLarge`` or ``SessionConflict``; the
        session is then as it was.
        """
        self._check_size({**added, **replaced})
        answer = self._shard(name).save(
            name,
            base,
            added,
            replaced,
            removed,
            rule=self.config.conflict,
            user=user,
            lifetime_s=lifetime_s,
            bytes_max=self.config.bytes_max,
            new_name=new_name,
        )
        return self._judged(answer)

    def end(self, name: str) -> None:
        """End a session, if there is one."""
        self._shard(name).end(name)

    @property
    def _shard_sessions_max(self) -> int:
        return -(-self.config.count_max // SHARDS)

    def _shard(self, name: str) -> Any:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r:.100} is not the id of a session as SessionInfo.id has it."
            )
        return self._shards[_number(name)]

    def _check_size(self, values: Mapping[str, bytes]) -> None:
        # The manager looks at the whole session; what is too large by itself need
        # not be sent there.
        if sum(map(len, values.values())) > self.config.bytes_max:
            self._refuse_size(max(values, key=lambda key: len(values[key])))

    def _refuse_size(self, key: str) -> NoReturn:
        raise TooLarge(
            f"The session was not saved and stays as it was: with the value {key!r} it "
            f"would have more than {self.config.bytes_max} bytes "
            "(STATE_SERVER_SESSION_BYTES_MAX). Keep what is large in a shared object, "
            "and its key in the session."
        )

    def _judged(self, answer: Answer) -> tuple[Outcome, int]:  # noqa: RET503 - see below
        """Return an answer of a shard, or raise what it means."""
        what, detail = answer
        try:
            outcome = Outcome(what)
        except ValueError:
            raise StateServerError(
                f"The manager answered {what!r:.100} to a change of a session, which "
                "is no answer that this release knows; run the manager and the app "
                "with the same release."
            ) from None
        # Without a last resort: the type checker sees that no member is left out.
        match outcome:
            case Outcome.SAVED | Outcome.EMPTIED | Outcome.GONE:
                return outcome, int(detail)
            case Outcome.TOO_LARGE:
                self._refuse_size(str(detail))
            case Outcome.FULL:
                raise Overloaded(
                    "A session was not begun, because the shard that it belongs to is "
                    f"full: each of {SHARDS} holds {self._shard_sessions_max} sessions "
                    f"of the app {self.config.namespace!r}, a part of its limit "
                    f"{self.config.count_max}. Raise that (STATE_SERVER_SESSIONS_MAX), "
                    "or let sessions expire sooner (PERMANENT_SESSION_LIFETIME)."
                )
            case Outcome.CONFLICT:
                raise SessionConflict(
                    "The session was not saved and stays as it was: another request "
                    f"changed its value {detail!r} at the same time."
                )


def namespace_of(app_name: str) -> str:
    """Return the namespace of an app that has chosen none: its name.

    Logs a warning where that is the name which many apps have.
    """
    if app_name in _NAMES_OF_MANY:
        log.warning(
            "The sessions of this app are kept under its name %r, which other apps may "
            "have as well: those on the same manager share the sessions. Set "
            "STATE_SERVER_SESSION_NAMESPACE to a name of its own.",
            app_name,
        )
    return app_name


#: What Flask calls an app after its module, where that is called as it often is.
_NAMES_OF_MANY = ("app", "wsgi", "__main__")

_NAME = re.compile("[0-9a-f]{64}")


def name_of(session_id: str) -> str:
    """Return the name under which the manager knows the session with this id.

    The ids are random, so a plain digest cannot be reversed by guessing.
    """
    return hashlib.sha256(session_id.encode()).hexdigest()


def id_beside(name: str, make: Callable[[], str]) -> str:
    """Return a new id whose session is in the same shard as the one called ``name``.

    One can then take the other's place in one call. That takes 64 tries on average, of
    a microsecond or two.
    """
    while True:
        made = make()
        if _number(name_of(made)) == _number(name):
            return made


def _number(name: str) -> int:
    return int(name[:4], 16) % SHARDS


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
