"""The same Flask app under every WSGI server, as real processes on the loopback.

Each server serves ``served_app``, whose handles are made, and whose client is used,
while the app loads. With ``--preload`` that is before the fork of the workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ..force_classes import sharing
from ..processes import ROOT, ManagerProcess, wait_until

APP = "tests.neighbours.served_app"
ASGI_APP = "tests.neighbours.served_asgi"
CLIENTS = 100
DEADLINE_S = 30.0

#: Where a server says which port it got: the first address on the loopback it names.
ADDRESS = re.compile(r"127\.0\.0\.1:([1-9]\d*)")


@dataclasses.dataclass(frozen=True)
class Kind:
    """One way to serve the app: a command, and what it needs."""

    name: str
    command: str
    needs: str = "flask"
    preload: bool = False
    first: str = "/process"

    def __str__(self) -> str:
        return self.name


def gunicorn(
    worker: str, options: str = "", *, workers: int = 2, app: str = f"{APP}:app"
) -> Kind:
    """Return gunicorn with one kind of worker."""
    return Kind(
        f"gunicorn {worker} {options}".strip(),
        f"python -m gunicorn --bind 127.0.0.1:0 --workers {workers} "
        f"--worker-class {worker} {options} {app}",
        needs="gevent" if worker == "gevent" else "gunicorn",
        preload="--preload" in options,
    )


def uwsgi(options: str) -> Kind:
    """Return uWSGI, which loads the app before the fork unless told otherwise.

    It runs what Python has to do after a fork only when it is asked to.
    """
    return Kind(
        f"uwsgi {options}".strip(),
        "uwsgi --http-socket 127.0.0.1:0 --master --processes 2 --threads 4 "
        f"--listen 100 {options} --module {APP}:app",
        needs="uwsgi",
        preload=options != "--lazy-apps",
    )


HYPERCORN = "python -m hypercorn --bind 127.0.0.1:0 --workers 2"
KINDS = [
    Kind(
        "start_web.py", f"python {ROOT}/start_web.py --app {APP}:app --bind 127.0.0.1:0"
    ),
    Kind("flask run", f"python -m flask --app {APP} run --port 0"),
    gunicorn("sync"),
    gunicorn("sync", "--preload"),
    gunicorn("gthread", "--threads 8"),
    gunicorn("gthread", "--threads 8 --preload"),
    gunicorn("gevent"),
    gunicorn("gevent", "--preload"),
    uwsgi(""),
    uwsgi("--py-call-osafterfork"),
    uwsgi("--lazy-apps"),
    Kind("hypercorn", f"{HYPERCORN} wsgi:{APP}:app", needs="hypercorn"),
    Kind("hypercorn a2wsgi", f"{HYPERCORN} asgi:{ASGI_APP}:app", needs="a2wsgi"),
]


class Served:
    """One server with all its processes, which have a process group of their own."""

    def __init__(self, kind: Kind, manager: ManagerProcess, folder: Path) -> None:
        program, *arguments = kind.command.split()
        path = shutil.which(program, path=str(Path(sys.executable).parent))
        if path is None:
            pytest.skip(f"there is no {program} beside {sys.executable}")
        if program == "python" and importlib.util.find_spec(kind.needs) is None:
            pytest.skip(f"the package {kind.needs} is not installed")
        self.kind = kind
        self.log_path = folder / f"{kind.name.replace(' ', '-')}.log"
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("STATE_SERVER_", "FLASK_"))
        }
        environ |= {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            # Some versions of gunicorn make a socket there.
            "HOME": str(folder),
            "STATE_SERVER_DATA_DIR": str(manager.data_dir),
            "SERVED_BY": kind.name,
        }
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [path, *arguments],
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.port = int(wait_until(self._address, DEADLINE_S, "the address")[1])
        wait_until(self.answers, DEADLINE_S, "the first answer")

    def _address(self) -> re.Match[str] | None:
        log = self.log_path.read_text(errors="replace")
        assert self.process.poll() is None, log
        return ADDRESS.search(log)

    def answers(self) -> bool:
        """Tell whether the server answers by now."""
        assert self.process.poll() is None, self.log_path.read_text(errors="replace")
        with contextlib.suppress(OSError, http.client.HTTPException):
            return bool(self.get(self.kind.first))
        return False

    def get(self, path: str, method: str = "GET") -> str:
        """Return the body of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, DEADLINE_S)
        with contextlib.closing(connection):
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read().decode()
        assert response.status == 200, (response.status, body)
        return body

    def get_at_once(self, paths: list[str], method: str = "GET") -> list[str]:
        """Return the bodies of requests that start together, a thread for each."""
        together = threading.Barrier(len(paths))

        def one(path: str) -> str:
            together.wait(DEADLINE_S)
            return self.get(path, method)

        with ThreadPoolExecutor(len(paths)) as pool:
            return list(pool.map(one, paths))

    def end(self) -> None:
        """End every process of the server."""
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE_S)


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerProcess]:
    """Give one manager for all servers of this file."""
    folder = tmp_path_factory.mktemp("manager", numbered=True)
    folder.chmod(0o700)
    manager = ManagerProcess(folder, *sharing("Echo"))
    manager.start()
    yield manager
    manager.stop()


