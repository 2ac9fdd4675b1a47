"""Saving (rows J1, J2, J4, J8): what is in an image, and that the file stays as it was."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHUNK, GIB, PAGE, stored, update_usage
from held_call import HeldCall
from image_model import parse
from snapshots import contents, files_in, image_of, merged, random_file
from waiting import eventually

import pgalloc
from pgalloc import (
    AllocationMode,
    ClosedError,
    DelayedEviction,
    EvictableRange,
    FileRange,
    ForkedError,
    MemoryFile,
    MemoryKind,
    OptionError,
    SnapshotError,
    testing,
)
from pgalloc._core import _testing
from pgalloc.testing import FaultPlan

COMPRESSIONS = [None, "zstd"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("seed", range(6))
def test_j4_an_image_says_what_the_file_is(seed: int, compression: str | None) -> None:
    """The image, read by the model that was written from the document alone."""
    mf, _ = random_file(seed)
    with mf:
        mf.save_hook("a", save=lambda: b"payload of a")
        mf.save_hook("ü", save=lambda: bytearray(100_000))
        data = image_of(mf, compression=compression)
        image = parse(data)
        assert image.header.file_size == mf.total_size
        assert image.restore_id == mf.restore_id
        assert [(hook.name, hook.payload) for hook in image.hooks] == [
            ("a", b"payload of a"),
            ("ü", bytes(100_000)),
        ]
        assert [
            (u.start, u.end, u.kind, u.references, u.memcg_id, u.committed) for u in image.usage
        ] == [
            (s.start, s.end, s.kind, s.refs, s.memcg_id, s.known_committed > 0)
            for s in mf.segments()
        ]
        if compression is None:
            pages = pages_of(image)
            for segment in mf.segments():
                for start in range(segment.start, segment.end, PAGE):
                    here = os.pread(mf.fileno(), PAGE, start)
                    assert pages.get(start, bytes(PAGE)) == here
                    assert any(here) == (start in pages)


def test_j4_zero_pages_among_many_holes_are_counted(mf: MemoryFile, tmp_path: Path) -> None:
    """After some runs the rest of an extent is read as a whole: holes are no zero pages."""
    pages = mf.allocate(1 << 20)
    view = pages.view()
    for start in range(0, pages.nbytes, 4 * PAGE):
        view[start : start + 1] = b"x"
        view[start + PAGE : start + PAGE + 1] = b"\0"
    mf.save(tmp_path / "image")
    info = pgalloc.inspect_image(tmp_path / "image")
    assert (info.stored_pages, info.zero_pages_skipped) == (64, 64)


def pages_of(image: Any) -> dict[int, bytes]:
    pages = {}
    for extent in image.extents:
        at = 0
        for number in range(extent.page_count):
            if extent.page_map >> number & 1:
                pages[extent.start + number * PAGE] = bytes(extent.stored[at : at + PAGE])
                at += PAGE
    return pages


def test_j2_saving_changes_nothing(tmp_path: Path) -> None:
    mf, _ = random_file(11)
    with mf:
        hole = mf.allocate_range(500 * PAGE)
        mf.allocate_range(300 * PAGE, mode=AllocationMode.ALLOCATE_AND_COMMIT)
        update_usage(mf)
        before = (mf.segments(), mf.usage(), stored(mf), contents(mf), mf.total_size)
        mf.save(tmp_path / "image")
        mf.save(tmp_path / "all", exclude_committed_zero_pages=False)
        update_usage(mf)
        after = (mf.segments(), mf.usage(), stored(mf), contents(mf), mf.total_size)
        assert after == before
        assert mf.has_unique_ref(hole)
        testing.verify(mf)


def test_4_gib_of_which_100_mib_are_not_zero(tmp_path: Path) -> None:
    """Must show: the image is about 100 MiB, and the live file's st_blocks did not grow."""
    with MemoryFile(capacity=8 * CHUNK) as mf, mf.allocate(4 * GIB) as a:
        view = np.frombuffer(a, dtype=np.uint8)
        mib = 1 << 20
        for i in range(100):
            view[i * 40 * mib : i * 40 * mib + mib] = i + 1
        view[GIB : GIB + 64 * mib] |= 0  # reads are writes of zeros: committed, and zero
        del view
        update_usage(mf)
        before = stored(mf)
        assert before >= 160 * mib
        path = tmp_path / "image"
        mf.save(path)
        assert stored(mf) == before
        assert 100 * mib < path.stat().st_size < 102 * mib
        info = pgalloc.verify_image(path)
        assert info.stored_pages == 100 * mib // PAGE
        assert info.zero_pages_skipped == before // PAGE - info.stored_pages


