"""Discardable memory: pin and unpin, what may go, in which order, and what its users see of it."""

from __future__ import annotations

import errno
import os
import threading

import pytest
from conftest import PAGE, stored, update_usage

import pgalloc
from pgalloc import Allocation, ClosedError, MemoryFile, RefCountError, testing

MIB = 1 << 20


def filled(mf: MemoryFile, pages: int, letter: bytes) -> Allocation:
    allocation = mf.allocate(pages * PAGE)
    allocation._write(0, letter * (pages * PAGE))
    return allocation


def is_all(allocation: Allocation, letter: bytes) -> bool:
    return bytes(allocation.view()) == letter * allocation.nbytes


def discard(mf: MemoryFile, nbytes: int) -> int:
    with testing.ManualPressure() as pressure:
        before = mf.stats().discarded_bytes
        pressure.demand(nbytes)
        return mf.stats().discarded_bytes - before


def test_pin_and_unpin(mf: MemoryFile) -> None:
    a = filled(mf, 4, b"a")
    assert a.pinned
    assert a.pin()
    a.unpin()
    a.unpin()
    assert not a.pinned
    assert mf.stats().unpinned_bytes == 4 * PAGE
    testing.verify(mf)
    assert a.pin()
    assert a.pinned
    assert mf.stats().unpinned_bytes == 0
    assert is_all(a, b"a")
    testing.verify(mf)


def test_a_discarded_allocation_keeps_its_range_and_says_so(mf: MemoryFile) -> None:
    a = filled(mf, 4, b"a")
    range_ = a.range
    a.unpin()
    update_usage(mf)
    assert sum(mf.usage().values()) == 4 * PAGE
    assert discard(mf, PAGE) == 4 * PAGE
    assert a.range == range_
    assert mf.has_unique_ref(range_)
    assert stored(mf) == 0
    assert sum(mf.usage().values()) == 0
    stats = mf.stats()
    assert (stats.discards, stats.discarded_bytes) == (1, 4 * PAGE)
    assert not a.pin()
    assert is_all(a, b"\0")
    assert a.pin()  # pinned it is
    a.unpin()
    assert a.pin()  # nothing was discarded since
    testing.verify(mf)


def test_the_one_unpinned_longest_ago_goes_first(mf: MemoryFile) -> None:
    allocations = [filled(mf, 4, b"abcd"[i : i + 1]) for i in range(4)]
    for i in (2, 0, 3, 1):
        allocations[i].unpin()
    assert allocations[0].pin()
    allocations[0].unpin()  # the last, now
    order = []
    for _ in range(4):
        assert discard(mf, PAGE) == 4 * PAGE
        lost = [
            i
            for i, a in enumerate(allocations)
            if os.pread(mf.fileno(), 1, a.range.start) == b"\0" and i not in order
        ]
        assert len(lost) == 1
        order += lost
    assert order == [2, 3, 1, 0]


def test_files_are_discarded_from_by_age(mf: MemoryFile) -> None:
    with MemoryFile() as other:
        first, second, third = filled(other, 2, b"1"), filled(mf, 2, b"2"), filled(other, 2, b"3")
        for allocation in (first, second, third):
            allocation.unpin()
        with testing.ManualPressure() as pressure:
            pressure.demand(4 * PAGE)
        assert [a.pin() for a in (first, second, third)] == [False, False, True]
        first.release(), third.release()


def test_a_live_view_pins(mf: MemoryFile) -> None:
    a = filled(mf, 4, b"a")
    view = a.view()
    a.unpin()
    assert a.pinned
    assert discard(mf, MIB) == 0
    assert bytes(view) == b"a" * a.nbytes
    view.release()
    assert not a.pinned
    b = a.view(readonly=True)
    assert discard(mf, MIB) == 0
    del b
    assert discard(mf, MIB) == a.nbytes
    again = a.view()
    assert bytes(again) == bytes(a.nbytes)
    again[:1] = b"x"
    del again
    assert not a.pin()


