"""One array of 1 MiB after another: allocated, filled, read and let go."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from itertools import repeat

import numpy

import pgalloc
from benchmarks.measure import MIB, Case, Sample, seconds_of
from benchmarks.shared import shared_block

_OPS = 300


def _use(memory: object) -> None:
    array = numpy.frombuffer(memory, numpy.uint64)  # type: ignore[call-overload]
    array.fill(7)
    if array.max() != 7:
        raise RuntimeError("the array does not hold what was written")


def _sample(implementation: str, one: Callable[[], None]) -> Sample:
    def work() -> None:
        for _ in repeat(None, _OPS):
            one()

    return Sample("arrays", implementation, _OPS, seconds_of(work), MIB)


def _python() -> Sample:
    with pgalloc.MemoryFile() as file:

        def one() -> None:
            with file.allocate(MIB) as allocation:
                _use(allocation)

        return _sample("python", one)


def _populated() -> Sample:
    mode = pgalloc.AllocationMode.ALLOCATE_AND_WRITE_POPULATE
    with pgalloc.MemoryFile() as file:

        def one() -> None:
            with file.allocate(MIB, mode=mode) as allocation:
                _use(allocation)

        return _sample("python, populated", one)


def _shared_memory() -> Sample:
    def one() -> None:
        with shared_block(MIB) as memory:
            _use(memory)

    return _sample("shared_memory", one)


def _mmap() -> Sample:
    def one() -> None:
        fd = os.memfd_create("benchmark")
        os.ftruncate(fd, MIB)
        mapping = mmap.mmap(fd, MIB)
        os.close(fd)
        _use(mapping)
        mapping.close()

    return _sample("mmap on a memfd", one)


def _numpy() -> Sample:
    return _sample("numpy.empty", lambda: _use(numpy.empty(MIB, numpy.uint8)))


CASES = [
    Case("arrays", "python", _python),
    Case("arrays", "python, populated", _populated),
    Case("arrays", "shared_memory", _shared_memory),
    Case("arrays", "mmap on a memfd", _mmap),
    Case("arrays", "numpy.empty", _numpy),
]
