"""The BaseManager face: what code written for ``multiprocessing.managers`` sees.

``StateManager`` is a ``BaseManager``; its server is a ``Service``, its clients' proxies
are handles. Written anew where the standard library's would count references, name
objects by memory address, or start a thread for each connection.
"""

from __future__ import annotations

import builtins
import multiprocessing
import multiprocessing.managers
import multiprocessing.util
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar, overload

from .addresses import Address, parse_address
from .client import Client, connect
from .data_folder import KEY_FILE, write_whole
from .errors import ConfigError, Refused
from .objects import add_ready_made
from .service import Service, stop_on_signals
from .settings import ManagerSettings, checked_key
from .sharing import Catalogue, catalogue, describe_class, describe_factory

T = TypeVar("T")

_START_TIMEOUT_S = 30.0


class Server:
    """What ``StateManager.get_server`` returns: a service that runs in this process.

    ``own_folder``: its temporary data folder, if it has one.
    """

    def __init__(self, service: Service, own_folder: Path | None = None) -> None:
        self._service = service
        # Also run when this server is collected, and before this process ends.
        self._end = multiprocessing.util.Finalize(
            self, _end_service, args=(service, own_folder), exitpriority=0
        )
        try:
            self.address: str | tuple[str, int] = service.start().stock
        except BaseException:
            self._end()
            raise

    def serve_forever(self) -> None:
        """Serve until ``stop`` is called or the process is told to end."""
        restore = None
        if threading.current_thread() is threading.main_thread():
            restore = stop_on_signals(self._service.request_stop)
        try:
            self._service.wait()
        except (KeyboardInterrupt, SystemExit):
            pass
        finally:
            self._end()
            if restore is not None:
                restore()

    def stop(self) -> None:
        """Have ``serve_forever`` return, after the running calls have ended."""
        self._service.request_stop()


class _StartedServer:
    """The process that ``StateManager.start`` made, and its temporary folder, if any.

    It ends when told to, when nobody can call it any more (neither the manager nor a
    handle of it is left), and before this process ends.
    """

    def __init__(
        self, process: Any, leash: Connection, own_folder: Path | None, timeout_s: float
    ) -> None:
        self.process = process
        self.own_folder = own_folder
        self.end = multiprocessing.util.Finalize(
            self,
            _end_process,
            args=(process, leash, own_folder, timeout_s),
            exitpriority=0,
        )


