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
        bytes: what counts for ``maxsize``: ``currsize``.
        page_bytes: bytes of the pages that hold them.
        index_bytes: about what the keys and the index take in Python's heap, in bytes.
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
    page_bytes: int
    index_bytes: int
    headroom: int | None
