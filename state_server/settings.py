"""Settings: frozen records, and the only reader of the environment and of key files.

Each field is one setting, and says everything about it: its default, its unit (in the
name), its help text. The option (``--data-dir``), the environment variable
(``STATE_SERVER_DATA_DIR``) and the docs page are made from it. The command line wins
over the environment, the environment over the default.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from .data_folder import ADDRESS_FILE, KEY_FILE
from .errors import ConfigError

PREFIX = "STATE_SERVER_"

#: Names with our prefix that belong to no record: a key must not stand on a command
#: line, where every user of the machine can read it.
SECRETS = ("AUTHKEY",)

#: Set by the web half for its children: the unknown variables that it has told of.
_TOLD = PREFIX + "TOLD_VARIABLES"

#: Names with our prefix in ``app.config``, which an app may fill from its environment:
#: those of sessions, with the field of ``SessionConfig`` that each sets, and all. Those
#: of a client's settings, and ``SECRETS``, are keys there as well.
SESSION_KEYS = {
    "SESSION_NAMESPACE": "namespace",
    "SESSION_CONFLICT": "conflict",
    "SESSION_BYTES_MAX": "bytes_max",
    "SESSIONS_MAX": "count_max",
    "SESSION_TOUCH_SHARE": "touch_share",
    "SESSION_TIMEOUT": "call_timeout_s",
}
APP_KEYS = ("TIMEOUT", "HANDLE_ERRORS", "SESSIONS", *SESSION_KEYS)

MEBIBYTE = 1024 * 1024


def parse_boolean(text: str) -> bool:
    """Return what a word for true or false means; raise ``ValueError`` for others."""
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    try:
        return words[text.strip().lower()]
    except KeyError:
        raise ValueError(f"expected true or false, not {text!r}") from None


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise ValueError(f"expected a whole number from {least}, not {text!r}")
        return value

    return parse


def _number(text: str) -> float:
    """Return a number; one that fits nowhere, ``nan``, if the text is none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _path(text: str) -> Path:
    if not text:
        raise ValueError("expected a path, not nothing")
    return Path(text)


def _seconds(text: str) -> float:
    value = _number(text)
    if not 0 < value < float("inf"):
        raise ValueError(f"expected a number of seconds above 0, not {text!r}")
    return value


