"""Let go of 1 GiB that was written until the machine has it back, from Python."""

from __future__ import annotations

import mmap
import os
from multiprocessing.shared_memory import SharedMemory

import pgalloc
from benchmarks.measure import GIB, Case, Sample, seconds_of
from benchmarks.shared import buffer_of, discard
from pgalloc import PAGE_SIZE, AllocationMode


def _touch(memory: memoryview) -> None:
    for offset in range(0, GIB, PAGE_SIZE):
        memory[offset] = 1


def _sample(implementation: str, seconds: float) -> Sample:
    return Sample("give_back", implementation, 1, seconds, GIB)


def _python() -> Sample:
    with pgalloc.MemoryFile() as file:
        allocation = file.allocate(GIB, mode=AllocationMode.ALLOCATE_AND_WRITE_POPULATE)

        def work() -> None:
            allocation.release()
            file.wait_for_reclaim()

        return _sample("python", seconds_of(work))


def _memfd() -> Sample:
    fd = os.memfd_create("benchmark")
    os.ftruncate(fd, GIB)
    mapping = mmap.mmap(fd, GIB)
    _touch(memoryview(mapping))

    def work() -> None:
        mapping.close()
        os.close(fd)

    return _sample("mmap on a memfd", seconds_of(work))


def _shared_memory() -> Sample:
    memory = SharedMemory(create=True, size=GIB)
    _touch(buffer_of(memory))
    return _sample("shared_memory", seconds_of(lambda: discard(memory)))


CASES = [
    Case("give_back", "python", _python),
    Case("give_back", "mmap on a memfd", _memfd),
    Case("give_back", "shared_memory", _shared_memory),
]
