"""The keeper: what it tells the manager that it starts, and when it starts one."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

from state_server import settings
from state_server.settings import CommonSettings, ManagerSettings, WebSettings
from web.keeper import LOOK_EVERY_S, ManagerKeeper

from .processes import ManagerProcess, wait_until


def test_manager_has_the_options_of_its_parent(tmp_path: Path) -> None:
    """What both of them read is passed on, whatever the environment says.

    An address is not: with one, no manager is started.
    """
    chosen = WebSettings(
        data_dir=tmp_path,
        authkey_file=tmp_path / "key",
        log_level="DEBUG",
        busy_poll_s=0.02,
        objects=("shop", "stock:Stock"),
        drain_timeout_s=3.5,
    )
    keeper = ManagerKeeper(chosen, 7, {})
    command = keeper._command()
    read = settings.from_command_line(
        ManagerSettings,
        command[command.index("manager") + 1 :],
        {"STATE_SERVER_BUSY_POLL_S": "0.05", "STATE_SERVER_LOG_LEVEL": "error"},
        program="manager",
        description="",
    )
    shared = {field.name for field in dataclasses.fields(CommonSettings)}
    for name in (shared | {"objects", "drain_timeout_s"}) - {"address"}:
        assert getattr(read, name) == getattr(chosen, name), name
    assert read.parent_fd == 7


def test_manager_of_another_is_looked_after(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While it lives nothing is started; once it is gone, a child is, with one line.

    Each look is due within a bounded time, and none is after the end was asked for.
    """
    another = ManagerProcess(tmp_path).start()
    lifeline_fd, parents_end = os.pipe()
    chosen = WebSettings(data_dir=another.data_dir)
    keeper = ManagerKeeper(chosen, lifeline_fd, os.environ)

    def advance() -> bool:
        keeper.advance(time.monotonic())
        return keeper.ready

    try:
        wait_until(advance, 30)
        due = keeper.wake_at()
        assert due <= time.monotonic() + LOOK_EVERY_S
        for _ in range(3):
            keeper.advance(due)
            assert keeper.gone
            assert keeper.wake_at() == due + LOOK_EVERY_S
            due = keeper.wake_at()
        another.stop()
        keeper.advance(due)
        assert keeper.child is not None
        assert caplog.text.count("the manager that was used is gone") == 1
        wait_until(lambda: advance() and keeper.child.ready, 30)  # type: ignore[union-attr]
        keeper.stop()
        wait_until(lambda: advance() and keeper.gone, 30)
        assert keeper.wake_at() == float("inf")
    finally:
        keeper.kill()
        os.close(lifeline_fd)
        os.close(parents_end)
        another.stop()
