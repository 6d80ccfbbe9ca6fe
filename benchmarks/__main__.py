"""Run all benchmarks, one after another: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from . import big, calls, durable, web

BENCHMARKS = {
    "calls": calls.main,
    "durable": durable.main,
    "web": web.main,
    "big": big.main,
}


def main() -> int:
    """Run them all and print what each found."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a rough look, about two minutes"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print tables as the README has them"
    )
    parser.add_argument("--json", metavar="FILE", help="write every round's figures")
    options = parser.parse_args()
    passed = [
        option
        for option, is_given in (
            ("--quick", options.quick),
            ("--markdown", options.markdown),
        )
        if is_given
    ]
    documents, exit_code = {}, 0
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name, run in BENCHMARKS.items():
            found = Path(folder) / f"{name}.json"
            exit_code |= run([*passed, "--json", str(found)])
            documents[name] = json.loads(found.read_text())
            print(flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(documents, indent=2) + "\n")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
