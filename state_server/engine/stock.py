"""The stock client's language: what ``multiprocessing.managers`` says on the wire.

A stock client names an object by the id it got from ``create``; ours are names
(``Class/key``), so they stay good across restarts and nothing has to be counted:
``incref`` and ``decref`` are accepted and ignored. Requests are
``(id, method, args, kwargs)``, replies ``(kind, result)``; an id of ``None`` means one
of the manager's own verbs. See ``Server`` in Lib/multiprocessing/managers.py of
CPython 3.10 to 3.13.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from .. import codec, failures
from ..errors import (
    Denied,
    NotAllowed,
    Refused,
    StateServerError,
    TooLarge,
)
from ..messages import DEFAULT_KEY, Call, Contract, Payload

#: What the exposed names of a stock proxy may not hold: the stock proxy would define
#: it on itself, and ask the manager whenever somebody asks whether there is a proxy.
_NOT_FOR_PROXIES = frozenset({"__bool__"})

#: Longest names, in characters; our own frames have no room for longer ones. Errors,
#: lines of the log and tables of the manager hold names.
_NAME_LENGTH_MAX = 255
_KEY_LENGTH_MAX = 65_535


#: Errors that Python 3.10 does not have.
_YOUNG_ERRORS = frozenset({"BaseExceptionGroup", "ExceptionGroup"})


class StockForm:
    """Replies as a stock client reads them.

    ``describe``: tells what a class offers. ``is_old``: the client may be one of Python
    3.10.
    """

    def __init__(self, describe: Callable[[str], Contract], *, is_old: bool) -> None:
        self._describe = describe
        self._is_old = is_old

    def done(self, call: Call, value: object) -> bytes:
        """Return the reply that carries ``value``."""
        reference = codec.reference_of(value)
        if reference is not None:
            exposed = _exposed(self._describe(reference.class_name))
            return codec.proxy_reply(*reference, codec.encode(exposed))
        if call.method == "__iter__":
            return codec.iterator_reply(codec.encode(value, stock=True))
        return codec.encode(("#RETURN", value), stock=True)

    def refused(self, call: Call, error: StateServerError) -> bytes:
        """Return the reply that carries what the server has to say, as text."""
        return text_reply(error)

    def raised(self, call: Call, error: BaseException) -> bytes:
        """Return the error itself if a stock client can rebuild it, else its text.

        A class of the user's own travels only if it survives the journey here: the
        client unpickles blindly and would show a TypeError in its place.
        """
        is_known = not (self._is_old and type(error).__name__ in _YOUNG_ERRORS)
        if isinstance(error, Exception) and is_known:
            try:
                payload = codec.encode(("#ERROR", error), stock=True)
                if type(codec.decode(payload)[1]) is type(error):
                    return payload
            except StateServerError:
                pass
        return codec.encode(("#TRACEBACK", failures.raised(error).traceback))


class Verb(NamedTuple):
    """One of the manager's own verbs, as a stock client asks for it."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def read_request(payload: Payload, call_timeout_s: float) -> Call | Verb:
    """Return the call or the verb in ``payload``.

    Raises ``NotAllowed`` when it is neither, ``TooLarge`` for names that are too long.
    """
    request, held_bytes = codec.decode_measured(payload)
    if not isinstance(request, tuple) or len(request) != 4:
        raise NotAllowed("A stock request is a tuple of four.")
    identity, method, args, kwargs = request
    if not isinstance(method, str) or not isinstance(kwargs, dict):
        raise NotAllowed("A stock request names its method and has keyword arguments.")
    _check_name(method)
    if not isinstance(args, (tuple, list)):
        raise NotAllowed("A stock request has its arguments in a tuple.")
    if identity is None:
        return Verb(method, tuple(args), kwargs)
    if not isinstance(identity, str):
        raise NotAllowed("A stock request names its object by text.")
    class_name, _, key = identity.partition("/")
    _check_name(class_name)
    if len(key) > _KEY_LENGTH_MAX:
        raise TooLarge(
            f"A key has {len(key)} characters; the limit is {_KEY_LENGTH_MAX}."
        )
    try:
        identity.encode()
    except UnicodeEncodeError as error:
        # Neither a database nor our own frames could hold it.
        raise NotAllowed(f"The name of an object is no text: {error}.") from None
    body = (tuple(args), kwargs)
    return Call(class_name, key, method, body, call_timeout_s, held_bytes=held_bytes)


def _check_name(name: str) -> None:
    if len(name) > _NAME_LENGTH_MAX:
        raise TooLarge(
            f"A name of a class or a method has {len(name)} characters; the limit is "
            f"{_NAME_LENGTH_MAX}."
        )


def answer_verb(verb: Verb, describe: Callable[[str], Contract]) -> object:
    """Return the result of a verb.

    Raises ``Refused`` for one that is not for everybody who has the key.
    """
    if verb.name in ("dummy", "accept_connection", "incref", "decref"):
        return None
    if verb.name == "create":
        return _created(verb, describe)
    if verb.name == "get_methods":
        return _exposed(describe(_class_of(verb)))
    if verb.name in ("shutdown", "debug_info", "number_of_objects"):
        raise Denied(
            f"{verb.name}() is for the operator: use `python -m state_server` with the "
            "data folder."
        )
    raise NotAllowed(f"A manager has no verb {verb.name!r}.")


def reply(value: object) -> bytes:
    """Return the reply that carries the result of a verb."""
    return codec.encode(("#RETURN", value))


def text_reply(error: StateServerError) -> bytes:
    """Return the reply that carries an error of ours; the client shows the text."""
    text = "".join(traceback.format_exception_only(type(error), error))
    return codec.encode(("#TRACEBACK", text))


def _created(verb: Verb, describe: Callable[[str], Contract]) -> object:
    """Name an object: the default one, or the one whose key is the only argument."""
    if not verb.args or len(verb.args) > 2 or verb.kwargs:
        raise Refused(
            f"create takes a class and at most a key, not {len(verb.args)} arguments "
            f"and the keywords {sorted(map(str, verb.kwargs))}: objects are built by "
            "the manager, with the arguments given to share()."
        )
    class_name, key = (*verb.args, DEFAULT_KEY)[:2]
    if not isinstance(class_name, str) or not isinstance(key, str):
        raise Refused("create takes the name of a class and a key, both text.")
    _check_name(class_name)
    contract = describe(class_name)
    return (f"{class_name}/{key}", _exposed(contract))


def _exposed(contract: Contract) -> tuple[str, ...]:
    return tuple(sorted(contract.methods - _NOT_FOR_PROXIES))


def _class_of(verb: Verb) -> str:
    token = verb.args[0] if verb.args else None
    class_name = getattr(token, "class_name", None)
    if not isinstance(class_name, str):
        raise NotAllowed("get_methods takes a token of this manager.")
    _check_name(class_name)
    return class_name
