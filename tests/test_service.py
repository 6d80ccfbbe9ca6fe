"""The manager's process as its operator meets it: what it prints and waits for."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import state_server
from state_server.data_folder import DataDirLock, lock_holder
from state_server.errors import ConfigError, Overloaded
from state_server.service import Service
from state_server.settings import ManagerSettings
from state_server.sharing import Catalogue, describe_class
from state_server.store import StoreFile, hash_seed_of

from .conftest import StartManager
from .processes import ROOT, ManagerProcess, wait_until

TALKATIVE = """
from state_server import share
print("printed at import")

@share
class Talker:
    def talk(self):
        print("printed by a method")
        return 1

    def whisper(self):
        print("printed \\ud800")
        return 2

    def linger(self, seconds):
        import time
        time.sleep(seconds)
        return "done"
"""


def command(manager: ManagerProcess, *words: str) -> subprocess.CompletedProcess[str]:
    """Run an operator's verb on the manager's data folder."""
    return subprocess.run(
        [sys.executable, "-m", "state_server", *words],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        cwd=manager.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_what_classes_print_is_in_the_log_and_not_in_the_report(tmp_path: Path) -> None:
    """Standard output has the one line ``ready``, whatever the classes print."""
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    # The fixture's start reads the first line, and fails unless it is "ready".
    manager = ManagerProcess(tmp_path, "--objects", "talkative").start()
    with manager.client() as client:
        assert client.get("Talker").talk() == 1
    manager.stop()
    assert "printed at import" in manager.log
    assert "printed by a method" in manager.log


def test_what_methods_print_is_in_the_log_at_once(tmp_path: Path) -> None:
    """Nobody waits for 8 KiB of it, and no character makes the method fail."""
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    manager = ManagerProcess(
        tmp_path, "--objects", "talkative", PYTHONUNBUFFERED="", PYTHONIOENCODING=""
    ).start()
    try:
        with manager.client() as client:
            assert client.get("Talker").whisper() == 2
        assert "printed \\ud800\n" in manager.log
    finally:
        manager.stop()


def test_stop_returns_when_the_manager_has_stopped(tmp_path: Path) -> None:
    """After ``stop`` the data folder is free, although a call was still running."""
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    manager = ManagerProcess(tmp_path, "--objects", "talkative").start()
    results: list[str] = []
    with manager.client() as client:
        talker = client.get("Talker")
        assert talker.talk() == 1
        thread = threading.Thread(target=lambda: results.append(talker.linger(1.0)))
        thread.start()
        wait_until(lambda: client.status()["pending"] == 1)
        process_id = client.status()["process_id"]
        assert lock_holder(manager.data_dir) == process_id
        done = command(manager, "stop", "--data-dir", str(manager.data_dir))
        assert lock_holder(manager.data_dir) is None
        thread.join(20)
    assert done.returncode == 0, done
    assert f"process {process_id}) has stopped" in done.stdout
    assert results == ["done"]
    manager.stop()


def test_stop_says_so_when_calls_still_run(tmp_path: Path) -> None:
    """Within its timeout it waits, then it says what is still going on."""
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    manager = ManagerProcess(tmp_path, "--objects", "talkative").start()
    with manager.client() as client:
        talker = client.get("Talker")
        assert talker.talk() == 1
        thread = threading.Thread(target=talker.linger, args=(4.0,))
        thread.start()
        wait_until(lambda: client.status()["pending"] == 1)
        options = ("--data-dir", str(manager.data_dir), "--timeout", "1")
        done = command(manager, "stop", *options)
        thread.join(20)
    assert done.returncode == 1, done
    assert "still ends its running calls" in done.stderr
    manager.stop()


def test_the_operator_is_let_in_where_no_more_connections_are_remembered(
    start_manager: StartManager, tmp_path: Path
) -> None:
    """Who wants to see why a manager is full, or to stop it, must reach it."""
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    path = f"{tmp_path}:{ROOT}"
    options = ("--objects", "talkative", "--lanes-max", "2")
    manager = start_manager(*options, PYTHONPATH=path)
    clients = [manager.client(timeout=1) for _ in range(3)]
    for client in clients[:2]:
        assert client.get("Talker").talk() == 1
    with pytest.raises(Overloaded, match="lanes_max"):
        clients[2].get("Talker").talk()
    done = command(manager, "stop", "--data-dir", str(manager.data_dir))
    for client in clients:
        client.close()
    assert done.returncode == 0, done
    assert "has stopped" in done.stdout


def test_a_class_that_nobody_shares_any_more_is_told_at_the_start(
    tmp_path: Path,
) -> None:
    """Who renamed a class learns why its numbers begin at 1, and what to do."""
    module = tmp_path / "talkative.py"
    module.write_text(TALKATIVE)
    manager = ManagerProcess(tmp_path, "--objects", "talkative").start()
    with manager.client() as client:
        client.get("Talker").talk()
    manager.stop()
    assert "aliases" not in manager.log
    # Another second, or the compiled file of the former text would be taken.
    time.sleep(1.1)
    module.write_text(TALKATIVE.replace("Talker", "Speaker"))
    manager.start()
    manager.stop()
    assert "stored objects of 'Talker', which no class is shared as" in manager.log
    assert "aliases=('Talker',)" in manager.log


def test_a_class_that_is_not_kept_any_more_is_told_at_the_start(
    start_manager: StartManager, tmp_path: Path
) -> None:
    """Who switched durable off learns why the numbers begin at 1."""
    (tmp_path / "kept.py").write_text(TALKATIVE)
    (tmp_path / "lost.py").write_text(
        TALKATIVE.replace("@share", "@share(durable=False)")
    )
    manager = start_manager("--objects", "kept", PYTHONPATH=f"{tmp_path}:{ROOT}")
    with manager.client() as client:
        client.get("Talker").talk()
    manager.stop()
    assert "durable=False" not in manager.log
    manager.options = ("--objects", "lost")
    manager.start()
    manager.stop()
    assert "'Talker', which is shared with durable=False now" in manager.log


ELSEWHERE = """
import signal, sys, threading, time
from pathlib import Path
from state_server.service import Service, stop_on_signals
from state_server.settings import ManagerSettings

