"""Objects to bytes and back, as state: what is kept of an object between two calls.

State is trusted pickle, made and read by the manager alone, in its private folder. It
is taken apart as pickle does it (``__getstate__``, ``__dict__``, ``__slots__``),
without the name of the class, so that a class can be renamed and its state migrated.

Nothing from the wire may enter here; that is codec's.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any, NamedTuple
from uuid import UUID

from ..errors import Unkeepable

#: Attributes that are not state, and what makes them anew (``None``: left away).
Transient = Mapping[str, Callable[[], Any] | None]

_PROTOCOL = 5


class Parts(NamedTuple):
    """An object taken apart: how to make an empty one, and what to put into it.

    ``kwargs`` is ``None`` for an object that is made by calling its class, as sets,
    counters and double-ended queues want it.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] | None
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
    classes: set[type]

    def reducer_override(self, value: object) -> Any:
        """Name the object itself; leave everything else to pickle."""
        if value is self.root:
            return _itself, ()
        self.classes.add(type(value))
        return NotImplemented


def dump(
    instance: Any, transient: Transient, classes: set[type] | None = None
) -> bytes:
    """Return the image of an object.

    ``classes`` is given those of the values in it that pickle does not make by itself.
    Raises ``Unkeepable`` naming the attribute that cannot be pickled.
    """
    parts = None
    try:
        reduced = instance.__reduce_ex__(4)
        if _is_only_state(reduced, type(instance)):
            state = _without(reduced[2], transient)
            if _is_plain(state):
                return _PLAIN_START + pickle.dumps((state, None, None), _PROTOCOL)
        parts = _taken_apart(instance, reduced, transient)
        # Two pickles in a row: the empty object must exist before its state is read.
        return _pickled(instance, parts[:2], parts[2:], classes=classes)
    except Unkeepable:
        raise
    except Exception as error:
        state = None if parts is None else parts.state
        raise Unkeepable(_why(instance, state, error)) from error


def _pickled(root: Any, *values: Any, classes: set[type] | None = None) -> bytes:
    """Return the pickles of ``values``, one after the other."""
    file = io.BytesIO()
    pickler = _ImagePickler(file, _PROTOCOL)
    pickler.root = root
    pickler.classes = set() if classes is None else classes
    for value in values:
        pickler.dump(value)
    return file.getvalue()


def rebuild(
    image: bytes,
    cls: type,
    transient: Transient,
    migrate: Callable[[Any], Any] | None = None,
) -> Any:
    """Return the object that ``image`` describes, as one of ``cls``.

    ``migrate``: what its state goes through before.
    """
    unpickler = pickle.Unpickler(io.BytesIO(image))
    args, kwargs = unpickler.load()
    instance = cls(*args) if kwargs is None else _empty(cls, args, kwargs)
    before, _loading.root = _loading.root, instance
    try:
        state, items, pairs = unpickler.load()
    finally:
        _loading.root = before
    if migrate is not None:
        state = migrate(state)
    # Items before the state, as pickle does it: what a method of the class that puts
    # items in changes besides them is put right by the state.
    if items is not None:
        _base(cls, (list, deque)).extend(instance, items)
    if pairs is not None:
        put = _base(cls, (OrderedDict, dict)).__setitem__
        for key, value in pairs:
            put(instance, key, value)
    _put_state(instance, state)
    for name, make in transient.items():
        if make is not None:
            object.__setattr__(instance, name, make())
    return instance


def is_handed_out_again(instance: Any) -> bool:
    """Tell whether the class of an object would give the same one again (a singleton).

    Of a class whose own class says what calling it does, that is taken for granted.
    """
    cls = type(instance)
    if isinstance(type(cls).__call__, types.FunctionType):
        return True
    if not isinstance(cls.__new__, types.FunctionType):
        return False
    parts = _taken_apart(instance, instance.__reduce_ex__(4), {})
    kwargs = parts.kwargs
    return kwargs is not None and cls.__new__(cls, *parts.args, **kwargs) is instance


