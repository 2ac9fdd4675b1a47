"""Shared fixtures, and the guard that finds what a test leaves behind."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np  # noqa: F401 - starts its threads now, before the guard counts them
import pytest

import pgalloc
from pgalloc import FileRange, MemoryFile, testing
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


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _own_mappings() -> int:
    """Mappings of pgalloc's files. Reservations lie beside them and are freed together."""
    return Path("/proc/self/maps").read_text().count("memfd:pgalloc")


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _leftovers() -> tuple[int, int, int, int]:
    return (
        _descriptors(),
        _own_mappings(),
        _threads(),
        pgalloc.memory_accounting().total(),
    )


@pytest.fixture(autouse=True)
def leak_guard(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves descriptors, mappings, threads or booked bytes behind."""
    if request.node.get_closest_marker("leaks_allowed"):
        yield
        return
    gc.collect()
    before = _leftovers()
    yield
    deadline = time.monotonic() + 5
    while True:
        gc.collect()
        after = _leftovers()
        if all(now <= then for now, then in zip(after, before, strict=True)):
            return
        if time.monotonic() > deadline:
            names = ("descriptors", "mappings", "threads", "booked bytes")
            grown = {
                name: (then, now)
                for name, then, now in zip(names, before, after, strict=True)
                if now > then
            }
            pytest.fail(f"left behind (before, after): {grown}; {threading.enumerate()}")
        time.sleep(0.01)


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
        time.sleep(0.002)
