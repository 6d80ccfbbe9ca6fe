"""A cache region by plain calls: time, bounds, use, counting, leases, accounting."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state_server.codec.measures import ValueLimits
from state_server.integrations import options
from state_server.objects import expiry
from state_server.objects.cache import (
    DIGITS_MAX,
    ENTRY_BYTES,
    LEASE_BYTES,
    CacheRegion,
)
from state_server.objects.expiry import ExpiryQueue


class Region(CacheRegion):
    """A cache region whose time a test sets."""

    time_s = 100.0

    def _now(self) -> float:
        return self.time_s


def sum_of_sizes(region: CacheRegion) -> int:
    """Return what the entries of a region take, counted anew."""
    return sum(
        sys.getsizeof(key) + sys.getsizeof(entry.value) + ENTRY_BYTES
        for key, entry in region._entries.items()
    )


# Values and time ---------------------------------------------------------------------


def test_value_ends_with_its_time() -> None:
    """Up to its timeout a value is there, from then on it is not."""
    region = Region()
    region.set("key", b"value", timeout_s=10)
    region.time_s += 9.99
    assert (region.get("key"), region.has("key")) == (b"value", True)
    region.time_s += 0.01
    assert (region.get("key"), region.has("key")) == (None, False)


def test_timeout_of_zero_is_none_at_all() -> None:
    """A value without a timeout is there for ever."""
    region = Region()
    region.set("key", b"value")
    region.time_s += 1e9
    assert region.get("key") == b"value"


def test_negative_timeout_has_ended() -> None:
    """A value that has ended before it came is not kept, and what was there is gone."""
    region = Region()
    region.set("key", b"old")
    assert region.set("key", b"new", timeout_s=-1)
    assert region.get("key") is None
    assert region.info()["entries"] == 0


def test_set_begins_the_time_anew() -> None:
    """A value set again lives for its new time, longer or shorter."""
    region = Region()
    region.set("key", b"1", timeout_s=10)
    region.set("key", b"2", timeout_s=100)
    region.time_s += 50
    assert region.get("key") == b"2"
    region.set("key", b"3", timeout_s=5)
    region.time_s += 5
    assert region.get("key") is None


def test_what_has_ended_leaves_without_being_asked_for() -> None:
    """Entries that nobody asks for again are gone after half as many writes.

    So are those that were set again after they had ended.
    """
    region = Region()
    for _ in range(2):
        for number in range(1000):
            region.set(f"old-{number}", b"value", timeout_s=10)
        region.time_s += 10
    for number in range(500):
        region.set(f"new-{number}", b"value", timeout_s=1000)
    assert region.info()["entries"] == 500
    assert region.info()["evictions"] == 0


def test_what_was_found_and_what_was_not_is_counted() -> None:
    """Each question for a value counts; one whether there is a value does not."""
    region = Region()
    assert region.get("key") is None
    assert region.get_or_lease("key", 10)[0] == "lease"
    region.set("key", b"value")
    assert not region.has("other")
    assert region.get_many(["key", "other"]) == [b"value", None]
    assert region.get_or_lease("key", 10) == ("value", b"value")
    assert (region.info()["hits"], region.info()["misses"]) == (2, 3)


def test_add_stores_once() -> None:
    """``add`` stores where nothing is, or what was there has ended."""
    region = Region()
    assert region.add("key", b"1", timeout_s=10)
    assert not region.add("key", b"2", timeout_s=10)
    region.time_s += 10
    assert region.add("key", b"3", timeout_s=10)
    assert region.get("key") == b"3"


def test_delete_tells_whether_there_was_a_value() -> None:
    """``delete`` says whether there was a value; what had ended was none."""
    region = Region()
    region.set_many({"a": b"1", "b": b"2", "c": b"3"}, timeout_s=10)
    assert (region.delete("a"), region.delete("a")) == (True, False)
    assert region.delete_many(["a", "b"]) == ["b"]
    region.time_s += 10
    assert not region.delete("c")


def test_clear_by_prefix() -> None:
    """``clear`` deletes what begins with the prefix, and everything without one."""
    region = Region()
    region.set_many({"a:1": b"", "a:2": b"", "b:1": b""})
    assert region.clear("a:") == 2
    assert region.get_many(["a:1", "b:1"]) == [None, b""]
    assert region.clear() == 1


def test_a_missing_integer_counts_as_nought() -> None:
    """A missing integer counts as 0 and gets the timeout; another keeps its own."""
    region = Region()
    assert region.inc("new", 5, timeout_s=10) == 5
    region.set("set", 7, timeout_s=100)
    assert region.inc("set", -3, timeout_s=10) == 4
    region.time_s += 10
    assert region.get_many(["new", "set"]) == [None, 4]
    region.inc("set", 10**100)
    assert region.info()["bytes"] == sum_of_sizes(region)
    region.delete("set")
    assert region.info()["bytes"] == 0


def test_counting_what_is_no_number() -> None:
    """Bytes cannot be counted; the error names the key, and the value stays."""
    region = Region()
    region.set("key", b"value")
    with pytest.raises(TypeError, match="'key' is no integer"):
        region.inc("key")
    assert region.get("key") == b"value"


@pytest.mark.parametrize("delta", [1.5, "1", None, b"1"])
@pytest.mark.parametrize("there", [False, True])
def test_counting_by_what_is_no_integer(delta: Any, there: bool) -> None:
    """Only integers are added, whether one is there or not; nothing changes."""
    region = Region()
    if there:
        region.set("key", 7)
    with pytest.raises(
        TypeError, match=f"'key' is counted by .* {type(delta).__name__}"
    ):
        region.inc("key", delta)
    assert region.get("key") == (7 if there else None)


def test_counting_by_true_keeps_an_integer() -> None:
    """``True`` counts as 1 and does not become the value."""
    region = Region()
    region.inc("key", True)
    assert repr(region.get("key")) == "1"


def test_counting_beyond_the_region() -> None:
    """A sum that could never fit is refused as by ``set``; the value stays."""
    region = Region(bytes_max=10_000)
    region.set("key", 7)
    for key in ("key", "new"):
        with pytest.raises(ValueError, match=r"takes \d+ bytes .*cache_bytes_max"):
            region.inc(key, 10**60000)
    assert region.get_many(["key", "new"]) == [7, None]
    assert region.info()["bytes"] == sum_of_sizes(region)


def test_counting_makes_room() -> None:
    """For a number that grows others leave, least recently used first, never itself."""
    region = Region(bytes_max=8_000)
    region.set("number", 1)
    for key in "abc":
        region.set(key, bytes(2000))
    for digits in range(0, 4300, 100):
        region.inc("number", 10**digits)
        assert region.info()["bytes"] == sum_of_sizes(region) <= 8_000
        assert region.has("number")
    assert [key for key in "abc" if region.has(key)] == ["b", "c"]
    assert region.info()["evictions"] == 1


def test_counting_beyond_what_can_travel() -> None:
    """A sum of more digits than a reply may have is refused: nobody could read it."""
    assert ValueLimits().digits_max == DIGITS_MAX
    region = Region()
    most = 10**DIGITS_MAX - 1
    for sign in (1, -1):
        region.set("key", sign * most)
        with pytest.raises(ValueError, match="more than 4300 digits"):
            region.inc("key", sign)
        assert region.get("key") == sign * most


def test_value_set_anew_still_leaves() -> None:
    """An entry whose end is put off twice leaves in the end without being asked for."""
    region = Region()
    region.set("key", b"value", timeout_s=10)
    region.set("key", b"value", timeout_s=100)
    region.time_s += 50
    region.set("key", b"value", timeout_s=100)
    region.time_s += 100
    region.set("other", b"")
    assert list(region._entries) == ["other"]


@pytest.mark.parametrize("times", [(float("nan"), 0), (5, float("nan"))])
def test_time_that_is_none(times: tuple[float, float]) -> None:
    """What has no end is refused: it would upset the order in which others leave."""
    region = Region()
    with pytest.raises(ValueError, match=r"nan s.* which is no time"):
        region.set("key", b"value", *times)
    assert region.info()["entries"] == 0


@pytest.mark.parametrize(
    ("key", "value"), [("key", "text"), ("key", None), (5, b""), ("key", [b""])]
)
def test_what_is_no_entry(key: Any, value: Any) -> None:
    """Only bytes and integers are kept, under text: anything else hides its size."""
    region = Region()
    with pytest.raises(TypeError, match="keeps bytes and integers under a text"):
        region.set(key, value)
    assert region.info()["entries"] == 0


# Bounds ------------------------------------------------------------------------------


def test_least_recently_used_leaves_first() -> None:
    """At the bound on entries the one leaves that was read or written longest ago."""
    region = Region(entries_max=3)
    for key in "abc":
        region.set(key, b"")
    region.get("a")
    region.has("b")
    region.set("d", b"")
    region.set("e", b"")
    assert [key for key in "abcde" if region.has(key)] == ["a", "d", "e"]
    assert region.info()["evictions"] == 2


def test_ended_entries_leave_before_used_ones() -> None:
    """What has ended makes room before anything that is still good has to go."""
    region = Region(entries_max=3)
    region.set("good", b"")
    region.set("ended", b"", timeout_s=1)
    region.set("better", b"")
    region.time_s += 1
    region.set("new", b"")
    assert region.has("good")
    assert region.info()["evictions"] == 0


def test_bytes_are_bounded() -> None:
    """Values leave so that keys, values and bookkeeping fit the bound on bytes."""
    region = Region(bytes_max=100_000)
    for number in range(1000):
        region.set(f"key-{number}", bytes(1000))
        assert region.info()["bytes"] <= 100_000
    assert region.info()["bytes"] == sum_of_sizes(region)
    assert region.info()["entries"] > 50
    assert region.has("key-999")


def test_value_larger_than_the_region() -> None:
    """A value that could never fit is refused with its size, and evicts nothing."""
    region = Region(bytes_max=10_000)
    region.set("small", b"")
    with pytest.raises(
        ValueError, match=r"'large' takes 10\d+ bytes .*cache_bytes_max"
    ):
        region.set_many({"also": b"", "large": bytes(10_000)})
    assert (region.has("small"), region.has("also")) == (True, False)


def test_full_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A region says once that it is full: it stays so, in the normal course of life."""
    region = Region(entries_max=10)
    for number in range(10):
        region.set(str(number), b"")
    assert caplog.records == []
    for number in range(100):
        region.set(str(number), b"")
    assert len(caplog.records) == 1
    assert "full (10 entries, " in caplog.text


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["set", "add", "inc", "get", "delete", "clear", "wait"]),
            st.sampled_from("abcdef"),
            st.integers(-1, 12),
            st.sampled_from([1, 1, -3, 0.5, 10**100, 10**500, 10**6000]),
        ),
        max_size=60,
    )
)
def test_region_does_what_a_simple_one_does(
    steps: list[tuple[str, str, int, Any]],
) -> None:
    """Against a model that looks at every entry: same answers, sizes add up.

    Numbers to store and to add may be fractions, or larger than the whole region.
    """
    bytes_max = 4 * (ENTRY_BYTES + 200)
    region = Region(entries_max=4, bytes_max=bytes_max)

    def size(key: str) -> int:
        return sys.getsizeof(key) + sys.getsizeof(model[key][0]) + ENTRY_BYTES

    def refused(key: str, value: Any) -> type[Exception] | None:
        if not isinstance(value, int):
            return TypeError
        taken = sys.getsizeof(key) + sys.getsizeof(value) + ENTRY_BYTES
        return ValueError if taken > bytes_max else None

    model: OrderedDict[str, tuple[Any, float]] = OrderedDict()
    for verb, key, number, value in steps:
        for ended in [k for k, (_, at) in model.items() if at <= region.time_s]:
            del model[ended]
        timeout_s = float(number)
        until = region.time_s + timeout_s if number else float("inf")
        there = key in model
        if verb == "wait":
            region.time_s += abs(number)
        elif verb == "get":
            assert region.get(key) == (model[key][0] if there else None)
        elif verb == "delete":
            assert region.delete(key) is there
            model.pop(key, None)
        elif verb == "clear":
            region.clear(key)
            model.pop(key, None)
        elif verb == "inc":
            before = model[key][0] if there else 0
            total = before + value if isinstance(value, int) else value
            until = model[key][1] if there else until
            error = refused(key, total)
            if error is not None:
                with pytest.raises(error):
                    region.inc(key, value, timeout_s)
                continue
            assert region.inc(key, value, timeout_s) == total
            model[key] = (total, until)
        elif verb == "set" or not there:
            error = refused(key, value)
            if error is not None:
                with pytest.raises(error):
                    getattr(region, verb)(key, value, timeout_s)
                continue
            getattr(region, verb)(key, value, timeout_s)
            model[key] = (value, until)
        else:
            assert region.add(key, value, timeout_s) is False
        if verb not in ("delete", "clear", "wait") and key in model:
            if verb != "add" or not there:
                model.move_to_end(key)
            if model[key][1] <= region.time_s:
                del model[key]
        while len(model) > 4 or sum(map(size, model)) > bytes_max:
            model.popitem(last=False)
        assert region.info()["bytes"] == sum_of_sizes(region) <= bytes_max
        assert region.info()["entries"] <= 4
    for ended in [k for k, (_, at) in model.items() if at <= region.time_s]:
        del model[ended]
    assert {key: region.get(key) for key in "abcdef" if region.has(key)} == {
        key: value for key, (value, _) in model.items()
    }


