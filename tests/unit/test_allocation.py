"""Section B: the modes, readers, limits; and the Allocation handle (rows E2, E4)."""

from __future__ import annotations

import errno
import gc
import io
import itertools
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHUNK, GIB, HUGE, PAGE, stored, update_usage
from held_call import HeldCall
from waiting import eventually, join

import pgalloc
from pgalloc import (
    Allocation,
    AllocationMode,
    ClosedError,
    Direction,
    FileRange,
    FillError,
    MemoryFile,
    MemoryKind,
    OptionError,
    OutOfMemoryError,
    RangeError,
    testing,
)
from pgalloc._core import _testing
from pgalloc.testing import FaultPlan

COMMIT = AllocationMode.ALLOCATE_AND_COMMIT
POPULATE = AllocationMode.ALLOCATE_AND_WRITE_POPULATE


@pytest.mark.parametrize("length", [0, 1, PAGE - 1, PAGE + 1, -PAGE, 2**64 - 1, 2**64, 2**70])
def test_b1_length_is_a_positive_number_of_pages(mf: MemoryFile, length: int) -> None:
    with pytest.raises(RangeError):
        mf.allocate(length)
    assert mf.segments() == []


@pytest.mark.parametrize("length", [True, False, 1.5, float(PAGE), None, "4096", b"x", [PAGE]])
def test_b1_length_is_an_int(mf: MemoryFile, length: object) -> None:
    with pytest.raises(TypeError):
        mf.allocate(length)  # type: ignore[arg-type]
    assert mf.segments() == []


@pytest.mark.parametrize("length", [2**62, 2**63 - PAGE, 2**63, 2**64 - PAGE])
@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("mode", list(AllocationMode))
def test_b9_impossible_lengths_allocate_nothing(
    mf: MemoryFile, length: int, direction: Direction, mode: AllocationMode
) -> None:
    rss = Path("/proc/self/statm").read_text().split()[1]
    with pytest.raises(OutOfMemoryError):
        mf.allocate(length, direction=direction, mode=mode)
    assert int(Path("/proc/self/statm").read_text().split()[1]) - int(rss) < 256  # pages
    assert (mf.segments(), mf.total_size) == ([], 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", 3),
        ("mode", -1),
        ("mode", 2**80),
        ("kind", 6),
        ("kind", MemoryKind.MAPPED),
        ("direction", 2),
    ],
)
def test_b1_unknown_options(mf: MemoryFile, name: str, value: int) -> None:
    with pytest.raises(OptionError):
        mf.allocate(PAGE, **{name: value})  # type: ignore[arg-type]
    assert mf.segments() == []


@pytest.mark.parametrize("name", ["mode", "kind", "direction", "memcg_id", "reader"])
@pytest.mark.parametrize("value", [True, 1.5, "up", object()])
def test_b1_options_of_the_wrong_type(mf: MemoryFile, name: str, value: object) -> None:
    with pytest.raises(TypeError):
        mf.allocate(PAGE, **{name: value})  # type: ignore[arg-type]
    assert mf.segments() == []


