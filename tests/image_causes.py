"""Images that are wrong in one way each; apart from that way, checksums and all the rest fit."""

from __future__ import annotations

from dataclasses import replace

from conftest import PAGE
from image_model import ZSTD, Extent, Hook, Usage, build, forge, unnamed_bytes
from image_readers import SPAN, sample


def causes() -> dict[str, bytes]:
    """All of them, by what is wrong."""
    return front_causes() | extent_causes() | back_causes() | whole_causes()


def front_causes() -> dict[str, bytes]:
    """In the header or the metadata."""
    data = build(sample())

    def forged(name: str, value: int | bytes) -> bytes:
        return forge(data, {name: value})

    twins = sample()
    twins.hooks = [Hook("twin", b"1"), Hook("twin", b"2")]
    return {
        "magic": forged("header.magic", 1),
        "version": forged("header.version", 3),
        "page size of another machine": forged("header.page_size", 16 * PAGE),
        "page size of no machine": forged("header.page_size", PAGE + 1),
        "header's checksum": forged("header.checksum", 1),
        "header's rest": forge(data, patches={PAGE - 1: b"\1"}),
        "file size": forged("header.file_size", 2 * SPAN + 1),
        "restore_id's length": forged("header.restore_id_length", 65_537),
        "hook count": forged("header.hook_count", 65_537),
        "metadata length": forged("header.metadata_length", (1 << 30) + 1),
        "usage count": forged("header.usage_count", 1 << 60),
        "parts longer than the metadata": forged("header.hook_count", 60_000),
        "metadata's checksum": forged("header.metadata_checksum", 1),
        "metadata's padding": forge(data, patches={2 * PAGE - 1: b"\1"}),
        "metadata longer than its parts": forged("header.metadata_length", 2000),
        "use: start": forged("usage[0].start", 1),
        "use: end": forged("usage[0].end", 3 * PAGE + 1),
        "use: empty": forged("usage[0].end", 0),
        "use: beyond the file": forged("usage[2].end", 2 * SPAN + PAGE),
        "use: order": _uses(Usage(5 * PAGE, 6 * PAGE), Usage(0, 5 * PAGE)),
        "use: overlap": _uses(Usage(0, 5 * PAGE), Usage(4 * PAGE, 6 * PAGE)),
        "use: references": forged("usage[1].references", 0),
        "use: kind": forged("usage[1].kind", 5),
        "use: committed": forged("usage[1].committed", 2),
        "use: huge, in version 1": forged("usage[1].huge", 1),
        "use: huge": _uses(Usage(0, 5 * PAGE, huge=2)),
        "use: none huge, in version 2": forged("header.version", 2),
        "use: rest": forge(data, patches={PAGE + 31: b"\1"}),
        "restore_id is no text": forged("restore_id", b"r\xff\xffstore"),
        "hook: no name": forged("hook[0].name_length", 0),
        "hook: long name": forged("hook[0].name_length", 256),
        "hook: payload": forged("hook[0].payload_length", 1 << 63),
        "hook: name is no text": forged("hook[0].name", b"\xc3\x28rst"),
        "hooks of one name": build(twins),
    }


def _uses(*uses: Usage) -> bytes:
    image = sample()
    image.usage[:2] = uses
    return build(image)


