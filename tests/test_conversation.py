"""What is said on one connection, frame by frame: greeting, calls, control, stock."""

from __future__ import annotations

import hmac
import os
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest

from state_server import codec, handshake, wire
from state_server.engine.conversation import Answer, Conversation, Manners
from state_server.errors import (
    Denied,
    NotAllowed,
    NotShared,
    Refused,
    StateServerError,
)
from state_server.messages import Call, Lane, Reference

from .fakes import BOOT_ID, Desk, FakeConnection, code_of, heard, lane_of

KEY = b"the key of both"
ADMIN_KEY = b"the key of the owner"


class Room:
    """What a shared class of the tests offers."""

    def say(self, word: str = "nothing") -> str:
        """Return what was said."""
        return f"said {word}"

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


class Line:
    """One connection's conversation, and the client's side of its handshake."""

    def __init__(self, desk: Desk | None = None, **manners: Any) -> None:
        self.desk = desk or Desk(Room)
        self.asked: list[tuple[str, tuple[Any, ...], bool]] = []
        self.destination = FakeConnection()
        settings: dict[str, Any] = {
            "key": KEY,
            "admin_key": ADMIN_KEY,
            "host": self.desk.host,
            "control": self.control,
            "frame_bytes_max": 1024 * 1024,
            **manners,
        }
        self.conversation = Conversation(Manners(**settings), self.destination)
        self.client = handshake.ClientHandshake(KEY)
        self.lane = lane_of()

    def control(self, verb: str, args: tuple[Any, ...], is_admin: bool) -> object:
        """Answer a call to the manager itself."""
        self.asked.append((verb, args, is_admin))
        if verb == "refuse":
            raise Denied("not you")
        if verb == "odd":
            return object()
        return f"{verb} was done"

    def say(self, payload: bytes) -> Call | Answer:
        """Say one frame."""
        return self.conversation.receive(payload)

    def shake_hands(self) -> None:
        """Do what every client of ours does first."""
        waiting = [self.conversation.opening()]
        while waiting:
            answers, _ = self.client.receive(waiting.pop())
            for answer in answers:
                reply = self.say(answer)
                assert isinstance(reply, Answer)
                assert not reply.close
                if reply.payload is not None:
                    waiting.append(reply.payload)
        assert self.conversation.knows_key

    def shake_hands_as_of_old(self) -> None:
        """Do what a stock client of 3.10 or 3.11 does first."""
        message = self.conversation.opening().removeprefix(handshake.CHALLENGE)
        self.say(hmac.new(KEY, message, "md5").digest())
        self.say(handshake.CHALLENGE + os.urandom(20))
        self.say(handshake.ACCEPTED)
        assert self.conversation.knows_key

    def hello(self, **changes: Any) -> bytes:
        """Return the first own frame, proofs and all."""
        nonces = self.client.nonces
        hello = wire.Hello(
            wire.PROTOCOL_VERSION,
            self.lane,
            handshake.proof(KEY, b"client", nonces),
            bytes(32),
        )
        return wire.pack_hello(hello._replace(**changes))

    def greet(self, **changes: Any) -> wire.Welcome:
        """Shake hands and say hello; return the welcome."""
        self.shake_hands()
        answer = self.say(self.hello(**changes))
        assert isinstance(answer, Answer)
        assert answer.payload is not None
        assert not answer.close
        return wire.unpack_welcome(answer.payload)

    def admin_proof(self, key: bytes = ADMIN_KEY) -> bytes:
        """Return the proof of the admin key for this connection."""
        return handshake.proof(key, b"admin", self.client.nonces)

    def call(self, target: tuple[str, str, str], *args: Any, number: int = 1) -> bytes:
        """Return the frame of a call."""
        body = codec.encode((args, {})) if args else b""
        named = wire.pack_target(*target)
        return wire.pack_call(number, 5.0, BOOT_ID, named, body)


def stock_frame(identity: Any, method: Any, *args: Any, **kwargs: Any) -> bytes:
    """Return the frame of a stock client's request."""
    return codec.encode((identity, method, args, kwargs))


