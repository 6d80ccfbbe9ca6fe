"""The keeper: what it tells the manager that it starts, and when it starts one."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import pytest

import state_server
from state_server import settings
from state_server.settings import CommonSettings, ManagerSettings, WebSettings
from web.keeper import LOOK_EVERY_S, ManagerKeeper

from .processes import ManagerProcess, wait_until

SHOP = """
from state_server import share

@share
class Orders:
    pass

class Draft:
    pass

def __getattr__(name):
    if name == "Late":
        return type("Late", (), {})
    raise AttributeError(name)
"""


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


@pytest.mark.parametrize(
    ("wanted", "lacking"),
    [
        ((), ()),
        (("shop", "shop:Orders", "shop:Late"), ()),
        (("shop", "stock", "shop:Draft"), ("stock", "shop:Draft")),
    ],
    ids=["nothing", "what is there", "what is not"],
)
def test_what_the_manager_of_another_lacks_is_told_once(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    wanted: tuple[str, ...],
    lacking: tuple[str, ...],
) -> None:
    """Objects that it does not share are one warning, with what to do; others none."""
    (tmp_path / "shop.py").write_text(SHOP)
    another = ManagerProcess(tmp_path, "--objects", "shop:Late").start()
    keeper = ManagerKeeper(
        WebSettings(data_dir=another.data_dir, objects=wanted), 7, os.environ
    )

    def advance() -> bool:
        keeper.advance(time.monotonic())
        return keeper.ready

    try:
        wait_until(advance, 30)
        keeper.advance(keeper.wake_at())
    finally:
        keeper.kill()
        another.stop()
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    expected = (
        f"the manager that runs already does not share {', '.join(lacking)}; "
        f"restart it with {' '.join(f'--objects {item}' for item in lacking)} as well"
    )
    assert told == ([expected] if lacking else [])


def test_a_manager_that_cannot_tell_what_it_lacks_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of an older release refuses the question; the service starts all the same."""
    another = ManagerProcess(tmp_path).start()
    control = state_server.Client.control

    def older(client: state_server.Client, verb: str, *args: Any, **rest: Any) -> Any:
        return control(client, "unheard" if verb == "lacks" else verb, *args, **rest)

    monkeypatch.setattr(state_server.Client, "control", older)
    keeper = ManagerKeeper(
        WebSettings(data_dir=another.data_dir, objects=("stock",)), 7, os.environ
    )

    def advance() -> bool:
        keeper.advance(time.monotonic())
        return keeper.ready

    try:
        wait_until(advance, 30)
    finally:
        keeper.kill()
        another.stop()
    assert "does not share" not in caplog.text
