"""The types of the public face, proved by the type checker itself."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(
    find_spec("mypy") is None, reason="mypy is not installed"
)

#: Wrong uses, one a line. Each must be told as an error on its own line.
WRONG = """\
from typing import Any
from flask import Flask
from state_server import StateManager, allow, connect, share
from state_server.integrations.flask import StateServer
from state_server.objects import SomeObj

state = StateServer(Flask(__name__))
client = connect()

a: str = client.get(SomeObj).query()
b = client.get(SomeObj).qurey()
c = client.get(SomeObj).query(1)
d = client.get(5)
e = client.get(SomeObj, 7)
f = client.get(SomeObj, timeout="1")
g: str = state.get(SomeObj).query()
h = state.get(SomeObj).missing
i = state.get(SomeObj, 7)
j: str = StateManager().get(SomeObj).query()
k = share(SomeObj, nmae="Other")
l = share(name=5)
m = share(5)
n = connect(authkey=5)
o = connect("tcp://h:1", b"key", 5)
p = share(SomeObj)("no", "such", "arguments")
q: int = client.ping().real.text
r = allow(SomeObj)(3).missing
"""


def check(path: Path, cache: Path) -> Sequence[str]:
    """Return what mypy has to say about one file, with the project's own settings."""
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            str(ROOT / "setup.cfg"),
            "--cache-dir",
            str(cache),
            "--no-error-summary",
            str(path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert not ended.stderr, ended.stderr
    return [line for line in ended.stdout.splitlines() if " error: " in line]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder for mypy, so that the second run is quick."""
    return tmp_path_factory.mktemp("mypy")


def test_right_uses_have_the_right_types(cache: Path) -> None:
    """Everything in ``typed_usage.py`` is as it says, under strict checking."""
    lines = check(ROOT / "tests" / "typed_usage.py", cache)

    assert [line for line in lines if "typed_usage" in line] == []


def test_wrong_uses_are_errors(cache: Path, tmp_path: Path) -> None:
    """Each wrong line is told, and no line before them."""
    path = tmp_path / "wrong.py"
    path.write_text(WRONG)
    told = {
        int(match[1])
        for line in check(path, cache)
        if (match := re.search(r"wrong\.py:(\d+): error", line))
    }
    wrong = [number for number, line in enumerate(WRONG.splitlines(), 1) if number > 9]

    assert sorted(told) == wrong
