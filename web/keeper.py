"""The manager that the workers call: somebody else's, or a child of our own.

With an explicit address the operator looks after the manager and nothing is started;
whether it answers is told once.
Otherwise the lock of the data folder decides: free means that a manager is started as
a child, restarted when it dies, and stopped last; held means that a manager lives
already, and all there is to do is to wait until it answers. While that one is used, the
lock is looked at now and then: when it is free, that manager is gone, and one of our
own is started.

Everything here belongs to the main thread of the parent.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import cast

import state_server
from state_server.data_folder import EXIT_LOCKED, data_dir_is_locked
from state_server.errors import NotAllowed, StateServerError
from state_server.settings import WebSettings, read_authkey

from .children import KILL_GRACE_S, Backoff, Child

logger = logging.getLogger("state_server.web.manager")

#: How often a manager that is not ours is asked whether it answers by now.
ASK_EVERY_S = 0.2

#: How often it is looked whether the manager that is used, and not ours, still lives.
LOOK_EVERY_S = 1.0

#: How long one such question may take; the parent answers no signal meanwhile.
ASK_TIMEOUT_S = 1.0


class ManagerKeeper:
    """Sees to it that there is a manager, and knows when it is ready.

    ``ready`` becomes true once and stays so: workers outlive a restart of the manager.
    ``failure`` says why the first start was given up.
    """

    def __init__(
        self, settings: WebSettings, lifeline_fd: int, environ: Mapping[str, str]
    ) -> None:
        self._settings = settings
        self._lifeline_fd = lifeline_fd
        self._environ = environ
        self._backoff = Backoff(settings.backoff_max_s)
        self._deadline = time.monotonic() + settings.ready_timeout_s
        self._act_at = 0.0
        self._uses_another = False
        self._stopping = False
        self.child: Child | None = None
        self.ready = settings.address is not None
        self.failure: str | None = None

    def __repr__(self) -> str:
        return f"<ManagerKeeper ready={self.ready} child={self.child}>"

    @property
    def gone(self) -> bool:
        """Tell whether no manager of ours is left."""
        return self.child is None

    def wake_at(self) -> float:
        """Return the time at which ``advance`` has something to do by itself."""
        if self._settings.address is not None:
            return float("inf")
        if self.child is None:
            return float("inf") if self._stopping else self._act_at
        if self.child.kill_at is not None:
            return self.child.kill_at
        if not self.child.ready:
            return self.child.started_at + self._settings.ready_timeout_s
        return float("inf")

    def advance(self, now: float) -> None:
        """Do what is due: look after the child, start one, or ask another's manager."""
        if self._settings.address is not None or self.failure is not None:
            return
        if self.child is not None:
            self._look_after(self.child, now)
        elif now >= self._act_at and not self._stopping:
            if not data_dir_is_locked(self._settings.data_dir):
                self._start()
            elif self._uses_another:
                self._act_at = now + LOOK_EVERY_S
            else:
                self._ask(now)

    def tell_of_address(self) -> None:
        """Log whether a manager answers at the address that was given, if one was.

        That none does is no failure: it may be started later, and again.
        """
        address = self._settings.address
        if address is None:
            return
        try:
            lacking = self._lacking_in_another()
        except StateServerError as error:
            logger.warning(
                "requests that need the manager at %s will fail until it answers: %s",
                address,
                error,
            )
        else:
            logger.info("using the manager at %s", address)
            self._warn_of(lacking)

    def stop(self) -> None:
        """Ask our manager, if there is one, to drain and end."""
        self._stopping = True
        if self.child is not None:
            self.child.stop(self._settings.drain_timeout_s + KILL_GRACE_S)

    def kill(self) -> None:
        """End our manager, if there is one, at once."""
        self._stopping = True
        if self.child is not None:
            self.child.kill()

    def _start(self) -> None:
        if self._uses_another:
            logger.warning("the manager that was used is gone; starting one")
        self._uses_another = False
        self.child = Child(
            "manager",
            lambda _report_fd: self._command(),
            environ=self._environ,
            inherited=[self._lifeline_fd],
            report_on_stdout=True,
        )

    def _command(self) -> list[str]:
        settings = self._settings
        command = [sys.executable, "-m", "state_server", "manager"]
        command += ["--data-dir", str(settings.data_dir)]
        command += ["--log-level", settings.log_level]
        command += ["--busy-poll-s", str(settings.busy_poll_s)]
        command += ["--drain-timeout-s", str(settings.drain_timeout_s)]
        command += ["--parent-fd", str(self._lifeline_fd)]
        if settings.authkey_file is not None:
            command += ["--authkey-file", str(settings.authkey_file)]
        for shared in settings.objects:
            command += ["--objects", shared]
        return command

    def _look_after(self, child: Child, now: float) -> None:
        child.listen()
        if child.ended():
            child.close()
            self.child = None
            if not self._stopping:
                self._died(child, now)
        elif child.stopping:
            child.kill_when_late()
        elif child.ready:
            self.ready = True
        elif child.lived_s >= self._settings.ready_timeout_s:
            logger.error(
                "the manager was not ready within %g s and is killed",
                self._settings.ready_timeout_s,
            )
            child.kill()

    def _died(self, child: Child, now: float) -> None:
        if child.exit_code() == EXIT_LOCKED:
            # Somebody else was quicker; the next step waits for that manager.
            logger.warning("the data folder is held by another manager, waiting for it")
            self._act_at = now + ASK_EVERY_S
        elif not self.ready:
            self.failure = (
                f"The manager ended before it was ready ({child.how_it_ended()}); "
                "its own message stands above."
            )
        else:
            delay_s = self._backoff.after_death(child.lived_s if child.ready else 0.0)
            self._act_at = now + delay_s
            stopped = child.exit_code() == 0
            logger.log(
                logging.WARNING if stopped else logging.ERROR,
                "the manager %s (%s) and is started again %s",
                "was stopped" if stopped else "died",
                child.how_it_ended(),
                f"in {delay_s:g} s" if delay_s else "at once",
            )

    def _ask(self, now: float) -> None:
        try:
            lacking = self._lacking_in_another()
        except StateServerError as error:
            self._act_at = time.monotonic() + ASK_EVERY_S
            if not self.ready and now >= self._deadline:
                self.failure = (
                    f"The data folder {self._settings.data_dir} is held by another "
                    f"manager, which did not answer within "
                    f"{self._settings.ready_timeout_s:g} s: {error}"
                )
        else:
            logger.info("using the manager that runs already")
            self._warn_of(lacking)
            self.ready = self._uses_another = True
            self._act_at = time.monotonic() + LOOK_EVERY_S

    def _lacking_in_another(self) -> list[str]:
        """Return which of our ``--objects`` another's manager does not share.

        Raises ``StateServerError`` when it does not answer.
        """
        settings = self._settings
        authkey = read_authkey(settings, self._environ)
        with state_server.connect(
            settings.address, authkey, data_dir=settings.data_dir
        ) as client:
            client.ping(timeout=ASK_TIMEOUT_S)
            try:
                answer = client.control(
                    "lacks", *settings.objects, timeout=ASK_TIMEOUT_S
                )
            except NotAllowed:
                # An older release, which cannot tell, serves all the same.
                return []
            return cast("list[str]", answer)

    def _warn_of(self, lacking: list[str]) -> None:
        if lacking:
            logger.warning(
                "the manager that runs already does not share %s; restart it with %s "
                "as well",
                ", ".join(lacking),
                " ".join(f"--objects {item}" for item in lacking),
            )