def extent_causes() -> dict[str, bytes]:
    """In the head or the data of the first extent, while the index is sound."""
    data, packed = build(sample()), build(sample(ZSTD))
    head = 2 * PAGE

    def forged(name: str, value: int | bytes, image: bytes = data) -> bytes:
        return forge(image, {f"extent[0].{name}": value})

    return {
        "extent: magic": forged("magic", 1),
        "extent: checksum": forged("checksum", 1),
        "extent: rest of the head": forge(data, patches={head + PAGE - 1: b"\1"}),
        "extent: place in the image": forged("offset", 3 * PAGE),
        "extent: start": forged("start", 1),
        "extent: no page": forged("page_count", 0),
        "extent: beyond the file": forged("start", 1 << 63),
        "extent: too many pages": forged("page_count", 1025),
        "extent: crosses the grid": forged("start", SPAN - PAGE),
        "extent: stores nothing": forged("stored_pages", 0),
        "extent: stores too many": forged("stored_pages", 4),
        "extent: encoding": forged("encoding", 2),
        "extent: length": forged("stored_length", PAGE),
        "extent: no frame": forged("stored_length", 0, packed),
        "extent: long frame": forged("stored_length", 3 * PAGE, packed),
        "extent: map beyond the end": forged("page_map", 0b1001),
        "extent: map of fewer pages": forged("page_map", 0b1),
        "extent: data's checksum": forged("data_checksum", 1),
        "extent: data's padding": forge(packed, patches={head + 2 * PAGE - 1: b"\1"}),
        "extent: no zstd": forge(packed, patches={head + PAGE: b"none"}),
    } | _frames()


def _frames() -> dict[str, bytes]:
    image = sample()
    image.extents = sample(ZSTD).extents
    first, second = image.extents
    # The frame of two pages where there should be three.
    image.extents = [replace(first, stored=second.stored), second]
    return {"extent: frame of fewer pages": build(image)}


def back_causes() -> dict[str, bytes]:
    """In the index or the trailer."""
    data = build(sample())
    gap = dict(unnamed_bytes(data))
    index = len(data) - 2 * PAGE

    def forged(**changes: int) -> bytes:
        return forge(data, {name.replace("__", ".", 1): value for name, value in changes.items()})

    def entry(name: str, value: int) -> bytes:
        return forge(data, {f"index[1].{name}": value})

    assert index + 4 in gap
    return {
        "trailer: magic": forged(trailer__magic=1),
        "trailer: checksum": forged(trailer__checksum=1),
        "trailer: rest": forge(data, patches={len(data) - 1: b"\1"}),
        "trailer: of another header": forged(trailer__header_checksum=1),
        "trailer: image size": forged(trailer__image_size=len(data) + PAGE),
        "trailer: index within a page": forged(trailer__index_offset=index + 1),
        "trailer: index too early": forged(trailer__index_offset=PAGE),
        "trailer: index behind the image": forged(trailer__index_offset=1 << 40),
        "trailer: too many extents": forged(trailer__extent_count=1 << 60),
        "trailer: index of another length": forged(trailer__index_offset=index - PAGE),
        "trailer: pages": forged(trailer__zero_pages_skipped=1 << 63),
        "index: checksum": forged(trailer__index_checksum=1),
        "index: magic": forged(index__magic=1),
        "index: other extents": forged(index__extent_count=1),
        "index: rest": forge(data, patches={index + PAGE - 1: b"\1"}),
        "index: overlap": _second_extent(3, 2),
        "index: order": _second_extent(1, 1),
        "index: place": entry("offset", 6 * PAGE),
        "index: pages": forge(data, {"trailer.stored_pages": 2}),
        "index: of another extent": entry("head_checksum", 1),
        "index: beyond the extents": forge(
            data,
            {
                "index[1].stored_pages": 2,
                "index[1].stored_length": 2 * PAGE,
                "index[1].page_count": 2,
            },
        ),
    }


def _second_extent(page: int, page_count: int) -> bytes:
    """Two extents, the first of them for pages 2 and 3."""
    image = sample()
    pages = [(2, 2), (page, page_count)]
    image.extents = [Extent(number * PAGE, count, 0b1, b"z" * PAGE) for number, count in pages]
    return build(image)


def whole_causes() -> dict[str, bytes]:
    """In how the parts belong together."""
    data = build(sample())
    unused = sample()
    unused.usage[0].end = 2 * PAGE
    return {
        "half a page": data[:-1],
        "a page that is not in use": build(unused),
    }
