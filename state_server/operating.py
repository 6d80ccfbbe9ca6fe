"""What an operator does with a data folder: back up, restore, check, dump, load.

Used by the command, in a process of its own, by the owner of the folder. A backup, a
check and a dump read one moment of the state beside a running manager. A restore and a
load hold the manager's lock, so that none runs or starts meanwhile.

A dump is for people and other tools: JSON, one object a line. What JSON lacks is marked
(``{"$tuple": [1, 2]}``), and ``load`` reads it back exactly. What would run code when
it is read (``$pickle``, ``$image``, journalled calls) needs the operator's word.
"""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, NamedTuple
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

from . import image, journal
from .errors import ConfigError, StoreError, Unloadable
from .keeping import loaded
from .residents import KEY_LENGTH_MAX
from .service import DataDirLock
from .settings import hash_seed, make_private_folder, write_whole
from .sharing import Catalogue, checked_name
from .store import (
    SCHEMA_VERSION,
    Inserted,
    SqliteStore,
    StoredRow,
    StoreFile,
    fold_log,
    sync,
)

#: Problems of one check that are told one by one; the others are counted.
PROBLEMS_MAX = 100

#: Integers beyond this are written in hexadecimal: Python refuses to read very long
#: decimal ones.
_INTEGER_BITS_MAX = 8192

_SHOWN_MAX = 500

_TRUST = "Say --trust if the file comes from nobody but you."


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
            f"{self.objects} objects, {self.loaded} loaded with their class",
            f"{self.migrations} are of an older version of it and would be migrated",
            f"{self.journalled_calls} journalled calls",
            f"{self.remembered_replies} remembered replies",
        ]
        for name, count in self.classes_not_given.items():
            lines.append(
                f"{count} objects of {name!r} not loaded: name it by --objects, "
                f"or share the class it became with aliases=({name!r},)"
            )
        lines += [f"PROBLEM: {problem}" for problem in self.problems]
        untold = self.problem_count - len(self.problems)
        if untold:
            lines.append(f"PROBLEM: and {untold} more")
        lines.append("no problem" if self.is_good else f"{self.problem_count} problems")
        return lines


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
        store.copy(fresh, about=_hash_seed(data_dir), wal=False)
        return Copied(store.count("objects"), fresh.stat().st_size)


def restore(data_dir: Path, source: Path, *, trust: bool = False) -> Copied:
    """Put a backup in the place of the state, which is kept aside.

    At each moment of it there is a whole state in place, the old or the new one. Raises
    ``DataDirLocked`` while a manager runs, ``ConfigError`` when the backup may not be
    used, ``StoreError`` when it is damaged; then nothing was changed.
    """
    refusal = "Nothing was restored"
    if not source.is_file():
        raise ConfigError(f"{refusal}: there is no backup file {source}.")
    if not trust:
        _check_author(source, refusal)
    with _locked(data_dir, refusal):
        path = data_dir / "state.db"
        if path.exists() and path.samefile(source):
            raise ConfigError(f"{refusal}: {source} is the state itself.")
        fresh = data_dir / "state.db.new"
        # A journal that a power cut has left would be played into the new file.
        for ending in ("", "-journal", "-wal", "-shm"):
            (data_dir / f"state.db.new{ending}").unlink(missing_ok=True)
        try:
            with StoreFile(source) as backup:
                _check_schema(backup, refusal)
                problems = backup.damage()
                if problems:
                    raise StoreError(
                        f"{refusal}: the backup {source} is damaged: "
                        f"{'; '.join(problems[:3])}. Use another one."
                    )
                backup.copy(fresh, about={}, wal=True)
                copied = Copied(backup.count("objects"), fresh.stat().st_size)
                seed = backup.about.get("hash_seed")
            kept = _set_aside(path)
            fresh.replace(path)
            sync(data_dir)
        finally:
            fresh.unlink(missing_ok=True)
        if seed is not None:
            _put_hash_seed(data_dir, seed, kept)
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
            report.add(f"{count} objects of {name!r}, which no module given shares")
    return report


