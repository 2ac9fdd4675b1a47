"""One file of the demo: its pages, its identity on disk, and the users that may evict it.

The states of a file:  found -> loaded -> [evicted -> [loaded again]] -> gone

Thread safety: a slot is worked on by one thread at a time, except that an eviction may take its
allocation away at any moment; ``lock`` guards that.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping

import pgalloc
from pgalloc.cli.demo.reading import (
    CHANGED,
    SHRANK,
    CannotRead,
    Identity,
    PaddingReader,
    digest_on_disk,
    opened,
)
from pgalloc.cli.files import SourceFile, reason_of, round_up

GREW = "grew after it was found"
NO_MEMORY = "no memory left for it"

_EMPTY_DIGEST = hashlib.sha256().digest()


class Slot:
    """A file and, while it is in memory, the allocation with its contents.

    Attributes:
        number: its place in the index and in the evictable users' number space.
        source: where it is on disk.
        evicted: whether an eviction callback has let it go since it was last loaded.
    """

    def __init__(self, number: int, source: SourceFile) -> None:
        self.number = number
        self.source = source
        self.evicted = False
        self.lock = threading.Lock()
        self._identity: Identity | None = None
        self._allocation: pgalloc.Allocation | None = None

    @property
    def size(self) -> int:
        """Bytes of contents: as found, then as loaded."""
        return self.source.size if self._identity is None else self._identity.size

    @property
    def nbytes(self) -> int:
        """Bytes of pages, 0 for an empty file."""
        return round_up(self.size, pgalloc.PAGE_SIZE)

    @property
    def start(self) -> int:
        """The offset of its pages in the memory file; 0 if it has none."""
        return 0 if self._allocation is None else self._allocation.range.start

    def load(self, memory_file: pgalloc.MemoryFile) -> None:
        """Reads the file into fresh pages. An empty file takes none.

        Raises CannotRead, with nothing kept; also if this is not the first time and the file on
        disk is no longer the same.
        """
        with opened(self.source.path) as (fd, identity):
            if self._identity not in (None, identity):
                raise CannotRead(CHANGED)
            if identity.size > round_up(self.source.size, pgalloc.PAGE_SIZE):
                raise CannotRead(GREW)
            self._identity = identity
            if identity.size:
                self._fill(memory_file, PaddingReader(fd, identity.size))
            self.evicted = False

    def digest_on_disk(self) -> bytes:
        """SHA-256 by ordinary reading. Raises CannotRead if it is not what was loaded."""
        if self._identity is None:
            raise ValueError(f"file {self.number} was never loaded")
        return digest_on_disk(self.source.path, self._identity)

    def digest_by(
        self, digest: Callable[[pgalloc.Allocation, int], tuple[bytes, bool]]
    ) -> tuple[bytes, bool]:
        """What ``digest`` says of its pages; an empty file has none."""
        if self._allocation is None:
            return _EMPTY_DIGEST, True
        return digest(self._allocation, self.size)

    @property
    def in_memory(self) -> bool:
        """Whether its contents are held; an empty file always is."""
        return self._allocation is not None or self.size == 0

    def let_go(self) -> bool:
        """Releases the pages; False if there were none."""
        with self.lock:
            allocation, self._allocation = self._allocation, None
            if allocation is None:
                return False
            allocation.release()
            return True

    def _fill(self, memory_file: pgalloc.MemoryFile, reader: PaddingReader) -> None:
        try:
            self._allocation = memory_file.allocate(
                self.nbytes, kind=pgalloc.MemoryKind.PAGE_CACHE, reader=reader.readinto, huge=None
            )
        except pgalloc.FillError as error:
            if error.allocation is not None:
                error.allocation.release()
            cause = error.__cause__
            ended_early = cause is None or isinstance(cause, EOFError)
            reason = reason_of(cause) if isinstance(cause, OSError) else str(cause)
            raise CannotRead(SHRANK if ended_early else reason) from error
        except MemoryError as error:
            raise CannotRead(NO_MEMORY) from error


def digest_of(pages: memoryview, size: int) -> tuple[bytes, bool]:
    """SHA-256 of the first ``size`` bytes, and whether the rest is zero."""
    return hashlib.sha256(pages[:size]).digest(), pages[size:] == bytes(len(pages) - size)


class Shelf:
    """An evictable user over some of the slots; its number space is their numbers."""

    def __init__(self, slots: Mapping[int, Slot]) -> None:
        self._slots = slots

    def evict(self, numbers: pgalloc.EvictableRange) -> None:
        """Lets go of the files in ``numbers`` and remembers which had something to let go of."""
        for number in range(numbers.start, numbers.end):
            slot = self._slots[number]
            if slot.let_go():
                slot.evicted = True
