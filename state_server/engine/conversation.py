"""What is said on one connection, in order: handshake, first own frame, calls.

Fed with whole frames, it returns a ``Call`` for the host or an ``Answer`` to send. It
knows no sockets; the engine does. A conversation is used by one thread at a time: the
leader, while no call of the connection is in flight.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .. import bodies, failures, handshake, wire
from ..errors import Denied, NotAllowed, StateServerError, TooLarge
from ..host import Form, Host
from ..messages import Call, Lane, Payload
from . import stock


class Answer(NamedTuple):
    """A payload to send, if any, and whether the connection ends with it."""

    payload: Payload | None = None
    close: bool = False
    goodbye: bool = False


class OwnForm:
    """Replies as our own client reads them."""

    def done(self, call: Call, value: object) -> Payload:
        """Return the reply that carries ``value``.

        The memory of its arrays is copied here: the next call may change it before the
        last of this reply has left.
        """
        body, rest = bodies.pack(value, wire.REPLY_HEAD_BYTES)
        if not rest:
            return wire.pack_reply(call.number, False, body)
        return wire.pack_parts(call.number, body, rest)

    def refused(self, call: Call, error: StateServerError) -> bytes:
        """Return the reply that carries what the server itself has to say."""
        body = failures.pack(failures.refusal(error))
        return wire.pack_reply(call.number, True, body)

    def raised(self, call: Call, error: BaseException) -> bytes:
        """Return the reply that carries what the object's own code raised."""
        body = failures.pack(failures.raised(error))
        return wire.pack_reply(call.number, True, body)


OWN_FORM = OwnForm()


@dataclass(frozen=True)
class Manners:
    """What all conversations of one manager share.

    ``control`` answers a call to the manager itself: (verb, args, caller is admin).
    """

    # What shows the values of variables beside a traceback must not show these.
    key: bytes = field(repr=False)
    admin_key: bytes = field(repr=False)
    host: Host
    control: Callable[[str, tuple[Any, ...], bool], object]
    frame_bytes_max: int
    allow_md5: bool = True


