"""Serving a file to processes that are not children: a Unix socket with a name."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pgalloc import _core
from pgalloc.arguments import checked_flag
from pgalloc.errors import OptionError
from pgalloc.sharing import protocol
from pgalloc.sharing.broker import broker
from pgalloc.sharing.channel import Listener
from pgalloc.sharing.connection import Connection
from pgalloc.sharing.peer import PeerFile
from pgalloc.sharing.protocol import Op
from pgalloc.sharing.session import Lookup, Scope
from pgalloc.uncopyable import Uncopyable

if TYPE_CHECKING:
    from typing import Self

    from pgalloc.memory_file import MemoryFile

_NO_SECRET = bytes(protocol.NONCE_BYTES)


class Server(Uncopyable):
    """Lets other processes of the same user in, until :meth:`close` or the end of the program.

    Get one from :meth:`MemoryFile.serve`. Peers that are connected stay connected.
    """

    _instead_of_copying = "serve() at another path"
    _instead_of_pickling = "give its path to the other process, which can connect()"

    def __init__(
        self, file: MemoryFile, path: Any, *, readonly: bool, lookup: Lookup | None = None
    ) -> None:
        if not isinstance(file, _core.MemoryFile):
            raise TypeError(f"expected a MemoryFile, not {type(file).__name__}")
        if not (lookup is None or callable(lookup)):
            raise TypeError("lookup must be callable")
        file._check_usable()
        checked_flag(readonly, "readonly")
        self.path = _checked_path(os.fsdecode(path))
        self._pid = os.getpid()
        self._socket: socket.socket | None = _listen(self.path)
        self._identity = _identity(self.path)
        self._listener: Listener = broker.add_listener(self._socket, Scope(file, readonly, lookup))

    def close(self) -> None:
        """Accept no more peers, and remove the socket."""
        sock, self._socket = self._socket, None
        if sock is None:
            return
        if os.getpid() == self._pid:  # in a forked child it is the parent's
            broker.remove_listener(self._listener)
            with suppress(OSError):
                if _identity(self.path) == self._identity:
                    os.unlink(self.path)
        sock.close()

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._socket is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_socket", None) is not None:
            self.close()

    def __repr__(self) -> str:
        return f"<Server {self.path!r}{' closed' if self.closed else ''}>"


def connect(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> PeerFile:
    """The file that another process serves at this path: allocate, map and release pages there.

    Its ``close()`` ends the connection; the owner takes back what this process held, as it does
    when this process dies. Raises OwnerGoneError if no process serves there, or it refuses this
    process; OSError.
    """
    connection, name, _has_cache = open_served(path)
    try:
        file = PeerFile(connection, name, owns_connection=True)
    except BaseException:
        connection.close()
        raise
    connection.files[name] = file
    return file


def open_served(path: Any) -> tuple[Connection, int, bool]:
    """A connection to the server there, the name of the file, and whether there is a cache."""
    connection = Connection.open(_checked_path(os.fsdecode(path)), _NO_SECRET, None)
    try:
        name, has_cache = protocol.fields(protocol.SERVED, connection.request(Op.SERVED))
    except BaseException:
        connection.close()
        raise
    return connection, name, bool(has_cache)


def _checked_path(path: str) -> str:
    if "\0" in path or not path:
        raise OptionError("the path of a socket must not be empty, nor have a NUL byte")
    return path


def _listen(path: str) -> socket.socket:
    """A socket with this name, for its user only. Takes the place of one that no process serves."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_deserted(path):
                raise
            os.unlink(path)
            listener.bind(path)
        os.chmod(path, 0o600)  # no process can connect before listen()
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_deserted(path: str) -> bool:
    """Whether it is a socket that was left behind by a process that is gone."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
