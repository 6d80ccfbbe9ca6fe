"""The walk over the opcodes of a pickle, before any of them is obeyed.

An abstract stack machine builds nothing and only measures: it knows the exact shape of
what pickle would build, its nesting, its number of values and its size, with shared
parts counted each time they appear. It lets through only what picklers emit for our
types.

The opcodes stand here as bytes. Pickle itself and values may not enter.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .constructors import GETATTR, UNPICKLE_ZONE, ZONE, look_up
from .entries import ITEMS, MEMBERS, MUST, NEVER, NOTHING, PAIRS, Entry, full_name
from .errors import NotAllowed
from .measures import FLAT_SIZE, ValueLimits, over

#: What a value on the abstract stack is, as far as it matters.
_NAME, _TUPLE, _DICT, _RUN, _OTHER = "name", "tuple", "dict", "run", "other"


class _Node:
    """One value on the abstract stack that is more than a leaf.

    Leaves are tuples ``(payload_bytes, start, end)``; start and end say where the text
    is, and are 0 for what is not text. They are by far the most, and never change.
    An int of more than eight bytes is ``_LONG_END`` at its end.
    """

    # Defaults of the class, not of the instance: most nodes keep most of them, and
    # making nodes is half of the work of a walk.
    count = 1
    payload = 0
    depth = 1
    #: It, or something directly in it, is a name: only REDUCE may take it.
    special = False
    state = NEVER
    entry: Entry | None = None
    #: The parts of a tuple; the keys of a dict.
    items: Any = ()

    def __init__(self, kind: str, grows: str = NOTHING) -> None:
        self.kind = kind
        self.grows = grows
        #: It may grow, as the place where it was made is still on the stack.
        self.open = grows is not NOTHING

    def as_it_is(self) -> _Node:
        """Return a closed copy, for a reference to a value that is still open."""
        copy = _Node(self.kind)
        copy.count, copy.payload, copy.depth = self.count, self.payload, self.depth
        copy.entry, copy.items = self.entry, self.items
        return copy


_Leaf = tuple[int, int, int]
_PLAIN: _Leaf = (0, 0, 0)
_LONG_END = -1
_STRANGE_SIZE = 600
_SET_SIZE = 150
_BATCH = 65_536
_LINE_BYTES_MAX = 1024


class _Walk:
    """An abstract run of one pickle: what pickle would build, only measured."""

    __slots__ = (
        "_buffers", "chosen_keys", "data", "digits_bytes", "has_long_ints", "limits",
        "marks", "memo", "names_used", "records", "stack",
    )  # fmt: skip

    def __init__(
        self, data: bytes, limits: ValueLimits, buffer_sizes: Sequence[int]
    ) -> None:
        self.data = data
        self.limits = limits
        self._buffers = iter(buffer_sizes)
        #: An int of at most so many bytes cannot have too many digits.
        self.digits_bytes = limits.digits_max * 415 // 1000  # log2(10) / 8
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: list[Any] = []
        self.names_used = False
        #: A value in the pickle is noted down before it is made.
        self.records = False
        self.has_long_ints = False
        #: Keys of dicts and members of sets whose hashes the sender can choose alike.
        self.chosen_keys = 0

    def run(self) -> None:
        """Walk from the first opcode to the last, or refuse the pickle.

        The three commonest opcodes are taken here, to save a call each.
        """
        data, memo, steps = self.data, self.memo, _STEPS
        if data[0] != 0x80 or not 2 <= data[1] <= 5:
            raise NotAllowed("The value does not begin as a pickle of protocol 2 to 5.")
        position = 2
        while True:
            for _ in itertools.repeat(None, _BATCH):
                opcode = data[position]
                if opcode == 0x94:  # MEMOIZE
                    memo.append(self.stack[-1])
                    position += 1
                elif opcode == 0x8C:  # SHORT_BINUNICODE
                    size = data[position + 1]
                    start = position + 2
                    position = start + size
                    self.stack.append((size, start, position))
                # BINGET, of a leaf.
                elif opcode == 0x68 and type(memo[data[position + 1]]) is tuple:
                    self.stack.append(memo[data[position + 1]])
                    position += 2
                else:
                    position = steps[opcode](self, position + 1)
                    if position < 0:
                        return
            self._check_work()

    def _check_work(self) -> None:
        """Bound what is on the stack and not part of any container yet.

        All of it will be, and then counts one at least, but for the names and the
        arguments of calls that are still open: fewer than a batch. Picklers remember
        at most two values for each one that counts.
        """
        nodes_max = self.limits.nodes_max
        waiting = len(self.stack) + sum(map(len, self.marks))
        if waiting > nodes_max + _BATCH + 4 * self.limits.depth_max:
            raise over("nodes_max", waiting, nodes_max)
        if len(self.memo) > 2 * nodes_max + 2 * _BATCH:
            raise over("nodes_max", len(self.memo), nodes_max)

    @property
    def expanded_bytes(self) -> int:
        """Return the estimated memory of the value, after the walk."""
        value = self.stack[0]
        if type(value) is tuple:
            return int(value[0]) + FLAT_SIZE
        return int(value.payload + value.count * FLAT_SIZE)

    def pop_mark(self) -> list[Any]:
        """Return everything above the last mark."""
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def add(self, node: _Node, items: Iterable[Any], parts: bool = False) -> None:
        """Put parts into a node and measure it again; ``parts`` may hold names."""
        count, payload, depth = node.count, node.payload, node.depth - 1
        for item in items:
            if type(item) is tuple:
                count += 1
                payload += item[0]
                continue
            if item.special or item.state is MUST:
                if not parts or item.kind is _TUPLE or item.state is MUST:
                    raise _misplaced(item)
                node.special = True
            item.open = False
            count += item.count
            payload += item.payload
            if item.depth > depth:
                depth = item.depth
        node.count, node.payload, node.depth = count, payload, depth + 1
        size = payload + count * FLAT_SIZE
        nodes_max, depth_max, size_max, _, _ = self.limits
        if depth >= depth_max:
            raise over("depth_max", depth + 1, depth_max)
        if count > nodes_max:
            raise over("nodes_max", count, nodes_max)
        if size > size_max:
            raise over("expanded_bytes_max", size, size_max)

    def count_keys(self, keys: list[Any]) -> None:
        """Count those of which many may have one hash.

        That of text and bytes nobody knows outside this process; of ints of up to eight
        bytes no more than nine have the same.
        """
        if self.has_long_ints or _Node in map(type, keys):
            self.chosen_keys += sum(map(_is_chosen, keys))

    def growing(self, grows: str) -> _Node:
        """Return the container on top of the stack that takes what comes."""
        node = self.stack[-1]
        if type(node) is not _Node or not node.open or node.grows is not grows:
            raise NotAllowed(
                f"The pickle adds {grows} to a value that does not take them, or that "
                f"is complete."
            )
        return node

    def text(self, leaf: Any) -> str:
        """Return the text of a leaf, refusing everything else."""
        if type(leaf) is not tuple or not leaf[1]:
            raise NotAllowed("The pickle has a value where a name must be.")
        return str(self.data[leaf[1] : leaf[2]], "utf-8", "surrogatepass")

    def arguments(self) -> _Node:
        """Take a tuple of arguments from the stack."""
        node = self.stack.pop()
        if type(node) is not _Node or node.kind is not _TUPLE:
            raise NotAllowed(
                "The pickle calls a name with something else than a tuple."
            )
        return node

    def name(self) -> Entry:
        """Take a name from the stack."""
        node = self.stack.pop()
        if type(node) is not _Node or node.kind is not _NAME:
            raise NotAllowed("The pickle calls a value that is no name.")
        entry = node.entry
        assert entry is not None
        return entry

    def made(self, entry: Entry, parts: list[Any]) -> None:
        """Put an instance on the stack that was made from parts."""
        node = _Node(_OTHER, entry.grows)
        node.entry = entry
        node.state = entry.state
        node.payload = _STRANGE_SIZE
        if entry.takes_buffer:
            node.payload += self._next_buffer()
        if entry.iterates and not all(map(_is_counted, parts)):
            raise NotAllowed(
                f"{entry.shown()} in the pickle is not made of a container."
            )
        self.add(node, parts, parts=True)
        node.open = entry.grows is not NOTHING or entry.state is not NEVER
        node.special = entry.role == "token"
        self.records = self.records or entry.records
        self.stack.append(node)

    def _next_buffer(self) -> int:
        """Return the size of the next of the buffers that came beside the pickle."""
        for size in self._buffers:
            return size
        raise NotAllowed("The pickle takes more buffers than came with it.")

    def check_end(self) -> None:
        """Refuse buffers that nothing in the pickle has taken."""
        for size in self._buffers:
            raise NotAllowed(f"A buffer of {size} bytes came, but nothing takes it.")


def _is_counted(item: Any) -> bool:
    """Tell whether an argument is a builtin container, or too small to run through."""
    if type(item) is tuple:
        return bool(item[0] == 0)
    return item.entry is None or item.special


def _is_chosen(key: Any) -> bool:
    """Tell whether a key's hash may be that of any number of others."""
    if type(key) is tuple:
        return bool(key[2] == _LONG_END)
    return bool(key.kind is not _RUN)


