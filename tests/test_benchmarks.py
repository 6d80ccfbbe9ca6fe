"""The benchmarks: the frames that they build beforehand are calls that managers run.

They run in processes of their own: their classes are called as those of other tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .processes import ROOT

LINES = """
import os, select, sys
from pathlib import Path

from benchmarks.lines import connect_own, open_lines
from benchmarks.servers import Server

CALLED = {
    "own": ("Bench", "default"),
    "stock": ("Bench", "default"),
    "common": ("Counter", "common"),
    "each": ("Counter", "caller-0"),
}

def answer(line):
    line.send(line.request())
    assert select.select([line.socket], [], [], 20.0)[0], "no answer"
    return line.recv(65536)

key = "k" * 40
objects = ("benchmarks.workload", "benchmarks.kept")
cpus = os.sched_getaffinity(0)
server = Server("ours", Path(sys.argv[1]), key, cpus, objects=objects)
try:
    with connect_own(server.address, key.encode()) as client:
        for kind, called in CALLED.items():
            counter = client.get(*called)
            before = counter.read()
            with open_lines(kind, server.address, key.encode(), 1) as (line,):
                assert line.is_answer(answer(line)), kind
                assert line.is_answer(answer(line)), kind
            assert counter.read() == before + 2, kind
finally:
    server.stop()
"""

GENERATOR = """
import os, sys
from pathlib import Path

from benchmarks.lines import connect_own
from benchmarks.load import Worker, serve_generator
from benchmarks.servers import Server

if __name__ == "__main__":
    key, cpus = "k" * 40, os.sched_getaffinity(0)
    server = Server("ours", Path(sys.argv[1]), key, cpus)
    try:
        arguments = ("own", server.address, key.encode(), 2)
        generator = Worker(cpus, serve_generator, *arguments)
        try:
            count = generator.ask("count", 0.1)
        finally:
            generator.stop()
        with connect_own(server.address, key.encode()) as client:
            counted = client.get("Bench").read()
        assert counted == count.all_calls > 2, (counted, count)
        assert server.cpu_s() > 0
        assert os.sched_getaffinity(0) == cpus
    finally:
        server.stop()
"""


def run(script: str, folder: Path) -> None:
    """Run a script in a process of its own; fail with what it says if it fails."""
    path = folder / "script.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, str(path), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_each_line_calls_what_it_says(tmp_path: Path) -> None:
    """Two frames of a line are two calls: both are answered, and count two."""
    run(LINES, tmp_path)


def test_a_generator_counts_what_the_server_has_counted(tmp_path: Path) -> None:
    """Server and generator are processes of their own, and agree on the calls."""
    run(GENERATOR, tmp_path)
