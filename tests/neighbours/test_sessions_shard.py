"""The shared class behind the sessions, with plain calls and a clock of the test's."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest

from state_server import codec
from state_server.objects import sessions
from state_server.objects.sessions import SessionShard

LIFETIME_S = 100.0


class Clock:
    """Stands for the manager's clock; goes when it is told."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock that the shard reads."""
    clock = Clock()
    monkeypatch.setattr(sessions, "now", clock)
    return clock


@pytest.fixture
def shard(clock: Clock) -> SessionShard:
    """Return an empty shard."""
    return SessionShard()


def create(shard: SessionShard, name: str = "s", **values: bytes) -> tuple[str, Any]:
    """Begin a session with ordinary limits."""
    return begin(shard, name, values)


def begin(
    shard: SessionShard, name: str, values: dict[str, bytes], **options: Any
) -> tuple[str, Any]:
    """Begin a session; limits as given."""
    options = {
        "user": "",
        "lifetime_s": LIFETIME_S,
        "bytes_max": 1000,
        "sessions_max": 1000,
        **options,
    }
    return shard.create(name, values, **options)


def save(
    shard: SessionShard,
    name: str = "s",
    base: int = 1,
    added: dict[str, bytes] | None = None,
    replaced: dict[str, bytes] | None = None,
    removed: tuple[str, ...] = (),
    **options: Any,
) -> tuple[str, Any]:
    """Save a session with ordinary limits."""
    options = {
        "rule": "merge",
        "user": None,
        "lifetime_s": LIFETIME_S,
        "bytes_max": 1000,
        **options,
    }
    return shard.save(name, base, added or {}, replaced or {}, removed, **options)


def values(shard: SessionShard, name: str = "s") -> dict[str, bytes] | None:
    """Return the values of a session."""
    loaded = shard.load(name)
    return None if loaded is None else loaded[3]


def names(shard: SessionShard, user: str | None = None) -> list[str]:
    """Return the names of the sessions, sorted."""
    return sorted(row[0] for row in shard.overview(user, 1000))


def test_what_two_requests_changed_is_brought_together(shard: SessionShard) -> None:
    """Keys added, replaced and removed by requests that overlap all take effect."""
    assert create(shard, a=b"1", b=b"1", c=b"1") == ("saved", 1)
    assert save(shard, added={"d": b"2"}) == ("saved", 2)
    assert save(shard, replaced={"a": b"3"}) == ("saved", 3)
    assert save(shard, removed=("b",)) == ("saved", 4)
    assert values(shard) == {"a": b"3", "c": b"1", "d": b"2"}


def test_the_later_change_of_one_key_wins(shard: SessionShard) -> None:
    """Merging two changes of one key keeps that which came last, a removal as well."""
    create(shard, a=b"1", b=b"1")
    save(shard, replaced={"a": b"2"})
    save(shard, replaced={"a": b"3"})
    assert values(shard) == {"a": b"3", "b": b"1"}
    save(shard, removed=("a",))
    assert values(shard) == {"b": b"1"}


def test_rule_last_leaves_nothing_of_others(shard: SessionShard) -> None:
    """With the rule "last", the session is what the last request made of it."""
    create(shard, a=b"1")
    save(shard, added={"a": b"1", "b": b"2"}, rule="last")
    save(shard, added={"a": b"1", "c": b"3"}, rule="last")
    assert values(shard) == {"a": b"1", "c": b"3"}


@pytest.mark.parametrize(
    ("first", "second", "contested"),
    [
        ({"added": {"x": b"1"}}, {"added": {"x": b"2"}}, "x"),
        ({"replaced": {"a": b"2"}}, {"replaced": {"a": b"3"}}, "a"),
        ({"replaced": {"a": b"2"}}, {"removed": ("a",)}, "a"),
        ({"removed": ("a",)}, {"replaced": {"a": b"3"}}, "a"),
        ({"removed": ("a",)}, {"removed": ("a",)}, "a"),
        ({"added": {"x": b"1"}}, {"added": {"y": b"2"}}, None),
        ({"replaced": {"a": b"2"}}, {"replaced": {"b": b"3"}}, None),
        ({"removed": ("a",)}, {"added": {"x": b"1"}}, None),
    ],
)
def test_rule_error_refuses_a_contested_key(
    shard: SessionShard,
    first: dict[str, Any],
    second: dict[str, Any],
    contested: str | None,
) -> None:
    """Of two changes of one key the second is refused and changes nothing."""
    create(shard, a=b"1", b=b"1")
    assert save(shard, **first, rule="error")[0] == "saved"
    before = values(shard)
    answer = save(shard, **second, rule="error")
    if contested is None:
        assert answer[0] == "saved"
    else:
        assert answer == ("conflict", contested)
        assert values(shard) == before


