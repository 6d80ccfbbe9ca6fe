"""Flask-Caching on State Server: settings, what views return, shared computation."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import flask
import pytest
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

import state_server
from state_server import codec, errors

from ..processes import ManagerProcess, wait_until

flask_caching = pytest.importorskip("flask_caching")

from state_server.integrations import caching
from state_server.integrations import flask_caching as ours
from state_server.integrations.flask import (
    EXTENSION,
    StateServer,
    client_of,
)

MakeApp = Callable[..., Flask]

#: Flask-Caching caches what views raise since its release 2.5.
RELEASE = tuple(map(int, metadata.version("flask-caching").split(".")[:2]))
ERRORS_ARE_CACHED = RELEASE >= (2, 5)


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerProcess]:
    """Give one manager to all tests; each has a region of its own."""
    started = ManagerProcess(tmp_path_factory.mktemp("manager")).start()
    yield started
    started.stop()


@pytest.fixture
def make_app(manager: ManagerProcess, request: pytest.FixtureRequest) -> MakeApp:
    """Give a function that returns apps whose cache is a new region."""

    def make(**config: Any) -> Flask:
        app = Flask("shop")
        options = config.pop("CACHE_OPTIONS", {})
        region = re.sub(r"\W", "-", request.node.name)
        app.config.update(
            STATE_SERVER_DATA_DIR=str(manager.data_dir),
            CACHE_OPTIONS={"region": region, "call_timeout_s": 20, **options},
            **config,
        )
        return app

    return make


def region_of(manager: ManagerProcess, request: pytest.FixtureRequest) -> Any:
    """Return the region of a test."""
    return manager.client().get("CacheRegion", re.sub(r"\W", "-", request.node.name))


# Configuration -----------------------------------------------------------------------


def test_backend_by_its_name(
    make_app: MakeApp, manager: ManagerProcess, request: pytest.FixtureRequest
) -> None:
    """An app that uses Flask-Caching needs CACHE_TYPE alone; its settings count."""
    app = make_app(CACHE_TYPE=ours.CACHE_TYPE, CACHE_DEFAULT_TIMEOUT=77)
    cache = flask_caching.Cache(app)
    backend = app.extensions["cache"][cache]
    assert type(backend) is ours.StateServerCache
    assert backend.default_timeout == 77
    assert backend.ignore_delete_many_errors is False
    with app.app_context():
        cache.set("key", (1, 2))
        assert cache.get("key") == (1, 2)
    assert region_of(manager, request).has("flask_cache_key")


def test_our_extension_needs_no_type(make_app: MakeApp) -> None:
    """``Cache`` of this module uses our backend, unless a type is set in any place."""
    app = make_app()
    cache = ours.Cache(app)
    assert type(app.extensions["cache"][cache]) is ours.StateServerCache
    for apart, init in (
        (ours.Cache(config={"CACHE_TYPE": "SimpleCache"}), {}),
        (ours.Cache(), {"CACHE_TYPE": "SimpleCache"}),
    ):
        app = Flask("shop")
        apart.init_app(app, init)
        name = type(app.extensions["cache"][apart]).__name__
        assert name == "SimpleCache"
    app = Flask("shop")
    app.config["CACHE_TYPE"] = "SimpleCache"
    cache = ours.Cache(app)
    assert type(app.extensions["cache"][cache]).__name__ == "SimpleCache"


def test_processes_share_and_prefixes_divide(make_app: MakeApp) -> None:
    """Two apps with one prefix share values; clear() of another prefix spares them."""

    def app_with(prefix: Any) -> tuple[Flask, Any]:
        app = make_app(CACHE_KEY_PREFIX=prefix)
        return app, ours.Cache(app)

    (one, one_cache), (two, two_cache) = app_with("shop:"), app_with(lambda: "shop:")
    other, other_cache = app_with("blog:")
    with one.app_context():
        one_cache.set("key", "value")
    with two.app_context():
        assert two_cache.get("key") == "value"
    with other.app_context():
        assert other_cache.get("key") is None
        other_cache.clear()
    with one.app_context():
        assert one_cache.get("key") == "value"
        one_cache.clear()
        assert one_cache.get("key") is None


def test_manager_of_the_options(
    make_app: MakeApp, manager: ManagerProcess, tmp_path: Path
) -> None:
    """An address in CACHE_OPTIONS, or a client in CACHE_ARGS, wins over the app's."""
    elsewhere = {"STATE_SERVER_DATA_DIR": str(tmp_path)}
    app = make_app(CACHE_OPTIONS={"address": manager.address, "authkey": manager.key})
    app.config.update(elsewhere)
    cache = ours.Cache(app)
    with app.app_context():
        assert cache.set("key", 1)
    app = make_app(CACHE_ARGS=[manager.client()])
    app.config.update(elsewhere)
    cache = ours.Cache(app)
    with app.app_context():
        assert cache.get("key") == 1


