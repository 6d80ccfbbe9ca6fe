"""The examples, each started by the command that its file and the README give."""

from __future__ import annotations

import ast
import contextlib
import html
import http.client
import importlib
import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest

from ..processes import ROOT, wait_until
from ..test_web_supervisor import DEADLINE_S, Service, pytestmark  # noqa: F401 - for pytest

FOLDER = ROOT / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def documented(name: str) -> str:
    """Return the command in the docstring of an example, on one line."""
    docstring = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
    assert docstring is not None
    commands = re.findall(r"^ +(python start_web\.py .*)$", docstring, re.MULTILINE)
    assert len(commands) == 1
    return " ".join(commands[0].split())


@contextlib.contextmanager
def running(name: str, folder: Path, *options: str) -> Iterator[Service]:
    """Run an example as documented, on a free port; it ends in good order."""
    _, _, *arguments = shlex.split(documented(name))
    service = Service(folder, *arguments, *options)
    try:
        yield service.until_ready()
        service.process.terminate()
        assert service.ended() == 0, service.log()
    finally:
        service.clear_away()
    assert "Traceback" not in service.log()


class Answer(NamedTuple):
    """What a visitor got."""

    status: int
    headers: http.client.HTTPMessage
    text: str


class Visitor:
    """A browser: it keeps its cookie. Used by one thread at a time, or copied."""

    def __init__(self, service: Service, cookie: str = "") -> None:
        self.service = service
        self.cookie = cookie

    def open(
        self, path: str, method: str = "GET", fields: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Return the connection of a request, and the response, still unread."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.service.port, timeout=DEADLINE_S
        )
        headers = {"Cookie": self.cookie} if self.cookie else {}
        if fields is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        body = None if fields is None else urlencode(fields)
        connection.request(method, path, body, headers)
        return connection, connection.getresponse()

    def ask(
        self, path: str, method: str = "GET", fields: dict[str, str] | None = None
    ) -> Answer:
        """Return the answer to a request, and keep the cookie that it set."""
        connection, response = self.open(path, method, fields)
        with contextlib.closing(connection):
            text = html.unescape(response.read().decode())
        cookie = response.getheader("Set-Cookie")
        if cookie is not None:
            self.cookie = cookie.partition(";")[0]
        return Answer(response.status, response.headers, text)

    def post(self, path: str, **fields: str) -> int:
        """Send a form; return the status."""
        return self.ask(path, "POST", fields).status


