"""Real manager processes for tests: started, watched, and ended by who started them."""

from __future__ import annotations

import ast
import atexit
import contextlib
import dataclasses
import functools
import importlib
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any, NamedTuple

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
        """Start it and wait until it is ready; a former process must have ended."""
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()
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
        from state_server.addresses import parse_address

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


class Sides(NamedTuple):
    """A manager of ours and one of the standard library."""

    ours: Side
    stock: Side


@contextlib.contextmanager
def both_managers(folder: Path) -> Iterator[Sides]:
    """Start one manager of each kind."""
    with our_manager(folder / "ours") as manager, stock_manager(folder / "st") as stock:
        yield Sides(side_of(manager), stock)


def wait_until(
    condition: Callable[[], Any], timeout_s: float = 20.0, what: str = "the condition"
) -> Any:
    """Wait until ``condition`` is true; return its value; fail after ``timeout_s``.

    The longer it takes, the more seldom it looks: many a condition costs milliseconds.
    """
    began = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited_s = time.monotonic() - began
        if waited_s > timeout_s:
            raise AssertionError(f"{what} did not come true in {timeout_s} s")
        time.sleep(min(max(0.005, waited_s / 20), 0.1))


# Scenarios that run against a manager of ours and of the standard library ------------


@dataclasses.dataclass
class Side:
    """A manager as a scenario sees it: ours, or the standard library's."""

    ours: bool
    address: Any
    key: bytes
    pid: int
    folder: Path

    def connect(self) -> Any:
        """Return a new client: ours, or a connected ``BaseManager``."""
        if self.ours:
            return state_server.connect(self.address, self.key)

        class StockManager(BaseManager):
            pass

        from . import shared_classes

        for cls in shared_classes.CLASSES:
            for prefix in ("", "New", "Late"):
                StockManager.register(prefix + cls.__name__)
        manager = StockManager(address=self.address, authkey=self.key)
        manager.connect()
        return manager

    def get(self, name: str, key: str = "default") -> Any:
        """Return a handle or a proxy; the standard library knows no keys."""
        if self.ours:
            return self.connect().get(name, key)
        return getattr(self.connect(), name)()

    def mark(self, name: str) -> str:
        """Return the path of a file that says how far somebody is; it is not there."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        return str(path)


def side_of(manager: ManagerProcess) -> Side:
    """Return the side of a manager of ours."""
    return Side(True, manager.stock_address, manager.key, manager.pid, manager.folder)


_FORK_SCENARIOS = "from tests.processes import fork_scenarios; fork_scenarios()"
_SERVE_STOCK = "from tests.shared_classes import serve; serve()"


@contextlib.contextmanager
def stock_manager(folder: Path, address: Any = None) -> Iterator[Side]:
    """Serve ``tests.shared_classes`` with the standard library's manager."""
    from . import shared_classes

    folder.mkdir(mode=0o700, exist_ok=True)
    where = str(folder / "stock.sock") if address is None else address
    Path(folder / "stock.sock").unlink(missing_ok=True)
    with (folder / "stock.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE_STOCK, repr(where)],
            cwd=ROOT,
            env={**os.environ, "TEST_FOLDER": str(folder)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    with process.stdout:
        try:
            readable = select.select([process.stdout], [], [], READY_TIMEOUT_S)[0]
            line = process.stdout.readline() if readable else ""
            assert line.startswith("ready "), (line, (folder / "stock.log").read_text())
            found = ast.literal_eval(line.split(maxsplit=1)[1])
            yield Side(False, found, shared_classes.STOCK_KEY, process.pid, folder)
        finally:
            process.kill()
            process.wait(10)


@contextlib.contextmanager
def our_manager(folder: Path, *options: str) -> Iterator[ManagerProcess]:
    """Serve ``tests.shared_classes`` with a manager of ours."""
    folder.mkdir(mode=0o700, exist_ok=True)
    manager = ManagerProcess(
        folder, "--objects", "tests.shared_classes", *options, TEST_FOLDER=str(folder)
    ).start()
    try:
        yield manager
    finally:
        assert manager.process is not None
        manager.process.kill()
        manager.process.wait(10)
        assert manager.process.stdout is not None
        manager.process.stdout.close()


@dataclasses.dataclass
class Outcome:
    """How a scenario ended: with a value, with an error, or not at all in time."""

    value: Any = None
    error: str = ""
    in_time: bool = True
    noise: str = ""


def run_bounded(
    side: Side, scenario: Callable[..., Any], *args: Any, timeout_s: float = 30.0
) -> Outcome:
    """Run ``scenario(side, *args)`` in a process of its own; never wait for ever.

    The process has a group of its own, which is killed in the end: what the scenario
    forked ends with it.
    """
    report = side.folder / f"{scenario.__name__}-report"
    report.unlink(missing_ok=True)
    todo = (scenario.__module__, scenario.__qualname__, side, args, report)
    noise = side.folder / "noise"
    noise.write_text("")
    in_time = _nursery().run(pickle.dumps(todo), noise, timeout_s)
    outcome = Outcome("", "no report was written")
    if report.exists():
        outcome = pickle.loads(report.read_bytes())
    outcome.in_time = in_time
    outcome.noise = noise.read_text()
    return outcome


class Nursery:
    """A process that has imported what every scenario needs, and forks one for each.

    A new interpreter would spend ten times as long on its imports as a scenario takes.
    Used by one thread.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _FORK_SCENARIOS],
            cwd=ROOT,
            # A second line in a buffer would be overlooked by who waits for the pipe.
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, todo: bytes, noise: Path, timeout_s: float) -> bool:
        """Have a scenario run; tell whether it ended in time. Its group is killed."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(pickle.dumps((todo, noise, dict(os.environ))))
        scenario = int(self._line(READY_TIMEOUT_S))
        in_time = bool(self._line(timeout_s))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(scenario, signal.SIGKILL)
        if not in_time:
            assert self._line(10)
        return in_time

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _line(self, timeout_s: float) -> bytes:
        """Return the next line that it writes, or nothing if none comes in time."""
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], timeout_s)[0]:
            return b""
        # It writes a line when asked, and one when the scenario has ended.
        line = stdout.readline()
        assert line, f"the process that forks scenarios ended: {self._process.wait(10)}"
        return line