def checked_walk(
    data: bytes, limits: ValueLimits, buffer_sizes: Sequence[int] = ()
) -> _Walk:
    """Walk over a pickle and return what was seen; refuse what may not pass.

    ``buffer_sizes`` are those of the buffers that came beside the pickle.
    """
    walk = _Walk(data, limits, buffer_sizes)
    try:
        walk.run()
    except IndexError:
        raise NotAllowed(
            "The pickle is truncated, or takes more from the stack than is there."
        ) from None
    except UnicodeDecodeError:
        raise NotAllowed("The pickle has a name that is not valid text.") from None
    return walk


def _misplaced(node: _Node) -> NotAllowed:
    """Say that a name is used as a value, or an instance before it is complete."""
    if node.state is MUST:
        return NotAllowed("The pickle uses an instance before its state is there.")
    made = node.entry.make if node.entry else None
    shown = full_name(made) if isinstance(made, type) else "A name"
    return NotAllowed(f"{shown} is used as a value; only instances travel.")


# One function for each opcode: it takes the position of its argument and returns that
# of the next opcode; a negative one ends the walk.

_Step = Callable[[_Walk, int], int]


def _refuse(walk: _Walk, position: int) -> int:
    """Refuse an opcode that no pickler writes for our types."""
    opcode = walk.data[position - 1]
    name = _REFUSED_NAMES.get(bytes([opcode]), "unknown")
    hint = "; it may hold a tuple that holds itself" if opcode in b"01" else ""
    raise NotAllowed(f"The pickle uses the opcode {name} (0x{opcode:02x}){hint}.")


