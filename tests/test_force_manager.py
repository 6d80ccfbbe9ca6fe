"""The manager is killed, stopped and replaced, and connections are cut, under load."""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import state_server
from state_server import Overloaded, Stale, Unanswered, wire

from .conftest import StartManager
from .fakes import PATIENCE_S
from .force_classes import OwnPeer, Threads, dial, fresh_lane, sharing
from .processes import ROOT, ManagerProcess, freeze, wait_until

COUNT = ("Echo", "default", "count")


class Load:
    """Threads that count tokens, each on an object of its own and on a common one.

    Every answer must carry the caller's token, and that it was counted once.
    """

    def __init__(self, clients: list[Any], threads: int, timeout_s: float) -> None:
        self._stop = threading.Event()
        self._threads = Threads()
        self._timeout_s = timeout_s
        self._name = os.urandom(4).hex()
        self.successes = [0] * threads
        self.errors: list[tuple[int, Exception]] = []
        self.wrong: list[Any] = []
        for place in range(threads):
            client = clients[place % len(clients)]
            self._threads.start(self._run, client, place)

    def _run(self, client: Any, place: int) -> None:
        timeout_s = self._timeout_s
        handles = [client.get("Echo", f"{self._name}-{place}", timeout=timeout_s)]
        handles.append(client.get("Echo", "common", timeout=timeout_s))
        for number in itertools.count():
            if self._stop.is_set():
                return
            token = f"{self._name}/{place}/{number}"
            try:
                answer = handles[number % 2].count(token)
            except Exception as error:
                self.errors.append((place, error))
                continue
            if answer[:2] != (token, 1):
                self.wrong.append((token, answer))
            self.successes[place] += 1

    def wait_for_progress(self, calls: int = 5, timeout_s: float = 30.0) -> None:
        """Wait until every thread has had so many more answers."""
        before = list(self.successes)
        wait_until(
            lambda: all(
                now >= then + calls
                for now, then in zip(self.successes, before, strict=True)
            ),
            timeout_s,
            "progress of every caller",
        )

    def end(self) -> None:
        """Let every thread end; nobody may be stuck or have a wrong answer."""
        self._stop.set()
        self._threads.join()
        assert not self.wrong, self.wrong[:3]

    def release(self) -> None:
        """Let every thread end soon, whatever has happened."""
        self._stop.set()


@contextmanager
def load_on(
    manager: ManagerProcess, threads: int = 8, timeout_s: float = 30.0
) -> Iterator[Load]:
    """Keep a manager busy with the threads of two clients."""
    with manager.client() as first, manager.client() as second:
        load = Load([first, second], threads, timeout_s)
        try:
            load.wait_for_progress()
            yield load
        finally:
            load.release()


def test_kill_and_restart_under_load(start_manager: StartManager) -> None:
    """Callers go on by themselves; what was in flight is Unanswered, once each."""
    manager = start_manager(*sharing("Echo"))
    kills = 3
    with load_on(manager) as load:
        for turn in range(kills):
            manager.kill()
            time.sleep(random.Random(turn).uniform(0.0, 0.3))
            manager.start()
            load.wait_for_progress()
        load.end()
    for place in range(len(load.successes)):
        mine = [error for who, error in load.errors if who == place]
        assert len(mine) <= kills, mine
        assert all(type(error) is Unanswered for error in mine), mine


FLEETING = """
from state_server import share
from tests.force_classes import Echo

@share(durable=False)
class Fleeting(Echo):
    pass
"""


