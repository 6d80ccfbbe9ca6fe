"""What the configuration of an app says of State Server, checked.

The keys are those that ``flask`` documents. Flask may not enter: any mapping will do.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import state_server

from ..errors import ConfigError
from ..settings import (
    APP_KEYS,
    PREFIX,
    SESSION_KEYS,
    parse_boolean,
    read_key_file,
    variable,
)
from . import options
from .session_store import SessionConfig, namespace_of

log = logging.getLogger("state_server.app")

#: The keys that say which manager an app asks.
MANAGER_KEYS = tuple(map(variable, ("ADDRESS", "DATA_DIR", "AUTHKEY", "AUTHKEY_FILE")))

#: The keys that say something of sessions, by the field of ``SessionConfig`` that they
#: set.
_KEY_OF_FIELD = {field: variable(name) for name, field in SESSION_KEYS.items()}


@dataclass(frozen=True)
class Config:
    """What the extension was told, checked."""

    address: str | None = None
    data_dir: str | None = None
    authkey: bytes | None = None
    timeout: float | None = None
    handle_errors: bool = True
    sessions: SessionConfig | None = None

    def __repr__(self) -> str:
        key = "none" if self.authkey is None else "***"
        return (
            f"Config(address={self.address!r}, data_dir={self.data_dir!r}, "
            f"authkey={key}, timeout={self.timeout!r}, "
            f"handle_errors={self.handle_errors!r}, sessions={self.sessions!r})"
        )

    def connect(self) -> state_server.Client:
        """Return a client of the manager that this names; nothing is connected yet."""
        return state_server.connect(
            self.address, self.authkey, data_dir=self.data_dir, timeout=self.timeout
        )


def read_config(values: Mapping[str, Any], app_name: str) -> Config:
    """Return the checked configuration; raises ``ConfigError`` naming key and value."""

    _tell_unknown_keys(values)

    def read(name: str, check: Callable[[str, Any], Any], default: Any = None) -> Any:
        key = variable(name)
        value = values.get(key)
        return default if value is None else check(key, value)

    authkey = read("AUTHKEY", _key)
    authkey_file = read("AUTHKEY_FILE", _path)
    if authkey is None and authkey_file is not None:
        authkey = read_key_file(Path(authkey_file))
        if authkey is None:
            raise ConfigError(
                f"STATE_SERVER_AUTHKEY_FILE is {authkey_file!r}; there is no such file"
            )
    timeout = read("TIMEOUT", _seconds)
    sessions = None
    if read("SESSIONS", _boolean, False):
        sessions = _read_sessions(values, app_name, timeout)
    return Config(
        address=read("ADDRESS", options.text),
        data_dir=read("DATA_DIR", _path),
        authkey=authkey,
        timeout=timeout,
        handle_errors=read("HANDLE_ERRORS", _boolean, True),
        sessions=sessions,
    )


def _tell_unknown_keys(values: Mapping[str, Any]) -> None:
    """Log the keys with our prefix that we do not read: a name may be misspelled."""
    names = {
        key.removeprefix(PREFIX)
        for key in values
        if isinstance(key, str) and key.startswith(PREFIX)
    }
    known = [key.removeprefix(PREFIX) for key in MANAGER_KEYS] + list(APP_KEYS)
    for name in sorted(names.difference(known)):
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
        hint = (
            f"did you mean {variable(nearest[0])}?"
            if nearest
            else "settings of processes are read from the environment."
        )
        log.warning(
            "app.config has %s, which is not a setting of the extension and has no "
            "effect; %s",
            variable(name),
            hint,
        )


def _read_sessions(
    values: Mapping[str, Any], app_name: str, timeout: float | None
) -> SessionConfig:
    """Return what was decided about sessions; ``timeout``: that of the other calls."""
    config = SessionConfig("app")
    given: dict[str, Any] = {}
    if values.get(_KEY_OF_FIELD["namespace"]) is None:
        given["namespace"] = namespace_of(app_name)
    if timeout is not None:
        given["call_timeout_s"] = min(timeout, config.call_timeout_s)
    for field, key in _KEY_OF_FIELD.items():
        value = values.get(key)
        if value is not None:
            given[field] = value
    for field, value in given.items():
        # One at a time, so that an error is said of the key that is to be changed.
        try:
            config = replace(config, **{field: value})
        except ConfigError as error:
            raise ConfigError(f"{_KEY_OF_FIELD[field]}: {error}") from None
    return config


def _path(key: str, value: Any) -> str:
    return options.text(key, str(value) if isinstance(value, Path) else value)


def _key(key: str, value: Any) -> bytes:
    # A key of nothing but digits arrives from the environment as a number.
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, bytes) or not value:
        raise ConfigError(
            f"{key} is a {type(value).__name__}; expected text that is not empty (in "
            "an environment variable, put it in quotes that belong to the value)"
        )
    return value


def _seconds(key: str, value: Any) -> float:
    return options.seconds(key, value, above_zero=True)


def _boolean(key: str, value: Any) -> bool:
    # Python's own spelling, False, is no JSON: it arrives as text, which would be true.
    try:
        return parse_boolean(str(value))
    except ValueError:
        raise ConfigError(f"{key} is {value!r}; expected true or false") from None
