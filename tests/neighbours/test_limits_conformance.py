"""The test suites of limits and of Flask-Limiter pass on our storage.

They are fetched from the source distributions of the installed releases and run in a
process of their own, against a manager whose clock they move in place of sleeping.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from ..conftest import StartManager
from .conformance import sdists

#: What the suites import to reach other storages, none of which is started here.
STUBS = {
    "pymemcache": "",
    "pymongo": "",
    "pytest_lazy_fixtures": "def lf(name): ...",
    "redis": "class cluster:\n    class ClusterNode:\n        def __init__(*_): ...",
}

#: Tests of Flask-Limiter that cannot pass on another storage, each with its reason.
NOT_OURS = {
    "test_commands.py::test_clear_limits": "starts Redis",
    "test_commands.py::test_limits_with_test": "wants pytest-mock",
    "test_commands.py::test_limits_with_test_storage_down": "wants pytest-mock",
    "test_configuration.py::test_constructor_arguments_over_config": "starts Redis",
    "test_error_handling.py::test_fallback_to_memory": "breaks redis-py in between",
    "test_error_handling.py::test_fallback_to_memory_config": "starts Redis",
    "test_error_handling.py::test_fallback_to_memory_backoff_check": "starts Redis",
    "test_error_handling.py::test_fallback_to_memory_with_global_override": (
        "starts Redis"
    ),
    "test_flask_ext.py::test_custom_key_prefix": "starts Redis",
    "test_flask_ext.py::test_custom_meta_limits": "wants pytest-check",
    "test_flask_ext.py::test_reset_unsupported": "starts memcached",
    "test_regressions.py::test_custom_key_prefix_with_headers": "starts Redis",
    "test_regressions.py::test_redis_request_slower_than_fixed_window": "starts Redis",
    "test_regressions.py::test_redis_request_slower_than_moving_window": "starts Redis",
}
if importlib.util.find_spec("asgiref") is None:
    NOT_OURS["test_decorators.py::test_async_route"] = "wants flask[async]"

#: All but test_storage, which is about others, and test_views (wants flask_restful).
FLASK_LIMITER_FILES = (
    "test_blueprints.py",
    "test_commands.py",
    "test_configuration.py",
    "test_context_manager.py",
    "test_decorators.py",
    "test_error_handling.py",
    "test_flask_ext.py",
    "test_regressions.py",
)


def write_stubs(folder: Path) -> None:
    """Stand in for what is imported, never called, and not installed."""
    for module, text in STUBS.items():
        if importlib.util.find_spec(module) is None:
            sdists.write_stub(folder, module, text)


def test_limits(
    request: pytest.FixtureRequest, tmp_path: Path, start_manager: StartManager
) -> None:
    """All storage, strategy and concurrency tests pass that are not asynchronous."""
    theirs = sdists.suite_of("limits", "5.8", request)
    suite = tmp_path / "suite"
    tests = suite / "tests"
    tests.mkdir(parents=True)
    for name in ("__init__.py", "test_storage.py", "test_strategy.py"):
        shutil.copy(theirs / name, tests)
    shutil.copy(theirs / "integration" / "test_concurrency.py", tests)
    shutil.copy(sdists.OURS / "limits_conftest.py", tests / "conftest.py")
    shutil.copy(sdists.OURS / "limits_support.py", tests / "utils.py")
    shutil.copy(sdists.OURS / "limits_cases.py", tests)
    write_stubs(suite)
    manager = start_manager("--objects", "tests.neighbours.conformance.clocked")

    outcome = sdists.run_suite(
        suite,
        [
            "tests/limits_cases.py",
            "tests/test_strategy.py",
            "tests/test_concurrency.py",
        ],
        **sdists.environment_of(manager),
    )

    assert outcome.failed == (), outcome.output
    assert all("Async" in name for name, _ in outcome.skipped), outcome.skipped
    assert outcome.passed >= 30, outcome.output


def test_flask_limiter(
    request: pytest.FixtureRequest, tmp_path: Path, start_manager: StartManager
) -> None:
    """Flask-Limiter's tests pass when limiters that name no storage use ours."""
    pytest.importorskip("flask_limiter")
    pytest.importorskip("rich", reason="the commands of Flask-Limiter need it")
    theirs = sdists.suite_of("flask-limiter", "4.1", request)
    suite = tmp_path / "suite"
    shutil.copytree(theirs, suite / "tests")
    for name in ("flask_limiter_plugin.py", "hiro.py"):
        shutil.copy(sdists.OURS / name, suite)
    write_stubs(suite)
    manager = start_manager("--objects", "tests.neighbours.conformance.clocked")

    outcome = sdists.run_suite(
        suite,
        ["-p", "flask_limiter_plugin", *(f"tests/{n}" for n in FLASK_LIMITER_FILES)],
        [f"tests/{name}" for name in NOT_OURS],
        **sdists.environment_of(manager),
    )

    assert outcome.failed == (), outcome.output
    assert outcome.skipped == ()
    assert outcome.passed >= 105, outcome.output


def test_exceptions_are_still_there(request: pytest.FixtureRequest) -> None:
    """Each test that we leave out exists; a name that does not would hide nothing."""
    theirs = sdists.suite_of("flask-limiter", "4.1", request)
    missing = [
        name
        for name in NOT_OURS
        if f"def {name.partition('::')[2]}("
        not in (theirs / name.partition("::")[0]).read_text()
    ]

    assert missing == []