@functools.cache
def _nursery() -> Nursery:
    nursery = Nursery()
    atexit.register(nursery.close)
    return nursery


def fork_scenarios() -> None:
    """Be a ``Nursery``. The processes that it forks return from here, and end."""
    importlib.import_module("pytest")
    while True:
        try:
            todo, noise, environ = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        scenario = os.fork()
        if scenario == 0:
            break
        os.write(1, b"%d\n" % scenario)
        os.waitpid(scenario, 0)
        os.write(1, b"ended\n")
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(noise, os.O_WRONLY)
    for descriptor, copy in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, copy)
    os.close(nothing)
    os.close(output)
    os.environ.clear()
    os.environ.update(environ)
    _run_scenario(*pickle.loads(todo))


def _run_scenario(
    module: str, name: str, side: Side, args: tuple[Any, ...], report: Path
) -> None:
    scenario = getattr(importlib.import_module(module), name)
    main = os.getpid()
    try:
        outcome = Outcome(scenario(side, *args))
    except BaseException as error:
        outcome = Outcome(None, f"{type(error).__name__}: {error}")
    if os.getpid() != main:
        os._exit(0)
    fresh = report.with_suffix(".new")
    fresh.write_bytes(pickle.dumps(outcome))
    fresh.replace(report)


def freeze(pid: int) -> None:
    """Stop a process with SIGSTOP, and wait until each of its threads stands still."""
    os.kill(pid, signal.SIGSTOP)

    def stands_still() -> bool:
        for task in Path(f"/proc/{pid}/task").iterdir():
            stat = (task / "stat").read_text()
            if stat.rpartition(")")[2].split()[0] != "T":
                return False
        return True

    wait_until(stands_still)


def is_running(pid: int) -> bool:
    """Tell whether a thread of a process runs now, or would if it were let."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            stat = (task / "stat").read_text()
        except OSError:
            continue
        if stat.rpartition(")")[2].split()[0] == "R":
            return True
    return False


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def thread_count(pid: int) -> int:
    """Return the number of threads of a process."""
    return len(os.listdir(f"/proc/{pid}/task"))


def descriptor_count(pid: int) -> int:
    """Return the number of open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def is_alive(pid: int) -> bool:
    """Tell whether a process runs (one that waits to be collected does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
