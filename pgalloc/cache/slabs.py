"""Small values share pages: a slab is an Allocation cut into slots of one size.

Thread safety: externally synchronised (the cache's lock).

Invariants:
  1. A slab is open (pinned; the one of its slot size that is being filled) or waits in the cache's
     discard queue, with all its values: what is discarded is a whole slab.
  2. A slot is given to one value at a time. One that was let go of is used again only when no view
     of the slab is alive: a view stays what it was as long as it is held.
  3. ``live`` is the number of slots that hold a value; a slab without any is released.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

from pgalloc import _core
from pgalloc.allocation import Allocation

if TYPE_CHECKING:
    from pgalloc.cache.entry import Entry

SMALL_MAX = _core.PAGE_SIZE // 4 * 3
"""Values up to this length share pages. A longer one would have a slab nearly to itself."""

_SLOT_ALIGNMENT = 8
_TINY_MAX = 512
_PAGES = {True: 1, False: 4}  # in a slab of tiny values, and of longer ones: less is left over


def slot_size(length: int) -> int:
    """The size of the slots for values of ``length`` bytes: what a slab holds most of."""
    slab = slab_size(length)
    wanted = max(-(-length // _SLOT_ALIGNMENT), 1) * _SLOT_ALIGNMENT
    return slab // (slab // wanted) // _SLOT_ALIGNMENT * _SLOT_ALIGNMENT


def slab_size(length: int) -> int:
    """The bytes of a slab for values of ``length`` bytes."""
    return _PAGES[length <= _TINY_MAX] * _core.PAGE_SIZE


def is_possible(slot: int, slab: int) -> bool:
    """Whether slabs of this size may have slots of this size, here or in another version."""
    return slab <= 64 * _core.PAGE_SIZE and _SLOT_ALIGNMENT <= slot <= slab


class Slab:
    """One slab; its values' entries know it as their holder."""

    __slots__ = ("allocation", "entries", "fresh", "id", "is_open", "slot", "vacant")

    def __init__(self, allocation: Allocation, slot: int, number: int) -> None:
        self.allocation = allocation
        self.slot = slot
        self.id = number
        self.entries: dict[int, Entry] = {}  # by the offset of their slots
        self.fresh = 0  # the offset of the first slot that was never used
        self.vacant: list[int] = []
        self.is_open = True

    @property
    def live(self) -> int:
        """How many values are in the slab."""
        return len(self.entries)

    def take_slot(self) -> int | None:
        """The offset of a free slot; None if there is none that may be used now."""
        if self.fresh + self.slot <= self.allocation.nbytes:
            self.fresh += self.slot
            return self.fresh - self.slot
        if self.vacant and not self.allocation._in_use:
            return self.vacant.pop()
        return None


class Slabs:
    """The slabs of a cache."""

    def __init__(self, queue: _core.DiscardQueue) -> None:
        self._queue = queue
        self._open: dict[int, Slab] = {}  # by slot size
        self._vacant: dict[int, dict[int, Slab]] = {}  # closed ones with vacant slots, by id

    def open_slabs(self) -> list[Slab]:
        """Those being filled, which the core must not discard."""
        return list(self._open.values())

    def reusable(self, length: int, gone: Callable[[Slab], None]) -> tuple[Slab, int] | None:
        """A slot for a value of this length in a slab that exists.

        ``gone(slab)`` is called for one that is of no use any more: it was discarded, or is empty.
        """
        slot = slot_size(length)
        slab = self._open.get(slot)
        if slab is not None:
            offset = slab.take_slot()
            if offset is not None:
                return slab, offset
            if slab.live == 0:  # but there are views of what it held
                gone(slab)
            else:
                self._close(slab)
        for slab in list(itertools.islice(self._vacant.get(slot, {}).values(), 4)):
            if slab.allocation._in_use:
                # Behind the others: if it is read for long, it must not be in their way.
                self._vacant[slot][slab.id] = self._vacant[slot].pop(slab.id)
                continue
            if not slab.allocation.pin():
                gone(slab)
                continue
            del self._vacant[slot][slab.id]
            slab.is_open = True
            self._open[slot] = slab
            return slab, slab.vacant.pop()
        return None

    def add(self, allocation: Allocation, length: int, number: int) -> Slab:
        """A new slab, open for values of this length, for which there is no other."""
        slot = slot_size(length)
        allocation._count_hits_in(self._queue)
        slab = self._open[slot] = Slab(allocation, slot, number)
        return slab

    def _close(self, slab: Slab) -> None:
        """Let the slab wait with the others to be discarded."""
        slab.is_open = False
        del self._open[slab.slot]
        if slab.vacant:
            self._vacant.setdefault(slab.slot, {})[slab.id] = slab
        slab.allocation._unpin_into(self._queue, slab.id, slab.id)

    def vacate(self, slab: Slab, offset: int) -> bool:
        """The value in this slot is gone. True if the slab is, too."""
        del slab.entries[offset]
        if slab.live == 0 and not slab.is_open:
            self.drop(slab)
            return True
        slab.vacant.append(offset)
        if not slab.is_open:
            self._vacant.setdefault(slab.slot, {})[slab.id] = slab
        return False

    def restart(self, slabs: list[Slab]) -> None:
        """Have exactly these slabs, none of them open, with their entries."""
        self._open = {}
        self._vacant = {}
        for slab in slabs:
            self.take_over(slab)

    def take_over(self, slab: Slab) -> None:
        """A slab that is not open, with its entries."""
        slab.is_open = False
        slab.vacant = [at for at in range(0, slab.fresh, slab.slot) if at not in slab.entries]
        if slab.vacant:
            self._vacant.setdefault(slab.slot, {})[slab.id] = slab

    def drop(self, slab: Slab) -> None:
        """The slab is gone, with all that is in it."""
        if self._open.get(slab.slot) is slab:
            del self._open[slab.slot]
        self._vacant.get(slab.slot, {}).pop(slab.id, None)
        slab.is_open = False
        slab.allocation.release()