@pytest.mark.parametrize("name", ["Echo", "Fleeting"])
def test_kill_while_every_caller_is_in_a_call(
    start_manager: StartManager, tmp_path: Path, name: str
) -> None:
    """Each call that ran when the manager died has one clear end, and soon.

    What is only in memory is Unanswered; what is durable can be told not to have
    happened, and is done again.
    """
    (tmp_path / "fleeting.py").write_text(FLEETING)
    manager = start_manager(
        *sharing("Echo"), "--objects", "fleeting", PYTHONPATH=f"{tmp_path}:{ROOT}"
    )
    ends: dict[int, Any] = {}
    threads = Threads()
    with manager.client() as client:

        def call(place: int) -> None:
            handle = client.get(name, f"caller-{place}", timeout=20)
            try:
                ends[place] = handle.slow_count(str(place), 2.5)
            except Exception as error:
                ends[place] = error

        for place in range(8):
            threads.start(call, place)
        wait_until(lambda: client.status()["pending"] == 8)
        manager.kill()
        manager.start()
        began = time.monotonic()
        threads.join(30)
        assert time.monotonic() - began < 10
        for place, end in ends.items():
            if name == "Fleeting":
                assert type(end) is Unanswered, end
            else:
                assert type(end) is Unanswered or end == (str(place), 1, 1), end
        assert client.get(name).echo("after") == "after"


def test_a_call_that_finds_no_manager_is_never_sent_and_says_so(
    start_manager: StartManager,
) -> None:
    """Without a manager a call ends as Unreachable at its deadline, not before."""
    manager = start_manager(*sharing("Echo"))
    with manager.client(timeout=1.0) as client:
        handle = client.get("Echo")
        assert handle.echo(1) == 1
        manager.kill()
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises((state_server.Unreachable, Unanswered)) as caught:
                handle.echo(2)
            assert time.monotonic() - began < 3
        assert type(caught.value) is state_server.Unreachable


def test_a_stopped_manager_answers_nobody_wrongly(start_manager: StartManager) -> None:
    """After SIGSTOP for 3 s short deadlines are Unanswered, long ones get their own."""
    manager = start_manager(*sharing("Echo"))
    with (
        load_on(manager, threads=6, timeout_s=30) as patient,
        load_on(manager, threads=6, timeout_s=0.7) as hasty,
    ):
        os.kill(manager.pid, signal.SIGSTOP)
        time.sleep(3)
        assert hasty.errors
        assert not patient.errors
        os.kill(manager.pid, signal.SIGCONT)
        patient.wait_for_progress()
        hasty.wait_for_progress()
        patient.end()
        hasty.end()
    assert not patient.errors, patient.errors[:3]
    kinds = {type(error) for _, error in hasty.errors}
    assert Unanswered in kinds
    # A connection could not be made, or the call expired in the queue: never sent, or
    # never run.
    assert kinds <= {Unanswered, state_server.Unreachable, state_server.Expired}, kinds


