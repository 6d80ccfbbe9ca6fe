"""The storage for limits and Flask-Limiter, against a real manager."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from state_server import errors

from ..conftest import StartManager
from ..processes import ROOT, ManagerProcess, freeze, wait_until

limits = pytest.importorskip("limits")

from limits.storage import storage_from_string
from limits.strategies import STRATEGIES

from state_server.integrations.flask import StateServer, client_of
from state_server.integrations.limits import StateServerStorage

PER_HOUR = limits.RateLimitItemPerHour


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerProcess]:
    """Give one manager to all tests; each has a region of its own."""
    started = ManagerProcess(tmp_path_factory.mktemp("manager")).start()
    yield started
    started.stop()


@pytest.fixture
def region(request: pytest.FixtureRequest) -> str:
    """Return the name of the test's own region."""
    return re.sub(r"\W", "-", request.node.name)


@pytest.fixture
def storage(manager: ManagerProcess, region: str) -> Any:
    """Return a storage with a region of its own."""
    return StateServerStorage(data_dir=str(manager.data_dir), region=region)


# Many processes ----------------------------------------------------------------------


def passed_by_children(uri: str, processes: int, hits: int, limit: int) -> Any:
    """Return how many hits were let through, by strategy."""
    command = [sys.executable, "-m", "tests.neighbours.limiter_children", uri]
    ended = subprocess.run(
        [*command, str(processes), str(hits), str(limit)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return json.loads(ended.stdout)


def test_many_processes_never_exceed_the_limit(
    manager: ManagerProcess, region: str
) -> None:
    """Sixty-four processes hit at once: exactly as many pass as the limit says.

    The storage was made and used before they were forked. With a memory of their own,
    each of them lets its share through, so the test has teeth.
    """
    uri = f"stateserver://?data_dir={manager.data_dir}&region={region}"
    passed = passed_by_children(uri, processes=64, hits=5, limit=100)
    assert passed == dict.fromkeys(STRATEGIES, 100)

    apart = passed_by_children("memory://", processes=4, hits=50, limit=100)
    assert apart == dict.fromkeys(STRATEGIES, 200)


# Addresses and options ---------------------------------------------------------------


def test_every_form_of_address_finds_its_manager(
    manager: ManagerProcess,
    start_manager: StartManager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every form of address finds its manager; the count is one for all of them."""
    socket = str(manager.data_dir / "manager.sock")
    key = manager.key
    by_port = start_manager("--address", "tcp://127.0.0.1:0")
    port = by_port.address.rpartition(":")[2]
    monkeypatch.setenv("STATE_SERVER_AUTHKEY", by_port.key.decode())
    for uri in (f"stateserver://127.0.0.1:{port}", f"stateserver://localhost:{port}/"):
        assert storage_from_string(uri).incr("address", 60) > 0
    assert storage_from_string(f"stateserver://127.0.0.1:{port}").get("address") == 2
    monkeypatch.setenv("STATE_SERVER_AUTHKEY", key.decode())
    monkeypatch.setenv("STATE_SERVER_DATA_DIR", str(manager.data_dir))
    counts = [
        storage_from_string(uri, **options).incr("address", 60)
        for uri, options in (
            ("stateserver://", {}),
            (f"stateserver://{socket}", {}),
            (f"stateserver://{socket}?region=default", {"authkey": key}),
            ("stateserver://", {"data_dir": str(manager.data_dir)}),
            (f"stateserver://?data_dir={manager.data_dir}", {}),
        )
    ]
    assert counts == [1, 2, 3, 4, 5]


def test_regions_have_nothing_in_common(manager: ManagerProcess) -> None:
    """What is hit in one region is not counted in another."""
    options = {"data_dir": str(manager.data_dir)}
    one = storage_from_string("stateserver://?region=one", **options)
    other = storage_from_string("stateserver://", region="other", **options)
    assert (one.incr("key", 60), one.incr("key", 60), other.incr("key", 60)) == (
        1,
        2,
        1,
    )
    assert one.reset() == 1
    assert other.get("key") == 1


@pytest.mark.parametrize(
    ("uri", "options", "message"),
    [
        ("stateserver://:secret@host:1", {}, "holds a name or password"),
        ("stateserver://host:1/path", {}, "has both host"),
        ("stateserver://?authkey=secret", {}, "has a key in its query"),
        ("stateserver://?call_timeout_s=soon", {}, "call_timeout_s='soon'"),
        ("stateserver://", {"colour": "red"}, "no option colour"),
        ("stateserver://", {"regoin": "a"}, "regoin; did you mean region?"),
        ("stateserver://?regoin=a", {}, "regoin; did you mean region?"),
        ("stateserver://", {"call_timeout_s": -1}, "call_timeout_s is -1"),
        ("stateserver://?call_timeout_s=0", {}, "call_timeout_s is 0"),
        ("stateserver://", {"region": 5}, "region is 5; expected text"),
        ("stateserver://?region=", {}, "region is ''; expected text"),
        ("stateserver://", {"class_name": None}, "class_name is None; expected text"),
        ("stateserver://host", {}, "host"),
    ],
)
def test_address_that_does_not_fit(
    uri: str, options: dict[str, Any], message: str
) -> None:
    """It is refused when the app is made, by an error that names it and hides a key."""
    with pytest.raises(errors.ConfigError, match=re.escape(message)) as caught:
        storage_from_string(uri, **options)
    assert "secret" not in str(caught.value)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no manager to be found in the environment or the current folder."""
    for name in [name for name in os.environ if name.startswith("STATE_SERVER_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("server", ["before", "after", "none"])
def test_manager_of_the_app(
    manager: ManagerProcess, region: str, nowhere: None, server: str
) -> None:
    """Without an address the app's manager counts, given in whichever place and order.

    What follows outside of an app context asks the same one.
    """
    flask_limiter = pytest.importorskip("flask_limiter")
    app = Flask("shop")
    if server == "before":
        StateServer(app, data_dir=manager.data_dir)
    elif server == "none":
        app.config["STATE_SERVER_ADDRESS"] = manager.address
        app.config["STATE_SERVER_AUTHKEY"] = manager.key.decode()
    limiter = flask_limiter.Limiter(
        lambda: "visitor",
        app=app,
        default_limits=["2/hour"],
        storage_uri="stateserver://",
        storage_options={"region": region, "call_timeout_s": 0.5},
    )
    if server == "after":
        StateServer(app, data_dir=manager.data_dir)

    @app.get("/")
    def index() -> str:
        return "here"

    codes = [app.test_client().get("/").status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    assert manager.client().get("RateLimits", region).info()["fixed_windows"] == 1
    assert limiter.storage.reset() == 1


def test_client_of_the_app_is_used(manager: ManagerProcess, nowhere: None) -> None:
    """The app's client is asked itself, and each app its own; options win over it."""
    one, other = Flask("one"), Flask("other")
    StateServer(one, data_dir=manager.data_dir)
    StateServer(other, data_dir="other")
    of_the_app = storage_from_string("stateserver://", call_timeout_s=0.2)
    given = storage_from_string("stateserver://", data_dir="given")
    for app in (one, other):
        with app.app_context():
            assert of_the_app.storage._caller is client_of(app)
            assert given.storage._caller is not client_of(app)
            assert of_the_app.check() is (app is one)
    assert of_the_app.storage._caller is client_of(other)


def test_storage_without_an_app_asks_the_environment(
    manager: ManagerProcess, nowhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of apps, and in one that says nothing, the environment names it."""
    monkeypatch.setenv("STATE_SERVER_DATA_DIR", str(manager.data_dir))
    storage = storage_from_string("stateserver://", region="environment")
    assert storage.incr("key", 60) == 1
    with Flask("shop").app_context():
        assert storage.incr("key", 60) == 2


def test_nothing_connects_before_the_first_call(tmp_path: Path) -> None:
    """A storage whose manager is not there is made at once."""
    began = time.monotonic()
    storage_from_string("stateserver://", data_dir=str(tmp_path), call_timeout_s=60)
    assert time.monotonic() - began < 20


# What the package asks ---------------------------------------------------------------


def test_times_are_those_of_the_asking_process(storage: Any) -> None:
    """Ends and beginnings of windows are given by the clock of whoever asks."""
    now = time.time()
    assert storage.get_expiry("none") == pytest.approx(now, abs=5)
    storage.incr("key", 60)
    assert storage.get_expiry("key") == pytest.approx(now + 60, abs=5)
    assert storage.get_moving_window("none", 5, 60) == (pytest.approx(now, abs=5), 0)
    assert storage.acquire_entry("key", 5, 60, 3)
    assert storage.get_moving_window("key", 5, 60) == (pytest.approx(now, abs=5), 3)
    assert storage.acquire_sliding_window_entry("key", 5, 60, 3)
    assert storage.get_sliding_window("key", 60) == (
        0,
        0.0,
        3,
        pytest.approx(120, abs=5),
    )


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_clearing_a_limit(storage: Any, name: str) -> None:
    """A limit that was cleared begins anew, under each strategy."""
    limiter = STRATEGIES[name](storage)
    item = PER_HOUR(1)
    assert (limiter.hit(item, "a"), limiter.hit(item, "a")) == (True, False)
    limiter.clear(item, "a")
    assert limiter.hit(item, "a")


def test_long_keys_are_hashed(storage: Any) -> None:
    """A key of any length counts exactly, apart from others that begin as it does."""
    one, other = "k" * 1_000_000 + "1", "k" * 1_000_000 + "2"
    assert [storage.incr(one, 60), storage.incr(one, 60)] == [1, 2]
    assert (storage.get(one), storage.get(other)) == (2, 0)
    assert storage.acquire_entry(one, 1, 60)
    assert not storage.acquire_entry(one, 1, 60)
    assert storage.acquire_sliding_window_entry(other, 1, 60)
    storage.clear(one)
    assert (storage.get(one), storage.get_moving_window(one, 1, 60)[1]) == (0, 0)
    assert storage.storage.info()["records"] == 1


def test_full_storage_is_overloaded(start_manager: StartManager) -> None:
    """At rate_limit_records_max a new visitor is an error; known ones are counted."""
    manager = start_manager("--rate-limit-records-max", "3")
    storage = StateServerStorage(data_dir=str(manager.data_dir), wrap_exceptions=False)
    for visitor in "abc":
        storage.incr(visitor, 60)
    with pytest.raises(errors.Overloaded, match="rate_limit_records_max"):
        storage.incr("d", 60)
    assert storage.incr("a", 60) == 2
    assert (
        manager.log.count(
            "Limit reached: 3 records of rate limits (rate_limit_records_max)."
        )
        == 1
    )


def test_storage_too_many_is_overloaded(start_manager: StartManager) -> None:
    """At rate_limit_storages_max a hit in one more region is an error."""
    manager = start_manager("--rate-limit-storages-max", "1")
    options = {"data_dir": str(manager.data_dir)}
    storage = storage_from_string("stateserver://", **options)
    assert storage.incr("a", 60) == 1
    other = storage_from_string("stateserver://?region=other", **options)
    with pytest.raises(errors.Overloaded, match="rate_limit_storages_max"):
        other.incr("a", 60)
    assert storage.incr("a", 60) == 2


# Outages -----------------------------------------------------------------------------


def calls_of(storage: Any) -> list[Any]:
    """Return every call that may fail, and is wrapped if asked."""
    return [
        lambda: storage.incr("key", 60),
        lambda: storage.get("key"),
        lambda: storage.get_expiry("key"),
        lambda: storage.reset(),
        lambda: storage.clear("key"),
        lambda: storage.acquire_entry("key", 1, 60),
        lambda: storage.get_moving_window("key", 1, 60),
        lambda: storage.acquire_sliding_window_entry("key", 1, 60),
        lambda: storage.get_sliding_window("key", 60),
        lambda: storage.clear_sliding_window("key", 60),
    ]


def test_errors_are_wrapped_if_asked(tmp_path: Path) -> None:
    """With wrap_exceptions every failure is limits' own error; without, it is ours."""
    options = {"data_dir": str(tmp_path), "call_timeout_s": 0.05}
    plain = storage_from_string("stateserver://", **options)
    wrapped = storage_from_string("stateserver://", wrap_exceptions=True, **options)
    assert issubclass(errors.Unreachable, plain.base_exceptions)
    for call in calls_of(plain):
        with pytest.raises(errors.Unreachable):
            call()
    for call in calls_of(wrapped):
        with pytest.raises(limits.errors.StorageError) as caught:
            call()
        assert isinstance(caught.value.storage_error, errors.Unreachable)
    assert (plain.check(), wrapped.check()) == (False, False)


def test_restart_of_the_manager_is_waited_for(start_manager: StartManager) -> None:
    """A hit while the manager is started anew waits for it, and is counted."""
    manager = start_manager()
    storage = StateServerStorage(data_dir=str(manager.data_dir), call_timeout_s=30)
    storage.incr("key", 60)
    manager.kill()
    manager.start()
    assert storage.incr("key", 60) == 1


# Flask-Limiter -----------------------------------------------------------------------

APP = """
import state_server.integrations.limits
from flask import Flask
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address


def create_app(**config):
    app = Flask(__name__)
    app.config.update(
        RATELIMIT_STORAGE_URI="stateserver://",
        RATELIMIT_STORAGE_OPTIONS={"call_timeout_s": 20},
        RATELIMIT_HEADERS_ENABLED=True,
    )
    app.config.update(config)
    limiter = Limiter(get_remote_address, app=app)

    @app.get("/")
    @limiter.limit("3 per hour")
    def index():
        return "page"

    return app
"""


@pytest.fixture
def make_app(
    manager: ManagerProcess, region: str, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Give a function that makes an app with a limit, as a user would write it."""
    pytest.importorskip("flask_limiter")
    monkeypatch.setenv("STATE_SERVER_DATA_DIR", str(manager.data_dir))
    module: dict[str, Any] = {"__name__": "shop"}
    exec(APP, module)

    def make(**config: Any) -> Flask:
        options = {"region": region, "call_timeout_s": 20}
        config.setdefault("RATELIMIT_STORAGE_OPTIONS", options)
        return module["create_app"](**config)  # type: ignore[no-any-return]

    return make


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_flask_limiter(make_app: Any, strategy: str) -> None:
    """Two apps share one limit under each strategy; headers say what is left."""
    one, other = (make_app(RATELIMIT_STRATEGY=strategy).test_client() for _ in "12")
    answers = [app.get("/") for app in (one, other, one, other, one)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    left = [answer.headers["X-RateLimit-Remaining"] for answer in answers]
    assert left == ["2", "1", "0", "0", "0"]
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 3600


def test_flask_limiter_falls_back(
    start_manager: StartManager, make_app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With the fallback on, a frozen manager costs one wait, then comes back."""
    caplog.set_level("INFO", logger="flask-limiter")
    own = start_manager()
    app = make_app(
        RATELIMIT_STORAGE_OPTIONS={
            "data_dir": str(own.data_dir),
            "call_timeout_s": 0.5,
        },
        RATELIMIT_IN_MEMORY_FALLBACK_ENABLED=True,
    )
    client = app.test_client()
    wait_until(lambda: client.get("/").status_code == 200)
    freeze(own.pid)
    try:
        answers = [client.get("/").status_code for _ in range(4)]
    finally:
        os.kill(own.pid, signal.SIGCONT)
    assert answers[0] == 200
    assert answers[3] == 429
    assert "falling back to in-memory storage" in caplog.text
    wait_until(lambda: client.get("/") and "storage recovered" in caplog.text)


def test_flask_limiter_without_a_manager(make_app: Any, tmp_path: Path) -> None:
    """Without fallback the error is ours: StateServer answers 503, if not swallowed."""
    from state_server.integrations.flask import StateServer

    options = {"data_dir": str(tmp_path), "call_timeout_s": 0.05}
    app = make_app(RATELIMIT_STORAGE_OPTIONS=options)
    StateServer(app)
    assert app.test_client().get("/").status_code == 503
    app = make_app(RATELIMIT_STORAGE_OPTIONS=options, RATELIMIT_SWALLOW_ERRORS=True)
    assert app.test_client().get("/").status_code == 200


def test_command_line_sees_the_hits_of_others(
    make_app: Any, manager: ManagerProcess, region: str, tmp_path: Path
) -> None:
    """``flask limiter limits``, another process, shows what the app has counted."""
    pytest.importorskip("rich", reason="the commands of Flask-Limiter need it")
    (tmp_path / "shop.py").write_text(APP)
    client = make_app(
        RATELIMIT_STORAGE_OPTIONS={"region": "default", "call_timeout_s": 20}
    ).test_client()
    for _ in range(2):
        client.get("/")

    def flask(*arguments: str) -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "flask", "--app", "shop", "limiter", *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "STATE_SERVER_DATA_DIR": str(manager.data_dir),
                "PYTHONPATH": f"{tmp_path}:{ROOT}",
                "COLUMNS": "200",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert "3 per 1 hour: Pass (1 out of 3 remaining)" in flask(
        "limits", "--key", "127.0.0.1"
    )
    assert "StateServerStorage" in flask("config")
    assert "3 per 1 hour: Cleared" in flask("clear", "--key", "127.0.0.1", "-y")
    assert [client.get("/").status_code for _ in range(4)] == [200, 200, 200, 429]
