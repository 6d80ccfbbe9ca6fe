"""The command ``state-server VERB``, or ``python -m state_server VERB``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import operating
from .client import Client, connect
from .data_folder import EXIT_LOCKED, DataDirLocked, lock_holder
from .errors import ConfigError, StateServerError
from .objects import add_ready_made
from .operating import counted
from .service import EXIT_CONFIG, fix_hash_seed
from .service import main as run_manager
from .settings import CommonSettings, ManagerSettings, from_environment
from .sharing import catalogue

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130

#: Without ``--timeout``: how long a manager may take to answer, and how long ``stop``
#: waits for the running calls to end.
_ASK_TIMEOUT_S = 5.0
_STOP_TIMEOUT_S = 30.0

_EXIT_CODES = f"""\
exit codes:
  0    done; for check: no problem was found
  {EXIT_FAILED}    it failed; for check: problems were found
  {EXIT_CONFIG}    it was not tried: an option, a file or a permission does not fit
  {EXIT_LOCKED}    it was not tried: a manager uses the data folder
  {EXIT_INTERRUPTED}  interrupted (Ctrl-C)
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    # Modules named by --objects are looked for where the command was typed.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if given[:1] == ["manager"]:
        return run_manager(given[1:], "state-server manager")
    options = _parser().parse_args(given)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except DataDirLocked as error:
        return _say(options.verb, error, EXIT_LOCKED)
    except ConfigError as error:
        return _say(options.verb, error, EXIT_CONFIG)
    except BrokenPipeError:
        # Who reads the output has seen enough (`dump | head`). What is still buffered
        # must not be tried again at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (StateServerError, OSError) as error:
        return _say(options.verb, error, EXIT_FAILED)
    except KeyboardInterrupt:
        return _say(options.verb, "interrupted", EXIT_INTERRUPTED)


def _say(verb: str, text: object, code: int) -> int:
    print(f"state-server {verb}: {text}", file=sys.stderr)
    return code


# Verbs that ask a running manager ----------------------------------------------------


def _ping(options: argparse.Namespace) -> int:
    with _client(options) as client:
        # The first one connects and shakes hands, which calls do not do each time.
        client.ping()
        print(f"{client.ping() * 1000:.3f} ms")
    return 0


def _status(options: argparse.Namespace) -> int:
    with _client(options) as client:
        print(json.dumps(client.status(), indent=2))
    return 0


def _stop(options: argparse.Namespace) -> int:
    with _client(options) as client:
        process_id = client.stop_manager()
        address, data_dir = client.location
    if address is not None:
        print(f"The manager (process {process_id}) was told to stop.")
        return 0
    timeout_s = _STOP_TIMEOUT_S if options.timeout is None else options.timeout
    until = time.monotonic() + timeout_s
    while lock_holder(Path(data_dir)) == process_id:
        if time.monotonic() > until:
            return _say(
                options.verb,
                f"the manager (process {process_id}) still ends its running calls",
                EXIT_FAILED,
            )
        time.sleep(0.02)
    print(f"The manager (process {process_id}) has stopped.")
    return 0


def _client(options: argparse.Namespace) -> Client:
    timeout_s = _ASK_TIMEOUT_S if options.timeout is None else options.timeout
    return connect(
        options.address, data_dir=options.data_dir, timeout=timeout_s, admin=True
    )


# Verbs that use the data folder ------------------------------------------------------


def _back_up(options: argparse.Namespace) -> int:
    data_dir = _data_dir(options)
    copied = operating.back_up(data_dir, options.file, force=options.force)
    print(
        f"Backed up {counted(copied.objects, 'object')} of {data_dir} to "
        f"{options.file} ({copied.size} bytes); the copy was verified."
    )
    return 0


def _restore(options: argparse.Namespace) -> int:
    data_dir = _data_dir(options)
    copied = operating.restore(data_dir, options.file, trust=options.trust)
    objects = counted(copied.objects, "object")
    print(f"Restored {objects} from {options.file} to {data_dir}.")
    if copied.kept is not None:
        print(f"The state that was there is kept as {copied.kept}.")
    return 0


def _check(options: argparse.Namespace) -> int:
    data_dir = _data_dir(options)
    if options.objects:
        settings = ManagerSettings(data_dir=data_dir, objects=tuple(options.objects))
        # A journal is replayed as its manager would.
        if data_dir.is_dir():
            fix_hash_seed(settings, may_draw=False)
    add_ready_made(catalogue)
    report = operating.check(data_dir, catalogue, strict=options.strict)
    print(report.as_json() if options.json else "\n".join(report.lines()))
    return 0 if report.is_good else EXIT_FAILED


