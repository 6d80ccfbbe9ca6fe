"""Handles: what is sent for what is written, and what is answered without asking."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from state_server import codec
from state_server.client import Handle
from state_server.errors import NotOffered
from state_server.messages import Contract, Reference

ROOM = Contract(
    "Room",
    frozenset({"say", "leave", "__getitem__", "__setitem__", "__delitem__"}),
    frozenset({"size", "level"}),
    frozenset({"level"}),
)


def restore(*arguments: Any) -> Handle:
    """Make a handle again, as a client's own function does."""
    address, data_dir, class_name, key, timeout_s = arguments
    return Handle(FakeCaller(location=(address, data_dir)), class_name, key, timeout_s)


class FakeCaller:
    """A client that writes down what is asked and answers from a list."""

    def __init__(
        self,
        *contracts: Contract,
        answers: tuple[Any, ...] = (),
        location: tuple[str | None, str] = ("tcp://h:1", "/data"),
    ) -> None:
        self.contracts = list(contracts or (ROOM,))
        self.answers = list(answers)
        self.calls: list[tuple[Any, ...]] = []
        self.described: list[bool] = []
        self.location = location

    def call(
        self,
        target: tuple[str, str, str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout_s: float | None,
    ) -> Any:
        """Write one call down, and answer it."""
        self.calls.append((*target, args, kwargs, timeout_s))
        return self.answers.pop(0) if self.answers else None

    def reduced(
        self, class_name: str, key: str, timeout_s: float | None
    ) -> tuple[Callable[..., Handle], tuple[Any, ...]]:
        """Return what a handle is pickled as."""
        return restore, (*self.location, class_name, key, timeout_s)

    def contract(
        self, class_name: str, *, again: bool = False, timeout: float | None = None
    ) -> Contract:
        """Return what is offered; the next contract of the list when asked again."""
        self.described.append(again)
        if again and len(self.contracts) > 1:
            self.contracts.pop(0)
        return self.contracts[0]


def handle_of(*contracts: Contract, **options: Any) -> tuple[Handle, FakeCaller]:
    """Return a handle and its caller."""
    caller = FakeCaller(*contracts, **options)
    return Handle(caller, "Room", "k"), caller


def offering(*methods: str, properties: tuple[str, ...] = ()) -> Contract:
    """Return a contract with these methods and properties."""
    return Contract(
        "Room", frozenset(methods), frozenset(properties), frozenset(properties)
    )


# Methods and properties --------------------------------------------------------------


def test_method_is_called_with_its_arguments() -> None:
    """What is written at the handle is what the manager is asked."""
    handle, caller = handle_of(answers=("said",))

    assert handle.say("hi", to="all") == "said"
    assert caller.calls == [("Room", "k", "say", ("hi",), {"to": "all"}, None)]


def test_making_a_handle_asks_nothing() -> None:
    """A handle, its repr, its comparison and its hash cost no call."""
    handle, caller = handle_of()

    assert repr(handle) == "<handle of Room/k>"
    assert handle == handle
    assert hash(handle) == hash(Handle(caller, "Room", "k"))
    assert (caller.calls, caller.described) == ([], [])


def test_contract_is_not_asked_for_a_method_that_was_used() -> None:
    """The second use of a method goes straight to the manager."""
    handle, caller = handle_of()
    for _ in range(3):
        handle.say()

    assert caller.described == [False]
    assert handle.say is handle.say
    assert repr(handle.say) == "<method say of Room/k>"
    assert handle.say.__name__ == "say"


def test_property_is_read_and_set() -> None:
    """Properties are read and set by the verbs of the standard library."""
    handle, caller = handle_of(answers=(3, None))

    assert handle.size == 3
    handle.level = 4
    assert [call[2:4] for call in caller.calls] == [
        ("__getattribute__", ("size",)),
        ("__setattr__", ("level", 4)),
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("size", "can only be read"),
        ("say", "can not be set"),
        ("other", "can not be set"),
        ("_caller", "can not be set"),
    ],
)
def test_nothing_else_can_be_set(name: str, reason: str) -> None:
    """Setting anything but a settable property raises, and changes nothing."""
    handle, caller = handle_of()

    with pytest.raises(AttributeError, match=reason):
        setattr(handle, name, 1)
    assert caller.calls == []
    assert handle.say() is None


