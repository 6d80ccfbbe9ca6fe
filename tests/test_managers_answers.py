"""Each caller gets its own answer, or one clear error: forks, signals, restarts.

Each scenario also runs against the standard library's manager, which must show the
pain: a scenario that nobody fails proves nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import state_server

from .processes import (
    ROOT,
    Side,
    Sides,
    both_managers,
    freeze,
    is_alive,
    our_manager,
    run_bounded,
    side_of,
    stock_manager,
    wait_until,
)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    """Start one manager of each kind for this module."""
    with both_managers(tmp_path_factory.mktemp("answers")) as managers:
        yield managers


# Forks ---------------------------------------------------------------------------


def call_after_a_forked_child_died(side: Side) -> Any:
    """Kill a forked child in the middle of its call, then call."""
    handle = side.get("Echo")
    handle.echo("warm")
    mark = side.mark("child-called")
    child = os.fork()
    if child == 0:
        handle.echo_late("child", 0.5, mark)
        os._exit(0)
    wait_until(lambda: os.path.exists(mark))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return handle.echo("parent")


def test_fork_a_dead_childs_answer_reaches_nobody(sides: Sides) -> None:
    """A child forked with a live handle dies mid-call; the parent gets its own answer.

    Otherwise the two share one socket and the parent reads what was meant for the
    child: with preloading web servers, another user's data.
    """
    ours = run_bounded(sides.ours, call_after_a_forked_child_died)
    assert ours.value == "parent", ours
    stock = run_bounded(sides.stock, call_after_a_forked_child_died, timeout_s=4)
    assert stock.value != "parent", stock


def call_at_once_in_forked_children(side: Side) -> list[str]:
    """Let four forked children call, each alone and then all; return what they found.

    One after the other, none may be taken for the one before; at once, they may be
    lucky, and each find a way of its own.
    """
    handle = side.get("Echo")
    handle.echo("warm")
    gate, bar = os.pipe()
    readers = []
    for child in range(4):
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(reader)
            os.close(bar)
            wrong = wrong_answer(handle, f"{child} alone")
            os.write(writer, b".")
            os.read(gate, 1)
            for turn in range(200):
                wrong = wrong or wrong_answer(handle, f"{child}-{turn}")
            os.write(writer, (wrong or "right").encode()[:4000])
            os._exit(0)
        os.close(writer)
        os.read(reader, 1)
        readers.append(reader)
    os.close(bar)
    handle.echo("parent")
    found = []
    for reader in readers:
        with os.fdopen(reader) as pipe:
            found.append(pipe.read())
    return found


def wrong_answer(handle: Any, sent: str) -> str:
    """Call; return what is wrong with the answer, nothing if it is the right one."""
    try:
        got = handle.echo(sent)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "" if got == sent else f"{sent} got {got!r}"


def test_fork_children_and_parent_call_at_once(sides: Sides) -> None:
    """Four raw forks and their parent call through one inherited handle, all right."""
    ours = run_bounded(sides.ours, call_at_once_in_forked_children)
    assert ours.value == ["right"] * 4, ours
    stock = run_bounded(sides.stock, call_at_once_in_forked_children, timeout_s=4)
    assert not stock.in_time or stock.value != ["right"] * 4, stock


def test_fork_while_other_threads_are_calling(sides: Sides) -> None:
    """A fork in the midst of calls of other threads leaves the child a working handle.

    A lock that another thread held at that moment would be held for ever in the child.
    """
    assert run_bounded(sides.ours, fork_among_threads).value == ["right"] * 20


def fork_among_threads(side: Side) -> list[str]:
    """Fork while threads call; return what the children found."""
    handle = side.get("Echo")
    done = threading.Event()

    def keep_calling() -> None:
        while not done.is_set():
            assert handle.echo("thread") == "thread"

    threads = [threading.Thread(target=keep_calling) for _ in range(3)]
    for thread in threads:
        thread.start()
    found = []
    for turn in range(20):
        reader, writer = os.pipe()
        if os.fork() == 0:
            try:
                right = handle.echo(turn) == turn
                os.write(writer, b"right" if right else b"wrong")
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            found.append(pipe.read())
    done.set()
    for thread in threads:
        thread.join()
    return found


# Signals -------------------------------------------------------------------------


class Interrupted(Exception):
    """Raised by a signal handler, as web servers do to end a request."""


def call_after_a_signal_cut_one_short(side: Side) -> Any:
    """Let a signal handler raise in mid-call, then call."""
    handle = side.get("Echo")
    handle.echo("warm")

    def interrupt(*_: object) -> None:
        raise Interrupted

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    with contextlib.suppress(Interrupted):
        handle.echo_late("one user's data", 0.6)
    return [handle.echo("mine"), handle.echo("mine, too")]


def test_signal_cuts_a_call_short(sides: Sides) -> None:
    """After a signal cut a call short, the next callers get their own answers.

    Otherwise the late answer waits in the socket for whoever calls next.
    """
    ours = run_bounded(sides.ours, call_after_a_signal_cut_one_short)
    assert ours.value == ["mine", "mine, too"], ours
    stock = run_bounded(sides.stock, call_after_a_signal_cut_one_short, timeout_s=10)
    assert stock.value != ["mine", "mine, too"], stock


def test_timeout_cuts_a_call_short(sides: Sides) -> None:
    """A call that runs into its deadline says so, and its answer is never delivered."""
    with state_server.connect(sides.ours.address, sides.ours.key) as client:
        echo = client.get("Echo", "timeout")
        with pytest.raises(state_server.Unanswered) as caught:
            echo.with_options(timeout=0.2).echo_late("late", 0.5)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.maybe_executed
        assert [echo.echo(n) for n in range(20)] == list(range(20))


# Restarts ------------------------------------------------------------------------


def connect_again_after_a_restart(side: Side) -> Any:
    """Call, wait for the restart, call again through old and fresh handles."""
    handle = side.get("Echo")
    first = handle.echo("before")
    Path(side.folder / "called").touch()
    wait_until(lambda: (side.folder / "restarted").exists())
    found = [first]
    for get in (lambda: handle, lambda: side.get("Echo"), lambda: side.get("Echo")):
        try:
            found.append(get().echo("after"))
        except Exception as error:
            found.append(type(error).__name__)
    return found


def _while_restarting(side: Side, restart: Any) -> Any:
    outcome = []
    thread = threading.Thread(
        target=lambda: outcome.append(run_bounded(side, connect_again_after_a_restart))
    )
    thread.start()
    wait_until((side.folder / "called").exists)
    restart()
    (side.folder / "restarted").touch()
    thread.join(40)
    return outcome[0]


def test_restart_of_the_manager(tmp_path: Path) -> None:
    """After kill -9 and a new start, old handles and new clients just go on.

    Otherwise the dead socket stays in a cache, and even a fresh client of the same
    thread gets it.
    """
    with our_manager(tmp_path / "ours") as manager:

        def restart() -> None:
            manager.kill()
            manager.start()

        ours = _while_restarting(side_of(manager), restart)
        assert ours.value == ["before", "after", "after", "after"], ours

    with contextlib.ExitStack() as stack:
        first = stack.enter_context(stock_manager(tmp_path / "stock"))

        def restart_stock() -> None:
            os.kill(first.pid, signal.SIGKILL)
            wait_until(lambda: not is_alive(first.pid))
            stack.enter_context(stock_manager(tmp_path / "stock"))

        stock = _while_restarting(first, restart_stock)
        assert stock.value is not None, stock
        assert stock.value[0] == "before"
        assert "after" not in stock.value[1:3], stock


def test_restart_over_tcp(tmp_path: Path) -> None:
    """After kill -9 and a new start on the same port, an idle client just goes on.

    A send on a connection whose other end is dead succeeds once: the client has to
    look before, or could not know whether its call has run.
    """
    with (
        our_manager(tmp_path / "ours", "--address", "tcp://127.0.0.1:0") as manager,
        state_server.connect(data_dir=manager.data_dir) as client,
    ):
        echo = client.get("Echo")
        for turn in range(3):
            assert echo.echo(turn) == turn
            manager.kill()
            manager.options = (*manager.options[:2], "--address", manager.address)
            manager.start()
            assert echo.echo(turn) == turn


def test_call_waits_for_the_manager_to_come_back(tmp_path: Path) -> None:
    """A call made while there is no manager is answered by the next one in time."""
    with our_manager(tmp_path / "ours") as manager, manager.client() as client:
        echo = client.get("Echo")
        assert echo.echo(1) == 1
        manager.kill()
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(echo.echo(2)))
        thread.start()
        manager.start()
        thread.join(30)
        assert answers == [2]


def test_call_in_flight_when_the_manager_dies(tmp_path: Path) -> None:
    """A call that was running when the manager died ends in Unanswered, soon.

    Never in a guess, never in a second run; and other calls go on.
    """
    with our_manager(tmp_path / "ours") as manager, manager.client() as client:
        mark = str(tmp_path / "runs")
        counter = client.get("Echo")
        errors: list[BaseException] = []

        def call() -> None:
            try:
                counter.echo_late("x", 30, mark)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        wait_until(lambda: os.path.exists(mark))
        os.unlink(mark)
        manager.kill()
        manager.start()
        thread.join(20)
        assert isinstance(errors[0], state_server.Unanswered), errors
        assert errors[0].maybe_executed
        assert not os.path.exists(mark)
        assert counter.echo("y") == "y"


# Silence -------------------------------------------------------------------------


@contextlib.contextmanager
def mute_server(folder: Path) -> Iterator[Side]:
    """Accept connections and never say a word."""
    with socket.socket(socket.AF_UNIX) as listener:
        path = str(folder / "mute.sock")
        listener.bind(path)
        listener.listen(10)
        yield Side(True, path, b"key", 0, folder)


def connect_and_call(side: Side) -> str:
    """Return how a first call ends."""
    try:
        if side.ours:
            side.connect().get("Echo", timeout=1.0).echo(1)
        else:
            side.get("Echo").echo(1)
    except Exception as error:
        return type(error).__name__
    return "answered"


def test_mute_server_at_connect(tmp_path: Path) -> None:
    """A server that accepts and stays silent costs a caller its timeout, not for ever.

    The handshake has no deadline in the standard library: workers freeze.
    """
    with mute_server(tmp_path) as mute:
        started = time.monotonic()
        ours = run_bounded(mute, connect_and_call, timeout_s=20)
        assert ours.value == "Unreachable", ours
        assert time.monotonic() - started < 15
        mute.ours = False
        assert not run_bounded(mute, connect_and_call, timeout_s=3).in_time


def leave_while_the_manager_is_frozen(side: Side) -> str:
    """End the process while the manager stands still."""
    handle = side.get("Echo")
    handle.echo(1)
    freeze(side.pid)
    return "left"


def call_a_frozen_manager(side: Side) -> str:
    """Return how a call ends while the manager stands still."""
    handle = side.get("Echo")
    handle.echo(1)
    if side.ours:
        handle = handle.with_options(timeout=1.0)
    freeze(side.pid)
    try:
        handle.echo(2)
    except Exception as error:
        return type(error).__name__
    return "answered"


def test_frozen_manager(tmp_path: Path) -> None:
    """A call to a frozen manager ends at its deadline, and the process can leave.

    Otherwise even leaving blocks: a reference is given back at exit, over the network.
    """
    for scenario, expected in (
        (call_a_frozen_manager, "Unanswered"),
        (leave_while_the_manager_is_frozen, "left"),
    ):
        with our_manager(tmp_path / "ours") as manager:
            ours = run_bounded(side_of(manager), scenario, timeout_s=15)
            assert ours.in_time, ours
            assert ours.value == expected, ours
        with stock_manager(tmp_path / "stock") as stock:
            assert not run_bounded(stock, scenario, timeout_s=3).in_time


def test_frozen_manager_thaws(tmp_path: Path) -> None:
    """Calls made while the manager stood still for 3 s are answered, each once."""
    with our_manager(tmp_path / "ours") as manager, manager.client() as client:
        counter = client.get("Counter")
        numbers = [counter.query()]
        freeze(manager.pid)
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda: found.append(counter.query()))
            for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        threads[0].join(3.0)
        assert not found
        os.kill(manager.pid, signal.SIGCONT)
        for thread in threads:
            thread.join(20)
        assert sorted(numbers + found) == list(range(1, 22))


# The server is gone --------------------------------------------------------------


def error_when_the_server_is_gone(side: Side) -> str:
    """Return the whole text of a call's error."""
    handle = side.get("Echo")
    handle.echo(1)
    os.kill(side.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(side.pid))
    if side.ours:
        handle = handle.with_options(timeout=0.5)
    text = []

    def call() -> None:
        try:
            handle.echo(2)
        except Exception:
            text.append(traceback.format_exc())

    # A thread that has not called yet: how a web server's next request looks.
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return text[0]


