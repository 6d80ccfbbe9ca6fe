"""The command: ``python -m state_server manager | ping | status | stop``."""

from __future__ import annotations

import argparse
import json
import os
import sys

from .client import Client, connect
from .errors import StateServerError
from .service import main as run_manager

_VERBS = ("ping", "status", "stop")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["manager"]:
        # Modules named by --objects are looked for where the command was typed.
        if "" not in sys.path:
            sys.path.insert(0, os.getcwd())
        return run_manager(given[1:], "state_server manager")
    options = _parser().parse_args(given)
    client = connect(
        options.address, data_dir=options.data_dir, timeout=options.timeout, admin=True
    )
    try:
        with client:
            _run(options.verb, client)
    except StateServerError as error:
        print(f"state_server {options.verb}: {error}", file=sys.stderr)
        return 1
    return 0


def _run(verb: str, client: Client) -> None:
    if verb == "ping":
        print(f"{client.ping() * 1000:.3f} ms")
    elif verb == "status":
        print(json.dumps(client.status(), indent=2))
    else:
        client.stop_manager()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="state_server",
        description="Ask a running manager; `manager` starts one (see manager --help).",
    )
    parser.add_argument("verb", choices=("manager", *_VERBS))
    parser.add_argument("--data-dir", default=None, help="its data folder")
    parser.add_argument("--address", default=None, help="unix:///path, tcp://host:port")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds")
    return parser


if __name__ == "__main__":
    sys.exit(main())
