"""One worker process: load the app, say ``ready``, serve, drain.

It is executed afresh (``python -m web.worker``) with three inherited descriptors: the
listening socket, the lifeline whose end means that the parent is gone, and the pipe on
which it reports. Its settings come from the environment that the parent made.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from state_server import settings as settings_module
from state_server.errors import ConfigError
from state_server.settings import WebSettings

from . import log
from .server import Server

logger = logging.getLogger("state_server.web.worker")

#: The exit code when the app cannot be loaded.
EXIT_NO_APP = 4

#: What a worker gets on top of its time to drain before it ends itself by force. It
#: is less than the parent's patience, and works without a parent.
LAST_RESORT_S = 3.0


def main(arguments: Sequence[str]) -> int:
    """Serve until asked to end and return the exit code."""
    parser = argparse.ArgumentParser(prog="web.worker", description="For start_web.py.")
    for option in ("--listener-fd", "--lifeline-fd", "--report-fd"):
        parser.add_argument(option, type=int, required=True)
    given = parser.parse_args(list(arguments))
    for descriptor in vars(given).values():
        # What the app starts must hold neither the port nor the pipes.
        os.set_inheritable(descriptor, False)
    settings = settings_module.from_environment(WebSettings, os.environ)
    log.configure(settings.log_level)
    return Worker(settings, given.lifeline_fd).run(given.listener_fd, given.report_fd)


class Worker:
    """The life of one worker process.

    The main thread runs the server; one daemon thread waits for the parent's end.
    """

    def __init__(self, settings: WebSettings, lifeline_fd: int) -> None:
        self._settings = settings
        self._server: Server | None = None
        # Before the app is loaded: that may take for ever, the parent may not.
        threading.Thread(
            target=self._watch_parent, args=(lifeline_fd,), name="lifeline", daemon=True
        ).start()

    def run(self, listener_fd: int, report_fd: int) -> int:
        """Load the app and serve it; return the exit code."""
        listener = socket.socket(fileno=listener_fd)
        try:
            application = load_app(self._settings.app)
        except AppNotFound as error:
            # No code of the app has failed: there is no place to look at.
            logger.error("the app cannot be loaded: %s", error)
            _report(report_fd, f"failed {error}")
            return EXIT_NO_APP
        except Exception as error:
            logger.exception("the app %r cannot be loaded", self._settings.app)
            _report(report_fd, f"failed {type(error).__name__}: {error}")
            return EXIT_NO_APP
        self._server = Server(application, listener, self._settings)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._drain_by_signal)
        _report(report_fd, "ready")
        self._server.serve()
        # A thread of the app that will not end must not keep the process.
        last_resort = threading.Timer(
            self._settings.drain_timeout_s + LAST_RESORT_S, os._exit, (1,)
        )
        last_resort.daemon = True
        last_resort.start()
        return 0 if self._server.finish() else 1

    def _drain_by_signal(self, number: int, frame: FrameType | None) -> None:
        assert self._server is not None
        self._server.drain()

    def _watch_parent(self, lifeline_fd: int) -> None:
        with contextlib.suppress(OSError):
            while os.read(lifeline_fd, 1):
                pass
        if self._server is None:
            os._exit(1)
        logger.warning("the parent is gone: draining")
        self._server.drain()


class AppNotFound(ConfigError):
    """The setting ``app`` names nothing that could be served."""


def load_app(path: str) -> Callable[..., Any]:
    """Return the WSGI application that ``path``, ``module:name``, stands for.

    The name is a factory, which is called without arguments, or an application. Raises
    ``AppNotFound`` when it is neither, and whatever the module or the factory raises.
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name) or module_name.startswith("."):
        raise AppNotFound(
            f"app is {path!r}; expected module:factory, such as app:create_app"
        )
    target = _found(path, module_name, name)
    if not callable(target):
        raise AppNotFound(f"app is {path!r}, which is not a factory of an application")
    if _takes(target):
        target = target()
        if not callable(target):
            raise AppNotFound(f"app is {path!r}, which did not return an application")
    elif not _takes(target, {}, print):
        raise AppNotFound(
            f"app is {path!r}: a factory is called without arguments, and this one is "
            f"{name}{inspect.signature(target)}; give its arguments defaults"
        )
    return target  # type: ignore[no-any-return]


def _found(path: str, module_name: str, name: str) -> Any:
    """Return what stands under ``name`` in a module, which is imported."""
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not error.name or not f"{module_name}.".startswith(f"{error.name}."):
            # The module is there; what it imports itself is not.
            raise
        is_file = module_name.endswith(".py")
        hint = "Leave .py away" if is_file else f"Is it in {os.getcwd()}, or installed?"
        raise AppNotFound(f"app is {path!r}: {error}. {hint}") from error
    for part in name.split("."):
        try:
            target = getattr(target, part)
        except AttributeError as error:
            raise AppNotFound(f"app is {path!r}: {error}") from error
    return target


def _takes(target: Callable[..., Any], *args: object) -> bool:
    """Tell whether ``target`` may be called with ``args``.

    What has no signature that Python knows is taken for an application.
    """
    try:
        inspect.signature(target).bind(*args)
    except TypeError:
        return False
    except ValueError:
        return bool(args)
    return True


def _report(report_fd: int, text: str) -> None:
    """Tell the parent one line and close the pipe, if there is still a parent."""
    with contextlib.suppress(OSError):
        os.write(report_fd, " ".join(text.split()).encode()[:1024] + b"\n")
    with contextlib.suppress(OSError):
        os.close(report_fd)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
