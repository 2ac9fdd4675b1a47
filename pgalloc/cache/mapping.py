"""Cache: a mapping from keys to bytes on discardable memory.

Thread safety: every method may be called from any thread. Readers take no lock: what they found is
theirs if it is still the key's value once they have pinned it. Everything else is a change, see
``changes``.

Invariants:
  1. The pages held, with what the index takes beyond an eighth of them, are at most ``maxsize``
     between calls.
  2. What the core has discarded is a miss for readers at once; ``len()`` and the like know of it
     too, and ``on_discard`` hears of it from the next call that takes the lock.
  3. A forked child has no use of a cache: it cannot know what the parent's guard discards.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, overload

from pgalloc import _core, fork
from pgalloc.allocation import whole_pages
from pgalloc.cache.changes import Changes
from pgalloc.cache.entry import Entry, index_cost
from pgalloc.cache.integrity import broken_invariant
from pgalloc.cache.keys import Key, check_key, check_tag, is_key
from pgalloc.cache.policy import Policy
from pgalloc.cache.serving import CacheReader, serve
from pgalloc.cache.slabs import slab_size
from pgalloc.cache.snapshot import decode, encode
from pgalloc.cache.stats import CacheStats
from pgalloc.cache.store import Store, counted
from pgalloc.cache.values import Expire, TooLargeError, buffer_of, expiry
from pgalloc.cache.views import CacheItems, CacheValues
from pgalloc.errors import ClosedError, Error, ForkedError, OptionError
from pgalloc.memory_file import MemoryFile
from pgalloc.pressure import Monitor
from pgalloc.sharing import Server
from pgalloc.sharing.serving import Servers
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
        self._misses = 0
        self._servers = Servers()
        self._monitor = Monitor(headroom)
        try:
            self._file = MemoryFile() if file is None else file
            self._store = Store(self._file, self._policy, limit)
            self._store.keep_discarded_keys = on_discard is not None
            self._entries = self._store.entries
            self._changes = Changes(self._store)
            fork.register(self._changes)
        except BaseException:
            if self._owns_file and hasattr(self, "_file"):
                self._file.close()
            self._monitor.close()
            raise
        if name is not None:
            this = weakref.ref(self)  # or the file would keep the cache
            try:
                self._file.save_hook(name, save=lambda: encode(this()))
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
        view = self.get(key)
        if view is None:
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
        while True:
            entry = self._entries.get(key) if is_key(key) else None
            if entry is None or (entry.expires is not None and entry.expires <= time.monotonic()):
                return self._missed(default)
            try:
                view = entry.allocation._pinned_view(entry.start, entry.stop)
            except ClosedError:  # released by another thread, or the cache is closed
                self._changes.check_usable()
                continue
            if self._entries.get(key) is not entry:
                if view is not None:
                    self._count(hits=-1)
                continue
            return self._missed(default) if view is None else view

    @overload
    def get_bytes(self, key: Key) -> bytes | None: ...
    @overload
    def get_bytes(self, key: Key, default: T) -> bytes | T: ...
    def get_bytes(self, key: Key, default: Any = None) -> Any:
        """A copy of the value as bytes, for what takes no memoryview; or ``default``, as get()."""
        view = self.get(key)
        return default if view is None else view.tobytes()

    def _missed(self, default: Any) -> Any:
        self._changes.check_usable()
        self._count(misses=1)
        self._changes.catch_up()
        self._tell()
        return default

    def _count(self, *, hits: int = 0, misses: int = 0) -> None:
        with self._changes.lock:
            self._store.uncounted_hits -= hits
            self._misses += misses

    def _look_again(self, key: Key) -> memoryview | None:
        """get() without counting a hit or a miss again."""
        view = self.get(key)
        if view is None:
            self._count(misses=-1)
        else:
            self._count(hits=-1)
        return view

    def __contains__(self, key: object) -> bool:
        """Whether there is a value: not counted, and without weight for the policy."""
        self._catch_up()
        return is_key(key) and key in self._entries

    def __len__(self) -> int:
        self._catch_up()
        return len(self._entries)

    def __iter__(self) -> Iterator[Key]:
        """The keys as they are now; changes meanwhile do no harm."""
        self._catch_up()
        with self._changes.lock:
            return iter(list(self._entries))

    def items(self) -> CacheItems:
        """Keys and values as they are now, one by one; one that goes meanwhile is left out."""
        return CacheItems(self)

    def values(self) -> CacheValues:
        """The values as they are now, one by one; one that goes meanwhile is left out."""
        return CacheValues(self)

    def _catch_up(self) -> None:
        self._changes.catch_up()
        self._tell()

    # --- writing ---------------------------------------------------------------------------------

    def __setitem__(self, key: Key, data: Any) -> None:
        self.put(key, data)

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
        check_key(key)
        if tag is not None:
            check_tag(tag)
        expires = expiry(expire)
        with buffer_of(data) as view:
            self._put(key, view, expires, tag)
        self._tell()

    def _put(
        self, key: Key, view: memoryview, expires: float | None, tag: Key | None, keep: bool = False
    ) -> None:
        self._changes.check_usable()
        length = view.nbytes
        pages = whole_pages(length)
        cost = index_cost(key, tag)
        shares = self._store.shares_pages(length)
        size = counted(slab_size(length) if shares else pages, cost)
        if self.maxsize is not None and size > self.maxsize:
            raise TooLargeError(
                f"value too large: {length} bytes, counted as {size} with their key, do not fit "
                f"into maxsize, {self.maxsize} bytes"
            )
        data: Any = view if view.c_contiguous else view.tobytes()
        if shares:
            with self._changes.lock:
                if not self._changes.under_way:
                    act = self._put_in_slab
                    self._changes.make(act, key, data, length, expires, tag, keep, otherwise=None)
                    return
        reservation = _core.CommitReservation(pages + cost)
        # Without the lock: the others go on.
        allocation = self._file._allocate_filled(pages, data)
        reservation.end()
        entry = Entry(key, allocation, 0, length, self._store.number(), None, expires, tag)
        self._changes.make(self._put_alone, entry, keep, otherwise=None)

    def _put_in_slab(
        self, key: Key, data: Any, length: int, expires: float | None, tag: Key | None, keep: bool
    ) -> None:
        if keep and key in self._entries:
            return
        slab, offset = self._store.slot(key, length, index_cost(key, tag))
        try:
            slab.allocation._write(offset, data)
        except Error:
            slab.vacant.append(offset)
            raise
        entry = Entry(
            key, slab.allocation, offset, length, self._store.number(), slab, expires, tag
        )
        self._store.add_to_slab(slab, entry)

    def _put_alone(self, entry: Entry, keep: bool) -> None:
        if keep and entry.key in self._entries:
            return
        self._store.make_way(entry.allocation.nbytes, entry.cost, entry.key)
        self._store.add_alone(entry)

    def __delitem__(self, key: Key) -> None:
        found = is_key(key) and self._remove(key)
        self._catch_up()
        if not found:
            check_key(key)
            raise KeyError(key)

    def _remove(self, key: Key) -> bool:
        there = key in self._entries
        return self._changes.make(self._store.remove_key, key, otherwise=there)

    def setdefault(self, key: Key, default: Any = b"") -> memoryview:
        """The value, after setting it to ``default`` if there is none."""
        check_key(key)
        view = self.get(key)
        if view is not None:
            return view
        with buffer_of(default) as data:
            self._put(key, data, None, None, keep=True)
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
        self._catch_up()  # on_discard is called before the value is taken: it may raise
        view = self._changes.make(self._store.take, key, otherwise=None) if is_key(key) else None
        if view is None:
            self._count(misses=1)
        if view is None and default is _NO_DEFAULT:
            raise KeyError(key)
        return default if view is None else view

    def popitem(self) -> tuple[Key, memoryview]:
        """Remove and return the value that would go next. KeyError if there is none."""
        self._catch_up()  # as in pop()
        item = self._changes.make(self._store.take_next, otherwise=None)
        if item is None:
            raise KeyError("the cache is empty")
        return item

    def clear(self) -> None:
        """Remove everything."""
        self._changes.make(self._store.remove_all, otherwise=None)
        self._tell()

    # --- what goes -------------------------------------------------------------------------------

    def evict(self, nbytes: str | SupportsIndex) -> int:
        """Give up values of about ``nbytes``, as the policy says. The bytes given up."""
        given_up = self._changes.make(self._store.evict, parse_size(nbytes, "nbytes"), otherwise=0)
        self._tell()
        return given_up

    def evict_tag(self, tag: Key) -> int:
        """Remove all values with this tag. Their number."""
        check_tag(tag)
        count = self._changes.make(self._store.remove_tagged, tag, otherwise=0)
        self._tell()
        return count

    def _tell(self) -> None:
        """Call on_discard, without the lock."""
        keys = self._store.discarded_keys
        while keys and self._on_discard is not None:
            try:
                key = keys.pop()
            except IndexError:  # another thread took it
                return
            self._on_discard(key)

    # --- sharing ---------------------------------------------------------------------------------

    def serve(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> Server:
        """Let other processes of this user read the values, without copying: Cache.connect(path).

        The socket is for its user only. Until the Server is closed, or the cache: it keeps the
        Server.
        """
        self._changes.check_usable()
        return self._servers.add(lambda: serve(self, path))

    @staticmethod
    def connect(
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes], *, timeout: float | None = None
    ) -> CacheReader:
        """The cache that another process serves at this path, for reading.

        A request that is not answered within ``timeout`` seconds (None: 60) raises SharingError.
        Raises OwnerGoneError if no process serves there, SharingError if what is served there is
        no cache.
        """
        return CacheReader(path, timeout=timeout)

    # --- figures ---------------------------------------------------------------------------------

    @property
    def maxsize(self) -> int | None:
        """The most bytes to hold; None for no limit of its own."""
        return self._store.maxsize

    @property
    def currsize(self) -> int:
        """What counts for ``maxsize``: pages, and what the index takes beyond an eighth of that."""
        self._catch_up()
        return self._store.size

    @property
    def policy(self) -> Policy:
        """Which values go first when memory is wanted."""
        return self._policy

    @property
    def file(self) -> MemoryFile:
        """The MemoryFile that the values live in."""
        return self._file

    def stats(self) -> CacheStats:
        """What happened so far, and what there is now."""
        self._catch_up()
        store = self._store
        headroom = _core.guard_status()["available"]
        with self._changes.lock:
            return CacheStats(
                hits=store.queue.hits - store.uncounted_hits,
                misses=self._misses,
                sets=store.sets,
                evictions=store.evictions,
                discards=store.discards,
                expirations=store.expirations,
                entries=len(store.entries),
                value_bytes=store.value_bytes,
                bytes=store.size,
                page_bytes=store.held_bytes,
                index_bytes=store.index_bytes,
                headroom=headroom,
            )

    # --- the end ---------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._changes.closed

    def close(self) -> None:
        """Release all values, and close the file if it is the cache's own. Views stay valid."""
        changes = self._changes
        if changes.forked:  # another thread of the parent may have the lock
            changes.closed = True
            self._entries.clear()
            return
        with changes.lock:
            if changes.closed:
                return
            if not self._file.closed:
                with suppress(ClosedError):  # another thread has just closed the file
                    changes.make(self._store.remove_all, otherwise=None)
                if self._name is not None:
                    with suppress(OptionError):  # it was removed already
                        self._file.remove_save_hook(self._name)
            changes.closed = True
            self._entries.clear()
        self._servers.close()
        self._monitor.close()
        if self._owns_file:
            self._file.close()

    def __del__(self) -> None:
        # Values in slabs know each other, and would wait for the garbage collector.
        if "_changes" in self.__dict__ and not sys.is_finalizing():
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
        with self._changes.lock:
            self._changes.catch_up()
            return broken_invariant(self._store)

    def __repr__(self) -> str:
        name = type(self).__name__
        try:
            self._changes.catch_up()
        except ClosedError:
            return f"<{name} closed>"
        except ForkedError:
            return f"<{name} of the parent process>"
        return (
            f"<{name} of {len(self._entries)} values, {self._store.size} bytes, "
            f"maxsize={self.maxsize}, policy={str(self._policy)!r}>"
        )
