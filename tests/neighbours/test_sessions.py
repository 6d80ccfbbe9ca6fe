"""Server-side sessions: what every route keeps to, and what ours does beyond that."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from http.cookies import SimpleCookie
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from flask import Flask, request_finished, session
from flask.ctx import AppContext
from flask.testing import FlaskClient
from markupsafe import Markup

import state_server
from state_server import codec
from state_server.integrations import flask as flask_module
from state_server.integrations import session_store
from state_server.integrations.flask import StateServer
from state_server.integrations.session_draft import Values, pack
from state_server.integrations.session_store import SessionConflict

from ..processes import ROOT, ManagerProcess, wait_until
from .session_app import (
    ROUTES,
    Basket,
    Colour,
    Foreign,
    Late,
    Size,
    Token,
    Word,
    late,
    own_route,
    state,
    unnamed,
)

MakeApp = Callable[..., Flask]


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerProcess]:
    """Give one manager to all tests here; each has an app of its own."""
    manager = ManagerProcess(tmp_path_factory.mktemp("manager")).start()
    yield manager
    manager.stop()


@pytest.fixture(params=sorted(ROUTES))
def route(request: pytest.FixtureRequest, manager: ManagerProcess) -> MakeApp:
    """Give a function that makes an app, by each route."""
    if request.param != "ours":
        pytest.importorskip("flask_session", reason="Flask-Session is not installed")
    if request.param == "cachelib":
        pytest.importorskip("cachelib", reason="cachelib is not installed")

    def make(**config: Any) -> Flask:
        return ROUTES[request.param](unnamed(), manager.data_dir, **config)

    return make


@pytest.fixture(params=["ours", "flask-session"])
def merging(request: pytest.FixtureRequest, manager: ManagerProcess) -> MakeApp:
    """Give a function that makes an app, by each route that brings keys together."""
    if request.param != "ours":
        pytest.importorskip("flask_session", reason="Flask-Session is not installed")

    def make(**config: Any) -> Flask:
        return ROUTES[request.param](unnamed(), manager.data_dir, **config)

    return make


@pytest.fixture
def make_app(manager: ManagerProcess) -> MakeApp:
    """Give a function that makes an app with our own sessions."""

    def make(**config: Any) -> Flask:
        return own_route(unnamed(), manager.data_dir, **config)

    return make


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the methods of shards that were called so far."""
    seen: list[str] = []
    call = state_server.Client.call

    def noted(client: Any, target: Any, *rest: Any) -> Any:
        if target[0] == session_store.SHARD_CLASS:
            seen.append(target[2])
        return call(client, target, *rest)

    monkeypatch.setattr(state_server.Client, "call", noted)
    return seen


def ask(client: FlaskClient, *paths: str) -> str:
    """Make requests that succeed; return the last body."""
    text = ""
    for path in paths:
        response = client.get(path)
        assert response.status_code == 200, (path, response.status, response.text)
        text = response.text
    return text


def everything(client: FlaskClient) -> dict[str, str]:
    """Return the session as a view sees it."""
    found = client.get("/all").json
    assert isinstance(found, dict)
    return found


def cookie_of(client: FlaskClient) -> str:
    """Return what the browser holds."""
    cookie = client.get_cookie("session")
    return "" if cookie is None else cookie.value


def with_cookie(app: Flask, value: str) -> FlaskClient:
    """Return another browser that holds this cookie."""
    client = app.test_client()
    client.set_cookie("session", value)
    return client


def morsel(response: Any) -> Any:
    """Return the one session cookie that a response sets, with its attributes."""
    (header,) = response.headers.getlist("Set-Cookie")
    return SimpleCookie(header)["session"]


# Every route --------------------------------------------------------------------------


def test_values_live_from_request_to_request(route: MakeApp) -> None:
    """A value is set, read, set again and deleted; a visitor sees only their own."""
    app = route()
    client, other = app.test_client(), app.test_client()
    assert ask(client, "/get/a") == "nothing"
    assert ask(client, "/set/a/1", "/get/a") == "1"
    assert ask(client, "/set/a/2", "/set/b/3", "/get/a") == "2"
    assert ask(other, "/get/a") == "nothing"
    assert ask(client, "/delete/a", "/get/a") == "nothing"
    assert everything(client) == {"b": "3"}


def test_clear_ends_the_session(route: MakeApp) -> None:
    """After clear() the cookie is deleted, and the old one opens nothing."""
    app = route()
    client = app.test_client()
    ask(client, "/set/a/1")
    old = cookie_of(client)
    assert old
    ask(client, "/clear")
    assert cookie_of(client) == ""
    assert everything(with_cookie(app, old)) == {}


def test_removal_of_the_last_value_ends_the_session(route: MakeApp) -> None:
    """An emptied session is not kept, and its cookie is deleted."""
    app = route()
    client = app.test_client()
    ask(client, "/set/a/1")
    old = cookie_of(client)
    ask(client, "/delete/a")
    assert cookie_of(client) == ""
    assert everything(with_cookie(app, old)) == {}


def test_changes_in_place_are_noticed(route: MakeApp) -> None:
    """A list inside a dictionary grows, and nobody says that it was modified."""
    client = route().test_client()
    ask(client, "/nested/a", "/append/a/x", "/append/a/y")
    assert everything(client) == {"a": "{'inner': ['x', 'y']}"}


def test_permanent_sets_the_expiry_of_the_cookie(route: MakeApp) -> None:
    """A permanent session outlives the browser by its lifetime; another does not."""
    app = route(PERMANENT_SESSION_LIFETIME=3600)
    client = app.test_client()
    ask(client, "/set/a/1")
    assert morsel(client.get("/set/a/2"))["expires"] == ""
    expires = morsel(client.get("/permanent/yes"))["expires"]
    ends = datetime.strptime(expires, "%a, %d %b %Y %H:%M:%S GMT")
    remaining = ends.replace(tzinfo=timezone.utc) - datetime.now(timezone.utc)
    assert timedelta(minutes=59) < remaining <= timedelta(hours=1)
    assert morsel(client.get("/permanent/no"))["expires"] == ""
    assert ask(client, "/get/a") == "2"


def test_a_session_expires_in_the_manager(route: MakeApp) -> None:
    """A cookie that is kept for longer than the lifetime opens nothing."""
    app = route(PERMANENT_SESSION_LIFETIME=1, SESSION_REFRESH_EACH_REQUEST=False)
    client = app.test_client()
    ask(client, "/set/a/1")
    old = cookie_of(client)
    wait_until(lambda: everything(with_cookie(app, old)) == {}, 10)


def test_vary_is_set_where_the_session_was_used(route: MakeApp) -> None:
    """Caches on the way learn which pages depend on the visitor, and only those."""
    client = route().test_client()
    ask(client, "/set/a/1")
    assert "Vary" not in client.get("/nothing").headers
    for path in ("/get/a", "/get/b", "/set/a/2", "/clear"):
        assert client.get(path).headers["Vary"] == "Cookie", path


def test_cookie_flags(route: MakeApp) -> None:
    """The cookie has the attributes that the app configures."""
    app = route(
        SESSION_COOKIE_DOMAIN="localhost",
        SESSION_COOKIE_PATH="/set",
        SESSION_COOKIE_SECURE=True,
        SESSION_COOKIE_HTTPONLY=False,
        SESSION_COOKIE_SAMESITE="Strict",
    )
    found = morsel(app.test_client().get("/set/a/1"))
    assert found["domain"] == "localhost"
    assert found["path"] == "/set"
    assert found["secure"] is True
    assert found["httponly"] == ""
    assert found["samesite"] == "Strict"


