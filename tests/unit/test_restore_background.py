"""Background restore: a range waits for its own pages only, and for nothing that will not come."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PAGE, stored, update_usage
from held_call import HeldCall
from image_model import Image, Usage, build, extents_of, fields
from snapshots import contents, image_of, merged, random_file
from waiting import eventually, join

import pgalloc
from pgalloc import (
    Allocation,
    ClosedError,
    FileRange,
    ForkedError,
    MemoryFile,
    SnapshotCorruptError,
    testing,
)
from pgalloc._core import _testing
from pgalloc.testing import FaultPlan, without_loaders

SPAN = 4 << 20  # no extent crosses a multiple of it
EXTENTS = 6

compressions = pytest.mark.parametrize("compression", [None, "zstd"])


class Saved:
    """A file of EXTENTS spans, saved: pages 0 and 7 of span i hold i + 1 throughout."""

    def __init__(self, folder: Path, compression: str | None) -> None:
        self.path = folder / "image"
        with MemoryFile() as mf:
            self.range = mf.allocate_range(EXTENTS * SPAN)
            view = mf.map_range(self.range)
            for i in range(EXTENTS):
                for page in (0, 7):
                    at = i * SPAN + page * PAGE
                    view[at : at + PAGE] = bytes([i + 1]) * PAGE
            mf.save(self.path, compression=compression)

    def restore(self, **options: Any) -> MemoryFile:
        return MemoryFile.restore(self.path, background=True, **options)

    def page(self, extent: int, page: int = 0) -> FileRange:
        start = self.range.start + extent * SPAN + page * PAGE
        return FileRange(start, start + PAGE)

    def damage(self, extent: int) -> None:
        """Flip a bit in the data of one extent."""
        data = bytearray(self.path.read_bytes())
        where = {field.name: field for field in fields(bytes(data))}[f"extent[{extent}].data"]
        data[where.offset + 5] ^= 1
        self.path.write_bytes(data)


@pytest.fixture(params=[None, "zstd"])
def saved(tmp_path: Path, request: pytest.FixtureRequest) -> Saved:
    return Saved(tmp_path, request.param)


@pytest.fixture
def alone() -> Iterator[None]:
    """No loaders: what arrives was asked for."""
    with without_loaders():
        yield


def loaded(mf: MemoryFile) -> int:
    return mf.load_progress().loaded_bytes


def waiters(mf: MemoryFile) -> int:
    """Threads that wait for pages to arrive."""
    return _testing.load_waiters(mf)


@pytest.mark.usefixtures("alone")
def test_a_range_waits_for_its_own_pages_only(saved: Saved) -> None:
    with saved.restore() as mf:
        total = mf.load_progress().total_bytes
        assert mf.loading
        assert loaded(mf) == 0
        view = mf.map_range(saved.page(3))
        assert bytes(view) == b"\4" * PAGE
        one = loaded(mf)
        assert 0 < one < total
        handle = Allocation.adopt(mf, saved.range)
        with handle.slice(5 * SPAN, 5 * SPAN + PAGE) as part:
            assert loaded(mf) == one  # adopting and slicing need no contents
            assert bytes(part) == b"\6" * PAGE
        assert loaded(mf) == 2 * one
        assert mf.map_range(saved.page(0, 1023))[0] == 0  # in no extent
        assert loaded(mf) == 2 * one
        _ = handle.slice(SPAN, 3 * SPAN).address
        assert loaded(mf) == 4 * one
        assert not mf.wait_loaded(0)
        assert mf.wait_loaded()
        assert loaded(mf) == total
        assert not mf.loading
        testing.verify(mf)


@pytest.mark.usefixtures("alone")
def test_what_needs_no_contents_does_not_load(saved: Saved) -> None:
    with saved.restore() as mf:
        assert mf.has_unique_ref(saved.range)
        mf.inc_ref(saved.range)
        assert not mf.has_unique_ref(saved.range)
        mf.dec_ref(saved.range)
        mf.segments(), mf.usage(), mf.update_usage(), mf.stats(), mf.unadopted()
        with mf.allocate(100 * PAGE) as a:
            assert bytes(a.view()) == bytes(100 * PAGE)
        assert loaded(mf) == 0
        testing.verify(mf)


@pytest.mark.usefixtures("alone")
def test_freed_pages_are_not_loaded(saved: Saved) -> None:
    with saved.restore() as mf:
        total = mf.load_progress().total_bytes
        mf.dec_ref(FileRange(saved.page(1).start, saved.page(4).start))
        progress = mf.load_progress()
        assert progress.dropped_bytes == total // 2
        assert progress.pending_bytes == total // 2
        assert mf.wait_for_reclaim(20)
        # Their next owner finds zeros.
        again = mf.allocate_range(3 * SPAN)
        assert again.start == saved.page(1).start
        assert not np.frombuffer(mf.map_range(again), dtype=np.uint64).any()
        assert loaded(mf) == 0
        assert mf.map_range(saved.page(5))[0] == 6
        mf.wait_loaded()
        assert mf.load_progress().loaded_bytes == total // 2
        assert not np.frombuffer(mf.map_range(again), dtype=np.uint64).any()
        testing.verify(mf)


@pytest.mark.usefixtures("alone")
def test_decommitted_pages_are_not_loaded(saved: Saved) -> None:
    with saved.restore() as mf:
        mf.decommit(saved.page(2))
        assert mf.map_range(saved.page(2))[0] == 0
        assert mf.map_range(saved.page(2, 7))[0] == 3  # its neighbour is
        assert mf.map_range(saved.page(2))[0] == 0
        mf.decommit(saved.range)
        assert mf.wait_loaded(0)
        assert not np.frombuffer(mf.map_range(saved.range), dtype=np.uint64).any()
        testing.verify(mf)


def test_decommitting_while_loading(saved: Saved) -> None:
    """What is decommitted does not come back, and the account knows it."""
    for _ in range(30):
        with saved.restore() as mf:
            gone = [saved.page(extent, page) for page in (0, 7) for extent in range(EXTENTS)]
            threads = [
                threading.Thread(target=lambda part: [mf.decommit(p) for p in part], args=(part,))
                for part in (gone[::2], gone[1::2])
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert mf.wait_loaded(20)
            assert not np.frombuffer(mf.map_range(saved.range), dtype=np.uint64).any()
            update_usage(mf)
            assert sum(mf.usage().values()) == stored(mf)
            testing.verify(mf)


@pytest.mark.usefixtures("alone")
def test_a_decommit_that_fails_loses_nothing(saved: Saved) -> None:
    with saved.restore() as mf:
        with FaultPlan("fallocate", errno.EIO), pytest.raises(OSError):
            mf.decommit(saved.range)
        assert mf.map_range(saved.page(3))[0] == 4
        assert mf.load_progress().dropped_bytes == 0
        testing.verify(mf)


@pytest.mark.usefixtures("alone")
def test_decommitting_what_has_all_references_there_can_be(tmp_path: Path) -> None:
    """It cannot be held while it is punched: an error, after which its contents still come."""
    data = {0: b"\x07" * PAGE}
    usage = [Usage(0, PAGE, references=2**32 - 1)]
    image = build(Image(PAGE, 1 << 30, usage, extents=extents_of(data, PAGE)))
    (tmp_path / "image").write_bytes(image)
    with MemoryFile.restore(tmp_path / "image", background=True) as mf:
        with pytest.raises(pgalloc.RefCountError):
            mf.decommit(FileRange(0, PAGE))
        assert bytes(mf.map_range(FileRange(0, PAGE))) == data[0]


def test_freeing_while_loading(saved: Saved) -> None:
    """Pages that are let go of at the moment they arrive reach no other owner."""
    for _ in range(30):
        with saved.restore() as mf:
            mf.dec_ref(saved.range)
            fresh = mf.allocate_range(EXTENTS * SPAN)
            assert not np.frombuffer(mf.map_range(fresh), dtype=np.uint64).any()
            mf.wait_loaded()
            assert not np.frombuffer(mf.map_range(fresh), dtype=np.uint64).any()
            assert mf.wait_for_reclaim(20)
            update_usage(mf)
            assert sum(mf.usage().values()) == stored(mf)
            testing.verify(mf)


def test_many_threads_want_many_pages(saved: Saved) -> None:
    for _ in range(10):
        with saved.restore() as mf:
            wrong: list[int] = []

            def look(mf: MemoryFile = mf, wrong: list[int] = wrong) -> None:
                for extent in (5, 0, 3, 1, 4, 2):
                    if mf.map_range(saved.page(extent, 7))[17] != extent + 1:
                        wrong.append(extent)

            threads = [threading.Thread(target=look) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not wrong
            assert mf.wait_loaded(20)
            testing.verify(mf)


# --- what cannot be loaded -----------------------------------------------------------------------


def test_an_error_reaches_exactly_those_who_touch_the_range(
    saved: Saved, caplog: pytest.LogCaptureFixture
) -> None:
    saved.damage(2)
    with saved.restore() as mf:
        assert mf.wait_loaded(20)
        progress = mf.load_progress()
        assert progress.failed_bytes == progress.total_bytes // EXTENTS
        for extent in (0, 1, 3, 4, 5):
            assert mf.map_range(saved.page(extent, 7))[0] == extent + 1
        handle = Allocation.adopt(mf, saved.range)
        touches: list[Any] = [
            lambda: mf.map_range(saved.page(2)),
            lambda: mf.map_range(saved.range),
            lambda: handle.view(),
            lambda: memoryview(handle),
            lambda: handle.address,
            lambda: mf.save(os.devnull + "/x"),
            lambda: mf.save(saved.path.with_name("again")),
        ]
        for touch in touches:
            with pytest.raises((SnapshotCorruptError, OSError)):
                touch()
        assert not saved.path.with_name("again").exists()
        mf.stats()
        assert "checksum" in caplog.text
        # A page that was given up is a page of zeros; the file is whole again without it.
        mf.decommit(FileRange(saved.page(2).start, saved.page(3).start))
        assert mf.map_range(saved.page(2))[0] == 0
        assert not mf._incomplete
        mf.save(saved.path.with_name("again"))
        testing.verify(mf)


def test_freeing_what_could_not_be_loaded(saved: Saved) -> None:
    saved.damage(0)
    with saved.restore() as mf:
        with pytest.raises(SnapshotCorruptError):
            mf.map_range(saved.page(0))
        mf.wait_loaded()
        mf.dec_ref(saved.range)
        assert mf.wait_for_reclaim(20)
        fresh = mf.allocate_range(SPAN)
        assert fresh.start == 0
        assert not np.frombuffer(mf.map_range(fresh), dtype=np.uint64).any()
        assert stored(mf) <= SPAN
        testing.verify(mf)


@pytest.mark.parametrize("call", ["pread", "pwrite"])
@pytest.mark.usefixtures("alone")
def test_a_failing_call_is_an_error_for_its_range(saved: Saved, call: str) -> None:
    with saved.restore() as mf:
        with FaultPlan(call, errno.EIO, times=1), pytest.raises(OSError) as caught:
            mf.map_range(saved.page(4))
        assert caught.value.errno == errno.EIO
        with pytest.raises(OSError):
            mf.map_range(saved.page(4))
        assert mf.map_range(saved.page(3))[0] == 4
        assert mf.wait_loaded(20)
        assert mf.load_progress().failed_bytes > 0
        update_usage(mf)
        assert sum(mf.usage().values()) == stored(mf)
        testing.verify(mf)


def test_an_image_that_is_cut_off_afterwards(saved: Saved) -> None:
    with without_loaders():
        mf = saved.restore()
    with mf:
        os.truncate(saved.path, 5 * PAGE)
        with pytest.raises(SnapshotCorruptError, match="shorter"):
            mf.map_range(saved.page(5))


def test_an_image_that_is_removed_afterwards(saved: Saved) -> None:
    with without_loaders():
        mf = saved.restore()
    saved.path.unlink()
    with mf:
        assert mf.map_range(saved.page(5))[0] == 6
        assert mf.wait_loaded(20)
        assert mf.load_progress().failed_bytes == 0


# --- waiting -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("alone")
def test_waiters_are_woken_by_close(tmp_path: Path) -> None:
    """One thread holds an extent and never delivers it; others wait for it; the file closes."""
    saved = Saved(tmp_path, "zstd")
    mf = saved.restore()
    there, extent = mf._load(saved.page(1), None, False)
    assert (there, extent is not None) == (False, True)
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            mf.map_range(saved.page(1))
        except BaseException as error:
            ended.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: waiters(mf) == 3, "waiting for the extent")
    closer = threading.Thread(target=mf.close)
    closer.start()
    join([*threads, closer])
    assert [type(error) for error in ended] == [ClosedError] * 3
    assert mf.closed
    extent.deliver(bytes(extent.raw_length))  # too late, and no harm
    del extent


@pytest.mark.usefixtures("alone")
def test_an_extent_that_is_given_back_is_loaded_again(tmp_path: Path) -> None:
    saved = Saved(tmp_path, "zstd")
    with saved.restore() as mf:
        _, extent = mf._load(saved.page(1), None, False)
        assert extent is not None
        done: list[int] = []
        thread = threading.Thread(target=lambda: done.append(mf.map_range(saved.page(1))[0]))
        thread.start()
        eventually(lambda: waiters(mf) == 1, "waiting for the extent")
        assert done == []
        del extent
        join([thread])
        assert done == [2]
        testing.verify(mf)


def test_asyncio(saved: Saved) -> None:
    async def main() -> int:
        with saved.restore() as mf:
            await asyncio.wait_for(mf.loaded(), 20)
            return mf.load_progress().pending_bytes

    assert asyncio.run(main()) == 0


def test_ctrl_c_gets_through(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import os, signal, threading
        from pgalloc import FileRange, MemoryFile, testing
        testing._testing.allow_loaders(False)
        mf = MemoryFile.restore({str(Saved(tmp_path, "zstd").path)!r}, background=True)
        there, extent = mf._load(FileRange(0, 4096), None, False)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have us ignore it
        done = threading.Event()
        def interrupt():  # again if need be: one that comes inside a finalizer is swallowed
            while testing._testing.load_waiters(mf) == 0:
                done.wait(0.001)
            while not done.is_set():
                os.kill(os.getpid(), signal.SIGINT)
                done.wait(0.05)
        threading.Thread(target=interrupt).start()
        try:
            mf.map_range(FileRange(0, 4096))
        except KeyboardInterrupt:
            done.set()
            print("interrupted")
        del extent
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "interrupted\n", done.stderr


def test_closing_and_dropping_while_loading(saved: Saved) -> None:
    """With nothing there yet, in the middle, and at the end."""
    for extents in (0, 1, 3, EXTENTS):

        def restored(extents: int = extents) -> MemoryFile:
            mf = saved.restore()
            total = mf.load_progress().total_bytes
            eventually(lambda: loaded(mf) * EXTENTS >= total * extents, "loading")
            return mf

        saved.restore().close()
        mf = restored()
        view = mf.map_range(saved.page(2))
        mf.close()
        assert bytes(view) == b"\3" * PAGE  # E4: the view outlives the file
        with pytest.raises(ClosedError):
            mf.map_range(saved.page(2))
        del mf
        restored()  # and dropped


def test_closing_while_an_extent_arrives(saved: Saved) -> None:
    """The loader that brings it is waited for."""
    with HeldCall("pwrite") as arrival:
        mf = saved.restore()
        arrival.wait()
        closer = threading.Thread(target=mf.close)
        closer.start()
        eventually(lambda: mf.closed, "closing")
        assert closer.is_alive()
        arrival.let_go()
        join([closer])


def test_saving_a_file_that_is_still_loading(saved: Saved) -> None:
    with MemoryFile.restore(saved.path) as whole, saved.restore() as mf:
        again = saved.path.with_name("again")
        mf.save(again)
        with MemoryFile.restore(again) as restored:
            assert merged(restored.segments()) == merged(whole.segments())
            assert contents(restored) == contents(whole)


@compressions
def test_random_files(tmp_path: Path, compression: str | None) -> None:
    for seed in range(50, 54):
        mf, ranges = random_file(seed)
        with mf:
            (tmp_path / "image").write_bytes(image_of(mf, compression=compression))
            with MemoryFile.restore(tmp_path / "image", background=True) as again:
                for range_ in reversed(ranges):
                    assert bytes(again.map_range(range_)) == bytes(mf.map_range(range_))
                testing.verify(again)
                update_usage(again)
                assert sum(again.usage().values()) == stored(again)


# --- fork ----------------------------------------------------------------------------------------


def test_loading_goes_on_after_a_fork(saved: Saved) -> None:
    for _ in range(3):
        with saved.restore() as mf:
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
            eventually(lambda: not mf.loading, "loading")  # without asking for any page


def test_forking_while_loading(saved: Saved) -> None:
    for _ in range(5):
        with saved.restore() as mf:
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)
                try:
                    if mf.loading:
                        os._exit(3)
                    mf.map_range(saved.page(5))
                except ForkedError:
                    os._exit(0)
                except BaseException:
                    os._exit(2)
                os._exit(0)  # it was all there when it forked
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert mf.map_range(saved.page(5))[0] == 6
            assert mf.wait_loaded(20)
            testing.verify(mf)
            assert pgalloc.memory_accounting().total() > 0
