"""A storage for the package limits, and so for Flask-Limiter: one count for everybody.

Importing this module makes ``stateserver://`` known:

    import state_server.integrations.limits

    RATELIMIT_STORAGE_URI = "stateserver://"

The rest of the address says which manager:

    stateserver://                  that of the app; outside of one, of the environment
    stateserver://host:port         one at a port, IPv6 addresses in brackets
    stateserver:///path/to/socket   one at a Unix socket

The manager of the app is the one of its ``StateServer`` or, without that, of its
configuration (``STATE_SERVER_ADDRESS``, ``STATE_SERVER_DATA_DIR`` and so on). It is
looked for with each call, in the app context of that call, and outside of any it is the
one that was found last. Before there was one, and without Flask, it is that of the
environment variables of the same names, or of the folder ``var``.

Options, as ``RATELIMIT_STORAGE_OPTIONS``, as arguments of ``storage_from_string`` or,
the key excepted, as a query (``stateserver://?data_dir=var&region=api``):

    authkey         the key; if left out, from the environment or the data folder
    data_dir        the data folder of the manager
    region          whose limits: regions have nothing in common (default: "default")
    call_timeout_s  seconds until a call is given up (default: 5), whatever the client's
    class_name      the name that the class of the region is shared as
"""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from limits.storage import MovingWindowSupport, SlidingWindowCounterSupport, Storage

import state_server

from ..errors import ConfigError, Overloaded, StateServerError
from . import options as checks
from .flask import client_of

#: What may stand in the query of an address. An address is logged; a key is not.
_QUERY = {"data_dir": str, "region": str, "call_timeout_s": float, "class_name": str}

#: The options.
_OPTIONS = {*_QUERY, "authkey"}


class StateServerStorage(Storage, MovingWindowSupport, SlidingWindowCounterSupport):
    """Windows kept in a manager; each method is one call, so hits are counted exactly.

    ``uri`` and the options are those of the module. Nothing is connected before the
    first call. All errors are of the package's family (``base_exceptions``);
    ``wrap_exceptions`` wraps them as ``limits.errors.StorageError``. Raises
    ``ConfigError`` for an option that does not fit or is not there.

    Any thread may use it, and one made before a fork works after it. The fields are set
    once, but ``_last``, a client and its handle of the region, which is replaced whole.
    """

    STORAGE_SCHEME = ["stateserver"]  # noqa: RUF012 - the base declares it so

    def __init__(
        self,
        uri: str | None = None,
        wrap_exceptions: bool = False,
        *,
        authkey: bytes | str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(uri, wrap_exceptions)
        address, query = _parsed(uri or "stateserver://")
        checks.refuse_unknown("A rate limit storage", options, _OPTIONS)
        chosen: dict[str, Any] = {**query, **options}
        data_dir = chosen.get("data_dir")
        self._is_of_the_app = (address, authkey, data_dir) == (None, None, None)
        client = state_server.connect(address, authkey, data_dir=data_dir)
        self._last: tuple[state_server.Client, Any] = client, None
        self._names = (
            checks.text("class_name", chosen.get("class_name", "RateLimits")),
            checks.text("region", chosen.get("region", "default")),
        )
        self._call_timeout_s = checks.seconds(
            "call_timeout_s", chosen.get("call_timeout_s", 5.0), above_zero=True
        )

    def __repr__(self) -> str:
        """Say whose windows these are."""
        return f"<StateServerStorage {self.storage!r}>"

    @property
    def storage(self) -> Any:
        """Return the handle of the region."""
        known, region = self._last
        client = (client_of() if self._is_of_the_app else None) or known
        if client is not known or region is None:
            region = client.get(*self._names, timeout=self._call_timeout_s)
            self._last = client, region
        return region

    @property
    def base_exceptions(self) -> type[Exception]:
        """Return the class of all errors that a call may raise."""
        return StateServerError

    def check(self) -> bool:
        """Tell whether the manager answers."""
        try:
            self._call("info")
        except StateServerError:
            return False
        return True

    def reset(self) -> int:
        """Forget all windows of the region; return how many there were."""
        return self._call("reset")  # type: ignore[no-any-return]

    def clear(self, key: str) -> None:
        """Forget the fixed and the moving window of ``key``."""
        self._call("clear", key)

    # Fixed windows -------------------------------------------------------------------

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count a hit in a window of ``expiry`` seconds; return the number of hits."""
        return self._call("incr", key, expiry, amount)  # type: ignore[no-any-return]

    def get(self, key: str) -> int:
        """Return the number of hits in the window."""
        return self._call("get", key)  # type: ignore[no-any-return]

    def get_expiry(self, key: str) -> float:
        """Return when the window ends, in seconds since 1970; now if there is none."""
        return time.time() + float(self._call("ends_in", key))

    # Moving windows ------------------------------------------------------------------

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count a hit unless there were ``limit`` of them; tell whether it counted."""
        return self._call("acquire_entry", key, limit, expiry, amount)  # type: ignore[no-any-return]

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """Return the time of the oldest hit (seconds since 1970) and how many."""
        age_s, hits = self._call("moving_window", key, expiry)
        return time.time() - age_s, hits

    # Sliding windows -----------------------------------------------------------------

    def acquire_sliding_window_entry(
        self, key: str, limit: int, expiry: int, amount: int = 1
    ) -> bool:
        """Count a hit unless there were ``limit`` of them; tell whether it counted."""
        method = "acquire_sliding_window_entry"
        return self._call(method, key, limit, expiry, amount)  # type: ignore[no-any-return]

    def get_sliding_window(
        self, key: str, expiry: int
    ) -> tuple[int, float, int, float]:
        """Return hits and seconds left of the former window, and of the current one."""
        return self._call("sliding_window", key, expiry)  # type: ignore[no-any-return]

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Forget the sliding window of ``key``."""
        self._call("clear_sliding_window", key)

    # Inside --------------------------------------------------------------------------

    def _call(self, method: str, *args: Any) -> Any:
        bounded = [
            checks.bounded_key(each) if isinstance(each, str) else each for each in args
        ]
        try:
            return getattr(self.storage, method)(*bounded)
        except OverflowError as error:
            raise Overloaded(str(error)) from error


def _parsed(uri: str) -> tuple[str | None, dict[str, Any]]:
    """Return the address for ``connect``, and the options in the query."""
    parts = urlsplit(uri)
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "The address of a rate limit storage holds a name or password; it is "
            "logged. Give the key as the option authkey, or in the environment."
        )
    if parts.netloc and parts.path.strip("/"):
        raise ConfigError(
            f"The address of a rate limit storage has both host ({parts.netloc}) and "
            f"path ({parts.path}); it is stateserver://host:port or "
            "stateserver:///path/to/socket."
        )
    address = None
    if parts.netloc:
        address = f"tcp://{parts.netloc}"
    elif parts.path:
        address = f"unix://{unquote(parts.path)}"
    query: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name == "authkey":
            raise ConfigError(
                "The address of a rate limit storage has a key in its query; it is "
                "logged. Give the key as the option authkey, or in the environment."
            )
        checks.refuse_unknown("The address of a rate limit storage", [name], _QUERY)
        try:
            query[name] = _QUERY[name](text)
        except ValueError:
            raise ConfigError(
                f"The address of a rate limit storage has {name}={text!r}; expected a "
                "number of seconds."
            ) from None
    return address, query