def test_a_request_that_has_seen_the_change_is_no_conflict(shard: SessionShard) -> None:
    """One after the other, requests change one key under the rule "error"."""
    create(shard, a=b"1")
    for number in range(1, 5):
        change = {"a": b"%d" % number}
        assert save(shard, base=number, replaced=change, rule="error")[0] == "saved"


def test_what_has_ended_is_not_brought_back(shard: SessionShard) -> None:
    """A save that comes after the end of its session leaves nothing."""
    create(shard, a=b"1")
    assert shard.end("s")
    assert save(shard, added={"b": b"2"}) == ("gone", 0)
    assert save(shard, added={"b": b"2"}, new_name="t") == ("gone", 0)
    assert save(shard, added={"b": b"2"}, rule="last") == ("gone", 0)
    assert names(shard) == []
    assert not shard.end("s")


def test_nothing_is_overwritten_by_a_new_session(shard: SessionShard) -> None:
    """A name that is taken is neither begun again nor renamed to."""
    create(shard, "s", a=b"1")
    create(shard, "t", a=b"2")
    assert create(shard, "s", a=b"3") == ("gone", 0)
    assert save(shard, "t", new_name="s") == ("gone", 0)
    assert (values(shard, "s"), values(shard, "t")) == ({"a": b"1"}, {"a": b"2"})


def test_new_name_keeps_the_session(shard: SessionShard, clock: Clock) -> None:
    """Renamed in the call that changes it, a session keeps all but its name."""
    begin(shard, "s", {"a": b"1"}, user="ann")
    created = shard.overview(None, 1)[0][2]
    clock.time += 10
    assert save(shard, added={"b": b"2"}, new_name="t") == ("saved", 2)
    assert values(shard, "s") is None
    assert values(shard, "t") == {"a": b"1", "b": b"2"}
    assert names(shard, "ann") == ["t"]
    assert shard.overview(None, 1)[0][2] == created


def test_a_session_in_place_of_another(shard: SessionShard) -> None:
    """One call ends a session and begins the next with other values."""
    begin(shard, "s", {"a": b"1"}, user="ann")
    assert begin(shard, "t", {"b": b"2"}, in_place_of="s")[0] == "saved"
    assert (names(shard), names(shard, "ann")) == (["t"], [])


@pytest.mark.parametrize("end", ["logout", "revoked", "another", "new id", "expired"])
def test_none_in_place_of_one_that_ended(
    shard: SessionShard, clock: Clock, end: str
) -> None:
    """What a request had read has ended: it cannot go on as another session."""
    begin(shard, "s", {"a": b"1"}, user="ann")
    ends: dict[str, Callable[[], object]] = {
        "logout": lambda: shard.end("s"),
        "revoked": lambda: shard.end_user("ann"),
        "another": lambda: begin(shard, "t", {"b": b"2"}, in_place_of="s"),
        "new id": lambda: save(shard, "s", new_name="t"),
        "expired": lambda: setattr(clock, "time", clock.time + LIFETIME_S),
    }
    ends[end]()
    before = names(shard)
    assert begin(shard, "u", {"a": b"1"}, in_place_of="s") == ("gone", 0)
    assert names(shard) == before


@pytest.mark.parametrize("rule", ["merge", "last"])
def test_nothing_left_is_the_end(shard: SessionShard, rule: str) -> None:
    """The removal of the last value ends the session, bound or not; a flag is none."""
    begin(shard, "s", {"a": b"1", "_permanent": b"1"}, user="ann")
    added = {"_permanent": b"1"} if rule == "last" else {}
    assert save(shard, added=added, removed=("a",), rule=rule) == ("emptied", 0)
    assert names(shard) == names(shard, "ann") == []


def test_a_removal_leaves_what_others_added(shard: SessionShard) -> None:
    """The last value that one request knew is removed; another's keeps the session."""
    create(shard, a=b"1")
    save(shard, added={"b": b"2"})
    assert save(shard, removed=("a",))[0] == "saved"
    assert values(shard) == {"b": b"2"}


