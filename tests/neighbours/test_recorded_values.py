"""Other releases of numpy and pandas: what they wrote is read by those installed here.

The files in tests/data were written by ``recorded_values``, which says how.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest

from state_server import codec
from state_server.codec.constructors import TABLE
from state_server.messages import Reference

pytest.importorskip("pandas", reason="pandas is not installed")

from . import recorded_values

DATA = Path(__file__).parent.parent / "data"
FILES = sorted(DATA.glob("values-*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_other_releases_wrote_is_read(path: Path) -> None:
    """Arrays, DataFrames and values of numpy 1 and 2, pandas 2 and 3 are the same.

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


# Names -------------------------------------------------------------------------------

#: What was written when the modules were called as the names in it say.
WRITTEN = {
    "np.array([[1, 2], [3, 4]], '<i4')": (
        "80049549000000000000008c1373746174655f7365727665722e617272617973948c0561"
        "72726179949394288c033c6934944b024b0286948c014394431001000000020000000300"
        "00000400000094749452942e"
    ),
    "np.array([1, 'a'], object)": (
        "8004953a000000000000008c1373746174655f7365727665722e617272617973948c0c6f"
        "626a6563745f61727261799493944b0285945d94284b018c01619465869452942e"
    ),
    "np.float64(1.5)": (
        "80049537000000000000008c1373746174655f7365727665722e617272617973948c0673"
        "63616c61729493948c033c6638944308000000000000f83f94869452942e"
    ),
    "pd.DataFrame({0: [1, 2], 1: [0.5, 1.5]}, columns=pd.RangeIndex(2))": (
        "800495ad000000000000008c1373746174655f7365727665722e6672616d6573948c0566"
        "72616d65949394285d94288c1373746174655f7365727665722e617272617973948c0561"
        "72726179949394288c033c6938944b0285948c0143944310010000000000000002000000"
        "0000000094749452946806288c033c6638944b02859468094310000000000000e03f0000"
        "00000000f83f947494529465284b004b024b014e7494284b004b024b014e74947d948974"
        "9452942e"
    ),
    "pd.Series([1.5, 2.5], name='n')": (
        "8004957e000000000000008c1373746174655f7365727665722e6672616d6573948c0673"
        "6572696573949394288c1373746174655f7365727665722e617272617973948c05617272"
        "6179949394288c033c6638944b0285948c0143944310000000000000f83f000000000000"
        "04409474945294284b004b024b014e74948c016e947d9489749452942e"
    ),
    "pd.Index([3, 1])": (
        "8004956d000000000000008c1373746174655f7365727665722e6672616d6573948c0569"
        "6e6465789493948c1373746174655f7365727665722e617272617973948c056172726179"
        "949394288c033c6938944b0285948c014394431003000000000000000100000000000000"
        "94749452944e4e879452942e"
    ),
}
WRITTEN_REFERENCE = (
    "8004953d000000000000008c1573746174655f7365727665722e6d65737361676573948c"
    "095265666572656e63659493948c064f7264657273948c06726f6f6d2d3794869452942e"
)
#: Every name of our own that was ever written.
OWN_NAMES = {
    "state_server.arrays": "array array_aside object_array scalar",
    "state_server.frames": (
        "absent categorical dates frame index interval intervals masked moment"
        " multi_index period periods series steps strings"
    ),
    "state_server.large_bytes": "large_bytes",
    "state_server.messages": "Reference",
}


def names_in(data: bytes) -> set[tuple[str, str]]:
    """Return the names that a pickle has in it, as the standard library reads them."""
    found = set()

    class Names(pickle.Unpickler):
        """Notes the names down and makes nothing."""

        def find_class(self, module_name: str, global_name: str) -> Any:
            """Return a function that makes nothing."""
            found.add((module_name, global_name))
            return lambda *_parts: None

    Names(io.BytesIO(data)).load()
    return found


@pytest.mark.parametrize("expression", WRITTEN)
def test_what_was_written_is_read_and_named_alike(expression: str) -> None:
    """Values in journals and sessions outlive the modules that they name."""
    written = bytes.fromhex(WRITTEN[expression])
    value = recorded_values.value_of(expression)

    recorded_values.assert_same(value, codec.decode(written))
    assert names_in(codec.encode(value)) == names_in(written)


def test_a_reference_is_written_as_ever() -> None:
    """A handle that lies on disk in another value is found again."""
    written = bytes.fromhex(WRITTEN_REFERENCE)

    assert codec.decode(written) == Reference("Orders", "room-7")
    assert codec.encode(Reference("Orders", "room-7")) == written


def test_names_of_our_own_are_fixed() -> None:
    """No name of our own goes or comes without a word here; each is what it writes."""
    ours = {name for name in TABLE if name[0].startswith("state_server.")}

    assert ours == {
        (module, name) for module, names in OWN_NAMES.items() for name in names.split()
    }
    for module, name in ours:
        make = Reference if name == "Reference" else TABLE[module, name].make
        assert (make.__module__, make.__qualname__) == (module, name)
        assert names_in(pickle.dumps(make, 4)) == {(module, name)}
