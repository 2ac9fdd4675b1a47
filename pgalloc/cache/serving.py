"""A cache that one process fills and others read, without copying.

A value that is read elsewhere is held there by a lease, and here by a view: its pages are neither
discarded nor used for something else before the reader has let go of it, or has died.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from pgalloc.arguments import checked_timeout
from pgalloc.cache.keys import Key, check_key, decode_served_key, encode_served_key, is_key
from pgalloc.errors import ClosedError, SharingError, SnapshotCorruptError
from pgalloc.sharing import PeerFile, Server
from pgalloc.sharing.lookups import Value
from pgalloc.sharing.protocol import ProtocolError
from pgalloc.sharing.serving import open_served
from pgalloc.uncopyable import Uncopyable

if TYPE_CHECKING:
    from typing import Self

    from pgalloc.cache.mapping import Cache

T = TypeVar("T")


def _decoded(encoded: bytes) -> Key:
    try:
        return decode_served_key(encoded)
    except SnapshotCorruptError as error:
        raise ProtocolError(f"a malformed key: {error}") from None


def serve(cache: Cache, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> Server:
    """See Cache.serve()."""
    this = weakref.ref(cache)  # or the Server would keep the cache

    def look_up(encoded: bytes) -> Value | None:
        cache = this()
        return None if cache is None else _look_up(cache, _decoded(encoded))

    return Server(cache.file, path, readonly=True, lookup=look_up)


def _look_up(cache: Cache, key: Key) -> Value | None:
    """Called by the broker."""
    found = cache._store.look_up(key)
    return None if found is None else Value(cache.file, *found)


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
        connection, name, has_cache = open_served(path, checked_timeout(timeout))
        try:
            if not has_cache:
                raise SharingError(f"no cache is served at {os.fsdecode(path)!r}")
            self._file = PeerFile(connection, name, owns_connection=True)
        except BaseException:
            connection.close()
            raise
        connection.files[name] = self._file

    @overload
    def get(self, key: Key) -> memoryview | None: ...
    @overload
    def get(self, key: Key, default: T) -> memoryview | T: ...
    def get(self, key: Key, default: Any = None) -> Any:
        """The value as a read-only view, or ``default`` if there is none, as of what is no key.

        Raises OwnerGoneError when the cache's process has ended, ClosedError. A key may have a
        mebibyte and 1024 parts at most: SharingError.
        """
        file = self._file
        if file.closed:
            raise ClosedError("the CacheReader is closed")
        file._check_usable()
        found = file._remote_value(encode_served_key(key)) if is_key(key) else None
        if found is None:
            return default
        pages, start, stop = found
        return pages.view(readonly=True)[start:stop]

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

    def __contains__(self, key: Key) -> bool:
        return self.get(key) is not None

    def __iter__(self) -> NoReturn:
        raise TypeError("a CacheReader cannot be iterated over: keys() of the Cache itself can")

    def __len__(self) -> NoReturn:
        raise TypeError("a CacheReader does not know how many values there are")

    def __bool__(self) -> bool:
        return True

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._file.closed

    def close(self) -> None:
        """No more values are read. Views stay valid and unchanged as long as they are held."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{' closed' if self.closed else ''}>"
