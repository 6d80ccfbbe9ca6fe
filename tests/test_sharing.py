"""What a class offers, how it is shared, and what is refused with which words."""

from __future__ import annotations

import functools
import pickle
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from state_server import sharing
from state_server.errors import ConfigError, NotShared
from state_server.sharing import (
    Catalogue,
    contract_of,
    describe_class,
    describe_factory,
    load_objects,
    readonly,
    share,
)


def traced(function: Any) -> Any:
    """Wrap a function as decorators usually do."""

    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


class Base:
    """Gives its subclass a method."""

    def inherited(self) -> None:
        """Do nothing."""


class Once:
    """A property that is computed once, as many packages have one of their own."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        raise AssertionError("properties are not read to find out what is offered")


class Everything(Base):
    """Has one of each sort of attribute."""

    constant = 1
    table: dict[str, int] = {}  # noqa: RUF012 - an attribute like any other
    nested = Base

    def __init__(self) -> None:
        raise AssertionError("nothing is built to find out what is offered")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError("nothing is asked")

    def method(self) -> None:
        """Do nothing."""

    @traced
    def decorated(self) -> None:
        """Do nothing."""

    @staticmethod
    def static() -> None:
        """Do nothing."""

    @classmethod
    def of_class(cls) -> None:
        """Do nothing."""

    partial = functools.partialmethod(method)
    lambda_ = lambda self: None  # noqa: E731 - a method like any other

    @property
    def shown(self) -> int:
        """Fail: properties are not read to find out what is offered."""
        raise AssertionError

    @shown.setter
    def shown(self, value: int) -> None:
        raise AssertionError

    @property
    def read(self) -> int:
        """Fail: see above."""
        raise AssertionError

    @functools.cached_property
    def cached(self) -> int:
        """Fail: see above."""
        raise AssertionError

    @Once
    def once(self) -> int:
        """Fail: see above."""
        raise AssertionError

    @functools.singledispatchmethod
    def dispatched(self, value: object) -> None:
        """Do nothing."""

    @functools.lru_cache  # noqa: B019 - a method like any other
    def remembered(self) -> None:
        """Do nothing."""

    def _private(self) -> None:
        pass

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __call__(self) -> None:
        """Do nothing."""

    def __enter__(self) -> None:
        pass


@pytest.fixture
def empty_catalogue(monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """Put an empty catalogue in the place of the process's own."""
    catalogue = Catalogue()
    monkeypatch.setattr(sharing, "catalogue", catalogue)
    return catalogue


def test_each_object_has_arguments_of_its_own() -> None:
    """A list that is given to share() is not one list in all rooms."""

    class Room:
        def __init__(self, names: list[str], *, marks: dict[str, Any]) -> None:
            self.names, self.marks = names, marks

    lock = threading.Lock()
    record = describe_class(
        Room, args=(["first"],), kwargs={"marks": {"door": [], "lock": lock}}
    )
    one, two = record.build(), record.build()
    one.names.append("second")
    assert two.names == ["first"]
    # What cannot be copied is there once; it may be meant so.
    assert one.marks["lock"] is two.marks["lock"] is lock


# Contracts ---------------------------------------------------------------------------


def test_public_methods_properties_and_container_methods_are_offered() -> None:
    """Nothing else is: no attribute, no nested class, no underscore, no protocol."""
    contract = contract_of(Everything, "E")

    assert contract.methods == {
        "method",
        "decorated",
        "static",
        "of_class",
        "partial",
        "lambda_",
        "inherited",
        "dispatched",
        "remembered",
        "__len__",
        "__iter__",
    }
    assert contract.properties == {"shown", "read", "cached", "once"}
    assert contract.settable == {"shown"}
    assert contract.class_name == "E"


def test_methods_of_builtin_classes_are_offered() -> None:
    """A subclass of a built-in class offers what it inherited from C code."""

    class Words(dict):  # type: ignore[type-arg]
        pass

    methods = contract_of(Words, "Words").methods

    assert {"get", "update", "keys", "__getitem__", "__contains__"} <= methods
    assert not {"__init__", "__reduce_ex__", "__class_getitem__", "__or__"} & methods


def test_exposed_names_are_the_whole_offer() -> None:
    """With ``exposed`` nothing is offered that it does not name."""
    contract = contract_of(Everything, "E", ["method", "read", "__len__"])

    assert contract.methods == {"method", "__len__"}
    assert contract.properties == {"read"}
    assert contract.settable == frozenset()


@pytest.mark.parametrize(
    "name", ["missing", "_private", "constant", "nested", "__init__", "__call__", ""]
)
def test_exposed_must_be_something_to_offer(name: str) -> None:
    """What is private, missing or no method cannot be exposed; the name is told."""
    with pytest.raises(ConfigError, match=f"cannot expose {name!r}"):
        contract_of(Everything, "E", [name])


