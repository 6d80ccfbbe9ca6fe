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
from pathlib import Path

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

#: The options that make Redis keep each write, and nothing that costs it more.
REDIS_OPTIONS = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


class SqliteCounter:
    """A number in SQLite; each call of ``next`` is one transaction on disk."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        execute = self._connection.execute
        (mode,) = execute("pragma journal_mode = wal").fetchone()
        if mode != "wal":
            raise RuntimeError(f"SQLite cannot use WAL in {path.parent}.")
        execute("pragma synchronous = full")
        execute(
            "create table if not exists counters "
            "(id integer primary key, number integer not null)"
        )
        execute("insert or ignore into counters values (1, 0)")
        self._execute = execute

    def add(self) -> None:
        """Add one, and have it on disk."""
        self._execute("update counters set number = number + 1 where id = 1")

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


def redis_command() -> str | None:
    """Return the path of redis-server, or ``None`` when it is not installed."""
    return shutil.which("redis-server")


class Redis:
    """A Redis server of our own, on a Unix socket, that syncs before it answers."""

    kind = "redis"

    def __init__(self, command: str, folder: Path, cpus: set[int]) -> None:
        home = folder / "redis"
        home.mkdir()
        self.path = home / "redis.sock"
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus)
        with (home / "log").open("w") as log:
            self._process = subprocess.Popen(
                [
                    command,
                    *("--port", "0", "--unixsocket", str(self.path)),
                    *("--dir", str(home), "--daemonize", "no"),
                    *REDIS_OPTIONS,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        os.sched_setaffinity(0, before)
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
                peer.connect(str(self.path))
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
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def resp(*words: bytes) -> bytes:
    """Return a command as Redis reads it."""
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


def cpu_s(process_id: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2]
    user, system = fields.split()[11:13]
    return (int(user) + int(system)) / _TICKS_PER_S


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