def test_error_when_the_server_is_gone(tmp_path: Path) -> None:
    """The error says which address does not answer and that a retry is safe.

    Not that a thread-local has no attribute "connection".
    """
    with our_manager(tmp_path / "ours") as manager:
        side = side_of(manager)
        ours = run_bounded(side, error_when_the_server_is_gone)
        assert side.address in ours.value, ours
        assert "Unreachable" in ours.value
        assert "AttributeError" not in ours.value
        with (
            manager.client(timeout=0.3) as client,
            pytest.raises(state_server.Unreachable) as caught,
        ):
            client.get("Echo").echo(1)
        assert caught.value.retryable
        assert not caught.value.maybe_executed
    with stock_manager(tmp_path / "stock") as stock:
        outcome = run_bounded(stock, error_when_the_server_is_gone)
        assert "has no attribute 'connection'" in outcome.value, outcome


# Handles -------------------------------------------------------------------------


def reach_through_stale_handles(side: Side) -> int:
    """Return how many of 30 handles, whose objects' makers let go, reach another's.

    On the other side, where that depends on the allocator, until one has done so.
    """
    others = 0
    os.environ["STATE_SERVER_AUTHKEY"] = side.key.decode()
    client = side.connect()
    for turn in range(30 if side.ours else 600):
        if others and not side.ours:
            break
        if side.ours:
            mine = client.get("Basket", f"mine-{turn}")
            stale = pickle.loads(pickle.dumps(mine))
            del mine
            fresh = [client.get("Basket", f"{turn}-{n}") for n in range(5)]
        else:
            mine = client.NewBasket()
            token = mine._token
            del mine
            fresh = [client.NewBasket() for _ in range(5)]
            stale = type(fresh[0])(token, "pickle", authkey=side.key, incref=False)
        for basket in fresh:
            basket.add("somebody else's")
        try:
            others += "somebody else's" in stale.items()
        except Exception:
            continue
    return others


