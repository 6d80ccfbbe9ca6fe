"""The life of a manager's process: start, ready, drain, stop; signals, lock file.

The order of the start: settings, data folder, lock, keys, objects, socket, threads,
ready. The order of the stop: no new connections, no new calls, running calls end, the
connections close, the socket file goes, the lock goes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import stat
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TextIO

from . import codec
from . import settings as configuration
from .addresses import Address, parse_address
from .conversation import Manners
from .engine import Engine, EngineLimits
from .errors import ConfigError, Denied, NotAllowed
from .host import Host
from .keeping import KeepingLimits
from .objects import add_ready_made
from .settings import ManagerSettings
from .sharing import Catalogue, catalogue, load_objects
from .store import SqliteStore
from .tickets import HostLimits
from .version import VERSION

log = logging.getLogger("state_server.service")

#: Exit codes of the command.
EXIT_CONFIG, EXIT_LOCKED = 2, 3


class DataDirLocked(ConfigError):
    """Another manager, which is alive, uses the data folder."""


class DataDirLock:
    """The lock of a data folder, held by a living process and by nothing else."""

    def __init__(self, data_dir: Path) -> None:
        """Take the lock; raise ``DataDirLocked`` when another process holds it."""
        path = data_dir / "manager.lock"
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"The lock {path} cannot be opened: {error}.") from error
        try:
            _lock_exclusively(self._descriptor)
        except OSError:
            holder = os.read(self._descriptor, 32).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise DataDirLocked(
                f"The data folder {data_dir} is in use by another manager "
                f"(process {holder or 'unknown'}). Stop it, or use another --data-dir."
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, str(os.getpid()).encode())
        _locks.add(self)

    def release(self) -> None:
        """Give the lock back. The file stays: deleting it would let two hold it.

        In a child that was forked only the copy goes, and the parent holds it alone.
        """
        if self in _locks:
            _locks.discard(self)
            os.close(self._descriptor)


_locks: weakref.WeakSet[DataDirLock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Let go of the parent's locks: a method's child may outlive its manager."""
    for lock in list(_locks):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def data_dir_is_locked(data_dir: Path) -> bool:
    """Tell whether a living manager uses the data folder."""
    return lock_holder(data_dir) is not None


def lock_holder(data_dir: Path) -> int | None:
    """Return the process id of the living manager of a data folder; 0 if unknown."""
    try:
        descriptor = os.open(data_dir / "manager.lock", os.O_RDWR)
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


