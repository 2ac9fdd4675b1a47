"""Allocate, write in full, free, and again: blocks of one size, one at a time.

"python" commits, so that freed pages are recycled. "fresh pages" takes pages as they are touched,
which never are: what recycling saves. "mmap" is what a program does that has no allocator.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from functools import partial

import pgalloc
from benchmarks.measure import GIB, MIB, Case, Sample, seconds_of
from pgalloc import AllocationMode

SIZES = {"64k": (MIB // 16, 4096), "2m": (2 * MIB, 256), "1g": (GIB, 3)}
_COMMIT = AllocationMode.ALLOCATE_AND_COMMIT
_PIECE = bytes(MIB)


def _write(view: memoryview | mmap.mmap) -> None:
    for offset in range(0, len(view), MIB):
        piece = min(MIB, len(view) - offset)
        view[offset : offset + piece] = _PIECE[:piece] if piece < MIB else _PIECE


def churn(workload: str, name: str, size: int, times: int, huge: bool = False) -> Sample:
    """Blocks of ``size`` bytes, so many times."""
    mode = AllocationMode.ALLOCATE_ONLY if name == "fresh pages" else _COMMIT
    with pgalloc.MemoryFile() as file:

        def work() -> None:
            for _ in range(times):
                with file.allocate(size, mode=mode, huge=huge) as block, block.view() as view:
                    _write(view)

        work()
        return Sample(workload, name, times, seconds_of(work), times * size)


def _mmap(workload: str, size: int, times: int) -> Sample:
    def work() -> None:
        for _ in range(times):
            with mmap.mmap(-1, size) as mapping:
                _write(mapping)

    work()
    return Sample(workload, "mmap", times, seconds_of(work), times * size)


def _cases(suffix: str) -> list[Case]:
    workload, (size, times) = f"churn_{suffix}", SIZES[suffix]
    works: dict[str, Callable[[], Sample]] = {
        name: partial(churn, workload, name, size, times) for name in ("python", "fresh pages")
    }
    works["mmap"] = partial(_mmap, workload, size, times)
    return [Case(workload, name, work) for name, work in works.items()]


CASES = [case for suffix in SIZES for case in _cases(suffix)]
