"""A limit is logged on its edges: once on entering, once on leaving."""

from __future__ import annotations

import logging

import pytest

from state_server.limits import Edge

log = logging.getLogger("state_server.tests")


@pytest.fixture
def edge() -> Edge:
    """Give a limit of ten."""
    return Edge(log, "things", 10)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged."""
    return [record.getMessage() for record in caplog.records]


ENTERED, LEFT = "Limit reached: 10 things.", "Back below the limit of 10 things."


@pytest.mark.parametrize(
    ("quantity", "expected"), [(0, False), (9, False), (10, True), (11, True)]
)
def test_there_is_room_below_the_limit(
    edge: Edge, quantity: int, expected: bool
) -> None:
    """The limit is the largest quantity: at it there is no room for one more."""
    assert edge.reached(quantity) is expected


def test_entering_is_logged_once(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    """However often the limit is asked about, its reaching is one line."""
    for _ in range(5):
        edge.reached(10)

    assert lines(caplog) == [ENTERED]


def test_leaving_needs_a_tenth_to_spare(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    """A quantity that flutters around the limit is no news; at nine tenths it is."""
    big = Edge(log, "bytes", 100)
    for quantity in (100, 99, 100, 95, 100, 91, 100):
        big.reached(quantity)
        big.left(quantity)
    assert lines(caplog) == ["Limit reached: 100 bytes."]
    big.left(90)
    big.left(80)

    assert lines(caplog)[1:] == ["Back below the limit of 100 bytes."]


def test_asking_with_room_logs_the_leaving(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit whose owner never says ``left`` is left when it is next asked about."""
    edge.reached(10)
    assert not edge.reached(9)
    assert not edge.reached(3)

    assert lines(caplog) == [ENTERED, LEFT]


def test_each_crossing_is_logged(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    """Entering again after leaving is news again."""
    for _ in range(3):
        edge.reached(10)
        edge.left(0)

    assert lines(caplog) == [ENTERED, LEFT] * 3


def test_limit_that_was_never_reached_is_never_left(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is logged of a quantity that stays below."""
    edge.reached(9)
    edge.left(0)

    assert lines(caplog) == []


def test_limit_of_one_can_be_left(caplog: pytest.LogCaptureFixture) -> None:
    """A tenth to spare is not more than there is: a limit of one is left at zero."""
    edge = Edge(log, "thing", 1)
    assert edge.reached(1)
    edge.left(1)
    assert len(lines(caplog)) == 1
    assert not edge.reached(0)

    assert len(lines(caplog)) == 2
