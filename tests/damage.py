"""Pickles with bytes changed, removed or mixed, by a source of chance that repeats."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence


def damaged(pickles: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Yield so many of the pickles, each with one to three damages."""
    source = random.Random(seed)
    for _ in range(count):
        data = bytearray(source.choice(pickles))
        for _ in range(source.randint(1, 3)):
            place = source.randrange(len(data))
            kind = source.randrange(3)
            if kind == 0:
                data[place] = source.randrange(256)
            elif kind == 1:
                del data[place : place + source.randint(1, 4)]
            else:
                other = source.choice(pickles)
                data[place:place] = other[source.randrange(len(other)) :][:40]
        yield bytes(data)