@pytest.mark.parametrize("server", ["before", "after"])
def test_client_of_the_app(
    make_app: MakeApp, manager: ManagerProcess, tmp_path: Path, server: str
) -> None:
    """The cache has no client of its own: it asks the app's, made before it or after.

    Where the app has no ``StateServer``, one client is made of its configuration.
    """
    app = make_app()
    del app.config["STATE_SERVER_DATA_DIR"]
    if server == "before":
        StateServer(app, data_dir=manager.data_dir)
    cache = ours.Cache(app)
    if server == "after":
        StateServer(app, data_dir=manager.data_dir)
    with app.app_context():
        assert cache.set("key", 1)
        assert cache.get("key") == 1
    assert app.extensions["cache"][cache].client is app.extensions[EXTENSION].client
    alone = make_app()
    caches = [ours.Cache(alone), ours.Cache(alone)]
    backends = [alone.extensions["cache"][cache] for cache in caches]
    assert backends[0].client is backends[1].client is client_of(alone)


def test_manager_of_the_caches_own_configuration(
    make_app: MakeApp, manager: ManagerProcess, tmp_path: Path
) -> None:
    """What was given to the cache alone says which manager, whatever the app has."""
    app = make_app(CACHE_OPTIONS={"call_timeout_s": 5})
    app.config["STATE_SERVER_DATA_DIR"] = str(tmp_path)
    StateServer(app)
    given = {"STATE_SERVER_DATA_DIR": str(manager.data_dir)}
    cache = ours.Cache(app, config=given)
    with app.app_context():
        assert cache.set("key", 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"CACHE_OPTIONS": {"regoin": "a"}}, "no option regoin; did you mean region?"),
        ({"CACHE_OPTIONS": {"region": 5}}, "region is 5; expected text"),
        ({"CACHE_OPTIONS": {"call_timeout_s": 0}}, "call_timeout_s is 0; expected sec"),
        (
            {"CACHE_DEFAULT_TIMEOUT": [60]},
            "CACHE_DEFAULT_TIMEOUT is [60]; expected sec",
        ),
        (
            {"CACHE_OPTIONS": {"default_timeout": []}},
            "default_timeout is []; expected sec",
        ),
    ],
)
def test_option_that_does_not_fit(
    make_app: MakeApp, config: dict[str, Any], message: str
) -> None:
    """It is refused when the app is made, by the name that it was given under."""
    with pytest.raises(errors.ConfigError, match=re.escape(message)):
        ours.Cache(make_app(**config))


def test_nothing_connects_before_the_first_call(tmp_path: Path) -> None:
    """An app whose manager is not there is made, and pays nothing until it caches."""
    app = Flask("shop")
    app.config["STATE_SERVER_DATA_DIR"] = str(tmp_path / "nobody")
    app.config["CACHE_OPTIONS"] = {"call_timeout_s": 60}
    began = time.monotonic()
    ours.Cache(app)
    assert time.monotonic() - began < 20


