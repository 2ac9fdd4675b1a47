"""Files that keep no account of what is committed (row H7): all else is as in other files."""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import HUGE, PAGE, stored, update_usage
from waiting import eventually

import pgalloc
from pgalloc import (
    Allocation,
    AllocationMode,
    Cache,
    MemoryFile,
    MemoryKind,
    OptionError,
    OutOfMemoryError,
    testing,
)
from pgalloc.testing import FaultPlan

LOOKING = ["cachestat", "pagemap_scan", "mincore", "lseek"]


@pytest.fixture
def mf() -> Iterator[MemoryFile]:
    with MemoryFile(accounting=False) as file:
        yield file
        assert file.wait_for_reclaim(20)
        testing.verify(file)


def booked() -> int:
    return pgalloc.memory_accounting().total()


def touched(mf: MemoryFile, pages: int, **options: object) -> Allocation:
    a = mf.allocate(pages * PAGE, **options)  # type: ignore[arg-type]
    np.frombuffer(a.view(), np.uint8)[::PAGE] = 7
    return a


def test_h7_nothing_is_booked_and_usage_says_so(mf: MemoryFile) -> None:
    before = booked()
    assert mf.accounting is False
    handles = [
        touched(mf, pages, mode=mode, huge=huge, kind=MemoryKind.TMPFS, memcg_id=7)
        for pages in (1, HUGE // PAGE + 3)
        for mode in AllocationMode
        for huge in (False, True)
    ]
    assert mf.update_usage() is True
    assert mf.update_usage([7]) is True
    for memcg_id in (None, 0, 7):
        with pytest.raises(OptionError, match="accounting=False"):
            mf.usage(memcg_id)
    assert booked() == before
    assert pgalloc.memory_accounting().copy(7) == dict.fromkeys(MemoryKind, 0)
    assert {s.known_committed for s in mf.segments()} == {0}
    assert mf.total_usage() == stored(mf) == sum(a.nbytes for a in handles)
    handles[-1].decommit()
    handles[0].release()
    mf.inc_ref(handles[1].range, 9)  # a memory cgroup pays, and no account says so
    mf.dec_ref(handles[1].range)
    testing.verify(mf)
    for a in handles:
        a.release()
    assert mf.wait_for_reclaim(20)
    assert (mf.segments(), mf.total_usage(), booked()) == ([], 0, before)


def test_h7_nothing_is_looked_at(mf: MemoryFile) -> None:
    a = touched(mf, 100)
    for name in LOOKING:
        with FaultPlan(name, 0) as looking:
            assert mf.update_usage() is True
        assert looking.calls == 0, name
    assert mf.stats().scans == 0
    a.release()


def test_other_files_are_accounted_for_beside_it(mf: MemoryFile) -> None:
    before = booked()
    with MemoryFile() as other:
        assert other.accounting is True
        mine, theirs = touched(mf, 5), touched(other, 3)
        update_usage(other)
        assert booked() - before == sum(other.usage().values()) == 3 * PAGE
        mine.release()
        theirs.release()


def test_a_closed_file_says_the_same() -> None:
    mf = MemoryFile(accounting=False)
    touched(mf, 1).release()
    mf.close()
    with pytest.raises(OptionError, match="accounting=False"):
        mf.usage()
    with pytest.raises(pgalloc.ClosedError):
        mf.update_usage()
    assert mf.accounting is False


def test_on_a_disk(tmp_path: Path) -> None:
    before = booked()
    with MemoryFile(tmp_path / "pages", accounting=False) as mf:
        a = touched(mf, 10)  # whose blocks are booked at once elsewhere (row B12)
        assert booked() == before
        assert mf.total_usage() >= a.nbytes
        a.release()


def test_recycled_and_filled(mf: MemoryFile) -> None:
    populate = AllocationMode.ALLOCATE_AND_WRITE_POPULATE
    with testing.pause_reclaimer(mf):
        touched(mf, 8).release()
        a = mf.allocate(8 * PAGE, mode=populate)
        assert mf.stats().recycled_bytes == 8 * PAGE
        assert bytes(a) == bytes(8 * PAGE)
        testing.verify(mf)
    with mf.allocate(2 * PAGE, reader=io.BytesIO(b"r" * 2 * PAGE).readinto) as b:
        assert bytes(b) == b"r" * 2 * PAGE
    a.release()


def test_a_maximum_counts_without_an_account() -> None:
    with MemoryFile(accounting=False, max_allocatable_bytes=4 * PAGE) as mf:
        a = touched(mf, 3)
        with pytest.raises(OutOfMemoryError):
            mf.allocate(2 * PAGE)
        a.release()
        mf.allocate(4 * PAGE).release()


def test_discards_know_what_is_committed(mf: MemoryFile) -> None:
    with testing.ManualPressure() as pressure:
        untouched = mf.allocate(64 * PAGE)
        a, b = touched(mf, 4), touched(mf, 4)
        for handle in (untouched, a, b):
            handle.unpin()
        assert pressure.demand(4 * PAGE) == 4 * PAGE
        assert [a.pin(), b.pin()] == [False, True]
        assert mf.total_usage() == 4 * PAGE
        testing.verify(mf)
        for handle in (untouched, a, b):
            handle.release()


def test_values_of_a_cache(mf: MemoryFile) -> None:
    with testing.ManualPressure() as pressure, Cache(file=mf) as cache:
        for number in range(20):
            cache[number] = bytes([number]) * 10_000
        assert bytes(cache[19]) == bytes([19]) * 10_000
        pressure.demand(100_000)
        assert 0 < len(cache) < 20
        cache.clear()


@pytest.mark.parametrize("saved_with", [False, True])
@pytest.mark.parametrize("restored_with", [False, True])
@pytest.mark.parametrize("way", ["eager", "background", "stream"])
def test_images_do_not_depend_on_accounts(
    tmp_path: Path, saved_with: bool, restored_with: bool, way: str
) -> None:
    image = tmp_path / "image"
    before = booked()
    with MemoryFile(accounting=saved_with) as mf:
        a = touched(mf, 600)
        zeros = mf.allocate(8 * PAGE, mode=AllocationMode.ALLOCATE_AND_COMMIT)
        mf.save(image, exclude_committed_zero_pages=False)
        ranges = (a.range, zeros.range)
    source = io.BytesIO(image.read_bytes()) if way == "stream" else image
    restored = MemoryFile.restore(
        source,
        background=way == "background",
        accounting=restored_with,
    )
    with restored:
        first, second = (Allocation.adopt(restored, r) for r in ranges)
        assert restored.wait_loaded(20)
        assert (np.frombuffer(first.view(), np.uint8)[::PAGE] == 7).all()
        assert bytes(second) == bytes(8 * PAGE)
        assert restored.total_usage() == 608 * PAGE
        assert booked() - before == (608 * PAGE if restored_with else 0)
        testing.verify(restored)
        first.release()
        second.release()
        assert restored.wait_for_reclaim(20)
        assert (restored.total_usage(), booked()) == (0, before)


def test_images_are_the_same_with_and_without(tmp_path: Path) -> None:
    images = []
    for accounting in (True, False):
        with MemoryFile(accounting=accounting) as mf:
            a = touched(mf, 70)
            mf.save(tmp_path / "image")
            images.append((tmp_path / "image").read_bytes())
            a.release()
    assert images[0] == images[1]


def _use(a: Allocation) -> str:
    with a, a.view() as view:
        view[0] = 9
    try:
        a.file.usage()
    except OptionError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_peers_follow_the_owner(mf: MemoryFile, method: str) -> None:
    a = touched(mf, 4)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert "accounting=False" in pool.apply(_use, (a,))
    assert a.view(readonly=True)[0] == 9
    a.release()
    eventually(lambda: mf.leases() == [])


def test_a_peer_that_connects_follows_the_owner(mf: MemoryFile, tmp_path: Path) -> None:
    with mf.serve(tmp_path / "socket"), pgalloc.connect(tmp_path / "socket") as peer:
        with peer.allocate(PAGE) as a, a.view() as view:
            view[0] = 1
        with pytest.raises(OptionError, match="accounting=False"):
            peer.usage()
        del a, view
    eventually(lambda: mf.leases() == [])


def test_a_forked_child_follows_the_owner(mf: MemoryFile) -> None:
    a = touched(mf, 2)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            try:
                mf.usage()
            except OptionError:
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    a.release()
    eventually(lambda: mf.leases() == [])
