"""From values to the bytes of an image."""

from __future__ import annotations

from dataclasses import asdict

from image_crc import crc32c
from image_parts import Extent, Hook, Image
from image_tables import (
    ENTRY,
    ENTRY_BYTES,
    EXTENT,
    HEADER,
    HOOK,
    HOOK_BYTES,
    INDEX,
    INDEX_BYTES,
    MAGICS,
    TRAILER,
    USAGE,
    USAGE_BYTES,
    Table,
    round_up,
    write,
)


def build(image: Image) -> bytes:
    """The bytes of an image, whatever it says; checksums, lengths, counts and offsets fit."""
    page = image.page_size
    restore_id = _encode(image.restore_id)
    metadata = b"".join(bytes(write(USAGE, asdict(u), USAGE_BYTES)) for u in image.usage)
    metadata += restore_id + b"".join(map(_build_hook, image.hooks))
    padded = _pad(metadata, page)
    header = {
        "magic": MAGICS["header"],
        "version": 2 if any(use.huge for use in image.usage) else 1,
        "page_size": page,
        "restore_id_length": len(restore_id),
        "file_size": image.file_size,
        "usage_count": len(image.usage),
        "hook_count": len(image.hooks),
        "metadata_checksum": crc32c(padded),
        "metadata_length": len(metadata),
    }
    header_page, header_checksum = _seal(HEADER, header, page)
    parts, entries, offset = [header_page, padded], [], page + len(padded)
    for extent in image.extents:
        part, entry = _build_extent(extent, offset, page)
        parts.append(part)
        entries.append(bytes(write(ENTRY, entry, ENTRY_BYTES)))
        offset += len(part)
    index_values = {"magic": MAGICS["index"], "extent_count": len(entries)}
    index = _pad(bytes(write(INDEX, index_values, INDEX_BYTES)) + b"".join(entries), page)
    trailer = {
        "magic": MAGICS["trailer"],
        "index_offset": offset,
        "extent_count": len(entries),
        "image_size": offset + len(index) + page,
        "stored_pages": sum(extent.stored_pages for extent in image.extents),
        "zero_pages_skipped": image.zero_pages_skipped,
        "index_checksum": crc32c(index),
        "header_checksum": header_checksum,
    }
    return b"".join([*parts, index, _seal(TRAILER, trailer, page)[0]])


def _build_hook(hook: Hook) -> bytes:
    name = _encode(hook.name)
    lengths = {"name_length": len(name), "payload_length": len(hook.payload)}
    return bytes(write(HOOK, lengths, HOOK_BYTES)) + name + hook.payload


def _build_extent(extent: Extent, offset: int, page: int) -> tuple[bytes, dict[str, int]]:
    data = _pad(extent.stored, page)
    entry = {
        "start": extent.start,
        "offset": offset,
        "stored_length": len(extent.stored),
        "page_count": extent.page_count,
        "stored_pages": extent.stored_pages,
        "encoding": extent.encoding,
    }
    more = {
        "magic": MAGICS["extent"],
        "data_checksum": crc32c(data),
        "page_map": extent.page_map,
    }
    head, checksum = _seal(EXTENT, entry | more, page)
    return head + data, entry | {"head_checksum": checksum}


def _seal(table: Table, values: dict[str, int], page: int) -> tuple[bytes, int]:
    """A page that holds its own checksum, and that."""
    checksum = crc32c(bytes(write(table, values, page)))
    return bytes(write(table, values | {"checksum": checksum}, page)), checksum


def _encode(text: str) -> bytes:
    """Lone surrogates stand for bytes that are not UTF-8, so that those can be built, too."""
    return text.encode("utf-8", "surrogateescape")


def _pad(data: bytes, page: int) -> bytes:
    return data + bytes(round_up(len(data), page) - len(data))
