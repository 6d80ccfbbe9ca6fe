"""Dtypes of numpy in a form of our own, and what is checked of shapes and items.

A dtype is text (``<f8``) or a list of fields, each with a dtype again. No text of a
sender reaches numpy that is not of the grammar here, and nothing is made before it is
known to fit into the memory that is there.

numpy is imported when the first such value is met, and not before. Pickle, pandas and
whole arrays may not enter.
"""

from __future__ import annotations

import math
import re
from typing import Any

from ..errors import NotAllowed
from .contexts import ReadContext, WriteContext
from .measures import count_items

#: A dtype in a pickle: text, or ``(itemsize, aligned, fields)``; each field is
#: ``(name, offset, dtype, shape, title)``.
Form = Any

#: More dimensions than any release of numpy has.
_DIMENSIONS_MAX = 64
_PLAIN_DTYPE = re.compile(
    r"([|<>])([biufcSUMm])([0-9]{1,9})"
    r"(\[(?:[1-9][0-9]{0,8})?(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?"
)
_SIZES = {
    "b": (1,),
    "i": (1, 2, 4, 8),
    "u": (1, 2, 4, 8),
    "f": (2, 4, 8, 12, 16),
    "c": (8, 16, 24, 32),
    "M": (8,),
    "m": (8,),
}


def numpy_here() -> Any:
    """Return numpy; raise ``NotAllowed`` where it cannot be imported."""
    try:
        import numpy
    except ImportError as error:
        raise missing("numpy", error) from None
    return numpy


def missing(package: str, error: ImportError) -> NotAllowed:
    """Say which package a value needs that is not there."""
    return NotAllowed(
        f"The value needs {package}, which cannot be imported in this process "
        f"({error}); install it there: pip install {package}."
    )


def dtype_form(dtype: Any) -> Form | None:
    """Return the form of a dtype, ``None`` if it may not travel."""
    if dtype.names is None:
        return dtype.str if _PLAIN_DTYPE.fullmatch(dtype.str) else None
    if dtype.type is not numpy_here().void:
        return None
    fields = []
    for name in dtype.names:
        base, offset, *titles = dtype.fields[name]
        base, shape = base.subdtype or (base, ())
        form, title = dtype_form(base), titles[0] if titles else None
        if form is None or type(title) not in (str, type(None)):
            return None
        fields.append((str(name), offset, form, shape, title))
    return dtype.itemsize, dtype.isalignedstruct, tuple(fields)


def checked_itemsize(reader: ReadContext, form: Form) -> int:
    """Return how many bytes an item has; raise ``NotAllowed`` for what is no dtype."""
    if type(form) is not tuple:
        return _plain_itemsize(form)
    itemsize, aligned, fields = form if len(form) == 3 else (None, None, None)
    if type(itemsize) is not int or type(aligned) is not bool or itemsize < 0:
        raise NotAllowed("A dtype in the pickle has not the form of one.")
    if type(fields) is not tuple:
        raise NotAllowed("A dtype in the pickle has no list of fields.")
    for field in fields:
        name, offset, base, shape, title = _five(field)
        if type(name) is not str or type(title) not in (str, type(None)):
            raise NotAllowed("A field of a dtype in the pickle has no name.")
        base_bytes = checked_itemsize(reader, base)
        size = math.prod(measured_shape(reader, shape, base_bytes)) * base_bytes
        if type(offset) is not int or not 0 <= offset <= itemsize - size:
            raise NotAllowed(f"The field {name!r:.100} in the pickle is outside.")
    return itemsize


def _five(field: Any) -> tuple[Any, ...]:
    """Return the five parts of a field."""
    if type(field) is not tuple or len(field) != 5:
        raise NotAllowed("A field of a dtype in the pickle has not the form of one.")
    return field


def _plain_itemsize(form: Any) -> int:
    """Return how many bytes a dtype without fields has."""
    found = _PLAIN_DTYPE.fullmatch(form) if type(form) is str else None
    if found is None:
        raise NotAllowed(f"{form!r:.100} is no dtype that may travel.")
    order, kind, digits, unit = found.groups()
    size = int(digits)
    has_order = kind != "S" and (kind == "U" or size > 1)
    sizes = _SIZES.get(kind, (size,))
    if size not in sizes or has_order == (order == "|") or (unit and kind not in "Mm"):
        raise NotAllowed(f"{form!r:.100} is no dtype that may travel.")
    return 4 * size if kind == "U" else size


def dtype_of(form: Form) -> Any:
    """Return the dtype of a form that was checked."""
    numpy = numpy_here()
    if type(form) is str:
        return numpy.dtype(form)
    itemsize, aligned, fields = form
    made: dict[str, list[Any]] = {"names": [], "formats": [], "offsets": []}
    titles = []
    for name, offset, base, shape, title in fields:
        made["names"].append(name)
        made["formats"].append((dtype_of(base), shape) if shape else dtype_of(base))
        made["offsets"].append(offset)
        titles.append(title)
    if any(titles):
        made["titles"] = titles
    return numpy.dtype({**made, "itemsize": itemsize}, align=aligned)


#: The largest number that an item of a kind may be: a truth, a character of text.
_LARGEST = {"b": 1, "U": 0x10FFFF}


def check_items(form: Form, memory: Any) -> None:
    """Refuse bytes that are no items of a dtype; most dtypes take any.

    numpy takes truths and characters as they are, and fails when they are used. Who
    looks at the memory of another dtype as one of these can make them unawares.
    """
    if len(memory):
        raw = numpy_here().frombuffer(memory, dtype_of(_raw_field(form)))
        _check_numbers(form, raw)


def _check_numbers(form: Form, raw: Any) -> None:
    """Check the items of a dtype, given as the numbers that they are made of."""
    if type(form) is tuple:
        for name, _offset, base, _shape, _title in form[2]:
            _check_numbers(base, raw[name])
    elif form[1] in _LARGEST and raw.size and raw.max() > _LARGEST[form[1]]:
        raise NotAllowed(
            f"An item of an array is none of its dtype {form!r:.100}: {raw.max()}."
        )


def _raw_field(form: Form) -> Form:
    """Return the form with numbers in the place of truths and text."""
    if type(form) is tuple:
        itemsize, _aligned, fields = form
        raw = []
        for name, offset, base, shape, _title in fields:
            if type(base) is str and base[1] == "U":
                base, shape = base[0] + "u4", (*shape, int(base[2:]))
            raw.append((name, offset, _raw_field(base), shape, None))
        return itemsize, False, tuple(raw)
    if form[1] == "U":
        return form[0] + "u4"
    return "|u1" if form[1] == "b" else form


def measured_shape(
    counter: ReadContext | WriteContext, shape: Any, itemsize: int
) -> tuple[int, ...]:
    """Check a shape; count the words that one without any memory stands for.

    Its other dimensions may be of any length, and summing over the empty one makes
    them real.
    """
    if type(shape) is not tuple or len(shape) > _DIMENSIONS_MAX:
        raise NotAllowed("An array in the pickle has no shape, or too many dimensions.")
    for length in shape:
        if type(length) is not int or not 0 <= length < 2**63:
            raise NotAllowed(f"An array in the pickle has the shape {shape!r:.100}.")
    if itemsize * math.prod(shape) == 0:
        extent = math.prod(max(length, 1) for length in shape)
        count_items(counter, extent * max(itemsize, 1) // 8)
    return shape