def test_regenerate_changes_the_id(route: MakeApp) -> None:
    """The session goes on under a new id, and the old one opens nothing."""
    app = route()
    client = app.test_client()
    ask(client, "/set/a/1")
    old = cookie_of(client)
    ask(client, "/regenerate")
    assert cookie_of(client) not in (old, "")
    assert everything(client) == {"a": "1"}
    assert everything(with_cookie(app, old)) == {}


@pytest.mark.parametrize(
    "cookie", ["chosen", "A" * 43, "../../etc/passwd", "\x00", "ä" * 43, "A" * 4000]
)
def test_an_id_that_a_visitor_chose_is_not_taken(route: MakeApp, cookie: str) -> None:
    """An unknown id opens no session and names no new one: no fixation."""
    app = route()
    client = with_cookie(app, cookie)
    assert everything(client) == {}
    ask(client, "/set/a/1")
    assert len(cookie_of(client)) == 43
    assert cookie_of(client) != cookie
    assert everything(with_cookie(app, cookie)) == {}


def test_a_tampered_cookie_opens_nothing(route: MakeApp) -> None:
    """An id that is off by one character is unknown."""
    app = route()
    client = app.test_client()
    ask(client, "/set/a/1")
    cookie = cookie_of(client)
    for place in (0, 20, 42):
        other = "A" if cookie[place] != "A" else "B"
        tampered = cookie[:place] + other + cookie[place + 1 :]
        assert everything(with_cookie(app, tampered)) == {}


def test_nothing_is_begun_by_looking(route: MakeApp) -> None:
    """A visitor whose session is only read gets no cookie."""
    client = route().test_client()
    assert ask(client, "/nothing", "/get/a", "/all") == "{}\n"
    assert cookie_of(client) == ""


def test_types_are_kept(route: MakeApp) -> None:
    """Values come back as what they were, Markup and own classes included."""
    values = {
        "tuple": (1, ("a", None)),
        "set": {1, 2, 3},
        "frozenset": frozenset("ab"),
        "bytes": b"\x00\xff",
        "datetime": datetime(2024, 2, 29, 12, 0, 0, 5, timezone.utc),
        "date": date(2024, 2, 29),
        "timedelta": timedelta(days=1, microseconds=1),
        "decimal": Decimal("1.10"),
        "uuid": UUID(int=7),
        "markup": Markup("<b>&amp;</b>"),
        "complex": 1 + 2j,
        "numbers": {1: "one", 2.5: "two and a half", None: "nothing"},
        "basket": Basket("ann", ["pear"]),
        "colour": Colour.RED,
        "nested": [{"a": (Decimal(1), {Markup("x")})}],
    }
    app = route()
    client = app.test_client()
    found: dict[str, Any] = {}

    @app.get("/fill")
    def fill() -> str:
        session.update(values)
        return "filled"

    @app.get("/look")
    def look() -> str:
        found.update(session)
        return "looked"

    ask(client, "/fill", "/look")
    assert found == values
    assert {key: type(value) for key, value in found.items()} == {
        key: type(value) for key, value in values.items()
    }
    assert type(next(iter(found["nested"][0]["a"][1]))) is Markup


def test_arrays_and_frames_are_kept(route: MakeApp) -> None:
    """numpy's and pandas' values come back as such, and can be changed in place."""
    numpy = pytest.importorskip("numpy", reason="numpy is not installed")
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame({"article": ["tea", "ü"], "price": [2.5, 4.0]})
    frame["when"] = pandas.date_range("2024", periods=2, tz="Europe/Berlin")
    app = route()
    client = app.test_client()
    found: dict[str, Any] = {}

    @app.get("/fill")
    def fill() -> str:
        session["array"] = numpy.arange(30_000.0)
        session["scalar"] = numpy.float32(1.5)
        session["frame"] = frame
        return "filled"

    @app.get("/change")
    def change() -> str:
        session["array"][0] = 7.0
        session.modified = True
        return "changed"

    @app.get("/look")
    def look() -> str:
        found.update(session)
        return "looked"

    ask(client, "/fill", "/change", "/look")
    assert found["array"].tolist() == [7.0, *numpy.arange(1, 30_000.0)]
    assert type(found["scalar"]) is numpy.float32
    pandas.testing.assert_frame_equal(found["frame"], frame)


def test_session_transaction(route: MakeApp) -> None:
    """Flask's own tool for tests reads and changes the session."""
    client = route().test_client()
    with client.session_transaction() as opened:
        opened["a"] = "1"
    assert ask(client, "/get/a", "/set/b/2") == "set"
    with client.session_transaction() as opened:
        assert dict(opened) == {"a": "1", "b": "2"}


def test_a_value_that_cannot_travel_changes_nothing(route: MakeApp) -> None:
    """It is refused, and what was stored before is there as it was."""
    app = route()
    client = app.test_client()

    @app.get("/bad")
    def bad() -> str:
        session["good"] = "2"
        session["bad"] = Foreign()
        return "never seen"

    ask(client, "/set/good/1")
    with pytest.raises(state_server.NotAllowed, match="Foreign"):
        client.get("/bad")
    assert everything(client) == {"good": "1"}
    app.testing = False
    response = client.get("/bad")
    assert response.status_code == 500
    assert "Set-Cookie" not in response.headers
    assert everything(client) == {"good": "1"}


# Ours ---------------------------------------------------------------------------------


def test_a_request_that_looks_at_no_session_asks_nobody(
    make_app: MakeApp, calls: list[str]
) -> None:
    """Nothing is read before the first access, and nothing is read twice."""
    client = make_app().test_client()
    ask(client, "/nothing", "/get/a")
    assert calls == []
    ask(client, "/set/a/1")
    assert calls == ["create"]
    del calls[:]
    ask(client, "/nothing")
    assert calls == []
    ask(client, "/all")
    assert calls == ["load"]
    ask(client, "/set/a/2")
    assert calls == ["load", "load", "save"]


def test_what_does_not_look_like_an_id_is_not_asked_for(
    make_app: MakeApp, calls: list[str]
) -> None:
    """Rubbish in a cookie costs no call."""
    app = make_app()
    for cookie in ("x", "A" * 42, "A" * 44, "A" * 42 + "!", "A" * 42 + "\n"):
        ask(with_cookie(app, cookie), "/all")
    assert calls == []
    ask(with_cookie(app, "A" * 43), "/all")
    assert calls == ["load"]


def test_reading_writes_nothing(make_app: MakeApp, calls: list[str]) -> None:
    """Values read, and values assigned that were there already, are not written."""
    app = make_app()
    client = app.test_client()

    @app.before_request
    def always_permanent() -> None:
        session.permanent = True

    @app.get("/again")
    def again() -> str:
        session["list"] = [1, {"a", "b", "c"}]
        return str(session["list"])

    ask(client, "/again", "/nested/n")
    del calls[:]
    response = client.get("/again")
    ask(client, "/all", "/set/x/1", "/delete/x")
    assert calls == ["load", "load", "load", "save", "load", "save"]
    assert "Set-Cookie" not in response.headers


def test_a_flag_alone_makes_no_session(make_app: MakeApp, calls: list[str]) -> None:
    """Permanent in every request, as many apps have it, stores nothing by itself."""
    client = make_app().test_client()
    ask(client, "/permanent/yes")
    assert calls == []
    assert cookie_of(client) == ""