def _scalar(size: int) -> _Step:
    """Return the step for a number of fixed size."""

    def step(walk: _Walk, position: int) -> int:
        walk.stack.append(_PLAIN)
        return position + size

    return step


def _long(width: int) -> _Step:
    """Return the step for an int whose length is given in so many bytes."""

    def step(walk: _Walk, position: int) -> int:
        start = position + width
        size = int.from_bytes(walk.data[position:start], "little", signed=width > 1)
        end = _end(walk, start, size)
        if size > walk.digits_bytes:
            number = abs(int.from_bytes(walk.data[start:end], "little", signed=True))
            digits = size * 2.408 if size > 2 * walk.digits_bytes + 8 else 0
            if digits or number >= 10**walk.limits.digits_max:
                digits = max(int(digits), walk.limits.digits_max + 1)
                raise over("digits_max", digits, walk.limits.digits_max)
        if size > 8:
            walk.has_long_ints = True
            walk.stack.append((size, 0, _LONG_END))
        else:
            walk.stack.append((size, 0, 0))
        return end

    return step


def _text(width: int) -> _Step:
    """Return the step for text whose length is given in so many bytes."""

    def step(walk: _Walk, position: int) -> int:
        start = position + width
        size = int.from_bytes(walk.data[position:start], "little")
        end = _end(walk, start, size)
        # One character outside the basic plane makes every character four bytes wide.
        payload = size if walk.data[start:end].isascii() else 4 * size
        walk.stack.append((payload, start, end))
        return end

    return step


