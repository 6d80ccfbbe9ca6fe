"""What the suite of limits imports as tests.utils, with our storage as the only one."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

all_storage = pytest.mark.parametrize(
    ("uri", "args", "fixture"), [("stateserver://", {}, None)]
)
moving_window_storage = all_storage
sliding_window_counter_storage = all_storage

_not_ours = pytest.mark.skip(reason="our storage has no asynchronous twin")
async_all_storage = _not_ours
async_moving_window_storage = _not_ours
async_sliding_window_counter_storage = _not_ours


def fixed_start(test: Callable[..., Any]) -> Callable[..., Any]:
    """Begin the test with a new second."""

    @functools.wraps(test)
    def started(*args: Any, **kwargs: Any) -> Any:
        now = time.time()
        time.sleep(math.ceil(now) - now)
        return test(*args, **kwargs)

    return started


@contextmanager
def window(
    delay_end: float, delay: float | None = None
) -> Iterator[tuple[float, float]]:
    """Pause for ``delay`` seconds, run the block, and end ``delay_end`` s after all."""
    start = time.time()
    if delay is not None:
        time.sleep(delay)
    yield start, start + delay_end
    time.sleep(max(start + delay_end - time.time(), 0))


def timestamp_based_key_ttl(item: Any, now: float | None = None) -> float:
    """Return the seconds until a window ends that is aligned with the clock."""
    expiry: float = item.get_expiry()
    return expiry - (time.time() if now is None else now) % expiry
