"""What a MemoryFile says about itself, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pgalloc.enums import MemoryKind

if TYPE_CHECKING:
    from typing import Self


class _Use(NamedTuple):
    start: int
    end: int
    kind: MemoryKind
    known_committed: int
    refs: int
    memcg_id: int


class Segment(_Use):
    """A stretch of pages that are used alike: one entry of the usage set.

    It is a tuple of its attributes but the last two.

    Attributes:
        start: the offset of its first byte in the file.
        end: the offset after its last byte.
        kind: what the pages are used for; SYSTEM while they wait to be reclaimed.
        known_committed: bytes known to be backed by memory: all of the segment, or 0.
        refs: references on each page; 0 while the pages wait to be reclaimed.
        memcg_id: the memory cgroup that pays for the pages; 0 for none.
        huge: whether it lies in a part of the file that is for huge pages. Pages there without
            references that are not committed wait for the rest of their huge page to be freed.
        huge_bytes: bytes of it that update_usage() last found in huge pages, as huge_usage() counts
            them.
    """

    huge: bool
    huge_bytes: int

    def __new__(
        cls,
        start: int,
        end: int,
        kind: MemoryKind,
        known_committed: int,
        refs: int,
        memcg_id: int,
        huge: bool = False,
        huge_bytes: int = 0,
    ) -> Self:
        """Of these values."""
        self = super().__new__(cls, start, end, kind, known_committed, refs, memcg_id)
        self.huge = huge
        self.huge_bytes = huge_bytes
        return self


@dataclass(frozen=True, slots=True)
class MemoryFileStats:
    """Counts and bytes since the file was made, but where it says "now".

    Attributes:
        allocations: how many allocations succeeded.
        allocated_bytes: bytes of pages that were allocated.
        freed_bytes: bytes of pages whose last reference was dropped.
        recycled_bytes: freed bytes that went to a new owner without passing through the kernel.
        huge_allocations: how many allocations got a place for huge pages.
        huge_fallback_bytes: bytes of whole huge pages that an allocation was to have, and has in
            small pages: because there was no place for huge pages, or, of what is committed as it
            is allocated (ALLOCATE_AND_COMMIT and ALLOCATE_AND_WRITE_POPULATE), because the kernel
            gave none. Of the latter 0 where it cannot tell (before Linux 6.7). Pages that are
            touched later are not among them, nor those of peers: huge_usage() tells.
        punches: how often freed pages were given back to the kernel.
        punched_bytes: bytes of pages that were given back like that.
        decommitted_bytes: bytes of pages that decommit() gave back.
        punch_failures: how often the kernel refused to take pages back.
        lost_bytes: bytes that could be neither given back nor zeroed, and are never used again.
        discards: how often an unpinned allocation was discarded.
        discarded_bytes: bytes of pages that were discarded.
        unpinned_bytes: now: bytes of pages that may be discarded, or have been.
        waiting_bytes: now: bytes of freed pages that have not been given back yet. Some wait for
            up to 0.6 s to be recycled, as many as were asked for so lately (ALLOCATE_AND_COMMIT,
            ALLOCATE_AND_WRITE_POPULATE, the values of a Cache); never so many that they and what
            is used are more than was used in that time; none while memory is short.
        scans: commit scans, full or filtered.
        voided_results: scan results dropped because their pages changed while the scan looked.
        evicted_ranges: callbacks of evictable users that returned.
        eviction_failures: callbacks of evictable users that raised an exception.
    """

    allocations: int
    allocated_bytes: int
    freed_bytes: int
    recycled_bytes: int
    huge_allocations: int
    huge_fallback_bytes: int
    punches: int
    punched_bytes: int
    decommitted_bytes: int
    punch_failures: int
    lost_bytes: int
    discards: int
    discarded_bytes: int
    unpinned_bytes: int
    waiting_bytes: int
    scans: int
    voided_results: int
    evicted_ranges: int
    eviction_failures: int


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a background restore is, in bytes of pages.

    Attributes:
        total_bytes: what the image had in store for pages that were in use.
        loaded_bytes: what was loaded so far.
        dropped_bytes: freed or decommitted before they were loaded, and so never loaded.
        failed_bytes: could not be read, or were damaged: code that touches them gets the error.
    """

    total_bytes: int
    loaded_bytes: int
    dropped_bytes: int
    failed_bytes: int

    @property
    def pending_bytes(self) -> int:
        """Bytes still to come."""
        return self.total_bytes - self.loaded_bytes - self.dropped_bytes - self.failed_bytes


class UnadoptedRange(NamedTuple):
    """Pages of a restored file with references that no owner has adopted.

    Attributes:
        start: the offset of the first byte in the file.
        end: the offset after the last byte.
        refs: how many references on each page were not adopted.
    """

    start: int
    end: int
    refs: int

    @property
    def length(self) -> int:
        """Its length in bytes."""
        return self.end - self.start