def test_unknown_name_is_an_attribute_error_with_a_hint() -> None:
    """A misspelled method names the nearest one; the manager was asked again first."""
    handle, caller = handle_of()

    with pytest.raises(AttributeError, match=r"no 'sya'\. Did you mean 'say'\? Only"):
        _ = handle.sya
    assert caller.described == [False, True]
    assert not hasattr(handle, "entirely_different")


def test_attribute_is_refused_with_the_way_to_read_it() -> None:
    """Who asks for a plain attribute learns what is offered, and what to do."""
    handle, caller = handle_of()

    with pytest.raises(NotOffered) as caught:
        _ = handle.count
    assert str(caught.value) == (
        "<handle of Room/k> offers no 'count'. Only public methods and properties of "
        "the class are offered; reach an attribute through one of them."
    )
    assert caller.calls == []


def test_method_that_is_new_in_the_manager_is_found() -> None:
    """A contract that is out of date is asked for again before a name is refused."""
    handle, caller = handle_of(
        offering("say"), offering("say", "sing", properties=("mood",)), answers=("la",)
    )

    assert handle.sing() == "la"
    handle.mood = "good"
    assert caller.described.count(True) == 1


def test_setting_asks_again_for_a_property_that_is_new() -> None:
    """A property that the known contract has not is looked for in a fresh one."""
    handle, caller = handle_of(offering("say"), offering(properties=("mood",)))
    handle.mood = "good"

    assert caller.calls[0][2:4] == ("__setattr__", ("mood", "good"))


@pytest.mark.parametrize(
    "name",
    ["_private", "__wrapped__", "__deepcopy__", "_ipython_display_", "__array__"],
)
def test_names_with_an_underscore_never_go_to_the_manager(name: str) -> None:
    """What copy, inspect and editors ask for is answered here, with a no."""
    handle, caller = handle_of()

    assert not hasattr(handle, name)
    assert (caller.calls, caller.described) == ([], [])


def test_options_make_another_handle_of_the_same_object() -> None:
    """``with_options`` changes the deadline of its own calls only."""
    handle, caller = handle_of()
    quick = handle.with_options(timeout=0.5)
    quick.say()
    handle.say()

    assert [call[5] for call in caller.calls] == [0.5, None]
    assert quick == handle


# Containers --------------------------------------------------------------------------


def test_items_are_got_set_and_deleted() -> None:
    """Square brackets are calls of the container methods."""
    handle, caller = handle_of(answers=("value",))

    assert handle["a"] == "value"
    handle["b"] = 2
    del handle["c"]
    assert [call[2:4] for call in caller.calls] == [
        ("__getitem__", ("a",)),
        ("__setitem__", ("b", 2)),
        ("__delitem__", ("c",)),
    ]


@pytest.mark.parametrize(
    ("use", "method"),
    [
        (len, "__len__"),
        (lambda handle: handle[0], "__getitem__"),
        (lambda handle: handle.__setitem__(0, 1), "__setitem__"),
        (lambda handle: handle.__delitem__(0), "__delitem__"),
        (lambda handle: 0 in handle, "__contains__"),
        (list, "__iter__"),
    ],
)
def test_container_methods_that_are_not_offered_are_type_errors(
    use: Callable[[Handle], Any], method: str
) -> None:
    """An object that is no container says so as Python's own do."""
    handle, caller = handle_of(offering("say"))

    with pytest.raises(TypeError, match=f"offers no {method}"):
        use(handle)
    assert caller.calls == []


