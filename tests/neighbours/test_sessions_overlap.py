"""32 requests on one session at once, in several processes, under a real web server."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import pytest

import state_server
from state_server.integrations.session_store import (
    SessionConfig,
    SessionInfo,
    SessionStore,
    name_of,
)

from ..processes import READY_TIMEOUT_S, ROOT, ManagerProcess, wait_until

REQUESTS = 32
DEADLINE_S = 40.0


class Answer(NamedTuple):
    """One response."""

    status: int
    body: str
    cookie: str | None
    process: str


class Site:
    """The web server with two workers, and the manager beside it."""

    def __init__(self, folder: Path, rule: str) -> None:
        self.folder = folder
        self.manager = ManagerProcess(folder).start()
        with (folder / "web.log").open("w") as log:
            self.web = subprocess.Popen(
                [
                    sys.executable,
                    str(ROOT / "start_web.py"),
                    *("--app", "tests.neighbours.session_app:create_app"),
                    *("--bind", "127.0.0.1:0"),
                    *("--data-dir", str(self.manager.data_dir)),
                    # With an address it starts no manager where ours was killed.
                    *("--address", str(self.manager.address)),
                    *("--workers", "2"),
                    *("--threads", str(REQUESTS)),
                ],
                cwd=ROOT,
                env={
                    **os.environ,
                    "SESSION_TEST_FOLDER": str(folder),
                    "SESSION_TEST_RULE": rule,
                },
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                text=True,
            )
        self.port = self._read_port()
        self.rounds = 0

    def _read_port(self) -> int:
        assert self.web.stdout is not None
        give_up = threading.Timer(READY_TIMEOUT_S, self.web.kill)
        give_up.start()
        try:
            for line in self.web.stdout:
                found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
                if found:
                    return int(found[1])
        finally:
            give_up.cancel()
        raise AssertionError((self.folder / "web.log").read_text())

    def get(self, path: str, cookie: str = "") -> Answer:
        """Make one request, as a browser that holds ``cookie``."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, DEADLINE_S)
        with contextlib.closing(connection):
            headers = {"Cookie": f"session={cookie}"} if cookie else {}
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            set_cookie = response.getheader("Set-Cookie")
            found = re.match("session=([^;]*);", set_cookie) if set_cookie else None
            return Answer(
                response.status,
                response.read().decode(),
                found[1] if found else None,
                response.getheader("X-Process", ""),
            )

    def begin(self) -> str:
        """Begin a session; return its cookie."""
        cookie = self.get("/set/seed/1").cookie
        assert cookie
        return cookie

    def next_go(self, turn: int = 0) -> Path:
        """Return the file that lets the requests of the next round go on."""
        return self.folder / f"go-{self.rounds + 1}-{turn}"

    def all_at_once(
        self,
        cookie: str,
        paths: list[str],
        pauses: list[float],
        turns: list[int] | None = None,
    ) -> list[Answer]:
        """Make requests that have all read the session before one of them saves it.

        ``turns``: when each goes on then; those of a turn are let go together, once
        those of the turn before have been answered.
        """
        turns = turns or [0] * len(paths)
        gates = [self.next_go(turn) for turn in range(max(turns) + 1)]
        self.rounds += 1

        def ask(number: int) -> Answer:
            here = f"here-{self.rounds}-{number}"
            go = gates[turns[number]].name
            query = f"?here={here}&go={go}&pause={pauses[number]:.3f}"
            return self.get(paths[number] + query, cookie)

        with ThreadPoolExecutor(len(paths)) as pool:
            futures = [pool.submit(ask, number) for number in range(len(paths))]
            try:
                wait_until(
                    lambda: (
                        len(list(self.folder.glob(f"here-{self.rounds}-*")))
                        == len(paths)
                    ),
                    DEADLINE_S,
                    "all requests",
                )
                for turn, gate in enumerate(gates):
                    gate.touch()
                    of_turn = [
                        futures[n] for n in range(len(paths)) if turns[n] == turn
                    ]
                    wait(of_turn, DEADLINE_S)
            finally:
                for gate in gates:
                    gate.touch()
            return [future.result(DEADLINE_S) for future in futures]

    def values(self, cookie: str) -> dict[str, str]:
        """Return what a cookie opens."""
        return json.loads(self.get("/all", cookie).body)  # type: ignore[no-any-return]

    def sessions(self) -> list[SessionInfo]:
        """Return all sessions that the manager has."""
        with state_server.connect(data_dir=self.manager.data_dir) as client:
            return SessionStore(client, SessionConfig("served")).overview()

    def dropped(self) -> int:
        """Return how many requests have said that their changes were dropped."""
        return (self.folder / "web.log").read_text().count("were dropped: ")

    def stop(self) -> None:
        """End everything."""
        try:
            self.web.send_signal(signal.SIGTERM)
            self.web.wait(DEADLINE_S)
        finally:
            self.web.kill()
            self.web.wait(DEADLINE_S)
            assert self.web.stdout is not None
            self.web.stdout.close()
            self.manager.stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Give a web server and a manager to all tests here."""
    site = Site(tmp_path_factory.mktemp("site"), "merge")
    yield site
    site.stop()


def adding(count: int) -> list[str]:
    """Return the paths of requests that add a key each."""
    return [f"/set/k{number}/{number}" for number in range(count)]


NO_PAUSES = [0.0] * REQUESTS

#: Some are answered before the last request begins to save, most overlap with it, and
#: some are held until it has been answered.
BEFORE, AFTER = range(4), range(REQUESTS - 5, REQUESTS - 1)
TURNS = [
    0 if number in BEFORE else 2 if number in AFTER else 1 for number in range(REQUESTS)
]


def test_no_key_is_lost(site: Site) -> None:
    """32 requests that overlap add a key each, and all 32 are there."""
    processes: set[str] = set()
    # Which process takes a connection is up to the system; one round is usual.
    for _ in range(5):
        cookie = site.begin()
        answers = site.all_at_once(cookie, adding(REQUESTS), NO_PAUSES)
        assert {answer.status for answer in answers} == {200}
        expected = {f"k{number}": str(number) for number in range(REQUESTS)}
        assert site.values(cookie) == {"seed": "1", **expected}
        assert {answer.cookie for answer in answers} == {cookie}
        processes = {answer.process for answer in answers}
        if len(processes) == 2:
            break
    assert len(processes) == 2


@pytest.mark.parametrize("seed", range(3))
def test_a_logout_among_them_is_the_end(site: Site, seed: int) -> None:
    """31 add a key each, one logs out in between: the session is not brought back."""
    chance = random.Random(seed)
    pauses = [chance.uniform(0, 0.1) for _ in range(REQUESTS)]
    before, dropped = len(site.sessions()), site.dropped()
    cookie = site.begin()
    paths = [*adding(REQUESTS - 1), "/clear"]
    answers = site.all_at_once(cookie, paths, pauses, TURNS)
    assert {answer.status for answer in answers} == {200}
    assert site.values(cookie) == {}
    assert len(site.sessions()) == before
    # Those whose changes came too late have said so, and have set no cookie.
    late = [answer for answer in answers[:-1] if answer.cookie is None]
    assert all(answers[number].cookie == cookie for number in BEFORE)
    assert all(answers[number].cookie is None for number in AFTER)
    assert site.dropped() - dropped == len(late)
    assert answers[-1].cookie == ""


def test_a_new_id_among_them(site: Site) -> None:
    """One gives the session a new id: it has what came before, the old one nothing."""
    chance = random.Random(5)
    pauses = [chance.uniform(0, 0.1) for _ in range(REQUESTS)]
    before = len(site.sessions())
    cookie = site.begin()
    paths = [*adding(REQUESTS - 1), "/regenerate"]
    answers = site.all_at_once(cookie, paths, pauses, TURNS)
    fresh = answers[-1].cookie
    assert fresh
    assert fresh != cookie
    kept = {
        f"k{number}": str(number)
        for number, answer in enumerate(answers[:-1])
        if answer.cookie is not None
    }
    assert {f"k{number}" for number in BEFORE} <= set(kept)
    assert not {f"k{number}" for number in AFTER} & set(kept)
    assert site.values(fresh) == {"seed": "1", **kept}
    assert site.values(cookie) == {}
    assert len(site.sessions()) == before + 1


def test_revoked_among_them(site: Site) -> None:
    """The session is revoked from outside while 32 requests change it: it is gone."""
    chance = random.Random(6)
    before = len(site.sessions())
    cookie = site.begin()
    pauses = [chance.uniform(0, 0.3) for _ in range(REQUESTS)]

    def revoke(go: Path) -> bool:
        wait_until(go.exists, DEADLINE_S)
        with state_server.connect(data_dir=site.manager.data_dir) as client:
            store = SessionStore(client, SessionConfig("served"))
            return store.revoke(name_of(cookie))

    with ThreadPoolExecutor(1) as pool:
        revoked = pool.submit(revoke, site.next_go())
        site.all_at_once(cookie, adding(REQUESTS), pauses)
        assert revoked.result(DEADLINE_S)
    assert site.values(cookie) == {}
    assert len(site.sessions()) == before


def test_the_manager_is_killed_among_them(site: Site) -> None:
    """kill -9 while 32 requests save: each was answered, and none has lost its key."""
    chance = random.Random(7)
    cookie = site.begin()
    pauses = [chance.uniform(0, 0.4) for _ in range(REQUESTS)]

    def kill(go: Path) -> None:
        wait_until(go.exists, DEADLINE_S)
        site.manager.kill()
        site.manager.start()

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill, site.next_go())
        answers = site.all_at_once(cookie, adding(REQUESTS), pauses)
        killed.result(DEADLINE_S)
    assert {answer.status for answer in answers} == {200}
    expected = {f"k{number}": str(number) for number in range(REQUESTS)}
    assert site.values(cookie) == {"seed": "1", **expected}