def test_stale_handle_reaches_nobody_elses_object(sides: Sides) -> None:
    """A handle names its object: it never reaches what took the object's place.

    A memory address is used again, and an old handle then reads another user's data.
    """
    ours = run_bounded(sides.ours, reach_through_stale_handles)
    assert ours.value == 0, ours
    stock = run_bounded(sides.stock, reach_through_stale_handles)
    assert stock.value > 0, stock


def send_a_handle_and_leave(side: Side, path: str) -> None:
    """Write a handle to a file and end."""
    import multiprocessing

    multiprocessing.current_process().authkey = side.key
    handle = side.get("Basket" if side.ours else "NewBasket", "sent")
    handle.add("kept")
    Path(path).write_bytes(pickle.dumps(handle))


def receive_a_handle(side: Side, path: str) -> Any:
    """Read a handle from a file and use it."""
    import multiprocessing

    multiprocessing.current_process().authkey = side.key
    os.environ["STATE_SERVER_AUTHKEY"] = side.key.decode()
    return pickle.loads(Path(path).read_bytes()).items()


def test_handle_in_transit(sides: Sides, tmp_path: Path) -> None:
    """A handle that was pickled by a process which has ended since still works.

    A reference count would have reached zero on the way.
    """
    path = str(tmp_path / "handle")
    for side, works in ((sides.ours, True), (sides.stock, False)):
        sent = run_bounded(side, send_a_handle_and_leave, path)
        assert not sent.error, sent
        received = run_bounded(side, receive_a_handle, path)
        assert (received.value == ["kept"]) is works, received


