"""The same work in huge pages and in small ones, beside the bare calls on huge pages.

Means something only where the kernel offers huge pages to memfds:

    python stress/huge_pages.py -- python -m benchmarks --workload huge_populate huge_put
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy

import pgalloc
from benchmarks.churn import churn
from benchmarks.measure import GIB, MIB, Case, Sample, seconds_of
from benchmarks.snapshots import image_folder
from pgalloc import PAGE_SIZE, AllocationMode

_MADV_POPULATE_WRITE = 23
_PUNCH = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_PUTS = 64
_VALUES = 16
_READS = 4_000_000
_PARTS = 16_384  # pages: 64 MiB
_TOGETHER = 4_096
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


def _bare_refill() -> Sample:
    with _bare() as (fd, mapping):
        words = numpy.frombuffer(mapping, numpy.uint64)
        words[:] = 1
        _punch(fd)
        seconds = seconds_of(partial(words.fill, 2))
        del words
    return Sample("huge_refill", "bare", 1, seconds, GIB)


def _refill(name: str, huge: bool) -> Callable[[], Sample]:
    """Writes in full what was decommitted."""

    def run() -> Sample:
        with pgalloc.MemoryFile() as file, _resident(file, GIB, huge) as allocation:
            words = numpy.frombuffer(allocation.view(), numpy.uint64)
            allocation.decommit()
            seconds = seconds_of(partial(words.fill, 2))
            del words
        return Sample("huge_refill", name, 1, seconds, GIB)

    return run


def _parts(name: str, huge: bool) -> Callable[[], Sample]:
    """Frees 64 MiB page by page, at random within 16 MiB at a time, a page each 8 us or so.

    What is measured is the processor time of all threads.
    """

    def run() -> Sample:
        generator = numpy.random.default_rng(1)
        with pgalloc.MemoryFile() as file:
            start = file.allocate_range(_PARTS * PAGE_SIZE, huge=huge).start
            with file.map_range(pgalloc.FileRange(start, start + _PARTS * PAGE_SIZE)) as view:
                numpy.frombuffer(view, numpy.uint64).fill(1)
            pages = [
                start + (first + int(page)) * PAGE_SIZE
                for first in range(0, _PARTS, _TOGETHER)
                for page in generator.permutation(_TOGETHER)
            ]
            begin = time.process_time()
            for number, page in enumerate(pages, 1):
                file.dec_ref(pgalloc.FileRange(page, page + PAGE_SIZE))
                if number % 128 == 0:
                    time.sleep(0.001)
            file.wait_for_reclaim()
            seconds = time.process_time() - begin
        return Sample("huge_parts", name, _PARTS, seconds, _PARTS * PAGE_SIZE)

    return run


def _get(name: str, choice: pgalloc.memory_file.HugePages) -> Callable[[], Sample]:
    """Reads all of each value."""

    def run() -> Sample:
        data = bytearray(os.urandom(4 * MIB))
        with pgalloc.Cache(GIB, file=pgalloc.MemoryFile(huge_pages=choice)) as cache:
            for number in range(_VALUES):
                cache[number] = data
            return _read_all("huge_get", name, cache.__getitem__)

    return run


def _dict_get() -> Sample:
    values = {number: bytearray(os.urandom(4 * MIB)) for number in range(_VALUES)}
    return _read_all("huge_get", "dict", values.__getitem__)


def _read_all(workload: str, name: str, get: Callable[[int], Any]) -> Sample:
    def work() -> None:
        for number in range(_PUTS):
            numpy.frombuffer(get(number % _VALUES), numpy.uint64).max()

    work()
    return Sample(workload, name, _PUTS, seconds_of(work), _PUTS * 4 * MIB)


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


def _resident(file: pgalloc.MemoryFile, size: int, huge: bool) -> pgalloc.Allocation:
    """Random numbers, so that every page is stored in an image."""
    allocation = file.allocate(size, mode=_POPULATE, huge=huge)
    words = numpy.frombuffer(allocation.view(), numpy.uint64)
    words[:] = numpy.arange(1, len(words) + 1, dtype=numpy.uint64)
    return allocation


def _restore(name: str, huge: bool) -> Callable[[], Sample]:
    def run() -> Sample:
        with image_folder() as folder:
            with pgalloc.MemoryFile() as file, _resident(file, GIB, huge):
                file.save(folder / "image")
            made: list[pgalloc.MemoryFile] = []
            seconds = seconds_of(lambda: made.append(pgalloc.MemoryFile.restore(folder / "image")))
            made[0].close()
        return Sample("huge_restore", name, 1, seconds, GIB)

    return run


def _bare_restore() -> Sample:
    """Reads a file of the same length into a new mapping."""
    with image_folder() as folder, open(folder / "file", "w+b", buffering=0) as file:
        piece = os.urandom(64 * MIB)
        for _ in range(GIB // len(piece)):
            file.write(piece)
        with _bare() as (_, mapping):
            seconds = seconds_of(lambda: os.preadv(file.fileno(), [mapping], 0))
    return Sample("huge_restore", "bare", 1, seconds, GIB)


def _random(name: str, huge: bool) -> Callable[[], Sample]:
    def run() -> Sample:
        with pgalloc.MemoryFile() as file, _resident(file, 2 * GIB, huge) as allocation:
            words = numpy.frombuffer(allocation.view(), numpy.uint64)
            places = numpy.random.default_rng(1).integers(0, len(words), _READS)
            words.take(places)
            seconds = seconds_of(partial(words.take, places))
            del words
        return Sample("huge_random", name, _READS, seconds, _READS * 8)

    return run


CASES = [
    Case("huge_populate", "python", _populate("python", True)),
    Case("huge_populate", "bare", _bare_populate),
    Case("huge_populate", "small pages", _populate("small pages", False)),
    Case("huge_give_back", "python", _give_back("python", True)),
    Case("huge_give_back", "bare", _bare_give_back),
    Case("huge_give_back", "small pages", _give_back("small pages", False)),
    Case("huge_refill", "python", _refill("python", True)),
    Case("huge_refill", "bare", _bare_refill),
    Case("huge_refill", "small pages", _refill("small pages", False)),
    Case("huge_parts", "python", _parts("python", True)),
    Case("huge_parts", "small pages", _parts("small pages", False)),
    Case("huge_get", "python", _get("python", "auto")),
    Case("huge_get", "dict", _dict_get),
    Case("huge_get", "small pages", _get("small pages", "never")),
    Case("huge_put", "python", _put("python", "auto")),
    Case("huge_put", "memcpy", _memcpy),
    Case("huge_put", "small pages", _put("small pages", "never")),
    Case("huge_restore", "python", _restore("python", True)),
    Case("huge_restore", "bare", _bare_restore),
    Case("huge_restore", "small pages", _restore("small pages", False)),
    Case("huge_random", "python", _random("python", True)),
    Case("huge_random", "small pages", _random("small pages", False)),
    Case("huge_churn_1g", "python", lambda: churn("huge_churn_1g", "python", GIB, 8, huge=True)),
    Case("huge_churn_1g", "small pages", lambda: churn("huge_churn_1g", "small pages", GIB, 3)),
]
