"""What is written into pages, so that one that is lost, swapped, stale or dirty gives itself away.

Page ``i`` of a range bears the word ``first + i`` at its beginning and its end. The word says, from
its highest bits down: how often the owner has rewritten the page, who it is, and which of its pages
it is.
"""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass
from enum import IntEnum

from pgalloc import PAGE_SIZE

_WORDS = PAGE_SIZE // 8
_GENERATION = 1 << 48
_OWNER = 1 << 32
_NOISE = random.Random(1).randbytes(PAGE_SIZE)


class PromiseBrokenError(Exception):
    """Something that must never happen, has."""


class Style(IntEnum):
    """What is between the two words of a page."""

    ZERO = 0  # nothing at all: not even the words
    PLAIN = 1  # zeros
    NOISY = 2  # what no codec makes shorter
    SPARSE = 3  # zeros; and two pages of three are zero throughout


@dataclass(frozen=True)
class Stamp:
    """What a range looks like."""

    first: int
    style: Style

    def after(self, pages: int) -> Stamp:
        """The stamp of what begins so many pages later."""
        return Stamp(self.first + pages, self.style)

    def rewritten(self, style: Style) -> Stamp:
        """The next generation."""
        return Stamp(self.first + _GENERATION, style)

    def contents(self, pages: int) -> bytearray:
        """Pages that bear it."""
        if self.style is Style.ZERO:
            return bytearray(pages * PAGE_SIZE)
        noisy = self.style is Style.NOISY
        data = bytearray(_NOISE * pages) if noisy else bytearray(pages * PAGE_SIZE)
        step = 3 if self.style is Style.SPARSE else 1
        marks = array("Q", (word if word % step == 0 else 0 for word in self._words(pages)))
        words = memoryview(data).cast("Q")
        words[0::_WORDS] = words[_WORDS - 1 :: _WORDS] = marks
        return data

    def expect(self, view: memoryview, when: str) -> int:
        """Raise PromiseBrokenError unless the pages bear it. The number of pages."""
        pages = len(view) // PAGE_SIZE
        found, wanted = bytes(view), self.contents(pages)
        if found == wanted:
            return pages
        for page in range(pages):
            here = slice(page * PAGE_SIZE, (page + 1) * PAGE_SIZE)
            if found[here] != wanted[here]:
                raise PromiseBrokenError(
                    f"page {page} of {pages} {when}: {_described(found[here])} "
                    f"instead of {_described(bytes(wanted[here]))}"
                )
        raise AssertionError("equal after all")

    def _words(self, pages: int) -> range:
        return range(self.first, self.first + pages)


def _described(page: bytes) -> str:
    if not any(page):
        return "zeros"
    words = memoryview(page).cast("Q")
    return f"{words[0]:#x}..{words[-1]:#x} ({page.count(0)} zeros)"


class Stamper:
    """Makes stamps for one owner, no two alike."""

    def __init__(self, owner: int) -> None:
        self._next = (owner + 1) * _OWNER

    def new(self, pages: int, style: Style) -> Stamp:
        """A stamp for so many pages."""
        stamp = Stamp(self._next, style)
        self._next += pages
        return stamp