service = Service(ManagerSettings(data_dir=Path(sys.argv[1]), memory=True))
service.start()
stop_on_signals(service.request_stop)


def signal_myself():
    # Heard by this thread: the main one, which waits, is not interrupted.
    time.sleep(0.5)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    time.sleep(60)


threading.Thread(target=signal_myself, daemon=True).start()
print("waiting", flush=True)
service.wait()
service.stop()
print("stopped", flush=True)
"""


def test_a_signal_that_wakes_nobody_is_heard_all_the_same(tmp_path: Path) -> None:
    """SIGTERM stops the manager although its main thread is not interrupted by it."""
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path / "var")],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.split() == ["waiting", "stopped"], done


FORKING = """
import os, time
from multiprocessing import get_context
from state_server import share


def linger(pipe):
    pipe.send("up")
    time.sleep(60)


@share
class Forker:
    def __init__(self):
        self.last = 0

    def fork(self):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        return child

    def next(self, seconds):
        self.last += 1
        time.sleep(seconds)
        return self.last

    def terminate(self):
        ours, theirs = get_context("fork").Pipe()
        child = get_context("fork").Process(target=linger, args=(theirs,))
        child.start()
        ours.recv()
        child.terminate()
        child.join(5)
        child.kill()
        child.join()
        return child.exitcode
