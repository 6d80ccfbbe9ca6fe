"""The cache against a real manager: values, atomic steps, one computation, outages."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import state_server
from state_server import errors

from ..conftest import StartManager
from ..processes import ROOT, ManagerProcess, freeze, wait_until

cachelib = pytest.importorskip("cachelib")

from state_server.integrations.caching import StateServerCache
from state_server.integrations.outages import Outage


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerProcess]:
    """Give one manager to all tests; each has a region of its own."""
    folder = tmp_path_factory.mktemp("manager")
    started = ManagerProcess(folder, "--cache-regions-max", "1000").start()
    yield started
    started.stop()


MakeCache = Callable[..., StateServerCache]


@pytest.fixture
def make_cache(manager: ManagerProcess, request: pytest.FixtureRequest) -> MakeCache:
    """Give a function that returns caches of one new region, which are patient."""

    def make(**options: Any) -> StateServerCache:
        options.setdefault("region", re.sub(r"\W", "-", request.node.name))
        options.setdefault("call_timeout_s", 20)
        return StateServerCache(data_dir=manager.data_dir, **options)

    return make


# Values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(10**30),
        1.5,
        "text",
        b"bytes",
        (1, (2, 3)),
        {1, 2},
        frozenset({"a"}),
        {"key": [1, {"deep": (None, False)}]},
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        timedelta(days=1),
        Decimal("1.10"),
        UUID(int=7),
        Path("a/b"),
        1 + 2j,
    ],
    ids=repr,
)
def test_types_are_kept(make_cache: MakeCache, value: Any) -> None:
    """What is taken out is equal to what was put in, and of the same type."""
    cache = make_cache()
    assert cache.set("key", value)
    found = cache.get("key")
    assert (found, type(found)) == (value, type(value))
    assert cache.has("key")
    assert cache.get_many("key", "other") == [value, None]
    assert cache.get_dict("key", "other") == {"key": value, "other": None}


class NotAllowedToTravel:
    """A class that nobody has given to allow()."""


def test_type_that_may_not_travel(make_cache: MakeCache) -> None:
    """It is refused with its name, and what was stored before stays."""
    cache = make_cache()
    cache.set("key", "before")
    with pytest.raises(errors.NotAllowed, match="NotAllowedToTravel"):
        cache.set("key", [NotAllowedToTravel()])
    with pytest.raises(errors.NotAllowed, match="NotAllowedToTravel"):
        cache.set_many({"key": "after", "other": NotAllowedToTravel()})
    assert cache.get_many("key", "other") == ["before", None]


def test_handle_inside_a_value(make_cache: MakeCache) -> None:
    """A handle of a shared object comes back as a handle that works."""
    cache = make_cache()
    cache.set("key", {"counter": cache.client.get("SomeObj", "in-a-cache")})
    assert cache.get("key")["counter"].query() == 1


class Bomb:
    """Makes a file when stock pickle reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_reading_a_value_runs_no_code(
    make_cache: MakeCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes that somebody else has put there are a miss and a log line, never code.

    The same bytes do harm to a serializer that pickles, which a user may choose.
    """
    cache = make_cache()
    region = cache.client.get("CacheRegion", "test_reading_a_value_runs_no_code")
    region.set("key", pickle.dumps(Bomb(tmp_path / "harm")))
    assert cache.get("key") is None
    assert "cannot be read and counts as a miss" in caplog.text
    assert cache.get_or_compute("key", lambda: "good") == "good"
    assert cache.get("key") == "good"
    assert not (tmp_path / "harm").exists()
    region.set("key", pickle.dumps(Bomb(tmp_path / "harm")))
    cache.serializer = cachelib.serializers.SimpleSerializer()
    cache.get("key")
    assert (tmp_path / "harm").exists()


class JSONSerializer:
    """Packs what JSON can say; refuses the rest with None, as those of cachelib do."""

    def dumps(self, value: Any) -> bytes | None:
        """Return the value as bytes."""
        try:
            return json.dumps(value).encode()
        except TypeError:
            return None

    def loads(self, bvalue: bytes) -> Any:
        """Return the value of the bytes."""
        return json.loads(bvalue)


def test_serializer_of_the_user(make_cache: MakeCache) -> None:
    """Values go through it, on an instance or a subclass; integers are counted."""

    class JSONCache(StateServerCache):
        serializer = JSONSerializer()

    one = make_cache()
    other = JSONCache(
        one.client, region="test_serializer_of_the_user", call_timeout_s=20
    )
    one.serializer = JSONSerializer()
    assert one.set("key", (1, 2))
    assert other.get("key") == [1, 2]
    assert one.set("count", 5)
    assert other.inc("count") == 6
    assert one.get("count") == 6


def test_serializer_that_refuses(make_cache: MakeCache) -> None:
    """A serializer that says None stores nothing."""
    cache = make_cache()
    cache.serializer = JSONSerializer()
    cache.set("key", "before")
    assert cache.set("key", {1, 2}) is False
    assert cache.add("new", {1, 2}) is False
    assert cache.set_many({"new": {1, 2}, "good": 1}) == ["good"]
    assert cache.get_or_compute("set", lambda: {1, 2}) == {1, 2}
    assert cache.get_many("key", "new", "set", "good") == ["before", None, None, 1]


@pytest.mark.parametrize("key", [5, b"key", None, ("a",)])
def test_key_is_text(make_cache: MakeCache, key: Any) -> None:
    """Another key is refused by every method: it would be found by none."""
    cache = make_cache()
    for call in (
        lambda: cache.get(key),
        lambda: cache.get_many(key),
        lambda: cache.set(key, 1),
        lambda: cache.set_many({key: 1}),
        lambda: cache.delete(key),
        lambda: cache.inc(key),
        lambda: cache.get_or_compute(key, lambda: 1),
    ):
        with pytest.raises(TypeError, match="The key of a cached value is text"):
            call()


# Keys, regions and limits ------------------------------------------------------------


def test_long_keys_are_hashed(
    make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    """A key of a megabyte works, is told from its like, and takes little room."""
    cache = make_cache(key_prefix="shop:")
    one, other = "k" * 1_000_000 + "1", "k" * 1_000_000 + "2"
    assert cache.set(one, 1)
    assert cache.set_many({other: 2, "\udcff" * 5000: 3}) == [other, "\udcff" * 5000]
    assert cache.get_many(one, other, "\udcff" * 5000) == [1, 2, 3]
    assert cache.inc(one) == 2
    assert cache.get_or_compute(one + "3", lambda: "new") == "new"
    assert cache.get_or_compute(one + "3", lambda: "again") == "new"
    assert cache.delete(other)
    info = cache.info()
    assert info is not None
    assert info["bytes"] < 4000
    assert len(caplog.records) == 1
    assert "its SHA-256 stands for it" in caplog.text
    assert len(caplog.text) < 1000
    cache.clear()
    assert cache.get(one) is None


def test_long_prefix_is_refused(make_cache: MakeCache) -> None:
    """One that leaves no room for keys is a mistake, of whatever kind it is."""
    with pytest.raises(errors.ConfigError, match=r"key_prefix is .* 1025 bytes"):
        make_cache(key_prefix="p" * 1025)
    cache = make_cache(key_prefix=lambda: "p" * 1025)
    with pytest.raises(errors.ConfigError, match="it has at most 1024"):
        cache.get("key")


def test_prefix_keeps_apps_apart(make_cache: MakeCache) -> None:
    """Two prefixes in one region: same keys, other values; each clears its own."""
    names = iter(["made:", "made:", "made:", "changed:"])
    one, other = make_cache(key_prefix="one:"), make_cache(key_prefix="other:")
    made = make_cache(key_prefix=lambda: next(names))
    assert one.set_many({"key": 1, "more": 1}) == ["key", "more"]
    other.set("key", 2)
    made.set("key", 3)
    assert (one.get("key"), other.get("key"), made.get("key")) == (1, 2, 3)
    assert one.clear()
    assert (one.get("key"), other.get("key"), made.get("key")) == (None, 2, 3)
    assert made.get("key") is None
    assert make_cache().get_many("other:key", "made:key") == [2, 3]


def test_regions_have_nothing_in_common(make_cache: MakeCache) -> None:
    """A key of one region is not in another, which is not cleared with it."""
    one, other = make_cache(region="one"), make_cache(region="other")
    one.set("key", 1)
    other.set("key", 2)
    assert one.clear()
    assert (one.get("key"), other.get("key")) == (None, 2)


def test_deleting_many(make_cache: MakeCache) -> None:
    """All keys are gone and returned, those that were not there as well."""
    cache = make_cache(ignore_delete_many_errors=False)
    cache.set_many({"a": 1, "b": 2, "c": 3})
    assert cache.delete_many("a", "b", "none") == ["a", "b", "none"]
    assert cache.get_many("a", "b", "c") == [None, None, 3]
    assert (cache.delete("c"), cache.delete("c")) == (True, False)
    assert cache.delete_many() == cache.get_many() == []


def test_settings_of_the_manager_are_the_limits(start_manager: StartManager) -> None:
    """Bounds of a region are settings of the manager; a value over one is refused."""
    manager = start_manager("--cache-entries-max", "7", "--cache-bytes-max", "100000")
    cache = StateServerCache(data_dir=manager.data_dir, call_timeout_s=20)
    for number in range(20):
        cache.set(str(number), "x")
    info = cache.info()
    assert info is not None
    assert (info["entries"], info["entries_max"]) == (7, 7)
    assert info["bytes"] <= info["bytes_max"] == 100_000
    with pytest.raises(errors.TooLarge, match="cache_bytes_max"):
        cache.set("large", "x" * 100_000)


def test_region_of_a_class_of_ones_own(start_manager: StartManager) -> None:
    """A class of one's own may be the region, with bounds of its own."""
    manager = start_manager("--objects", "tests.neighbours.shared_regions")
    cache = StateServerCache(
        data_dir=manager.data_dir, class_name="Thumbnails", call_timeout_s=20
    )
    for number in range(20):
        cache.set(str(number), number)
    assert cache.info()["entries"] == 5  # type: ignore[index]
    other = StateServerCache(cache.client, call_timeout_s=20)
    assert other.info()["entries_max"] == 100_000  # type: ignore[index]


def test_region_too_many_is_bypassed(
    start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    """At cache_regions_max another region is as good as none, and both logs say why."""
    manager = start_manager("--cache-regions-max", "2")
    for region in ("one", "two", "three"):
        cache = StateServerCache(
            data_dir=manager.data_dir, region=region, call_timeout_s=20
        )
        assert cache.set("key", region) is (region != "three")
        assert cache.get_or_compute("key", lambda: "computed") == (
            "computed" if region == "three" else region
        )
    assert lines_of(caplog) == ["The cache is bypassed,"]
    assert "2 objects of CacheRegion are in memory" in caplog.text
    strict = StateServerCache(cache.client, region="four", ignore_outages=False)
    with pytest.raises(errors.Overloaded, match="cache_regions_max"):
        strict.get("key")
    line = "Limit reached: 2 objects of CacheRegion (cache_regions_max)."
    assert manager.log.count(line) == 1


def test_value_too_large_is_given_but_not_kept(
    start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    """A page that is too large for a call is shown all the same; a line says why."""
    manager = start_manager("--frame-bytes-max", "100000")
    cache = StateServerCache(data_dir=manager.data_dir, call_timeout_s=20)
    page = "x" * 200_000
    with pytest.raises(errors.TooLarge, match="frame_bytes_max"):
        cache.set("page", page)
    for single_flight in (True, False):
        caplog.clear()
        computed = cache.get_or_compute(
            "page", lambda: page, single_flight=single_flight
        )
        assert computed == page
        assert len(caplog.records) == 1
        assert "was computed, but not cached" in caplog.text
    info = cache.info()
    assert info is not None
    assert info["leases"] == 0


def test_values_too_large_together(start_manager: StartManager) -> None:
    """Values that fit one by one are read together, whatever a reply may hold."""
    manager = start_manager("--frame-bytes-max", "100000")
    cache = StateServerCache(data_dir=manager.data_dir, call_timeout_s=20)
    values = {str(number): str(number) * 60_000 for number in range(3)}
    for key, value in values.items():
        assert cache.set(key, value)
    assert cache.get_dict("0", "1", "2") == values
    with pytest.raises(errors.TooLarge, match="frame_bytes_max"):
        cache.set_many(values)


# Atomic steps ------------------------------------------------------------------------


def test_counting_is_atomic(make_cache: MakeCache) -> None:
    """Sixteen threads add and subtract at once; nothing is lost."""
    cache = make_cache()
    cache.set("count", 1000)

    def count(number: int) -> None:
        for _ in range(50):
            cache.inc("count", 3) if number % 2 else cache.dec("count")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(count, range(16)))
    assert cache.get("count") == 1000 + 8 * 50 * 3 - 8 * 50


def test_of_many_that_add_one_key_one_does(make_cache: MakeCache) -> None:
    """Of many that add the same key at once, one does; the others are told so."""
    cache = make_cache()
    with ThreadPoolExecutor(16) as pool:
        added = list(pool.map(lambda number: cache.add("key", number), range(64)))
    assert added.count(True) == 1
    assert cache.get("key") == added.index(True)


def test_many_are_set_in_one_step(make_cache: MakeCache) -> None:
    """Who reads several keys never sees half of what was set together."""
    cache = make_cache()
    keys = [f"key-{number}" for number in range(20)]
    cache.set_many(dict.fromkeys(keys, 0))
    done = threading.Event()

    def write() -> None:
        for number in range(1, 100):
            cache.set_many(dict.fromkeys(keys, number))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert len(set(cache.get_many(*keys))) == 1
    writer.join()


def test_counting_what_is_no_integer(make_cache: MakeCache) -> None:
    """The error says of which key the value is no integer; the value stays."""
    cache = make_cache()
    cache.set("flag", True)
    with pytest.raises(TypeError, match="'flag' is no integer"):
        cache.inc("flag")
    assert cache.get("flag") is True


@pytest.mark.parametrize("delta", [1.5, "1", None])
def test_counting_by_what_is_no_integer(make_cache: MakeCache, delta: Any) -> None:
    """The error names the delta; the key is as it was, and may still be read."""
    cache = make_cache()
    for count in (cache.inc, cache.dec):
        with pytest.raises(TypeError, match=re.escape(f"'count' is {delta!r};")):
            count("count", delta)
    assert cache.get_many("count") == [None]
    assert cache.get_or_compute("count", lambda: 3) == 3


def test_counting_beyond_the_region(start_manager: StartManager) -> None:
    """A sum larger than the region is ``TooLarge``, as a value would be.

    So is one of more digits than an integer may have that travels.
    """
    manager = start_manager("--cache-bytes-max", "2048")
    cache = StateServerCache(data_dir=manager.data_dir, call_timeout_s=20)
    cache.set("count", 1)
    with pytest.raises(errors.TooLarge, match="cache_bytes_max"):
        cache.inc("count", 10**4200)
    with pytest.raises(errors.TooLarge, match="digits_max"):
        cache.inc("count", 10**60000)
    assert cache.get("count") == 1


def test_sum_that_cannot_travel(make_cache: MakeCache) -> None:
    """A number that grows by steps ends in an error and not in one nobody can read."""
    cache = make_cache()
    cache.set("count", 9 * 10**4299)
    with pytest.raises(errors.TooLarge, match="digits_max"):
        cache.inc("count", 9 * 10**4299)
    assert cache.get_many("count") == [9 * 10**4299]


class OddRegion:
    """Answers as a region of the user's own that keeps whatever it is given."""

    def get(self, *_: Any, **options: Any) -> Any:
        """Return itself as the handle, and a fraction as the value."""
        return self if options else 1.5

    def get_many(self, keys: list[str]) -> list[Any]:
        """Return a fraction for each key."""
        return [1.5 for _ in keys]


def test_value_that_is_neither_bytes_nor_integer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It counts as a miss with a line in the log, and takes no page down."""
    cache = StateServerCache(OddRegion())  # type: ignore[arg-type]
    assert cache.get("key") is None
    assert cache.get_many("key", "other") == [None, None]
    assert len(caplog.records) == 3
    assert "counts as a miss: It is a float" in caplog.text


def test_cache_made_before_a_fork(make_cache: MakeCache) -> None:
    """A cache that was used before works in the child, and then in the parent."""
    cache = make_cache()
    cache.set("key", "parent")
    child = os.fork()
    if child == 0:
        try:
            cache.set("child", cache.get("key"))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert cache.get("child") == "parent"


# One computation for each miss -------------------------------------------------------


@contextmanager
def stampede(
    manager: ManagerProcess, log: Path, processes: int, threads: int, **options: Any
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes that are about to miss one key; end them whatever happens."""
    options.setdefault("takes_s", 0.3)
    command = [sys.executable, "-m", "tests.neighbours.stampede"]
    command += [str(manager.data_dir), log.stem, str(threads), str(log)]
    started = []
    try:
        for _ in range(processes):
            started.append(
                subprocess.Popen(
                    [*command, json.dumps(options)],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait(10)
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


def let_go(processes: list[subprocess.Popen[str]]) -> None:
    """Let them miss."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def got_by(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Return what all threads of all processes got."""
    got: list[str] = []
    for process in processes:
        assert process.stdout is not None
        got += json.loads(process.stdout.readline())
    return got


def test_stampede_computes_once(manager: ManagerProcess, tmp_path: Path) -> None:
    """Two hundred requests in four processes miss at once: one computes, all get it.

    Without single flight they compute again and again, so the test has teeth.
    """
    log = tmp_path / "together.log"
    with stampede(manager, log, 4, 50) as processes:
        let_go(processes)
        got = got_by(processes)
    assert len(got) == 200
    assert len(log.read_text().splitlines()) == 1
    assert set(got) == {f"computed by {log.read_text().strip()}"}

    alone = tmp_path / "alone.log"
    with stampede(manager, alone, 2, 10, single_flight=False) as processes:
        let_go(processes)
        got_by(processes)
    assert len(alone.read_text().splitlines()) > 5


def test_killed_computation_passes_on(manager: ManagerProcess, tmp_path: Path) -> None:
    """When who computes is killed, another does so after the lease; nobody hangs."""
    log = tmp_path / "killed.log"
    with stampede(manager, log, 3, 5, takes_s=1, lease_s=3) as processes:
        let_go(processes)
        # The line is written after the file is made.
        wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
        dead = int(log.read_text())
        os.kill(dead, signal.SIGKILL)
        rest = [process for process in processes if process.pid != dead]
        got = got_by(rest)
    computed = log.read_text().split()
    assert len(computed) == 2
    assert set(got) == {f"computed by {computed[1]}"}
    assert len(got) == 10


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Make calls at the same time; return what came back, errors included."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait(10)
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def test_none_is_a_value(make_cache: MakeCache) -> None:
    """A function that returns None is computed once, too."""
    cache, computed = make_cache(), []
    for single_flight in (True, False):
        for _ in range(3):
            assert (
                cache.get_or_compute(
                    str(single_flight),
                    lambda: computed.append(1),
                    single_flight=single_flight,
                )
                is None
            )
    assert len(computed) == 2


def test_error_goes_to_its_caller(make_cache: MakeCache) -> None:
    """What the function raises is raised where it ran; the next one tries at once."""
    cache, tried = make_cache(), []

    def fail_first() -> str:
        tried.append(1)
        time.sleep(0.1)
        if len(tried) == 1:
            raise KeyError("the database")
        return "good"

    got = together(*[lambda: cache.get_or_compute("key", fail_first)] * 8)
    assert [str(each) for each in got if isinstance(each, Exception)] == [
        "'the database'"
    ]
    assert [each for each in got if each == "good"] == ["good"] * 7
    assert len(tried) == 2


def test_type_that_cannot_be_cached(make_cache: MakeCache) -> None:
    """A function that returns what may not travel says so, and holds nobody up."""
    cache = make_cache()
    for _ in range(2):
        with pytest.raises(errors.NotAllowed, match="NotAllowedToTravel"):
            cache.get_or_compute("key", NotAllowedToTravel)


def test_stale_value_instead_of_waiting(make_cache: MakeCache) -> None:
    """Those who would wait get the value that has just ended, if they take it."""
    cache = make_cache()
    options: dict[str, Any] = {"timeout": 1, "stale_s": 60}
    cache.get_or_compute("key", lambda: "old", **options)
    wait_until(lambda: cache.get("key") is None)
    computing, finish = threading.Event(), threading.Event()

    def compute() -> str:
        computing.set()
        assert finish.wait(20)
        return "new"

    with ThreadPoolExecutor(1) as pool:
        new = pool.submit(cache.get_or_compute, "key", compute, **options)
        assert computing.wait(20)
        assert cache.get_or_compute("key", lambda: "mine", **options) == "old"
        assert cache.get("key") is None
        finish.set()
        assert new.result(20) == "new"
    assert cache.get_or_compute("key", lambda: "mine", 60) == "new"


def test_waiting_ends(make_cache: MakeCache) -> None:
    """Who has waited for ``wait_s`` computes for itself, and stores nothing."""
    cache = make_cache()
    computing, finish = threading.Event(), threading.Event()

    def compute() -> str:
        computing.set()
        assert finish.wait(20)
        return "slow"

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cache.get_or_compute, "key", compute)
        assert computing.wait(20)
        assert cache.get_or_compute("key", lambda: "mine", wait_s=0.1) == "mine"
        finish.set()
        assert slow.result(20) == "slow"
    assert cache.get("key") == "slow"


def test_deletion_while_computing(make_cache: MakeCache) -> None:
    """A value computed from what was deleted meanwhile is given, but not stored."""
    cache = make_cache()
    database = ["old"]

    def compute() -> str:
        value = database[0]
        database[0] = "new"
        cache.delete("key")
        return value

    assert cache.get_or_compute("key", compute) == "old"
    assert cache.get_or_compute("key", lambda: database[0]) == "new"


def test_lease_that_is_too_short_is_logged(
    make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    """A computation that outlives its lease is stored, and a line names the option."""
    cache = make_cache()
    cache.get_or_compute("key", lambda: time.sleep(0.2), lease_s=0.05)
    assert cache.has("key")
    assert "longer than its lease of 0.05 s (lease_s)" in caplog.text


@pytest.mark.parametrize("options", [{"lease_s": 0}, {"stale_s": -1}, {"wait_s": -0.5}])
def test_option_that_does_not_fit(
    make_cache: MakeCache, options: dict[str, float]
) -> None:
    """An option of get_or_compute that makes no sense is refused and named."""
    option, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{option}={value}"):
        make_cache().get_or_compute("key", lambda: 1, **options)
    with pytest.raises(ValueError, match=f"{option}={value}"):
        make_cache().cached(**options)


# The decorator -----------------------------------------------------------------------


def test_decorated_function(make_cache: MakeCache) -> None:
    """A value for each combination of arguments, however they are passed."""
    cache, ran = make_cache(), []

    @cache.cached(60)
    def total(a: Any, *more: Any, b: Any = 2, **named: Any) -> str:
        """Add."""
        ran.append(1)
        return repr((a, more, b, named))

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((1,), {}),
        ((1.0,), {}),
        ((True,), {}),
        (("1",), {}),
        ((b"1",), {}),
        ((None,), {}),
        ((1, 2), {}),
        (((1, 2),), {}),
        (([1, 2],), {}),
        ((1,), {"b": 3}),
        ((1,), {"c": 3, "d": {"e": 4}}),
        (("x" * 500,), {}),
        (("y" * 500,), {}),
    ]
    for args, kwargs in calls * 2:
        b = kwargs.get("b", 2)
        rest = {key: value for key, value in kwargs.items() if key != "b"}
        assert total(*args, **kwargs) == repr((args[0], args[1:], b, rest))
    assert len(ran) == len(calls)
    assert total(1, b=2) == total(a=1) == total(1)
    assert total(1, d={"e": 4}, c=3) == repr((1, (), 2, {"c": 3, "d": {"e": 4}}))
    assert len(ran) == len(calls)
    assert (total.__name__, total.__doc__) == ("total", "Add.")


def test_decorated_function_with_a_key(make_cache: MakeCache) -> None:
    """The key may be a text or a function of the arguments, so it can be deleted."""
    cache, ran = make_cache(), []

    @cache.cached(60, key=lambda page: f"page/{page.name}")
    def render(page: Any) -> str:
        ran.append(page)
        return str(page)

    @cache.cached(60, key="all", single_flight=False)
    def everything() -> list[Any]:
        return list(ran)

    assert render(Path("a")) == render(Path("x/a")) == cache.get("page/a") == "a"
    assert everything() == everything() == [Path("a")]
    cache.delete("page/a")
    assert render(Path("x/a")) == "x/a"
    assert everything() == [Path("a")]


def test_argument_that_makes_no_key(make_cache: MakeCache) -> None:
    """An argument whose text may hold an address is refused; the error says what to do.

    It would be another one in each process: the cache would never hit.
    """

    @make_cache().cached(60)
    def show(value: Any) -> str:
        return repr(value)

    for value in (object(), [object()], {1: 2}, {"a": object()}, {1, 2}):
        with pytest.raises(TypeError, match=r"show cannot be cached .* Pass key="):
            show(value)


def test_decorated_function_is_computed_once(make_cache: MakeCache) -> None:
    """All who call it at the same time get the value of one computation."""
    cache, ran = make_cache(), []

    @cache.cached(60)
    def slow() -> int:
        ran.append(1)
        time.sleep(0.2)
        return len(ran)

    assert together(*[slow] * 20) == [1] * 20


# Outages -----------------------------------------------------------------------------


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the first words of each line of the cache's log."""
    return [
        " ".join(record.getMessage().split()[:4])
        for record in caplog.records
        if record.name == "state_server.cache"
    ]


def test_absent_manager_takes_no_page_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything is a miss, nothing is stored, functions run; it costs one wait."""
    cache = StateServerCache(data_dir=tmp_path, call_timeout_s=0.2, outage_pause_s=60)
    began = time.monotonic()
    for _ in range(100):
        assert cache.get("key") is None
        assert cache.get_many("a", "b") == [None, None]
        assert cache.get_dict("a") == {"a": None}
        assert cache.has("key") is False
        assert cache.set("key", 1) is False
        assert cache.add("key", 1) is False
        assert cache.set_many({"a": 1}) == []
        assert cache.delete("key") is False
        assert cache.delete_many("a", "b") == []
        assert cache.clear() is False
        assert cache.inc("key") is None
        assert cache.dec("key") is None
        assert cache.info() is None
        assert cache.get_or_compute("key", lambda: "made") == "made"
        assert cache.cached(60)(lambda: "made too")() == "made too"
    assert time.monotonic() - began < 20
    assert lines_of(caplog) == ["The cache is bypassed,"]
    assert "Unreachable" in caplog.text


def test_answer_to_an_older_call_ends_no_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only a call that began after the outage did ends it; the pause is kept."""
    outage = Outage(60)
    before = time.monotonic()
    outage.begin(errors.Unanswered("given up"))
    outage.end(before)
    assert outage.lasts()
    outage.begin(errors.Unanswered("given up"))
    assert len(caplog.records) == 1
    outage.end(time.monotonic())
    assert not outage.lasts()
    assert [record.getMessage()[:18] for record in caplog.records] == [
        "The cache is bypas",
        "The cache answers ",
    ]


def test_calls_under_way_end_no_outage(caplog: pytest.LogCaptureFixture) -> None:
    """Of many threads' calls some are given up: one outage, and its pause is kept."""
    under_way, given_up = threading.Barrier(8), threading.Event()
    calls = []

    class Region:
        def get(self, key: str) -> None:
            calls.append(key)
            under_way.wait(20)
            if key == "slow":
                raise errors.Unanswered("given up")
            given_up.wait(20)

    class Client:
        def get(self, *_: Any, **__: Any) -> Region:
            return Region()

    cache = StateServerCache(lambda: Client(), outage_pause_s=60)  # type: ignore[arg-type, return-value]
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(cache.get, "quick") for _ in range(7)]
        pool.submit(cache.get, "slow").result(20)
        given_up.set()
        for answer in answers:
            answer.result(20)
    assert cache.get("later") is None
    assert len(calls) == 8
    assert len(caplog.records) == 1


def test_each_try_of_an_outage_is_no_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However often calls are tried in vain, by however many threads: one line."""
    cache = StateServerCache(data_dir=tmp_path, call_timeout_s=0.1, outage_pause_s=0)
    for _ in range(3):
        assert together(*[lambda: cache.get("key")] * 8) == [None] * 8
    assert lines_of(caplog) == ["The cache is bypassed,"]


def test_frozen_manager_takes_no_page_down(
    start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    """A manager that stands still costs one wait; when it goes on, all is back."""
    manager = start_manager()
    cache = StateServerCache(
        data_dir=manager.data_dir, call_timeout_s=0.3, outage_pause_s=0.3
    )
    wait_until(lambda: cache.set("key", "value"))
    caplog.clear()
    freeze(manager.pid)
    try:
        began = time.monotonic()
        assert cache.get_or_compute("key", lambda: "made") == "made"
        assert cache.get("key") is None
        assert time.monotonic() - began < 10
    finally:
        os.kill(manager.pid, signal.SIGCONT)
    wait_until(lambda: cache.get("key") == "value")
    assert lines_of(caplog) == ["The cache is bypassed,", "The cache answers again"]


def test_restarted_manager(
    start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    """A manager killed while a value is computed: the value is given, later cached."""
    caplog.set_level(logging.ERROR, logger="state_server.client")
    manager = start_manager()
    cache = StateServerCache(
        data_dir=manager.data_dir, call_timeout_s=0.3, outage_pause_s=0.1
    )
    wait_until(lambda: cache.set("other", 1))

    def compute() -> str:
        manager.kill()
        return "made"

    assert cache.get_or_compute("key", compute) == "made"
    assert cache.get("key") is None
    manager.start()
    wait_until(lambda: cache.set("back", 1))
    assert cache.get("other") is None
    assert cache.get_or_compute("key", lambda: "anew") == "anew"
    assert cache.get("key") == "anew"


def test_outage_while_waiting(start_manager: StartManager) -> None:
    """Those who wait for another's value make their own when the manager dies."""
    manager = start_manager()
    cache = StateServerCache(
        data_dir=manager.data_dir, call_timeout_s=0.3, outage_pause_s=60
    )
    computing, finish = threading.Event(), threading.Event()

    def compute() -> str:
        computing.set()
        assert finish.wait(30)
        return "first"

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_or_compute, "key", compute, lease_s=60)
        assert computing.wait(20)
        second = pool.submit(cache.get_or_compute, "key", lambda: "own", lease_s=60)
        manager.kill()
        assert second.result(30) == "own"
        finish.set()
        assert first.result(30) == "first"


def test_outages_may_be_errors(tmp_path: Path) -> None:
    """With ignore_outages=False each call is tried and raises what happened."""
    cache = StateServerCache(
        data_dir=tmp_path, call_timeout_s=0.1, ignore_outages=False
    )
    for _ in range(2):
        with pytest.raises(errors.Unreachable):
            cache.get("key")
        with pytest.raises(errors.Unreachable):
            cache.set("key", 1)


def test_mistakes_are_no_outages(manager: ManagerProcess) -> None:
    """A wrong key and a class that is not shared are raised: waiting mends neither."""
    denied = StateServerCache(address=manager.address, authkey=b"wrong")
    with pytest.raises(errors.Denied):
        denied.get("key")
    unknown = StateServerCache(data_dir=manager.data_dir, class_name="NoSuchRegion")
    with pytest.raises(errors.NotShared, match="NoSuchRegion"):
        unknown.get("key")


def test_client_or_address(manager: ManagerProcess) -> None:
    """A client and an address together are refused: one of them would be ignored."""
    with pytest.raises(errors.ConfigError, match="but not both"):
        StateServerCache(state_server.connect(data_dir="x"), data_dir="y")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outage_pause_s": -1}, "outage_pause_s is -1; expected seconds"),
        ({"call_timeout_s": 0}, "call_timeout_s is 0; expected seconds above 0"),
        ({"call_timeout_s": "1"}, "call_timeout_s is '1'; expected seconds"),
        ({"default_timeout": "1 h"}, "default_timeout is '1 h'; expected seconds"),
        ({"region": 5}, "region is 5; expected text"),
        ({"region": ""}, "region is ''; expected text"),
        ({"class_name": StateServerCache}, "class_name is <class"),
        ({"regoin": "a"}, "no option regoin; did you mean region?"),
        ({"timeout": 5}, "no option timeout; did you mean"),
    ],
)
def test_option_of_the_cache_that_does_not_fit(
    options: dict[str, Any], message: str
) -> None:
    """It is refused by its name when the cache is made."""
    with pytest.raises(errors.ConfigError, match=re.escape(message)):
        StateServerCache(data_dir="x", **options)