def test_reads_renew_the_session_now_and_then(
    make_app: MakeApp, calls: list[str]
) -> None:
    """One that is only read is renewed once a part of its lifetime has passed."""
    often = make_app(STATE_SERVER_SESSION_TOUCH_SHARE=0).test_client()
    ask(often, "/set/a/1")
    del calls[:]
    ask(often, "/all")
    assert calls == ["load", "save"]

    app = make_app(STATE_SERVER_SESSION_TOUCH_SHARE=0.5, PERMANENT_SESSION_LIFETIME=1)
    client = app.test_client()
    ask(client, "/set/a/1", "/permanent/yes")
    del calls[:]
    # Read all the time, it lives for three lifetimes, with few writes.
    began = datetime.now()
    cookies = 0
    while datetime.now() - began < timedelta(seconds=3):
        response = client.get("/get/a")
        assert response.text == "1"
        cookies += "Set-Cookie" in response.headers
    assert 2 <= calls.count("save") <= 6
    assert cookies == calls.count("save")
    assert calls.count("load") > 20


def test_renewal_can_be_switched_off(make_app: MakeApp, calls: list[str]) -> None:
    """Without SESSION_REFRESH_EACH_REQUEST reading never renews."""
    client = make_app(
        STATE_SERVER_SESSION_TOUCH_SHARE=0, SESSION_REFRESH_EACH_REQUEST=False
    ).test_client()
    ask(client, "/set/a/1")
    del calls[:]
    ask(client, "/all")
    assert calls == ["load"]


def test_modified_renews(make_app: MakeApp, calls: list[str]) -> None:
    """Set by the app, the flag saves and sets the cookie, whatever has changed."""
    app = make_app()
    client = app.test_client()

    @app.get("/modified")
    def modified() -> str:
        assert not session.modified
        session.modified = True
        session["a"]
        return "modified"

    ask(client, "/set/a/1")
    del calls[:]
    assert "Set-Cookie" in client.get("/modified").headers
    assert calls == ["load", "save"]


@pytest.mark.parametrize(
    ("change", "is_modified"),
    [
        (lambda: session.get("a"), False),
        (lambda: session.update(a=1), True),
        (lambda: session.bind_user("ann"), True),  # type: ignore[attr-defined]
        (lambda: session.clear(), True),
    ],
    ids=["look", "set", "bind", "clear"],
)
def test_modified_tells_of_a_new_session(
    make_app: MakeApp, change: Callable[[], object], is_modified: bool
) -> None:
    """A stranger's session that was only looked at is not modified afterwards."""
    app = make_app()

    @app.get("/change")
    def changing() -> str:
        change()
        return "done"

    with app.test_client() as client:
        ask(client, "/change")
        assert session.modified is is_modified


def test_a_set_from_another_process_is_not_taken_for_changed() -> None:
    """Sets iterate in another order under another hash seed; reading one is reading."""
    program = (
        "import sys; from state_server.codec import encode;"
        "sys.stdout.buffer.write(encode({f'tag {n}' for n in range(50)}))"
    )
    packed = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
            check=True,
            timeout=60,
        ).stdout
        for seed in (1, 2)
    ]
    for data in packed:
        values = Values({"tags": data})
        assert len(values["tags"]) == 50
        assert values.changes().names() == []
        values["tags"].add("one more")
        assert values.changes().names() == ["tags"]
    # It does matter: packed again, at least one of them looks different.
    assert [codec.encode(codec.decode(data)) for data in packed] != packed


def test_values_that_are_not_read_are_left_alone() -> None:
    """What a request does not look at is neither unpacked nor packed again."""
    values = Values({"a": b"rubbish", "b": pack("b", [1])})
    values["b"].append(2)
    assert values.changes().replaced.keys() == {"b"}
    assert list(values) == ["a", "b"]
    assert values.whole()["a"] == b"rubbish"
    with pytest.raises(state_server.NotAllowed, match="'a' of the session"):
        values["a"]


def test_overlapping_requests_lose_no_key(merging: MakeApp) -> None:
    """A slow request, reading or writing, leaves what a quick one wrote."""
    app = merging()
    client = app.test_client()
    ask(client, "/set/seed/0", "/nested/n")
    quick = with_cookie(app, cookie_of(client))

    def slow(what: str) -> str:
        assert session["n"] is not None
        ask(quick, f"/set/quick-{what}/1", f"/append/n/{what}")
        if what == "write":
            session["slow"] = "2"
        return "done"

    for what in ("read", "write"):
        late(app, what)(functools.partial(slow, what))
    ask(client, "/late/read", "/late/write")
    assert everything(client) == {
        "seed": "0",
        "n": "{'inner': ['read', 'write']}",
        "quick-read": "1",
        "quick-write": "1",
        "slow": "2",
    }


def overlap(app: Flask, mine: Callable[[], None], other: str) -> tuple[Any, Any]:
    """Let a request change the session while another one is made and ends."""
    client = app.test_client()
    ask(client, "/set/a/1", "/set/b/1")
    beside = with_cookie(app, cookie_of(client))

    def slow() -> str:
        assert session["a"] == "1"
        ask(beside, other)
        mine()
        return "done"

    late(app, "slow")(slow)
    return client, client.get("/late/slow")


def change_a() -> None:
    """Change a key."""
    session["a"] = "mine"


def test_with_the_rule_last_the_later_request_decides(make_app: MakeApp) -> None:
    """The request that ends last decides about the whole session."""
    app = make_app(STATE_SERVER_SESSION_CONFLICT="last")
    client, response = overlap(app, change_a, "/set/c/other")
    assert response.text == "done"
    assert everything(client) == {"a": "mine", "b": "1"}


