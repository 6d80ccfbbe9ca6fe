"""Group commit: many calls share one commit, and no reply leaves before its own.

Calls stage their changes from any thread. What has gathered is committed by the leader
before it waits for more, where commits are quick, and otherwise by the writer thread,
while the next batch fills. Batches are committed strictly in order, one at a time. If
one fails, everything staged since fails with it, the objects it touched leave memory,
and nothing is staged until it is certain what is on disk.

Neither files nor sockets are known here; the store behind is an interface of seven.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from enum import Enum
from threading import get_ident
from typing import Any, NamedTuple, Protocol

from ..errors import StateServerError, StoreError, Unanswered
from ..messages import Lane, Payload

log = logging.getLogger("state_server.store")

ObjectName = tuple[str, str]

#: The largest number of a call that a column of a database holds.
NUMBER_MAX = 2**63 - 1

_RETRY_S = 0.25
_HOUSEKEEPING_S = 30.0

#: A commit that takes longer than this is worth another thread.
_QUICK_COMMIT_S = 0.001


class NeverWritten(StoreError):
    """A commit failed before anything of it could be valid on disk."""


class Stored(NamedTuple):
    """An object on disk. ``entries`` are the journalled calls since its image."""

    version: int
    generation: int
    image: bytes
    entries: tuple[bytes, ...] = ()


class RememberedReply(NamedTuple):
    """The last changing call of a lane; ``payload`` is ``None`` if it was too large."""

    session: bytes
    number: int
    payload: Payload | None


class Change(NamedTuple):
    """What one call changed: the object's new image, or one more journal entry."""

    name: ObjectName
    version: int
    generation: int
    image: bytes | None
    entry: bytes | None = None


class ReplyRecord(NamedTuple):
    """A reply to be remembered on disk."""

    lane: Lane
    number: int
    payload: Payload | None


class Store(Protocol):
    """What keeps state: SQLite here, something beyond this machine elsewhere.

    ``commit``, ``fence`` and ``tidy`` are called by one thread at a time; ``load``,
    ``reply_of`` and ``journalled`` by any.
    """

    epoch: bytes
    #: The largest image, journal entry or reply that it takes.
    value_bytes_max: int

    def load(self, name: ObjectName) -> Stored | None:
        """Return a stored object; raise ``StoreError`` when it cannot be read."""

    def reply_of(self, lane: bytes) -> RememberedReply | None:
        """Return the remembered reply of a lane."""

    def journalled(self) -> Iterator[ObjectName]:
        """Give the names of the objects with journalled calls since their image.

        Others may write meanwhile. Raises ``StoreError`` when they cannot be read.
        """

    def commit(
        self,
        changes: Collection[Change],
        replies: Collection[ReplyRecord],
        forgotten: Collection[bytes],
    ) -> None:
        """Write everything in one transaction.

        Raises ``StoreError`` if it failed, ``NeverWritten`` if it is certain that it
        will not be found on disk either.
        """

    def fence(self) -> None:
        """Make sure that a commit that failed is not on disk; raise ``StoreError``."""

    def tidy(self, retention_s: float) -> None:
        """Forget replies that were committed longer ago than this."""

    def close(self) -> None:
        """Close the files."""


class Phase(Enum):
    """Where a batch is on its way to the disk."""

    FILLING = "filling"
    COMMITTED = "committed"
    FAILED = "failed"


class Owner(Protocol):
    """The object in memory that a change belongs to."""

    poisoned: bool


class Batch:
    """Changes that are committed together.

    Guarded by the committer's lock until it is committed or has failed; from then on it
    never changes but for ``give_back``, and belongs to the thread that wrote it.
    """

    __slots__ = (
        "changes",
        "entries",
        "forgotten",
        "is_due",
        "owners",
        "phase",
        "replies",
        "waiting",
        "waiting_bytes",
    )

    def __init__(self) -> None:
        self.changes: dict[ObjectName, Change] = {}
        self.entries: list[Change] = []
        self.replies: list[ReplyRecord] = []
        self.forgotten: list[bytes] = []
        self.owners: dict[int, Owner] = {}
        #: What waits for this batch, and the payload to be given to it.
        self.waiting: list[tuple[Any, Payload]] = []
        self.waiting_bytes = 0
        self.phase = Phase.FILLING
        #: Whether there is anything that somebody waits to see on disk.
        self.is_due = False

    def give_back(self) -> None:
        """Drop what it carried: objects refer to their last batch for a long time."""
        self.changes, self.entries, self.replies = {}, [], []
        self.forgotten, self.owners, self.waiting = [], {}, []


Settle = Callable[[list[tuple[Any, Payload]], "StateServerError | None"], None]


