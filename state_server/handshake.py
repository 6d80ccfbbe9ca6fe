"""The handshake and the proofs: who may speak on a connection, as bytes, no sockets.

As in Lib/multiprocessing/connection.py of CPython 3.10 to 3.13: a challenge of 40 bytes
with the prefix ``{sha256}``. Versions 3.10 and 3.11 answer it with a bare HMAC-MD5,
later ones and ours with ``{sha256}`` and the HMAC. A peer without the key can pass that
by handing our challenge to somebody else who has it; so the first own frame of each
side (``Hello`` and ``Welcome`` of ``wire``) proves the key over the side's role and the
nonces of both, and no call is sent before the server's proof was checked.
"""

from __future__ import annotations

import hmac
import os

from .errors import Denied
from .messages import Payload

CHALLENGE = b"#CHALLENGE#"
ACCEPTED = b"#WELCOME#"
REJECTED = b"#FAILURE#"
#: Sent in place of the challenge when the server takes no more connections.
FULL = b"#OVERLOADED#"

#: No frame of a handshake is larger (the stock side reads at most 256 bytes).
HANDSHAKE_BYTES_MAX = 256

_NONCE_BYTES = 40
_PREFIX = b"{sha256}"


def _answer(key: bytes, message: bytes) -> bytes:
    return _PREFIX + hmac.new(key, message, "sha256").digest()


class ServerHandshake:
    """The server's side of the stock handshake, fed frame by frame.

    ``bare`` is true when the client answered with HMAC-MD5; our own frames are refused
    after that.
    """

    __slots__ = ("_allow_md5", "_key", "_step", "bare", "nonces")

    def __init__(self, key: bytes, allow_md5: bool) -> None:
        self._key = key
        self._allow_md5 = allow_md5
        self._step = self._check_answer
        self.bare = False
        self.nonces = (_PREFIX + os.urandom(_NONCE_BYTES), b"")

    def first(self) -> bytes:
        """Return the payload to send when the connection opens."""
        return CHALLENGE + self.nonces[0]

    def receive(self, payload: Payload) -> tuple[bytes, bool]:
        """Return the payload to send in answer, and whether the handshake is done.

        Raises ``Denied`` when the client does not know the key; ``REJECTED`` is to be
        sent then.
        """
        return self._step(bytes(payload))

    def _check_answer(self, payload: bytes) -> tuple[bytes, bool]:
        challenge = self.nonces[0]
        if len(payload) == 16:
            self.bare = True
            right = self._allow_md5 and hmac.compare_digest(
                hmac.new(self._key, challenge, "md5").digest(), payload
            )
        else:
            right = hmac.compare_digest(_answer(self._key, challenge), payload)
        if not right:
            reason = (
                "" if self._allow_md5 or not self.bare else " (MD5 is switched off)"
            )
            raise Denied(f"The client does not know the key{reason}.")
        self._step = self._answer_challenge
        return ACCEPTED, False

    def _answer_challenge(self, payload: bytes) -> tuple[bytes, bool]:
        nonce = payload[len(CHALLENGE) :]
        if not payload.startswith(CHALLENGE) or len(nonce) < 20:
            raise Denied("The client sent no challenge.")
        self.nonces = (self.nonces[0], nonce)
        self._step = self._confirm
        if len(nonce) == 20:
            # Only a client of 3.10 or 3.11 sends a challenge without a digest name.
            if not (self._allow_md5 and self.bare):
                raise Denied("The client asks for an MD5 answer, which is not allowed.")
            return hmac.new(self._key, nonce, "md5").digest(), False
        if not nonce.startswith(_PREFIX):
            raise Denied("The client asks for a digest other than sha256.")
        return _answer(self._key, nonce), False

    def _confirm(self, payload: bytes) -> tuple[bytes, bool]:
        if payload != ACCEPTED:
            raise Denied("The client did not accept the server's answer.")
        return b"", True


class ClientHandshake:
    """Our client's side of the stock handshake, fed frame by frame."""

    __slots__ = ("_key", "_step", "nonces")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._step = self._answer_challenge
        self.nonces = (b"", _PREFIX + os.urandom(_NONCE_BYTES))

    def receive(self, payload: Payload) -> tuple[list[bytes], bool]:
        """Return the payloads to send in answer, and whether the handshake is done.

        Raises ``Denied`` when a side does not know the key.
        """
        return self._step(bytes(payload))

    def _answer_challenge(self, payload: bytes) -> tuple[list[bytes], bool]:
        nonce = payload[len(CHALLENGE) :]
        if not payload.startswith(CHALLENGE):
            raise Denied("The server sent no challenge; is it a State Server?")
        if not nonce.startswith(_PREFIX) or len(nonce) < len(_PREFIX) + 20:
            raise Denied("The server asks for an answer weaker than HMAC-SHA256.")
        self.nonces = (nonce, self.nonces[1])
        self._step = self._send_challenge
        return [_answer(self._key, nonce)], False

    def _send_challenge(self, payload: bytes) -> tuple[list[bytes], bool]:
        if payload != ACCEPTED:
            raise Denied(
                "The server rejected the key: client and server use different ones. A "
                "manager's is in the file authkey of its data folder, unless it was "
                "given one; name it by STATE_SERVER_DATA_DIR or "
                "STATE_SERVER_AUTHKEY_FILE."
            )
        self._step = self._check_answer
        return [CHALLENGE + self.nonces[1]], False

    def _check_answer(self, payload: bytes) -> tuple[list[bytes], bool]:
        right = _answer(self._key, self.nonces[1])
        if not hmac.compare_digest(right, payload):
            raise Denied("The server does not know the key.")
        return [ACCEPTED], True


# Proofs ------------------------------------------------------------------------------


def proof(key: bytes, role: bytes, nonces: tuple[bytes, bytes]) -> bytes:
    """Return the proof that ``role`` knows ``key``, over the nonces of both sides."""
    server_nonce, client_nonce = nonces
    message = b"state-server/1/" + role + b"/" + server_nonce + client_nonce
    return hmac.new(key, message, "sha256").digest()


def proof_holds(
    key: bytes, role: bytes, nonces: tuple[bytes, bytes], given: bytes
) -> bool:
    """Tell, in constant time, whether ``given`` is the proof of ``role``."""
    return hmac.compare_digest(proof(key, role, nonces), given)