class Service:
    """One manager: host, engine and socket, from start to stop.

    Used by the main thread of the process. ``_asked`` may be written to by anybody: a
    socket and not an event, because a signal handler that sets the event for which its
    own thread waits can find that event's lock taken, and hang.
    """

    def __init__(
        self,
        settings: ManagerSettings,
        key: bytes | None = None,
        shared: Catalogue | None = None,
    ) -> None:
        self._settings = settings
        self._given_key = key
        self._catalogue = catalogue if shared is None else shared
        self._waiter, self._asked = socket.socketpair()
        self._asked.setblocking(False)
        self._stop_asked = False
        self._lock: DataDirLock | None = None
        self._listener: socket.socket | None = None
        self._engine: Engine | None = None
        self._host: Host | None = None
        self.address: Address | None = None
        self.key = b""

    def __repr__(self) -> str:
        """Say where it listens and how it is."""
        return f"<Service at {self.address} {self._host!r} {self._engine!r}>"

    def start(self) -> Address:
        """Start; return the address once calls are accepted.

        Raises ``ConfigError`` when a setting must change. Nothing is left behind then.
        """
        try:
            return self._start()
        except BaseException:
            self._release()
            raise

    def _start(self) -> Address:
        settings = self._settings
        configuration.make_private_folder(settings.data_dir)
        self._lock = DataDirLock(settings.data_dir)
        self.key = self._given_key or _key(settings)
        admin_key = _admin_key(settings.data_dir)
        for specification in settings.objects:
            load_objects(specification)
        add_ready_made(self._catalogue, settings)
        _check_hash_seed(settings, self._catalogue)
        wanted = _wanted_address(settings)
        self._listener, self.address = listen(wanted, settings.backlog)
        store = None
        if not settings.memory:
            store = SqliteStore(settings.data_dir / "state.db")
        epoch = os.urandom(8) if store is None else store.epoch
        self._host = Host(
            self._catalogue,
            epoch + os.urandom(8),
            _host_limits(settings),
            _keeping_limits(settings),
            store,
        )
        for name in self._catalogue.names():
            shared = self._catalogue.get(name)
            if shared is not None and store is not None:
                for alias in shared.aliases:
                    store.rename(alias, shared.name)
        if store is not None:
            _warn_of_strangers(store, self._catalogue)
        for name in self._catalogue.names():
            shared = self._catalogue.get(name)
            if shared is not None and shared.contract is None:
                self._catalogue.add(self._host.prepare(shared))
        # The codec prepares itself at its first use, which takes a moment.
        codec.decode(codec.encode(((), {})))
        manners = Manners(
            self.key,
            admin_key,
            self._host,
            self._control,
            settings.frame_bytes_max,
            settings.allow_md5,
        )
        self._host.start()
        self._engine = Engine(manners, _engine_limits(settings))
        self._engine.start(self._listener)
        _write_address(settings.data_dir, self.address)
        log.info(
            "Ready at %s, sharing %s.",
            self.address,
            ", ".join(self._catalogue.names()),
        )
        return self.address

    def request_stop(self) -> None:
        """Have ``wait`` return; any thread or signal handler may call this."""
        self._stop_asked = True
        try:
            self._asked.send(b"\0")
        except OSError:
            # It was asked often enough already, or has stopped.
            return

    def wait(self) -> None:
        """Wait until the service is asked to stop."""
        if threading.current_thread() is not threading.main_thread():
            self._waiter.recv(1)
            return
        # A signal that comes just before this thread begins to wait interrupts nothing,
        # and its handler runs only when the thread does: so each signal sends a byte.
        former = signal.set_wakeup_fd(self._asked.fileno(), warn_on_full_buffer=False)
        try:
            while not self._stop_asked:
                self._waiter.recv(1)
        finally:
            signal.set_wakeup_fd(former)

    def stop(self) -> None:
        """Drain and stop: running calls end, within the time the settings give."""
        if self._engine is not None:
            self._engine.drain(self._settings.drain_timeout_s)
        self._release()
        log.info("Stopped.")

    def __enter__(self) -> Service:
        """Start the service."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the service."""
        self.stop()

    def _release(self) -> None:
        """Give everything back, in the opposite order, whatever fails on the way."""
        try:
            if self._engine is not None:
                self._engine.stop()
                self._engine = None
            if self._host is not None:
                self._host.stop()
                self._host = None
        finally:
            self._release_folder()

    def _release_folder(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            if self.address is not None and self.address.path is not None:
                Path(self.address.path).unlink(missing_ok=True)
            (self._settings.data_dir / "address").unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self._waiter.close()
        self._asked.close()

    def _control(self, verb: str, args: tuple[Any, ...], is_admin: bool) -> object:
        """Answer a call to the manager itself."""
        assert self._host is not None
        if verb == "ping":
            return "pong"
        if verb == "describe" and len(args) == 1 and isinstance(args[0], str):
            return tuple(self._host.describe(args[0]))
        if verb == "status":
            return self._status()
        if verb == "lacks" and all(isinstance(item, str) for item in args):
            return [item for item in args if self._lacks(item)]
        if verb == "stop":
            if not is_admin:
                raise Denied(
                    "Stopping the manager needs the admin key: "
                    "connect(data_dir=…, admin=True) as the owner of the data folder."
                )
            self.request_stop()
            return None
        raise NotAllowed(f"The manager has no verb {verb!r} with these arguments.")

    def _lacks(self, specification: str) -> bool:
        """Tell whether ``--objects`` with this value would have shared more."""
        # What a module makes only when it is asked cannot be seen from outside.
        if specification in self._settings.objects:
            return False
        return self._catalogue.lacks(specification)

    def _status(self) -> dict[str, Any]:
        assert self._host is not None
        assert self._engine is not None
        return {
            "version": VERSION,
            "address": str(self.address),
            "process_id": os.getpid(),
            "classes": self._catalogue.names(),
            **self._host.status(),
            **self._engine.status(),
        }


def main(arguments: list[str], program: str = "start_manager.py") -> int:
    """Run a manager until it is told to stop; return the exit code."""
    try:
        settings = configuration.from_command_line(
            ManagerSettings,
            arguments,
            os.environ,
            program=program,
            description="Host shared objects for web workers and other clients.",
        )
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return EXIT_CONFIG
    log_to_stderr(settings.log_level)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            fix_hash_seed(settings)
    except ConfigError as error:
        log.error("The manager was not started: %s", error)
        return EXIT_CONFIG
    for sentence in configuration.unknown_variables(os.environ):
        log.warning(sentence)
    report = _take_standard_output()
    service = Service(settings)
    forget_signals = stop_on_signals(service.request_stop)
    try:
        address = service.start()
    except ConfigError as error:
        log.error("The manager was not started: %s", error)
        return EXIT_LOCKED if isinstance(error, DataDirLocked) else EXIT_CONFIG
    if settings.parent_fd is not None:
        stop_with_parent(settings.parent_fd, service.request_stop)
    with report:
        report.write(f"ready {address}\n")
    service.wait()
    service.stop()
    forget_signals()
    return 0


def fix_hash_seed(settings: ManagerSettings) -> None:
    """Start this process anew with the hash seed of its data folder, if it matters.

    The order in which a set iterates depends on the seed, and a journalled method may
    depend on that order; those of ready-made classes do not. Raises ``ConfigError``
    when the objects cannot be loaded.
    """
    for specification in settings.objects:
        load_objects(specification)
    if settings.memory or not _journals(catalogue):
        return
    configuration.make_private_folder(settings.data_dir)
    seed = str(configuration.hash_seed(settings.data_dir))
    if os.environ.get("PYTHONHASHSEED") != seed:
        os.environ["PYTHONHASHSEED"] = seed
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _check_hash_seed(settings: ManagerSettings, shared: Catalogue) -> None:
    """Refuse journalled objects in a process with another hash seed than the folder's.

    Only ``main`` can start its process anew; a server inside another program cannot.
    """
    journals = _journals(shared)
    if settings.memory or not journals:
        return
    seed = str(configuration.hash_seed(settings.data_dir))
    if os.environ.get("PYTHONHASHSEED") != seed:
        raise ConfigError(
            f"{', '.join(journals)}: a journal is replayed in the order that sets have "
            f"under the hash seed of its data folder, {seed}. Start the manager with "
            "start_manager.py, or this program with that PYTHONHASHSEED."
        )


def _warn_of_strangers(store: SqliteStore, shared: Catalogue) -> None:
    """Say which stored objects nobody can call: their class may have been renamed."""
    for name in store.class_names():
        if shared.get(name) is None:
            log.warning(
                "There are stored objects of %r, which no class is shared as. If the "
                "class was renamed, share it with aliases=(%r,).",
                name,
                name,
            )


def _journals(shared: Catalogue) -> list[str]:
    """Return the names of the journalled classes of the user's own."""
    classes = [shared.get(name) for name in shared.names()]
    return [
        item.name
        for item in classes
        if item and item.durable == "journal" and not item.ready_made
    ]


def _take_standard_output() -> TextIO:
    """Return standard output; what is printed from now on goes to standard error.

    Whoever started the manager waits for its one line there; what a shared class prints
    belongs beside the log.
    """
    report = os.fdopen(os.dup(1), "w")
    sys.stdout.flush()
    os.dup2(2, 1)
    return report


def log_to_stderr(level: str) -> None:
    """Send the logs of this process to standard error."""
    logging.basicConfig(
        level=level,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s",
    )


def stop_on_signals(
    stop: Callable[[], None], *, ignore_interrupts: bool = False
) -> Callable[[], None]:
    """Call ``stop`` on SIGTERM and SIGINT; a second one ends the process at once.

    ``ignore_interrupts``: SIGINT does nothing. Returns a function that puts the former
    handlers back.
    """
    asked = False
    process_id = os.getpid()

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if os.getpid() != process_id:
            # A child that a method has forked: it has nothing to stop, and is to end.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if asked:
            log.warning("Stopped at once, by a second signal.")
            os._exit(128 + number)
        asked = True
        stop()

    former = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, handle),
        signal.SIGINT: signal.signal(
            signal.SIGINT, signal.SIG_IGN if ignore_interrupts else handle
        ),
    }

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    return restore


