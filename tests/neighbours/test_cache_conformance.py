"""cachelib's and Flask-Caching's own test suites pass on our caches.

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

#: Tests of Flask-Caching that cannot pass on another backend, each with its reason.
NOT_OURS = {
    "test_serializer.py::test_default_keeps_the_cachelib_serializer": (
        "asserts that the default serializer is SimpleCache's, which pickles"
    ),
    "test_serializer.py::test_values_are_stored_in_the_configured_format": (
        "looks into the dictionary inside SimpleCache"
    ),
    "test_cache.py::test_cache_unlink": "is about Redis alone",
    "test_basic_app.py::test_init_app_multi_apps": "is about Redis alone",
    "test_basic_app.py::test_app_redis_cache_backend_url_default_db": (
        "is about Redis alone"
    ),
    "test_basic_app.py::test_app_redis_cache_backend_url_custom_db": (
        "is about Redis alone"
    ),
    "test_basic_app.py::test_app_redis_cache_backend_url_explicit_db_arg": (
        "is about Redis alone"
    ),
}
if importlib.util.find_spec("asgiref") is None:
    NOT_OURS["test_view.py::test_async_cached_view"] = "wants flask[async]"

#: What the suite itself says of the tests that it skips.
NEEDS_3_14 = "requires Python 3.14 __annotate__ / PEP 649 behavior"

#: The files of Flask-Caching that use a cache through fixtures of the conftest.
FLASK_CACHING_FILES = (
    "test_cache.py",
    "test_memoize.py",
    "test_view.py",
    "test_templates.py",
    "test_signals.py",
    "test_subclassing.py",
    "test_hash_method.py",
    "test_basic_app.py",
    "test_serializer.py",
    "test_py314_annotations.py",
)


def test_cachelib(
    request: pytest.FixtureRequest, tmp_path: Path, start_manager: StartManager
) -> None:
    """Every test that cachelib has for caches passes, with and without a prefix."""
    theirs = sdists.suite_of("cachelib", "0.17", request)
    folder = tmp_path / "suite"
    shutil.copytree(theirs, folder)
    shutil.copy(sdists.OURS / "cachelib_cases.py", folder)
    if importlib.util.find_spec("xprocess") is None:
        sdists.write_stub(folder, "xprocess", "class ProcessStarter: ...")
    manager = start_manager("--objects", "tests.neighbours.conformance.clocked")

    outcome = sdists.run_suite(
        folder, ["cachelib_cases.py"], **sdists.environment_of(manager)
    )

    assert outcome.failed == (), outcome.output
    assert outcome.skipped == ()
    assert outcome.passed >= 42, outcome.output


def test_flask_caching(
    request: pytest.FixtureRequest, tmp_path: Path, start_manager: StartManager
) -> None:
    """Flask-Caching's tests pass with our backend, under its extension and ours."""
    theirs = sdists.suite_of("flask-caching", "2.5", request)
    folder = tmp_path / "suite"
    shutil.copytree(theirs, folder)
    shutil.copy(sdists.OURS / "flask_caching_conftest.py", folder / "conftest.py")
    shutil.copy(sdists.OURS / "flask_caching_cases.py", folder)
    manager = start_manager("--objects", "tests.neighbours.conformance.clocked")

    outcome = sdists.run_suite(
        folder,
        ["flask_caching_cases.py", *FLASK_CACHING_FILES],
        list(NOT_OURS),
        **sdists.environment_of(manager),
    )

    assert outcome.failed == (), outcome.output
    assert {why for _, why in outcome.skipped} <= {NEEDS_3_14}, outcome.skipped
    assert outcome.passed >= 420, outcome.output


def test_exceptions_are_still_there(request: pytest.FixtureRequest) -> None:
    """Each test that we leave out exists; a name that does not would hide nothing."""
    theirs = sdists.suite_of("flask-caching", "2.5", request)
    files = {path.name: path.read_text() for path in theirs.glob("test_*.py")}

    missing = [
        name
        for name in NOT_OURS
        if f"def {name.partition('::')[2]}(" not in files[name.partition("::")[0]]
    ]

    assert missing == []
