"""Stand-ins for what surrounds the host: connections, clocks, and who calls."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

from state_server import codec, failures, wire
from state_server.engine.conversation import OWN_FORM
from state_server.host import Form, Host, HostLimits, Resident, Ticket
from state_server.messages import Call, Failure, Lane
from state_server.sharing import Catalogue, SharedClass, describe_class

BOOT_ID = b"the boot of now."
OTHER_BOOT_ID = b"the boot before."

#: How long a test waits for something that other threads do: never, when all is well.
PATIENCE_S = 20.0


class FakeClock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, now_s: float = 1_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


class HookedForm:
    """The form of our own client; ``hook`` is called wherever the host asks it."""

    def __init__(self, hook: Callable[[str], None]) -> None:
        self._hook = hook

    def done(self, call: Call, value: object) -> bytes:
        """Return the reply that carries ``value``."""
        self._hook("encode")
        return OWN_FORM.done(call, value)

    def refused(self, call: Call, error: Any) -> bytes:
        """Return the reply that carries what the server itself has to say."""
        self._hook("encode")
        return OWN_FORM.refused(call, error)

    def raised(self, call: Call, error: BaseException) -> bytes:
        """Return the reply that carries what the object's own code raised."""
        self._hook("encode")
        return OWN_FORM.raised(call, error)


class FakeConnection:
    """A destination that keeps the payloads it is given; any thread may deliver."""

    def __init__(self, hook: Callable[[str], None] | None = None) -> None:
        self.ticket: Ticket | None = None
        self.payloads: list[bytes] = []
        self.lane: Lane | None = None
        self.replied_by: list[str] = []
        self._hook = hook
        self._form: Form = OWN_FORM if hook is None else HookedForm(hook)
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        """Say how much it was given."""
        return f"<FakeConnection with {len(self.payloads)} payloads>"

    @property
    def form(self) -> Form:
        """Return how replies are spelled."""
        return self._form

    def deliver(self, payload: bytes) -> None:
        """Keep one payload."""
        with self._changed:
            self.payloads.append(payload)
            self.replied_by.append(threading.current_thread().name)
            self._changed.notify_all()
        if self._hook is not None:
            self._hook("deliver")

    def wait(self, replies: int = 1) -> Any:
        """Wait until there are so many replies; return what the last of them says."""
        with self._changed:
            came = self._changed.wait_for(
                lambda: len(self.payloads) >= replies, PATIENCE_S
            )
            assert came, f"{len(self.payloads)} of {replies} replies came"
            return heard(self.payloads[replies - 1])

    @property
    def replies(self) -> list[Any]:
        """Return what all payloads say."""
        return [heard(payload) for payload in self.payloads]


def heard(payload: bytes) -> Any:
    """Return the value in a reply of our own form, or the ``Failure``."""
    reply = wire.unpack_reply(payload)
    return failures.unpack(reply.body) if reply.failed else codec.decode(reply.body)


def code_of(outcome: Any) -> str:
    """Return the code of a failure; fail for anything else."""
    assert isinstance(outcome, Failure), outcome
    return outcome.code


def lane_of(minted_s: float = 1_000_000.0, session: bytes = b"s" * 16) -> Lane:
    """Return a lane that nobody else has, minted at ``minted_s``."""
    number = next(_lane_numbers)
    minted = int(minted_s * 1000).to_bytes(8, "big")
    return Lane(session, minted + number.to_bytes(8, "big"))


_lane_numbers = itertools.count(1)


def catalogue_of(*shared: type | SharedClass) -> Catalogue:
    """Return a catalogue of these classes, whose objects live in memory only."""
    catalogue = Catalogue()
    for item in shared:
        record = (
            item
            if isinstance(item, SharedClass)
            else describe_class(item, durable=False)
        )
        catalogue.add(record)
    return catalogue


class BareDesk:
    """A host and its clock; how connections and calls get there."""

    clock: FakeClock
    host: Host

    def attached(self, lane: Lane | None = None) -> FakeConnection:
        """Return a connection with a lane, a new one unless given."""
        connection = FakeConnection()
        connection.lane = lane or lane_of(self.clock())
        self.host.attach(connection.lane, connection)
        return connection

    def submit(
        self,
        connection: FakeConnection,
        target: str,
        *args: Any,
        number: int = 0,
        **options: Any,
    ) -> Resident | None:
        """Give a call in, on the connection's lane when it has a number."""
        lane = connection.lane if number else None
        call = make_call(target, *args, number=number, lane=lane, **options)
        return self.host.submit(call, connection)

    def run(self, resident: Resident | None) -> None:
        """Run one object's calls until none waits."""
        while resident is not None:
            resident = self.host.run(resident)


class Desk(BareDesk):
    """A host with a fake clock, and short words for calling it."""

    def __init__(self, *shared: type | SharedClass, **limits: Any) -> None:
        self.clock = FakeClock()
        self.host = Host(
            catalogue_of(*shared),
            BOOT_ID,
            HostLimits(**limits),
            clock=self.clock,
            wall_clock=self.clock,
        )

    def ask(
        self, connection: FakeConnection, target: str, *args: Any, **options: Any
    ) -> Any:
        """Make one call, run what there is to run, return what was answered."""
        before = len(connection.payloads)
        self.run(self.submit(connection, target, *args, **options))
        self.host.check()
        assert len(connection.payloads) == before + 1, "not answered once"
        return heard(connection.payloads[-1])


def make_call(
    target: str,
    *args: Any,
    number: int = 0,
    lane: Lane | None = None,
    remaining_s: float = 10.0,
    first_boot: bytes = BOOT_ID,
    key: str = "default",
    **kwargs: Any,
) -> Call:
    """Return the call of ``target``, which is ``Class.method``."""
    class_name, _, method = target.partition(".")
    body = codec.encode((args, kwargs)) if args or kwargs else b""
    identity = (lane, number, first_boot)
    return Call(class_name, key, method, body, remaining_s, *identity, len(body))
