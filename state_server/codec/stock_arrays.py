"""numpy's own spelling of arrays, dtypes and scalars, as stock clients send it.

It makes an empty thing first and gives it a state afterwards, unchecked: bytes in such
a state can forge pointers. So nothing of numpy is made here until the state is there.
What was said is noted down, checked, turned into our own form, and made as ``arrays``
makes it. See ``array_reduce`` and ``arraydescr_reduce`` in numpy's
``_core/src/multiarray``, releases 1.26 and 2. Pickle and pandas may not enter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..errors import NotAllowed
from .arrays import array_over, object_array, scalar_over
from .contexts import ReadContext
from .dtypes import (
    Form,
    checked_itemsize,
    dtype_form,
    dtype_of,
    measured_shape,
    numpy_here,
)
from .entries import MUST, Entry

_OBJECTS = "O8"
#: NPY_ALIGNED_STRUCT in numpy's ndarraytypes.h.
_ALIGNED = 0x80


class Recorded:
    """What a pickle has said of a value whose state is still to come.

    ``places`` are the numbers under which the pickle remembers it.
    """

    __slots__ = ("_reader", "_said", "places")

    def __init__(self, reader: ReadContext, *said: Any) -> None:
        self._reader = reader
        self._said = said
        self.places: list[int] = []

    def finished(self, state: Any) -> Any:
        """Return the value itself, now that its state is there."""
        raise NotImplementedError


class _RecordedArray(Recorded):
    """An array: ``_reconstruct(ndarray, (0,), b"b")`` and what came afterwards."""

    __slots__ = ()

    def finished(self, state: Any) -> Any:
        """Return the array that the state describes."""
        if self._said[:1] != (_array_class,):
            raise NotAllowed(
                "The pickle makes an array of a class that is not numpy's."
            )
        _version, shape, dtype, is_fortran, memory = state
        if type(memory) is list:
            if getattr(dtype, "kind", "") != "O":
                raise NotAllowed("An array in the pickle has a list of numbers.")
            return object_array(self._reader, shape, memory)
        if type(memory) is not bytes:
            raise NotAllowed("The memory of an array in the pickle is not bytes.")
        order = "F" if is_fortran else "C"
        return array_over(self._reader, _form(dtype), shape, order, memory)


class _RecordedDtype(Recorded):
    """A dtype: ``dtype("f8", False, True)`` and what came afterwards."""

    __slots__ = ()

    def finished(self, state: Any) -> Any:
        """Return the dtype that the state describes."""
        text = self._said[0]
        _, order, subarray, names, fields, itemsize, _, flags = state[:8]
        if subarray is not None:
            return self._of_subarray(*subarray)
        if names is not None:
            form = itemsize, bool(flags & _ALIGNED), tuple(_fields(names, fields))
            return self._checked(form)
        if text == _OBJECTS:
            return numpy_here().dtype("O")
        if type(text) is not str or type(order) is not str:
            raise NotAllowed("A dtype in the pickle is not named by text.")
        return self._checked(f"{order}{text}{_unit(state[8:])}")

    def _checked(self, form: Form) -> Any:
        checked_itemsize(self._reader, form)
        return dtype_of(form)

    def _of_subarray(self, base: Any, shape: Any) -> Any:
        form = _form(base)
        measured_shape(self._reader, shape, checked_itemsize(self._reader, form))
        return numpy_here().dtype((base, shape))


def _form(dtype: Any) -> Form:
    """Return the form of a dtype that was made here, so that it is checked as ours."""
    found = isinstance(dtype, numpy_here().dtype) and dtype_form(dtype)
    if not found:
        raise NotAllowed(f"{dtype!r:.100} is no dtype that may travel.")
    return found


def _fields(names: Any, fields: Any) -> Iterator[tuple[Any, ...]]:
    """Yield fields in our form; ours are checked as a whole afterwards."""
    if type(names) is not tuple or type(fields) is not dict:
        raise NotAllowed("A dtype in the pickle has no list of fields.")
    for name in names:
        dtype, offset, *title = fields[name]
        base, shape = getattr(dtype, "subdtype", None) or (dtype, ())
        yield name, offset, _form(base), shape, title[0] if title else None


_UNIT = re.compile(rb"Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as")


def _unit(rest: Any) -> str:
    """Return the unit of dates: the state has it as ``(metadata, (unit, n, 1, 1))``."""
    if not rest:
        return ""
    (_metadata, (unit, count, *_events)), *_ = rest
    if unit == b"generic":
        return ""
    if type(unit) is not bytes or type(count) is not int or not _UNIT.fullmatch(unit):
        raise NotAllowed(f"A dtype in the pickle has the unit {unit!r:.100}.")
    return f"[{count}{unit.decode()}]"


def _from_memory(reader: ReadContext, *parts: Any) -> Any:
    """Make an array of memory, dtype, shape and order, as protocol 5 spells it."""
    memory, dtype, shape, order, *axes = parts
    if type(memory) not in (bytes, bytearray):
        raise NotAllowed("The memory of an array in the pickle is not bytes.")
    if order != "K":
        return array_over(reader, _form(dtype), shape, order, memory)
    # Since numpy 2.3: contiguous, but with the axes in another order.
    made = array_over(reader, _form(dtype), shape, "C", memory)
    return made.transpose(*axes)


def _scalar(reader: ReadContext, *parts: Any) -> Any:
    """Make a scalar of its dtype and bytes."""
    dtype, value = parts
    form = _form(dtype)
    if type(value) is not bytes or checked_itemsize(reader, form) != len(value):
        raise NotAllowed("A scalar in the pickle has not the bytes of its dtype.")
    return scalar_over(form, value)


def _array_class(*_parts: Any) -> Any:
    """Stand for the class of arrays, which is only ever named."""
    raise NotAllowed("The pickle calls numpy.ndarray, which is only named.")


def _recorded(make: type[Recorded], takes: tuple[str, ...] = ()) -> Entry:
    """Return the entry of what is complete only with its state."""
    return Entry(
        make, call=True, bound=True, state=MUST, own_state=True, records=True,
        takes=takes,
    )  # fmt: skip


def names() -> Iterator[tuple[str, str, Entry]]:
    """Yield the names that numpy's own pickles have in them."""
    yield "numpy", "ndarray", Entry(_array_class, role="array class")
    yield "numpy", "dtype", _recorded(_RecordedDtype)
    array = _recorded(_RecordedArray, takes=("array class",))
    for core in ("numpy.core", "numpy._core"):
        yield f"{core}.multiarray", "_reconstruct", array
        yield f"{core}.multiarray", "scalar", Entry(_scalar, call=True, bound=True)
        memory = Entry(_from_memory, call=True, bound=True)
        yield f"{core}.numeric", "_frombuffer", memory