def test_the_first_use_of_a_handle_keeps_its_deadline(
    start_manager: StartManager,
) -> None:
    """A handle with a deadline of 1 s asks what its class offers within that time."""
    manager = start_manager(*sharing("Echo"))
    with manager.client() as client:
        client.ping()
        os.kill(manager.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(Unanswered):
                client.get("Echo", timeout=1.0).echo(1)
            assert time.monotonic() - began < 10
        finally:
            os.kill(manager.pid, signal.SIGCONT)


def test_sigterm_under_load_finishes_what_runs(start_manager: StartManager) -> None:
    """SIGTERM lets calls end, exit code 0, and callers go on with the next manager."""
    manager = start_manager(*sharing("Echo"))
    path = Path(manager.stock_address)
    slow: list[Any] = []
    with load_on(manager) as load, manager.client() as client:
        threads = Threads()
        handle = client.get("Echo", "slow")
        assert handle.echo("here") == "here"
        threads.start(lambda: slow.append(handle.slow_echo("slow", 1.0)))
        time.sleep(0.3)
        assert manager.stop() == 0
        threads.join()
        assert slow == ["slow"]
        assert not path.exists()
        assert not (manager.data_dir / "address").exists()
        manager.start()
        load.wait_for_progress()
        load.end()
        assert handle.echo("after") == "after"
    kinds = {type(error) for _, error in load.errors}
    assert kinds <= {Unanswered, Overloaded, state_server.errors.Stopping}, kinds
    assert len(load.errors) <= len(load.successes), load.errors[:3]
    assert "Traceback" not in manager.log


# Connections that are cut ------------------------------------------------------------


class CuttingProxy:
    """Stands between client and manager and cuts after a random number of bytes.

    ``_lock`` guards ``_random`` and ``_open``; a connection draws its budget when it
    opens: so many bytes of both directions together pass, then both ends are cut, one
    time in two with a reset.
    """

    def __init__(self, path: Path, upstream: str, seed: int, bytes_max: int) -> None:
        self.address = f"unix://{path}"
        self.cuts = 0
        self._upstream = upstream
        self._random = random.Random(seed)
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(10)
        self._listener.close()
        with self._lock:
            for end in self._open:
                _shut(end)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._carry, args=(near,))
            self._threads.append(thread)
            thread.start()

    def _carry(self, near: socket.socket) -> None:
        with self._lock:
            budget = self._random.randrange(self._bytes_max)
            reset = self._random.random() < 0.5
        far = dial(self._upstream)
        near.settimeout(20)
        with self._lock:
            self._open |= {near, far}
        left = [budget]
        guard = threading.Lock()

        def pump(source: socket.socket, sink: socket.socket) -> None:
            while True:
                try:
                    data = source.recv(65536)
                    with guard:
                        passing = data[: left[0]]
                        left[0] -= len(passing)
                        if passing:
                            sink.sendall(passing)
                        over = not data or len(passing) < len(data)
                except OSError:
                    over = True
                if over:
                    break
            _shut(near)
            _shut(far)

        back = threading.Thread(target=pump, args=(far, near))
        back.start()
        pump(near, far)
        back.join()
        with self._lock:
            self.cuts += left[0] == 0
            self._open -= {near, far}
        if reset:
            linger = struct.pack("ii", 1, 0)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        near.close()
        far.close()


def _shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        # It has ended already.
        return


@pytest.mark.parametrize("address", ["unix", "tcp"])
def test_calls_through_a_cutting_proxy_run_exactly_once(
    start_manager: StartManager, tmp_path: Path, address: str
) -> None:
    """However often connections are cut, N calls count exactly 1 to N, no error."""
    options = ["--address", "tcp://127.0.0.1:0"] if address == "tcp" else []
    manager = start_manager(*sharing("Echo"), *options)
    callers, calls = 4, 100
    answers: list[list[tuple[str, int, int]]] = [[] for _ in range(callers)]
    with CuttingProxy(tmp_path / "p", manager.address, 7, 2500) as proxy:
        with state_server.connect(proxy.address, manager.key, timeout=60) as client:
            threads = Threads()

            def work(place: int) -> None:
                handle = client.get("Echo")
                for number in range(calls):
                    token = f"{place}/{number}"
                    answer = handle.count(token)
                    assert answer[:2] == (token, 1)
                    answers[place].append(answer)

            for place in range(callers):
                threads.start(work, place)
            threads.join(100)
        assert proxy.cuts > 50
    numbers = [answer[2] for mine in answers for answer in mine]
    assert sorted(numbers) == list(range(1, callers * calls + 1))
    for mine in answers:
        assert [answer[2] for answer in mine] == sorted(answer[2] for answer in mine)
    with manager.client() as direct:
        assert direct.get("Echo").total() == callers * calls
        # What was cut is closed at the manager's end, too.
        wait_until(lambda: direct.status()["connections"] == 1)


# Numbers and lanes -------------------------------------------------------------------


@pytest.fixture
def echo_manager(start_manager: StartManager) -> ManagerProcess:
    """Give a manager that shares Echo."""
    return start_manager(*sharing("Echo"))


