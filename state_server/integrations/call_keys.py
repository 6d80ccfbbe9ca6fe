"""The key of a call: the function's name and its arguments, as text.

Two calls have one key only if all of their arguments are equal and of one type.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

#: Longest key made of arguments, in characters; longer ones are hashed.
_ARGUMENTS_MAX = 200


def key_of_call(
    function: Callable[..., Any],
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> str:
    """Return a key for a call: the same in every process, different for each call."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    name = f"{function.__module__}.{function.__qualname__}"
    arguments = ", ".join(
        f"{parameter}={_shown(value, name)}"
        for parameter, value in bound.arguments.items()
    )
    if len(arguments) > _ARGUMENTS_MAX:
        arguments = hashlib.sha256(arguments.encode()).hexdigest()
    return f"{name}({arguments})"


def _shown(value: Any, name: str) -> str:
    """Return the text of an argument; refuse one whose text might not tell it apart."""
    kind = type(value)
    if value is None or kind in (str, bytes, bool, int, float):
        return repr(value)
    if kind in (list, tuple):
        return f"{kind.__name__}({', '.join(_shown(item, name) for item in value)})"
    if kind is dict and all(type(key) is str for key in value):
        items = (f"{key!r}: {_shown(value[key], name)}" for key in sorted(value))
        return f"{{{', '.join(items)}}}"
    raise TypeError(
        f"The value of {name} cannot be cached by its arguments, one of which is a "
        f"{kind.__qualname__}. Pass key= to cached(), a function of the same arguments "
        "that returns a text."
    )