def add_one(client: state_server.Client, item: str) -> float | None:
    """Use a client that was made in the parent; return the timeout of its handles."""
    basket = client.get("Basket", "pool")
    basket.add(item)
    return basket._caller._settings.timeout_s


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_methods_and_clients_in_pools_of_processes(tmp_path: Path, method: str) -> None:
    """``pool.map(handle.method, …)`` works, and so does a client as an argument.

    However the processes are started, and with a key that stands in no file.
    """
    context = multiprocessing.get_context(method)
    with our_manager(tmp_path / "ours") as manager:
        key = manager.key
        client = state_server.connect(manager.address, key, timeout=7)
        (manager.data_dir / "authkey").rename(manager.data_dir / "hidden")
        basket = client.get("Basket", "pool")
        with context.Pool(2, basket.add, ("first",)) as pool:
            pool.map(basket.add, ["one", "two"])
            # One worker may have done both before the other one began.
            pool.close()
            pool.join()
        process = context.Process(target=basket.add, args=("three",))
        process.start()
        process.join(20)
        process = context.Process(target=add_one, args=(client, "four"))
        process.start()
        process.join(20)
        found = basket.items()
        assert sorted(found[:4]) == ["first", "first", "one", "two"]
        assert found[4:] == ["three", "four"]
        again = pickle.loads(pickle.dumps(client))
        assert add_one(again, "five") == 7
        assert key not in pickle.dumps(client)
        assert pickle.loads(pickle.dumps(basket))._timeout_s == 7
        again.close()
        client.close()


