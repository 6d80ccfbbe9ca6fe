"""One turn: the object's code is run for one call, and answered whatever it does.

This is the border to the classes of the user. Used by the thread whose turn it is.
"""

from __future__ import annotations

import itertools
import logging
import os
import types
from collections.abc import Callable
from typing import Any

from .. import bodies, codec, wire
from ..errors import (
    Expired,
    NotOffered,
    RemoteError,
    StateServerError,
    TooLarge,
)
from ..keeping.commits import Change, Committer
from ..messages import WHAT_IS_OFFERED, Call, Contract, Payload, running
from ..replayable import Unchanged
from ..sharing import contract_of
from .tickets import Resident, Ticket

log = logging.getLogger("state_server.host")


class Performer:
    """Runs calls on objects.

    ``is_copy``: this process is a child that a method has forked. If the method returns
    there as well, the child ends: locks may be held by threads that are not here, and
    the reply, the sockets and the store are the parent's.
    """

    def __init__(
        self,
        boot_id: bytes,
        frame_bytes_max: int,
        committer: Committer | None,
        check_room: Callable[[Resident], None],
        clock: Callable[[], float],
    ) -> None:
        self._boot_id = boot_id
        self._value_bytes_max = frame_bytes_max
        self._reply_bytes_max = wire.own_frame_bytes_max(frame_bytes_max)
        self._committer = committer
        self._check_room = check_room
        self._clock = clock
        self.is_copy = False

    def perform(
        self, resident: Resident, ticket: Ticket
    ) -> tuple[Payload, Change | None]:
        """Run a call; return its reply, and what is to be on disk before that leaves.

        Raises nothing.
        """
        try:
            return self._perform(resident, ticket)
        except BaseException as error:
            return self._broken(resident, ticket, error), None

    def _perform(
        self, resident: Resident, ticket: Ticket
    ) -> tuple[Payload, Change | None]:
        """Run the call; return its reply, and what is to be on disk before that."""
        call, form, keeper = ticket.call, ticket.destination.form, resident.keeper
        running.boot_id, running.name = self._boot_id, resident.name
        ran = False
        try:
            if self._clock() > ticket.deadline:
                raise Expired(
                    f"The deadline of {call.name}.{call.method} passed while it waited."
                )
            arguments, keywords = bodies.arguments_of(call)
            if resident.poisoned:
                resident.poisoned = False
                resident.batch = None
                keeper.drop()
            if keeper.instance is None:
                self.bring(resident)
            step = self._step(resident, call, arguments)
            readonly = call.method in resident.shared.readonly
            keeper.begin(call, readonly=readonly)
            ran = True
            value = step(*arguments, **keywords)
            if isinstance(value, types.GeneratorType):
                value = _snapshot(value)
        except BaseException as error:
            # The border to the object's own code: whatever it raises, sys.exit()
            # included, is an answer to its caller and ends nothing here.
            payload = self._failed(resident, ticket, error, ran=ran)
            return (
                self._with_first(resident, ticket, payload) if ran else (payload, None)
            )
        finally:
            if self.is_copy:
                os._exit(0)
            running.boot_id = None
        try:
            reply = form.done(call, value)
            if len(reply) > self._reply_bytes_max:
                raise TooLarge(
                    f"The result of {call.name}.{call.method} has {len(reply)} "
                    f"bytes; the limit is {self._value_bytes_max} (frame_bytes_max)."
                )
            return reply, keeper.kept(call, readonly=readonly)
        except StateServerError as error:
            return self._not_done(resident, ticket, error), None

    def _with_first(
        self, resident: Resident, ticket: Ticket, payload: Payload
    ) -> tuple[Payload, Change | None]:
        """Return the reply of a call that failed, and what puts a new object on disk.

        Where that cannot be kept, the reply says so: it may show how it was built.
        """
        try:
            return payload, resident.keeper.first()
        except StateServerError as error:
            resident.keeper.drop()
            return ticket.destination.form.refused(ticket.call, error), None

    def _failed(
        self, resident: Resident, ticket: Ticket, error: BaseException, *, ran: bool
    ) -> bytes:
        """Answer a call that was refused before its method, or whose method raised."""
        call, form = ticket.call, ticket.destination.form
        if isinstance(error, StateServerError) and not ran:
            log.info("%s.%s refused: %s", call.name, call.method, error)
            return form.refused(call, error)
        if ran:
            unchanged = isinstance(error, Unchanged)
            self._undo(resident, readonly=unchanged or _is_readonly(resident, call))
        if isinstance(error, Unchanged):
            error = error.error
        log.info(
            "%s.%s raised %s: %s",
            call.name,
            call.method,
            type(error).__qualname__,
            _shown(error),
            exc_info=error if log.isEnabledFor(logging.DEBUG) else None,
        )
        return form.raised(call, error)

    def _not_done(
        self, resident: Resident, ticket: Ticket, error: StateServerError
    ) -> bytes:
        """Answer a call whose result cannot travel, or whose state cannot be kept."""
        call = ticket.call
        log.warning("%s.%s was not done: %s", call.name, call.method, error)
        self._undo(resident, readonly=False)
        if not resident.keeper.undoes:
            error = RemoteError(
                f"{call.name}.{call.method} ran, but its result cannot travel: {error}"
            )
        return ticket.destination.form.refused(call, error)

    def _broken(
        self, resident: Resident, ticket: Ticket, error: BaseException
    ) -> bytes:
        """Answer a call whose object raised where no code of its own was expected.

        Pickling is such a place, and so is the text of an error.
        """
        call = ticket.call
        log.exception("%s.%s ended outside its method.", call.name, call.method)
        if resident.keeper.undoes:
            resident.keeper.drop()
        return ticket.destination.form.refused(
            call,
            RemoteError(
                f"{call.name}.{call.method} ended in {type(error).__qualname__}, "
                "raised outside the method itself; it may have run."
            ),
        )

    def _undo(self, resident: Resident, *, readonly: bool) -> None:
        try:
            resident.keeper.undo(readonly=readonly)
        except Exception:
            # The class's own code again. The object leaves memory; what is on disk is
            # what it was before the call.
            log.exception("%s could not be put back; it is loaded anew.", resident.name)
            resident.keeper.drop()

    def bring(self, resident: Resident) -> None:
        """Build or load the object, in its own turn: slowness delays only itself.

        Raises ``Overloaded`` when there is no room for it in memory.
        """
        if not resident.keeper.kept_bytes:
            self._check_room(resident)
        if resident.batch is not None and self._committer is not None:
            # What was staged last must be on disk before the disk is asked.
            self._committer.wait_for(resident.batch)
        resident.keeper.bring()
        if resident.contract is None:
            resident.contract = contract_of(
                type(resident.keeper.instance),
                resident.shared.name,
                resident.shared.exposed,
            )

    def _step(
        self, resident: Resident, call: Call, arguments: tuple[Any, ...]
    ) -> Callable[..., Any]:
        contract = resident.contract
        assert contract is not None, resident
        method, instance = call.method, resident.keeper.instance
        if method in contract.methods:
            if method == "__iter__":
                return lambda: _snapshot(iter(instance))
            return getattr(instance, method)  # type: ignore[no-any-return]
        if method in _ALWAYS_ANSWERED:
            return lambda: _ALWAYS_ANSWERED[method](instance)
        if method in _PROPERTY_VERBS and arguments:
            offered = contract.properties if method == _READ else contract.settable
            if arguments[0] in offered:
                verb = _PROPERTY_VERBS[method]
                return lambda *rest: verb(instance, *rest)
            raise NotOffered(
                f"{contract.class_name} offers no {arguments[0]!r}. {WHAT_IS_OFFERED}"
            )
        raise _no_method(contract.class_name, method)