def test_absent_manager_takes_no_page_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Views, memoized functions and fragments are computed; one line in the log."""
    app = Flask("shop")
    app.config["STATE_SERVER_DATA_DIR"] = str(tmp_path / "nobody")
    app.config["CACHE_OPTIONS"] = {"call_timeout_s": 0.2, "outage_pause_s": 60}
    cache = ours.Cache(app)

    @app.get("/")
    @cache.cached(60)
    def plain() -> str:
        return total(1) + flask.render_template_string(
            "{% cache 60, 'fragment' %}fragment{% endcache %}"
        )

    @app.get("/shared")
    @cache.cached(60, single_flight=True)
    def shared() -> str:
        return total(2)

    @cache.memoize(60)
    def total(number: int) -> str:
        return f"total {number} "

    client = app.test_client()
    began = time.monotonic()
    for _ in range(20):
        assert client.get("/").text == "total 1 fragment"
        assert client.get("/shared").text == "total 2 "
    assert time.monotonic() - began < 20
    assert [record.name for record in caplog.records] == ["state_server.cache"]


# What views return -------------------------------------------------------------------


def response_with_headers() -> Any:
    """Return a response with status and headers, one of them twice."""
    response = flask.make_response("body", 202)
    response.headers["X-Shop"] = "open"
    response.headers.add("Vary", "Cookie")
    response.headers.add("Vary", "Accept")
    return response


def streamed() -> Any:
    """Return a response whose body is made while it is sent."""
    return flask.Response((str(n) for n in range(3)), mimetype="text/csv")


def not_found() -> Any:
    """Give up with a text."""
    flask.abort(404, "no such thing")


def not_allowed() -> Any:
    """Give up with more than a text: the methods that are."""
    raise MethodNotAllowed(valid_methods=["GET", "PUT"])


def answer_given_up_with() -> Any:
    """Give up with a response of one's own."""
    flask.abort(flask.make_response("teapot", 418))


@pytest.mark.parametrize(
    "view",
    [
        lambda: "text",
        lambda: b"bytes",
        lambda: {"json": [1, 2]},
        lambda: [1, 2],
        lambda: ("text", 201),
        lambda: ("text", 201, {"X-Shop": "open"}),
        lambda: Markup("<b>bold</b>"),
        lambda: {"html": Markup("<b>bold</b>")},
        lambda: flask.jsonify(a=1),
        lambda: flask.redirect("/elsewhere"),
        lambda: flask.render_template_string("<i>{{ 1 + 1 }}</i>"),
        lambda: flask_caching.CachedResponse(flask.make_response("own time"), 50),
        response_with_headers,
        streamed,
        not_found,
        not_allowed,
        answer_given_up_with,
    ],
)
def test_what_views_return(make_app: MakeApp, view: Callable[[], Any]) -> None:
    """The second answer is the first one, to the header, and was not computed."""
    app = make_app()
    cache = ours.Cache(app)
    ran = []

    @app.get("/")
    @cache.cached(60)
    def counted() -> Any:
        ran.append(1)
        return view()

    client = app.test_client()
    first, second = client.get("/"), client.get("/")
    assert (second.status, second.data) == (first.status, first.data)
    assert list(second.headers) == list(first.headers)
    raised = view in (not_found, not_allowed, answer_given_up_with)
    assert len(ran) == (1 if ERRORS_ARE_CACHED or not raised else 2)


def test_handler_sees_the_same_error(make_app: MakeApp) -> None:
    """An error from the cache has the class that the app handles, and its text."""
    app = make_app()
    cache = ours.Cache(app)
    app.get("/")(cache.cached(60)(not_found))

    @app.errorhandler(NotFound)
    def handle(error: NotFound) -> tuple[str, int]:
        return f"handled: {error.description}", 404

    client = app.test_client()
    for _ in range(2):
        assert client.get("/").text == "handled: no such thing"


