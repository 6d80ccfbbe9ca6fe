"""Rate limits by plain calls: the three windows, their bounds, and limits' own answers.

The package's memory storage is the reference: the same hits at the same times have to
be let through, one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state_server.objects.rate_limits import RateLimits

storages = pytest.importorskip("limits.storage")

START_S = 1_700_000_000.0


class Limits(RateLimits):
    """Rate limits whose time a test sets."""

    time_s = START_S

    def _now(self) -> float:
        return self.time_s


@pytest.fixture(scope="module")
def reference() -> Iterator[object]:
    """Return limits' memory storage, without the thread that tidies it up."""
    with mock.patch("threading.Timer"):
        yield storages.MemoryStorage()


#: Steps: seconds that pass before it, what is hit, and by how much. Eighths of a
#: second, so that no sum is rounded.
STEPS = st.lists(
    st.tuples(
        st.integers(0, 24).map(lambda eighths: eighths / 8),
        st.sampled_from("ab"),
        st.sampled_from([1, 1, 1, 2, 3, 6]),
    ),
    max_size=40,
)
LIMIT, EXPIRY_S = 5, 4


# Against the reference -------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_fixed_window_is_that_of_limits(
    reference: object, steps: list[tuple[float, str, int]]
) -> None:
    """Same counts and same ends as limits' memory storage, after each hit."""
    ours, now = Limits(), START_S
    theirs = reference
    theirs.reset()  # type: ignore[attr-defined]
    for pause_s, key, amount in steps:
        now += pause_s
        ours.time_s = now
        with mock.patch("time.time", lambda now=now: now):
            expected = theirs.incr(key, EXPIRY_S, amount)  # type: ignore[attr-defined]
            assert ours.incr(key, EXPIRY_S, amount) == expected
            assert ours.get(key) == theirs.get(key)  # type: ignore[attr-defined]
            ends_at = theirs.get_expiry(key)  # type: ignore[attr-defined]
            assert now + ours.ends_in(key) == ends_at


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_moving_window_is_that_of_limits(
    reference: object, steps: list[tuple[float, str, int]]
) -> None:
    """The same hits are let through as by limits' memory storage, and are counted."""
    ours, now = Limits(), START_S
    theirs = reference
    theirs.reset()  # type: ignore[attr-defined]
    hits: dict[str, list[tuple[float, int]]] = {"a": [], "b": []}
    for pause_s, key, amount in steps:
        now += pause_s
        ours.time_s = now
        with mock.patch("time.time", lambda now=now: now):
            expected = theirs.acquire_entry(  # type: ignore[attr-defined]
                key, LIMIT, EXPIRY_S, amount
            )
        assert ours.acquire_entry(key, LIMIT, EXPIRY_S, amount) is expected
        if expected:
            hits[key].append((now, amount))
        recent = [(at, n) for at, n in hits[key] if at >= now - EXPIRY_S]
        oldest_s = now - recent[0][0] if recent else 0.0
        total = sum(n for _, n in recent)
        assert total <= LIMIT
        assert ours.moving_window(key, EXPIRY_S) == (oldest_s, total)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_sliding_window_is_that_of_limits(
    reference: object, steps: list[tuple[float, str, int]]
) -> None:
    """The same hits are let through as by limits' memory storage.

    Its windows begin with multiples of their length and ours with the first hit, so
    the keys are hit at such a time first, and often enough for windows to follow each
    other.
    """
    ours, now = Limits(), START_S
    theirs = reference
    theirs.reset()  # type: ignore[attr-defined]
    for pause_s, key, amount in [(0, "a", 1), (0, "b", 1), *steps]:
        now += pause_s
        for name, hit in ((key, amount), ("a", 0), ("b", 0)):
            ours.time_s = now
            with mock.patch("time.time", lambda now=now: now):
                expected = theirs.acquire_sliding_window_entry(  # type: ignore[attr-defined]
                    name, LIMIT, EXPIRY_S, hit
                )
                window = theirs.get_sliding_window(name, EXPIRY_S)  # type: ignore[attr-defined]
            if ours._sliding.find(name, now) is None and now % EXPIRY_S:
                # Two windows without a hit: ours would begin anew, unaligned.
                return
            assert (
                ours.acquire_sliding_window_entry(name, LIMIT, EXPIRY_S, hit)
                is expected
            )
            if window[0] or window[2]:
                assert ours.sliding_window(name, EXPIRY_S) == window


