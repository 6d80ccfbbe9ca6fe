"""A short chaos run finds nothing; without a safety of the manager's it does.

The long one is ``python -m tests.chaos --minutes 5``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from .processes import ROOT

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="workers are found in /proc"
)


def chaos(*options: str) -> tuple[int, str]:
    """Run it; return its exit code and what it said. Its folder is removed."""
    # Not pytest's own folder, whose path may be too long for a socket.
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos", *options],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output = process.communicate(timeout=100)[0]
        except subprocess.TimeoutExpired:
            # It ends its children before it goes.
            process.terminate()
            output = process.communicate(timeout=15)[0]
            raise AssertionError(f"not at its end in time: {output}") from None
        finally:
            process.kill()
    return process.returncode, output


def count(pattern: str, output: str) -> int:
    """Return the number that the report gives."""
    found = re.search(pattern, output)
    assert found is not None, output
    return int(found[1])


@pytest.mark.parametrize("transport", ["unix"])
def test_whatever_is_killed_every_call_happens_once(transport: str) -> None:
    """Managers, workers and clients are killed, connections are cut: no violation."""
    code, output = chaos(
        *("--minutes", "0.35", "--kills", "14", "--seed", "1"),
        *("--transport", transport, "--cut-after", "600"),
    )
    assert code == 0, output
    assert count(r"violations: (\d+)", output) == 0
    assert count(r"killed with -9: (\d+) managers", output) >= 3, output
    assert count(r"(\d+) calls sent again", output) > 0, output
    assert count(r"connections cut: (\d+)", output) > 0, output
    assert count(r"answered (\d+)", output) > 100, output


@pytest.mark.timeout(360)
@pytest.mark.parametrize("safety", ["memory", "gate"])
def test_the_chaos_run_has_teeth(safety: str) -> None:
    """Without the memory of replies, or the wait for the disk, it finds violations.

    Soon, but not surely after four kills: a busy machine makes few calls.
    """
    for seed in ("2", "3", "4", "5", "6"):
        code, output = chaos(
            *("--minutes", "0.35", "--kills", "4", "--seed", seed),
            *("--cut-after", "300", "--without", safety),
        )
        if code != 0:
            break
    assert code == 1, output
    assert count(r"violations: (\d+)", output) > 0
    assert re.search("given twice|was skipped|got twice|no order of its calls", output)
