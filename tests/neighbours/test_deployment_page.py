"""The page on production: its services, configurations, scripts and commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import state_server
from state_server import settings

from ..conftest import StartManager
from ..processes import ROOT
from ..test_web_supervisor import DEADLINE_S, Service
from .test_flask_page import files, python_blocks, run_python

PAGE = (ROOT / "docs" / "deployment.md").read_text()
BIN = "/srv/shop/.venv/bin/"

SHOP = """
from state_server import share

@share
class Orders:
    def __init__(self):
        self.last = 0

    def next_number(self):
        self.last += 1
        return self.last
"""

APP = """
from flask import Flask
from state_server.integrations.flask import StateServer

def create_app():
    app = Flask(__name__)
    state = StateServer(app)

    @app.get("/")
    def order():
        return str(state.get("Orders").next_number())

    return app
"""


def blocks() -> dict[str, str]:
    """Return the indented files of the page, by the name in their first comment."""
    found = {}
    for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", PAGE, re.MULTILINE):
        text = re.sub(r"^    ", "", block.strip("\n"), flags=re.MULTILINE)
        name = re.search(r"\A(?:#!.*\n)?# ([\w./-]+)", text)
        if name is not None:
            found[Path(name[1]).name] = text + "\n"
    return found


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Return a folder with the app of the page, and its environment's commands."""
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "app.py").write_text(APP)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, module in (("python", ""), ("state-server", "-m state_server")):
        script = bin_folder / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        script.chmod(0o755)
    return tmp_path


