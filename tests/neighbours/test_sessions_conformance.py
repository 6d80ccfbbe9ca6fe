"""The test suites of Flask, Flask-Login and Flask-WTF pass on our sessions.

They are fetched from the source distributions of the installed releases and run in a
process of their own.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from ..conftest import StartManager
from .conformance import sdists

#: Tests of Flask that our sessions do not pass, each with its reason.
NOT_OURS = {
    "test_basic.py::test_missing_session": "asserts that a SECRET_KEY is needed",
    "test_basic.py::test_session_secret_key_fallbacks": "is about the signature",
    "test_basic.py::test_session_using_samesite_attribute": (
        "wants a cookie for a value assigned that was there already"
    ),
    "test_basic.py::test_session_cookie_setting": (
        "wants a permanent session's cookie renewed with every response"
    ),
    "test_basic.py::test_session_refresh_vary": (
        "wants that for pages that do not touch the session, too"
    ),
    "test_testing.py::test_session_transactions_no_null_sessions": (
        "asserts that a SECRET_KEY is needed"
    ),
}

#: The same, when the sessions are Flask-Session's with our store below them. With a
#: store of its own, Flask-Session does not pass them either.
NOT_OF_FLASK_SESSION = {
    "test_basic.py::test_missing_session": "asserts that a SECRET_KEY is needed",
    "test_basic.py::test_session_accessed": "wants a session read when it is used",
    "test_basic.py::test_session_secret_key_fallbacks": "is about the signature",
    "test_basic.py::test_session_using_session_settings": (
        "wants the cookie's attribute Partitioned"
    ),
    "test_testing.py::test_session_transactions_no_null_sessions": (
        "asserts that a SECRET_KEY is needed"
    ),
}

#: The same of Flask-Login.
NOT_OF_LOGIN: dict[str, str] = {}
if importlib.util.find_spec("asgiref") is None:
    NOT_OF_LOGIN[
        "test_login.py::LoginTestCase::test_login_required_decorator_with_async"
    ] = "wants flask[async]"

#: The files of Flask that have tests of sessions.
FLASK_FILES = ("test_basic.py", "test_session_interface.py", "test_testing.py")
LOGIN_FILES = ("test_login.py",)
#: The files of Flask-WTF in which forms are sent; their CSRF token is in the session.
WTF_FILES = ("test_csrf_extension.py", "test_csrf_form.py", "test_form.py")

#: Stands for a package with which Flask-Login's suite makes one object, never used.
SEMANTIC_VERSION = "class Version:\n    def __init__(*_, **__): ..."


def run(
    theirs: Path,
    folder: Path,
    files: tuple[str, ...],
    left_out: dict[str, str],
    start_manager: StartManager,
    plugin: str = "sessions_plugin",
) -> sdists.Outcome:
    """Run some files of a suite with our sessions under it."""
    suite = folder / "suite"
    shutil.copytree(theirs, suite / "tests")
    for each in ("sessions_plugin.py", "flask_session_plugin.py"):
        shutil.copy(sdists.OURS / each, suite)
    if importlib.util.find_spec("semantic_version") is None:
        sdists.write_stub(suite, "semantic_version", SEMANTIC_VERSION)
    return sdists.run_suite(
        suite,
        ["-p", plugin, *(f"tests/{name}" for name in files)],
        [f"tests/{name}" for name in left_out],
        **sdists.environment_of(start_manager()),
    )


def test_flask(
    request: pytest.FixtureRequest, tmp_path: Path, start_manager: StartManager
) -> None:
    """Flask's tests of sessions, flashed messages and the test client pass."""
    theirs = sdists.suite_of("flask", "3.1", request)

    outcome = run(theirs, tmp_path, FLASK_FILES, NOT_OURS, start_manager)

    assert outcome.failed == (), outcome.output
    assert outcome.passed >= 140, outcome.output
    assert outcome.deselected == len(NOT_OURS), outcome.output


def test_flask_login(
    request: pytest.FixtureRequest, tmp_path: Path, start_manager: StartManager
) -> None:
    """Flask-Login's whole suite passes: login, fresh login, remember me, protection."""
    theirs = sdists.suite_of("Flask-Login", "0.6", request)

    outcome = run(theirs, tmp_path, LOGIN_FILES, NOT_OF_LOGIN, start_manager)

    assert outcome.failed == (), outcome.output
    assert outcome.skipped == ()
    assert outcome.deselected == len(NOT_OF_LOGIN), outcome.output
    assert outcome.passed >= 110, outcome.output


def test_flask_with_flask_session(
    request: pytest.FixtureRequest, tmp_path: Path, start_manager: StartManager
) -> None:
    """Our interface for Flask-Session passes what Flask-Session passes on its own."""
    pytest.importorskip("flask_session", reason="Flask-Session is not installed")
    theirs = sdists.suite_of("flask", "3.1", request)
    left_out = NOT_OF_FLASK_SESSION
    plugin = "flask_session_plugin"

    outcome = run(theirs, tmp_path, FLASK_FILES, left_out, start_manager, plugin)

    assert outcome.failed == (), outcome.output
    assert outcome.passed >= 140, outcome.output
    assert outcome.deselected == len(left_out), outcome.output


def test_flask_wtf(
    request: pytest.FixtureRequest, tmp_path: Path, start_manager: StartManager
) -> None:
    """Flask-WTF's forms pass: a token in the session, checked, expired, forged."""
    theirs = sdists.suite_of("Flask-WTF", "1.2", request)

    outcome = run(theirs, tmp_path, WTF_FILES, {}, start_manager)

    assert outcome.failed == (), outcome.output
    assert outcome.skipped == ()
    assert outcome.passed >= 25, outcome.output
