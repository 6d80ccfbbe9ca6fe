"""The life of a manager's process: start, ready, drain, stop; signals, lock file.

The order of the start: settings, data folder, lock, keys, objects, socket, threads,
ready. The order of the stop: no new connections, no new calls, running calls end, the
connections close, the socket file goes, the lock goes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TextIO, TypeVar

from . import codec, log_lines
from . import settings as configuration
from .addresses import Address
from .data_folder import (
    ADDRESS_FILE,
    ADMIN_KEY_FILE,
    EXIT_LOCKED,
    HASH_SEED_FILE,
    KEY_FILE,
    STATE_FILE,
    DataDirLock,
    DataDirLocked,
    draw_hash_seed,
    make_key_file,
    make_private_folder,
    write_whole,
)
from .engine import Engine, EngineLimits, Manners
from .errors import ConfigError, Denied, NotAllowed, StoreError
from .host import Host, HostLimits, warn_of_waiting
from .keeping import KeepingLimits
from .listening import listen, wanted_address
from .objects import add_ready_made
from .settings import ManagerSettings
from .sharing import Catalogue, SharedClass, catalogue, load_objects
from .store import SqliteStore, hash_seed_of
from .version import VERSION

log = logging.getLogger("state_server.service")

#: The records of limits that a room is given.
Limits = TypeVar("Limits", HostLimits, KeepingLimits, EngineLimits)

#: The exit codes of the command when it has lost its data folder, and when a setting
#: must change.
EXIT_LOST = 1
EXIT_CONFIG = 2

#: How often is looked whether the data folder is there yet.
_LOOK_AT_FOLDER_S = 1.0


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
        #: Absolute, because a method may change the folder that this process is in.
        self._folder = settings.data_dir.absolute()
        self._given_key = key
        self._catalogue = catalogue if shared is None else shared
        self._waiter, self._asked = socket.socketpair()
        self._asked.setblocking(False)
        self._stop_asked = False
        #: Whether somebody has deleted the data folder, or another manager taken it.
        self.has_lost_folder = False
        self._folder_lock: DataDirLock | None = None
        self._listener: socket.socket | None = None
        self._engine: Engine | None = None
        self._host: Host | None = None
        self.address: Address | None = None
        self.key = b""
        _services.add(self)

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
        _check_threads()
        make_private_folder(settings.data_dir)
        self._folder_lock = DataDirLock(self._folder)
        self.key = self._given_key or _key(settings)
        admin_key = _admin_key(settings.data_dir)
        for specification in settings.objects:
            load_objects(specification)
        add_ready_made(self._catalogue, settings)
        wanted = wanted_address(settings)
        self._listener, self.address = listen(wanted, settings.backlog)
        host = self._make_host()
        # The codec prepares itself at its first use, which takes a moment.
        codec.decode(codec.encode(((), {})))
        manners = Manners(
            self.key,
            admin_key,
            host,
            self._control,
            settings.frame_bytes_max,
            settings.allow_md5,
        )
        host.start()
        self._engine = Engine(manners, _limits(EngineLimits, settings))
        self._engine.start(self._listener)
        _write_address(settings.data_dir, self.address)
        log.info(
            "Ready at %s, sharing %s.",
            self.address,
            ", ".join(self._catalogue.names()),
        )
        return self.address

    def _make_host(self) -> Host:
        """Make the host of all shared classes, which learns what is stored of them."""
        settings, shared = self._settings, self._catalogue
        store = None
        if not settings.memory:
            store = SqliteStore(settings.data_dir / STATE_FILE)
        epoch = os.urandom(8) if store is None else store.epoch
        # Kept at once: whatever fails from here on, the host closes the store.
        self._host = Host(
            shared,
            epoch + os.urandom(8),
            _limits(HostLimits, settings),
            _limits(KeepingLimits, settings),
            store,
        )
        if store is not None:
            _keep_hash_seed(store, settings.data_dir, shared)
            for record in shared.records():
                for alias in record.aliases:
                    store.rename(alias, record.name)
            _warn_of_strangers(store, shared)
        for record in shared.records():
            if record.cls is not None:
                warn_of_waiting(record.name, record.cls)
            elif record.contract is None:
                shared.add(self._prepared(record))
        return self._host

    def _prepared(self, record: SharedClass) -> SharedClass:
        """Return the record of a factory with what its objects offer."""
        assert self._host is not None
        try:
            return self._host.prepare(record)
        except Exception as error:
            # The border to the user's code.
            raise ConfigError(
                f"{record.name} cannot be shared, because {record.source} failed: "
                f"{type(error).__name__}: {error}."
            ) from error

    def request_stop(self) -> None:
        """Have ``wait`` return; any thread or signal handler may call this."""
        self._stop_asked = True
        try:
            self._asked.send(b"\0")
        except OSError:
            # It was asked often enough already, or has stopped.
            return

    def wait(self) -> None:
        """Wait until the service is asked to stop, or its data folder is not its own.

        ``has_lost_folder`` tells which.
        """
        if threading.current_thread() is not threading.main_thread():
            self._wait()
            return
        # A signal that comes just before this thread begins to wait interrupts nothing,
        # and its handler runs only when the thread does: so each signal sends a byte.
        former = signal.set_wakeup_fd(self._asked.fileno(), warn_on_full_buffer=False)
        try:
            self._wait()
        finally:
            signal.set_wakeup_fd(former)

    def _wait(self) -> None:
        self._waiter.settimeout(_LOOK_AT_FOLDER_S)
        while not (self._stop_asked or self.has_lost_folder):
            try:
                self._waiter.recv(1)
            except TimeoutError:
                self._look_at_folder()

    def _look_at_folder(self) -> None:
        """Hold the folder's lock again where it was deleted, or have the service end.

        It would go on with files that have no name any more: what it acknowledges would
        be gone with it, and the next manager on the folder would serve beside it.
        """
        lock, folder = self._folder_lock, self._folder
        if lock is None or lock.is_in_place():
            return
        state_is_gone = not (self._settings.memory or (folder / STATE_FILE).exists())
        try:
            if state_is_gone:
                raise ConfigError(f"The state in the data folder {folder} was deleted.")
            self._folder_lock = DataDirLock(folder)
            lock.release()
            log.warning("The lock of %s was deleted; it is there again.", folder)
        except ConfigError as error:
            if self._settings.memory and not isinstance(error, DataDirLocked):
                # Nothing of this manager is there, and nobody else's.
                return
            self.has_lost_folder = True
            log.critical("The manager ends, its data folder is lost: %s", error)

    def stop(self) -> None:
        """Drain and stop: running calls end, within the time the settings give."""
        until = time.monotonic() + self._settings.drain_timeout_s
        if self._engine is not None:
            self._engine.drain(self._settings.drain_timeout_s)
        self._release(max(0.0, until - time.monotonic()))
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

    def forget_parent(self) -> None:
        """Close the copies of lock and sockets, in a child that a method has forked.

        The child may outlive this manager: the lock would keep the next one from
        starting, and clients would not notice that their connections have ended.
        """
        if self._engine is not None:
            self._engine.forget_parent()
        if self._listener is not None:
            self._listener.close()
        if self._folder_lock is not None:
            self._folder_lock.release()

    def _release(self, images_timeout_s: float = 0.0) -> None:
        """Give everything back, in the opposite order, whatever fails on the way."""
        try:
            if self._engine is not None:
                self._engine.stop()
                self._engine = None
            if self._host is not None:
                self._host.stop(images_timeout_s)
                self._host = None
        finally:
            self._release_folder()

    def _release_folder(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            if not self.has_lost_folder:
                self._remove_traces()
        if self._folder_lock is not None:
            self._folder_lock.release()
            self._folder_lock = None
        self._waiter.close()
        self._asked.close()

    def _remove_traces(self) -> None:
        """Remove what tells clients that a manager is here."""
        if self.address is not None and self.address.path is not None:
            _remove(Path(self.address.path))
        _remove(self._folder / ADDRESS_FILE)

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
            return os.getpid()
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


_services: weakref.WeakSet[Service] = weakref.WeakSet()
#: What puts the former signal handlers back, of each time they were taken.
_restorers: list[Callable[[], None]] = []


def _after_fork_in_child() -> None:
    # A child that a method has forked has nothing to stop, and is to end when told to.
    # Now, and not in the handler: a signal in the first moment may wait for ever there.
    for restore in list(_restorers):
        restore()
    for service in list(_services):
        service.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


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
    log_lines.to_stderr(settings.log_level, settings.log_lines_max)
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
    except (ConfigError, OSError) as error:
        # The second: no descriptor is left, or the disk is full, say.
        log.error("The manager was not started: %s", error)
        return EXIT_LOCKED if isinstance(error, DataDirLocked) else EXIT_CONFIG
    if settings.parent_fd is not None:
        stop_with_parent(settings.parent_fd, service.request_stop)
    with report:
        report.write(f"ready {address}\n")
    service.wait()
    service.stop()
    forget_signals()
    return EXIT_LOST if service.has_lost_folder else 0


def fix_hash_seed(settings: ManagerSettings, *, may_draw: bool = True) -> None:
    """Start this process anew with the hash seed of its data folder, if it matters.

    The order in which a set iterates depends on the seed, and a journalled method may
    depend on that order; those of ready-made classes do not. ``may_draw``: a folder
    without a seed is given one. Raises ``ConfigError`` when the objects cannot be
    loaded, or when the seed cannot be read or have no effect.
    """
    for specification in settings.objects:
        load_objects(specification)
    journals = _journals(catalogue)
    if settings.memory or not journals:
        return
    _check_environment(journals)
    make_private_folder(settings.data_dir)
    seed = hash_seed_of(settings.data_dir)
    if seed is None:
        if not may_draw:
            return
        seed = draw_hash_seed(settings.data_dir)
    if os.environ.get("PYTHONHASHSEED") != str(seed):
        os.environ["PYTHONHASHSEED"] = str(seed)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _check_threads() -> None:
    """Refuse a process in which gevent or the like has put greenlets for threads.

    A method that blocks would stop them all, and the manager would end at once, without
    a word.
    """
    kind = type(threading.Lock()).__module__
    if kind != "_thread":
        raise ConfigError(
            f"The threads of this process are not the system's own ({kind}): a manager "
            "cannot run in it. Start one in a process of its own, with the command "
            "state-server manager, and connect() from here."
        )


def _keep_hash_seed(store: SqliteStore, data_dir: Path, shared: Catalogue) -> None:
    """Have the hash seed of journalled objects in the state; refuse any other.

    Only ``main`` can start its process anew; a server inside another program cannot.
    """
    journals = _journals(shared)
    if not journals:
        return
    _check_environment(journals)
    seed = hash_seed_of(data_dir)
    try:
        seed = store.keep_hash_seed(draw_hash_seed(data_dir) if seed is None else seed)
    except StoreError as error:
        raise ConfigError(str(error)) from error
    # From now on it would only mislead: the one in the state counts.
    (data_dir / HASH_SEED_FILE).unlink(missing_ok=True)
    if os.environ.get("PYTHONHASHSEED") != str(seed):
        raise ConfigError(
            f"{', '.join(journals)}: a journal is replayed in the order that sets have "
            f"under the hash seed of its data folder, {seed}. Start the manager with "
            "state-server manager, or this program with that PYTHONHASHSEED; where "
            "nothing has to be kept, as in tests, StateManager(memory=True) will do."
        )


def _check_environment(journals: list[str]) -> None:
    """Refuse a process whose hash seed cannot be told it."""
    if sys.flags.ignore_environment:
        raise ConfigError(
            f"{', '.join(journals)}: a journal is replayed under the hash seed of its "
            "data folder (PYTHONHASHSEED), and this Python was told to ignore its "
            "environment (-E or -I). Start it without that option."
        )


def _warn_of_strangers(store: SqliteStore, shared: Catalogue) -> None:
    """Say which stored objects nobody can call: their class may have been renamed."""
    for name in store.class_names():
        record = shared.get(name)
        if record is not None and not record.durable:
            log.warning(
                "There are stored objects of %r, which is shared with durable=False "
                "now: they are left alone, and its objects begin anew.",
                name,
            )
        elif record is None:
            log.warning(
                "There are stored objects of %r, which no class is shared as. Name its "
                "module with --objects, or, if the class was renamed, share it with "
                "aliases=(%r,).",
                name,
                name,
            )


def _journals(shared: Catalogue) -> list[str]:
    """Return the names of the journalled classes of the user's own."""
    return [
        record.name
        for record in shared.records()
        if record.durable == "journal" and not record.ready_made
    ]