@pytest.mark.parametrize("share", ["clone", "slice"])
def test_pages_go_when_no_handle_has_them_pinned(mf: MemoryFile, share: str) -> None:
    a = filled(mf, 4, b"a")
    a.unpin()
    b = a.clone() if share == "clone" else a.slice(PAGE, 2 * PAGE)
    assert b.pinned
    assert discard(mf, MIB) == 0
    assert is_all(b, b"a")
    b.unpin()
    testing.verify(mf)
    assert discard(mf, PAGE) >= b.nbytes
    # Both learn of it, as far as it concerns them.
    lost = [not a.pin(), not b.pin()]
    assert lost[0]
    assert lost[1] or share == "slice"
    testing.verify(mf)


def test_releasing_what_is_unpinned(mf: MemoryFile) -> None:
    a = filled(mf, 4, b"a")
    b = a.clone()
    a.unpin(), b.unpin()
    a.release()
    assert mf.stats().unpinned_bytes == 4 * PAGE
    testing.verify(mf)
    assert b.pin()
    assert is_all(b, b"a")
    b.unpin()
    b.release()
    assert mf.stats().unpinned_bytes == 0
    assert mf.wait_for_reclaim(20)
    testing.verify(mf)
    with pytest.raises(ClosedError):
        a.unpin()
    with pytest.raises(ClosedError):
        a.pin()


def test_a_handle_that_is_forgotten(mf: MemoryFile) -> None:
    a = filled(mf, 4, b"a")
    a.unpin()
    del a
    assert mf.stats().unpinned_bytes == 0
    assert discard(mf, MIB) == 0
    assert mf.wait_for_reclaim(20)
    assert stored(mf) == 0


def test_what_was_written_while_unpinned_goes_too(mf: MemoryFile) -> None:
    """Through the range layer, what was discarded already may be written to."""
    a = filled(mf, 64, b"a")
    a.unpin()
    assert discard(mf, MIB) == a.nbytes
    mf.map_range(a.range)[:] = b"b" * a.nbytes
    assert stored(mf) == a.nbytes
    with testing.ManualPressure() as pressure:
        pressure.demand(MIB)
    assert stored(mf) == 0
    assert not a.pin()


def test_closing_with_unpinned_memory() -> None:
    mf = MemoryFile()
    a = filled(mf, 4, b"a")
    a.unpin()
    mf.close()
    with pytest.raises(ClosedError):
        a.pin()
    with pytest.raises(ClosedError):
        a.unpin()
    assert pgalloc.memory_accounting().total() == 0


def test_a_reference_that_is_not_there(mf: MemoryFile) -> None:
    """Handles over a reference they do not own (misuse of the range layer) break nothing."""
    range_ = mf.allocate_range(4 * PAGE)
    a, b = Allocation(mf, range_), Allocation(mf, range_)
    a.unpin()
    with pytest.raises(RefCountError):
        b.unpin()
    testing.verify(mf)
    a.release()
    assert mf.wait_for_reclaim(20)
    fresh = filled(mf, 4, b"f")
    assert discard(mf, MIB) == 0  # b's pages are fresh's now
    assert is_all(fresh, b"f")
    b._disown()
    fresh.release()
    testing.verify(mf)


def test_saving_holds_discards(mf: MemoryFile, tmp_path: os.PathLike[str]) -> None:
    a = filled(mf, 4, b"a")
    a.unpin()
    told: list[int] = []
    mf.save_hook("h", save=lambda: bytes([told.append(discard(mf, MIB)) is None]))
    mf.save(os.path.join(tmp_path, "image"))
    assert told == [0]
    assert discard(mf, MIB) == a.nbytes
    restored = MemoryFile.restore(os.path.join(tmp_path, "image"))
    with restored:
        assert bytes(restored.map_range(a.range)) == b"a" * a.nbytes


def test_memory_that_cannot_be_given_back_is_kept() -> None:
    with MemoryFile(manual_zeroing=True) as mf:
        a = filled(mf, 4, b"a")
        a.unpin()
        assert discard(mf, MIB) == 0
        assert a.pin()
        assert is_all(a, b"a")
        a.release()


