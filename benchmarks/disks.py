"""What keeps a number on disk: one SQLite transaction for each call, and Redis.

``SqliteCounter`` is what the SQLite server and the bare commits both use: prepared
statements, WAL, synchronous=FULL, everything else SQLite's own defaults.
"""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

from state_server.addresses import Address

from .processes import await_end, cpu_s, on_processors

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0

#: The options that make Redis keep each write, and nothing that costs it more; and
#: those that make it keep none.
_KEPT = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
_FORGOTTEN = ("--appendonly", "no", "--save", "")


class SqliteCounter:
    """A number in SQLite; each call that changes it is one transaction on disk.

    ``busy_timeout_s``: how long to wait for the transactions of other processes.
    """

    def __init__(self, path: Path, busy_timeout_s: float = 5.0) -> None:
        self._connection = sqlite3.connect(
            path, timeout=busy_timeout_s, isolation_level=None
        )
        execute = self._connection.execute
        (mode,) = execute("pragma journal_mode = wal").fetchone()
        if mode != "wal":
            raise RuntimeError(f"SQLite cannot use WAL in {path.parent}.")
        execute("pragma synchronous = full")
        execute(
            "create table if not exists counters "
            "(id integer primary key, number integer not null)"
        )
        if execute("select count(*) from counters").fetchone() == (0,):
            execute("insert or ignore into counters values (1, 0)")
        self._execute = execute

    def add(self) -> None:
        """Add one, and have it on disk."""
        self._execute("update counters set number = number + 1 where id = 1")

    def add_among_others(self) -> None:
        """Add one while other processes do the same, and have it on disk."""
        # The lock at the beginning, which is what the busy timeout waits for.
        self._execute("begin immediate")
        self.add()
        self._execute("commit")

    def read(self) -> int:
        """Return the number."""
        row = self._execute("select number from counters where id = 1").fetchone()
        return int(row[0])

    def next(self) -> int:
        """Return the next number; it is on disk by then."""
        self.add()
        return self.read()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def redis_missing(package: bool = False) -> str:
    """Return why Redis cannot be compared, or nothing if it can.

    ``package``: whether the Python client is needed as well.
    """
    if shutil.which("redis-server") is None:
        return "there is no redis-server on the PATH (Debian: apt install redis-server)"
    if package and find_spec("redis") is None:
        return "the Python package redis is missing (pip install -e '.[bench]')"
    return ""


class Redis:
    """A Redis server of our own, on a Unix socket and on a port of this machine.

    ``durable``: whether it syncs before it answers; otherwise it keeps nothing.
    """

    kind = "redis"

    def __init__(self, folder: Path, cpus: set[int], *, durable: bool = True) -> None:
        home = folder / ("redis" if durable else "redis-in-memory")
        home.mkdir()
        self.address = Address(path=str(home / "redis.sock"))
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port: int = found.getsockname()[1]
        with on_processors(cpus), (home / "log").open("w") as log:
            self._process = subprocess.Popen(
                [
                    "redis-server",
                    *("--bind", "127.0.0.1", "--port", str(self.port)),
                    *("--unixsocket", str(self.address.path)),
                    *("--dir", str(home), "--daemonize", "no"),
                    *(_KEPT if durable else _FORGOTTEN),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._ask(b"PING") != b"+PONG\r\n":
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                text = (home / "log").read_text()
                raise RuntimeError(f"redis-server did not start: {text}")
            time.sleep(0.02)

    def _ask(self, *words: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(5.0)
            try:
                peer.connect(str(self.address.path))
                peer.sendall(resp(*words))
                return peer.recv(4096)
            except OSError:
                return b""

    def number(self, key: str) -> int:
        """Return the number stored under a key."""
        reply = self._ask(b"INCRBY", key.encode(), b"0")
        if not reply.startswith(b":"):
            raise RuntimeError(f"Redis answered {reply!r}.")
        return int(reply[1:])

    def version(self) -> str:
        """Return the version of the server."""
        for line in self._ask(b"INFO", b"server").decode().splitlines():
            if line.startswith("redis_version:"):
                return line.partition(":")[2]
        return "unknown"

    def cpu_s(self) -> float:
        """Return the processor time that the process has used."""
        return cpu_s(self._process.pid)

    def stop(self) -> None:
        """End the process; what it kept is thrown away with the folder."""
        self._process.terminate()
        await_end(self._process, STOP_TIMEOUT_S)


def resp(*words: bytes) -> bytes:
    """Return a command as Redis reads it."""
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


def sync_times(folder: Path, count: int) -> list[float]:
    """Return how long it took to have single pages on disk, one after the other."""
    page, times = bytes(4096), []
    descriptor = os.open(folder / "pages", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, page * count)
        os.fsync(descriptor)
        for number in range(count):
            os.pwrite(descriptor, b"\1" * 4096, 4096 * number)
            started = time.perf_counter()
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - started)
    finally:
        os.close(descriptor)
    return times


def file_system(folder: Path) -> str:
    """Return the kind of file system that a folder is on."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, name, *_ = line.split()
        prefix = point.rstrip("/") + "/"
        if f"{folder.resolve()}/".startswith(prefix) and len(prefix) > len(best):
            best, kind = prefix, name
    return kind
