"""What a MemoryFile says about itself, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pgalloc.enums import MemoryKind


class Segment(NamedTuple):
    """A stretch of pages that are used alike: one entry of the usage set."""

    start: int
    end: int
    kind: MemoryKind
    known_committed: int
    """Bytes known to be backed by memory: all of the segment, or 0."""
    refs: int
    """References on each page; 0 while the pages wait to be reclaimed."""
    memcg_id: int


@dataclass(frozen=True, slots=True)
class MemoryFileStats:
    """Counts and bytes since the file was made."""

    allocations: int
    allocated_bytes: int
    freed_bytes: int
    """Bytes whose last reference was dropped."""
    recycled_bytes: int
    """Freed bytes that went to a new owner without passing through the kernel."""
    punches: int
    punched_bytes: int
    decommitted_bytes: int
    punch_failures: int
    lost_bytes: int
    """Bytes that could be neither given back nor zeroed, and are never used again."""
    discards: int
    """How often an unpinned allocation was discarded."""
    discarded_bytes: int
    unpinned_bytes: int
    """Not since the file was made, but now: pages that may be discarded, or have been."""
    scans: int
    """Commit scans, full or filtered."""
    voided_results: int
    """Scan results dropped because their pages changed hands while the scan looked."""
    evicted_ranges: int
    eviction_failures: int
    """Callbacks that raised an exception."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a background restore is, in bytes of pages."""

    total_bytes: int
    """What the image had in store for pages that were in use."""
    loaded_bytes: int
    dropped_bytes: int
    """Freed or decommitted before they were loaded, and so never loaded."""
    failed_bytes: int
    """Could not be read, or were damaged: whoever touches them gets the error."""

    @property
    def pending_bytes(self) -> int:
        """Still to come."""
        return self.total_bytes - self.loaded_bytes - self.dropped_bytes - self.failed_bytes


class UnadoptedRange(NamedTuple):
    """Pages of a restored file with references that nobody has adopted."""

    start: int
    end: int
    refs: int

    @property
    def length(self) -> int:
        """Bytes."""
        return self.end - self.start
