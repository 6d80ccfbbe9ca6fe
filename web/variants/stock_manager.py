"""A manager of the standard library.

One process has the counter, and the workers ask it over a socket. There, each
connection has a thread that calls the counter, which has no lock: two calls may still
meet. The counter lives in memory, and a worker's proxy does not outlive the process.
"""

from collections.abc import Callable
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

from state_server.integrations.flask import StateServer
from state_server.objects.demonstration import DemonstrationCounter
from web.stock_process import WITHIN_DEADLINE, StockProcess, main

counter = DemonstrationCounter()


class Manager(BaseManager):
    """The manager: the process that has the counter, and each worker, make one."""


Manager.register("counter", callable=lambda: counter)


def serve(address: str, key: bytes, ready: Callable[[], None]) -> None:
    """Be the process that has the counter."""
    server = Manager(address, key).get_server()
    ready()
    server.serve_forever()


def connect(address: str, key: bytes) -> Any:
    """Return a proxy of the counter in that process."""
    manager: Any = Manager(address, key, WITHIN_DEADLINE)
    manager.connect()
    return manager.counter()


process = StockProcess("web.variants.stock_manager", connect)
state = StateServer()


def next_number(run: str) -> int:
    """Return the next number of ``run``."""
    _, data_dir = state.client.location
    with process.proxy(Path(data_dir)) as proxy:
        number: int = proxy.next_number(run)
        return number


if __name__ == "__main__":
    main(serve)
