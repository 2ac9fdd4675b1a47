"""Get at the bytes of a random 64 KiB range, from Python."""

from __future__ import annotations

import mmap
import random

import pgalloc
from benchmarks.measure import GIB, KIB, Case, Sample, seconds_of

_OPS = 300_000
_PART = 64 * KIB
_STARTS = [i * _PART for i in random.Random(1).choices(range(GIB // _PART), k=_OPS)]


def _python() -> Sample:
    with pgalloc.MemoryFile() as file:
        base = file.allocate_range(GIB).start
        ranges = [pgalloc.FileRange(base + start, base + start + _PART) for start in _STARTS]
        map_range = file.map_range

        def work() -> None:
            for range_ in ranges:
                map_range(range_)

        return Sample("map", "python", _OPS, seconds_of(work))


def _memoryview() -> Sample:
    with mmap.mmap(-1, GIB) as mapping, memoryview(mapping) as view:
        slices = [slice(start, start + _PART) for start in _STARTS]

        def work() -> None:
            for part in slices:
                view[part]

        return Sample("map", "memoryview slice", _OPS, seconds_of(work))


CASES = [
    Case("map", "python", _python),
    Case("map", "memoryview slice", _memoryview),
]
