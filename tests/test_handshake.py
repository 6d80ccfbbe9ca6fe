"""The handshake and the proofs as bytes, without a socket."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections import deque
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing import connection as stock_connection
from typing import Any

import pytest

from state_server import handshake
from state_server.errors import Denied, StateServerError
from state_server.handshake import ClientHandshake, ServerHandshake

KEY = b"the key of both"


class Wire:
    """Stands between a stock peer and our side of the handshake: no socket, no thread.

    The stock functions send and receive on it; what they send is given to our side at
    once, and what that answers waits to be received.
    """

    def __init__(self, ours: Callable[[bytes], list[bytes]], *opening: bytes) -> None:
        self.ours = ours
        self.waiting = deque(opening)
        self.error: StateServerError | None = None

    def send_bytes(self, payload: bytes) -> None:
        """Give one payload to our side."""
        try:
            self.waiting.extend(self.ours(payload))
        except StateServerError as error:
            self.error = self.error or error
            self.waiting.append(handshake.REJECTED)

    def recv_bytes(self, _: int = 0) -> bytes:
        """Return the next payload of our side."""
        if not self.waiting:
            raise EOFError
        return self.waiting.popleft()


def server_wire(server: ServerHandshake, finished: list[bool]) -> Wire:
    """Return the wire on which a stock client finds ``server``."""

    def ours(payload: bytes) -> list[bytes]:
        answer, done = server.receive(payload)
        finished.append(done)
        return [answer] if answer else []

    return Wire(ours, server.first())


# How CPython 3.12 and newer do it, in Lib/multiprocessing/connection.py, and how 3.10
# and 3.11 did. The interpreter that runs the tests has one of the two.


def new_answer(peer: Any, key: bytes) -> None:
    """Answer a challenge as 3.12 and newer do."""
    message = peer.recv_bytes(256)
    assert message.startswith(b"#CHALLENGE#")
    message = message[len(b"#CHALLENGE#") :]
    if len(message) == 20:
        digest = hmac.new(key, message, "md5").digest()
    else:
        assert message.startswith(b"{sha256}")
        digest = b"{sha256}" + hmac.new(key, message, hashlib.sha256).digest()
    peer.send_bytes(digest)
    if peer.recv_bytes(256) != b"#WELCOME#":
        raise AuthenticationError("digest sent was rejected")


def new_deliver(peer: Any, key: bytes, digest_name: str = "sha256") -> None:
    """Deliver a challenge as 3.12 and newer do."""
    message = b"{%s}" % digest_name.encode() + os.urandom(40)
    peer.send_bytes(b"#CHALLENGE#" + message)
    response = peer.recv_bytes(256)
    right = (
        b"{%s}" % digest_name.encode() + hmac.new(key, message, digest_name).digest()
    )
    if not hmac.compare_digest(right, response):
        peer.send_bytes(b"#FAILURE#")
        raise AuthenticationError("digest received was wrong")
    peer.send_bytes(b"#WELCOME#")


def old_answer(peer: Any, key: bytes) -> None:
    """Answer a challenge as 3.10 and 3.11 do."""
    message = peer.recv_bytes(256)
    assert message.startswith(b"#CHALLENGE#")
    peer.send_bytes(hmac.new(key, message[len(b"#CHALLENGE#") :], "md5").digest())
    if peer.recv_bytes(256) != b"#WELCOME#":
        raise AuthenticationError("digest sent was rejected")


def old_deliver(peer: Any, key: bytes) -> None:
    """Deliver a challenge as 3.10 and 3.11 do."""
    message = os.urandom(20)
    peer.send_bytes(b"#CHALLENGE#" + message)
    if peer.recv_bytes(256) != hmac.new(key, message, "md5").digest():
        peer.send_bytes(b"#FAILURE#")
        raise AuthenticationError("digest received was wrong")
    peer.send_bytes(b"#WELCOME#")


THIS = (stock_connection.answer_challenge, stock_connection.deliver_challenge)
OLD = (old_answer, old_deliver)
NEW = (new_answer, new_deliver)
THIS_IS_OLD = not hasattr(stock_connection, "_create_response")
PEERS = pytest.mark.parametrize(
    ("peer", "is_old"),
    [(THIS, THIS_IS_OLD), (OLD, True), (NEW, False)],
    ids=["this interpreter", "3.10 and 3.11", "3.12 and newer"],
)
Peer = tuple[Callable[..., None], Callable[..., None]]


@PEERS
def test_stock_clients_shake_hands_with_our_server(peer: Peer, is_old: bool) -> None:
    """Each release's client is accepted, and accepts us."""
    finished: list[bool] = []
    server = ServerHandshake(KEY, allow_md5=True)
    line = server_wire(server, finished)
    peer[0](line, KEY)
    peer[1](line, KEY)

    assert finished == [False, False, True]
    assert not line.waiting
    assert server.bare == is_old


