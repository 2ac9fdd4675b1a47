"""The values that an image consists of, and what encodes its pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType

from image_tables import EXTENT_SPAN

RAW, ZSTD = 0, 1


class VersionError(ValueError):
    """Another version or another page size: a SnapshotVersionError. All else is damage."""


@dataclass
class Usage:
    """An entry of the usage set."""

    start: int
    end: int
    references: int = 1
    memcg_id: int = 0
    kind: int = 1
    committed: int = 1
    huge: int = 0


@dataclass
class Hook:
    name: str
    payload: bytes


@dataclass
class Extent:
    """``stored`` are the stored bytes without padding: the pages, or a frame of them."""

    start: int
    page_count: int
    page_map: int
    stored: bytes = field(repr=False)
    encoding: int = RAW

    @property
    def stored_pages(self) -> int:
        return self.page_map.bit_count()


@dataclass
class Header:
    version: int
    page_size: int
    checksum: int
    restore_id_length: int
    file_size: int
    usage_count: int
    hook_count: int
    metadata_checksum: int
    metadata_length: int


@dataclass
class IndexEntry:
    start: int
    offset: int
    stored_length: int
    page_count: int
    stored_pages: int
    encoding: int
    head_checksum: int


@dataclass
class Trailer:
    index_offset: int
    extent_count: int
    image_size: int
    stored_pages: int
    zero_pages_skipped: int
    index_checksum: int
    header_checksum: int
    checksum: int


@dataclass
class Image:
    """What an image says. ``header``, ``index`` and ``trailer`` follow from the rest; only
    ``parse`` sets them, and ``build`` does not look at them.
    """

    page_size: int
    file_size: int
    usage: list[Usage] = field(default_factory=list)
    restore_id: str = ""
    hooks: list[Hook] = field(default_factory=list)
    extents: list[Extent] = field(default_factory=list)
    zero_pages_skipped: int = 0
    header: Header | None = field(default=None, compare=False)
    index: list[IndexEntry] = field(default_factory=list, compare=False)
    trailer: Trailer | None = field(default=None, compare=False)

    def pages(self) -> dict[int, bytes]:
        """The stored pages by their offset in the file."""
        return {
            offset: page
            for extent in self.extents
            for offset, page in zip(*decoded(extent, self.page_size), strict=True)
        }


def zstd() -> ModuleType:
    """Python's own, or its backport."""
    try:
        from compression import zstd as module  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError:
        from backports import zstd as module
    return module  # type: ignore[no-any-return, unused-ignore]


def decoded(extent: Extent, page_size: int) -> tuple[list[int], list[bytes]]:
    """The offsets of the stored pages in the file, and the pages. Raises ValueError."""
    data, length = extent.stored, extent.stored_pages * page_size
    if extent.encoding == ZSTD:
        decompressor = zstd().ZstdDecompressor()
        try:
            data = decompressor.decompress(data, max_length=length + 1)
        except zstd().ZstdError as error:
            raise ValueError(f"extent: no zstd frame: {error}") from error
        need(decompressor.eof and not decompressor.unused_data, "extent: not just one zstd frame")
    need(len(data) == length, "extent: not as many bytes as its pages have")
    numbers = [i for i in range(extent.page_count) if extent.page_map >> i & 1]
    offsets = [extent.start + number * page_size for number in numbers]
    return offsets, [data[i : i + page_size] for i in range(0, length, page_size)]


def extents_of(pages: Mapping[int, bytes], page_size: int, encoding: int = RAW) -> list[Extent]:
    """Extents that hold ``pages`` (by offset in the file), each as long as the grid allows."""
    cells: dict[int, list[int]] = {}
    for offset in sorted(pages):
        cells.setdefault(offset // EXTENT_SPAN, []).append(offset)
    extents = []
    for offsets in cells.values():
        start = offsets[0]
        numbers = [(offset - start) // page_size for offset in offsets]
        stored = b"".join(pages[offset] for offset in offsets)
        extent = Extent(start, numbers[-1] + 1, sum(1 << n for n in numbers), stored)
        packed = zstd().compress(stored) if encoding == ZSTD else stored
        if len(packed) < len(stored):
            extent.stored, extent.encoding = packed, ZSTD
        extents.append(extent)
    return extents


def need(condition: bool, cause: str) -> None:
    if not condition:
        raise ValueError(cause)
