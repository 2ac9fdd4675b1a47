"""The demo's own bookkeeping, kept in the memory file too: one fixed-size record per file.

It has room for many more records than it holds, as such tables do, and shows what that costs:
pages that are allocated but never touched are not committed.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import pgalloc
from pgalloc.cli.files import round_up

_RECORD = struct.Struct("<32sQQ")
_SPARE_FACTOR = 4
_LEAST_BYTES = 4 << 20


class Record(NamedTuple):
    """What the disk said about a file, and where its pages are (0 for an empty file)."""

    digest: bytes
    size: int
    start: int


class Index:
    """Records by number, in one allocation of kind ANONYMOUS, which it owns.

    Thread safety: different records may be written at the same time.
    """

    def __init__(self, allocation: pgalloc.Allocation) -> None:
        self._allocation = allocation
        self._view = allocation.view()

    @classmethod
    def allocate(cls, memory_file: pgalloc.MemoryFile, count: int) -> Index:
        """An empty one, with room for ``count`` records and more."""
        wanted = max(_LEAST_BYTES, count * _RECORD.size * _SPARE_FACTOR)
        return cls(
            memory_file.allocate(
                round_up(wanted, pgalloc.PAGE_SIZE), kind=pgalloc.MemoryKind.ANONYMOUS
            )
        )

    @property
    def range(self) -> pgalloc.FileRange:
        """Where it is in the memory file."""
        return self._allocation.range

    def __getitem__(self, number: int) -> Record:
        return Record(*_RECORD.unpack_from(self._view, number * _RECORD.size))

    def __setitem__(self, number: int, record: Record) -> None:
        _RECORD.pack_into(self._view, number * _RECORD.size, *record)

    def release(self) -> None:
        """Gives the pages back; the view goes first, because it would keep them."""
        self._view.release()
        self._allocation.release()
