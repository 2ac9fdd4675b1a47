"""What a cache has done, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counts since the cache was made, and what it holds now.

    Attributes:
        hits: lookups that found a value.
        misses: lookups that found none.
        sets: values that were stored.
        evictions: values that went because of ``maxsize`` or evict().
        discards: values that went because memory ran short.
        expirations: values that went because their time was over.
        entries: how many values there are now.
        value_bytes: the lengths of all values now, in bytes.
        bytes: bytes of the pages that hold them: ``currsize``.
        headroom: bytes that can be committed before the tightest memory limit; None without one.
    """

    hits: int
    misses: int
    sets: int
    evictions: int
    discards: int
    expirations: int
    entries: int
    value_bytes: int
    bytes: int
    headroom: int | None
