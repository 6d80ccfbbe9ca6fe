"""Fixtures: a folder with classes to share, and managers that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .processes import ManagerProcess

StartManager = Callable[..., ManagerProcess]


@pytest.fixture
def start_manager(tmp_path: Path) -> Iterator[StartManager]:
    """Give a function that starts managers; all of them are ended afterwards."""
    started: list[ManagerProcess] = []

    def start(*options: str, **environment: str) -> ManagerProcess:
        folder = tmp_path / f"manager-{len(started)}"
        folder.mkdir(mode=0o700)
        manager = ManagerProcess(folder, *options, **environment)
        started.append(manager)
        return manager.start()

    yield start
    for manager in started:
        if manager.process is not None:
            if manager.process.poll() is None:
                manager.process.kill()
            manager.process.wait(10)
            assert manager.process.stdout is not None
            manager.process.stdout.close()