def use_a_handle_of_a_stranger(side: Side, path: str) -> Any:
    """Load a handle in a process that no manager's parent started."""
    try:
        handle = pickle.loads(Path(path).read_bytes())
        return handle.with_options(timeout=1.0).items()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_handle_outside_the_family(tmp_path: Path) -> None:
    """A handle works in a process that knows nothing but the data folder's key.

    The key does not travel; without one, or with the wrong one, the error says so.
    """
    path = tmp_path / "handle"
    with our_manager(tmp_path / "ours") as manager, manager.client() as client:
        basket = client.get("Basket")
        basket.add("kept")
        path.write_bytes(pickle.dumps(basket))
        assert manager.key not in path.read_bytes()
        side = side_of(manager)
        assert run_bounded(side, use_a_handle_of_a_stranger, str(path)).value == [
            "kept"
        ]
        code = (
            "import pickle, sys\n"
            "try: print(pickle.load(open(sys.argv[1], 'rb'))"
            ".with_options(timeout=0.5).items())\n"
            "except Exception as error: print(type(error).__name__, error)\n"
        )
        for key, expected in (("wrong", "Denied The server rejected the key"),):
            result = subprocess.run(
                [sys.executable, "-c", code, str(path)],
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "STATE_SERVER_AUTHKEY": key,
                },
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            )
            assert expected in result.stdout, result
        (manager.data_dir / "authkey").rename(manager.data_dir / "hidden")
        outcome = run_bounded(side, use_a_handle_of_a_stranger, str(path))
        assert "STATE_SERVER_AUTHKEY" in outcome.value, outcome
    with stock_manager(tmp_path / "stock") as stock:
        outcome = run_bounded(stock, hand_a_proxy_to_a_stranger)
        assert outcome.value != "[]", outcome


