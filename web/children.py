"""Child processes: how one is started, what it says of itself, and how it ends.

A child runs in a session of its own, so that Ctrl-C in the terminal reaches only the
parent. It inherits the read end of the lifeline, a pipe whose write end nobody but the
parent has: when that pipe closes, the parent is gone and the child ends by itself. It
reports over a second pipe, one line at a time: ``ready`` with whatever follows, or
``failed`` with the reason.

Everything here belongs to the main thread of the parent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

logger = logging.getLogger("state_server.web")

#: A child that ends this soon after its start counts as one that keeps dying.
QUICK_DEATH_S = 5.0

#: The wait after the second quick death in a row; it doubles with each further one.
BACKOFF_FIRST_S = 0.5

#: What a stopping child gets on top of its own deadline before it is killed.
KILL_GRACE_S = 5.0

#: The longest line that a child may say of itself.
REPORT_BYTES_MAX = 64 * 1024


class Backoff:
    """Says how long to wait before a child that ended is started again."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self.quick_deaths = 0

    def __repr__(self) -> str:
        return f"<Backoff quick_deaths={self.quick_deaths}>"

    def after_death(self, lived_s: float) -> float:
        """Return the wait in seconds after a life of ``lived_s``: 0 the first time."""
        self.quick_deaths = self.quick_deaths + 1 if lived_s < QUICK_DEATH_S else 0
        if self.quick_deaths < 2:
            return 0.0
        doublings = min(self.quick_deaths - 2, 30)
        return min(self._longest_s, BACKOFF_FIRST_S * 2.0**doublings)


class Child:
    """One child process.

    ``command`` gets the descriptor that the child reports on and returns the command
    line. ``report_on_stdout`` makes the child's standard output that descriptor.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[int], Sequence[str]],
        *,
        environ: Mapping[str, str],
        inherited: Sequence[int],
        report_on_stdout: bool = False,
    ) -> None:
        self.name = name
        self.started_at = time.monotonic()
        self.ready = False
        self.failure: str | None = None
        self.kill_at: float | None = None
        self._unread = b""
        self.report_fd, child_end = os.pipe()
        os.set_blocking(self.report_fd, False)
        try:
            self._process = subprocess.Popen(
                command(child_end),
                stdin=subprocess.DEVNULL,
                stdout=child_end if report_on_stdout else None,
                pass_fds=[*inherited, *([] if report_on_stdout else [child_end])],
                env=dict(environ),
                start_new_session=True,
            )
        except BaseException:
            os.close(self.report_fd)
            raise
        finally:
            os.close(child_end)
        self.pid = self._process.pid
        logger.info("%s started, process %d", name, self.pid)

    def __repr__(self) -> str:
        state = "ended" if self.ended() else "ready" if self.ready else "starting"
        return f"<Child {self.name} process={self.pid} {state}>"

    @property
    def stopping(self) -> bool:
        """Tell whether this child was asked to end."""
        return self.kill_at is not None

    @property
    def lived_s(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.started_at

    def ended(self) -> bool:
        """Tell whether the process is gone; never waits."""
        return self._process.poll() is not None

    def exit_code(self) -> int | None:
        """Return the exit code, negative for a signal, or ``None`` while it lives."""
        return self._process.poll()

    def how_it_ended(self) -> str:
        """Return the end in words, for a log line."""
        code = self._process.poll()
        if code is None:
            return "still running"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"

    def listen(self) -> None:
        """Take in what the child has reported; never waits."""
        while self.report_fd >= 0:
            try:
                data = os.read(self.report_fd, 4096)
            except BlockingIOError:
                return
            if not data:
                self.close()
                return
            *lines, rest = (self._unread + data).split(b"\n")
            self._unread = rest[:REPORT_BYTES_MAX]
            for line in lines:
                self._heard(line.decode(errors="replace").strip())

    def stop(self, patience_s: float) -> None:
        """Ask the process to end, and plan to kill it when it takes longer."""
        if self.stopping:
            return
        self.kill_at = time.monotonic() + patience_s
        self._send(signal.SIGTERM)

    def kill_when_late(self) -> None:
        """Kill the process if it was asked to end and its time is over."""
        if self.kill_at is not None and time.monotonic() >= self.kill_at:
            logger.warning("%s did not end in time and is killed", self.name)
            self.kill()

    def kill(self) -> None:
        """End the process at once."""
        self.kill_at = float("inf")
        self._send(signal.SIGKILL)

    def close(self) -> None:
        """Give the report descriptor back."""
        if self.report_fd >= 0:
            os.close(self.report_fd)
            self.report_fd = -1

    def wait(self, timeout_s: float) -> None:
        """Wait for the end of a process that was killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def _heard(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "ready":
            self.ready = True
        elif word == "failed":
            self.failure = rest

    def _send(self, number: signal.Signals) -> None:
        # Popen looks whether the process has ended first, so that a process number
        # that was given out again is never signalled.
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
