"""The page ``/demo``: its five variants over HTTP, and the process that one needs."""

from __future__ import annotations

import configparser
import contextlib
import dataclasses
import html
import http.client
import importlib.util
import inspect
import json
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from state_server.errors import ConfigError
from state_server.objects.demonstration import RUNS_MAX, DemonstrationCounter
from state_server.settings import read_address_file
from web import demo, stock_process
from web.app import create_app
from web.stock_process import NotAvailable, StockProcess
from web.variants import stock_manager

from ..processes import ROOT, ManagerProcess, freeze, is_alive, wait_until
from ..test_web_supervisor import Service

CLIENTS = 100
DEADLINE_S = 40.0
RUN = "0123456789abcdef"
ASSETS = sorted(path for path in (ROOT / "web" / "static").iterdir())


def app_without_manager(folder: Path, **config: Any) -> Flask:
    """Return the default app in a place where there is no manager and no folder."""
    return create_app({"STATE_SERVER_DATA_DIR": str(folder / "nowhere"), **config})


# The page ----------------------------------------------------------------------------


def test_page_shows_the_code_that_answers(tmp_path: Path) -> None:
    """The text beside each result is the whole file whose function gives the number."""
    answer = app_without_manager(tmp_path).test_client().get("/demo")
    shown = html.unescape(answer.text)
    assert answer.status_code == 200
    assert len(demo.VARIANTS) == 5
    for variant in demo.VARIANTS.values():
        assert (ROOT / variant.path).read_text() in shown
        module = inspect.getmodule(variant.next_number)
        assert module is not None
        assert module.__file__ == str(ROOT / variant.path)
    assert inspect.getsource(DemonstrationCounter) in shown