def test_bound_but_empty_session_stays(shard: SessionShard) -> None:
    """A session that never held a value is kept for the user it is bound to."""
    begin(shard, "s", {}, user="ann")
    assert save(shard)[0] == "saved"
    assert names(shard, "ann") == ["s"]


def test_what_has_expired_is_not_there(shard: SessionShard, clock: Clock) -> None:
    """What has expired is read, saved, renewed, listed and counted no more."""
    begin(shard, "s", {"a": b"1"}, user="ann")
    clock.time += LIFETIME_S - 1
    assert values(shard) == {"a": b"1"}
    clock.time += 1
    assert values(shard) is None
    assert names(shard) == names(shard, "ann") == []
    assert save(shard, added={"b": b"2"}) == ("gone", 0)
    assert shard.end_user("ann") == 0


def test_a_touch_moves_the_expiry_and_nothing_else(
    shard: SessionShard, clock: Clock
) -> None:
    """A save without changes renews the session under the version that it had."""
    create(shard, a=b"1")
    clock.time += 60
    assert save(shard) == ("saved", 1)
    clock.time += 60
    assert shard.load("s") == (1, 60.0, "", {"a": b"1"})


def test_expired_sessions_leave_memory_a_few_at_a_time(
    shard: SessionShard, clock: Clock
) -> None:
    """Changes clear away what has expired, four looked at each, whatever is changed."""
    for number in range(400):
        begin(shard, f"old-{number}", {"a": b"1"}, user="ann", lifetime_s=10)
    create(shard, "new", a=b"1")
    clock.time += 50
    for changes in range(1, 102):
        before = len(shard._sessions)
        save(shard, "new")
        assert before - len(shard._sessions) <= 4, changes
    assert list(shard._sessions) == ["new"]
    assert shard._users == {}


def test_what_has_expired_stays_a_small_part(shard: SessionShard, clock: Clock) -> None:
    """Where sessions come and go, few more than live are in memory."""
    chance = random.Random(7)
    for number in range(5000):
        clock.time += 1
        lifetime_s = chance.choice((50.0, 500.0, 1000.0))
        begin(shard, f"s{number}", {"a": b"1"}, lifetime_s=lifetime_s)
        if number > 1500:
            live = sum(s.expires > clock.time for s in shard._sessions.values())
            assert len(shard._sessions) <= live * 1.5


def test_limit_of_bytes(shard: SessionShard) -> None:
    """A session over the limit is refused with its largest key, and stays as it was."""
    assert create(shard, "big", a=b"1", b=bytes(1000)) == ("too large", "b")
    create(shard, a=bytes(600))
    answer = save(shard, added={"b": bytes(300), "c": bytes(200)})
    assert answer == ("too large", "b")
    assert values(shard) == {"a": bytes(600)}
    assert save(shard, added={"b": bytes(398)})[0] == "saved"
    assert save(shard, replaced={"b": bytes(399)}) == ("too large", "b")


def test_a_session_over_a_lowered_limit_may_shrink(shard: SessionShard) -> None:
    """Nobody is locked out by a limit that was lowered after the session had grown."""
    create(shard, a=bytes(600), b=bytes(300))
    assert save(shard, bytes_max=100)[0] == "saved"
    assert save(shard, removed=("b",), bytes_max=100)[0] == "saved"
    assert save(shard, added={"c": b"1"}, bytes_max=100) == ("too large", "c")


def test_limit_of_sessions(shard: SessionShard, clock: Clock) -> None:
    """A full shard begins no session, nor ends one for it; room is made by expiry."""
    for number in range(3):
        begin(shard, f"s{number}", {}, user="ann", sessions_max=3)
    assert begin(shard, "s3", {}, user="ann", sessions_max=3) == ("full", 0)
    assert len(names(shard)) == 3
    # One in place of another needs no room.
    assert begin(shard, "s4", {}, sessions_max=3, in_place_of="s0")[0] == "saved"
    clock.time += LIFETIME_S
    assert begin(shard, "s5", {}, sessions_max=3)[0] == "saved"


