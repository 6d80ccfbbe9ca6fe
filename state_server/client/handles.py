"""Handles: what a client holds of an object. They cost nothing until they are used."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from .. import codec
from ..errors import NotOffered
from ..messages import WHAT_IS_OFFERED, Contract
from ..settings import checked_timeout


class Caller(Protocol):
    """What a handle needs of its client."""

    def call(
        self,
        target: tuple[str, str, str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout_s: float | None,
    ) -> Any:
        """Call a method, named by (class, key, method), and return its result."""

    def contract(
        self, class_name: str, *, again: bool = False, timeout: float | None = None
    ) -> Contract:
        """Return what a class offers; ``again``: ask the manager, whatever is known."""

    @property
    def location(self) -> tuple[str | None, str]:
        """Return the address, if one was given, and the data folder."""

    def reduced(
        self, class_name: str, key: str, timeout_s: float | None
    ) -> tuple[Callable[..., Handle], tuple[Any, ...]]:
        """Return what a handle is pickled as."""


class RemoteMethod:
    """One method of one object, ready to be called. It can be pickled, as handles."""

    __slots__ = ("_call", "_caller", "_target", "_timeout_s")

    def __init__(
        self, caller: Caller, target: tuple[str, str, str], timeout_s: float | None
    ) -> None:
        self._caller = caller
        self._call = caller.call
        self._target = target
        self._timeout_s = timeout_s

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method in the manager; return its result or raise its error."""
        return self._call(self._target, args, kwargs, self._timeout_s)

    @property
    def __name__(self) -> str:
        """Return the name of the method."""
        return self._target[2]

    def __repr__(self) -> str:
        """Say which method of which object it is."""
        class_name, key, method = self._target
        return f"<method {method} of {class_name}/{key}>"

    def __reduce__(self) -> tuple[Callable[..., RemoteMethod], tuple[Handle, str]]:
        """Pickle as the handle and a name, which nobody is asked about."""
        class_name, key, method = self._target
        handle = Handle(self._caller, class_name, key, self._timeout_s)
        return _method_of, (handle, method)


class Handle:
    """A shared object as its users see it: methods, properties, container methods.

    ``repr`` and ``==`` are answered here; everything public goes to the manager. What
    the class offers is asked once for each class and client.
    """

    __slots__ = (
        "__weakref__",
        "_caller",
        "_class_name",
        "_key",
        "_methods",
        "_timeout_s",
    )

    _caller: Caller
    _class_name: str
    _key: str
    _methods: dict[str, RemoteMethod]
    _timeout_s: float | None

    def __init__(
        self, caller: Caller, class_name: str, key: str, timeout_s: float | None = None
    ) -> None:
        put = super().__setattr__
        put("_caller", caller)
        put("_class_name", class_name)
        put("_key", key)
        put("_timeout_s", timeout_s)
        put("_methods", {})

    def with_options(self, *, timeout: float | None = None) -> Handle:
        """Return a handle of the same object whose calls have another deadline.

        ``timeout``: seconds; ``None`` for the client's own. Raises ``ConfigError`` for
        one that is not above 0.
        """
        if timeout is not None:
            timeout = checked_timeout(timeout)
        return Handle(self._caller, self._class_name, self._key, timeout)

    def __getattr__(self, name: str) -> Any:
        """Return a method, or the value of a property, of the object."""
        method = self._methods.get(name)
        if method is not None:
            return method
        if name.startswith("_"):
            # Asked for by copy, pickle, inspect and editors; never an offer of ours.
            raise AttributeError(f"{self!r} offers no {name!r}.")
        if self._sort(name) == "method":
            return self._bound(name)
        return self._perform("__getattribute__", name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a property of the object."""
        contract = self._contract()
        if name not in contract.settable:
            contract = self._contract(again=True)
        if name not in contract.settable:
            kind = "only be read" if name in contract.properties else "not be set"
            raise AttributeError(f"{self!r}: {name!r} can {kind} from afar.")
        self._perform("__setattr__", name, value)

    def _contract(self, again: bool = False) -> Contract:
        return self._caller.contract(
            self._class_name, again=again, timeout=self._timeout_s
        )

    def _sort(self, name: str) -> str:
        for again in (False, True):
            contract = self._contract(again)
            if name in contract.methods:
                return "method"
            if name in contract.properties:
                return "property"
        offered = sorted(contract.methods | contract.properties)
        nearest = difflib.get_close_matches(name, offered, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise NotOffered(f"{self!r} offers no {name!r}.{hint} {WHAT_IS_OFFERED}")

    def _bound(self, name: str) -> RemoteMethod:
        target = (self._class_name, self._key, name)
        method = RemoteMethod(self._caller, target, self._timeout_s)
        self._methods[name] = method
        return method

    def _perform(self, method: str, *args: Any) -> Any:
        return (self._methods.get(method) or self._bound(method))(*args)

    def _container(self, method: str, *args: Any) -> Any:
        for again in (False, True):
            contract = self._contract(again)
            if method in contract.methods:
                return self._perform(method, *args)
        raise TypeError(f"{self!r} offers no {method}.")

    def __len__(self) -> int:
        """Return the length of the object."""
        return self._container("__len__")  # type: ignore[no-any-return]

    def __bool__(self) -> bool:
        """Return the truth of the object: its own, or whether it is not empty."""
        offered = self._contract().methods
        for method in ("__bool__", "__len__"):
            if method in offered:
                return bool(self._perform(method))
        return True

    def __getitem__(self, key: Any) -> Any:
        """Return one item of the object."""
        return self._container("__getitem__", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Set one item of the object."""
        self._container("__setitem__", key, value)

    def __delitem__(self, key: Any) -> None:
        """Delete one item of the object."""
        self._container("__delitem__", key)

    def __contains__(self, item: Any) -> bool:
        """Tell whether the object contains ``item``."""
        contract = self._contract()
        if "__contains__" not in contract.methods and "__iter__" in contract.methods:
            return item in list(self)
        return self._container("__contains__", item)  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the items as they are now: a snapshot, taken in one call."""
        return iter(self._container("__iter__"))

    def __repr__(self) -> str:
        """Say which object it is, without asking the manager."""
        return f"<handle of {self._class_name}/{self._key}>"

    def __eq__(self, other: object) -> bool:
        """Tell whether both are handles of one object of one manager."""
        if not isinstance(other, Handle):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        """Return the hash of the object's identity."""
        return hash(self._identity())

    def _identity(self) -> tuple[str, str, tuple[str | None, str]]:
        return (self._class_name, self._key, self._caller.location)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle as address and name; the key is found where it is unpickled."""
        return self._caller.reduced(self._class_name, self._key, self._timeout_s)


def _method_of(handle: Handle, method: str) -> RemoteMethod:
    """Return a method of a handle again, where it is unpickled."""
    return handle._bound(method)


def _named(handle: Handle) -> tuple[str, str]:
    return handle._class_name, handle._key


codec.register_reference(Handle, _named)
