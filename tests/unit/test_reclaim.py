"""Section F: the reclaimer; and section I: close."""

from __future__ import annotations

import errno
import fcntl
import gc
import io
import itertools
import logging
import os
import threading
import time
from pathlib import Path

import pytest
from conftest import GIB, HUGE, PAGE, stored, update_usage
from held_call import HeldCall
from waiting import TIMEOUT_S, eventually, join

import pgalloc
from pgalloc import (
    AllocationMode,
    ClosedError,
    EvictableRange,
    FileRange,
    MemoryFile,
    MemoryKind,
    testing,
)
from pgalloc._core import _testing
from pgalloc.testing import FaultPlan

MIB = 1 << 20
COMMIT = AllocationMode.ALLOCATE_AND_COMMIT
POPULATE = AllocationMode.ALLOCATE_AND_WRITE_POPULATE


def pages(first: int, last: int) -> FileRange:
    return FileRange(first * PAGE, last * PAGE)


def test_f1_highest_first_and_merged(mf: MemoryFile) -> None:
    mf.allocate_range(10 * PAGE)
    with testing.reclaim_log(mf) as log:
        with testing.pause_reclaimer(mf):
            for page in (8, 3, 1, 2, 6):
                mf.dec_ref(pages(page, page + 1))
        mf.wait_for_reclaim()
    assert log == [pages(8, 9), pages(6, 7), pages(1, 4)]