def stock_reply(answer: Call | Answer) -> tuple[str, Any]:
    """Return the kind and the result in an answer to a stock client."""
    assert isinstance(answer, Answer)
    assert answer.payload is not None
    kind, result = codec.decode(answer.payload)
    return kind, result


# Greeting ----------------------------------------------------------------------------


def test_greeting_ends_in_a_proven_welcome() -> None:
    """The welcome names boot, process and the largest frame, and proves the key."""
    line = Line()
    welcome = line.greet()

    assert welcome.boot_id == BOOT_ID
    assert welcome.process_id == os.getpid()
    assert welcome.frame_bytes_max == 1024 * 1024
    assert handshake.proof_holds(KEY, b"server", line.client.nonces, welcome.proof)
    assert not welcome.is_admin
    assert line.conversation.lane == line.lane
    assert line.conversation.authenticated
    assert line.desk.host.status()["lanes"] == 1


def test_key_is_known_before_anything_else_is() -> None:
    """Between handshake and first frame the connection knows the key, no more."""
    line = Line()
    assert not line.conversation.knows_key
    line.shake_hands()

    assert line.conversation.knows_key
    assert not line.conversation.authenticated
    assert line.desk.host.status()["lanes"] == 0


def test_keys_are_not_shown() -> None:
    """What prints local variables beside a traceback prints no key."""
    manners = Manners(b"hush", b"quiet", Desk(Room).host, lambda *_: None, 2**20)
    assert "frame_bytes_max" in repr(manners)
    assert "hush" not in repr(manners)
    assert "quiet" not in repr(manners)


def test_wrong_key_ends_the_conversation() -> None:
    """A wrong answer to the challenge is Denied."""
    line = Line()
    answers, _ = handshake.ClientHandshake(b"another").receive(
        line.conversation.opening()
    )

    with pytest.raises(Denied):
        line.say(answers[0])
    assert not line.conversation.knows_key


@pytest.mark.parametrize(
    "proof",
    [
        lambda line: bytes(32),
        lambda line: handshake.proof(KEY, b"server", line.client.nonces),
        lambda line: handshake.proof(KEY, b"client", line.client.nonces[::-1]),
        lambda line: handshake.proof(b"another", b"client", line.client.nonces),
    ],
)
def test_hello_without_its_proof_is_denied(proof: Callable[[Line], bytes]) -> None:
    """Only the proof of this role over these nonces lets a client in."""
    line = Line()
    line.shake_hands()

    with pytest.raises(Denied, match="proof of the key is wrong"):
        line.say(line.hello(proof=proof(line)))
    assert line.desk.host.status()["lanes"] == 0


def test_proof_of_another_connection_is_denied() -> None:
    """A hello that was overheard is of no use on another connection."""
    overheard, line = Line(), Line()
    overheard.shake_hands()
    line.shake_hands()

    with pytest.raises(Denied):
        line.say(overheard.hello())


def test_own_frames_are_denied_after_an_md5_answer() -> None:
    """Who showed the key by MD5 only is a stock client, whatever it sends."""
    line = Line()
    line.shake_hands_as_of_old()
    nonces = line.conversation._handshake.nonces

    with pytest.raises(Denied, match="MD5"):
        line.say(line.hello(proof=handshake.proof(KEY, b"client", nonces)))
    assert line.desk.host.status()["lanes"] == 0


def test_other_version_of_the_protocol_is_named() -> None:
    """Client and manager of different protocols learn both versions."""
    line = Line()
    line.shake_hands()

    with pytest.raises(NotAllowed, match=r"version 9 .* version 1\."):
        line.say(line.hello(version=9))


@pytest.mark.parametrize("size", [2, 10, 99])
def test_hello_of_another_size_is_refused(size: int) -> None:
    """A hello that is cut off is not allowed."""
    line = Line()
    line.shake_hands()

    with pytest.raises(NotAllowed):
        line.say(line.hello()[:size])


