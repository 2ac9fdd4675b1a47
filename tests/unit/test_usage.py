"""Sections H and K: what is committed, and the ledgers."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import CHUNK, GIB, HUGE, PAGE, stored, update_usage
from held_call import HeldCall
from waiting import eventually, join

import pgalloc
from pgalloc import (
    AccountError,
    AllocationMode,
    FileRange,
    Ledger,
    MemoryFile,
    MemoryKind,
    OptionError,
    RangeError,
    testing,
    total_memory,
)
from pgalloc.testing import FaultPlan, ManualClock

MIB = 1 << 20
COMMIT = AllocationMode.ALLOCATE_AND_COMMIT


def touch(mf: MemoryFile, range_: FileRange, step: int = 1) -> int:
    """Write one byte to every step-th page; how many pages that were."""
    array = np.frombuffer(mf.map_range(range_), np.uint8)
    array[:: step * PAGE] = 1
    return -(-range_.length // (step * PAGE))


def known(mf: MemoryFile) -> int:
    return sum(s.known_committed for s in mf.segments())


def test_h1_total_usage_is_what_the_file_system_counts(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(HUGE)
    assert mf.total_usage() == 0
    touch(mf, range_, 2)
    assert mf.total_usage() == HUGE // 2 == os.stat(mf.fileno()).st_blocks * 512
    assert mf.total_size == os.stat(mf.fileno()).st_size == CHUNK


def test_h2_nothing_changed_means_no_scan(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(HUGE)
    touch(mf, range_)
    update_usage(mf)
    scans = mf.stats().scans
    with FaultPlan("cachestat") as counted:
        for _ in range(5):
            assert mf.update_usage() is True
        assert counted.calls == 0
    assert mf.stats().scans == scans


def test_h2_full_scans_are_throttled(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(HUGE)
    with ManualClock(mf) as clock:
        touch(mf, FileRange(range_.start, range_.start + PAGE))
        assert mf.update_usage() is True
        touch(mf, range_)
        assert mf.update_usage() is False
        clock.advance(0.009)
        assert mf.update_usage() is False
        assert known(mf) == PAGE
        clock.advance(0.001)
        assert mf.update_usage() is True
        assert known(mf) == HUGE


def test_h2_the_next_scan_waits_eight_times_as_long_as_the_last_took(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(HUGE)
    with ManualClock(mf, tick_s=0.01) as clock:  # a scan reads the clock twice: it takes 10 ms
        touch(mf, FileRange(range_.start, range_.start + PAGE))
        assert mf.update_usage() is True
        touch(mf, range_)
        clock.advance(0.05)
        assert mf.update_usage() is False
        clock.advance(0.02)
        assert mf.update_usage() is True


def test_h2_filtered_scans_are_not_throttled_and_touch_nothing_else(mf: MemoryFile) -> None:
    mine = mf.allocate_range(4 * PAGE, memcg_id=1)
    other = mf.allocate_range(4 * PAGE, memcg_id=2)
    unpaid = mf.allocate_range(4 * PAGE)
    for range_ in (mine, other, unpaid):
        touch(mf, range_)
    with ManualClock(mf):
        assert mf.update_usage({1}) is True
        assert mf.usage(1)[MemoryKind.ANONYMOUS] == 4 * PAGE
        assert sum(mf.usage(2).values()) == 0
        assert sum(mf.usage().values()) == 4 * PAGE
        assert mf.update_usage([2, 3]) is True
        assert mf.usage(2)[MemoryKind.ANONYMOUS] == 4 * PAGE
        assert sum(mf.usage().values()) == 8 * PAGE
        assert mf.update_usage([]) is True
        assert sum(mf.usage().values()) == 8 * PAGE
        assert mf.update_usage() is True
        assert sum(mf.usage().values()) == 12 * PAGE
    for bad in ([-1], [2**32]):
        with pytest.raises(RangeError):
            mf.update_usage(bad)


def test_h2_not_more_than_one_full_scan_at_a_time(mf: MemoryFile) -> None:
    pages = touch(mf, mf.allocate_range(HUGE), 2)
    results: list[bool] = []

    def scan_once() -> None:
        results.append(mf.update_usage())

    with HeldCall("cachestat") as counting:
        scan = threading.Thread(target=scan_once)
        scan.start()
        counting.wait()
        others = [threading.Thread(target=scan_once) for _ in range(3)]
        for other in others:
            other.start()
        join(others)
        assert results == [False] * 3
        counting.let_go()
        join([scan])
    assert results == [False] * 3 + [True]
    assert mf.stats().scans == 1
    assert known(mf) == pages * PAGE


def test_h3_to_the_page(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(4 * HUGE, kind=MemoryKind.RAMDISKFS)
    rng = np.random.default_rng(1)
    chosen = np.unique(rng.integers(0, 4 * HUGE // PAGE, 700))
    np.frombuffer(mf.map_range(range_), np.uint8)[chosen * PAGE + 17] = 1
    update_usage(mf)
    found = {
        page
        for s in mf.segments()
        if s.known_committed
        for page in range((s.start - range_.start) // PAGE, (s.end - range_.start) // PAGE)
    }
    assert found == set(chosen.tolist())
    assert mf.usage()[MemoryKind.RAMDISKFS] == len(chosen) * PAGE == stored(mf)
    testing.verify(mf)


@pytest.mark.parametrize("available", ["all", "no cachestat", "no SEEK_DATA", "no mincore"])
def test_h3_every_way_of_asking_agrees(mf: MemoryFile, available: str) -> None:
    call, error = {
        "all": ("pwrite", 0),
        "no cachestat": ("cachestat", errno.ENOSYS),
        "no SEEK_DATA": ("lseek", errno.EINVAL),
        "no mincore": ("mincore", errno.ENOMEM),
    }[available]
    dense = mf.allocate_range(HUGE)
    sparse = mf.allocate_range(64 * HUGE)
    pages = touch(mf, dense, 2) + touch(mf, sparse, 5000)
    with FaultPlan(call, error):
        try:
            update_usage(mf)
        except OSError:
            # The exact answer cannot be had this way; then nothing was booked wrongly.
            assert available in ("no SEEK_DATA", "no mincore")
            testing.verify(mf)
            return
    assert known(mf) == pages * PAGE == stored(mf)


def test_h3_fallocated_pages_count(mf: MemoryFile) -> None:
    ranges = [mf.allocate_range(HUGE, mode=COMMIT) for _ in range(3)]
    untouched = mf.allocate_range(8 * HUGE)
    # Mixed inside one segment: written, fallocated and absent pages.
    touch(mf, FileRange(untouched.start, untouched.start + 5 * PAGE))
    os.posix_fallocate(mf.fileno(), untouched.start + HUGE, 7 * PAGE)
    os.posix_fallocate(mf.fileno(), untouched.start + 3 * HUGE + PAGE, PAGE)
    update_usage(mf)
    assert known(mf) == 3 * HUGE + 13 * PAGE == stored(mf)
    for range_ in (*ranges, untouched):
        mf.dec_ref(range_)


def test_h3_pages_at_zero_references_are_not_scanned(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(4 * PAGE)
    touch(mf, range_)
    with testing.pause_reclaimer(mf):
        mf.dec_ref(range_)
        update_usage(mf)
        assert sum(mf.usage().values()) == 0


def decommitted(mf: MemoryFile, range_: FileRange) -> None:
    mf.decommit(range_)


def handed_out_again(mf: MemoryFile, range_: FileRange) -> None:
    kind = next(s.kind for s in mf.segments() if s.start == range_.start)
    mf.dec_ref(range_)
    mf.wait_for_reclaim()
    assert mf.allocate_range(range_.length, kind=kind) == range_


@pytest.mark.parametrize("go", [decommitted, handed_out_again])
@pytest.mark.parametrize("call", ["cachestat", "pagemap_scan", "lseek"])
def test_h3_results_that_raced_are_void(
    mf: MemoryFile, call: str, go: Callable[[MemoryFile, FileRange], None]
) -> None:
    """Pages that go after any system call of the scan, counted and not booked, stay unbooked."""
    dense = mf.allocate_range(64 * PAGE, kind=MemoryKind.TMPFS)
    sparse = mf.allocate_range(16 * HUGE, kind=MemoryKind.PAGE_CACHE)
    with ManualClock(mf) as clock:
        for number in itertools.count(1):
            touch(mf, dense)
            touch(mf, sparse, 5000 if call == "lseek" else 2)
            clock.advance(1)
            with HeldCall(call, number) as held:
                scan = threading.Thread(target=mf.update_usage)
                scan.start()
                eventually(lambda: held.reached or not scan.is_alive(), "the scan")  # noqa: B023
                if reached := held.reached:
                    go(mf, dense)
                    go(mf, sparse)
                held.let_go()
                join([scan])
            if not reached:
                break
            # What was booked although its pages had gone would stay booked for ever.
            assert sum(mf.usage().values()) == 0
            testing.verify(mf)
    assert mf.stats().voided_results > 0, "the race was not hit"
    assert sum(mf.usage().values()) == stored(mf)


def test_h3_account_and_kernel_agree_after_all_threads_were_busy(mf: MemoryFile) -> None:
    big = mf.allocate_range(GIB // 16)
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            range_ = mf.allocate_range(64 * PAGE, kind=MemoryKind.TMPFS)
            touch(mf, range_)
            mf.decommit(range_)
            touch(mf, range_)
            mf.dec_ref(range_)

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        touch(mf, big, 2)
        update_usage(mf)
        mf.decommit(FileRange(big.start, big.start + big.length // 2))
    stop.set()
    join(threads)
    mf.wait_for_reclaim()
    update_usage(mf)
    assert sum(mf.usage().values()) == stored(mf) == big.length // 4
    testing.verify(mf)


def test_h5_committed_is_one_way(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(4 * PAGE)
    touch(mf, range_)
    update_usage(mf)
    # Behind pgalloc's back the pages go: no scan takes them out of the account.
    with mmap.mmap(mf.fileno(), mf.total_size) as pages:
        pages.madvise(mmap.MADV_REMOVE, range_.start, range_.end - range_.start)
    scans = mf.stats().scans
    update_usage(mf)
    assert mf.stats().scans == scans + 1
    assert (known(mf), stored(mf)) == (4 * PAGE, 0)
    mf.decommit(range_)
    assert known(mf) == 0


def test_failing_fstat_is_an_error_and_changes_nothing(mf: MemoryFile) -> None:
    touch(mf, mf.allocate_range(PAGE))
    with FaultPlan("fstat", errno.EIO):
        for call in (mf.update_usage, mf.total_usage):
            with pytest.raises(OSError, match="fstat"):
                call()
    assert known(mf) == 0


def test_disk_files_count_what_is_stored(tmp_path: Path) -> None:
    if os.statvfs(tmp_path).f_bsize != PAGE:
        pytest.skip("this file system's blocks are not pages")
    with MemoryFile(tmp_path / "backing", disk_backed=True) as mf:
        range_ = mf.allocate_range(8 * PAGE)
        assert mf.usage()[MemoryKind.ANONYMOUS] == 8 * PAGE == stored(mf), "the blocks are reserved"
        mf.decommit(range_)
        assert sum(mf.usage().values()) == 0 == stored(mf)
        assert bytes(mf.map_range(range_)) == bytes(8 * PAGE)
        touch(mf, FileRange(range_.start, range_.start + 3 * PAGE))
        os.fsync(mf.fileno())
        update_usage(mf)
        assert mf.usage()[MemoryKind.ANONYMOUS] == 3 * PAGE == stored(mf)
        mf.dec_ref(range_)
        mf.wait_for_reclaim()
        assert sum(mf.usage().values()) == 0
        testing.verify(mf)


def test_one_tib_in_pieces_with_100_mib_touched() -> None:
    """Must show: only about 100 MiB committed, and update_usage agrees to the page."""
    with MemoryFile(capacity=2 << 40) as mf:
        pieces = [mf.allocate_range(GIB) for _ in range(1024)]
        pages = 0
        for piece in pieces[:100]:
            pages += touch(mf, FileRange(piece.start, piece.start + 7 * MIB), 7)
        committed = mf.allocate_range(4 * MIB, mode=COMMIT)
        update_usage(mf)
        assert pages * PAGE == 100 * 256 * PAGE
        assert sum(mf.usage().values()) == 104 * MIB == stored(mf)
        for piece in pieces:
            mf.dec_ref(piece)
        mf.dec_ref(committed)
        mf.wait_for_reclaim()
        assert stored(mf) == 0


# --- K: ledgers --------------------------------------------------


def test_k1_kinds() -> None:
    assert [(k.name, k.value) for k in MemoryKind] == [
        ("SYSTEM", 0),
        ("ANONYMOUS", 1),
        ("PAGE_CACHE", 2),
        ("TMPFS", 3),
        ("RAMDISKFS", 4),
        ("MAPPED", 5),
    ]


def test_k2_booking() -> None:
    ledger = Ledger()
    ledger.inc(100, MemoryKind.TMPFS)
    ledger.inc(50, MemoryKind.MAPPED, 7)
    ledger.move(30, MemoryKind.SYSTEM, MemoryKind.MAPPED, 7)
    assert ledger.copy()[MemoryKind.SYSTEM] == 30
    assert ledger.copy(7) == {
        **dict.fromkeys(MemoryKind, 0),
        MemoryKind.SYSTEM: 30,
        MemoryKind.MAPPED: 20,
    }
    assert ledger.total() == 150
    assert ledger.memcg_ids() == {7}
    ledger.dec(30, MemoryKind.SYSTEM, 7)
    ledger.dec(20, MemoryKind.MAPPED, 7)
    assert ledger.memcg_ids() == frozenset()  # empty entries vanish
    assert "TMPFS=100" in repr(ledger)


def test_k2_underflow_is_an_error_and_changes_nothing() -> None:
    ledger = Ledger()
    ledger.inc(100, MemoryKind.TMPFS, 1)
    ledger.inc(100, MemoryKind.TMPFS)
    for call in (
        lambda: ledger.dec(201, MemoryKind.TMPFS),
        lambda: ledger.dec(101, MemoryKind.TMPFS, 1),
        lambda: ledger.dec(1, MemoryKind.TMPFS, 2),
        lambda: ledger.dec(1, MemoryKind.SYSTEM),
        lambda: ledger.move(101, MemoryKind.SYSTEM, MemoryKind.TMPFS, 1),
        lambda: ledger.inc(2**64 - 1, MemoryKind.SYSTEM),
    ):
        with pytest.raises(AccountError):
            call()
    assert ledger.total() == 200
    with pytest.raises(OptionError):
        ledger.inc(1, 6)  # type: ignore[arg-type]
    for too_much in (-1, 2**64):
        with pytest.raises(RangeError):
            ledger.inc(too_much, MemoryKind.TMPFS)
    for bad in ("1", None, True, 1.5):
        with pytest.raises(TypeError):
            ledger.inc(bad, MemoryKind.TMPFS)  # type: ignore[arg-type]


def test_k4_snapshots_are_consistent_and_unknown_memcgs_are_zero() -> None:
    ledger = Ledger()
    ledger.inc(1000, MemoryKind.TMPFS, 1)
    stop = threading.Event()

    def move() -> None:
        while not stop.is_set():
            ledger.move(1000, MemoryKind.SYSTEM, MemoryKind.TMPFS, 1)
            ledger.move(1000, MemoryKind.TMPFS, MemoryKind.SYSTEM, 1)

    thread = threading.Thread(target=move)
    thread.start()
    try:
        for _ in range(2000):
            assert sum(ledger.copy().values()) == 1000
            assert sum(ledger.copy(1).values()) == 1000
    finally:
        stop.set()
        thread.join()
    assert ledger.copy(99) == dict.fromkeys(MemoryKind, 0)


@pytest.mark.parametrize(
    ("size", "used", "maximum", "expected"),
    [
        (0, 0, 0, 2 * GIB),
        (GIB, 0, 0, 2 * GIB),
        (8 * GIB, GIB, 0, 8 * GIB),
        (8 * GIB, 9 * GIB, 0, 16 * GIB),
        (0, 3 * GIB, 0, 4 * GIB),
        (8 * GIB, 9 * GIB, 10 * GIB, 10 * GIB),
        (8 * GIB, 0, 4 * GIB, 4 * GIB),
        (0, 2**63 - 1, 0, 2**63),
        (0, 2**63 + 1, 0, 2**63 + 1),
        (2**64 - 1, 0, 0, 2**64 - 1),
    ],
)
def test_k5_total_memory(size: int, used: int, maximum: int, expected: int) -> None:
    assert total_memory(size, used, maximum=maximum) == expected


def test_the_process_ledger_is_the_sum_of_the_files() -> None:
    process = pgalloc.memory_accounting()
    before = process.copy()
    with MemoryFile() as one, MemoryFile() as two:
        touch(one, one.allocate_range(2 * PAGE, kind=MemoryKind.TMPFS, memcg_id=5))
        touch(two, two.allocate_range(3 * PAGE, kind=MemoryKind.TMPFS, memcg_id=5))
        update_usage(one)
        update_usage(two)
        process.inc(PAGE, MemoryKind.MAPPED)
        assert process.copy()[MemoryKind.TMPFS] == before[MemoryKind.TMPFS] + 5 * PAGE
        assert process.copy(5)[MemoryKind.TMPFS] == 5 * PAGE
        assert process.total() == sum(before.values()) + 6 * PAGE
        with pytest.raises(AccountError):
            process.dec(PAGE, MemoryKind.TMPFS)  # a file's memory is the file's to take out
        process.dec(PAGE, MemoryKind.MAPPED)
    assert process.copy() == before


def test_usage_is_bounded_by_time(mf: MemoryFile) -> None:
    """A program that calls update_usage in a loop is not scanning all the time."""
    page = FileRange(mf.allocate_range(HUGE).start, PAGE)

    def scans(calls: int) -> int:
        done = 0
        for _ in range(calls):
            mf.decommit(page)
            touch(mf, page)
            done += mf.update_usage()
        return done

    with ManualClock(mf, tick_s=0.001):  # a call reads the clock once; if it scans, twice
        assert scans(100) == 10  # every 10 ms
    with ManualClock(mf, tick_s=0.01):
        assert scans(80) == 10  # each takes 10 ms, and the 80 ms behind it have none
