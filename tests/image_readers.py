"""Every way of reading an image, held against the model of the format.

What the model refuses, every reader must refuse with the same type of error; what it parses, every
reader must take, and a restored file must be exactly what the model says.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from conftest import PAGE, stored
from image_model import RAW, Hook, Image, Usage, VersionError, extents_of, parse
from snapshots import merged

import pgalloc
from pgalloc import (
    FileRange,
    ImageInfo,
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
        self._bytes = bytearray()

    def put(self, image: bytes) -> None:
        os.ftruncate(self._fd, 0)
        self._bytes = bytearray()
        self.patch(0, image)

    def patch(self, offset: int, data: bytes) -> None:
        assert os.pwrite(self._fd, data, offset) == len(data)
        self._bytes[offset : offset + len(data)] = data

    def cut(self, size: int) -> None:
        """Shorter, or longer by a hole, which readers of streams do not see."""
        os.ftruncate(self._fd, size)
        del self._bytes[size:]

    def image(self) -> bytes:
        return bytes(self._bytes)

    def close(self) -> None:
        os.close(self._fd)


class Restored(NamedTuple):
    file: MemoryFile
    payloads: list[tuple[str, bytes]]  # what its hooks were given


class Hooks(dict[str, Callable[[MemoryFile, bytes], None]]):
    """A hook of every name, which keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.payloads: list[tuple[str, bytes]] = []

    def get(self, name: str, default: Any = None) -> Any:
        return lambda file, payload: self.payloads.append((name, payload))


def verify(slot: Slot) -> ImageInfo:
    return pgalloc.verify_image(slot.path)


def verify_stream(slot: Slot) -> ImageInfo:
    source = io.BytesIO(slot.image())
    return _alone(source, pgalloc.verify_image(source))


def eager(slot: Slot) -> Restored:
    hooks = Hooks()
    return Restored(MemoryFile.restore(slot.path, hooks=hooks), hooks.payloads)


def stream(slot: Slot) -> Restored:
    hooks = Hooks()
    source = io.BytesIO(slot.image())
    return _alone(source, Restored(MemoryFile.restore(source, hooks=hooks), hooks.payloads))


Found = TypeVar("Found", "ImageInfo", "Restored")


def _alone(source: io.BytesIO, found: Found) -> Found:
    """To what follows an image in a stream, the model says what a program says that reads on."""
    if source.read(1):
        if isinstance(found, Restored):
            found.file.close()
        raise SnapshotCorruptError("bytes follow after the image")
    return found


def background(slot: Slot) -> Restored:
    """As a program that touches everything in use."""
    hooks = Hooks()
    file = MemoryFile.restore(slot.path, background=True, hooks=hooks)
    try:
        for segment in file.segments():
            file.map_range(FileRange(segment.start, segment.end))
    except BaseException:
        file.close()
        raise
    return Restored(file, hooks.payloads)


Reader = Callable[[Slot], ImageInfo | Restored]
READERS: list[Reader] = [verify, verify_stream, eager, stream, background]


def refusal(read: Reader, slot: Slot) -> SnapshotError | OutOfMemoryError | None:
    """Why a reader does not take the image in the slot; None if it does."""
    try:
        found = read(slot)
    except (SnapshotError, OutOfMemoryError) as error:
        return error
    if isinstance(found, Restored):
        found.file.close()
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
            found = read(slot)
        except OutOfMemoryError as error:
            _check_refusal(error, image, False, read.__name__)
            continue
        if isinstance(found, Restored):
            with found.file:
                compare(found, expected)
        else:
            compare_info(found, expected, image)
    compare_info(pgalloc.inspect_image(slot.path), expected, image)
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


def _segments(expected: Image) -> list[Segment]:
    return [
        Segment(u.start, u.end, MemoryKind(u.kind), 0, u.references, u.memcg_id)
        for u in expected.usage
    ]


def compare(restored: Restored, expected: Image) -> None:
    """Whether a file is what an image says: no page more, no page less."""
    file = restored.file
    assert restored.payloads == [(hook.name, hook.payload) for hook in expected.hooks]
    used = [segment for segment in file.segments() if segment.refs]
    assert merged(used) == merged(_segments(expected))
    assert (file.total_size, file.restore_id) == (expected.file_size, expected.restore_id)
    pages = expected.pages()
    for offset, page in pages.items():
        assert os.pread(file.fileno(), PAGE, offset) == page
    assert stored(file) == len(pages) * PAGE == sum(file.usage().values())
    testing.verify(file)


def compare_info(info: ImageInfo, expected: Image, image: bytes) -> None:
    """Whether an image is described as the model reads it."""
    assert (info.version, info.page_size, info.image_bytes) == (
        expected.header.version,
        PAGE,
        len(image),
    )
    assert (info.file_size, info.restore_id) == (expected.file_size, expected.restore_id)
    assert [s._replace(known_committed=0) for s in info.segments] == _segments(expected)
    assert [s.known_committed > 0 for s in info.segments] == [
        bool(u.committed) for u in expected.usage
    ]
    assert [
        (e.start, e.end, e.offset, e.stored_pages, e.stored_bytes, e.encoding) for e in info.extents
    ] == [
        (
            *(e.start, e.start + e.page_count * PAGE, entry.offset),
            *(e.stored_pages, len(e.stored), ["raw", "zstd"][e.encoding]),
        )
        for e, entry in zip(expected.extents, expected.index, strict=True)
    ]
    assert info.stored_pages == sum(e.stored_pages for e in expected.extents)
    assert info.zero_pages_skipped == expected.zero_pages_skipped
    assert info.hooks == {hook.name: len(hook.payload) for hook in expected.hooks}
