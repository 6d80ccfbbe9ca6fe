"""Addresses in every spelling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from state_server import addresses
from state_server.addresses import Address
from state_server.errors import ConfigError


@pytest.mark.parametrize(
    ("given_address", "expected", "url"),
    [
        ("unix:///run/s.sock", Address(path="/run/s.sock"), "unix:///run/s.sock"),
        ("unix://run/s.sock", Address(path="run/s.sock"), "unix://run/s.sock"),
        ("unix:///a%20b", Address(path="/a b"), None),
        ("/50%/a%20b", Address(path="/50%/a%20b"), "unix:///50%25/a%2520b"),
        ("/run/s.sock", Address(path="/run/s.sock"), "unix:///run/s.sock"),
        (Path("/run/s.sock"), Address(path="/run/s.sock"), "unix:///run/s.sock"),
        ("s.sock", Address(path="s.sock"), "unix://s.sock"),
        ("tcp://h:1", Address(host="h", port=1), "tcp://h:1"),
        ("tcp://h:1/", Address(host="h", port=1), "tcp://h:1"),
        ("tcp://127.0.0.1:0", Address(host="127.0.0.1"), "tcp://127.0.0.1:0"),
        ("tcp://:80", Address(port=80), "tcp://:80"),
        ("tcp://h:65535", Address(host="h", port=65535), "tcp://h:65535"),
        ("tcp://[::1]:5", Address(host="::1", port=5), "tcp://[::1]:5"),
        ("tcp://[fe80::1%eth0]:5", Address(host="fe80::1%eth0", port=5), None),
        (("h", 7), Address(host="h", port=7), "tcp://h:7"),
        (("::1", 7), Address(host="::1", port=7), "tcp://[::1]:7"),
        (("", 0), Address(), "tcp://:0"),
    ],
)
def test_addresses_are_read_and_written(
    given_address: Any, expected: Address, url: str | None
) -> None:
    """Each spelling means one address; its URL means the same address again."""
    address = addresses.parse_address(given_address)

    assert address == expected
    if url is not None:
        assert str(address) == url
    assert addresses.parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("given_address", "reason"),
    [
        ("", "needs a path"),
        ("unix://", "needs a path"),
        ("http://h:1", "scheme 'http'"),
        ("TCP://h:1", "scheme 'TCP'"),
        ("127.0.0.1:7995", "write tcp://127.0.0.1:7995"),
        ("localhost:80", "write tcp://localhost:80"),
        ("unix:/run/s.sock", "write unix:///path"),
        ("tcp:localhost:80", "write unix:///path"),
        ("[::1]:5", "write tcp://"),
        ("tcp://h", "tcp://host:port"),
        ("tcp://h:", "tcp://host:port"),
        ("tcp://h:65536", "tcp://host:port"),
        ("tcp://h:99999", "tcp://host:port"),
        ("tcp://h:123456", "tcp://host:port"),
        ("tcp://h:-1", "tcp://host:port"),
        ("tcp://h:x", "tcp://host:port"),
        ("tcp://::1:5", "tcp://host:port"),
        ("tcp://[::1]", "tcp://host:port"),
        ("tcp://user@h/path:5", "tcp://host:port"),
        ("/" + "x" * 120, "shorter data folder"),
        ("unix:///" + "ж" * 60, "shorter data folder"),
        ("unix://%00state-server", "zero byte"),
        (("h", 65536), "65536"),
        (("h", -1), "-1"),
        (("h", "80"), "'80'"),
        ((80, "h"), "host"),
        (("h",), "host"),
        (("h", 1, 2, 3), "host"),
    ],
)
def test_addresses_that_do_not_fit_are_config_errors(
    given_address: Any, reason: str
) -> None:
    """What is wrong with an address is said, with the address itself."""
    with pytest.raises(ConfigError, match=reason):
        addresses.parse_address(given_address)


def test_longest_path_is_taken() -> None:
    """A path of exactly the system's limit is an address."""
    path = "/" + "x" * (addresses._PATH_BYTES_MAX - 1)

    assert addresses.parse_address(path).path == path
    with pytest.raises(ConfigError, match="at most"):
        addresses.parse_address(path + "x")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("", True),
        ("*", True),
        ("0.0.0.0", True),
        ("::", True),
        ("0", True),
        ("0.0", True),
        ("0x0", True),
        ("000.000.000.000", True),
        ("::0", True),
        ("0:0:0:0:0:0:0:0", True),
        ("::ffff:0.0.0.0", True),
        ("::FFFF:0:0", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("10.0.0.0", False),
        ("localhost", False),
        ("db", False),
    ],
)
def test_wildcards_are_known_in_every_spelling(host: str, expected: bool) -> None:
    """An address that any machine can reach is recognised, however it is spelled."""
    assert Address(host=host, port=1).is_wildcard == expected


def test_paths_are_never_wildcards() -> None:
    """A Unix socket is on this machine."""
    assert not Address(path="0.0.0.0").is_wildcard


def test_stock_spelling_is_a_path_or_a_pair() -> None:
    """The standard library takes a path or ``(host, port)``."""
    assert addresses.parse_address("unix:///run/s").stock == "/run/s"
    assert addresses.parse_address("tcp://[::1]:5").stock == ("::1", 5)
