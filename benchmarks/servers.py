"""The servers under measurement, each a process of its own.

``python -m benchmarks.servers echo|stock|sqlite ADDRESS`` is one of the rivals; it
prints ``ready ADDRESS`` and ends when its standard input closes. ``Server`` starts any.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

from state_server import wire

from . import workload
from .disks import SqliteCounter, cpu_s

ROOT = Path(__file__).resolve().parent.parent
KEY_VARIABLE = "STATE_SERVER_AUTHKEY"
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0


class Server:
    """One server process. ``kind``: ``echo``, ``stock``, ``sqlite`` or ``ours``.

    ``objects``: the module of the shared classes, ours only.
    """

    def __init__(
        self,
        kind: str,
        folder: Path,
        key: str,
        cpus: set[int],
        *,
        tcp: bool = False,
        objects: str = "benchmarks.workload",
    ) -> None:
        address = "tcp://127.0.0.1:0" if tcp else f"unix://{folder}/{kind}.sock"
        self.kind = kind
        self._log_path = folder / f"{kind}.log"
        if kind == "ours":
            command = [
                str(ROOT / "start_manager.py"),
                *("--data-dir", str(folder / "var")),
                *("--address", address),
                *("--objects", objects),
                *("--parent-fd", "0"),
            ]
        else:
            command = ["-m", "benchmarks.servers", kind, address]
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus)
        with self._log_path.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, KEY_VARIABLE: key, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        os.sched_setaffinity(0, before)
        self.address = wire.parse_address(self._ready_line().split(maxsplit=1)[1])

    def _ready_line(self) -> str:
        assert self._process.stdout is not None
        if select.select([self._process.stdout], [], [], READY_TIMEOUT_S)[0]:
            line = self._process.stdout.readline().strip()
            if line.startswith("ready "):
                return line
        self.stop()
        raise RuntimeError(
            f"The server {self.kind!r} did not start: {self._log_path.read_text()}"
        )

    def cpu_s(self) -> float:
        """Return the processor time that the process has used."""
        return cpu_s(self.process_id)

    @property
    def process_id(self) -> int:
        """Return the identity of the process."""
        return self._process.pid

    def resident_bytes(self) -> int:
        """Return how much memory the process holds."""
        pages = Path(f"/proc/{self.process_id}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self.stop()

    def stop(self) -> None:
        """End the process, gently at first."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


# The rivals --------------------------------------------------------------------------


def _serve_echo(address: wire.Address) -> None:
    """Send back whatever comes, one thread for each connection: the floor."""
    if address.path is not None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(address.path)
    else:
        listener = socket.create_server((address.host, address.port))
    listener.listen(1024)
    name = listener.getsockname()
    print("ready", name if address.path else f"tcp://{name[0]}:{name[1]}", flush=True)
    while True:
        peer, _ = listener.accept()
        if address.path is None:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_echo, args=(peer,), daemon=True).start()


def _echo(peer: socket.socket) -> None:
    receive, send = peer.recv, peer.sendall
    try:
        while data := receive(65536):
            send(data)
    except ConnectionError:
        pass
    peer.close()


class _StockManager(BaseManager):
    pass


def _serve_stock(address: wire.Address) -> None:
    """Run the standard library's manager, as its documentation shows it."""
    bench, slow = workload.Bench(), workload.Slow()
    _StockManager.register("Bench", callable=lambda: bench)
    _StockManager.register("Slow", callable=lambda: slow)
    key = os.environ[KEY_VARIABLE].encode()
    server = _StockManager(address=address.stock, authkey=key).get_server()
    bound: Any = server.address
    print("ready", wire.parse_address(bound), flush=True)
    server.serve_forever()


def _serve_sqlite(address: wire.Address) -> None:
    """Answer each frame with the next number, one SQLite transaction for each.

    One thread for all connections: SQLite lets one transaction write at a time, so more
    threads or processes would only wait for each other, and for the interpreter lock.
    """
    assert address.path is not None
    counter = SqliteCounter(Path(f"{address.path}.db"))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address.path)
    listener.listen(1024)
    print("ready", address.path, flush=True)
    poller = select.epoll()
    poller.register(listener.fileno(), select.EPOLLIN)
    peers: dict[int, socket.socket] = {}
    while True:
        for descriptor, _ in poller.poll():
            if descriptor == listener.fileno():
                peer, _ = listener.accept()
                peers[peer.fileno()] = peer
                poller.register(peer.fileno(), select.EPOLLIN)
                continue
            peer = peers[descriptor]
            if peer.recv(65536):
                peer.send(counter.next().to_bytes(8, "big"))
            else:
                poller.unregister(descriptor)
                peers.pop(descriptor).close()


def _end_with_parent() -> None:
    while sys.stdin.read(1):
        pass
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    rivals = {"echo": _serve_echo, "stock": _serve_stock, "sqlite": _serve_sqlite}
    serve = rivals[sys.argv[1]]
    serve(wire.parse_address(sys.argv[2]))