def test_with_the_rule_error_a_contested_key_is_a_409(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """A contested key is answered with 409, and the session stays as it was."""
    app = make_app(STATE_SERVER_SESSION_CONFLICT="error")
    client, response = overlap(app, change_a, "/set/a/other")
    assert response.status_code == 409
    assert "try again" in response.text
    assert response.headers["Retry-After"]
    assert "Set-Cookie" not in response.headers
    assert everything(client) == {"a": "other", "b": "1"}
    assert "SessionConflict" in caplog.text


def test_rule_error_lets_other_keys_pass(make_app: MakeApp) -> None:
    """Requests that changed different keys do not get in each other's way."""
    app = make_app(STATE_SERVER_SESSION_CONFLICT="error")
    client, response = overlap(app, change_a, "/set/b/other")
    assert response.text == "done"
    assert everything(client) == {"a": "mine", "b": "other"}


def test_an_app_answers_a_conflict_itself(make_app: MakeApp) -> None:
    """The app's own error handler writes the page, although the view had ended."""
    app = make_app(STATE_SERVER_SESSION_CONFLICT="error")

    @app.errorhandler(SessionConflict)
    def sorry(error: SessionConflict) -> tuple[str, int]:
        return f"sorry: {'a' in str(error)}", 418

    _, response = overlap(app, change_a, "/set/a/other")
    assert (response.status_code, response.text) == (418, "sorry: True")
    assert response.headers["Content-Length"] == "11"


def test_the_error_handlers_are_asked_as_flask_3_2_wants_it(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hands its context on, and takes one argument more."""
    app = make_app(STATE_SERVER_SESSION_CONFLICT="error")
    contexts = []

    def handle(context: AppContext, error: Exception) -> Any:
        contexts.append(context)
        return Flask.handle_user_exception(app, error)

    monkeypatch.setattr(app, "handle_user_exception", handle)
    _, response = overlap(app, change_a, "/set/a/other")
    assert response.status_code == 409
    assert [type(context) for context in contexts] == [AppContext]


ENDS = ["/clear", "/regenerate", "/renew/x/1"]


@pytest.mark.parametrize("end", ENDS)
def test_a_session_that_ended_is_not_brought_back(
    merging: MakeApp, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What a request adds while the visitor logs out is dropped, with one line."""
    app = merging()
    client, response = overlap(app, change_a, end)
    assert response.text == "done"
    assert "Set-Cookie" not in response.headers
    assert everything(client) == {}
    (record,) = (r for r in caplog.records if r.name == "state_server.sessions")
    assert "dropped: 'a'" in record.getMessage()
    assert cookie_of(client) not in caplog.text
    store = app.session_interface.store  # type: ignore[attr-defined]
    assert len(store.overview()) == (0 if end == "/clear" else 1)


@pytest.mark.parametrize("rule", ["last", "error"])
@pytest.mark.parametrize("end", ENDS)
def test_no_rule_brings_a_session_back(make_app: MakeApp, rule: str, end: str) -> None:
    """Whatever the rule for conflicts, what has ended has ended."""
    app = make_app(STATE_SERVER_SESSION_CONFLICT=rule)
    client, response = overlap(app, change_a, end)
    assert (response.text, "Set-Cookie" in response.headers) == ("done", False)
    assert everything(client) == {}
    with app.app_context():
        assert len(state.sessions.overview()) == (0 if end == "/clear" else 1)


def begin_with_what_was_read() -> None:
    """End the session, and begin another with a value of the one that was read."""
    read = session["a"]
    session.clear()
    session["a"] = read


def end_by_path(app: Flask, beside: Any, path: str) -> None:
    """End the session as its visitor does."""
    ask(beside, path)


def revoke_all(app: Flask, beside: Any, path: str) -> None:
    """End the session from outside."""
    store = app.session_interface.store  # type: ignore[attr-defined]
    for info in store.overview():
        store.revoke(info.id)


@pytest.mark.parametrize(
    ("end", "path", "left"),
    [
        (end_by_path, "/clear", 0),
        (end_by_path, "/regenerate", 1),
        (end_by_path, "/renew/x/1", 1),
        (revoke_all, "", 0),
    ],
)
def test_what_was_read_begins_no_session_after_the_end(
    merging: MakeApp,
    end: Callable[[Flask, Any, str], None],
    path: str,
    left: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A request that clears and fills cannot carry over what has ended meanwhile.

    It gets no session and no cookie, and one line is logged; the next request of the
    visitor begins a session as any other.
    """
    app = merging()
    client = app.test_client()
    ask(client, "/set/a/1")
    beside = with_cookie(app, cookie_of(client))

    def slow() -> str:
        assert session["a"] == "1"
        end(app, beside, path)
        begin_with_what_was_read()
        return "done"

    late(app, "slow")(slow)
    response = client.get("/late/slow")
    assert (response.text, "Set-Cookie" in response.headers) == ("done", False)
    store = app.session_interface.store  # type: ignore[attr-defined]
    assert len(store.overview()) == left
    (record,) = (r for r in caplog.records if r.name == "state_server.sessions")
    assert re.search(r"dropped: .*'a'", record.getMessage())
    ask(client, "/renew/b/2")
    assert (ask(client, "/get/a"), ask(client, "/get/b")) == ("nothing", "2")
    assert len(store.overview()) == left + 1


def test_a_dead_cookie_hinders_no_login(merging: MakeApp) -> None:
    """Clear and fill where there was nothing to read any more: a session begins."""
    app = merging()
    client = app.test_client()
    ask(client, "/set/a/1")
    revoke_all(app, client, "")
    old = cookie_of(client)
    ask(client, "/renew/user/ann")
    assert cookie_of(client) not in (old, "")
    assert ask(client, "/get/user") == "ann"


@pytest.mark.parametrize("name", ["app", "wsgi", "__main__"])
def test_a_name_that_many_apps_have_is_warned_of(
    manager: ManagerProcess, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Sessions under such a name, which nobody has chosen, give one line when made."""
    own_route(name, manager.data_dir)
    (record,) = (r for r in caplog.records if r.name == "state_server.sessions")
    assert f"name {name!r}" in record.getMessage()
    assert "STATE_SERVER_SESSION_NAMESPACE" in record.getMessage()


def test_a_chosen_namespace_is_not_warned_of(
    manager: ManagerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a namespace that was set, nor another name, nor an app without them."""
    own_route("app", manager.data_dir, STATE_SERVER_SESSION_NAMESPACE="app")
    own_route("shop", manager.data_dir)
    own_route("app", manager.data_dir, STATE_SERVER_SESSIONS=False)
    assert not [r for r in caplog.records if r.name == "state_server.sessions"]


def test_logout_wins_over_what_came_before(make_app: MakeApp) -> None:
    """The other way round: what others added while the logout ran ends with it."""
    app = make_app()
    client, response = overlap(app, lambda: session.clear(), "/set/c/other")
    assert response.text == "done"
    assert cookie_of(client) == ""
    with app.app_context():
        assert state.sessions.overview() == []


def test_clear_and_go_on_is_another_session(merging: MakeApp) -> None:
    """As in a login that clears first: new id, only what was put in afterwards."""
    app = merging()
    client = app.test_client()
    ask(client, "/set/a/1", "/permanent/yes")
    old = cookie_of(client)
    ask(client, "/renew/user/ann")
    assert cookie_of(client) not in (old, "")
    assert ask(client, "/get/user") == "ann"
    assert ask(client, "/get/a") == "nothing"
    assert everything(with_cookie(app, old)) == {}


def test_a_new_id_and_then_the_end(merging: MakeApp) -> None:
    """A request that renews the id and then logs out leaves neither id."""
    app = merging()
    client = app.test_client()
    ask(client, "/set/a/1")
    old = cookie_of(client)

    @late(app, "leave")
    def leave() -> str:
        app.session_interface.regenerate(session)  # type: ignore[attr-defined]
        session.clear()
        return "left"

    ask(client, "/late/leave")
    assert everything(with_cookie(app, old)) == {}
    assert app.session_interface.store.overview() == []  # type: ignore[attr-defined]


def test_changes_in_place_without_renewal(merging: MakeApp) -> None:
    """They are noticed where reading alone does not renew the session, too."""
    client = merging(SESSION_REFRESH_EACH_REQUEST=False).test_client()
    ask(client, "/nested/a", "/append/a/x")
    assert everything(client) == {"a": "{'inner': ['x']}"}


def test_delete_cookie_has_the_same_attributes(make_app: MakeApp) -> None:
    """Only so a browser deletes the cookie that it has."""
    flags = {
        "SESSION_COOKIE_NAME": "session",
        "SESSION_COOKIE_DOMAIN": "localhost",
        "SESSION_COOKIE_PATH": "/",
        "SESSION_COOKIE_SECURE": True,
        "SESSION_COOKIE_HTTPONLY": True,
        "SESSION_COOKIE_SAMESITE": "None",
        "SESSION_COOKIE_PARTITIONED": True,
    }
    client = make_app(**flags).test_client()
    base = {"base_url": "https://localhost"}
    made = client.get("/set/a/1", **base)  # type: ignore[arg-type]
    deleted = client.get("/clear", **base)  # type: ignore[arg-type]

    def attributes(response: Any) -> set[str]:
        (header,) = response.headers.getlist("Set-Cookie")
        return set(re.split("; ", header)[1:])

    with_expiry = attributes(deleted)
    gone = {part for part in with_expiry if part.startswith(("Expires", "Max-Age"))}
    assert len(gone) == 2
    assert with_expiry - gone == attributes(made)
    if hasattr(Flask.session_interface, "get_cookie_partitioned"):
        assert "Partitioned" in attributes(made)
    assert {"Secure", "HttpOnly", "SameSite=None", "Path=/"} <= attributes(made)


def test_cookie_name_and_every_helper_may_be_overridden(make_app: MakeApp) -> None:
    """A subclass decides about the cookie as with Flask's own interface."""
    app = make_app(SESSION_COOKIE_NAME="visit")
    interface = type(app.session_interface)

    class Strict(interface):  # type: ignore[misc, valid-type]
        def get_cookie_samesite(self, app: Flask) -> str:
            return "Strict"

        def should_set_cookie(self, app: Flask, session: Any) -> bool:
            return session.get("quiet") is None

    app.session_interface = Strict(app.session_interface.store)  # type: ignore[attr-defined]
    client = app.test_client()
    (header,) = client.get("/set/a/1").headers.getlist("Set-Cookie")
    assert header.startswith("visit=")
    assert "SameSite=Strict" in header
    assert "Set-Cookie" not in client.get("/set/quiet/1").headers
    assert everything(client) == {"a": "1", "quiet": "1"}


def test_the_id_is_nowhere_but_in_the_cookie(
    make_app: MakeApp, manager: ManagerProcess
) -> None:
    """What is on disk, listed or logged lets nobody in."""
    app = make_app()
    client = app.test_client()
    ask(client, "/set/needle-in-the-file/1")
    cookie = cookie_of(client)
    with app.app_context():
        (info,) = state.sessions.overview()
    assert everything(with_cookie(app, info.id)) == {}
    files = [path.read_bytes() for path in manager.data_dir.glob("state.db*")]
    assert any(b"needle-in-the-file" in content for content in files)
    assert not any(cookie.encode() in content for content in files)
    assert cookie not in manager.log


def test_apps_share_no_sessions_unless_they_say_so(
    make_app: MakeApp, manager: ManagerProcess
) -> None:
    """A cookie of one app opens nothing in another, but for one of the same name."""
    one, two = make_app(), make_app()
    client = one.test_client()
    ask(client, "/set/user/ann")
    cookie = cookie_of(client)
    assert everything(with_cookie(two, cookie)) == {}
    three = make_app(STATE_SERVER_SESSION_NAMESPACE=one.name)
    assert everything(with_cookie(three, cookie)) == {"user": "ann"}


def test_a_mapping_in_every_respect(make_app: MakeApp) -> None:
    """What one does with a dictionary one does with the session."""
    app = make_app()
    with app.test_request_context():
        assert not session
        assert session.new
        assert len(session) == 0
        session.update(a=1, b=2)
        assert session.setdefault("c", 3) == 3
        assert session.pop("a") == 1
        assert dict(session) == {"b": 2, "c": 3} == session.copy() == session
        assert "b" in session
        assert "a" not in session
        assert None not in session
        assert repr(session) == "<session: ['b', 'c']>"
        with pytest.raises(KeyError):
            session["a"]
        with pytest.raises(KeyError):
            del session["a"]
        with pytest.raises(TypeError, match="is text, not 5"):
            session[5] = 1  # type: ignore[index]
        assert session.popitem() in [("b", 2), ("c", 3)]
        session["\ud800 \0 ß"] = 1
        app.process_response(app.response_class())
        assert not session.new
        session["again"] = 2
        app.process_response(app.response_class())
        cookie = session.sid  # type: ignore[attr-defined]
    assert ask(with_cookie(app, cookie), "/get/again") == "2"


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "flask's own"])
def test_the_session_is_united_as_a_dictionary_is(
    make_app: MakeApp, *, ours: bool
) -> None:
    """``|`` gives a dictionary and changes nothing; ``|=`` sets values, and is told."""
    app = make_app() if ours else Flask("own", root_path=".")
    app.secret_key = "of the cookie"
    with app.test_request_context():
        session.update(a=1, b=2)
        app.process_response(app.response_class())
        session.modified = False
        united = session | {"b": 3, "c": 4}
        assert united == {"a": 1, "b": 3, "c": 4}
        assert type(united) is dict
        assert {"b": 3, "c": 4} | session == {"a": 1, "b": 2, "c": 4}
        assert session | session == {"a": 1, "b": 2}
        assert dict(session) == {"a": 1, "b": 2}
        assert not session.modified
        for other in (5, None, [("a", 1)]):
            with pytest.raises(TypeError):
                session | other
            with pytest.raises(TypeError):
                other | session
        found = session._get_current_object()  # type: ignore[attr-defined]
        same = found
        same |= {"b": 5}
        assert same is found
        assert session.modified
        same |= [("c", 6)]
        for wrong in (5, None, [5]):
            with pytest.raises(TypeError):
                same |= wrong
        assert dict(session) == {"a": 1, "b": 5, "c": 6}
        if ours:
            app.process_response(app.response_class())
            cookie = session.sid  # type: ignore[attr-defined]
    if ours:
        assert everything(with_cookie(app, cookie)) == {"a": "1", "b": "5", "c": "6"}


@pytest.mark.parametrize("rule", ["merge", "last", "error"])
def test_saving_a_second_time_is_harmless(make_app: MakeApp, rule: str) -> None:
    """Flask saves again when something fails after the first time; both are kept."""
    app = make_app(STATE_SERVER_SESSION_CONFLICT=rule)
    app.testing = False
    client = app.test_client()
    asked = []

    @app.after_request
    def count(response: Any) -> Any:
        asked.append(response.status_code)
        return response

    @app.errorhandler(500)
    def sorry(_: Exception) -> tuple[str, int]:
        session["sorry"] = "1"
        return "sorry", 500

    @late(app, "work")
    def work() -> str:
        session["b"] = "2"
        session["list"] = ["x"]
        del session["gone"]
        return "worked"

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("after the first time")

    ask(client, "/set/a/1", "/set/gone/1")
    del asked[:]
    with request_finished.connected_to(fail, app):
        response = client.get("/late/work")
    assert (response.status_code, asked) == (500, [200, 500])
    assert everything(client) == {"a": "1", "b": "2", "list": "['x']", "sorry": "1"}


def test_an_error_in_a_view_saves_what_was_done(make_app: MakeApp) -> None:
    """As with Flask's own sessions, a page for an error has the session, too."""
    app = make_app()
    app.testing = False
    client = app.test_client()

    @app.get("/fails")
    def fails() -> str:
        session["a"] = "1"
        raise ValueError("no")

    assert client.get("/fails").status_code == 500
    assert everything(client) == {"a": "1"}


def test_a_value_that_cannot_travel_is_named(make_app: MakeApp) -> None:
    """The error says which key it is, what is in it, and what has become of it."""
    app = make_app()
    client = app.test_client()

    @app.get("/bad")
    def bad() -> str:
        session["deep"] = {"list": [1, Foreign()]}
        return "never seen"

    with pytest.raises(state_server.NotAllowed) as caught:
        client.get("/bad")
    for part in ("'deep'", "stays as it was", "['list'][1]", "Foreign", "allow("):
        assert part in str(caught.value), part


def test_what_flask_would_keep_is_kept(merging: MakeApp) -> None:
    """What is built upon a builtin class is kept as that, also within other values.

    Flask's own session does so, and the tokens of OAuth packages rely on it.
    """
    now = datetime(2031, 2, 3, 4, 5, 6, 7, timezone.utc)
    moment = type("Moment", (datetime,), {})(2031, 2, 3, 4, 5, 6, 7, timezone.utc)
    token = Token(key=Word("text"), ring=[Size.SMALL])
    token["self"] = token
    app = merging()
    client = app.test_client()

    @app.get("/login")
    def login() -> str:
        session["token"] = token
        session["parts"] = [Size.SMALL, (Word("a"), Late()), {Word("b"): moment}]
        session["kept"] = [Token(), Counter("a"), Basket("ann", []), Colour.RED]
        session[Word("word")] = Word("text")
        return "welcome"

    @app.get("/look")
    def look() -> str:
        found = session["token"]
        assert found["self"] is found
        assert exact(found, "key", "ring") == "dict str list"
        assert exact(found["ring"], 0) == "list int"
        first, (second, third), fourth = session["parts"]
        assert (first, second, third) == (1, "a", Markup("<b>late</b>"))
        assert exact([first, second, third], 0, 1, 2) == "list int str Markup"
        assert fourth == {"b": now}
        assert exact(fourth, "b") == "dict datetime"
        assert exact(session["kept"], 0, 1, 2, 3) == "list dict Counter Basket Colour"
        assert session["word"] == "text"
        assert [type(key) for key in session] == [str] * len(session)
        return "seen"

    assert ask(client, "/login", "/look", "/look") == "seen"
    assert "Set-Cookie" not in client.get("/look").headers


def exact(container: Any, *places: Any) -> str:
    """Name the class of a container and of some of its parts."""
    return " ".join(
        type(each).__name__
        for each in [container, *(container[place] for place in places)]
    )


def test_a_value_that_cannot_be_read_any_more(make_app: MakeApp) -> None:
    """One whose class is not allowed now is named; the rest of the session works."""
    app = make_app()
    client = app.test_client()

    @app.get("/basket")
    def basket() -> str:
        session["basket"] = Basket("ann", [])
        return "bought"

    ask(client, "/basket", "/set/a/1")
    allowed = codec.own_classes.allowed_names
    entry = allowed.pop((Basket.__module__, Basket.__qualname__))
    try:
        assert ask(client, "/set/b/2", "/get/a") == "1"
        with pytest.raises(state_server.NotAllowed, match="'basket' of the session"):
            client.get("/get/basket")
        ask(client, "/delete/basket")
    finally:
        allowed[Basket.__module__, Basket.__qualname__] = entry
    assert everything(client) == {"a": "1", "b": "2"}


def test_limit_of_bytes_names_the_key(make_app: MakeApp) -> None:
    """At once, or together with what was there, a value that is too large is named."""
    app = make_app(STATE_SERVER_SESSION_BYTES_MAX=1000)
    client = app.test_client()
    ask(client, f"/set/first/{'x' * 500}")
    for size in (600, 2000):
        with pytest.raises(state_server.TooLarge) as caught:
            client.get(f"/set/second/{'x' * size}")
        for part in ("'second'", "1000", "STATE_SERVER_SESSION_BYTES_MAX"):
            assert part in str(caught.value)
    assert everything(client) == {"first": "x" * 500}


def name_in(shard: int, number: int) -> str:
    """Return a name that belongs to a shard."""
    return f"{shard:04x}{number:060x}"


def test_limit_of_sessions(make_app: MakeApp) -> None:
    """When there are as many as may be, new ones get 503, and the old ones go on."""
    app = make_app(STATE_SERVER_SESSIONS_MAX=1024)
    old, new = app.test_client(), app.test_client()
    ask(old, "/set/a/1")
    with app.app_context():
        store = state.sessions
        for shard in range(64):
            with contextlib.suppress(state_server.Overloaded):
                for number in range(17):
                    name = name_in(shard, number)
                    store.create(name, {"a": b"1"}, lifetime_s=3600.0)
        assert len(store.overview(limit=2000)) == 1024
    assert new.get("/set/a/1").status_code == 503
    assert not cookie_of(new)
    assert ask(old, "/set/a/2", "/get/a") == "2"


def test_a_full_shard_is_called_by_its_name(make_app: MakeApp) -> None:
    """The error says that one shard is full, of how many, with what, and what helps."""
    app = make_app(STATE_SERVER_SESSIONS_MAX=1024)
    with app.app_context():
        store = state.sessions
        for number in range(16):
            store.create(name_in(5, number), {"a": b"1"}, lifetime_s=3600.0)
        with pytest.raises(state_server.Overloaded) as caught:
            store.create(name_in(5, 16), {"a": b"1"}, lifetime_s=3600.0)
        store.create(name_in(6, 0), {"a": b"1"}, lifetime_s=3600.0)
        assert len(store.overview()) == 17
    for part in (
        "each of 64 holds 16 sessions",
        repr(app.name),
        "1024",
        "STATE_SERVER_SESSIONS_MAX",
        "PERMANENT_SESSION_LIFETIME",
    ):
        assert part in str(caught.value)


def test_the_latest_seen_of_all_shards_are_listed(make_app: MakeApp) -> None:
    """However the sessions are spread, a short list holds those that were seen last."""
    app = make_app()
    names = [name_in(shard, 0) for shard in (63, 7, 0, 21, 5, 62, 1, 40)]
    with app.app_context():
        store = state.sessions
        for name in names:
            store.create(name, {"a": b"1"}, lifetime_s=3600.0)
        assert [info.id for info in store.overview(limit=3)] == names[:-4:-1]
        store.save(names[0], 1, {}, {}, (), lifetime_s=3600.0)
        assert [info.id for info in store.overview(limit=2)] == [names[0], names[-1]]
        assert store.overview(limit=0) == []


class UnknownWord:
    """Stands for a client whose manager answers with a word of another release."""

    def get(self, *_: object, **__: object) -> Any:
        """Return what stands for a shard."""
        return SimpleNamespace(save=lambda *_, **__: ("perhaps", 0))


def test_an_unknown_answer_is_an_error() -> None:
    """A word that is no outcome is not taken for a success."""
    config = session_store.SessionConfig("shop")
    store = session_store.SessionStore(UnknownWord(), config)  # type: ignore[arg-type]
    with pytest.raises(state_server.StateServerError, match=r"'perhaps'.*same release"):
        store.save(name_in(0, 0), 1, {}, {}, (), lifetime_s=1.0)


def test_a_bound_session_has_a_new_id(make_app: MakeApp) -> None:
    """Whoever planted an id before the login does not share the session after it."""
    app = make_app()

    @app.get("/login/<user>")
    def login(user: str) -> str:
        session.bind_user(user)  # type: ignore[attr-defined]
        return str(session.user)  # type: ignore[attr-defined]

    attacker = app.test_client()
    ask(attacker, "/set/basket/1")
    victim = with_cookie(app, cookie_of(attacker))
    assert ask(victim, "/login/ann") == "ann"
    assert everything(victim) == {"basket": "1"}
    assert everything(attacker) == {}
    # Bound already, it keeps its id.
    cookie = cookie_of(victim)
    ask(victim, "/login/ann")
    assert cookie_of(victim) == cookie
    ask(victim, "/login/bob")
    assert cookie_of(victim) != cookie


@pytest.mark.parametrize("user", ["", 5, "x" * 256, b"ann"])
def test_a_user_is_text(make_app: MakeApp, user: Any) -> None:
    """Anything else is refused at once, with the value."""
    with (
        make_app().test_request_context(),
        pytest.raises(ValueError, match="bound to a user by text of 1 to 255"),
    ):
        session.bind_user(user)  # type: ignore[attr-defined]


def test_log_out_everywhere(make_app: MakeApp) -> None:
    """The sessions of a user are listed, one is revoked, all but one, and all."""
    app = make_app()

    @app.get("/login/<user>")
    def login(user: str) -> str:
        session.bind_user(user)  # type: ignore[attr-defined]
        return "in"

    @app.get("/id")
    def own_id() -> str:
        return session.id  # type: ignore[attr-defined, no-any-return]

    @app.get("/others")
    def others() -> str:
        return str(state.sessions.revoke_user("ann", keep=session.id))  # type: ignore[attr-defined]

    ann = [app.test_client() for _ in range(20)]
    bob, nobody = app.test_client(), app.test_client()
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    for client in ann:
        ask(client, "/login/ann", "/set/a/1")
    ask(bob, "/login/bob")
    ask(nobody, "/set/a/1")
    ids = {ask(client, "/id") for client in ann}
    with app.app_context():
        sessions = state.sessions
        listed = sessions.overview("ann")
        assert {info.id for info in listed} == ids
        for info in listed:
            assert info.user == "ann"
            assert info.size_bytes > 0
            assert before < info.created <= info.last_seen < info.expires
        seen = [info.last_seen for info in listed]
        assert seen == sorted(seen, reverse=True)
        assert len(sessions.overview("ann", limit=5)) == 5
        assert len(sessions.overview()) == 22
        assert [info.user for info in sessions.overview("bob")] == ["bob"]
        assert {info.user for info in sessions.overview()} == {"ann", "bob", None}
        assert sessions.revoke(ask(ann[0], "/id"))
        assert not sessions.revoke("0" * 64)
        assert everything(ann[0]) == {}
        assert ask(ann[1], "/others") == "18"
        assert everything(ann[2]) == {}
        assert everything(ann[1]) == {"a": "1"}
        assert sessions.revoke_user("ann") == 1
        assert everything(ann[1]) == {}
        assert sessions.overview("ann") == []
        assert len(sessions.overview()) == 2
        with pytest.raises(ValueError, match="is not the id of a session"):
            sessions.revoke("rubbish")
        with pytest.raises(ValueError, match="takes the user"):
            sessions.revoke_user(None)
        assert len(sessions.overview()) == 2


def test_revoked_while_a_request_runs(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """A request of the session that was revoked does not bring it back."""
    app = make_app()
    client = app.test_client()

    @late(app, "work")
    def work() -> str:
        session["b"] = "2"
        state.sessions.revoke(session.id)  # type: ignore[attr-defined]
        return "worked"

    @late(app, "fail")
    def fail() -> str:
        session["b"] = "2"
        state.sessions.revoke(session.id)  # type: ignore[attr-defined]
        app.process_response(app.response_class())
        return "saved twice"

    for path in ("/late/work", "/late/fail"):
        caplog.clear()
        ask(client, "/set/a/1")
        assert "Set-Cookie" not in client.get(path).headers
        assert everything(client) == {}
        assert caplog.text.count("dropped: 'b'") == 1


def test_handles_of_shared_objects_may_be_kept(make_app: MakeApp) -> None:
    """A handle in the session comes back as a handle that works."""
    app = make_app()
    client = app.test_client()
    key = unnamed("counter")

    @app.get("/keep")
    def keep() -> str:
        session["counter"] = state.get("SomeObj", key)
        return "kept"

    @app.get("/count")
    def count() -> str:
        return str(session["counter"].query())

    assert ask(client, "/keep", "/count", "/count") == "2"


def test_switched_off(manager: ManagerProcess) -> None:
    """Without the setting, Flask's own sessions stay, and asking for ours says so."""
    app = Flask(unnamed())
    app.config["STATE_SERVER_DATA_DIR"] = str(manager.data_dir)
    extension = StateServer(app)
    assert app.session_interface is Flask.session_interface
    with (
        app.app_context(),
        pytest.raises(RuntimeError, match="STATE_SERVER_SESSIONS = True"),
    ):
        extension.sessions.overview()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SESSIONS", "perhaps", "true or false"),
        ("SESSION_CONFLICT", "fight", "merge, last, error"),
        ("SESSION_BYTES_MAX", 0, "whole number from 1"),
        ("SESSION_BYTES_MAX", True, "whole number from 1"),
        ("SESSIONS_MAX", 1.5, "whole number from 1024"),
        ("SESSIONS_MAX", 1023, "whole number from 1024"),
        ("SESSION_TIMEOUT", 0, "seconds above 0"),
        ("SESSION_TIMEOUT", "5", "seconds above 0"),
        ("SESSION_TOUCH_SHARE", 2, "from 0 to 1"),
        ("SESSION_TOUCH_SHARE", "0.1", "from 0 to 1"),
        ("SESSION_NAMESPACE", "", "text of 1 to 200"),
        ("SESSION_NAMESPACE", "x" * 201, "text of 1 to 200"),
        ("SESSION_NAMESPACE", 5, "text of 1 to 200"),
    ],
)
def test_bad_settings_are_named(key: str, value: Any, expected: str) -> None:
    """A setting that does not fit is refused when the app is made."""
    app = Flask("shop")
    app.config.update({"STATE_SERVER_SESSIONS": True, f"STATE_SERVER_{key}": value})
    with pytest.raises(state_server.ConfigError) as caught:
        StateServer(app)
    assert str(caught.value).startswith(f"STATE_SERVER_{key}")
    assert f"is {value!r}" in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("namespace", ""),
        ("namespace", "x" * 5000),
        ("namespace", None),
        ("conflict", "fight"),
        ("conflict", ["merge"]),
        ("bytes_max", -1),
        ("bytes_max", 0),
        ("bytes_max", 1e6),
        ("bytes_max", True),
        ("count_max", 0),
        ("count_max", 1023),
        ("count_max", "many"),
        ("touch_share", 9.0),
        ("touch_share", -0.1),
        ("touch_share", float("nan")),
        ("touch_share", True),
        ("call_timeout_s", 0),
        ("call_timeout_s", float("inf")),
        ("call_timeout_s", float("nan")),
        ("call_timeout_s", "5"),
    ],
)
def test_the_record_refuses_what_does_not_fit(field: str, value: Any) -> None:
    """Whoever makes the record without the extension is told as well."""
    with pytest.raises(state_server.ConfigError) as caught:
        session_store.SessionConfig(**{"namespace": "shop", field: value})
    assert str(caught.value).startswith(f"{field} is {value!r:.300}; expected ")
    assert len(str(caught.value)) < 500