def _moment(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 0.1:
        raise ValueError(f"expected seconds from 0 to 0.1, not {text!r}")
    return value


def _level(text: str) -> str:
    level = text.upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError(f"expected debug, info, warning or error, not {text!r}")
    return level


def _setting(
    default: Any, parse: Callable[[str], Any], text: str, *, repeatable: bool = False
) -> Any:
    """Return a field that carries all that is known of one setting."""
    metadata = {"parse": parse, "help": text, "repeatable": repeatable}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """What every process of the family reads."""

    data_dir: Path = _setting(
        Path("var"), _path, "private folder of the manager: keys, socket, lock, state"
    )
    address: str | None = _setting(
        None, str, "unix:///path or tcp://host:port; default: in the data folder"
    )
    authkey_file: Path | None = _setting(
        None, _path, "file that holds the key; default: authkey in the data folder"
    )
    log_level: str = _setting(
        "INFO", _level, "least level of the log: debug, info, warning or error"
    )
    busy_poll_s: float = _setting(
        0.0002, _moment, "time to look for an answer before sleeping; 0: none"
    )


@dataclass(frozen=True, kw_only=True)
class ManagerSettings(CommonSettings):
    """What the manager reads: where it listens, what it hosts, every limit."""

    objects: tuple[str, ...] = _setting(
        (), str, "module or module:Class to share; may be repeated", repeatable=True
    )
    log_lines_max: int = _setting(
        100, _whole(1), "lines of one kind that are logged in a second"
    )
    allow_md5: bool = _setting(
        True, parse_boolean, "accept stock clients of Python 3.10 and 3.11"
    )
    allow_wildcard: bool = _setting(
        False, parse_boolean, "permit an address that any machine can reach"
    )
    backlog: int = _setting(4096, _whole(1), "connections waiting to be accepted")
    connections_max: int = _setting(10_000, _whole(1), "open connections")
    handshakes_max: int = _setting(
        1024, _whole(1), "connections that have not shown their key yet"
    )
    handshake_timeout_s: float = _setting(
        10.0, _seconds, "time to show the key after connecting"
    )
    frame_bytes_max: int = _setting(
        64 * MEBIBYTE, _whole(1024), "size of one call or reply"
    )
    inbound_bytes_max: int = _setting(
        512 * MEBIBYTE, _whole(1024), "unfinished frames of all connections together"
    )
    outbound_bytes_max: int = _setting(
        512 * MEBIBYTE, _whole(1024), "unread replies of all connections together"
    )
    frame_timeout_s: float = _setting(
        60.0, _seconds, "time for the rest of a frame that has begun"
    )
    write_timeout_s: float = _setting(
        60.0, _seconds, "time for a client to take its reply"
    )
    threads_max: int = _setting(64, _whole(3), "threads that may run methods")
    takeover_after_s: float = _setting(
        0.005, _seconds, "a method that runs longer gives up the leader's place"
    )
    slice_s: float = _setting(
        0.05, _seconds, "time a displaced thread serves one object's queue at a stretch"
    )
    queue_max: int = _setting(10_000, _whole(1), "calls waiting for one object")
    pending_max: int = _setting(100_000, _whole(1), "calls waiting for all objects")
    pending_bytes_max: int = _setting(
        1024 * MEBIBYTE, _whole(1024), "calls waiting, running or not yet on disk"
    )
    batch_bytes_max: int = _setting(
        256 * MEBIBYTE, _whole(1024), "replies waiting for one commit"
    )
    objects_max: int = _setting(1_000_000, _whole(1), "objects in memory")
    objects_bytes_max: int = _setting(
        1024 * MEBIBYTE,
        _whole(1024),
        "kept state of all objects in memory; not known of those that are not durable",
    )
    memory: bool = _setting(
        False, parse_boolean, "keep nothing on disk; everything is forgotten at the end"
    )
    state_bytes_max: int = _setting(MEBIBYTE, _whole(1024), "kept state of one object")
    state_bytes_warn: int = _setting(
        64 * 1024, _whole(1024), "kept state of one object that is logged as large"
    )
    journal_bytes_max: int = _setting(
        16 * MEBIBYTE, _whole(1024), "journal of one object before its next image"
    )
    idle_timeout_s: float = _setting(
        300.0, _seconds, "time without a call after which an object leaves memory"
    )
    development: bool = _setting(
        False, parse_boolean, "check that read-only methods change nothing"
    )
    call_timeout_max_s: float = _setting(
        300.0, _seconds, "longest deadline of a call; longer ones are cut to it"
    )
    lanes_max: int = _setting(
        100_000, _whole(1), "connections whose last reply is remembered"
    )
    lanes_bytes_max: int = _setting(
        1024 * MEBIBYTE, _whole(1024), "remembered replies of all connections together"
    )
    lane_retention_s: float = _setting(
        900.0, _seconds, "how long a reply is remembered after its connection ended"
    )
    remembered_bytes_max: int = _setting(
        64 * 1024, _whole(0), "largest reply that is remembered word for word"
    )
    cache_regions_max: int = _setting(100, _whole(1), "cache regions")
    cache_entries_max: int = _setting(100_000, _whole(1), "entries of one cache region")
    cache_bytes_max: int = _setting(
        256 * MEBIBYTE, _whole(1024), "memory of one cache region"
    )
    rate_limit_storages_max: int = _setting(100, _whole(1), "rate limit storages")
    rate_limit_records_max: int = _setting(
        1_000_000, _whole(1), "windows of one rate limit storage, and moving hits"
    )
    drain_timeout_s: float = _setting(
        10.0,
        _seconds,
        "time for running calls to end when the manager stops, and for images of "
        "journalled objects",
    )
    parent_fd: int | None = _setting(
        None, _whole(0), "descriptor of a pipe; the manager stops when it closes"
    )

    def __post_init__(self) -> None:
        """Refuse limits that contradict each other."""
        if self.pending_bytes_max < self.frame_bytes_max:
            raise ConfigError(
                f"pending_bytes_max is {self.pending_bytes_max} and frame_bytes_max "
                f"{self.frame_bytes_max}: the calls in the manager must have room for "
                "the largest one. Raise the first or lower the second."
            )
        if self.lane_retention_s < self.call_timeout_max_s + 120:
            raise ConfigError(
                f"lane_retention_s is {self.lane_retention_s:g} and call_timeout_max_s "
                f"{self.call_timeout_max_s:g}: a reply has to be remembered for at "
                "least 120 s longer than the longest deadline, or a repeat could not "
                "be told from a new call."
            )


@dataclass(frozen=True, kw_only=True)
class WebSettings(CommonSettings):
    """What the web half reads: the supervisor and its worker processes."""

    bind: str = _setting("127.0.0.1:8000", str, "host:port of the web server")
    workers: int = _setting(2, _whole(1), "worker processes")
    threads: int = _setting(8, _whole(1), "threads of each worker process")
    app: str = _setting(
        "web.app:create_app", str, "module:factory of the Flask application"
    )
    objects: tuple[str, ...] = _setting(
        (), str, "module or module:Class for the embedded manager", repeatable=True
    )
    ready_timeout_s: float = _setting(
        30.0, _seconds, "time for a worker or the manager to become ready"
    )
    drain_timeout_s: float = _setting(
        10.0, _seconds, "time for running requests to end when a worker stops"
    )
    linger_s: float = _setting(
        1.0, _seconds, "time a draining worker still serves its open connections"
    )
    worker_connections_max: int = _setting(
        1000, _whole(1), "open connections of each worker process"
    )
    web_backlog: int = _setting(
        1024, _whole(1), "connections waiting for a worker to accept them"
    )
    request_bytes_max: int = _setting(
        64 * MEBIBYTE, _whole(1024), "size of the body of one request"
    )
    backoff_max_s: float = _setting(
        30.0, _seconds, "longest wait before a process that keeps dying is replaced"
    )


@dataclass(frozen=True, kw_only=True)
class ClientSettings(CommonSettings):
    """What a client reads when ``connect`` is called without arguments."""

    timeout_s: float = _setting(30.0, _seconds, "deadline of a call")
    client_connections_max: int = _setting(
        64, _whole(1), "connections of one client, one call in flight on each"
    )


Record = TypeVar("Record", bound=CommonSettings)

_RECORDS: tuple[type[CommonSettings], ...] = (
    ManagerSettings,
    WebSettings,
    ClientSettings,
)


def variable(name: str) -> str:
    """Return the environment variable of the setting called ``name``."""
    return PREFIX + name.upper()


def from_environment(
    record: type[Record], environ: Mapping[str, str], **given: Any
) -> Record:
    """Return the record that the environment describes, except for what is ``given``.

    Raises ``ConfigError`` naming the variable and its value when one does not fit.
    """
    return record(**{**_environment_values(record, environ), **given})


def from_command_line(
    record: type[Record],
    arguments: Sequence[str],
    environ: Mapping[str, str],
    *,
    program: str,
    description: str,
) -> Record:
    """Return the record that the command line and the environment describe."""
    parser = argparse.ArgumentParser(
        prog=program,
        usage="%(prog)s [--option value ...]",
        description=description,
        allow_abbrev=False,
    )
    for setting in dataclasses.fields(record):
        is_switch = setting.metadata["parse"] is parse_boolean
        parser.add_argument(
            "--" + setting.name.replace("_", "-"),
            dest=setting.name,
            default=argparse.SUPPRESS,
            # A switch may stand alone: --memory means --memory true.
            nargs="?" if is_switch else None,
            const="true" if is_switch else None,
            action="append" if setting.metadata["repeatable"] else "store",
            metavar="VALUE",
            help=f"{setting.metadata['help']} (default: {_shown(setting.default)}; "
            f"environment: {variable(setting.name)})",
        )
    known, others = parser.parse_known_args(list(arguments))
    if others:
        _refuse_option(parser, others[0].partition("=")[0])
    given = vars(known)
    values = _environment_values(record, environ)
    for setting in dataclasses.fields(record):
        if setting.name in given:
            option = "--" + setting.name.replace("_", "-")
            values[setting.name] = _parsed(setting, given[setting.name], option)
    return record(**values)


def _refuse_option(parser: argparse.ArgumentParser, name: str) -> NoReturn:
    """End the program; what was given for the option is not shown: it may be a key."""
    options = [each for action in parser._actions for each in action.option_strings]
    nearest = difflib.get_close_matches(name, options, n=1)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    parser.error(f"there is no option {name!r}.{hint} --help lists all of them.")


def as_markdown() -> str:
    """Return the page that documents every setting."""
    lines = [
        "# Settings",
        "",
        "Each setting is an option of the command and an environment variable; the "
        "option wins.",
        "Switches are `true` or `false`; as an option, alone means `true`. Lists are "
        "separated by commas; as an option they may be repeated as well. `_s` means "
        "seconds.",
        "The key itself is never an option: it is read from `STATE_SERVER_AUTHKEY` or "
        "from a file.",
    ]
    for title, record in (
        ("The manager: `state-server manager`", ManagerSettings),
        ("The web half: `python -m web`", WebSettings),
        ("Clients: `state_server.connect`", ClientSettings),
    ):
        lines += ["", f"## {title}", "", "| option | variable | default | meaning |"]
        lines.append("|---|---|---|---|")
        for setting in dataclasses.fields(record):
            option = setting.name.replace("_", "-")
            lines.append(
                f"| `--{option}` | `{variable(setting.name)}` | "
                f"{_shown(setting.default)} | {setting.metadata['help']} |"
            )
    lines += [
        "",
        "Clients have no command line: `connect` takes `address`, `authkey`, "
        "`data_dir`, `timeout`",
        "and `connections_max`; the variables above serve for what is left out.",
    ]
    return "\n".join(lines) + "\n"


def unknown_variables(
    environ: Mapping[str, str], others: Sequence[str] = ()
) -> list[str]:
    """Return one sentence for each variable with our prefix that no setting has.

    ``others``: names, without the prefix, that somebody else may read.
    """
    known = _known_variables()
    told = environ.get(_TOLD, "").split(",")
    sentences = []
    for name in _unknown_names(environ):
        if name in told or name.removeprefix(PREFIX) in others:
            continue
        nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)
        hint = (
            f"did you mean {nearest[0]}?"
            if nearest
            else "settings of a Flask app are read from app.config."
        )
        sentences.append(
            f"The environment variable {name} is not a setting and has no effect; "
            f"{hint}"
        )
    return sentences