def test_reserved_name_cannot_be_offered() -> None:
    """A method that a handle has for itself could never be called."""

    class Clash:
        def with_options(self) -> None:
            pass

        def other(self) -> None:
            pass

    with pytest.raises(ConfigError, match=r"with_options.*Rename it"):
        contract_of(Clash, "Clash")
    assert contract_of(Clash, "Clash", ["other"]).methods == {"other"}


def test_async_methods_cannot_be_offered() -> None:
    """The manager calls plain methods only; async ones are named at once."""

    class Coroutine:
        async def work(self) -> None:
            pass

    class Generator:
        async def work(self) -> AsyncIterator[int]:
            yield 1

    class Wrapped:
        @traced
        async def work(self) -> None:
            pass

    for cls in (Coroutine, Generator, Wrapped):
        with pytest.raises(ConfigError, match="work is async"):
            contract_of(cls, "C")
    assert contract_of(Coroutine, "C", []).methods == frozenset()


# share() -----------------------------------------------------------------------------


def test_share_in_its_three_forms_returns_the_class(
    empty_catalogue: Catalogue,
) -> None:
    """As ``@share``, as ``@share(...)`` and as a call: the class stays itself."""

    class Plain:
        pass

    class Named:
        pass

    class Called:
        pass

    assert share(Plain) is Plain
    assert share(name="Other")(Named) is Named
    assert share(Called, slow=True) is Called
    assert empty_catalogue.names() == ["Called", "Other", "Plain"]
    assert [empty_catalogue.name_of(cls) for cls in (Plain, Named, Called)] == [
        "Plain",
        "Other",
        "Called",
    ]
    called, plain = empty_catalogue.get("Called"), empty_catalogue.get("Plain")
    assert called is not None
    assert plain is not None
    assert (called.slow, plain.slow) == (True, False)


def test_objects_are_built_with_the_arguments_given(
    empty_catalogue: Catalogue,
) -> None:
    """``args`` and ``kwargs`` are what each new object is built with."""

    @share(args=(1,), kwargs={"second": 2})
    class Pair:
        def __init__(self, first: int, second: int) -> None:
            self.both = (first, second)

    record = empty_catalogue.get("Pair")
    assert record is not None
    one, two = record.build(), record.build()

    assert one is not two
    assert one.both == two.both == (1, 2)


@pytest.mark.parametrize("cls", [Base(), "Base", 3, len])
def test_only_classes_can_be_shared(cls: Any) -> None:
    """An instance, a name or a function is refused with its value."""
    with pytest.raises(ConfigError, match="Only a class can be shared"):
        describe_class(cls)


@pytest.mark.parametrize("name", ["", "a/b", "x" * 256, "й" * 128, 3])
def test_names_that_cannot_be_shared(name: Any) -> None:
    """A name is text without a slash, because ``Class/key`` names an object."""
    with pytest.raises(ConfigError, match="cannot be shared as"):
        describe_class(Base, name=name)


def test_factory_has_no_contract_until_it_made_something() -> None:
    """What a factory makes is not known before; its own name is in the record."""
    record = describe_factory(Base, name="Made", exposed=["inherited"])

    assert record.contract is None
    assert record.exposed == ("inherited",)
    assert "Base" in record.source


@pytest.mark.parametrize(
    ("durable", "expected"),
    [(True, "state"), (False, ""), ("state", "state"), ("journal", "journal")],
)
def test_durability_has_three_words(durable: Any, expected: str) -> None:
    """``durable`` is yes, no, or by journal; anything else is refused."""
    assert describe_class(Base, durable=durable).durable == expected
    with pytest.raises(ConfigError, match="durable is True, False"):
        describe_class(Base, durable="maybe")


def test_readonly_methods_are_found_by_mark_and_by_name() -> None:
    """``@readonly`` and ``readonly=`` say the same, of methods and properties."""

    class Reader:
        @readonly
        def one(self) -> None:
            pass

        def two(self) -> None:
            pass

        @property
        @readonly
        def three(self) -> int:
            return 3

    assert describe_class(Reader).readonly == {"one", "three"}
    assert describe_class(Reader, readonly=["two"]).readonly == {"one", "two", "three"}
    with pytest.raises(ConfigError, match=r"\['four'\] read-only"):
        describe_class(Reader, readonly=["four"])


@pytest.mark.parametrize("version", [0, -1, "1", 1.5, 2**63])
def test_version_of_a_class_is_a_whole_number(version: Any) -> None:
    """Versions are counted from 1."""
    with pytest.raises(ConfigError, match="whole number from 1"):
        describe_class(Base, version=version)


# The catalogue -----------------------------------------------------------------------


def class_from(source: str, name: str = "Room") -> type:
    """Return a class as if a module called ``source`` had made it."""
    return type(name, (), {"__module__": source, "__qualname__": name})


