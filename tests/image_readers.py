"""Every way of reading an image, held against the model of the format.

What the model refuses, every reader must refuse with the same type of error; what it parses, every
reader must take, and a restored file must be exactly what the model says.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

from conftest import PAGE, stored
from image_model import RAW, Hook, Image, Usage, VersionError, extents_of, parse
from snapshots import merged

import pgalloc
from pgalloc import (
    FileRange,
    MemoryFile,
    MemoryKind,
    OutOfMemoryError,
    Segment,
    SnapshotCorruptError,
    SnapshotError,
    SnapshotVersionError,
    testing,
)

MIB = 1 << 20
SPAN = 4 * MIB


def sample(encoding: int = RAW) -> Image:
    """One of everything, in 8 or 9 pages: two extents, holes, three uses, a name, two hooks."""
    letters = {0: b"a", 2: b"b", SPAN // PAGE + 1: b"c"}
    if encoding != RAW:  # a single page is stored as it is when its frame is not shorter
        letters |= {3: b"d", SPAN // PAGE + 2: b"e"}
    pages = {number * PAGE: letter * PAGE for number, letter in letters.items()}
    usage = [
        Usage(0, 4 * PAGE, references=2, memcg_id=7),
        Usage(4 * PAGE, 5 * PAGE, kind=2),
        Usage(SPAN, SPAN + 4 * PAGE, kind=3, committed=0),
    ]
    hooks = [Hook("first", b"payload"), Hook("\u00e4", b"")]
    return Image(PAGE, 2 * SPAN, usage, "r\u00e9store", hooks, extents_of(pages, PAGE, encoding), 1)


class Slot:
    """An image file that tests write again and again, in memory."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("slot")
        self.path = Path(f"/proc/self/fd/{self._fd}")

    def put(self, image: bytes) -> None:
        os.ftruncate(self._fd, 0)
        self.patch(0, image)

    def patch(self, offset: int, data: bytes) -> None:
        assert os.pwrite(self._fd, data, offset) == len(data)

    def cut(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def bytes(self) -> bytes:
        return self.path.read_bytes()

    def close(self) -> None:
        os.close(self._fd)


def verify(slot: Slot) -> None:
    pgalloc.verify_image(slot.path)


def verify_stream(slot: Slot) -> None:
    pgalloc.verify_image(io.BytesIO(slot.bytes()))


def eager(slot: Slot) -> MemoryFile:
    return MemoryFile.restore(slot.path)


def stream(slot: Slot) -> MemoryFile:
    return MemoryFile.restore(io.BytesIO(slot.bytes()))


def background(slot: Slot) -> MemoryFile:
    """As somebody who touches everything in use."""
    file = MemoryFile.restore(slot.path, background=True)
    try:
        for segment in file.segments():
            file.map_range(FileRange(segment.start, segment.end))
    except BaseException:
        file.close()
        raise
    return file


Reader = Callable[[Slot], MemoryFile | None]
READERS: list[Reader] = [verify, verify_stream, eager, stream, background]


def refusal(read: Reader, slot: Slot) -> SnapshotError | OutOfMemoryError | None:
    """Why a reader does not take the image in the slot; None if it does."""
    try:
        file = read(slot)
    except (SnapshotError, OutOfMemoryError) as error:
        return error
    if file is not None:
        file.close()
    return None


def judge(slot: Slot, image: bytes, readers: list[Reader] = READERS) -> bool:
    """Show an image to the model and to all readers, who must agree; whether they take it."""
    slot.put(image)
    try:
        expected = parse(image, PAGE)
    except ValueError as error:
        # Of less than a page, what a stream says first is that it ends early.
        is_version = isinstance(error, VersionError) and len(image) >= PAGE
        for read in readers:
            _check_refusal(refusal(read, slot), image, is_version, f"{read.__name__}: {error!r}")
        return False
    for read in readers:
        try:
            file = read(slot)
        except OutOfMemoryError as error:
            _check_refusal(error, image, False, read.__name__)
            continue
        if file is not None:
            with file:
                compare(file, expected)
    return True


def _check_refusal(error: Exception | None, image: bytes, is_version: bool, what: str) -> None:
    assert error is not None, f"the model refuses what a reader takes: {what}"
    if isinstance(error, OutOfMemoryError):
        # Before it looks at the pages, a reader makes a file of the size it is told.
        assert int.from_bytes(image[24:32], "little") > pgalloc._core.default_capacity(), what
    else:
        assert isinstance(error, SnapshotVersionError if is_version else SnapshotError), what
        if not is_version and len(image) >= PAGE:
            assert isinstance(error, SnapshotCorruptError), what


def compare(file: MemoryFile, expected: Image) -> None:
    """Whether a file is what an image says: no page more, no page less."""
    usage = [
        Segment(u.start, u.end, MemoryKind(u.kind), 0, u.references, u.memcg_id)
        for u in expected.usage
    ]
    assert merged(file.segments()) == merged(usage)
    assert (file.total_size, file.restore_id) == (expected.file_size, expected.restore_id)
    pages = expected.pages()
    for offset, page in pages.items():
        assert os.pread(file.fileno(), PAGE, offset) == page
    assert stored(file) == len(pages) * PAGE == sum(file.usage().values())
    testing.verify(file)
