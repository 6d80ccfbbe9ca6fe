"""The docs say what the code says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from state_server import settings

from .conftest import StartManager

ROOT = Path(__file__).resolve().parent.parent

#: Runs the pieces of the README that are no whole files, with the classes they name.
RUN_PIECES = """
import sys, traceback

class Names(dict):
    def __missing__(self, name):
        if not name[0].isupper():
            raise KeyError(name)
        body = {"__init__": lambda self, *sizes: None, "open": lambda self: None}
        return type(name, (), body)

from app import create_app
assert create_app().test_client().get("/order").text == "1\\n"
from state_server import share
import shop
for piece in sys.stdin.read().split("=====\\n"):
    exec(compile(piece, piece, "exec"), {}, Names(share=share, Orders=shop.Orders))
"""


def test_the_settings_page_lists_every_setting() -> None:
    """docs/settings.md is what the settings say of themselves."""
    assert (ROOT / "docs" / "settings.md").read_text() == settings.as_markdown()


def test_every_file_that_the_readme_names_exists() -> None:
    """No link and no test that the README names is missing."""
    text = (ROOT / "README.md").read_text()
    names = re.findall(r"\]\(([\w/.-]+)\)", text) + re.findall(r"`(tests/[^`]+)`", text)
    missing = [name for name in names if not list(ROOT.glob(name))]
    assert missing == []


def test_the_code_of_the_readme_runs(
    tmp_path: Path, start_manager: StartManager
) -> None:
    """Its two files are an app, and each other piece of Python runs beside it."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    files = {
        name[1]: block
        for block in blocks
        if (name := re.match(r"# (\w+\.py):", block)) is not None
    }
    assert sorted(files) == ["app.py", "shop.py"]
    for name, block in files.items():
        (tmp_path / name).write_text(block)
    manager = start_manager("--objects", "shop", PYTHONPATH=f"{tmp_path}:{ROOT}")
    (tmp_path / "var").symlink_to(manager.data_dir)
    pieces = [block for block in blocks if block not in files.values()]
    assert len(pieces) == 3

    done = subprocess.run(
        [sys.executable, "-c", RUN_PIECES],
        input="=====\n".join(pieces),
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": f"{tmp_path}:{ROOT}",
            "STATE_SERVER_DATA_DIR": "var",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    # From any Python process, with another object between; then with the stock client.
    assert done.stdout.split() == ["2", "1", "3", "4"]


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
