"""Errors as data and back: as themselves, as RemoteError, always with the traceback."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from state_server import codec, failures
from state_server.errors import (
    FAMILY,
    ConfigError,
    NotOffered,
    NotShared,
    Overloaded,
    RemoteError,
    StateServerError,
    Stopping,
    Unanswered,
)
from state_server.messages import Failure


@codec.allow
class Sold(Exception):
    """An error of the user's own, with a constructor of its own, that may travel."""

    def __init__(self, what: str, left: int) -> None:
        super().__init__(f"only {left} of {what} left")
        self.what = what
        self.left = left


@codec.allow
class Plain(ValueError):
    """An error without a constructor of its own that may travel."""


@codec.allow
class Unmounted(OSError):
    """A system error of the user's own that may travel."""


class Foreign(Exception):
    """An error that may not travel."""


class Silent(Exception):
    """An error whose text and arguments cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Slotted(Exception):
    """An error that takes no further attributes."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


def raise_deep(error: BaseException) -> None:
    """Raise an error from a function whose name is in the traceback."""
    raise error


def travelled(error: BaseException) -> Exception:
    """Return what the caller gets when a method raises ``error``."""
    try:
        raise_deep(error)
    except BaseException as caught:
        body = failures.pack(failures.raised(caught))
    return failures.error_from(failures.unpack(body))


# As themselves -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong", 3),
        KeyError("k"),
        IndexError(),
        ZeroDivisionError("division by zero"),
        StopIteration(5),
        OSError(2, "No such file", "name"),
        FileNotFoundError(2, "No such file"),
        TimeoutError("late"),
        NotImplementedError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        Plain("plain"),
    ],
)
def test_builtin_and_allowed_errors_arrive_as_themselves(error: Exception) -> None:
    """The caller catches the class that the method raised, with its arguments."""
    arrived = travelled(error)

    assert type(arrived) is type(error)
    assert arrived.args == error.args
    assert str(arrived) == str(error)


def test_attributes_of_os_errors_arrive() -> None:
    """An OSError does not keep its file names in ``args``; they arrive all the same."""
    one = travelled(FileNotFoundError(2, "No such file", "name"))
    two = travelled(OSError(18, "Cross-device link", "from", None, "to"))
    own = travelled(Unmounted(5, "Input/output error", "disk"))

    assert isinstance(one, FileNotFoundError)
    assert (one.errno, one.filename) == (2, "name")
    assert isinstance(two, OSError)
    assert (two.filename, two.filename2) == ("from", "to")
    assert isinstance(own, Unmounted)
    assert (own.errno, own.filename, own.args) == (5, "disk", (5, "Input/output error"))


def test_allowed_error_with_its_own_constructor_arrives() -> None:
    """Its constructor, which wants other arguments, is not called again."""
    arrived = travelled(Sold("tickets", 3))

    assert isinstance(arrived, Sold)
    assert str(arrived) == "only 3 of tickets left"
    assert (arrived.what, arrived.left) == ("tickets", 3)


def test_allowed_error_with_attributes_that_cannot_travel_arrives_without() -> None:
    """The error matters more than what was put into it."""
    error = Plain("plain")
    error.lock = object()  # type: ignore[attr-defined]
    arrived = travelled(error)

    assert type(arrived) is Plain
    assert arrived.args == ("plain",)
    assert not hasattr(arrived, "lock")


# As RemoteError ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "path", "text"),
    [
        (Foreign("a", 1), f"{__name__}.Foreign", "('a', 1)"),
        (SystemExit(3), "builtins.SystemExit", "3"),
        (KeyboardInterrupt(), "builtins.KeyboardInterrupt", ""),
        (GeneratorExit(), "builtins.GeneratorExit", ""),
        (BaseException("base"), "builtins.BaseException", "base"),
        (ValueError(object), "builtins.ValueError", "<class 'object'>"),
        (Unanswered("said inside"), "state_server.errors.Unanswered", "said inside"),
    ],
)
def test_other_errors_arrive_as_remote_errors(
    error: BaseException, path: str, text: str
) -> None:
    """A class that may not travel, or ends a process, is named instead."""
    arrived = travelled(error)

    assert type(arrived) is RemoteError
    assert arrived.class_path == path
    assert str(arrived) == (f"{path}: {text}" if text else path)
    assert arrived.remote_args == tuple(repr(argument) for argument in error.args)
    assert arrived.remote


def test_nested_class_is_named_in_full() -> None:
    """The path of a class inside a function says where it was made."""

    class Inner(Exception):
        pass

    arrived = travelled(Inner())

    assert isinstance(arrived, RemoteError)
    assert arrived.class_path is not None
    assert arrived.class_path.endswith(
        "test_nested_class_is_named_in_full.<locals>.Inner"
    )


