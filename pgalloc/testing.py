"""What users need to test their own callbacks and error handling, and pgalloc its own.

Nothing here is needed in production, and everything works in the binary that ships.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pgalloc import _core
from pgalloc._core import _testing
from pgalloc._core._testing import SegmentSet
from pgalloc.arguments import checked_int, checked_seconds
from pgalloc.cache import Cache
from pgalloc.enums import Direction
from pgalloc.errors import RangeError

if TYPE_CHECKING:
    from typing import Self

    from pgalloc.memory_file import MemoryFile

__all__ = [
    "FaultPlan",
    "ManualClock",
    "ManualPressure",
    "SegmentSet",
    "bookkeeping_bytes",
    "find_available_range",
    "pause_reclaimer",
    "prefault_methods",
    "reclaim_log",
    "reset_prefault",
    "syscall_names",
    "verify",
    "verify_cache",
    "without_loaders",
]


def _segment_set(segments: list[tuple[int, int, int]]) -> SegmentSet:
    result = SegmentSet()
    for start, end, value in segments:
        result.insert(start, end, value, False)
    return result


# A native class: for copy and pickle.
copyreg.pickle(SegmentSet, lambda segments: (_segment_set, (segments.segments(),)))


def find_available_range(
    segments: Sequence[tuple[int, int, int]],
    file_size: int,
    length: int,
    alignment: int,
    direction: Direction,
) -> _core.FileRange | None:
    """Where an allocation would go in an arbitrary picture, or None.

    ``segments`` are (start, end, references) of what is not free, in any order; what has 0
    references is not free either. The capacity is unlimited. Raises RangeError for segments that
    overlap and for an alignment that is not a power of two.
    """
    return _testing.find_available_range(
        list(segments), file_size, length, alignment, int(Direction(direction))
    )


def verify(memory_file: MemoryFile) -> None:
    """Prove the invariants of a file. Raises AssertionError with the first that is broken."""
    _check_usable(memory_file)
    broken = _testing.verify(memory_file)
    if broken is not None:
        raise AssertionError(broken)


def verify_cache(cache: Cache) -> None:
    """Prove the invariants of a cache and its file. AssertionError with the first broken one."""
    if not isinstance(cache, Cache):
        raise TypeError(f"expected a Cache, not {type(cache).__name__}")
    broken = cache._verify()
    if broken is not None:
        raise AssertionError(broken)
    verify(cache._own_file())


@contextmanager
def pause_reclaimer(memory_file: MemoryFile) -> Iterator[None]:
    """Nothing is reclaimed inside; what is freed there waits."""
    _check_usable(memory_file)
    _testing.pause_reclaimer(memory_file)
    try:
        yield
    finally:
        _testing.resume_reclaimer(memory_file)


@contextmanager
def reclaim_log(memory_file: MemoryFile) -> Iterator[list[_core.FileRange]]:
    """Collect the FileRanges that are punched inside, in order.

    The list is filled when the block ends: wait_for_reclaim() first.
    """
    _check_usable(memory_file)
    log: list[_core.FileRange] = []
    _testing.start_reclaim_log(memory_file)
    try:
        yield log
    finally:
        log += _testing.reclaim_log(memory_file)
        _testing.stop_reclaim_log(memory_file)


@contextmanager
def without_loaders() -> Iterator[None]:
    """Background restores that begin inside start no threads, in the whole process.

    Their pages arrive when they are needed, and with wait_loaded().
    """
    _testing.allow_loaders(False)
    try:
        yield
    finally:
        _testing.allow_loaders(True)


def _check_usable(memory_file: MemoryFile) -> None:
    if not isinstance(memory_file, _core.MemoryFile):
        raise TypeError(f"expected a MemoryFile, not {type(memory_file).__name__}")
    memory_file._check_usable()


def _nanoseconds(seconds: float, name: str) -> int:
    value = checked_seconds(seconds, name)
    if abs(value) > 1e9:
        raise RangeError(f"{name} must be less than 30 years")
    return round(value * 1e9)


class ManualClock:
    """Context manager: the time that throttles a file's scans moves only by hand.

    ``tick_s`` is added at each reading, so a scan, which reads the clock when it begins and when it
    ends, appears to take that long.
    """

    def __init__(self, memory_file: MemoryFile, *, tick_s: float = 0.0) -> None:
        self._file = memory_file
        self._tick_ns = _nanoseconds(tick_s, "tick_s")

    def __enter__(self) -> Self:
        _check_usable(self._file)
        _testing.use_manual_clock(self._file, 10**18, self._tick_ns)
        return self

    def __exit__(self, *error: object) -> None:
        _testing.use_real_clock(self._file)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        _testing.advance_clock(self._file, _nanoseconds(seconds, "seconds"))


class FaultPlan:
    """Context manager: calls of one system call by the core fail, in the whole process.

    ``name`` is one of syscall_names(); calls from number ``first`` on (counted from 1) fail
    ``times`` times with ``errno``. Errno 0 only counts. With ``kill``, the first of these calls
    ends the process by SIGKILL instead. One plan can be in force at a time.
    """

    def __init__(
        self,
        name: str,
        errno: int = 0,
        *,
        first: int = 1,
        times: int = 2**64 - 1,
        kill: bool = False,
    ) -> None:
        if name not in _testing.syscall_names():
            raise ValueError(f"unknown system call {name!r}")
        self._arguments = (name, errno, first, times, kill)

    def __enter__(self) -> Self:
        if not _testing.install_fault(*self._arguments):
            raise RuntimeError("another FaultPlan is in force")
        return self

    def __exit__(self, *error: object) -> None:
        _testing.remove_fault()

    @property
    def calls(self) -> int:
        """Calls of that name since this plan, or the latest one, came into force."""
        return _testing.fault_calls()

    @property
    def failures(self) -> int:
        """How many of them were made to fail."""
        return _testing.fault_failures()


class ManualPressure:
    """A context manager in which memory runs short when the test says so, and only then.

    >>> with ManualPressure() as pressure:
    ...     pressure.demand(64 << 20)  # as if 64 MiB of headroom were missing

    The guard of the memory limits does not run inside. Several may be open at once. For the
    events of a Monitor, see :class:`pgalloc.pressure.ManualSource`.
    """

    def __enter__(self) -> Self:
        _core.guard_park()
        return self

    def __exit__(self, *error: object) -> None:
        _core.guard_resume()

    def demand(self, nbytes: int) -> int:
        """Discard unpinned memory of all files, as the guard would: the bytes given back.

        More than ``nbytes`` when allocations are larger; less when there was not more.
        """
        return _testing.discard(checked_int(nbytes, "nbytes", high=2**63 - 1))


def syscall_names() -> list[str]:
    """The system calls of the core, by the names a FaultPlan takes."""
    return _testing.syscall_names()


def bookkeeping_bytes(memory_file: MemoryFile) -> int:
    """Bytes the core spends on knowing a file's pages."""
    _check_usable(memory_file)
    return _testing.bookkeeping_bytes(memory_file)


def prefault_methods() -> tuple[bool, bool]:
    """Whether this process still prefaults by MADV_POPULATE_WRITE, and by mlock."""
    return _testing.prefault_methods()


def reset_prefault() -> None:
    """Give prefault methods that were found unusable another chance."""
    _testing.reset_prefault()