def test_two_classes_cannot_have_one_name() -> None:
    """The second one is refused; both are named, and the remedy."""
    catalogue = Catalogue()
    catalogue.add(describe_class(class_from("shop")))

    with pytest.raises(ConfigError, match=r"hotel\.Room .* shop\.Room .* name="):
        catalogue.add(describe_class(class_from("hotel")))


def test_module_that_is_loaded_again_replaces_its_class() -> None:
    """The same module and class name again is the same class, made anew."""
    catalogue = Catalogue()
    first, second = class_from("shop"), class_from("shop")
    catalogue.add(describe_class(first))
    catalogue.add(describe_class(second))

    record = catalogue.get("Room")
    assert record is not None
    assert record.cls is second
    assert catalogue.name_of(first) == catalogue.name_of(second) == "Room"


@pytest.mark.parametrize("users_first", [True, False])
def test_users_class_takes_the_place_of_a_ready_made_one(users_first: bool) -> None:
    """Whatever comes first, a ready-made class gives way to the user's own."""
    catalogue = Catalogue()
    records = [
        describe_class(class_from("shop")),
        describe_class(class_from("state_server.objects"), ready_made=True),
    ]
    for record in records if users_first else reversed(records):
        catalogue.add(record)

    assert catalogue.get("Room") is records[0]


def test_former_names_lead_to_the_class() -> None:
    """An alias finds the class; the list of names shows its present one only."""
    catalogue = Catalogue()
    record = describe_class(Base, aliases=["Old", "Older"])
    catalogue.add(record)

    assert catalogue.get("Old") is catalogue.get("Older") is record
    assert catalogue.names() == ["Base"]
    assert catalogue.get("Oldest") is None


def test_class_that_is_not_shared_has_no_name() -> None:
    """The refusal names the class and three remedies."""
    with pytest.raises(NotShared, match=r"Base is not shared.*@share.*share\(\)"):
        Catalogue().name_of(Base)
    with pytest.raises(NotShared, match="not by 5"):
        Catalogue().name_of(5)  # type: ignore[arg-type]


def test_copy_is_added_to_on_its_own() -> None:
    """What is added to a copy is not in the original, and the other way round."""
    original = Catalogue()
    original.add(describe_class(Base, aliases=["Old"]))
    copy = original.copy()
    copy.add(describe_class(Everything))
    original.add(describe_class(class_from("shop")))

    assert copy.names() == ["Base", "Everything"]
    assert original.names() == ["Base", "Room"]
    assert copy.name_of(Base) == "Base"
    assert copy.get("Old") is original.get("Old")


def test_repr_lists_the_names() -> None:
    """The one-line form says what is shared."""
    catalogue = Catalogue()
    assert repr(catalogue) == "<Catalogue of nothing>"
    catalogue.add(describe_class(Everything))
    catalogue.add(describe_class(Base))
    assert repr(catalogue) == "<Catalogue of Base, Everything>"


# Loading -----------------------------------------------------------------------------