def dump(data_dir: Path, output: IO[str]) -> int:
    """Write every object as a line of JSON; return how many there are.

    Classes of values inside the states are imported where they can be.
    """
    path = _state_of_ours(data_dir, "Nothing was dumped")
    count = 0
    with StoreFile(path) as store:
        _check_schema(store, "Nothing was dumped")
        seed = hash_seed(data_dir) if _hash_seed(data_dir) else None
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


def load(
    data_dir: Path, lines: Iterable[str], *, replace: bool = False, trust: bool = False
) -> Inserted:
    """Put the objects of a dump into the state, all or none.

    ``replace``: those that exist already are replaced; otherwise they stay as they are.
    ``trust``: what runs code when it is read may be in the dump. Raises
    ``DataDirLocked`` while a manager runs, ``ConfigError`` naming the line that does
    not fit; then nothing was loaded.
    """
    with _locked(data_dir, "Nothing was loaded"):
        store = SqliteStore(data_dir / "state.db")
        is_seeded = bool(_hash_seed(data_dir))
        try:
            return store.insert(_rows_of(lines, trust, data_dir), replace=replace)
        except BaseException:
            if not is_seeded:
                (data_dir / "hashseed").unlink(missing_ok=True)
            raise
        finally:
            store.close()


# The data folder ---------------------------------------------------------------------


def _state_of_ours(data_dir: Path, refusal: str) -> Path:
    """Return the state of a data folder that is ours; raise ``ConfigError``."""
    path = data_dir / "state.db"
    try:
        _check_owner(data_dir, refusal)
        os.close(os.open(path, os.O_RDONLY))
    except FileNotFoundError:
        raise ConfigError(
            f"{refusal}: there is no state in {path.absolute()}. Name the manager's "
            "data folder with --data-dir; a manager with --memory keeps none."
        ) from None
    except OSError as error:
        raise ConfigError(f"{refusal}: {path} cannot be read: {error}.") from error
    return path


def _check_owner(path: Path, refusal: str) -> None:
    owner = path.stat().st_uid
    if hasattr(os, "geteuid") and owner != os.geteuid():
        raise ConfigError(
            f"{refusal}: the data folder {path} belongs to {_user(owner)}, and you are "
            f"{_user(os.geteuid())}. Files made now would be yours, not the manager's. "
            f"Run the command as {_user(owner)}."
        )


def _check_author(path: Path, refusal: str) -> None:
    """Refuse a file that somebody else may have written: its images run code."""
    if sys.platform == "win32":
        return
    status = path.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ConfigError(
            f"{refusal}: others than {_user(os.geteuid())} may have written {path} "
            f"(it belongs to {_user(status.st_uid)}, mode {status.st_mode & 0o777:04o})"
            ", and the images of objects in it run code when they are loaded. "
            "Say --trust if you know where it comes from."
        )


def _user(number: int) -> str:
    if sys.platform == "win32":
        return f"user {number}"
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


@contextmanager
def _locked(data_dir: Path, refusal: str) -> Iterator[None]:
    """Hold the manager's lock of a data folder of ours, which is made if need be."""
    make_private_folder(data_dir)
    _check_owner(data_dir, refusal)
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
    if path.exists() and fold_log(path):
        _link(path, kept)
        return kept
    for ending in ("-wal", "-shm", "-journal"):
        part = path.with_name(path.name + ending)
        if part.exists():
            part.rename(kept.with_name(kept.name + ending))
    if not path.exists():
        return None
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


def _hash_seed(data_dir: Path) -> dict[str, bytes]:
    """Return the hash seed as a fact for a backup: journals are replayed under it."""
    try:
        return {"hash_seed": (data_dir / "hashseed").read_bytes()}
    except FileNotFoundError:
        return {}


def _agree_on_hash_seed(data_dir: Path, seed: int) -> None:
    """See to it that calls that were made under a hash seed are replayed under it.

    Raises ``ValueError`` when the folder has another one: its own journals need that.
    """
    if not _hash_seed(data_dir):
        write_whole(data_dir / "hashseed", f"{seed}\n".encode())
    elif hash_seed(data_dir) != seed:
        raise ValueError(
            "its journalled calls were made under another hash seed than that of "
            f"{data_dir}, and would be replayed in another order of sets. Stop the "
            "manager that it comes from with SIGTERM, which writes images in their "
            "place, and dump again"
        )


