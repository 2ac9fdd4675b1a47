"""The tables of docs/image-format.md, as they stand there: where each field of a part is.

A table maps a name to (offset in the part, width in bytes); every field is a little-endian number.
"""

from __future__ import annotations

from collections.abc import Iterable

Table = dict[str, tuple[int, int]]

HEADER: Table = {
    "magic": (0, 8),
    "version": (8, 4),
    "page_size": (12, 4),
    "checksum": (16, 4),
    "restore_id_length": (20, 4),
    "file_size": (24, 8),
    "usage_count": (32, 8),
    "hook_count": (40, 4),
    "metadata_checksum": (44, 4),
    "metadata_length": (48, 8),
}
USAGE: Table = {
    "start": (0, 8),
    "end": (8, 8),
    "references": (16, 4),
    "memcg_id": (20, 4),
    "kind": (24, 1),
    "committed": (25, 1),
    "huge": (26, 1),
}
HOOK: Table = {"name_length": (0, 4), "payload_length": (4, 8)}
EXTENT: Table = {
    "magic": (0, 4),
    "checksum": (4, 4),
    "start": (8, 8),
    "page_count": (16, 4),
    "stored_pages": (20, 4),
    "encoding": (24, 4),
    "data_checksum": (28, 4),
    "stored_length": (32, 8),
    "offset": (40, 8),
    "page_map": (64, 128),
}
INDEX: Table = {"magic": (0, 4), "extent_count": (8, 8)}
ENTRY: Table = {
    "start": (0, 8),
    "offset": (8, 8),
    "stored_length": (16, 8),
    "page_count": (24, 4),
    "stored_pages": (28, 4),
    "encoding": (32, 4),
    "head_checksum": (36, 4),
}
TRAILER: Table = {
    "magic": (0, 8),
    "index_offset": (8, 8),
    "extent_count": (16, 8),
    "image_size": (24, 8),
    "stored_pages": (32, 8),
    "zero_pages_skipped": (40, 8),
    "index_checksum": (48, 4),
    "header_checksum": (52, 4),
    "checksum": (56, 4),
}

USAGE_BYTES = 32
HOOK_BYTES = 12
INDEX_BYTES = 16
ENTRY_BYTES = 40

MAGICS = {
    "header": int.from_bytes(b"\x89PGALOC\n", "little"),
    "extent": int.from_bytes(b"XTNT", "little"),
    "index": int.from_bytes(b"INDX", "little"),
    "trailer": int.from_bytes(b"\x89PGAEND\n", "little"),
}
VERSIONS = (1, 2)
PAGE_LEAST = 4096
EXTENT_SPAN = 4 << 20
RESTORE_ID_MOST = 65536
HOOKS_MOST = 65536
HOOK_NAME_MOST = 255
METADATA_MOST = 1 << 30
KINDS = 5


def round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def read(table: Table, data: bytes, at: int = 0) -> dict[str, int]:
    """The values of a part that begins at ``at``."""
    return {
        name: int.from_bytes(data[at + offset : at + offset + width], "little")
        for name, (offset, width) in table.items()
    }


def write(table: Table, values: dict[str, int], size: int) -> bytearray:
    """A part of ``size`` bytes; what ``values`` does not name is zero."""
    part = bytearray(size)
    for name, value in values.items():
        offset, width = table[name]
        part[offset : offset + width] = value.to_bytes(width, "little")
    return part


def unnamed(spans: Iterable[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """The (offset, width) stretches of ``size`` bytes that the ``spans`` leave, ascending."""
    gaps, position = [], 0
    for offset, width in sorted(spans):
        if offset > position:
            gaps.append((position, offset - position))
        position = max(position, offset + width)
    return [*gaps, (position, size - position)] if position < size else gaps
