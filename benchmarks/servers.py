"""The servers under measurement, each a process of its own.

``python -m benchmarks.servers KIND ADDRESS`` is one of the rivals; it
prints ``ready ADDRESS`` and ends when its standard input closes. ``Server`` starts any.
"""

from __future__ import annotations

import mmap
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

from state_server.addresses import Address, parse_address

from . import workload
from .disks import SqliteCounter
from .processes import await_end, cpu_s, on_processors

ROOT = Path(__file__).resolve().parent.parent
KEY_VARIABLE = "STATE_SERVER_AUTHKEY"
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0


class Server:
    """One server process. ``kind``: ``ours``, or one of the rivals below.

    Of ours only: ``objects``, the modules of the shared classes; ``memory``, whether
    nothing is written.
    """

    def __init__(
        self,
        kind: str,
        folder: Path,
        key: str,
        cpus: set[int],
        *,
        tcp: bool = False,
        objects: Sequence[str] = ("benchmarks.workload",),
        memory: bool = False,
    ) -> None:
        address = "tcp://127.0.0.1:0" if tcp else f"unix://{folder}/{kind}.sock"
        self.kind = kind
        self._log_path = folder / f"{kind}.log"
        if kind == "ours":
            command = [
                "start_manager.py",
                *("--data-dir", str(folder / "var")),
                *("--address", address),
                *(word for each in objects for word in ("--objects", each)),
                *(["--memory"] if memory else []),
                *("--parent-fd", "0"),
            ]
        else:
            command = ["-m", "benchmarks.servers", kind, address]
        with on_processors(cpus), self._log_path.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, KEY_VARIABLE: key, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.address = parse_address(self._ready_line().split(maxsplit=1)[1])

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
        await_end(self._process, STOP_TIMEOUT_S)
        self._process.stdout.close()


class WebServer:
    """One ``start_web.py`` with its workers, of the app of ``web_app``.

    It is ready after ``wait_until_ready``, so that several can start at the same time.
    ``manager``: the address of ours, which the app may never ask. ``environ``: what the
    app has to know besides.
    """

    def __init__(
        self,
        log_path: Path,
        manager: Address,
        key: str,
        environ: Mapping[str, str],
        *,
        workers: int,
        threads: int,
    ) -> None:
        self._log_path = log_path
        with log_path.open("w") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "start_web.py"),
                    *("--app", "benchmarks.web_app:create_app"),
                    *("--bind", "127.0.0.1:0"),
                    *("--address", str(manager)),
                    *("--workers", str(workers), "--threads", str(threads)),
                ],
                cwd=ROOT,
                env={**os.environ, KEY_VARIABLE: key, **environ},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.address = ("", 0)

    def wait_until_ready(self) -> None:
        """Wait for all workers; ``address`` is known then."""
        assert self._process.stdout is not None
        output, said = self._process.stdout.fileno(), b""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while select.select([output], [], [], max(0.0, deadline - time.monotonic()))[0]:
            data = os.read(output, 4096)
            said += data
            if found := re.search(rb"http://([\d.]+):(\d+)/", said):
                self.address = (found[1].decode(), int(found[2]))
                return
            if not data:
                break
        raise RuntimeError(f"No web server: {self._log_path.read_text()}")

    def stop(self) -> None:
        """End all processes, gently at first."""
        assert self._process.stdout is not None
        self._process.terminate()
        await_end(self._process, STOP_TIMEOUT_S)
        self._process.stdout.close()


# The rivals --------------------------------------------------------------------------


def _serve_echo(address: Address) -> None:
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


def _serve_bulk(address: Address) -> None:
    """Send back values of a given size once they are here in full, one at a time.

    A size below zero asks for memory that is not used again.
    """
    assert address.path is not None
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address.path)
    listener.listen()
    print("ready", address.path, flush=True)
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=_send_back, args=(peer,), daemon=True).start()


def _send_back(peer: socket.socket) -> None:
    kept, head = new_memory(1), bytearray(8)
    try:
        while True:
            receive_exactly(peer, memoryview(head))
            size = int.from_bytes(head, "big", signed=True)
            if len(kept) < size:
                kept = new_memory(size)
            buffer = kept if size > 0 else new_memory(-size)
            receive_exactly(peer, memoryview(buffer)[: abs(size)])
            peer.sendall(memoryview(buffer)[: abs(size)])
    except EOFError:
        peer.close()


def new_memory(size: int) -> mmap.mmap:
    """Return memory as numpy takes it for a large array: no zeros, in large pages."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= 1 << 22:
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def receive_exactly(peer: socket.socket, buffer: memoryview) -> None:
    """Fill a buffer from a socket; raises ``EOFError`` at the end."""
    filled = 0
    while filled < len(buffer):
        count = peer.recv_into(buffer[filled:])
        if not count:
            raise EOFError
        filled += count


class _StockManager(BaseManager):
    pass


def _serve_stock(address: Address) -> None:
    """Run the standard library's manager, as its documentation shows it."""
    bench, slow, echo = workload.Bench(), workload.Slow(), workload.Echo()
    _StockManager.register("Bench", callable=lambda: bench)
    _StockManager.register("Slow", callable=lambda: slow)
    _StockManager.register("Echo", callable=lambda: echo)
    key = os.environ[KEY_VARIABLE].encode()
    server = _StockManager(address=address.stock, authkey=key).get_server()
    bound: Any = server.address
    print("ready", parse_address(bound), flush=True)
    server.serve_forever()


def _serve_sqlite(address: Address) -> None:
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
    rivals = {
        "bulk": _serve_bulk,
        "echo": _serve_echo,
        "sqlite": _serve_sqlite,
        "stock": _serve_stock,
    }
    serve = rivals[sys.argv[1]]
    serve(parse_address(sys.argv[2]))