def _put_hash_seed(data_dir: Path, seed: bytes, kept: Path | None) -> None:
    """Put a seed in its place; the old one goes with the state that is kept aside."""
    path = data_dir / "hashseed"
    if path.exists():
        if path.read_bytes() == seed:
            return
        if kept is not None:
            _link(path, kept.with_name(f"{kept.name}-hashseed"))
    fresh = data_dir / "hashseed.new"
    fresh.write_bytes(seed)
    fresh.chmod(0o600)
    sync(fresh)
    fresh.replace(path)
    sync(data_dir)


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
        except Exception as error:
            # The border to the class's own code, which may meet anything in there.
            name = "/".join(row.name)
            report.add(f"{name}: {type(error).__name__}: {error}")
            continue
        report.loaded += 1
        report.migrations += row.version < record.version


# Lines -------------------------------------------------------------------------------


def line_of(row: StoredRow, seed: int | None = None) -> str:
    """Return an object as one line of JSON.

    ``seed``: the hash seed under which its journalled calls were made, if known.
    """
    class_name, key = row.name
    fields: dict[str, Any] = {
        "class": class_name,
        "key": key,
        "version": row.version,
        "generation": row.generation,
        **_plain_image(row.image),
    }
    if row.entries:
        fields["calls"] = [
            {"generation": generation, "method": _method(entry), "$entry": _text(entry)}
            for generation, entry in row.entries
        ]
        if seed is not None:
            fields["hash_seed"] = seed
    return json.dumps(fields, ensure_ascii=False, allow_nan=False)


def _plain_image(data: bytes) -> dict[str, Any]:
    """Return the fields that describe an image.

    Only ``state`` is always there; the others belong to objects that are containers
    themselves or that are built from arguments.
    """
    shown = "?"
    try:
        parts = image.parts_of(data)
        shown = _shown(parts.state)
        if not image.shares_values(parts):
            return _plain_parts(parts)
    except Exception as error:
        # The border to the code of the values' classes: not importable, most often.
        shown = f"{type(error).__name__}: {error}"[:_SHOWN_MAX]
    return {"state": {"$image": _text(data), "repr": shown}}


def _plain_parts(parts: image.Parts) -> dict[str, Any]:
    fields = {"state": plain(parts.state)}
    if parts.args or parts.kwargs != {}:
        fields["args"] = plain(list(parts.args))
        fields["kwargs"] = plain(parts.kwargs)
    if parts.items is not None:
        fields["items"] = plain(parts.items)
    if parts.pairs is not None:
        fields["pairs"] = [[plain(key), plain(value)] for key, value in parts.pairs]
    return fields


def _method(entry: bytes) -> str:
    try:
        return journal.unpack(entry).method
    except Exception:
        # It is shown to people only; check is what looks for damage.
        return "?"