def test_length_and_membership_are_asked() -> None:
    """``len`` and ``in`` are one call each."""
    handle, caller = handle_of(offering("__len__", "__contains__"), answers=(3, True))

    assert len(handle) == 3
    assert "a" in handle
    assert [call[2] for call in caller.calls] == ["__len__", "__contains__"]


def test_iteration_is_over_a_snapshot_taken_in_one_call() -> None:
    """A loop over a handle asks once, whatever its length."""
    handle, caller = handle_of(offering("__iter__"), answers=([1, 2, 3],))

    assert [item * 2 for item in handle] == [2, 4, 6]
    assert len(caller.calls) == 1


def test_membership_of_what_can_only_be_iterated() -> None:
    """Without ``__contains__`` the snapshot is searched here, as Python does."""
    handle, caller = handle_of(offering("__iter__"), answers=([1, 2],))

    assert 2 in handle
    assert [call[2] for call in caller.calls] == ["__iter__"]


@pytest.mark.parametrize(
    ("methods", "answers", "expected"),
    [
        (("say",), (), True),
        (("__len__",), (0,), False),
        (("__len__",), (2,), True),
        (("__bool__", "__len__"), (False,), False),
    ],
)
def test_truth_is_the_objects_own(
    methods: tuple[str, ...], answers: tuple[Any, ...], expected: bool
) -> None:
    """``__bool__`` before ``__len__`` before simply being there."""
    handle, caller = handle_of(offering(*methods), answers=answers)

    assert bool(handle) is expected
    assert len(caller.calls) == len(answers)


# Identity ----------------------------------------------------------------------------


def test_handles_of_one_object_are_equal() -> None:
    """Equal means: same manager, same class, same key; whatever client holds it."""
    one, _ = handle_of()
    same = Handle(FakeCaller(), "Room", "k")
    others = [
        Handle(FakeCaller(), "Room", "j"),
        Handle(FakeCaller(), "Hall", "k"),
        Handle(FakeCaller(location=("tcp://h:2", "/data")), "Room", "k"),
        Handle(FakeCaller(location=(None, "/data")), "Room", "k"),
    ]

    assert one == same
    assert hash(one) == hash(same)
    assert all(one != other for other in others)
    assert len({one, same, *others}) == 5
    assert one != "Room/k"


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy])
def test_handles_can_be_copied(again: Callable[[Handle], Handle]) -> None:
    """A copy is a handle of the same object; the object is not copied."""
    handle, caller = handle_of()

    assert again(handle) == handle
    assert caller.calls == []


def test_handle_is_pickled_as_a_name_without_the_key() -> None:
    """Where it is unpickled the process finds its own way, with the same deadline."""
    caller = FakeCaller(location=(None, "/data"))
    handle = Handle(caller, "Room", "k", 2.5)
    data = pickle.dumps(handle)
    again = pickle.loads(data)

    assert again == handle
    again.say()
    assert again._caller.calls[0][5] == 2.5
    assert b"authkey" not in data


def test_method_is_pickled_as_its_handle_and_a_name() -> None:
    """A pool of processes can be given a method; unpickling it asks nobody."""
    say = Handle(FakeCaller(location=(None, "/data")), "Room", "k", 2.5).say
    again = pickle.loads(pickle.dumps(say))
    copied = copy.deepcopy(say)

    assert again._caller.described == copied._caller.described == []
    again("hello")
    assert again._caller.calls == [("Room", "k", "say", ("hello",), {}, 2.5)]


def test_handle_inside_a_value_travels_as_a_reference() -> None:
    """The manager gets a name, nothing that could be called."""
    handle, _ = handle_of()
    body = codec.encode({"room": handle})

    assert codec.decode(body) == {"room": Reference("Room", "k")}
    made = codec.decode(body, reference=lambda name, key: (name, key))
    assert made == {"room": ("Room", "k")}
