"""Replies in which a stock client finds what ours finds in other ways.

Written opcode by opcode: the pickler would look for the names in modules that nobody
here imports, and the walk refuses them, as it must in what comes in. See pickletools
of the standard library for the opcodes.
"""

from __future__ import annotations

_PROTOCOL = b"\x80\x04"
_STOP = b"."
_NONE = b"N"
_REDUCE = b"R"
_TUPLE_1, _TUPLE_2, _TUPLE_3 = b"\x85", b"\x86", b"\x87"


def proxy_reply(class_name: str, key: str, exposed: bytes) -> bytes:
    """Return the reply of which a stock client makes a proxy of an object.

    ``exposed``: the names of its methods, encoded. The token has no address: the client
    takes the one that it got the reply from.
    """
    identity = _text(f"{class_name}/{key}")
    parts = _text(class_name) + _NONE + identity + _TUPLE_3
    token = b"cmultiprocessing.managers\nToken\n" + parts + _REDUCE
    pair = _bare(exposed) + token + _TUPLE_2
    return _PROTOCOL + _text("#PROXY") + pair + _TUPLE_2 + _STOP


def iterator_reply(items: bytes) -> bytes:
    """Return the reply that carries an iterator over a list.

    ``items``: the list, encoded. What iterates over a stock proxy takes the result of
    ``__iter__`` as it is.
    """
    iterator = b"cbuiltins\niter\n" + _bare(items) + _TUPLE_1 + _REDUCE
    return _PROTOCOL + _text("#RETURN") + iterator + _TUPLE_2 + _STOP


def _bare(pickle: bytes) -> bytes:
    """Return a pickle without its first and last opcode."""
    return pickle[len(_PROTOCOL) : -len(_STOP)]


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data