# Leases ------------------------------------------------------------------------------


def test_one_computes_the_others_wait() -> None:
    """Of those who miss one gets the lease; after its value all get that."""
    region = Region()
    state, token = region.get_or_lease("key", 10)
    assert state == "lease"
    assert region.get_or_lease("key", 10) == ("wait", None)
    assert region.set_leased("key", token, b"value", timeout_s=60)  # type: ignore[arg-type]
    assert region.get_or_lease("key", 10) == ("value", b"value")


def test_lease_of_a_dead_holder_passes_on() -> None:
    """A holder that is not heard of again holds the lease for its time only."""
    region = Region()
    region.get_or_lease("key", 10)
    region.time_s += 10
    assert region.get_or_lease("key", 10)[0] == "lease"
    assert region.get_or_lease("key", 10) == ("wait", None)


def test_late_holder_may_still_store() -> None:
    """A value that took longer than its lease is as good: whoever ends first stores."""
    region = Region()
    _, first = region.get_or_lease("key", 10)
    region.time_s += 10
    _, second = region.get_or_lease("key", 10)
    assert region.set_leased("key", first, b"late", timeout_s=60)  # type: ignore[arg-type]
    assert not region.set_leased("key", second, b"later", timeout_s=60)  # type: ignore[arg-type]
    assert region.get("key") == b"late"