def at_once(count: int, function: Callable[[int], Any]) -> list[Any]:
    """Call ``function`` with the numbers below ``count``, in as many threads."""
    together = threading.Barrier(count)

    def one(number: int) -> Any:
        together.wait(DEADLINE_S)
        return function(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


# All of them -------------------------------------------------------------------------


def test_readme_gives_the_commands_of_the_files() -> None:
    """The README lists every example, with the very command that its file gives."""
    text = (FOLDER / "README.md").read_text()
    listed = re.findall(r"^\*\*\[(\w+)\.py\]\(\1\.py\)\*\*", text, re.MULTILINE)
    commands = re.findall(r"^    (python start_web\.py .*)$", text, re.MULTILINE)
    assert sorted(listed) == NAMES
    assert [documented(name) for name in listed] == commands


@pytest.mark.parametrize("name", NAMES)
def test_example_says_what_to_install(name: str) -> None:
    """What an example imports beyond Flask is installed by a command in its file."""
    text = (FOLDER / f"{name}.py").read_text()
    needs = {
        "slow_page": "pip install -e '.[cache]'",
        "rate_limited_api": "pip install -e '.[limits]' flask-limiter",
        "shared_model": "pip install -e '.[arrays]'",
    }
    installs = re.findall(r"^ +(pip install .*)$", text, re.MULTILINE)
    assert installs == ([needs[name]] if name in needs else [])
    assert all(command in (FOLDER / "README.md").read_text() for command in installs)


# One by one --------------------------------------------------------------------------


def visits(answer: Answer) -> int:
    """Return the number on a page of the page counter."""
    assert answer.status == 200, answer
    found = re.search(r"<strong>(\d+)</strong>", answer.text)
    assert found is not None, answer.text
    return int(found[1])


def test_page_counter_counts_each_visit_once(tmp_path: Path) -> None:
    """A hundred visitors at once are 1 to 100, and after a restart comes 101.

    Each page counts for itself, HEAD counts nothing, and no path can be made up.
    """
    with running("page_counter", tmp_path) as service:
        visitor = Visitor(service)
        numbers = at_once(100, lambda _: visits(Visitor(service).ask("/")))
        assert sorted(numbers) == list(range(1, 101))
        assert visitor.ask("/", "HEAD").status == 200
        assert visits(visitor.ask("/news")) == 1
        assert visitor.ask("/made-up").status == 404
    with running("page_counter", tmp_path) as service:
        assert visits(Visitor(service).ask("/")) == 101


class Watcher(threading.Thread):
    """A browser with the poll open: takes events, and connects again after each end."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self.visitor = Visitor(service)
        self.totals: dict[str, int] = {}
        self.stop = threading.Event()
        self.start()

    def run(self) -> None:
        """Take events until told to stop."""
        while not self.stop.wait(0.1):
            connection, response = self.visitor.open("/events")
            with contextlib.closing(connection):
                for line in response:
                    if line.startswith(b"data: "):
                        self.totals = json.loads(line[6:])

    def sees(self, **expected: int) -> None:
        """Wait until it sees these totals."""
        wait_until(lambda: self.totals == expected, DEADLINE_S, f"{expected} votes")


def test_live_poll_shows_every_vote_to_everybody(tmp_path: Path) -> None:
    """Votes at the same time all count, and two open browsers see them all.

    Meanwhile there are 60 streams for 16 threads: each is answered and ends, and the
    votes are taken. Who votes again changes their vote. Without the cookie of the page
    nobody votes, and other sites cannot have it sent along.
    """
    with running("live_poll", tmp_path) as service:
        watchers = [Watcher(service), Watcher(service)]
        voters = [Visitor(service) for _ in range(30)]
        opened = at_once(30, lambda number: voters[number].ask("/"))
        assert all("SameSite=Lax" in answer.headers["Set-Cookie"] for answer in opened)
        crowd = [Visitor(service).open("/events") for _ in range(60)]

        def vote(number: int) -> int:
            return voters[number].post("/vote", choice=("Tea", "Coffee")[number % 2])

        assert at_once(30, vote) == [303] * 30
        for watcher in watchers:
            watcher.sees(Tea=15, Coffee=15)
        changed = at_once(10, lambda _: voters[0].post("/vote", choice="Coffee"))
        assert changed == [303] * 10
        for watcher in watchers:
            watcher.sees(Tea=14, Coffee=16)
            watcher.stop.set()
        assert Visitor(service).post("/vote", choice="Tea") == 400
        assert voters[0].post("/vote", choice="Wine") == 400
        assert voters[0].post("/vote") == 400
        page = voters[0].ask("/").text
        assert 'data-choice="Tea">14<' in page
        assert 'data-choice="Coffee">16<' in page
        streams = [response.read().decode() for _, response in crowd]
        assert all(stream.startswith("retry: 2000\n\ndata: ") for stream in streams)
        # Four in each of two processes have a place, and are told of the changes.
        assert sum(stream.count("data: ") > 1 for stream in streams) <= 8
        for watcher in watchers:
            watcher.join(DEADLINE_S)


def test_cart_loses_nothing_to_two_tabs(tmp_path: Path) -> None:
    """Forty things put in at once by one visitor, one taken out meanwhile: all hold."""
    with running("shopping_cart", tmp_path) as service:
        visitor = Visitor(service)
        first = visitor.ask("/")
        assert "Nothing yet." in first.text
        assert "SameSite=Lax" in first.headers["Set-Cookie"]
        assert visitor.post("/add", product="Honey") == 303
        (honey,) = re.findall(r'action="(/remove/[^"]+)"', visitor.ask("/").text)

        def change(number: int) -> int:
            tab = Visitor(service, visitor.cookie)
            if number == 0:
                return tab.post(honey)
            return tab.post("/add", product="Tea")

        assert at_once(41, change) == [303] * 41
        page = visitor.ask("/").text
        assert page.count("<li>Tea, 4.20") == 40
        assert "<li>Honey" not in page
        assert "<strong>168.00</strong>" in page
        assert visitor.post("/remove/began") == 303
        assert visitor.post("/add", product="Wine") == 400
        assert visitor.post("/empty") == 303
        assert "Nothing yet." in visitor.ask("/").text


def test_slow_page_is_computed_once_for_fifty(tmp_path: Path) -> None:
    """Fifty visitors at once, in two processes, all read one and the same page."""
    pytest.importorskip("flask_caching", reason="the extra 'cache' is not installed")
    with running("slow_page", tmp_path) as service:
        pages = at_once(50, lambda _: Visitor(service).ask("/"))
        pages.append(Visitor(service).ask("/"))
    assert {page.status for page in pages} == {200}
    assert len({page.text for page in pages}) == 1
    assert "Computed by process" in pages[0].text


def test_slow_page_without_a_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no manager the page is computed, and nobody gets an error."""
    pytest.importorskip("flask_caching", reason="the extra 'cache' is not installed")
    slow_page = importlib.import_module("examples.slow_page")
    monkeypatch.setenv("STATE_SERVER_DATA_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr(slow_page, "COMPUTING_S", 0.0)
    client = slow_page.create_app().test_client()
    answers = [client.get("/") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3


def test_rate_limit_is_exact_in_two_processes(tmp_path: Path) -> None:
    """Of eighty requests at once, in two processes, ten are answered, not one more."""
    pytest.importorskip("flask_limiter", reason="flask-limiter is not installed")
    with running("rate_limited_api", tmp_path) as service:
        answers = at_once(80, lambda _: Visitor(service).ask("/"))
        alive = at_once(20, lambda _: Visitor(service).ask("/healthz").status)
    passed = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 429]
    assert (len(passed), len(refused)) == (10, 70)
    assert alive == [200] * 20
    assert all(json.loads(answer.text) == {"answer": 42} for answer in passed)
    assert json.loads(refused[0].text) == {"error": "The limit is 10 per 1 minute."}
    assert {answer.headers["X-RateLimit-Limit"] for answer in answers} == {"10"}
    assert all(0 < int(answer.headers["Retry-After"]) <= 60 for answer in refused)


def test_rate_limit_without_a_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no manager the process counts for itself, to the same limit."""
    pytest.importorskip("flask_limiter", reason="flask-limiter is not installed")
    rate_limited_api = importlib.import_module("examples.rate_limited_api")
    monkeypatch.setenv("STATE_SERVER_DATA_DIR", str(tmp_path / "nowhere"))
    client = rate_limited_api.create_app().test_client()
    statuses = [client.get("/").status_code for _ in range(12)]
    assert statuses == [200] * 10 + [429] * 2


def test_model_is_in_memory_once(tmp_path: Path) -> None:
    """All get answers; the manager has model and numpy, the workers have neither."""
    pytest.importorskip("numpy", reason="the extra 'arrays' is not installed")
    with running("shared_model", tmp_path) as service:
        answers = at_once(12, lambda _: Visitor(service).ask("/?area=100&distance=5.0"))
        prices = re.findall(r"About <strong>([\d,]+)<", str(answers))
        assert Visitor(service).ask("/?area=nan").status == 400
        assert Visitor(service).ask("/?area=-1").status == 400
        (manager,) = service.manager()
        with_numpy = [
            process
            for process in (manager, *service.workers())
            if "/numpy/" in Path(f"/proc/{process}/maps").read_text()
        ]
    assert with_numpy == [manager]
    assert len(prices) == 12
    assert len(set(prices)) == 1


def test_model_says_when_numpy_is_missing() -> None:
    """Without numpy the manager refuses to start, and says what to install."""
    hidden = (
        "import sys; sys.modules['numpy'] = None\n"
        "from state_server.service import main\n"
        "sys.exit(main(['--objects', 'examples.shared_model']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", hidden],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode != 0
    assert "run: pip install -e '.[arrays]'" in ended.stderr
    assert "Traceback" not in ended.stderr
