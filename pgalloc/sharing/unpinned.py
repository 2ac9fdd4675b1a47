"""What this process has unpinned at the owner of the pages.

The owner keeps one handle for all that a peer has on a page, pinned or not. So a peer unpins pages
only while a single handle of its own is on them, and pins them again before another one comes.

Thread safety: externally synchronised (the connection's lock).

Invariant: for each recorded range there is one handle here, of exactly this range; entries whose
handle has ended are dropped before their pages can come back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgalloc import _core
from pgalloc.sharing import remote

if TYPE_CHECKING:
    from pgalloc.sharing.remote import RemoteFile

_Pages = tuple[int, int]


class Unpinned:
    """The pages of one file that this process has unpinned."""

    def __init__(self) -> None:
        self._unpinned: set[_Pages] = set()
        self._lost: set[_Pages] = set()  # pinned since, on behalf of another handle: too late

    def ranges(self) -> list[_core.FileRange]:
        """What the owner may discard now."""
        return [_core.FileRange(*pages) for pages in self._unpinned]

    def unpin(self, file: RemoteFile, range: _core.FileRange) -> bool:
        """Whether the owner counts the pages as unpinned: not if other handles hold them, too."""
        if not file._has_unique_ref_local(range):
            return False
        remote.unpin(file, range)
        self._lost.discard((range.start, range.end))
        self._unpinned.add((range.start, range.end))
        return True

    def pin(self, file: RemoteFile, range: _core.FileRange) -> bool:
        """Whether the contents are what they were when the handle was unpinned."""
        pages = (range.start, range.end)
        if pages in self._unpinned:
            intact = remote.pin(file, range)
            self._unpinned.remove(pages)
            return intact
        if pages in self._lost:
            self._lost.remove(pages)
            return False
        return remote.pin(file, range)  # in a forked child: the handle may be its parent's

    def before_another(self, file: RemoteFile, range: _core.FileRange) -> None:
        """Another handle on pages of ``range`` is about to come."""
        for pages in [*self._unpinned, *self._lost]:
            if not (pages[0] < range.end and range.start < pages[1]):
                continue
            whole = _core.FileRange(*pages)
            if not file._holds_local(whole):  # its handle has ended
                self._unpinned.discard(pages)
                self._lost.discard(pages)
            elif pages in self._unpinned:
                if not remote.pin(file, whole):
                    self._lost.add(pages)
                self._unpinned.remove(pages)