@pytest.mark.parametrize("kind", [0, wire.WELCOME, wire.CALL, wire.GOODBYE, 99])
def test_own_frame_before_hello_is_refused(kind: int) -> None:
    """The first own frame is a hello."""
    line = Line()
    line.shake_hands()

    with pytest.raises(NotAllowed, match="before the first one"):
        line.say(bytes((wire.MARK, kind)) + bytes(60))


def test_lane_that_cannot_be_taken_is_refused_in_words() -> None:
    """A lane that may be forgotten, or is too many, is answered, then closed."""
    for line in (Line(Desk(Room, lanes_max=1)), Line()):
        if line.desk.host.limits.lanes_max == 1:
            line.desk.attached()
            expected = "Overloaded"
        else:
            line.lane = lane_of(line.desk.clock() - 1000)
            expected = "Unanswered"
        line.shake_hands()
        answer = line.say(line.hello())
        assert isinstance(answer, Answer)
        assert answer.payload is not None

        assert answer.close
        assert code_of(heard(answer.payload)) == expected
        assert line.conversation.lane is None


def test_replaced_connection_is_given_to_the_engine() -> None:
    """A second connection of a lane says which one it takes the place of."""
    first = Line()
    first.greet()
    second = Line(first.desk)
    second.lane = first.lane
    second.greet()

    assert first.conversation.replaced is None
    assert second.conversation.replaced is first.destination


# Our own calls -----------------------------------------------------------------------


def test_call_carries_the_lane_of_the_connection() -> None:
    """A call is read with the lane that the connection was greeted with."""
    line = Line()
    line.greet()
    call = line.say(line.call(("Room", "k", "say"), "hi", number=7))

    assert isinstance(call, Call)
    assert (call.name, call.method, call.number) == ("Room/k", "say", 7)
    assert call.lane == line.lane
    line.desk.run(line.desk.host.submit(call, line.destination))
    assert line.destination.replies == ["said hi"]


def test_goodbye_ends_the_lane() -> None:
    """After a goodbye the connection is closed and its lane forgotten."""
    line = Line()
    line.greet()

    assert line.say(bytes((wire.MARK, wire.GOODBYE))) == Answer(
        close=True, goodbye=True
    )


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x80\x04N.",
        bytes((wire.MARK, wire.HELLO)) + bytes(98),
        bytes((wire.MARK, wire.DONE)) + bytes(8),
        bytes((wire.MARK, 77)),
        bytes((wire.MARK, wire.CALL)) + bytes(3),
        stock_frame("Room/default", "say"),
    ],
)
def test_other_frames_are_refused_after_the_greeting(payload: bytes) -> None:
    """A connection of ours carries calls and a goodbye, nothing else."""
    line = Line()
    line.greet()

    with pytest.raises(NotAllowed):
        line.say(payload)


# Control -----------------------------------------------------------------------------


def test_call_without_a_class_is_for_the_manager() -> None:
    """It is answered at once, with its own number, and takes no turn."""
    line = Line()
    line.greet()
    answer = line.say(line.call(("", "", "ping"), 1, 2, number=4))
    assert isinstance(answer, Answer)
    assert answer.payload is not None

    assert heard(answer.payload) == "ping was done"
    assert wire.unpack_reply(answer.payload).number == 4
    assert line.asked == [("ping", (1, 2), False)]
    assert line.desk.host.status()["calls"] == 0


@pytest.mark.parametrize(
    ("verb", "code"), [("refuse", "Denied"), ("odd", "NotAllowed")]
)
def test_refused_verb_is_answered(verb: str, code: str) -> None:
    """What the manager refuses, or cannot say, is a failure, not an end."""
    line = Line()
    line.greet()
    answer = line.say(line.call(("", "", verb)))
    assert isinstance(answer, Answer)
    assert answer.payload is not None

    assert not answer.close
    assert code_of(heard(answer.payload)) == code