def test_file_is_served_and_not_cached(
    make_app: MakeApp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A response that passes a file through stays as it is; a line says why."""
    (tmp_path / "file").write_text("content")
    app = make_app()
    cache = ours.Cache(app)

    @app.get("/")
    @cache.cached(60)
    def download() -> Any:
        return flask.send_file(tmp_path / "file", mimetype="text/plain")

    with app.test_client() as client:
        for _ in range(2):
            response = client.get("/")
            assert response.text == "content"
            response.close()
    assert "passes a file through cannot be cached" in caplog.text


class OwnError(HTTPException):
    """An error of the app's own, with a status of werkzeug's."""

    code = 404


def test_own_error_is_not_turned_into_another(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """An error whose class would be lost is raised each time and not cached."""
    app = make_app()
    cache = ours.Cache(app)

    @app.get("/")
    @cache.cached(60)
    def view() -> str:
        raise OwnError

    @app.errorhandler(OwnError)
    def handle(_: OwnError) -> str:
        return "handled"

    client = app.test_client()
    assert [client.get("/").text for _ in range(2)] == ["handled"] * 2
    assert ("OwnError" in caplog.text) is ERRORS_ARE_CACHED


@pytest.mark.parametrize(
    "data",
    [
        b"R",
        b"R" + codec.encode(5),
        b"R" + codec.encode(("200 OK", [("a", "b\r\nc: d")], b"")),
        b"R" + codec.encode(("200 OK", 5, b"")),
        b"R" + codec.encode(("200 OK", [("a", 5)], b"")),
        b"R" + codec.encode(("200 OK", ["ab"], b"")),
        b"R" + codec.encode((5.5, [], b"")),
        b"R" + codec.encode(("200 OK", [], 5)),
        b"R" + codec.encode(("", [], b"")),
        b"E" + codec.encode((404, 5, None)),
        b"E" + codec.encode((404, "text", 5)),
        b"E" + codec.encode((404, "text", ("200 OK", [], [b"x"]))),
        b"E" + codec.encode((404,)),
        b"E" + codec.encode((999, "text", None)),
        b"E" + codec.encode(([], "text", None)),
        b"",
        b"X",
    ],
)
def test_bytes_of_a_stranger(
    make_app: MakeApp,
    manager: ManagerProcess,
    request: pytest.FixtureRequest,
    data: bytes,
) -> None:
    """Whatever stands in the cache, it is a value of ours or a miss."""
    app = make_app()
    cache = ours.Cache(app)
    region_of(manager, request).set("flask_cache_key", data)
    with app.app_context():
        assert cache.get("key") is None


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 600) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner, inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.sampled_from([b"R", b"E"]), PLAIN | st.tuples(PLAIN, PLAIN, PLAIN))
def test_parts_of_a_stranger(mark: bytes, parts: Any) -> None:
    """Of whatever parts, a view is made that can be shown, or they are refused."""
    try:
        value = ours.ViewSerializer().loads(mark + codec.encode(parts))
    except (errors.NotAllowed, errors.TooLarge):
        return
    response = value.get_response() if isinstance(value, HTTPException) else value
    with Flask("shop").test_request_context():
        shown = flask.make_response(response)
    assert isinstance(shown.get_data(), bytes)
    assert isinstance(shown.status_code, int)


# One computation for each miss -------------------------------------------------------


def ask_together(app: Flask, path: str, times: int) -> list[str]:
    """Ask for a page several times at once; return the answers."""
    barrier = threading.Barrier(times)

    def ask(_: int) -> str:
        barrier.wait(10)
        return app.test_client().get(path).text

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(ask, range(times)))


def test_view_is_computed_once(make_app: MakeApp) -> None:
    """All who ask for a page while it is computed get that; without, each computes."""
    app = make_app()
    cache = ours.Cache(app)
    ran: dict[str, list[str]] = {"shared": [], "alone": []}

    def view(kind: str) -> str:
        ran[kind].append(flask.request.path)
        time.sleep(0.3)
        return f"{flask.request.full_path} {len(ran[kind])}"

    @app.get("/shared")
    @cache.cached(60, single_flight=True, query_string=True)
    def shared() -> str:
        return view("shared")

    @app.get("/alone")
    @cache.cached(60)
    def alone() -> str:
        return view("alone")

    assert ask_together(app, "/shared?a=1", 20) == ["/shared?a=1 1"] * 20
    assert ask_together(app, "/shared?a=2", 20) == ["/shared?a=2 2"] * 20
    ask_together(app, "/alone", 10)
    assert len(ran["alone"]) > 1


def test_memoized_function_is_computed_once(make_app: MakeApp) -> None:
    """Once for each argument, from the very first call on."""
    app = make_app()
    cache = ours.Cache(app)
    ran = []

    @cache.memoize(60, single_flight=True)
    def double(number: int) -> int:
        ran.append(number)
        time.sleep(0.2)
        return 2 * number

    @app.get("/<int:number>")
    def page(number: int) -> str:
        return str(double(number))

    assert ask_together(app, "/7", 20) == ["14"] * 20
    assert ran == [7]
    assert ask_together(app, "/8", 20) == ["16"] * 20
    assert ran == [7, 8]
    with app.app_context():
        cache.delete_memoized(double, 7)
        assert (double(7), double(8)) == (14, 16)
        assert ran == [7, 8, 7]
        cache.delete_memoized(double)
        assert (double(7), double(8)) == (14, 16)
    assert ran == [7, 8, 7, 7, 8]


def test_versions_of_a_memoized_function(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When all find no version of the function at once, they still share one key."""
    app = make_app()
    cache = ours.Cache(app)
    plain, barrier, thread = (
        caching.StateServerCache.get_many,
        threading.Barrier(8),
        (threading.local()),
    )
    ran = []

    def together(backend: Any, *keys: str) -> list[Any]:
        found = plain(backend, *keys)
        if not hasattr(thread, "has_waited"):
            thread.has_waited = True
            barrier.wait(20)
        return found

    monkeypatch.setattr(caching.StateServerCache, "get_many", together)

    @cache.memoize(60, single_flight=True)
    def slow() -> str:
        ran.append(1)
        time.sleep(0.3)
        return "value"

    @app.get("/")
    def page() -> str:
        return str(slow())

    assert ask_together(app, "/", 8) == ["value"] * 8
    assert len(ran) == 1


def test_methods_are_memoized(make_app: MakeApp) -> None:
    """A shared computation of a method is one for each instance."""
    app = make_app()
    cache = ours.Cache(app)
    ran = []

    class Price:
        def __init__(self, each: int) -> None:
            self.each = each

        def __repr__(self) -> str:
            return f"Price({self.each})"

        @cache.memoize(60, single_flight=True)
        def total(self, number: int) -> int:
            ran.append((self.each, number))
            return self.each * number

    with app.app_context():
        for _ in range(2):
            assert Price(3).total(2) == 6
            assert Price(4).total(2) == 8
    assert ran == [(3, 2), (4, 2)]


def test_options_of_the_library_still_count(make_app: MakeApp) -> None:
    """``unless``, ``forced_update``, ``response_filter`` and ``make_cache_key`` do."""
    app = make_app()
    cache = ours.Cache(app)
    state: dict[str, Any] = {"ran": 0, "unless": False, "forced": False, "ok": True}

    @app.get("/")
    @cache.cached(
        60,
        single_flight=True,
        unless=lambda: state["unless"],
        forced_update=lambda: state["forced"],
        response_filter=lambda _: state["ok"],
        make_cache_key=lambda: flask.request.args.get("key", "none"),
    )
    def view() -> str:
        state["ran"] += 1
        return str(state["ran"])

    def ask(key: str = "a", **changes: bool) -> str:
        state.update(unless=False, forced=False, ok=True)
        state.update(changes)
        return app.test_client().get("/", query_string={"key": key}).text

    assert [ask(), ask(), ask("b")] == ["1", "1", "2"]
    assert [ask(unless=True), ask()] == ["3", "1"]
    assert [ask(forced=True), ask()] == ["4", "4"]
    # What is filtered out is not stored, and the lease is given back at once.
    assert [ask("c", ok=False), ask("c", ok=False), ask("c")] == ["5", "6", "7"]


@pytest.mark.parametrize("backend", [ours.CACHE_TYPE, "SimpleCache"])
@pytest.mark.parametrize("takes_arguments", [False, True])
def test_forced_update_is_asked_once_for_each_call(
    make_app: MakeApp, takes_arguments: bool, backend: str
) -> None:
    """Whatever the release of the library: its answer may be that of one moment.

    Those before 2.5 ask it twice by themselves, and would for each key that is made.
    """
    app = make_app()
    asked: list[tuple[Any, ...]] = []
    if backend != ours.CACHE_TYPE:
        app.config.update(CACHE_TYPE=backend, CACHE_OPTIONS={})
    cache = ours.Cache(app)

    def with_arguments(*args: int) -> bool:
        asked.append(args)
        return len(asked) == 2

    def without() -> bool:
        return with_arguments()

    ran = []

    @cache.memoize(
        60,
        None,
        None,
        with_arguments if takes_arguments else without,
        single_flight=True,
    )
    def double(number: int) -> int:
        ran.append(number)
        return 2 * number

    with app.app_context():
        assert [double(7) for _ in range(3)] == [14] * 3
        assert asked == [(7,) if takes_arguments else ()] * 3
        assert ran == [7, 7]
        # A key may be made outside of a call as well.
        assert double.make_cache_key(double.uncached, 7)


def test_error_in_a_view_passes_the_lease_on(make_app: MakeApp) -> None:
    """A view that breaks answers 500 to its caller; the next one computes at once."""
    app = make_app()
    cache = ours.Cache(app)
    ran = []

    @app.get("/")
    @cache.cached(60, single_flight=True, lease_s=60)
    def view() -> str:
        ran.append(1)
        if len(ran) == 1:
            raise RuntimeError("broken")
        return "good"

    client = app.test_client()
    began = time.monotonic()
    assert [client.get("/").status_code for _ in range(2)] == [500, 200]
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("name", ["cached", "memoize"])
def test_option_that_does_not_fit_is_refused_where_it_stands(name: str) -> None:
    """Seconds that make no sense are refused when a function is decorated.

    At a call the library would take the error for one of the backend's, and go on.
    """
    decorate = getattr(ours.Cache(), name)
    with pytest.raises(ValueError, match="lease_s=0"):
        decorate(60, single_flight=True, lease_s=0)


def test_decorated_functions_call_each_other(make_app: MakeApp) -> None:
    """A shared view that calls a shared function and asks the cache holds nobody up."""
    app = make_app()
    cache = ours.Cache(app)

    @cache.memoize(60, single_flight=True)
    def inner(number: int) -> int:
        return number + 1

    @app.get("/")
    @cache.cached(60, single_flight=True)
    def outer() -> str:
        cache.set("key", "set inside")
        return f"{inner(1)} {cache.get('key')} {cache.get('missing')}"

    assert ask_together(app, "/", 10) == ["2 set inside None"] * 10


def test_view_may_ask_for_its_own_page(make_app: MakeApp) -> None:
    """A view that looks at its former page while it is computed waits for nobody."""
    app = make_app()
    cache = ours.Cache(app)

    @app.get("/")
    @cache.cached(60, single_flight=True, make_cache_key=lambda: "own", lease_s=60)
    def view() -> str:
        return f"before: {cache.get('own')}"

    began = time.monotonic()
    assert app.test_client().get("/").text == "before: None"
    assert time.monotonic() - began < 20


def test_stale_page_instead_of_waiting(make_app: MakeApp) -> None:
    """While a page is computed anew, the others get the one that has just ended."""
    app = make_app()
    cache = ours.Cache(app)
    computing, finish = threading.Event(), threading.Event()
    finish.set()
    ran = []

    @app.get("/")
    @cache.cached(1, single_flight=True, stale_s=60)
    def view() -> str:
        ran.append(1)
        computing.set()
        assert finish.wait(20)
        return f"page {len(ran)}"

    client = app.test_client()
    assert client.get("/").text == "page 1"
    with app.app_context():
        wait_until(lambda: not cache.has("view//"))
    computing.clear()
    finish.clear()
    with ThreadPoolExecutor(1) as pool:
        fresh = pool.submit(app.test_client().get, "/")
        assert computing.wait(20)
        assert client.get("/").text == "page 1"
        finish.set()
        assert fresh.result(20).text == "page 2"


def test_attributes_of_the_library(make_app: MakeApp) -> None:
    """What Flask-Caching hangs on a function is there, and may be replaced."""
    app = make_app()
    cache = ours.Cache(app)

    @cache.cached(60, single_flight=True)
    def view() -> str:
        """Be a page."""
        return "page"

    assert view.uncached() == "page"
    assert (view.__name__, view.__doc__) == ("view", "Be a page.")
    view.make_cache_key = lambda *_, **__: "chosen"
    view.cache_timeout = -1
    with app.test_request_context():
        view()
        assert cache.get("chosen") is None
        view.cache_timeout = 60
        view()
        assert cache.get("chosen") == "page"


def test_other_backend(make_app: MakeApp) -> None:
    """With another backend, as in an app's tests, the options have no effect."""
    app = make_app(CACHE_TYPE="NullCache", CACHE_NO_NULL_WARNING=True)
    app.config["CACHE_OPTIONS"] = None
    cache = ours.Cache(app)

    @app.get("/")
    @cache.cached(60, single_flight=True)
    def view() -> str:
        return "page"

    assert app.test_client().get("/").text == "page"


def test_get_or_compute_on_the_extension(make_app: MakeApp) -> None:
    """The extension offers the backend's get_or_compute in an app context."""
    app = make_app()
    cache = ours.Cache(app)
    with app.app_context():
        assert cache.get_or_compute("key", lambda: "made", timeout=60) == "made"
        assert cache.get_or_compute("key", lambda: "anew") == "made"


def test_flask_session_on_a_cache(manager: ManagerProcess) -> None:
    """Unmodified Flask-Session keeps its sessions in a cache, types and all."""
    flask_session = pytest.importorskip("flask_session")
    app = Flask("shop")
    app.config.update(
        SESSION_TYPE="cachelib",
        SESSION_CACHELIB=ours.StateServerCache(
            manager.client(), region="sessions", ignore_outages=False
        ),
    )
    flask_session.Session(app)

    @app.get("/put")
    def put() -> str:
        flask.session["cart"] = {"ids": {1, 2}, "price": (1, 2)}
        return ""

    @app.get("/take")
    def take() -> str:
        return repr(flask.session["cart"])

    client = app.test_client()
    client.get("/put")
    assert client.get("/take").text == "{'ids': {1, 2}, 'price': (1, 2)}"


def test_bad_type_is_named(make_app: MakeApp) -> None:
    """A value of a type that may not travel is refused by its name."""
    app = make_app()
    cache = ours.Cache(app)
    with app.app_context(), pytest.raises(errors.NotAllowed, match="OwnError"):
        cache.set("key", OwnError())


def test_handles_travel(make_app: MakeApp) -> None:
    """A shared object in a cached value comes back as a handle."""
    app = make_app()
    cache = ours.Cache(app)
    client = state_server.connect(data_dir=app.config["STATE_SERVER_DATA_DIR"])
    with app.app_context():
        cache.set("key", [client.get("SomeObj", "flask")])
        assert cache.get("key")[0].query() == 1
