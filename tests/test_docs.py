"""The docs say what the code says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from state_server import settings

ROOT = Path(__file__).resolve().parent.parent


def test_the_settings_page_lists_every_setting() -> None:
    """docs/settings.md is what the settings say of themselves."""
    assert (ROOT / "docs" / "settings.md").read_text() == settings.as_markdown()


def test_every_file_that_the_readme_names_exists() -> None:
    """No link and no test that the README names is missing."""
    text = (ROOT / "README.md").read_text()
    names = re.findall(r"\]\(([\w/.-]+)\)", text) + re.findall(r"`(tests/[^`]+)`", text)
    missing = [name for name in names if not list(ROOT.glob(name))]
    assert missing == []


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(("verb", "silences"), [("run", 1), ("test", 2)])
def test_make_says_what_it_is_busy_with(
    verb: str, silences: int, tmp_path: Path
) -> None:
    """Before each silence of an installation there is a line, and that says once."""
    done = subprocess.run(
        ["make", "--dry-run", verb, f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},  # Without the options of a make around us.
        capture_output=True,
        text=True,
        timeout=30,
    )
    lines = done.stdout.splitlines()
    told = [line for line in lines if line.startswith("echo") and "(once" in line]
    assert len(told) == silences, done
    assert lines[0] == told[0]
    installing = [line for line in lines if "pip install" in line]
    assert len(installing) == silences
    assert all("--quiet" in line for line in installing)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_sets_up_anew_what_an_interruption_left(tmp_path: Path) -> None:
    """An environment without pip is made again; two at once wait for each other."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").touch()
    done = subprocess.run(
        ["make", "--dry-run", "test", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=30,
    )
    # What changes the environment; a long line of the Makefile is several here.
    lines = done.stdout.replace("\\\n", "").splitlines()
    changing = [line for line in lines if "-m venv" in line or "pip install" in line]
    assert len(changing) == 3, done
    assert all("fcntl.flock" in line for line in changing)