def test_b2_new_pages(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(3 * PAGE, kind=MemoryKind.TMPFS, memcg_id=7)
    (segment,) = mf.segments()
    assert segment == (range_.start, range_.end, MemoryKind.TMPFS, 0, 1, 7)
    assert bytes(mf.map_range(range_)) == bytes(3 * PAGE)
    mf.dec_ref(range_)


def test_b2_reused_pages_read_as_zero(mf: MemoryFile) -> None:
    for _ in range(20):
        with mf.allocate(8 * PAGE) as a, a.view() as view:
            assert not np.frombuffer(view, np.uint8).any()
            view[:] = b"\xff" * len(view)


@pytest.mark.parametrize("mode", list(AllocationMode))
def test_b3_the_maximum_counts_allocated_bytes(mode: AllocationMode) -> None:
    with MemoryFile(max_allocatable_bytes=4 * PAGE) as mf:
        kept = mf.allocate_range(3 * PAGE)
        with pytest.raises(OutOfMemoryError):
            mf.allocate_range(2 * PAGE, mode=mode)
        last = mf.allocate_range(PAGE, mode=mode)
        with pytest.raises(OutOfMemoryError):
            mf.allocate_range(PAGE, mode=mode)
        mf.dec_ref(kept)
        # What was freed is still on its way out: the request waits for it.
        for _ in range(50):
            mf.dec_ref(mf.allocate_range(3 * PAGE, mode=mode))
        mf.dec_ref(last)


def test_b3_paused_reclaim_is_not_waited_for() -> None:
    with MemoryFile(max_allocatable_bytes=PAGE) as mf, testing.pause_reclaimer(mf):
        mf.dec_ref(mf.allocate_range(PAGE))
        with pytest.raises(OutOfMemoryError):
            mf.allocate_range(PAGE)


def test_b3_other_threads_run_while_freed_pages_are_waited_for() -> None:
    with MemoryFile(max_allocatable_bytes=PAGE) as mf:
        first = mf.allocate_range(PAGE)
        allocated: list[FileRange] = []
        thread = threading.Thread(target=lambda: allocated.append(mf.allocate_range(PAGE)))
        with HeldCall("fallocate") as punch:
            mf.dec_ref(first)
            punch.wait()
            thread.start()
            eventually(lambda: _testing.reclaim_waiters(mf) == 1, "waiting")
            punch.let_go()
            join([thread])
        mf.dec_ref(allocated[0])


def test_b10_failed_growth_changes_nothing(mf: MemoryFile) -> None:
    with FaultPlan("ftruncate", errno.ENOSPC), pytest.raises(OSError, match="ftruncate") as raised:
        mf.allocate_range(PAGE)
    assert raised.value.errno == errno.ENOSPC
    assert (mf.segments(), mf.total_size) == ([], 0)
    mf.dec_ref(mf.allocate_range(PAGE))


def test_b12_allocate_only_commits_nothing(mf: MemoryFile) -> None:
    with mf.allocate(64 * HUGE):
        assert stored(mf) == 0


def test_b13_commit(mf: MemoryFile) -> None:
    with mf.allocate(HUGE, mode=COMMIT) as a:
        assert stored(mf) == HUGE
        assert mf.segments()[0].known_committed == 0
        update_usage(mf)
        assert mf.usage()[MemoryKind.ANONYMOUS] == HUGE
        assert bytes(a) == bytes(HUGE)


def test_b13_failed_commit_drops_the_reference(mf: MemoryFile) -> None:
    with FaultPlan("fallocate", errno.ENOSPC, times=1), pytest.raises(OSError, match="No space"):
        mf.allocate_range(HUGE, mode=COMMIT)
    mf.wait_for_reclaim()
    assert (mf.segments(), stored(mf)) == ([], 0)


def test_b14_populate(mf: MemoryFile) -> None:
    with mf.allocate(4 * HUGE, mode=POPULATE):
        assert stored(mf) == 4 * HUGE


def test_b14_mapping_errors_are_raised_after_dropping_the_reference(mf: MemoryFile) -> None:
    with FaultPlan("mmap", errno.ENOMEM, times=1), pytest.raises(OSError, match="mmap"):
        mf.allocate_range(HUGE, mode=POPULATE)
    mf.wait_for_reclaim()
    assert mf.segments() == []


def test_b15_a_single_page_is_not_prefaulted(mf: MemoryFile) -> None:
    mf.map_range(mf.allocate_range(PAGE))
    with FaultPlan("madvise") as counted:
        mf.allocate_range(PAGE, mode=POPULATE)
        assert counted.calls == 0
        mf.allocate_range(2 * PAGE, mode=POPULATE)
        assert counted.calls == 1


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOSYS])
def test_b15_b16_missing_populate_falls_back_to_mlock_for_good(mf: MemoryFile, error: int) -> None:
    mf.map_range(mf.allocate_range(HUGE))
    try:
        with FaultPlan("madvise", error) as plan:
            with mf.allocate(2 * HUGE, mode=POPULATE):
                assert stored(mf) == 2 * HUGE  # mlock did it
            assert testing.prefault_methods() == (False, True)
            failures = plan.failures
            mf.allocate_range(2 * HUGE, mode=POPULATE)
            assert plan.failures == failures
    finally:
        testing.reset_prefault()


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EFAULT])
def test_b15_transient_errors_turn_nothing_off(mf: MemoryFile, error: int) -> None:
    mf.map_range(mf.allocate_range(HUGE))
    with FaultPlan("madvise", error):
        mf.allocate_range(HUGE, mode=POPULATE)
    assert testing.prefault_methods() == (True, True)