def test_failed_computation_passes_on() -> None:
    """A lease given back goes to the next one at once, but not by a late holder."""
    region = Region()
    _, first = region.get_or_lease("key", 10)
    assert region.release("key", first)  # type: ignore[arg-type]
    _, second = region.get_or_lease("key", 10)
    assert not region.release("key", first)  # type: ignore[arg-type]
    assert region.get_or_lease("key", 10) == ("wait", None)
    assert region.release("key", second)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        lambda region: region.delete("key"),
        lambda region: region.delete_many(["key"]),
        lambda region: region.clear(),
        lambda region: region.clear("k"),
        lambda region: region.set("key", b"newer"),
        lambda region: region.set_many({"key": b"newer"}),
        lambda region: region.add("key", b"newer"),
        lambda region: region.inc("key"),
    ],
)
def test_change_takes_the_lease_away(change: Any) -> None:
    """A value computed from what was there before a change is not stored after it."""
    region = Region()
    _, token = region.get_or_lease("key", 10)
    change(region)
    now = region.get("key")
    assert not region.set_leased("key", token, b"older", timeout_s=60)  # type: ignore[arg-type]
    assert region.get("key") == now


def test_stale_value_while_another_is_computed() -> None:
    """Those who would wait get the value that has ended, if they take it, for a while.

    Nobody else does: it is no value for ``get``, ``has`` and ``add``.
    """
    region = Region()
    region.set("key", b"old", timeout_s=10, stale_s=5)
    region.time_s += 10
    assert region.get_or_lease("key", 30, stale=True)[0] == "lease"
    assert region.get_or_lease("key", 30, stale=True) == ("value", b"old")
    assert region.get_or_lease("key", 30, stale=False) == ("wait", None)
    assert (region.get("key"), region.has("key")) == (None, False)
    region.time_s += 5
    assert region.get_or_lease("key", 30, stale=True) == ("wait", None)


