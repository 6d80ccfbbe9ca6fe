"""The life of a manager, seen from outside: starts, ends, keys, and who may end it.

Scenarios also run against the standard library's manager, which must show the pain.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Client as StockConnection
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

import pytest

import state_server
from state_server import ConfigError, StateManager

from .processes import (
    ROOT,
    ManagerProcess,
    Side,
    is_alive,
    our_manager,
    run_bounded,
    side_of,
    stock_manager,
    wait_until,
)
from .shared_classes import Counter, Echo


class OurManager(StateManager):
    """A manager with one registered class."""


class PlainManager(BaseManager):
    """The same of the standard library."""


OurManager.register("Tally", Counter)
PlainManager.register("Tally", Counter)


# The end -------------------------------------------------------------------------


def call_while_it_is_told_to_end(side: Side) -> Any:
    """Return what a call gives during which SIGTERM comes."""
    mark = side.mark("running")
    found = []
    handle = side.get("Echo")

    def call() -> None:
        try:
            found.append(handle.echo_late("whole", 1.0, mark))
        except BaseException as error:
            found.append(type(error).__name__)

    thread = threading.Thread(target=call)
    thread.start()
    wait_until(lambda: os.path.exists(mark))
    os.kill(side.pid, signal.SIGTERM)
    thread.join()
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    """Told to end, a manager finishes what runs and waits, removes its socket, exits 0.

    A default handler drops the calls in their middle and leaves the file behind.
    """
    with our_manager(tmp_path / "ours") as manager, manager.client() as client:
        mark = str(tmp_path / "running")
        found: list[Any] = []
        echo = client.get("Echo")

        def call() -> None:
            found.append(echo.echo_late("whole", 1.0, mark))

        # They take turns: when the signal comes one runs and two wait.
        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        with manager.client() as watcher:
            wait_until(lambda: watcher.status()["pending"] == 3)
        assert manager.process is not None
        manager.process.send_signal(number)
        for thread in threads:
            thread.join()
        assert found == ["whole"] * 3
        assert manager.process.wait(20) == 0
        assert not Path(str(manager.stock_address)).exists()
    if number == signal.SIGTERM:
        with stock_manager(tmp_path / "stock") as stock:
            outcome = run_bounded(stock, call_while_it_is_told_to_end)
            assert outcome.value != ["whole"], outcome
            wait_until(lambda: not is_alive(stock.pid))
            assert Path(stock.address).exists()


def test_new_calls_go_to_the_next_manager(tmp_path: Path) -> None:
    """A call made while a manager drains is answered by the one that follows it."""
    with our_manager(tmp_path / "ours") as manager, manager.client() as client:
        mark = str(tmp_path / "running")
        echo, counter = client.get("Echo"), client.get("Counter")
        assert counter.query() == 1
        late = threading.Thread(target=lambda: echo.echo_late(1, 2.0, mark))
        late.start()
        wait_until(lambda: os.path.exists(mark))
        assert manager.process is not None
        manager.process.terminate()
        found: list[Any] = []
        call = threading.Thread(target=lambda: found.append(echo.echo("next")))
        call.start()
        manager.process.wait(20)
        manager.start()
        call.join(20)
        late.join(20)
        assert found == ["next"]


def take_and_be_killed(side: Side, mark: str) -> None:
    """Ask for an item."""
    side.get("Store").take(mark)


def swallow_an_item(side: Side) -> Any:
    """Keep the object busy; a second client asks for an item and is killed; look."""
    busy, asked, enough = map(side.mark, ("busy", "asked", "enough"))
    store = side.get("Store")
    blocker = threading.Thread(target=store.block, args=(busy, enough))
    blocker.start()
    wait_until(lambda: os.path.exists(busy))
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pickle, sys\n"
            "from tests.test_managers_life import take_and_be_killed\n"
            "side = pickle.load(sys.stdin.buffer)\n"
            "store = side.get('Store')\n"
            "print('asking', flush=True)\n"
            f"store.take({asked!r})\n",
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(pickle.dumps(side))
    child.stdin.close()
    child.stdout.readline()
    if side.ours:
        with side.connect() as watcher:
            wait_until(lambda: watcher.status()["pending"] >= 2)
            child.kill()
            wait_until(lambda: watcher.status()["pending"] == 1)
    else:
        wait_until(lambda: os.path.exists(asked))
        child.kill()
    child.wait()
    Path(enough).touch()
    blocker.join()
    if not side.ours:
        # The dead client's call gets the lock sooner or later, in no order.
        wait_until(lambda: store.left() < 2)
    return store.take()


def test_dead_clients_call_takes_nothing(tmp_path: Path) -> None:
    """A call that waits its turn is dropped when its client dies: no item is lost.

    Otherwise the dead client's call goes on and swallows what nobody will get.
    """
    with our_manager(tmp_path / "ours") as manager:
        ours = run_bounded(side_of(manager), swallow_an_item)
        assert ours.value == "first", ours
    with stock_manager(tmp_path / "stock") as stock:
        outcome = run_bounded(stock, swallow_an_item)
        assert outcome.value == "second", outcome


# The key and what it opens -------------------------------------------------------


class Attack:
    """A value whose unpickling makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def attack_with_the_key(side: Side, path: str) -> None:
    """Send code in place of a request, and as an argument."""
    for request in (
        Attack(path),
        ("Echo/default", "echo", (Attack(path),), {}),
        (None, "create", ("Echo",), {"x": Attack(path)}),
    ):
        with (
            contextlib.suppress(Exception),
            StockConnection(side.address, authkey=side.key) as connection,
        ):
            connection.send((None, "accept_connection", ("name",), {}))
            connection.recv()
            connection.send(request)
            if connection.poll(5):
                connection.recv()


