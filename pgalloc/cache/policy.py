"""Which values go first when memory is wanted."""

from __future__ import annotations

import enum


class Policy(enum.StrEnum):
    """Names for Cache(policy=...). docs/cache.md has what each of them hits and misses.

    Attributes:
        LRU: "lru", first the value that was not used for longest.
        SIEVE: "sieve", first the oldest value that was not used since it was last considered.
        S3_FIFO: "s3-fifo", first the values that were not asked for again soon after they came.
    """

    LRU = "lru"
    SIEVE = "sieve"
    S3_FIFO = "s3-fifo"


CORE_NUMBERS = {Policy.LRU: 0, Policy.SIEVE: 1, Policy.S3_FIFO: 2}
"""What the core calls them (DiscardPolicy)."""
