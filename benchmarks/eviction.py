"""Mark ranges evictable and evict them through a callback, from Python."""

from __future__ import annotations

import cachetools

import pgalloc
from benchmarks.measure import Case, Sample, seconds_of
from pgalloc import DelayedEviction, EvictableRange

_RANGES = 100_000


class _User:
    def __init__(self) -> None:
        self.evicted = 0

    def evict(self, range: EvictableRange) -> None:
        self.evicted += 1


def _python() -> Sample:
    user = _User()
    ranges = [EvictableRange(2 * i, 2 * i + 1) for i in range(_RANGES)]
    with pgalloc.MemoryFile(delayed_eviction=DelayedEviction.MANUAL) as file:

        def work() -> None:
            for range_ in ranges:
                file.mark_evictable(user, range_)
            file.start_evictions()
            file.wait_for_evictions()

        seconds = seconds_of(work)
    if user.evicted != _RANGES:
        raise RuntimeError(f"only {user.evicted} of {_RANGES} ranges were evicted")
    return Sample("evictables", "python", _RANGES, seconds)


def _cachetools() -> Sample:
    cache: cachetools.LRUCache[int, int] = cachetools.LRUCache(maxsize=2 * _RANGES)

    def work() -> None:
        for i in range(_RANGES):
            cache[i] = i
        while cache:
            cache.popitem()

    return Sample("evictables", "cachetools.LRUCache", _RANGES, seconds_of(work))


CASES = [
    Case("evictables", "python", _python),
    Case("evictables", "cachetools.LRUCache", _cachetools),
]
