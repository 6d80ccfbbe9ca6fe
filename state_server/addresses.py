"""Addresses: where a manager listens, and how that is spelled.

Nothing here connects, and no name of a machine is looked up.
"""

from __future__ import annotations

import os
import re
import sys
import urllib.parse
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError


@dataclass(frozen=True)
class Address:
    """Where a manager listens: a Unix path, or a host and port (IPv4 or IPv6)."""

    path: str | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        """Return the URL of the address."""
        if self.path is not None:
            # The one character that would mean another when the URL is read.
            return "unix://" + self.path.replace("%", "%25")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"

    @property
    def stock(self) -> str | tuple[str, int]:
        """Return the address as the standard library spells it."""
        return (self.host, self.port) if self.path is None else self.path

    @property
    def is_wildcard(self) -> bool:
        """Tell whether the address accepts connections on every interface."""
        return self.path is None and _WILDCARD.fullmatch(self.host) is not None


#: Every spelling of all zeros that a system takes: ``0``, ``0x0``, ``::0``, and the
#: IPv4 wildcard inside IPv6. No name of a machine looks like that.
_WILDCARD = re.compile(r"\*|(?:::ffff:)?[0x.:]*", re.IGNORECASE)


#: Longest path of a Unix socket: 108 bytes with the closing zero on Linux, 104 on BSD
#: and macOS (unix(7), unix(4)).
_PATH_BYTES_MAX = 107 if sys.platform == "linux" else 103


def parse_address(given: str | tuple[str, int] | os.PathLike[str]) -> Address:
    """Return the address that ``given`` spells: a URL, a path or a ``(host, port)``.

    Raises ``ConfigError`` naming the address and what is wrong with it.
    """
    if isinstance(given, tuple):
        return _pair(given)
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(text, str):
        raise ConfigError(
            f"The address {given!r} is neither a text nor a path nor (host, port)."
        )
    if "://" not in text:
        if re.match(r"(unix|tcp):", text):
            raise ConfigError(
                f"The address {text!r} is no URL: write unix:///path or "
                "tcp://host:port, with the slashes."
            )
        if re.fullmatch(r"(\[[^\]]+\]|[\w.-]+):\d{1,5}", text):
            raise ConfigError(
                f"The address {text!r} looks like a host and a port: write "
                f"tcp://{text}. (A socket of that name is unix://{text}.)"
            )
        return _unix(text)
    scheme, rest = text.split("://", 1)
    if scheme == "unix":
        return _unix(urllib.parse.unquote(rest))
    if scheme != "tcp":
        raise ConfigError(
            f"The address {text!r} has the scheme {scheme!r}; use unix:///path or "
            "tcp://host:port."
        )
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:/\[\]]*)):(\d{1,5})/?", rest)
    if match is None or int(match[3]) > 65535:
        raise ConfigError(f"The address {text!r} is not of the form tcp://host:port.")
    return Address(host=match[1] or match[2], port=int(match[3]))


def _pair(pair: tuple[Any, ...]) -> Address:
    match pair:
        case (str(host), int(port)) if 0 <= port <= 65535:
            return Address(host=host, port=port)
    raise ConfigError(
        f"The address {pair!r} is not a (host, port) with a port from 0 to 65535."
    )


def _unix(path: str) -> Address:
    if not path:
        raise ConfigError(
            "A unix:// address needs a path, as in unix:///run/state.sock."
        )
    if "\0" in path:
        raise ConfigError(
            f"The socket path {path!r} has a zero byte in it. Use a path of a file: an "
            "abstract socket has no mode that keeps others out."
        )
    size = len(os.fsencode(path))
    if size > _PATH_BYTES_MAX:
        raise ConfigError(
            f"The socket path {path!r} has {size} bytes; the system takes at most "
            f"{_PATH_BYTES_MAX}. Use a shorter data folder, or --address with a short "
            "path or tcp://127.0.0.1:0."
        )
    return Address(path=path)