def test_a_delayed_frame_with_an_old_number_is_refused(
    echo_manager: ManagerProcess,
) -> None:
    """A number below the last is Stale, the last has its reply again, neither runs."""
    with OwnPeer(echo_manager.address, echo_manager.key).shake_hands().greet() as peer:
        assert peer.call(1, COUNT, "a") == ("a", 1, 1)
        assert peer.call(2, COUNT, "b") == ("b", 1, 2)
        assert isinstance(peer.call(1, COUNT, "a"), Stale)
        assert peer.call(2, COUNT, "b") == ("b", 1, 2)
        assert isinstance(peer.call(0, COUNT, "zero"), Stale)
        assert peer.call(3, COUNT, "c") == ("c", 1, 3)


def test_a_repeat_after_the_connection_broke_gets_the_remembered_reply(
    echo_manager: ManagerProcess,
) -> None:
    """The reply that was lost with its connection is given again, the call not run."""
    lane = fresh_lane()
    address, key = echo_manager.address, echo_manager.key
    with OwnPeer(address, key).shake_hands().greet(lane) as first:
        first.send_call(1, COUNT, "a")
    with OwnPeer(address, key).shake_hands().greet(lane) as second:
        assert second.call(1, COUNT, "a") == ("a", 1, 1)
        assert second.call(1, COUNT, "a") == ("a", 1, 1)
        assert second.call(2, COUNT, "b") == ("b", 1, 2)


def test_a_repeat_waits_for_the_call_that_still_runs(
    echo_manager: ManagerProcess,
) -> None:
    """A call that runs while its connection breaks answers the repeat, and ran once."""
    lane = fresh_lane()
    address, key = echo_manager.address, echo_manager.key
    target = ("Echo", "default", "slow_count")
    with OwnPeer(address, key).shake_hands().greet(lane) as first:
        first.send_call(1, target, "a", 0.5)
        with echo_manager.client() as watching:
            wait_until(lambda: watching.status()["pending"] == 1)
    with OwnPeer(address, key).shake_hands().greet(lane) as second:
        assert second.call(1, target, "a", 0.5) == ("a", 1, 1)


def test_a_new_connection_of_a_lane_fences_the_old_one(
    echo_manager: ManagerProcess,
) -> None:
    """After a lane has moved, nothing sent on its old connection runs."""
    address, key = echo_manager.address, echo_manager.key
    lane = fresh_lane()
    old = OwnPeer(address, key).shake_hands().greet(lane)
    assert old.call(1, COUNT, "a") == ("a", 1, 1)
    new = OwnPeer(address, key).shake_hands().greet(lane)
    old.send_raw(wire.framed(old.call_frame(2, COUNT, "late")))
    assert old.is_closed_by_peer()
    assert new.call(2, COUNT, "b") == ("b", 1, 2)
    old.close()
    new.close()


def test_frames_of_two_connections_of_a_lane_run_once_in_any_order(
    echo_manager: ManagerProcess,
) -> None:
    """A call that is under way on the old connection and again on the new runs once."""
    address, key = echo_manager.address, echo_manager.key
    for turn in range(10):
        lane, token = fresh_lane(), f"turn-{turn}"
        old = OwnPeer(address, key).shake_hands().greet(lane)
        new = OwnPeer(address, key).shake_hands()
        freeze(echo_manager.pid)
        frames = [(old, 1), (new, 0)]
        for peer, is_old in frames if turn % 2 else reversed(frames):
            if is_old:
                peer.send_call(1, COUNT, token)
            else:
                peer.send(peer.hello(lane))
        os.kill(echo_manager.pid, signal.SIGCONT)
        new.hear_welcome()
        first = new.call(1, COUNT, token)
        assert first[:2] == (token, 1)
        assert first[2] == turn + 1
        assert old.is_closed_by_peer()
        old.close()
        new.close()


