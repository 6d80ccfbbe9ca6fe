"""The benchmarks: the frames that they build beforehand are calls that managers run."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Any

from benchmarks.lines import Line, connect_own, open_lines
from benchmarks.load import Worker, serve_generator
from benchmarks.servers import Server
from state_server.addresses import parse_address

from .conftest import StartManager


def answer(line: Line) -> bytes:
    """Send the frame that is ready on a line; return what comes back."""
    line.send(line.request())
    assert select.select([line.socket], [], [], 20.0)[0], "no answer"
    return line.recv(65536)


#: The object that a line of each kind calls.
CALLED = {
    "own": ("Bench", "default"),
    "stock": ("Bench", "default"),
    "common": ("Counter", "common"),
    "each": ("Counter", "caller-0"),
}


def test_each_line_calls_what_it_says(start_manager: StartManager) -> None:
    """Two frames of a line are two calls: both are answered, and count two."""
    manager = start_manager(
        "--objects", "benchmarks.workload", "--objects", "benchmarks.kept"
    )
    address = parse_address(manager.address)
    with manager.client() as client:
        for kind, called in CALLED.items():
            counter: Any = client.get(*called)
            before = counter.read()
            with open_lines(kind, address, manager.key, 1) as (line,):
                assert line.is_answer(answer(line)), kind
                assert line.is_answer(answer(line)), kind
            assert counter.read() == before + 2, kind


def test_a_generator_counts_what_the_server_has_counted(tmp_path: Path) -> None:
    """Server and generator are processes of their own, and agree on the calls."""
    key, cpus = "k" * 40, os.sched_getaffinity(0)
    server = Server("ours", tmp_path, key, cpus)
    try:
        arguments = ("own", server.address, key.encode(), 2)
        generator = Worker(cpus, serve_generator, *arguments)
        try:
            count = generator.ask("count", 0.1)
        finally:
            generator.stop()
        with connect_own(server.address, key.encode()) as client:
            assert client.get("Bench").read() == count.all_calls > 2
        assert server.cpu_s() > 0
    finally:
        server.stop()
    assert os.sched_getaffinity(0) == cpus