@pytest.mark.parametrize("error", [0, errno.ENOSYS], ids=["cachestat", "before Linux 6.5"])
def test_emptying_untouched_pages_brings_nothing(mf: MemoryFile, error: int) -> None:
    """The guard would be content with it, and never come to what takes the memory."""
    allocations = [mf.allocate(4 * PAGE) for _ in range(200)]
    allocations[-1]._write(PAGE, b"a" * PAGE)
    for a in allocations:
        a.unpin()
    with testing.ManualPressure() as pressure, testing.FaultPlan("cachestat", error):
        assert pressure.demand(PAGE) == PAGE
    assert stored(mf) == 0
    assert not allocations[-1].pin()
    testing.verify(mf)


@pytest.mark.parametrize("error", [0, errno.ENOSYS], ids=["cachestat", "before Linux 6.5"])
def test_committed_pages_that_were_not_written_are_given_back(mf: MemoryFile, error: int) -> None:
    commit = pgalloc.AllocationMode.ALLOCATE_AND_COMMIT
    allocations = [mf.allocate(4 * PAGE, mode=commit) for _ in range(200)]
    for a in allocations:
        a.unpin()
    with testing.ManualPressure() as pressure, testing.FaultPlan("cachestat", error):
        assert pressure.demand(100 * 4 * PAGE) == 100 * 4 * PAGE
    assert stored(mf) == 100 * 4 * PAGE
    testing.verify(mf)


def test_a_punch_that_fails(mf: MemoryFile) -> None:
    """The contents cannot be trusted any more, whatever they are."""
    a = filled(mf, 4, b"a")
    a.unpin()
    with testing.FaultPlan("fallocate", errno.EIO):
        discard(mf, MIB)
    assert not a.pin()
    assert is_all(a, b"\0")
    assert mf.stats().punch_failures >= 1
    testing.verify(mf)


def test_pinning_against_discarding(mf: MemoryFile) -> None:
    """A thread that was told that the contents are there finds them, and keeps what it writes."""
    allocations = [filled(mf, 16, b"a") for _ in range(32)]
    for a in allocations:
        a.unpin()
    stop = threading.Event()
    wrong: list[str] = []

    def use(mine: list[Allocation]) -> None:
        rounds = 0
        while not stop.is_set() or rounds < 200:
            rounds += 1
            for a in mine:
                intact = a.pin()
                if intact and not is_all(a, b"a"):
                    wrong.append("lost")
                a._write(0, b"b" * a.nbytes)
                if not is_all(a, b"b"):
                    wrong.append("overwritten")
                with a.clone() as b:
                    b._write(0, b"a" * b.nbytes)
                if not is_all(a, b"a"):
                    wrong.append("overwritten through a clone")
                a.unpin()

    threads = [threading.Thread(target=use, args=(allocations[i::2],)) for i in range(2)]
    for thread in threads:
        thread.start()
    with testing.ManualPressure() as pressure:
        for _ in range(300):
            pressure.demand(MIB)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[0]
    assert mf.stats().discards > 0
    testing.verify(mf)


def test_a_forked_child_neither_pins_nor_discards(mf: MemoryFile) -> None:
    a = filled(mf, 4, b"a")
    a.unpin()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for act in (a.pin, a.view):
                with pytest.raises(pgalloc.ForkedError):
                    act()
            del a
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert a.pin()
    assert is_all(a, b"a")


def test_what_was_written_beside_what_is_pinned_goes_too(mf: MemoryFile) -> None:
    a = filled(mf, 64, b"a")
    a.unpin()
    assert discard(mf, MIB) == a.nbytes
    with a.slice(8 * PAGE, 9 * PAGE):
        mf.map_range(a.range)[:] = b"b" * a.nbytes
        with testing.ManualPressure() as pressure:
            pressure.demand(MIB)
        assert stored(mf) == PAGE
    with testing.ManualPressure() as pressure:
        pressure.demand(MIB)
    assert stored(mf) == 0
    testing.verify(mf)
