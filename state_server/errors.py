"""One family of errors, sorted by what the caller may do next.

``Unreachable``: the call was never sent. ``Unanswered``: it was sent and nobody
knows what became of it. ``Refused``: the manager said no and nothing ran.
``StoreError``: the state could not be saved, so nothing happened. ``RemoteError``:
the object's own code raised.
"""

from __future__ import annotations


def full_name(cls: type) -> str:
    """Return the module and name of a class, as errors name it."""
    return f"{cls.__module__}.{cls.__qualname__}"


class StateServerError(Exception):
    """The root of everything this package raises.

    ``retryable``: the same call may succeed later, unchanged. ``maybe_executed``: the
    method may have run. ``remote``: the object's own code raised. ``status``: the HTTP
    status that fits best when a web request ends with this error.
    """

    retryable = False
    maybe_executed = False
    remote = False
    status = 500

    #: The manager's traceback as text, where the error came from there.
    remote_traceback: str | None = None


class ConfigError(StateServerError):
    """A setting must change; the start was refused."""


class Unreachable(StateServerError, ConnectionError):
    """The call was never sent: no manager answered at the address."""

    retryable = True
    status = 503


class Unanswered(StateServerError, TimeoutError):
    """The call was sent and its outcome is unknown; look before repeating it."""

    maybe_executed = True
    status = 504


class Refused(StateServerError):
    """The manager said no; nothing ran, or what ran was undone."""


class NotShared(Refused, LookupError):
    """No class is shared under this name, or the key of an object is not text."""


class NotOffered(Refused, AttributeError):
    """The class is shared, but does not offer a method or property of this name."""


class Denied(Refused, PermissionError):
    """The key was wrong, or the operation needs a right the caller has not shown."""


class NotAllowed(Refused, TypeError):
    """A value holds a type that may not travel."""


class TooLarge(Refused, ValueError):
    """A value or a frame is over a limit."""


class Expired(Refused, TimeoutError):
    """The deadline passed while the call was waiting its turn; it was dropped."""

    retryable = True
    status = 503


class Stale(Refused):
    """A newer call of the same lane has already been made; this one was not run."""


class Overloaded(Refused):
    """A limit was reached, or the manager is stopping; try again later."""

    retryable = True
    status = 503


class Stopping(Overloaded):
    """The manager is stopping and takes no more calls; another one may follow it."""


class StoreError(StateServerError):
    """The state could not be saved; nothing happened."""

    retryable = True
    status = 503


class Unkeepable(StoreError):
    """The state of an object cannot be kept: part of it cannot be pickled."""

    retryable = False
    status = 500


class Unloadable(StoreError):
    """A stored object cannot be brought back into memory by this manager."""

    retryable = False
    status = 500


class RemoteError(StateServerError):
    """The object's own code raised an error whose class may not travel.

    ``class_path`` is ``module.QualifiedName`` of the original error and
    ``remote_args`` holds the ``repr`` of each of its arguments.
    """

    remote = True
    maybe_executed = True
    class_path: str | None = None
    remote_args: tuple[str, ...] = ()


#: Every error that may be named on the wire, by its name.
FAMILY: dict[str, type[StateServerError]] = {
    error.__name__: error
    for error in (
        Unanswered,
        Refused,
        NotShared,
        NotOffered,
        Denied,
        NotAllowed,
        TooLarge,
        Expired,
        Stale,
        Overloaded,
        Stopping,
        StoreError,
        Unkeepable,
        Unloadable,
        RemoteError,
    )
}
