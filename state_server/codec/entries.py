"""What a name in a pickle may stand for: the form of an entry, and its words.

Who fills entries in is told elsewhere: ``constructors`` for the standard types,
``own_classes`` for the user's. Bytes, pickle and limits may not enter.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import full_name

#: What an instance takes after it was made.
NOTHING, ITEMS, PAIRS, MEMBERS = "nothing", "items", "pairs", "members"
#: Whether an instance takes a state after it was made.
NEVER, MAY, MUST = "never", "may", "must"


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a name in a pickle stands for."""

    #: What the C unpickler gets for the name.
    make: Any
    #: It may be called with a tuple of arguments (REDUCE).
    call: bool = False
    #: It is a class whose bare instances may be made (NEWOBJ).
    new: bool = False
    #: What its instances take afterwards: nothing, items or pairs.
    grows: str = NOTHING
    #: Whether its instances take a state (BUILD).
    state: str = NEVER
    #: Its instances take any state, because they check it themselves.
    own_state: bool = False
    #: What it is for others when it is an argument; empty: never one.
    role: str = ""
    #: The roles its own arguments may have, by position.
    takes: tuple[str, ...] = ()
    #: It may only be called without arguments.
    bare: bool = False
    #: It is a value itself, not a function.
    value: bool = False
    #: It runs through its arguments, so they must be containers that were counted.
    iterates: bool = False
    #: It is called with the reading first.
    bound: bool = False
    #: Its call takes the next of the buffers that came beside the pickle.
    takes_buffer: bool = False
    #: It notes down what was said, and becomes a value once its state is there.
    records: bool = False

    #: Nobody outside this process knows the hashes of instances made of one part, which
    #: has no time zone then: they are made of bytes, as that of text.
    secret_hash: bool = False

    def shown(self) -> str:
        """Name it in an error."""
        if isinstance(self.make, type):
            return full_name(self.make)
        return str(self.make.__name__).lstrip("_")
