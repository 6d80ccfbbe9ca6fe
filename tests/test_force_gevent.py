"""One client in a process that gevent has monkey-patched, used by many greenlets."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from .conftest import StartManager
from .force_classes import sharing
from .processes import ROOT, ManagerProcess

pytest.importorskip("gevent")


@pytest.fixture
def manager(start_manager: StartManager) -> ManagerProcess:
    """Give a manager that shares Echo."""
    return start_manager(*sharing("Echo"))


def run_patched(
    manager: ManagerProcess, text: str, patch: str = "monkey.patch_all()"
) -> None:
    """Run a script in a process where everything was patched first."""
    head = f"""\
        from gevent import monkey
        {patch}
        import gevent, os, random, time
        import state_server
        client = state_server.connect(data_dir={str(manager.data_dir)!r}, timeout=30)
        handle = client.get("Echo")
        assert handle.echo("first") == "first"
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(text)],
        cwd=manager.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n", done.stderr


def test_fifty_greenlets_share_one_client(manager: ManagerProcess) -> None:
    """Fifty greenlets count through one client, and each gets its own answers."""
    run_patched(
        manager,
        """
        numbers = []

        def work(name):
            for number in range(40):
                token = f"{name}/{number}"
                answer = handle.count(token)
                assert answer[:2] == [token, 1] or answer[:2] == (token, 1), answer
                numbers.append(answer[2])

        gevent.joinall([gevent.spawn(work, n) for n in range(50)], raise_error=True)
        assert sorted(numbers) == list(range(1, 2001))
        print("done")
        """,
    )


def test_more_greenlets_than_connections_wait_their_turn(
    manager: ManagerProcess,
) -> None:
    """With four connections fifty greenlets wait for one, and the hub goes on."""
    run_patched(
        manager,
        f"""
        small = state_server.connect(
            data_dir={str(manager.data_dir)!r}, connections_max=4
        )
        def work(name):
            return small.get("Echo", str(name)).slow_echo(name, 0.02)

        jobs = [gevent.spawn(work, n) for n in range(50)]
        gevent.joinall(jobs, raise_error=True)
        assert [job.value for job in jobs] == list(range(50))
        assert client.status()["connections"] <= 6
        print("done")
        """,
    )


def test_a_call_that_waits_does_not_block_the_hub(manager: ManagerProcess) -> None:
    """While a call sleeps 1 s in the manager, another greenlet keeps ticking."""
    run_patched(
        manager,
        """
        ticks = []

        def tick():
            while True:
                ticks.append(time.monotonic())
                gevent.sleep(0.01)

        ticking = gevent.spawn(tick)
        assert handle.slow_echo("slow", 1.0) == "slow"
        ticking.kill()
        gaps = [after - before for before, after in zip(ticks, ticks[1:])]
        assert len(ticks) > 20, len(ticks)
        assert max(gaps) < 0.5, max(gaps)
        print("done")
        """,
    )


@pytest.mark.parametrize(
    "patch", ["monkey.patch_socket()", "monkey.patch_all(select=False)"]
)
def test_a_call_ends_at_its_deadline_where_not_everything_is_patched(
    manager: ManagerProcess, patch: str
) -> None:
    """Sockets of gevent beside a poll that is the system's own wait no longer."""
    run_patched(
        manager,
        """
        import faulthandler, threading
        faulthandler.dump_traceback_later(20, exit=True)
        hasty = client.get("Echo", timeout=0.5)
        ended = []

        def call(token):
            try:
                hasty.slow_echo(token, 3)
            except state_server.Unanswered:
                ended.append(token)

        thread = threading.Thread(target=call, args=("thread",))
        thread.start()
        greenlet = gevent.spawn(call, "greenlet")
        thread.join()
        greenlet.join()
        assert sorted(ended) == ["greenlet", "thread"], ended
        print("done")
        """,
        patch,
    )


def test_a_greenlet_killed_in_its_call_spoils_nobody(manager: ManagerProcess) -> None:
    """Greenlets are killed at any moment of a call; the others read what is theirs."""
    run_patched(
        manager,
        """
        chance = random.Random(5)

        def victim(name):
            client.get("Echo", str(name)).slow_echo(f"victim {name}", 0.03)

        def work(name):
            for number in range(60):
                token = f"{name}/{number}"
                assert handle.echo(token) == token
                gevent.sleep(0)

        workers = [gevent.spawn(work, n) for n in range(10)]
        for turn in range(60):
            doomed = gevent.spawn(victim, turn % 5)
            gevent.sleep(chance.uniform(0.0, 0.03))
            doomed.kill()
            assert handle.echo(turn) == turn
        gevent.joinall(workers, raise_error=True)
        assert handle.echo("last") == "last"
        print("done")
        """,
    )


def test_a_fork_of_a_patched_process(manager: ManagerProcess) -> None:
    """Parent and child of a patched process call at once, and nothing is mixed up."""
    run_patched(
        manager,
        """
        def work(name):
            for number in range(50):
                token = f"{name}/{number}"
                assert handle.count(token)[0] == token

        busy = gevent.spawn(work, "greenlet")
        gevent.sleep(0.01)
        child = os.fork()
        if child == 0:
            try:
                work("child")
            except BaseException:
                os._exit(1)
            os._exit(0)
        work("parent")
        busy.get()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert handle.total() == 150
        print("done")
        """,
    )


def test_a_patched_process_does_not_become_a_manager(manager: ManagerProcess) -> None:
    """It is told so: its threads would be greenlets, and it ended without a word."""
    run_patched(
        manager,
        """
        class Manager(state_server.StateManager):
            pass

        Manager.register("Table", dict)
        for start in (Manager().start, Manager().get_server):
            try:
                start()
            except state_server.ConfigError as error:
                assert "not the system's own (gevent" in str(error), error
            else:
                raise AssertionError("it started")
        print("done")
        """,
    )