class StateManager(multiprocessing.managers.BaseManager):
    """A ``BaseManager`` whose objects are shared by name, each call whole and alone.

    ``address``: a path, ``(host, port)`` or a URL; ``authkey``: the key, bytes. With
    neither, the data folder says both. ``data_dir``: where keys and socket live; a
    temporary folder for a manager that is started here, unless given.
    ``shutdown_timeout``: seconds for running calls to end. ``allow_wildcard``: permit
    an address that any machine can reach. ``memory``: keep nothing on disk, as is
    right for tests.
    """

    def __init__(
        self,
        address: str | tuple[str, int] | os.PathLike[str] | None = None,
        authkey: bytes | str | None = None,
        serializer: str = "pickle",
        ctx: Any = None,
        *,
        shutdown_timeout: float = 10.0,
        data_dir: str | os.PathLike[str] | None = None,
        allow_wildcard: bool = False,
        memory: bool = False,
    ) -> None:
        if serializer != "pickle":
            raise ConfigError(
                f"The serializer {serializer!r} is not offered; the wire is the "
                "checked pickle that stock clients use by default."
            )
        key = None if authkey is None else checked_key(authkey)
        super().__init__(None, key, serializer, ctx)
        self._given_key = key
        self._given_address = None if address is None else parse_address(address)
        self._where = self._given_address
        self._given_folder = None if data_dir is None else Path(data_dir)
        #: The data folder of the server that was made here, or the one given.
        self._data_dir = self._given_folder
        self._client: Client | None = None
        self._started: _StartedServer | None = None
        self._stop_timeout_s = shutdown_timeout
        self._allow_wildcard = allow_wildcard
        self._memory = memory
        self._context = ctx or multiprocessing.get_context()

    @classmethod
    def register(
        cls,
        typeid: str,
        callable: Callable[..., Any] | None = None,
        proxytype: Any = None,
        exposed: Iterable[str] | None = None,
        method_to_typeid: Any = None,
        create_method: bool = True,
    ) -> None:
        """Share a class or a factory as ``typeid``, in this manager's server.

        Without ``callable`` only the method is made, for clients. ``proxytype`` and
        ``method_to_typeid`` have no use here and are accepted for the sake of old code.
        """
        if hasattr(cls, typeid) and typeid not in _registered(cls):
            raise ConfigError(
                f"{typeid!r} cannot be registered: managers have a method of that name."
            )
        shown = None if exposed is None else tuple(exposed)
        if callable is not None:
            if not builtins.callable(callable):
                raise ConfigError(
                    f"{typeid!r} cannot be registered with {callable!r}: what makes "
                    "its objects is a class or a function."
                )
            record = (
                describe_class(callable, name=typeid, exposed=shown, durable=False)
                if isinstance(callable, type)
                else describe_factory(callable, name=typeid, exposed=shown)
            )
            _registered(cls)[typeid] = record
        else:
            _registered(cls).setdefault(typeid, None)
        if create_method:

            def get(
                self: StateManager, key: str = "default", *args: Any, **kwargs: Any
            ) -> Any:
                if args or kwargs or not isinstance(key, str):
                    raise Refused(
                        f"{typeid}() takes at most the key of an object, which is "
                        "text: the manager builds the objects, without arguments. To "
                        f"give them some, register {typeid!r} with a function that "
                        "does."
                    )
                return self.get(typeid, key)

            get.__name__ = typeid
            get.__qualname__ = f"{cls.__qualname__}.{typeid}"
            get.__doc__ = f"Return a handle of the object ``key`` of {typeid}."
            setattr(cls, typeid, get)

    @overload
    def get(self, cls: type[T], key: str = ...) -> T: ...

    @overload
    def get(self, cls: str, key: str = ...) -> Any: ...

    def get(self, cls: Any, key: str = "default") -> Any:
        """Return a handle of the object ``key`` of a class."""
        return self._connected().get(cls, key)

    @property
    def address(self) -> str | tuple[str, int] | None:
        """Return where the manager listens, as the standard library spells it."""
        return None if self._where is None else self._where.stock

    def connect(self) -> None:
        """Connect to a manager that is running; raise when it does not answer."""
        client = self._make_client()
        client.ping()
        self._client = client

    def get_server(self) -> Server:  # type: ignore[override]
        """Return a server for this process; call its ``serve_forever``."""
        settings, own_folder = self._settings()
        service = Service(settings, self._given_key, self._shared())
        server = Server(service, own_folder)
        self._data_dir = settings.data_dir
        self._where = parse_address(server.address)
        return server

    def start(
        self, initializer: Callable[..., object] | None = None, initargs: Any = ()
    ) -> None:
        """Start a process that serves the objects, and connect to it.

        The process ends with this one. Raises ``ConfigError`` with the child's reason
        when it cannot start.
        """
        if self._started is not None:
            raise ConfigError("The manager has been started already.")
        shared = self._shared()
        ours, theirs = self._context.Pipe()
        settings, own_folder = self._settings()
        process = self._context.Process(
            target=_serve,
            args=(
                (ours, theirs),
                settings,
                self._given_key,
                shared,
                own_folder,
                initializer,
                initargs,
            ),
            name=f"{type(self).__name__}-server",
        )
        try:
            process.start()
        except BaseException:
            ours.close()
            _remove(own_folder)
            raise
        finally:
            theirs.close()
        self._started = _StartedServer(
            process, ours, own_folder, self._stop_timeout_s + 5
        )
        self._data_dir = settings.data_dir
        self._where = self._await_child(ours)
        self._client = self._make_client()
        # As long as there is a handle there is somebody who may call.
        self._client.keeps = self._started

    def _await_child(self, pipe: Connection) -> Address:
        try:
            if not pipe.poll(_START_TIMEOUT_S):
                self.shutdown()
                raise ConfigError(
                    f"The manager was not ready after {_START_TIMEOUT_S:g} s."
                )
            outcome, text = pipe.recv()
        except EOFError:
            self.shutdown()
            raise ConfigError("The manager's process ended while it started.") from None
        if outcome != "ready":
            self.shutdown()
            raise ConfigError(f"The manager could not start: {text}")
        return parse_address(text)

    def shutdown(self) -> None:  # type: ignore[override]
        """Stop the process that ``start`` made; without one, only disconnect."""
        self.close()
        if self._started is not None:
            self._started.end()
            self._started = None
            self._where, self._data_dir = self._given_address, self._given_folder

    def join(self, timeout: float | None = None) -> None:
        """Wait for the process that ``start`` made."""
        if self._started is not None:
            self._started.process.join(timeout)

    def close(self) -> None:
        """Close this manager's connections; the server goes on."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def __enter__(self) -> StateManager:
        """Start a server, unless connected to one."""
        if self._client is None and self._started is None:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server that was started here; disconnect from any other."""
        self.shutdown()

    def _connected(self) -> Client:
        if self._client is None:
            raise ConfigError(
                "The manager is not connected: call start() or connect()."
            )
        return self._client

    def _make_client(self) -> Client:
        return connect(
            None if self._where is None else str(self._where),
            self._given_key,
            data_dir=self._data_dir,
        )

    def _settings(self) -> tuple[ManagerSettings, Path | None]:
        """Return the settings of a new server, and its temporary folder, if any."""
        folder, own_folder = self._given_folder, None
        if folder is None:
            folder = own_folder = Path(tempfile.mkdtemp(prefix="state-server-"))
            key = self._given_key
            # For handles that are unpickled in other processes. What a file cannot
            # hold is left to those that inherit the key.
            if key is not None and key == key.strip(b"\r\n"):
                write_whole(own_folder / KEY_FILE, key)
        settings = ManagerSettings(
            data_dir=folder,
            address=None if self._given_address is None else str(self._given_address),
            drain_timeout_s=self._stop_timeout_s,
            allow_wildcard=self._allow_wildcard,
            memory=self._memory,
        )
        return settings, own_folder

    def _shared(self) -> Catalogue:
        """Return the classes of ``share`` and those registered with this class."""
        shared = catalogue.copy()
        for cls in reversed(type(self).__mro__):
            for record in vars(cls).get("_state_server_registered", {}).values():
                if record is not None:
                    shared.add(record)
        add_ready_made(shared)
        return shared