def _binary(width: int) -> _Step:
    """Return the step for bytes whose length is given in so many bytes."""

    def step(walk: _Walk, position: int) -> int:
        start = position + width
        size = int.from_bytes(walk.data[position:start], "little")
        end = _end(walk, start, size)
        walk.stack.append((size, 0, 0))
        return end

    return step


def _end(walk: _Walk, start: int, size: int) -> int:
    """Return where a part ends, checking that it is there before pickle reserves it."""
    if not 0 <= size <= len(walk.data) - start:
        raise NotAllowed(f"The pickle announces {size} bytes that are not there.")
    return start + size


def _framing(walk: _Walk, position: int) -> int:
    """Check that what FRAME announces is there; it has no other meaning."""
    size = int.from_bytes(walk.data[position : position + 8], "little")
    _end(walk, position + 8, size)
    return position + 8


def _container(kind: str, grows: str, payload: int = 0) -> _Step:
    """Return the step that makes an empty container."""

    def step(walk: _Walk, position: int) -> int:
        node = _Node(kind, grows)
        node.payload = payload
        if kind is _DICT:
            node.items = []
        walk.stack.append(node)
        return position

    return step


def _mark(walk: _Walk, position: int) -> int:
    """Open a group; measure a group of nothing but numbers as one node."""
    if len(walk.marks) > walk.limits.depth_max + 8:
        raise over("depth_max", len(walk.marks), walk.limits.depth_max)
    walk.marks.append(walk.stack)
    walk.stack = []
    if walk.data[position] not in _NUMBER_OPCODES:
        return position
    end, count = _numbers(walk, position)
    if not count or walk.data[end] not in _GROUP_ENDS:
        return position
    if walk.data[end] == _SETITEMS and count % 2:
        raise NotAllowed("The pickle has a key without a value.")
    node = _Node(_RUN)
    node.count = count
    node.depth = 0
    walk.stack.append(node)
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


def _numbers(walk: _Walk, start: int) -> tuple[int, int]:
    """Return where a run of numbers ends, and how many they are.

    Numbers of one kind have their opcodes at equal distances, so a slice with a step
    counts them. A mixture is left to a regular expression.
    """
    data, end, count, reach = walk.data, start, 0, 32
    while True:
        opcode = data[end : end + 1]
        width = _NUMBER_WIDTHS.get(opcode)
        if width is None and opcode == _FRAME and count:
            # Picklers write it every 64 KiB, also in the middle of a group.
            end = _framing(walk, end + 1)
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


def _append(walk: _Walk, position: int) -> int:
    """Add one item to a list."""
    item = walk.stack.pop()
    walk.add(walk.growing(ITEMS), (item,))
    return position


def _appends(walk: _Walk, position: int) -> int:
    """Add a group of items to a list."""
    items = walk.pop_mark()
    walk.add(walk.growing(ITEMS), items)
    return position


def _add_items(walk: _Walk, position: int) -> int:
    """Add a group of members to a set."""
    items = walk.pop_mark()
    walk.count_keys(items)
    walk.add(walk.growing(MEMBERS), items)
    return position


