"""``python -m tests.chaos --minutes 5 --seed 1``: exit code 1 on any violation."""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import signal
import sys
import threading

from .run import Plan, Run

#: Violations that are shown; the others are counted.
SHOWN_MAX = 10

#: Seconds that start, end and judgement may take beside the run itself.
AROUND_S = 900.0


def main() -> int:
    """Run, and print the report."""
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None, help="drawn if left out")
    parser.add_argument(
        "--transport",
        choices=("unix", "tcp"),
        default=None,
        help="of the manager; the seed decides if left out",
    )
    parser.add_argument(
        "--without",
        default="",
        metavar="SAFETY",
        help="memory, replies or gate: show that the run notices",
    )
    parser.add_argument("--clients", type=int, default=Plan._field_defaults["clients"])
    parser.add_argument("--threads", type=int, default=Plan._field_defaults["threads"])
    parser.add_argument(
        "--kill-every",
        type=float,
        metavar="SECONDS",
        default=Plan._field_defaults["kill_every_s"],
        help="mean time that a manager lives once it is ready",
    )
    parser.add_argument(
        "--kills",
        type=int,
        default=Plan._field_defaults["kills_max"],
        help="end when so many managers were killed, before the time is up",
    )
    parser.add_argument(
        "--cut-after",
        type=float,
        metavar="BYTES",
        default=Plan._field_defaults["cut_after_bytes"],
        help="mean number of bytes that pass before a connection is cut",
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    plan = Plan(
        seconds=options.minutes * 60,
        seed=seed,
        transport=options.transport or ("tcp", "unix")[seed % 2],
        without=options.without,
        clients=options.clients,
        threads=options.threads,
        kill_every_s=options.kill_every,
        kills_max=options.kills,
        cut_after_bytes=options.cut_after,
        keep=options.keep,
    )
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    run = Run(plan)
    watchdog = threading.Timer(plan.seconds + AROUND_S, _give_up, [run])
    watchdog.daemon = True
    watchdog.start()
    report = run.run()
    watchdog.cancel()
    for violation in report.violations[:SHOWN_MAX]:
        print(f"VIOLATION: {violation}\n")
    print("\n".join(report.lines))
    if report.folder is not None:
        print(f"Everything is kept in {report.folder}")
    if report.violations:
        print(f"Again: --minutes {options.minutes:g} --seed {seed}")
    return 1 if report.violations else 0


def _give_up(run: Run) -> None:
    """Whatever hangs: say where, and end everything."""
    faulthandler.dump_traceback()
    run.end_everything()
    os._exit(2)


if __name__ == "__main__":
    sys.exit(main())
