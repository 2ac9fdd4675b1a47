"""Something a process holds on to: marked pages, by an allocation or only by a view."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torture_api import marks

from pgalloc import PAGE_SIZE

if TYPE_CHECKING:
    from pgalloc import Allocation, FileRange


@dataclass(eq=False)
class Holding:
    """Pages that bear the marks from ``first`` on. The allocation owns them, or the view does."""

    first: int
    allocation: Allocation | None
    view: memoryview | None = None
    range: FileRange = field(init=False)
    file: Any = field(init=False)

    def __post_init__(self) -> None:
        assert self.allocation is not None
        self.range, self.file = self.allocation.range, self.allocation.file

    @property
    def nbytes(self) -> int:
        return self.range.length

    @property
    def pages(self) -> int:
        return self.nbytes // PAGE_SIZE

    @property
    def pinned(self) -> bool:
        """Whether the marks must be there."""
        return self.allocation is None or self.allocation.pinned

    def check(self, when: str) -> int:
        """Raise PromiseBrokenError unless the marks are there. The number of pages."""
        owner = self.allocation if self.view is None else self.view
        assert owner is not None
        return marks.expect(owner, self.first, when)

    def keep_only_a_view(self) -> None:
        """Release the allocation; from here on a view alone holds the pages."""
        if self.allocation is not None:
            self.view = self.allocation.view(readonly=True)
            self.allocation.release()
            self.allocation = None

    def drop(self) -> None:
        """Let go of the pages."""
        if self.allocation is not None:
            self.allocation.release()
        if self.view is not None:
            self.view.release()
        self.allocation = self.view = None


def is_discarded(allocation: Allocation, first: int) -> bool:
    """Whether pages that were unpinned have lost marks: to zeros, and to nothing else.

    Not all of them need to be gone: others may have parts of them, pinned.
    """
    with memoryview(allocation).cast("B") as content:
        words = content.cast("Q")
        lost = False
        for page in range(allocation.nbytes // PAGE_SIZE):
            for offset in marks.WORD_OFFSETS:
                found = words[page * marks.WORDS_PER_PAGE + offset]
                if found not in (0, first + page):
                    raise marks.PromiseBrokenError(f"{found:#x} in a page that was unpinned")
                lost |= found == 0
        words.release()
    return lost
