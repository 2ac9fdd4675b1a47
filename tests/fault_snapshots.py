"""Saving and restoring, for test_faults.py: what a failure leaves of images, and of files."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

from conftest import HUGE, PAGE
from fault_scenarios import COMMIT, Run, Scenario
from image_model import Image, Usage, build, extents_of
from snapshots import contents, files_in, merged

import pgalloc
from pgalloc import Allocation, AllocationMode, FileRange, MemoryFile

OLD = b"what was there before"
SPAN = 4 << 20
# Tag, permissions, user: the owner, user 1234, the group, the mask, others.
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHi", *entry)
    for entry in ((1, 6, -1), (2, 6, 1234), (4, 4, -1), (16, 6, -1), (32, 4, -1))
)

# Two extents of two pages each, of the letter of a Run's witnesses.
STORED = [FileRange(0, 2 * PAGE), FileRange(SPAN + PAGE, SPAN + 3 * PAGE)]
IMAGE = build(
    Image(
        PAGE,
        1 << 30,
        [Usage(0, 4 * PAGE), Usage(SPAN, SPAN + 4 * PAGE, references=2)],
        extents=extents_of(
            {at: b"w" * PAGE for r in STORED for at in range(r.start, r.end, PAGE)}, PAGE
        ),
    )
)


def _save(mf: MemoryFile, target: Any, compression: str | None = None) -> bool:
    mf.save(target, compression=compression)
    return True


def save_to_a_path(run: Run) -> None:
    _replace(run, {})


def save_over_an_access_control_list(run: Run) -> None:
    _replace(run, {"system.posix_acl_access": ACL})


def _replace(run: Run, attributes: dict[str, bytes]) -> None:
    """Row J8: afterwards there is the old image or the new one, and nothing else."""
    mf = _filled(run)
    if mf is None:
        return
    folder = run.directory / "images"
    folder.mkdir()
    target = folder / "image"
    target.write_bytes(OLD)
    for name, value in attributes.items():
        os.setxattr(target, name, value)
    done = run.attempt(lambda: _save(mf, target))
    if run.name != "unlink":
        assert files_in(folder) == {"image"}
    if target.read_bytes() == OLD:
        assert not done
        return
    # Only the folder's fsync comes after the rename.
    assert done or (run.name == "fsync" and run.first > 1)
    run.checks.append(lambda: _check_image(target, mf))


def save_where_nothing_is(run: Run) -> None:
    mf = _filled(run)
    if mf is None:
        return
    folder = run.directory / "empty"
    folder.mkdir()
    if run.attempt(lambda: _save(mf, folder / "image")):
        run.checks.append(lambda: _check_image(folder / "image", mf))
    elif not (run.name == "fsync" and run.first > 1) and run.name != "unlink":
        assert files_in(folder) == set()


def save_to_a_stream(run: Run) -> None:
    mf = _filled(run)
    for compression in (None, "zstd"):
        target = io.BytesIO()
        if mf is None:
            return
        if run.attempt(lambda: _save(mf, target, compression)):  # noqa: B023
            pgalloc.verify_image(io.BytesIO(target.getvalue()))


def _filled(run: Run) -> MemoryFile | None:
    """A file with two extents and committed zeros; what can be had of that."""
    mf = run.make()
    if mf is None:
        return None
    for length, mode in ((HUGE, AllocationMode.ALLOCATE_ONLY), (8 * PAGE, COMMIT)):
        range_ = run.attempt(lambda: mf.allocate_range(length, mode=mode))  # noqa: B023
        if range_ is None:
            continue
        for start in (range_.start, range_.end - PAGE):
            view = run.attempt(lambda: mf.map_range(FileRange(start, start + PAGE)))  # noqa: B023
            if view is not None:
                view[:5] = b"image"
    return mf


def _check_image(target: Path, mf: MemoryFile) -> None:
    pgalloc.verify_image(target)
    with MemoryFile.restore(target) as restored:
        assert merged(restored.segments()) == merged(mf.segments())
        assert contents(restored) == contents(mf)


def restore_from_a_path(run: Run) -> None:
    source = _image_file(run)
    _use(run, run.attempt(lambda: MemoryFile.restore(source)))
    backing = run.directory / "backing"
    options: dict[str, Any] = {"backing": backing, "disk_backed": True}
    made = run.attempt(lambda: MemoryFile.restore(source, **options))
    assert made is not None or run.name == "unlink" or not backing.exists()
    _use(run, made)


def restore_from_a_stream(run: Run) -> None:
    _use(run, run.attempt(lambda: MemoryFile.restore(io.BytesIO(IMAGE))))


def restore_in_the_background(run: Run) -> None:
    """What could not be loaded is an error for those who touch it, and only for them."""
    source = _image_file(run)
    mf = run.attempt(lambda: MemoryFile.restore(source, background=True))
    if mf is None:
        return
    _use(run, mf)
    assert run.attempt(lambda: mf.wait_loaded(20))
    assert mf.load_progress().pending_bytes == 0
    if not mf.load_progress().failed_bytes:
        return
    # Freed, they are pages like others.
    for range_ in STORED:
        handle = Allocation.adopt(mf, range_)
        handle.release()
    mf.drop_unadopted()
    assert mf.wait_for_reclaim(20)
    run.witnesses = [(file, range_) for file, range_ in run.witnesses if file is not mf]


def _image_file(run: Run) -> Path:
    source = run.directory / "source"
    source.write_bytes(IMAGE)
    return source


def _use(run: Run, mf: MemoryFile | None) -> None:
    if mf is None:
        return
    run.files.append(mf)
    for range_ in STORED:
        for start in (range_.start, range_.end - PAGE):
            page = FileRange(start, start + PAGE)
            view = run.attempt(lambda: mf.map_range(page))  # noqa: B023
            if view is not None:
                assert bytes(view) == b"w" * PAGE
                run.witnesses.append((mf, page))
    run.attempt(mf.update_usage)
    run.attempt(lambda: mf.save(io.BytesIO()))


SNAPSHOTS: list[Scenario] = [
    save_to_a_path,
    save_over_an_access_control_list,
    save_where_nothing_is,
    save_to_a_stream,
    restore_from_a_path,
    restore_from_a_stream,
    restore_in_the_background,
]
