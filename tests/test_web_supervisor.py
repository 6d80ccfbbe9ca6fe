"""The web half as real processes: start_web.py, its workers, its manager, and HTTP."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .processes import wait_until

HOME = Path(__file__).resolve().parent.parent
DEADLINE_S = 60.0

#: What tests leave in the environment of a service; no setting has this name.
MISSPELLED = "STATE_SERVER_QEUE_MAX"

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(),
    reason="processes are found by their environment, in /proc",
)

SHOP = '''
"""An app of a user's: a counter, a version, a request as long as asked."""
import os
import pathlib
import time

from flask import Flask
from state_server.integrations.flask import StateServer

VERSION = "one"
HERE = pathlib.Path(__file__).parent
state = StateServer()


def create_app():
    app = Flask(__name__)
    state.init_app(app)

    @app.get("/")
    def number():
        return str(state.get("SomeObj").query())

    @app.get("/version")
    def version():
        return f"{VERSION} {os.getpid()}"

    @app.get("/slow")
    def slow():
        (HERE / "slow-runs").touch()
        give_up_at = time.monotonic() + 30
        while not (HERE / "slow-may-end").exists() and time.monotonic() < give_up_at:
            time.sleep(0.01)
        return str(state.get("SomeObj").query())

    return app
'''


LEAVES = """
import os

def app():
    os._exit(9)

def wants(config):
    return app
"""

#: Makes a terminal the one that controls this session, and becomes the command. Whoever
#: runs the tests may ignore SIGHUP, as nohup does; a shell in a terminal does not.
IN_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)
fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0)
os.close(int(sys.argv[1]))
os.execv(sys.argv[2], sys.argv[2:])
"""


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until ``condition`` holds, or fail saying what was waited for."""
    wait_until(condition, DEADLINE_S, what)


class Service:
    """One start_web.py with everything that it started, in a folder of its own."""

    def __init__(
        self, folder: Path, *options: str, terminal: int | None = None
    ) -> None:
        self.folder = folder
        self.mark = f"WEB_TEST_MARK={uuid.uuid4().hex}"
        self.log_path = folder / f"log-{uuid.uuid4().hex}"
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("STATE_SERVER_") or name == MISSPELLED
        }
        name, _, value = self.mark.partition("=")
        environ[name] = value
        environ["PYTHONWARNINGS"] = "error"
        command = [sys.executable, str(HOME / "start_web.py"), *self._options(options)]
        if terminal is not None:
            command = [sys.executable, "-c", IN_TERMINAL, str(terminal), *command]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                pass_fds=[] if terminal is None else [terminal],
                text=True,
            )
        self.port = 0
        self.said = ""

    def _options(self, given: Sequence[str]) -> list[str]:
        defaults = {
            "--bind": "127.0.0.1:0",
            "--data-dir": str(self.folder / "var"),
            "--linger-s": "0.5",
        }
        options = list(given)
        for option, value in defaults.items():
            if option not in given:
                options += [option, value]
        return options

    def until_ready(self) -> Service:
        """Wait for the lines that say what to try, and read the port there."""
        assert self.process.stdout is not None
        give_up = threading.Timer(DEADLINE_S, self.process.kill)
        give_up.start()
        try:
            for line in self.process.stdout:
                self.said += line
                found = re.search(r" at http://127\.0\.0\.1:(\d+)/", line)
                if found:
                    self.port = int(found[1])
                if line.startswith("Stop:"):
                    return self
        finally:
            give_up.cancel()
        raise AssertionError(f"never ready: {self.log()}")

    def log(self) -> str:
        """Return what all the processes have logged so far."""
        return self.log_path.read_text(errors="replace")

    def get(self, path: str = "/", timeout_s: float = DEADLINE_S) -> tuple[int, str]:
        """Return status and body of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout_s)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def processes(self, part: str = "") -> list[int]:
        """Return the living processes of this service with ``part`` in the command."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{name}/cmdline").read_bytes()
                    # The system's own have none. It is asked many times.
                    if not command or part.encode() not in command.replace(b"\0", b" "):
                        continue
                    environ = Path(f"/proc/{name}/environ").read_bytes()
                    if self.mark.encode() in environ.split(b"\0"):
                        found.append(int(name))
        return sorted(found)

    def workers(self) -> list[int]:
        """Return the worker processes."""
        return self.processes(" web.worker ")

    def manager(self) -> list[int]:
        """Return the manager process, if there is one."""
        return self.processes(" state_server manager ")

    def ended(self) -> int:
        """Wait until the parent ended and nothing is left; return the exit code."""
        try:
            code = self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end: {self.log()}") from None
        until(lambda: not self.processes(), "no process left")
        return code

    def clear_away(self) -> None:
        """End whatever is left of this service, which a passing test leaves empty."""
        self.process.kill()
        self.process.wait(DEADLINE_S)
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        assert self.process.stdout is not None
        self.process.stdout.close()


Start = Callable[..., Service]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts start_web.py; everything ends with the test."""
    services: list[Service] = []

    def start_one(*options: str, terminal: int | None = None) -> Service:
        services.append(Service(tmp_path, *options, terminal=terminal))
        return services[-1]

    (tmp_path / "shop.py").write_text(SHOP)
    yield start_one
    for service in services:
        service.clear_away()


SHOP_APP = ("--app", "shop:create_app")


def test_numbers_are_given_in_order(start: Start) -> None:
    """The default app answers 1, 2, 3 as plain text, whichever worker is asked."""
    service = start().until_ready()
    assert [service.get() for _ in range(3)] == [(200, "1"), (200, "2"), (200, "3")]


def test_what_to_try_is_said_of_the_default_app_only(start: Start) -> None:
    """Nobody is sent to a page that an app of the user's may not have."""
    ours, theirs = start(), start(*SHOP_APP, "--workers", "1")
    address = f"http://127.0.0.1:{ours.until_ready().port}/"
    assert f"2 workers serve web.app:create_app at {address}\n" in ours.said
    assert f"Try: curl {address} and open {address}demo" in ours.said
    address = f"http://127.0.0.1:{theirs.until_ready().port}/"
    assert f"1 worker serves shop:create_app at {address}\n" in theirs.said
    assert "Try" not in theirs.said


def test_head_takes_no_number(start: Start) -> None:
    """A HEAD request does not use up a number."""
    service = start("--workers", "1").until_ready()
    connection = http.client.HTTPConnection("127.0.0.1", service.port, DEADLINE_S)
    with contextlib.closing(connection):
        connection.request("HEAD", "/")
        assert connection.getresponse().status == 200
    assert service.get() == (200, "1")


def test_hundred_clients_at_once(start: Start) -> None:
    """A hundred clients at once through four workers see exactly 1 to 100."""
    service = start("--workers", "4").until_ready()
    together = threading.Barrier(100)

    def one(_: int) -> tuple[int, str]:
        together.wait(DEADLINE_S)
        return service.get()

    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(one, range(100)))
    assert {200} == {status for status, _ in answers}
    assert list(range(1, 101)) == sorted(int(body) for _, body in answers)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_everything(start: Start, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM to the parent ends all processes with exit code 0."""
    service = start().until_ready()
    assert len(service.workers()) == 2
    assert len(service.manager()) == 1
    service.process.send_signal(number)
    assert service.ended() == 0


def test_children_are_out_of_reach_of_the_terminal(start: Start) -> None:
    """Each child has a process group of its own, so Ctrl-C reaches the parent alone."""
    service = start().until_ready()
    children = service.workers() + service.manager()
    assert len(children) == 3
    assert children == [os.getpgid(child) for child in children]


def test_closed_terminal_ends_everything(start: Start) -> None:
    """SIGHUP means reload, but when the terminal was closed it means the end."""
    window, terminal = os.openpty()
    service = start(terminal=terminal)
    os.close(terminal)
    service.until_ready()
    before = service.workers()
    service.process.send_signal(signal.SIGHUP)
    until(lambda: not set(before) & set(service.workers()), "the reload")
    until(lambda: len(service.workers()) == 2, "the new workers")
    os.close(window)
    assert service.ended() == 0


def test_killed_worker_is_replaced(start: Start) -> None:
    """A worker that is killed is replaced at once, and the numbers go on."""
    service = start().until_ready()
    assert service.get() == (200, "1")
    victim = service.workers()[0]
    os.kill(victim, signal.SIGKILL)
    until(
        lambda: victim not in service.workers() and len(service.workers()) == 2,
        "a new worker",
    )
    assert "is replaced at once" in service.log()
    assert service.get() == (200, "2")


def test_killed_parent_leaves_nothing(start: Start) -> None:
    """When the parent is killed, workers and manager end by themselves."""
    service = start().until_ready()
    assert len(service.processes()) == 4
    service.process.kill()
    assert service.ended() == -signal.SIGKILL


def test_killed_parent_while_the_app_loads(start: Start, tmp_path: Path) -> None:
    """A worker that is still loading its app ends with the parent, too."""
    (tmp_path / "stuck.py").write_text("import time\ntime.sleep(60)\n")
    service = start("--app", "stuck:create_app")
    until(lambda: len(service.workers()) == 2, "workers that load")
    service.process.kill()
    assert service.ended() == -signal.SIGKILL


def test_stop_drains_a_running_request(start: Start) -> None:
    """A request that runs when the stop begins is answered; new ones are refused."""
    service = start(*SHOP_APP).until_ready()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(service.get, "/slow")
        until((service.folder / "slow-runs").exists, "the slow request to run")
        service.process.send_signal(signal.SIGTERM)
        until(lambda: len(service.workers()) == 1, "the idle worker to end")
        with pytest.raises(ConnectionError):
            service.get("/version", timeout_s=5)
        assert len(service.manager()) == 1
        (service.folder / "slow-may-end").touch()
        assert slow.result(DEADLINE_S) == (200, "1")
    assert service.ended() == 0


def test_drain_has_an_end(start: Start) -> None:
    """A request that never ends is cut when the time to drain is over."""
    service = start(*SHOP_APP, "--drain-timeout-s", "0.5").until_ready()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(service.get, "/slow")
        until((service.folder / "slow-runs").exists, "the slow request to run")
        service.process.send_signal(signal.SIGTERM)
        assert service.ended() == 0
        with pytest.raises(ConnectionError):
            slow.result(DEADLINE_S)
    assert "the time to drain is over with 1 requests open" in service.log()


def test_second_signal_forces(start: Start) -> None:
    """A second Ctrl-C ends everything at once, with an exit code that tells so."""
    service = start(*SHOP_APP, "--drain-timeout-s", "60").until_ready()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(service.get, "/slow")
        until((service.folder / "slow-runs").exists, "the slow request to run")
        service.process.send_signal(signal.SIGINT)
        until(lambda: "draining, a second one forces" in service.log(), "a drain")
        service.process.send_signal(signal.SIGINT)
        assert service.ended() == 1
        with pytest.raises(ConnectionError):
            slow.result(DEADLINE_S)


class Client(threading.Thread):
    """Asks for the version again and again, and counts what fails."""

    def __init__(self, port: int, *, keep_alive: bool, pause_s: float) -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, DEADLINE_S)
        self._headers = {} if keep_alive else {"Connection": "close"}
        self._pause_s = pause_s
        self.enough = threading.Event()
        self.answers: list[str] = []
        self.failures: list[str] = []

    def run(self) -> None:
        """Ask until it is enough."""
        while not self.enough.is_set():
            try:
                self._connection.request("GET", "/version", headers=self._headers)
                response = self._connection.getresponse()
                body = response.read().decode()
                if response.status == 200:
                    self.answers.append(body)
                else:
                    self.failures.append(f"{response.status} {body}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                self._connection.close()
            self.enough.wait(self._pause_s)
        self._connection.close()


def until_gone(service: Service, workers: set[int]) -> None:
    """Wait until none of these workers is left."""
    until(lambda: not workers & set(service.workers()), "the workers to end")


def until_answered(client: Client, count: int) -> None:
    """Wait until ``client`` has had so many answers."""
    until(lambda: len(client.answers) >= count, "further answers")


def test_reload_under_load(start: Start) -> None:
    """SIGHUP replaces all workers by ones with the new code and fails no request."""
    service = start(*SHOP_APP, "--workers", "2").until_ready()
    old = set(service.workers())
    clients = [
        Client(service.port, keep_alive=keep_alive, pause_s=pause_s)
        for keep_alive in (True, False)
        for pause_s in (0.002, 0.005, 0.02, 0.2)
    ]
    for client in clients:
        client.start()
    until(lambda: all(client.answers for client in clients), "an answer for each")
    shop = service.folder / "shop.py"
    for version in ("the second", "the third one"):
        shop.write_text(SHOP.replace('VERSION = "one"', f'VERSION = "{version}"'))
        service.process.send_signal(signal.SIGHUP)
        until_gone(service, old)
        old = set(service.workers())
        for client in clients:
            until_answered(client, len(client.answers) + 2)
        assert {version} == {
            client.answers[-1].rpartition(" ")[0] for client in clients
        }
    for client in clients:
        client.enough.set()
    for client in clients:
        client.join(DEADLINE_S)
    print(sum(len(client.answers) for client in clients), "requests, all answered")
    assert [failure for client in clients for failure in client.failures] == []
    assert len(service.workers()) == 2


def test_reload_lets_a_slow_request_end(start: Start) -> None:
    """A request that runs during a reload is answered by the worker that began it."""
    service = start(*SHOP_APP, "--workers", "1").until_ready()
    old = service.workers()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(service.get, "/slow")
        until((service.folder / "slow-runs").exists, "the slow request to run")
        service.process.send_signal(signal.SIGHUP)
        until(lambda: len(service.workers()) == 2, "the successor")
        until(
            lambda: service.get("/version")[1] != f"one {old[0]}",
            "an answer of the successor",
        )
        (service.folder / "slow-may-end").touch()
        assert slow.result(DEADLINE_S) == (200, "1")
    until(lambda: not set(old) & set(service.workers()), "the old worker to end")


def test_reload_of_broken_code_keeps_the_old_workers(start: Start) -> None:
    """A reload to code that cannot start is given up, and the old workers stay."""
    service = start(*SHOP_APP).until_ready()
    old = service.workers()
    (service.folder / "shop.py").write_text("raise RuntimeError('no such luck')\n")
    service.process.send_signal(signal.SIGHUP)
    until(lambda: "the reload is given up" in service.log(), "the end of the reload")
    assert old == service.workers()
    assert "no such luck" in service.log()
    assert service.get() == (200, "1")


@pytest.mark.parametrize(
    ("app", "reason"),
    [
        ("nowhere:create_app", "No module named 'nowhere'"),
        ("shop:no_factory", "has no attribute 'no_factory'"),
        ("shop", "expected module:factory"),
        ("leaves:wants", "wants(config); give its arguments defaults"),
        ("leaves:app", "exit code 9"),
    ],
)
def test_app_that_cannot_start(
    start: Start, tmp_path: Path, app: str, reason: str
) -> None:
    """An app that cannot be loaded at the first start ends it with a clear error."""
    (tmp_path / "leaves.py").write_text(LEAVES)
    service = start("--app", app)
    assert service.ended() == 1
    last = next(line for line in service.log().splitlines() if "given up" in line)
    assert app in last
    assert reason in last


def test_crash_loop_backs_off(start: Start) -> None:
    """A worker that keeps dying is replaced with growing pauses, and logged."""
    service = start(*SHOP_APP, "--workers", "1", "--backoff-max-s", "1").until_ready()
    for _ in range(3):
        until(lambda: len(service.workers()) == 1, "a worker")
        (victim,) = service.workers()
        assert service.get("/version") == (200, f"one {victim}")
        os.kill(victim, signal.SIGKILL)
        until_gone(service, {victim})
    until(lambda: len(service.workers()) == 1, "a worker")
    expected = [
        "is replaced at once",
        "is replaced in 0.5 s, for it keeps dying",
        "is replaced in 1 s, for it keeps dying",
    ]
    assert expected == re.findall(r"is replaced .*", service.log())
    assert service.get() == (200, "1")


def test_killed_manager_is_restarted(start: Start) -> None:
    """A manager that is killed is started again, and requests work again."""
    service = start().until_ready()
    assert service.get() == (200, "1")
    victim = service.manager()
    os.kill(victim[0], signal.SIGKILL)
    until(lambda: service.manager() not in ([], victim), "a new manager")
    # Whether the number goes on is the store's affair, not that of the web half.
    assert service.get()[0] == 200
    assert "the manager died (killed by SIGKILL) and is started again at once" in (
        service.log()
    )


def test_explicit_address_starts_no_manager(start: Start, tmp_path: Path) -> None:
    """With an address given, no manager is started, and requests end in 503.

    That nobody answers there is told once, before it says that it is ready.
    """
    address = f"unix://{tmp_path}/nobody.sock"
    service = start("--address", address).until_ready()
    assert service.manager() == []
    told = f"requests that need the manager at {address} will fail until it answers: "
    assert service.log().count(told) == 1
    assert service.get("/healthz")[0] == 200
    assert service.get("/readyz")[0] == 503


def test_an_address_where_a_manager_answers_is_told(start: Start) -> None:
    """Whoever names an address sees in the log that it is a good one."""
    first = start().until_ready()
    address = f"unix://{first.folder}/var/manager.sock"
    second = start("--address", address).until_ready()
    assert second.log().count(f"using the manager at {address}\n") == 1
    assert [each.get()[1] for each in (first, second)] == ["1", "2"]


def test_a_misspelled_variable_is_told_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the parent, and not by the manager and each worker again."""
    monkeypatch.setenv(MISSPELLED, "5")
    service = start(*SHOP_APP).until_ready()
    assert service.get() == (200, "1")
    assert service.log().count(f"{MISSPELLED} is not a setting") == 1


def test_second_service_uses_the_running_manager(start: Start) -> None:
    """Two services on one data folder share the manager that the first one started."""
    first = start().until_ready()
    second = start().until_ready()
    assert second.manager() == []
    assert [each.get()[1] for each in (first, second, first)] == ["1", "2", "3"]
    second.process.send_signal(signal.SIGINT)
    assert second.ended() == 0
    assert first.get() == (200, "4")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_second_service_goes_on_without_the_first(
    start: Start, number: signal.Signals
) -> None:
    """When the manager that it used ends with its owner, it starts one; a third, too.

    The numbers go on: it is the same data folder.
    """
    first = start("--workers", "1").until_ready()
    others = [start("--workers", "1").until_ready() for _ in range(2)]
    assert [each.get()[1] for each in (first, *others)] == ["1", "2", "3"]
    first.process.send_signal(number)
    first.ended()
    until(lambda: any(each.manager() for each in others), "a manager")
    assert [each.get() for each in others] == [(200, "4"), (200, "5")]
    # Both may have started one; the second to come finds the folder held and ends.
    until(lambda: sum(len(each.manager()) for each in others) == 1, "one manager")
    (owner,) = (each for each in others if each.manager())
    (last,) = (each for each in others if each is not owner)
    assert "the manager that was used is gone" in owner.log()
    owner.process.send_signal(number)
    owner.ended()
    until(last.manager, "a manager")
    assert last.get() == (200, "6")
    last.process.send_signal(signal.SIGINT)
    assert last.ended() == 0


def test_services_started_together_agree_on_one_manager(start: Start) -> None:
    """Two services started at the same instant end up with one manager."""
    both = [start("--workers", "1"), start("--workers", "1")]
    for service in both:
        service.until_ready()
    assert sum(len(service.manager()) for service in both) == 1
    assert [service.get()[1] for service in both] == ["1", "2"]


def test_address_in_use(start: Start) -> None:
    """A port that is taken ends the start with an error that names it."""
    first = start("--workers", "1").until_ready()
    second = start("--bind", f"127.0.0.1:{first.port}")
    assert second.ended() == 1
    assert f"127.0.0.1:{first.port}" in second.log()


def test_idle_connections_do_not_hold_up_the_end(start: Start) -> None:
    """Connections without a request are closed soon after the drain began."""
    service = start("--workers", "1", "--drain-timeout-s", "30").until_ready()
    idle = [http.client.HTTPConnection("127.0.0.1", service.port) for _ in range(20)]
    for connection in idle:
        connection.connect()
    assert service.get("/healthz")[0] == 200
    began = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    assert service.ended() == 0
    assert time.monotonic() - began < 10
    for connection in idle:
        connection.close()
