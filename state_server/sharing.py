"""What a class offers, decided once and from the class alone; and the catalogue.

Nothing is ever run on an instance to find out what it offers: properties are not read,
``__getattr__`` is not asked. What is not in the contract cannot be called, whatever the
caller sends.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, overload

from .errors import ConfigError, NotShared, full_name
from .messages import Contract

#: The special methods that a handle offers when the class defines them.
CONTAINER_METHODS = frozenset(
    {
        "__len__",
        "__getitem__",
        "__setitem__",
        "__delitem__",
        "__contains__",
        "__iter__",
        "__bool__",
    }
)

#: What a handle uses for itself; a class that offers one of these could not be reached.
RESERVED_NAMES = frozenset({"with_options"})

#: The largest version of a class that a column of a database holds.
_VERSION_MAX = 2**63 - 1

#: The packages whose classes make threads, processes or tasks wait for each other.
_WAITING = frozenset(
    {"_thread", "threading", "_queue", "queue", "multiprocessing", "asyncio"}
)

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class ObjectsLimit(NamedTuple):
    """How many objects of one class may be in memory, and the setting that says so.

    For a class whose objects stay in memory: none of them leaves for another.
    """

    objects_max: int
    setting: str


@dataclass(frozen=True, kw_only=True)
class SharedClass:
    """One class that a manager hosts: how its objects are built and what they offer.

    ``contract`` is ``None`` only for a factory whose class is known after its first
    object was built. ``keeps_order``: an object that is loaded from its image goes on
    as the live one does, because its state has no set whose order matters.
    ``objects_limit``: ``None`` where only all classes together are limited.
    """

    name: str
    build: Callable[[], Any]
    contract: Contract | None
    source: str
    cls: type | None = None
    slow: bool = False
    ready_made: bool = False
    exposed: tuple[str, ...] | None = None
    durable: str = ""
    rollback: bool = False
    readonly: frozenset[str] = frozenset()
    transient: Mapping[str, Callable[[], Any] | None] = field(default_factory=dict)
    version: int = 1
    aliases: tuple[str, ...] = ()
    idle_timeout_s: float | None = None
    keeps_order: bool = False
    objects_limit: ObjectsLimit | None = None


class Catalogue:
    """The shared classes of one process, by name and by class.

    ``_lock`` guards changes of the three tables, which are only ever added to or
    replaced in; a single look needs no lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_name: dict[str, SharedClass] = {}
        self._by_alias: dict[str, SharedClass] = {}
        self._names: dict[type, str] = {}

    def __repr__(self) -> str:
        """Return the names of all shared classes."""
        return f"<Catalogue of {', '.join(sorted(self._by_name)) or 'nothing'}>"

    def __getstate__(self) -> dict[str, Any]:
        """Return the tables, without the lock: for a manager that is spawned."""
        return {
            "_by_name": self._by_name,
            "_by_alias": self._by_alias,
            "_names": self._names,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Bring the tables back, with a lock of their own."""
        self.__dict__.update(state, _lock=threading.Lock())

    def add(self, shared: SharedClass) -> None:
        """Add a class; raise ``ConfigError`` if another one has its name.

        A ready-made class gives way to one of the user's own, and a module that is
        loaded again replaces what it shared before.
        """
        with self._lock:
            present = self._by_name.get(shared.name)
            if present is not None and present.source != shared.source:
                if shared.ready_made:
                    return
                if not present.ready_made:
                    raise _taken(shared.source, shared.name, present.source)
            formerly = self._by_alias.get(shared.name)
            if formerly is not None and formerly.source != shared.source:
                if shared.ready_made:
                    return
                raise _taken(shared.source, shared.name, formerly.source)
            for alias in shared.aliases:
                self._check_alias(shared, alias)
            self._by_name[shared.name] = shared
            for alias in shared.aliases:
                self._by_alias[alias] = shared
            if shared.cls is not None:
                self._names[shared.cls] = shared.name

    def _check_alias(self, shared: SharedClass, alias: str) -> None:
        """Refuse an alias that is another class's: its objects would change hands."""
        for table in (self._by_name, self._by_alias):
            other = table.get(alias)
            if other is None or other.source == shared.source:
                continue
            if not other.ready_made:
                raise _taken(shared.source, alias, other.source)
            del table[alias]

    def get(self, name: str) -> SharedClass | None:
        """Return the class shared as ``name``, now or formerly, or ``None``."""
        return self._by_name.get(name) or self._by_alias.get(name)

    def not_shared(self, name: str) -> NotShared:
        """Return the error that says which names there are instead of ``name``."""
        return NotShared(
            f"No class is shared as {name!r}; there are: "
            f"{', '.join(self.names()) or 'none'}. Is its module among the --objects "
            "of the manager?"
        )

    def names(self) -> list[str]:
        """Return the names of all shared classes, sorted."""
        with self._lock:
            return sorted(self._by_name)

    def records(self) -> list[SharedClass]:
        """Return the records of all shared classes, sorted by name."""
        with self._lock:
            return [self._by_name[name] for name in sorted(self._by_name)]

    def lacks(self, specification: str) -> bool:
        """Tell whether ``load_objects`` has something to load that is not shared here.

        Whoever asks may be anybody: nothing is imported, and no code of a module runs.
        """
        module_name, _, class_name = specification.partition(":")
        module = sys.modules.get(module_name)
        if module is None or not class_name:
            return module is None
        cls = inspect.getattr_static(module, class_name, None)
        return not isinstance(cls, type) or not self.has(cls)

    def has(self, cls: type) -> bool:
        """Tell whether a class is shared in this process, under whatever name."""
        return cls in self._names

    def name_of(self, cls: type) -> str:
        """Return the name ``cls`` is shared as; raise ``NotShared`` if it is not."""
        if not isinstance(cls, type):
            raise NotShared(
                f"A shared object is named by its class or the name of that, not by "
                f"{cls!r}."
            )
        name = self._names.get(cls)
        if name is None:
            raise NotShared(
                f"The class {full_name(cls)} is not shared in this process. Decorate "
                "it with @share, call share() on it, or pass the name it is shared as."
            )
        return name

    def copy(self) -> Catalogue:
        """Return a catalogue with the same classes, to be added to on its own."""
        twin = Catalogue()
        with self._lock:
            twin._by_name.update(self._by_name)
            twin._by_alias.update(self._by_alias)
            twin._names.update(self._names)
        return twin


def _taken(source: str, name: str, holder: str) -> ConfigError:
    return ConfigError(
        f"{source} cannot be shared as {name!r}: {holder} has that name, now or as an "
        "alias. Choose another with name=."
    )


#: Where ``share`` puts classes.
catalogue = Catalogue()


@overload
def share(
    cls: type[T],
    /,
    *,
    name: str | None = None,
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    exposed: Iterable[str] | None = None,
    slow: bool = False,
    durable: bool | str = True,
    rollback: bool = False,
    readonly: Iterable[str] = (),
    transient: Iterable[str] | Mapping[str, Callable[[], Any] | None] = (),
    version: int = 1,
    aliases: Iterable[str] = (),
    idle_timeout: float | None = None,
) -> type[T]: ...


@overload
def share(
    *,
    name: str | None = None,
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    exposed: Iterable[str] | None = None,
    slow: bool = False,
    durable: bool | str = True,
    rollback: bool = False,
    readonly: Iterable[str] = (),
    transient: Iterable[str] | Mapping[str, Callable[[], Any] | None] = (),
    version: int = 1,
    aliases: Iterable[str] = (),
    idle_timeout: float | None = None,
) -> Callable[[type[T]], type[T]]: ...


def share(
    cls: type[T] | None = None,
    /,
    *,
    name: str | None = None,
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    exposed: Iterable[str] | None = None,
    slow: bool = False,
    durable: bool | str = True,
    rollback: bool = False,
    readonly: Iterable[str] = (),
    transient: Iterable[str] | Mapping[str, Callable[[], Any] | None] = (),
    version: int = 1,
    aliases: Iterable[str] = (),
    idle_timeout: float | None = None,
) -> Any:
    """Share a class: its objects live in the manager, everybody calls their methods.

    Use it as ``@share``, as ``@share(name="Room")``, or as ``share(Class)`` for a class
    that cannot be decorated. The class is returned unchanged.

    ``name``: what callers call it; the class's own name if left out. ``args``,
    ``kwargs``: what each new object is built with. ``exposed``: the only methods and
    properties that callers may use; all public ones if left out. ``slow``: its methods
    block or compute for long and are never run by the thread that serves the sockets.

    ``durable``: ``True`` keeps the state of each object on disk, ``False`` forgets it
    with the manager, ``"journal"`` logs the changing calls and replays them, for large
    objects whose methods are deterministic. ``rollback``: a method that raises leaves
    an object that is not durable as it was, too (durable ones always are).
    ``readonly``: methods that change nothing, as with ``@readonly``. ``transient``:
    attributes that are not state, each with what makes it anew (names alone: left
    away). ``version``: of the class; older stored states go through the class method
    ``migrate(old_version, state)``. ``aliases``: names it was shared as before.
    ``idle_timeout``: seconds without a call after which a durable object leaves memory.

    Raises ``ConfigError`` for a class that cannot be shared as asked.
    """

    def shared(given: type[T]) -> type[T]:
        record = describe_class(
            given,
            name=name,
            args=args,
            kwargs=kwargs,
            exposed=exposed,
            slow=slow,
            durable=durable,
            rollback=rollback,
            readonly=readonly,
            transient=transient,
            version=version,
            aliases=aliases,
            idle_timeout=idle_timeout,
        )
        catalogue.add(record)
        return given

    return shared if cls is None else shared(cls)


def describe_class(
    cls: type,
    *,
    name: str | None = None,
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    exposed: Iterable[str] | None = None,
    slow: bool = False,
    durable: bool | str = True,
    rollback: bool = False,
    readonly: Iterable[str] = (),
    transient: Iterable[str] | Mapping[str, Callable[[], Any] | None] = (),
    version: int = 1,
    aliases: Iterable[str] = (),
    idle_timeout: float | None = None,
    ready_made: bool = False,
) -> SharedClass:
    """Return the record of ``cls``, without adding it to a catalogue."""
    if not isinstance(cls, type):
        raise ConfigError(f"Only a class can be shared, not {cls!r}.")
    chosen = checked_name(cls.__name__ if name is None else name)
    for option, names in (
        ("args", args),
        ("exposed", exposed),
        ("readonly", readonly),
        ("transient", transient),
        ("aliases", aliases),
    ):
        _check_iterable(cls, option, names)
    _check_keeping(cls, durable, version, idle_timeout)
    _check_transient(cls, transient)
    contract = contract_of(cls, chosen, exposed)
    args, kwargs = tuple(args), dict(kwargs or {})
    _check_arguments(cls, args, kwargs)
    return SharedClass(
        name=chosen,
        build=functools.partial(_build, cls, args, kwargs),
        contract=contract,
        source=full_name(cls),
        cls=cls,
        slow=slow,
        ready_made=ready_made,
        durable="state" if durable is True else durable or "",
        rollback=rollback,
        readonly=_readonly_names(cls, contract, readonly),
        transient=(
            transient
            if isinstance(transient, Mapping)
            else dict.fromkeys(transient, None)
        ),
        version=version,
        aliases=tuple(checked_name(alias) for alias in aliases),
        idle_timeout_s=idle_timeout,
    )


def _build(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Build an object with arguments of its own: a list, say, is not the next one's."""
    copied = {name: _copied(value) for name, value in kwargs.items()}
    return cls(*map(_copied, args), **copied)


_CONTAINERS = (list, dict, set, bytearray, tuple)


def _copied(value: Any) -> Any:
    if type(value) not in _CONTAINERS:
        # A model, say, or a pool of connections: there is to be one of it.
        return value
    try:
        return copy.deepcopy(value)
    except Exception:
        # There is a lock or the like in it, or code of the user's own that fails.
        return value


def _check_iterable(cls: type, option: str, value: object) -> None:
    """Refuse a text where a tuple is wanted: its letters would be taken for names."""
    if isinstance(value, str) or not isinstance(value, Iterable | None):
        raise ConfigError(
            f"{full_name(cls)}: {option} is a tuple or a list, not {value!r}. Is a "
            f"comma missing, as in {option}=({value!r},)?"
        )


def _check_transient(
    cls: type, transient: Iterable[str] | Mapping[str, Callable[[], Any] | None]
) -> None:
    makers = transient.items() if isinstance(transient, Mapping) else ()
    for attribute, make in makers:
        if make is not None and not callable(make):
            raise ConfigError(
                f"{full_name(cls)}: transient says what makes {attribute!r} anew, a "
                f"class or a function, not {make!r}."
            )


def _check_arguments(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse arguments that no object can be built with, as far as Python tells."""
    try:
        # A decorator may add arguments to those that it is called with.
        signature = inspect.signature(cls, follow_wrapped=False)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(
            f"{full_name(cls)}.__init__: {error}. The manager builds the objects: say "
            "with what, as in share(…, args=(…,)), or give the arguments defaults."
        ) from None


def _check_keeping(
    cls: type, durable: bool | str, version: int, idle_timeout: float | None
) -> None:
    is_number = isinstance(idle_timeout, (int, float))
    if idle_timeout is not None and not (is_number and idle_timeout > 0):
        raise ConfigError(
            f"{full_name(cls)}: idle_timeout is a number of seconds above 0, not "
            f"{idle_timeout!r}."
        )
    if durable not in (True, False, "state", "journal"):
        raise ConfigError(
            f'{full_name(cls)}: durable is True, False or "journal", not {durable!r}.'
        )
    if not isinstance(version, int) or not 1 <= version <= _VERSION_MAX:
        raise ConfigError(
            f"{full_name(cls)}: a version is a whole number from 1 to {_VERSION_MAX}, "
            f"not {version!r}."
        )


def readonly(method: F) -> F:
    """Declare that a method changes nothing: its calls write and remember nothing."""
    method._state_server_readonly = True  # type: ignore[attr-defined]
    return method


def _readonly_names(
    cls: type, contract: Contract, declared: Iterable[str]
) -> frozenset[str]:
    names = set(declared)
    unknown = names - contract.methods - contract.properties
    if unknown:
        raise ConfigError(
            f"{full_name(cls)} declares {sorted(unknown)} read-only, which it does not "
            "offer."
        )
    for name in contract.methods | contract.properties:
        static = inspect.getattr_static(cls, name, None)
        function = static.fget if isinstance(static, property) else static
        if getattr(function, "_state_server_readonly", False):
            names.add(name)
    return frozenset(names)


def describe_factory(
    factory: Callable[[], Any], *, name: str, exposed: Iterable[str] | None = None
) -> SharedClass:
    """Return the record of objects that ``factory`` makes.

    The contract is that of the class of the first object that it returns.
    """
    return SharedClass(
        name=checked_name(name),
        build=factory,
        contract=None,
        source=f"the factory {getattr(factory, '__qualname__', factory)!s}",
        exposed=None if exposed is None else tuple(exposed),
    )


def checked_name(name: str) -> str:
    """Return ``name`` if a class can be shared by it; raise ``ConfigError`` if not."""
    if (
        not isinstance(name, str)
        or not name
        or "/" in name
        or len(name.encode("utf-8", "replace")) > 255
    ):
        raise ConfigError(
            f"A class cannot be shared as {name!r}: a name is text of 1 to 255 bytes "
            "without a slash."
        )
    return name


def contract_of(cls: type, name: str, exposed: Iterable[str] | None = None) -> Contract:
    """Return what ``cls`` offers: its public methods, properties, container methods.

    Raises ``ConfigError`` when ``exposed`` names something that the class has not, or
    when a method cannot be called from afar.
    """
    if exposed is None:
        wanted = [
            attribute
            for attribute in dir(cls)
            if _is_public(attribute) and _kind(cls, attribute) is not None
        ]
    else:
        wanted = list(exposed)
    methods, properties, settable = set(), set(), set()
    for attribute in wanted:
        kind = _kind(cls, attribute) if _is_public(attribute) else None
        if kind is None:
            raise ConfigError(
                f"{full_name(cls)} cannot expose {attribute!r}: it is not a public "
                "method, a property or a container method of the class."
            )
        if attribute in RESERVED_NAMES:
            raise ConfigError(
                f"{full_name(cls)} offers {attribute!r}, a name that handles use "
                "themselves. Rename it, or leave it out with exposed=."
            )
        if kind == "method":
            _check_callable(cls, attribute)
            methods.add(attribute)
        else:
            properties.add(attribute)
            if kind == "settable":
                settable.add(attribute)
    if exposed is None and "__getitem__" in methods and not hasattr(cls, "__iter__"):
        # Python iterates over such an object by its items 0, 1, 2 …
        methods.add("__iter__")
    return Contract(
        name, frozenset(methods), frozenset(properties), frozenset(settable)
    )


def waits_for_others(cls: type) -> bool:
    """Tell whether a class may have methods that wait for another call, as a queue has.

    Calls of one object run one at a time, so the other call would wait for the first.
    """
    return any(base.__module__.partition(".")[0] in _WAITING for base in cls.__mro__)


def load_objects(specification: str) -> None:
    """Import ``module`` or ``module:Class`` and share what it names.

    Raises ``ConfigError`` when the module cannot be imported, has no such class, or
    shares nothing.
    """
    module_name, _, class_name = specification.partition(":")
    if not module_name or module_name.startswith(".") or "/" in module_name:
        raise ConfigError(
            f"The objects {specification!r} cannot be loaded: expected module or "
            "module:Class, as Python imports them (shop, not shop.py or ./shop)."
        )
    before = set(catalogue.names())
    # What a module shared when it was imported earlier cannot be told any more: it may
    # have been a class of another module.
    is_new = module_name not in sys.modules
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"The objects {specification!r} cannot be loaded: {error}. "
            f"{_import_hint(module_name, error)}"
        ) from error
    if not class_name:
        shared_there = any(
            record.source.startswith(module_name + ".")
            for record in catalogue.records()
        )
        if is_new and not shared_there and set(catalogue.names()) == before:
            raise ConfigError(
                f"The module {module_name!r} shares nothing: decorate a class with "
                f"@share, or name one, as in {module_name}:ClassName."
            )
        return
    cls = getattr(module, class_name, None)
    if not isinstance(cls, type):
        raise ConfigError(
            f"The module {module_name!r} has no class {class_name!r} to share."
        )
    if not catalogue.has(cls):
        share(cls)


def _import_hint(module_name: str, error: ImportError) -> str:
    """Say what to do about ``error``: the module is missing, or what it imports."""
    is_missing = isinstance(error, ModuleNotFoundError) and error.name is not None
    if is_missing and f"{module_name}.".startswith(f"{error.name}."):
        if module_name.endswith(".py"):
            return f"Leave .py away: {module_name.removesuffix('.py')}."
        return f"Is {error.name} in the current folder or installed?"
    # Not the module itself, but what it imports: that stands in a file of its own.
    steps = traceback.extract_tb(error.__traceback__)
    place = [step for step in steps if not step.filename.startswith("<")][-1]
    return f"That is asked for in {place.filename}, line {place.lineno}."


#: Descriptors that cannot be called themselves, but give something that can.
_CALLED_WHEN_BOUND = (functools.partialmethod, functools.singledispatchmethod)


def _is_public(attribute: str) -> bool:
    return not attribute.startswith("_") or attribute in CONTAINER_METHODS


def _kind(cls: type, attribute: str) -> str | None:
    """Return "method", "property", "settable", or ``None`` for anything else."""
    try:
        static = inspect.getattr_static(cls, attribute)
    except AttributeError:
        return None
    if isinstance(static, property):
        return "property" if static.fset is None else "settable"
    if isinstance(static, functools.cached_property):
        return "property"
    if isinstance(static, (staticmethod, classmethod)):
        return "method"
    # Methods of built-in classes are descriptors of several kinds; all are routines.
    if inspect.isroutine(static):
        is_method = callable(static) or isinstance(static, _CALLED_WHEN_BOUND)
        # Else it is a descriptor of somebody's own that computes a value, once perhaps.
        return "method" if is_method else "property"
    return None


def _check_callable(cls: type, attribute: str) -> None:
    function = inspect.unwrap(getattr(cls, attribute))
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(
            f"{full_name(cls)}.{attribute} is async; the manager calls plain methods "
            "only. Make it a plain method, or leave it out with exposed=."
        )
