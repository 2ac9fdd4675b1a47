"""Make 1 GiB of memory ready to be touched, from Python."""

from __future__ import annotations

import mmap
import os

import numpy

import pgalloc
from benchmarks.measure import GIB, Case, Sample, seconds_of
from pgalloc import PAGE_SIZE, AllocationMode


def _python(workload: str, mode: AllocationMode) -> Sample:
    with pgalloc.MemoryFile() as file:
        seconds = seconds_of(lambda: file.allocate_range(GIB, mode=mode))
    return Sample(workload, "python", 1, seconds, GIB)


def _memfd() -> int:
    fd = os.memfd_create("benchmark")
    os.ftruncate(fd, GIB)
    return fd


def _mmap_populate() -> Sample:
    fd = _memfd()
    try:
        mappings: list[mmap.mmap] = []
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        seconds = seconds_of(lambda: mappings.append(mmap.mmap(fd, GIB, flags=flags)))
        mappings[0].close()
    finally:
        os.close(fd)
    return Sample("populate", "mmap MAP_POPULATE", 1, seconds, GIB)


def _numpy_touch() -> Sample:
    def work() -> None:
        numpy.empty(GIB, numpy.uint8)[::PAGE_SIZE] = 1

    return Sample("populate", "numpy, touched", 1, seconds_of(work), GIB)


def _posix_fallocate() -> Sample:
    fd = _memfd()
    try:
        seconds = seconds_of(lambda: os.posix_fallocate(fd, 0, GIB))
    finally:
        os.close(fd)
    return Sample("commit", "posix_fallocate", 1, seconds, GIB)


CASES = [
    Case(
        "populate",
        "python",
        lambda: _python("populate", AllocationMode.ALLOCATE_AND_WRITE_POPULATE),
    ),
    Case("populate", "mmap MAP_POPULATE", _mmap_populate),
    Case("populate", "numpy, touched", _numpy_touch),
    Case("commit", "python", lambda: _python("commit", AllocationMode.ALLOCATE_AND_COMMIT)),
    Case("commit", "posix_fallocate", _posix_fallocate),
]