def stop_with_parent(descriptor: int, stop: Callable[[], None]) -> None:
    """Call ``stop`` when the pipe of the process that started us closes."""

    def watch() -> None:
        try:
            while os.read(descriptor, 1024):
                pass
        except OSError as error:
            log.warning("The parent's pipe cannot be read: %s.", error)
        stop()

    threading.Thread(target=watch, name="state-server-parent", daemon=True).start()


def listen(wanted: Address, backlog: int) -> tuple[socket.socket, Address]:
    """Return a listening socket and its address.

    A socket file that a dead manager left is replaced: the caller holds the lock of the
    data folder, and nobody answers there. Raises ``ConfigError`` when the address is
    taken or cannot be used.
    """
    if wanted.path is not None:
        return _listen_on_path(Path(wanted.path), backlog), wanted
    family = socket.AF_INET6 if ":" in wanted.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((wanted.host, wanted.port))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise ConfigError(f"The address {wanted} cannot be used: {error}.") from error
    return listener, Address(host=wanted.host, port=listener.getsockname()[1])


def _listen_on_path(path: Path, backlog: int) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigError("This platform has no Unix sockets; use tcp://127.0.0.1:0.")
    _remove_stale_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Private from the first moment; no other thread makes files yet.
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise ConfigError(f"The socket {path} cannot be made: {error}.") from error
    finally:
        os.umask(mask)
    return listener


