"""A backend for Flask-Caching, and its extension with one computation for each miss.

Either name the backend in the configuration of an app that uses Flask-Caching:

    CACHE_TYPE = "state_server.integrations.flask_caching.StateServerCache"

or take the extension from here, which uses that backend unless told otherwise:

    from state_server.integrations.flask_caching import Cache

    cache = Cache(app)

    @app.get("/")
    @cache.cached(timeout=60, single_flight=True)
    def front_page(): ...

The client is that of the app's ``StateServer``, whichever of the two is made first.
Without one the app's ``STATE_SERVER_ADDRESS``, ``STATE_SERVER_DATA_DIR`` and so on say
which manager, as for ``state_server.integrations.flask``. ``CACHE_OPTIONS`` takes what
the constructor of the backend takes; ``CACHE_DEFAULT_TIMEOUT``, ``CACHE_KEY_PREFIX``,
``CACHE_IGNORE_ERRORS`` and ``CACHE_SERIALIZER`` mean what they mean there. A call of
the cache is given up after the option ``call_timeout_s``; ``STATE_SERVER_TIMEOUT`` has
no say in that.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import flask_caching
from flask import Flask, Response
from flask_caching.backends.base import BaseCache
from flask_caching.utils import wants_args
from werkzeug.exceptions import HTTPException, default_exceptions
from werkzeug.wrappers import Response as BaseResponse

import state_server

from .. import codec
from ..errors import ConfigError, NotAllowed
from . import caching
from . import options as checks
from .app_config import MANAGER_KEYS, read_config
from .flask import client_of
from .serializers import CodecSerializer

CACHE_TYPE = "state_server.integrations.flask_caching.StateServerCache"

#: What a packed value begins with that is none of the codec's: its pickles begin with
#: the opcode PROTO, 0x80.
_RESPONSE, _HTTP_ERROR = b"R", b"E"


class ViewSerializer(CodecSerializer):
    """Packs what views return: responses, errors of ``abort``, markup, and values.

    A response is kept as status, headers and body, and comes back as a
    ``flask.Response``. An error of werkzeug comes back as the class for its status,
    with its description; if it has more, such as allowed methods, with its response.
    """

    def dumps(self, value: Any, *_: Any) -> bytes:
        """Return the value as bytes; raises ``NotAllowed`` and ``TooLarge``."""
        if isinstance(value, BaseResponse):
            return _RESPONSE + codec.encode(_parts_of(value))
        if isinstance(value, HTTPException) and _is_plain(value):
            return _HTTP_ERROR + codec.encode(_error_parts_of(value))
        return super().dumps(value)

    def loads(self, bvalue: bytes) -> Any:
        """Return the value of the bytes; raises ``NotAllowed`` and ``TooLarge``."""
        mark = bvalue[:1]
        if mark not in (_RESPONSE, _HTTP_ERROR):
            return super().loads(bvalue)
        parts = super().loads(bvalue[1:])
        try:
            if mark == _RESPONSE:
                return _response_of(*parts)
            code, description, response = parts
            if not isinstance(description, str | None):
                raise TypeError("a description is text")
            made = None if response is None else _response_of(*response)
            kind = HTTPException if code is None else default_exceptions[code]
            return kind(description=description, response=made)
        except (TypeError, ValueError, LookupError) as error:
            raise NotAllowed(f"The bytes are no packed view: {error}.") from error


def _parts_of(response: BaseResponse) -> tuple[str, list[tuple[str, str]], bytes]:
    if response.direct_passthrough:
        raise NotAllowed(
            "A response that passes a file through cannot be cached; let the web "
            "server or the browser cache it."
        )
    return response.status, list(response.headers), response.get_data()


def _response_of(status: Any, headers: Any, body: Any) -> Response:
    pairs = isinstance(headers, list) and all(
        isinstance(pair, tuple) and [type(part) for part in pair] == [str, str]
        for pair in headers
    )
    if not pairs or not isinstance(status, str) or not isinstance(body, bytes):
        raise TypeError("a response is a text, a list of pairs of texts, and bytes")
    return Response(body, status, headers)


def _is_plain(error: HTTPException) -> bool:
    """Tell whether an error has the class that is found by its status."""
    if error.code is None:
        return type(error) is HTTPException
    return type(error) is default_exceptions.get(error.code)


def _error_parts_of(error: HTTPException) -> tuple[int | None, str | None, Any]:
    more = any(
        value is not None
        for name, value in vars(error).items()
        if name not in ("description", "response")
    )
    response = error.get_response() if more else error.response
    if isinstance(response, BaseResponse):
        return error.code, error.description, _parts_of(response)
    return error.code, error.description, None


@dataclass
class _Flight:
    """One call of a decorated function that shares its computation; used by it alone.

    ``asked``: the cache has been asked for ``key``. ``token``: the lease, while held.
    """

    key: str
    rules: caching.FlightRules
    asked: bool = False
    token: tuple[int, int] | None = None


@dataclass
class _Versions:
    """Whether versions of a memoized function were missing; used by one call alone."""

    were_missing: bool = False


#: What the current call is doing, for the backend that it reaches through the library.
_flight: ContextVar[_Flight | None] = ContextVar("flight", default=None)
_versions: ContextVar[_Versions | None] = ContextVar("versions", default=None)

#: What functions have answered that a shared call asks once only, by function.
_answers: ContextVar[dict[Callable[..., Any], Any]] = ContextVar("answers")


class StateServerCache(caching.StateServerCache, BaseCache):
    """The backend: as ``state_server.integrations.caching``, made by Flask-Caching."""

    serializer: Any = ViewSerializer()

    @classmethod
    def factory(
        cls,
        app: Flask,
        config: dict[str, Any],
        args: list[Any],
        kwargs: dict[str, Any],
    ) -> StateServerCache:
        """Return the cache of an app; nothing is connected.

        Raises ``ConfigError`` for an option that does not fit or is not there.
        """
        if "default_timeout" not in (config.get("CACHE_OPTIONS") or {}):
            lifetime = config.get("CACHE_DEFAULT_TIMEOUT")
            checks.lifetime("CACHE_DEFAULT_TIMEOUT", lifetime, ConfigError)
        options = {
            "key_prefix": config.get("CACHE_KEY_PREFIX"),
            "ignore_delete_many_errors": config.get("CACHE_IGNORE_ERRORS", False),
            **kwargs,
        }
        elsewhere = {"client", "address", "authkey", "data_dir"} & set(options)
        if not args and not elsewhere:
            options["client"] = _client_for(app, config)
        return cls(*args, **options)

    def get(self, key: str) -> Any:
        """Return the value, or ``None``; in a shared computation wait for it first."""
        flight = _flight.get()
        if flight is None or flight.asked or flight.key != key:
            return super().get(key)
        flight.asked = True
        state, value = self._ask(key, flight.rules)
        if state == "lease":
            flight.token = value
        return value if state == "value" else None

    def set(self, key: str, value: Any, timeout: int | timedelta | None = None) -> bool:
        """Store a value; in a shared computation the one that the others wait for."""
        flight = _flight.get()
        if flight is None or flight.token is None or flight.key != key:
            return super().set(key, value, timeout)
        stored = self._set_leased(key, flight.token, value, timeout, flight.rules)
        if stored:
            flight.token = None
        return stored

    def land(self, flight: _Flight) -> None:
        """Give the lease of a shared computation back, if it is still held."""
        if flight.token is not None:
            self._release(flight.key, flight.token)

    def set_many(
        self, mapping: Mapping[str, Any], timeout: int | timedelta | None = None
    ) -> list[Any]:
        """Store several values; versions that several callers miss only once."""
        versions = _versions.get()
        if versions is None:
            return super().set_many(mapping, timeout)
        versions.were_missing = True
        for key, value in mapping.items():
            self.add(key, value, timeout)
        return list(mapping)


def _client_for(
    app: Flask, config: Mapping[str, Any]
) -> state_server.Client | Callable[[], state_server.Client]:
    """Return the client that the cache's own configuration names, or the app's."""
    if all(config.get(key) == app.config.get(key) for key in MANAGER_KEYS):
        # Asked for when it is needed: StateServer(app) may come after the cache.
        return functools.partial(client_of, app)
    manager = read_config(config, app.name)
    return state_server.connect(
        manager.address, manager.authkey, data_dir=manager.data_dir
    )


class Cache(flask_caching.Cache):
    """Flask-Caching's extension on State Server, with shared computations.

    ``cached`` and ``memoize`` take four more options: ``single_flight=True`` lets one
    of all who miss at the same time compute while the others wait; ``stale_s``,
    ``lease_s`` and ``wait_s`` are those of ``StateServerCache.get_or_compute``. With
    another backend (``CACHE_TYPE`` in tests, say) they have no effect.

    As in Flask-Caching, ``None`` is cached only with ``cache_none=True``.
    """

    def init_app(self, app: Flask, config: dict[str, Any] | None = None) -> None:
        """Register with an app; the backend is ours unless ``CACHE_TYPE`` is set."""
        layers = (config, self.config, app.config)
        if not any(layer and layer.get("CACHE_TYPE") for layer in layers):
            config = {**(config or {}), "CACHE_TYPE": CACHE_TYPE}
        super().init_app(app, config)

    def get_or_compute(
        self, key: str, function: Callable[[], Any], *args: Any, **options: Any
    ) -> Any:
        """Return a value, computed once if missing: see ``caching.StateServerCache``.

        Needs the backend of this module.
        """
        backend: Any = self.cache
        return backend.get_or_compute(key, function, *args, **options)

    def cached(
        self,
        *args: Any,
        single_flight: bool = False,
        stale_s: float = 0.0,
        lease_s: float = 10.0,
        wait_s: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Decorate a view, as Flask-Caching does; with ``single_flight`` shared."""
        decorate = super().cached(*args, **kwargs)
        if not single_flight:
            return decorate
        chosen = kwargs.get("make_cache_key")

        def key_of(decorated: Any, *args: Any, **kwargs: Any) -> str:
            if callable(chosen):
                return chosen(*args, **kwargs)  # type: ignore[no-any-return]
            return decorated.make_cache_key(*args, use_request=True, **kwargs)  # type: ignore[no-any-return]

        rules = caching.FlightRules(stale_s, lease_s, wait_s)
        return self._sharing(decorate, key_of, rules)

    def memoize(
        self,
        *args: Any,
        single_flight: bool = False,
        stale_s: float = 0.0,
        lease_s: float = 10.0,
        wait_s: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Decorate a function, as Flask-Caching does; with ``single_flight`` shared."""
        if not single_flight:
            return super().memoize(*args, **kwargs)
        given = inspect.signature(super().memoize).bind(*args, **kwargs).arguments
        if callable(given.get("forced_update")):
            given["forced_update"] = _asked_once(given["forced_update"])
        decorate = super().memoize(**given)

        def key_of(decorated: Any, *args: Any, **kwargs: Any) -> str:
            # The key holds a version of the function that whoever misses it invents.
            # Here the first one counts, so that all callers have one key.
            versions = _Versions()
            with _during(_versions, versions):
                key = decorated.make_cache_key(decorated.uncached, *args, **kwargs)
            if versions.were_missing:
                key = decorated.make_cache_key(decorated.uncached, *args, **kwargs)
            return key  # type: ignore[no-any-return]

        rules = caching.FlightRules(stale_s, lease_s, wait_s)
        return self._sharing(decorate, key_of, rules)

    def _sharing(
        self,
        decorate: Callable[[Any], Any],
        key_of: Callable[..., str],
        rules: caching.FlightRules,
    ) -> Callable[[Any], Any]:
        """Return a decorator whose calls share what the library has them compute.

        The library stays in charge: it asks the backend, computes after a miss and
        stores. The backend is told for which key to wait, and whose the lease is.
        """

        def decorator(function: Any) -> Any:
            decorated = decorate(function)

            def shared(*args: Any, **kwargs: Any) -> Any:
                backend = self.cache
                if not isinstance(backend, StateServerCache):
                    return decorated(*args, **kwargs)
                try:
                    key = key_of(decorated, *args, **kwargs)
                except Exception:
                    # The library meets the same error, and knows what to do then.
                    return decorated(*args, **kwargs)
                flight = _Flight(key, rules)
                try:
                    with _during(_flight, flight):
                        return decorated(*args, **kwargs)
                finally:
                    backend.land(flight)

            @functools.wraps(function)
            def sharing(*args: Any, **kwargs: Any) -> Any:
                with _during(_answers, {}):
                    return shared(*args, **kwargs)

            # One set of attributes: cache_timeout and make_cache_key may be replaced.
            sharing.__dict__ = decorated.__dict__
            return sharing

        return decorator


def _asked_once(question: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``question`` with one answer for all of a shared call.

    Releases of the library before 2.5 ask it for each key that they make, and again.
    """
    takes_arguments = wants_args(question)

    def ask(*args: Any, **kwargs: Any) -> Any:
        # Who makes a key by himself, outside of a call, gets the answer of the moment.
        answers = _answers.get({})
        if question not in answers:
            answers[question] = (
                question(*args, **kwargs) if takes_arguments else question()
            )
        return answers[question]

    return ask


@contextmanager
def _during(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