# By themselves -----------------------------------------------------------------------


def test_sliding_window_begins_with_the_first_hit() -> None:
    """The first window is a whole one, whenever it begins; then the next follows."""
    ours = Limits()
    ours.time_s += 3.5
    assert ours.acquire_sliding_window_entry("key", 10, 4, 10)
    ours.time_s += 4
    assert ours.sliding_window("key", 4) == (10, 4.0, 0, 8.0)
    ours.time_s += 1
    # Three quarters of the former ten are still within: seven and a half, so seven.
    assert not ours.acquire_sliding_window_entry("key", 10, 4, 4)
    assert ours.acquire_sliding_window_entry("key", 10, 4, 3)
    assert ours.sliding_window("key", 4) == (10, 3.0, 3, 7.0)
    ours.time_s += 7
    assert ours.sliding_window("key", 4) == (0, 0.0, 0, 0.0)


def test_strategies_do_not_see_each_other() -> None:
    """One key has a count of its own under each strategy.

    ``clear`` is for fixed and moving windows, ``clear_sliding_window`` for the third.
    """
    ours = Limits()
    ours.incr("key", 60, 3)
    ours.acquire_entry("key", 10, 60, 2)
    ours.acquire_sliding_window_entry("key", 10, 60, 1)
    assert ours.get("key") == 3
    assert ours.moving_window("key", 60)[1] == 2
    assert ours.sliding_window("key", 60)[2] == 1
    ours.clear("key")
    assert (ours.get("key"), ours.moving_window("key", 60)[1]) == (0, 0)
    assert ours.sliding_window("key", 60)[2] == 1
    ours.clear_sliding_window("key")
    assert ours.sliding_window("key", 60)[2] == 0
    assert ours.info()["records"] == 0


def test_reset_counts_windows() -> None:
    """``reset`` forgets everything and says how many windows that were."""
    ours = Limits()
    for key in "abc":
        ours.incr(key, 60)
        ours.acquire_entry(key, 10, 60)
    ours.acquire_sliding_window_entry("a", 10, 60)
    assert ours.reset() == 7
    assert ours.reset() == 0
    assert ours.info()["records"] == 0


def test_hits_of_nothing() -> None:
    """A hit that costs 0 asks and leaves no window behind."""
    ours = Limits()
    assert ours.incr("key", 60, 0) == 0
    assert ours.acquire_entry("key", 1, 60, 0)
    assert ours.acquire_sliding_window_entry("key", 1, 60, 0)
    assert ours.reset() == 0


@pytest.mark.parametrize("amount", [-1, 1.5, "1"])
def test_amount_that_does_not_fit(amount: int) -> None:
    """What is no whole number from 0 is refused: it would give hits back."""
    ours = Limits()
    for call in (
        lambda: ours.incr("key", 60, amount),
        lambda: ours.acquire_entry("key", 10, 60, amount),
        lambda: ours.acquire_sliding_window_entry("key", 10, 60, amount),
    ):
        with pytest.raises(ValueError, match="A hit is a whole number from 0"):
            call()


@pytest.mark.parametrize("expiry_s", [0, -1, math.inf, math.nan])
def test_length_that_does_not_fit(expiry_s: float) -> None:
    """A window that never ends, or has no length, is refused."""
    ours = Limits()
    with pytest.raises(ValueError, match="A window is longer than 0 s"):
        ours.incr("key", expiry_s)


# Bounds ------------------------------------------------------------------------------


def test_windows_leave_when_they_have_ended() -> None:
    """Keys that nobody hits again are gone after as many hits of others."""
    ours = Limits()
    for number in range(300):
        ours.incr(f"fixed-{number}", 10)
        ours.acquire_entry(f"moving-{number}", 10, 10)
        ours.acquire_sliding_window_entry(f"sliding-{number}", 10, 5)
    ours.time_s += 11
    for number in range(300):
        ours.incr(f"new-{number}", 100)
    assert ours.info() == {
        "fixed_windows": 300,
        "moving_windows": 0,
        "sliding_windows": 0,
        "records": 300,
        "records_max": 1_000_000,
    }


