"""The enumerations of the API. Their values are those of the core, and part of saved files."""

from __future__ import annotations

import enum


class MemoryKind(enum.IntEnum):
    """What a page is used for: the account is kept by kind. The caller says which it is.

    Attributes:
        SYSTEM: memory of the program itself; freed pages that wait to be reclaimed count here, too.
        ANONYMOUS: data of the application that no file holds: the default.
        PAGE_CACHE: cached contents of files.
        TMPFS: contents of files that exist in memory only.
        RAMDISKFS: contents of a file system that lies in memory.
        MAPPED: memory that no MemoryFile backs; it can be booked to a Ledger, not allocated.
    """

    SYSTEM = 0
    ANONYMOUS = 1
    PAGE_CACHE = 2
    TMPFS = 3
    RAMDISKFS = 4
    MAPPED = 5


class Direction(enum.IntEnum):
    """From which end of the file a place is looked for.

    Attributes:
        BOTTOM_UP: the lowest offsets first.
        TOP_DOWN: the highest offsets first.
    """

    BOTTOM_UP = 0
    TOP_DOWN = 1

    def __str__(self) -> str:
        return "up" if self is Direction.BOTTOM_UP else "down"


class AllocationMode(enum.IntEnum):
    """How far new pages are prepared.

    Attributes:
        ALLOCATE_ONLY: memory is committed page by page as it is touched.
        ALLOCATE_AND_COMMIT: the kernel commits all of it now (fallocate), so that touching it
            cannot fail.
        ALLOCATE_AND_WRITE_POPULATE: committed and mapped now, as far as possible, so that touching
            it is fast.
    """

    ALLOCATE_ONLY = 0
    ALLOCATE_AND_COMMIT = 1
    ALLOCATE_AND_WRITE_POPULATE = 2


class DelayedEviction(enum.IntEnum):
    """When users are asked to let go of what they marked evictable.

    Attributes:
        DEFAULT: the same as ENABLED.
        DISABLED: at once.
        ENABLED: when the reclaimer is idle, or, with memory-cgroup pressure in use, under pressure.
        MANUAL: when ``start_evictions()`` is called.
    """

    DEFAULT = 0
    DISABLED = 1
    ENABLED = 2
    MANUAL = 3