def test_error_that_cannot_be_shown_is_still_named() -> None:
    """Text and repr that raise are replaced; class and traceback arrive."""
    arrived = travelled(Silent(Silent()))

    assert isinstance(arrived, RemoteError)
    assert arrived.class_path == f"{__name__}.Silent"
    assert "text failed: RuntimeError" in str(arrived)
    assert "text failed: RuntimeError" in arrived.remote_args[0]
    assert arrived.remote_traceback is not None
    assert "raise_deep" in arrived.remote_traceback


def test_very_long_texts_are_cut() -> None:
    """A failure is bounded whatever the method put into its error."""
    failure = failures.raised(Foreign("x" * 100_000, *range(100)))

    assert len(failure.text) <= 8_000
    assert len(failure.shown_args) == 20
    assert all(len(shown) <= 200 for shown in failure.shown_args)


# The traceback -----------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("v"), Foreign("f"), Sold("s", 1)])
def test_traceback_is_an_attribute_and_a_note(error: Exception) -> None:
    """However an error arrives, the manager's traceback is printed with it."""
    arrived = travelled(error)
    remote = arrived.remote_traceback  # type: ignore[attr-defined]
    shown = "".join(traceback.format_exception(arrived))

    assert "in raise_deep" in remote
    assert remote.rstrip().splitlines()[-1].startswith(type(error).__name__) or (
        type(error).__name__ in remote
    )
    assert arrived.__notes__ == [f"The traceback in the manager:\n{remote}"]
    if hasattr(arrived, "add_note"):
        assert "The traceback in the manager" in shown


def test_causes_are_in_the_traceback() -> None:
    """What an error came from is told as well."""
    try:
        try:
            raise_deep(KeyError("first"))
        except KeyError as first:
            raise ValueError("second") from first
    except ValueError as error:
        failure = failures.raised(error)

    assert "KeyError: 'first'" in failure.traceback
    assert "direct cause" in failure.traceback


def test_error_that_takes_no_attributes_arrives_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A class that refuses attributes is raised all the same."""
    monkeypatch.setattr(codec, "allowed_class", lambda *_: Slotted)
    failure = failures.raised(Foreign("x"))
    body = codec.encode((("x",), {}))
    arrived = failures.error_from(failure._replace(args=body))

    assert isinstance(arrived, (Slotted, RemoteError))


def test_end_of_a_long_traceback_is_kept() -> None:
    """Of a traceback that is too long the end says the most."""

    def recurse(depth: int) -> None:
        if depth:
            return recurse(depth - 1) if depth % 2 else _other(depth)
        raise_deep(ValueError("at the bottom"))
        return None

    def _other(depth: int) -> None:
        recurse(depth - 1)

    try:
        recurse(600)
    except ValueError as error:
        failure = failures.raised(error)

    assert len(failure.traceback) <= 30_000
    assert failure.traceback.rstrip().endswith("ValueError: at the bottom")


def test_long_text_of_an_error_hides_no_frame() -> None:
    """A traceback is cut in its middle: where it was raised is told in any case."""
    failure = failures.raised(raised_with(ValueError("x" * 100_000)))

    assert len(failure.traceback) <= 30_000
    assert "in raise_deep" in failure.traceback
    assert "characters are left out here" in failure.traceback


def raised_with(error: Exception) -> Exception:
    """Return the error with a traceback."""
    try:
        raise_deep(error)
    except Exception as caught:
        return caught
    raise AssertionError("it was not raised")


@pytest.mark.parametrize("error", [ValueError("x"), Sold("shoes", 3)])
def test_notes_of_an_error_arrive_before_ours(error: Exception) -> None:
    """What was added to an error with add_note() is on it, and then the traceback."""
    # add_note() came with Python 3.11; this is what it does.
    error.__notes__ = ["of order 7", 8, "n" * 9000]  # type: ignore[attr-defined]
    arrived: Any = travelled(error)

    assert type(arrived) is type(error)
    assert arrived.__notes__[:2] == ["of order 7", "n" * 8000]
    assert arrived.__notes__[2].startswith("The traceback in the manager:")
    assert len(arrived.__notes__) == 3


# What the server says ----------------------------------------------------------------


@pytest.mark.parametrize("cls", FAMILY.values())
def test_refusals_arrive_as_themselves(cls: type[StateServerError]) -> None:
    """Each error of the family that may be on the wire is rebuilt by its name."""
    body = failures.pack(failures.refusal(cls("the reason")))
    arrived = failures.error_from(failures.unpack(body))

    assert type(arrived) is cls
    assert str(arrived) == "the reason"
    assert arrived.remote_traceback is None


def test_refusals_of_a_subclass_arrive_as_its_nearest_relative() -> None:
    """A refusal whose class is not on the wire is named by one that is."""

    class VeryFull(Stopping):
        pass

    arrived = [
        failures.error_from(failures.refusal(error))
        for error in (VeryFull("full"), ConfigError("config"))
    ]

    assert [type(error) for error in arrived] == [Stopping, RemoteError]


@pytest.mark.parametrize(
    "failure",
    [
        Failure("Unknown", "text"),
        Failure("Exception", "text"),
        Failure("ConfigError", "text"),
    ],
)
def test_codes_that_are_unknown_become_remote_errors(failure: Failure) -> None:
    """A newer server's code, or none of ours, is never looked up elsewhere."""
    arrived = failures.error_from(failure)

    assert type(arrived) is RemoteError
    assert str(arrived) == "text"