@pytest.mark.parametrize("timeout", ["60", True, float("nan")])
def test_timeout_that_does_not_fit(make_cache: MakeCache, timeout: Any) -> None:
    """A value is not stored for what is no time; the error names the argument."""
    cache = make_cache()
    with pytest.raises(TypeError, match=f"timeout is {timeout!r}; expected seconds"):
        cache.set("key", 1, timeout)
    assert not cache.has("key")


def test_client_may_be_found_later(manager: ManagerProcess) -> None:
    """A function stands for a client and is asked with each call."""
    clients: list[state_server.Client] = []
    cache = StateServerCache(lambda: clients[-1], region="later", call_timeout_s=20)
    clients.append(manager.client())
    assert cache.set("key", {"counter": cache.client.get("SomeObj", "later")})
    clients.append(manager.client())
    assert cache.client is clients[1]
    assert cache.get("key")["counter"]._caller is clients[1]


def test_nothing_of_this_is_imported_by_the_front() -> None:
    """Neither the package nor the manager imports cachelib, limits or Flask-Caching."""
    code = (
        "import sys, state_server, state_server.service; "
        "sys.exit(bool({'cachelib', 'limits', 'flask_caching'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_markup_may_be_cached_without_flask_caching() -> None:
    """A process with the plain cache alone, as under Flask-Session, keeps Markup."""
    code = (
        "from markupsafe import Markup; "
        "from state_server.integrations.caching import StateServerCache; "
        "pack = StateServerCache.serializer; "
        "assert type(pack.loads(pack.dumps(Markup('<b>')))) is Markup"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
