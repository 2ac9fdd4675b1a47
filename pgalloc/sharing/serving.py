"""Serving a file to processes that are not children: a Unix socket with a name."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pgalloc import _core
from pgalloc.arguments import checked_flag, checked_timeout
from pgalloc.errors import OptionError
from pgalloc.sharing import protocol
from pgalloc.sharing.connection import Connection
from pgalloc.sharing.limits import Limits, native_limits
from pgalloc.sharing.peer import PeerFile
from pgalloc.sharing.protocol import Op
from pgalloc.uncopyable import Uncopyable

if TYPE_CHECKING:
    from typing import Self

    from pgalloc.memory_file import MemoryFile


class Server(Uncopyable, _core.Server):
    """Lets other processes of the same user in: until :meth:`close`, or that of its file or cache.

    Get one from :meth:`MemoryFile.serve` or :meth:`Cache.serve`, which keep it: it need not be
    assigned to anything. At the end of the program it is closed. Peers that are connected stay so.
    """

    _instead_of_copying = "serve() at another path"
    _instead_of_pickling = "give its path to the other process, which can connect()"

    def __init__(
        self,
        file: MemoryFile,
        path: Any,
        *,
        readonly: bool,
        cache: _core.CacheStore | None = None,
        limits: Limits | None = None,
    ) -> None:
        if hasattr(self, "path"):
            raise RuntimeError("this Server is constructed already")
        if not isinstance(file, _core.MemoryFile):
            raise TypeError(f"expected a MemoryFile, not {type(file).__name__}")
        file._check_usable()
        checked_flag(readonly, "readonly")
        self.path = _checked_path(os.fsdecode(path))
        super().__init__(
            os.fsencode(os.path.abspath(self.path)),  # it may be closed elsewhere
            file,
            readonly,
            cache,
            native_limits(limits),
        )
        _servers.add(self)

    def __enter__(self) -> Self:
        return self

    def __repr__(self) -> str:
        return f"<Server {self.path!r}{' closed' if self.closed else ''}>"


class Servers:
    """The servers of one file or cache: it keeps them, and closes them when it is closed."""

    def __init__(self) -> None:
        self._open: set[Server] = set()

    def add(self, make: Callable[[], Server]) -> Server:
        """Keep a new one, unless a signal handler raises meanwhile. Returns it."""
        server = make()
        try:
            for known in list(self._open):
                if known.closed:
                    self._open.discard(known)
            self._open.add(server)
        except BaseException:
            server.close()
            raise
        return server

    def close(self) -> None:
        """Close all."""
        for server in list(self._open):
            server.close()
        self._open.clear()


def connect(
    path: str | bytes | os.PathLike[str] | os.PathLike[bytes], *, timeout: float | None = None
) -> PeerFile:
    """The file that another process serves at this path: allocate, map and release pages there.

    Its ``close()`` gives back what this process holds, but what is viewed; the owner takes all back
    when this process dies. A request that is not answered within ``timeout`` seconds (None: 60)
    raises SharingError; what it would have brought is given back when the answer comes. Raises
    OwnerGoneError if no process serves there, or it refuses this process; SharingError if it lets
    no process in for so long; OSError.
    """
    connection, name, _has_cache = open_served(path, checked_timeout(timeout))
    try:
        file = PeerFile(connection, name, owns_connection=True)
    except BaseException:
        connection.close()
        raise
    connection.files[name] = file
    return file


def open_served(path: Any, timeout: float | None) -> tuple[Connection, int, bool]:
    """A connection to the server there, the name of the file, and whether there is a cache."""
    connection = Connection.to_server(_checked_path(os.fsdecode(path)), timeout)
    try:
        name, has_cache = protocol.fields(protocol.SERVED, connection.request(Op.SERVED))
    except BaseException:
        connection.close()
        raise
    return connection, name, bool(has_cache)


def _checked_path(path: str) -> str:
    if "\0" in path or not path:
        raise OptionError("the path of a socket must not be empty, nor have a NUL byte")
    longest = protocol.SOCKET_PATH_BYTES_MAX
    if (length := len(os.fsencode(path))) > longest:
        raise OptionError(
            f"the path of a socket has {longest} bytes at most, and this one has {length}: {path}"
        )
    return path


# The native server goes with its object; at the end of the program objects may not go.
_servers: weakref.WeakSet[Server] = weakref.WeakSet()


def _close_all() -> None:
    for server in list(_servers):
        server.close()


atexit.register(_close_all)