def test_lease_of_another_region_counts_for_nothing() -> None:
    """A token from before the manager was started anew is not taken for one of now."""
    old, new = Region(), Region()
    _, token = old.get_or_lease("key", 10)
    new.get_or_lease("key", 10)
    assert not new.set_leased("key", token, b"value")  # type: ignore[arg-type]
    assert not new.release("key", token)  # type: ignore[arg-type]


def test_leases_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Above the bound the oldest lease is forgotten, and a line says so once."""
    region = Region(leases_max=10)
    for number in range(30):
        assert region.get_or_lease(str(number), 10)[0] == "lease"
    assert region.info()["leases"] == 10
    assert region.get_or_lease("29", 10) == ("wait", None)
    assert region.get_or_lease("0", 10)[0] == "lease"
    assert len(caplog.records) == 1
    assert "(leases_max)" in caplog.text


def test_a_lease_that_has_changed_hands_is_not_the_oldest() -> None:
    """Above the bound that one is forgotten whose holder has had it for longest."""
    region = Region(leases_max=2)
    for key in ("a", "b"):
        assert region.get_or_lease(key, 10)[0] == "lease"
    region.time_s += 10
    assert region.get_or_lease("a", 10)[0] == "lease"
    assert region.get_or_lease("c", 10)[0] == "lease"
    assert region.get_or_lease("a", 10) == ("wait", None)
    assert region.info()["leases"] == 2


# The queue of what ends --------------------------------------------------------------


def test_queue_follows_the_number_of_keys() -> None:
    """Keys that come and go fifty thousand times leave a few entries behind."""
    ends: dict[int, float] = {}
    queue: ExpiryQueue[int] = ExpiryQueue(ends.get, ends.__len__)
    for number in range(50_000):
        key = number % 10
        ends.pop(key, None)
        ends[key] = 1e6 - number
        queue.note(key, ends[key])
    assert len(queue) <= 120
    found = set()
    while (key := queue.pop_ended(1e6)) is not None:
        del ends[key]
        found.add(key)
    assert found == set(range(10))


def test_queue_heeds_an_end_that_was_put_off() -> None:
    """A key that ends later than was noted is given out when it ends, not before."""
    ends = {"key": 10.0}
    queue: ExpiryQueue[str] = ExpiryQueue(ends.get, ends.__len__)
    queue.note("key", 10.0)
    ends["key"] = 20.0
    queue.note("key", 20.0, former=10.0)
    assert len(queue) == 1
    assert queue.pop_ended(15.0) is None
    assert queue.pop_ended(20.0) == "key"


def test_queue_heeds_an_end_that_comes_earlier() -> None:
    """A key that ends sooner than was noted takes no memory until then."""
    ends = {"key": 20.0}
    queue: ExpiryQueue[str] = ExpiryQueue(ends.get, ends.__len__)
    queue.note("key", 20.0)
    ends["key"] = 10.0
    queue.note("key", 10.0, former=20.0)
    assert queue.pop_ended(9.0) is None
    assert queue.pop_ended(10.0) == "key"


@pytest.mark.parametrize("leave", ["evict", "delete", "clear", "end"])
def test_queue_lets_go_of_keys_that_left(leave: str) -> None:
    """However entries leave, the queue soon holds no more than twice their keys."""
    region = Region(entries_max=1000 if leave == "evict" else 100_000)
    for number in range(5000):
        region.set(f"key-{number}", 1, timeout_s=1000 - number / 10)
        assert len(region._ended) <= 2 * len(region._entries) + 100
    if leave == "delete":
        region.delete_many([f"key-{number}" for number in range(4990)])
    elif leave == "clear":
        region.clear()
    elif leave == "end":
        region.time_s += 2000
        region.get_many([f"key-{number}" for number in range(5000)])
    assert len(region._ended) <= 2 * len(region._entries) + 100


# Keys --------------------------------------------------------------------------------


def test_long_key_is_refused() -> None:
    """Nothing is stored or leased under it; the error says how long it may be."""
    region = Region(key_bytes_max=5000)
    long, full = "\N{EURO SIGN}" * 1667, "k" * 5000
    for store in (
        lambda: region.set(long, 1),
        lambda: region.set_many({"short": 1, long: 1}),
        lambda: region.add(long, 1),
        lambda: region.inc(long),
        lambda: region.get_or_lease(long, 10),
    ):
        with pytest.raises(ValueError, match=r"5001 bytes, .*key_bytes_max\) is 5000"):
            store()
    assert (region.get(long), region.has(long), region.delete(long)) == (None, 0, 0)
    assert (region.info()["entries"], region.info()["leases"]) == (0, 0)
    assert region.set(full, 1)
    with pytest.raises(ValueError, match="key_bytes_max"):
        Region().set("k" * 4097, 1)


def test_leases_count_as_bytes() -> None:
    """Leases take of the region's bytes, give them back, and make entries leave."""
    region = Region(bytes_max=10_000)
    _, token = region.get_or_lease("leased", 10)
    taken = sys.getsizeof("leased") + LEASE_BYTES
    assert region.info()["bytes"] == taken
    region.release("leased", token)  # type: ignore[arg-type]
    assert region.info()["bytes"] == 0
    region.set("large", bytes(9000))
    for number in range(100):
        region.get_or_lease(f"{number:0>1000}", 10)
        assert region.info()["bytes"] <= 10_000
    assert region.info()["leases"] == 7
    assert not region.has("large")
    region.set("large", bytes(9500))
    assert (region.info()["entries"], region.info()["leases"]) == (1, 0)
    region.set("large", bytes(9000))
    region.get_or_lease("leased", 10)
    region.set("large", bytes(9500))
    assert (region.info()["entries"], region.info()["leases"]) == (1, 0)
    assert region.info()["bytes"] == sum_of_sizes(region) <= 10_000
    region.clear()
    assert region.info()["bytes"] == 0


def test_lease_that_the_region_has_no_room_for() -> None:
    """It is given and not kept: its value is not stored, and nobody waits for it."""
    region = Region(bytes_max=1000)
    region.set("there", 1)
    state, token = region.get_or_lease("k" * 1000, 10)
    assert state == "lease"
    assert not region.set_leased("k" * 1000, token, 1)  # type: ignore[arg-type]
    assert region.has("there")


def test_what_the_web_side_leaves_of_a_key_is_taken() -> None:
    """A key of any length has a form that a region takes; both ends know one limit."""
    for key in ("k" * 100_000, "\N{SNOWMAN}" * 4096, "k" * options.KEY_BYTES_MAX):
        bounded = options.bounded_key(key, "p" * options.PREFIX_BYTES_MAX)
        assert Region().set(bounded, 1)
    assert options.KEY_BYTES_MAX == expiry.KEY_BYTES_MAX
