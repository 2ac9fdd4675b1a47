"""What is written into pages so that one which is shared, lost or dirty gives itself away.

Page ``i`` of a range bears ``first + i`` in its first and its last word. A thread with a reference
may check it; only the sole owner of a page may write it. With numpy the words are written through
an array over the buffer, otherwise through a memoryview.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from pgalloc import PAGE_SIZE

if TYPE_CHECKING:
    from pgalloc import Allocation

    Buffer = Allocation | memoryview | bytearray

try:
    import numpy
except ImportError:
    numpy = None  # type: ignore[assignment]

WORDS_PER_PAGE = PAGE_SIZE // 8
WORD_OFFSETS = (0, WORDS_PER_PAGE - 1)


class PromiseBrokenError(Exception):
    """Something that must never happen, has."""


def _words(buffer: Buffer) -> Any:
    if numpy is not None:
        return numpy.frombuffer(memoryview(buffer), dtype=numpy.uint64)
    return memoryview(buffer).cast("B").cast("Q")


def _marks(first: int, pages: int) -> array[int]:
    return array("Q", range(first, first + pages))


def write(buffer: Buffer, first: int) -> None:
    """Mark every page of ``buffer``."""
    words = _words(buffer)
    marks = _marks(first, len(words) // WORDS_PER_PAGE)
    for offset in WORD_OFFSETS:
        words[offset::WORDS_PER_PAGE] = marks


def expect(buffer: Buffer, first: int, when: str) -> int:
    """Raise PromiseBrokenError unless every page bears its mark. The number of pages."""
    words = _words(buffer)
    pages = len(words) // WORDS_PER_PAGE
    wanted = _marks(first, pages).tolist()
    for offset in WORD_OFFSETS:
        found = words[offset::WORDS_PER_PAGE].tolist()
        if found != wanted:
            page = next(i for i in range(pages) if found[i] != wanted[i])
            raise PromiseBrokenError(
                f"page {page} of {pages} has lost its mark {when}: "
                f"{found[page]:#x} instead of {wanted[page]:#x}"
            )
    return pages


def expect_zero(buffer: Buffer, when: str) -> None:
    """Raise PromiseBrokenError unless every byte is zero."""
    words = _words(buffer)
    dirty = words.any() if numpy is not None else any(words)
    if dirty:
        raise PromiseBrokenError(f"a page is dirty {when}")


def contents(first: int, pages: int) -> bytearray:
    """What ``pages`` marked pages look like, for a reader to deliver."""
    data = bytearray(pages * PAGE_SIZE)
    write(data, first)
    return data
