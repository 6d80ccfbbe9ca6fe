"""One process of a stampede: many threads miss one key of a cache at the same time.

Run as ``python -m tests.neighbours.stampede DATA_DIR REGION THREADS LOG OPTIONS``. Says
``ready``, waits for a line, then prints what each thread got. Each computation is a
line in LOG: the process that made it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from state_server.integrations.caching import StateServerCache


def main() -> None:
    """Be one process."""
    data_dir, region, threads, log = sys.argv[1:5]
    options: dict[str, Any] = json.loads(sys.argv[5])
    takes_s = options.pop("takes_s")
    cache = StateServerCache(data_dir=data_dir, region=region, call_timeout_s=10)
    barrier = threading.Barrier(int(threads) + 1)
    got: list[str] = []

    def compute() -> str:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, b"%d\n" % os.getpid())
        os.close(descriptor)
        time.sleep(takes_s)
        return f"computed by {os.getpid()}"

    def ask() -> None:
        barrier.wait(30)
        got.append(cache.get_or_compute("key", compute, 60, **options))

    asking = [threading.Thread(target=ask) for _ in range(int(threads))]
    for thread in asking:
        thread.start()
    # The connection is there before the others begin.
    cache.has("key")
    print("ready", flush=True)
    sys.stdin.readline()
    barrier.wait(30)
    for thread in asking:
        thread.join(60)
    print(json.dumps(got), flush=True)


if __name__ == "__main__":
    main()