@pytest.fixture
def module_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_catalogue: Catalogue
) -> Path:
    """Give a folder from which modules are imported, for this test only."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    # Their @share is the real one; it is to put classes into the test's catalogue.
    return tmp_path


def test_module_shares_what_it_decorates(
    module_folder: Path, empty_catalogue: Catalogue
) -> None:
    """Importing a module shares its decorated classes; twice is as once."""
    (module_folder / "loaded_a.py").write_text(
        "from state_server.sharing import share\n@share\nclass A:\n    pass\n"
    )
    load_objects("loaded_a")
    load_objects("loaded_a")

    assert empty_catalogue.names() == ["A"]


def test_module_that_shares_a_class_from_elsewhere_may_be_loaded_twice(
    module_folder: Path, empty_catalogue: Catalogue
) -> None:
    """What it shared is not its own: the second time nothing of it is new."""
    (module_folder / "loaded_e.py").write_text(
        "import fractions\nfrom state_server.sharing import share\n"
        "share(fractions.Fraction, name='Shown')\n"
    )
    load_objects("loaded_e")
    load_objects("loaded_e")

    assert empty_catalogue.names() == ["Shown"]


def test_class_of_a_module_is_shared_by_name(
    module_folder: Path, empty_catalogue: Catalogue
) -> None:
    """``module:Class`` shares an undecorated class, and a decorated one once."""
    (module_folder / "loaded_b.py").write_text(
        "from state_server.sharing import share\n"
        "class Plain:\n    pass\n"
        "@share(name='Shown')\nclass Decorated:\n    pass\n"
    )
    load_objects("loaded_b:Plain")
    load_objects("loaded_b:Decorated")

    assert empty_catalogue.names() == ["Plain", "Shown"]


def test_what_is_not_shared_is_told_without_running_anything(
    module_folder: Path, empty_catalogue: Catalogue
) -> None:
    """A module is lacking until it is loaded, a class until it is shared by itself.

    To ask imports nothing and runs no ``__getattr__`` of a module.
    """
    (module_folder / "loaded_f.py").write_text(
        "from state_server.sharing import share\n"
        "class Plain:\n    pass\n"
        "@share(name='Shown')\nclass Decorated:\n    pass\n"
        "number = []\n"
        "def __getattr__(name):\n    raise SystemExit(name)\n"
    )
    assert empty_catalogue.lacks("loaded_f")
    assert empty_catalogue.lacks("loaded_f:Decorated")
    assert "loaded_f" not in sys.modules
    load_objects("loaded_f:Decorated")

    assert not empty_catalogue.lacks("loaded_f")
    assert not empty_catalogue.lacks("loaded_f:Decorated")
    for name in ("Plain", "number", "Missing"):
        assert empty_catalogue.lacks(f"loaded_f:{name}"), name
    load_objects("loaded_f:Plain")
    assert not empty_catalogue.lacks("loaded_f:Plain")


@pytest.mark.parametrize(
    ("specification", "reason"),
    [
        ("no_such_module_here", "cannot be loaded"),
        ("no_such.module.here", "cannot be loaded"),
        ("loaded_c", "shares nothing"),
        ("loaded_c:Missing", "has no class 'Missing'"),
        ("loaded_c:function", "has no class 'function'"),
        ("loaded_d", r"No module named 'not_installed'.*loaded_d\.py, line 1"),
        ("loaded_c.py", "Leave .py away: loaded_c"),
        ("./loaded_c", "expected module or module:Class"),
        (":Missing", "expected module or module:Class"),
    ],
)
def test_objects_that_cannot_be_loaded_are_config_errors(
    module_folder: Path, specification: str, reason: str
) -> None:
    """Each way to name nothing says what is missing, and of which module."""
    (module_folder / "loaded_c.py").write_text("def function():\n    pass\n")
    (module_folder / "loaded_d.py").write_text("import not_installed\n")

    with pytest.raises(ConfigError, match=reason) as caught:
        load_objects(specification)
    assert specification.partition(":")[0] in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"aliases": "Basket"},
        {"transient": "lock"},
        {"exposed": "open"},
        {"readonly": "look"},
        {"args": 5},
        {"idle_timeout": -1},
        {"idle_timeout": "60"},
        {"transient": {"lock": "Lock"}},
    ],
)
def test_options_of_the_wrong_form_are_refused(options: dict[str, Any]) -> None:
    """A text where names are wanted is not taken letter by letter."""
    with pytest.raises(ConfigError, match=next(iter(options))):
        describe_class(Base, **options)


class Sized:
    """A class whose objects cannot be built from nothing."""

    def __init__(self, size: int) -> None:
        self.size = size


@pytest.mark.parametrize("options", [{}, {"args": (1, 2)}, {"kwargs": {"sise": 1}}])
def test_arguments_that_do_not_fit_are_told_where_they_are_given(
    options: dict[str, Any],
) -> None:
    """It is said when the class is shared, and not by each call that follows."""
    with pytest.raises(ConfigError, match=r"Sized\.__init__: .*argument.*args="):
        describe_class(Sized, **options)
    assert describe_class(Sized, args=(5,)).build().size == 5
    assert describe_class(Sized, kwargs={"size": 5}).build().size == 5


def test_alias_of_another_class_is_refused() -> None:
    """No class takes over the objects of another one by naming it as an alias."""
    shared = Catalogue()
    shared.add(describe_class(Base))
    with pytest.raises(ConfigError, match="Base"):
        shared.add(describe_class(dict, name="Other", aliases=("Base",)))

    shared.add(describe_class(dict, name="Fresh", aliases=("Former",)))
    with pytest.raises(ConfigError, match="Former"):
        shared.add(describe_class(list, name="Former"))


def test_a_ready_made_class_gives_way_to_an_alias() -> None:
    """A class that was called so before is the user's own, whatever comes later."""
    shared = Catalogue()
    ready_made = describe_class(Base, name="Former", ready_made=True)
    shared.add(ready_made)
    shared.add(describe_class(dict, name="Fresh", aliases=("Former",)))
    shared.add(ready_made)

    found = shared.get("Former")
    assert found is not None
    assert found.name == "Fresh"
    assert shared.names() == ["Fresh"]


def test_pickled_catalogue_keeps_its_aliases() -> None:
    """A manager that is spawned finds a class under its former names as well."""
    shared = Catalogue()
    shared.add(describe_class(dict, name="Fresh", aliases=("Former",)))

    twin = pickle.loads(pickle.dumps(shared))

    found = twin.get("Former")
    assert found is not None
    assert found.name == "Fresh"
