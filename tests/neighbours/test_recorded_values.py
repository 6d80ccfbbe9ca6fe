"""Other releases of numpy and pandas: what they wrote is read by those installed here.

The files in tests/data were written by ``recorded_values``, which says how.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from state_server import codec

pytest.importorskip("pandas", reason="pandas is not installed")

from . import recorded_values

DATA = Path(__file__).parent.parent / "data"
FILES = sorted(DATA.glob("values-*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_other_releases_wrote_is_read(path: Path) -> None:
    """Arrays, frames and single values of numpy 1 and 2, pandas 2 and 3 are the same.

    Of numpy, also in its own spelling in every protocol, as stock clients send it.
    """
    values = recorded_values.recorded(path)
    expressions = {text for text, _ in values}
    assert expressions == set(recorded_values.OURS)
    for text, data in values:
        recorded_values.assert_same(recorded_values.value_of(text), codec.decode(data))


def test_both_lines_of_releases_are_recorded() -> None:
    """There is a file of numpy 1 with pandas 2, and one of numpy 2 with pandas 3."""
    assert [path.stem for path in FILES] == [
        "values-numpy1-pandas2",
        "values-numpy2-pandas3",
    ]


@pytest.mark.parametrize("expression", recorded_values.OURS)
def test_what_was_read_is_written_as_before(expression: str) -> None:
    """A value that came from elsewhere goes back with nothing lost."""
    for path in FILES:
        data = dict(recorded_values.recorded(path)[: len(recorded_values.OURS)])
        value = codec.decode(data[expression])
        again = codec.decode(codec.encode(value))
        recorded_values.assert_same(value, again)
        recorded_values.assert_same(recorded_values.value_of(expression), again)
