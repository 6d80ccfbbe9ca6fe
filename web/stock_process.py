"""The process of the standard library's manager that the page ``/demo`` asks.

The first worker that needs it starts it, under a file lock, and all workers use it. It
ends with the worker that started it: it holds the read end of a pipe whose write end
only that worker has. Whoever then finds nobody there starts the next one.

What it needs on disk is in the folder ``demonstration`` of the manager's data folder: a
key, a lock file, the address, and the socket. All of it is private to one user, which
a stock manager needs: whoever has its key can run code in it.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import logging
import os
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import ProcessError, connection, managers
from pathlib import Path
from typing import Any

from state_server.data_folder import make_key_file, make_private_folder, write_whole
from state_server.errors import ConfigError
from state_server.settings import read_address_file, read_key_file

from .children import Child

logger = logging.getLogger("state_server.web.demo")

#: The serializer, in the words of the standard library, whose connections have a
#: deadline; it is pickle, as the stock one.
WITHIN_DEADLINE = "pickle within a deadline"

#: Seconds that the start may take.
START_TIMEOUT_S = 10.0

#: Seconds that each wait for an answer of the process may take.
ANSWER_TIMEOUT_S = 10.0

#: Seconds from a start that failed to the next one.
RETRY_AFTER_S = 5.0

#: Seconds between two looks whether a wait is over.
LOOK_EVERY_S = 0.01

#: Seconds that the process gets to end by itself when its worker ends.
END_S = 1.0


class NotAvailable(Exception):
    """The stock manager cannot be asked; the text is fit for visitors."""


class StockProcess:
    """The way of one worker to the process, made on first use.

    ``module`` runs as the process; ``connect`` makes a proxy of its address and key.
    ``_proxy`` is written whole and the file lock guards the start: no lock is here
    that a fork could find held, or a greenlet of a process that was patched later.
    """

    def __init__(self, module: str, connect: Callable[[str, bytes], Any]) -> None:
        self._module = module
        self._connect = connect
        self._proxy: Any = None
        self._end: Callable[[], None] | None = None
        self._retry_at = 0.0

    def __repr__(self) -> str:
        return f"<StockProcess {self._module} found={self._proxy is not None}>"

    @contextlib.contextmanager
    def proxy(self, data_dir: Path) -> Iterator[Any]:
        """Give the proxy for one call, and start the process if there is none.

        Raises ``NotAvailable`` when it cannot be started, or does not answer in time.
        """
        proxy = self._proxy or self._find(data_dir)
        try:
            yield proxy
        except (OSError, EOFError, ProcessError, managers.RemoteError) as error:
            self._forget(proxy)
            logger.warning("the stock manager: %s: %s", type(error).__name__, error)
            raise NotAvailable("The stock manager did not answer.") from error

    def _forget(self, proxy: Any) -> None:
        if self._proxy is proxy:
            self._proxy = None
        # Else the next call of this thread would read the answer to the last one.
        broken = proxy._tls.__dict__.pop("connection", None)
        if broken is not None:
            broken.close()

    def _find(self, data_dir: Path) -> Any:
        """Return a proxy of the process that is there, or of a new one."""
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            if time.monotonic() < self._retry_at:
                raise ConfigError("it could not be started a moment ago")
            home = _home(data_dir)
            with _locked(home / "lock", deadline):
                proxy = self._proxy
                if proxy is None:
                    key = kept_key(home / "key")
                    proxy = self._join(home, key) or self._start(home, key)
                    self._proxy = proxy
                return proxy
        except (OSError, EOFError, ConfigError, ProcessError, ImportError) as error:
            if time.monotonic() >= self._retry_at:
                self._retry_at = time.monotonic() + RETRY_AFTER_S
                logger.error("the stock manager cannot be started: %s", error)
            raise NotAvailable(
                "The stock manager could not be started; the log of the web server "
                "says why."
            ) from error

    def _join(self, home: Path, key: bytes) -> Any:
        """Return a proxy of the process that another worker started, or ``None``."""
        address = read_address_file(home)
        if address is None:
            return None
        try:
            return self._connect(address, key)
        except (OSError, EOFError, ProcessError) as error:
            logger.info("the stock manager has ended (%s), starting another", error)
            return None

    def _start(self, home: Path, key: bytes) -> Any:
        """Start the process, say where it is, and return a proxy."""
        if self._end is not None:
            atexit.unregister(self._end)
            self._end()
        for stale in home.glob("stock-*"):
            stale.unlink()
        # A new name each time: the standard library keeps a connection for each thread
        # and address, and never finds out that the other end is another process.
        address = str(home / f"stock-{secrets.token_hex(4)}")
        lifeline_fd, workers_end = os.pipe()
        try:
            child = Child(
                "the stock manager",
                lambda _report_fd: [
                    *(sys.executable, "-m", self._module, "--address", address),
                    *("--key-file", str(home / "key")),
                    *("--lifeline-fd", str(lifeline_fd)),
                ],
                environ=os.environ,
                inherited=[lifeline_fd],
                report_on_stdout=True,
            )
        except BaseException:
            os.close(workers_end)
            raise
        finally:
            os.close(lifeline_fd)
        self._end = functools.partial(_end, os.getpid(), child, workers_end)
        atexit.register(self._end)
        _await(child, time.monotonic() + START_TIMEOUT_S)
        write_whole(home / "address", address.encode())
        return self._connect(address, key)


def kept_key(path: Path) -> bytes:
    """Return the key in a file that all workers use; whoever comes first makes it.

    Raises ``ConfigError`` when the file cannot be written or read.
    """
    with contextlib.suppress(FileExistsError):
        return read_key_file(path) or make_key_file(path)
    key = read_key_file(path)
    assert key is not None, "a key file is whole once it is there"
    return key


def dial(address: str, authkey: bytes) -> connection.Connection:
    """Return a connection of ``multiprocessing`` whose waits have an end.

    The standard library's own ``Client`` with time limits that the system keeps: a
    read or a write that takes longer fails with ``BlockingIOError``.
    """
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(ANSWER_TIMEOUT_S)
        peer.connect(address)
        timeval = divmod(round(ANSWER_TIMEOUT_S * 10**6), 10**6)
        limit = struct.pack("ll", *timeval)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        os.set_blocking(peer.fileno(), True)
        link = connection.Connection(peer.detach())
    try:
        connection.answer_challenge(link, authkey)
        connection.deliver_challenge(link, authkey)
    except BaseException:
        link.close()
        raise
    return link


# The registry of serializers; the stub files for type checkers leave it out.
managers.listener_client[WITHIN_DEADLINE] = (  # type: ignore[attr-defined]
    connection.Listener,
    dial,
)


def main(serve: Callable[[str, bytes, Callable[[], None]], None]) -> None:
    """Be the process: serve until the worker that started it is gone."""
    parser = argparse.ArgumentParser(prog="stock manager", description="For /demo.")
    parser.add_argument("--address", required=True)
    parser.add_argument("--key-file", type=Path, required=True)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    given = parser.parse_args()
    threading.Thread(
        target=_end_with_worker,
        args=(given.lifeline_fd, Path(given.address)),
        daemon=True,
    ).start()
    key = read_key_file(given.key_file)
    assert key is not None
    serve(given.address, key, lambda: print("ready", flush=True))


def _await(child: Child, deadline: float) -> None:
    while not child.ready:
        child.listen()
        if child.ended():
            raise ConfigError(f"its process ended with {child.how_it_ended()}")
        if time.monotonic() >= deadline:
            child.kill()
            raise ConfigError("its process was not ready in time")
        time.sleep(LOOK_EVERY_S)


def _end_with_worker(lifeline_fd: int, address: Path) -> None:
    while os.read(lifeline_fd, 1):
        pass
    address.unlink(missing_ok=True)
    os._exit(0)


def _end(process_id: int, child: Child, workers_end: int) -> None:
    """End the process with its worker, and not with a child of that."""
    if os.getpid() == process_id:
        os.close(workers_end)
        child.wait(END_S)
        child.kill()
        child.wait(END_S)
        child.close()


def _home(data_dir: Path) -> Path:
    if not data_dir.is_dir():
        raise ConfigError(f"there is no data folder {data_dir} on this machine")
    home = data_dir / "demonstration"
    make_private_folder(home)
    return home


@contextlib.contextmanager
def _locked(path: Path, deadline: float) -> Iterator[None]:
    """Keep other threads and processes out; raises ``OSError`` at the deadline."""
    import fcntl  # not on Windows, where the rest of the app should still load

    # Each opening of the file has a lock of its own, so threads exclude each other too.
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(LOOK_EVERY_S)
        yield