def test_verb_with_unreadable_arguments_is_answered() -> None:
    """Arguments that may not travel are refused to the caller."""
    line = Line()
    line.greet()
    frame = line.call(("", "", "ping")) + b"no pickle"
    answer = line.say(frame)
    assert isinstance(answer, Answer)
    assert answer.payload is not None

    assert code_of(heard(answer.payload)) == "NotAllowed"
    assert line.asked == []


def test_admin_key_is_shown_by_its_own_proof() -> None:
    """Who proves the admin key is admin; who proves something else is not."""
    for key, expected in ((ADMIN_KEY, True), (KEY, False), (b"guess", False)):
        line = Line()
        line.shake_hands()
        answer = line.say(line.hello(admin_proof=line.admin_proof(key)))
        assert isinstance(answer, Answer)
        assert answer.payload is not None
        assert wire.unpack_welcome(answer.payload).is_admin == expected
        line.say(line.call(("", "", "ping")))
        assert line.asked == [("ping", (), expected)]


def test_admin_key_does_not_stand_for_the_key() -> None:
    """The admin proof alone opens nothing."""
    line = Line()
    line.shake_hands()
    proof = handshake.proof(ADMIN_KEY, b"client", line.client.nonces)

    with pytest.raises(Denied):
        line.say(line.hello(proof=proof, admin_proof=line.admin_proof()))


# Stock clients -----------------------------------------------------------------------


@pytest.fixture(params=["md5", "sha256"])
def stock_line(request: pytest.FixtureRequest) -> Line:
    """Return a connection of a stock client, after its handshake."""
    line = Line()
    if request.param == "md5":
        line.shake_hands_as_of_old()
    else:
        line.shake_hands()
    return line


@pytest.mark.parametrize("verb", ["dummy", "incref", "decref"])
def test_stock_verbs_that_mean_nothing_here_are_accepted(
    stock_line: Line, verb: str
) -> None:
    """Pings and reference counts are answered with nothing; the connection ends."""
    answer = stock_line.say(stock_frame(None, verb, "Room/default"))

    assert stock_reply(answer) == ("#RETURN", None)
    assert isinstance(answer, Answer)
    assert answer.close


@pytest.mark.parametrize(
    ("args", "identity"), [((), "Room/default"), (("k/1",), "Room/k/1")]
)
def test_create_names_an_object_and_makes_none(
    stock_line: Line, args: tuple[str, ...], identity: str
) -> None:
    """The id of an object is its name, and its methods are those of the contract."""
    answer = stock_line.say(stock_frame(None, "create", "Room", *args))

    assert stock_reply(answer) == (
        "#RETURN",
        (identity, ("__iter__", "__len__", "say")),
    )
    assert stock_line.desk.host.status()["objects"] == 0


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (stock_frame(None, "create", "Nobody"), "No class is shared as 'Nobody'"),
        (stock_frame(None, "create", "Room", 1, 2), "at most a key"),
        (stock_frame(None, "create", "Room", param=1), "keywords"),
        (stock_frame(None, "create", "Room", 1), "both text"),
        (stock_frame(None, "create"), "takes a class"),
        (stock_frame(None, "shutdown"), "for the operator"),
        (stock_frame(None, "debug_info"), "for the operator"),
        (stock_frame(None, "number_of_objects"), "for the operator"),
        (stock_frame(None, "serve_client"), "no verb"),
        (stock_frame(None, "__class__"), "no verb"),
        (stock_frame(None, "get_methods", 3), "token"),
        (stock_frame(None, "get_methods"), "token"),
        (stock_frame("Room/default", "say"), "before it was accepted"),
        (codec.encode((1, 2)), "tuple of four"),
        (codec.encode([None, "create", (), {}]), "tuple of four"),
        (codec.encode((None, 5, (), {})), "names its method"),
        (codec.encode((None, "create", "Room", {})), "in a tuple"),
        (codec.encode((5, "say", (), {})), "by text"),
        (stock_frame("Room/\ud800", "say"), "no text"),
        (b"no pickle", "NotAllowed"),
        (b"", "NotAllowed"),
    ],
)
def test_stock_requests_that_are_refused_are_answered_in_text(
    stock_line: Line, frame: bytes, reason: str
) -> None:
    """A refusal reaches a stock client as text that it can show; the line ends."""
    answer = stock_line.say(frame)
    kind, text = stock_reply(answer)

    assert kind == "#TRACEBACK"
    assert reason in text
    assert isinstance(answer, Answer)
    assert answer.close


