"""Signal handlers that raise: each public call is interrupted at each point where they run.

Those are where a function of Python begins, and where a native one has returned (loops apart). A
profile function is called there, too, and raises: at one after the other, until the call is over
before. Nothing stays of an interrupted call that its caller cannot let go of.
stress/interrupted.py does the same by signals, which come within native code, too.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import CHUNK, PAGE

import pgalloc
from pgalloc import Allocation, AllocationMode, DelayedEviction, EvictableRange, MemoryFile

_PACKAGE = str(Path(pgalloc.__file__).parent)


class _Hit(BaseException):
    pass


class _User:
    def evict(self, range: EvictableRange) -> None:
        pass


class Things:
    """What calls work on, and what may be left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.image = folder / "image"
        self.user = _User()
        self.file = MemoryFile(capacity=CHUNK, delayed_eviction=DelayedEviction.MANUAL)
        self.pages = self.file.allocate(4 * PAGE)
        self.file.mark_savable()
        self.file.save(self.image)
        self.restored = MemoryFile.restore(self.image)
        self.range = self.pages.range

    def left(self) -> tuple[object, ...]:
        self.file.mark_all_unevictable(self.user)
        gc.collect()
        assert self.file.wait_for_reclaim()
        if not self.restored.unadopted():  # a handle had taken it over, and is gone
            assert self.restored.wait_for_reclaim()
            assert not self.restored.segments()
            self.restored.close()
            self.restored = MemoryFile.restore(self.image)
            gc.collect()
        return (
            [(segment.start, segment.end, segment.refs) for segment in self.file.segments()],
            [segment.refs for segment in self.restored.segments()],
            len(os.listdir("/proc/self/fd")),
            sorted(os.listdir(self.folder)),
            len(self.file._evictor._known),
        )

    def close(self) -> None:
        self.file.close()
        self.restored.close()


CALLS: dict[str, Callable[[Things], Any]] = {
    "MemoryFile": lambda it: MemoryFile(capacity=CHUNK).close(),
    "allocate": lambda it: it.file.allocate(PAGE, mode=AllocationMode.ALLOCATE_AND_COMMIT),
    "allocate and read": lambda it: it.file.allocate(PAGE, reader=len),
    "array": lambda it: it.file.array(10),
    "array_like": lambda it: it.file.array_like([1, 2]),
    "clone": lambda it: it.pages.clone(),
    "slice": lambda it: it.pages.slice(0, PAGE),
    "view": lambda it: it.pages.view(readonly=True),
    "adopt": lambda it: Allocation.adopt(it.restored, it.range),
    "decommit": lambda it: it.pages.decommit(),
    "mark_evictable": lambda it: it.file.mark_evictable(it.user, EvictableRange(0, 9)),
    "mark_unevictable": lambda it: it.file.mark_unevictable(it.user, EvictableRange(0, 4)),
    "wait_for_evictions": lambda it: it.file.wait_for_evictions(),
    "update_usage": lambda it: it.file.update_usage(),
    "usage": lambda it: (it.file.usage(), it.file.segments(), it.file.stats(), str(it.file)),
    "save": lambda it: it.file.save(it.image),
    "restore": lambda it: MemoryFile.restore(it.image).close(),
    "restore in the background": lambda it: MemoryFile.restore(it.image, background=True).close(),
    "serve": lambda it: it.file.serve(it.folder / "socket").close(),
    "leases": lambda it: it.file.leases(),
    "accounting": lambda it: pgalloc.memory_accounting().copy(),
}


def _interrupted(call: Callable[[], Any], number: int) -> bool:
    """Make a call that is interrupted at the one of that number. False if it has no more."""
    left = number

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        if event not in ("call", "c_return") or not frame.f_code.co_filename.startswith(_PACKAGE):
            return
        left -= 1
        if left < 0:
            sys.setprofile(None)
            raise _Hit

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    except _Hit:
        return True
    finally:
        sys.setprofile(before)
    return False


@pytest.fixture
def things(tmp_path: Path) -> Iterator[Things]:
    made = Things(tmp_path)
    yield made
    made.close()


# Python reports what is raised in a finalizer, and goes on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_left_of_an_interrupted_call(name: str, things: Things) -> None:
    CALLS[name](things)  # what the first one makes stays: threads, sockets
    before = things.left()
    number = 0
    while _interrupted(lambda: CALLS[name](things), number):
        assert things.left() == before, f"interrupted at number {number}"
        number += 1
    assert number > 0 or name in ("allocate", "view"), "none of it is Python code"
