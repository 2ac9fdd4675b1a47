"""What a cache has done, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass


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
