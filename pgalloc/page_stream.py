"""PageStream: bytes that are written to pages in order, as many as come."""

from __future__ import annotations

from typing import Any

from pgalloc import _core
from pgalloc.allocation import Allocation, whole_pages
from pgalloc.errors import OutOfMemoryError

_GATHERED = 256 << 10  # what is written to the pages at once
_FIRST = 64 << 20  # pages that are not touched cost nothing
_MOVED = 1 << 20  # what is in memory twice for a moment


class PageStream:
    """A binary file object that can be written to. What was written lies in memory once.

    The range is larger than what it holds: its other pages are not committed. When it is too small,
    the contents move to a larger one piece by piece, and leave no piece behind.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._pages: Allocation | None = None
        self._length = 0  # in the pages
        self._gathered = bytearray()

    def tell(self) -> int:
        """How many bytes were written."""
        return self._length + len(self._gathered)

    def write(self, data: Any) -> int:
        """Append any contiguous bytes-like object."""
        if type(data) is not bytes:  # most are, and small
            data = memoryview(data)
        nbytes: int = len(data) if type(data) is bytes else data.nbytes
        if nbytes < _GATHERED:
            self._gathered += data
            if len(self._gathered) >= _GATHERED:
                self._flush()
        else:
            self._flush()
            self._put(data)
        return nbytes

    def align(self, alignment: int) -> int:
        """Append zeros up to a multiple of ``alignment``, which is returned."""
        self.write(bytes(-self.tell() % alignment))
        return self.tell()

    def move(self, other: PageStream) -> None:
        """Append what another stream holds, and empty that."""
        self._flush()
        other._flush()
        if other._pages is not None:
            self._take(other._pages, other._length)
        other._pages, other._length = None, 0

    def finish(self, head: bytes) -> Allocation:
        """The pages that were written to, with other bytes at their beginning."""
        self._flush()
        pages = self._room_for(1)
        pages._write(0, head)
        self._pages = None
        with pages:
            return pages.slice(0, whole_pages(self._length))

    def _flush(self) -> None:
        if self._gathered:
            gathered, self._gathered = self._gathered, bytearray()
            self._put(gathered)

    def _put(self, data: Any) -> None:
        nbytes = memoryview(data).nbytes
        pages = self._room_for(self._length + nbytes)
        reservation = _core.CommitReservation(whole_pages(nbytes))
        try:
            pages._write(self._length, data)
        finally:
            reservation.end()
        self._length += nbytes

    def _room_for(self, length: int) -> Allocation:
        old = self._pages
        if old is not None and length <= old.nbytes:
            return old
        new: Allocation = self._allocate(length)
        length, self._pages, self._length = self._length, new, 0
        if old is not None:
            self._take(old, length)
        return new

    def _allocate(self, length: int) -> Any:
        """More than is needed, if there is: each byte is moved few times."""
        for wish in (max(4 * length, _FIRST), length + length // 8):
            try:
                return self._file.allocate(whole_pages(wish), huge=None)
            except OutOfMemoryError:
                continue
        return self._file.allocate(whole_pages(length), huge=None)

    def _take(self, pages: Allocation, length: int) -> None:
        """Append the contents of other pages, which are given back on the way."""
        with pages:
            for start in range(0, length, _MOVED):
                stop = min(start + _MOVED, length)
                with pages.slice(start, whole_pages(stop)) as piece:
                    with piece.view() as view, view[: stop - start] as part:
                        self._put(part)
                    piece.decommit()
