"""The pages for Flask apps: their files, commands, fragments, tables and links."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from state_server import settings
from state_server.integrations import app_config

from ..conftest import StartManager
from ..processes import ROOT
from ..test_web_supervisor import DEADLINE_S, Service

DOCS = ROOT / "docs"
PAGES = [
    *(DOCS / name for name in ("flask.md", "deployment.md", "values.md")),
    ROOT / "examples" / "README.md",
]
FLASK_PAGE = (DOCS / "flask.md").read_text()

#: How a block that is a whole file begins.
_FILE = re.compile(r"# (\w+\.py)\n")


def python_blocks(text: str) -> list[str]:
    """Return the blocks of Python code of a page."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def files() -> dict[str, str]:
    """Return the blocks of the page that are whole files, by name."""
    found = {}
    for block in python_blocks(FLASK_PAGE):
        name = _FILE.match(block)
        if name is not None:
            found[name[1]] = block
    return found


def fragments(text: str) -> list[str]:
    """Return the blocks that are not whole files."""
    return [block for block in python_blocks(text) if not _FILE.match(block)]


def commands(text: str) -> list[list[str]]:
    """Return the indented commands of a page, with what continues a line joined."""
    lines = re.findall(r"^ {4,}(.*)$", text.replace("\\\n", ""), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines if "'" not in line]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the files of the page."""
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run_python(
    folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in ``folder``, as a reader does who has installed the package."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STATE_SERVER_", "FLASK_", "PYTEST_"))
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def hundred_numbers(service: Service, *, killing: bool) -> list[int]:
    """Return what a hundred visitors get, twenty at a time; one kills the manager."""
    together = threading.Barrier(20)

    def one(number: int) -> int:
        if number < 20:
            together.wait(DEADLINE_S)
        if killing and number == 50:
            (manager,) = service.manager()
            os.kill(manager, signal.SIGKILL)
        status, text = service.get()
        assert status == 200, text
        return int(text)

    with ThreadPoolExecutor(20) as pool:
        return list(pool.map(one, range(100)))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_before_and_after(folder: Path) -> None:
    """The global gives numbers twice; the shared object gives 1 to 100, then 101.

    So it does when the manager is killed meanwhile. The commands are those of the page,
    but for the port.
    """
    before, after = (
        command[3:]
        for command in commands(FLASK_PAGE)
        if command[:3] == ["python", "-m", "web"]
    )

    def numbers(arguments: list[str], *, killing: bool = False) -> list[int]:
        service = Service(folder, *arguments)
        try:
            found = hundred_numbers(service.until_ready(), killing=killing)
            service.process.terminate()
            assert service.ended() == 0, service.log()
        finally:
            service.clear_away()
        return sorted(found)

    assert len(set(numbers(before))) < 100
    assert numbers(after) == list(range(1, 101))
    assert numbers(after, killing=True) == list(range(101, 201))


def test_the_tests_of_the_page_pass(folder: Path) -> None:
    """The page's own test file passes, and leaves no warning."""
    ended = run_python(
        folder, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 passed" in ended.stdout


DRIVE = """
import json
import app as numbers
from factory import create_app
from selling import app

shop = create_app().test_client()
orders = [shop.post("/orders/ann").get_json() for _ in range(2)]
visitor = app.test_client()
taken = [visitor.post("/take") for _ in range(3)]
away = numbers.create_app(
    {"STATE_SERVER_ADDRESS": "tcp://127.0.0.1:1", "STATE_SERVER_TIMEOUT": 0.1}
)
answer = away.test_client().get("/", headers={"Accept": "application/json"})
print(json.dumps([
    orders,
    [(reply.status_code, reply.get_json()) for reply in taken],
    [answer.status_code, answer.get_json(), answer.headers["Retry-After"]],
]))
"""


def test_larger_app_and_errors(folder: Path, start_manager: StartManager) -> None:
    """Blueprint and factory, an exception of a method, and a manager that is away."""
    manager = start_manager(
        *("--objects", "counters", "--objects", "stock"),
        PYTHONPATH=f"{folder}:{ROOT}",
    )
    place = str(manager.data_dir)
    ended = run_python(folder, "-c", DRIVE, STATE_SERVER_DATA_DIR=place)
    assert ended.returncode == 0, ended.stderr
    orders, taken, away = json.loads(ended.stdout)
    assert [order["order"] for order in orders] == [1, 2]
    sold_out = [409, {"error": "the last one has been sold"}]
    assert taken == [[200, {"left": 1}], [200, {"left": 0}], sold_out]
    status, body, retry_after = away
    assert (status, retry_after) == (503, "1")
    assert (body["error"], body["retryable"]) == ("Unreachable", True)


RUN_FRAGMENTS = """
import json, sys
from pathlib import Path

import numpy
import pandas
import state_server
from flask import Flask, redirect
from flask_session import Session
from state_server.integrations.flask import StateServer

table = pandas.DataFrame({"area": [1.0, 2.0]})
for text in json.load(sys.stdin):
    app = Flask("page")
    state = StateServer()
    if "StateServer(app)" not in text:
        app.config["STATE_SERVER_SESSIONS"] = "flask.session" in text
        state.init_app(app)
    names = {
        "app": app,
        "state": state,
        "state_server": state_server,
        "StateServer": StateServer,
        "Session": Session,
        "redirect": redirect,
        "table": table,
        "fetch_rates": lambda: {"EUR": 1},
    }
    with app.app_context():
        exec(compile(text, text, "exec"), names)
    with app.test_client() as visitor:
        visitor.get("/no-such-page")
print("all of them ran")
"""

MODEL = """
import numpy
from state_server import share

@share(durable=False)
class Model:
    def train(self, table):
        self.areas = table["area"].to_numpy()

    def weights(self):
        return self.areas * 2
"""


def test_fragments_run(folder: Path, start_manager: StartManager) -> None:
    """Every piece of code of the pages that is no whole file runs as it stands."""
    for package in ("flask_session", "flask_caching", "limits", "numpy", "pandas"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    (folder / "models.py").write_text(MODEL)
    manager = start_manager(
        *("--objects", "counters", "--objects", "models"),
        PYTHONPATH=f"{folder}:{ROOT}",
    )
    # Where the code names a folder, it is that of the manager.
    (folder / "var").symlink_to(manager.data_dir)
    texts = [text for page in PAGES for text in fragments(page.read_text())]
    assert len(texts) >= 12
    script = folder / "run_fragments.py"
    script.write_text(RUN_FRAGMENTS)
    ended = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(texts),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "all of them ran" in ended.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_is_python(page: Path) -> None:
    """Every block of Python parses, and what it imports from us is there."""
    for block in python_blocks(page.read_text()):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                if not node.module.startswith("state_server"):
                    continue
                pytest.importorskip(node.module, exc_type=ModuleNotFoundError)
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_table_of_the_configuration_is_complete() -> None:
    """Each key that the extension reads is in a table, and every key named is read."""
    source = Path(app_config.__file__ or "").read_text()
    read = {f"STATE_SERVER_{name}" for name in re.findall(r'read\("(\w+)"', source)}
    read |= set(map(settings.variable, settings.SESSION_KEYS))
    in_tables = set(re.findall(r"^\| `(STATE_SERVER_\w+)`", FLASK_PAGE, re.MULTILINE))
    assert len(read) > 10
    assert in_tables == read
    variables = {
        settings.variable(field)
        for record in (
            settings.ManagerSettings,
            settings.WebSettings,
            settings.ClientSettings,
        )
        for field in record.__dataclass_fields__
    }
    named = set(re.findall(r"\bSTATE_SERVER_\w*[A-Z]\b", FLASK_PAGE))
    assert named <= read | variables


def test_commands_have_options_that_there_are() -> None:
    """Every command for the manager or the web half of the page is accepted."""
    seen = 0
    for page in PAGES:
        for words in commands(page.read_text()):
            record: type[settings.CommonSettings] | None = None
            text = " ".join(words)
            if "state-server manager" in text:
                record = settings.ManagerSettings
                words = words[words.index("manager") + 1 :]
            elif text.startswith(("python -m web ", "python start_web.py ")):
                record = settings.WebSettings
                words = words[3 if words[1] == "-m" else 2 :]
            if record is not None:
                seen += 1
                settings.from_command_line(
                    record, words, {}, program="page", description=text
                )
    assert seen >= 10


def anchors(page: Path) -> Iterator[str]:
    """Yield the names that the headings of a page are linked by, as GitHub has them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    seen: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = seen[name] = seen.get(name, -1) + 1
        yield f"{name}-{number}" if number else name


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link of a page names a file, and a heading in it, that exist."""
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text())
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in set(anchors(target)), link
    assert links