def test_b16_only_eperm_turns_mlock_off(mf: MemoryFile) -> None:
    mf.map_range(mf.allocate_range(HUGE))
    try:
        with FaultPlan("madvise", errno.ENOSYS):
            mf.allocate_range(HUGE, mode=POPULATE)
        with FaultPlan("mlock", errno.ENOMEM):
            mf.allocate_range(HUGE, mode=POPULATE)
        assert testing.prefault_methods() == (False, True)
        with FaultPlan("mlock", errno.EPERM):
            mf.allocate_range(HUGE, mode=POPULATE)
        assert testing.prefault_methods() == (False, False)
    finally:
        testing.reset_prefault()


def test_b5_populating_takes_waste_zeroed_and_counted(mf: MemoryFile) -> None:
    with testing.pause_reclaimer(mf):
        first = mf.allocate_range(16 * PAGE, kind=MemoryKind.TMPFS, memcg_id=3)
        mf.map_range(first)[:] = b"\xee" * (16 * PAGE)
        update_usage(mf)
        mf.dec_ref(first)
        second = mf.allocate_range(16 * PAGE, mode=POPULATE)
        assert second == first
        assert bytes(mf.map_range(second)) == bytes(16 * PAGE)
        assert mf.usage()[MemoryKind.ANONYMOUS] == 16 * PAGE
        assert mf.usage(3)[MemoryKind.TMPFS] == 0
        assert mf.stats().recycled_bytes == 16 * PAGE
        testing.verify(mf)
    mf.dec_ref(second)