def test_j2_zero_pages_are_kept_when_asked_for() -> None:
    with MemoryFile() as mf, mf.allocate(1000 * PAGE) as a:
        view = a.view()
        view[0] = 1
        view[5 * PAGE] = 0  # committed, zero
        fallocated = mf.allocate_range(10 * PAGE, mode=AllocationMode.ALLOCATE_AND_COMMIT)
        without = parse(image_of(mf))
        assert sum(extent.stored_pages for extent in without.extents) == 1
        image = image_of(mf, exclude_committed_zero_pages=False)
        assert sum(extent.stored_pages for extent in parse(image).extents) == 12
        with MemoryFile.restore(io.BytesIO(image)) as restored:
            assert sum(restored.usage().values()) == 12 * PAGE == stored(restored)
            assert restored.map_range(fallocated)[0] == 0
            restored.drop_unadopted()
        view.release()


def test_j1_an_evictable_user_is_an_error(mf: MemoryFile) -> None:
    class User:
        def evict(self, range: EvictableRange) -> None:
            pass

    manual = MemoryFile(delayed_eviction=DelayedEviction.MANUAL)
    with manual:
        user = User()
        manual.mark_evictable(user, EvictableRange(0, 1))
        with pytest.raises(SnapshotError, match="evict"):
            manual.save(io.BytesIO())
        manual.start_evictions()
        assert manual.wait_for_evictions(20)
        manual.save(io.BytesIO())


def test_j1_saving_waits_until_nothing_is_reclaimable(mf: MemoryFile) -> None:
    kept = mf.allocate_range(PAGE)
    freed = mf.allocate_range(10 * PAGE)
    mf.map_range(freed)[:] = b"x" * (10 * PAGE)
    images: list[bytes] = []
    with testing.pause_reclaimer(mf):
        mf.dec_ref(freed)
        thread = threading.Thread(target=lambda: images.append(image_of(mf)))
        thread.start()
        eventually(lambda: _testing.reclaim_waiters(mf) == 1, "waiting")
        assert not images
    thread.join()
    image = parse(images[0])
    assert [(u.start, u.end) for u in image.usage] == [(kept.start, kept.end)]
    assert not image.extents


def test_an_empty_file() -> None:
    with MemoryFile() as mf:
        image = image_of(mf)
        assert len(image) == 3 * PAGE
    with MemoryFile.restore(io.BytesIO(image)) as restored:
        assert restored.segments() == []
        assert restored.total_size == 0
        restored.allocate(PAGE).release()


