"""The data folder: who may enter it, and how its small files are written."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pytest

from state_server import data_folder
from state_server.data_folder import (
    DataDirLock,
    DataDirLocked,
    make_key_file,
    make_private_folder,
    write_whole,
)
from state_server.errors import ConfigError

# Who may enter -----------------------------------------------------------------------


def mode_of(path: Path) -> int:
    """Return who may do what with ``path``."""
    return stat.S_IMODE(path.stat().st_mode)


needs_modes = pytest.mark.skipif(sys.platform == "win32", reason="no modes there")


@needs_modes
def test_new_folder_is_private(tmp_path: Path) -> None:
    """The data folder is made with all above it, and only its owner can enter."""
    mask = os.umask(0)
    try:
        make_private_folder(tmp_path / "a" / "b")
    finally:
        os.umask(mask)

    assert mode_of(tmp_path / "a" / "b") == 0o700


@needs_modes
def test_empty_folder_is_made_private(tmp_path: Path) -> None:
    """A folder that was made for us by hand holds nothing yet: it is closed."""
    (tmp_path / "var").mkdir(mode=0o755)
    make_private_folder(tmp_path / "var")

    assert mode_of(tmp_path / "var") == 0o700


@needs_modes
@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o770, 0o777])
def test_open_folder_that_holds_something_is_refused(tmp_path: Path, mode: int) -> None:
    """What is in it may have been read: nothing is changed, the remedy is told."""
    folder = tmp_path / "var"
    folder.mkdir()
    (folder / "authkey").write_bytes(b"k")
    folder.chmod(mode)

    with pytest.raises(ConfigError, match=rf"mode {mode:04o}.*Run: chmod 700 {folder}"):
        make_private_folder(folder)
    assert mode_of(folder) == mode


@needs_modes
def test_private_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    """A folder that only its owner can enter is used, with all that is in it."""
    folder = tmp_path / "var"
    folder.mkdir(mode=0o700)
    (folder / "authkey").write_bytes(b"k")
    make_private_folder(folder)

    assert (folder / "authkey").read_bytes() == b"k"


@needs_modes
@pytest.mark.parametrize("files", [(), ("authkey",)])
def test_folder_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...]
) -> None:
    """Root could enter it: nothing is changed, also where it is empty."""
    folder = tmp_path / "var"
    folder.mkdir(mode=0o755)
    for name in files:
        (folder / name).write_bytes(b"k")
    owner = data_folder.user_name(os.geteuid())
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 12345)

    said = f"{folder} belongs to {owner}, and you are user {os.getuid() + 12345}"
    with pytest.raises(ConfigError, match=f"{said}.*Run the command as {owner}, or"):
        make_private_folder(folder)
    assert mode_of(folder) == 0o755


def test_file_in_place_of_the_folder_is_a_config_error(tmp_path: Path) -> None:
    """What cannot be made a folder is named with the system's reason."""
    (tmp_path / "var").write_text("a file")

    for path in (tmp_path / "var", tmp_path / "var" / "below"):
        with pytest.raises(ConfigError, match="cannot be made"):
            make_private_folder(path)


# Its files ---------------------------------------------------------------------------


def test_new_key_file_is_private_and_random(tmp_path: Path) -> None:
    """Only its owner can read it, whatever the umask; no two keys are the same."""
    mask = os.umask(0)
    try:
        keys = [make_key_file(tmp_path / name) for name in ("one", "two")]
    finally:
        os.umask(mask)

    assert keys[0] != keys[1]
    assert min(map(len, keys)) >= 64
    assert (tmp_path / "one").read_bytes() == keys[0]
    if sys.platform != "win32":
        assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o600


@pytest.mark.parametrize("is_link", [True, False])
def test_key_is_not_written_into_what_somebody_has_laid_there(
    tmp_path: Path, is_link: bool
) -> None:
    """The file that is renamed later has a name that can be guessed."""
    trap = tmp_path / "trap"
    trap.write_text("trap")
    trap.chmod(0o666)
    guessed = tmp_path / f"authkey.new-{os.getpid()}"
    if is_link:
        guessed.symlink_to(trap)
    else:
        os.link(trap, guessed)
    key = make_key_file(tmp_path / "authkey")

    assert (tmp_path / "authkey").read_bytes() == key
    assert stat.S_IMODE((tmp_path / "authkey").stat().st_mode) == 0o600
    assert trap.read_text() == "trap"


def test_existing_key_file_is_never_overwritten(tmp_path: Path) -> None:
    """A key that is there stays; links are not followed to another file."""
    (tmp_path / "key").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("key", "link"):
        with pytest.raises(FileExistsError):
            make_key_file(tmp_path / name)

    assert (tmp_path / "key").read_bytes() == b"old"
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_leaves_no_half_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be written is removed; the lock is given back with a clear error."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    # Python 3.10 has taken os.replace for its paths before it can be patched.
    for owner, name in ((os, "fsync"), (os, "link"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(OSError, match="No space left"):
                write_whole(tmp_path / "a", b"text", only_new=name == "link")
    with monkeypatch.context() as patch:
        patch.setattr(data_folder.os, "write", fail)
        with pytest.raises(ConfigError, match=r"lock .* cannot be written.*No space"):
            DataDirLock(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manager.lock"]
    DataDirLock(tmp_path).release()


def test_a_folder_is_no_obstacle_where_it_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows opens no folder as a file: a file is written whole there all the same."""
    real_open = os.open

    def open_as_windows_does(path: Path, flags: int, mode: int = 0o777) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, flags, mode)

    monkeypatch.setattr(data_folder.sys, "platform", "win32")
    monkeypatch.setattr(data_folder.os, "open", open_as_windows_does)
    write_whole(tmp_path / "address", b"tcp://h:1\n")
    data_folder.sync(tmp_path / "address")

    assert (tmp_path / "address").read_bytes() == b"tcp://h:1\n"


def test_a_file_system_without_locks_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no other manager that has the lock; nobody can have one there."""

    def fail(_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(data_folder, "_lock_exclusively", fail)
    with pytest.raises(ConfigError, match=r"cannot be taken: .*No locks") as caught:
        DataDirLock(tmp_path)
    assert not isinstance(caught.value, DataDirLocked)


def test_a_lock_that_is_given_back_twice_closes_no_other_file(tmp_path: Path) -> None:
    """As in a child of a child of the manager's process: each lets go of it."""
    lock = DataDirLock(tmp_path)
    lock.release()
    reader, writer = os.pipe()
    try:
        lock.release()

        assert os.write(writer, b"still open") == 10
        assert os.read(reader, 99) == b"still open"
    finally:
        os.close(reader)
        os.close(writer)
