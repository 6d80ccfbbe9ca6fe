"""The values in a dump: written for people, and read back exactly."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, deque
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state_server.dumps import Reader, Untrusted, plain

from .test_operating import Index, Thing


def same(left: Any, right: Any) -> bool:
    """Tell whether two values are equal, types, order and signs included."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return (math.isnan(left) and math.isnan(right)) or (
            left == right and math.copysign(1, left) == math.copysign(1, right)
        )
    if isinstance(left, (datetime, time)):
        return repr(left) == repr(right)
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    if isinstance(left, Decimal):
        return bool(left.as_tuple() == right.as_tuple())
    if isinstance(left, (list, tuple, deque)):
        if isinstance(left, deque) and left.maxlen != right.maxlen:
            return False
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, (set, frozenset)):
        return len(left) == len(right) and all(
            any(same(item, other) for other in right) for item in left
        )
    return bool(left == right)


surrogates = st.text(st.characters(min_codepoint=0xD7F0, max_codepoint=0xE010))
named = [ZoneInfo(name) for name in sorted(available_timezones())[::100]]
zones = (
    st.none()
    | st.just(timezone.utc)
    | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
    | st.just(timezone(timedelta(hours=1), "CET"))
    | (st.sampled_from(named) if named else st.none())
)
constants = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers().map(lambda n: n**400),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    surrogates,
    st.sampled_from(["$set", "$", "$$pickle"]),
    st.binary(),
    st.decimals(allow_nan=True),
    st.fractions(),
    st.dates(),
    st.times(),
    st.datetimes(timezones=zones),
    st.timedeltas(),
    st.uuids(),
    zones,
)
hashable = constants.filter(
    lambda value: not (isinstance(value, Decimal) and value.is_snan())
)
keys = hashable | st.tuples(hashable, hashable) | st.frozensets(st.integers())


def _containers(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    pairs = st.dictionaries(keys, values, max_size=4)
    lists = st.lists(values, max_size=4)
    return st.one_of(
        lists,
        lists.map(tuple),
        lists.map(deque),
        lists.map(lambda items: deque(items, 2)),
        pairs,
        st.dictionaries(st.text() | surrogates, values, max_size=4),
        pairs.map(OrderedDict),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
        st.binary().map(bytearray),
        st.lists(st.integers()).map(Counter),
    )


@given(st.recursive(constants, _containers, max_leaves=20))
def test_every_builtin_value_is_read_as_it_was_written(value: Any) -> None:
    """Through JSON and back every value is the same, without any pickle."""
    written = json.dumps(plain(value), ensure_ascii=False, allow_nan=False)
    written.encode()
    assert same(value, Reader(trust=False).value(json.loads(written)))


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ((1, 2), {"$tuple": [1, 2]}),
        ({3, 1, 2}, {"$set": [1, 2, 3]}),
        (b"\0\1", {"$bytes": "AAE="}),
        (datetime(2026, 5, 9, 7, 35), {"$datetime": "2026-05-09T07:35:00"}),
        (date(2026, 5, 9), {"$date": "2026-05-09"}),
        (time(7, 35), {"$time": "07:35:00"}),
        (time(7, fold=1), {"$time": ["07:00:00", None, 1]}),
        (
            datetime(2026, 5, 9, tzinfo=timezone.utc),
            {"$datetime": "2026-05-09T00:00:00+00:00"},
        ),
        (Decimal("1.50"), {"$decimal": "1.50"}),
        (Fraction(1, 3), {"$fraction": [1, 3]}),
        ({1: "a"}, {"$dict": [[1, "a"]]}),
        ({"$set": 1}, {"$dict": [["$set", 1]]}),
        ({"a": [None, True]}, {"a": [None, True]}),
        (math.inf, {"$float": "inf"}),
        (2**100, 2**100),
        (2**9000, {"$int": hex(2**9000)}),
        (UUID(int=1), {"$uuid": "00000000-0000-0000-0000-000000000001"}),
    ],
)
def test_values_are_written_for_people(value: Any, written: Any) -> None:
    """What JSON has is itself; what it lacks has a mark that says what it is."""
    assert plain(value) == written


@pytest.mark.parametrize(
    "value",
    [
        Thing(a=1),
        Index(a=1),
        range(3),
    ],
)
def test_what_has_no_form_is_pickled_and_shown(value: Any) -> None:
    """A value with more to it than its form would tell is read only with trust."""
    written = json.loads(json.dumps(plain(value)))
    assert written["repr"] == repr(value)
    with pytest.raises(Untrusted, match=r"\$pickle"):
        Reader(trust=False).value([written])
    assert same(value, Reader(trust=True).value(written))
