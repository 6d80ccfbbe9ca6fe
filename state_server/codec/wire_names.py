"""The names that our own forms have in pickles: fixed texts, whatever code is called.

They lie on disk, in journals, sessions and caches, and the two ends of a wire may be of
different releases. So no name ever changes, and none follows a module or a function
that is renamed: each form is told its name here, and is looked up by it. What the forms
are, bytes and pickle may not enter.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

#: The modules that pickles name, beside those of the language and the standard library.
ARRAYS = "state_server.arrays"
DATAFRAMES = "state_server.frames"
LARGE_BYTES = "state_server.large_bytes"
REFERENCES = "state_server.messages"


def keep(module: str, named: Mapping[str, Any]) -> None:
    """Let functions and classes be written under these names of a module.

    A pickler writes the module and the name that a function says it has, and before
    that looks whether it finds the function there. So each is told both, and is put
    there; where there is no such module, an empty one stands for the name.
    """
    place = sys.modules.get(module)
    if place is None:
        place = sys.modules[module] = ModuleType(module, "A name in pickles, no room.")
    for name, form in named.items():
        form.__module__ = module
        form.__qualname__ = name
        setattr(place, name, form)