def _registered(cls: type) -> dict[str, Any]:
    """Return what was registered with this class itself, not with its bases."""
    if "_state_server_registered" not in vars(cls):
        cls._state_server_registered = {}  # type: ignore[attr-defined]
    return vars(cls)["_state_server_registered"]  # type: ignore[no-any-return]


def _end_service(service: Service, own_folder: Path | None) -> None:
    """Stop the server of this process."""
    service.stop()
    _remove(own_folder)


def _end_process(
    process: Any, leash: Connection, own_folder: Path | None, timeout_s: float
) -> None:
    """Tell the server's process to stop, and wait until it has."""
    try:
        leash.send_bytes(b"stop")
    except OSError:
        # It has ended already; nothing is left but to collect it.
        pass
    leash.close()
    process.join(timeout_s)
    if process.is_alive():
        process.kill()
        process.join()
    # It has removed its folder, unless it was killed.
    _remove(own_folder)


def _remove(own_folder: Path | None) -> None:
    if own_folder is not None:
        shutil.rmtree(own_folder, ignore_errors=True)


def _serve(
    pipe: tuple[Connection, Connection],
    settings: ManagerSettings,
    key: bytes | None,
    shared: Catalogue,
    own_folder: Path | None,
    initializer: Callable[..., object] | None,
    initargs: Any,
) -> None:
    """Be the server's process: say ready or why not, then serve until let go."""
    parents_end, ours = pipe
    # A copy of the parent's end would keep the pipe open after the parent's death.
    parents_end.close()
    service = Service(settings, key, shared)
    # Ctrl-C reaches the whole family; the parent says when the last call was made.
    stop_on_signals(service.request_stop, ignore_interrupts=True)
    try:
        try:
            if initializer is not None:
                initializer(*initargs)
            address = service.start()
        except Exception as error:
            # The border of the child's life: the parent is told, and raises it.
            said = str(error) if isinstance(error, ConfigError) else repr(error)
            ours.send(("failed", said))
            return
        ours.send(("ready", str(address)))
        _stop_when_let_go(ours, service.request_stop)
        service.wait()
    finally:
        service.stop()
        # The parent may be dead.
        _remove(own_folder)


def _stop_when_let_go(leash: Connection, stop: Callable[[], None]) -> None:
    """Call ``stop`` when the parent says so, or is dead."""

    def watch() -> None:
        try:
            leash.recv_bytes()
        except (EOFError, OSError):
            pass
        stop()

    threading.Thread(target=watch, name="state-server-parent", daemon=True).start()