@PEERS
def test_stock_client_with_another_key_is_rejected(peer: Peer, is_old: bool) -> None:
    """A wrong answer is Denied, and the client is told so in its language."""
    line = server_wire(ServerHandshake(KEY, allow_md5=True), [])

    with pytest.raises(AuthenticationError, match="rejected"):
        peer[0](line, b"another key")
    assert isinstance(line.error, Denied)


@PEERS
def test_md5_answers_can_be_switched_off(peer: Peer, is_old: bool) -> None:
    """Without ``allow_md5`` the old releases are denied, the new ones are not."""
    line = server_wire(ServerHandshake(KEY, allow_md5=False), [])
    if not is_old:
        peer[0](line, KEY)
        peer[1](line, KEY)
        return

    with pytest.raises(AuthenticationError, match="rejected"):
        peer[0](line, KEY)
    assert "MD5 is switched off" in str(line.error)


def test_md5_answer_is_given_to_those_only_who_gave_one() -> None:
    """Who has shown SHA-256 gets no weaker answer out of us."""
    line = server_wire(ServerHandshake(KEY, allow_md5=True), [])
    new_answer(line, KEY)

    with pytest.raises(AuthenticationError):
        old_deliver(line, KEY)
    assert isinstance(line.error, Denied)


@pytest.mark.parametrize("digest_name", ["md5", "sha1", "sha512"])
def test_digests_other_than_sha256_are_denied(digest_name: str) -> None:
    """A challenge that names another digest is not answered."""
    line = server_wire(ServerHandshake(KEY, allow_md5=True), [])
    new_answer(line, KEY)

    with pytest.raises(AuthenticationError):
        new_deliver(line, KEY, digest_name)
    assert "other than sha256" in str(line.error)


def start_of_server(allow_md5: bool = True) -> tuple[ServerHandshake, bytes]:
    """Return a server and what it has sent first."""
    server = ServerHandshake(KEY, allow_md5)
    return server, server.first()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"x",
        bytes(16),
        bytes(32),
        b"{sha256}" + bytes(32),
        b"{md5}" + bytes(16),
        b"#WELCOME#",
        b"\x80\x04N.",
    ],
)
def test_answers_that_are_no_answer_are_denied(answer: bytes) -> None:
    """Whatever stands in place of the answer, it is Denied, never another error."""
    server, _ = start_of_server()

    with pytest.raises(Denied):
        server.receive(answer)


def test_answer_without_its_digest_name_is_denied() -> None:
    """The bare HMAC-SHA256 is no spelling that any client uses."""
    server, first = start_of_server()
    message = first.removeprefix(handshake.CHALLENGE)

    with pytest.raises(Denied):
        server.receive(hmac.new(KEY, message, "sha256").digest())


@pytest.mark.parametrize(
    "challenge",
    [
        b"",
        b"#CHALLENGE#",
        b"#CHALLENGE#" + bytes(19),
        b"no challenge at all, but long enough",
        b"#CHALLENGE#" + bytes(40),
    ],
)
def test_challenges_that_are_no_challenge_are_denied(challenge: bytes) -> None:
    """Too short, unnamed or missing: the server answers no such challenge."""
    server, first = start_of_server()
    message = first.removeprefix(handshake.CHALLENGE)
    server.receive(b"{sha256}" + hmac.new(KEY, message, "sha256").digest())

    with pytest.raises(Denied):
        server.receive(challenge)


def test_client_that_does_not_accept_the_server_is_denied() -> None:
    """The handshake ends only with the client's word of acceptance."""
    server, client = ServerHandshake(KEY, True), ClientHandshake(KEY)
    (answer,), _ = client.receive(server.first())
    accepted, _ = server.receive(answer)
    (challenge,), _ = client.receive(accepted)
    server.receive(challenge)

    with pytest.raises(Denied, match="did not accept"):
        server.receive(handshake.REJECTED)


def test_our_client_and_our_server_agree() -> None:
    """Both sides finish, and both hold the nonces of both."""
    server, client = ServerHandshake(KEY, False), ClientHandshake(KEY)
    to_server, from_server = shake(client, server)

    assert (to_server, from_server) == (3, 3)
    assert client.nonces == server.nonces
    assert all(len(nonce) == 48 for nonce in server.nonces)
    assert not server.bare


def shake(client: ClientHandshake, server: ServerHandshake) -> tuple[int, int]:
    """Lead both sides through the handshake; return how much each has sent."""
    to_client = deque([server.first()])
    sent, received, done = 0, 1, False
    while to_client:
        answers, _ = client.receive(to_client.popleft())
        for answer in answers:
            sent += 1
            reply, done = server.receive(answer)
            if reply:
                received += 1
                to_client.append(reply)
    assert done
    return sent, received


