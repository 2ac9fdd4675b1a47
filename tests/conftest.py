"""Shared fixtures, and the guard that finds what a test leaves behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import leaks
import numpy as np  # noqa: F401 - starts its threads now, before the guard counts them
import pytest

import pgalloc
from pgalloc import FileRange, MemoryFile, _core, testing
from pgalloc.pressure import default_guard
from pgalloc.pressure.guard import GuardSource

# The guard of the memory limits is there once for all files, and stays: it starts now.
default_guard.ensure()
GuardSource().close()
# So is what multiprocessing starts with the first spawned process.
resource_tracker.ensure_running()

PAGE = pgalloc.PAGE_SIZE
HUGE = pgalloc.HUGE_PAGE_SIZE
CHUNK = pgalloc.CHUNK_SIZE
GIB = 1 << 30


def pytest_sessionstart() -> None:
    """Tests of an extension that is older than its sources would say nothing of them."""
    sources = [path for path in (Path(__file__).parents[1] / "csrc").rglob("*") if path.is_file()]
    newest = max(sources, key=lambda path: path.stat().st_mtime)
    if newest.stat().st_mtime > Path(_core.__file__).stat().st_mtime:
        raise pytest.UsageError(f"{newest} is newer than {_core.__file__}: install it again")


def pytest_collection_finish() -> None:
    leaks.freeze()


@pytest.fixture(autouse=True)
def leak_guard(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves descriptors, mappings, threads or booked bytes behind."""
    if request.node.get_closest_marker("leaks_allowed"):
        yield
        return
    before = leaks.begin()
    yield
    leaks.check(before)


@pytest.fixture
def mf() -> Iterator[MemoryFile]:
    """A MemoryFile whose invariants are proved at the end."""
    with MemoryFile() as memory_file:
        yield memory_file
        if not memory_file.closed:
            testing.verify(memory_file)


@pytest.fixture
def two_pages(mf: MemoryFile) -> FileRange:
    return mf.allocate_range(2 * PAGE)


def stored(memory_file: MemoryFile) -> int:
    """Bytes the kernel holds for a file, asked beside pgalloc."""
    return os.stat(memory_file.fileno()).st_blocks * 512


def update_usage(memory_file: MemoryFile) -> None:
    """update_usage() that waits out the throttle."""
    while not memory_file.update_usage():
        time.sleep(0.002)  # time: between two tries; the throttle is real


def kernel_gives_huge_pages() -> bool:
    """Whether the machine's switches let a memfd have huge pages."""
    folder = Path("/sys/kernel/mm/transparent_hugepage")
    for switch in (f"hugepages-{HUGE >> 10}kB/shmem_enabled", "shmem_enabled"):
        if (folder / switch).exists():
            choice = (folder / switch).read_text().partition("[")[2].partition("]")[0]
            if choice != "inherit":
                return choice in ("always", "within_size", "advise", "force")
    return False
