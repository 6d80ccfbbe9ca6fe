"""Journal mode: the calls that change an object are logged, and replayed to load it.

For large objects whose methods are deterministic: a change costs the size of the call,
not the size of the object. What a method may not take from elsewhere (the clock,
chance) it takes from ``replayable``, and an entry says what it got.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from .. import bodies, codec
from ..errors import Unloadable
from ..messages import Call
from ..replayable import taps
from ..sharing import SharedClass
from . import brought_back, built, check_class, check_storable, image, loaded
from .commits import Change, Committer, ObjectName, Stored


class Entry(NamedTuple):
    """One journalled call: what was called, and what chance and the clock said."""

    version: int
    method: str
    body: bytes
    drawn: tuple[float, ...]


#: What only looks at an object. ``__getitem__`` is not among them: a defaultdict
#: answers it by adding an item. Declare it where it only looks.
_LOOKS = frozenset(
    {
        "__len__",
        "__contains__",
        "__iter__",
        "__bool__",
        "__repr__",
        "__str__",
        "__getattribute__",
    }
)


class JournalKeeper:
    """Keeps an image now and then, and the calls since."""

    __slots__ = (
        "_arguments",
        "_class",
        "_committer",
        "_entries",
        "_entry_bytes",
        "_entry_bytes_max",
        "_generation",
        "_image_bytes",
        "_image_version",
        "_name",
        "_newborn",
        "_saved",
        "_shared",
        "instance",
    )

    undoes = True

    def __init__(
        self,
        name: ObjectName,
        shared: SharedClass,
        committer: Committer,
        entry_bytes_max: int,
    ) -> None:
        self._name = name
        self._shared = shared
        self._committer = committer
        self._entry_bytes_max = entry_bytes_max
        self._entries = 0
        self._entry_bytes = 0
        self._image_bytes = 0
        self._image_version = shared.version
        self._generation = 0
        self._saved = False
        self._arguments = b""
        self._class: type = object
        #: The image of an object that is not on disk yet.
        self._newborn = b""
        self.instance: Any = None

    @property
    def kept_bytes(self) -> int:
        """Return the bytes of the last image and of the calls since."""
        return 0 if self.instance is None else self._image_bytes + self._entry_bytes

    def begin(self, call: Call, *, readonly: bool) -> None:
        """Take down the arguments, and from now on what is drawn from clock and chance.

        Now, because the method may change what it was given: an array is a view on the
        memory that its call came in.
        """
        self._arguments = b"" if readonly else _body(call)
        taps.record = []

    def bring(self) -> None:
        """Load the last image and replay the calls since, or build the object."""
        stored = self._committer.load(self._name)
        if stored is None:
            self.instance = built(self._shared)
            self._class = type(self.instance)
            self._newborn = image.dump(self.instance, self._shared.transient)
            self._image_bytes, self._entry_bytes = len(self._newborn), 0
            self._saved = False
            self._generation = 0
            return
        self.instance = replayed(self._name, self._shared, stored)
        self._class = type(self.instance)
        self._saved = True
        self._generation = stored.generation + len(stored.entries)
        self._image_bytes = len(stored.image)
        self._image_version = stored.version
        self._entries = len(stored.entries)
        self._entry_bytes = sum(map(len, stored.entries))

    def kept(self, call: Call, *, readonly: bool) -> Change | None:
        """Return the journal entry of the call, or a new image when it is time."""
        drawn, taps.record = taps.record or [], None
        arguments, self._arguments = self._arguments, b""
        if self._saved and (readonly or call.method in _LOOKS):
            return None
        check_class(self._name, self.instance, self._class)
        entry = pack(Entry(self._shared.version, call.method, arguments, tuple(drawn)))
        self._check_size("journalled call", entry)
        grown = self._entry_bytes + len(entry)
        # Calls on a migrated object do not follow the image that it was migrated from:
        # what migrate makes of that need not be the same each time.
        is_migrated = self._image_version != self._shared.version
        is_full = grown > max(self._entry_bytes_max, self._image_bytes)
        if not self._saved or is_migrated or is_full:
            return self.snapshot()
        self._generation += 1
        self._entries += 1
        self._entry_bytes = grown
        return Change(self._name, self._shared.version, self._generation, None, entry)

    def snapshot(self) -> Change:
        """Return an image, and go on with the object that it describes.

        The live object is replaced by the loaded one: a set that was grown and one that
        was loaded may iterate differently, and a replay starts from the loaded one.
        That takes about as long as the image, and the class may spare it.
        """
        fresh = image.dump(self.instance, self._shared.transient)
        self._check_size("state", fresh)
        if not self._shared.keeps_order:
            self.instance = self._brought_back(fresh)
        return self._written(fresh)

    def first(self) -> Change | None:
        """Return the image of an object that was built and is not on disk yet."""
        if self._saved:
            return None
        self._check_size("state", self._newborn)
        # It goes on with the one that was loaded, as a replay does.
        self.instance = self._brought_back(self._newborn)
        return self._written(self._newborn)

    def _brought_back(self, fresh: bytes) -> Any:
        return brought_back(self._name, fresh, self._class, self._shared)

    def _check_size(self, what: str, data: bytes) -> None:
        check_storable(self._name, what, len(data), self._committer)

    def _written(self, fresh: bytes) -> Change:
        self._saved = True
        self._newborn = b""
        self._generation += 1
        self._image_bytes = len(fresh)
        self._image_version = self._shared.version
        self._entries = self._entry_bytes = 0
        return Change(self._name, self._shared.version, self._generation, fresh)

    @property
    def has_entries(self) -> bool:
        """Tell whether there are journalled calls since the last image."""
        return self.instance is not None and self._saved and self._entries > 0

    def undo(self, *, readonly: bool) -> None:
        """Load the object anew after an error, unless nothing can have changed."""
        self._forget_call()
        if not readonly:
            self.drop()

    def drop(self) -> None:
        """Let go of the object; the next call starts from what is on disk."""
        self._forget_call()
        self.instance = None

    def _forget_call(self) -> None:
        """Let go of what ``begin`` took down; this thread records no further."""
        taps.record = None
        self._arguments = b""


def pack(entry: Entry) -> bytes:
    """Return the bytes of an entry."""
    return codec.encode(tuple(entry))


def unpack(data: bytes) -> Entry:
    """Return the entry in ``data``; raise whatever error it is if there is none."""
    entry = Entry(*codec.decode(data))
    if tuple(map(type, entry)) != (int, str, bytes, tuple):
        raise TypeError("the parts of the entry have other types than those of one")
    return entry


def replayed(name: ObjectName, shared: SharedClass, stored: Stored) -> Any:
    """Return the stored object with its journalled calls made again.

    Raises ``Unloadable`` naming the call that cannot be replayed.
    """
    instance = loaded(name, shared, stored)
    for number, data in enumerate(stored.entries, 1):
        place = f"call {number} of the journal of {'/'.join(name)}"
        try:
            entry = unpack(data)
        except Exception as error:
            # Whatever stands there in place of what was written.
            raise Unloadable(
                f"{place} is damaged: {type(error).__name__}: {error}. Restore a "
                "backup with `python -m state_server restore`."
            ) from error
        place += f" ({entry.method})"
        if entry.version != shared.version:
            raise Unloadable(
                f"{place} was made by version {entry.version} of the class, this is "
                f"version {shared.version}. Start the manager once with the former "
                "code, call the object, and stop it with SIGTERM: it writes an image "
                "that the new version can migrate."
            )
        _replay(instance, entry, place)
    return instance


def _replay(instance: Any, entry: Entry, place: str) -> None:
    taps.replay = deque(entry.drawn)
    try:
        args, kwargs = bodies.unpack(entry.body) if entry.body else ((), {})
        result = getattr(instance, entry.method)(*args, **kwargs)
        if hasattr(result, "__next__"):
            # A generator method did its work while it was read to the end.
            deque(result, maxlen=0)
    except Exception as error:
        raise Unloadable(
            f"{place} raised {type(error).__name__} when it was replayed: {error}. "
            "Does the method depend on anything but its arguments and the object?"
        ) from error
    finally:
        taps.replay = None


def _body(call: Call) -> bytes:
    if isinstance(call.body, tuple):
        return codec.encode(call.body)
    return bytes(call.body)
