"""The pages of a MemoryFile as a picture: runs of equal state, and cells for a small screen.

Pure: works on what ``MemoryFile.segments()`` returned, so that every renderer shows the same.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pgalloc


class PageState(enum.Enum):
    """What a page is at the moment; the value is what a legend says."""

    HUGE = "used, in huge pages"
    COMMITTED = "used, committed"
    UNCOMMITTED = "used, uncommitted"
    WASTE = "waste, to be reclaimed"
    PART = "free part of a huge page"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of the file, in bytes, whose pages share a state; ``kind`` is None where free."""

    start: int
    end: int
    state: PageState
    kind: pgalloc.MemoryKind | None = None

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class PageMap:
    """The whole file: ``runs`` cover [0, extent) without gaps; all above is free.

    ``extent`` is the end of the last page in use, ``file_size`` the size of the file.
    """

    runs: tuple[Run, ...]
    extent: int
    file_size: int

    @classmethod
    def of(cls, segments: Iterable[pgalloc.Segment], file_size: int) -> PageMap:
        """Fills the gaps between the segments and joins neighbours that look the same."""
        runs: list[Run] = []
        for segment in segments:
            if segment.start > (end := runs[-1].end if runs else 0):
                runs.append(Run(end, segment.start, PageState.FREE))
            for run in _runs(segment):
                if runs and (runs[-1].state, runs[-1].kind) == (run.state, run.kind):
                    runs[-1] = Run(runs[-1].start, run.end, run.state, run.kind)
                else:
                    runs.append(run)
        return cls(tuple(runs), runs[-1].end if runs else 0, file_size)

    def bytes_by_state(self) -> dict[PageState, int]:
        """Bytes below ``extent`` in each state."""
        totals = dict.fromkeys(PageState, 0)
        for run in self.runs:
            totals[run.state] += run.nbytes
        return totals

    def slices(self, width: int) -> list[list[Run]]:
        """The runs cut into consecutive stretches of ``width`` bytes; the last may be shorter."""
        result: list[list[Run]] = []
        for run in self.runs:
            start = run.start
            while start < run.end:
                row, offset = divmod(start, width)
                if offset == 0 or not result:
                    result.append([])
                end = min(run.end, (row + 1) * width)
                result[row].append(Run(start, end, run.state, run.kind))
                start = end
        return result

    def cells(self, width: int) -> list[PageState]:
        """For each stretch of ``width`` bytes the state that most of its bytes have."""
        return [_prevailing(runs) for runs in self.slices(width)]


def _runs(segment: pgalloc.Segment) -> Iterator[Run]:
    """Its pages; if only some of them are in huge pages, these are shown first."""
    border = segment.start + segment.huge_bytes
    if segment.start < border:
        yield Run(segment.start, border, PageState.HUGE, segment.kind)
    if border < segment.end:
        yield Run(border, segment.end, _state(segment), segment.kind)


def _state(segment: pgalloc.Segment) -> PageState:
    if segment.refs == 0:
        given_back = segment.huge and not segment.known_committed
        return PageState.PART if given_back else PageState.WASTE
    return PageState.COMMITTED if segment.known_committed else PageState.UNCOMMITTED


def _prevailing(runs: list[Run]) -> PageState:
    totals = dict.fromkeys(PageState, 0)
    for run in runs:
        totals[run.state] += run.nbytes
    return max(totals, key=totals.__getitem__)