class Committer:
    """What is to be committed, and the writer thread.

    ``_lock`` guards ``_filling``, ``_failing``, ``_in_doubt``, ``_gatherer``,
    ``_is_writing``, ``_broken``, ``_stopping``, ``failures`` and every batch that is
    not resolved yet. Whoever set ``_is_writing`` alone writes, and owns ``_commit_s``,
    ``_tidy_at`` and ``commits``. ``_settle`` is called without the lock, with what
    waited for a batch and the error if it failed.
    """

    def __init__(self, store: Store, settle: Settle, retention_s: float) -> None:
        self._store = store
        self._settle = settle
        self._retention_s = retention_s
        self._lock = threading.Lock()
        self._staged = threading.Condition(self._lock)
        self._resolved = threading.Condition(self._lock)
        self._filling = Batch()
        self._failing: StoreError | None = None
        self._in_doubt: set[ObjectName] = set()
        self._stopping = False
        #: The thread that has promised to call ``flush``: it need not wake the writer.
        self._gatherer: int | None = None
        self._is_writing = False
        self._broken: tuple[Batch, StoreError] | None = None
        #: How long commits take of late.
        self._commit_s = 0.0
        self._tidy_at = time.monotonic() + _HOUSEKEEPING_S
        self._thread = threading.Thread(
            target=self._write_for_ever, name="state-server-writer", daemon=True
        )
        self.commits = 0
        self.failures = 0
        #: What is larger must not be staged: everything in its batch would fail.
        self.value_bytes_max = store.value_bytes_max

    def __repr__(self) -> str:
        """Return the numbers an operator asks for first."""
        state = "failing" if self._failing else "working"
        return f"<Committer {state} commits={self.commits} failures={self.failures}>"

    def start(self) -> None:
        """Start the writer thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Commit what is staged, end the thread and close the store."""
        with self._lock:
            self._stopping = True
            self._staged.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        self._store.close()

    def load(self, name: ObjectName) -> Stored | None:
        """Return a stored object.

        Raises ``StoreError`` when it cannot be read, or when it is not certain yet what
        is on disk of it.
        """
        with self._lock:
            if self._failing is not None and name in self._in_doubt:
                raise self._refusal()
        return self._store.load(name)

    def reply_of(self, lane: bytes) -> RememberedReply | None:
        """Return the remembered reply of a lane."""
        return self._store.reply_of(lane)

    def journalled(self) -> Iterator[ObjectName]:
        """Give the names of the objects with journalled calls on disk."""
        return self._store.journalled()

    def stage(
        self,
        change: Change,
        owner: Owner,
        reply: ReplyRecord | None,
        waiting: tuple[Any, Payload] | None,
    ) -> Batch:
        """Add a change to the batch that is filling; return the batch.

        Raises ``StoreError``, and nothing is staged, while the store fails, and when
        the object ran on a state that could not be saved.
        """
        with self._lock:
            if self._failing is not None:
                raise self._refusal()
            if reply is not None and reply.number > NUMBER_MAX:
                raise StoreError(f"Calls are numbered up to {NUMBER_MAX} only.")
            if owner.poisoned:
                raise StoreError(
                    f"{'/'.join(change.name)}: the state that this call was made on "
                    "could not be saved; nothing happened."
                )
            batch = self._filling
            if change.entry is None:
                batch.changes[change.name] = change
                batch.entries = [e for e in batch.entries if e.name != change.name]
            else:
                batch.entries.append(change)
            batch.owners[id(owner)] = owner
            if reply is not None:
                batch.replies.append(reply)
            if waiting is not None:
                batch.waiting.append(waiting)
                batch.waiting_bytes += len(waiting[1])
            if not batch.is_due:
                batch.is_due = True
                if get_ident() != self._gatherer:
                    self._staged.notify()
            return batch

    def join(self, batch: Batch, waiting: tuple[Any, Payload]) -> Phase:
        """Wait for a batch that others' changes are in; return where it is.

        Only while it is ``FILLING`` anything waits; ``FAILED`` tells that what was read
        is not on disk and never will be.
        """
        with self._lock:
            if batch.phase is Phase.FILLING:
                batch.waiting.append(waiting)
                batch.waiting_bytes += len(waiting[1])
            return batch.phase

    def wait_for(self, batch: Batch, timeout_s: float | None = None) -> bool:
        """Wait until a batch is committed or has failed: one commit at the most.

        Returns whether it has. Without ``timeout_s`` this lasts as long as the disk.
        """
        with self._lock:
            self._staged.notify()
            return self._resolved.wait_for(
                lambda: batch.phase is not Phase.FILLING, timeout_s
            )

    def forget(self, lane: bytes) -> None:
        """Forget the remembered reply of a lane, with the next commit."""
        with self._lock:
            self._filling.forgotten.append(lane)

    # Writing -------------------------------------------------------------------------

    @property
    def waiting_bytes(self) -> int:
        """Return the bytes of the replies that wait for the batch that is filling."""
        return self._filling.waiting_bytes

    @property
    def has_staged(self) -> bool:
        """Tell whether a change waits for somebody to begin its commit."""
        return self._filling.is_due and not self._is_writing

    def gather(self) -> None:
        """Promise to call ``flush`` soon after whatever this thread stages from now.

        The promise ends when another thread makes it.
        """
        with self._lock:
            self._gatherer = get_ident()

    def flush(self, *, may_wait: bool) -> None:
        """See to it that what is staged is committed, here or by the writer thread.

        Here if ``may_wait`` and if commits take less than it costs to wake another
        thread and share the interpreter with it.
        """
        with self._lock:
            batch = self._filling
            if not batch.is_due or self._is_writing:
                # Whoever writes looks again when it has ended.
                return
            if not may_wait or self._commit_s > _QUICK_COMMIT_S or self._stopping:
                self._staged.notify()
                return
            self._filling, self._is_writing = Batch(), True
        self._write(batch)

    def _write_for_ever(self) -> None:
        while True:
            with self._lock:
                while not self._has_work():
                    self._staged.wait(_HOUSEKEEPING_S)
                broken, self._broken = self._broken, None
                if broken is None:
                    if self._stopping and not self._filling.is_due:
                        return
                    batch, self._filling = self._filling, Batch()
                    self._is_writing = True
            try:
                if broken is not None:
                    self._fail(*broken)
                else:
                    self._tidy()
                    self._write(batch)
            except Exception:
                # The border around the life of the thread: a defect of ours must not
                # leave every later change without its commit.
                log.exception("The writer failed; it goes on.")

    def _has_work(self) -> bool:
        if self._broken is not None:
            return True
        if self._is_writing:
            return False
        due = self._filling.is_due or self._stopping
        return due or time.monotonic() >= self._tidy_at

    def _write(self, batch: Batch) -> None:
        """Commit a batch; the caller has set ``_is_writing``, which ends here."""
        if batch.is_due or batch.forgotten:
            started = time.perf_counter()
            try:
                changes = [*batch.changes.values(), *batch.entries]
                self._store.commit(changes, batch.replies, batch.forgotten)
            except Exception as error:
                # Not only StoreError: whatever it was, the writer must go on, or no
                # call would ever be answered again. It alone deals with failures, as
                # that may take until the disk works again.
                with self._lock:
                    self._broken = batch, _as_store_error(error)
                    self._staged.notify()
                return
            self._commit_s += (time.perf_counter() - started - self._commit_s) / 8
            self.commits += 1
            with self._lock:
                batch.phase = Phase.COMMITTED
                self._resolved.notify_all()
            try:
                self._settle(batch.waiting, None)
            finally:
                self._written(batch)
        else:
            self._written(batch)

    def _written(self, batch: Batch) -> None:
        batch.give_back()
        with self._lock:
            self._is_writing = False
            if self._filling.is_due or self._stopping:
                self._staged.notify()

    def _tidy(self) -> None:
        """Forget old replies now and then; nobody waits for it, nobody fails by it."""
        if time.monotonic() < self._tidy_at:
            return
        self._tidy_at = time.monotonic() + _HOUSEKEEPING_S
        try:
            self._store.tidy(self._retention_s)
        except Exception as error:
            log.warning("Old replies could not be forgotten: %s", error)

    def _fail(self, batch: Batch, error: StoreError) -> None:
        """Undo in memory what could not be saved; go on when the disk does."""
        log.error("The store failed: %s Changes are refused until it works.", error)
        with self._lock:
            self.failures += 1
            self._failing = error
            later, self._filling = self._filling, Batch()
            for failed in (batch, later):
                failed.phase = Phase.FAILED
                for owner in failed.owners.values():
                    owner.poisoned = True
            if not isinstance(error, NeverWritten):
                # The later batch never reached the store: of that we are certain.
                self._in_doubt.update(batch.changes)
                self._in_doubt.update(entry.name for entry in batch.entries)
            self._resolved.notify_all()
        works = self._try_fence()
        certain = works or isinstance(error, NeverWritten)
        try:
            self._settle(batch.waiting, _outcome(error, certain))
            self._settle(later.waiting, _outcome(error, True))
        finally:
            batch.give_back()
            later.give_back()
            self._await_the_disk(works)

    def _await_the_disk(self, works: bool) -> None:
        """Try until the store works again; refuse changes until then."""
        while not works and not self._stopping:
            time.sleep(_RETRY_S)
            works = self._try_fence()
        with self._lock:
            self._is_writing = False
            if not works:
                # The manager stops while the store fails: nothing more is taken in.
                return
            self._failing = None
            self._in_doubt.clear()
        log.warning("The store works again.")

    def _try_fence(self) -> bool:
        try:
            self._store.fence()
        except Exception as error:
            log.debug("No fence yet: %s", error)
            return False
        return True

    def _refusal(self) -> StoreError:
        return StoreError(
            f"The store does not work for now; nothing happened. {self._failing}"
        )


def _as_store_error(error: Exception) -> StoreError:
    if isinstance(error, StoreError):
        return error
    log.error("The store failed in a way of its own.", exc_info=error)
    return StoreError(f"{type(error).__name__}: {error}.")


def _outcome(error: StoreError, certain: bool) -> StateServerError:
    if certain:
        return StoreError(f"The change could not be saved; nothing happened. {error}")
    return Unanswered(
        f"The change could not be saved for certain, and may be on disk yet. {error}"
    )