def _dump(options: argparse.Namespace) -> int:
    data_dir = _data_dir(options)
    if options.file in (None, Path("-")):
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        operating.dump(data_dir, sys.stdout)
        sys.stdout.flush()
        return 0
    with operating.dump_file(data_dir, options.file, force=options.force) as file:
        count = operating.dump(data_dir, file)
    print(f"Dumped {counted(count, 'object')} of {data_dir} to {options.file}.")
    return 0


def _load(options: argparse.Namespace) -> int:
    data_dir = _data_dir(options)
    with operating.lines_of_dump(options.file) as lines:
        loaded = operating.load(
            data_dir, lines, replace=options.replace, trust=options.trust
        )
    print(
        f"Loaded {options.file} into {data_dir}: {counted(loaded.added, 'object')} "
        f"added, {loaded.replaced} replaced, {loaded.kept} kept unchanged."
    )
    return 0


def _data_dir(options: argparse.Namespace) -> Path:
    given = {} if options.data_dir is None else {"data_dir": options.data_dir}
    return from_environment(CommonSettings, os.environ, **given).data_dir


# The command line --------------------------------------------------------------------


def _folder(text: str) -> Path:
    # As an unset variable of a script is; it must not mean the current folder.
    if not text:
        raise argparse.ArgumentTypeError("expected a folder, not nothing")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="state-server",
        description="Start a manager, ask a running one, or look after its state.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("manager", help="start a manager (see manager --help)")
    _add_asking(verbs, "ping", _ping, "measure the way to the manager and back")
    _add_asking(verbs, "status", _status, "show the manager's numbers as JSON")
    _add_asking(
        verbs,
        "stop",
        _stop,
        "stop the manager; needs the folder's admin key",
        f"{_ASK_TIMEOUT_S:g} to be answered, {_STOP_TIMEOUT_S:g} for calls to end",
    )
    _add_backup(verbs)
    _add_restore(verbs)
    _add_check(verbs)
    _add_dump(verbs)
    _add_load(verbs)
    return parser


def _add_backup(verbs: Any) -> None:
    text = "copy the state to a file; a running manager goes on answering"
    backup = _add(verbs, "backup", _back_up, text)
    backup.add_argument("file", type=Path, metavar="FILE", help="where to, mode 0600")
    backup.add_argument("--force", action="store_true", help="replace FILE")


def _add_restore(verbs: Any) -> None:
    restore = _add(
        verbs,
        "restore",
        _restore,
        "put a backup in the place of the state, which is kept aside; only while no "
        "manager runs",
    )
    restore.add_argument("file", type=Path, metavar="FILE", help="a backup")
    restore.add_argument(
        "--trust",
        action="store_true",
        help="others may have written FILE; it runs code",
    )


def _add_check(verbs: Any) -> None:
    check = _add(
        verbs,
        "check",
        _check,
        "look at the whole state without changing it, also beside a running manager",
    )
    check.add_argument(
        "--objects",
        action="append",
        default=[],
        metavar="MODULE",
        help="module or module:Class whose objects are loaded; may be repeated",
    )
    check.add_argument(
        "--strict",
        action="store_true",
        help="a stored object of a class that is not given is a problem",
    )
    check.add_argument("--json", action="store_true", help="report as JSON")


def _add_dump(verbs: Any) -> None:
    text = "write every object as a line of JSON, for people and tools"
    dump = _add(verbs, "dump", _dump, text)
    dump.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="- or none: standard output"
    )
    dump.add_argument("--force", action="store_true", help="replace FILE")


def _add_load(verbs: Any) -> None:
    load = _add(
        verbs,
        "load",
        _load,
        "put the objects of a dump into the state, all or none; only while no manager "
        "runs",
    )
    load.add_argument("file", type=Path, metavar="FILE", help="a dump")
    load.add_argument(
        "--replace",
        action="store_true",
        help="replace objects that exist already (default: they stay as they are)",
    )
    load.add_argument(
        "--trust", action="store_true", help="read pickles in FILE, which runs code"
    )


def _add_asking(
    verbs: Any,
    verb: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    usual_timeout: str = f"{_ASK_TIMEOUT_S:g}",
) -> None:
    parser = _add(verbs, verb, run, text)
    parser.add_argument("--address", default=None, help="unix:///path, tcp://host:port")
    parser.add_argument(
        "--timeout",
        type=float,
        default=None,
        help=f"seconds (default: {usual_timeout})",
    )


def _add(
    verbs: Any, verb: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        verb,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data-dir",
        type=_folder,
        default=None,
        help="the manager's data folder (default: var; environment: "
        "STATE_SERVER_DATA_DIR)",
    )
    parser.set_defaults(run=run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
