"""The lines of the log: one for each record of ours, and so many of one kind."""

from __future__ import annotations

import logging

import pytest

from state_server.log_lines import LineLimit, OneLine

from .fakes import FakeClock


def line(name: str = "state_server.host", place: int = 1) -> logging.LogRecord:
    """Return one line of the log."""
    return logging.LogRecord(name, logging.INFO, "host.py", place, "%s", ("x",), None)


def test_lines_of_one_kind_are_bounded_in_each_second() -> None:
    """So many are written, the last of them says so, and the next second is new."""
    clock = FakeClock()
    limit = LineLimit(3, clock)
    for _ in range(2):
        lines = [line() for _ in range(10)]
        passed = [each.getMessage() for each in lines if limit.filter(each)]
        assert passed[:2] == ["x", "x"]
        assert len(passed) == 3
        assert passed[2].startswith("x (More lines of this kind are left out")
        clock.advance(1)


def test_lines_of_other_kinds_are_written_all_the_same() -> None:
    """A flood of one kind hides no other one, and nothing of a shared class."""
    limit = LineLimit(3, FakeClock())
    for _ in range(10):
        limit.filter(line())

    assert not limit.filter(line())
    assert limit.filter(line(place=2))
    assert limit.filter(line("state_server.engine"))
    assert all(limit.filter(line("shop")) for _ in range(10))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nWARNING forged", "a\\nWARNING forged"),
        ("a\r\x1b[2Jb", "a\\r\\x1b[2Jb"),
        ("a\x85b\u2028c", "a\\x85b\\u2028c"),
        ("Grüße, \\n stays", "Grüße, \\n stays"),
    ],
)
def test_a_record_of_ours_is_one_line(text: str, shown: str) -> None:
    """A key with a line break in it writes no line that nobody logged."""
    record = line()
    record.args = (text,)
    assert (
        OneLine("%(name)s: %(message)s").format(record) == f"state_server.host: {shown}"
    )


def test_tracebacks_and_lines_of_others_are_left_as_they_are() -> None:
    """What follows a record of ours, and what a shared class logs, may have many."""
    theirs = line("shop")
    theirs.args = ("a\nb",)
    assert OneLine("%(message)s").format(theirs) == "a\nb"
    ours = line()
    try:
        raise ValueError
    except ValueError as error:
        ours.exc_info = (ValueError, error, error.__traceback__)
    assert len(OneLine("%(message)s").format(ours).splitlines()) > 2
