"""The methods of a cachelib cache, each of which is one call of a region.

A region is the cache within the manager (``state_server.objects.CacheRegion``). Calls
that the manager does not answer count as misses; ``outages`` tells how long.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from cachelib.base import BaseCache

import state_server

from ..clock import monotonic
from ..errors import (
    ConfigError,
    NotAllowed,
    RemoteError,
    StateServerError,
    TooLarge,
)
from . import options
from .outages import Outage
from .serializers import CodecSerializer

log = logging.getLogger("state_server.cache")


class RegionCache(BaseCache):
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
        known = inspect.signature(RegionCache).parameters
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

    # Inside --------------------------------------------------------------------------

    def _call(self, method: str, *args: Any) -> Any:
        """Call a method of the region; return ``None`` in an outage."""
        if self.ignore_outages and self._outage.lasts():
            return None
        called_at = monotonic()
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
