"""The time that deadlines of a client are measured by.

Not ``time.monotonic``: what people set the time with in their tests (freezegun) puts
that aside as well, and no deadline would ever pass.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

monotonic: Callable[[], float] = time.monotonic
if hasattr(time, "clock_gettime"):
    # The same time, by another way.
    monotonic = functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC)
