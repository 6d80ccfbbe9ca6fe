"""What a type checker sees of the public face. Read by mypy only, never run.

Each assignment to a name with a type is a fact that the checker proves; where ``Any``
would satisfy every type, ``assert_type`` tells it apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import Flask

import state_server
from state_server import Client, RemoteError, StateManager, allow, connect, share
from state_server.integrations.flask import StateServer
from state_server.objects import SomeObj

if TYPE_CHECKING:
    from typing_extensions import assert_type


# share() keeps the class what it is, in its three forms ------------------------------


@share
class Plain:
    """Decorated without arguments."""

    def __init__(self, first: int = 0) -> None:
        self.first = first

    def number(self) -> int:
        """Return a number."""
        return self.first


@share(name="Other", args=(1,), exposed=["number"], slow=True, durable=False)
class WithOptions(Plain):
    """Decorated with arguments."""

    def text(self) -> str:
        """Return a text."""
        return ""


class Elsewhere:
    """Shared by a call, because it belongs to somebody else."""

    def number(self) -> int:
        """Return a number."""
        return 1


def shared_classes_stay_themselves() -> None:
    """Each form of ``share`` returns the class, not something like it."""
    called = share(Elsewhere)
    called_with = share(Elsewhere, name="Again", durable="journal")
    assert_type(called, type[Elsewhere])
    assert_type(called_with, type[Elsewhere])
    assert_type(Plain(3), Plain)
    assert_type(WithOptions().text(), str)
    assert_type(Plain().number(), int)


# Clients -----------------------------------------------------------------------------


def handles_have_the_types_of_their_class() -> None:
    """``get(Class)`` is typed as the class; ``get("name")`` may be anything."""
    client = connect()
    assert_type(client, Client)
    assert_type(client.get(SomeObj), SomeObj)
    assert_type(client.get(SomeObj).query(), int)
    assert_type(client.get(SomeObj, "room-7", timeout=2.5).query(), int)
    assert_type(client.get(WithOptions).text(), str)
    assert_type(client.get("SomeObj"), Any)
    assert_type(client.get("SomeObj").query(), Any)
    assert_type(client.ping(), float)
    assert_type(client.status(), dict[str, Any])


def every_way_to_connect() -> None:
    """Addresses, keys and options in each of their spellings."""
    connect("unix:///run/state.sock", b"key")
    connect(("127.0.0.1", 5000), "key", timeout=1, connections_max=4)
    with connect(data_dir="var", admin=True) as client:
        assert_type(client, Client)


def managers_hand_out_typed_handles() -> None:
    """The BaseManager face gives the same types."""
    with StateManager() as manager:
        assert_type(manager.get(SomeObj).query(), int)
        assert_type(manager.get("SomeObj"), Any)


# Flask -------------------------------------------------------------------------------


def the_extension_hands_out_typed_handles(app: Flask) -> None:
    """``StateServer.get`` is typed as ``Client.get``."""
    state = StateServer(app, timeout=2)
    assert_type(state.get(SomeObj).query(), int)
    assert_type(state.get(SomeObj, "room-7", timeout=0.5).query(), int)
    assert_type(state.get("SomeObj"), Any)
    assert_type(state.client, Client)


# Values and errors -------------------------------------------------------------------


@allow
class Sold(Exception):
    """An error that may travel."""

    def __init__(self, left: int) -> None:
        super().__init__(left)
        self.left = left


def allowed_classes_stay_themselves() -> None:
    """``allow`` returns the class that it was given."""
    assert_type(allow(Sold), type[Sold])
    assert_type(Sold(3).left, int)


def errors_have_their_attributes() -> None:
    """What an error carries is known without looking."""
    try:
        connect().ping()
    except RemoteError as error:
        assert_type(error.class_path, "str | None")
        assert_type(error.remote_args, tuple[str, ...])
    except state_server.StateServerError as error:
        assert_type(error.retryable, bool)
        assert_type(error.maybe_executed, bool)
        assert_type(error.status, int)
        assert_type(error.remote_traceback, "str | None")