def _rows_of(lines: Iterable[str], trust: bool, data_dir: Path) -> Iterator[StoredRow]:
    """Give the objects of a dump; raise ``ConfigError`` naming a line's fault."""
    reader = _Reader(trust)
    first_lines: dict[tuple[str, str], int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            row = _row_of(fields, reader)
            if row.entries and "hash_seed" in fields:
                _agree_on_hash_seed(data_dir, _number(fields, "hash_seed", 0))
        except _Untrusted as error:
            raise ConfigError(
                f"Nothing was loaded: line {number} has {error}, which runs code when "
                f"it is read. {_TRUST}"
            ) from None
        except Exception as error:
            # Whatever somebody wrote into the file, or their classes raised.
            fault = f"{type(error).__name__}: {error}"
            if isinstance(error, KeyError):
                fault = f"the field {error} is missing"
            raise ConfigError(
                f"Nothing was loaded: line {number} does not fit: {fault}. It begins "
                f"{line[:60]!r}."
            ) from error
        first = first_lines.setdefault(row.name, number)
        if first != number:
            raise ConfigError(
                f"Nothing was loaded: lines {first} and {number} are both of "
                f"{'/'.join(row.name)}. Remove one."
            )
        yield row


def _row_of(fields: Any, reader: _Reader) -> StoredRow:
    if not isinstance(fields, dict):
        raise ValueError("a line is one JSON object")
    class_name, key = checked_name(fields["class"]), fields["key"]
    if not isinstance(key, str) or not 1 <= len(key) <= KEY_LENGTH_MAX:
        raise ValueError(f"a key is text of 1 to {KEY_LENGTH_MAX} characters")
    entries = []
    for call in fields.get("calls", ()):
        reader.need_trust("a journalled call ($entry)")
        entries.append((_number(call, "generation", 1), _bytes(call["$entry"])))
    return StoredRow(
        (class_name, key),
        _number(fields, "version", 1),
        _number(fields, "generation", 0),
        _image(fields, reader),
        tuple(entries),
    )


def _number(fields: dict[str, Any], name: str, least: int) -> int:
    value = fields[name]
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"{name} is a whole number from {least}, not {value!r}")
    return value


def _image(fields: dict[str, Any], reader: _Reader) -> bytes:
    state = fields["state"]
    if isinstance(state, dict) and "$image" in state:
        reader.need_trust("a pickled image ($image)")
        return _bytes(state["$image"])
    items, pairs = fields.get("items"), fields.get("pairs")
    return image.image_of(
        image.Parts(
            tuple(reader.value(fields.get("args", []))),
            reader.value(fields.get("kwargs", {})),
            reader.value(state),
            None if items is None else reader.value(items),
            None
            if pairs is None
            else [(reader.value(key), reader.value(value)) for key, value in pairs],
        )
    )


# Values ------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Return a value as JSON has it, with marks for what JSON lacks."""
    cls = type(value)
    if value is None or cls is bool:
        return value
    if cls is str:
        return value if _is_unicode(value) else _marked("$text", _surrogates(value))
    if cls is int:
        small = value.bit_length() <= _INTEGER_BITS_MAX
        return value if small else _marked("$int", hex(value))
    if cls is float:
        return value if math.isfinite(value) else _marked("$float", repr(value))
    if cls is list:
        return [plain(item) for item in value]
    if cls is dict:
        return _plain_dictionary(value)
    if value is image.ITSELF:
        return _marked("$itself", True)
    form = _FORMS.get(cls)
    if form is not None and not getattr(value, "__dict__", None):
        written = form.write(value)
        if written is not None:
            return _marked(form.mark, plain(written))
    return {"$pickle": _text(image.pickled(value)), "repr": _shown(value)}


def value_of(written: Any, *, trust: bool = False) -> Any:
    """Return the value that ``plain`` has written; raise ``ValueError`` for others.

    ``trust``: pickles are read, too, which runs what they name.
    """
    return _Reader(trust).value(written)


def _marked(mark: str, content: Any) -> dict[str, Any]:
    return {mark: content}


def _plain_dictionary(value: dict[Any, Any]) -> Any:
    if all(
        type(key) is str and not key.startswith("$") and _is_unicode(key)
        for key in value
    ):
        return {key: plain(item) for key, item in value.items()}
    return _marked("$dict", [[plain(key), plain(item)] for key, item in value.items()])


class _Untrusted(Exception):
    """The dump holds something that runs code when it is read."""


class _Reader:
    """Reads what ``plain`` has written."""

    def __init__(self, trust: bool) -> None:
        self._trust = trust

    def need_trust(self, what: str) -> None:
        """Raise an error unless the operator has given their word."""
        if not self._trust:
            raise _Untrusted(what)

    def value(self, written: Any) -> Any:
        """Return the value."""
        if type(written) is list:
            return [self.value(item) for item in written]
        if type(written) is not dict:
            return written
        marks = [name for name in written if name.startswith("$")]
        if not marks:
            return {key: self.value(item) for key, item in written.items()}
        mark = marks[0]
        if mark == "$pickle":
            self.need_trust("a pickled value ($pickle)")
            return image.unpickled(_bytes(written[mark]))
        read = _READERS.get(mark)
        if read is None or len(written) != 1:
            raise ValueError(f"{json.dumps(written)[:80]} has no mark that is known")
        return read(self.value(written[mark]))


