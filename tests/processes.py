"""Real manager processes for tests: started, watched, and ended by who started them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

import state_server

ROOT = Path(__file__).resolve().parent.parent
READY_TIMEOUT_S = 30.0


class ManagerProcess:
    """One manager in a process of its own. Its log is in ``log_path``."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        self.data_dir = folder / "var"
        self.folder = folder
        self.log_path = folder / "manager.log"
        self.options = options
        self.environment = environment
        self.process: subprocess.Popen[str] | None = None
        self.address = ""

    def start(self) -> ManagerProcess:
        """Start it and wait until it is ready."""
        with self.log_path.open("a") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    str(ROOT / "start_manager.py"),
                    "--data-dir",
                    str(self.data_dir),
                    *self.options,
                ],
                cwd=self.folder,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{self.folder}:{ROOT}",
                    **self.environment,
                },
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        stdout = self.process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], READY_TIMEOUT_S)[0]:
            raise AssertionError(f"not ready in time: {self.log}")
        line = stdout.readline()
        assert line.startswith("ready "), (line, self.log)
        self.address = line.split(maxsplit=1)[1].strip()
        return self

    @property
    def pid(self) -> int:
        """Return the process id."""
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """Return what it has logged."""
        return self.log_path.read_text()

    @property
    def key(self) -> bytes:
        """Return its key."""
        return (self.data_dir / "authkey").read_bytes()

    @property
    def stock_address(self) -> Any:
        """Return its address as the standard library spells it."""
        from state_server.wire import parse_address

        return parse_address(self.address).stock

    def client(self, **options: Any) -> state_server.Client:
        """Return a client of ours."""
        return state_server.connect(data_dir=self.data_dir, **options)

    def stock_client(self, *names: str) -> Any:
        """Return a connected BaseManager of this interpreter's standard library."""

        class StockManager(BaseManager):
            pass

        for name in names:
            StockManager.register(name)
        manager = StockManager(address=self.stock_address, authkey=self.key)
        manager.connect()
        return manager

    def kill(self) -> None:
        """End it with SIGKILL, and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """End it with SIGTERM; return its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            assert self.process.stdout is not None
            self.process.stdout.close()


def wait_until(
    condition: Callable[[], Any], timeout_s: float = 20.0, what: str = "the condition"
) -> Any:
    """Wait until ``condition`` is true; return its value; fail after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true in {timeout_s} s")
        time.sleep(0.005)