def test_every_key_has_an_option() -> None:
    """What is read from the configuration may be given to the constructor as well."""
    named = re.findall(r"^    STATE_SERVER_(\w+)", flask_module.__doc__ or "", re.M)
    options = set(inspect.signature(StateServer).parameters) - {"app"}
    assert {key.lower() for key in named} == options


def test_options_of_the_sessions_stand_in_for_keys() -> None:
    """The constructor takes the settings of the sessions; ``app.config`` wins."""
    extension = StateServer(
        sessions=True,
        session_namespace="shared",
        session_conflict="error",
        session_bytes_max=5000,
        session_touch_share=0.5,
        session_timeout=2,
        sessions_max=2000,
    )
    plain, other = Flask("plain"), Flask("other")
    other.config["STATE_SERVER_SESSION_CONFLICT"] = "last"
    for app in (plain, other):
        extension.init_app(app)
    expected = session_store.SessionConfig("shared", "error", 5000, 2000, 0.5, 2)
    assert plain.extensions["state_server"].config.sessions == expected
    assert other.extensions["state_server"].config.sessions == replace(
        expected, conflict="last"
    )


def test_sessions_wait_no_longer_than_other_calls() -> None:
    """Sessions have 5 s, or what all calls of the app have if that is less."""
    for timeout, expected in ((None, 5.0), (60, 5.0), (2, 2.0)):
        app = Flask("shop")
        StateServer(app, sessions=True, timeout=timeout)
        config = app.extensions["state_server"].config.sessions
        assert config.call_timeout_s == expected


