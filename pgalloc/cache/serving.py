"""A cache that one process fills and others read, without copying.

A reader looks values up by itself, in the cache's index and file, which it has mapped: it sends no
message, and the owner may do whatever it does. A value that it holds is neither discarded nor used
for something else before it has let go of it, or has died.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from pgalloc import _core
from pgalloc.arguments import checked_timeout
from pgalloc.cache.keys import Key, check_key
from pgalloc.errors import SharingError
from pgalloc.sharing import PeerFile, Server
from pgalloc.sharing.serving import open_served
from pgalloc.uncopyable import Uncopyable

if TYPE_CHECKING:
    from typing import Self

    from pgalloc.cache.mapping import Cache

T = TypeVar("T")


def serve(cache: Cache, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> Server:
    """See Cache.serve()."""
    return Server(cache.file, path, readonly=True, cache=cache._store)


class CacheReader(Uncopyable):
    """Another process's Cache: reads what is there. Get one from :meth:`Cache.connect`.

    Values are read-only memoryviews of the other process's pages; they stay valid and unchanged as
    long as they are held, also when the cache has dropped them, and when its process has ended.
    All methods may be called from any thread.
    """

    _instead_of_copying = _instead_of_pickling = "call Cache.connect() again"

    def __init__(
        self,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        timeout: float | None = None,
    ) -> None:
        self._closed = False
        connection, name, has_cache = open_served(path, checked_timeout(timeout))
        try:
            if not has_cache:
                raise SharingError(f"no cache is served at {os.fsdecode(path)!r}")
            self._file = PeerFile(connection, name, owns_connection=True)
        except BaseException:
            connection.close()
            raise
        connection.files[name] = self._file
        try:
            self._store = _core.RemoteCache(self._file)
        except BaseException:
            self._file.close()
            raise

    @overload
    def get(self, key: Key) -> memoryview | None: ...
    @overload
    def get(self, key: Key, default: T) -> memoryview | T: ...
    def get(self, key: Key, default: Any = None) -> Any:
        """The value as a read-only view, or ``default`` if there is none, as of what is no key.

        What was there when the owner ended is still found. Raises ClosedError, also when the owner
        has closed the Cache, and ForkedError in a forked child.
        """
        view = self._store.get(key)
        return default if view is None else view

    @overload
    def get_bytes(self, key: Key) -> bytes | None: ...
    @overload
    def get_bytes(self, key: Key, default: T) -> bytes | T: ...
    def get_bytes(self, key: Key, default: Any = None) -> Any:
        """A copy of the value as bytes, or ``default`` if there is none. Raises as get()."""
        view = self.get(key)
        return default if view is None else view.tobytes()

    def __getitem__(self, key: Key) -> memoryview:
        view = self.get(key)
        if view is None:
            check_key(key)
            raise KeyError(key)
        return view

    def __contains__(self, key: object) -> bool:
        """Whether there is a value: not counted."""
        return self._store.contains(key)

    def __iter__(self) -> NoReturn:
        raise TypeError("a CacheReader cannot be iterated over: keys() of the Cache itself can")

    def __len__(self) -> NoReturn:
        raise TypeError("a CacheReader does not know how many values there are")

    def __bool__(self) -> bool:
        return True

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def close(self) -> None:
        """No more values are read. Views stay valid and unchanged as long as they are held."""
        self._closed = True
        self._store.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{' closed' if self.closed else ''}>"