def as_told(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ``environ`` for a child process that does not tell the same again."""
    return {**environ, _TOLD: ",".join(_unknown_names(environ))}


def _unknown_names(environ: Mapping[str, str]) -> list[str]:
    known = _known_variables()
    return [
        name
        for name in sorted(environ)
        if name.startswith(PREFIX) and name not in known and name != _TOLD
    ]


def _known_variables() -> set[str]:
    known = {variable(name) for name in SECRETS}
    for record in _RECORDS:
        known |= {variable(setting.name) for setting in dataclasses.fields(record)}
    return known


def read_authkey(settings: CommonSettings, environ: Mapping[str, str]) -> bytes | None:
    """Return the key from the environment or its file, or ``None`` if there is none.

    Raises ``ConfigError`` when the key is empty or its file cannot be read.
    """
    text = environ.get(variable("AUTHKEY"))
    if text is not None:
        return _nonempty(os.fsencode(text), f"the variable {variable('AUTHKEY')}")
    if settings.authkey_file is None:
        return read_key_file(settings.data_dir / KEY_FILE)
    key = read_key_file(settings.authkey_file)
    if key is None:
        raise ConfigError(
            f"The key file {settings.authkey_file} is not there (authkey_file, "
            f"{variable('AUTHKEY_FILE')})."
        )
    return key


def checked_key(authkey: bytes | str) -> bytes:
    """Return a key that a program gave; raise ``ConfigError`` when it is none.

    Bytes are the key, as they are for stock clients. Text is taken as the variable and
    the file are: a line end is no part of it.
    """
    if not isinstance(authkey, (bytes, bytearray, str)):
        kind = type(authkey).__qualname__
        raise ConfigError(f"The authkey given is of type {kind}; it is bytes or text.")
    if isinstance(authkey, str):
        authkey = authkey.strip("\r\n").encode()
    if not authkey:
        raise ConfigError("The authkey given is empty.")
    return bytes(authkey)


def read_key_file(path: Path) -> bytes | None:
    """Return the key in ``path``, or ``None`` if there is no such file."""
    try:
        mode = path.stat().st_mode
        # Opening a FIFO waits for its writer, and reading a device may never end.
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ConfigError(
                f"The key file {path} is no regular file, but a FIFO, a device or a "
                "socket; put the key into a file."
            )
        key = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"The key file {path} cannot be read: {error}.") from error
    return _nonempty(key, f"the key file {path}")


def read_address_file(data_dir: Path) -> str | None:
    """Return the URL that a manager wrote into its data folder, or ``None``.

    Raises ``ConfigError`` when this process may not look.
    """
    path = data_dir / ADDRESS_FILE
    try:
        return os.fsdecode(path.read_bytes()).strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(
            f"The manager's address in {path.absolute()} cannot be read: {error}. A "
            "data folder is private: run as its owner, or give an address and a key "
            f"({variable('ADDRESS')}, {variable('AUTHKEY_FILE')})."
        ) from error


def checked_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the path of ``folder``; raise ``ConfigError`` when it is none."""
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise ConfigError(f"A data folder is a path, not {folder!r}.")
    return Path(folder)


def checked_timeout(timeout: float) -> float:
    """Return ``timeout`` in seconds; raise ``ConfigError`` when it is none."""
    if not isinstance(timeout, (int, float)) or not 0 < timeout < float("inf"):
        raise ConfigError(f"A timeout is a number of seconds above 0, not {timeout!r}.")
    return float(timeout)


def _environment_values(
    record: type[CommonSettings], environ: Mapping[str, str]
) -> dict[str, Any]:
    values = {}
    for setting in dataclasses.fields(record):
        name = variable(setting.name)
        if name in environ:
            text = environ[name]
            many = setting.metadata["repeatable"]
            given = [text] if many else text
            values[setting.name] = _parsed(setting, given, name)
    return values


def _parsed(
    setting: dataclasses.Field[Any], given: str | list[str], source: str
) -> Any:
    parse = setting.metadata["parse"]
    try:
        if setting.metadata["repeatable"]:
            parts = [part.strip() for text in given for part in text.split(",")]
            return tuple(parse(part) for part in parts if part)
        return parse(given)
    except ValueError as error:
        raise ConfigError(
            f"{source} is {given!r}, which does not fit: {error}. "
            f"It means: {setting.metadata['help']}."
        ) from None


def _shown(default: object) -> str:
    return "none" if default in (None, ()) else str(default)


def _nonempty(key: bytes, source: str) -> bytes:
    key = key.strip(b"\r\n")
    if not key:
        raise ConfigError(
            f"The key in {source} is empty; delete the file so that the manager makes "
            "a new one, or set a key."
        )
    return key
