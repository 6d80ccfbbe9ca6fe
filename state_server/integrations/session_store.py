"""The sessions of one app in the manager: loaded, saved, listed, revoked.

The id in a visitor's cookie stays on this side: the manager knows a session by the
SHA-256 of it. Values come here packed. Flask may not enter.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple, NoReturn

from ..client import Client
from ..errors import ConfigError, Overloaded, Refused, TooLarge

#: The shared class that holds the sessions, and among how many objects of it they are
#: spread. Another number would look for every session in the wrong place.
SHARD_CLASS = "SessionShard"
SHARDS = 64

#: How two requests that change one session at the same time are brought together.
RULES = ("merge", "last", "error")


class SessionConflict(Refused):
    """Two requests changed one key of a session, and the rule is ``"error"``."""

    retryable = True
    status = 409


@dataclass(frozen=True)
class SessionConfig:
    """What an app decided about its sessions."""

    #: Whose sessions they are: apps with different names share none.
    namespace: str
    #: One of ``RULES``.
    conflict: str = "merge"
    #: Bytes of all keys and packed values of one session.
    bytes_max: int = 1024 * 1024
    #: Sessions of the app that have not expired.
    count_max: int = 1_000_000
    #: Part of the lifetime after which a session that is only read is renewed.
    touch_share: float = 0.01

    def __post_init__(self) -> None:
        """Refuse a rule that there is not."""
        if self.conflict not in RULES:
            raise ConfigError(
                f"The rule for conflicts is {self.conflict!r}; expected one of "
                f"{', '.join(RULES)}."
            )


@dataclass(frozen=True)
class SessionInfo:
    """One session in a list; times are aware, in UTC.

    ``id`` names it for ``revoke``; it is not what the cookie holds, and lets nobody in.
    ``user`` is ``None`` for a session that is not bound. ``last_seen`` is as exact as
    the renewals are frequent.
    """

    id: str
    user: str | None
    created: datetime
    last_seen: datetime
    expires: datetime
    size: int


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
            client.get(SHARD_CLASS, f"{config.namespace}:{number}")
            for number in range(SHARDS)
        ]

    # For apps --------------------------------------------------------------------

    def overview(self, user: str | None = None, limit: int = 1000) -> list[SessionInfo]:
        """Return the sessions of a user, or of all, the latest seen first.

        At most ``limit`` of them; which ones, if there are more, is not said.
        """
        rows: list[Any] = []
        for shard in self._shards:
            if len(rows) >= limit:
                break
            rows += shard.overview(user, limit - len(rows))
        rows.sort(key=lambda row: -row[3])
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
    ) -> tuple[str, int]:
        """Begin a session, and end the one that it takes the place of.

        Both are in one shard then, see ``id_beside``. Return what became of it (one of
        the words below) and the version. Raises ``TooLarge`` or ``Overloaded``.
        """
        self._check_size(values)
        answer = self._shard(name).create(
            name,
            values,
            user=user,
            lifetime_s=lifetime_s,
            bytes_max=self.config.bytes_max,
            sessions_max=-(-self.config.count_max // SHARDS),
            in_place_of=in_place_of,
        )
        return self._judged(*answer)

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
    ) -> tuple[str, int]:
        """Change a session by what a request did that has read version ``base`` of it.

        With the rule ``"last"``, ``added`` is all that the session is to hold.
        ``user``: whom to bind it to, ``""`` for nobody, ``None`` for no change.
        ``new_name``: what it is called from now on, in the same shard. Return what
        became of it (one of the words below) and the version. Raises ``TooLarge`` or
        ``SessionConflict``; the session is then as it was.
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
        return self._judged(*answer)

    def end(self, name: str) -> None:
        """End a session, if there is one."""
        self._shard(name).end(name)

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

    def _judged(self, what: str, detail: Any) -> tuple[str, int]:
        """Return an answer of a shard, or raise what it means."""
        if what == "too large":
            self._refuse_size(detail)
        if what == "full":
            raise Overloaded(
                f"The app {self.config.namespace!r} has as many sessions as it may, "
                f"{self.config.count_max} (STATE_SERVER_SESSIONS_MAX); this one was "
                "not begun."
            )
        if what == "conflict":
            raise SessionConflict(
                "The session was not saved and stays as it was: another request "
                f"changed its value {detail!r} at the same time."
            )
        return what, detail


#: What became of a change: it was made; it left nothing, so the session has ended; the
#: session had ended before, and nothing was kept.
SAVED, EMPTIED, GONE = "saved", "emptied", "gone"

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
