"""Clients of the standard library, of every version at hand, against our manager.

What is sent to them is read by the code of each version, so that version runs it.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .processes import ManagerProcess, our_manager

VERSIONS = ("3.10", "3.11", "3.12", "3.13")

#: Runs in the other interpreter: nothing of ours may be imported there.
CLIENT = r"""
import json, sys, datetime, decimal
from multiprocessing.managers import BaseManager, DictProxy, RemoteError

address, key, task, count = json.loads(sys.argv[1])
address = tuple(address) if isinstance(address, list) else address

class Manager(BaseManager):
    pass

for name in ("Counter", "Echo", "Trouble", "Basket", "Room", "SomeObj", "Missing"):
    Manager.register(name)
manager = Manager(address=address, authkey=key.encode())
manager.connect()

class Typed(BaseManager):
    pass

Typed.register("Room", proxytype=DictProxy)
typed = Typed(address=address, authkey=key.encode())
typed.connect()

def attempt(call, *args):
    try:
        return repr(call(*args))
    except Exception as error:
        return type(error).__name__ + "|" + str(error)

if task == "count":
    counter = manager.Counter()
    print(json.dumps([counter.query() for _ in range(count)]))
else:
    counter, echo = manager.Counter(), manager.Echo()
    trouble, basket = manager.Trouble(), manager.Basket()
    other = manager.Counter("another")
    values = [None, True, 5, -2**70, 1.5, "text", b"bytes", [1, [2]], (1, (2,)),
              {"a": {"b": 1}}, {1, 2}, datetime.datetime(2024, 1, 2, 3, 4, 5),
              decimal.Decimal("1.50"), "x" * 100000]
    print(json.dumps({
        "numbers": [counter.query(), counter.query(), manager.Counter().query()],
        "other": other.query(),
        "str": str(counter),
        "repr": repr(counter),
        "values": [echo.echo(value) == value for value in values],
        "keywords": echo.echo(value=7),
        "errors": [attempt(trouble.divide), attempt(trouble.look_up),
                   attempt(trouble.raise_own), attempt(trouble.leave),
                   attempt(trouble.return_lock), attempt(trouble.raise_held)],
        "still": attempt(echo.echo, "fine"),
        "basket": [basket.add("x"), basket.items()],
        "room": sorted(manager.Room().words()),
        "iterated": [sorted(manager.Room()), sorted(typed.Room())],
        "group": attempt(trouble.raise_group),
        "returned": echo.echo(other).query() - other.query(),
        "nested": attempt(echo.echo, [other]),
        "hidden": [attempt(lambda: manager.Room().reveal()),
                   attempt(lambda: manager.Room()._callmethod("reveal")),
                   attempt(lambda: basket._getvalue())],
        "missing": attempt(lambda: manager.Missing()),
        "arguments": attempt(lambda: manager.Counter("a", "b")),
        "shutdown": attempt(manager._debug_info),
        "ready_made": manager.SomeObj().query(),
    }))
"""


def interpreter(version: str) -> str | None:
    """Return the path of a Python of that version, if there is one."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    candidates = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    on_path = shutil.which(f"python{version}")
    for path in (*map(str, candidates), *([on_path] if on_path else [])):
        if _runs(path, version):
            return path
    return None


@functools.cache
def _runs(path: str, version: str) -> bool:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    result = subprocess.run(
        [path, "-c", code], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() == version


@pytest.fixture(scope="module", params=["unix", "tcp"])
def manager(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ManagerProcess]:
    """Start a manager on a Unix socket, then one on TCP."""
    folder = tmp_path_factory.mktemp("stock-clients")
    options = ("--address", "tcp://127.0.0.1:0") if request.param == "tcp" else ()
    with our_manager(folder / "ours", *options) as manager:
        yield manager


def client_process(
    version: str, manager: ManagerProcess, task: str, count: int = 0
) -> subprocess.Popen[str]:
    """Start a client of that version, which prints what it found as JSON."""
    path = interpreter(version)
    if path is None:
        pytest.skip(f"this machine has no Python {version}")
    todo = json.dumps([manager.stock_address, manager.key.decode(), task, count])
    return subprocess.Popen(
        [path, "-c", CLIENT, todo],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )


def result_of(process: subprocess.Popen[str]) -> Any:
    """Return what a client printed."""
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return json.loads(output)


@pytest.mark.parametrize("version", VERSIONS)
def test_stock_client(manager: ManagerProcess, version: str) -> None:
    """An unmodified BaseManager client registers by name, connects, calls, and sees
    builtin errors as themselves and all others as RemoteError with their text."""
    with manager.client() as client:
        before = client.get("Counter").peek()
        other = client.get("Counter", "another").peek()
        some_obj = client.get("SomeObj").query()
    found = result_of(client_process(version, manager, "everything"))
    assert found["numbers"] == [before + 1, before + 2, before + 3]
    assert found["other"] == other + 1
    assert found["ready_made"] == some_obj + 1
    assert found["str"] == f"Counter at {before + 3}"
    assert "Counter" in found["repr"]
    assert found["values"] == [True] * 14
    assert found["keywords"] == 7
    divide, look_up, own, leave, lock, held = found["errors"]
    assert divide == "ZeroDivisionError|division by zero"
    assert look_up == "KeyError|('room-7', 3)"
    for text, needles in (
        (own, ("OwnError", "ann is over 3", "in raise_own")),
        (leave, ("SystemExit", "in leave")),
        (lock, ("ran, but its result cannot travel",)),
        (held, ("HeldError", "the cause", "in raise_held")),
    ):
        assert text.startswith("RemoteError|")
        assert all(needle in text for needle in needles), text
    assert found["still"] == "'fine'"
    assert found["basket"][1][-1] == "x"
    assert found["room"] == ["a", "b"]
    assert found["iterated"] == [["a", "b"], ["a", "b"]]
    if sys.version_info >= (3, 11):
        # The bare answer of a 3.11 client is that of a 3.10 one, which has no groups.
        sort = "RemoteError" if version in ("3.10", "3.11") else "ExceptionGroup"
        assert found["group"].startswith(f"{sort}|"), found["group"]
        assert "both" in found["group"]
    assert found["returned"] == -1
    assert "can be given one as a result only" in found["nested"]
    assert all("reveal" in text or "Error|" in text for text in found["hidden"])
    assert "never sent" not in str(found)
    assert "No class is shared as 'Missing'" in found["missing"]
    assert "create takes a class and at most a key" in found["arguments"]
    assert "for the operator" in found["shutdown"]


def test_stock_and_own_clients_count_together(manager: ManagerProcess) -> None:
    """Stock clients of all versions and ours count at once, each number once."""
    with manager.client() as client:
        counter = client.get("Counter")
        before = counter.peek()
        processes = [
            client_process(version, manager, "count", 300)
            for version in VERSIONS
            if interpreter(version) is not None
        ]
        numbers = []
        while any(process.poll() is None for process in processes):
            numbers += [counter.query() for _ in range(10)]
        for process in processes:
            found = result_of(process)
            assert found == sorted(found)
            numbers += found
        wanted = range(before + 1, before + 1 + len(numbers))
        assert sorted(numbers) == list(wanted)
        assert len(numbers) >= 300 * len(processes)
