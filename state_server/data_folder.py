"""The data folder of a manager: private, in use by one process, its files whole.

Who may enter it, who holds it, what its files are called, and how the small ones are
written. What stands in them is told elsewhere: keys and address in ``settings``, the
state in ``store``.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from pathlib import Path

from .errors import ConfigError

#: The key that callers show, and the one that operators show beside it.
KEY_FILE = "authkey"
ADMIN_KEY_FILE = "adminkey"

#: The URL of the manager while one runs, and the socket that it listens on by default.
ADDRESS_FILE = "address"
SOCKET_FILE = "manager.sock"

#: The file of the state, and that of a hash seed which the state does not hold yet.
STATE_FILE = "state.db"
HASH_SEED_FILE = "hashseed"

#: What a lock that somebody else has is told as; of Windows the last two.
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)

#: Locked by the manager that uses the folder; it holds its process id.
_LOCK_FILE = "manager.lock"

#: The exit code of a command that found the folder in use by another manager.
EXIT_LOCKED = 3


# Who may enter -----------------------------------------------------------------------


def make_private_folder(path: Path) -> None:
    """Make ``path`` a folder that only its owner can enter.

    An empty folder of ours is made private. Raises ``ConfigError`` when others may
    enter a folder that holds something already: it may have been read. One of somebody
    else is refused.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_owner(path)
        if sys.platform != "win32" and not any(path.iterdir()):
            path.chmod(0o700)
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(
            f"The data folder {path} cannot be made or entered: {error}."
        ) from error
    if sys.platform != "win32" and mode & 0o077:
        raise ConfigError(
            f"The data folder {path} can be entered by others (mode {mode:04o}); "
            f"it holds the key and the state. Run: chmod 700 {path}"
        )


def check_owner(path: Path) -> None:
    """Refuse a data folder of somebody else, which root may enter.

    A manager that was started with sudo, by mistake, would leave files there that the
    right one cannot open afterwards.
    """
    if sys.platform == "win32":
        return
    owner, ours = path.stat().st_uid, os.geteuid()
    if owner != ours:
        raise ConfigError(
            f"The data folder {path} belongs to {user_name(owner)}, and you are "
            f"{user_name(ours)}. Files made now would be yours, and of no use to "
            f"{user_name(owner)}. Run the command as {user_name(owner)}, or give the "
            f"folder and all that is in it to {user_name(ours)}."
        )


def user_name(number: int) -> str:
    """Return the name of a user, or words with the number of one that has none."""
    if sys.platform == "win32":
        return f"user {number}"
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


# Who holds it ------------------------------------------------------------------------


class DataDirLocked(ConfigError):
    """Another manager, which is alive, uses the data folder."""


class DataDirLock:
    """The lock of a data folder, held by a living process and by nothing else."""

    def __init__(self, data_dir: Path) -> None:
        """Take the lock; raise ``DataDirLocked`` when another process holds it."""
        path = data_dir / _LOCK_FILE
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"The lock {path} cannot be opened: {error}.") from error
        try:
            _lock_exclusively(descriptor)
        except OSError as error:
            if error.errno not in _HELD:
                os.close(descriptor)
                raise ConfigError(
                    f"The lock {path} cannot be taken: {error}. Two managers could use "
                    "the folder at once. Put it on a disk of this machine, or on one "
                    "whose file system has locks (flock)."
                ) from error
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise DataDirLocked(
                f"The data folder {data_dir} is in use by another manager "
                f"(process {holder or 'unknown'}). Stop it, or use another --data-dir."
            ) from None
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(f"The lock {path} cannot be written: {error}.") from error
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Give the lock back. The file stays: deleting it would let two hold it.

        A second time does nothing: the number may be that of another file by then.
        """
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def data_dir_is_locked(data_dir: Path) -> bool:
    """Tell whether a living manager uses the data folder."""
    return lock_holder(data_dir) is not None


def lock_holder(data_dir: Path) -> int | None:
    """Return the process id of the living manager of a data folder; 0 if unknown."""
    try:
        descriptor = os.open(data_dir / _LOCK_FILE, os.O_RDWR)
    except OSError:
        return None
    try:
        _lock_exclusively(descriptor)
    except OSError:
        text = os.read(descriptor, 32)
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)
    return None


def _lock_exclusively(descriptor: int) -> None:
    """Lock a file without waiting; raise ``OSError`` when somebody else has it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        # flock, not lockf: it belongs to the open file, so closing another
        # descriptor of the same file does not lose it.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


# Its files ---------------------------------------------------------------------------


def make_key_file(path: Path) -> bytes:
    """Write a new random key to ``path``, readable by its owner only; return it."""
    key = secrets.token_hex(32).encode()
    try:
        write_whole(path, key, only_new=True)
    except FileExistsError:
        raise
    except OSError as error:
        raise ConfigError(f"The key file {path} cannot be written: {error}.") from error
    return key


def write_whole(path: Path, content: bytes, *, only_new: bool = False) -> None:
    """Write a private file so that a crash leaves it whole or not there at all.

    ``only_new``: raise ``FileExistsError`` when there is something already.
    """
    fresh = path.with_name(f"{path.name}.new-{os.getpid()}")
    # What a process of this number left, or a file or a link of somebody else, who
    # could read what is written there.
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if only_new and hasattr(os, "link"):
            os.link(fresh, path)
        else:
            fresh.replace(path)
    finally:
        # On a full disk, each manager that is started in vain would leave one.
        fresh.unlink(missing_ok=True)
    sync(path.parent)


def hash_seed_in_file(data_dir: Path) -> int | None:
    """Return the hash seed that a data folder has in a file; raise ``ConfigError``.

    A new one stands there until the manager starts. Former releases left it there for
    good. One in the state goes before it.
    """
    path = data_dir / HASH_SEED_FILE
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"There is no hash seed in {path}: {error}.") from error


def draw_hash_seed(data_dir: Path) -> int:
    """Draw the hash seed of a data folder that has none; return it.

    Raises ``ConfigError`` when it cannot be written.
    """
    seed = secrets.randbelow(2**32)
    path = data_dir / HASH_SEED_FILE
    try:
        write_whole(path, f"{seed}\n".encode())
    except OSError as error:
        raise ConfigError(
            f"The hash seed {path} cannot be written: {error}."
        ) from error
    return seed


def sync(path: Path) -> None:
    """Have a file or a folder on disk before this returns.

    Nothing for a folder on Windows, which has no such thing.
    """
    is_folder = path.is_dir()
    if is_folder and sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
