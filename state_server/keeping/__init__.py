"""How the state of one object is kept between calls, and put back after a failed one.

A keeper holds the live object. It is used by the thread whose turn the object is, and
by no other. What it wants on disk it returns as a ``Change``; when that is committed is
not its business.

Here are the keeper of whole states and the one that keeps nothing; ``journal`` has the
one that logs calls. ``image`` is a state as bytes, and ``commits`` the committer, which
has the changes written.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple, Protocol

from ..errors import Refused, TooLarge, Unkeepable, Unloadable
from ..messages import Call
from ..sharing import SharedClass
from . import image
from .commits import Change, Committer, ObjectName, Stored

log = logging.getLogger("state_server.host")


class KeepingLimits(NamedTuple):
    """Limits of what is kept; each is a setting of the same name."""

    state_bytes_max: int = 1024 * 1024
    state_bytes_warn: int = 64 * 1024
    journal_bytes_max: int = 16 * 1024 * 1024
    development: bool = False


class Keeper(Protocol):
    """Holds one object. ``instance`` is ``None`` until ``bring`` was called."""

    instance: Any
    #: Whether a failed call leaves the object as it was.
    undoes: bool

    @property
    def kept_bytes(self) -> int:
        """Return the bytes of what is kept of the object; 0 while it is not known.

        They stand for the memory that it takes, which nobody can tell.
        """

    def bring(self) -> None:
        """Bring the object into memory: from disk, or built anew."""

    def begin(self, call: Call, *, readonly: bool) -> None:
        """Take note that a call begins."""

    def kept(self, call: Call, *, readonly: bool) -> Change | None:
        """Return what the call changed, after it has succeeded.

        Raises an error of the family when the state cannot be kept.
        """

    def first(self) -> Change | None:
        """Return what puts a new object on disk, when its first call has failed.

        The error that its caller gets may show how it is built. Raises an error of the
        family when the object cannot be kept.
        """

    def undo(self, *, readonly: bool) -> None:
        """Put the object back to what it was before the call."""

    def drop(self) -> None:
        """Let go of the object; ``bring`` starts again from what is on disk."""


class MemoryKeeper:
    """Keeps nothing: what a failed call has changed stays changed."""

    __slots__ = ("_shared", "instance")

    undoes = False
    kept_bytes = 0

    def __init__(self, shared: SharedClass) -> None:
        self._shared = shared
        self.instance: Any = None

    def bring(self) -> None:
        """Build the object."""
        self.instance = built(self._shared)

    def begin(self, call: Call, *, readonly: bool) -> None:
        """Do nothing."""

    def kept(self, call: Call, *, readonly: bool) -> Change | None:
        """Return nothing: nothing is kept."""
        return None

    def first(self) -> Change | None:
        """Return nothing: nothing is kept."""
        return None

    def undo(self, *, readonly: bool) -> None:
        """Do nothing."""

    def drop(self) -> None:
        """Let go of the object."""
        self.instance = None


class StateKeeper:
    """Keeps an image of the object's whole state after each call that changed it.

    ``_image`` is a dump made in this process of the state as it was after the last
    call, or as it was loaded: never the stored bytes themselves, because a mere reload
    may change the order in which a set is dumped. Equal images mean equal states;
    unequal ones prove nothing, and cost a write at most.
    """

    __slots__ = (
        "_checked",
        "_class",
        "_committer",
        "_generation",
        "_image",
        "_limits",
        "_name",
        "_saved",
        "_shared",
        "_warned",
        "instance",
        "kept_bytes",
    )

    undoes = True

    def __init__(
        self,
        name: ObjectName,
        shared: SharedClass,
        committer: Committer | None,
        limits: KeepingLimits,
    ) -> None:
        self._name = name
        self._shared = shared
        self._committer = committer
        self._limits = limits
        self._image = b""
        #: Of the image; each call asks for it.
        self.kept_bytes = 0
        self._class: type = object
        self._generation = 0
        self._saved = False
        self._warned = False
        #: Classes of values that were found to load; none before the first image was.
        self._checked: frozenset[type] | None = None
        self.instance: Any = None

    def bring(self) -> None:
        """Load the object, or build it when there is none on disk."""
        transient = self._shared.transient
        if self._committer is None and self._image and self._shared.cls is not None:
            # Nothing is on disk; the image is all there is of it.
            self.instance = image.rebuild(self._image, self._class, transient)
            return
        stored = None if self._committer is None else self._committer.load(self._name)
        if stored is None:
            instance = built(self._shared)
            self._generation = 0
        else:
            instance = loaded(self._name, self._shared, stored)
            self._generation = stored.generation
        self._hold(image.dump(instance, transient))
        # A new version of the class is written with the next change, not at once:
        # loading must stay cheap.
        self._saved = stored is not None
        self._class = type(instance)
        self.instance = instance

    def begin(self, call: Call, *, readonly: bool) -> None:
        """Do nothing: the image of the last call is what a call begins with."""

    def kept(self, call: Call, *, readonly: bool) -> Change | None:
        """Return the new image, if the state is another than before."""
        if readonly and self._saved and not self._limits.development:
            return None
        check_class(self._name, self.instance, self._class)
        classes: set[type] = set()
        fresh = image.dump(self.instance, self._shared.transient, classes)
        same = fresh == self._image
        if readonly and not same:
            raise Refused(
                f"A method of {'/'.join(self._name)} that is declared read-only "
                "changed the object; the change was undone. Remove the declaration."
            )
        if same and self._saved:
            return None
        self._check_size(len(fresh))
        checked = self._checked
        if self._limits.development or checked is None or not classes <= checked:
            self._check_loads(fresh)
            self._checked = (checked or frozenset()) | classes
        return self._next(fresh)

    def first(self) -> Change | None:
        """Return the image of an object that was built and is not on disk yet."""
        if self._saved or self.instance is None:
            return None
        self._check_size(len(self._image))
        self._check_loads(self._image)
        return self._next(self._image)

    def _next(self, fresh: bytes) -> Change | None:
        self._hold(fresh)
        self._generation += 1
        self._saved = True
        if self._committer is None:
            return None
        return Change(self._name, self._shared.version, self._generation, fresh)

    def undo(self, *, readonly: bool) -> None:
        """Put the object back, as a new instance, if it is not what it was."""
        if self.instance is None or (readonly and not self._limits.development):
            return
        transient = self._shared.transient
        try:
            same = image.dump(self.instance, transient) == self._image
        except Unkeepable:
            same = False
        if not same or type(self.instance) is not self._class:
            self.instance = image.rebuild(self._image, self._class, transient)
            # Of the new instance: it may be dumped in other bytes than the former one,
            # and would be taken for changed, and written, at the next call.
            self._hold(image.dump(self.instance, transient))

    def drop(self) -> None:
        """Let go of the object; the next call starts from what is kept of it."""
        self.instance = None
        if self._committer is not None:
            self._hold(b"")

    def _hold(self, fresh: bytes) -> None:
        self._image = fresh
        self.kept_bytes = len(fresh)

    def _check_loads(self, fresh: bytes) -> None:
        """Make sure that an image can be read back.

        The first one, to be cheap, and each that holds a value of a further class.
        """
        brought_back(self._name, fresh, type(self.instance), self._shared)

    def _check_size(self, size: int) -> None:
        if self._committer is not None:
            check_storable(self._name, "state", size, self._committer)
        if size > self._limits.state_bytes_max:
            raise TooLarge(
                f"The state of {'/'.join(self._name)} would have {size} bytes; the "
                f"limit is {self._limits.state_bytes_max} (state_bytes_max). The call "
                "was undone. Split the object up, or share the class with "
                'durable="journal".'
            )
        if size > self._limits.state_bytes_warn and not self._warned:
            self._warned = True
            log.warning(
                "The state of %s has %d bytes, and all of them are written with each "
                'change; consider durable="journal" or smaller objects.',
                "/".join(self._name),
                size,
            )


def check_storable(
    name: ObjectName, what: str, size: int, committer: Committer
) -> None:
    """Raise ``TooLarge`` for what the store cannot take, before anything is staged.

    ``what``: what has so many bytes, for the error.
    """
    if size > committer.value_bytes_max:
        raise TooLarge(
            f"The {what} of {'/'.join(name)} would have {size} bytes; the store takes "
            f"{committer.value_bytes_max} at the most. Nothing was changed. Split the "
            "object up."
        )


def brought_back(name: ObjectName, fresh: bytes, cls: type, shared: SharedClass) -> Any:
    """Return the object in an image that is to be written.

    Raises ``Unkeepable`` where that fails: on disk it could never be loaded again.
    """
    try:
        return image.rebuild(fresh, cls, shared.transient)
    except Exception as error:
        # The class's own code.
        raise Unkeepable(
            f"The state of {'/'.join(name)} can be pickled, but not brought back: "
            f"{type(error).__name__}: {error}. The call was undone."
        ) from error


def built(shared: SharedClass) -> Any:
    """Return a new object, which is nobody else's.

    A class may make one for all that ask (a singleton). That would be the object of
    several keys, which would change each other, so each key has a copy of it.
    """
    instance = shared.build()
    if shared.cls is None:
        # A factory: who wrote that has chosen what it gives.
        return instance
    try:
        if image.is_handed_out_again(instance):
            fresh = image.dump(instance, shared.transient)
            return image.rebuild(fresh, type(instance), shared.transient)
    except Exception as error:
        # The class's own code. Where the object is to be kept this is told then.
        log.debug("%s is not asked whether it is a singleton: %s", shared.name, error)
    return instance


def check_class(name: ObjectName, instance: Any, cls: type) -> None:
    """Raise ``Unkeepable`` when a method has made its object one of another class.

    The class is no part of what is kept: it would be the former one again after the
    next load.
    """
    if type(instance) is not cls:
        raise Unkeepable(
            f"{'/'.join(name)} has become a {type(instance).__qualname__} (__class__); "
            f"an object is kept as the {cls.__qualname__} that it was built as. The "
            "call was undone. Keep what it has become in an attribute."
        )


def loaded(name: ObjectName, shared: SharedClass, stored: Stored) -> Any:
    """Return the object that is stored, migrated if its class has changed since.

    Raises ``Unloadable`` when this release of the class cannot read it.
    """
    shown, cls = "/".join(name), shared.cls
    if cls is None:
        raise Unloadable(f"{shown} is stored, but its class is not known yet.")
    if stored.entries and shared.durable != "journal":
        raise Unloadable(
            f"{shown} is stored with {len(stored.entries)} journalled calls, and its "
            'class is not shared with durable="journal" any more. Start the manager '
            "once with that, call the object, and stop it with SIGTERM: it writes an "
            "image, which needs no journal."
        )
    if stored.version > shared.version:
        raise Unloadable(
            f"{shown} was stored by version {stored.version} of its class; this "
            f"manager has version {shared.version}. Start it with the newer code."
        )
    migrate = None
    if stored.version < shared.version:
        method = getattr(cls, "migrate", None)
        if method is None:
            raise Unloadable(
                f"{shown} was stored by version {stored.version} of its class, which "
                f"is at version {shared.version} now and has no classmethod "
                "migrate(old_version, state)."
            )

        def migrate(state: Any) -> Any:
            return method(stored.version, state)

    try:
        return image.rebuild(stored.image, cls, shared.transient, migrate)
    except Exception as error:
        # The border to the class's own code: whatever it raises, the stored state
        # stays as it is.
        raise Unloadable(
            f"{shown} is stored, but could not be brought back: "
            f"{type(error).__name__}: {error}"
        ) from error
