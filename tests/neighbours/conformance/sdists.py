"""The tests that other projects ship: fetched with pip, run by another pytest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
OURS = Path(__file__).resolve().parent

#: Time for pip, which may also have to fetch what describes the package.
FETCH_TIMEOUT_S = 60.0
#: Time for one suite.
RUN_TIMEOUT_S = 100.0


def suite_of(package: str, since: str, request: pytest.FixtureRequest) -> Path:
    """Return the tests of the installed release of a package.

    Fetched once for each checkout, and kept among pytest's own things. Skips the test,
    and says why, when the package is not installed, when the release is older than
    ``since``, whose tests these are, or when its source cannot be had.
    """
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    if _numbers(version) < _numbers(since):
        pytest.skip(f"{package} {version} has other tests than {since}")
    # pytest may run without its cache.
    kept = getattr(request.config, "cache", None)
    if kept is not None:
        folder = kept.mkdir("sdists")
    else:
        folder = request.getfixturevalue("tmp_path")
    return _source_of(package, version, folder) / "tests"


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:2]]


def _source_of(package: str, version: str, cache: Path) -> Path:
    name = package.replace("-", "_")
    folder = cache / f"{name}-{version}"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        archive = _download(package, version, Path(scratch))
        with tarfile.open(archive) as opened:
            opened.extractall(scratch, filter="data")
        # Older archives spell the name of the package as its author does.
        unpacked = Path(scratch) / archive.name.removesuffix(".tar.gz")
        try:
            unpacked.rename(folder)
        except OSError:
            # Another process was quicker.
            assert folder.is_dir()
    return folder


def _download(package: str, version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps"]
    command += ["--no-binary", package, "--dest", str(folder)]
    command += ["--quiet", "--retries", "1", "--disable-pip-version-check"]
    try:
        ended = subprocess.run(
            [*command, f"{package}=={version}"],
            capture_output=True,
            text=True,
            timeout=FETCH_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"the source of {package} {version} did not come in time")
    archives = list(folder.glob("*.tar.gz"))
    if ended.returncode or not archives:
        said = ended.stderr.strip().splitlines() or ["pip said nothing"]
        pytest.skip(f"the source of {package} {version} cannot be had: {said[-1]}")
    return archives[0]


@dataclass(frozen=True)
class Outcome:
    """How a suite ended. ``skipped`` holds name and reason."""

    passed: int
    failed: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    deselected: int
    output: str


def run_suite(
    folder: Path,
    files: Collection[str],
    deselected: Collection[str] = (),
    **environment: str,
) -> Outcome:
    """Run pytest on ``files`` in ``folder``, without plugins and settings of ours."""
    report = folder / "report.xml"
    # Their own settings are not read; they declare the marks that they use.
    (folder / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = ignore::pytest.PytestUnknownMarkWarning\n"
    )
    command = [sys.executable, "-m", "pytest", "-c", "pytest.ini", "-p"]
    command += ["no:cacheprovider", f"--junitxml={report}", "--tb=short", *files]
    for name in deselected:
        command += ["--deselect", name]
    ended = subprocess.run(
        command,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": f"{folder}:{ROOT}",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    assert report.exists(), ended.stdout
    return _read(report, ended.stdout)


def write_stub(folder: Path, module: str, text: str) -> None:
    """Stand in for what a suite imports only to start servers of its own."""
    (folder / f"{module}.py").write_text(f"{text}\n")


def _read(report: Path, output: str) -> Outcome:
    passed, failed, skipped = 0, [], []
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif skip is not None:
            skipped.append((name, skip.get("message") or ""))
        else:
            passed += 1
    found = re.search(r"(\d+) deselected", output)
    return Outcome(
        passed,
        tuple(failed),
        tuple(skipped),
        int(found.group(1)) if found else 0,
        output,
    )


def environment_of(manager: object) -> Mapping[str, str]:
    """Return the variables with which ``connect()`` finds a manager."""
    return {
        "STATE_SERVER_ADDRESS": manager.address,  # type: ignore[attr-defined]
        "STATE_SERVER_AUTHKEY_FILE": str(manager.data_dir / "authkey"),  # type: ignore[attr-defined]
    }