def accepted(line: Line) -> Line:
    """Say what a stock client's thread says first on its connection."""
    answer = line.say(stock_frame(None, "accept_connection", "Thread-1"))
    assert stock_reply(answer) == ("#RETURN", None)
    assert isinstance(answer, Answer)
    assert not answer.close
    return line


def test_stock_call_is_a_call_without_a_lane(stock_line: Line) -> None:
    """It runs at most once: nothing identifies it, its deadline is the longest."""
    line = accepted(stock_line)
    call = line.say(stock_frame("Room/a/b", "say", "hi"))

    assert isinstance(call, Call)
    assert (call.class_name, call.key, call.method) == ("Room", "a/b", "say")
    assert (call.lane, call.number) == (None, 0)
    assert call.remaining_s == line.desk.host.limits.call_timeout_max_s


def test_calls_say_how_much_memory_they_hold(stock_line: Line) -> None:
    """A call of ours holds its frame; a stock one its values, which may be larger."""
    own = Line()
    own.greet()
    frame = own.call(("Room", "k", "say"), "x" * 1000)
    call = own.say(frame)
    many: list[object] = [[] for _ in range(10_000)]
    stock_call = accepted(stock_line).say(stock_frame("Room/default", "say", many))

    assert isinstance(call, Call)
    assert call.held_bytes == len(frame)
    assert isinstance(stock_call, Call)
    assert stock_call.held_bytes >= 10_000 * sys.getsizeof([])


def test_replies_to_stock_calls_are_spelled_for_stock_clients(
    stock_line: Line,
) -> None:
    """A value comes as ``#RETURN``, an error as itself or as its traceback."""
    line = accepted(stock_line)
    form = line.conversation.form
    call = line.say(stock_frame("Room/default", "say"))
    assert isinstance(call, Call)

    assert codec.decode(form.done(call, 5)) == ("#RETURN", 5)
    kind, error = codec.decode(form.raised(call, KeyError("k")))
    assert (kind, type(error), error.args) == ("#ERROR", KeyError, ("k",))
    kind, text = codec.decode(form.raised(call, Odd("odd")))
    assert kind == "#TRACEBACK"
    assert "Odd: odd" in text
    kind, text = codec.decode(form.raised(call, SystemExit(3)))
    assert kind == "#TRACEBACK"
    kind, text = codec.decode(form.refused(call, Refused("no")))
    assert (kind, text.strip()) == ("#TRACEBACK", "state_server.errors.Refused: no")


@pytest.mark.parametrize("count", [0, 3, 50_000])
def test_stock_clients_get_iterators_over_snapshots(
    stock_line: Line, count: int
) -> None:
    """What ``__iter__`` of a stock proxy returns is handed to ``iter`` as it is."""
    line = accepted(stock_line)
    call = line.say(stock_frame("Room/default", "__iter__"))
    assert isinstance(call, Call)
    items = [f"item {number}" for number in range(count)]

    reply = bytes(line.conversation.form.done(call, items))
    # By the C unpickler, and by the one in Python, which reads frames by itself.
    for load in (pickle.loads, pickle._loads):  # type: ignore[attr-defined]
        kind, iterator = load(reply)
        assert kind == "#RETURN"
        assert type(iterator) is type(iter([]))
        assert list(iterator) == items


