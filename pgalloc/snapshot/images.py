"""Looking at images without restoring them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pgalloc import _core
from pgalloc.enums import MemoryKind
from pgalloc.records import Segment
from pgalloc.snapshot import sources
from pgalloc.snapshot.codec import zstd
from pgalloc.snapshot.sources import Source


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


def begin(source: Source) -> _core.ImageStream:
    """Read an image's header and metadata from a stream."""
    stream = _core.ImageStream()
    while not stream.has_metadata:
        stream.feed(source.read_exactly(stream.wanted))
    return stream


def extents_of(stream: _core.ImageStream, source: Source) -> Iterator[None]:
    """Read on, and stop at each extent; at the end the image is complete."""
    while stream.wanted:
        stream.feed(source.read_exactly(stream.wanted))
        if stream.has_extent:
            yield


def decoded(encoded: tuple[bytes, int]) -> bytes:
    """The pages of an encoded extent."""
    return zstd().decode(*encoded)


def inspect_image(source: Any) -> ImageInfo:
    """What an image says about itself: a path, or a binary file object, as restore() takes it.

    Of a plain file, no page data is read. Raises SnapshotError for what is no sound image as far as
    that tells.
    """
    with sources.opened(source, "inspect_image") as opened:
        with opened.about:
            info = _info(
                _verified_stream(opened, None).describe()
                if opened.image is None
                else opened.image.describe()
            )
        opened.finish()
    return info


def verify_image(source: Any, *, progress: Callable[[int, int], object] | None = None) -> ImageInfo:
    """Check every byte of an image, and return what it says.

    ``source`` is what restore() takes. ``progress`` is called with the bytes done and the bytes in
    all (0: not known). Raises SnapshotError for whatever is wrong.
    """
    if progress is not None and not callable(progress):
        raise TypeError("progress must be callable")
    with sources.opened(source, "verify_image") as opened:
        with opened.about:
            if opened.image is None:
                info = _info(_verified_stream(opened, progress).describe())
            else:
                info = _verified_file(opened.image, progress)
        opened.finish()
    return info


def _verified_file(
    image: _core.ImageFile, progress: Callable[[int, int], object] | None
) -> ImageInfo:
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


def _verified_stream(
    source: Source, progress: Callable[[int, int], object] | None
) -> _core.ImageStream:
    stream = begin(source)
    for _ in extents_of(stream, source):
        encoded = stream.encoded()
        if encoded is not None:
            decoded(encoded)
        if progress is not None:
            progress(stream.offset, 0)
    return stream


def _info(description: dict[str, Any]) -> ImageInfo:
    segments = [
        Segment(start, end, MemoryKind(kind), committed, refs, memcg_id, huge)
        for start, end, kind, committed, refs, memcg_id, huge in description.pop("segments")
    ]
    extents = [ImageExtent(*row) for row in description.pop("extents")]
    return ImageInfo(**description, segments=segments, extents=extents)