@pytest.mark.parametrize(
    ("module", "qualname"),
    [
        ("builtins", "eval"),
        ("builtins", "object"),
        ("builtins", "SystemExit"),
        ("builtins", "type"),
        ("builtins", "__import__"),
        ("builtins", "Missing"),
        ("os", "system"),
        ("subprocess", "CalledProcessError"),
        ("", ""),
        (__name__, "Foreign"),
        (__name__, "Sold.__init__"),
    ],
)
def test_failure_never_builds_what_the_sender_names(module: str, qualname: str) -> None:
    """Only built-in errors and allowed classes are built; others are named."""
    body = codec.encode((("x",), {}))
    failure = Failure("Raised", "text", module, qualname, body)
    arrived = failures.error_from(failure)

    assert type(arrived) is RemoteError
    assert arrived.class_path == f"{module}.{qualname}"


@pytest.mark.parametrize(
    "args",
    [
        b"",
        b"no pickle",
        codec.encode(5),
        codec.encode(((1,),)),
        codec.encode((5, {})),
        codec.encode(((1, 2, 3, 4, 5, 6), {})),
        codec.encode((("x",), 5)),
    ],
)
def test_failure_with_odd_arguments_still_tells_what_was_raised(args: bytes) -> None:
    """Whatever is wrong with the arguments, some error arrives, never another."""
    failure = Failure("Raised", "text", "builtins", "UnicodeDecodeError", args)
    arrived = failures.error_from(failure)

    assert isinstance(arrived, (RemoteError, UnicodeDecodeError))


@pytest.mark.parametrize("body", [codec.encode(5), codec.encode(("a", "b"))])
def test_bytes_of_another_form_are_a_remote_error(body: bytes) -> None:
    """A failure that cannot be read is said to be one."""
    assert failures.unpack(body).code == "RemoteError"


# The family --------------------------------------------------------------------------


def every_error(cls: type = StateServerError) -> list[type[StateServerError]]:
    """Return every class of the family that this package defines."""
    found = [
        error
        for error in cls.__subclasses__()
        if error.__module__ == "state_server.errors"
    ]
    return [*found, *(below for error in found for below in every_error(error))]


def test_the_family_is_sorted_by_what_the_caller_may_do() -> None:
    """Statuses fit the flags: 503 may be tried again, 504 may have run."""
    for cls in every_error():
        assert cls.status in (500, 503, 504), cls
        assert (cls.status == 503) == cls.retryable, cls
        assert not (cls.retryable and cls.maybe_executed), cls
        assert cls.__doc__, cls


@pytest.mark.parametrize(
    ("cls", "also"),
    [
        (Unanswered, TimeoutError),
        (NotShared, LookupError),
        (NotOffered, AttributeError),
        (Overloaded, StateServerError),
    ],
)
def test_errors_are_the_usual_ones_as_well(cls: type, also: type) -> None:
    """Code that catches the usual class catches ours."""
    assert issubclass(cls, also)


def test_what_may_be_on_the_wire_goes_by_its_own_name() -> None:
    """The table of names has each class under its own."""
    assert all(name == cls.__name__ for name, cls in FAMILY.items())
    rest = {cls.__name__ for cls in every_error()} - set(FAMILY)
    assert rest == {"ConfigError", "Unreachable"}


def test_any_values_travel_in_a_failure() -> None:
    """A packed failure comes out as it went in."""
    failure: Any = Failure("Raised", "t", "m", "q", b"a", ("x", "y"), "tb")
    assert failures.unpack(failures.pack(failure)) == failure