def hand_a_proxy_to_a_stranger(side: Side) -> str:
    """Pickle a proxy as a spawned child would get it, and load it in a stranger."""
    from multiprocessing import context

    handle = side.get("NewBasket")
    context.set_spawning_popen(object())
    side.key, key = b"", side.key
    try:
        # The key travels in the data that starts a child, and nowhere else.
        data = pickle.dumps(handle).replace(key, bytes(len(key)))
    finally:
        context.set_spawning_popen(None)
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).items())"
    result = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, check=False
    )
    return result.stdout.decode().strip() or result.stderr.decode()[-300:]


def test_nested_handles(sides: Sides) -> None:
    """Handles inside values arrive as working handles, also from another client."""
    ours = sides.ours
    with ours.connect() as one, ours.connect() as two:
        inner = one.get("Basket", "inner")
        inner.add("apple")
        one.get("Basket", "outer").add({"nested": [inner]})
        found = two.get("Basket", "outer").items()[0]["nested"][0]
        assert found == two.get("Basket", "inner")
        assert found.items() == ["apple"]
        assert found.add("pear") == 2
        assert inner.items() == ["apple", "pear"]


def use_handles_in_a_pool(side: Side) -> Any:
    """Give handles to spawned workers."""
    import multiprocessing

    os.environ["STATE_SERVER_AUTHKEY"] = side.key.decode()
    handle = side.get("Room")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        return pool.map(list_of, [handle] * 4)


def list_of(handle: Any) -> Any:
    """Iterate over a handle, in a worker."""
    return sorted(handle)


def test_iteration_in_children(sides: Sides) -> None:
    """A handle given to spawned workers can be iterated over there."""
    ours = run_bounded(sides.ours, use_handles_in_a_pool)
    assert ours.value == [["a", "b"]] * 4, ours


# gevent --------------------------------------------------------------------------


def tick_under_gevent(side: Side) -> Any:
    """Return how often a greenlet ticked while another one's call took a second."""
    from gevent import monkey

    monkey.patch_all()
    import gevent

    handle = side.get("Echo")
    handle.echo(1)
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while True:
            gevent.sleep(0.01)
            ticks += 1

    ticker = gevent.spawn(tick)
    calls = [gevent.spawn(side.get("Echo", str(n)).echo_late, n, 1.0) for n in range(5)]
    started = time.monotonic()
    gevent.joinall(calls)
    took = time.monotonic() - started
    ticker.kill()
    return ticks, took, [call.value for call in calls]


def test_gevent(sides: Sides) -> None:
    """Under gevent's monkey-patching a waiting call lets the other greenlets run.

    Raw reads of a descriptor stop the hub, and every request of the worker with it.
    """
    pytest.importorskip("gevent")
    ours = run_bounded(sides.ours, tick_under_gevent)
    assert not ours.error, ours
    ticks, took, values = ours.value
    assert values == list(range(5))
    assert took < 4
    assert ticks > 20
    stock = run_bounded(sides.stock, tick_under_gevent)
    assert stock.error or not stock.in_time or stock.value[0] < 20, stock


def kill_greenlets_mid_call(side: Side) -> Any:
    """Kill greenlets while they wait for their answers."""
    from gevent import monkey

    monkey.patch_all()
    import gevent

    handle = side.get("Echo")
    for turn in range(10):
        late = gevent.spawn(handle.echo_late, "another request's", 0.05)
        gevent.sleep(0.02)
        late.kill()
        if handle.echo(turn) != turn:
            return f"wrong in turn {turn}"
    return "right"


def test_gevent_kill(sides: Sides) -> None:
    """A greenlet killed in mid-call leaves no answer behind for the next one."""
    pytest.importorskip("gevent")
    ours = run_bounded(sides.ours, kill_greenlets_mid_call)
    assert ours.value == "right", ours


def test_managers_are_left_as_they_were(sides: Sides) -> None:
    """After all of this the manager holds no connection of those who are gone."""
    with sides.ours.connect() as client:
        wait_until(lambda: client.status()["connections"] == 1)
        assert client.status()["pending"] == 0
