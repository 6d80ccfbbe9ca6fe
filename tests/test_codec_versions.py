"""Other releases of Python: their pickles are read here, and ours are read there."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from state_server import codec

#: Everything that the expressions below use; run here and in the other interpreter.
SETUP = """
import sys, collections, datetime, decimal, fractions, ipaddress, pathlib, uuid
from zoneinfo import ZoneInfo
from datetime import timedelta, timezone
"""

#: One value for each type and spelling.
EXPRESSIONS = [
    "None", "True", "0", "-1", "2**31", "2**200", "1.5", "1j", "'text'", "'\\ud800'",
    "'ü' * 300", "b'bytes'", "b'x' * 70000", "bytearray(b'x')", "bytearray()",
    "[1, [2, (3, (), (4, 5), (6, 7, 8, 9))]]", "list(range(70000))",
    "{'a': 1, 'b': {2: 3}}", "set()", "{1, 2}", "frozenset([1])", "range(1, 9, 2)",
    "slice(1, None)", "...", "collections.OrderedDict(b=1, a=2)",
    "collections.defaultdict(list, a=[1])", "collections.defaultdict(None, a=1)",
    "collections.deque([1, 2], 5)", "collections.deque([1])",
    "collections.Counter('aab')", "collections.ChainMap({1: 2}, {3: 4})",
    "datetime.date(2024, 2, 29)", "datetime.time(1, 2, 3, 4, timezone.utc)",
    "datetime.datetime(2024, 2, 29, 1, 2, 3, 4)",
    "datetime.datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo('Europe/Berlin'), fold=1)",
    "timedelta(1, 2, 3)", "timezone.utc", "timezone(timedelta(hours=1), 'one')",
    "ZoneInfo('Europe/Berlin')", "ZoneInfo.no_cache('UTC').key",
    "decimal.Decimal('-1.50E+7')", "decimal.Decimal('NaN').is_nan()",
    "fractions.Fraction(-1, 3)", "uuid.UUID(int=5)",
    "uuid.UUID(int=5, is_safe=uuid.SafeUUID.unsafe).is_safe.value",
    "ipaddress.ip_address('1.2.3.4')", "ipaddress.ip_address('::1')",
    "ipaddress.ip_network('10.0.0.0/8')", "ipaddress.ip_network('fe80::/10')",
    "ipaddress.ip_interface('1.2.3.4/24')", "ipaddress.ip_interface('::1/64')",
    "pathlib.PurePosixPath('/a/b')", "pathlib.PureWindowsPath('c:/a')",
    "pathlib.Path('a') / 'b'", "[pathlib.Path('/a'), pathlib.Path('/b')]",
    "ValueError('no')", "KeyError('k')", "FileNotFoundError(2, 'no', 'name')",
    "ImportError('a', name='b')", "UnicodeDecodeError('u', b'x', 0, 1, 'y')",
    "[[1.5] * 3] * 3",
]  # fmt: skip

WRITER = (
    SETUP
    + """
import base64, json
from multiprocessing.managers import AutoProxy, Token, ValueProxy
from multiprocessing.reduction import ForkingPickler

def dump(value):
    return base64.b64encode(bytes(ForkingPickler.dumps(value))).decode()

token = Token("SomeObj", "/nowhere/x.sock", "SomeObj/room-7")
rest = dict(serializer="pickle", exposed=("query",), authkey=b"x", incref=False)
pickles = [dump(eval(text)) for text in json.load(sys.stdin)]
pickles += [dump(kind(token, **rest)) for kind in (AutoProxy, ValueProxy)]
json.dump(pickles, sys.stdout)
"""
)

READER = (
    SETUP
    + """
import base64, json, pickle

for text, data in json.load(sys.stdin):
    value, wanted = pickle.loads(base64.b64decode(data)), eval(text)
    if repr(value) != repr(wanted) or type(value) is not type(wanted):
        print(text, repr(value))
"""
)


def interpreter(version: str) -> str | None:
    """Return the path of a working interpreter of this version, if there is one."""
    roots = [Path(sys.base_prefix).parent, Path.home() / ".pyenv" / "versions"]
    folders = [str(folder / "bin") for root in roots for folder in root.glob("*")]
    for path in (None, ":".join(folders)):
        found = shutil.which(f"python{version}", path=path)
        if found and subprocess.run([found, "-V"], capture_output=True).returncode == 0:
            return found
    return None


def talk(version: str, script: str, told: Any) -> str:
    """Run a script in another interpreter and return what it says."""
    path = interpreter(version)
    if path is None:
        pytest.skip(f"there is no Python {version} on this machine")
    done = subprocess.run(
        [path, "-c", script],
        input=json.dumps(told).encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout.decode()


VERSIONS = ["3.10", "3.11", "3.12", "3.13"]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_other_releases_write_is_read(version: str) -> None:
    """Every type, as the stock pickler of that release spells it, is decoded here."""
    scope: dict[str, Any] = {}
    exec(SETUP, scope)
    pickles = [base64.b64decode(data) for data in json.loads(
        talk(version, WRITER, EXPRESSIONS)
    )]  # fmt: skip
    for expression, data in zip(EXPRESSIONS, pickles, strict=False):
        wanted = eval(expression, scope)
        value = codec.decode(data)
        assert (expression, repr(wanted)) == (expression, repr(value))
        assert type(wanted) is type(value)
    handles = [codec.decode(data, reference=lambda *n: n) for data in pickles[-2:]]
    assert handles == [("SomeObj", "room-7")] * 2


@pytest.mark.parametrize("version", VERSIONS)
def test_what_we_write_is_read_by_other_releases(version: str) -> None:
    """Every standard type, as we spell it here, is read by stock pickle there."""
    scope: dict[str, Any] = {}
    exec(SETUP, scope)
    told = [
        (text, base64.b64encode(codec.encode(eval(text, scope))).decode())
        for text in EXPRESSIONS
    ]
    assert talk(version, READER, told) == ""