def test_a_lane_of_another_session_is_refused(echo_manager: ManagerProcess) -> None:
    """Nobody takes over a lane by its id alone, and its owner is not disturbed."""
    address, key = echo_manager.address, echo_manager.key
    lane = fresh_lane()
    with OwnPeer(address, key).shake_hands().greet(lane) as owner:
        assert owner.call(1, COUNT, "a") == ("a", 1, 1)
        with OwnPeer(address, key).shake_hands() as thief:
            thief.send(thief.hello(lane._replace(session=bytes(16))))
            payload = thief.receive()
            assert payload is not None
            assert b"another session" in payload
            assert thief.is_closed_by_peer()
        assert owner.call(2, COUNT, "b") == ("b", 1, 2)


def test_an_abandoned_call_never_answers_the_next(echo_manager: ManagerProcess) -> None:
    """Callers whose deadline passes at any moment only ever read their own answers."""
    threads = Threads()
    ends = {"answers": 0, "errors": 0}
    with echo_manager.client() as client:
        client.get("Echo").echo(0)

        def work(place: int) -> None:
            chance = random.Random(place)
            handle = client.get("Echo", f"caller-{place}")
            hasty = handle.with_options(timeout=0.02)
            for number in range(40):
                token = f"{place}/{number}"
                try:
                    seconds = chance.uniform(0.0, 0.04)
                    assert hasty.slow_echo(token, seconds) == token
                    ends["answers"] += 1
                except (Unanswered, state_server.Unreachable, state_server.Expired):
                    ends["errors"] += 1
                assert handle.echo(token) == token

        for place in range(4):
            threads.start(work, place)
        threads.join()
    assert ends["errors"] > 10, ends


# Forks -------------------------------------------------------------------------------


def run_script(manager: ManagerProcess, text: str, timeout_s: float = 60.0) -> str:
    """Run a script with a client of the manager; return what it printed."""
    head = f"""\
        import os, sys, threading, time
        import state_server
        client = state_server.connect(data_dir={str(manager.data_dir)!r})
        handle = client.get("Echo")
        assert handle.echo("first") == "first"

        def wait_for(child):
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0, status
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c",
         textwrap.dedent(head) + textwrap.dedent(text)],
        cwd=manager.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def test_parent_and_forked_child_never_share_a_lane(
    echo_manager: ManagerProcess,
) -> None:
    """A parent and two generations of children call at once; no answer is mixed up."""
    run_script(
        echo_manager,
        """
        def work(name):
            for number in range(300):
                token = f"{name}/{number}"
                assert handle.count(token)[:2] == (token, 1)

        def in_child(task):
            child = os.fork()
            if child == 0:
                try:
                    task()
                except BaseException as error:
                    print(repr(error), file=sys.stderr, flush=True)
                    os._exit(1)
                os._exit(0)
            return child

        def second_generation():
            grandchild = in_child(lambda: work("grandchild"))
            work("child")
            wait_for(grandchild)

        child = in_child(second_generation)
        work("parent")
        wait_for(child)
        assert handle.total() == 900
        """,
    )


def test_a_fork_while_another_thread_is_in_a_call(echo_manager: ManagerProcess) -> None:
    """The child calls at once, and the parent's call gets its own answer."""
    run_script(
        echo_manager,
        """
        answers = []
        slow = client.get("Echo", "slow")
        thread = threading.Thread(
            target=lambda: answers.append(slow.slow_echo("mine", 1.0))
        )
        thread.start()
        while client.status()["pending"] == 0:
            time.sleep(0.01)
        child = os.fork()
        if child == 0:
            began = time.monotonic()
            right = handle.echo("child") == "child" and slow.echo("c") == "c"
            os._exit(0 if right and time.monotonic() - began < 20 else 1)
        assert handle.echo("parent") == "parent"
        wait_for(child)
        thread.join()
        assert answers == ["mine"], answers
        """,
    )