def run(shop: Path, *words: str, **environment: str) -> str:
    """Run a command in the folder of the app; return what it prints."""
    done = subprocess.run(
        words,
        cwd=shop,
        env={**os.environ, "PYTHONPATH": f"{shop}:{ROOT}", **environment},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def started_by(unit: str) -> list[str]:
    """Return the command that a unit starts."""
    (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    return shlex.split(line)


def check_command(words: list[str]) -> None:
    """Fail unless the manager, or the web half, knows all options of a command."""
    record: type[settings.CommonSettings] = settings.WebSettings
    if words[1] == "manager":
        record, words = settings.ManagerSettings, words[2:]
    else:
        assert words[1:3] == ["-m", "web"]
        words = words[3:]
    settings.from_command_line(record, words, {}, program="page", description="")


def test_the_units_are_right(shop: Path) -> None:
    """systemd finds no fault in them, and the commands have the options they name."""
    units = {name: text for name, text in blocks().items() if name.endswith(".service")}
    assert sorted(units) == ["shop-state.service", "shop.service"]
    for name, text in units.items():
        check_command(started_by(text))
        (shop / name).write_text(text.replace(BIN, f"{shop}/bin/"))
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("there is no systemd-analyze")
    for name in units:
        done = subprocess.run(
            [tool, "verify", "--man=no", str(shop / name)],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        # It ends with 0 where it only warns, of a misspelled key for instance. Of other
        # units of the machine it may say anything.
        assert done.returncode == 0, done.stderr
        assert name not in done.stderr


def test_the_container_starts_the_web_half() -> None:
    """Its command is one that there is; what the image copies is what it needs."""
    dockerfile = blocks()["Dockerfile"]
    (command,) = re.findall(r"^CMD (.*)$", dockerfile, re.MULTILINE)
    check_command(json.loads(command))
    assert '"app:create_app"' in command
    assert "COPY app.py shop.py ./" in dockerfile


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    """nginx finds no fault in the server of the page."""
    tool = shutil.which("nginx")
    if tool is None:
        pytest.skip("there is no nginx")
    server = blocks()["shop.conf"].replace("listen 80;", "listen 127.0.0.1:8099;")
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = tmp_path / "nginx.conf"
    whole.write_text(
        f"pid {tmp_path}/pid; events {{}}\nhttp {{\naccess_log off;\n{temporary}"
        f"{server}}}\n"
    )
    done = subprocess.run(
        [tool, "-t", "-e", str(tmp_path / "log"), "-c", str(whole)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr


def test_a_backup_is_made_each_day_and_can_be_tried(
    shop: Path, start_manager: StartManager
) -> None:
    """The script leaves one file, keeps it private, and throws old ones away."""
    manager = start_manager("--objects", "shop", PYTHONPATH=f"{shop}:{ROOT}")
    with manager.client() as client:
        assert client.get("Orders").next_number() == 1
    folder = shop / "backups"
    folder.mkdir()
    old = folder / "state-2001-01-31.db"
    old.touch()
    os.utime(old, (0, 0))
    script = shop / "backup.sh"
    script.write_text(
        blocks()["backup.sh"]
        .replace(BIN, f"{shop}/bin/")
        .replace("/var/backups/shop", str(folder))
        .replace("/var/lib/shop", str(manager.data_dir))
    )
    assert run(shop, "sh", str(script)) == ""
    (made,) = folder.iterdir()
    assert re.fullmatch(r"state-\d{4}-\d\d-\d\d\.db", made.name)
    assert made.stat().st_mode & 0o777 == 0o600

    trial = [
        shlex.split(line)
        for line in re.findall(r"^    (state-server .* trial .*)$", PAGE, re.MULTILINE)
    ]
    assert [words[1] for words in trial] == ["restore", "check"]
    said = ""
    for words in trial:
        words = [str(made) if word.endswith(".db") else word for word in words]
        said += run(shop, f"{shop}/bin/state-server", *words[1:])
    assert "1 object, 1 loaded" in said
    assert said.endswith("no problem\n")


ASK_HEALTH = """
import sys
from extensions import state
from flask import Flask
from health import health

app = Flask(__name__)
app.config["STATE_SERVER_DATA_DIR"] = sys.argv[1]
state.init_app(app)
app.register_blueprint(health)
visitor = app.test_client()
print([visitor.get(path).status_code for path in ("/healthz", "/readyz")])
"""


def test_health_tells_worker_and_manager_apart(
    shop: Path, start_manager: StartManager
) -> None:
    """Without a manager the worker is alive, and not ready."""
    (health,) = [block for block in python_blocks(PAGE) if "# health.py" in block]
    (shop / "health.py").write_text(health)
    (shop / "extensions.py").write_text(files()["extensions.py"])
    manager = start_manager()
    for data_dir, expected in (
        (manager.data_dir, "[200, 200]\n"),
        (shop / "none", "[200, 503]\n"),
    ):
        done = run_python(shop, "-c", ASK_HEALTH, str(data_dir))
        assert done.stdout == expected, done.stderr


def test_numbers_to_watch_are_there(start_manager: StartManager) -> None:
    """Each number that the page names is one of ``state-server status``."""
    manager = start_manager()
    with state_server.connect(data_dir=manager.data_dir) as client:
        status = client.control("status")
    table = PAGE[PAGE.index("| number |") : PAGE.index("Everything goes to the log")]
    named = re.findall(r"`(\w+)`", table)
    assert len(named) >= 4
    assert set(named) <= set(status)


def test_new_code_of_a_shared_class_fails_no_request(shop: Path) -> None:
    """``stop`` and SIGHUP under load: each number is given once, by either code."""
    options = ["--objects", "shop", "--app", "app:create_app"]
    service = Service(shop, *options).until_ready()
    try:
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(service.get) for _ in range(100)]
            assert asked[10].result()[0] == 200
            newer = SHOP.replace("last += 1", "last += 1000")
            (shop / "shop.py").write_text(newer)
            run(
                shop,
                *(f"{shop}/bin/state-server", "stop"),
                STATE_SERVER_DATA_DIR=str(shop / "var"),
            )
            service.process.send_signal(signal.SIGHUP)
            asked += [pool.submit(service.get) for _ in range(50)]
            answers = [each.result() for each in asked]
        assert {status for status, _ in answers} == {200}
        numbers = sorted(int(text) for _, text in answers)
        assert len(set(numbers)) == 150
        assert numbers[:5] == [1, 2, 3, 4, 5]
        assert numbers[-1] - numbers[-2] == 1000
        service.process.terminate()
        assert service.ended() == 0, service.log()
    finally:
        service.clear_away()