class _Form(NamedTuple):
    """How values of one type are written: as other values, under a mark.

    ``write`` returns ``None`` for a value that the form cannot tell in full.
    """

    mark: str
    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


def _shown(value: object) -> str:
    """Return the repr of a value, for people; it is not read again."""
    try:
        return repr(value)[:_SHOWN_MAX]
    except Exception as error:
        # The border to the value's own code.
        return f"<repr failed: {type(error).__name__}>"


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _surrogates(text: str) -> str:
    return _text(text.encode("utf-8", "surrogatepass"))


def _text(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _in_order(values: Iterable[Any]) -> list[Any]:
    """Return the items of a set in an order that is the same for every dump."""
    return sorted(values, key=lambda item: json.dumps(plain(item)))


def _is_plain_zone(zone: Any) -> bool:
    """Tell whether a time zone is an offset without a name, which ISO 8601 tells."""
    if zone is None:
        return True
    return type(zone) is timezone and zone.tzname(None) == (
        timezone(zone.utcoffset(None)).tzname(None)
    )


def _moment(value: Any) -> Any:
    """Return the ISO text of a moment, with its zone beside it if that tells more."""
    if not value.fold and _is_plain_zone(value.tzinfo):
        return value.isoformat()
    return [
        value.replace(tzinfo=None, fold=0).isoformat(),
        value.tzinfo,
        value.fold,
    ]


def _read_moment(cls: Any) -> Callable[[Any], Any]:
    def read(written: Any) -> Any:
        if isinstance(written, str):
            return cls.fromisoformat(written)
        text, zone, fold = written
        return cls.fromisoformat(text).replace(tzinfo=zone, fold=fold)

    return read


def _uuid(value: UUID) -> str | None:
    return str(value) if value.is_safe is SafeUUID.unknown else None


_FORMS: dict[type, _Form] = {
    tuple: _Form("$tuple", list, tuple),
    set: _Form("$set", _in_order, set),
    frozenset: _Form("$frozenset", _in_order, frozenset),
    bytes: _Form("$bytes", _text, _bytes),
    bytearray: _Form("$bytearray", _text, lambda text: bytearray(_bytes(text))),
    complex: _Form("$complex", lambda v: [v.real, v.imag], lambda v: complex(*v)),
    Decimal: _Form("$decimal", str, Decimal),
    Fraction: _Form(
        "$fraction", lambda v: [v.numerator, v.denominator], lambda v: Fraction(*v)
    ),
    datetime: _Form("$datetime", _moment, _read_moment(datetime)),
    date: _Form("$date", date.isoformat, date.fromisoformat),
    time: _Form("$time", _moment, _read_moment(time)),
    timedelta: _Form(
        "$timedelta",
        lambda v: [v.days, v.seconds, v.microseconds],
        lambda v: timedelta(*v),
    ),
    timezone: _Form(
        "$timezone",
        lambda v: list(v.__getinitargs__()),
        lambda v: timezone(*v),
    ),
    ZoneInfo: _Form("$zone", lambda v: v.key, ZoneInfo),
    UUID: _Form("$uuid", _uuid, UUID),
    deque: _Form("$deque", lambda v: [list(v), v.maxlen], lambda v: deque(*v)),
    OrderedDict: _Form(
        "$ordered_dict", lambda v: list(map(list, v.items())), OrderedDict
    ),
    Counter: _Form(
        "$counter", lambda v: list(map(list, v.items())), lambda v: Counter(dict(v))
    ),
}

_READERS: dict[str, Callable[[Any], Any]] = {
    **{form.mark: form.read for form in _FORMS.values()},
    "$dict": dict,
    "$float": float,
    "$int": lambda text: int(text, 16),
    "$itself": lambda _: image.ITSELF,
    "$text": lambda text: _bytes(text).decode("utf-8", "surrogatepass"),
}
