"""Something a thread holds on to: an allocation, or only a view that outlived one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torture_api import marks

if TYPE_CHECKING:
    from pgalloc import Allocation


@dataclass
class Holding:
    """Pages that bear the marks from ``first`` on. Exactly one of the two owns them."""

    first: int
    allocation: Allocation | None
    view: memoryview | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        owner = self.allocation if self.view is None else self.view
        return 0 if owner is None else owner.nbytes

    def check(self, when: str) -> int:
        """Raise PromiseBrokenError unless the marks are there. The number of pages."""
        owner = self.allocation if self.view is None else self.view
        return 0 if owner is None else marks.expect(owner, self.first, when)

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
