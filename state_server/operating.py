"""What an operator does with a data folder: back up, restore, check, dump, load.

Used by the command, in a process of its own, by the owner of the folder. A backup, a
check and a dump read one moment of the state beside a running manager. A restore and a
load hold the manager's lock, so that none runs or starts meanwhile. What the lines of a
dump are, ``dumps`` tells.
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, NamedTuple

from .data_folder import (
    HASH_SEED_FILE,
    STATE_FILE,
    DataDirLock,
    check_owner,
    hash_seed_in_file,
    make_private_folder,
    sync,
    user_name,
)
from .dumps import line_of, rows_of
from .errors import ConfigError, StoreError, Unloadable
from .keeping import journal, loaded
from .sharing import Catalogue
from .store import (
    FILE_HEAD,
    SCHEMA_VERSION,
    Inserted,
    SqliteStore,
    StoreFile,
    fold_log,
)

#: Problems of one check that are told one by one; the others are counted.
PROBLEMS_MAX = 100


class Copied(NamedTuple):
    """What a backup or a restore has copied, and what it has kept aside."""

    objects: int
    size: int
    kept: Path | None = None


@dataclass(slots=True)
class Report:
    """What a check has found. ``classes_not_given`` counts objects not looked into."""

    path: str
    schema_version: int = 0
    objects: int = 0
    loaded: int = 0
    migrations: int = 0
    journalled_calls: int = 0
    remembered_replies: int = 0
    classes_not_given: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0

    def add(self, problem: str) -> None:
        """Note one problem."""
        self.problem_count += 1
        if self.problem_count <= PROBLEMS_MAX:
            self.problems.append(problem)

    @property
    def is_good(self) -> bool:
        """Tell whether there is no problem."""
        return not self.problem_count

    def as_json(self) -> str:
        """Return the report for other tools."""
        return json.dumps({"ok": self.is_good, **asdict(self)}, indent=2)

    def lines(self) -> list[str]:
        """Return the report for people."""
        lines = [
            f"{self.path}, schema {self.schema_version}",
            f"{counted(self.objects, 'object')}, {self.loaded} loaded with the class",
            f"{self.migrations} of an older version of it, which would be migrated",
            counted(self.journalled_calls, "journalled call"),
            f"{self.remembered_replies} remembered "
            + ("reply" if self.remembered_replies == 1 else "replies"),
        ]
        for name, count in self.classes_not_given.items():
            lines.append(
                f"{counted(count, 'object')} of {name!r} not loaded: name it by "
                f"--objects, or share the class it became with aliases=({name!r},)"
            )
        lines += [f"PROBLEM: {problem}" for problem in self.problems]
        untold = self.problem_count - len(self.problems)
        if untold:
            lines.append(f"PROBLEM: and {untold} more")
        found = counted(self.problem_count, "problem")
        lines.append("no problem" if self.is_good else found)
        return lines


def counted(count: int, noun: str) -> str:
    """Return how many there are of something, in words."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# Verbs -------------------------------------------------------------------------------


def back_up(data_dir: Path, target: Path, *, force: bool = False) -> Copied:
    """Write one consistent moment of the state to ``target``; calls go on meanwhile.

    The copy begins a new epoch: no call that was made on the original is repeated onto
    it. Raises ``ConfigError`` when it was not tried, ``StoreError`` when it failed.
    """
    path = _state_of_ours(data_dir, "Nothing was backed up")
    with (
        _whole_file(target, data_dir, "Nothing was backed up", force=force) as fresh,
        StoreFile(path) as store,
    ):
        _check_schema(store, "Nothing was backed up")
        store.copy(fresh, hash_seed=hash_seed_in_file(data_dir), wal=False)
        return Copied(store.count("objects"), fresh.stat().st_size)


def restore(data_dir: Path, source: Path, *, trust: bool = False) -> Copied:
    """Put a backup in the place of the state, which is kept aside.

    At each moment of it there is a whole state in place, the old or the new one, each
    with the hash seed that its journals were written under. Raises
    ``DataDirLocked`` while a manager runs, ``ConfigError`` when the backup may not be
    used, ``StoreError`` when it is damaged; then nothing was changed.
    """
    refusal = "Nothing was restored"
    if not source.is_file():
        raise ConfigError(f"{refusal}: there is no backup file {source}.")
    with source.open("rb") as file:
        if file.read(1) == b"{":
            raise ConfigError(
                f"{refusal}: {source} is no backup but looks like a dump. Say `load` "
                "in place of `restore`."
            )
    if not trust:
        _check_author(source, refusal)
    with _locked(data_dir):
        path = data_dir / STATE_FILE
        if path.exists() and path.samefile(source):
            raise ConfigError(f"{refusal}: {source} is the state itself.")
        fresh = data_dir / f"{STATE_FILE}.new"
        # A journal that a power cut has left would be played into the new file.
        for ending in ("", "-journal", "-wal", "-shm"):
            (data_dir / f"{STATE_FILE}.new{ending}").unlink(missing_ok=True)
        try:
            with StoreFile(source) as backup:
                _check_schema(backup, refusal)
                problems = backup.damage()
                if problems:
                    raise StoreError(
                        f"{refusal}: the backup {source} is damaged: "
                        f"{'; '.join(problems[:3])}. Use another one."
                    )
                backup.copy(fresh, hash_seed=None, wal=True)
                copied = Copied(backup.count("objects"), fresh.stat().st_size)
            kept = _set_aside(path)
            fresh.replace(path)
            sync(data_dir)
        finally:
            fresh.unlink(missing_ok=True)
    return copied._replace(kept=kept)


