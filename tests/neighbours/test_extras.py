"""The extras of the package: what pages name is there, and tests have what they use."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

from ..processes import ROOT

#: Of pandas; of Python itself, up to 3.11.
COMES_WITH_ANOTHER = {"dateutil", "setuptools"}


def extras() -> dict[str, set[str]]:
    """Return the packages of each extra, without their versions."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return {
        name: {re.split(r"[><=]", line)[0] for line in text.split()}
        for name, text in config["options.extras_require"].items()
    }


def test_extras_of_the_pages_exist() -> None:
    """Whatever a page or an example says to install is there to be installed."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*")]
    named = set()
    for page in filter(Path.is_file, pages):
        named |= set(re.findall(r"pip install [^`\n]*\[(\w+)\]", page.read_text()))
    assert {"cache", "limits", "sessions", "arrays"} <= named <= set(extras())


def test_what_tests_import_is_in_their_extra() -> None:
    """No test of a neighbour is skipped because nobody has named its package."""
    there = extras()
    for name in ("cache", "limits", "sessions", "arrays"):
        assert there[name] <= there["test"]
    wanted = set()
    for file in Path(__file__).parent.glob("*.py"):
        wanted |= set(re.findall(r'importorskip\("(\w+)', file.read_text()))
    wanted = {name.replace("_", "-") for name in wanted} - COMES_WITH_ANOTHER
    assert wanted <= there["test"]