def _take_standard_output() -> TextIO:
    """Return standard output; what is printed from now on goes to standard error.

    Whoever started the manager waits for its one line there; what a shared class prints
    belongs beside the log, and is there at once, as the log is. A character that cannot
    be printed fails no method.
    """
    if sys.stdout is None:
        # Whoever started this process has closed it; its number may be another file's.
        return open(os.devnull, "w", encoding="utf-8")
    # The line holds a path, which may be no text in the encoding of the terminal.
    report = os.fdopen(
        os.dup(1),
        "w",
        encoding=sys.getfilesystemencoding(),
        errors=sys.getfilesystemencodeerrors(),
    )
    sys.stdout.flush()
    os.dup2(2, 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    return report


def stop_on_signals(
    stop: Callable[[], None], *, ignore_interrupts: bool = False
) -> Callable[[], None]:
    """Call ``stop`` on SIGTERM and SIGINT; a second one ends the process at once.

    So does SIGHUP, when the terminal is closed, unless somebody has a use for it or has
    it ignored (``nohup``); several of it may come. ``ignore_interrupts``: SIGINT does
    nothing. Returns a function that puts the former handlers back.
    """
    asked = False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if asked:
            log.warning("Stopped at once, by a second signal.")
            os._exit(128 + number)
        asked = True
        stop()

    def hang_up(_number: int, _: FrameType | None) -> None:
        stop()

    former = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, handle),
        signal.SIGINT: signal.signal(
            signal.SIGINT, signal.SIG_IGN if ignore_interrupts else handle
        ),
    }
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        former[signal.SIGHUP] = signal.signal(signal.SIGHUP, hang_up)

    def restore() -> None:
        if restore in _restorers:
            _restorers.remove(restore)
            for number, handler in former.items():
                signal.signal(number, handler)

    _restorers.append(restore)
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