def test_a_fork_at_any_moment_of_other_threads(echo_manager: ManagerProcess) -> None:
    """Forks while threads use the client leave no child with a lock held by nobody."""
    run_script(
        echo_manager,
        """
        stop = threading.Event()
        wrong = []

        def work(place):
            number = 0
            while not stop.is_set():
                number += 1
                if handle.echo((place, number)) != (place, number):
                    wrong.append(place)
                client.contract("Echo", again=True)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(30):
            child = os.fork()
            if child == 0:
                client.contract("Echo", again=True)
                os._exit(0 if handle.echo(turn) == turn else 1)
            deadline = time.monotonic() + 20
            while os.waitpid(child, os.WNOHANG) == (0, 0):
                assert time.monotonic() < deadline, "a child is stuck"
                time.sleep(0.002)
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong
        """,
    )


def test_a_fork_while_another_thread_restores_a_handle(
    echo_manager: ManagerProcess,
) -> None:
    """A child unpickles a handle although a thread of its parent was just doing so."""
    run_script(
        echo_manager,
        """
        import pickle, state_server.client as inside

        os.chdir("/")
        pickled = pickle.dumps(handle)
        held, done = threading.Event(), threading.Event()

        def hold():
            with inside._restored_lock:
                held.set()
                done.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        child = os.fork()
        if child == 0:
            import faulthandler
            faulthandler.dump_traceback_later(20, exit=True)
            os._exit(0 if pickle.loads(pickled).echo(1) == 1 else 1)
        wait_for(child)
        done.set()
        thread.join()
        """,
    )


@pytest.mark.parametrize("address", [(), ("--address", "tcp://127.0.0.1:0")])
def test_a_child_of_a_method_keeps_nothing_of_its_manager(
    start_manager: StartManager, address: tuple[str, ...]
) -> None:
    """Neither lock nor address nor callers: a new manager starts while it lives.

    It ends at its first SIGTERM, as a child that was forked elsewhere does.
    """
    manager = start_manager(*address, *sharing("Forker", "Rough"))
    with manager.client() as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.get("Rough").with_options(timeout=15).sleep, 2)
        wait_until(lambda: client.status()["pending"] == 1)
        child = client.get("Forker").leave_child()
        try:
            if address:
                manager.options = ("--address", manager.address, *manager.options[2:])
            manager.kill()
            manager.start()
            assert waiting.result(PATIENCE_S), "its link has ended, and it asked again"
        finally:
            os.kill(child, signal.SIGTERM)
        wait_until(lambda: has_ended(child))


def test_a_method_that_returns_in_a_child_as_well_is_answered_once(
    start_manager: StartManager,
) -> None:
    """The child ends: it would lead beside its parent, on the same sockets."""
    manager = start_manager(*sharing("Forker", "Echo"))
    with manager.client() as client:
        forker = client.get("Forker")
        children = [forker.return_twice() for _ in range(3)]
        assert all(children)
        for child in children:
            wait_until(lambda child=child: has_ended(child))
            assert forker.await_child(child) == 0
        assert client.get("Echo").echo("all is well") == "all is well"


def has_ended(process_id: int) -> bool:
    """Tell whether a process is gone, or is a zombie that waits to be collected."""
    try:
        text = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return True
    return text.rpartition(")")[2].split()[0] == "Z"


def test_multiprocessing_with_inherited_handles(echo_manager: ManagerProcess) -> None:
    """A pool of forked workers and its parent use one handle at the same time."""
    run_script(
        echo_manager,
        """
        import multiprocessing

        def work(name):
            for number in range(50):
                token = f"{name}/{number}"
                assert handle.count(token)[:2] == (token, 1)
            return os.getpid()

        with multiprocessing.get_context("fork").Pool(4) as pool:
            result = pool.map_async(work, [f"worker-{n}" for n in range(8)], 1)
            work("parent")
            pids = result.get(30)
        assert os.getpid() not in pids
        assert handle.total() == 450
        """,
    )
