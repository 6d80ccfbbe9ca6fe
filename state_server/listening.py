"""Where a manager listens: the address that its settings want, and the socket there."""

from __future__ import annotations

import os
import socket
import stat
import sys
from pathlib import Path

from .addresses import Address, parse_address
from .data_folder import SOCKET_FILE
from .errors import ConfigError
from .settings import ManagerSettings


def wanted_address(settings: ManagerSettings) -> Address:
    """Return the address that the settings name, or the one in the data folder.

    A path is absolute, because clients read it in folders of their own. Raises
    ``ConfigError`` for one that any machine can reach, unless that is wanted.
    """
    if settings.address is not None:
        address = parse_address(settings.address)
        if address.path is not None:
            address = parse_address(Path(address.path).absolute())
    elif sys.platform == "win32":
        address = Address(host="127.0.0.1", port=0)
    else:
        address = parse_address(settings.data_dir.absolute() / SOCKET_FILE)
    if address.is_wildcard and not settings.allow_wildcard:
        raise ConfigError(
            f"The address {address} lets any machine connect, and the connection is "
            "not encrypted. Use 127.0.0.1 or a Unix socket, or set allow_wildcard "
            "(--allow-wildcard true) if the network is private."
        )
    return address


def listen(wanted: Address, backlog: int) -> tuple[socket.socket, Address]:
    """Return a listening socket and its address.

    A socket file that a dead manager left is replaced: the caller holds the lock of the
    data folder, and nobody answers there. Raises ``ConfigError`` when the address is
    taken or cannot be used.
    """
    if wanted.path is not None:
        return _listen_on_path(Path(wanted.path), backlog), wanted
    family = socket.AF_INET6 if ":" in wanted.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((wanted.host, wanted.port))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise ConfigError(f"The address {wanted} cannot be used: {error}.") from error
    return listener, Address(host=wanted.host, port=listener.getsockname()[1])


def _listen_on_path(path: Path, backlog: int) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigError("This platform has no Unix sockets; use tcp://127.0.0.1:0.")
    _remove_stale_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Private from the first moment; no other thread makes files yet.
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise ConfigError(f"The socket {path} cannot be made: {error}.") from error
    finally:
        os.umask(mask)
    return listener


def _remove_stale_socket(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is not a socket; it was left alone.")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.settimeout(1.0)
        probe.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} is in use: {error}.") from error
    else:
        raise ConfigError(f"{path} is in use: a server answers there.")
    finally:
        probe.close()
