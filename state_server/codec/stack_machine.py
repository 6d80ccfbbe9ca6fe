"""What a pickle would build, only measured: an abstract stack machine.

It knows the exact shape of each value, its nesting, its number of parts and its size,
with shared parts counted each time they appear, and refuses what is over a limit or
not put together as picklers do. Which opcodes there are, ``walk`` knows. Pickle itself
and values may not enter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import NotAllowed, full_name
from .entries import MUST, NEVER, NOTHING, Entry
from .measures import FLAT_SIZE, ValueLimits, over

#: What a value on the abstract stack is, as far as it matters.
NAME, TUPLE, DICT, RUN, OTHER = "name", "tuple", "dict", "run", "other"


class Node:
    """One value on the abstract stack that is more than a leaf.

    Leaves are tuples ``(payload_bytes, start, end)``; start and end say where the text
    is, and are 0 for what is not text. They are by far the most, and never change.
    An int of more than eight bytes is ``LONG_END`` at its end.
    """

    # Defaults of the class, not of the instance: most nodes keep most of them, and
    # making nodes is half of the work of a walk.
    count = 1
    payload = 0
    depth = 1
    #: It, or something directly in it, is a name: only REDUCE may take it.
    special = False
    #: Nobody outside this process knows its hash.
    secret_hash = False
    state = NEVER
    entry: Entry | None = None
    #: The parts of a tuple; the keys of a dict.
    items: Any = ()

    def __init__(self, kind: str, grows: str = NOTHING) -> None:
        self.kind = kind
        self.grows = grows
        #: It may grow, as the place where it was made is still on the stack.
        self.open = grows is not NOTHING

    def as_it_is(self) -> Node:
        """Return a closed copy, for a reference to a value that is still open."""
        copy = Node(self.kind)
        copy.count, copy.payload, copy.depth = self.count, self.payload, self.depth
        copy.entry, copy.items = self.entry, self.items
        return copy


Leaf = tuple[int, int, int]
PLAIN: Leaf = (0, 0, 0)
LONG_END = -1

#: Estimated memory of a value of other types, and of a set, beside what is in it.
_STRANGE_SIZE = 600
SET_SIZE = 150

#: Opcodes between two looks at the work that is under way.
BATCH = 65_536


class Machine:
    """An abstract run of one pickle; ``walk`` feeds it with opcodes.

    ``names_used``: a name was looked up. ``records``: a value is noted down before it
    is made.
    """

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
        self.records = False
        self.has_long_ints = False
        #: Keys of dicts and members of sets whose hashes the sender can choose alike.
        self.chosen_keys = 0

    def check_work(self) -> None:
        """Bound what is on the stack and not part of any container yet.

        All of it will be, and then counts one at least, but for the names and the
        arguments of calls that are still open: fewer than a batch. Picklers remember
        at most two values for each one that counts.
        """
        nodes_max = self.limits.nodes_max
        waiting = len(self.stack) + sum(map(len, self.marks))
        if waiting > nodes_max + BATCH + 4 * self.limits.depth_max:
            raise over("nodes_max", waiting, nodes_max)
        if len(self.memo) > 2 * nodes_max + 2 * BATCH:
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

    def add(self, node: Node, items: Iterable[Any], parts: bool = False) -> None:
        """Put parts into a node and measure it again; ``parts`` may hold names."""
        count, payload, depth = node.count, node.payload, node.depth - 1
        for item in items:
            if type(item) is tuple:
                count += 1
                payload += item[0]
                continue
            if item.special or item.state is MUST:
                if not parts or item.kind is TUPLE or item.state is MUST:
                    raise misplaced(item)
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

        That of text, bytes and dates nobody knows outside this process; of ints of up
        to eight bytes no more than nine have the same.
        """
        if self.has_long_ints or Node in map(type, keys):
            self.chosen_keys += sum(map(_is_chosen, keys))

    def growing(self, grows: str) -> Node:
        """Return the container on top of the stack that takes what comes."""
        node = self.stack[-1]
        if type(node) is not Node or not node.open or node.grows is not grows:
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

    def arguments(self) -> Node:
        """Take a tuple of arguments from the stack."""
        node = self.stack.pop()
        if type(node) is not Node or node.kind is not TUPLE:
            raise NotAllowed(
                "The pickle calls a name with something else than a tuple."
            )
        return node

    def name(self) -> Entry:
        """Take a name from the stack."""
        node = self.stack.pop()
        if type(node) is not Node or node.kind is not NAME:
            raise NotAllowed("The pickle calls a value that is no name.")
        entry = node.entry
        assert entry is not None
        return entry

    def made(self, entry: Entry, parts: list[Any]) -> None:
        """Put an instance on the stack that was made from parts."""
        node = Node(OTHER, entry.grows)
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
        node.secret_hash = entry.secret_hash and len(parts) == 1
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


def misplaced(node: Node) -> NotAllowed:
    """Say that a name is used as a value, or an instance before it is complete."""
    if node.state is MUST:
        return NotAllowed("The pickle uses an instance before its state is there.")
    made = node.entry.make if node.entry else None
    shown = full_name(made) if isinstance(made, type) else "A class"
    return NotAllowed(f"{shown} is used as a value; only instances travel.")


def _is_chosen(key: Any) -> bool:
    """Tell whether a key's hash may be that of any number of others."""
    if type(key) is tuple:
        return bool(key[2] == LONG_END)
    return bool(key.kind is not RUN and not key.secret_hash)
