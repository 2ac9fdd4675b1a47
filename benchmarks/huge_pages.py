"""The same work in huge pages and in small ones, beside the bare calls on huge pages.

Means something only where the kernel offers huge pages to memfds:

    python stress/huge_pages.py -- python -m benchmarks --workload huge_populate huge_put
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pgalloc
from benchmarks.measure import GIB, MIB, Case, Sample, seconds_of
from pgalloc import AllocationMode

_MADV_POPULATE_WRITE = 23
_PUNCH = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_PUTS = 64
_VALUES = 16
_POPULATE = AllocationMode.ALLOCATE_AND_WRITE_POPULATE


@contextmanager
def _bare() -> Iterator[tuple[int, mmap.mmap]]:
    """A memfd of 1 GiB whose mapping is advised."""
    fd = os.memfd_create("benchmark")
    os.ftruncate(fd, GIB)
    mapping = mmap.mmap(fd, GIB)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    try:
        yield fd, mapping
    finally:
        mapping.close()
        os.close(fd)


def _punch(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate64(fd, _PUNCH, ctypes.c_int64(0), ctypes.c_int64(GIB)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def _bare_populate() -> Sample:
    with _bare() as (_, mapping):
        seconds = seconds_of(lambda: mapping.madvise(_MADV_POPULATE_WRITE))
    return Sample("huge_populate", "bare", 1, seconds, GIB)


def _bare_give_back() -> Sample:
    with _bare() as (fd, mapping):
        mapping.madvise(_MADV_POPULATE_WRITE)
        seconds = seconds_of(lambda: _punch(fd))
    return Sample("huge_give_back", "bare", 1, seconds, GIB)


def _populate(name: str, huge: bool) -> Callable[[], Sample]:
    def run() -> Sample:
        with pgalloc.MemoryFile() as file:
            seconds = seconds_of(lambda: file.allocate_range(GIB, mode=_POPULATE, huge=huge))
        return Sample("huge_populate", name, 1, seconds, GIB)

    return run


def _give_back(name: str, huge: bool) -> Callable[[], Sample]:
    def run() -> Sample:
        with pgalloc.MemoryFile() as file:
            allocation = file.allocate(GIB, mode=_POPULATE, huge=huge)

            def work() -> None:
                allocation.release()
                file.wait_for_reclaim()

            return Sample("huge_give_back", name, 1, seconds_of(work), GIB)

    return run


def _put(name: str, choice: pgalloc.memory_file.HugePages) -> Callable[[], Sample]:
    def run() -> Sample:
        data = bytearray(os.urandom(4 * MIB))
        with pgalloc.Cache(GIB, file=pgalloc.MemoryFile(huge_pages=choice)) as cache:

            def work() -> None:
                for number in range(_PUTS):
                    cache[number % _VALUES] = data

            work()
            return Sample("huge_put", name, _PUTS, seconds_of(work), _PUTS * len(data))

    return run


def _memcpy() -> Sample:
    data = bytearray(os.urandom(4 * MIB))
    values = [memoryview(bytearray(4 * MIB)) for _ in range(_VALUES)]

    def work() -> None:
        for number in range(_PUTS):
            values[number % _VALUES][:] = data

    work()
    return Sample("huge_put", "memcpy", _PUTS, seconds_of(work), _PUTS * len(data))


CASES = [
    Case("huge_populate", "python", _populate("python", True)),
    Case("huge_populate", "bare", _bare_populate),
    Case("huge_populate", "small pages", _populate("small pages", False)),
    Case("huge_give_back", "python", _give_back("python", True)),
    Case("huge_give_back", "bare", _bare_give_back),
    Case("huge_give_back", "small pages", _give_back("small pages", False)),
    Case("huge_put", "python", _put("python", "auto")),
    Case("huge_put", "memcpy", _memcpy),
    Case("huge_put", "small pages", _put("small pages", "never")),
]
