"""The enumerations of the API. Their values are those of the core, and part of saved files."""

from __future__ import annotations

import enum


class MemoryKind(enum.IntEnum):
    """What a page is used for: the account is kept by kind."""

    SYSTEM = 0
    ANONYMOUS = 1
    PAGE_CACHE = 2
    TMPFS = 3
    RAMDISKFS = 4
    MAPPED = 5
    """Memory that no MemoryFile backs; it can be booked, not allocated."""


class Direction(enum.IntEnum):
    """From which end of the file a place is looked for."""

    BOTTOM_UP = 0
    TOP_DOWN = 1

    def __str__(self) -> str:
        return "up" if self is Direction.BOTTOM_UP else "down"


class AllocationMode(enum.IntEnum):
    """How far new pages are prepared."""

    ALLOCATE_ONLY = 0
    """Memory is committed page by page as it is touched."""
    ALLOCATE_AND_COMMIT = 1
    """The kernel commits all of it now (fallocate), so that touching it cannot fail."""
    ALLOCATE_AND_WRITE_POPULATE = 2
    """Committed and mapped now, as far as possible, so that touching it is fast."""


class DelayedEviction(enum.IntEnum):
    """When users are asked to let go of what they marked evictable."""

    DEFAULT = 0
    """The same as ENABLED."""
    DISABLED = 1
    """At once."""
    ENABLED = 2
    """When the reclaimer is idle, or, with memory-cgroup pressure in use, under pressure."""
    MANUAL = 3
    """When ``start_evictions()`` is called."""