def check(data_dir: Path, shared: Catalogue, *, strict: bool = False) -> Report:
    """Look at the whole state without changing it; return what was found.

    ``shared``: the classes that objects are loaded with. ``strict``: an object of
    another class is a problem, too. Raises ``ConfigError`` when there is no state.
    """
    path = _state_of_ours(data_dir, "Nothing was checked")
    report = Report(str(path))
    try:
        with StoreFile(path) as store:
            report.schema_version = store.schema_version
            for problem in store.damage():
                report.add(problem)
            if store.schema_version != SCHEMA_VERSION:
                report.add(
                    f"the state has schema {store.schema_version}, this release reads "
                    f"{SCHEMA_VERSION}"
                )
            else:
                _check_objects(store, shared, report)
    except StoreError as error:
        report.add(str(error))
    if strict:
        for name, count in report.classes_not_given.items():
            found = counted(count, "object")
            report.add(f"{found} of {name!r}, which no module given shares")
    return report


def dump(data_dir: Path, output: IO[str]) -> int:
    """Write every object as a line of JSON; return how many there are.

    Classes of values inside the states are imported where they can be.
    """
    path = _state_of_ours(data_dir, "Nothing was dumped")
    count = 0
    with StoreFile(path) as store:
        _check_schema(store, "Nothing was dumped")
        seed = store.hash_seed
        if seed is None:
            seed = hash_seed_in_file(data_dir)
        for row in store.rows():
            output.write(line_of(row, seed) + "\n")
            count += 1
    return count


@contextmanager
def dump_file(
    data_dir: Path, target: Path, *, force: bool = False
) -> Iterator[IO[str]]:
    """Give a file for ``dump`` that appears, whole, when all has been written."""
    with (
        _whole_file(target, data_dir, "Nothing was dumped", force=force) as fresh,
        open(
            os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600),
            "w",
            encoding="utf-8",
            newline="\n",
        ) as file,
    ):
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def lines_of_dump(source: Path) -> Iterator[IO[str]]:
    """Give the lines of a file for ``load``; raise ``ConfigError`` if it is no dump."""
    refusal = "Nothing was loaded"
    try:
        file = source.open("rb")
    except OSError as error:
        raise ConfigError(f"{refusal}: {source} cannot be read: {error}.") from error
    with file, io.TextIOWrapper(file, encoding="utf-8", newline="\n") as lines:
        # Looked at and not read: it may be a pipe.
        if file.peek(len(FILE_HEAD)).startswith(FILE_HEAD):
            raise ConfigError(
                f"{refusal}: {source} is no dump but a backup. Say `restore` in place "
                "of `load`; it replaces all of the state."
            )
        try:
            yield lines
        except UnicodeDecodeError as error:
            raise ConfigError(f"{refusal}: {source} is no dump: {error}.") from error


def load(
    data_dir: Path, lines: Iterable[str], *, replace: bool = False, trust: bool = False
) -> Inserted:
    """Put the objects of a dump into the state, all or none.

    ``replace``: those that exist already are replaced; otherwise they stay as they are.
    ``trust``: what runs code when it is read may be in the dump. Raises
    ``DataDirLocked`` while a manager runs, ``ConfigError`` naming the line that does
    not fit; then nothing was loaded.
    """
    with _locked(data_dir):
        store = SqliteStore(data_dir / STATE_FILE)
        try:
            agree = functools.partial(_agree_on_hash_seed, store, data_dir)
            return store.insert(rows_of(lines, trust, agree), replace=replace)
        finally:
            store.close()


# The data folder ---------------------------------------------------------------------


def _state_of_ours(data_dir: Path, refusal: str) -> Path:
    """Return the state of a data folder that is ours; raise ``ConfigError``."""
    path = data_dir / STATE_FILE
    try:
        check_owner(data_dir)
        os.close(os.open(path, os.O_RDONLY))
    except FileNotFoundError:
        raise ConfigError(
            f"{refusal}: there is no state in {path.absolute()}. Name the manager's "
            "data folder with --data-dir; a manager with --memory keeps none."
        ) from None
    except OSError as error:
        raise ConfigError(f"{refusal}: {path} cannot be read: {error}.") from error
    return path


