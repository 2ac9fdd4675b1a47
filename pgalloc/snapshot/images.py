"""Looking at images without restoring them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pgalloc import _core
from pgalloc.enums import MemoryKind
from pgalloc.errors import OptionError, SnapshotCorruptError
from pgalloc.records import Segment
from pgalloc.snapshot.codec import zstd

# File objects whose position is that of their descriptor.
_WHOLE_FILES = (io.FileIO, io.BufferedReader, io.BufferedRandom)


@dataclass(frozen=True, slots=True)
class ImageExtent:
    """A stretch of the saved file whose pages, or some of them, are in the image.

    Attributes:
        start: the offset of its first byte in the saved file.
        end: the offset after its last byte in the saved file.
        offset: where its head is in the image, in bytes; its pages follow.
        stored_pages: how many of its pages are stored.
        stored_bytes: bytes that they take in the image, without padding.
        encoding: "raw" or "zstd".
    """

    start: int
    end: int
    offset: int
    stored_pages: int
    stored_bytes: int
    encoding: str


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image says about itself.

    Attributes:
        version: of the image format.
        page_size: bytes of a page on the machine that saved it.
        image_bytes: the length of the image.
        file_size: the size of the file that was saved, in bytes.
        restore_id: the label of that file.
        segments: its usage set, in ascending order.
        extents: what is stored of its pages, in ascending order.
        hooks: the names of the hooks, and how many bytes each of them stored.
        stored_pages: how many pages are stored in all.
        zero_pages_skipped: pages that were in memory and zero, and are not in the image.
    """

    version: int
    page_size: int
    image_bytes: int
    file_size: int
    restore_id: str
    segments: list[Segment]
    extents: list[ImageExtent]
    hooks: dict[str, int]
    stored_pages: int
    zero_pages_skipped: int


def opened(source: Any) -> _core.ImageFile | None:
    """The image at a path, or in a file object over a whole file; None for other file objects."""
    if isinstance(source, (str, bytes, os.PathLike)):
        path = os.fsencode(source)
        if b"\0" in path:
            raise OptionError("the path has a NUL byte")
        return _core.ImageFile(path)
    if not callable(getattr(source, "read", None)):
        raise TypeError(f"source must be a path or a binary file, not {type(source).__name__}")
    if isinstance(source, _WHOLE_FILES) and source.seekable() and source.tell() == 0:
        try:
            return _core.ImageFile(source.fileno())
        except OptionError:  # seekable, but not a regular file
            return None
    return None


def read_exactly(source: Any, size: int) -> bytes:
    """So many bytes of a file object. Raises SnapshotCorruptError where it ends early."""
    parts = []
    left = size
    while left:
        part = source.read(left)
        if not isinstance(part, (bytes, bytearray, memoryview)):
            raise TypeError(f"read() of the source returned {type(part).__name__}, not bytes")
        if not part:
            raise SnapshotCorruptError("the image ends early: the source has no more bytes")
        if len(part) > left:
            raise OSError("read() of the source returned more than was asked for")
        parts.append(bytes(part))
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def begin(source: Any) -> _core.ImageStream:
    """Read an image's header and metadata from a file object."""
    stream = _core.ImageStream()
    while not stream.has_metadata:
        stream.feed(read_exactly(source, stream.wanted))
    return stream


def extents_of(stream: _core.ImageStream, source: Any) -> Iterator[None]:
    """Read on, and stop at each extent; at the end the image is complete."""
    while stream.wanted:
        stream.feed(read_exactly(source, stream.wanted))
        if stream.has_extent:
            yield
    seekable = getattr(source, "seekable", None)
    if callable(seekable) and seekable() and source.read(1):
        raise SnapshotCorruptError("bytes follow after the image")


def decoded(encoded: tuple[bytes, int]) -> bytes:
    """The pages of an encoded extent."""
    return zstd().decode(*encoded)


def inspect_image(source: Any) -> ImageInfo:
    """What an image says about itself: a path, or a binary file object.

    Of a path, no page data is read. Raises SnapshotError for what is no sound image as far as that
    tells.
    """
    image = opened(source)
    if image is not None:
        return _info(image.describe())
    return verify_image(source)


def verify_image(source: Any, *, progress: Callable[[int, int], object] | None = None) -> ImageInfo:
    """Check every byte of an image, and return what it says.

    ``progress`` is called with the bytes done and the bytes in all (0: not known). Raises
    SnapshotError for whatever is wrong.
    """
    if progress is not None and not callable(progress):
        raise TypeError("progress must be callable")
    image = opened(source)
    if image is None:
        return _verify_stream(source, progress)
    info = _info(image.describe())
    done = info.image_bytes - sum(_bytes_in_image(extent, info) for extent in info.extents)
    for number in range(image.extent_count):
        nbytes, encoded = image.verify_extent(number)
        if encoded is not None:
            decoded(encoded)
        done += nbytes
        if progress is not None:
            progress(done, info.image_bytes)
    return info


def _bytes_in_image(extent: ImageExtent, info: ImageInfo) -> int:
    pages = -(-extent.stored_bytes // info.page_size)
    return (1 + pages) * info.page_size


def _verify_stream(source: Any, progress: Callable[[int, int], object] | None) -> ImageInfo:
    stream = begin(source)
    for _ in extents_of(stream, source):
        encoded = stream.encoded()
        if encoded is not None:
            decoded(encoded)
        if progress is not None:
            progress(stream.offset, 0)
    return _info(stream.describe())


def _info(description: dict[str, Any]) -> ImageInfo:
    segments = [
        Segment(start, end, MemoryKind(kind), committed, refs, memcg_id)
        for start, end, kind, committed, refs, memcg_id in description.pop("segments")
    ]
    extents = [ImageExtent(*row) for row in description.pop("extents")]
    return ImageInfo(**description, segments=segments, extents=extents)