def test_our_client_with_another_key_is_told() -> None:
    """A rejected key is Denied at the client, which says where the right one is."""
    client = ClientHandshake(b"another")
    client.receive(ServerHandshake(KEY, True).first())

    with pytest.raises(Denied, match=r"different ones\. .*authkey of its data folder"):
        client.receive(handshake.REJECTED)


def test_our_client_denies_a_server_without_the_key() -> None:
    """A server that accepts everybody, and knows nothing, is found out."""
    client = ClientHandshake(KEY)
    client.receive(ServerHandshake(KEY, True).first())
    client.receive(handshake.ACCEPTED)

    with pytest.raises(Denied, match="does not know the key"):
        client.receive(b"{sha256}" + bytes(32))


@pytest.mark.parametrize(
    ("challenge", "reason"),
    [
        (b"#CHALLENGE#" + bytes(20), "weaker"),
        (b"#CHALLENGE#" + bytes(40), "weaker"),
        (b"#CHALLENGE#{md5}" + bytes(40), "weaker"),
        (b"#CHALLENGE#{sha256}", "weaker"),
        (b"#CHALLENGE#{sha256}" + bytes(19), "weaker"),
        (b"HTTP/1.1 400 Bad Request", "no challenge"),
        (b"", "no challenge"),
    ],
)
def test_our_client_answers_strong_challenges_only(
    challenge: bytes, reason: str
) -> None:
    """An unnamed, short or foreign challenge gets no answer made with our key."""
    with pytest.raises(Denied, match=reason):
        ClientHandshake(KEY).receive(challenge)


def test_our_client_takes_part_with_a_stock_server_of_today() -> None:
    """Against 3.12 and newer the handshake works; what follows is another matter."""
    client = ClientHandshake(KEY)
    finished: list[bool] = []

    def ours(payload: bytes) -> list[bytes]:
        answers, done = client.receive(payload)
        finished.append(done)
        return answers

    line = Wire(ours)
    new_deliver(line, KEY)
    new_answer(line, KEY)
    assert finished == [False, False, True]


def test_challenges_are_never_the_same() -> None:
    """Each handshake has nonces of its own."""
    firsts = {ServerHandshake(KEY, True).first() for _ in range(50)}
    nonces = {ClientHandshake(KEY).nonces[1] for _ in range(50)}

    assert (len(firsts), len(nonces)) == (50, 50)


# Proofs ------------------------------------------------------------------------------

NONCES = (b"{sha256}" + b"a" * 40, b"{sha256}" + b"b" * 40)


def test_proof_holds_for_what_it_was_made_for() -> None:
    """The proof of a role over two nonces convinces who knows the key."""
    for role in (b"client", b"server", b"admin"):
        given = handshake.proof(KEY, role, NONCES)
        assert handshake.proof_holds(KEY, role, NONCES, given)


@pytest.mark.parametrize(
    ("key", "role", "nonces"),
    [
        (b"other", b"client", NONCES),
        (KEY, b"server", NONCES),
        (KEY, b"admin", NONCES),
        (KEY, b"client", (NONCES[1], NONCES[0])),
        (KEY, b"client", (NONCES[0], NONCES[1][:-1] + b"c")),
        (KEY, b"client", (NONCES[0][:-1] + b"c", NONCES[1])),
    ],
)
def test_proof_is_bound_to_key_role_and_nonces(
    key: bytes, role: bytes, nonces: tuple[bytes, bytes]
) -> None:
    """A proof is worth nothing in another role, handshake or direction."""
    assert not handshake.proof_holds(
        key, role, nonces, handshake.proof(KEY, b"client", NONCES)
    )


def test_no_proof_is_no_proof() -> None:
    """Zeros, nothing, or a part of the proof do not hold."""
    right = handshake.proof(KEY, b"client", NONCES)
    for shown in (bytes(32), b"", right[:-1], right + b"\0"):
        assert not handshake.proof_holds(KEY, b"client", NONCES, shown)


def test_reflected_handshake_proves_nothing() -> None:
    """A server without the key that relays to a second connection has no proof.

    It passes the stock handshake by handing the victim's challenge to another of the
    victim's connections. The nonces of the two then differ, and so does the proof.
    """
    first, second = ClientHandshake(KEY), ClientHandshake(KEY)
    own_challenge = handshake.CHALLENGE + b"{sha256}" + os.urandom(40)
    first.receive(own_challenge)
    (victims_challenge,), _ = first.receive(handshake.ACCEPTED)
    (reflected,), _ = second.receive(victims_challenge)
    (_,), passed = first.receive(reflected)
    assert passed, "the stock handshake alone does not notice"

    hellos = [handshake.proof(KEY, b"client", side.nonces) for side in (first, second)]
    for shown in hellos:
        assert not handshake.proof_holds(KEY, b"server", first.nonces, shown)
        assert not handshake.proof_holds(KEY, b"server", second.nonces, shown)