def test_full_storage_counts_nothing_new(caplog: pytest.LogCaptureFixture) -> None:
    """At the bound a new window is refused and the others count on; one line says so.

    Forgetting a window instead would free whoever floods the storage of their limit.
    """
    ours = Limits(records_max=10)
    for number in range(10):
        ours.incr(str(number), 60)
    for hit in (
        lambda: ours.incr("new", 60),
        lambda: ours.acquire_entry("new", 5, 60),
        lambda: ours.acquire_sliding_window_entry("new", 5, 60),
    ):
        with pytest.raises(OverflowError, match="rate_limit_records_max"):
            hit()
    assert ours.incr("0", 60) == 2
    assert ours.get("new") == 0
    assert len(caplog.records) == 1
    assert "(rate_limit_records_max)" in caplog.text
    ours.time_s += 60
    assert ours.incr("new", 60) == 1


def test_hits_of_moving_windows_are_bounded_together() -> None:
    """Each time of a hit is a record: a key with a high limit cannot take them all."""
    ours = Limits(records_max=100)
    for _ in range(100):
        ours.time_s += 0.01
        assert ours.acquire_entry("key", 1_000_000, 60)
    with pytest.raises(OverflowError):
        ours.acquire_entry("key", 1_000_000, 60)
    assert ours.moving_window("key", 60)[1] == 100
    ours.time_s += 59.5
    assert ours.acquire_entry("key", 1_000_000, 60)


def test_large_cost_is_one_record() -> None:
    """A hit that costs a million takes no more memory than one that costs one."""
    ours = Limits()
    assert ours.acquire_entry("key", 1_000_000, 60, 999_999)
    assert ours.info()["records"] == 1


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_records_add_up(steps: list[tuple[float, str, int]]) -> None:
    """The number of records is that of what is kept, whatever happens."""
    ours = Limits(records_max=6)
    for pause_s, key, amount in steps:
        ours.time_s += pause_s
        for hit in (ours.acquire_entry, ours.acquire_sliding_window_entry):
            try:
                hit(key, LIMIT, EXPIRY_S, amount)
            except OverflowError:
                pass
        kept = sum(
            window.records
            for table in (ours._fixed, ours._moving, ours._sliding)
            for window in table._by_key.values()
        )
        assert ours.info()["records"] == kept <= 6


def test_long_key_is_refused() -> None:
    """A hit of it counts nothing; the error says how long a key may be."""
    storage = Limits()
    for hit in (
        lambda: storage.incr("k" * 4097, 60),
        lambda: storage.acquire_entry("k" * 4097, 1, 60),
        lambda: storage.acquire_sliding_window_entry("k" * 4097, 1, 60),
    ):
        with pytest.raises(ValueError, match=r"4097 bytes, .*key_bytes_max\) is 4096"):
            hit()
    assert storage.info()["records"] == 0
    assert storage.incr("k" * 4096, 60) == 1


def test_bytes_of_keys_are_records() -> None:
    """Long keys fill the storage sooner, and give back what they took."""
    storage = Limits(records_max=90)
    for number in range(5):
        assert storage.incr(f"{number:0>4000}", 60) == 1
    taken = storage.info()["records"]
    assert 5 * 4000 / 256 <= taken <= 90
    with pytest.raises(OverflowError, match="rate_limit_records_max"):
        storage.acquire_sliding_window_entry("k" * 4000, 5, 60)
    assert storage.acquire_entry("short", 5, 60)
    storage.clear("short")
    for number in range(5):
        storage.clear(f"{number:0>4000}")
    assert storage.info()["records"] == 0


def test_queue_lets_go_of_windows_that_were_cleared() -> None:
    """Keys of windows that are gone take no memory for the rest of their time."""
    storage = Limits()
    for number in range(2000):
        storage.incr(str(number), 3600)
    # Afterwards, as a window that begins has the queue cleaned up as well.
    for number in range(2000):
        storage.clear(str(number))
    assert len(storage._fixed._ended) <= 100
