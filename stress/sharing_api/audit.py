"""What must be true when all are quiet: every page is accounted for, here and in the kernel."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from torture_api.marks import PromiseBrokenError

import pgalloc.testing
from pgalloc import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pgalloc import MemoryFile

    Ranges = Iterable[tuple[int, int]]

_SETTLE_S_MAX = 60.0  # those who were killed or ended are noticed meanwhile


def expect(file: MemoryFile, peers: Mapping[int, Ranges], own: Ranges) -> None:
    """Raise PromiseBrokenError unless each peer, by process id, and the owner hold just that.

    A peer has one reference on each page it has a handle on, the owner one for each handle.
    """
    leased = {pid: _pages(ranges) for pid, ranges in peers.items()}
    bytes_leased = {pid: len(pages) * PAGE_SIZE for pid, pages in leased.items() if pages}
    references: Counter[int] = Counter()
    for start, end in own:
        references.update(range(start, end, PAGE_SIZE))
    for pages in leased.values():
        references.update(pages)

    deadline = time.monotonic() + _SETTLE_S_MAX
    while (fault := _fault(file, bytes_leased, references)) is not None:
        if time.monotonic() > deadline:  # time: a bound on a hang
            raise PromiseBrokenError(fault)
        time.sleep(0.002)  # time: it polls


def _pages(ranges: Ranges) -> set[int]:
    return {page for start, end in ranges for page in range(start, end, PAGE_SIZE)}


def _fault(file: MemoryFile, bytes_leased: dict[int, int], wanted: Counter[int]) -> str | None:
    """What is not as it should be, or not yet."""
    found: Counter[int] = Counter()
    for lease in file.leases():
        found[lease.pid if lease.claimed else -1] += lease.nbytes
    if dict(found) != bytes_leased:
        return f"bytes leased, by process: {dict(found)} instead of {bytes_leased}"
    counted = {
        page: segment.refs
        for segment in file.segments()
        for page in range(segment.start, segment.end, PAGE_SIZE)
    }
    wrong = [page for page in counted.keys() | wanted if counted.get(page, 0) != wanted[page]]
    if not wrong:
        return None
    page = min(wrong)
    return (
        f"{len(wrong)} pages have a wrong number of references: at {page:#x} there are "
        f"{counted.get(page, 0)} instead of {wanted[page]}"
    )


def expect_kernel_agrees(file: MemoryFile) -> None:
    """Raise PromiseBrokenError unless the account is what the kernel stores."""
    if not file.wait_for_reclaim(60):
        raise PromiseBrokenError("the reclaimer does not come to an end")
    while not file.update_usage():
        time.sleep(0.01)  # time: scans are throttled
    pgalloc.testing.verify(file)
    booked, stored = sum(file.usage().values()), file.total_usage()
    if booked != stored:
        raise PromiseBrokenError(f"{booked} bytes are booked, the kernel stores {stored}")