def _set_item(walk: _Walk, position: int) -> int:
    """Add one pair to a dict."""
    value, key = walk.stack.pop(), walk.stack.pop()
    walk.count_keys([key])
    node = walk.growing(PAIRS)
    if node.kind is _DICT:
        node.items.append(key)
    walk.add(node, (key, value))
    return position


def _set_items(walk: _Walk, position: int) -> int:
    """Add a group of pairs to a dict."""
    items = walk.pop_mark()
    is_run = len(items) == 1 and type(items[0]) is _Node and items[0].kind is _RUN
    if len(items) % 2 and not is_run:
        raise NotAllowed("The pickle has a key without a value.")
    keys = items[::2]
    walk.count_keys(keys)
    node = walk.growing(PAIRS)
    if node.kind is _DICT:
        node.items.extend(keys)
    walk.add(node, items)
    return position


def _tuple_of(walk: _Walk, items: list[Any]) -> None:
    """Put a tuple on the stack."""
    node = _Node(_TUPLE)
    walk.add(node, items, parts=True)
    node.items = items
    walk.stack.append(node)


def _tuple(walk: _Walk, position: int) -> int:
    """Make a tuple of a group."""
    _tuple_of(walk, walk.pop_mark())
    return position


def _tuple_1_to_3(size: int) -> _Step:
    """Return the step that makes a tuple of so many values."""

    def step(walk: _Walk, position: int) -> int:
        items = walk.stack[-size:]
        if len(items) < size:
            raise IndexError
        del walk.stack[-size:]
        _tuple_of(walk, items)
        return position

    return step


def _frozenset(walk: _Walk, position: int) -> int:
    """Make a frozenset of a group."""
    node = _Node(_OTHER)
    node.payload = _SET_SIZE
    members = walk.pop_mark()
    walk.count_keys(members)
    walk.add(node, members)
    walk.stack.append(node)
    return position


def _put(width: int) -> _Step:
    """Return the step that remembers a value under a number.

    Picklers count from nought. Any other number is refused: pickle makes a table as
    long as the largest number, four gigabytes for a pickle of nine bytes.
    """

    def step(walk: _Walk, position: int) -> int:
        end = position + width
        number = int.from_bytes(walk.data[position:end], "little")
        if number != len(walk.memo):
            raise NotAllowed(f"The pickle remembers a value under number {number}.")
        walk.memo.append(walk.stack[-1])
        return end

    return step


def _get(width: int) -> _Step:
    """Return the step that takes up a remembered value again.

    A value that may still grow is taken as it is now, and cannot grow through the
    reference. That is exact: it can grow only once it is on top of the stack again,
    and then everything that holds the reference has gone into it. It holds itself.
    """

    def step(walk: _Walk, position: int) -> int:
        end = position + width
        node = walk.memo[int.from_bytes(walk.data[position:end], "little")]
        if type(node) is _Node and node.open:
            if node.state is MUST or node.special:
                raise _misplaced(node)
            node = node.as_it_is()
        walk.stack.append(node)
        return end

    return step


def _stack_global(walk: _Walk, position: int) -> int:
    """Look a name up in the table."""
    name, module = walk.stack.pop(), walk.stack.pop()
    _push_name(walk, look_up(walk.text(module), walk.text(name)))
    return position


def _global(walk: _Walk, position: int) -> int:
    """Look up a name of protocol 2 and 3: two lines of text."""
    words = []
    for _ in range(2):
        end = walk.data.find(b"\n", position, position + _LINE_BYTES_MAX)
        if end < 0:
            raise NotAllowed(
                "The pickle has a name without an end, or a very long one."
            )
        words.append(str(walk.data[position:end], "utf-8"))
        position = end + 1
    _push_name(walk, look_up(*words))
    return position


def _push_name(walk: _Walk, entry: Entry) -> None:
    """Put a name on the stack."""
    walk.names_used = True
    if entry.value:
        walk.stack.append(_PLAIN)
        return
    node = _Node(_NAME)
    node.depth = 0
    node.entry = entry
    node.special = True
    walk.stack.append(node)