"""


@pytest.mark.parametrize(
    "words",
    [
        [ROOT / "start_manager.py"],
        [ROOT / "start_web.py"],
        ["-m", "web"],
    ],
)
def test_a_command_that_is_interrupted_while_it_loads_ends_without_a_word(
    tmp_path: Path, words: list[str | Path]
) -> None:
    """Its exit code says that it was interrupted, as the shell expects."""
    # Loaded by every command, and never by Python itself.
    (tmp_path / "difflib.py").write_text(
        "import pathlib, time\n"
        "pathlib.Path(__file__).with_name('loading').touch()\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stderr=subprocess.PIPE,
    )
    try:
        wait_until((tmp_path / "loading").exists)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, said) == (-signal.SIGINT, b"")


def test_a_child_that_a_method_forked_keeps_neither_folder_nor_callers(
    tmp_path: Path,
) -> None:
    """It outlives its manager: the next one starts, and the call is made again."""
    (tmp_path / "forking.py").write_text(FORKING)
    manager = ManagerProcess(tmp_path, "--objects", "forking").start()
    results: list[int] = []
    with manager.client(timeout=20) as client:
        child = client.get("Forker", "parent").fork()
        try:
            forker = client.get("Forker")
            thread = threading.Thread(target=lambda: results.append(forker.next(1.0)))
            thread.start()
            wait_until(lambda: client.status()["pending"] == 1)
            manager.kill()
            manager.start()
            thread.join(20)
        finally:
            os.kill(child, signal.SIGKILL)
    manager.stop()
    assert results == [1]


def test_a_child_that_a_method_forked_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """SIGTERM ends it as it ends any process: it has no manager to stop."""
    (tmp_path / "forking.py").write_text(FORKING)
    manager = ManagerProcess(tmp_path, "--objects", "forking").start()
    with manager.client(timeout=20) as client:
        forker = client.get("Forker")
        exit_code = forker.terminate()
        assert forker.next(0) == 1
    manager.stop()
    assert exit_code == -signal.SIGTERM


DIARY = """
from state_server import share

@share(durable="journal")
class Diary:
    def __init__(self):
        self.words = set(map(str, range(100)))

    def take(self):
        return self.words.pop()

    def left(self):
        return sorted(self.words)
"""


@pytest.mark.parametrize("seed", [None, "42"], ids=["new folder", "former folder"])
def test_a_hash_seed_is_kept_in_the_state(tmp_path: Path, seed: str | None) -> None:
    """Drawn once or found in a former folder, it is there before the first call."""
    (tmp_path / "diary.py").write_text(DIARY)
    manager = ManagerProcess(tmp_path, "--objects", "diary")
    if seed is not None:
        manager.data_dir.mkdir(mode=0o700)
        (manager.data_dir / "hashseed").write_text(f"{seed}\n")
    manager.start()
    try:
        with StoreFile(manager.data_dir / "state.db") as store:
            kept = store.hash_seed
        assert kept is not None
        assert seed in (None, str(kept))
        assert not (manager.data_dir / "hashseed").exists()
        with manager.client() as client:
            diary = client.get("Diary")
            taken = {diary.take() for _ in range(50)}
            left = diary.left()
            manager.kill()
            # What a former release, or a start that was cut off, has left.
            (manager.data_dir / "hashseed").write_text("43\n")
            manager.start()
            assert diary.left() == left
            assert not taken & set(left)
        with StoreFile(manager.data_dir / "state.db") as store:
            assert store.hash_seed == kept
    finally:
        manager.stop()


def test_a_server_under_another_hash_seed_is_refused_and_told_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that hosts journals itself must be started under their seed."""
    shared = Catalogue()
    shared.add(describe_class(Log, durable="journal"))
    folder = tmp_path / "var"
    for _ in range(2):
        monkeypatch.delenv("PYTHONHASHSEED", raising=False)
        with pytest.raises(ConfigError, match="Log: a journal is replayed") as refused:
            Service(ManagerSettings(data_dir=folder), shared=shared).start()
        seed = hash_seed_of(folder)
        assert f"its data folder, {seed}." in str(refused.value)
        assert lock_holder(folder) is None
        monkeypatch.setenv("PYTHONHASHSEED", str(seed))
        with Service(ManagerSettings(data_dir=folder), shared=shared) as service:
            assert service.address is not None
    (folder / "state.db").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"cannot be used.*Nothing was changed"):
        hash_seed_of(folder)


class Log:
    """Is kept as a journal."""


