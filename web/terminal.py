"""The terminal, when the service runs under ``make``.

A terminal sends Ctrl-C to every process of its foreground group. ``make`` would die of
it, and its exit code would say so although everything ended in good order. So the
service takes a group of its own to the foreground, and gives the terminal back.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def alone_in_the_foreground() -> Iterator[None]:
    """Be the only one that the terminal's Ctrl-C reaches, if ``make`` started us."""
    if not _under_make_in_the_foreground():
        yield
        return
    terminal, former = sys.stdin.fileno(), os.getpgrp()
    os.setpgid(0, 0)
    _give(terminal, os.getpgrp())
    try:
        yield
    finally:
        _give(terminal, former)


def _under_make_in_the_foreground() -> bool:
    if "MAKELEVEL" not in os.environ or not sys.stdin.isatty():
        return False
    try:
        foreground = os.tcgetpgrp(sys.stdin.fileno())
    except OSError:
        return False
    # A group leader was started by a shell itself, and has the terminal to itself.
    return foreground == os.getpgrp() != os.getpid()


def _give(terminal: int, group: int) -> None:
    """Let ``group`` have the terminal; the signal would stop a background process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        os.tcsetpgrp(terminal, group)
    except OSError:
        # The terminal or the group is gone; nobody is left to be given anything.
        return
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTTOU})
