"""The docs say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

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
