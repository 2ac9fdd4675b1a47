"""Cache: a mapping from keys to bytes on discardable memory, for one process or many.

Thread safety: every method may be called from any thread. What is done to the values is done in the
core, each call as a whole; Python code of the caller's runs outside of it.

Invariants:
  1. The pages held, with what the index takes beyond an eighth of them, are at most ``maxsize``
     between calls.
  2. What the core has discarded is a miss at once, in all processes; ``on_discard`` hears of it
     from a later call.
  3. One process owns a cache. Others (forked children, and those that connect) find values without
     it, and change them through it; it needs no Python for that.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, overload

from pgalloc import _core
from pgalloc.arguments import checked_timeout
from pgalloc.cache.keys import Key, check_key, check_tag
from pgalloc.cache.policy import Policy
from pgalloc.cache.snapshot import decode, encode
from pgalloc.cache.stats import CacheStats
from pgalloc.cache.values import Expire, TooLargeError, buffer_of, lifetime
from pgalloc.cache.views import CacheItems, CacheValues
from pgalloc.errors import (
    ClosedError,
    ForkedError,
    OptionError,
    OwnerGoneError,
    SharingError,
)
from pgalloc.memory_file import MemoryFile
from pgalloc.pressure import Monitor
from pgalloc.sharing import PeerFile, Server
from pgalloc.sharing.serving import Servers, open_served
from pgalloc.sizes import Headroom, parse_size
from pgalloc.uncopyable import Uncopyable

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")
_NO_DEFAULT: Any = object()


class Cache(MutableMapping[Key, memoryview], Uncopyable):
    """Keeps bytes as long as there is memory for them.

    Values live outside Python's heap. When a memory limit comes near, or ``maxsize`` is reached,
    those that are worth least go; reading one that has gone is a plain miss. So a cache may be
    given all the memory there is.

    * ``maxsize``: bytes (or "8G") to hold at most; None for as much as memory allows. Pages count,
      and what keys and index take beyond an eighth of that: with long keys or tiny values.
    * ``file``: the MemoryFile to live in; None for one of its own, which close() closes.
    * ``headroom``: what the process keeps free below each memory limit: "10%", or bytes.
    * ``policy``: which values go first.
    * ``on_discard``: called with each key whose value went because memory ran short, by the call
      that notices: not by the guard, which needs no Python to discard.
    * ``name``: under which the cache is saved with its file, see from_snapshot().

    Keys are str, bytes, int, or tuples of these. Values are any contiguous bytes-like objects;
    reading gives a read-only memoryview, which stays valid and unchanged as long as it is held,
    whatever becomes of the key, and keeps its memory for that time.

    A value of up to 3 KiB shares pages with others; a longer one has whole pages for itself.
    """

    _instead_of_copying = "dict(cache) has its values, and holds them"
    _instead_of_pickling = "serve() it, and Cache.connect() in the other process"

    def __init__(
        self,
        maxsize: str | SupportsIndex | None = None,
        *,
        file: MemoryFile | None = None,
        headroom: Headroom = "10%",
        policy: Policy | str = Policy.S3_FIFO,
        on_discard: Callable[[Key], object] | None = None,
        name: str | None = None,
    ) -> None:
        limit = None if maxsize is None else parse_size(maxsize, "maxsize")
        if limit is not None and limit < _core.PAGE_SIZE:
            raise OptionError(f"maxsize must be a page at least, {_core.PAGE_SIZE} bytes: {limit}")
        if not isinstance(policy, str):
            raise TypeError(f"policy must be a Policy or its name, not {type(policy).__name__}")
        try:
            self._policy = Policy(policy)
        except ValueError:
            names = ", ".join(repr(str(known)) for known in Policy)
            raise OptionError(f"policy must be one of {names}, not {policy!r}") from None
        if on_discard is not None and not callable(on_discard):
            raise TypeError("on_discard must be callable")
        if file is not None and not isinstance(file, MemoryFile):
            raise TypeError(f"file must be a MemoryFile, not {type(file).__name__}")
        if file is not None:
            file._check_usable()
        self._on_discard = on_discard
        self._owns_file = file is None
        self._name: str | None = None
        self._closed = False
        self._process = _core.process_generation()
        self._servers = Servers()
        self._monitor: Monitor | None = Monitor(headroom)
        try:
            self._file: MemoryFile | PeerFile = MemoryFile() if file is None else file
            self._store = _core.CacheStore(self._file, self._policy, limit, on_discard is not None)
        except BaseException:
            if self._owns_file and hasattr(self, "_file"):
                self._file.close()
            self._monitor.close()
            raise
        if name is not None:
            this = weakref.ref(self)  # or the file would keep the cache
            try:
                self._own_file().save_hook(name, save=lambda: encode(this()))
            except BaseException:
                self.close()
                raise
            self._name = name

    @classmethod
    def from_snapshot(cls, memory_file: MemoryFile, payload: bytes, **options: Any) -> Self:
        """The cache that was saved with a file, in the restored file: for the hook of its name.

        ``options`` are those of Cache(), but ``file``: the image does not record them, not even the
        policy. Values that are past their time, and, with a smaller ``maxsize``, those that do not
        fit, are left out. Raises SnapshotError.

        >>> caches = []
        >>> restore = lambda file, data: caches.append(Cache.from_snapshot(file, data))
        >>> file = MemoryFile.restore(path, hooks={"thumbnails": restore})  # doctest: +SKIP
        """
        if not isinstance(memory_file, MemoryFile):
            raise TypeError(f"expected a MemoryFile, not {type(memory_file).__name__}")
        with memoryview(payload) as view:
            payload = bytes(view)
        cache = cls(file=memory_file, **options)
        try:
            decode(cache, payload)
        except BaseException:
            cache.close()
            raise
        return cache

    # --- reading ---------------------------------------------------------------------------------

    def __getitem__(self, key: Key) -> memoryview:
        view = self._store.get(key)
        if view is None:
            self._tell()
            check_key(key)
            raise KeyError(key)
        return view

    @overload
    def get(self, key: Key) -> memoryview | None: ...
    @overload
    def get(self, key: Key, default: T) -> memoryview | T: ...
    def get(self, key: Key, default: Any = None) -> Any:
        """The value as a read-only view, or ``default`` if there is none, or none any more.

        Of what is no key there is none; where there is no default to give, that is a TypeError.
        """
        view = self._store.get(key)
        if view is None:
            self._tell()
            return default
        return view

    @overload
    def get_bytes(self, key: Key) -> bytes | None: ...
    @overload
    def get_bytes(self, key: Key, default: T) -> bytes | T: ...
    def get_bytes(self, key: Key, default: Any = None) -> Any:
        """A copy of the value as bytes, for what takes no memoryview; or ``default``, as get()."""
        view = self.get(key)
        return default if view is None else view.tobytes()

    def get_many(self, keys: Iterable[Key]) -> dict[Key, memoryview]:
        """The values of those keys that have one."""
        found = {key: view for key in keys if (view := self._store.get(key)) is not None}
        self._tell()
        return found

    def _look_again(self, key: Key) -> memoryview | None:
        """get() without counting a hit or a miss."""
        return self._store.look_again(key)

    def __contains__(self, key: object) -> bool:
        """Whether there is a value: not counted, and without weight for the policy."""
        there = self._store.contains(key)
        self._tell()
        return there

    def __len__(self) -> int:
        count = self._store.count()
        self._tell()
        return count

    def __iter__(self) -> Iterator[Key]:
        """The keys as they are now; changes meanwhile do no harm."""
        keys = self._store.keys()
        self._tell()
        return iter(keys)

    def items(self) -> CacheItems:
        """Keys and values as they are now, one by one; one that goes meanwhile is left out."""
        return CacheItems(self)

    def values(self) -> CacheValues:
        """The values as they are now, one by one; one that goes meanwhile is left out."""
        return CacheValues(self)

    # --- writing ---------------------------------------------------------------------------------

    def __setitem__(self, key: Key, data: Any) -> None:
        self._put(key, data, None, None)
        self._tell()

    def put(
        self, key: Key, data: Any, *, expire: Expire | None = None, tag: Key | None = None
    ) -> None:
        """Set a value, in place of the one there may be.

        ``expire``: seconds (any real number, or a timedelta) after which it is gone. ``tag``: what
        evict_tag() knows it by.

        Room is made first: for ``maxsize`` by evicting, for the memory limits by discarding. In
        place of another value it needs room for the difference only.
        Raises ValueError if the value alone exceeds ``maxsize``, TypeError for what is no key or no
        bytes, OutOfMemoryError if there is no room whatever is given up. The old value is then
        still there.
        """
        self._put(key, data, lifetime(expire), tag)
        self._tell()

    def add(
        self, key: Key, data: Any, *, expire: Expire | None = None, tag: Key | None = None
    ) -> bool:
        """put() unless there is a value. Whether it was set: of several at once, one is told so."""
        added = self._put(key, data, lifetime(expire), tag, keep=True)
        self._tell()
        return added

    def put_many(
        self,
        items: Mapping[Key, Any] | Iterable[tuple[Key, Any]],
        *,
        expire: Expire | None = None,
        tag: Key | None = None,
    ) -> None:
        """put() for each item of a mapping, or for each pair of a key and its data.

        What an exception leaves is set as far as it came.
        """
        seconds = lifetime(expire)
        if tag is not None:
            check_tag(tag)
        for key, data in items.items() if isinstance(items, Mapping) else items:
            self._put(key, data, seconds, tag)
        self._tell()

    def incr(self, key: Key, delta: int = 1, *, initial: int | None = None) -> int:
        """Add to a number, and return it: in all processes no two calls see the same.

        A number is a value of decimal digits, as get() shows; ``initial`` is what to begin with if
        there is none. Time and tag stay. Raises KeyError without a value and ``initial``,
        ValueError for a value that is no number, or a sum beyond 64 bits.
        """
        if not (type(delta) is int and (initial is None or type(initial) is int)):
            raise TypeError("delta and initial must be int")
        if not all(-(2**63) <= n < 2**63 for n in (delta, initial or 0)):
            raise ValueError("delta and initial must fit into 64 bits")
        number = self._store.increment(key, delta, initial)
        self._tell()
        if number is NotImplemented:
            check_key(key)
        if number is None:
            raise KeyError(key)
        if number is False:
            raise ValueError("the value is no number, or the sum does not fit into 64 bits")
        return int(number)

    def touch(self, key: Key, expire: Expire | None = None) -> bool:
        """Have a value expire in so many seconds from now; None: never. Whether there is one."""
        there = self._store.touch(key, lifetime(expire))
        self._tell()
        return there

    def _put(
        self, key: Key, data: Any, seconds: float | None, tag: Key | None, keep: bool = False
    ) -> bool:
        """Whether it was set: not if there is a value, with ``keep``."""
        kind = type(data)
        if kind is bytes or kind is bytearray:
            refused = self._store.put(key, data, seconds, tag, keep)
        else:
            with buffer_of(data) as view:
                if view.c_contiguous:
                    refused = self._store.put(key, view, seconds, tag, keep)
                elif self.maxsize is not None and view.nbytes > self.maxsize:
                    refused = view.nbytes  # without a copy of it
                else:
                    refused = self._store.put(key, view.tobytes(), seconds, tag, keep)
        if refused is None:
            return True
        if refused is False:
            return False
        check_key(key)
        if tag is not None:
            check_tag(tag)
        raise TooLargeError(
            f"value too large: {memoryview(data).nbytes} bytes, counted as {refused} with their "
            f"key, do not fit into maxsize, {self.maxsize} bytes"
        )

    def __delitem__(self, key: Key) -> None:
        found = self._remove(key)
        self._tell()
        if not found:
            check_key(key)
            raise KeyError(key)

    def _remove(self, key: Key) -> bool:
        return self._store.remove(key)

    def setdefault(self, key: Key, default: Any = b"") -> memoryview:
        """The value, after setting it to ``default`` if there is none."""
        check_key(key)
        view = self.get(key)
        if view is not None:
            return view
        self._put(key, default, None, None, keep=True)
        self._tell()
        view = self._look_again(key)
        # Gone again already: what was meant to be in the cache.
        return memoryview(bytes(default)) if view is None else view

    @overload
    def pop(self, key: Key) -> memoryview: ...
    @overload
    def pop(self, key: Key, default: T) -> memoryview | T: ...
    def pop(self, key: Key, default: Any = _NO_DEFAULT) -> Any:
        """Remove and return the value, or ``default``; KeyError without one."""
        if default is _NO_DEFAULT:
            check_key(key)
        self._tell()  # before the value is taken: on_discard may raise
        view = self._store.take(key)
        if view is None and default is _NO_DEFAULT:
            raise KeyError(key)
        return default if view is None else view

    def popitem(self) -> tuple[Key, memoryview]:
        """Remove and return the value that would go next. KeyError if there is none."""
        self._tell()  # as in pop()
        item = self._store.take_next()
        if item is None:
            raise KeyError("the cache is empty")
        return item

    def clear(self) -> None:
        """Remove everything."""
        self._store.clear()
        self._tell()

    # --- what goes -------------------------------------------------------------------------------

    def evict(self, nbytes: str | SupportsIndex) -> int:
        """Give up values of about ``nbytes``, as the policy says. The bytes given up."""
        given_up = self._store.evict(parse_size(nbytes, "nbytes"))
        self._tell()
        return given_up

    def evict_tag(self, tag: Key) -> int:
        """Remove all values with this tag. Their number."""
        check_tag(tag)
        count = self._store.remove_tagged(tag)
        self._tell()
        return count

    def _tell(self) -> None:
        """Call on_discard for what was discarded since."""
        if self._on_discard is None:
            return
        while (key := self._store.take_discarded()) is not None:
            self._on_discard(key)

    # --- sharing ---------------------------------------------------------------------------------

    def serve(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> Server:
        """Let other processes of this user use the cache: Cache.connect(path).

        The socket is for its user only. Until the Server is closed, or the cache: it keeps the
        Server. Those that are connected stay so. Raises SharingError where it is another process's.
        """
        self._store.check()
        return self._servers.add(
            lambda: Server(self._own_file(), path, readonly=True, cache=self._store)
        )

    @classmethod
    def connect(
        cls,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        timeout: float | None = None,
    ) -> Self:
        """The cache that another process serves at this path.

        It is used as in its own process. Values are found without asking that one, whatever it does
        meanwhile; what changes something waits for an answer of its core: after ``timeout`` seconds
        (None: 60) SharingError. When it has ended, what was there is still found, and changes raise
        OwnerGoneError.
        Raises OwnerGoneError if no process serves there, SharingError if what is served there is
        no cache.
        """
        connection, name, has_cache = open_served(path, checked_timeout(timeout))
        try:
            if not has_cache:
                raise SharingError(f"no cache is served at {os.fsdecode(path)!r}")
            file = PeerFile(connection, name, owns_connection=True)
        except BaseException:
            connection.close()
            raise
        connection.files[name] = file
        cache = cls.__new__(cls)
        try:
            cache._connect(file)
        except BaseException:
            file.close()
            raise
        return cache

    def _connect(self, file: PeerFile) -> None:
        """Be the cache that the owner of a file serves."""
        self._on_discard = None
        self._owns_file = True
        self._name = None
        self._closed = False
        self._process = _core.process_generation()
        self._servers = Servers()
        self._monitor = None  # its owner keeps it below the limits
        self._file = file
        self._store = _core.CacheStore.connect(file)
        self._policy = Policy(self._store.policy)

    def _own_file(self) -> MemoryFile:
        if self._forked:
            raise ForkedError("the Cache is the parent process's: this is for that one to do")
        if not isinstance(self._file, MemoryFile):
            raise SharingError("the Cache is another process's: this is for that one to do")
        return self._file

    # --- figures ---------------------------------------------------------------------------------

    @property
    def maxsize(self) -> int | None:
        """The most bytes to hold; None for no limit of its own."""
        return self._store.maxsize

    @property
    def currsize(self) -> int:
        """What counts for ``maxsize``: pages, and what the index takes beyond an eighth of that."""
        size = self._store.size()
        self._tell()
        return size

    @property
    def policy(self) -> Policy:
        """Which values go first when memory is wanted."""
        return self._policy

    @property
    def file(self) -> MemoryFile | PeerFile:
        """The MemoryFile that the values live in; where it is another process's, as a PeerFile."""
        return self._file

    def stats(self) -> CacheStats:
        """What happened so far, and what there is now."""
        counts = _core.cache_stats(self._store)
        self._tell()
        return CacheStats(**counts, headroom=_core.guard_status()["available"])

    # --- the end ---------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    @property
    def _forked(self) -> bool:
        """Whether this is a forked child of the process that made it."""
        return bool(self._process != _core.process_generation())

    def close(self) -> None:
        """Release all values, and close the file if it is the cache's own. Views stay valid.

        In another process than its own: use it no more.
        """
        self._closed = True
        self._store.close()
        if self._forked:
            return
        name, self._name = self._name, None
        if name is not None and not self._file.closed:
            with suppress(OptionError, ClosedError):  # another thread has removed, or closed it
                self._own_file().remove_save_hook(name)
        self._servers.close()
        if self._monitor is not None:
            self._monitor.close()
        if self._owns_file:
            self._file.close()

    def __del__(self) -> None:
        if "_store" in self.__dict__ and not sys.is_finalizing():
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # Two caches are the same if they are one: comparing contents would read them all.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def _verify(self) -> str | None:
        """The first invariant that is broken, for pgalloc.testing."""
        return _core.cache_verify(self._store)

    def __repr__(self) -> str:
        name = type(self).__name__
        try:
            count, size = self._store.count(), self._store.size()
        except ClosedError:
            return f"<{name} closed>"
        except ForkedError:
            return f"<{name} of the parent process>"
        except (OwnerGoneError, SharingError):
            return f"<{name} of a process that does not answer>"
        return (
            f"<{name} of {count} values, {size} bytes, "
            f"maxsize={self.maxsize}, policy={str(self._policy)!r}>"
        )