def _empty(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return an object of a class that nobody else has."""
    instance = cls.__new__(cls, *args, **kwargs)
    if not isinstance(cls.__new__, types.FunctionType):
        return instance
    if cls.__new__(cls, *args, **kwargs) is not instance:
        return instance
    # The class hands out one and the same (a singleton), and that may be in use.
    try:
        return _base(cls, (OrderedDict, dict, list, set, deque, object)).__new__(cls)
    except TypeError:
        # A tuple, say: there is nothing in it that could be changed.
        return instance


def _base(cls: type, bases: tuple[type, ...]) -> Any:
    """Return the built-in class that ``cls`` is made from: its methods only do that."""
    return next((base for base in bases if issubclass(cls, base)), cls)


class _Itself:
    """Stands, in parts taken from an image, for the object that the image is of."""

    def __repr__(self) -> str:
        return "<the object itself>"

    def __reduce__(self) -> str:
        return "ITSELF"


ITSELF = _Itself()


def parts_of(image: bytes) -> Parts:
    """Return the parts in an image, with ``ITSELF`` where the object is in them.

    This runs what the image names, as ``pickle`` does: for our own files only.
    """
    unpickler = pickle.Unpickler(io.BytesIO(image))
    before, _loading.root = _loading.root, ITSELF
    try:
        args, kwargs = unpickler.load()
        return Parts(args, kwargs, *unpickler.load())
    finally:
        _loading.root = before


def image_of(parts: Parts) -> bytes:
    """Return the image that holds these parts."""
    return _pickled(ITSELF, parts[:2], parts[2:])


def pickled(value: object) -> bytes:
    """Return one value of a state as bytes."""
    return pickle.dumps(value, _PROTOCOL)


def unpickled(data: bytes) -> Any:
    """Return the value in ``data``; this runs what it names: for trusted files only."""
    return pickle.loads(data)


def shares_values(parts: Parts) -> bool:
    """Tell whether a value that may change is at two places of the parts.

    Such parts cannot be written as a tree and read again without becoming two values.
    """
    pickler = _MeetingPickler(io.BytesIO(), _PROTOCOL)
    pickler.dump(tuple(parts))
    return pickler.met_again


class _MeetingPickler(pickle.Pickler):
    """Notes whether it meets a value twice; the pickler's memo keeps ids unique."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.met_again = False
        self._met: dict[int, object] = {}

    def persistent_id(self, value: Any) -> None:
        """Note one value; it is pickled as usual."""
        if id(value) in self._met and not _is_constant(value):
            self.met_again = True
        self._met[id(value)] = value


_ATOMS = (
    *(type(None), bool, int, float, complex, str, bytes),
    *(Decimal, Fraction, date, time, timedelta, tzinfo, UUID, Enum),
    *(type, types.FunctionType, types.BuiltinFunctionType, _Itself),
)

_PLAIN = frozenset((type(None), bool, int, float, str, bytes))

#: What ``object.__reduce_ex__`` says an object is made with, and of one without items.
_NEW = copyreg.__newobj__  # type: ignore[attr-defined]
_NO_ITEMS = ((), (None,), (None, None))

#: The first half of the image of an object that is made from its class alone.
_PLAIN_START = pickle.dumps(((), {}), _PROTOCOL)


def _is_constant(value: Any) -> bool:
    """Tell whether nobody can see that two of this value are one and the same."""
    if type(value) in (tuple, frozenset):
        return all(isinstance(item, _ATOMS) for item in value)
    return isinstance(value, _ATOMS)


def _is_only_state(reduced: Any, cls: type) -> bool:
    """Tell whether an object is made from its class alone, and has no items."""
    return (
        len(reduced) > 2
        and reduced[0] is _NEW
        and reduced[1] == (cls,)
        and reduced[3:] in _NO_ITEMS
    )


def _is_plain(state: Any) -> bool:
    """Tell whether a state has nothing but attributes of the plainest types.

    Most objects that are called often are counters and the like, and their image is
    made twice as fast.
    """
    return (
        type(state) is dict
        and _PLAIN.issuperset(map(type, state))
        and _PLAIN.issuperset(map(type, state.values()))
    )


def _taken_apart(instance: Any, reduced: Any, transient: Transient) -> Parts:
    function, arguments, *rest = reduced
    state, items, pairs = (*rest, None, None, None)[:3]
    if function is _NEW:
        args, kwargs = tuple(arguments[1:]), {}
    elif function is copyreg.__newobj_ex__:  # type: ignore[attr-defined]
        _, args, kwargs = arguments
    elif function is type(instance):
        args, kwargs = tuple(arguments), None
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
    if not transient:
        # A state of the class's own may look like one of slots: a named tuple of two.
        return state
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
        return tuple(_without(part, transient) for part in state)
    if isinstance(state, dict):
        return {name: state[name] for name in state if name not in transient}
    return state


def _put_state(instance: Any, state: Any) -> None:
    """Put state into an object as ``pickle`` does (``load_build`` in pickle.py).

    The class is asked for its methods, not the object: a ``__getattr__`` of its own may
    need what is not there yet.
    """
    if state is None:
        return
    set_state = getattr(type(instance), "__setstate__", None)
    if set_state is not None:
        set_state(instance, state)
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
    named: dict[str, Any] = {}
    for part in state if isinstance(state, tuple) else (state,):
        named.update(part if isinstance(part, dict) else {})
    for name, value in named.items():
        try:
            _pickled(instance, value)
        except Exception as cause:
            return (
                f"The state of {shared} cannot be kept: its attribute {name!r}, a "
                f"{type(value).__qualname__}, cannot be pickled ({cause}). Leave it "
                f"away with share(transient={{{name!r}: …}}) or __getstate__."
            )
    return f"The state of {shared} cannot be kept: {type(error).__name__}: {error}."
