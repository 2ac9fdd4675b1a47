"""Which values go first when memory is wanted."""

from __future__ import annotations

import enum


class Policy(enum.StrEnum):
    """Names for Cache(policy=...), and in the core. docs/cache.md has what each hits and misses.

    Attributes:
        LRU: "lru", first the value that was not used for longest.
        SIEVE: "sieve", first the oldest value that was not used since it was last considered.
        S3_FIFO: "s3-fifo", first the values that were not asked for again soon after they came.
    """

    LRU = "lru"
    SIEVE = "sieve"
    S3_FIFO = "s3-fifo"
