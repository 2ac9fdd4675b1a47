"""Ask how much memory is really committed, from Python."""

from __future__ import annotations

import os
from itertools import repeat

import pgalloc
from benchmarks.measure import Case, Sample, seconds_of
from pgalloc import PAGE_SIZE

_OPS = 200_000


def _python() -> Sample:
    with pgalloc.MemoryFile() as file, file.allocate(1000 * PAGE_SIZE) as allocation:
        memoryview(allocation)[0] = 1
        file.update_usage()
        update_usage = file.update_usage

        def work() -> None:
            for _ in repeat(None, _OPS):
                update_usage()

        return Sample("update_usage_same", "python", _OPS, seconds_of(work))


def _fstat() -> Sample:
    with pgalloc.MemoryFile() as file:
        fd = file.fileno()

        def work() -> None:
            for _ in repeat(None, _OPS):
                os.fstat(fd)

        return Sample("update_usage_same", "os.fstat", _OPS, seconds_of(work))


CASES = [
    Case("update_usage_same", "python", _python),
    Case("update_usage_same", "os.fstat", _fstat),
]
