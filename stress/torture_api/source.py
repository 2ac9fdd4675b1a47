"""Where the workers get memory: the file and, on demand, a planted bug the run must find."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgalloc import Allocation, MemoryFile
    from torture_api.holding import Holding

PLANTS = {
    "shared": "pages that have an owner are handed out again",
    "dirty": "pages are not zero when they are handed out",
    "lost": "a reference is never dropped",
    "view": "a view does not hold its pages",
}
_STRIKES_EVERY = 50


class Source:
    """Safe for any thread."""

    def __init__(self, file: MemoryFile, plant: str | None) -> None:
        self.file = file
        self._plant = plant
        self._calls = itertools.count(1)
        self._latest: Allocation | None = None

    def _strikes(self, plant: str) -> bool:
        return self._plant == plant and next(self._calls) % _STRIKES_EVERY == 0

    def allocate(self, length: int, **options: Any) -> Allocation:
        """Like MemoryFile.allocate()."""
        if self._strikes("shared") and self._latest is not None and not self._latest.released:
            return self._latest.clone()
        allocation = self.file.allocate(length, **options)
        self._latest = allocation if self._plant == "shared" else None
        if self._strikes("dirty"):
            memoryview(allocation)[allocation.nbytes // 2] = 1
        if self._strikes("lost"):
            self.file.inc_ref(allocation.range)
        return allocation

    def keep_only_a_view(self, holding: Holding) -> None:
        """Like Holding.keep_only_a_view()."""
        allocation = holding.allocation
        holding.keep_only_a_view()
        if allocation is not None and self._strikes("view"):
            self.file.dec_ref(allocation.range)