def test_page_shows_the_code_that_was_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is changed under a running process does not change its page."""
    (tmp_path / "edited_variant.py").write_text(
        '"""Title.\n\nText.\n"""\ndef next_number(run):\n    return 1\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("edited_variant")
    variant = demo.variant_of(module)
    (tmp_path / "edited_variant.py").write_text("# changed\n")
    assert "return 1" in variant.source
    assert (variant.name, variant.title) == ("edited-variant", "Title")


def test_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    """The page and its files name no other host, and carry no inline script or style.

    The policy forbids both, so that a mistake here would be seen in the browser too.
    """
    answer = app_without_manager(tmp_path).test_client().get("/demo")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    page = re.sub(r"<pre.*?</pre>", "", answer.text, flags=re.DOTALL)
    assert not re.search(r"<script(?![^>]*src=)|<style|\s(style|on\w+)=", page)
    for text in (page, *(path.read_text() for path in ASSETS)):
        hosts = set(re.findall(r"(?:https?:)?//[a-z][\w.-]*\.[a-z]+[\w/]*", text))
        assert hosts <= {"http://www.w3.org/2000/svg"}
    for address in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert address.startswith(("/static/", "#"))


def test_installed_package_carries_the_page(tmp_path: Path) -> None:
    """A build of the package has the template and every static file."""
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for package in ("state_server", "web"):
        shutil.copytree(ROOT / package, tmp_path / package)
    subprocess.run(
        [
            *(sys.executable, "-c", "import setuptools; setuptools.setup()"),
            *("-q", "build_py", "--build-lib", "built"),
        ],
        cwd=tmp_path,
        check=True,
        timeout=DEADLINE_S,
    )
    for part in ("static", "templates", "variants"):
        expected = {path.name for path in (ROOT / "web" / part).glob("*.*")}
        built = {path.name for path in (tmp_path / "built" / "web" / part).iterdir()}
        assert expected == built


def test_package_data_names_the_folders() -> None:
    """Both folders are in setup.cfg, also where setuptools is missing."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert "static/*, templates/*" in config["options.package_data"]["web"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", f"/demo/no-such-variant/{RUN}", 404),
        ("POST", "/demo/plain-global/0123", 404),
        ("POST", f"/demo/plain-global/{RUN.upper()}", 404),
        ("POST", f"/demo/plain-global/{RUN * 1000}", 404),
        ("POST", f"/demo/plain-global/{RUN}%0a", 404),
        ("GET", f"/demo/plain-global/{RUN}", 405),
        ("POST", "/demo", 405),
    ],
)
def test_other_requests_are_refused(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    """Only known variants and well-formed runs take a number, and only by POST."""
    client = app_without_manager(tmp_path).test_client()
    assert client.open(path, method=method).status_code == status


def test_runs_do_not_disturb_each_other_and_are_bounded() -> None:
    """Each run counts from 1, and any number of runs leave no more than the last."""
    counter = DemonstrationCounter()
    assert [counter.next_number("a") for _ in range(3)] == [1, 2, 3]
    assert counter.next_number("b") == 1
    assert counter.next_number("a") == 4
    for number in range(RUNS_MAX + 100):
        assert counter.next_number(f"run {number}") == 1
    assert len(counter.numbers) == RUNS_MAX
    assert counter.next_number(f"run {RUNS_MAX + 99}") == 2


def test_run_that_goes_on_is_not_forgotten() -> None:
    """However many other runs begin meanwhile, it counts on and gives nothing twice."""
    counter = DemonstrationCounter()
    for number in range(3 * RUNS_MAX):
        assert counter.next_number("mine") == number + 1
        counter.next_number(f"run {number}")
    assert len(counter.numbers) == RUNS_MAX


def test_cookie_of_the_session_does_not_grow(tmp_path: Path) -> None:
    """However many runs a visitor has, the cookie carries the last one."""
    client = app_without_manager(tmp_path, SECRET_KEY="secret").test_client()
    sizes = set()
    for _ in range(20):
        run = secrets.token_hex(8)
        assert client.post(f"/demo/session-cookie/{run}").json == {
            "number": 1,
            "worker": demo.worker_name(),
        }
        cookie = client.get_cookie("session")
        assert cookie is not None
        sizes.add(len(cookie.value) // 20)
    assert len(sizes) == 1


def test_requests_are_limited(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Above the allowance a request gets 429, with one log line; it comes back."""
    now = [1000.0]
    monkeypatch.setattr(demo.time, "monotonic", lambda: now[0])
    app = app_without_manager(tmp_path, DEMO_REQUESTS_MAX=10, DEMO_REQUESTS_PER_S=2)
    client = app.test_client()

    def ask() -> int:
        return client.post(f"/demo/plain-global/{secrets.token_hex(8)}").status_code

    with caplog.at_level(logging.WARNING, "state_server.web.demo"):
        assert [ask() for _ in range(15)] == [200] * 10 + [429] * 5
        assert caplog.text.count("Limit reached: 10 requests") == 1
    refused = client.post(f"/demo/plain-global/{RUN}")
    assert refused.headers["Retry-After"] == "5"
    assert refused.json == {"message": "Too many requests; wait a few seconds."}
    now[0] += 1.0
    assert [ask() for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DEMO", "no"),
        ("DEMO_REQUESTS_MAX", 0),
        ("DEMO_REQUESTS_MAX", "many"),
        ("DEMO_REQUESTS_PER_S", True),
    ],
)
def test_configuration_is_checked(tmp_path: Path, key: str, value: object) -> None:
    """A value that does not fit is named when the app is made."""
    with pytest.raises(ConfigError, match=f"{key} is {value!r}"):
        app_without_manager(tmp_path, **{key: value})


def test_page_can_be_switched_off(tmp_path: Path) -> None:
    """Without the page the app still answers, and makes no key."""
    client = app_without_manager(tmp_path, DEMO=False).test_client()
    assert client.get("/demo").status_code == 404
    assert client.get("/healthz").status_code == 200


def test_variants_say_what_they_lack(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a data folder two variants cannot work: they say so, with status 503.

    The text for visitors names no path; the log does.
    """
    client = app_without_manager(tmp_path).test_client()
    assert "has no sessions" in caplog.text
    for name, words in (
        ("session-cookie", "no SECRET_KEY"),
        ("stock-manager", "could not be started"),
    ):
        answer = client.post(f"/demo/{name}/{RUN}")
        assert answer.status_code == 503
        assert words in answer.json["message"]
        assert "nowhere" not in answer.text
    assert f"there is no data folder {tmp_path / 'nowhere'}" in caplog.text
    assert client.post(f"/demo/plain-global/{RUN}").status_code == 200


def test_strangers_make_no_stored_sessions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where sessions are kept by the manager, that variant is left out; the page says.

    No key is looked for then.
    """
    manager = ManagerProcess(tmp_path).start()
    try:
        app = app_without_manager(
            tmp_path,
            STATE_SERVER_ADDRESS=read_address_file(manager.data_dir),
            STATE_SERVER_AUTHKEY_FILE=str(manager.data_dir / "authkey"),
            STATE_SERVER_SESSIONS=True,
        )
        client = app.test_client()
        answer = client.post(f"/demo/session-cookie/{RUN}")
        assert answer.status_code == 404
        assert "StateServerSessionInterface" in answer.json["message"]
        assert "Set-Cookie" not in answer.headers
        assert client.post(f"/demo/shared-object/{RUN}").json["number"] == 1
        page = client.get("/demo").text
        assert 'data-variant="session-cookie"' not in page
        assert "StateServerSessionInterface" in page
        assert "Ask for 400 numbers" in page
        with app.app_context():
            assert app.extensions["state_server"].sessions.overview() == []
        assert "has no sessions" not in caplog.text
    finally:
        manager.stop()


# Several processes -------------------------------------------------------------------


class Web(Service):
    """One start_web.py with the default app."""

    def ask(self, variant: str, run: str = RUN, cookie: str = "") -> Any:
        """Return status and content of one answer, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, DEADLINE_S)
        with contextlib.closing(connection):
            headers = {"Cookie": cookie} if cookie else {}
            connection.request("POST", f"/demo/{variant}/{run}", headers=headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
            # A connection for each request: the next one may go to another worker.
            assert response.headers["Connection"] == "close"
            cookies = response.headers.get("Set-Cookie", "")
        return response.status, answer, cookies.partition(";")[0]

    def ask_both(self, variant: str) -> list[dict[str, Any]]:
        """Return what a hundred clients got of which each worker answered some.

        The system deals out connections as it likes, on a busy machine all to one.
        """
        for _ in range(20):
            answers = self.ask_at_once(variant)
            if len({answer["worker"] for answer in answers}) == 2:
                return answers
        raise AssertionError("one worker never answers")

    def ask_at_once(self, variant: str) -> list[dict[str, Any]]:
        """Return what a hundred clients got that asked at once."""
        together = threading.Barrier(CLIENTS)
        run = secrets.token_hex(8)

        def one(_: int) -> Any:
            together.wait(DEADLINE_S)
            status, answer, _cookie = self.ask(variant, run)
            assert status == 200, answer
            return answer

        with ThreadPoolExecutor(CLIENTS) as pool:
            return list(pool.map(one, range(CLIENTS)))

    def stock(self) -> list[int]:
        """Return the processes of the stock manager."""
        return self.processes(" web.variants.stock_manager ")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """Give the default app with two workers; all of it ends with the test."""
    service = Web(tmp_path)
    try:
        yield service.until_ready()
    finally:
        service.clear_away()


def test_hundred_requests_to_each_variant(web: Web) -> None:
    """Two workers answer: only where there is one counter comes one row of numbers."""
    expected = list(range(1, CLIENTS + 1))
    for name in ("plain-global", "global-with-lock"):
        answers = web.ask_both(name)
        for worker in {answer["worker"] for answer in answers}:
            mine = [a["number"] for a in answers if a["worker"] == worker]
            assert min(mine) == 1, f"{name}: a worker has no counter of its own"
        assert expected != sorted(answer["number"] for answer in answers)

    answers = web.ask_both("shared-object")
    assert expected == sorted(answer["number"] for answer in answers)

    # One counter, whose calls may meet: a number that was lost is no failure here.
    numbers = [answer["number"] for answer in web.ask_at_once("stock-manager")]
    assert 90 <= max(numbers) <= CLIENTS
    assert len(set(numbers)) > 90
    assert len(web.stock()) == 1

    _, answer, cookie = web.ask("session-cookie")
    assert (answer["number"], cookie.partition("=")[0]) == (1, "session")
    run_of_the_cookie = [
        web.ask("session-cookie", RUN, cookie)[1]["number"] for _ in range(10)
    ]
    assert run_of_the_cookie == [2] * 10
    assert web.get() == (200, "1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind(web: Web, number: signal.Signals) -> None:
    """The stock manager ends with start_web.py, however that ends."""
    assert web.ask("stock-manager")[0] == 200
    assert len(web.stock()) == 1
    web.process.send_signal(number)
    assert web.ended() == (0 if number == signal.SIGTERM else -number)
    assert not list((web.folder / "var" / "demonstration").glob("stock-*"))


def parent_of(process: int) -> int:
    """Return the parent of a process."""
    stat = Path(f"/proc/{process}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def answers_again(web: Web) -> bool:
    """Tell whether the stock manager answers; it says so when it does not."""
    status, answer, _ = web.ask("stock-manager", secrets.token_hex(8))
    assert status == 200 or answer["message"] == "The stock manager did not answer."
    return status == 200


@pytest.mark.parametrize("victim", ["itself", "its worker"])
def test_killed_stock_manager_is_started_again(web: Web, victim: str) -> None:
    """Whoever was killed, the next one that asks starts another, and there is one."""
    web.ask_both("stock-manager")
    (before,) = web.stock()
    os.kill(before if victim == "itself" else parent_of(before), signal.SIGKILL)
    wait_until(lambda: not is_alive(before), DEADLINE_S, "the end of the stock manager")
    wait_until(lambda: answers_again(web), DEADLINE_S, "an answer")
    wait_until(lambda: len(web.stock()) == 1, DEADLINE_S, "one stock manager")
    assert web.stock() != [before]


@pytest.fixture
def stock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], int]]:
    """Give a function that asks a stock manager of this process, with short waits."""
    monkeypatch.setattr(stock_process, "ANSWER_TIMEOUT_S", 0.7)
    monkeypatch.setattr(stock_process, "END_S", 0.1)
    monkeypatch.setattr(stock_process, "RETRY_AFTER_S", 0.1)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    process = StockProcess("web.variants.stock_manager", stock_manager.connect)

    def ask() -> int:
        with process.proxy(tmp_path) as proxy:
            return int(proxy.next_number(RUN))

    yield ask
    if process._end is not None:
        process._end()
        stock_process.atexit.unregister(process._end)


def test_late_answer_reaches_nobody(stock: Callable[[], int], tmp_path: Path) -> None:
    """A call to a process that stands still ends; its answer is not the next one's."""
    assert [stock(), stock()] == [1, 2]
    child = process_with(f"--address {tmp_path}")
    freeze(child)
    with pytest.raises(NotAvailable, match="did not answer"):
        stock()
    os.kill(child, signal.SIGCONT)
    # The call that was cut short did run, and took the number 3.
    assert wait_until(lambda: with_patience(stock), DEADLINE_S, "an answer") == 4


def test_frozen_process_is_replaced(stock: Callable[[], int], tmp_path: Path) -> None:
    """A process that stands still for good is killed, and another takes its place."""
    assert stock() == 1
    child = process_with(f"--address {tmp_path}")
    freeze(child)
    assert wait_until(lambda: with_patience(stock), DEADLINE_S, "an answer") == 1
    assert not is_alive(child)
    assert process_with(f"--address {tmp_path}") != child


def process_with(words: str) -> int:
    """Return the one process whose command line has ``words``."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
            if words.encode() in command:
                found.append(int(entry.name))
    assert len(found) == 1
    return found[0]


def with_patience(ask: Callable[[], int]) -> int | None:
    """Return the answer, or ``None`` when there is none yet."""
    with contextlib.suppress(NotAvailable):
        return ask()
    return None


def test_process_that_cannot_start_is_no_storm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When the process fails at once, it is not started anew by each request."""
    process = StockProcess("no.such.module", stock_manager.connect)
    with caplog.at_level(logging.INFO):
        for _ in range(20):
            with pytest.raises(NotAvailable, match="could not be started"):
                process.proxy(tmp_path).__enter__()
    assert caplog.text.count("the stock manager started") == 1
    assert caplog.text.count("cannot be started: its process ended") == 1
    assert process._end is not None
    process._end()
    stock_process.atexit.unregister(process._end)


def test_page_under_gunicorn(tmp_path: Path) -> None:
    """Each variant answers in gevent workers that were forked from a loaded app."""
    pytest.importorskip("gevent", reason="gevent is not installed")
    if importlib.util.find_spec("gunicorn") is None:
        pytest.skip("gunicorn is not installed")
    from .test_servers import Served, gunicorn

    folder = tmp_path / "manager"
    folder.mkdir(mode=0o700)
    manager = ManagerProcess(folder).start()
    kind = gunicorn("gevent", "--preload", app="web.app:create_app()")
    server = Served(dataclasses.replace(kind, first="/healthz"), manager, tmp_path)
    try:
        for name in demo.VARIANTS:
            run = secrets.token_hex(8)
            bodies = server.get_at_once([f"/demo/{name}/{run}"] * 50, method="POST")
            answers = [json.loads(body) for body in bodies]
            numbers = sorted(answer["number"] for answer in answers)
            if name == "shared-object":
                assert list(range(1, 51)) == numbers
    finally:
        server.end()
        manager.stop()
