"""Disks that fail and power that is cut, for real managers, by a preloaded shim."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("shim.c")
_BLOCK = 512


def built_shim(folder: Path) -> Path:
    """Compile the shim; skip the test where that is not possible."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the shim that imitates failing disks is preloaded on Linux only")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: the shim that imitates failing disks is not built")
    library = folder / "shim.so"
    subprocess.run(
        [
            *(compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC"),
            *("-o", str(library), str(SOURCE), "-ldl", "-lpthread"),
        ],
        check=True,
    )
    return library


class Disk:
    """The disk below one data folder. ``environment`` puts a manager onto it."""

    def __init__(self, shim: Path, data_dir: Path, *, power: bool = False) -> None:
        self.data_dir = data_dir
        self.control = data_dir.parent / "control"
        self.shadow = data_dir.parent / "shadow"
        self.control.mkdir()
        self.environment = {
            "LD_PRELOAD": str(shim),
            "FAULTS_FOLDER": str(data_dir.resolve()),
            "FAULTS_CONTROL": str(self.control),
        }
        if power:
            self.shadow.mkdir()
            self.environment["FAULTS_SHADOW"] = str(self.shadow)

    def fail(self, how: str) -> None:
        """Begin to fail: ``enospc``, ``erofs``, ``eio-write``, ``eio-sync(-once)``."""
        (self.control / how).touch()

    def work(self) -> None:
        """Work again."""
        for flag in list(self.control.iterdir()):
            flag.unlink()

    def cut_power(self, chance: random.Random | None = None) -> None:
        """Leave of the files what a power cut leaves; the manager must be dead.

        Nothing that was not synced is there any more, or, with ``chance``, any part of
        it: a disk writes what it likes in the order it likes.
        """
        listed = (self.shadow / "names").read_text().splitlines()
        names = dict(reversed(line.split(" ", 1)) for line in listed)
        for path in list(self.data_dir.glob("state.db*")):
            if path.name.endswith("-shm") or path.name not in names:
                path.unlink()
        for name, identity in names.items():
            if name.endswith("-shm"):
                continue
            kept = self.shadow / f"data-{identity}"
            safe = kept.read_bytes() if kept.exists() else b""
            path = self.data_dir / name
            if chance is not None and path.exists():
                safe = _mixed(safe, path.read_bytes(), chance)
            path.write_bytes(safe)


def _mixed(safe: bytes, present: bytes, chance: random.Random) -> bytes:
    """Return ``safe`` with some of the sectors that were written since."""
    share = chance.random()
    mixed = bytearray(safe)
    for at in range(0, len(present), _BLOCK):
        if chance.random() < share:
            block = present[at : at + _BLOCK]
            mixed.extend(bytes(max(0, at - len(mixed))))
            mixed[at : at + len(block)] = block
    return bytes(mixed)
