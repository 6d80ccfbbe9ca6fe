"""Values that are made plain for a session, however they hang together."""

from __future__ import annotations

from typing import Any

import pytest

from state_server.errors import NotAllowed
from state_server.integrations.plain_values import plain
from state_server.integrations.session_draft import pack


class Token(dict[str, Any]):
    """Is kept as a dictionary."""


def test_shared_tuples_are_replaced_once() -> None:
    """Forty levels of pairs of one tuple are forty steps, and not as many as 2^40."""
    value: Any = (Token(a=1),)
    for _ in range(40):
        value = (value, value)

    made: Any = plain(value)

    assert made[0] is made[1]
    for _ in range(40):
        made = made[0]
    assert made == ({"a": 1},)
    assert type(made[0]) is dict


def test_what_is_nested_too_deeply_is_refused_in_words() -> None:
    """A value that cannot be looked through ends in the error that names its key."""
    deep: Any = []
    for _ in range(3000):
        deep = [deep]

    with pytest.raises(NotAllowed, match="'basket'"):
        pack("basket", [object(), deep])
