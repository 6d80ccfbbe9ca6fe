"""The client: calls with a deadline, made again by itself after a broken connection.

Each call has an identity, (session, lane, number), so that the manager runs it once
however often it is sent. A call whose outcome nobody can know ends in ``Unanswered``;
the client never guesses.

Behind this door: ``handles`` are what users hold; ``pool`` has all connections of one
client, ``link`` is one of them, and ``stream`` its bytes, with a deadline.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import multiprocessing.context
import multiprocessing.process
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast, overload

from .. import bodies, failures, wire
from ..addresses import parse_address
from ..clock import monotonic
from ..data_folder import ADMIN_KEY_FILE
from ..errors import (
    ConfigError,
    NotShared,
    Overloaded,
    Refused,
    StateServerError,
    Stopping,
    TooLarge,
    Unanswered,
    Unreachable,
)
from ..messages import DEFAULT_KEY, Contract, Lane, Payload, running
from ..settings import (
    APP_KEYS,
    ClientSettings,
    checked_folder,
    checked_key,
    checked_timeout,
    from_environment,
    read_address_file,
    read_authkey,
    read_key_file,
    unknown_variables,
)
from ..sharing import catalogue
from .handles import Handle
from .link import Link
from .pool import Pool
from .stream import BrokenLink, TimeIsUp

__all__ = ["Client", "Handle", "connect"]

log = logging.getLogger("state_server.client")

T = TypeVar("T")

#: Handles that a client keeps, for those who get one in each request. They hold no
#: resources: when there are more, all are made anew.
_HANDLES_MAX = 1024

_NO_ARGUMENTS: tuple[bytes, Sequence[Payload]] = (b"", ())

_BACKOFF_FIRST_S = 0.01
_BACKOFF_MAX_S = 0.5

#: A call that has not reached a manager for this long is logged, once.
_WARN_AFTER_S = 1.0

#: The clients of this process whose manager the environment names; ``next`` is atomic.
_clients_of_environment = itertools.count()


def connect(
    address: str | tuple[str, int] | os.PathLike[str] | None = None,
    authkey: bytes | str | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
    connections_max: int | None = None,
    admin: bool = False,
) -> Client:
    """Return a client; nothing is connected before its first call.

    ``address``: ``unix:///path``, ``tcp://host:port``, a path, or ``(host, port)``;
    from ``STATE_SERVER_ADDRESS`` or the data folder if left out. ``authkey``: the key;
    from ``STATE_SERVER_AUTHKEY``, ``STATE_SERVER_AUTHKEY_FILE`` or the data folder.
    ``data_dir``: the manager's data folder; ``STATE_SERVER_DATA_DIR`` or ``var``.
    ``timeout``: seconds until a call's deadline, 30 unless set. ``connections_max``:
    the most connections at once. ``admin``: show the folder's admin key as well.

    Raises ``ConfigError`` when one of these does not fit.
    """
    changes: dict[str, Any] = {}
    if address is not None:
        changes["address"] = str(parse_address(address))
    if data_dir is not None:
        changes["data_dir"] = checked_folder(data_dir)
        # A folder that is named here means more than an address in the environment.
        changes.setdefault("address", None)
    if address is None and data_dir is None and not next(_clients_of_environment):
        _tell_unknown_variables()
    if timeout is not None:
        changes["timeout_s"] = checked_timeout(timeout)
    if connections_max is not None:
        if not isinstance(connections_max, int) or connections_max < 1:
            raise ConfigError(
                f"connections_max is {connections_max!r}; it is a whole number from 1."
            )
        changes["client_connections_max"] = connections_max
    settings = from_environment(ClientSettings, os.environ, **changes)
    if settings.address is not None:
        parse_address(settings.address)
    key = None if authkey is None else checked_key(authkey)
    client = Client(settings, key, admin=admin)
    if key is not None:
        _with_key[client.location] = client
        _leave_to_children(client.location, key)
    return client


def _tell_unknown_variables() -> None:
    """Log the variables with our prefix that nobody reads: a name may be misspelled."""
    sentences = unknown_variables(os.environ, APP_KEYS)
    if sentences:
        log.warning("%s", " ".join(sentences))


class Client:
    """The way to one manager, for all threads, greenlets and forked children.

    Make it with ``connect``. ``_contracts`` and ``_handles`` are written whole, one
    entry at a time, so they need no lock (which a fork could leave held by nobody); the
    pool guards itself.
    """

    def __init__(
        self, settings: ClientSettings, key: bytes | None, *, admin: bool = False
    ) -> None:
        self._settings = settings
        self._key = key
        self._admin = admin
        #: What must not be collected while this client, or a handle of it, is used.
        self.keeps: object = None
        self._pool = Pool(self._dial, settings.client_connections_max)
        self._contracts: dict[str, Contract] = {}
        self._handles: dict[tuple[type | str, str, float | None], Handle] = {}

    def __repr__(self) -> str:
        """Say where the manager is, and how many links there are."""
        place = self._settings.address or f"data folder {self._settings.data_dir}"
        return f"<Client of {place} {self._pool!r}>"

    def __enter__(self) -> Client:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the client."""
        self.close()

    def close(self) -> None:
        """Close the connections of this client; the manager goes on."""
        self._pool.close()

    @overload
    def get(
        self, cls: type[T], key: str = ..., *, timeout: float | None = ...
    ) -> T: ...

    @overload
    def get(self, cls: str, key: str = ..., *, timeout: float | None = ...) -> Any: ...

    def get(
        self,
        cls: type[T] | str,
        key: str = DEFAULT_KEY,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Return a handle of the object ``key`` of a class, which is made on first use.

        ``cls``: the class, or the name it is shared as. ``timeout``: seconds until the
        deadline of its calls. Raises ``NotShared`` for a class that is not shared in
        this process. The manager is not asked.
        """
        try:
            return self._handles[cls, key, timeout]
        except (KeyError, TypeError):
            # The second for a key that is no text, and cannot be looked up either.
            return self._new_handle(cls, key, timeout)

    def _new_handle(self, cls: type | str, key: str, timeout: float | None) -> Handle:
        name = cls if isinstance(cls, str) else catalogue.name_of(cls)
        if not isinstance(key, str):
            raise NotShared(f"The key of an object is text, not {key!r}.")
        if timeout is not None:
            timeout = checked_timeout(timeout)
        handle = Handle(self, name, key, timeout)
        if len(self._handles) >= _HANDLES_MAX:
            self._handles.clear()
        self._handles[cls, key, timeout] = handle
        return handle

    def ping(self, timeout: float | None = None) -> float:
        """Return the seconds that the way to the manager and back takes."""
        started = monotonic()
        self.control("ping", timeout=timeout)
        return monotonic() - started

    def status(self, timeout: float | None = None) -> dict[str, Any]:
        """Return the manager's numbers: objects, calls, connections, threads."""
        return cast("dict[str, Any]", self.control("status", timeout=timeout))

    def stop_manager(self, timeout: float | None = None) -> int:
        """Ask the manager to stop, and return the number of its process.

        It ends the running calls first. Needs the admin key (``connect(admin=True)``).
        """
        return cast("int", self.control("stop", timeout=timeout))

    def control(self, verb: str, *args: Any, timeout: float | None = None) -> Any:
        """Ask the manager itself something."""
        if timeout is not None:
            timeout = checked_timeout(timeout)
        return self.call(("", "", verb), args, {}, timeout)

    @property
    def location(self) -> tuple[str | None, str]:
        """Return the address, if one was given, and the data folder."""
        return self._settings.address, str(self._settings.data_dir.absolute())

    def reduced(
        self, class_name: str, key: str, timeout_s: float | None
    ) -> tuple[Callable[..., Handle], tuple[Any, ...]]:
        """Return what a handle is pickled as: the manager's place, and a name.

        The key is left out, but for a child process that ``multiprocessing`` is
        starting with it: nobody else reads that, and the child may have no other way.
        """
        authkey = self._key_for_child()
        if timeout_s is None:
            # The client that it will have is made without this one's settings.
            timeout_s = self._settings.timeout_s
        return restore_handle, (*self.location, class_name, key, timeout_s, authkey)

    def __reduce__(self) -> tuple[Callable[..., Client], tuple[Any, ...]]:
        """Pickle as the manager's place, for processes that are given a client.

        The connections stay here. For the key the same holds as for handles.
        """
        folder = self._settings.data_dir.absolute()
        settings = dataclasses.replace(self._settings, data_dir=folder)
        return restore_client, (settings, self._key_for_child(), self._admin)

    def _key_for_child(self) -> bytes | None:
        """Return the key if a child process is being started with what is pickled."""
        is_for_child = multiprocessing.context.get_spawning_popen() is not None
        return self._key if is_for_child else None

    def contract(
        self, class_name: str, *, again: bool = False, timeout: float | None = None
    ) -> Contract:
        """Return what a class offers, asking the manager when it is not known."""
        if not again:
            known = self._contracts.get(class_name)
            if known is not None:
                return known
        fields = self.control("describe", class_name, timeout=timeout)
        contract = Contract(*fields)
        self._contracts[class_name] = contract
        return contract

    # Calls ---------------------------------------------------------------------------

    def call(
        self,
        target: tuple[str, str, str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout_s: float | None,
    ) -> Any:
        """Call a method, named by (class, key, method), and return its result.

        Raises what the method raised, or an error of the family.
        """
        body = _NO_ARGUMENTS
        if args or kwargs:
            # Before a connection is taken: what cannot be sent spoils none.
            offset = wire.call_head_bytes(wire.pack_target(*target))
            body = bodies.pack((args, kwargs), offset, is_call=True)
        if timeout_s is None:
            timeout_s = self._settings.timeout_s
        deadline = monotonic() + timeout_s
        reply = _Exchange(self._pool, target, body, deadline).run()
        if reply.failed:
            raise failures.error_from(failures.unpack(reply.body))
        return bodies.unpack(reply.body, self._handle, read_only=True)

    def _handle(self, class_name: str, key: str) -> Handle:
        return Handle(self, class_name, key)

    def _dial(self, lane: Lane, deadline: float) -> Link:
        settings = self._settings
        address = settings.address or read_address_file(settings.data_dir)
        if address is None:
            folder = settings.data_dir.absolute()
            raise Unreachable(
                f"No manager runs with the data folder {folder}. Start one "
                f"(state-server manager --data-dir {folder}), or name the folder or "
                "the address of one (STATE_SERVER_DATA_DIR, STATE_SERVER_ADDRESS)."
            )
        key = self._key or read_authkey(settings, os.environ)
        if key is None:
            raise Unreachable(
                f"There is no key in {settings.data_dir.absolute()}. Give authkey=, "
                "set STATE_SERVER_AUTHKEY or STATE_SERVER_AUTHKEY_FILE, or name the "
                "manager's data folder."
            )
        admin_key = None
        if self._admin:
            admin_key = read_key_file(settings.data_dir / ADMIN_KEY_FILE)
        return Link(
            parse_address(address),
            key,
            lane,
            deadline,
            admin_key,
            settings.busy_poll_s,
        )


class _Exchange:
    """One call on its way, through as many connections as it takes.

    ``lane`` and ``number`` are set once the call may have reached a manager; from then
    on it is only repeated under them, to a manager that can tell.
    """

    __slots__ = (
        "body",
        "deadline",
        "first_boot",
        "lane",
        "number",
        "pool",
        "target",
    )

    def __init__(
        self,
        pool: Pool,
        target: tuple[str, str, str],
        body: tuple[bytes, Sequence[Payload]],
        deadline: float,
    ) -> None:
        self.pool = pool
        self.target = target
        self.body = body
        self.deadline = deadline
        self.lane: Lane | None = None
        self.number = 0
        self.first_boot = b""

    def run(self) -> wire.Reply:
        """Return the reply; raise when there is none before the deadline."""
        backoff_s = _BACKOFF_FIRST_S
        warn_at = monotonic() + _WARN_AFTER_S
        former: Exception | None = None
        while True:
            try:
                return self._try_once()
            except (Unreachable, Overloaded, BrokenLink) as failure:
                # A last try that ran out of time says less than the one before it.
                late = isinstance(failure.__cause__, TimeIsUp)
                error = former if late and former is not None else failure
                former = error
                remaining_s = self.deadline - monotonic()
                pause_s = backoff_s * random.uniform(0.5, 1.0)
                if pause_s >= remaining_s:
                    self._give_up(error)
                if monotonic() > warn_at:
                    warn_at = self.deadline
                    log.warning(
                        "%s waits: %s. It is tried again for %.0f s, its timeout.",
                        self._named(),
                        str(error).removesuffix("."),
                        remaining_s,
                    )
                time.sleep(pause_s)
                backoff_s = min(backoff_s * 2, _BACKOFF_MAX_S)

    def _try_once(self) -> wire.Reply:
        link = self._link()
        try:
            if running.boot_id is not None:
                _refuse_to_wait_for_oneself(link)
            if self.lane is None:
                link.number += 1
                self.number = link.number
            else:
                link.number = self.number
            reply = self._exchange(link)
        except TooLarge:
            # Found before a byte was sent: the link is as good as it was.
            self.pool.give(link)
            raise
        except BaseException:
            # Whatever it was: a reply may still come on this link, for nobody.
            self.pool.drop(link)
            raise
        self.pool.give(link)
        return reply

    def _link(self) -> Link:
        if self.lane is None:
            return self.pool.take(self.deadline)
        try:
            return self.pool.redial(self.lane, self.deadline)
        except (Unreachable, Overloaded):
            raise
        except StateServerError as error:
            # What refuses the new connection has not refused the call that was sent.
            raise Unanswered(
                f"{self._named()} was sent, the connection broke, and the manager "
                f"cannot be asked what became of it: {error}"
            ) from error

    def _exchange(self, link: Link) -> wire.Reply:
        remaining_s = self.deadline - monotonic()
        boot = self.first_boot or link.boot_id
        target = wire.pack_target(*self.target)
        body, rest = self.body
        frame = wire.pack_call(self.number, remaining_s, boot, target, body)
        size = len(frame) + (sum(map(len, rest)) if rest else 0)
        if size > link.frame_bytes_max and self.lane is None:
            raise TooLarge(
                f"{self._named()} takes {size} bytes to call, the manager takes at "
                f"most {link.frame_bytes_max} (frame_bytes_max). It was not sent."
            )
        try:
            frame = wire.frame_head(size) + frame
            reply = link.exchange(frame, self.deadline, rest)
        except BrokenLink as error:
            if error.sent:
                self.lane, self.first_boot = link.lane, boot
            raise
        except TimeIsUp as error:
            if error.sent or self.lane is not None:
                raise Unanswered(
                    f"{self._named()} was sent, but no answer came before the "
                    "deadline; it may have run, or may yet."
                ) from None
            raise Unreachable(f"{self._named()} could not be sent in time.") from None
        if reply.number != self.number:
            self.lane, self.first_boot = link.lane, boot
            raise BrokenLink("a reply to another call came", sent=True)
        if reply.failed:
            self._look_for_stopping(reply)
        return reply

    def _look_for_stopping(self, reply: wire.Reply) -> None:
        """Go on to the next manager when this one is stopping: nothing has run.

        It looks up what it remembers before it says so: a repeat has not run either.
        """
        failure = failures.unpack(reply.body)
        if failure.code == Stopping.__name__:
            self.lane, self.first_boot = None, b""
            raise Stopping(failure.text)

    def _give_up(self, error: Exception) -> None:
        if self.lane is not None:
            raise Unanswered(
                f"{self._named()} was sent, the connection broke ({error}), and no "
                "answer came before the deadline."
            ) from error
        if isinstance(error, StateServerError):
            raise error
        raise Unreachable(f"{self._named()} could not be sent: {error}.") from error

    def _named(self) -> str:
        class_name, key, method = self.target
        if method in ("__getattribute__", "__setattr__"):
            return f"The call for a property of {class_name}/{key}"
        if class_name:
            return f"{class_name}/{key}.{method}"
        return f"The request {method!r} to the manager"


def _refuse_to_wait_for_oneself(link: Link) -> None:
    if running.boot_id == link.boot_id:
        raise Refused(
            f"A method of {running.name} called its own manager over the network; it "
            "would wait for itself. Call the object from outside, or move the state "
            "into one object."
        )


Place = tuple[str | None, str]

#: The clients of the handles that were unpickled in this process.
_restored: dict[Place, Client] = {}
_restored_lock = threading.RLock()

#: The clients of this process that were given their key. Handles that are unpickled
#: here, or in a child that was forked from here, find it there.
_with_key: weakref.WeakValueDictionary[Place, Client] = weakref.WeakValueDictionary()

#: Where a process has the keys that its children inherit, beside its ``authkey``; at
#: most so many, those given last.
_LEFT_KEYS, _LEFT_KEYS_MAX = "state_server_keys", 100


def _left_keys() -> dict[Place, bytes]:
    """Return the keys that were given in this process, or in one that started it."""
    config = getattr(multiprocessing.process.current_process(), "_config", {})
    return config.get(_LEFT_KEYS, {})  # type: ignore[no-any-return]


def _leave_to_children(place: Place, key: bytes) -> None:
    """Let the processes that ``multiprocessing`` starts from now on inherit a key.

    What starts a worker of a pool carries it, as it does the process's own ``authkey``;
    no task does. A copy each time, since another thread may be starting one.
    """
    config = getattr(multiprocessing.process.current_process(), "_config", {})
    with _restored_lock:
        keys = dict(_left_keys())
        keys.pop(place, None)
        keys[place] = key
        while len(keys) > _LEFT_KEYS_MAX:
            del keys[next(iter(keys))]
        config[_LEFT_KEYS] = keys


def _after_fork_in_child() -> None:
    """Make the lock anew: a thread that exists in the parent only may have held it."""
    global _restored_lock
    _restored_lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def restore_handle(
    address: str | None,
    data_dir: str,
    class_name: str,
    key: str,
    timeout_s: float | None,
    authkey: bytes | None = None,
) -> Handle:
    """Return the handle that was pickled; one client for each manager and process.

    ``authkey``: the key, if it was pickled as well.
    """
    place = (address, data_dir)
    with _restored_lock:
        model = _with_key.get(place)
        if authkey is None:
            authkey = _left_keys().get(place) if model is None else model._key
        client = _restored.get(place)
        if client is None or (authkey is not None and client._key != authkey):
            client = connect(address, authkey, data_dir=data_dir)
            _restored[place] = client
    return Handle(client, class_name, key, timeout_s)


def restore_client(
    settings: ClientSettings, authkey: bytes | None, admin: bool
) -> Client:
    """Return a client like the one that was pickled, with connections of its own."""
    client = Client(settings, authkey, admin=admin)
    model = _with_key.get(client.location)
    if authkey is None and model is not None:
        client._key = model._key
    return client