def _check_author(path: Path, refusal: str) -> None:
    """Refuse a file that somebody else may have written: its images run code.

    What lies beside it as its log counts as well, since SQLite reads that.
    """
    if sys.platform == "win32":
        return
    for ending in ("", "-wal", "-journal"):
        part = path.with_name(path.name + ending)
        if ending and not os.path.lexists(part):
            continue
        status = part.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            mode = status.st_mode & 0o777
            raise ConfigError(
                f"{refusal}: others than {user_name(os.geteuid())} may have written "
                f"{part} (it belongs to {user_name(status.st_uid)}, mode {mode:04o}), "
                "and the images of objects in it run code when they are loaded. Say "
                "--trust if you know where it comes from."
            )


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Hold the manager's lock of a data folder of ours, which is made if need be."""
    make_private_folder(data_dir)
    lock = DataDirLock(data_dir)
    try:
        yield
    finally:
        lock.release()


def _check_schema(store: StoreFile, refusal: str) -> None:
    if store.schema_version != SCHEMA_VERSION:
        raise StoreError(
            f"{refusal}: {store.path} has schema {store.schema_version}, this release "
            f"reads {SCHEMA_VERSION}. Use the release that wrote it."
        )


@contextmanager
def _whole_file(
    target: Path, data_dir: Path, refusal: str, *, force: bool
) -> Iterator[Path]:
    """Give a name to write to; what was written takes the place of ``target``."""
    if target.is_dir():
        raise ConfigError(f"{refusal}: {target} is a folder; name a file.")
    if not target.parent.is_dir():
        raise ConfigError(f"{refusal}: there is no folder {target.parent}.")
    if target.exists():
        if target.resolve().parent == data_dir.resolve():
            raise ConfigError(
                f"{refusal}: {target} is a file of the data folder; none of those is "
                "ever replaced. Choose a name elsewhere."
            )
        if not force:
            raise ConfigError(
                f"{refusal}: {target} exists already. Choose another name, or say "
                "--force to replace it."
            )
    # Two at once write to names of their own; the last to end wins, whole.
    fresh = target.with_name(f"{target.name}.new-{os.urandom(4).hex()}")
    try:
        yield fresh
        fresh.replace(target)
        sync(target.parent)
    finally:
        fresh.unlink(missing_ok=True)


def _set_aside(path: Path) -> Path | None:
    """Keep the old state under another name; it is in its place yet, too.

    A log that is left next to another database would destroy it, and a database without
    its log has lost calls. So the log is folded into the old file first; only a damaged
    one, which no manager starts with, is parted from its log.
    """
    now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    kept = path.with_name(f"{path.name}.before-restore-{now}")
    if path.exists() and fold_log(path, hash_seed_in_file(path.parent)):
        _link(path, kept)
        return kept
    for ending in ("-wal", "-shm", "-journal"):
        part = path.with_name(path.name + ending)
        if part.exists():
            part.rename(kept.with_name(kept.name + ending))
    if not path.exists():
        return None
    if path.with_name(HASH_SEED_FILE).exists():
        _link(path.with_name(HASH_SEED_FILE), kept.with_name(f"{kept.name}-hashseed"))
    _link(path, kept)
    return kept


def _link(path: Path, kept: Path) -> None:
    """Give a file a second name; where the file system cannot, copy it."""
    try:
        os.link(path, kept)
    except OSError:
        shutil.copyfile(path, kept)
        kept.chmod(0o600)
        sync(kept)
    sync(path.parent)


def _agree_on_hash_seed(store: SqliteStore, data_dir: Path, seed: int) -> None:
    """See to it that calls that were made under a hash seed are replayed under it.

    Raises ``ValueError`` when the folder has another one: its own journals need that.
    """
    in_file = hash_seed_in_file(data_dir)
    if store.keep_hash_seed(seed if in_file is None else in_file) != seed:
        raise ValueError(
            "its journalled calls were made under another hash seed than that of "
            f"{data_dir}, and would be replayed in another order of sets. Stop the "
            "manager that it comes from with SIGTERM, which writes images in their "
            "place, and dump again"
        )


# Check -------------------------------------------------------------------------------


def _check_objects(store: StoreFile, shared: Catalogue, report: Report) -> None:
    report.objects = store.count("objects")
    report.journalled_calls = store.count("entries")
    report.remembered_replies = store.count("replies")
    for row in store.rows():
        class_name = row.name[0]
        record = shared.get(class_name)
        if record is None:
            absent = report.classes_not_given
            absent[class_name] = absent.get(class_name, 0) + 1
            continue
        try:
            if row.entries:
                journal.replayed(row.name, record, row.stored)
            else:
                loaded(row.name, record, row.stored)
        except Unloadable as error:
            report.add(str(error))
            continue
        report.loaded += 1
        report.migrations += row.version < record.version
