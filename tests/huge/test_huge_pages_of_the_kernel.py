"""That what is laid out for huge pages is in huge pages."""

from __future__ import annotations

import ctypes
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from waiting import eventually

import pgalloc
from huge.conftest import huge_bytes, is_advised
from pgalloc import HUGE_PAGE_SIZE as HUGE
from pgalloc import PAGE_SIZE as PAGE
from pgalloc import Allocation, AllocationMode, FileRange, MemoryFile, testing

MADV_COLLAPSE = 25
MODES = list(AllocationMode)


def exact(mf: MemoryFile) -> int:
    """What is committed, once account and kernel agree on it."""
    assert mf.wait_for_reclaim(20)
    while not mf.update_usage():
        pass
    assert sum(mf.usage().values()) == mf.total_usage()
    assert mf.huge_usage() == sum(s.huge_bytes for s in mf.segments())
    return mf.total_usage()


def expect_huge(mf: MemoryFile, count: int) -> None:
    """That the kernel and pgalloc have so many huge pages of ``mf``."""
    exact(mf)
    assert mf.huge_usage() == huge_bytes() == count * HUGE


@pytest.mark.parametrize("mode", MODES)
def test_all_of_it_is_in_huge_pages(mf: MemoryFile, mode: AllocationMode) -> None:
    a = mf.allocate(32 * HUGE + PAGE, huge=True, mode=mode)
    a.view()[:: HUGE // 2] = bytes(65)
    a.view()[-1] = 1
    assert huge_bytes() == 32 * HUGE
    assert exact(mf) == a.nbytes
    assert mf.huge_usage() == 32 * HUGE
    assert mf.stats().huge_fallback_bytes == 0
    a.release()
    assert exact(mf) == 0
    assert mf.huge_usage() == 0


@pytest.mark.parametrize("mode", MODES)
def test_small_allocations_are_in_small_pages(mf: MemoryFile, mode: AllocationMode) -> None:
    handles = [mf.allocate(length, mode=mode) for length in (PAGE, HUGE, 4 * HUGE)]
    for a in handles:
        a.view()[0] = 1
        assert not is_advised(a.address)
    assert huge_bytes() == 0
    if mode == AllocationMode.ALLOCATE_ONLY:
        assert exact(mf) == 3 * PAGE


def test_a_byte_of_a_huge_page_commits_all_of_it(mf: MemoryFile) -> None:
    a = mf.allocate(3 * HUGE, huge=True)
    a.view()[HUGE] = 1
    assert (exact(mf), huge_bytes()) == (HUGE, HUGE)


def test_what_pgalloc_writes_itself_is_in_huge_pages(mf: MemoryFile) -> None:
    data = bytes(range(256)) * (4 * HUGE // 256)
    cache = pgalloc.Cache("64M", file=mf)
    cache["key"] = data
    assert huge_bytes() == 4 * HUGE
    array = mf.array_like(np.frombuffer(data, np.uint8))
    assert huge_bytes() == 8 * HUGE
    shared = pgalloc.share(np.frombuffer(data, np.uint8), file=mf)
    assert huge_bytes() == 12 * HUGE
    assert bytes(cache["key"]) == bytes(array) == bytes(shared.get()) == data
    assert exact(mf) == sum(s.end - s.start for s in mf.segments() if s.refs)


def test_with_never_nothing_is(mf: MemoryFile) -> None:
    with MemoryFile(huge_pages="never") as small:
        a = small.allocate(4 * HUGE, huge=True, mode=AllocationMode.ALLOCATE_AND_WRITE_POPULATE)
        assert huge_bytes() == 0
        a.release()


def test_of_a_huge_page_used_in_part_the_kernel_makes_no_huge_page(mf: MemoryFile) -> None:
    """Its own thread would, and commit what is in no account. MADV_COLLAPSE does as that does."""
    a = mf.allocate(2 * HUGE, huge=True, mode=AllocationMode.ALLOCATE_AND_COMMIT)
    address = a.address
    kept = a.slice(0, 3 * PAGE)
    other = a.slice(HUGE, 2 * HUGE)
    a.release()
    assert exact(mf) == HUGE + 3 * PAGE
    assert not is_advised(address)
    assert is_advised(other.address)
    assert collapse(address) == errno.EINVAL
    assert exact(mf) == HUGE + 3 * PAGE
    # Free as a whole, it is what it was.
    kept.release()
    assert exact(mf) == HUGE
    again = mf.allocate(HUGE, huge=True, mode=AllocationMode.ALLOCATE_AND_COMMIT)
    assert again.address == address
    assert is_advised(address)
    assert huge_bytes() == 2 * HUGE


def test_an_area_that_joins_leaves_its_neighbours_advice_alone() -> None:
    """An allocation that reaches from one area into the next, which was for small pages."""
    with MemoryFile(capacity=32 * HUGE) as mf:  # areas of two huge pages
        a = mf.allocate(HUGE, huge=True)
        kept = a.slice(0, PAGE)
        a.release()
        assert mf.wait_for_reclaim(20)
        kept.view()[0] = 1
        b = mf.allocate(2 * HUGE, huge=True)
        assert b.range.start == HUGE
        b.view()[0] = 1
        assert [is_advised(at) for at in (kept.address, b.address, b.address + HUGE)] == [
            False,
            True,
            True,
        ]


@pytest.fixture
def referenced() -> Iterator[Callable[[int], Callable[[], None]]]:
    """Makes the kernel refer to the page at an address, so that its huge page cannot be split."""
    libc = ctypes.CDLL(None, use_errno=True)
    with ExitStack() as open_pipes:

        def refer(address: int) -> Callable[[], None]:
            reads, writes = os.pipe()
            pipe = open_pipes.enter_context(ExitStack())
            pipe.callback(os.close, reads)
            pipe.callback(os.close, writes)
            part = (ctypes.c_size_t * 2)(address, PAGE)
            assert libc.vmsplice(writes, part, 1, 0) == PAGE, os.strerror(ctypes.get_errno())
            return pipe.close

        yield refer


def test_parts_go_back_once_nothing_refers_to_their_huge_page(
    mf: MemoryFile, referenced: Callable[[int], Callable[[], None]]
) -> None:
    a = mf.allocate(2 * HUGE, huge=True, mode=AllocationMode.ALLOCATE_AND_COMMIT)
    ends = [referenced(a.address), referenced(a.address + HUGE)]
    kept = [a.slice(0, PAGE), a.slice(HUGE, HUGE + PAGE)]
    a.release()
    # Not waited for for ever, and in the account as long as they are in memory.
    assert exact(mf) == 2 * HUGE
    ends[0]()
    eventually(lambda: exact(mf) == HUGE + PAGE)
    ends[1]()
    eventually(lambda: exact(mf) == 2 * PAGE)
    assert [page.view()[0] for page in kept] == [0, 0]


def test_a_part_that_came_back_into_memory_goes_with_the_next_look(mf: MemoryFile) -> None:
    a = mf.allocate(HUGE, huge=True, mode=AllocationMode.ALLOCATE_AND_COMMIT)
    start = a.range.start
    kept = a.slice(0, PAGE)
    a.release()
    assert exact(mf) == PAGE
    with mf.map_range(FileRange(start + 4 * PAGE, start + 6 * PAGE)) as view:
        view[0] = view[PAGE] = 1
    assert mf.total_usage() == 3 * PAGE
    exact(mf)
    assert exact(mf) == PAGE
    testing.verify(mf)
    kept.release()


@pytest.mark.parametrize("way", ["eager", "background", "stream", "encoded"])
def test_huge_pages_are_restored_where_all_of_them_is_stored(way: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with MemoryFile() as mf:
        a = mf.allocate(8 * HUGE, huge=True)
        view = np.frombuffer(a.view(), np.uint64).reshape(8, -1)
        view[[1, 2, 5]] = np.arange(HUGE // 8) // 64 + 1
        view[3, 0] = view[4, -1] = 1
        mf.save(image, compression="zstd" if way == "encoded" else None)
        expected = bytes(a.view())
        place = a.range
        del view
        a.release()
    source = io.BytesIO(image.read_bytes()) if way == "stream" else image
    with MemoryFile.restore(source, background=way == "background") as again:
        a = Allocation.adopt(again, place)
        assert again.wait_loaded(20)
        assert exact(again) == 3 * HUGE + 2 * PAGE
        assert [is_advised(a.address + at * HUGE) for at in (1, 2, 3, 4, 5)] == [
            *(True, True, False, False, True)
        ]
        assert os.pread(again.fileno(), len(expected), place.start) == expected
        assert huge_bytes() == 3 * HUGE
        # What was never touched is as it was.
        a.view()[7 * HUGE] = 1
        assert (huge_bytes(), exact(again)) == (4 * HUGE, 4 * HUGE + 2 * PAGE)
        a.release()
        assert exact(again) == 0
        testing.verify(again)


def collapse(address: int) -> int:
    """The error of making a huge page of what is there; 0 for none."""
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_void_p(address), ctypes.c_size_t(HUGE), MADV_COLLAPSE)
    return 0 if libc.madvise(*arguments) == 0 else ctypes.get_errno()


@pytest.mark.parametrize("mode", MODES)
def test_a_peers_allocation_is_in_huge_pages(
    mf: MemoryFile, tmp_path: Path, mode: AllocationMode
) -> None:
    with mf.serve(tmp_path / "socket"):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with pgalloc.connect(tmp_path / "socket") as peer:
                    a = peer.allocate(4 * HUGE + PAGE, huge=True, mode=mode)
                    a.view()[::HUGE] = b"12345"
                    status = 0 if huge_bytes() == 4 * HUGE else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_child_sees_its_parents_and_makes_none(mf: MemoryFile) -> None:
    a = mf.allocate(2 * HUGE, huge=True)
    a.view()[0] = 5
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            assert a.view()[0] == 5
            a.view()[HUGE] = 6
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert a.view()[HUGE] == 6
    assert exact(mf) == HUGE + PAGE


# --- How much is in huge pages (row H6) -----------------------------------------------------------


def test_h6_after_each_change_it_is_what_the_kernel_says(mf: MemoryFile) -> None:
    a = mf.allocate(6 * HUGE, huge=True, mode=AllocationMode.ALLOCATE_AND_COMMIT)
    expect_huge(mf, 6)
    parts = [a.slice(n * HUGE, (n + 1) * HUGE) for n in range(6)]
    a.release()
    parts[0].release()  # a whole one
    expect_huge(mf, 5)
    small = parts[1].slice(0, PAGE)
    parts[1].release()  # all but a page: split
    expect_huge(mf, 4)
    parts[2].decommit()  # gone as a whole, and still used
    expect_huge(mf, 3)
    parts[2].view()[0] = 1  # and back
    expect_huge(mf, 4)
    parts[3].slice(PAGE, 2 * PAGE).decommit()  # split by a hole
    expect_huge(mf, 3)
    for handle in (small, *parts[2:]):
        handle.release()
    assert exact(mf) == 0
    assert mf.huge_usage() == 0


def test_h6_what_the_kernel_makes_of_small_pages_is_seen_later(mf: MemoryFile) -> None:
    """Nothing of the file has changed; MADV_COLLAPSE does as the kernel's own thread."""
    with testing.ManualClock(mf) as clock:
        a = mf.allocate(2 * HUGE, huge=True)
        os.posix_fallocate(mf.fileno(), a.range.start, a.nbytes)  # knows no advice
        a.view()[::PAGE] = bytes(2 * HUGE // PAGE)
        assert mf.update_usage()
        assert mf.huge_usage() == 0
        assert collapse(a.address) == 0
        a.view()[0] = 1
        clock.advance(3600)
        assert mf.update_usage()
        assert mf.huge_usage() == huge_bytes() == HUGE
        assert sum(mf.usage().values()) == 2 * HUGE
        a.release()


def test_h6_what_a_peer_has_mapped_is_not_here_before_it_is_touched_here(
    mf: MemoryFile, tmp_path: Path
) -> None:
    a = mf.allocate(2 * HUGE, huge=True)
    with mf.serve(tmp_path / "socket"):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with pgalloc.connect(tmp_path / "socket") as peer:
                    b = peer.allocate(
                        HUGE, huge=True, mode=AllocationMode.ALLOCATE_AND_WRITE_POPULATE
                    )
                    status = 0 if huge_bytes() == b.nbytes else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    exact(mf)
    assert mf.huge_usage() == 0
    a.release()


def test_h6_a_child_of_a_fork_has_figures_of_its_own(mf: MemoryFile) -> None:
    a = mf.allocate(4 * HUGE, huge=True, mode=AllocationMode.ALLOCATE_AND_COMMIT)
    exact(mf)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with MemoryFile() as own:
                b = own.allocate(HUGE + PAGE, huge=True, mode=AllocationMode.ALLOCATE_AND_COMMIT)
                exact(own)
                if (own.huge_usage(), own.stats().huge_fallback_bytes) == (HUGE, 0):
                    status = 0
                b.release()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    exact(mf)
    assert mf.huge_usage() == 4 * HUGE
    a.release()
