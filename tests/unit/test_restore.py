"""Restoring at once (rows J6, J7): everything is as it was, or nothing is left behind."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import CHUNK, PAGE, stored
from image_model import forge
from snapshots import contents, image_of, merged, random_file

import pgalloc
from pgalloc import (
    Allocation,
    AllocationMode,
    FileRange,
    MemoryFile,
    MemoryKind,
    OptionError,
    OutOfMemoryError,
    RangeError,
    RefCountError,
    SnapshotCorruptError,
    SnapshotError,
    testing,
)
from pgalloc.testing import without_loaders

MODES = ["eager", "background", "stream"]


def restore(image: bytes, folder: Path, mode: str = "eager", **options: Any) -> MemoryFile:
    if mode == "stream":
        return MemoryFile.restore(io.BytesIO(image), **options)
    path = folder / "restored image"
    path.write_bytes(image)
    return MemoryFile.restore(path, background=mode == "background", **options)


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [20, 21, 22])
def test_j4_what_was_saved_is_restored(
    tmp_path: Path, seed: int, mode: str, compression: str | None
) -> None:
    mf, _ = random_file(seed)
    with mf, restore(image_of(mf, compression=compression), tmp_path, mode) as again:
        assert merged(again.segments()) == merged(mf.segments())
        assert contents(again) == contents(mf)
        assert (again.total_size, again.restore_id) == (mf.total_size, mf.restore_id)
        assert again.load_progress().failed_bytes == 0
        assert not again.loading
        # J6: restored bytes enter the account, and the kernel has no others.
        assert sum(again.usage().values()) == stored(again)
        testing.verify(again)
        again.drop_unadopted()
        assert again.wait_for_reclaim(20)
        assert stored(again) == 0


@pytest.mark.slow
def test_200_cycles(tmp_path: Path) -> None:
    """Saved, restored, changed, saved again: nothing drifts, nothing is left behind."""
    rng = random.Random(1)
    mf, ranges = random_file(30, pages_max=300)
    for cycle in range(200):
        for range_ in ranges:
            if rng.random() < 0.3:
                mf.map_range(range_)[:PAGE] = rng.choice([bytes(PAGE), rng.randbytes(PAGE)])
        before = (merged(mf.segments()), contents(mf))
        image = image_of(mf, compression=rng.choice([None, "zstd"]))
        mf.close()
        mf = restore(image, tmp_path, MODES[cycle % 3])
        assert (merged(mf.segments()), contents(mf)) == before
    mf.close()


def test_a_restored_file_works(tmp_path: Path) -> None:
    mf, _ = random_file(31)
    with mf, restore(image_of(mf), tmp_path) as again:
        used = [FileRange(s.start, s.end) for s in again.segments()]
        for mode in AllocationMode:
            with again.allocate(100 * PAGE, mode=mode) as a:
                assert not any(a.range.overlaps(range_) for range_ in used)
                assert bytes(a.view()) == bytes(100 * PAGE)
        assert again.wait_for_reclaim(20)
        assert contents(again) == contents(mf)
        testing.verify(again)


# --- owners --------------------------------------------------------------------------------------


@pytest.fixture
def owned(mf: MemoryFile) -> tuple[bytes, FileRange]:
    """An image of four pages: two references on all, a third one on the second page."""
    range_ = mf.allocate_range(4 * PAGE)
    mf.map_range(range_)[:] = b"o" * (4 * PAGE)
    mf.inc_ref(range_)
    mf.inc_ref(page(range_, 1))
    return image_of(mf), range_


def page(range_: FileRange, number: int, count: int = 1) -> FileRange:
    start = range_.start + number * PAGE
    return FileRange(start, start + count * PAGE)


def test_j7_references_are_adopted(tmp_path: Path, owned: tuple[bytes, FileRange]) -> None:
    image, range_ = owned
    with restore(image, tmp_path) as mf:
        first = Allocation.adopt(mf, range_)
        assert bytes(first.view()) == b"o" * (4 * PAGE)
        second = [
            Allocation.adopt(mf, page(range_, 0, 2)),
            Allocation.adopt(mf, page(range_, 2, 2)),
        ]
        assert mf.unadopted() == [(range_.start + PAGE, range_.start + 2 * PAGE, 1)]
        with pytest.raises(RefCountError, match="no reference left"):
            Allocation.adopt(mf, range_)
        mf.adopt_range(page(range_, 1))
        assert mf.unadopted() == []
        testing.verify(mf)
        mf.dec_ref(page(range_, 1))
        for handle in (first, *second):
            handle.release()
        assert mf.wait_for_reclaim(20)
        assert mf.segments() == []


def test_j7_what_was_not_adopted_is_dropped(tmp_path: Path, owned: tuple[bytes, FileRange]) -> None:
    image, range_ = owned
    with restore(image, tmp_path) as mf:
        kept = Allocation.adopt(mf, page(range_, 1))
        assert sum(row.length for row in mf.unadopted()) == 4 * PAGE
        assert mf.drop_unadopted() == 4 * PAGE
        assert mf.drop_unadopted() == 0
        assert mf.wait_for_reclaim(20)
        assert [(s.start, s.end, s.refs) for s in mf.segments()] == [(*kept.range, 1)]
        testing.verify(mf)


def test_j7_owners_without_handles(tmp_path: Path, owned: tuple[bytes, FileRange]) -> None:
    """The range layer may drop references as they are: then fewer are left to adopt."""
    image, range_ = owned
    with restore(image, tmp_path) as mf:
        mf.dec_ref(range_)
        testing.verify(mf)
        mf.dec_ref(page(range_, 0))
        testing.verify(mf)
        with pytest.raises((RangeError, RefCountError)):
            mf.adopt_range(range_)
        mf.adopt_range(page(range_, 1, 3))
        mf.inc_ref(page(range_, 3))
        assert mf.drop_unadopted() == PAGE
        testing.verify(mf)


def test_references_beyond_counting(tmp_path: Path, owned: tuple[bytes, FileRange]) -> None:
    """An image may say 2^32-1: dropping them takes no longer than dropping one."""
    image, range_ = owned
    with restore(forge(image, {"usage[0].references": 2**32 - 1}), tmp_path) as mf:
        with pytest.raises(RefCountError):
            mf.inc_ref(page(range_, 0))
        assert mf.drop_unadopted() == 4 * PAGE
        assert mf.wait_for_reclaim(20)
        assert mf.segments() == []


@pytest.mark.parametrize("mode", MODES)
def test_hooks_take_their_pages_over(tmp_path: Path, mode: str) -> None:
    with MemoryFile() as mf, mf.allocate(3 * PAGE) as a, mf.allocate(PAGE) as b:
        a.view()[:] = b"a" * (3 * PAGE)
        taken: list[Any] = []

        def take(file: MemoryFile, data: bytes) -> None:
            start, end = map(int, data.split())
            taken.append(Allocation.adopt(file, FileRange(start, end)))

        for name, handle in (("a", a), ("b", b)):
            text = f"{handle.range.start} {handle.range.end}".encode()
            mf.save_hook(name, save=lambda text=text: text, restore=take)  # type: ignore[misc]
        with restore(image_of(mf), tmp_path, mode, hooks=mf.restore_hooks) as again:
            assert again.unadopted() == []
            assert bytes(taken[0].view()) == b"a" * (3 * PAGE)
            assert taken[1].range == b.range


def test_a_hook_that_is_not_taken_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MemoryFile() as mf:
        mf.allocate_range(5 * PAGE)
        mf.save_hook("lost", save=lambda: b"")
        mf.save_hook("found", save=lambda: b"")
        hooks = {"found": lambda file, data: None}
        with restore(image_of(mf), tmp_path, hooks=hooks):
            assert "20480 bytes" in caplog.text
            assert "lost" in caplog.text


@pytest.mark.parametrize("mode", MODES)
def test_a_hook_that_fails_leaves_nothing(tmp_path: Path, mode: str) -> None:
    seen: list[MemoryFile] = []

    def fail(file: MemoryFile, data: bytes) -> None:
        seen.append(file)
        raise KeyError("no such owner")

    with MemoryFile() as mf:
        mf.allocate_range(PAGE)
        mf.save_hook("h", save=lambda: b"x")
        with pytest.raises(KeyError, match="no such owner"):
            restore(image_of(mf), tmp_path, mode, hooks={"h": fail})
    assert seen[0].closed


# --- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_files_that_are_too_small(tmp_path: Path, mode: str) -> None:
    with MemoryFile() as mf:
        mf.map_range(mf.allocate_range(10 * PAGE))[0] = 1
        image = image_of(mf)
    for options in ({"max_allocatable_bytes": 9 * PAGE}, {"capacity": CHUNK - PAGE}):
        with pytest.raises(OutOfMemoryError):
            restore(image, tmp_path, mode, **options)
    restore(image, tmp_path, mode, max_allocatable_bytes=10 * PAGE, capacity=CHUNK).close()


def test_restore_ids(tmp_path: Path) -> None:
    with MemoryFile(restore_id="one") as mf:
        image = image_of(mf)
    with pytest.raises(SnapshotError, match="'one'"):
        restore(image, tmp_path, restore_id="two")
    with restore(image, tmp_path, restore_id="one") as again:
        assert again.restore_id == "one"


def test_j6_only_a_fresh_file_is_restored(tmp_path: Path, mf: MemoryFile) -> None:
    (tmp_path / "image").write_bytes(image_of(mf))
    mf.allocate_range(PAGE)
    with pytest.raises(SnapshotError, match="fresh"):
        mf._restore(pgalloc._core.ImageFile(os.fsencode(tmp_path / "image")))
    assert len(mf.segments()) == 1


def test_a1_an_adopted_descriptor_stays_the_callers(tmp_path: Path) -> None:
    with MemoryFile() as mf:
        mf.map_range(mf.allocate_range(3 * PAGE))[:] = b"x" * (3 * PAGE)
        mf.save_hook("h", save=lambda: b"")
        image = image_of(mf)
    with open(tmp_path / "pages", "w+b") as backing:
        for damaged in (image[:-1], forge(image, {"extent[0].data_checksum": 1})):
            with pytest.raises(SnapshotCorruptError):
                restore(damaged, tmp_path, backing=backing)
        with pytest.raises(ZeroDivisionError):
            restore(image, tmp_path, backing=backing, hooks={"h": lambda file, data: 1 // 0})
        assert os.fstat(backing.fileno()).st_blocks == 0
    with pytest.raises(ZeroDivisionError):
        restore(image, tmp_path, backing=tmp_path / "new", hooks={"h": lambda file, data: 1 // 0})
    assert not (tmp_path / "new").exists()


def test_an_image_is_not_restored_onto_itself(tmp_path: Path) -> None:
    with MemoryFile() as mf:
        mf.save(tmp_path / "image")
    before = (tmp_path / "image").read_bytes()
    os.link(tmp_path / "image", tmp_path / "link")
    for backing in (tmp_path / "image", tmp_path / "link"):
        with pytest.raises(OptionError, match="cannot be the backing"):
            MemoryFile.restore(tmp_path / "image", backing=backing)
    with (tmp_path / "image").open("r+b") as file, pytest.raises(OptionError):
        MemoryFile.restore(tmp_path / "link", backing=file)
    assert (tmp_path / "image").read_bytes() == before


def test_options(tmp_path: Path) -> None:
    with MemoryFile() as mf:
        image = image_of(mf)
    with pytest.raises(TypeError):
        restore(image, tmp_path, nonsense=1)
    with pytest.raises(TypeError):
        restore(image, tmp_path, hooks={"x": 5})
    with pytest.raises(OptionError, match="background"):
        MemoryFile.restore(io.BytesIO(image), background=True)
    with pytest.raises(FileNotFoundError):
        MemoryFile.restore(tmp_path / "missing")
    with pytest.raises((OptionError, OSError)):
        MemoryFile.restore(tmp_path)
    with pytest.raises(TypeError):
        MemoryFile.restore(5)


# --- sources -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_an_index_of_several_pages(tmp_path: Path, mode: str) -> None:
    """More than 300 extents, of a page each."""
    step = 1 << 22
    with MemoryFile() as mf:
        pages = mf.allocate(300 * step)
        view = pages.view()
        for i in range(300):
            view[i * step] = i % 255 + 1
        image = image_of(mf)
    with restore(image, tmp_path, mode) as mf:
        view = mf.map_range(pages.range)
        assert [view[i * step] for i in range(300)] == [i % 255 + 1 for i in range(300)]
        mf.drop_unadopted()


class Source:
    """Gives at most `most` bytes a call."""

    def __init__(self, data: bytes, most: int = 1000) -> None:
        self.rest = memoryview(data)
        self.most = most

    def read(self, size: int) -> bytes:
        part = self.rest[: min(size, self.most)]
        self.rest = self.rest[len(part) :]
        return bytes(part)


def test_streams() -> None:
    mf, _ = random_file(40, pages_max=300)
    with mf:
        image = image_of(mf)
        with MemoryFile.restore(Source(image)) as again:
            assert contents(again) == contents(mf)
        # What follows in a stream is not part of the image.
        source = Source(image + b"next")
        MemoryFile.restore(source).close()
        assert bytes(source.rest) == b"next"
        seekable = io.BytesIO(image + b"next")
        MemoryFile.restore(seekable).close()
        assert seekable.read() == b"next"


@pytest.mark.parametrize("result", ["text", 5])
def test_sources_that_lie(result: Any) -> None:
    class Liar:
        def read(self, size: int) -> Any:
            return result

    with pytest.raises(TypeError):
        MemoryFile.restore(Liar())

    class Generous:
        def read(self, size: int) -> bytes:
            return bytes(size + 1)

    with pytest.raises(OSError, match="more than"):
        MemoryFile.restore(Generous())


def test_a_file_object_in_the_middle(tmp_path: Path) -> None:
    with MemoryFile() as mf:
        mf.map_range(mf.allocate_range(PAGE, kind=MemoryKind.TMPFS))[0] = 9
        image = image_of(mf)
    (tmp_path / "two").write_bytes(b"prefix" + image)
    with open(tmp_path / "two", "rb") as source:
        source.seek(6)
        with MemoryFile.restore(source) as again:
            assert again.map_range(FileRange(0, PAGE))[0] == 9


def test_without_loaders_other_threads_load(tmp_path: Path) -> None:
    mf, _ = random_file(41)
    with mf, without_loaders(), restore(image_of(mf), tmp_path) as again:
        assert contents(again) == contents(mf)
