"""Cache: a mapping from keys to bytes on discardable memory.

Thread safety: every method may be called from any thread. Readers take no lock: what they found is
theirs if it is still the key's value once they have pinned it. The lock guards everything else; it
may be taken again by its owner, since a finalizer may use the cache anywhere.

Invariants:
  1. ``_entries`` has a value for each key; ``_holders`` has what the core discards as one, by id: a
     value with pages of its own, or a slab of small ones. A slab is there as long as it has
     values, or is open.
  2. ``_held_bytes`` is the sum of the holders' pages, at most ``maxsize`` between calls.
  3. What the core has discarded is a miss for readers at once; it leaves the two tables at the next
     call that takes the lock, and then ``on_discard`` hears of it.
  4. A forked child has no use of a cache: it cannot know what the parent's guard discards.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, overload

from pgalloc import _core, fork
from pgalloc.cache.entry import Entry
from pgalloc.cache.keys import Key, check_key
from pgalloc.cache.policy import CORE_NUMBERS, Policy
from pgalloc.cache.slabs import SMALL_MAX, Slab, Slabs, slab_size
from pgalloc.cache.snapshot import decode, encode
from pgalloc.errors import ClosedError, ForkedError, OptionError
from pgalloc.memory_file import MemoryFile
from pgalloc.pressure import Monitor
from pgalloc.sizes import parse_size

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")

_HASH_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counts since the cache was made, and what it holds now."""

    hits: int
    misses: int
    sets: int
    evictions: int
    """Values that went because of ``maxsize`` or evict()."""
    discards: int
    """Values that went because memory ran short."""
    expirations: int
    entries: int
    value_bytes: int
    """The lengths of all values."""
    bytes: int
    """The pages that hold them: ``currsize``."""
    headroom: int | None
    """Bytes that can be committed before the tightest memory limit; None without one."""


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
        self._maxsize = None if maxsize is None else parse_size(maxsize, "maxsize")
        if self._maxsize is not None and self._maxsize < _core.PAGE_SIZE:
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
        self._queue = _core.DiscardQueue(self._file, CORE_NUMBERS[self._policy])
        self._slabs = Slabs(self._queue, self._lose)
        self._lock = threading.RLock()
        self._entries: dict[Key, Entry] = {}
        self._holders: dict[int, Entry | Slab] = {}
        self._tags: dict[Key, dict[Key, Entry]] = {}
        self._expiries: list[tuple[float, int, Entry]] = []
        self._numbers = itertools.count(1)
        self._held_bytes = self._value_bytes = 0
        self._misses = self._sets = self._evictions = self._discards = self._expirations = 0
        self._seen_discards = 0
        self._to_tell: list[Key] = []
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
            self._tidy()
        self._tell()
        return default

    def __contains__(self, key: object) -> bool:
        """Whether there is a value: not counted, and without weight for the policy."""
        with self._lock:
            self._check_usable()
            self._tidy()
            found = key in self._entries
        self._tell()
        return found

    def __len__(self) -> int:
        with self._lock:
            self._check_usable()
            self._tidy()
            count = len(self._entries)
        self._tell()
        return count

    def __iter__(self) -> Iterator[Key]:
        """The keys as they are now; changes meanwhile do no harm."""
        with self._lock:
            self._check_usable()
            self._tidy()
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
        number = next(self._numbers)
        if not self._shares_pages(length):
            pages = max(-(-length // _core.PAGE_SIZE), 1) * _core.PAGE_SIZE
            if self._maxsize is not None and pages > self._maxsize:
                raise ValueError("value too large")
            room = _core.Room(pages)
            allocation = self._file.allocate(pages)
            try:
                allocation._write(0, data)  # without the lock: the others go on
                room.done()
                entry = Entry(key, allocation, 0, length, number=number, expires=expires, tag=tag)
                with self._lock:
                    self._check_usable()
                    self._make_way(pages)
                    allocation._let_go(self._queue, number, hash(key) & _HASH_MASK)
                    self._held_bytes += pages
                    self._holders[number] = entry
                    self._enter(entry)
            except BaseException:
                if number not in self._holders:
                    allocation.release()
                raise
            return
        with self._lock:
            self._check_usable()
            slab, offset = self._slot(length)
            slab.allocation._write(offset, data)
            entry = Entry(
                key,
                slab.allocation,
                offset,
                length,
                number=number,
                slab=slab,
                expires=expires,
                tag=tag,
            )
            slab.entries[offset] = entry
            self._enter(entry)

    def _slot(self, length: int) -> tuple[Slab, int]:
        self._tidy()
        found = self._slabs.reusable(length)
        if found is not None:
            return found
        size = slab_size(length)
        self._make_way(size)
        number = next(self._numbers)
        room = _core.Room(size)
        slab = self._slabs.add(self._file.allocate(size), length, number)
        room.done()
        self._held_bytes += size
        self._holders[number] = slab
        offset = slab.take_slot()
        assert offset is not None
        return slab, offset

    def _enter(self, entry: Entry) -> None:
        before = self._entries.get(entry.key)
        if before is not None:
            self._remove(before)
        self._entries[entry.key] = entry
        self._value_bytes += entry.length
        self._sets += 1
        if entry.tag is not None:
            self._tags.setdefault(entry.tag, {})[entry.key] = entry
        if entry.expires is not None:
            heapq.heappush(self._expiries, (entry.expires, entry.id, entry))

    def _shares_pages(self, length: int) -> bool:
        # A small cache would be all slabs that are being filled.
        few = self._maxsize is not None and self._maxsize < 64 * slab_size(length)
        return length <= SMALL_MAX and not few

    def __delitem__(self, key: Key) -> None:
        with self._lock:
            self._check_usable()
            self._tidy()
            entry = self._entries.get(key)
            if entry is not None:
                self._remove(entry)
        self._tell()
        if entry is None:
            raise KeyError(key)

    def setdefault(self, key: Key, default: Any = b"") -> memoryview:  # type: ignore[override]
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
    def pop(self, key: Key, *default: Any) -> Any:
        """Remove and return the value, or ``default``; KeyError without one."""
        if len(default) > 1:
            raise TypeError("pop() takes a key and a default")
        with self._lock:
            view = self.get(key)
            if view is not None:
                self._remove(self._entries[key])
                return view
        if default:
            return default[0]
        raise KeyError(key)

    def popitem(self) -> tuple[Key, memoryview]:
        """Remove and return the value that would go next. KeyError if there is none."""
        while True:
            with self._lock:
                self._check_usable()
                self._tidy()
                key = self._next_key()
                view = self.pop(key, None)
            self._tell()
            if view is not None:
                return key, view

    def _next_key(self) -> Key:
        for number in self._queue.take_victims(1):
            holder = self._holders[number]
            if isinstance(holder, Entry):
                return holder.key
            # Its other values wait on, as if it had come last.
            if not holder.allocation.pin():
                self._lose(holder)
                break
            holder.allocation._let_go(self._queue, holder.id, holder.id)
            return next(iter(holder.entries.values())).key
        for key in self._entries:
            return key
        raise KeyError("the cache is empty")

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            self._check_usable()
            for entry in list(self._entries.values()):
                self._remove(entry)

    # --- what goes -------------------------------------------------------------------------------

    def evict(self, nbytes: str | SupportsIndex) -> int:
        """Give up values of about ``nbytes``, as the policy says. The bytes of pages given up."""
        wanted = parse_size(nbytes, "nbytes")
        with self._lock:
            self._check_usable()
            self._tidy()
            before = self._held_bytes
            self._evict(wanted)
            given_up = before - self._held_bytes
        self._tell()
        return given_up

    def evict_tag(self, tag: Key) -> int:
        """Remove all values with this tag. Their number."""
        check_key(tag)
        with self._lock:
            self._check_usable()
            self._tidy()
            entries = list(self._tags.get(tag, {}).values())
            for entry in entries:
                self._remove(entry)
            self._evictions += len(entries)
        self._tell()
        return len(entries)

    def _make_way(self, size: int) -> None:
        if self._maxsize is not None and self._held_bytes + size > self._maxsize:
            self._tidy()
            self._evict(self._held_bytes + size - self._maxsize)

    def _evict(self, nbytes: int) -> None:
        target = self._held_bytes - nbytes
        for number in self._queue.take_victims(nbytes) if nbytes > 0 else ():
            self._drop_holder(self._holders[number])
        # What is being filled is not in the queue.
        for slab in self._slabs.open_slabs():
            if self._held_bytes <= target:
                break
            self._drop_holder(slab)

    def _drop_holder(self, holder: Entry | Slab) -> None:
        entries = [holder] if isinstance(holder, Entry) else list(holder.entries.values())
        for entry in entries:
            self._remove(entry)
            self._evictions += 1
        if isinstance(holder, Slab) and holder.id in self._holders:
            self._drop_slab(holder)

    def _remove(self, entry: Entry) -> None:
        """Take an entry out of all tables, and its memory if it was the last there."""
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]
        self._value_bytes -= entry.length
        if entry.tag is not None:
            tagged = self._tags[entry.tag]
            if tagged.get(entry.key) is entry:
                del tagged[entry.key]
            if not tagged:
                del self._tags[entry.tag]
        slab = entry.slab
        if slab is None:
            del self._holders[entry.id]
            self._held_bytes -= entry.allocation.nbytes
            entry.allocation.release()
        elif self._slabs.vacate(slab, entry.start):
            self._forget_slab(slab)

    def _drop_slab(self, slab: Slab) -> None:
        self._slabs.drop(slab)
        self._forget_slab(slab)

    def _forget_slab(self, slab: Slab) -> None:
        del self._holders[slab.id]
        self._held_bytes -= slab.allocation.nbytes

    def _lose(self, holder: Entry | Slab) -> None:
        """The core has discarded this."""
        entries = [holder] if isinstance(holder, Entry) else list(holder.entries.values())
        for entry in entries:
            self._remove(entry)
            if self._on_discard is not None:
                self._to_tell.append(entry.key)
        self._discards += len(entries)
        if isinstance(holder, Slab) and holder.id in self._holders:
            self._drop_slab(holder)

    def _tidy(self) -> None:
        """Catch up with what was discarded, and with what has expired."""
        discards = self._queue.discards
        if discards != self._seen_discards:
            self._seen_discards = discards
            for number in self._queue.take_discarded():
                holder = self._holders.get(number)
                if holder is not None:
                    self._lose(holder)
        if not self._expiries:
            return
        now = time.monotonic()
        while self._expiries and self._expiries[0][0] <= now:
            entry = heapq.heappop(self._expiries)[2]
            if self._entries.get(entry.key) is entry:
                self._remove(entry)
                self._expirations += 1
        if len(self._expiries) > 2 * len(self._entries) + 64:
            self._expiries = [e for e in self._expiries if self._entries.get(e[2].key) is e[2]]
            heapq.heapify(self._expiries)

    def _tell(self) -> None:
        """Call on_discard, without the lock."""
        while self._to_tell and self._on_discard is not None:
            try:
                key = self._to_tell.pop()
            except IndexError:  # another thread took it
                return
            self._on_discard(key)

    # --- figures ---------------------------------------------------------------------------------

    @property
    def maxsize(self) -> int | None:
        """The most bytes of pages that values may hold; None for no limit of its own."""
        return self._maxsize

    @property
    def currsize(self) -> int:
        """The bytes of pages that values hold."""
        with self._lock:
            self._tidy()
            held = self._held_bytes
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
            self._tidy()
            stats = CacheStats(
                hits=self._queue.hits,
                misses=self._misses,
                sets=self._sets,
                evictions=self._evictions,
                discards=self._discards,
                expirations=self._expirations,
                entries=len(self._entries),
                value_bytes=self._value_bytes,
                bytes=self._held_bytes,
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
            f"<Cache of {len(self._entries)} values, {self._held_bytes} bytes, "
            f"maxsize={self._maxsize}, policy={str(self._policy)!r}>"
        )


def _checked_expire(expire: float) -> float:
    if isinstance(expire, bool) or not isinstance(expire, (int, float)):
        raise TypeError(f"expire must be seconds, not {type(expire).__name__}")
    if not expire > 0:
        raise OptionError("expire must be more than 0 seconds")
    return expire