class Conversation:
    """The protocol's state on one connection.

    ``destination`` is the connection itself, as the host knows it. ``replaced`` is a
    connection that the client's lane had before; the engine closes it. ``knows_key``:
    the handshake has passed; ``authenticated``: the first frame after it has as well.
    """

    __slots__ = (
        "_destination",
        "_handshake",
        "_manners",
        "authenticated",
        "form",
        "is_admin",
        "knows_key",
        "lane",
        "receive",
        "replaced",
    )

    def __init__(self, manners: Manners, destination: Any) -> None:
        self._manners = manners
        self._destination = destination
        self._handshake = handshake.ServerHandshake(manners.key, manners.allow_md5)
        #: Takes in one frame; what it does depends on what was said before. Raises an
        #: error of the family when the connection has to be closed.
        self.receive: Callable[[Payload], Call | Answer] = self._shake_hands
        self.knows_key = False
        self.authenticated = False
        self.is_admin = False
        self.form: Form = OWN_FORM
        self.lane: Lane | None = None
        self.replaced: Any = None

    def opening(self) -> bytes:
        """Return the payload to send when the connection opens."""
        return self._handshake.first()

    @property
    def frame_bytes_max(self) -> int:
        """Return the size of the largest frame that is taken once the key is known."""
        limit = self._manners.frame_bytes_max
        return limit if self.lane is None else wire.own_frame_bytes_max(limit)

    def too_large(self, error: TooLarge) -> Payload | None:
        """Return the answer to a frame above the limit; ``None`` to close instead.

        Our own client has been told the limit. One of the standard library cannot know
        it, and would learn nothing from a connection that breaks while it sends.
        """
        if not isinstance(self.form, stock.StockForm):
            return None
        return stock.text_reply(
            TooLarge(f"{error} Nothing was run; the limit is frame_bytes_max.")
        )

    def _shake_hands(self, payload: Payload) -> Answer:
        answer, done = self._handshake.receive(payload)
        if done:
            self.knows_key = True
            self.receive = self._hear_first
            return Answer()
        return Answer(answer)

    def _hear_first(self, payload: Payload) -> Call | Answer:
        self.authenticated = True
        if wire.kind_of(payload) == wire.HELLO:
            return self._greet(payload)
        if payload[:1] == bytes((wire.MARK,)):
            raise NotAllowed("An own frame came before the first one.")
        # A bare answer is one of Python 3.10 or 3.11.
        self.form = stock.StockForm(
            self._manners.host.describe, is_old=self._handshake.bare
        )
        return self._hear_stock_verb(payload)

    # Our own clients -----------------------------------------------------------------

    def _greet(self, payload: Payload) -> Answer:
        manners, nonces = self._manners, self._handshake.nonces
        hello = wire.unpack_hello(payload)
        if self._handshake.bare:
            raise Denied("An own frame came after an MD5 answer.")
        if hello.version != wire.PROTOCOL_VERSION:
            raise NotAllowed(
                f"The client speaks version {hello.version} of the protocol, the "
                f"manager version {wire.PROTOCOL_VERSION}. Install the same release."
            )
        if not handshake.proof_holds(manners.key, b"client", nonces, hello.proof):
            raise Denied("The client's proof of the key is wrong.")
        self.is_admin = handshake.proof_holds(
            manners.admin_key, b"admin", nonces, hello.admin_proof
        )
        try:
            self.replaced = manners.host.attach(
                hello.lane, self._destination, is_admin=self.is_admin
            )
        except StateServerError as error:
            body = failures.pack(failures.refusal(error))
            return Answer(wire.pack_reply(0, True, body), close=True)
        self.lane = hello.lane
        self.receive = self._hear_own
        welcome = wire.Welcome(
            manners.host.boot_id,
            os.getpid(),
            handshake.proof(manners.key, b"server", nonces),
            self.is_admin,
            self.frame_bytes_max,
        )
        return Answer(wire.pack_welcome(welcome))

    def _hear_own(self, payload: Payload) -> Call | Answer:
        if payload[:2] == wire.CALL_BEGINS:
            assert self.lane is not None
            call = wire.unpack_call(payload, self.lane)
            return call if call.class_name else self._control(call)
        if wire.kind_of(payload) == wire.GOODBYE:
            return Answer(close=True, goodbye=True)
        raise NotAllowed("A frame of an unknown kind came where a call was expected.")

    def _control(self, call: Call) -> Answer:
        """Answer a call to the manager itself; it costs little and needs no turn."""
        try:
            arguments, _ = bodies.arguments_of(call)
            value = self._manners.control(call.method, arguments, self.is_admin)
            return Answer(OWN_FORM.done(call, value))
        except StateServerError as error:
            return Answer(OWN_FORM.refused(call, error))

    # Stock clients -------------------------------------------------------------------

    def _hear_stock_verb(self, payload: Payload) -> Answer:
        timeout_s = self._manners.host.limits.call_timeout_max_s
        try:
            verb = stock.read_request(payload, timeout_s)
            if isinstance(verb, Call):
                raise NotAllowed(
                    "A stock client calls a method before it was accepted."
                )
            value = stock.answer_verb(verb, self._manners.host.describe)
        except StateServerError as error:
            return Answer(stock.text_reply(error), close=True)
        if verb.name == "accept_connection":
            self.receive = self._hear_stock_call
            return Answer(stock.reply(value))
        return Answer(stock.reply(value), close=True)

    def _hear_stock_call(self, payload: Payload) -> Call | Answer:
        timeout_s = self._manners.host.limits.call_timeout_max_s
        try:
            call = stock.read_request(payload, timeout_s)
            if isinstance(call, Call):
                return call
            raise NotAllowed(f"The verb {call.name!r} is not for this connection.")
        except StateServerError as error:
            return Answer(stock.text_reply(error))
