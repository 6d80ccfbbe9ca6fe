"""The Flask extension: registration, configuration, handles in views, and errors."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.signals import got_request_exception

import state_server
from state_server import errors
from state_server.integrations.app_config import Config
from state_server.integrations.flask import EXTENSION, AppState, StateServer


@dataclass
class FakeClient:
    """Stands for a client: notes how it was made, and fails as it is told."""

    address: str | None
    authkey: bytes | None
    options: dict[str, Any]
    error: BaseException | None = None
    asked: list[tuple[Any, str, float | None]] = field(default_factory=list)

    def get(
        self, cls: Any, key: str = "default", *, timeout: float | None = None
    ) -> FakeClient:
        """Return a handle; the client serves as that, too."""
        self.asked.append((cls, key, timeout))
        return self

    def query(self) -> int:
        """Stand for a method of a shared object."""
        if self.error is not None:
            raise self.error
        return len(self.asked)


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeClient]:
    """Return the clients made so far, none of which is a real one."""
    clients: list[FakeClient] = []

    def connect(
        address: str | None = None, authkey: bytes | None = None, **options: Any
    ) -> FakeClient:
        clients.append(FakeClient(address, authkey, options))
        return clients[-1]

    monkeypatch.setattr(state_server, "connect", connect)
    return clients


def make_app(state: StateServer | None = None, **config: Any) -> Flask:
    """Return an app with one view that asks a shared object."""
    app = Flask("shop")
    app.config.update(config)
    state = state or StateServer()
    state.init_app(app)

    @app.get("/buy")
    def buy() -> str:
        return str(state.get("SomeObj").query())

    return app


def config_of(**values: Any) -> Config:
    """Return what the extension makes of these values in ``app.config``."""
    found: AppState = make_app(**values).extensions[EXTENSION]
    return found.config


def test_constructor_with_app() -> None:
    """An app given to the constructor is registered, and not kept."""
    app = Flask("shop")
    state = StateServer(app)
    assert EXTENSION in app.extensions
    assert app not in vars(state).values()


def test_apps_do_not_share_a_client(made: list[FakeClient]) -> None:
    """One extension object serves several apps, each with its own configuration."""
    state = StateServer()
    one = make_app(state, STATE_SERVER_ADDRESS="unix:///one")
    two = make_app(state, STATE_SERVER_ADDRESS="unix:///two")
    with one.app_context():
        clients: list[object] = [state.client]
        with two.app_context():
            clients.append(state.client)
        clients.append(state.client)
    assert clients == [made[0], made[1], made[0]]
    assert [client.address for client in made] == ["unix:///one", "unix:///two"]


def test_second_registration_is_refused() -> None:
    """A second init_app of the same app, by whichever object, is refused."""
    app = make_app()
    with pytest.raises(RuntimeError, match="registered with this app already"):
        StateServer(app)


def test_get_passes_everything_on(made: list[FakeClient]) -> None:
    """Class or name, key and timeout reach the client."""
    state = StateServer()
    with make_app(state).app_context():
        state.get("SomeObj")
        state.get(FakeClient, "room-7", timeout=2.0)
    assert made[0].asked == [("SomeObj", "default", None), (FakeClient, "room-7", 2.0)]


def test_get_outside_an_app() -> None:
    """Without an application context the error says what to do."""
    state = StateServer(Flask("shop"))
    with pytest.raises(RuntimeError, match=r"inside 'with app\.app_context\(\):'"):
        state.get("SomeObj")


def test_get_in_an_app_without_registration() -> None:
    """In an app that was never registered the error says what to do."""
    with Flask("shop").app_context(), pytest.raises(RuntimeError, match="init_app"):
        StateServer().get("SomeObj")


def test_nothing_configured(made: list[FakeClient]) -> None:
    """Without configuration the choice is left to connect()."""
    assert config_of() == Config()
    assert (made[0].address, made[0].authkey) == (None, None)
    assert made[0].options == {"data_dir": None, "timeout": None}


def test_configuration_reaches_the_client(made: list[FakeClient]) -> None:
    """Each key of the configuration ends up in the call of connect()."""
    config_of(
        STATE_SERVER_ADDRESS="tcp://127.0.0.1:5000",
        STATE_SERVER_DATA_DIR=Path("var"),
        STATE_SERVER_AUTHKEY="secret",
        STATE_SERVER_TIMEOUT=5,
    )
    assert (made[0].address, made[0].authkey) == ("tcp://127.0.0.1:5000", b"secret")
    assert made[0].options == {"data_dir": "var", "timeout": 5.0}


def test_app_config_wins_over_options() -> None:
    """Options of the constructor are defaults for keys that the app has not set."""
    state = StateServer(timeout=1.0, address="unix:///option")
    app = make_app(state, STATE_SERVER_ADDRESS="unix:///config")
    config = app.extensions[EXTENSION].config
    assert (config.address, config.timeout) == ("unix:///config", 1.0)


def test_prefixed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What from_prefixed_env makes of variables, numbers and all, is understood."""
    for name, value in {
        "ADDRESS": "unix:///x",
        "AUTHKEY": "12345",
        "TIMEOUT": "2.5",
        "HANDLE_ERRORS": "False",
    }.items():
        monkeypatch.setenv(f"FLASK_STATE_SERVER_{name}", value)
    app = Flask("shop")
    app.config.from_prefixed_env()
    StateServer(app)
    expected = Config("unix:///x", None, b"12345", 2.5, handle_errors=False)
    assert app.extensions[EXTENSION].config == expected


