"""Parts of the parent and of the worker that need no service: pauses, reports, apps."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from state_server.errors import ConfigError
from state_server.settings import WebSettings
from web.children import Backoff, Child
from web.supervisor import open_listener
from web.worker import load_app


def test_first_death_costs_no_wait() -> None:
    """After a first quick death, and after a long life, the next start is at once."""
    backoff = Backoff(longest_s=8.0)
    assert backoff.after_death(0.1) == 0.0
    assert backoff.after_death(100.0) == 0.0
    assert backoff.after_death(0.1) == 0.0


def test_quick_deaths_cost_more_and_more() -> None:
    """Quick deaths in a row double the wait up to the limit; a long life resets it."""
    backoff = Backoff(longest_s=3.0)
    assert [backoff.after_death(1.0) for _ in range(6)] == [0, 0.5, 1, 2, 3, 3]
    for _ in range(5000):
        assert backoff.after_death(0.0) == 3.0
    assert backoff.after_death(60.0) == 0.0


def child_that_runs(code: str) -> Child:
    """Return a child that runs ``code``, with its report descriptor as an argument."""
    return Child(
        "child",
        lambda report_fd: [sys.executable, "-c", code, str(report_fd)],
        environ=os.environ,
        inherited=[],
    )


def heard_to_the_end(child: Child) -> Child:
    """Return ``child`` after it ended and all that it said was heard."""
    child.wait(20.0)
    child.listen()
    child.close()
    return child


def test_child_says_ready() -> None:
    """The word ready, and what follows it, makes a child ready."""
    code = "import os, sys; os.write(int(sys.argv[1]), b'noise\\nready now\\n')"
    child = heard_to_the_end(child_that_runs(code))
    assert (child.ready, child.failure) == (True, None)
    assert child.how_it_ended() == "exit code 0"


def test_child_says_why_it_failed() -> None:
    """The word failed carries the reason; the exit code is told in words."""
    code = "import os, sys; os.write(int(sys.argv[1]), b'failed why\\n'); sys.exit(7)"
    child = heard_to_the_end(child_that_runs(code))
    assert (child.ready, child.failure) == (False, "why")
    assert child.how_it_ended() == "exit code 7"


def test_child_that_ignores_the_request_to_end() -> None:
    """A child that does not end in time is killed, and that is told in words."""
    code = (
        "import os, signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "os.write(int(sys.argv[1]), b'ready\\n'); signal.pause()"
    )
    child = child_that_runs(code)
    os.set_blocking(child.report_fd, True)
    assert os.read(child.report_fd, 100) == b"ready\n"
    child.stop(patience_s=0.0)
    child.kill_when_late()
    assert heard_to_the_end(child).how_it_ended() == "killed by SIGKILL"


def application(environ: Any, start_response: Any) -> Any:
    """Stand for a WSGI application."""


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Return a module called shop that an app can be loaded from."""
    module = types.ModuleType("shop")
    monkeypatch.setitem(sys.modules, "shop", module)
    return module


def test_factory_is_called(shop: types.ModuleType) -> None:
    """A name that can be called without arguments is a factory."""
    shop.create_app = lambda prefix="": application  # type: ignore[attr-defined]
    assert load_app("shop:create_app") is application


def test_application_is_taken_as_it_is(shop: types.ModuleType) -> None:
    """A name that wants arguments is the application itself."""
    shop.app = application  # type: ignore[attr-defined]
    assert load_app("shop:app") is application


@pytest.mark.parametrize(
    "path",
    [
        "shop",
        "shop:",
        ":app",
        "shop:text",
        "shop:makes",
        "shop:wants",
        "shop:none",
        "nowhere:app",
        "shop.py:app",
        "./shop:app",
    ],
)
def test_path_that_is_no_app(shop: types.ModuleType, path: str) -> None:
    """A path that leads to no application is refused with an error that shows it."""
    shop.text = "text"  # type: ignore[attr-defined]
    shop.makes = lambda: "text"  # type: ignore[attr-defined]
    shop.wants = lambda config: application  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=repr(path)):
        load_app(path)


def test_what_an_app_itself_does_not_find_is_its_own_error(
    shop: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that is there, but imports one that is not, shows where it does so."""
    (tmp_path / "broken_shop.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load_app("broken_shop:app")


@pytest.mark.parametrize(
    "bind", ["", "8000", ":8000", "host:", "127.0.0.1:http", "127.0.0.1:99999"]
)
def test_bind_that_does_not_fit(bind: str) -> None:
    """An address that cannot be bound is refused with an error that shows it."""
    with pytest.raises(ConfigError, match=repr(bind)):
        open_listener(WebSettings(bind=bind))
