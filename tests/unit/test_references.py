"""Sections C and D: references and decommit, and rows E1 to E4 of the range layer."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading

import numpy as np
import pytest
from children import in_child
from conftest import CHUNK, GIB, HUGE, PAGE, stored, update_usage
from held_call import HeldCall
from waiting import eventually, join

import pgalloc
from pgalloc import (
    AllocationMode,
    EvictableRange,
    FileRange,
    MemoryFile,
    MemoryKind,
    OptionError,
    RangeError,
    RefCountError,
    testing,
)
from pgalloc.testing import FaultPlan


def refs(mf: MemoryFile) -> list[tuple[int, int]]:
    """(pages, references) of each segment."""
    return [((s.end - s.start) // PAGE, s.refs) for s in mf.segments()]


def pages(first: int, last: int) -> FileRange:
    return FileRange(first * PAGE, last * PAGE)


BAD_RANGES = [
    FileRange(0, 0),
    FileRange(PAGE, PAGE),
    FileRange(1, PAGE),
    FileRange(0, PAGE - 1),
    FileRange(PAGE // 2, PAGE + PAGE // 2),
    FileRange(0, 5 * PAGE),
    FileRange(4 * PAGE, 5 * PAGE),
    FileRange(2 * PAGE, 2**63 - PAGE),
    FileRange(2**63, 2**63 + PAGE),
    FileRange(2**64 - PAGE, 2**64 - 1),
]


COUNTING = ("inc_ref", "dec_ref", "has_unique_ref", "first_shared_range")


@pytest.mark.parametrize("range_", BAD_RANGES)
@pytest.mark.parametrize("call", [*COUNTING, "decommit"])
def test_c1_bad_ranges_change_nothing(mf: MemoryFile, call: str, range_: FileRange) -> None:
    mf.allocate_range(4 * PAGE)
    before = mf.segments()
    with pytest.raises(RangeError):
        getattr(mf, call)(range_)
    assert mf.segments() == before


@pytest.mark.parametrize("value", [None, 0, PAGE, (0, PAGE), "x", EvictableRange(0, PAGE)])
@pytest.mark.parametrize("call", [*COUNTING, "decommit", "map_range"])
def test_c1_only_file_ranges_are_ranges(mf: MemoryFile, call: str, value: object) -> None:
    mf.allocate_range(PAGE)
    with pytest.raises(TypeError):
        getattr(mf, call)(value)
    assert refs(mf) == [(1, 1)]


def test_c1_a_hole_in_the_middle_changes_nothing(mf: MemoryFile) -> None:
    mf.allocate_range(5 * PAGE)
    mf.dec_ref(pages(2, 3))
    mf.wait_for_reclaim()
    for call in (mf.inc_ref, mf.dec_ref, mf.decommit):
        with pytest.raises(RangeError):
            call(pages(0, 5))
        assert refs(mf) == [(2, 1), (2, 1)]


def test_c2_references_are_per_page(mf: MemoryFile) -> None:
    first = mf.allocate_range(4 * PAGE)
    second = mf.allocate_range(4 * PAGE, kind=MemoryKind.TMPFS)
    assert first.end == second.start
    mf.inc_ref(pages(2, 6))
    assert refs(mf) == [(2, 1), (2, 2), (2, 2), (2, 1)]
    mf.inc_ref(pages(3, 4))
    assert refs(mf) == [(2, 1), (1, 2), (1, 3), (2, 2), (2, 1)]
    mf.dec_ref(pages(3, 4))
    mf.dec_ref(pages(2, 6))
    assert refs(mf) == [(4, 1), (4, 1)]  # equal neighbours merged, different kinds did not


def test_c2_the_set_stays_minimal(mf: MemoryFile) -> None:
    for _ in range(50):
        mf.allocate_range(PAGE)
    assert refs(mf) == [(50, 1)]
    for page in range(0, 50, 2):
        mf.inc_ref(pages(page, page + 1))
    assert len(mf.segments()) == 50
    for page in range(1, 50, 2):
        mf.inc_ref(pages(page, page + 1))
    assert refs(mf) == [(50, 2)]
    testing.verify(mf)


def test_c3_no_page_comes_back_from_zero(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(4 * PAGE)
    with testing.pause_reclaimer(mf):
        mf.dec_ref(pages(1, 2))
        for attempt in (pages(1, 2), range_):
            with pytest.raises(RefCountError):
                mf.inc_ref(attempt)
        assert refs(mf) == [(1, 1), (1, 0), (2, 1)]


def test_c4_below_zero_is_an_error(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(4 * PAGE)
    with testing.pause_reclaimer(mf):
        mf.dec_ref(pages(1, 2))
        for attempt in (pages(1, 2), range_):
            with pytest.raises(RefCountError):
                mf.dec_ref(attempt)
        assert refs(mf) == [(1, 1), (1, 0), (2, 1)]
    mf.wait_for_reclaim()
    with pytest.raises(RangeError):
        mf.dec_ref(range_)


def test_c4_waste_is_booked_as_system(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(4 * PAGE, kind=MemoryKind.PAGE_CACHE, memcg_id=5)
    mf.map_range(range_)[:] = b"x" * (4 * PAGE)
    update_usage(mf)
    with testing.pause_reclaimer(mf):
        mf.dec_ref(pages(0, 3))
        assert mf.usage()[MemoryKind.SYSTEM] == 3 * PAGE
        assert mf.usage()[MemoryKind.PAGE_CACHE] == PAGE
        assert mf.usage(5)[MemoryKind.SYSTEM] == 3 * PAGE
        first = mf.segments()[0]
        assert (first.kind, first.refs, first.memcg_id) == (MemoryKind.SYSTEM, 0, 5)
        testing.verify(mf)
    mf.wait_for_reclaim()
    assert mf.usage(5)[MemoryKind.SYSTEM] == 0
    assert mf.usage(5)[MemoryKind.PAGE_CACHE] == PAGE


def test_c4_the_reclaimer_is_woken_by_the_last_reference_only(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(PAGE)
    mf.inc_ref(range_)
    mf.dec_ref(range_)
    assert mf.wait_for_reclaim(0)
    assert refs(mf) == [(1, 1)]
    mf.dec_ref(range_)
    # Nothing in pgalloc waits for it: the reclaimer must have been woken by dec_ref itself.
    eventually(lambda: mf.segments() == [], "reclaim")


def test_c6_the_first_shared_range(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(10 * PAGE)
    assert mf.first_shared_range(range_) is None
    for shared in (pages(2, 5), pages(4, 6), pages(8, 9)):
        mf.inc_ref(shared)
    assert mf.first_shared_range(range_) == pages(2, 6)  # whatever the counts are
    assert mf.first_shared_range(pages(3, 10)) == pages(3, 6)
    assert mf.first_shared_range(pages(3, 5)) == pages(3, 5)
    assert mf.first_shared_range(pages(6, 10)) == pages(8, 9)
    assert mf.first_shared_range(pages(9, 10)) is None
    mf.dec_ref(range_)
    with pytest.raises(RangeError):
        mf.first_shared_range(range_)
    assert mf.first_shared_range(pages(2, 6)) == pages(4, 5)


def test_c5_unique(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(4 * PAGE)
    assert mf.has_unique_ref(range_) is True
    mf.inc_ref(pages(3, 4))
    assert mf.has_unique_ref(range_) is False
    assert mf.has_unique_ref(pages(0, 3)) is True
    mf.dec_ref(pages(3, 4))
    assert mf.has_unique_ref(range_) is True


def test_c3_inc_ref_charges_pages_that_no_cgroup_pays_for(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(2 * PAGE)
    mf.map_range(range_)[:] = b"x" * (2 * PAGE)
    update_usage(mf)
    mf.inc_ref(pages(0, 1), 9)
    mf.inc_ref(range_, memcg_id=4)
    assert [s.memcg_id for s in mf.segments()] == [9, 4]
    assert mf.usage(9)[MemoryKind.ANONYMOUS] == PAGE
    assert mf.usage(4)[MemoryKind.ANONYMOUS] == PAGE
    for bad in (-1, 2**32, 2**64):
        with pytest.raises(RangeError):
            mf.inc_ref(range_, bad)
    with pytest.raises(TypeError):
        mf.inc_ref(range_, memcg=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        mf.inc_ref()  # type: ignore[call-arg]


# --- D: decommit --------------------------------------------------


def test_d1_d2_decommit(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(4 * PAGE, kind=MemoryKind.TMPFS, memcg_id=6)
    mf.inc_ref(pages(0, 2))
    view = mf.map_range(range_)
    view[:] = b"x" * (4 * PAGE)
    update_usage(mf)
    assert mf.usage(6)[MemoryKind.TMPFS] == 4 * PAGE
    mf.decommit(pages(1, 3))
    assert bytes(view) == b"x" * PAGE + bytes(2 * PAGE) + b"x" * PAGE
    assert mf.usage(6)[MemoryKind.TMPFS] == 2 * PAGE
    # References unchanged, and the memory cgroup is kept.
    assert refs(mf) == [(1, 2), (1, 2), (1, 1), (1, 1)]
    assert {s.memcg_id for s in mf.segments()} == {6}
    update_usage(mf)
    assert mf.usage(6)[MemoryKind.TMPFS] == stored(mf)


def test_d1_failure_leaves_the_account_alone(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(2 * PAGE)
    mf.map_range(range_)[:] = b"x" * (2 * PAGE)
    update_usage(mf)
    before = (mf.segments(), mf.usage())
    with FaultPlan("fallocate", errno.EIO), pytest.raises(OSError, match="fallocate"):
        mf.decommit(range_)
    assert (mf.segments(), mf.usage()) == before
    assert bytes(mf.map_range(range_)) == b"x" * (2 * PAGE)


def test_d1_manual_zeroing_writes_zeros() -> None:
    with MemoryFile(manual_zeroing=True) as mf:
        range_ = mf.allocate_range(2 * PAGE)
        mf.map_range(range_)[:] = b"x" * (2 * PAGE)
        with FaultPlan("fallocate") as counted:
            mf.decommit(range_)
            assert counted.calls == 0
        assert bytes(mf.map_range(range_)) == bytes(2 * PAGE)
        testing.verify(mf)


def test_d2_neighbours_merge_after_decommit(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(4 * PAGE)
    mf.map_range(range_)[PAGE] = 1
    update_usage(mf)
    assert len(mf.segments()) == 3
    mf.decommit(range_)
    assert len(mf.segments()) == 1


def test_decommit_holds_the_pages_against_their_owner(mf: MemoryFile) -> None:
    """Freed meanwhile, they must not reach a new owner before the punch is through."""
    range_ = mf.allocate_range(GIB, mode=AllocationMode.ALLOCATE_AND_COMMIT)
    thread = threading.Thread(target=mf.decommit, args=(range_,))
    thread.start()
    while mf.segments()[0].refs == 1 and thread.is_alive():
        pass
    assert mf.segments()[0].refs == 2  # a GiB takes long enough to be seen
    mf.dec_ref(range_)
    seen = 0
    while thread.is_alive():
        held = mf.segments()
        if mf.stats().decommitted_bytes == 0:
            assert [s.refs for s in held] == [1]
            seen += 1
    assert seen > 0
    thread.join()
    mf.wait_for_reclaim()
    assert mf.segments() == []


# --- E: mapping --------------------------------------------------


def test_e1_any_bytes_inside_the_file(mf: MemoryFile) -> None:
    mf.allocate_range(2 * PAGE)
    whole = mf.map_range(FileRange(0, 2 * PAGE))
    whole[PAGE - 1 : PAGE + 1] = b"ab"
    assert bytes(mf.map_range(FileRange(PAGE - 1, PAGE + 1))) == b"ab"
    assert len(mf.map_range(FileRange(7, 12))) == 5
    for bad in (FileRange(5, 5), FileRange(0, CHUNK + 1), FileRange(2**63, 2**64 - 1)):
        with pytest.raises(RangeError):
            mf.map_range(bad)


@pytest.mark.parametrize("access", ["x", "rx", "rwx"])
def test_e1_execution_is_refused(mf: MemoryFile, access: str) -> None:
    with pytest.raises(PermissionError):
        mf.map_range(mf.allocate_range(PAGE), access)


@pytest.mark.parametrize("access", ["", "w", "wr", "R", "rr", 1, None])
def test_e1_unknown_access(mf: MemoryFile, access: object) -> None:
    with pytest.raises((OptionError, TypeError)):
        mf.map_range(mf.allocate_range(PAGE), access)  # type: ignore[arg-type]


def test_e2_one_view_writable_or_readonly(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(PAGE)
    writable = mf.map_range(range_)
    readonly = mf.map_range(range_, access="r")
    assert (writable.readonly, readonly.readonly) == (False, True)
    assert writable.contiguous
    writable[0] = 3
    assert readonly[0] == 3
    with pytest.raises(TypeError):
        readonly[0] = 4


def test_e2_contiguous_across_chunks(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(3 * CHUNK)
    array = np.frombuffer(mf.map_range(range_), np.uint64)
    assert array.nbytes == 3 * CHUNK
    array[CHUNK // 8 - 1 : CHUNK // 8 + 1] = (1, 2)
    around = FileRange(CHUNK - 8, CHUNK + 8)
    assert np.frombuffer(mf.map_range(around), np.uint64).tolist() == [1, 2]


def test_e2_the_exporter_gives_out_nothing_but_checked_views(mf: MemoryFile) -> None:
    view = mf.map_range(mf.allocate_range(PAGE))
    with pytest.raises(BufferError):
        memoryview(view.obj)
    with pytest.raises(TypeError):
        type(view.obj)()


def test_e3_a_chunk_is_mapped_once_when_threads_race(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(8 * CHUNK)
    with FaultPlan("mmap") as counted:
        barrier = threading.Barrier(4)

        def work() -> None:
            barrier.wait()
            for chunk in range(8):
                mf.map_range(FileRange(chunk * CHUNK, chunk * CHUNK + 1))[0] = 1

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counted.calls == 8
    mf.dec_ref(range_)


def test_e3_mmap_errors_are_raised_and_do_not_stick(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(2 * CHUNK)
    with FaultPlan("mmap", errno.ENOMEM, times=1), pytest.raises(OSError, match="mmap"):
        mf.map_range(range_)
    mf.map_range(range_)[CHUNK] = 1
    with mf.allocate(CHUNK) as a:
        with FaultPlan("mmap", errno.ENOMEM, times=1), pytest.raises(OSError, match="mmap"):
            a.view()
        a.view()[0] = 1


def test_e3_a_view_that_could_not_be_mapped_holds_nothing(mf: MemoryFile) -> None:
    a = mf.allocate(PAGE)
    with FaultPlan("mmap", errno.ENOMEM, times=1), pytest.raises(OSError, match="mmap"):
        a.view()
    a.release()
    mf.wait_for_reclaim()
    assert mf.segments() == []


def test_e4_addresses_do_not_change(mf: MemoryFile) -> None:
    with mf.allocate(PAGE) as a:
        first = a.address
        big = mf.allocate(20 * CHUNK)
        big.view()[-1] = 1
        assert a.address == first
        assert big.address == first + big.range.start - a.range.start
        big.release()


@pytest.mark.parametrize("call", ["ftruncate", "mmap"])
def test_b11_addresses_are_found_without_a_lock(mf: MemoryFile, call: str) -> None:
    """While another thread grows the file, or maps the chunk behind, with the lock for it."""
    range_ = mf.allocate_range(CHUNK)
    before = np.frombuffer(mf.map_range(range_), np.uint8)
    before[-1] = 7
    behind: list[FileRange] = []

    def grow() -> None:
        behind.append(mf.allocate_range(2 * PAGE, mode=AllocationMode.ALLOCATE_AND_WRITE_POPULATE))

    with HeldCall(call) as held:
        grower = threading.Thread(target=grow)
        grower.start()
        held.wait()
        meanwhile = np.frombuffer(mf.map_range(range_), np.uint8)
        assert (meanwhile.ctypes.data, meanwhile[-1]) == (before.ctypes.data, 7)
        assert behind == []
        held.let_go()
        join([grower])
    after = np.frombuffer(mf.map_range(FileRange(range_.start, behind[0].end)), np.uint8)
    assert (after.ctypes.data, after[CHUNK - 1]) == (before.ctypes.data, 7)


def test_views_die_with_nothing_else() -> None:
    mf = MemoryFile()
    view = mf.map_range(mf.allocate_range(PAGE))
    view[0] = 5
    del mf
    assert view[0] == 5


def test_hot_calls_reject_wrong_arguments(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(PAGE)
    for call in (
        lambda: mf.allocate_range(),  # type: ignore[call-arg]
        lambda: mf.allocate_range(PAGE, MemoryKind.TMPFS),  # type: ignore[misc]
        lambda: mf.allocate_range(PAGE, flavour=1),  # type: ignore[call-arg]
        lambda: mf.map_range(),  # type: ignore[call-arg]
        lambda: mf.map_range(range_, "r", "w"),  # type: ignore[call-arg]
        lambda: mf.map_range(range_, mode="r"),  # type: ignore[call-arg]
        lambda: mf.dec_ref(range_, range_),  # type: ignore[call-arg]
        lambda: pgalloc._core.MemoryFile.dec_ref(object(), range_),  # type: ignore[arg-type]
        lambda: mf.allocate_range(PAGE, reader=5),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            call()
    mf.dec_ref(mf.allocate_range(length=PAGE))
    assert len(mf.map_range(range_, access="r")) == PAGE
    mf.dec_ref(mf.allocate_range(np.int64(HUGE), mode=AllocationMode.ALLOCATE_ONLY))


def test_a_handle_whose_reference_is_gone_ends_quietly() -> None:
    """Its reference was dropped by another caller: this is reported, and nothing else happens."""
    program = f"""
import pgalloc
for _ in range(20):
    with pgalloc.MemoryFile() as mf:
        a = mf.allocate({3 * PAGE})
        mf.dec_ref(a.range)
        del a
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.count("RefCountError") + done.stderr.count("RangeError") == 20


def test_what_a_forked_child_asks_its_parent_leaves_no_reference_to_the_file(
    mf: MemoryFile,
) -> None:
    a = mf.allocate(PAGE)

    def child() -> None:
        mf.allocate(PAGE).release()
        before = sys.getrefcount(mf)
        for _ in range(10):
            mf.allocate(PAGE).release()
            assert not mf.has_unique_ref(a.range)
        assert sys.getrefcount(mf) == before

    in_child(child)
    a.release()