# --- B17: readers --------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1000, PAGE, 3 * PAGE, 100 * PAGE])
def test_b17_reader_is_called_until_all_is_there(mf: MemoryFile, step: int) -> None:
    content = bytes(range(256)) * (8 * PAGE // 256)
    source = io.BytesIO(content)

    def reader(buffer: memoryview) -> int:
        return source.readinto(buffer[:step])

    with mf.allocate(8 * PAGE, reader=reader) as a:
        assert bytes(a) == content
    source.seek(0)
    range_ = mf.allocate_range(8 * PAGE, reader=source.readinto)
    assert bytes(mf.map_range(range_)) == content
    mf.dec_ref(range_)


@pytest.mark.parametrize(("available", "kept"), [(0, 0), (1, 0), (PAGE, 1), (2 * PAGE + 5, 2)])
def test_b17_a_short_reader_is_an_end_of_file(mf: MemoryFile, available: int, kept: int) -> None:
    with pytest.raises(FillError) as raised:
        mf.allocate(4 * PAGE, reader=io.BytesIO(b"x" * available).readinto)
    error = raised.value
    assert isinstance(error.__cause__, EOFError)
    assert error.range.length == kept * PAGE
    assert (error.allocation is None) == (kept == 0)
    if error.allocation is not None:
        assert error.allocation.range == error.range
        assert bytes(error.allocation) == b"x" * (kept * PAGE)
        error.allocation.release()
    mf.wait_for_reclaim()
    assert mf.segments() == []


def test_b17_the_range_layer_leaves_the_references_to_the_caller(mf: MemoryFile) -> None:
    with pytest.raises(FillError) as raised:
        mf.allocate_range(4 * PAGE, reader=io.BytesIO(b"x" * 3 * PAGE).readinto)
    assert raised.value.allocation is None
    assert raised.value.range.length == 3 * PAGE
    gc.collect()
    mf.wait_for_reclaim()
    assert [(s.end - s.start, s.refs) for s in mf.segments()] == [(3 * PAGE, 1)]
    mf.dec_ref(raised.value.range)


@pytest.mark.parametrize("result", [None, True, -1, 4 * PAGE + 1, 2**70, "4096", 1.5])
def test_b17_nonsense_from_a_reader(mf: MemoryFile, result: object) -> None:
    with pytest.raises(FillError) as raised:
        mf.allocate(4 * PAGE, reader=lambda buffer: result)  # type: ignore[arg-type, return-value]
    assert isinstance(raised.value.__cause__, (TypeError, ValueError))
    mf.wait_for_reclaim()
    assert mf.segments() == []


def test_b17_the_readers_exception_is_the_cause(mf: MemoryFile) -> None:
    class BrokenError(Exception):
        pass

    def reader(buffer: memoryview) -> int:
        raise BrokenError

    with pytest.raises(FillError) as raised:
        mf.allocate(PAGE, reader=reader)
    assert isinstance(raised.value.__cause__, BrokenError)


def test_b17_interrupts_pass_through_and_leak_nothing(mf: MemoryFile) -> None:
    def reader(buffer: memoryview) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mf.allocate(PAGE, reader=reader)
    mf.wait_for_reclaim()
    assert mf.segments() == []


def test_b17_a_reader_that_keeps_its_buffer_cannot_reach_other_pages(mf: MemoryFile) -> None:
    kept = []

    def reader(buffer: memoryview) -> int:
        kept.append(np.frombuffer(buffer, np.uint8))
        raise EOFError

    with pytest.raises(FillError):
        mf.allocate(PAGE, reader=reader)
    mf.wait_for_reclaim()
    other = mf.allocate(PAGE)
    kept[0][:] = 255  # its own page, which it holds
    assert bytes(other) == bytes(PAGE)
    assert other.range.start != 0
    kept.clear()
    gc.collect()
    mf.wait_for_reclaim()
    assert len(mf.segments()) == 1
    other.release()


# --- B18: manual zeroing ------------------------------------------------------------


@pytest.mark.parametrize("mode", list(AllocationMode))
def test_b18_manual_zeroing_hands_out_zeros(mode: AllocationMode) -> None:
    with MemoryFile(manual_zeroing=True) as mf:
        first = mf.allocate_range(4 * PAGE)
        mf.map_range(first)[:] = b"\xaa" * (4 * PAGE)
        mf.dec_ref(first)
        mf.wait_for_reclaim()
        assert mf.total_usage() == 4 * PAGE  # F3: nothing to punch, the contents stay
        second = mf.allocate_range(4 * PAGE, mode=mode)
        assert second == first
        assert bytes(mf.map_range(second)) == bytes(4 * PAGE)
        mf.dec_ref(second)


def test_b18_failing_zeroing_hands_out_nothing() -> None:
    with MemoryFile(manual_zeroing=True) as mf:
        first = mf.allocate_range(4 * PAGE)
        mf.map_range(first)[:] = b"\xaa" * (4 * PAGE)
        mf.dec_ref(first)
        mf.wait_for_reclaim()
        with FaultPlan("pwrite", errno.EIO), pytest.raises(OSError, match="pwrite"):
            mf.allocate_range(4 * PAGE)
        mf.wait_for_reclaim()
        assert mf.segments() == []


def test_b19_ranges_of_concurrent_allocations_are_disjoint(mf: MemoryFile) -> None:
    ranges: list[FileRange] = []

    def work() -> None:
        mine = [mf.allocate_range(PAGE * (1 + i % 5)) for i in range(500)]
        ranges.extend(mine)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ranges.sort()
    assert all(a.end <= b.start for a, b in itertools.pairwise(ranges))
    for range_ in ranges:
        mf.dec_ref(range_)


# --- the handle ------------------------------------------------------------


def test_handle_attributes(mf: MemoryFile) -> None:
    with mf.allocate(2 * PAGE) as a:
        assert (a.nbytes, a.file, a.range.length) == (2 * PAGE, mf, 2 * PAGE)
        array = np.frombuffer(a, np.uint8)
        assert array.ctypes.data == a.address
        del array
        assert not a.released
        assert "released" not in repr(a)
    assert a.released
    assert "released" in repr(a)


def test_views_are_writable_or_not(mf: MemoryFile) -> None:
    with mf.allocate(PAGE) as a:
        a.view()[0] = 1
        readonly = a.view(readonly=True)
        assert readonly.readonly
        with pytest.raises(TypeError):
            readonly[0] = 1
        for bad in ((1,), (True,)):
            with pytest.raises(TypeError):
                a.view(*bad)  # type: ignore[call-arg]


def test_e4_a_view_holds_its_pages_after_release(mf: MemoryFile) -> None:
    a = mf.allocate(PAGE)
    view = a.view()
    view[:4] = b"kept"
    a.release()
    assert mf.wait_for_reclaim(1)
    assert mf.segments()[0].refs == 1
    others = [mf.allocate(PAGE) for _ in range(10)]
    for other in others:
        other.view()[:] = b"\xff" * PAGE
    assert bytes(view[:4]) == b"kept"
    for other in others:
        other.release()
    view.release()
    mf.wait_for_reclaim()
    assert mf.segments() == []


def test_e4_slices_and_arrays_of_a_view_hold_the_pages_too(mf: MemoryFile) -> None:
    a = mf.allocate(4 * PAGE)
    array = np.frombuffer(a.view()[PAGE : 2 * PAGE], np.uint32)
    array[0] = 7
    a.release()
    del a
    gc.collect()
    assert mf.wait_for_reclaim(1)
    assert mf.segments()[0].refs == 1
    assert array[0] == 7
    del array
    gc.collect()
    mf.wait_for_reclaim()
    assert mf.segments() == []


def test_e4_close_never_unmaps_under_a_live_view() -> None:
    mf = MemoryFile()
    a = mf.allocate(CHUNK + PAGE)
    view, raw = a.view(), mf.map_range(FileRange(5, 10))
    view[-1] = 42
    mf.close()
    assert (view[-1], bytes(raw)) == (42, bytes(5))
    view[0] = 1
    a.release()
    del a
    gc.collect()
    assert view[-1] == 42


def test_release_is_idempotent_and_final(mf: MemoryFile) -> None:
    a = mf.allocate(PAGE)
    a.release()
    a.release()
    for use in (a.view, a.clone, a.decommit, lambda: a.address, lambda: memoryview(a)):
        with pytest.raises(ClosedError):
            use()
    with pytest.raises(ClosedError):
        a.slice(0, PAGE)


def test_a_forgotten_handle_gives_its_pages_back(mf: MemoryFile) -> None:
    a = mf.allocate(PAGE)
    alive = weakref.ref(a)
    del a
    gc.collect()
    assert alive() is None
    mf.wait_for_reclaim()
    assert mf.segments() == []


def test_a_cycle_through_the_file_is_collected() -> None:
    mf = MemoryFile()
    mf.mine = mf.allocate(PAGE)  # type: ignore[attr-defined]
    alive = weakref.ref(mf)
    del mf
    gc.collect()
    assert alive() is None


def test_clone_and_slice_hold_references_of_their_own(mf: MemoryFile) -> None:
    a = mf.allocate(4 * PAGE)
    b = a.clone()
    c = a.slice(PAGE, 3 * PAGE)
    assert c.nbytes == 2 * PAGE
    assert [s.refs for s in mf.segments()] == [2, 3, 2]
    b.view()[PAGE] = 9
    assert c.view()[0] == 9
    a.release()
    b.release()
    mf.wait_for_reclaim()
    assert [(s.start, s.end, s.refs) for s in mf.segments()] == [(PAGE, 3 * PAGE, 1)]
    assert c.view()[0] == 9
    c.release()


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 0), (PAGE, 0), (0, 3 * PAGE), (-PAGE, PAGE), (1, PAGE), (0, PAGE - 1)]
)
def test_slices_that_are_not_parts(mf: MemoryFile, start: int, stop: int) -> None:
    with mf.allocate(2 * PAGE) as a:
        with pytest.raises(RangeError):
            a.slice(start, stop)
        assert [s.refs for s in mf.segments()] == [1]


