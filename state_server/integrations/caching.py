"""A cachelib cache whose values live in a manager, shared by all processes.

    cache = StateServerCache()          # the manager of the data folder "var"
    cache.set("key", value, timeout=60)
    page = cache.get_or_compute("front page", render, timeout=60)

Every method is one call, so ``inc``, ``add`` and ``set_many`` are atomic. Values are
packed here with the package's codec: their types are kept, reading them runs no code,
and the manager does not look into them.

A manager that is slow or absent takes no page down: a call is given up after
``call_timeout_s``, counts as a miss, and for ``outage_pause_s`` no other is tried.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import IO, Any, TypeVar

from cachelib.base import BaseCache
from cachelib.serializers import BaseSerializer

import state_server
from state_server import codec
from state_server.errors import (
    ConfigError,
    NotAllowed,
    RemoteError,
    StateServerError,
    TooLarge,
)

from . import options

log = logging.getLogger("state_server.cache")

R = TypeVar("R")

#: What ``Client.get`` does for a handle that is found inside a value.
Reference = Callable[[str, str], Any]

#: How often one who waits for another's computation asks: first, and at most.
_ASK_FIRST_S = 0.005
_ASK_MAX_S = 0.1

#: Longest key made of arguments, in characters; longer ones are hashed.
_ARGUMENTS_MAX = 200


class CodecSerializer(BaseSerializer):
    """Packs values with the codec of the package instead of pickle.

    Takes what may travel to a shared object: plain values, containers, and classes
    given to ``state_server.allow``. ``reference`` makes a handle of the class name and
    key of a shared object that a value refers to.
    """

    def __init__(self, reference: Reference | None = None) -> None:
        self._reference = reference

    def dumps(self, value: Any, *_: Any) -> bytes:
        """Return the value as bytes; raises ``NotAllowed`` and ``TooLarge``."""
        return codec.encode(value)

    def loads(self, bvalue: bytes) -> Any:
        """Return the value of the bytes; raises ``NotAllowed`` and ``TooLarge``."""
        if self._reference is None:
            return codec.decode(bvalue)
        return codec.decode(bvalue, reference=self._reference)

    def dump(self, value: Any, f: IO[bytes], *_: Any) -> None:
        """Write the value to a file."""
        f.write(self.dumps(value))

    def load(self, f: IO[bytes]) -> Any:
        """Return the value that a file holds."""
        return self.loads(f.read())

    def referring(self, reference: Reference) -> CodecSerializer:
        """Return a serializer like this one that makes handles with ``reference``."""
        return type(self)(reference)


class Outage:
    """Notices that the manager does not answer, and spares callers the wait.

    Begins with a call that was given up and ends with one that was answered; each is
    one log line. Meanwhile a call is tried every ``pause_s`` seconds.

    An answer to a call that began before the outage did ends nothing: it tells how the
    manager was, and of many calls under way some are always answered.

    Any thread may use it. There is no lock, which a fork could leave held by nobody:
    ``_began`` holds the time at which the outage began, under one key, and
    ``setdefault`` and ``pop`` are one step each. Of ``_try_at`` the worst that a race
    can do is one more try.
    """

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._began: dict[str, float] = {}
        self._try_at = 0.0

    def lasts(self) -> bool:
        """Tell whether a call would be in vain; lets one through now and then."""
        if not self._began:
            return False
        now = time.monotonic()
        if now < self._try_at:
            return True
        self._try_at = now + self._pause_s
        return False

    def begin(self, error: StateServerError) -> None:
        """Take note of a call that was given up."""
        now = time.monotonic()
        self._try_at = now + self._pause_s
        if self._began.setdefault("at", now) is now:
            log.warning(
                "The cache is bypassed, calls are tried again every %g s: %s: %s",
                self._pause_s,
                type(error).__name__,
                error,
            )

    def end(self, called_at: float) -> None:
        """Take note of the answer to a call that began at a monotonic time."""
        began = self._began.get("at")
        if began is None or called_at < began:
            return
        if self._began.pop("at", None) is not None:
            log.warning(
                "The cache answers again after %.1f s.", time.monotonic() - began
            )


class StateServerCache(BaseCache):
    """A cache that all processes share.

    ``client``: from ``state_server.connect``, or a function that returns one, which is
    asked with each call; if left out, one is made of ``address``, ``authkey`` and
    ``data_dir``, which mean what they mean there. Nothing is connected before the first
    call, and one made before a fork works after it.

    ``region``: the name of the cache within the manager; regions have nothing in common
    and limits of their own. ``key_prefix``: text put before each key, or a function
    that returns it; ``clear`` deletes only keys that begin with it.
    ``default_timeout``, ``ignore_delete_many_errors``: as in cachelib.

    ``call_timeout_s``: seconds until a call is given up, whatever the deadline of the
    client. ``outage_pause_s``: seconds after that in which none is tried.
    ``ignore_outages``: with ``False`` each call is tried and raises instead, for what
    may not be forgotten without a word, such as sessions. ``class_name``: the name that
    the class of the region is shared as.

    Integers are stored as such, whatever the serializer, for ``inc`` and ``dec``. It
    may be replaced on an instance or in a subclass by any object with ``dumps`` and
    ``loads`` for bytes.

    Raises ``ConfigError`` for an option that does not fit or is not there.

    Any thread may use it. ``_outage`` guards itself; the other fields are set once,
    but ``_last``, a client and its handle of the region, which is replaced whole, and
    ``_has_hashed``, of which the worst that a race can do is one more log line.
    """

    serializer: Any = CodecSerializer()

    def __init__(
        self,
        client: state_server.Client | Callable[[], state_server.Client] | None = None,
        *,
        address: str | tuple[str, int] | os.PathLike[str] | None = None,
        authkey: bytes | str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        region: str = "default",
        key_prefix: str | Callable[[], str] | None = None,
        default_timeout: int | timedelta = 300,
        ignore_delete_many_errors: bool = True,
        call_timeout_s: float = 1.0,
        outage_pause_s: float = 5.0,
        ignore_outages: bool = True,
        class_name: str = "CacheRegion",
        **unknown: Any,
    ) -> None:
        known = inspect.signature(StateServerCache).parameters
        options.refuse_unknown("A cache", unknown, set(known) - {"unknown"})
        options.lifetime("default_timeout", default_timeout, ConfigError)
        # Older releases of cachelib take no more than this.
        BaseCache.__init__(self, default_timeout)  # type: ignore[arg-type, unused-ignore]
        self.ignore_delete_many_errors = ignore_delete_many_errors
        if client is None:
            client = state_server.connect(address, authkey, data_dir=data_dir)
        elif (address, authkey, data_dir) != (None, None, None):
            raise ConfigError(
                "A cache takes a client, or address, authkey and data_dir to make one "
                "of, but not both."
            )
        self._client = client
        if isinstance(key_prefix, str):
            options.check_prefix(key_prefix)
        self.key_prefix = key_prefix
        self._has_hashed = False
        self.ignore_outages = ignore_outages
        self._names = (
            options.text("class_name", class_name),
            options.text("region", region),
        )
        self._call_timeout_s = options.seconds(
            "call_timeout_s", call_timeout_s, above_zero=True
        )
        self._last: tuple[state_server.Client | None, Any] = None, None
        self._outage = Outage(options.seconds("outage_pause_s", outage_pause_s))
        if isinstance(self.serializer, CodecSerializer):
            self.serializer = self.serializer.referring(
                lambda class_name, key: self.client.get(class_name, key)
            )

    def __repr__(self) -> str:
        """Say which region of which manager it is."""
        return f"<{type(self).__name__} {self._region!r} of {self.client!r}>"

    @property
    def client(self) -> state_server.Client:
        """Return the client of the manager."""
        return self._client() if callable(self._client) else self._client

    @property
    def _region(self) -> Any:
        client, (known, region) = self.client, self._last
        if client is not known:
            region = client.get(*self._names, timeout=self._call_timeout_s)
            self._last = client, region
        return region

    # Reading -------------------------------------------------------------------------

    def get(self, key: str) -> Any:
        """Return the value, or ``None`` when there is none."""
        return self._unpacked(self._call("get", self._full(key)))[1]

    def get_many(self, *keys: str) -> list[Any]:
        """Return the values in the order of the keys, ``None`` where there is none.

        In one step, unless they are larger together than a reply may be.
        """
        if not keys:
            return []
        try:
            packed = self._call("get_many", [self._full(key) for key in keys])
        except RemoteError:
            return [self.get(key) for key in keys]
        return [self._unpacked(each)[1] for each in packed or [None] * len(keys)]

    def get_dict(self, *keys: str) -> dict[str, Any]:
        """Return the values by key, ``None`` where there is none."""
        return dict(zip(keys, self.get_many(*keys), strict=True))

    def has(self, key: str) -> bool:
        """Tell whether there is a value."""
        return bool(self._call("has", self._full(key)))

    def info(self) -> dict[str, int] | None:
        """Return the numbers of the region: entries, bytes, hits, evictions, limits."""
        return self._call("info")  # type: ignore[no-any-return]

    # Writing -------------------------------------------------------------------------

    def set(self, key: str, value: Any, timeout: int | timedelta | None = None) -> bool:
        """Store a value and return ``True``; ``False`` in an outage.

        ``timeout``: seconds; 0: until it is evicted, ``None``: the default. Raises
        ``NotAllowed`` for a type that may not travel, ``TooLarge`` for a value that
        fits neither into a call nor into the region.
        """
        return self._store("set", key, value, timeout)

    def add(self, key: str, value: Any, timeout: int | timedelta | None = None) -> bool:
        """Store a value unless there is one, as ``set``; tell whether it was stored."""
        return self._store("add", key, value, timeout)

    def set_many(
        self, mapping: Mapping[str, Any], timeout: int | timedelta | None = None
    ) -> list[Any]:
        """Store several values in one step, as ``set``; return the keys stored."""
        packed = {key: self._packed(value) for key, value in mapping.items()}
        values = {key: value for key, value in packed.items() if value is not None}
        if not values:
            return []
        full = {self._full(key): value for key, value in values.items()}
        stored = self._write("set_many", full, self._timeout_s(timeout))
        return list(values) if stored else []

    def delete(self, key: str) -> bool:
        """Delete a value; tell whether there was one."""
        return bool(self._call("delete", self._full(key)))

    def delete_many(self, *keys: str) -> list[Any]:
        """Delete several values in one step; return the keys, none in an outage.

        A key that had no value counts as deleted.
        """
        if not keys:
            return []
        deleted = self._call("delete_many", [self._full(key) for key in keys])
        return [] if deleted is None else list(keys)

    def clear(self) -> bool:
        """Delete all values, or all with the prefix if there is one."""
        return self._call("clear", self._prefix()) is not None

    def inc(self, key: str, delta: int = 1) -> int | None:
        """Add to an integer and return the sum; ``None`` in an outage.

        One that is not there counts as 0 and gets the default timeout; another keeps
        the time at which it ends. Raises ``TypeError`` for a value or a ``delta`` that
        is no integer, ``TooLarge`` for a sum that does not fit into the region.
        """
        full, timeout_s = self._full(key), self._timeout_s(None)
        return self._write("inc", full, _whole(key, delta), timeout_s)  # type: ignore[no-any-return]

    def dec(self, key: str, delta: int = 1) -> int | None:
        """Subtract from an integer, as ``inc`` adds."""
        return self.inc(key, -_whole(key, delta))

    # One computation for each miss ---------------------------------------------------

    def get_or_compute(
        self,
        key: str,
        function: Callable[[], R],
        timeout: int | timedelta | None = None,
        *,
        single_flight: bool = True,
        stale_s: float = 0.0,
        lease_s: float = 10.0,
        wait_s: float | None = None,
    ) -> R:
        """Return the value; compute it with ``function`` and store it if it is missing.

        Of all who miss at the same time, in whichever process, one computes and the
        others wait for its value. ``None`` is a value like any other.

        ``stale_s``: seconds for which a value that has ended is still given to those
        who would have to wait. ``lease_s``: seconds that the computation may take
        before another one is begun; it has to be longer than ``function`` takes, and is
        what others wait when a process dies in it. ``wait_s``: seconds after which one
        who waits computes for itself; twice ``lease_s`` if left out.
        ``single_flight=False``: whoever misses computes.

        What ``function`` raises is raised here, and the next one tries. In an outage
        it is just called. A value that is too large is logged and not stored; one that
        may not travel raises ``NotAllowed``.
        """
        if not single_flight:
            found, value = self._unpacked(self._call("get", self._full(key)))
            if not found:
                value = function()
                self._unless_too_large(self.set, key, value, timeout)
            return value  # type: ignore[no-any-return]
        state, value = self._ask(key, stale_s, lease_s, wait_s)
        if state == "value":
            return value  # type: ignore[no-any-return]
        if state == "none":
            return function()
        token, began = value, time.monotonic()
        stored = False
        try:
            computed = function()
            stored = self._unless_too_large(
                self._set_leased, key, token, computed, timeout, stale_s
            )
        finally:
            if not stored:
                self._release(key, token)
        if time.monotonic() - began > lease_s:
            log.warning(
                "Computing %.100r took %.1f s, longer than its lease of %g s "
                "(lease_s): somebody else may have computed it, too.",
                key,
                time.monotonic() - began,
                lease_s,
            )
        return computed

    def cached(
        self,
        timeout: int | timedelta | None = None,
        *,
        key: str | Callable[..., str] | None = None,
        single_flight: bool = True,
        stale_s: float = 0.0,
        lease_s: float = 10.0,
        wait_s: float | None = None,
    ) -> Callable[[Callable[..., R]], Callable[..., R]]:
        """Decorate a function so that its value is taken from the cache.

        ``key``: the key, or a function of the same arguments that returns it; if left
        out, the name of the function and its arguments, which must then be text,
        bytes, numbers, ``None``, or lists and tuples of them. The other options are
        those of ``get_or_compute``.
        """

        def decorate(function: Callable[..., R]) -> Callable[..., R]:
            signature = inspect.signature(function)

            @functools.wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> R:
                if key is None:
                    name = _key_of(function, signature, args, kwargs)
                else:
                    name = key(*args, **kwargs) if callable(key) else key
                return self.get_or_compute(
                    name,
                    lambda: function(*args, **kwargs),
                    timeout,
                    single_flight=single_flight,
                    stale_s=stale_s,
                    lease_s=lease_s,
                    wait_s=wait_s,
                )

            return wrapper

        return decorate

    def _ask(
        self, key: str, stale_s: float, lease_s: float, wait_s: float | None
    ) -> tuple[str, Any]:
        """Return ("value", it), ("lease", a token), or ("none", nothing at all).

        With a lease the caller is to compute and store. With nothing it is to compute
        without storing: there is an outage, or it has waited long enough.
        """
        if stale_s < 0 or lease_s <= 0 or (wait_s is not None and wait_s < 0):
            raise ValueError(
                f"stale_s={stale_s!r}, lease_s={lease_s!r}, wait_s={wait_s!r}: these "
                "are seconds, and a lease takes longer than none."
            )
        full = self._full(key)
        deadline = time.monotonic() + (2 * lease_s if wait_s is None else wait_s)
        pause_s = _ASK_FIRST_S
        while True:
            answer = self._call("get_or_lease", full, lease_s, stale_s > 0)
            if answer is None:
                return "none", None
            state, value = answer
            if state == "lease":
                return "lease", value
            if state == "value":
                found, value = self._unpacked(value)
                if found:
                    return "value", value
                self._call("delete", full)
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return "none", None
            time.sleep(min(pause_s * random.uniform(0.5, 1.0), remaining_s))
            pause_s = min(pause_s * 1.5, _ASK_MAX_S)

    def _set_leased(
        self,
        key: str,
        token: tuple[int, int],
        value: Any,
        timeout: int | timedelta | None,
        stale_s: float,
    ) -> bool:
        packed = self._packed(value)
        if packed is None:
            return False
        timeout_s = self._timeout_s(timeout)
        name = self._full(key)
        stored = self._write("set_leased", name, token, packed, timeout_s, stale_s)
        return bool(stored)

    def _release(self, key: str, token: tuple[int, int]) -> None:
        self._call("release", self._full(key), token)

    def _unless_too_large(
        self, store: Callable[..., Any], key: str, *rest: Any
    ) -> bool:
        try:
            return bool(store(key, *rest))
        except TooLarge as error:
            log.warning(
                "The value of %.100r was computed, but not cached: %s", key, error
            )
            return False

    # Inside --------------------------------------------------------------------------

    def _call(self, method: str, *args: Any) -> Any:
        """Call a method of the region; return ``None`` in an outage."""
        if self.ignore_outages and self._outage.lasts():
            return None
        called_at = time.monotonic()
        try:
            answer = getattr(self._region, method)(*args)
        except StateServerError as error:
            # 503 and 504: slow, absent, stopping, overloaded. Others are mistakes.
            if error.status not in (503, 504):
                raise
            self._outage.begin(error)
            if not self.ignore_outages:
                raise
            return None
        self._outage.end(called_at)
        return answer

    def _write(self, method: str, *args: Any) -> Any:
        """Call a method that stores a value; raise ``TooLarge`` if it does not fit."""
        try:
            return self._call(method, *args)
        except StateServerError:
            raise
        except ValueError as error:
            raise TooLarge(str(error)) from error

    def _store(
        self, method: str, key: str, value: Any, timeout: int | timedelta | None
    ) -> bool:
        packed = self._packed(value)
        if packed is None:
            return False
        timeout_s = self._timeout_s(timeout)
        return bool(self._write(method, self._full(key), packed, timeout_s))

    def _packed(self, value: Any) -> bytes | int | None:
        """Return what is stored of a value; ``None`` if its serializer refused it."""
        if type(value) is int:
            return value
        packed: bytes | None = self.serializer.dumps(value)
        return packed

    def _unpacked(self, packed: Any) -> tuple[bool, Any]:
        """Return whether there is a value, and the value."""
        if packed is None or isinstance(packed, int):
            return packed is not None, packed
        try:
            if not isinstance(packed, bytes):
                raise NotAllowed(
                    f"It is a {type(packed).__name__}, and a region keeps bytes and "
                    "integers."
                )
            return True, self.serializer.loads(packed)
        except (NotAllowed, TooLarge) as error:
            # Stored by another release of the app, or by another app.
            log.warning("A cached value cannot be read and counts as a miss: %s", error)
            return False, None

    def _prefix(self) -> str:
        prefix = self.key_prefix
        return (prefix() if callable(prefix) else prefix) or ""

    def _full(self, key: str) -> str:
        if not isinstance(key, str):
            raise TypeError(f"The key of a cached value is text, not {key!r:.100}.")
        full = options.bounded_key(key, self._prefix())
        if not self._has_hashed and not full.endswith(key):
            self._has_hashed = True
            log.warning(
                "The key %.100r is longer than %d bytes (key_bytes_max), so its "
                "SHA-256 stands for it; this is said once.",
                key,
                options.KEY_BYTES_MAX,
            )
        return full

    def _timeout_s(self, timeout: int | timedelta | None) -> float:
        if timeout is not None:
            options.lifetime("timeout", timeout, TypeError)
        normal = self._normalize_timeout(timeout)  # type: ignore[arg-type, unused-ignore]
        if isinstance(normal, timedelta):
            return normal.total_seconds()
        return normal


def _whole(key: str, delta: Any) -> int:
    if not isinstance(delta, int):
        raise TypeError(
            f"The delta for {key!r:.100} is {delta!r:.100}; a cached integer is "
            "counted by integers."
        )
    return delta


def _key_of(
    function: Callable[..., Any],
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> str:
    """Return a key for a call: the same in every process, different for each call."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    name = f"{function.__module__}.{function.__qualname__}"
    arguments = ", ".join(
        f"{parameter}={_shown(value, name)}"
        for parameter, value in bound.arguments.items()
    )
    if len(arguments) > _ARGUMENTS_MAX:
        arguments = hashlib.sha256(arguments.encode()).hexdigest()
    return f"{name}({arguments})"


def _shown(value: Any, name: str) -> str:
    """Return the text of an argument; refuse one whose text might not tell it apart."""
    kind = type(value)
    if value is None or kind in (str, bytes, bool, int, float):
        return repr(value)
    if kind in (list, tuple):
        return f"{kind.__name__}({', '.join(_shown(item, name) for item in value)})"
    if kind is dict and all(type(key) is str for key in value):
        items = (f"{key!r}: {_shown(value[key], name)}" for key in sorted(value))
        return f"{{{', '.join(items)}}}"
    raise TypeError(
        f"The value of {name} cannot be cached by its arguments, one of which is a "
        f"{kind.__qualname__}. Pass key= to cached(), a function of the same arguments "
        "that returns a text."
    )
