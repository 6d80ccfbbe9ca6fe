"""Large bytes travel beside their pickle: the same values come out, copied once."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from state_server import bodies, codec
from state_server.codec import contexts
from state_server.errors import NotAllowed, TooLarge

LARGE = bytes(range(256)) * 256
OTHER = b"\xff" * len(LARGE)
SMALL = b"small"


def through(value: object) -> Any:
    """Return what comes out where a value went in, by way of one body."""
    data, rest = bodies.pack(value, 0)
    return bodies.unpack(b"".join((data, *rest)))


@pytest.mark.parametrize(
    ("value", "beside"),
    [
        (LARGE, 1),
        (((LARGE,), {}), 1),
        ((("key", LARGE, None), {"other": OTHER, "small": SMALL}), 2),
        ([LARGE, SMALL, OTHER], 2),
        ({"a": LARGE, "b": [1, (OTHER,)], LARGE: 5}, 2),
        # Too deep, and too many: these stay within.
        ([[[[LARGE]]]], 0),
        ([LARGE] * 9, 0),
        ([LARGE[:-1]], 0),
        (bytearray(LARGE), 0),
    ],
)
def test_large_bytes_lie_beside_the_pickle(value: Any, beside: int) -> None:
    """Those at the top of a value do, and all come back equal and of their types."""
    _, buffers = codec.encode_with_buffers(value)
    assert len(buffers) == beside
    found = through(value)
    assert found == value
    assert type(found) is type(value)


def test_large_bytes_are_not_copied_to_be_sent() -> None:
    """What lies beside the pickle is the memory of the value itself."""
    _, (buffer,) = codec.encode_with_buffers(((LARGE,), {}))
    assert buffer.obj is LARGE


def test_containers_that_are_one_stay_one() -> None:
    """A list that appears twice does so where it arrives as well."""
    shared = [LARGE]
    first, second = through(((shared, shared), {}))[0]
    assert first is second
    assert first == shared


def test_bytes_that_are_one_travel_once() -> None:
    """However often the same bytes appear, their memory is sent one time."""
    value = [LARGE, {"again": LARGE}, (LARGE, OTHER)]
    _, buffers = codec.encode_with_buffers(value)
    assert len(buffers) == 2
    found = through(value)
    assert found == value
    assert found[0] is found[1]["again"] is found[2][0]


def test_a_container_that_holds_itself_is_left_as_it_is() -> None:
    """Its bytes travel within; where it arrives, it holds itself."""
    value: list[Any] = [LARGE]
    value.append(value)
    found = through(value)
    assert found[0] == LARGE
    assert found[1] is found


def test_no_value_has_more_envelopes_than_there_is_room_for() -> None:
    """The first of many large bytes lie beside the pickle, the others within."""
    value = [[bytes([i, j]) + LARGE for i in range(8)] for j in range(8)]
    _, buffers = codec.encode_with_buffers(value)
    assert len(buffers) == contexts.ENVELOPES_MAX
    assert through(value) == value


def test_a_stock_client_is_sent_plain_pickles() -> None:
    """One without this package reads large bytes as ever."""
    data = codec.encode([LARGE], stock=True)
    assert pickle.loads(data) == [LARGE]


NAME = b"\x80\x04\x8c\x18state_server.large_bytes\x8c\x0blarge_bytes\x93"


@pytest.mark.parametrize(
    ("data", "buffers"),
    [
        (NAME + b")R.", []),
        (NAME + b")R.", [LARGE, OTHER]),
        (NAME + b"K\x05\x85R.", [LARGE]),
        (NAME + b".", [LARGE]),
        (NAME + b")\x81.", [LARGE]),
    ],
    ids=["no buffer", "one too many", "with a part", "the name alone", "an instance"],
)
def test_a_pickle_that_does_not_fit_its_buffers_is_refused(
    data: bytes, buffers: list[bytes]
) -> None:
    """Whatever the pickle says of large bytes, nothing but bytes comes of it."""
    with pytest.raises(NotAllowed):
        codec.decode(data, buffers=buffers)


def test_large_bytes_count_towards_the_limit() -> None:
    """A value is not larger for what travels beside it."""
    limits = codec.DEFAULT_LIMITS._replace(expanded_bytes_max=3 * len(LARGE))
    with pytest.raises(TooLarge, match="expanded_bytes_max"):
        codec.encode_with_buffers([LARGE] * 3, limits)
    data, buffers = codec.encode_with_buffers([LARGE] * 3)
    with pytest.raises(TooLarge, match="expanded_bytes_max"):
        codec.decode(data, limits, buffers=buffers)