def test_stock_clients_get_a_proxy_of_an_object_that_is_returned(
    stock_line: Line,
) -> None:
    """They could not read a handle; one of a class that is not shared is refused."""
    line = accepted(stock_line)
    call = line.say(stock_frame("Room/default", "say"))
    assert isinstance(call, Call)
    form = line.conversation.form

    kind, (exposed, token) = pickle.loads(
        form.done(call, Reference("Room", "k/\ud800"))
    )
    assert (kind, exposed) == ("#PROXY", ("__iter__", "__len__", "say"))
    assert (token.typeid, token.id) == ("Room", "Room/k/\ud800")
    with pytest.raises(NotAllowed, match="as a result only"):
        form.done(call, [Reference("Room", "k")])
    with pytest.raises(NotShared):
        form.done(call, Reference("Nobody", "k"))


@pytest.mark.parametrize(
    ("identity", "method"),
    [
        ("x" * 256, "say"),
        ("Room/" + "x" * 65_536, "say"),
        ("Room/default", "x" * 256),
    ],
)
def test_stock_names_are_no_longer_than_those_of_our_own(
    stock_line: Line, identity: str, method: str
) -> None:
    """Names that get into errors, tables and the log are bounded at the door."""
    answer = accepted(stock_line).say(stock_frame(identity, method))
    kind, text = stock_reply(answer)

    assert kind == "#TRACEBACK"
    assert "TooLarge" in text
    assert len(text) < 500


@pytest.mark.parametrize("verb", ["create", "x" * 1000])
def test_stock_verbs_with_long_names_get_short_answers(
    stock_line: Line, verb: str
) -> None:
    """A long name of a class or a verb is not sent back in the refusal."""
    _, text = stock_reply(stock_line.say(stock_frame(None, verb, "x" * 1000)))

    assert "TooLarge" in text
    assert len(text) < 500


class Odd(Exception):
    """An error that may not travel."""


@pytest.mark.parametrize(
    "frame",
    [stock_frame(None, "create", "Room"), b"no pickle", codec.encode(5)],
)
def test_what_is_no_call_is_refused_and_the_stock_line_goes_on(
    stock_line: Line, frame: bytes
) -> None:
    """On a connection for calls, other requests are answered, and calls go on."""
    line = accepted(stock_line)
    answer = line.say(frame)

    assert stock_reply(answer)[0] == "#TRACEBACK"
    assert isinstance(answer, Answer)
    assert not answer.close
    assert isinstance(line.say(stock_frame("Room/default", "say")), Call)


def test_own_frames_on_a_stock_line_are_refused(stock_line: Line) -> None:
    """A connection that began as a stock one stays one."""
    line = accepted(stock_line)
    answer = line.say(line.call(("Room", "k", "say")))

    assert stock_reply(answer)[0] == "#TRACEBACK"


def test_whatever_bytes_come_the_errors_are_of_the_family() -> None:
    """A frame at any step gives an answer, a call, or an error of the family."""
    frames = [b"", b"\0", b"\xf5", b"\xf5\x01", b"#CHALLENGE#", bytes(16), bytes(256)]
    frames += [b"\x80\x04.", b"\x80\x05K", b"cos\nsystem\n(S'true'\ntR."]
    starts: list[Callable[[Line], object]] = [
        lambda line: None,
        lambda line: line.shake_hands(),
        lambda line: line.greet(),
        lambda line: line.shake_hands_as_of_old(),
        lambda line: (line.shake_hands(), accepted(line)),
    ]
    for start in starts:
        for frame in frames:
            line = Line()
            start(line)
            try:
                answer = line.say(frame)
            except StateServerError:
                continue
            assert isinstance(answer, (Answer, Call))


def test_lanes_are_bound_to_their_session() -> None:
    """A client cannot greet with the lane of another's session."""
    first = Line()
    first.greet()
    thief = Line(first.desk)
    thief.lane = Lane(b"t" * 16, first.lane.lane)
    thief.shake_hands()
    answer = thief.say(thief.hello())
    assert isinstance(answer, Answer)
    assert answer.payload is not None

    assert code_of(heard(answer.payload)) == "Stale"
    assert answer.close
    assert thief.conversation.replaced is None