def test_sessions_of_a_user(shard: SessionShard) -> None:
    """Bound, bound to another, unbound: the list of each user is right."""
    for name in "abc":
        begin(shard, name, {"x": b"1"}, user="ann")
    save(shard, "b", user="bob")
    save(shard, "c", user="")
    assert (names(shard, "ann"), names(shard, "bob")) == (["a"], ["b"])
    save(shard, "c", user="ann")
    assert shard.end_user("ann", keep="c") == 1
    assert (names(shard), names(shard, "ann")) == (["b", "c"], ["c"])
    assert shard.end_user("nobody") == 0
    assert len(shard.overview(None, 1)) == 1


def test_the_latest_seen_are_listed(shard: SessionShard, clock: Clock) -> None:
    """If there are more than asked for, the list holds those seen last, in order."""
    for number in range(10):
        clock.time += 1
        begin(shard, f"s{number}", {"x": b"1"}, user="ann")
    clock.time += 1
    save(shard, "s2")
    for user in (None, "ann"):
        listed = [row[0] for row in shard.overview(user, 3)]
        assert listed == ["s2", "s9", "s8"]


def test_an_unknown_rule_is_no_rule(shard: SessionShard) -> None:
    """A rule that there is not changes nothing, and is not taken for another one."""
    create(shard, a=b"1")
    with pytest.raises(ValueError, match="fight"):
        save(shard, replaced={"a": b"2"}, rule="fight")
    assert values(shard) == {"a": b"1"}


def model_step(
    chance: random.Random, shard: SessionShard, clock: Clock
) -> Callable[[], Any]:
    """Do something that a worker may ask."""
    name, other = (f"s{chance.randrange(30)}" for _ in range(2))
    some = {f"k{chance.randrange(5)}": bytes(chance.randrange(700)) for _ in range(2)}
    clock.time += chance.random()
    user = chance.choice(("", "ann", "bob"))
    lifetime_s = chance.choice((5.0, 50.0))
    rule = chance.choice(("merge", "last", "error"))
    steps: list[Callable[[], Any]] = [
        lambda: begin(shard, name, some, user=user, lifetime_s=lifetime_s),
        lambda: begin(shard, name, some, sessions_max=10),
        lambda: begin(shard, name, some, sessions_max=10, in_place_of=other),
        lambda: save(shard, name, 9, some, rule=rule, lifetime_s=lifetime_s),
        lambda: save(shard, name, 9, {}, some, ("k1", "k2"), rule=rule),
        lambda: save(shard, name, removed=("k0", "k1", "k2", "k3", "k4")),
        lambda: save(shard, name, user=user, new_name=other),
        lambda: shard.end(name),
        lambda: shard.end_user(user or "ann", keep=other),
    ]
    return chance.choice(steps)


def check(shard: SessionShard) -> None:
    """Compare the index of users with the sessions."""
    index = {(user, name) for user, found in shard._users.items() for name in found}
    assert index == {(s.user, n) for n, s in shard._sessions.items() if s.user}
    assert all(shard._users.values())
    for session in shard._sessions.values():
        assert all(version <= session.version for version, _ in session.values.values())


def test_what_is_done_again_comes_out_the_same(clock: Clock) -> None:
    """Replayed on a loaded image, as a journal is, random calls end in one state."""
    first = SessionShard()
    chance = random.Random(11)
    for _ in range(300):
        model_step(chance, first, clock)()
    assert begin(first, "bound", {"k": b"1"}, user="ann")[0] == "saved"
    second = pickle.loads(pickle.dumps(first))
    assert second._sessions == first._sessions
    assert second._users == first._users
    state, time = chance.getstate(), clock.time
    answers = []
    for shard in (first, second):
        chance.setstate(state)
        clock.time = time
        answers.append([model_step(chance, shard, clock)() for _ in range(1500)])
        check(shard)
    assert answers[0] == answers[1]
    assert first._sessions == second._sessions
    assert list(first._sessions) == list(second._sessions)
    assert first._users == second._users
    assert {answer[0] for answer in answers[0] if isinstance(answer, tuple)} >= {
        "saved",
        "emptied",
        "gone",
        "conflict",
        "too large",
        "full",
    }


def test_everything_that_is_answered_can_travel(shard: SessionShard) -> None:
    """What the methods return is made of types that the wire knows."""
    begin(shard, "s", {"a": b"1"}, user="ann")
    for answer in (save(shard), shard.load("s"), shard.overview(None, 5)):
        assert codec.decode(codec.encode(answer)) == answer
    assert type(save(shard)[0]) is str
