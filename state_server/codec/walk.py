"""The walk over the opcodes of a pickle, before any of them is obeyed.

One step for each opcode says what it does to the abstract stack (``stack_machine``),
which builds nothing and only measures. It lets through only what picklers emit for our
types.

The opcodes stand here as bytes. Pickle itself and values may not enter.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import NotAllowed
from .constructors import GETATTR, UNPICKLE_ZONE, ZONE, look_up
from .entries import ITEMS, MEMBERS, MUST, NEVER, PAIRS, Entry
from .measures import ValueLimits, over
from .stack_machine import (
    BATCH,
    DICT,
    LONG_END,
    NAME,
    OTHER,
    PLAIN,
    RUN,
    SET_SIZE,
    TUPLE,
    Machine,
    Node,
    misplaced,
)

#: The longest line of text that a name of protocol 2 and 3 may be.
_LINE_BYTES_MAX = 1024


def checked_walk(
    data: bytes, limits: ValueLimits, buffer_sizes: Sequence[int] = ()
) -> Machine:
    """Walk over a pickle and return what was seen; refuse what may not pass.

    ``buffer_sizes`` are those of the buffers that came beside the pickle.
    """
    machine = Machine(data, limits, buffer_sizes)
    try:
        _run(machine)
    except IndexError:
        raise NotAllowed(
            "The pickle is truncated, or takes more from the stack than is there."
        ) from None
    except UnicodeDecodeError:
        raise NotAllowed("The pickle has a name that is not valid text.") from None
    return machine


def _run(machine: Machine) -> None:
    """Walk from the first opcode to the last, or refuse the pickle.

    The three commonest opcodes are taken here, to save a call each.
    """
    data, memo, steps = machine.data, machine.memo, _STEPS
    if data[0] != 0x80 or not 2 <= data[1] <= 5:
        raise NotAllowed("The value does not begin as a pickle of protocol 2 to 5.")
    position = 2
    while True:
        for _ in itertools.repeat(None, BATCH):
            opcode = data[position]
            if opcode == 0x94:  # MEMOIZE
                memo.append(machine.stack[-1])
                position += 1
            elif opcode == 0x8C:  # SHORT_BINUNICODE
                size = data[position + 1]
                start = position + 2
                position = start + size
                machine.stack.append((size, start, position))
            # BINGET, of a leaf.
            elif opcode == 0x68 and type(memo[data[position + 1]]) is tuple:
                machine.stack.append(memo[data[position + 1]])
                position += 2
            else:
                position = steps[opcode](machine, position + 1)
                if position < 0:
                    return
        machine.check_work()


# One function for each opcode: it takes the position of its argument and returns that
# of the next opcode; a negative one ends the walk.

_Step = Callable[[Machine, int], int]


def _refuse(machine: Machine, position: int) -> int:
    """Refuse an opcode that no pickler writes for our types."""
    opcode = machine.data[position - 1]
    name = _REFUSED_NAMES.get(bytes([opcode]), "unknown")
    hint = "; it may hold a tuple that holds itself" if opcode in b"01" else ""
    raise NotAllowed(f"The pickle uses the opcode {name} (0x{opcode:02x}){hint}.")


def _scalar(size: int) -> _Step:
    """Return the step for a number of fixed size."""

    def step(machine: Machine, position: int) -> int:
        machine.stack.append(PLAIN)
        return position + size

    return step


def _long(width: int) -> _Step:
    """Return the step for an int whose length is given in so many bytes."""

    def step(machine: Machine, position: int) -> int:
        start = position + width
        size = int.from_bytes(machine.data[position:start], "little", signed=width > 1)
        end = _end(machine, start, size)
        if size > machine.digits_bytes:
            number = abs(int.from_bytes(machine.data[start:end], "little", signed=True))
            digits = size * 2.408 if size > 2 * machine.digits_bytes + 8 else 0
            if digits or number >= 10**machine.limits.digits_max:
                digits = max(int(digits), machine.limits.digits_max + 1)
                raise over("digits_max", digits, machine.limits.digits_max)
        if size > 8:
            machine.has_long_ints = True
            machine.stack.append((size, 0, LONG_END))
        else:
            machine.stack.append((size, 0, 0))
        return end

    return step


def _text(width: int) -> _Step:
    """Return the step for text whose length is given in so many bytes."""

    def step(machine: Machine, position: int) -> int:
        start = position + width
        size = int.from_bytes(machine.data[position:start], "little")
        end = _end(machine, start, size)
        # One character outside the basic plane makes every character four bytes wide.
        payload = size if machine.data[start:end].isascii() else 4 * size
        machine.stack.append((payload, start, end))
        return end

    return step


def _binary(width: int) -> _Step:
    """Return the step for bytes whose length is given in so many bytes."""

    def step(machine: Machine, position: int) -> int:
        start = position + width
        size = int.from_bytes(machine.data[position:start], "little")
        end = _end(machine, start, size)
        machine.stack.append((size, 0, 0))
        return end

    return step


def _end(machine: Machine, start: int, size: int) -> int:
    """Return where a part ends, checking that it is there before pickle reserves it."""
    if not 0 <= size <= len(machine.data) - start:
        raise NotAllowed(f"The pickle announces {size} bytes that are not there.")
    return start + size


def _framing(machine: Machine, position: int) -> int:
    """Check that what FRAME announces is there; it has no other meaning."""
    size = int.from_bytes(machine.data[position : position + 8], "little")
    _end(machine, position + 8, size)
    return position + 8


def _container(kind: str, grows: str, payload: int = 0) -> _Step:
    """Return the step that makes an empty container."""

    def step(machine: Machine, position: int) -> int:
        node = Node(kind, grows)
        node.payload = payload
        if kind is DICT:
            node.items = []
        machine.stack.append(node)
        return position

    return step


def _mark(machine: Machine, position: int) -> int:
    """Open a group; measure a group of nothing but numbers as one node."""
    if len(machine.marks) > machine.limits.depth_max + 8:
        raise over("depth_max", len(machine.marks), machine.limits.depth_max)
    machine.marks.append(machine.stack)
    machine.stack = []
    if machine.data[position] not in _NUMBER_OPCODES:
        return position
    end, count = _numbers(machine, position)
    if not count or machine.data[end] not in _GROUP_ENDS:
        return position
    if machine.data[end] == _SETITEMS and count % 2:
        raise NotAllowed("The pickle has a key without a value.")
    node = Node(RUN)
    node.count = count
    node.depth = 0
    machine.stack.append(node)
    return end


_NUMBER = (
    rb"K.|M..|J.{4}|G.{8}|[N\x88\x89]"
    rb"|\x8a(?:\x05.{5}|\x06.{6}|\x07.{7}|\x08.{8})"
)
#: Of bounded length, because the matcher keeps notes about every repetition.
_NUMBERS = re.compile(rb"(?:%s){1,4096}" % _NUMBER, re.DOTALL)
_ONE_NUMBER = re.compile(_NUMBER, re.DOTALL)
_NUMBER_WIDTHS = {b"K": 2, b"M": 3, b"J": 5, b"G": 9, b"N": 1, b"\x88": 1, b"\x89": 1}
_LONG1, _FRAME = b"\x8a", b"\x95"
_NUMBER_OPCODES = b"".join((*_NUMBER_WIDTHS, _LONG1))
_SETITEMS = 0x75
#: APPENDS, TUPLE, SETITEMS, ADDITEMS, FROZENSET.
_GROUP_ENDS = b"etu\x90\x91"


def _numbers(machine: Machine, start: int) -> tuple[int, int]:
    """Return where a run of numbers ends, and how many they are.

    Numbers of one kind have their opcodes at equal distances, so a slice with a step
    counts them. A mixture is left to a regular expression.
    """
    data, end, count, reach = machine.data, start, 0, 32
    while True:
        opcode = data[end : end + 1]
        width = _NUMBER_WIDTHS.get(opcode)
        if width is None and opcode == _FRAME and count:
            # Picklers write it every 64 KiB, also in the middle of a group.
            end = _framing(machine, end + 1)
        elif width is None and opcode != _LONG1:
            return end, count
        elif width is not None:
            opcodes = data[end : end + width * reach : width]
            same = len(opcodes) - len(opcodes.lstrip(opcode))
            end += same * width
            count += same
            reach = 4096 if same == reach else 32
        if width is None or reach == 32:
            match = _NUMBERS.match(data, end)
            if match is not None:
                end = match.end()
                count += len(_ONE_NUMBER.findall(match[0]))
            elif opcode == _LONG1:
                return end, count


def _append(machine: Machine, position: int) -> int:
    """Add one item to a list."""
    item = machine.stack.pop()
    machine.add(machine.growing(ITEMS), (item,))
    return position


def _appends(machine: Machine, position: int) -> int:
    """Add a group of items to a list."""
    items = machine.pop_mark()
    machine.add(machine.growing(ITEMS), items)
    return position


def _add_items(machine: Machine, position: int) -> int:
    """Add a group of members to a set."""
    items = machine.pop_mark()
    machine.count_keys(items)
    machine.add(machine.growing(MEMBERS), items)
    return position


def _set_item(machine: Machine, position: int) -> int:
    """Add one pair to a dict."""
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.count_keys([key])
    node = machine.growing(PAIRS)
    if node.kind is DICT:
        node.items.append(key)
    machine.add(node, (key, value))
    return position


def _set_items(machine: Machine, position: int) -> int:
    """Add a group of pairs to a dict."""
    items = machine.pop_mark()
    is_run = len(items) == 1 and type(items[0]) is Node and items[0].kind is RUN
    if len(items) % 2 and not is_run:
        raise NotAllowed("The pickle has a key without a value.")
    keys = items[::2]
    machine.count_keys(keys)
    node = machine.growing(PAIRS)
    if node.kind is DICT:
        node.items.extend(keys)
    machine.add(node, items)
    return position


def _tuple_of(machine: Machine, items: list[Any]) -> None:
    """Put a tuple on the stack."""
    node = Node(TUPLE)
    machine.add(node, items, parts=True)
    node.items = items
    machine.stack.append(node)


def _tuple(machine: Machine, position: int) -> int:
    """Make a tuple of a group."""
    _tuple_of(machine, machine.pop_mark())
    return position


def _tuple_1_to_3(size: int) -> _Step:
    """Return the step that makes a tuple of so many values."""

    def step(machine: Machine, position: int) -> int:
        items = machine.stack[-size:]
        if len(items) < size:
            raise IndexError
        del machine.stack[-size:]
        _tuple_of(machine, items)
        return position

    return step


def _frozenset(machine: Machine, position: int) -> int:
    """Make a frozenset of a group."""
    node = Node(OTHER)
    node.payload = SET_SIZE
    members = machine.pop_mark()
    machine.count_keys(members)
    machine.add(node, members)
    machine.stack.append(node)
    return position


def _put(width: int) -> _Step:
    """Return the step that remembers a value under a number.

    Picklers count from nought. Any other number is refused: pickle makes a table as
    long as the largest number, four gigabytes for a pickle of nine bytes.
    """

    def step(machine: Machine, position: int) -> int:
        end = position + width
        number = int.from_bytes(machine.data[position:end], "little")
        if number != len(machine.memo):
            raise NotAllowed(f"The pickle remembers a value under number {number}.")
        machine.memo.append(machine.stack[-1])
        return end

    return step


def _get(width: int) -> _Step:
    """Return the step that takes up a remembered value again.

    A value that may still grow is taken as it is now, and cannot grow through the
    reference. That is exact: it can grow only once it is on top of the stack again,
    and then everything that holds the reference has gone into it. It holds itself.
    """

    def step(machine: Machine, position: int) -> int:
        end = position + width
        node = machine.memo[int.from_bytes(machine.data[position:end], "little")]
        if type(node) is Node and node.open:
            if node.state is MUST or node.special:
                raise misplaced(node)
            node = node.as_it_is()
        machine.stack.append(node)
        return end

    return step


def _stack_global(machine: Machine, position: int) -> int:
    """Look a name up in the table."""
    name, module = machine.stack.pop(), machine.stack.pop()
    _push_name(machine, look_up(machine.text(module), machine.text(name)))
    return position


def _global(machine: Machine, position: int) -> int:
    """Look up a name of protocol 2 and 3: two lines of text."""
    words = []
    for _ in range(2):
        end = machine.data.find(b"\n", position, position + _LINE_BYTES_MAX)
        if end < 0:
            raise NotAllowed(
                "The pickle has a name without an end, or a very long one."
            )
        words.append(str(machine.data[position:end], "utf-8"))
        position = end + 1
    _push_name(machine, look_up(*words))
    return position


def _push_name(machine: Machine, entry: Entry) -> None:
    """Put a name on the stack."""
    machine.names_used = True
    if entry.value:
        machine.stack.append(PLAIN)
        return
    node = Node(NAME)
    node.depth = 0
    node.entry = entry
    node.special = True
    machine.stack.append(node)


def _call(machine: Machine, position: int) -> int:
    """Call a function of the table with a tuple of arguments."""
    arguments = machine.arguments()
    entry = machine.name()
    if not entry.call:
        raise NotAllowed(f"The pickle calls {entry.shown()}, which is no function.")
    if entry.bare and arguments.items:
        raise NotAllowed(f"The pickle calls {entry.shown()} with arguments.")
    if arguments.special:
        roles = map(_role, arguments.items)
        for role, taken in itertools.zip_longest(roles, entry.takes, fillvalue=""):
            if role not in ("", taken):
                raise NotAllowed(
                    f"The pickle gives {entry.shown()} a name as argument."
                )
        if entry is GETATTR and arguments.items[0].entry is ZONE:
            _push_name(machine, UNPICKLE_ZONE)
            return position
    machine.made(entry, arguments.items)
    return position


def _role(item: Any) -> str:
    """Return what an argument is beyond a value: the role of a name, or nothing."""
    if type(item) is not Node or not item.special:
        return ""
    return (item.entry and item.entry.role) or "name"


def _new(machine: Machine, position: int) -> int:
    """Make a bare instance of a class with a tuple of arguments."""
    arguments = machine.arguments()
    return _new_from(machine, position, arguments.items)


def _new_with_names(machine: Machine, position: int) -> int:
    """Make a bare instance of a class with a tuple and a dict of arguments."""
    keywords = machine.stack.pop()
    if type(keywords) is not Node or keywords.kind is not DICT:
        raise NotAllowed("The pickle makes an instance with names that are no dict.")
    arguments = machine.arguments()
    return _new_from(machine, position, [*arguments.items, keywords])


def _new_from(machine: Machine, position: int, parts: list[Any]) -> int:
    """Put a bare instance on the stack."""
    entry = machine.name()
    if not entry.new:
        raise NotAllowed(f"The pickle makes a bare instance of {entry.shown()}.")
    if any(_role(part) for part in parts):
        raise NotAllowed(f"The pickle gives {entry.shown()} a name as argument.")
    machine.made(entry, parts)
    return position


def _build(machine: Machine, position: int) -> int:
    """Give a state to an instance that was made in this pickle just before."""
    state = machine.stack.pop()
    node = machine.stack[-1]
    if type(node) is not Node or not node.open or node.state is NEVER:
        raise NotAllowed("The pickle gives a state to a value that takes none.")
    entry = node.entry
    assert entry is not None
    if not entry.own_state:
        _check_state(machine, state)
    node.state = NEVER
    machine.add(node, (state,))
    return position


def _check_state(machine: Machine, state: Any) -> None:
    """Let only named attributes through: a dict, or a pair with that of the slots."""
    dicts = [state]
    if type(state) is Node and state.kind is TUPLE and len(state.items) == 2:
        dicts = [part for part in state.items if part != PLAIN]
    for part in dicts:
        if type(part) is not Node or part.kind is not DICT:
            raise NotAllowed("The pickle gives a state that is no dict of attributes.")
        for key in part.items:
            name = machine.text(key)
            # __class__, __dict__ or __setstate__ would turn the instance into another.
            if name.startswith("__") and name.endswith("__") and name != "__notes__":
                raise NotAllowed(f"The pickle sets the attribute {name!r:.100}.")


def _stop(machine: Machine, position: int) -> int:
    """End the walk: one complete value, and nothing behind it."""
    if machine.marks or len(machine.stack) != 1 or position != len(machine.data):
        raise NotAllowed("The pickle does not end with exactly one value.")
    value = machine.stack[0]
    if type(value) is Node and (value.special or value.state is MUST):
        raise misplaced(value)
    if type(value) is tuple and value[0] > machine.limits.expanded_bytes_max:
        maximum = machine.limits.expanded_bytes_max
        raise over("expanded_bytes_max", value[0], maximum)
    machine.check_end()
    return -1


def _empty_tuple(machine: Machine, position: int) -> int:
    """Put the empty tuple on the stack."""
    machine.stack.append(Node(TUPLE))
    return position


_KNOWN_STEPS: dict[bytes, _Step] = {
    b"\x95": _framing,  # FRAME
    b".": _stop,  # STOP
    b"N": _scalar(0),  # NONE
    b"\x88": _scalar(0),  # NEWTRUE
    b"\x89": _scalar(0),  # NEWFALSE
    b"J": _scalar(4),  # BININT
    b"K": _scalar(1),  # BININT1
    b"M": _scalar(2),  # BININT2
    b"G": _scalar(8),  # BINFLOAT
    b"\x8a": _long(1),  # LONG1
    b"\x8b": _long(4),  # LONG4
    b"\x8c": _text(1),  # SHORT_BINUNICODE
    b"X": _text(4),  # BINUNICODE
    b"\x8d": _text(8),  # BINUNICODE8
    b"C": _binary(1),  # SHORT_BINBYTES
    b"B": _binary(4),  # BINBYTES
    b"\x8e": _binary(8),  # BINBYTES8
    b"\x96": _binary(8),  # BYTEARRAY8
    b"]": _container(OTHER, ITEMS),  # EMPTY_LIST
    b"}": _container(DICT, PAIRS),  # EMPTY_DICT
    b"\x8f": _container(OTHER, MEMBERS, SET_SIZE),  # EMPTY_SET
    b")": _empty_tuple,  # EMPTY_TUPLE
    b"(": _mark,  # MARK
    b"a": _append,  # APPEND
    b"e": _appends,  # APPENDS
    b"\x90": _add_items,  # ADDITEMS
    b"s": _set_item,  # SETITEM
    b"u": _set_items,  # SETITEMS
    b"t": _tuple,  # TUPLE
    b"\x85": _tuple_1_to_3(1),  # TUPLE1
    b"\x86": _tuple_1_to_3(2),  # TUPLE2
    b"\x87": _tuple_1_to_3(3),  # TUPLE3
    b"\x91": _frozenset,  # FROZENSET
    b"q": _put(1),  # BINPUT
    b"r": _put(4),  # LONG_BINPUT
    b"h": _get(1),  # BINGET
    b"j": _get(4),  # LONG_BINGET
    b"\x93": _stack_global,  # STACK_GLOBAL
    b"c": _global,  # GLOBAL
    b"R": _call,  # REDUCE
    b"\x81": _new,  # NEWOBJ
    b"\x92": _new_with_names,  # NEWOBJ_EX
    b"b": _build,  # BUILD
}
_STEPS: list[_Step] = [_KNOWN_STEPS.get(bytes([i]), _refuse) for i in range(256)]
#: What pickle calls the opcodes that are refused.
_REFUSED_NAMES = {
    b"0": "POP",
    b"1": "POP_MARK",
    b"2": "DUP",
    b"F": "FLOAT",
    b"I": "INT",
    b"L": "LONG",
    b"P": "PERSID",
    b"Q": "BINPERSID",
    b"S": "STRING",
    b"T": "BINSTRING",
    b"U": "SHORT_BINSTRING",
    b"V": "UNICODE",
    b"d": "DICT",
    b"g": "GET",
    b"i": "INST",
    b"l": "LIST",
    b"o": "OBJ",
    b"p": "PUT",
    b"\x80": "PROTO",
    b"\x82": "EXT1",
    b"\x83": "EXT2",
    b"\x84": "EXT4",
    b"\x94": "MEMOIZE",
    b"\x97": "NEXT_BUFFER",
    b"\x98": "READONLY_BUFFER",
}
