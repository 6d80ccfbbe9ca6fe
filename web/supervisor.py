"""The parent of the web half: one listening socket, and the life of all the processes.

It starts the manager (when one is wanted) and then the workers, keeps them alive, and
ends them in the opposite order. It never imports the application, so that a fresh
worker always loads the code as it is on disk.

SIGINT, SIGTERM: drain the workers, then the manager, exit code 0; a second one forces.
SIGHUP: replace the workers one after another without a failed request. The SIGHUP of a
terminal that was closed means: end.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import FrameType

from state_server import settings as settings_module
from state_server.errors import ConfigError
from state_server.settings import WebSettings

from .children import Child
from .keeper import ManagerKeeper
from .pool import WorkerPool

logger = logging.getLogger("state_server.web")

#: The exit code when the service could not start, or was ended by force.
EXIT_FAILED = 1

#: How long the parent waits for processes that it has killed.
BURIAL_S = 5.0


class Phase(Enum):
    """Where in its life the service is."""

    STARTING = "starting"
    SERVING = "serving"
    STOPPING_WORKERS = "stopping workers"
    STOPPING_MANAGER = "stopping manager"
    ENDED = "ended"


class Supervisor:
    """Runs the web half until a signal ends it; all of it in the main thread."""

    def __init__(self, settings: WebSettings) -> None:
        if os.name != "posix":
            raise ConfigError(
                "Worker processes that share a socket need POSIX; here, run the app "
                "in one process: waitress-serve --call web.app:create_app"
            )
        data_dir = settings.data_dir.resolve()
        self._settings = dataclasses.replace(settings, data_dir=data_dir)
        self._phase = Phase.STARTING
        self._exit_code = 0
        self._signals: collections.deque[int] = collections.deque()
        # A terminal that closes sends SIGHUP, too. Under nohup it is ignored from the
        # start, and then it never means the terminal.
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._ends_with_terminal = not ignored and _has_terminal()

    def __repr__(self) -> str:
        return f"<Supervisor {self._phase.value}>"

    def run(self) -> int:
        """Serve until the end and return the exit code.

        Raises ``ConfigError`` when the address cannot be bound.
        """
        with contextlib.ExitStack() as stack:
            self._listener = stack.enter_context(open_listener(self._settings))
            lifeline_fd, parents_end = os.pipe()
            stack.callback(os.close, lifeline_fd)
            stack.callback(os.close, parents_end)
            self._wakeup = stack.enter_context(self._signals_taken())
            self._keeper = ManagerKeeper(
                self._settings, lifeline_fd, self._environ(for_workers=False)
            )
            self._pool = WorkerPool(
                self._settings,
                listener_fd=self._listener.fileno(),
                lifeline_fd=lifeline_fd,
                environ=self._environ(for_workers=True),
            )
            try:
                while self._phase is not Phase.ENDED:
                    self._advance()
                    self._wait()
            finally:
                self._bury()
        logger.info("ended with exit code %d", self._exit_code)
        return self._exit_code

    def _advance(self) -> None:
        """Take every step that is due; the next one waits for an event or a time."""
        while self._signals:
            self._take_signal(self._signals.popleft())
        now = time.monotonic()
        self._keeper.advance(now)
        if self._keeper.ready or self._phase is Phase.STOPPING_WORKERS:
            self._pool.advance(now)
        failure = self._keeper.failure or self._pool.failure
        if self._phase is Phase.STARTING and failure is not None:
            logger.error("the start is given up: %s", failure)
            self._exit_code = EXIT_FAILED
            self._stop()
        elif self._phase is Phase.STARTING and self._pool.complete:
            self._phase = Phase.SERVING
            self._keeper.tell_of_address()
            self._announce()
        if self._phase is Phase.STOPPING_WORKERS and self._pool.gone:
            self._phase = Phase.STOPPING_MANAGER
            self._keeper.stop()
        if self._phase is Phase.STOPPING_MANAGER and self._keeper.gone:
            self._phase = Phase.ENDED

    def _wait(self) -> None:
        """Sleep until a signal, a word from a child, or the next time of a step."""
        if self._phase is Phase.ENDED:
            return
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        for child in self._children():
            if child.report_fd >= 0:
                poll.register(child.report_fd, select.POLLIN)
        wake_at = min(self._keeper.wake_at(), self._pool.wake_at())
        wait_s = min(max(0.0, wake_at - time.monotonic()), 60.0)
        poll.poll(wait_s * 1000 + 1)
        with contextlib.suppress(BlockingIOError):
            while self._wakeup.recv(4096):
                pass

    def _take_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGHUP and not self._terminal_is_gone():
            if self._phase is Phase.SERVING:
                self._pool.reload()
        elif self._phase in (Phase.STARTING, Phase.SERVING):
            logger.info("%s: draining, a second one forces", name)
            self._stop()
        else:
            logger.warning("%s again: ending every process at once", name)
            self._exit_code = EXIT_FAILED
            self._pool.kill()
            self._keeper.kill()

    def _stop(self) -> None:
        self._phase = Phase.STOPPING_WORKERS
        # New connections are refused from the moment the last worker stops listening,
        # and do not wait in vain until the parent ends.
        self._listener.close()
        self._pool.stop()

    def _children(self) -> list[Child]:
        manager = self._keeper.child
        return self._pool.children() + ([manager] if manager is not None else [])

    def _bury(self) -> None:
        """Leave nothing behind, whatever happened."""
        children = self._children()
        for child in children:
            child.kill()
        for child in children:
            child.wait(BURIAL_S)
            child.close()

    def _announce(self) -> None:
        host, port = self._listener.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{port}/"
        count, app = self._settings.workers, self._settings.app
        serving = "1 worker serves" if count == 1 else f"{count} workers serve"
        lines = [f"State Server is ready: {serving} {app} at {address}"]
        # Of an app of the user's nobody knows which pages it has.
        if app == WebSettings().app:
            lines.append(f"Try: curl {address} and open {address}demo in a browser")
        lines.append("Stop: Ctrl-C")
        # Whoever read our output may have gone; that is no reason to end.
        with contextlib.suppress(OSError):
            print("\n".join(lines), flush=True)

    def _environ(self, *, for_workers: bool) -> dict[str, str]:
        """Return the environment of a child.

        Workers read their settings there, the command line of the parent included, so
        that an app which calls ``connect()`` or ``StateServer(app)`` without arguments
        meets the right manager.
        """
        environ = settings_module.as_told(os.environ)
        # Wherever start_web.py was called from, its children find this package; their
        # working folder stays in front, where an app of the user's is looked for.
        home = str(Path(__file__).resolve().parent.parent)
        paths = [path for path in (environ.get("PYTHONPATH"), home) if path]
        environ["PYTHONPATH"] = os.pathsep.join(paths)
        if for_workers:
            for field in dataclasses.fields(self._settings):
                value = getattr(self._settings, field.name)
                if isinstance(value, Path):
                    value = value.resolve()
                if isinstance(value, tuple):
                    value = ",".join(value)
                if value is not None:
                    environ[settings_module.variable(field.name)] = str(value)
        return environ

    def _terminal_is_gone(self) -> bool:
        return self._ends_with_terminal and not _has_terminal()

    @contextlib.contextmanager
    def _signals_taken(self) -> Iterator[socket.socket]:
        """Note signals instead of acting inside a handler; yield what they wake."""

        def note(number: int, frame: FrameType | None) -> None:
            if number != signal.SIGCHLD:
                self._signals.append(number)

        reading, writing = socket.socketpair()
        reading.setblocking(False)
        writing.setblocking(False)
        before = {
            number: signal.signal(number, note)
            for number in (
                signal.SIGINT,
                signal.SIGTERM,
                signal.SIGHUP,
                signal.SIGCHLD,
            )
        }
        wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        try:
            yield reading
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            reading.close()
            writing.close()


def open_listener(settings: WebSettings) -> socket.socket:
    """Return the listening socket that all workers share.

    Raises ``ConfigError`` naming the address when it cannot be bound.
    """
    host, colon, port = settings.bind.rpartition(":")
    host = host.strip("[]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(
            f"bind is {settings.bind!r}; expected host:port, such as 127.0.0.1:8000"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, int(port)))
        listener.listen(settings.web_backlog)
        # All workers are woken by one connection, and only one gets it: the others
        # must find nothing instead of waiting for the next.
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"bind {settings.bind!r} is not possible: {error}. Say --bind host:port "
            "(STATE_SERVER_BIND) for another address."
        ) from error
    return listener


def _has_terminal() -> bool:
    """Tell whether this process has a terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