def test_the_key_file_is_read_without_its_line_end(tmp_path: Path) -> None:
    """The key is read from its file, without the line end that editors add."""
    path = tmp_path / "key"
    path.write_bytes(b"secret\n")
    assert config_of(STATE_SERVER_AUTHKEY_FILE=str(path)).authkey == b"secret"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ADDRESS", 5),
        ("ADDRESS", ""),
        ("DATA_DIR", ["var"]),
        ("AUTHKEY_FILE", "/no/such/file"),
        ("TIMEOUT", 0),
        ("TIMEOUT", "soon"),
        ("TIMEOUT", True),
        ("TIMEOUT", float("nan")),
        ("HANDLE_ERRORS", "perhaps"),
        ("HANDLE_ERRORS", 2),
    ],
)
def test_value_that_does_not_fit(key: str, value: object) -> None:
    """A value that does not fit is refused with an error that names key and value."""
    with pytest.raises(errors.ConfigError) as caught:
        config_of(**{f"STATE_SERVER_{key}": value})
    assert f"STATE_SERVER_{key} is {value!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("STATE_SERVER_DATADIR", "did you mean STATE_SERVER_DATA_DIR?"),
        ("STATE_SERVER_TIMEOUT_S", "did you mean STATE_SERVER_TIMEOUT?"),
        ("STATE_SERVER_WORKERS", "settings of processes are read from the environment"),
    ],
)
def test_a_misspelled_key_is_told_with_the_nearest(
    key: str, nearest: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A key that nobody reads is a line in the log, without its value."""
    config_of(**{key: "secret"})
    assert f"app.config has {key}" in caplog.text
    assert nearest in caplog.text
    assert "secret" not in caplog.text


def test_no_key_of_the_extension_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """What is read, and what another extension has put there, is no mistake."""
    config_of(STATE_SERVER_TIMEOUT=5, STATE_SERVER_SESSIONS_MAX=2048, OTHER_TIMEOUT=5)
    assert caplog.text == ""


@pytest.mark.parametrize("value", [True, 1e5, "", ["secret"]])
def test_key_that_does_not_fit(value: object) -> None:
    """A key that is no text is refused by an error that does not show it."""
    with pytest.raises(errors.ConfigError, match="STATE_SERVER_AUTHKEY is a") as caught:
        config_of(STATE_SERVER_AUTHKEY=value)
    assert "secret" not in str(caught.value)


def test_repr_hides_the_key() -> None:
    """The text of the configuration does not show the key."""
    assert "secret" not in repr(config_of(STATE_SERVER_AUTHKEY="secret"))
    assert "authkey=***" in repr(config_of(STATE_SERVER_AUTHKEY="secret"))


OPERATIONAL = [
    (errors.Unreachable, 503, "1"),
    (errors.Overloaded, 503, "1"),
    (errors.Expired, 503, "1"),
    (errors.StoreError, 503, "1"),
    (errors.Unanswered, 504, None),
]

MISTAKES = [
    errors.ConfigError,
    errors.NotShared,
    errors.NotOffered,
    errors.NotAllowed,
    errors.Denied,
    errors.TooLarge,
    errors.Stale,
    errors.RemoteError,
    ValueError,
    TimeoutError,
]


def failing(error: type[BaseException], made: list[FakeClient], **config: Any) -> Flask:
    """Return an app whose shared object fails with ``error``."""
    app = make_app(**config)
    made[-1].error = error("at unix:///private with key secret")
    return app


@pytest.mark.parametrize("testing", [False, True])
@pytest.mark.parametrize(("error", "status", "retry_after"), OPERATIONAL)
def test_operational_error_is_an_answer(
    made: list[FakeClient],
    caplog: pytest.LogCaptureFixture,
    error: type[errors.StateServerError],
    status: int,
    retry_after: str | None,
    testing: bool,
) -> None:
    """503 or 504, the time to come back, no secrets, one log line; in tests as well."""
    app = failing(error, made, TESTING=testing)
    response = app.test_client().get("/buy?token=secret")
    assert (response.status_code, response.headers.get("Retry-After")) == (
        status,
        retry_after,
    )
    assert response.mimetype == "text/plain"
    assert response.headers["Cache-Control"] == "no-store"
    assert "private" not in response.text
    assert "secret" not in response.text
    assert len(caplog.records) == 1
    assert f"GET '/buy' ended with {status}: {error.__name__}" in caplog.text
    assert "token" not in caplog.text


def test_operational_error_as_json(made: list[FakeClient]) -> None:
    """A client that prefers JSON gets the kind of error and whether to repeat."""
    client = failing(errors.Unreachable, made).test_client()
    response = client.get("/buy", headers={"Accept": "application/json"})
    body = json.loads(response.text)
    assert (body["error"], body["retryable"]) == ("Unreachable", True)
    assert (response.status_code, response.mimetype) == (503, "application/json")


@pytest.mark.parametrize("error", MISTAKES)
def test_mistake_is_an_ordinary_500(
    made: list[FakeClient],
    caplog: pytest.LogCaptureFixture,
    error: type[BaseException],
) -> None:
    """A mistake takes Flask's own way: one log line, its signal, the page for 500."""
    app = failing(error, made)
    seen: list[BaseException] = []

    @app.errorhandler(500)
    def page(problem: Any) -> tuple[str, int]:
        return "our page", 500

    def note(_: Flask, exception: BaseException) -> None:
        seen.append(exception)

    with got_request_exception.connected_to(note, app):
        response = app.test_client().get("/buy")
    assert (response.status_code, response.text) == (500, "our page")
    assert [type(problem) for problem in seen] == [error]
    assert [record.getMessage() for record in caplog.records] == [
        "Exception on /buy [GET]"
    ]


@pytest.mark.parametrize("config", [{"TESTING": True}, {"PROPAGATE_EXCEPTIONS": True}])
@pytest.mark.parametrize("error", MISTAKES)
def test_mistake_propagates(
    made: list[FakeClient], error: type[BaseException], config: dict[str, bool]
) -> None:
    """Under TESTING and PROPAGATE_EXCEPTIONS a mistake reaches the test itself."""
    client = failing(error, made, **config).test_client()
    with pytest.raises(error):
        client.get("/buy")


def test_handling_can_be_switched_off(made: list[FakeClient]) -> None:
    """With STATE_SERVER_HANDLE_ERRORS false, Flask alone decides."""
    app = failing(errors.Unreachable, made, STATE_SERVER_HANDLE_ERRORS=False)
    assert app.test_client().get("/buy").status_code == 500
    app.config["TESTING"] = True
    client = app.test_client()
    with pytest.raises(errors.Unreachable):
        client.get("/buy")


@pytest.mark.parametrize("before", [True, False])
def test_handler_of_the_app_wins(made: list[FakeClient], before: bool) -> None:
    """A handler of the app's own is kept, whether it was registered first or last."""
    app = Flask("shop")
    state = StateServer()

    def own(error: errors.StateServerError) -> tuple[str, int]:
        return "own", 418

    steps: list[Callable[[], object]] = [
        lambda: app.register_error_handler(errors.StateServerError, own),
        lambda: state.init_app(app),
    ]
    for step in steps if before else reversed(steps):
        step()

    @app.get("/buy")
    def buy() -> str:
        return str(state.get("SomeObj").query())

    made[-1].error = errors.Unreachable()
    assert app.test_client().get("/buy").status_code == 418


def test_debug_logs_the_traceback(
    made: list[FakeClient], caplog: pytest.LogCaptureFixture
) -> None:
    """In debug mode the one log line carries the traceback."""
    caplog.set_level(logging.ERROR)
    failing(errors.Unreachable, made, DEBUG=True).test_client().get("/buy")
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_nothing_connects_before_the_first_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A real client of an address where nobody is costs nothing until it is used."""
    monkeypatch.undo()
    state = StateServer(
        address=f"unix://{tmp_path}/nobody.sock", authkey="secret", timeout=0.2
    )
    app = make_app(state)
    with app.app_context():
        state.get("SomeObj", "room-7")
    assert app.test_client().get("/buy").status_code == 503
    with app.app_context():
        state.client.close()


def test_flask_is_not_imported_by_the_front() -> None:
    """Only those who ask for this integration pay for Flask."""
    code = "import state_server, sys; sys.exit('flask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