def test_journals_are_refused_where_the_environment_is_ignored(tmp_path: Path) -> None:
    """Their sets would be in another order at each start, without a word."""
    (tmp_path / "diary.py").write_text(DIARY)
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]\n"
        "from state_server.service import main\n"
        "sys.exit(main(['--objects', 'diary']))"
    )
    result = subprocess.run(
        [sys.executable, "-E", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert "told to ignore its environment" in result.stderr


def test_a_check_draws_no_hash_seed(tmp_path: Path) -> None:
    """It looks at the state without changing it, and needs no seed without a call."""
    (tmp_path / "diary.py").write_text(DIARY)
    manager = ManagerProcess(tmp_path).start()
    manager.stop()
    result = command(manager, "check", "--objects", "diary")
    assert result.returncode == 0, result.stderr
    assert not (manager.data_dir / "hashseed").exists()


# What is in the data folder already -------------------------------------------------


def test_a_relative_address_is_good_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients read it in folders of their own, and a method may leave the first one."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = ManagerSettings(data_dir=tmp_path / "var", address="s.sock", memory=True)
    with Service(settings) as service:
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert service.address is not None
        assert service.address.path == str(tmp_path / "s.sock")
        with state_server.connect(data_dir=tmp_path / "var", timeout=10) as client:
            assert client.ping() > 0
    assert not (tmp_path / "s.sock").exists()


def test_a_folder_with_a_percent_sign_is_found(tmp_path: Path) -> None:
    """The address in it is a URL, in which that sign has a meaning of its own."""
    folder = tmp_path / "50%20"
    with (
        Service(ManagerSettings(data_dir=folder, memory=True)),
        state_server.connect(data_dir=folder, timeout=10) as client,
    ):
        assert client.ping() > 0


@pytest.mark.skipif(sys.platform != "linux", reason="names are text there")
def test_a_folder_whose_name_is_no_text_is_found(tmp_path: Path) -> None:
    """A path is bytes: it may be of another encoding than that of the terminal."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "start_manager.py"), "--data-dir", folder],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().endswith(b"/caf\xe9/manager.sock\n")
        with state_server.connect(data_dir=folder, timeout=10) as client:
            assert client.ping() > 0
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


POOR = """
from state_server import data_folder, service, share

def fail(*_):
    raise OSError(24, "Too many open files")

{name} = fail

@share(durable="journal")
class Nothing:
    pass
"""


@pytest.mark.parametrize("name", ["data_folder.write_whole", "service.Engine"])
def test_an_error_of_the_system_ends_the_start_with_one_sentence(
    tmp_path: Path, name: str
) -> None:
    """No descriptor, no room on the disk: the reason is said, without a traceback."""
    (tmp_path / "poor.py").write_text(POOR.format(name=name))
    result = subprocess.run(
        [sys.executable, str(ROOT / "start_manager.py"), "--objects", "poor"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    said = r"The manager was not started: .*\[Errno 24\] Too many open files"
    assert re.search(said, result.stderr), result.stderr
    assert "Traceback" not in result.stderr


def test_a_closed_standard_output_is_no_obstacle(tmp_path: Path) -> None:
    """Nobody waits for the line then; the manager serves, and its log is whole."""
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {sys.executable} {ROOT}/start_manager.py >&-"],
            cwd=tmp_path,
            stderr=log,
        )
    try:
        with state_server.connect(data_dir=tmp_path / "var", timeout=20) as client:
            assert client.ping() > 0
    finally:
        process.terminate()
        assert process.wait(20) == 0
    assert b"Ready at" in (tmp_path / "log").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="no terminals that hang up there")
def test_a_closed_terminal_ends_the_manager_in_good_order(tmp_path: Path) -> None:
    """What runs is finished, however many signals the shell and the system send."""
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    manager = ManagerProcess(tmp_path, "--objects", "talkative").start()
    with manager.client(timeout=20) as client:
        replies: list[str] = []
        caller = threading.Thread(
            target=lambda: replies.append(client.get("Talker").linger(0.5))
        )
        caller.start()
        wait_until(lambda: client.status()["pending"] == 1, what="a call that runs")
        for _ in range(3):
            os.kill(manager.pid, signal.SIGHUP)
        caller.join(20)
        assert replies == ["done"]
    assert manager.process is not None
    process = manager.process
    wait_until(lambda: process.poll() is not None, what="the end")
    assert manager.stop() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no terminals that hang up there")
def test_a_manager_under_nohup_outlives_the_terminal(tmp_path: Path) -> None:
    """A signal that was ignored from the start is ignored further."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        manager = ManagerProcess(tmp_path).start()
    finally:
        signal.signal(signal.SIGHUP, former)
    os.kill(manager.pid, signal.SIGHUP)
    with manager.client(timeout=20) as client:
        assert client.get("SomeObj").query() == 1
    assert manager.stop() == 0


# The folder is touched ---------------------------------------------------------------


def test_a_deleted_lock_is_taken_again(start_manager: StartManager) -> None:
    """Who deletes it as a left-over starts no second manager on the same state."""
    manager = start_manager()
    (manager.data_dir / "manager.lock").unlink()
    wait_until(lambda: lock_holder(manager.data_dir) == manager.pid, what="a lock")
    with manager.client(timeout=10) as client:
        assert client.get("SomeObj").query() == 1
    assert "The lock of" in manager.log


def test_a_manager_whose_folder_is_deleted_ends(start_manager: StartManager) -> None:
    """It would go on to acknowledge what is on no disk; the next one begins anew."""
    manager = start_manager()
    with manager.client(timeout=10) as client:
        assert client.get("SomeObj").query() == 1
        shutil.rmtree(manager.data_dir)
        assert manager.process is not None
        assert manager.process.wait(20) == 1
        assert "its data folder is lost" in manager.log
        manager.start()
        assert client.get("SomeObj").query() == 1


def test_a_manager_whose_folder_another_one_has_ends(
    start_manager: StartManager, tmp_path: Path
) -> None:
    """What tells clients of the other one stays."""
    manager = start_manager()
    other = DataDirLock(tmp_path)
    try:
        (tmp_path / "manager.lock").replace(manager.data_dir / "manager.lock")
        assert manager.process is not None
        assert manager.process.wait(20) == 1
    finally:
        other.release()
    assert f"in use by another manager (process {os.getpid()})" in manager.log
    assert (manager.data_dir / "address").exists()


WANDERER = """
import os
from state_server import share

@share
class Wanderer:
    def go(self):
        os.chdir("/")
"""


def test_a_method_may_change_the_folder_of_the_process(tmp_path: Path) -> None:
    """A data folder that was named by a relative path is found all the same."""
    (tmp_path / "wanderer.py").write_text(WANDERER)
    manager = ManagerProcess(
        tmp_path, "--objects", "wanderer", "--data-dir", "var"
    ).start()
    with manager.client(timeout=10) as client:
        client.get("Wanderer").go()
        (manager.data_dir / "manager.lock").unlink()
        wait_until(lambda: lock_holder(manager.data_dir) == manager.pid, what="a lock")
    assert manager.stop() == 0
    assert not (manager.data_dir / "address").exists()


# The start ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["authkey", "adminkey"])
def test_a_key_that_is_a_link_to_nowhere_is_a_config_error(
    tmp_path: Path, name: str
) -> None:
    """The operator learns which file it is, and nothing is left locked."""
    folder = tmp_path / "var"
    folder.mkdir(mode=0o700)
    (folder / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=f"{name} is a link that leads nowhere"):
        Service(ManagerSettings(data_dir=folder, memory=True)).start()
    assert lock_holder(folder) is None


def test_an_address_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    """What cannot be removed either does not hide the reason, nor keep the lock."""
    folder = tmp_path / "var"
    (folder / "address").mkdir(parents=True)
    folder.chmod(0o700)
    with pytest.raises(ConfigError, match="address cannot be written"):
        Service(ManagerSettings(data_dir=folder, memory=True)).start()
    assert lock_holder(folder) is None
