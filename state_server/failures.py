"""Errors as data, and back: what a method raised is described, never sent as code.

The receiver rebuilds an error as itself when its class is a built-in one or was given
to ``allow``; anything else becomes a ``RemoteError`` that names the class. Either way
it carries the traceback of the manager.
"""

from __future__ import annotations

import traceback
from typing import Any

from . import codec
from .errors import FAMILY, RemoteError, StateServerError
from .messages import Failure, Payload

#: The code of a failure that the object's own code raised.
RAISED = "Raised"

#: How much text of one error travels. Of a traceback the end says the most, unless the
#: error has a long text: then the beginning says where it was raised.
_TEXT_MAX = 8_000
_TRACEBACK_BEGIN_MAX = 10_000
_TRACEBACK_END_MAX = 19_900
#: Notes that were added to an error.
_NOTES_MAX = 20

#: The types of the fields of a ``Failure``, as they are decoded.
_FIELD_TYPES = (str, str, str, str, bytes, tuple, str)

#: Constructors that do no more with their arguments than to keep them.
_PLAIN_INITS = (Exception.__init__, BaseException.__init__, OSError.__init__)


def refusal(error: StateServerError) -> Failure:
    """Return the failure that says what the manager itself has to say."""
    for cls in type(error).__mro__:
        if FAMILY.get(cls.__name__) is cls:
            return Failure(cls.__name__, str(error)[:_TEXT_MAX])
    return Failure("RemoteError", str(error)[:_TEXT_MAX])


def raised(error: BaseException) -> Failure:
    """Return the failure that describes what the object's own code raised."""
    try:
        return _described(error)
    except BaseException as failure:
        # The error's own code again: even its arguments may be a property that raises.
        cls = type(error)
        text = f"(it cannot be described: {type(failure).__name__})"
        return Failure(RAISED, text, str(cls.__module__), str(cls.__qualname__))


def _described(error: BaseException) -> Failure:
    cls = type(error)
    return Failure(
        RAISED,
        _safely(str, error)[:_TEXT_MAX],
        cls.__module__,
        cls.__qualname__,
        _encoded_arguments(error),
        tuple(_safely(repr, argument)[:200] for argument in error.args[:20]),
        _shortened(_formatted(error)),
    )


def pack(failure: Failure) -> bytes:
    """Return the bytes of ``failure``."""
    return codec.encode(tuple(failure))


def unpack(body: Payload) -> Failure:
    """Return the failure in ``body``."""
    fields = codec.decode(body)
    if not isinstance(fields, tuple) or tuple(map(type, fields)) != _FIELD_TYPES:
        return Failure("RemoteError", "The manager sent a failure of an unknown form.")
    return Failure(*fields)


def error_from(failure: Failure) -> Exception:
    """Return the error that ``failure`` describes, ready to be raised."""
    if failure.code != RAISED:
        cls = FAMILY.get(failure.code, RemoteError)
        return cls(failure.text)
    error = _rebuilt(failure) or _remote_error(failure)
    _attach_traceback(error, failure.traceback)
    return error


def _rebuilt(failure: Failure) -> Exception | None:
    if failure.module == "builtins":
        cls: type | None = codec.builtin_error(failure.qualname)
    else:
        cls = codec.allowed_class(failure.module, failure.qualname)
    if cls is None or not issubclass(cls, Exception) or not failure.args:
        return None
    try:
        arguments, state = codec.decode(failure.args)
        # Not cls(*arguments): a class with a constructor of its own may want others.
        error = cls.__new__(cls, *arguments)
        if type(error) is cls and isinstance(error, Exception):
            if cls.__init__ in _PLAIN_INITS or cls.__module__ == "builtins":
                cls.__init__(error, *arguments)
            else:
                error.args = tuple(arguments)
            error.__dict__.update(state)
            return error
    except Exception:
        # Whatever is wrong with the arguments, the caller still learns what was raised.
        return None
    return None


def _remote_error(failure: Failure) -> RemoteError:
    path = f"{failure.module}.{failure.qualname}"
    error = RemoteError(f"{path}: {failure.text}" if failure.text else path)
    error.class_path = path
    error.remote_args = tuple(failure.shown_args)
    return error


def _attach_traceback(error: Exception, text: str) -> None:
    if not text:
        return
    try:
        error.remote_traceback = text  # type: ignore[attr-defined]
        # add_note() came with Python 3.11; the attribute it sets is printed by it.
        notes: list[str] = getattr(error, "__notes__", [])
        error.__notes__ = [*notes, f"The traceback in the manager:\n{text}"]  # type: ignore[attr-defined]
    except AttributeError:
        # A class with slots takes no further attributes; the error itself matters more.
        return


def _encoded_arguments(error: BaseException) -> bytes:
    state = {
        name: value
        for name, value in getattr(error, "__dict__", {}).items()
        if name not in ("__notes__", "remote_traceback")
    }
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, list):
        texts = [note[:_TEXT_MAX] for note in notes if isinstance(note, str)]
        state["__notes__"] = texts[:_NOTES_MAX]
    arguments = _arguments(error)
    try:
        return codec.encode((arguments, state))
    except StateServerError:
        pass
    try:
        return codec.encode((arguments, {}))
    except StateServerError:
        return b""


def _arguments(error: BaseException) -> tuple[object, ...]:
    """Return what an error was made with; an OSError keeps file names elsewhere."""
    if not isinstance(error, OSError) or error.filename is None:
        return tuple(error.args)
    if error.filename2 is None:
        return (*error.args, error.filename)
    return (*error.args, error.filename, None, error.filename2)


def _formatted(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception as formatting:
        # An error whose own methods raise must not hide that it was raised.
        return f"{type(error).__qualname__} (its traceback failed: {formatting!r})"


def _shortened(text: str) -> str:
    """Leave the middle of a long text away."""
    left_out = len(text) - _TRACEBACK_BEGIN_MAX - _TRACEBACK_END_MAX
    if left_out <= 0:
        return text
    begin, end = text[:_TRACEBACK_BEGIN_MAX], text[-_TRACEBACK_END_MAX:]
    return f"{begin}\n[{left_out} characters are left out here]\n{end}"


def _safely(render: Any, value: object) -> str:
    try:
        return str(render(value))
    except BaseException as error:
        # The class's own code again: sys.exit() in it must not end the turn either.
        return f"<{type(value).__qualname__} whose text failed: {type(error).__name__}>"
