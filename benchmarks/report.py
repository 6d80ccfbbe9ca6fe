"""What a benchmark found, and how it is shown: figures, ratios, the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .load import Timed
from .processes import TICKS_PER_S


class Expectation(NamedTuple):
    """A ratio or a difference, round by round, and what it is hoped to be."""

    text: str
    values: list[float]
    unit: str = "x"
    least: float | None = None
    most: float | None = None

    @property
    def reached(self) -> bool | None:
        """Tell whether the median is as expected; ``None`` if nothing was."""
        middle = statistics.median(self.values)
        if self.least is not None:
            return middle >= self.least
        if self.most is not None:
            return middle <= self.most
        return None


class Figures:
    """What was measured: figure → way → one value for each round.

    ``doubts``: what does not add up; a run with any proves nothing.
    """

    def __init__(self) -> None:
        self.values: dict[str, dict[str, list[float]]] = {}
        self.doubts: list[str] = []

    def note(self, figure: str, way: str, value: float) -> None:
        """Add what one round found."""
        self.values.setdefault(figure, {}).setdefault(way, []).append(value)

    def note_times(
        self, name: str, way: str, times: Sequence[float], unit: str = "µs"
    ) -> None:
        """Add median, 99th percentile and maximum of times in seconds."""
        scaled = sorted({"µs": 1e6, "ms": 1e3}[unit] * seconds for seconds in times)
        self.note(f"{name}, median, {unit}", way, percentile(scaled, 0.5))
        self.note(f"{name}, p99, {unit}", way, percentile(scaled, 0.99))
        self.note(f"{name}, max, {unit}", way, scaled[-1])

    def note_calls(self, name: str, way: str, timed: Timed) -> None:
        """Add the rate of calls that were timed, and their times."""
        self.note(f"{name}, calls per second", way, timed.calls / timed.seconds)
        self.note_times(name, way, timed.times)

    def compare_counts(self, way: str, answered: int, counted: int) -> None:
        """Doubt the run if a server has not counted as many calls as it answered."""
        if answered != counted:
            self.doubts.append(
                f"{way}: {answered} calls were answered, {counted} were counted."
            )

    def has(self, figure: str, way: str) -> bool:
        """Tell whether a figure was measured for a way."""
        return way in self.values.get(figure, {})

    def ratios(self, figure: str, way: str, other: str) -> list[float]:
        """Return a figure of one way over that of another, round by round."""
        values = self.values[figure]
        return [a / b for a, b in zip(values[way], values[other], strict=True)]


class _ProcessorTime(NamedTuple):
    """Seconds of processor time since the system started."""

    total: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> _ProcessorTime:
        # user, nice, system, idle, waiting for disks, … (proc_stat(5))
        values = [int(text) for text in Path("/proc/stat").read_text().split()[1:9]]
        total, idle = sum(values), values[3] + values[4]
        spent = (
            resource.getrusage(who)
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        own = sum(each.ru_utime + each.ru_stime for each in spent)
        return cls(total / TICKS_PER_S, (total - idle) / TICKS_PER_S, own)


@dataclass
class Machine:
    """The machine, and how busy it was with other things; made before all else.

    ``facts``: what else has to be known of it. ``end`` is called once every process of
    the benchmark has ended, because the time of a process counts as ours from then on.
    """

    facts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.facts = {
            "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "Python": platform.python_version(),
            "processors": str(len(os.sched_getaffinity(0))),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            **self.facts,
            "busy with other things before": _shown(_others_share()),
        }
        self._began = _ProcessorTime.now()

    def end(self) -> None:
        """Note how busy others kept the processors since the beginning, and do now."""
        now, began = _ProcessorTime.now(), self._began
        others = (now.busy - began.busy) - (now.own - began.own)
        share = max(0.0, others / (now.total - began.total))
        self.facts["busy with other things meanwhile"] = _shown(share)
        self.facts["busy with other things after"] = _shown(_others_share())
        self.facts["lasted"] = (
            f"{(now.total - began.total) / (os.cpu_count() or 1):.0f} s"
        )


def _others_share() -> float:
    """Return which share of the processors is in use while we do nothing."""
    began = _ProcessorTime.now()
    time.sleep(1.0)
    now = _ProcessorTime.now()
    return (now.busy - began.busy) / (now.total - began.total)


def _shown(share: float) -> str:
    return f"{share:.0%} of the processors"


@dataclass(frozen=True)
class Report:
    """Everything that one benchmark found.

    ``labels``: what a way is called in words. ``plan``: how much was measured.
    """

    name: str
    title: str
    caveat: str
    plan: dict[str, Any]
    machine: Machine
    labels: Mapping[str, str]
    figures: Figures
    expectations: list[Expectation]

    def publish(self, options: argparse.Namespace) -> int:
        """Print it as the options say, and write it to the file that they name.

        Return the exit code, which is 1 if the run is not to be believed.
        """
        print(self.markdown() if options.markdown else self.text(), flush=True)
        if options.json:
            document = json.dumps(self.document(), indent=2)
            Path(options.json).write_text(document + "\n")
        return 1 if self.figures.doubts else 0

    def text(self) -> str:
        """Return it for reading on a terminal."""
        lines = [self.title, "=" * len(self.title), "", self.caveat, ""]
        lines += [f"{name + ':':34} {value}" for name, value in self._facts().items()]
        lines += ["", "Each figure: median over the rounds (least-most).", ""]
        for figure, ways in self.figures.values.items():
            lines.append(figure)
            for way, values in ways.items():
                label = self.labels.get(way, way)
                lines.append(f"    {label:44} {spread(values):>28}")
        lines += ["", "Ratios, round by round: median (least-most).", ""]
        words = {True: "yes", False: "NO", None: ""}
        for line in self.expectations:
            found = f"{spread(line.values)} {line.unit}"
            wish = f"{_wish(line, 'at least', 'at most')}: {words[line.reached]}"
            wish = "" if line.reached is None else wish
            lines.append(f"{line.text:74} {found:>24}  {wish}".rstrip())
        lines += ["", *self._doubts()]
        missed = [line.text for line in self.expectations if line.reached is False]
        lines.append(f"Expected and missed: {'; '.join(missed) or 'nothing'}.")
        return "\n".join(lines)

    def markdown(self) -> str:
        """Return it as the README of this folder has it."""
        facts = "; ".join(f"{name}: {value}" for name, value in self._facts().items())
        lines = [f"### {self.title}", "", *textwrap.wrap(f"{facts}.", 92), ""]
        lines += ["| ratio | expected | found | reached |", "|---|---|---|---|"]
        words = {True: "yes", False: "**no**", None: ""}
        for line in self.expectations:
            unit = "" if line.unit == "x" else f" {line.unit}"
            wish = _wish(line, "≥", "≤") + unit
            wish = "" if line.reached is None else wish
            found = spread(line.values) + unit
            lines.append(f"| {line.text} | {wish} | {found} | {words[line.reached]} |")
        lines += ["", "| figure | way | median (least-most) |", "|---|---|---|"]
        for figure, ways in self.figures.values.items():
            for way, values in ways.items():
                label = self.labels.get(way, way)
                lines.append(f"| {figure} | {label} | {spread(values)} |")
        return "\n".join([*lines, "", *self._doubts()])

    def document(self) -> dict[str, Any]:
        """Return it for other programs, with every round's values."""
        return {
            "machine": self.machine.facts,
            "plan": self.plan,
            "figures": self.figures.values,
            "ratios": {line.text: line.values for line in self.expectations},
            "doubts": self.figures.doubts,
        }

    def _doubts(self) -> list[str]:
        return [f"**Do not believe this run.** {text}" for text in self.figures.doubts]

    def _facts(self) -> dict[str, str]:
        return {**self.machine.facts, "rounds": str(self.plan["rounds"])}


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that every benchmark takes."""
    made = argparse.ArgumentParser(prog=f"benchmarks.{name}", description=description)
    made.add_argument("--quick", action="store_true", help="a rough look")
    made.add_argument("--rounds", type=int, help="how many rounds of each figure")
    made.add_argument(
        "--markdown", action="store_true", help="print tables as the README has them"
    )
    made.add_argument("--json", metavar="FILE", help="write every round's figures")
    return made


def say(text: str) -> None:
    """Tell whoever waits what is being done."""
    print(f"  {text}", file=sys.stderr, flush=True)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of the sorted values that ``share`` of them do not exceed."""
    return values[max(0, -int(-share * len(values) // 1) - 1)]


def spread(values: Sequence[float]) -> str:
    """Return the median and, in brackets, the least and the most."""
    middle, least, most = statistics.median(values), min(values), max(values)
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    between = "-" if least >= 0 else " to "
    return f"{middle:,.{digits}f} ({least:,.{digits}f}{between}{most:,.{digits}f})"


def _wish(line: Expectation, least: str, most: str) -> str:
    if line.least is not None:
        return f"{least} {line.least:g}"
    return "" if line.most is None else f"{most} {line.most:g}"
