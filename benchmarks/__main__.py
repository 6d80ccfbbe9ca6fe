"""Run all benchmarks, one after another: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from . import calls, durable

BENCHMARKS = {"calls": calls.main, "durable": durable.main}


def main() -> int:
    """Run them all and print what each found."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a rough look, about a minute"
    )
    parser.add_argument("--json", metavar="FILE", help="write every round's figures")
    options = parser.parse_args()
    documents = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name, run in BENCHMARKS.items():
            print(f"{name.capitalize()}\n{'=' * len(name)}\n", flush=True)
            found = Path(folder) / f"{name}.json"
            run([*(["--quick"] if options.quick else []), "--json", str(found)])
            documents[name] = json.loads(found.read_text())
            print(flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(documents, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
