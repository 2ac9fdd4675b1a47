"""Off-heap page memory for Python on Linux.

Start with :class:`MemoryFile`: it hands out pages that are counted, mapped at stable addresses,
accounted for, and given back to the kernel when nothing holds them any more.
"""

import logging as _logging
import sys as _sys

if _sys.platform != "linux":
    raise ImportError(
        f"pgalloc needs Linux (memfd, fallocate, cachestat); this is {_sys.platform!r}"
    )

from pgalloc import pressure
from pgalloc._core import CHUNK_SIZE, HUGE_PAGE_SIZE, PAGE_SIZE, EvictableRange, FileRange
from pgalloc.accounting import Ledger, memory_accounting, total_memory
from pgalloc.allocation import Allocation
from pgalloc.cache import Cache, CacheStats, Policy, cached
from pgalloc.enums import AllocationMode, DelayedEviction, Direction, MemoryKind
from pgalloc.errors import (
    AccountError,
    ClosedError,
    Error,
    FillError,
    ForkedError,
    OptionError,
    OutOfMemoryError,
    OwnerGoneError,
    RangeError,
    RefCountError,
    SharingError,
    SnapshotCorruptError,
    SnapshotError,
    SnapshotVersionError,
)
from pgalloc.eviction import EvictableUser
from pgalloc.memory_file import MemoryFile
from pgalloc.records import LoadProgress, MemoryFileStats, Segment, UnadoptedRange
from pgalloc.shared import Shared, array, share
from pgalloc.shared_list import SharedList
from pgalloc.sharing import Lease, Limits, PeerFile, Server, connect
from pgalloc.snapshot.images import ImageExtent, ImageInfo, inspect_image, verify_image

_logging.getLogger("pgalloc").addHandler(_logging.NullHandler())

__version__ = "0.1.0"

__all__ = [
    "CHUNK_SIZE",
    "HUGE_PAGE_SIZE",
    "PAGE_SIZE",
    "AccountError",
    "Allocation",
    "AllocationMode",
    "Cache",
    "CacheStats",
    "ClosedError",
    "DelayedEviction",
    "Direction",
    "Error",
    "EvictableRange",
    "EvictableUser",
    "FileRange",
    "FillError",
    "ForkedError",
    "ImageExtent",
    "ImageInfo",
    "Lease",
    "Ledger",
    "Limits",
    "LoadProgress",
    "MemoryFile",
    "MemoryFileStats",
    "MemoryKind",
    "OptionError",
    "OutOfMemoryError",
    "OwnerGoneError",
    "PeerFile",
    "Policy",
    "RangeError",
    "RefCountError",
    "Segment",
    "Server",
    "Shared",
    "SharedList",
    "SharingError",
    "SnapshotCorruptError",
    "SnapshotError",
    "SnapshotVersionError",
    "UnadoptedRange",
    "array",
    "cached",
    "connect",
    "inspect_image",
    "memory_accounting",
    "pressure",
    "share",
    "total_memory",
    "verify_image",
]