def test_settings_by_constructor_and_default() -> None:
    """The sessions are switched on by the constructor; the rest has its defaults."""
    app = Flask("shop")
    StateServer(app, sessions=True)
    config = app.extensions["state_server"].config.sessions
    assert config == session_store.SessionConfig(
        namespace="shop",
        conflict="merge",
        bytes_max=1024 * 1024,
        count_max=1_000_000,
        touch_share=0.01,
        call_timeout_s=5.0,
    )


# The manager comes and goes -----------------------------------------------------------


@pytest.fixture
def own_manager(tmp_path: Path) -> Iterator[ManagerProcess]:
    """Give a manager that a test may end."""
    manager = ManagerProcess(tmp_path, "--journal-bytes-max", "4096").start()
    yield manager
    manager.stop()


def test_a_killed_manager_loses_nothing(own_manager: ManagerProcess) -> None:
    """kill -9 between two requests, again and again: every session is there."""
    app = own_route("shop", own_manager.data_dir)
    clients = [app.test_client() for _ in range(10)]
    for client in clients:
        ask(client, "/nested/n")
    for turn in range(4):
        for number, client in enumerate(clients):
            ask(client, f"/set/k{turn}/{number}", f"/append/n/{turn}")
        own_manager.kill()
        own_manager.start()
    with app.app_context():
        before = state.sessions.overview()
        own_manager.kill()
        own_manager.start()
        # Made again from the journal, they are not younger for it.
        assert state.sessions.overview() == before
    for number, client in enumerate(clients):
        expected = {f"k{turn}": str(number) for turn in range(4)}
        assert everything(client) == {
            **expected,
            "n": "{'inner': ['0', '1', '2', '3']}",
        }
    ask(clients[0], "/clear")
    own_manager.kill()
    own_manager.start()
    with app.app_context():
        assert len(state.sessions.overview()) == 9


