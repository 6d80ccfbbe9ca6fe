"""The keeper of the manager: what it tells the manager that it starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from state_server import settings
from state_server.settings import CommonSettings, ManagerSettings, WebSettings
from web.keeper import ManagerKeeper


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