def test_constructor_takes_over_a_reference(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(2 * PAGE)
    a = Allocation(mf, range_)
    a.release()
    mf.wait_for_reclaim()
    assert mf.segments() == []
    with pytest.raises(RangeError):
        Allocation(mf, range_)
    for arguments in ((mf, (0, PAGE)), (object(), range_), (mf,), ()):
        with pytest.raises(TypeError):
            Allocation(*arguments)  # type: ignore[arg-type]


def test_decommit_through_the_handle(mf: MemoryFile) -> None:
    with mf.allocate(2 * PAGE) as a:
        a.view()[:] = b"x" * (2 * PAGE)
        a.decommit()
        assert bytes(a) == bytes(2 * PAGE)


def test_allocations_cannot_be_pickled(mf: MemoryFile) -> None:
    import pickle

    with mf.allocate(PAGE) as a, pytest.raises(TypeError):
        pickle.dumps(a)


def test_three_gib_as_one_array_across_both_chunk_borders() -> None:
    """Must show: an Allocation of 3 GiB as one numpy array, written across both borders."""
    with MemoryFile() as mf, mf.allocate(PAGE), mf.allocate(3 * GIB) as a:
        array = np.frombuffer(a, np.uint8)
        assert array.shape == (3 * GIB,)
        borders = [b for b in range(CHUNK, 4 * CHUNK, CHUNK) if a.range.start < b < a.range.end]
        assert len(borders) >= 2
        for border in borders:
            at = border - a.range.start
            array[at - 8 : at + 8] = np.arange(16, dtype=np.uint8)
            words = array[at - 8 : at + 8].view(np.uint64)
            assert words.tobytes() == bytes(range(16))
        del array, words
        assert stored(mf) == 2 * PAGE * len(borders)


def test_range_types() -> None:
    r = FileRange(PAGE, 3 * PAGE)
    start, end = r
    assert (start, end, r.length) == (PAGE, 3 * PAGE, 2 * PAGE)
    assert r == FileRange(start=PAGE, end=3 * PAGE)
    assert r != pgalloc.EvictableRange(PAGE, 3 * PAGE)
    assert len({r, FileRange(PAGE, 3 * PAGE), FileRange(0, PAGE)}) == 2
    assert r.contains(PAGE)
    assert not r.contains(3 * PAGE)
    assert (PAGE in r, 0 in r) == (True, False)
    assert r.overlaps(FileRange(0, PAGE + 1))
    assert not r.overlaps(FileRange(0, PAGE))
    assert r.intersect(FileRange(2 * PAGE, 9 * PAGE)) == FileRange(2 * PAGE, 3 * PAGE)
    assert r.intersect(FileRange(8 * PAGE, 9 * PAGE)).length == 0
    assert r.is_superset_of(FileRange(PAGE, 2 * PAGE))
    assert FileRange(0, 5) < FileRange(1, 2) <= FileRange(1, 2)
    assert repr(FileRange(0, 16)) == "FileRange(0x0, 0x10)"
    match r:
        case FileRange(s, e):
            assert (s, e) == (PAGE, 3 * PAGE)
    import pickle

    assert pickle.loads(pickle.dumps(r)) == r
    with pytest.raises(AttributeError):
        r.start = 0  # type: ignore[misc]
    for bad in ((2, 1), (-1, 1), (0, 2**64)):
        with pytest.raises(RangeError):
            FileRange(*bad)
    for wrong in ((0,), (0, 1, 2), (True, 1), (0.0, 1), ("0", 1), (None, None)):
        with pytest.raises(TypeError):
            FileRange(*wrong)  # type: ignore[arg-type, call-arg]
    with pytest.raises(TypeError):
        r.overlaps((0, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "ANONYMOUS"}, "MemoryKind.ANONYMOUS"),
        ({"mode": "commit"}, "ALLOCATE_AND_COMMIT"),
        ({"direction": 1.5}, "Direction.BOTTOM_UP or TOP_DOWN"),
    ],
)
def test_messages_say_what_is_accepted(
    mf: MemoryFile, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        mf.allocate(PAGE, **arguments)


@pytest.mark.parametrize(
    ("length", "fits"), [(1_000_000, 1_003_520), (1, PAGE), (0, PAGE), (2**64 - 1, None)]
)
def test_messages_say_which_length_would_fit(mf: MemoryFile, length: int, fits: int | None) -> None:
    with pytest.raises(RangeError, match=rf"whole pages of {PAGE} bytes, not {length}") as caught:
        mf.allocate(length)
    assert str(caught.value).endswith(f": {fits} would be") == (fits is not None)