def test_f1_at_most_128_mib_per_punch(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(GIB // 2)
    with testing.reclaim_log(mf) as log:
        mf.dec_ref(range_)
        mf.wait_for_reclaim()
    assert [r.length for r in log] == [128 * MIB] * 4


def test_f1_everything_goes_back_to_the_kernel(mf: MemoryFile) -> None:
    allocations = [
        mf.allocate(16 * PAGE, mode=AllocationMode.ALLOCATE_AND_COMMIT) for _ in range(100)
    ]
    update_usage(mf)
    assert stored(mf) == 1600 * PAGE
    for a in allocations[::2] + allocations[1::2]:
        a.release()
    assert mf.wait_for_reclaim(10)
    assert (stored(mf), mf.segments(), sum(mf.usage().values())) == (0, [], 0)
    assert mf.stats().punched_bytes == 1600 * PAGE


def test_f1_the_lock_is_free_while_a_punch_runs(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(PAGE)

    def use() -> None:
        mf.dec_ref(mf.allocate_range(PAGE))

    with HeldCall("fallocate") as punch:
        mf.dec_ref(range_)
        punch.wait()
        user = threading.Thread(target=use)
        user.start()
        join([user], 2 * TIMEOUT_S)


def test_f2_zeroed_by_hand_when_punching_fails(
    mf: MemoryFile, caplog: pytest.LogCaptureFixture
) -> None:
    range_ = mf.allocate_range(4 * PAGE)
    mf.map_range(range_)[:] = b"x" * (4 * PAGE)
    with FaultPlan("fallocate", errno.EOPNOTSUPP), caplog.at_level(logging.WARNING, "pgalloc"):
        mf.dec_ref(range_)
        mf.wait_for_reclaim()
    assert "could not be given back" in caplog.text
    assert mf.stats().punch_failures == 1
    assert mf.stats().lost_bytes == 0
    again = mf.allocate_range(4 * PAGE)
    assert again == range_
    assert bytes(mf.map_range(again)) == bytes(4 * PAGE)
    mf.dec_ref(again)


def test_f2_pages_that_cannot_be_zeroed_are_never_reused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fd = os.memfd_create("sealable", os.MFD_ALLOW_SEALING)
    with MemoryFile(fd) as mf:
        range_ = mf.allocate_range(4 * PAGE)
        os.pwrite(fd, b"x" * (4 * PAGE), range_.start)
        # From here on the kernel refuses both punching and writing.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        mf.dec_ref(range_)
        mf.wait_for_reclaim()
        assert mf.stats().lost_bytes == 4 * PAGE
        assert [(s.start, s.end, s.refs) for s in mf.segments()] == [(*range_, 0)]
        assert not mf.allocate_range(4 * PAGE).overlaps(range_)
        testing.verify(mf)
        mf.stats()
    assert "nor zeroed" in caplog.text


def test_f3_manual_zeroing_punches_only_whole_huge_pages() -> None:
    with MemoryFile(manual_zeroing=True) as mf:
        mf.allocate_range(PAGE)
        range_ = mf.allocate_range(2 * HUGE - PAGE)
        assert range_.start == HUGE
        mf.map_range(range_)[:] = b"x" * range_.length
        with FaultPlan("fallocate") as counted:
            mf.dec_ref(range_)
            mf.wait_for_reclaim()
            assert counted.calls == 1
        assert mf.total_usage() == HUGE - PAGE
        with FaultPlan("fallocate", errno.EIO):
            again = mf.allocate_range(2 * HUGE - PAGE)
            mf.dec_ref(again)
            mf.wait_for_reclaim()
        assert mf.stats().punch_failures == 1
        assert mf.stats().lost_bytes == 0
        assert not any(s.refs == 0 for s in mf.segments())


def test_f4_what_leaves_may_be_committed_and_charged_in_part(mf: MemoryFile) -> None:
    mf.allocate_range(4 * PAGE, kind=MemoryKind.TMPFS, memcg_id=5)
    mf.allocate_range(4 * PAGE)
    mf.map_range(pages(1, 3))[:] = b"x" * (2 * PAGE)
    update_usage(mf)
    with testing.reclaim_log(mf) as log:
        with testing.pause_reclaimer(mf):
            mf.dec_ref(pages(0, 8))
            known = [s.known_committed // PAGE for s in mf.segments()]
            assert known == [0, 2, 0]
            assert [s.memcg_id for s in mf.segments()] == [0, 5, 0]
            assert {(s.kind, s.refs) for s in mf.segments()} == {(MemoryKind.SYSTEM, 0)}
        mf.wait_for_reclaim()
    assert log == [pages(0, 8)]
    assert (mf.segments(), sum(mf.usage().values()), sum(mf.usage(5).values())) == ([], 0, 0)


class Asked:
    """An evictable user that tells."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def evict(self, range: EvictableRange) -> None:
        self.event.set()


def test_f5_idle_reclaimer_starts_evictions(mf: MemoryFile) -> None:
    user = Asked()
    mf.mark_evictable(user, EvictableRange(0, 1))
    assert user.event.wait(TIMEOUT_S)
    mf.wait_for_evictions()


def test_f5_waste_goes_before_evictions(mf: MemoryFile) -> None:
    order: list[str] = []

    class User:
        def evict(self, range: EvictableRange) -> None:
            order.append("evicted" if not mf.segments() else "too early")

    with testing.pause_reclaimer(mf):
        mf.dec_ref(mf.allocate_range(64 * HUGE, mode=AllocationMode.ALLOCATE_AND_COMMIT))
    mf.mark_evictable(User(), EvictableRange(0, 1))
    eventually(lambda: order, "the eviction")
    assert order == ["evicted"]


def test_pause_waits_for_the_punch_under_way(mf: MemoryFile) -> None:
    """And while it lasts, the reclaimer takes nothing, though it comes by."""
    for _ in range(20):
        about_to_pause = threading.Event()

        def let_go(punch: HeldCall, about_to_pause: threading.Event = about_to_pause) -> None:
            assert about_to_pause.wait(TIMEOUT_S)
            punch.let_go()

        with HeldCall("fallocate") as punch:
            before = mf.stats().punches
            mf.dec_ref(mf.allocate_range(PAGE))
            punch.wait()
            releaser = threading.Thread(target=let_go, args=(punch,))
            releaser.start()
            about_to_pause.set()
            with testing.pause_reclaimer(mf):
                assert mf.stats().punches == before + 1
                mf.dec_ref(mf.allocate_range(PAGE))
                user = Asked()
                mf.mark_evictable(user, EvictableRange(0, 1))
                assert user.event.wait(TIMEOUT_S)  # by the reclaimer, which looks for waste before
                assert mf.stats().punches == before + 1
            releaser.join()
        assert mf.wait_for_reclaim(TIMEOUT_S)
        assert mf.stats().punches == before + 2


def test_wait_for_reclaim_times_out(mf: MemoryFile) -> None:
    with testing.pause_reclaimer(mf):
        mf.dec_ref(mf.allocate_range(PAGE))
        assert mf.wait_for_reclaim(0) is False
        assert mf.wait_for_reclaim(0.001) is False
    assert mf.wait_for_reclaim(TIMEOUT_S) is True
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        mf.wait_for_reclaim("soon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NaN"):
        mf.wait_for_reclaim(float("nan"))
    assert mf.wait_for_reclaim(float("inf")) is True
    assert mf.wait_for_reclaim(-1) is True


# --- I: close --------------------------------------------------


def test_i1_everything_raises_after_close() -> None:
    mf = MemoryFile()
    range_ = mf.allocate_range(PAGE)
    mf.close()
    mf.close()
    assert mf.closed

    class User:
        def evict(self, range: EvictableRange) -> None:
            pass

    calls = [
        lambda: mf.allocate(PAGE),
        lambda: mf.allocate_range(PAGE),
        lambda: mf.inc_ref(range_),
        lambda: mf.dec_ref(range_),
        lambda: mf.has_unique_ref(range_),
        lambda: mf.decommit(range_),
        lambda: mf.map_range(range_),
        lambda: mf.mark_evictable(User(), EvictableRange(0, 1)),
        lambda: mf.mark_unevictable(User(), EvictableRange(0, 1)),
        lambda: mf.mark_all_unevictable(User()),
        lambda: mf.start_evictions(),
        lambda: mf.wait_for_evictions(),
        lambda: mf.update_usage(),
        lambda: mf.total_usage(),
        lambda: mf.segments(),
        lambda: mf.wait_for_reclaim(),
        lambda: mf.mark_savable(),
        lambda: mf.fileno(),
        lambda: mf.file,
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()
    assert sum(mf.usage().values()) == 0
    assert mf.stats().allocations == 1
    assert "closed" in repr(mf)
    assert "closed" in str(mf)


def test_i2_decommit_on_destroy(tmp_path: Path) -> None:
    for decommit, left in ((True, 0), (False, 4 * PAGE)):
        path = tmp_path / f"f{decommit}"
        with MemoryFile(path, decommit_on_destroy=decommit) as mf:
            mf.map_range(mf.allocate_range(4 * PAGE))[:] = b"x" * (4 * PAGE)
            os.fsync(mf.fileno())
        assert path.stat().st_blocks * 512 == left


def test_i2_the_account_returns_to_zero_waste_included() -> None:
    before = pgalloc.memory_accounting().total()
    mf = MemoryFile()
    kept = mf.allocate_range(4 * PAGE, kind=MemoryKind.TMPFS, memcg_id=3)
    wasted = mf.allocate_range(4 * PAGE)
    for range_ in (kept, wasted):
        mf.map_range(range_)[:] = b"x" * (4 * PAGE)
    update_usage(mf)
    assert pgalloc.memory_accounting().total() == before + 8 * PAGE
    with testing.pause_reclaimer(mf):
        mf.dec_ref(wasted)
        assert mf.usage()[MemoryKind.SYSTEM] == 4 * PAGE
        mf.close()
    assert pgalloc.memory_accounting().total() == before
    assert sum(mf.usage().values()) == 0


def test_i2_release_after_close_is_fine() -> None:
    mf = MemoryFile()
    a, b = mf.allocate(PAGE), mf.allocate(PAGE)
    view = b.view()
    mf.close()
    a.release()
    b.release()
    view.release()
    with pytest.raises(ClosedError):
        mf.allocate(PAGE)


def test_i2_close_with_all_threads_busy() -> None:
    for _ in range(20):
        mf = MemoryFile()
        failures: list[BaseException] = []
        busy = threading.Barrier(4)

        def work(
            mf: MemoryFile = mf,
            failures: list[BaseException] = failures,
            busy: threading.Barrier = busy,
        ) -> None:
            try:
                for turn in itertools.count():
                    with mf.allocate(HUGE, mode=AllocationMode.ALLOCATE_AND_WRITE_POPULATE) as a:
                        a.decommit()
                        mf.update_usage()
                    if turn == 0:
                        busy.wait(TIMEOUT_S)
            except ClosedError:
                pass
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        busy.wait(TIMEOUT_S)
        mf.close()
        join(threads)
        assert failures == []


def test_i2_two_closers_both_return_closed() -> None:
    mf = MemoryFile()
    mf.dec_ref(mf.allocate_range(64 * HUGE, mode=AllocationMode.ALLOCATE_AND_COMMIT))
    fd = mf.fileno()
    threads = [threading.Thread(target=mf.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    join(threads)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_a_forgotten_file_closes_itself() -> None:
    threads = set(os.listdir("/proc/self/task"))
    mf = MemoryFile()
    mf.allocate_range(PAGE)
    fd = mf.fileno()
    made = set(os.listdir("/proc/self/task")) - threads
    assert made
    del mf
    gc.collect()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    eventually(lambda: not made & set(os.listdir("/proc/self/task")), "the end of its threads")


def test_a_forgotten_file_with_evictable_users_closes_itself() -> None:
    class User:
        def evict(self, range: EvictableRange) -> None:
            pass

    mf = MemoryFile()
    mf.mark_evictable(User(), EvictableRange(0, 10))
    fd = mf.fileno()
    del mf
    gc.collect()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


@pytest.mark.parametrize("mode", [POPULATE, COMMIT])
def test_f6_what_is_asked_for_again_is_recycled(mf: MemoryFile, mode: AllocationMode) -> None:
    for _ in range(100):
        a = mf.allocate(16 * PAGE, mode=mode)
        a.view()[:] = b"x" * a.nbytes
        a.release()
        time.sleep(0.002)  # time: without a budget, it would be gone by now
    stats = mf.stats()
    assert stats.recycled_bytes > 0
    assert stats.punched_bytes + stats.recycled_bytes + stats.waiting_bytes == stats.freed_bytes
    assert stats.waiting_bytes <= 16 * PAGE


def test_f6_nothing_waits_for_ever(mf: MemoryFile) -> None:
    mf.allocate(16 * PAGE, mode=COMMIT).release()
    eventually(lambda: mf.stats().waiting_bytes == 0 and mf.total_usage() == 0)


def test_f6_who_waits_for_it_does_not_wait_for_the_budget(mf: MemoryFile) -> None:
    for wait in (lambda: mf.wait_for_reclaim(20), lambda: mf.save(io.BytesIO())):
        mf.allocate(16 * PAGE, mode=COMMIT).release()
        wait()
        assert (mf.stats().waiting_bytes, mf.total_usage()) == (0, 0)


def test_f6_what_waits_makes_way_for_what_is_used(mf: MemoryFile) -> None:
    """Both together are no more than what was used lately."""
    mf.allocate(16 * PAGE, mode=COMMIT).release()
    a = mf.allocate(16 * PAGE)  # never takes what waits
    a.view()[:] = b"x" * a.nbytes
    eventually(lambda: mf.stats().waiting_bytes == 0 and mf.total_usage() == a.nbytes)


def test_f6_under_pressure_nothing_waits(mf: MemoryFile) -> None:
    mf.allocate(16 * PAGE, mode=COMMIT).release()
    with pgalloc.testing.ManualPressure() as pressure:
        pressure.demand(PAGE)
        eventually(lambda: mf.stats().waiting_bytes == 0)


def test_what_is_recycled_is_not_waited_for(mf: MemoryFile) -> None:
    """The last pages on their way out go to an allocation that fills them."""
    populate = AllocationMode.ALLOCATE_AND_WRITE_POPULATE
    with testing.pause_reclaimer(mf):
        mf.allocate(PAGE, mode=populate).release()
        done: list[bool] = []
        waiting = threading.Thread(target=lambda: done.append(mf.wait_for_reclaim(TIMEOUT_S)))
        waiting.start()
        eventually(lambda: _testing.reclaim_waiters(mf) == 1)
        with mf.allocate(PAGE, mode=populate):
            assert mf.stats().recycled_bytes == PAGE
            waiting.join(TIMEOUT_S / 2)
            assert done == [True]
