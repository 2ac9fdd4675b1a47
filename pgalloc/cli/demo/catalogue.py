"""What the demo's save hook puts into the image: all a new process needs to find the files again.

Lines of JSON: the index's range first, then one line for each file. So the first file is known
before the others have been decoded, however many there are.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pgalloc
from pgalloc.cli.files import round_up

HOOK = "pgalloc.demo"


class Entry(NamedTuple):
    """A file that is in memory: ``number`` is its place in the index, ``digest`` hexadecimal."""

    number: int
    path: str
    size: int
    digest: str
    start: int

    @property
    def range(self) -> pgalloc.FileRange | None:
        """Its pages; None for an empty file."""
        if self.size == 0:
            return None
        end = self.start + round_up(self.size, pgalloc.PAGE_SIZE)
        return pgalloc.FileRange(self.start, end)


def encode(index: pgalloc.FileRange, entries: Iterable[Entry]) -> bytes:
    """The payload. Names that are not UTF-8 come as escapes."""
    lines = [json.dumps([index.start, index.end]), *map(json.dumps, entries)]
    return "\n".join(lines).encode("ascii")


def decode(payload: bytes) -> tuple[pgalloc.FileRange, Iterator[Entry]]:
    """The index's range, and the files one by one."""
    lines = iter(io.BytesIO(payload))
    start, end = json.loads(next(lines))
    return pgalloc.FileRange(start, end), (Entry(*json.loads(line)) for line in lines)