def _call(walk: _Walk, position: int) -> int:
    """Call a function of the table with a tuple of arguments."""
    arguments = walk.arguments()
    entry = walk.name()
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
            _push_name(walk, UNPICKLE_ZONE)
            return position
    walk.made(entry, arguments.items)
    return position


def _role(item: Any) -> str:
    """Return what an argument is beyond a value: the role of a name, or nothing."""
    if type(item) is not _Node or not item.special:
        return ""
    return (item.entry and item.entry.role) or "name"


def _new(walk: _Walk, position: int) -> int:
    """Make a bare instance of a class with a tuple of arguments."""
    arguments = walk.arguments()
    return _new_from(walk, position, arguments.items)


def _new_with_names(walk: _Walk, position: int) -> int:
    """Make a bare instance of a class with a tuple and a dict of arguments."""
    keywords = walk.stack.pop()
    if type(keywords) is not _Node or keywords.kind is not _DICT:
        raise NotAllowed("The pickle makes an instance with names that are no dict.")
    arguments = walk.arguments()
    return _new_from(walk, position, [*arguments.items, keywords])


def _new_from(walk: _Walk, position: int, parts: list[Any]) -> int:
    """Put a bare instance on the stack."""
    entry = walk.name()
    if not entry.new:
        raise NotAllowed(f"The pickle makes a bare instance of {entry.shown()}.")
    if any(_role(part) for part in parts):
        raise NotAllowed(f"The pickle gives {entry.shown()} a name as argument.")
    walk.made(entry, parts)
    return position


def _build(walk: _Walk, position: int) -> int:
    """Give a state to an instance that was made in this pickle just before."""
    state = walk.stack.pop()
    node = walk.stack[-1]
    if type(node) is not _Node or not node.open or node.state is NEVER:
        raise NotAllowed("The pickle gives a state to a value that takes none.")
    entry = node.entry
    assert entry is not None
    if not entry.own_state:
        _check_state(walk, state)
    node.state = NEVER
    walk.add(node, (state,))
    return position


def _check_state(walk: _Walk, state: Any) -> None:
    """Let only named attributes through: a dict, or a pair with that of the slots."""
    dicts = [state]
    if type(state) is _Node and state.kind is _TUPLE and len(state.items) == 2:
        dicts = [part for part in state.items if part != _PLAIN]
    for part in dicts:
        if type(part) is not _Node or part.kind is not _DICT:
            raise NotAllowed("The pickle gives a state that is no dict of attributes.")
        for key in part.items:
            name = walk.text(key)
            # __class__, __dict__ or __setstate__ would turn the instance into another.
            if name.startswith("__") and name.endswith("__") and name != "__notes__":
                raise NotAllowed(f"The pickle sets the attribute {name!r:.100}.")


def _stop(walk: _Walk, position: int) -> int:
    """End the walk: one complete value, and nothing behind it."""
    if walk.marks or len(walk.stack) != 1 or position != len(walk.data):
        raise NotAllowed("The pickle does not end with exactly one value.")
    value = walk.stack[0]
    if type(value) is _Node and (value.special or value.state is MUST):
        raise _misplaced(value)
    if type(value) is tuple and value[0] > walk.limits.expanded_bytes_max:
        maximum = walk.limits.expanded_bytes_max
        raise over("expanded_bytes_max", value[0], maximum)
    walk.check_end()
    return -1


def _empty_tuple(walk: _Walk, position: int) -> int:
    """Put the empty tuple on the stack."""
    walk.stack.append(_Node(_TUPLE))
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
    b"]": _container(_OTHER, ITEMS),  # EMPTY_LIST
    b"}": _container(_DICT, PAIRS),  # EMPTY_DICT
    b"\x8f": _container(_OTHER, MEMBERS, _SET_SIZE),  # EMPTY_SET
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
