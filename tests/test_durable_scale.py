"""Start-up time and memory do not grow with the number of stored objects."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from state_server.keeping import image

from .faults.hooks import Numbers
from .processes import ManagerProcess

OBJECTS = ("--objects", "tests.faults.hooks:Numbers")
STORED = 100_000
RESIDENT = 2_000


def _resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def test_stored_objects_cost_neither_time_nor_memory_at_the_start(
    tmp_path: Path,
) -> None:
    """With 100,000 objects stored it starts as soon and as small as with none."""
    manager = ManagerProcess(tmp_path, *OBJECTS)
    manager.start()
    try:
        with manager.client(timeout=20) as client:
            client.get("Numbers").next()
        empty_kib = _resident_kib(manager.pid)
        assert manager.stop() == 0
        began = time.monotonic()
        manager.start()
        empty_s = time.monotonic() - began
        assert manager.stop() == 0
        small = image.dump(Numbers(), {})
        connection = sqlite3.connect(manager.data_dir / "state.db")
        connection.executemany(
            "insert into objects values ('Numbers', ?, 1, 1, ?)",
            ((f"object {n}", small) for n in range(STORED)),
        )
        connection.commit()
        connection.close()

        began = time.monotonic()
        manager.start()
        full_s = time.monotonic() - began
        with manager.client(timeout=20) as client:
            assert client.get("Numbers", f"object {STORED - 1}").next() == 1
            full_kib = _resident_kib(manager.pid)
            assert full_s < empty_s + 1.0, (empty_s, full_s)
            assert full_kib < empty_kib + 20_000, (empty_kib, full_kib)
            for number in range(RESIDENT):
                client.get("Numbers", f"object {number}").get()
            resident_kib = _resident_kib(manager.pid)
        each = (resident_kib - full_kib) * 1024 / RESIDENT
        assert each < 10_000, f"{each:.0f} bytes for each object in memory"
        print(f"empty {empty_s:.3f} s, full {full_s:.3f} s, {each:.0f} bytes each")
    finally:
        assert manager.process is not None
        if manager.process.poll() is None:
            manager.kill()
        assert manager.process.stdout is not None
        manager.process.stdout.close()
