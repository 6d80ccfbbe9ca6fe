"""How large one value may be, and the measuring of single values.

Both directions measure here, so what is written can also be read. Bytes, pickle and
names may not enter.
"""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple, Protocol

from ..errors import TooLarge


class ValueLimits(NamedTuple):
    """How large one value may be, after expansion of everything it shares."""

    #: Values in one pickle; a part that is shared counts each time it appears.
    nodes_max: int = 2_000_000
    #: Containers inside containers.
    depth_max: int = 100
    #: Estimated memory; a part that is shared counts each time it appears.
    expanded_bytes_max: int = 256 * 1024 * 1024
    #: Digits of an int, of a Decimal's coefficient, of a Fraction's parts.
    digits_max: int = 4300
    #: Exponent of a Decimal, without its sign.
    exponent_max: int = 10_000


DEFAULT_LIMITS = ValueLimits()

#: Estimated memory of one value, beside its text or bytes.
FLAT_SIZE = 100


class RangeCounter(Protocol):
    """One reading or writing of a pickle, which counts what ranges stand for."""

    limits: ValueLimits
    #: Items that take no bytes in the pickle: of ranges, of arrays without memory.
    range_items: int


def over(limit: str, value: int, allowed: int) -> TooLarge:
    """Say which limit was reached."""
    return TooLarge(f"The value is over the limit {limit}: {value} of {allowed}.")


def count_items(counter: RangeCounter, items: int) -> None:
    """Count items that take no bytes in the pickle, as those of a range do.

    A loop over them takes as long as one over a list.
    """
    counter.range_items += items
    if counter.range_items > counter.limits.nodes_max:
        raise over("nodes_max", counter.range_items, counter.limits.nodes_max)


def measured_range(counter: RangeCounter, value: range) -> range:
    """Count the items of a range."""
    count_items(counter, _length(value))
    return value


def _length(value: range) -> int:
    """Return the length of a range that may be too long for ``len``."""
    first, last, step = value.start, value.stop, value.step
    return max(0, -((first - last) // step))


def measured_decimal(value: Decimal, limits: ValueLimits) -> Decimal:
    """Check digits and exponent: arithmetic takes as long as they are large."""
    _sign, digits, exponent = value.as_tuple()
    if len(digits) > limits.digits_max:
        raise over("digits_max", len(digits), limits.digits_max)
    if isinstance(exponent, int) and abs(exponent) > limits.exponent_max:
        raise over("exponent_max", abs(exponent), limits.exponent_max)
    return value