def _remove_stale_socket(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is not a socket; it was left alone.")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.settimeout(1.0)
        probe.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} is in use: {error}.") from error
    else:
        raise ConfigError(f"{path} is in use: a server answers there.")
    finally:
        probe.close()


def _wanted_address(settings: ManagerSettings) -> Address:
    if settings.address is not None:
        address = parse_address(settings.address)
    elif sys.platform == "win32":
        address = Address(host="127.0.0.1", port=0)
    else:
        # Absolute, because clients read it in folders of their own.
        address = parse_address(settings.data_dir.absolute() / "manager.sock")
    if address.is_wildcard and not settings.allow_wildcard:
        raise ConfigError(
            f"The address {address} lets any machine connect, and the connection is "
            "not encrypted. Use 127.0.0.1 or a Unix socket, or say --allow-wildcard "
            "true if the network is private."
        )
    return address


def _key(settings: ManagerSettings) -> bytes:
    key = configuration.read_authkey(settings, os.environ)
    if key is None:
        path = settings.authkey_file or settings.data_dir / "authkey"
        key = configuration.make_key_file(path)
        log.info("A new key was written to %s.", path)
    return key


def _admin_key(data_dir: Path) -> bytes:
    path = data_dir / "adminkey"
    return configuration.read_key_file(path) or configuration.make_key_file(path)


def _write_address(data_dir: Path, address: Address) -> None:
    """Let clients that know the data folder find the manager; whole or not at all."""
    try:
        configuration.write_whole(data_dir / "address", f"{address}\n".encode())
    except OSError as error:
        raise ConfigError(
            f"The address cannot be written to {data_dir}: {error}."
        ) from error


def _host_limits(settings: ManagerSettings) -> HostLimits:
    return HostLimits(**{name: getattr(settings, name) for name in HostLimits._fields})


def _keeping_limits(settings: ManagerSettings) -> KeepingLimits:
    return KeepingLimits(
        **{name: getattr(settings, name) for name in KeepingLimits._fields}
    )


def _engine_limits(settings: ManagerSettings) -> EngineLimits:
    return EngineLimits(
        **{name: getattr(settings, name) for name in EngineLimits._fields}
    )