def test_images_larger_than_a_chunk(tmp_path: Path) -> None:
    """Pages on both sides of the border between chunks, and far beyond."""
    with MemoryFile(capacity=64 * CHUNK) as mf:
        big = mf.allocate_range(40 * CHUNK)
        marks = [0, CHUNK - PAGE, CHUNK, 2 * CHUNK - 1, 39 * CHUNK + 7, 40 * CHUNK - 1]
        view = mf.map_range(big)
        for number, offset in enumerate(marks, 1):
            view[offset] = number
        dense = mf.map_range(FileRange(3 * CHUNK - (256 << 20), 3 * CHUNK + (8 << 20)))
        np.frombuffer(dense, dtype=np.uint64)[:] = np.arange(len(dense) // 8, dtype=np.uint64)
        digest = hashlib.sha256(dense).digest()
        del dense, view
        mf.save(tmp_path / "image")
    for background in (False, True):
        with MemoryFile.restore(tmp_path / "image", background=background) as restored:
            assert restored.capacity >= 40 * CHUNK
            view = restored.map_range(big)
            assert [view[offset] for offset in marks] == list(range(1, len(marks) + 1))
            dense = view[3 * CHUNK - (256 << 20) : 3 * CHUNK + (8 << 20)]
            assert hashlib.sha256(dense).digest() == digest
            del dense, view


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_saving_beside_writers_and_scans(tmp_path: Path, compression: str | None) -> None:
    """What others write meanwhile is in the image or not; the image is sound, the account right."""
    stop = threading.Event()
    with MemoryFile() as mf, mf.allocate(4000 * PAGE) as a:
        view = a.view()

        def write() -> None:
            rng = random.Random(1)
            while not stop.is_set():
                at = rng.randrange(4000) * PAGE
                view[at : at + 8] = rng.choice([b"12345678", bytes(8)])
                with mf.allocate(rng.randrange(1, 50) * PAGE) as other:
                    other.view()[0] = 1

        def scan() -> None:
            while not stop.is_set():
                mf.update_usage()

        threads = [threading.Thread(target=work) for work in (write, scan)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                mf.save(tmp_path / "image", compression=compression)
                pgalloc.verify_image(tmp_path / "image")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        view.release()
        assert mf.wait_for_reclaim(20)
        update_usage(mf)
        assert sum(mf.usage().values()) == stored(mf)
        testing.verify(mf)


def test_several_saves_to_one_path(tmp_path: Path) -> None:
    mf, _ = random_file(3)
    with mf:
        mf.save(tmp_path / "image")
        first = (tmp_path / "image").read_bytes()
        with ThreadPoolExecutor(4) as pool:
            saves = [pool.submit(mf.save, tmp_path / "image") for _ in range(40)]
        for save in saves:
            save.result()
        assert (tmp_path / "image").read_bytes() == first
        assert files_in(tmp_path) == {"image"}


def test_the_target_is_replaced_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "image"
    target.write_bytes(b"before")
    looks = 0

    def realpath(path: bytes) -> bytes:
        nonlocal looks
        looks += 1
        if looks < 4:  # another save
            target.with_name("new").write_bytes(b"another")
            target.with_name("new").rename(target)
        elif looks == 4:  # another program
            target.unlink()
        return real(path)

    real = os.path.realpath
    with MemoryFile() as mf:
        monkeypatch.setattr(os.path, "realpath", realpath)
        mf.save(target)
    pgalloc.verify_image(target)
    assert files_in(tmp_path) == {"image"}


def test_disk_backed_files(tmp_path: Path) -> None:
    mf, _ = random_file(5, backing=tmp_path / "pages")
    with mf:
        before = contents(mf)
        mf.save(tmp_path / "image")
        usage = merged(mf.segments())
    for options in ({}, {"background": True}):
        restored = MemoryFile.restore(
            tmp_path / "image", backing=tmp_path / "again", disk_backed=True, **options
        )
        with restored:
            assert merged(restored.segments()) == usage
            assert contents(restored) == before
            testing.verify(restored)


# --- targets -------------------------------------------------------------------------------------


def test_j8_the_image_replaces_what_was_there(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "image").write_bytes(b"old")
    (tmp_path / "link").symlink_to(real / "image")
    with MemoryFile() as mf:
        mf.save(os.fsencode(tmp_path / "link"))
        assert (tmp_path / "link").is_symlink()
        pgalloc.verify_image(real / "image")
        mf.save(str(tmp_path / "new"))
    assert files_in(real) == {"image"}


@pytest.mark.parametrize("call", ["open", "pwrite", "pread", "fsync", "link_descriptor", "rename"])
def test_j8_a_failure_leaves_the_old_image(tmp_path: Path, call: str) -> None:
    mf, _ = random_file(7)
    with mf:
        (tmp_path / "image").write_bytes(b"old")
        with FaultPlan(call, errno.ENOSPC), pytest.raises(OSError) as caught:
            mf.save(tmp_path / "image")
        assert caught.value.errno == errno.ENOSPC
        assert (tmp_path / "image").read_bytes() == b"old"
        assert files_in(tmp_path) == {"image"}
        mf.save(tmp_path / "image")
        pgalloc.verify_image(tmp_path / "image")


def test_without_unnamed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has no O_TMPFILE, the temporary file has a name, and goes."""
    mf, _ = random_file(8)
    with mf:
        with FaultPlan("open", errno.EOPNOTSUPP, times=1):
            mf.save(tmp_path / "image")
        pgalloc.verify_image(tmp_path / "image")
        monkeypatch.setattr("pgalloc.snapshot.saving._encode", _interrupted)
        with FaultPlan("open", errno.EOPNOTSUPP, times=1), pytest.raises(KeyboardInterrupt):
            mf.save(tmp_path / "image", compression="zstd")
    assert files_in(tmp_path) == {"image"}


def _interrupted(writer: Any, codec: Any, failures: list[BaseException]) -> None:
    failures.append(KeyboardInterrupt())
    writer.give_up()


@pytest.mark.parametrize("target", ["", "folder/", "missing/image", b"a\0b"])
def test_impossible_paths(tmp_path: Path, target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with MemoryFile() as mf, pytest.raises((OptionError, OSError)):
        mf.save(target)
    assert files_in(tmp_path) == set()


class Target:
    """Takes at most `most` bytes a call; fails after `until` of them."""

    def __init__(self, most: int = 2**62, until: int = 2**62) -> None:
        self.data = bytearray()
        self.most, self.until = most, until

    def write(self, data: memoryview) -> int:
        if len(self.data) >= self.until:
            raise OSError(errno.ENOSPC, "full")
        part = data[: self.most]
        self.data += part
        return len(part)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_streams(compression: str | None) -> None:
    mf, _ = random_file(9)
    with mf:
        whole = image_of(mf, compression=compression)
        slow = Target(most=1000)
        mf.save(slow, compression=compression)
        assert bytes(slow.data) == whole
        for until in (0, 1, len(whole) // 2, len(whole) - 5000):
            with pytest.raises(OSError, match="full"):
                mf.save(Target(most=5000, until=until), compression=compression)
        with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError) as caught:
            mf.save(full)
        assert caught.value.errno == errno.ENOSPC


class _ReadsAhead:
    """A stream that takes no extent before the one after it was read."""

    def __init__(self, reading: FaultPlan, calls_of_an_extent: int) -> None:
        self.reading, self.calls_of_an_extent = reading, calls_of_an_extent
        self.extents = 0
        self.image = io.BytesIO()

    def write(self, block: bytes) -> int:
        if len(block) > 1 << 19:
            self.extents += 1
            wanted = min(self.extents + 1, _EXTENTS) * self.calls_of_an_extent
            eventually(lambda: self.reading.calls >= wanted, "the next extent")
        return self.image.write(block)


_EXTENTS = 8


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("processors", [1, 2])
def test_extents_are_read_and_checked_while_others_are_written_to_a_stream(
    mf: MemoryFile, monkeypatch: pytest.MonkeyPatch, processors: int, compression: str | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)))
    a = mf.allocate(_EXTENTS << 20)
    a.view()[:] = random.Random(1).randbytes(a.nbytes)
    with testing.ManualPressure(), FaultPlan("pread", 0) as counted:  # the guard reads files, too
        mf.save(io.BytesIO())
    each, rest = divmod(counted.calls, _EXTENTS)
    assert rest == 0
    with testing.ManualPressure(), FaultPlan("pread", 0) as reading:
        stream = _ReadsAhead(reading, each)
        mf.save(stream, compression=compression)
    assert stream.extents == _EXTENTS
    stream.image.seek(0)
    pgalloc.verify_image(stream.image)


@pytest.mark.parametrize("processors", [1, 2])
def test_extents_are_read_and_written_while_one_waits_for_the_disk(
    mf: MemoryFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processors: int
) -> None:
    """On one processor, too."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)))
    a = mf.allocate(_EXTENTS << 20)
    a.view()[:] = random.Random(1).randbytes(a.nbytes)

    def size_of_the_new_image() -> int:
        sizes = [0]
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if str(tmp_path) in os.readlink(f"/proc/self/fd/{name}"):
                    sizes.append(os.stat(f"/proc/self/fd/{name}").st_size)
        return max(sizes)

    with ThreadPoolExecutor(1) as pool, HeldCall("pwrite", 2) as held:  # of the first extent
        saving = pool.submit(mf.save, tmp_path / "image")
        held.wait()
        eventually(lambda: size_of_the_new_image() > _EXTENTS - 1 << 20, "all others")
        held.let_go()
        saving.result()
    pgalloc.verify_image(tmp_path / "image")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_closing_while_saving_to_a_stream(compression: str | None) -> None:
    for delay_s in (0.0, 0.002, 0.005, 0.01, 0.02):
        mf = MemoryFile()
        view = mf.map_range(mf.allocate_range(16 << 20))
        view[:] = b"\x5a" * len(view)
        timer = threading.Timer(delay_s, mf.close)
        timer.start()
        try:
            mf.save(Target(most=100_000), compression=compression)
        except ClosedError:
            pass
        finally:
            timer.join()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_forking_in_the_middle_of_a_save(compression: str | None) -> None:
    """The child cannot go on with it, and says so; the parent's image is sound."""
    children: list[int] = []

    class Forker(Target):
        def write(self, data: memoryview) -> int:
            if len(self.data) > 5 * PAGE and not children:
                children.append(os.fork())
                if children[0] == 0:
                    signal.alarm(20)
            return super().write(data)

    parent = os.getpid()
    mf, _ = random_file(12)
    with mf:
        target = Forker()
        try:
            mf.save(target, compression=compression)
        except ForkedError:
            os._exit(0 if os.getpid() != parent else 1)
        except BaseException:
            os._exit(2)
        if os.getpid() != parent:
            os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
        pgalloc.verify_image(io.BytesIO(target.data))


@pytest.mark.parametrize("count", [0, -1, 2**40])
def test_targets_that_lie(count: int) -> None:
    class Liar:
        def write(self, data: memoryview) -> int:
            return count

    with MemoryFile() as mf, pytest.raises(OSError, match="returned"):
        mf.save(Liar())


def test_a_pipe() -> None:
    mf, _ = random_file(10)
    reader, writer = os.pipe()
    restored: list[MemoryFile] = []

    def read() -> None:
        with open(reader, "rb", buffering=0) as source:
            restored.append(MemoryFile.restore(source))

    with mf:
        thread = threading.Thread(target=read)
        thread.start()
        with open(writer, "wb", buffering=0) as target:
            mf.save(target)
        thread.join()
        with restored[0]:
            assert contents(restored[0]) == contents(mf)


# --- options and hooks ---------------------------------------------------------------------------


def test_options_are_checked(mf: MemoryFile) -> None:
    with pytest.raises(OptionError):
        mf.save(io.BytesIO(), compression="gzip")
    with pytest.raises(OptionError):
        mf.save(io.BytesIO(), level=3)
    with pytest.raises(OptionError):
        mf.save(io.BytesIO(), compression="zstd", level=10**6)
    with pytest.raises(TypeError):
        mf.save(io.StringIO())
    mf.save(io.BytesIO(), compression="zstd", level=19)
    mf.close()
    with pytest.raises(ClosedError):
        mf.save(io.BytesIO())


def test_hooks(mf: MemoryFile) -> None:
    mf.save_hook("x", save=lambda: b"1", restore=print)
    mf.save_hook("y" * 255, save=lambda: np.arange(3, dtype=np.uint8))  # type: ignore[arg-type]
    assert mf.restore_hooks == {"x": print}
    for name in ("x", "", "z" * 256, "\udcff", "a\0b"):
        with pytest.raises(OptionError):
            mf.save_hook(name, save=lambda: b"")
    hooks = pgalloc.inspect_image(io.BytesIO(image_of(mf))).hooks
    assert hooks == {"x": 1, "y" * 255: 3}
    mf.save_hook("bad", save=lambda: "text")  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="'bad' returned str"):
        mf.save(io.BytesIO())
    mf.remove_save_hook("bad")
    with pytest.raises(OptionError):
        mf.remove_save_hook("bad")
    mf.save_hook("raises", save=lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        mf.save(io.BytesIO())


@pytest.mark.parametrize("restore_id", ["x" * 65537, "\udcff"])
def test_restore_ids_that_cannot_be_stored(restore_id: str) -> None:
    with MemoryFile(restore_id=restore_id) as mf, pytest.raises(SnapshotError, match="restore_id"):
        mf.save(io.BytesIO())


def test_the_longest_names() -> None:
    with MemoryFile(restore_id="ü" * 32768) as mf:
        mf.save_hook("ü" * 127 + "x", save=lambda: b"")
        with MemoryFile.restore(io.BytesIO(image_of(mf))) as again:
            assert again.restore_id == mf.restore_id


def test_a_hook_may_use_the_file(mf: MemoryFile) -> None:
    kept = []
    mf.save_hook("h", save=lambda: bytes(kept.append(mf.allocate(PAGE)) or 1))  # type: ignore[func-returns-value]
    image = parse(image_of(mf))
    assert [u.end - u.start for u in image.usage] == [PAGE]
    assert kept[0].range.start == image.usage[0].start


def test_kinds_are_what_they_were() -> None:
    with MemoryFile() as mf:
        for number, kind in enumerate(list(MemoryKind)[:5]):
            range_ = mf.allocate_range(PAGE, kind=kind, memcg_id=number)
            mf.map_range(range_)[0] = 1
        update_usage(mf)
        with MemoryFile.restore(io.BytesIO(image_of(mf))) as restored:
            assert restored.usage() == mf.usage()
            assert restored.usage(memcg_id=3) == mf.usage(memcg_id=3)


def test_what_cannot_be_written_is_never_missing_from_an_image(tmp_path: Path) -> None:
    """The thread that finishes the image learns of the failure before the last writer is done."""
    target = tmp_path / "image"
    with MemoryFile() as mf:
        for letter in b"ab":
            range_ = mf.allocate_range(2 * PAGE)
            mf.map_range(range_)[:] = bytes([letter]) * 2 * PAGE
            mf.allocate_range(4 << 20)
        for attempt in range(2000):
            target.write_bytes(b"old")
            with (
                FaultPlan("pwrite", errno.ENOSPC, first=2 + attempt % 2, times=1),
                pytest.raises(OSError),
            ):
                mf.save(target)
            assert target.read_bytes() == b"old"
