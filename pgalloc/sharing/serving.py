"""Serving a file to processes that are not children: a Unix socket with a name."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import TYPE_CHECKING, Any

from pgalloc import _core
from pgalloc.arguments import checked_flag, checked_timeout
from pgalloc.errors import OptionError
from pgalloc.sharing import protocol
from pgalloc.sharing.connection import Connection
from pgalloc.sharing.limits import Limits, native_limits
from pgalloc.sharing.lookups import Lookup, LookupThread
from pgalloc.sharing.peer import PeerFile
from pgalloc.sharing.protocol import Op
from pgalloc.uncopyable import Uncopyable

if TYPE_CHECKING:
    from typing import Self

    from pgalloc.memory_file import MemoryFile


class Server(Uncopyable):
    """Lets other processes of the same user in, until :meth:`close` or the end of the program.

    Get one from :meth:`MemoryFile.serve`. Peers that are connected stay connected.
    """

    _instead_of_copying = "serve() at another path"
    _instead_of_pickling = "give its path to the other process, which can connect()"

    def __init__(
        self,
        file: MemoryFile,
        path: Any,
        *,
        readonly: bool,
        lookup: Lookup | None = None,
        limits: Limits | None = None,
    ) -> None:
        if not isinstance(file, _core.MemoryFile):
            raise TypeError(f"expected a MemoryFile, not {type(file).__name__}")
        if not (lookup is None or callable(lookup)):
            raise TypeError("lookup must be callable")
        file._check_usable()
        checked_flag(readonly, "readonly")
        self.path = _checked_path(os.fsdecode(path))
        lookups = None if lookup is None else LookupThread(lookup)
        self._lookups = lookups
        self._server = _core.Server(
            os.fsencode(os.path.abspath(self.path)),  # it may be closed elsewhere
            file,
            readonly,
            None if lookups is None else lookups.questions,
            native_limits(limits),
        )
        _servers.add(self)
        if lookups is not None:
            weakref.finalize(self, lookups.close)  # its thread does not keep this alive
            lookups.start()

    def close(self) -> None:
        """Accept no more peers, and remove the socket."""
        if hasattr(self, "_server"):
            self._server.close()
        if self._lookups is not None:
            self._lookups.close()

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._server.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Server {self.path!r}{' closed' if self.closed else ''}>"


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
