"""Cache: a mapping from keys to bytes on discardable memory.

Thread safety: every method may be called from any thread. Readers take no lock: what they found is
theirs if it is still the key's value once they have pinned it. The lock guards everything else; it
may be taken again by its owner, since a finalizer may use the cache anywhere.

Invariants:
  1. The pages held are at most ``maxsize`` between calls.
  2. What the core has discarded is a miss for readers at once; ``len()`` and the like know of it
     too, and ``on_discard`` hears of it from the next call that takes the lock.
  3. A forked child has no use of a cache: it cannot know what the parent's guard discards.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, overload

from pgalloc import _core, fork
from pgalloc.cache.entry import Entry
from pgalloc.cache.keys import Key, check_key
from pgalloc.cache.policy import CORE_NUMBERS, Policy
from pgalloc.cache.snapshot import decode, encode
from pgalloc.cache.stats import CacheStats
from pgalloc.cache.store import Store
from pgalloc.errors import ClosedError, ForkedError, OptionError
from pgalloc.memory_file import MemoryFile
from pgalloc.pressure import Monitor
from pgalloc.sizes import parse_size

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")
_NO_DEFAULT: Any = object()


class Cache(MutableMapping[Key, memoryview]):
    """Keeps bytes as long as there is memory for them.

    Values live outside Python's heap. When a memory limit comes near, or ``maxsize`` is reached,
    those that are worth least go; reading one that has gone is a plain miss. So a cache may be
    given all the memory there is.

    * ``maxsize``: bytes (or "8G") of pages to hold at most; None for as much as memory allows.
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

    def __init__(
        self,
        maxsize: str | SupportsIndex | None = None,
        *,
        file: MemoryFile | None = None,
        headroom: str | SupportsIndex = "10%",
        policy: Policy | str = Policy.S3_FIFO,
        on_discard: Callable[[Key], object] | None = None,
        name: str | None = None,
    ) -> None:
        limit = None if maxsize is None else parse_size(maxsize, "maxsize")
        if limit is not None and limit < _core.PAGE_SIZE:
            raise OptionError("maxsize must be a page at least")
        try:
            self._policy = Policy(policy)
        except ValueError:
            names = ", ".join(repr(str(known)) for known in Policy)
            raise OptionError(f"policy must be one of {names}, not {policy!r}") from None
        if on_discard is not None and not callable(on_discard):
            raise TypeError("on_discard must be callable")
        if file is not None and not isinstance(file, MemoryFile):
            raise TypeError(f"file must be a MemoryFile, not {type(file).__name__}")
        self._on_discard = on_discard
        self._owns_file = file is None
        self._file = MemoryFile() if file is None else file
        self._monitor = Monitor(headroom)
        self._store = Store(self._file, CORE_NUMBERS[self._policy], limit)
        self._store.keep_discarded_keys = on_discard is not None
        self._entries = self._store.entries
        self._lock = threading.RLock()
        self._misses = 0
        self._closed = self._abandoned = False
        fork.register(self)
        self._name = name
        if name is not None:
            this = weakref.ref(self)  # or the file would keep the cache
            self._file.save_hook(name, save=lambda: encode(this()))

    @classmethod
    def from_snapshot(cls, memory_file: MemoryFile, payload: bytes, **options: Any) -> Self:
        """The cache that was saved with a file, in the restored file: for the hook of its name.

        ``options`` are those of Cache(), but ``file``. Values that are past their time, and, with
        a smaller ``maxsize``, those that do not fit, are left out. Raises SnapshotError.

        >>> caches = []
        >>> restore = lambda file, data: caches.append(Cache.from_snapshot(file, data))
        >>> file = MemoryFile.restore(path, hooks={"thumbnails": restore})  # doctest: +SKIP
        """
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
            raise KeyError(key)
        return view

    @overload
    def get(self, key: Key) -> memoryview | None: ...
    @overload
    def get(self, key: Key, default: T) -> memoryview | T: ...
    def get(self, key: Key, default: Any = None) -> Any:
        """The value as a read-only view, or ``default`` if there is none, or none any more."""
        while True:
            entry = self._entries.get(key)
            if entry is None or (entry.expires is not None and entry.expires <= time.monotonic()):
                return self._missed(key, default)
            try:
                view = entry.allocation._peek(entry.start, entry.stop)
            except ClosedError:  # released by another thread, or the cache is closed
                self._check_usable()
                continue
            if self._entries.get(key) is not entry:
                continue
            return self._missed(key, default) if view is None else view

    def _missed(self, key: Key, default: Any) -> Any:
        check_key(key)
        with self._lock:
            self._check_usable()
            self._misses += 1
            self._store.tidy()
        self._tell()
        return default

    def __contains__(self, key: object) -> bool:
        """Whether there is a value: not counted, and without weight for the policy."""
        with self._lock:
            self._check_usable()
            self._store.tidy()
            found = key in self._entries
        self._tell()
        return found

    def __len__(self) -> int:
        with self._lock:
            self._check_usable()
            self._store.tidy()
            count = len(self._entries)
        self._tell()
        return count

    def __iter__(self) -> Iterator[Key]:
        """The keys as they are now; changes meanwhile do no harm."""
        with self._lock:
            self._check_usable()
            self._store.tidy()
            keys = list(self._entries)
        self._tell()
        return iter(keys)

    # --- writing ---------------------------------------------------------------------------------

    def __setitem__(self, key: Key, data: Any) -> None:
        self.put(key, data)

    def put(
        self, key: Key, data: Any, *, expire: float | None = None, tag: Key | None = None
    ) -> None:
        """Set a value, in place of the one there may be.

        ``expire``: seconds after which it is gone. ``tag``: what evict_tag() knows it by.

        Room is made first: for ``maxsize`` by evicting, for the memory limits by discarding.
        Raises ValueError if the value alone exceeds ``maxsize``, TypeError for what is no key or no
        bytes, OutOfMemoryError if there is no room whatever is given up. The old value is then
        still there.
        """
        check_key(key)
        if tag is not None:
            check_key(tag)
        expires = None if expire is None else time.monotonic() + _checked_expire(expire)
        with memoryview(data) as view:
            self._put(key, view, expires, tag)
        self._tell()

    def _put(self, key: Key, view: memoryview, expires: float | None, tag: Key | None) -> None:
        length = view.nbytes
        data: Any = view if view.c_contiguous else view.tobytes()
        if not self._store.shares_pages(length):
            self._put_alone(key, data, length, expires, tag)
            return
        with self._lock:
            self._check_usable()
            slab, offset = self._store.slot(length)
            try:
                slab.allocation._write(offset, data)
            except BaseException:
                slab.vacant.append(offset)
                raise
            entry = Entry(key, slab.allocation, offset, length, self._number(), slab, expires, tag)
            self._store.add_to_slab(slab, entry)

    def _put_alone(
        self, key: Key, data: Any, length: int, expires: float | None, tag: Key | None
    ) -> None:
        pages = max(-(-length // _core.PAGE_SIZE), 1) * _core.PAGE_SIZE
        if self.maxsize is not None and pages > self.maxsize:
            raise ValueError("value too large")
        room = _core.Room(pages)
        allocation = self._file.allocate(pages)
        entry = Entry(key, allocation, 0, length, self._number(), None, expires, tag)
        try:
            allocation._write(0, data)  # without the lock: the others go on
            room.done()
            with self._lock:
                self._check_usable()
                self._store.make_way(pages)
                self._store.add_alone(entry)
        except BaseException:
            if entry.id not in self._store.holders:
                allocation.release()
            raise

    def _number(self) -> int:
        return next(self._store.numbers)

    def __delitem__(self, key: Key) -> None:
        with self._lock:
            self._check_usable()
            self._store.tidy()
            entry = self._entries.get(key)
            if entry is not None:
                self._store.remove(entry)
        self._tell()
        if entry is None:
            raise KeyError(key)

    def setdefault(self, key: Key, default: Any = b"") -> memoryview:
        """The value, after setting it to ``default`` if there is none."""
        view = self.get(key)
        if view is not None:
            return view
        self.put(key, default)
        view = self.get(key)
        # Gone again already: what was meant to be in the cache.
        return memoryview(bytes(default)) if view is None else view

    @overload
    def pop(self, key: Key) -> memoryview: ...
    @overload
    def pop(self, key: Key, default: T) -> memoryview | T: ...
    def pop(self, key: Key, default: Any = _NO_DEFAULT) -> Any:
        """Remove and return the value, or ``default``; KeyError without one."""
        with self._lock:
            view = self.get(key)
            if view is not None:
                self._store.remove(self._entries[key])
                return view
        if default is _NO_DEFAULT:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[Key, memoryview]:
        """Remove and return the value that would go next. KeyError if there is none."""
        while True:
            with self._lock:
                self._check_usable()
                self._store.tidy()
                key = self._store.next_key()
                view = self.pop(key, None)
            self._tell()
            if view is not None:
                return key, view

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            self._check_usable()
            self._store.remove_all()

    # --- what goes -------------------------------------------------------------------------------

    def evict(self, nbytes: str | SupportsIndex) -> int:
        """Give up values of about ``nbytes``, as the policy says. The bytes of pages given up."""
        wanted = parse_size(nbytes, "nbytes")
        with self._lock:
            self._check_usable()
            self._store.tidy()
            before = self._store.held_bytes
            self._store.evict(wanted)
            given_up = before - self._store.held_bytes
        self._tell()
        return given_up

    def evict_tag(self, tag: Key) -> int:
        """Remove all values with this tag. Their number."""
        check_key(tag)
        with self._lock:
            self._check_usable()
            self._store.tidy()
            count = self._store.remove_tagged(tag)
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

    # --- figures ---------------------------------------------------------------------------------

    @property
    def maxsize(self) -> int | None:
        """The most bytes of pages that values may hold; None for no limit of its own."""
        return self._store.maxsize

    @property
    def currsize(self) -> int:
        """The bytes of pages that values hold."""
        with self._lock:
            self._store.tidy()
            held = self._store.held_bytes
        self._tell()
        return held

    @property
    def policy(self) -> Policy:
        """Which values go first."""
        return self._policy

    @property
    def file(self) -> MemoryFile:
        """The MemoryFile that the values live in."""
        return self._file

    def stats(self) -> CacheStats:
        """What happened so far, and what there is now."""
        with self._lock:
            self._check_usable()
            self._store.tidy()
            store = self._store
            stats = CacheStats(
                hits=store.queue.hits,
                misses=self._misses,
                sets=store.sets,
                evictions=store.evictions,
                discards=store.discards,
                expirations=store.expirations,
                entries=len(store.entries),
                value_bytes=store.value_bytes,
                bytes=store.held_bytes,
                headroom=_core.guard_status()["available"],
            )
        self._tell()
        return stats

    # --- the end ---------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def close(self) -> None:
        """Release all values, and close the file if it is the cache's own. Views stay valid."""
        with self._lock:
            if self._closed:
                return
            if not self._abandoned and not self._file.closed:
                self.clear()
                if self._name is not None:
                    self._file.remove_save_hook(self._name)
            self._closed = True
            self._entries.clear()
        if not self._abandoned:
            self._monitor.close()
            if self._owns_file:
                self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # Two caches are the same if they are one: comparing contents would read them all.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def park(self) -> None:
        """Before a fork, for pgalloc.fork: there is no thread here."""

    def resume(self) -> None:
        """After a fork, in the parent."""

    def abandon(self) -> None:
        """After a fork, in the child."""
        self._lock = threading.RLock()
        self._abandoned = True

    def _check_usable(self) -> None:
        if self._abandoned:
            raise ForkedError("this Cache belongs to the parent process")
        if self._closed or self._file.closed:
            raise ClosedError("the Cache is closed")

    def __repr__(self) -> str:
        if self._closed:
            return "<Cache closed>"
        return (
            f"<Cache of {len(self._entries)} values, {self._store.held_bytes} bytes, "
            f"maxsize={self.maxsize}, policy={str(self._policy)!r}>"
        )


def _checked_expire(expire: float) -> float:
    if isinstance(expire, bool) or not isinstance(expire, (int, float)):
        raise TypeError(f"expire must be seconds, not {type(expire).__name__}")
    if not expire > 0:
        raise OptionError("expire must be more than 0 seconds")
    return expire