@pytest.mark.parametrize("name", ["ours", "flask-session"])
def test_what_a_visitor_sees_while_the_manager_is_away(
    own_manager: ManagerProcess, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """503, no new session, no cookie; and afterwards all is as it was."""
    if name != "ours":
        pytest.importorskip("flask_session", reason="Flask-Session is not installed")
    app = ROUTES[name]("shop", own_manager.data_dir, STATE_SERVER_TIMEOUT=0.3)
    client = app.test_client()
    ask(client, "/set/a/1")
    cookie = cookie_of(client)
    own_manager.kill()
    for path in ("/get/a", "/set/b/2", "/clear", "/regenerate"):
        response = client.get(path)
        assert response.status_code == 503, path
        assert response.headers["Retry-After"]
        assert "Set-Cookie" not in response.headers
    # A new visitor's session cannot be begun: the page that was ready is not shown.
    response = app.test_client().get("/set/a/1")
    assert response.status_code == 503
    assert "try again" in response.text
    assert "Set-Cookie" not in response.headers
    assert ask(client, "/nothing") == "nothing"
    assert "Traceback" not in caplog.text
    own_manager.start()
    assert cookie_of(client) == cookie
    assert everything(client) == {"a": "1"}


def test_a_session_is_given_up_before_other_calls(
    own_manager: ManagerProcess, calls: list[str]
) -> None:
    """A page that reads its session has the timeout of sessions, not that of calls."""
    app = own_route(
        "shop",
        own_manager.data_dir,
        STATE_SERVER_TIMEOUT=300,
        STATE_SERVER_SESSION_TIMEOUT=0.3,
    )
    client = app.test_client()
    ask(client, "/set/a/1")
    own_manager.kill()
    began = time.monotonic()
    for path in ("/get/a", "/set/b/2"):
        assert client.get(path).status_code == 503
    assert app.test_client().get("/set/a/1").status_code == 503
    assert time.monotonic() - began < 30
    assert calls.count("load") == 2
    assert calls.count("create") == 2


def test_a_request_waits_for_the_manager_once(own_manager: ManagerProcess) -> None:
    """A view that catches the error and asks again gets it again, at once."""
    app = own_route("shop", own_manager.data_dir, STATE_SERVER_TIMEOUT=0.3)
    client = app.test_client()
    ask(client, "/set/a/1")
    errors = []

    @late(app, "stubborn")
    def stubborn() -> str:
        for _ in range(100):
            try:
                session.get("a")
            except state_server.Unreachable as error:
                errors.append(error)
        return "went on without"

    own_manager.kill()
    began = datetime.now()
    response = client.get("/late/stubborn")
    assert (response.status_code, response.text) == (200, "went on without")
    assert datetime.now() - began < timedelta(seconds=10)
    assert len(errors) == 100
    assert len(set(map(id, errors))) == 1
    assert "Set-Cookie" not in response.headers


def test_errors_are_left_alone_where_the_app_wants_them(
    own_manager: ManagerProcess,
) -> None:
    """Without the extension's error pages, a session that is not saved is an error."""
    app = own_route(
        "shop",
        own_manager.data_dir,
        STATE_SERVER_TIMEOUT=0.3,
        STATE_SERVER_HANDLE_ERRORS=False,
    )
    own_manager.kill()
    with pytest.raises(state_server.Unreachable):
        app.test_client().get("/set/a/1")
    app.testing = False
    assert app.test_client().get("/set/a/1").status_code == 500
    own_manager.start()


def test_sessions_without_a_disk(tmp_path: Path) -> None:
    """A manager that keeps nothing on disk has sessions as well."""
    manager = ManagerProcess(tmp_path, "--memory").start()
    try:
        client = own_route("shop", manager.data_dir).test_client()
        ask(client, "/set/a/1", "/nested/n", "/append/n/x")
        assert everything(client) == {"a": "1", "n": "{'inner': ['x']}"}
        ask(client, "/clear")
        assert everything(client) == {}
    finally:
        manager.stop()


def test_an_ordinary_day_of_a_session_is_not_logged(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """An ordinary day of a session writes no line."""
    caplog.set_level(logging.INFO)
    client = make_app().test_client()
    ask(client, "/set/a/1", "/regenerate", "/set/b/1", "/delete/a", "/clear", "/all")
    assert [r for r in caplog.records if r.name.startswith("state_server")] == []
