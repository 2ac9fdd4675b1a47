"""What a cache holds: its values, where they are, and which of them have to go.

Thread safety: externally synchronised (the cache's lock), but for ``entries``: readers look things
up there without the lock, and look again once they have pinned what they found.

Invariants:
  1. ``entries`` has a value for each key; ``holders`` has what the core discards as one, by id: a
     value with pages of its own, or a slab of small ones. A slab is there as long as it has
     values, or is open.
  2. ``held_bytes`` is the sum of the holders' pages, ``value_bytes`` of the values' lengths,
     ``index_bytes`` of what the index takes for them in Python's heap. ``size``, which ``maxsize``
     limits, is made of the first and the last.
  3. What the core has discarded leaves the tables with the next tidy().
"""

from __future__ import annotations

import heapq
import itertools
import time
from typing import Any

from pgalloc import _core
from pgalloc.cache.entry import Entry
from pgalloc.cache.keys import Key
from pgalloc.cache.slabs import SMALL_MAX, Slab, Slabs, slab_size, slot_size
from pgalloc.memory_file import MemoryFile

_HASH_MASK = 2**64 - 1
_INDEX_SHARE = 8


def counted(pages: int, index: int) -> int:
    """What counts for ``maxsize``: pages, and what the index takes beyond an eighth of that.

    So values of a page and more, with short keys, count as their pages.
    """
    return pages + max(index - pages // _INDEX_SHARE, 0)


class Store:
    """The tables of one cache, in one MemoryFile."""

    def __init__(self, memory_file: MemoryFile, policy: str, maxsize: int | None) -> None:
        self.file = memory_file
        self.maxsize = maxsize
        self.queue = _core.DiscardQueue(memory_file, policy)
        self.slabs = Slabs(self.queue)
        self.entries: dict[Key, Entry] = {}
        self.holders: dict[int, Entry | Slab] = {}
        self.number = itertools.count(1).__next__
        self.held_bytes = self.value_bytes = self.index_bytes = 0
        self.sets = self.evictions = self.discards = self.expirations = 0
        self.uncounted_hits = 0  # looks at values that the core took for hits
        self.discarded_keys: list[Key] = []  # for on_discard; filled only if there is one
        self.keep_discarded_keys = False
        self._seen_discards = 0
        self._tags: dict[Key, dict[Key, Entry]] = {}
        self._expiries: list[tuple[float, int, Entry]] = []

    @property
    def size(self) -> int:
        """What counts for ``maxsize``."""
        return counted(self.held_bytes, self.index_bytes)

    # --- coming ----------------------------------------------------------------------------------

    def shares_pages(self, length: int) -> bool:
        """Whether a value of this length goes into a slab."""
        # A small cache would be all slabs that are being filled.
        few = self.maxsize is not None and self.maxsize < 64 * slab_size(length)
        return length <= SMALL_MAX and not few

    def slot(self, key: Key, length: int, cost: int) -> tuple[Slab, int]:
        """Room for the small value of a key, in place of the one there may be: slab and offset."""
        self.make_way(0, cost, key)
        size = slab_size(length)
        found = self.slabs.reusable(length, self._lose)
        if found is None and not self._fits(size, cost, key) and self._vacate_slot(key, length):
            found = self.slabs.reusable(length, self._lose)
        if found is not None:
            return found
        self.make_way(size, cost, key)
        number = self.number()
        # The index of its values comes with them, and is to have room, too.
        reservation = _core.CommitReservation(size + size // slot_size(length) * cost)
        slab = self.slabs.add(self.file.allocate(size), length, number)
        reservation.end()
        self.held_bytes += size
        self.holders[number] = slab
        offset = slab.take_slot()
        assert offset is not None
        return slab, offset

    def _vacate_slot(self, key: Key, length: int) -> bool:
        """Remove a value whose slot its successor can have: no slab has to go. Whether it went."""
        entry = self.entries.get(key)
        if entry is None or entry.slab is None or entry.slab.slot != slot_size(length):
            return False
        if entry.slab.allocation._in_use:
            return False
        self.remove(entry)
        return True

    def add_alone(self, entry: Entry) -> None:
        """A value that has its pages for itself; it may be discarded from here on."""
        self.hold(entry)
        self.enter(entry)

    def add_to_slab(self, slab: Slab, entry: Entry) -> None:
        """A value in a slot of an open slab."""
        slab.entries[entry.start] = entry
        self.enter(entry)

    def hold(self, holder: Entry | Slab) -> None:
        """Pages that the core may discard as one."""
        holder.allocation._unpin_into(self.queue, holder.id, _known_by(holder))
        self.holders[holder.id] = holder
        self.held_bytes += holder.allocation.nbytes

    def enter(self, entry: Entry) -> None:
        """The value of its key from here on."""
        before = self.entries.get(entry.key)
        if before is not None:
            self.remove(before)
        self.entries[entry.key] = entry
        self.value_bytes += entry.length
        self.index_bytes += entry.cost
        self.sets += 1
        if entry.tag is not None:
            self._tags.setdefault(entry.tag, {})[entry.key] = entry
        if entry.expires is not None:
            heapq.heappush(self._expiries, (entry.expires, entry.id, entry))

    # --- going -----------------------------------------------------------------------------------

    def remove(self, entry: Entry) -> None:
        """Take a value out of all tables, and its pages if it was the last there."""
        if self.entries.get(entry.key) is entry:
            del self.entries[entry.key]
        self.value_bytes -= entry.length
        self.index_bytes -= entry.cost
        if entry.tag is not None:
            tagged = self._tags[entry.tag]
            if tagged.get(entry.key) is entry:
                del tagged[entry.key]
            if not tagged:
                del self._tags[entry.tag]
        if entry.slab is None:
            del self.holders[entry.id]
            self.held_bytes -= entry.allocation.nbytes
            entry.allocation.release()
        elif self.slabs.vacate(entry.slab, entry.start):
            self._forget_slab(entry.slab)

    def remove_key(self, key: Key) -> bool:
        """Remove the value of a key. Whether there was one."""
        entry = self.entries.get(key)
        if entry is None:
            return False
        self.remove(entry)
        return True

    def remove_all(self) -> None:
        """Remove all values."""
        for entry in list(self.entries.values()):
            self.remove(entry)
        for slab in self.slabs.open_slabs():
            self._remove_holder(slab)

    def remove_tagged(self, tag: Key) -> int:
        """Every value with this tag. Their number."""
        entries = list(self._tags.get(tag, {}).values())
        for entry in entries:
            self.remove(entry)
        self.evictions += len(entries)
        return len(entries)

    def make_way(self, pages: int, index: int, key: Key) -> None:
        """Have the value of a key fit below ``maxsize``, in place of the one there may be."""
        while not self._fits(pages, index, key) and self._evict_one():
            pass

    def shrink(self) -> None:
        """Have what there is fit below ``maxsize``."""
        if self.maxsize is not None:
            self.evict(self.size - self.maxsize)

    def _fits(self, pages: int, index: int, key: Key) -> bool:
        if self.maxsize is None:
            return True
        before = self.entries.get(key)
        if before is not None:
            pages -= _goes_with(before)
            index -= before.cost
        return counted(self.held_bytes + pages, self.index_bytes + index) <= self.maxsize

    def evict(self, nbytes: int) -> int:
        """Give up ``nbytes`` or a little more, as the policy says. The bytes given up."""
        before = self.size
        while before - self.size < nbytes and self._evict_one():
            pass
        return before - self.size

    def _evict_one(self) -> bool:
        """Give up what goes next. False if there is nothing."""
        for number in self.queue.take_victims(1):
            self.evictions += self._remove_holder(self.holders[number])
            return True
        # What is being filled is not in the queue, nor is, with some policies, what is being read.
        for holder in (*self.slabs.open_slabs(), *itertools.islice(self.holders.values(), 1)):
            self.evictions += self._remove_holder(holder)
            return True
        return False

    def take(self, key: Key) -> memoryview | None:
        """Remove a value and return it; None if there is none, or not any more."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        view = entry.allocation._pinned_view(entry.start, entry.stop)
        if view is None:
            self._lose(entry.slab or entry)
        else:
            self.remove(entry)
        return view

    def take_next(self) -> tuple[Key, memoryview] | None:
        """Remove the value that would go next, and return it; None if there is none."""
        while self.entries:
            key = self._next_key()
            view = self.take(key)
            if view is not None:
                self.uncounted_hits += 1
                return key, view
        return None

    def _next_key(self) -> Key:
        for number in self.queue.take_victims(1):
            holder = self.holders[number]
            if isinstance(holder, Entry):
                return holder.key
            # Its other values wait on, as if it had come last.
            intact = holder.allocation.pin()
            holder.allocation._unpin_into(self.queue, holder.id, holder.id)
            if intact:
                return next(iter(holder.entries.values())).key
        return next(iter(self.entries))

    def tidy(self) -> None:
        """Catch up with what was discarded, and with what has expired."""
        discards = self.queue.discards
        if discards != self._seen_discards:
            self._seen_discards = discards
            for number in self.queue.take_discarded():
                holder = self.holders.get(number)
                if holder is not None:
                    self._lose(holder)
        if self._expiries:
            self._expire(time.monotonic())

    def _expire(self, now: float) -> None:
        while self._expiries and self._expiries[0][0] <= now:
            entry = heapq.heappop(self._expiries)[2]
            if self.entries.get(entry.key) is entry:
                self.remove(entry)
                self.expirations += 1
        # Those that are gone would hold their keys.
        if len(self._expiries) > len(self.entries) * 5 // 4 + 64:
            kept = [item for item in self._expiries if self.entries.get(item[2].key) is item[2]]
            heapq.heapify(kept)
            self._expiries = kept

    def restart(self, entries: dict[Key, Entry], holders: dict[int, Entry | Slab]) -> None:
        """Have exactly these values, each in its holder: whatever the tables say of them."""
        self.holders = holders
        self.held_bytes = sum(holder.allocation.nbytes for holder in holders.values())
        self.value_bytes = sum(entry.length for entry in entries.values())
        self.index_bytes = sum(entry.cost for entry in entries.values())
        self._tags = {}
        for key, entry in entries.items():
            if entry.tag is not None:
                self._tags.setdefault(entry.tag, {})[key] = entry
        self._expiries = [(e.expires, e.id, e) for e in entries.values() if e.expires is not None]
        heapq.heapify(self._expiries)
        self.slabs.restart([holder for holder in holders.values() if isinstance(holder, Slab)])
        for holder in list(holders.values()):
            intact = holder.allocation.pin()
            holder.allocation._unpin_into(self.queue, holder.id, _known_by(holder))
            if not intact:
                self._lose(holder)

    def _lose(self, holder: Entry | Slab) -> None:
        """Take out a value that the core has discarded."""
        if self.keep_discarded_keys:
            self.discarded_keys.extend(entry.key for entry in _values(holder))
        self.discards += self._remove_holder(holder)

    def _remove_holder(self, holder: Entry | Slab) -> int:
        """Remove all values of a holder, and it. Their number."""
        entries = _values(holder)
        for entry in entries:
            self.remove(entry)
        if isinstance(holder, Slab) and holder.id in self.holders:
            self.slabs.drop(holder)
            self._forget_slab(holder)
        return len(entries)

    def _forget_slab(self, slab: Slab) -> None:
        del self.holders[slab.id]
        self.held_bytes -= slab.allocation.nbytes


def _known_by(holder: Entry | Slab) -> int:
    """By what the queue knows it when it comes back."""
    return hash(holder.key) & _HASH_MASK if isinstance(holder, Entry) else holder.id


def _goes_with(entry: Entry) -> int:
    """The bytes of pages that go with a value."""
    if entry.slab is None:
        return entry.allocation.nbytes
    alone = entry.slab.live == 1 and not entry.slab.is_open
    return entry.slab.allocation.nbytes if alone else 0


def _values(holder: Any) -> list[Entry]:
    return [holder] if isinstance(holder, Entry) else list(holder.entries.values())