@contextlib.contextmanager
def served(kind: Kind, manager: ManagerProcess, folder: Path) -> Iterator[Served]:
    """Serve the app; every process ends with the block."""
    server = Served(kind, manager, folder)
    try:
        yield server
    finally:
        server.end()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_hundred_clients_at_once(
    kind: Kind, manager: ManagerProcess, tmp_path: Path
) -> None:
    """A hundred clients get the numbers 1 to 100, each once, under every server.

    Then each asks a question of its own and must get the answer to that: workers that
    shared a connection with the process that loaded the app would mix them up.
    """
    tokens = [f"token-{number}" for number in range(CLIENTS)]
    with served(kind, manager, tmp_path) as server:
        bodies = server.get_at_once(["/"] * CLIENTS)
        replies = server.get_at_once([f"/count/{token}" for token in tokens])
    answers = [[int(part) for part in body.split()] for body in bodies]
    numbers = sorted(number for number, _, _ in answers)
    assert list(range(1, CLIENTS + 1)) == numbers
    workers = {worker for _, worker, _ in answers}
    loaders = {loader for _, _, loader in answers}
    if kind.preload:
        assert len(loaders) == 1
        assert not workers & loaders, "the app was not loaded before the fork"
    else:
        assert workers == loaders
    assert [[token, 1] for token in tokens] == [
        json.loads(reply)[:2] for reply in replies
    ]


def test_reload_of_flask_run(manager: ManagerProcess, tmp_path: Path) -> None:
    """``flask run --reload`` starts the app anew, and the numbers go on."""
    (tmp_path / "edited.py").write_text("from tests.neighbours.served_app import app\n")
    kind = Kind(
        "flask run with reload",
        "python -m flask --app edited run --port 0 --reload",
    )
    with served(kind, manager, tmp_path) as server:
        number, before, _ = server.get("/").split()
        assert number == "1"
        (tmp_path / "edited.py").touch()

        def answered_by_another() -> bool:
            # A connection that the old process has taken may end with it.
            with contextlib.suppress(OSError, http.client.HTTPException):
                return server.get("/process") != before
            return False

        wait_until(answered_by_another, DEADLINE_S, "the reload")
        number, after, _ = server.get("/").split()
    assert number == "2"
    assert before != after


@pytest.mark.parametrize("options", ["", "--preload"])
def test_slow_call_does_not_block_the_hub_of_gevent(
    options: str, manager: ManagerProcess, tmp_path: Path
) -> None:
    """While one request waits for its call, the same gevent worker answers others.

    With more requests at once than the client has connections some wait for one; with
    ``--preload`` the client was made before gevent patched the process.
    """
    kind = gunicorn("gevent", options, workers=1)
    kind = dataclasses.replace(kind, name=f"one {kind.name}")
    with served(kind, manager, tmp_path) as server, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(server.get, "/slow/sleeper/2.0")
        with manager.client() as client:
            busy = "busy_threads"
            wait_until(lambda: client.status()[busy], DEADLINE_S, "the slow call")
        for number in range(1, 6):
            assert server.get("/").split()[0] == str(number)
        assert not slow.done(), "the slow call ended before the others were answered"
        crowd = [f"/slow/{number}/0.2" for number in range(CLIENTS)]
        assert [str(number) for number in range(CLIENTS)] == server.get_at_once(crowd)
        assert slow.result(DEADLINE_S) == "sleeper"
