"""Single fields of an image: where they are, and images in which they say something else.

A forger who knows the format makes the checksums fit. So a reader must not rely on them, and tests
need images in which one field is hostile and everything else is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from image_crc import crc32c
from image_tables import (
    ENTRY,
    ENTRY_BYTES,
    EXTENT,
    HEADER,
    HOOK,
    HOOK_BYTES,
    INDEX,
    INDEX_BYTES,
    TRAILER,
    USAGE,
    USAGE_BYTES,
    Table,
    read,
    round_up,
    unnamed,
)


@dataclass(frozen=True)
class Field:
    """``name`` is as in "header.version", "usage[0].start", "extent[1].page_map", "hook[0].name".

    Contents (restore_id, names, payloads, stored data) are fields, too, if they are not empty;
    ``is_number`` tells them from the fields of the tables.
    """

    name: str
    offset: int
    width: int
    is_number: bool = True

    @property
    def end(self) -> int:
        return self.offset + self.width


def fields(data: bytes) -> list[Field]:
    """Every field of a sound image, in the order of the bytes."""
    return [found for found in _walk(data) if found.width]


def unnamed_bytes(data: bytes) -> list[tuple[int, int]]:
    """The (offset, width) stretches of a sound image that no field covers: all zero."""
    return unnamed([(found.offset, found.width) for found in fields(data)], len(data))


def forge(
    data: bytes,
    changes: Mapping[str, int | bytes] | None = None,
    *,
    patches: Mapping[int, bytes] | None = None,
) -> bytes:
    """A sound image with some fields changed, and the checksums that follow from that.

    ``changes`` are new values by the field's name: numbers, or bytes of the same width.
    ``patches`` are bytes by their offset in the image. A checksum that is among the changes stays
    as it is given; copies of it (in index and trailer) follow, unless they are given, too. Parts
    are where they are in ``data``, whatever the changes say.
    """
    changes = changes or {}
    forged = bytearray(data)
    named = {found.name: found for found in fields(data)}
    for offset, patch in (patches or {}).items():
        forged[offset : offset + len(patch)] = patch
    for name, value in changes.items():
        _put(forged, named[name], value)
    for checksum, copied_to, start, end in _checksums(data, named):
        own = named[checksum]
        if checksum not in changes:
            part = bytearray(forged[start:end])
            if start <= own.offset < end:
                part[own.offset - start : own.end - start] = bytes(own.width)
            _put(forged, own, crc32c(bytes(part)))
        if copied_to and copied_to not in changes:
            _put(forged, named[copied_to], bytes(forged[own.offset : own.end]))
    return bytes(forged)


def _put(image: bytearray, where: Field, value: int | bytes) -> None:
    if isinstance(value, int):
        value = value.to_bytes(where.width, "little")
    if len(value) != where.width:
        raise TypeError(f"{where.name} has {where.width} bytes, not {len(value)}")
    image[where.offset : where.end] = value


def _checksums(data: bytes, named: Mapping[str, Field]) -> Iterator[tuple[str, str, int, int]]:
    """(checksum, its copy, start and end of what it covers): each after all that it covers."""
    page = _value(data, named["header.page_size"])
    metadata_end = page + round_up(_value(data, named["header.metadata_length"]), page)
    index = named["index.magic"].offset
    yield "header.metadata_checksum", "", page, metadata_end
    yield "header.checksum", "trailer.header_checksum", 0, page
    number = 0
    while (magic := named.get(f"extent[{number}].magic")) is not None:
        pages = magic.offset + page
        stored = round_up(_value(data, named[f"extent[{number}].stored_length"]), page)
        head = f"extent[{number}]"
        yield f"{head}.data_checksum", "", pages, pages + stored
        yield f"{head}.checksum", f"index[{number}].head_checksum", magic.offset, pages
        number += 1
    yield "trailer.index_checksum", "", index, len(data) - page
    yield "trailer.checksum", "", len(data) - page, len(data)


def _value(data: bytes, where: Field) -> int:
    return int.from_bytes(data[where.offset : where.end], "little")


def _walk(data: bytes) -> Iterator[Field]:
    header = read(HEADER, data)
    page = header["page_size"]
    yield from _of_table("header", HEADER, 0)
    at = page
    for number in range(header["usage_count"]):
        yield from _of_table(f"usage[{number}]", USAGE, at)
        at += USAGE_BYTES
    yield Field("restore_id", at, header["restore_id_length"], is_number=False)
    at += header["restore_id_length"]
    for number in range(header["hook_count"]):
        yield from _of_table(f"hook[{number}]", HOOK, at)
        lengths = read(HOOK, data, at)
        at += HOOK_BYTES
        for part in ("name", "payload"):
            yield Field(f"hook[{number}].{part}", at, lengths[f"{part}_length"], is_number=False)
            at += lengths[f"{part}_length"]
    at = page + round_up(header["metadata_length"], page)
    trailer = read(TRAILER, data, len(data) - page)
    for number in range(trailer["extent_count"]):
        yield from _of_table(f"extent[{number}]", EXTENT, at)
        length = read(EXTENT, data, at)["stored_length"]
        at += page
        yield Field(f"extent[{number}].data", at, length, is_number=False)
        at += round_up(length, page)
    yield from _of_table("index", INDEX, at)
    for number in range(trailer["extent_count"]):
        yield from _of_table(f"index[{number}]", ENTRY, at + INDEX_BYTES + number * ENTRY_BYTES)
    yield from _of_table("trailer", TRAILER, len(data) - page)


def _of_table(part: str, table: Table, at: int) -> Iterator[Field]:
    for name, (offset, width) in table.items():
        yield Field(f"{part}.{name}", at + offset, width)
