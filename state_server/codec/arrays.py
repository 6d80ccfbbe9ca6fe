"""Arrays and scalars of numpy: how they are written, checked and made again.

An array travels as dtype, shape, order and memory; the memory is in the pickle, or in
a buffer beside it that nobody copies. All of it is checked against the memory that is
really there, before numpy is asked to make anything.

Pickle, pandas and the way in which numpy itself spells arrays (see ``stock_arrays``)
may not enter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ..errors import NotAllowed
from . import wire_names
from .contexts import ReadContext, WriteContext
from .dtypes import (
    Form,
    check_items,
    checked_itemsize,
    dtype_form,
    dtype_of,
    measured_shape,
    numpy_here,
)
from .entries import Entry
from .measures import over
from .refusals import Foreign

_MASKED = "send its data and its mask, or value.filled()"
_SUBCLASS = "send numpy.asarray(value)"
_RECORD = "send value.view(value.dtype.descr, numpy.ndarray)"
_OTHER_DTYPE = (
    "send it with a dtype of numbers, text, bytes or dates, or of fields of those; "
    "value.astype(object) may do"
)
_OTHER = "of numpy, only arrays and scalars do"


# Writing -----------------------------------------------------------------------------


def spelling(writer: WriteContext, value: Any) -> Any:
    """Return how a value of a type of numpy is spelled; raise ``Foreign`` for others.

    For a stock client values keep numpy's own spelling, once they were checked.
    """
    numpy = numpy_here()
    kind = type(value)
    if kind is numpy.ndarray:
        return _spell_array(writer, value)
    if isinstance(value, numpy.generic) and value.dtype.type is kind:
        return _spell_scalar(writer, value)
    if isinstance(value, numpy.dtype) and writer.stock:
        return NotImplemented
    if isinstance(value, numpy.ma.MaskedArray):
        raise Foreign(value, _MASKED)
    if isinstance(value, numpy.recarray):
        raise Foreign(value, _RECORD)
    if isinstance(value, (numpy.ndarray, numpy.generic)):
        raise Foreign(value, _SUBCLASS)
    raise Foreign(value, _OTHER)


def _spell_array(writer: WriteContext, value: Any) -> Any:
    """Spell an array by its memory, or one of objects by its items."""
    if value.dtype.kind == "O":
        shape = measured_shape(writer, value.shape, value.dtype.itemsize)
        count = math.prod(shape)
        if count > writer.limits.nodes_max:
            raise over("nodes_max", count, writer.limits.nodes_max)
        if writer.stock:
            return NotImplemented
        return object_array, (shape, value.ravel(order="C").tolist())
    form = form_of(value)
    size, size_max = value.nbytes, writer.limits.expanded_bytes_max
    if size > size_max:
        # Before anything is copied: an array may repeat one value without end.
        raise over("expanded_bytes_max", size, size_max)
    shape = measured_shape(writer, value.shape, value.dtype.itemsize)
    if writer.stock:
        return NotImplemented
    if not value.flags.forc:
        value = _contiguous(value)
    order = "C" if value.flags.c_contiguous else "F"
    memory = memory_of(value)
    check_items(form, memory)
    if writer.puts_aside(memory):
        return array_aside, (form, shape, order)
    return array, (form, shape, order, bytes(memory))


def _contiguous(value: Any) -> Any:
    """Return a copy whose items lie in C order.

    It begins as zeros, because numpy copies fields and leaves what is between them:
    that would be memory of this process.
    """
    made = numpy_here().zeros(value.shape, value.dtype)
    made[...] = value
    return made


def memory_of(contiguous: Any) -> memoryview:
    """Return the bytes of a contiguous array, in the order of its memory, uncopied."""
    if not contiguous.nbytes:
        return memoryview(b"")
    flat = contiguous.reshape(-1, order="A")
    # Dates and fields have no buffers of their own kind; bytes always have.
    return memoryview(flat.view("u1"))


def _spell_scalar(writer: WriteContext, value: Any) -> Any:
    """Spell a scalar by its bytes; text and bytes as they are, with closing zeros."""
    kind = value.dtype.kind
    form = form_of(value)
    if writer.stock:
        return NotImplemented
    if kind == "U":
        return scalar, ("U", value[:])
    if kind == "S":
        return scalar, ("S", value[:])
    data = value.tobytes()
    check_items(form, data)
    return scalar, (form, data)


def form_of(value: Any) -> Form:
    """Return the form of an array's or scalar's dtype; ``Foreign`` if it has none."""
    form = dtype_form(value.dtype)
    if form is None:
        raise Foreign(value, _OTHER_DTYPE)
    return form


# Reading -----------------------------------------------------------------------------


def array(reader: ReadContext, *parts: Any) -> Any:
    """Make an array of its dtype, shape, order and memory."""
    form, shape, order, memory = parts
    if type(memory) not in (bytes, bytearray):
        raise NotAllowed("The memory of an array in the pickle is not bytes.")
    return array_over(reader, form, shape, order, memory)


def array_aside(reader: ReadContext, *parts: Any) -> Any:
    """Make an array of its dtype, shape and order, over the next buffer."""
    form, shape, order = parts
    return array_over(reader, form, shape, order, reader.next_buffer())


def array_over(
    reader: ReadContext, form: Form, shape: Any, order: Any, memory: Any
) -> Any:
    """Make an array over memory, without a copy where the memory allows it.

    Where the context says ``read_only`` the array cannot be written to; otherwise it
    can, and is copied if its memory is constant. So is memory that begins at an odd
    place.
    """
    itemsize = checked_itemsize(reader, form)
    size = math.prod(measured_shape(reader, shape, itemsize)) * itemsize
    if size != len(memory):
        raise NotAllowed(
            f"An array in the pickle needs {size} bytes, but {len(memory)} came."
        )
    if order not in ("C", "F"):
        raise NotAllowed(f"An array in the pickle has the order {order!r:.100}.")
    dtype = dtype_of(form)
    check_items(form, memory)
    made = numpy_here().ndarray(shape, dtype, memory, order=order)
    if not made.flags.aligned or not (reader.read_only or made.flags.writeable):
        made = numpy_here().ndarray(shape, dtype, bytearray(memory), order=order)
    if reader.read_only:
        made.flags.writeable = False
    return made


def object_array(reader: ReadContext, *parts: Any) -> Any:
    """Make an array of objects, of its shape and items in C order."""
    shape, items = parts
    measured_shape(reader, shape, 8)
    if type(items) is not list or math.prod(shape) != len(items):
        raise NotAllowed(
            "An array of objects in the pickle has not as many as it says."
        )
    made = numpy_here().fromiter(items, object, len(items)).reshape(shape)
    if reader.read_only:
        made.flags.writeable = False
    return made


def scalar(reader: ReadContext, *parts: Any) -> Any:
    """Make a scalar of its dtype and bytes, or of text or bytes themselves."""
    form, value = parts
    if form == "U" and type(value) is str:
        return numpy_here().str_(value)
    if form == "S" and type(value) is bytes:
        return numpy_here().bytes_(value)
    if type(value) is not bytes or checked_itemsize(reader, form) != len(value):
        raise NotAllowed("A scalar in the pickle has not the bytes of its dtype.")
    return scalar_over(form, value)


def scalar_over(form: Form, value: bytes) -> Any:
    """Return the scalar that the bytes are; they are as many as they must be."""
    dtype = dtype_of(form)
    check_items(form, value)
    # A copy, because a scalar of fields is a view, and may be written to.
    return numpy_here().ndarray((), dtype, bytearray(value))[()]


# Names -------------------------------------------------------------------------------

#: What the functions are called in pickles, for good: the name is not the function's.
_NAMED = {
    "array": array,
    "array_aside": array_aside,
    "object_array": object_array,
    "scalar": scalar,
}
wire_names.keep(wire_names.ARRAYS, _NAMED)


def names() -> Iterator[tuple[str, str, Entry]]:
    """Yield the names in pickles that stand for the functions of this room."""
    for name, make in _NAMED.items():
        aside = make is array_aside
        entry = Entry(make, call=True, bound=True, takes_buffer=aside)
        yield wire_names.ARRAYS, name, entry
