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
import inspect
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from ..clock import monotonic
from ..errors import TooLarge
from .call_keys import key_of_call
from .region_cache import RegionCache
from .serializers import CodecSerializer

__all__ = ["CodecSerializer", "FlightRules", "StateServerCache"]

log = logging.getLogger("state_server.cache")

R = TypeVar("R")

#: How often one who waits for another's computation asks: first, and at most.
_ASK_FIRST_S = 0.005
_ASK_MAX_S = 0.1


@dataclass(frozen=True)
class FlightRules:
    """How those who miss one value at the same time share its computation.

    The fields are the options of ``StateServerCache.get_or_compute``. Raises
    ``ValueError`` for those that do not fit.
    """

    stale_s: float
    lease_s: float
    wait_s: float | None

    def __post_init__(self) -> None:
        """Refuse what is no time to wait."""
        waits_below_zero = self.wait_s is not None and self.wait_s < 0
        if self.stale_s < 0 or self.lease_s <= 0 or waits_below_zero:
            raise ValueError(
                f"stale_s={self.stale_s!r}, lease_s={self.lease_s!r}, "
                f"wait_s={self.wait_s!r}: these are seconds, and a lease takes longer "
                "than none."
            )

    @property
    def longest_wait_s(self) -> float:
        """Return the seconds after which one who waits computes for itself."""
        return 2 * self.lease_s if self.wait_s is None else self.wait_s


class StateServerCache(RegionCache):
    """A cache that all processes share, with one computation for each miss.

    Its options are those of ``RegionCache``, and so are the threads that may use it.
    """

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
        may not travel raises ``NotAllowed``, and an option that does not fit
        ``ValueError``.
        """
        rules = FlightRules(stale_s, lease_s, wait_s) if single_flight else None
        return self._get_or_compute(key, function, timeout, rules)

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
        those of ``get_or_compute``. Raises ``ValueError`` for one that does not fit.
        """
        rules = FlightRules(stale_s, lease_s, wait_s) if single_flight else None

        def decorate(function: Callable[..., R]) -> Callable[..., R]:
            signature = inspect.signature(function)

            @functools.wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> R:
                if key is None:
                    name = key_of_call(function, signature, args, kwargs)
                else:
                    name = key(*args, **kwargs) if callable(key) else key
                return self._get_or_compute(
                    name, lambda: function(*args, **kwargs), timeout, rules
                )

            return wrapper

        return decorate

    def _get_or_compute(
        self,
        key: str,
        function: Callable[[], R],
        timeout: int | timedelta | None,
        rules: FlightRules | None,
    ) -> R:
        """Return the value as ``get_or_compute``; without rules nobody waits."""
        if rules is None:
            found, value = self._unpacked(self._call("get", self._full(key)))
            if not found:
                value = function()
                self._unless_too_large(self.set, key, value, timeout)
            return value  # type: ignore[no-any-return]
        state, value = self._ask(key, rules)
        if state == "value":
            return value  # type: ignore[no-any-return]
        if state == "none":
            return function()
        token, began = value, monotonic()
        stored = False
        try:
            computed = function()
            stored = self._unless_too_large(
                self._set_leased, key, token, computed, timeout, rules
            )
        finally:
            if not stored:
                self._release(key, token)
        took_s = monotonic() - began
        if took_s > rules.lease_s:
            log.warning(
                "Computing %.100r took %.1f s, longer than its lease of %g s "
                "(lease_s): somebody else may have computed it, too.",
                key,
                took_s,
                rules.lease_s,
            )
        return computed

    def _ask(self, key: str, rules: FlightRules) -> tuple[str, Any]:
        """Return ("value", it), ("lease", a token), or ("none", nothing at all).

        With a lease the caller is to compute and store. With nothing it is to compute
        without storing: there is an outage, or it has waited long enough.
        """
        full = self._full(key)
        deadline = monotonic() + rules.longest_wait_s
        pause_s = _ASK_FIRST_S
        may_be_stale = rules.stale_s > 0
        while True:
            answer = self._call("get_or_lease", full, rules.lease_s, may_be_stale)
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
            remaining_s = deadline - monotonic()
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
        rules: FlightRules,
    ) -> bool:
        packed = self._packed(value)
        if packed is None:
            return False
        timeout_s = self._timeout_s(timeout)
        name = self._full(key)
        return bool(
            self._write("set_leased", name, token, packed, timeout_s, rules.stale_s)
        )

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
