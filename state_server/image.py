"""Objects to bytes and back, as state: what is kept of an object between two calls.

State is trusted pickle, made and read by the manager alone, in its private folder. It is
taken apart as pickle does it (``__getstate__``, ``__dict__``, ``__slots__``), without
the name of the class, so that a class can be renamed and its state migrated.

Nothing from the wire may enter here; that is codec's.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .errors import StoreError

#: Attributes that are not state, and what makes them anew (``None``: left away).
Transient = Mapping[str, Callable[[], Any] | None]

_PROTOCOL = 5


class Unkeepable(StoreError):
    """The state of an object cannot be kept: part of it cannot be pickled."""

    retryable = False
    status = 500


class Unloadable(StoreError):
    """A stored object cannot be brought back into memory by this manager."""

    retryable = False
    status = 500


class Parts(NamedTuple):
    """An object taken apart: how to make an empty one, and what to put into it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: Any
    items: list[Any] | None
    pairs: list[tuple[Any, Any]] | None


class _Loading(threading.local):
    """The object that this thread is bringing back."""

    root: Any = None


_loading = _Loading()


def _itself() -> Any:
    """Stand, in an image, for the object whose image it is."""
    return _loading.root


class _ImagePickler(pickle.Pickler):
    """Pickles parts; where the object itself appears in them, it says so."""

    root: Any = None

    def reducer_override(self, value: object) -> Any:
        """Name the object itself; leave everything else to pickle."""
        return (_itself, ()) if value is self.root else NotImplemented


def dump(instance: Any, transient: Transient) -> bytes:
    """Return the image of an object.

    Raises ``Unkeepable`` naming the attribute that cannot be pickled.
    """
    parts = _taken_apart(instance, transient)
    file = io.BytesIO()
    pickler = _ImagePickler(file, _PROTOCOL)
    pickler.root = instance
    try:
        # Two pickles in a row: the empty object must exist before its state is read.
        pickler.dump(parts[:2])
        pickler.dump(parts[2:])
    except Exception as error:
        raise Unkeepable(_why(instance, parts.state, error)) from error
    return file.getvalue()


def read(image: bytes, cls: type, transient: Transient) -> Any:
    """Return the object that ``image`` describes, as one of ``cls``."""
    return rebuild(image, cls, transient, None)


def rebuild(
    image: bytes,
    cls: type,
    transient: Transient,
    migrate: Callable[[Any], Any] | None,
) -> Any:
    """Return the object that ``image`` describes, its state changed by ``migrate``."""
    unpickler = pickle.Unpickler(io.BytesIO(image))
    args, kwargs = unpickler.load()
    instance = cls.__new__(cls, *args, **kwargs)
    before, _loading.root = _loading.root, instance
    try:
        state, items, pairs = unpickler.load()
    finally:
        _loading.root = before
    if migrate is not None:
        state = migrate(state)
    _put_state(instance, state)
    if items is not None:
        for item in items:
            instance.append(item)
    if pairs is not None:
        for key, value in pairs:
            instance[key] = value
    for name, make in transient.items():
        if make is not None:
            object.__setattr__(instance, name, make())
    return instance


def state_of(image: bytes) -> Any:
    """Return the state in an image as plain values, for people to look at."""
    unpickler = pickle.Unpickler(io.BytesIO(image))
    args, kwargs = unpickler.load()
    return Parts(args, kwargs, *unpickler.load())


def from_parts(parts: Parts) -> bytes:
    """Return the image that holds these parts."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, _PROTOCOL)
    pickler.dump(parts[:2])
    pickler.dump(parts[2:])
    return file.getvalue()


def _taken_apart(instance: Any, transient: Transient) -> Parts:
    function, arguments, *rest = instance.__reduce_ex__(4)
    state, items, pairs = (*rest, None, None, None)[:3]
    if function is copyreg.__newobj__:  # type: ignore[attr-defined]
        args, kwargs = tuple(arguments[1:]), {}
    elif function is copyreg.__newobj_ex__:  # type: ignore[attr-defined]
        _, args, kwargs = arguments
    else:
        raise Unkeepable(
            f"{type(instance).__qualname__} describes itself to pickle in a way of its "
            "own (__reduce__); define __getstate__ and __setstate__, or share it with "
            "durable=False."
        )
    return Parts(
        tuple(args),
        kwargs,
        _without(state, transient),
        None if items is None else list(items),
        None if pairs is None else list(pairs),
    )


def _without(state: Any, transient: Transient) -> Any:
    """Return ``state`` less the transient attributes; never the live ``__dict__``."""
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
        return tuple(_without(part, transient) for part in state)
    if isinstance(state, dict) and transient:
        return {name: state[name] for name in state if name not in transient}
    return state


def _put_state(instance: Any, state: Any) -> None:
    """Put state into an object as ``pickle`` does (``load_build`` in pickle.py)."""
    set_state = getattr(instance, "__setstate__", None)
    if set_state is not None:
        if state is not None:
            set_state(state)
        return
    slots = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    if state:
        instance.__dict__.update(state)
    if slots:
        for name, value in slots.items():
            object.__setattr__(instance, name, value)


def _why(instance: Any, state: Any, error: Exception) -> str:
    """Say which attribute cannot be pickled."""
    shared = type(instance).__qualname__
    named = state[0] if isinstance(state, tuple) and state else state
    for name, value in (named if isinstance(named, dict) else {}).items():
        try:
            pickle.dumps(value, _PROTOCOL)
        except Exception as cause:
            return (
                f"The state of {shared} cannot be kept: its attribute {name!r}, a "
                f"{type(value).__qualname__}, cannot be pickled ({cause}). Leave it "
                f"away with share(transient={{{name!r}: …}}) or __getstate__."
            )
    return f"The state of {shared} cannot be kept: {error}."
