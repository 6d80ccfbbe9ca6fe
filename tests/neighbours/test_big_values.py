"""Arrays and DataFrames through real managers: kept on disk, whole whoever looks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from state_server import codec
from state_server.errors import NotAllowed
from state_server.sharing import describe_class

from ..conftest import StartManager
from ..durable_classes import DurableDesk
from ..fakes import code_of
from ..processes import ManagerProcess, our_manager

np = pytest.importorskip("numpy", reason="numpy is not installed")
pd = pytest.importorskip("pandas", reason="pandas is not installed")
import pandas.testing as tm

from .array_classes import Table

OBJECTS = ("--objects", "tests.neighbours.array_classes")


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerProcess]:
    """Start one manager for the tests that leave it running."""
    with our_manager(tmp_path_factory.mktemp("big") / "values", *OBJECTS) as manager:
        yield manager


def test_a_dataframe_in_a_durable_object_survives_kill_and_restart(
    start_manager: StartManager,
) -> None:
    """Rows and counts that were acknowledged are there after kill -9, types and all."""
    manager = start_manager(*OBJECTS)
    with manager.client() as client:
        table = client.get("Table")
        assert [table.add("tea", 2.5), table.add("ü", 4.0)] == [2, 3]
        before, counts = table.rows(), table.counts()
        manager.kill()
        manager.start()
        tm.assert_frame_equal(table.rows(), before)
        assert table.counts().tolist() == counts.tolist() == [1, 0, 1]
        assert table.add("milk", 1.0) == 4
        total = table.total()
        assert (type(total), total) == (np.float64, 7.5)


def test_a_dataframe_that_a_client_sent_is_kept_like_one_of_ones_own(
    start_manager: StartManager,
) -> None:
    """What came over the wire can be pickled, changed and loaded again."""
    frame = pd.DataFrame(
        {"article": ["a", "b"] * 2_000, "price": np.arange(4_000.0)},
    )
    frame["when"] = pd.date_range("2020", periods=4_000, tz="Europe/Berlin")
    manager = start_manager(*OBJECTS)
    with manager.client() as client:
        table = client.get("Table")
        assert table.replace(frame) == (4_000, 3)
        manager.kill()
        manager.start()
        tm.assert_frame_equal(table.rows(), frame)
        with pytest.raises(ValueError, match="no"):
            table.add_and_fail()
        tm.assert_frame_equal(table.rows(), frame)


def test_looking_at_a_dataframe_writes_nothing() -> None:
    """A call that leaves arrays and DataFrames as they were is no change."""
    record = describe_class(Table)
    with DurableDesk(record) as desk:
        desk.ask("Table.add", "tea", 2.5)
        written = len(desk.store.batches)
        for method in ("rows", "counts", "total") * 3:
            desk.ask(f"Table.{method}")
        assert len(desk.store.batches) == written
        assert code_of(desk.ask("Table.add_and_fail")) == "Raised"
        assert len(desk.store.batches) == written
        desk.ask("Table.add", "milk", 1.0)
        assert len(desk.store.batches) == written + 1
        store = desk.store
    with DurableDesk(record, store=store) as desk:
        assert desk.ask("Table.total") == 3.5
        assert len(desk.store.batches) == written + 1


def test_a_result_is_never_half_of_the_next_state(manager: ManagerProcess) -> None:
    """While one caller changes a large array, others see it before or after, whole."""
    with manager.client() as client:
        canvas = client.get("Canvas")
        canvas.fill(0.0)

        def look(_: int) -> bool:
            pixels = canvas.pixels_now()
            return bool((pixels == pixels[0]).all())

        with ThreadPoolExecutor(5) as pool:
            changes = pool.map(canvas.fill, map(float, range(40)))
            assert all(pool.map(look, range(40)))
            assert list(changes) == [None] * 40


def test_a_method_may_write_into_an_array_that_it_was_given(
    manager: ManagerProcess,
) -> None:
    """An argument is the method's own, whether it is small or large."""
    with manager.client() as client:
        canvas = client.get("Canvas")
        for size in (3, 100_000):
            array = np.arange(float(size))
            again = canvas.doubled(array)
            assert (again == 2 * array).all()
            # And one that a call returned may be sent on.
            assert (canvas.doubled(again) == 4 * array).all()
            assert array[-1] == size - 1


def test_what_may_not_travel_is_refused_before_it_is_sent(
    manager: ManagerProcess,
) -> None:
    """The error comes at the caller, names the type, and the link is still good."""
    with manager.client() as client:
        canvas = client.get("Canvas")
        with pytest.raises(NotAllowed, match=r"MaskedArray .*value.filled\(\)"):
            canvas.echo(np.ma.array([1]))
        assert canvas.echo(np.arange(3)).tolist() == [0, 1, 2]


def test_bytes_that_pass_through_need_no_numpy_in_the_manager(
    start_manager: StartManager,
) -> None:
    """A DataFrame that a client has encoded is bytes to the manager, kept as such."""
    manager = start_manager("--objects", "tests.neighbours.plain_classes")
    frame = pd.DataFrame({"a": np.arange(1_000.0), "b": "x"})
    with manager.client() as client:
        shelf = client.get("Shelf")
        shelf.put(codec.encode(frame))
        tm.assert_frame_equal(codec.decode(shelf.get()), frame)
        assert shelf.loaded() == []


#: Runs where nothing of ours may be imported.
STOCK_CLIENT = """
import json, sys
import numpy as np
from multiprocessing.managers import BaseManager

class Manager(BaseManager):
    pass

Manager.register("Canvas")
address, key = json.loads(sys.argv[1])
manager = Manager(address=address, authkey=key.encode())
manager.connect()
canvas = manager.Canvas()
values = [
    np.arange(3.0), np.arange(6).reshape(2, 3).T, np.array(["a", "b"]), np.float64(1.5),
    np.array(["2020"], "M8[ns]"), np.zeros(2, [("a", "i2"), ("b", "f4", (2,))]),
    np.array([1, None, "x"], object), np.arange(200_000),
]
again = [canvas.echo(value) for value in values]
for left, right in zip(values, again):
    assert type(left) is type(right) and left.dtype == right.dtype, (left, right)
    assert repr(left.tolist()) == repr(right.tolist()), (left, right)
assert canvas.doubled(np.arange(3)).tolist() == [0, 2, 4]
assert canvas.echo({"k": [values[0], (values[0],)]})["k"][1][0].tolist() == [0, 1, 2]
assert "state_server" not in sys.modules
try:
    import pandas
    canvas.echo(pandas.DataFrame({"a": [1]}))
except Exception as error:
    print(error)
"""


def test_stock_clients_send_and_receive_arrays(manager: ManagerProcess) -> None:
    """A client with the standard library and numpy; DataFrames it is told to drop."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            STOCK_CLIENT,
            json.dumps([manager.stock_address, manager.key.decode()]),
        ],
        cwd=manager.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "use state_server.connect()" in done.stdout