#: The verbs that read and set a property, as the standard library's NamespaceProxy
#: spells them.
_READ = "__getattribute__"
_PROPERTY_VERBS: dict[str, Callable[..., Any]] = {
    _READ: getattr,
    "__setattr__": setattr,
}

_ALWAYS_ANSWERED: dict[str, Callable[[Any], str]] = {"__repr__": repr, "__str__": str}


def check_offered(contract: Contract | None, call: Call) -> None:
    """Refuse a method that no object of the class has, before one is built."""
    if contract is None or call.method in contract.methods:
        return
    if call.method not in _ALWAYS_ANSWERED and call.method not in _PROPERTY_VERBS:
        raise _no_method(call.class_name, call.method)


def _no_method(class_name: str, method: str) -> NotOffered:
    return NotOffered(f"{class_name} offers no method {method!r}. {WHAT_IS_OFFERED}")


def _is_readonly(resident: Resident, call: Call) -> bool:
    return call.method in resident.shared.readonly


def _snapshot(iterator: Any) -> list[Any]:
    """Return the items as a list; an endless iterator ends in ``TooLarge``."""
    limit = codec.DEFAULT_LIMITS.nodes_max
    items = list(itertools.islice(iterator, limit + 1))
    if len(items) > limit:
        raise TooLarge(f"An iteration gave more than {limit} items.")
    return items


def _shown(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except BaseException as failure:
        # Logged in its place: an error that cannot be printed must not end the turn.
        return f"<text failed: {type(failure).__name__}>"