def test_the_key_is_no_shell(tmp_path: Path) -> None:
    """Who has the key may call methods, and cannot run code in the manager."""
    with our_manager(tmp_path / "ours") as manager:
        path = tmp_path / "ours-broken-into"
        run_bounded(side_of(manager), attack_with_the_key, str(path))
        with manager.client() as client:
            assert client.get("Echo").echo(1) == 1
        assert not path.exists()
    with stock_manager(tmp_path / "stock") as stock:
        path = tmp_path / "stock-broken-into"
        run_bounded(stock, attack_with_the_key, str(path))
        wait_until(path.exists)


class RogueServer(threading.Thread):
    """Knows the key and answers the first call with code."""

    def __init__(self, folder: Path, attack: Attack) -> None:
        super().__init__(daemon=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.address = str(folder / "rogue.sock")
        self.listener.bind(self.address)
        self.listener.listen(5)
        self.attack = attack

    def run(self) -> None:
        """Shake hands, say welcome, answer one call with the attack."""
        from state_server import handshake, wire

        peer, _ = self.listener.accept()
        with peer:
            peer.settimeout(10)
            reader = wire.FrameReader(10**6)

            def receive() -> bytes:
                payload = reader.next()
                while payload is None:
                    data = peer.recv(65536)
                    if not data:
                        raise EOFError
                    payload = reader.feed(data)
                return payload

            server = handshake.ServerHandshake(b"key", False)
            peer.sendall(wire.framed(server.first()))
            done = False
            while not done:
                answer, done = server.receive(receive())
                if answer:
                    peer.sendall(wire.framed(answer))
            receive()
            proof = handshake.proof(b"key", b"server", server.nonces)
            welcome = wire.Welcome(bytes(16), 1, proof, False)
            peer.sendall(wire.framed(wire.pack_welcome(welcome)))
            receive()
            body = pickle.dumps(self.attack)
            peer.sendall(wire.framed(wire.pack_reply(1, False, body)))
            with contextlib.suppress(OSError, EOFError):
                receive()


def test_a_server_runs_no_code_in_clients(tmp_path: Path) -> None:
    """A server's reply that names code is refused by the client, not executed."""
    path = tmp_path / "client-broken-into"
    rogue = RogueServer(tmp_path, Attack(str(path)))
    rogue.start()
    with (
        state_server.connect(rogue.address, b"key", timeout=5) as client,
        pytest.raises(state_server.NotAllowed),
    ):
        client.control("ping")
    rogue.listener.close()
    rogue.join(10)
    assert not path.exists()


def test_private_by_default(tmp_path: Path) -> None:
    """Keys, folder and socket belong to their owner only; any-machine addresses are
    refused unless the operator says so."""
    with our_manager(tmp_path / "ours") as manager:
        assert manager.address.startswith("unix://")
        for name in ("authkey", "adminkey", "manager.sock"):
            assert (manager.data_dir / name).stat().st_mode & 0o077 == 0
        assert manager.data_dir.stat().st_mode & 0o077 == 0
    for address in ("tcp://0.0.0.0:0", "tcp://:0", "tcp://[::]:0"):
        refused = start_and_fail(tmp_path / "wild", "--address", address)
        assert "allow-wildcard" in refused
    with our_manager(
        tmp_path / "open", "--address", "tcp://0.0.0.0:0", "--allow-wildcard", "true"
    ) as manager:
        port = manager.address.rpartition(":")[2]
        with state_server.connect(f"tcp://127.0.0.1:{port}", manager.key) as client:
            assert client.ping() > 0


def start_and_fail(folder: Path, *options: str) -> str:
    """Start a manager that cannot; return what it says, in time and without a trace."""
    folder.mkdir(mode=0o700, exist_ok=True)
    result = subprocess.run(
        [sys.executable, str(ROOT / "start_manager.py"), "--data-dir", "var", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode not in (0, 1), result
    assert "Traceback" not in result.stderr, result
    assert result.stdout == ""
    return result.stderr


def connect_with_an_empty_key(side: Side) -> str:
    """Start a server and a client that both have the empty key."""
    if side.ours:
        try:
            state_server.connect("unix:///nowhere", b"")
        except ConfigError:
            return "refused"
        return "accepted"
    PlainManager.register("Tally")
    server = PlainManager(address=str(side.folder / "empty.sock"), authkey=b"")
    threading.Thread(target=server.get_server().serve_forever, daemon=True).start()
    client = PlainManager(address=str(side.folder / "empty.sock"), authkey=b"")
    client.connect()
    return "connected"


def test_empty_key(tmp_path: Path) -> None:
    """An empty key is refused in words, on both sides, and freezes nobody.

    The standard library takes it for no key at all, or waits for ever.
    """
    side = Side(True, "", b"", 0, tmp_path)
    assert run_bounded(side, connect_with_an_empty_key).value == "refused"
    folder = tmp_path / "empty"
    (folder / "var").mkdir(parents=True, mode=0o700)
    (folder / "var" / "authkey").write_bytes(b"\n")
    assert "empty" in start_and_fail(folder)
    side.ours = False
    outcome = run_bounded(side, connect_with_an_empty_key, timeout_s=6)
    assert not outcome.in_time or outcome.value == "connected", outcome


def test_wrong_key(tmp_path: Path) -> None:
    """A wrong key is refused at once, with words about keys, and is not retried."""
    with our_manager(tmp_path / "ours") as manager:
        started = time.monotonic()
        with (
            state_server.connect(manager.address, b"wrong") as client,
            pytest.raises(state_server.Denied, match="key"),
        ):
            client.ping()
        assert time.monotonic() - started < 10


def test_md5_can_be_switched_off(tmp_path: Path) -> None:
    """Our client never needs MD5: it works where stock clients of 3.11 are refused."""
    with our_manager(tmp_path / "ours", "--allow-md5", "false") as manager:
        with manager.client() as client:
            assert client.get("Echo").echo(1) == 1
        if sys.version_info < (3, 12):
            import multiprocessing

            with pytest.raises(multiprocessing.AuthenticationError):
                manager.stock_client("Echo")
        else:
            assert manager.stock_client("Echo").Echo().echo(1) == 1


# Who may end it ------------------------------------------------------------------


def shut_down_over_the_wire(side: Side) -> bool:
    """Ask the server to shut down as a mere client; tell whether it still answers."""
    with (
        contextlib.suppress(Exception),
        StockConnection(side.address, authkey=side.key) as connection,
    ):
        connection.send((None, "shutdown", (), {}))
        connection.poll(5)
    with contextlib.suppress(Exception), side.connect() as client:
        client.stop_manager()
    until = time.monotonic() + 2
    while is_alive(side.pid) and time.monotonic() < until:
        time.sleep(0.05)
    return is_alive(side.pid)


def test_clients_cannot_stop_the_server(tmp_path: Path) -> None:
    """Stopping the server needs the operator's key; the callers' key is not enough.

    The standard library ends for everybody when one client says shutdown.
    """
    with our_manager(tmp_path / "ours") as manager:
        assert run_bounded(side_of(manager), shut_down_over_the_wire).value
        with manager.client() as client, pytest.raises(state_server.Denied):
            client.stop_manager()
        with manager.client(admin=True) as operator:
            operator.stop_manager()
        assert manager.process is not None
        assert manager.process.wait(20) == 0
    with stock_manager(tmp_path / "stock") as stock:
        assert not run_bounded(stock, shut_down_over_the_wire).value


def close_a_connected_client(side: Side) -> str:
    """Close connected managers in both ways."""
    make: Callable[..., Any] = StateManager if side.ours else PlainManager
    manager = make(address=side.address, authkey=side.key)
    manager.connect()
    with manager:
        pass
    manager = make(address=side.address, authkey=side.key)
    manager.connect()
    manager.shutdown()
    return "closed"


def test_connected_clients_can_close(tmp_path: Path) -> None:
    """`with` and shutdown() on a connected client close it, and the server goes on."""
    with our_manager(tmp_path / "ours") as manager:
        outcome = run_bounded(side_of(manager), close_a_connected_client)
        assert outcome.value == "closed", outcome
        with manager.client() as client:
            assert client.ping() > 0
        with pytest.raises(state_server.Refused, match="closed"):
            client.ping()
    with stock_manager(tmp_path / "stock") as stock:
        outcome = run_bounded(stock, close_a_connected_client)
        assert "AttributeError" in outcome.error, outcome


# The start -----------------------------------------------------------------------


def test_stale_socket(tmp_path: Path) -> None:
    """After kill -9 the same command starts again: the dead socket is replaced.

    The standard library finds the address in use for ever.
    """
    with our_manager(tmp_path / "ours") as manager:
        manager.kill()
        assert Path(str(manager.stock_address)).exists()
        manager.start()
        with manager.client() as client:
            assert client.ping() > 0
    path = str(tmp_path / "stale.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(OSError, match="in use"):
        PlainManager(address=path, authkey=b"key").get_server()


def test_living_socket_is_left_alone(tmp_path: Path) -> None:
    """A socket where somebody answers, or a file that is none, is never removed."""
    with our_manager(tmp_path / "ours") as manager:
        said = start_and_fail(tmp_path / "second", "--address", manager.address)
        assert "in use" in said
        precious = tmp_path / "precious"
        precious.write_text("data")
        said = start_and_fail(tmp_path / "third", "--address", f"unix://{precious}")
        assert "not a socket" in said
        assert precious.read_text() == "data"
        with manager.client() as client:
            assert client.ping() > 0


def test_second_manager_on_the_folder(tmp_path: Path) -> None:
    """A second manager on a folder is refused, naming the first one's process."""
    with our_manager(tmp_path / "ours") as manager:
        said = start_and_fail(manager.folder)
        assert str(manager.pid) in said
        with manager.client() as client:
            assert client.ping() > 0


def test_failed_start_gives_the_reason(tmp_path: Path) -> None:
    """A manager that cannot start says why, from start_manager.py and from start()."""
    assert "no_such_module" in start_and_fail(
        tmp_path / "a", "--objects", "no_such_module"
    )
    side = Side(True, "", b"", 0, tmp_path)
    outcome = run_bounded(side, start_in_a_bad_place)
    assert "ConfigError" in outcome.value, outcome
    assert "nonexistent" in outcome.value, outcome
    side.ours = False
    assert "EOFError" in run_bounded(side, start_in_a_bad_place).value


def start_in_a_bad_place(side: Side) -> str:
    """Return how the start of a manager fails."""
    make: Callable[..., Any] = OurManager if side.ours else PlainManager
    manager = make(address="/nonexistent/manager.sock", authkey=b"key")
    try:
        manager.start()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "started"


def test_long_path(tmp_path: Path) -> None:
    """A socket path that the system cannot take is refused with its length."""
    folder = tmp_path / ("long" * 30)
    said = start_and_fail(folder)
    assert "bytes" in said
    assert "at most" in said
    with pytest.raises(ConfigError, match="at most"):
        state_server.connect("unix:///" + "x" * 200, b"key")


def has_ipv6() -> bool:
    """Tell whether this machine has an IPv6 loopback."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
def test_ipv6(tmp_path: Path) -> None:
    """A manager listens on an IPv6 address, and clients reach it there."""
    with our_manager(tmp_path / "ours", "--address", "tcp://[::1]:0") as manager:
        assert manager.address.startswith("tcp://[::1]:")
        with manager.client() as client:
            assert client.get("Echo").echo(1) == 1
        port = int(manager.address.rpartition(":")[2])
        with state_server.connect(("::1", port), manager.key) as client:
            assert client.get("Echo").echo(2) == 2
    with pytest.raises(OSError, match=r"."):
        PlainManager(address=("::1", 0), authkey=b"key").get_server()


# StateManager --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_start_and_shutdown(tmp_path: Path, method: str) -> None:
    """`with StateManager()` starts a server by every method, and leaves nothing.

    No process, no temporary folder, and no wait when it ends.
    """
    side = Side(True, "", b"", 0, tmp_path)
    outcome = run_bounded(side, live_and_end, method)
    assert not outcome.error, outcome
    numbers, pid, folder, took = outcome.value
    assert numbers == [1, 2, 1]
    assert not is_alive(pid)
    assert not Path(folder).exists()
    assert took < 10


def live_and_end(side: Side, method: str) -> Any:
    """Start a manager, use it, and end it."""
    import multiprocessing

    with OurManager(ctx=multiprocessing.get_context(method)) as manager:
        pid, folder = server_of(manager)
        numbers = [
            manager.Tally().query(),
            manager.Tally().query(),
            manager.Tally("other").query(),
        ]
        started = time.monotonic()
    return numbers, pid, folder, time.monotonic() - started


def start_and_leave(side: Side) -> Any:
    """Start a manager and end without a word."""
    manager = OurManager()
    manager.start()
    manager.Tally().query()
    # Kept by this module, so that it is not collected before the end.
    globals()["kept"] = manager
    return server_of(manager)


def server_of(manager: StateManager) -> tuple[int, str]:
    """Return the process that a manager has started, and its temporary folder."""
    started = manager._started
    assert started is not None
    return started.process.pid, str(started.own_folder)


def start_and_be_killed(side: Side) -> None:
    """Start a manager and be killed."""
    make: Callable[..., Any] = OurManager if side.ours else PlainManager
    manager = make()
    manager.start()
    manager.Tally().query()
    if side.ours:
        pid, folder = server_of(manager)
    else:
        pid, folder = manager._process.pid, Path(manager.address).parent
    (side.folder / "started.new").write_text(f"{pid} {folder}")
    (side.folder / "started.new").rename(side.folder / "started")
    os.kill(os.getpid(), signal.SIGKILL)


def test_process_ends_without_shutdown(tmp_path: Path) -> None:
    """A program that just ends takes the manager it started along, without a wait."""
    outcome = run_bounded(Side(True, "", b"", 0, tmp_path), start_and_leave)
    assert outcome.in_time
    assert not outcome.error, outcome
    pid, folder = outcome.value
    assert not is_alive(pid)
    assert not Path(folder).exists()
    assert outcome.noise == ""


def test_killed_launcher(tmp_path: Path) -> None:
    """When its launcher is killed, a manager ends by itself and its folder goes.

    Otherwise servers and temporary folders of the dead pile up.
    """
    for ours in (True, False):
        side = Side(ours, "", b"", 0, tmp_path)
        launcher = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import pickle, sys\n"
                "from tests.test_managers_life import start_and_be_killed\n"
                "start_and_be_killed(pickle.load(sys.stdin.buffer))\n",
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        launcher.communicate(pickle.dumps(side), timeout=60)
        pid_text, folder = (tmp_path / "started").read_text().split()
        (tmp_path / "started").unlink()
        pid = int(pid_text)
        if ours:
            wait_until(lambda pid=pid: not is_alive(pid))
            wait_until(lambda folder=folder: not Path(folder).exists())
        else:
            launcher_is_gone = launcher.returncode == -signal.SIGKILL
            assert launcher_is_gone
            assert is_alive(pid)
            os.kill(pid, signal.SIGKILL)
            assert Path(folder).exists()
            for path in Path(folder).iterdir():
                path.unlink()
            Path(folder).rmdir()


def start_again(side: Side) -> Any:
    """Start a manager, end it, and do both once more."""
    manager = OurManager()
    found = []
    for _ in range(2):
        manager.start()
        found.append((manager.Tally().query(), *server_of(manager)))
        manager.shutdown()
        assert manager.address is None
    return found


def test_a_manager_can_be_started_again(tmp_path: Path) -> None:
    """After a shutdown a manager starts anew, and nothing is left of either time."""
    outcome = run_bounded(Side(True, "", b"", 0, tmp_path), start_again)
    assert not outcome.error, outcome
    for number, pid, folder in outcome.value:
        assert number == 1
        assert not is_alive(pid)
        assert not Path(folder).exists()


def keep_nothing(side: Side) -> Any:
    """Ask one object of two managers in memory, one after the other."""
    state_server.share(Counter, name="Journalled", durable="journal")
    numbers = []
    for _ in range(2):
        with StateManager(data_dir=side.folder / "var", memory=True) as manager:
            numbers += [manager.get("Journalled").query() for _ in range(2)]
    return numbers, sorted(path.name for path in (side.folder / "var").iterdir())


def test_a_manager_in_memory_keeps_nothing_and_hosts_every_class(
    tmp_path: Path,
) -> None:
    """So each test has objects of its own, and an app's journalled classes as well."""
    outcome = run_bounded(Side(True, "", b"", 0, tmp_path), keep_nothing)
    assert not outcome.error, outcome
    numbers, files = outcome.value
    assert numbers == [1, 2, 1, 2]
    assert "state.db" not in files


def keep_only_a_handle(side: Side) -> Any:
    """Let go of a manager while there is a handle; then of the handle as well."""
    manager = OurManager()
    manager.start()
    pid, folder = server_of(manager)
    handle = manager.Tally()
    del manager
    gc.collect()
    numbers = [handle.query(), handle.query()]
    del handle
    gc.collect()
    return numbers, is_alive(pid), Path(folder).exists()


def test_a_handle_keeps_its_manager(tmp_path: Path) -> None:
    """A server that a manager started lives while somebody can call it.

    A function may start a manager and return one of its objects.
    """
    outcome = run_bounded(Side(True, "", b"", 0, tmp_path), keep_only_a_handle)
    assert outcome.value == ([1, 2], False, False), outcome


def fail_to_start(side: Side) -> str:
    """Start a manager whose initializer fails; return the error."""
    import multiprocessing

    # A forked child ends before Python would look for what was left open.
    manager = OurManager(ctx=multiprocessing.get_context("spawn"))
    try:
        manager.start(int, ("no number",))
    except ConfigError as error:
        return str(error)
    return "it started"


def test_failed_initializer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher learns why; the child leaves nothing that Python would warn of."""
    monkeypatch.setenv("PYTHONWARNINGS", "always")
    outcome = run_bounded(Side(True, "", b"", 0, tmp_path), fail_to_start)
    assert "no number" in outcome.value, outcome
    assert outcome.noise == ""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("key", [b"given", b"binary\n\x00\n"])
def test_handles_find_the_key_in_children(
    tmp_path: Path, method: str, key: bytes
) -> None:
    """A handle works in every child that it is given to, wherever its key came from.

    Its key may be known to this process only, and not to the child's environment.
    """
    side = Side(True, "", key, 0, tmp_path)
    outcome = run_bounded(side, count_with_given_handles, method)
    assert outcome.value == list(range(1, 7 if method == "fork" else 5)), outcome


def count_with_given_handles(side: Side, method: str) -> list[int]:
    """Count in children that get handles as an argument, and in a pool's workers."""
    import multiprocessing

    context = multiprocessing.get_context(method)
    numbers: list[int] = []
    with OurManager(authkey=side.key, ctx=context) as manager:
        remote = OurManager(manager.address, side.key)
        remote.connect()
        for handle in (manager.Tally(), remote.Tally()):
            numbers.append(pickle.loads(pickle.dumps(handle)).query())
            queue = context.SimpleQueue()
            child = context.Process(target=query_into, args=(handle, queue))
            child.start()
            numbers.append(queue.get())
            child.join()
            if method == "fork":
                with context.Pool(1) as pool:
                    numbers.append(pool.apply(query, (handle,)))
        remote.close()
    return numbers


def query(handle: Any) -> int:
    """Count once, in a worker that was given a handle."""
    return handle.query()  # type: ignore[no-any-return]


def query_into(handle: Any, queue: Any) -> None:
    """Count once, in a child that was given a handle."""
    queue.put(handle.with_options(timeout=5).query())


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("key", [b"given", b"given\n"])
def test_handles_find_a_given_key_in_the_workers_of_a_pool(
    tmp_path: Path, method: str, key: bytes
) -> None:
    """Workers inherit the key, also one that no file can hold; no task carries it."""
    with our_manager(tmp_path / "other") as other:
        side = Side(True, other.stock_address, key, 0, tmp_path)
        outcome = run_bounded(side, count_in_a_pool, method, other.key)
    assert outcome.value == [1, 1, 2], outcome


def count_in_a_pool(side: Side, method: str, other_key: bytes) -> list[int]:
    """Count in a worker that was started before it was given a handle."""
    import multiprocessing

    context = multiprocessing.get_context(method)
    other = state_server.connect(side.address, other_key).get("Counter", timeout=5)
    assert other_key not in pickle.dumps(other)
    with OurManager(authkey=side.key) as manager, context.Pool(1) as pool:
        ours = manager.Tally().with_options(timeout=5)
        return [
            pool.apply(query, (ours,)),
            pool.apply(query, (other,)),
            pool.apply(query_in_a_child, (other, method)),
        ]


def query_in_a_child(handle: Any, method: str) -> Any:
    """Count once in a worker of a worker."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import current_process, get_context

    # Workers of a pool are not asked to have children, but they may.
    current_process().daemon = False
    with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
        return pool.submit(query, handle).result(20)


def test_call_forms_of_a_registered_name() -> None:
    """Arguments for a constructor are refused with what to do instead of them."""
    manager = OurManager(authkey=b"key")
    forms: list[Callable[[], Any]] = [
        lambda: manager.Tally(5),
        lambda: manager.Tally("key", 5),
        lambda: manager.Tally(start=5),
    ]
    for form in forms:
        with pytest.raises(state_server.Refused, match="register 'Tally' with a func"):
            form()
    with pytest.raises(ConfigError, match="3"):
        OurManager.register("Wrong", 3)  # type: ignore[arg-type]


def test_keys_and_addresses_of_a_manager(tmp_path: Path) -> None:
    """An empty key and an unknown form are refused; a wildcard needs a yes.

    A line end is no part of a key that is given as text.
    """
    with pytest.raises(ConfigError, match="empty"):
        OurManager(authkey=b"")
    for address in (5, ["127.0.0.1", 0], b"/tmp/s", ("127.0.0.1",)):
        with pytest.raises(ConfigError, match="address"):
            OurManager(address=address)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="allow_wildcard"):
        OurManager(("", 0), "key", data_dir=tmp_path / "var").get_server()
    manager = OurManager(
        ("", 0), "key\n", data_dir=tmp_path / "var", allow_wildcard=True
    )
    server = manager.get_server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with state_server.connect(("127.0.0.1", manager.address[1]), "key") as client:  # type: ignore[index, arg-type]
        assert client.get("Tally").query() == 1
    server.stop()
    thread.join()


def test_parent_pipe(tmp_path: Path) -> None:
    """A manager that was given its parent's pipe ends when the pipe closes."""
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    folder = tmp_path / "ours"
    folder.mkdir(mode=0o700)
    process = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "start_manager.py"),
            "--parent-fd",
            str(reader),
        ],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        pass_fds=(reader,),
    )
    os.close(reader)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("ready ")
        os.close(writer)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_connect_and_wait_for_nothing(tmp_path: Path) -> None:
    """StateManager(address, authkey).connect() works like the standard library's."""
    with our_manager(tmp_path / "ours") as running:
        OurManager.register("Counter")
        manager = OurManager(address=running.stock_address, authkey=running.key)
        manager.connect()
        assert [manager.Counter().query() for _ in range(3)] == [1, 2, 3]
        assert manager.get(Counter).peek() == 3
        manager.shutdown()
        with running.client() as client:
            assert client.get("Counter").query() == 4


def serve_in_this_process(side: Side) -> None:
    """Be the server, as documented for stock managers."""
    manager = OurManager(address=side.address, authkey=side.key, data_dir=side.folder)
    manager.get_server().serve_forever()


def test_serve_forever(tmp_path: Path) -> None:
    """get_server().serve_forever() serves both kinds of clients until told to end.

    A running call is finished then, and the socket file is gone.
    """
    folder = tmp_path / "var"
    folder.mkdir(mode=0o700)
    side = Side(True, str(tmp_path / "s.sock"), b"served key", 0, folder)
    code = (
        "import pickle, sys\n"
        "from tests.test_managers_life import serve_in_this_process\n"
        "serve_in_this_process(pickle.load(sys.stdin.buffer))\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE
    )
    assert server.stdin is not None
    try:
        server.stdin.write(pickle.dumps(side))
        server.stdin.close()
        wait_until(Path(side.address).exists)
        with state_server.connect(side.address, side.key) as client:
            assert client.get("Tally").query() == 1
            stock = PlainManager(address=side.address, authkey=side.key)
            stock.connect()
            assert stock.Tally().query() == 2
            found: list[Any] = []
            mark = str(tmp_path / "mark")
            echo = client.get(Echo)
            thread = threading.Thread(
                target=lambda: found.append(echo.echo_late("whole", 0.5, mark))
            )
            thread.start()
            wait_until(lambda: os.path.exists(mark))
            server.terminate()
            thread.join()
        assert found == ["whole"]
        assert server.wait(20) == 0
        assert not Path(side.address).exists()
    finally:
        server.kill()
        server.wait()


def test_a_server_leaves_no_folder() -> None:
    """A server with a temporary folder removes it at its end, and not before.

    Whether it served, or was collected without; a connected client leaves it alone.
    """
    manager = OurManager()
    server = manager.get_server()
    folder = Path(str(server.address)).parent
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    manager.connect()
    assert manager.Tally().query() == 1
    manager.shutdown()
    assert folder.exists()
    with state_server.connect(data_dir=folder) as client:
        assert client.get("Tally").query() == 2
    server.stop()
    thread.join()
    assert not folder.exists()

    server = manager.get_server()
    folder = Path(str(server.address)).parent
    assert folder.exists()
    del server
    gc.collect()
    assert not folder.exists()


def test_objects_that_wait_for_others_are_marked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A queue that is shared as the standard library's manual has it comes with a word.

    Its ``get`` would keep the ``put`` waiting that it waits for.
    """

    class Mine(StateManager):
        pass

    pending: queue.Queue[int] = queue.Queue()
    Mine.register("get_queue", callable=lambda: pending)
    Mine.register("Event", threading.Event)
    Mine.register("Tally", Counter)
    server = Mine(data_dir=tmp_path / "var").get_server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with state_server.connect(data_dir=tmp_path / "var", timeout=10) as client:
            client.get("get_queue").put(5)
            assert client.get("get_queue").get_nowait() == 5
    finally:
        server.stop()
        thread.join()
    marked = [line for line in caplog.messages if "keeps that one waiting" in line]
    assert [line.split()[:3] for line in marked] == [
        ["Event", "is", "a"],
        ["get_queue", "is", "a"],
    ]


def test_errors_of_a_queue_arrive_as_themselves(tmp_path: Path) -> None:
    """``except queue.Empty`` holds for a queue of the manager, in stock clients too."""

    class Mine(StateManager):
        pass

    class Stock(BaseManager):
        pass

    pending: queue.Queue[int] = queue.Queue(maxsize=1)
    Mine.register("get_queue", callable=lambda: pending)
    Stock.register("get_queue")
    server = Mine(data_dir=tmp_path / "var").get_server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        stock = Stock(server.address, (tmp_path / "var" / "authkey").read_bytes())
        stock.connect()
        with state_server.connect(data_dir=tmp_path / "var", timeout=10) as client:
            for handle in (client.get("get_queue"), stock.get_queue()):
                with pytest.raises(queue.Empty):
                    handle.get_nowait()
                handle.put_nowait(1)
                with pytest.raises(queue.Full):
                    handle.put_nowait(2)
                assert handle.get_nowait() == 1
    finally:
        server.stop()
        thread.join()


def test_a_factory_that_fails_is_named(tmp_path: Path) -> None:
    """Of several registered names, the error says which one has to be mended."""

    class Mine(StateManager):
        pass

    Mine.register("get_list", callable=list)
    Mine.register("get_ratio", callable=lambda: 1 / 0)
    with pytest.raises(ConfigError, match=r"get_ratio cannot be shared.*division"):
        Mine(data_dir=tmp_path / "var").get_server()


def test_registered_name_does_not_shadow(tmp_path: Path) -> None:
    """A name that managers use themselves cannot be registered: it would be lost."""

    class Mine(StateManager):
        pass

    with pytest.raises(ConfigError, match="connect"):
        Mine.register("connect", Counter)


def test_daemonic_workers_can_use_a_manager(tmp_path: Path) -> None:
    """Workers of any start method reach the manager; none has to start one itself."""
    with our_manager(tmp_path / "ours") as manager:
        side = side_of(manager)
        outcome = run_bounded(side, count_in_workers, str(manager.data_dir))
        assert outcome.value == list(range(1, 13)), outcome


def count_in_workers(side: Side, data_dir: str) -> list[int]:
    """Count in workers of all start methods."""
    import multiprocessing

    os.environ["STATE_SERVER_DATA_DIR"] = data_dir
    numbers: list[int] = []
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            numbers += pool.map(query_once, range(4))
    return sorted(numbers)


def query_once(_: int) -> int:
    """Count once, in a worker."""
    return state_server.connect().get("Counter").query()


def test_manager_is_not_started_by_import() -> None:
    """Importing the package starts nothing and connects nowhere."""
    code = (
        "import threading, state_server, state_server.integrations.flask as f\n"
        "c = state_server.connect('unix:///nowhere/at/all', b'key')\n"
        "h = c.get('SomeObj')\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "print(repr(h), hash(h) == hash(c.get('SomeObj')))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert result.stdout.split() == ["<handle", "of", "SomeObj/default>", "True"]


def test_manager_process_helper(tmp_path: Path) -> None:
    """What these tests start ends with them: stop() says 0 and the process is gone."""
    folder = tmp_path / "helper"
    folder.mkdir(mode=0o700)
    manager = ManagerProcess(folder).start()
    pid = manager.pid
    assert manager.stop() == 0
    assert not is_alive(pid)