def _key(settings: ManagerSettings) -> bytes:
    key = configuration.read_authkey(settings, os.environ)
    if key is None:
        path = settings.authkey_file or settings.data_dir / KEY_FILE
        key = _new_key(path)
        log.info("A new key was written to %s.", path)
    return key


def _admin_key(data_dir: Path) -> bytes:
    path = data_dir / ADMIN_KEY_FILE
    return configuration.read_key_file(path) or _new_key(path)


def _new_key(path: Path) -> bytes:
    try:
        return make_key_file(path)
    except FileExistsError as error:
        raise ConfigError(
            f"The key file {path} is a link that leads nowhere; delete it so that the "
            "manager makes a key."
        ) from error


def _write_address(data_dir: Path, address: Address) -> None:
    """Let clients that know the data folder find the manager; whole or not at all."""
    try:
        write_whole(data_dir / ADDRESS_FILE, os.fsencode(f"{address}\n"))
    except OSError as error:
        raise ConfigError(
            f"The address cannot be written to {data_dir}: {error}."
        ) from error


def _limits(record: type[Limits], settings: ManagerSettings) -> Limits:
    """Return the limits of one room, each of which is a setting of the same name."""
    return record(**{name: getattr(settings, name) for name in record._fields})


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # What is given back after it is worth more than the file.
        log.warning("%s cannot be removed: %s.", path, error)
