"""Allocate one page and free it, from Python."""

from __future__ import annotations

import mmap
from itertools import repeat

import numpy

import pgalloc
from benchmarks.measure import Case, Sample, seconds_of
from benchmarks.shared import shared_block
from pgalloc import PAGE_SIZE

_OPS = 500_000
_SLOW_OPS = 5_000


def _python() -> Sample:
    with pgalloc.MemoryFile() as file:
        allocate, free = file.allocate_range, file.dec_ref

        def work() -> None:
            for _ in repeat(None, _OPS):
                free(allocate(PAGE_SIZE))

        return Sample("pair", "python", _OPS, seconds_of(work))


def _allocation() -> Sample:
    with pgalloc.MemoryFile() as file:
        allocate = file.allocate

        def work() -> None:
            for _ in repeat(None, _OPS):
                allocate(PAGE_SIZE).release()

        return Sample("pair", "Allocation", _OPS, seconds_of(work))


def two_c_calls(workload: str) -> Sample:
    """Call two functions that do nothing: what any pair of calls from Python costs."""
    call = callable

    def work() -> None:
        for _ in repeat(None, _OPS):
            call(call(None))

    return Sample(workload, "two C calls", _OPS, seconds_of(work))


def _numpy() -> Sample:
    empty = numpy.empty

    def work() -> None:
        for _ in repeat(None, _OPS):
            empty(PAGE_SIZE, numpy.uint8)

    return Sample("pair", "numpy.empty", _OPS, seconds_of(work))


def _mmap() -> Sample:
    def work() -> None:
        for _ in repeat(None, _SLOW_OPS):
            mmap.mmap(-1, PAGE_SIZE).close()

    return Sample("pair", "mmap", _SLOW_OPS, seconds_of(work))


def _shared_memory() -> Sample:
    def work() -> None:
        for _ in repeat(None, _SLOW_OPS):
            with shared_block(PAGE_SIZE):
                pass

    return Sample("pair", "shared_memory", _SLOW_OPS, seconds_of(work))


CASES = [
    Case("pair", "python", _python),
    Case("pair", "Allocation", _allocation),
    Case("pair", "two C calls", lambda: two_c_calls("pair")),
    Case("pair", "numpy.empty", _numpy),
    Case("pair", "mmap", _mmap),
    Case("pair", "shared_memory", _shared_memory),
]
