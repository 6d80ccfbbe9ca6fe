"""The worker processes: as many as asked for, replaced when they die or on request.

Each slot has one worker. A worker that dies is replaced at once, and with growing
pauses when it dies again and again. A reload goes from slot to slot: a successor is
started with the code as it is now, and only when it serves is the old worker asked to
drain; the next slot waits until that one is gone, so that there is never more than one
process too many. A successor that cannot start ends the reload, and the old workers
stay.

Everything here belongs to the main thread of the parent.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

from state_server.settings import WebSettings

from .children import KILL_GRACE_S, Backoff, Child

logger = logging.getLogger("state_server.web.pool")


class Slot:
    """The place of one worker, and what is known of those that held it."""

    def __init__(self, number: int, backoff_max_s: float) -> None:
        self.number = number
        self.worker: Child | None = None
        self.generation = 0
        self.start_at = 0.0
        self.backoff = Backoff(backoff_max_s)

    def __repr__(self) -> str:
        return f"<Slot {self.number} generation={self.generation} {self.worker}>"


class WorkerPool:
    """Keeps ``settings.workers`` worker processes on one listening socket.

    ``failure`` says why the first start was given up: as long as not all workers have
    been ready once, a worker that ends is a mistake to report, not one to repeat.
    """

    def __init__(
        self,
        settings: WebSettings,
        *,
        listener_fd: int,
        lifeline_fd: int,
        environ: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._listener_fd = listener_fd
        self._lifeline_fd = lifeline_fd
        self._environ = environ
        self._slots = [
            Slot(number, settings.backoff_max_s)
            for number in range(1, settings.workers + 1)
        ]
        self._generation = 0
        self._successor: tuple[Slot, Child, int] | None = None
        self._retiring: list[Child] = []
        self._stopping = False
        self.complete = False
        self.failure: str | None = None

    def __repr__(self) -> str:
        ready = sum(1 for slot in self._slots if slot.worker and slot.worker.ready)
        return (
            f"<WorkerPool ready={ready} of={len(self._slots)} "
            f"retiring={len(self._retiring)} generation={self._generation}>"
        )

    def children(self) -> list[Child]:
        """Return every process of this pool that is not known to be gone."""
        children = [slot.worker for slot in self._slots if slot.worker is not None]
        if self._successor is not None:
            children.append(self._successor[1])
        return children + self._retiring

    @property
    def gone(self) -> bool:
        """Tell whether no worker is left."""
        return not self.children()

    def wake_at(self) -> float:
        """Return the time at which ``advance`` has something to do by itself."""
        times = [float("inf")]
        for child in self.children():
            if child.kill_at is not None:
                times.append(child.kill_at)
            elif not child.ready:
                times.append(child.started_at + self._settings.ready_timeout_s)
        if not self._stopping:
            times += [slot.start_at for slot in self._slots if slot.worker is None]
        return min(times)

    def advance(self, now: float) -> None:
        """Do what is due: bury the dead, start what is missing, go on reloading."""
        for child in self.children():
            child.listen()
            child.kill_when_late()
        self._retiring = [child for child in self._retiring if not _buried(child)]
        for slot in self._slots:
            self._look_after(slot, now)
        if not self.complete and all(
            slot.worker is not None and slot.worker.ready for slot in self._slots
        ):
            self.complete = True
        self._go_on_reloading()

    def reload(self) -> None:
        """Replace all workers, one after another, by ones that load the code anew."""
        self._generation += 1
        logger.info("replacing the workers one after another")

    def stop(self) -> None:
        """Ask every worker to drain and end; start no more."""
        self._stopping = True
        for child in self.children():
            child.stop(self._settings.drain_timeout_s + KILL_GRACE_S)

    def kill(self) -> None:
        """End every worker at once; start no more."""
        self._stopping = True
        for child in self.children():
            child.kill()

    def _start(self, name: str) -> Child:
        return Child(
            name,
            self._command,
            environ=self._environ,
            inherited=[self._listener_fd, self._lifeline_fd],
        )

    def _command(self, report_fd: int) -> list[str]:
        command = [sys.executable, "-m", "web.worker"]
        command += ["--listener-fd", str(self._listener_fd)]
        command += ["--lifeline-fd", str(self._lifeline_fd)]
        command += ["--report-fd", str(report_fd)]
        return command

    def _look_after(self, slot: Slot, now: float) -> None:
        worker = slot.worker
        if worker is not None:
            if _buried(worker):
                slot.worker = None
                if not self._stopping:
                    self._died(slot, worker, now)
            else:
                self._kill_when_not_ready(worker)
            return
        replaced = self._successor is not None and self._successor[0] is slot
        wanted = not (self._stopping or self.failure or replaced)
        if wanted and now >= slot.start_at:
            slot.generation = self._generation
            slot.worker = self._start(f"worker {slot.number}")

    def _kill_when_not_ready(self, worker: Child) -> None:
        limit_s = self._settings.ready_timeout_s
        if not (worker.ready or worker.stopping) and worker.lived_s >= limit_s:
            worker.failure = f"it was not ready within {limit_s:g} s"
            logger.error("%s was not ready within %g s", worker.name, limit_s)
            worker.kill()

    def _died(self, slot: Slot, worker: Child, now: float) -> None:
        if not (self.complete or worker.ready):
            self.failure = (
                f"{worker.name} could not start the app {self._settings.app!r}: "
                f"{worker.failure or worker.how_it_ended()}"
            )
            return
        delay_s = slot.backoff.after_death(worker.lived_s if worker.ready else 0.0)
        slot.start_at = now + delay_s
        logger.error(
            "%s died (%s%s) after %.1f s and is replaced %s",
            worker.name,
            worker.how_it_ended(),
            f"; {worker.failure}" if worker.failure else "",
            worker.lived_s,
            f"in {delay_s:g} s, for it keeps dying" if delay_s else "at once",
        )

    def _go_on_reloading(self) -> None:
        if self._successor is not None:
            self._follow(*self._successor)
        if self._successor is None and not (self._retiring or self._stopping):
            for slot in self._slots:
                old = slot.worker
                if old is not None and old.ready and slot.generation < self._generation:
                    successor = self._start(f"worker {slot.number}")
                    self._successor = (slot, successor, self._generation)
                    return

    def _follow(self, slot: Slot, successor: Child, generation: int) -> None:
        """Take the next step of the successor that is starting for ``slot``."""
        if _buried(successor):
            self._successor = None
            if not self._stopping:
                logger.error(
                    "the reload is given up and the old workers stay: the new worker "
                    "could not start (%s)",
                    successor.failure or successor.how_it_ended(),
                )
                for each in self._slots:
                    each.generation = max(each.generation, generation)
        elif successor.ready and not self._stopping:
            self._successor = None
            old, slot.worker = slot.worker, successor
            slot.generation = generation
            if old is not None:
                old.stop(self._settings.drain_timeout_s + KILL_GRACE_S)
                self._retiring.append(old)
        else:
            self._kill_when_not_ready(successor)


def _buried(child: Child) -> bool:
    """Tell whether ``child`` is gone, with its last words heard and nothing left."""
    if not child.ended():
        return False
    child.listen()
    child.close()
    return True
