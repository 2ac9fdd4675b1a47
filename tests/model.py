"""A model of MemoryFile in plain Python: obvious rather than fast.

It follows docs/behaviour.md, row by row, and shares no idea with the C++: pages are counted in page
numbers, the usage set is a sorted list of runs, and everything else is a dict or a set of pages.
Time does not pass in it: freed pages stay waste until reclaim() is called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pgalloc
from pgalloc import AllocationMode, Direction, MemoryKind, Segment

PAGE = pgalloc.PAGE_SIZE
HUGE = pgalloc.HUGE_PAGE_SIZE
CHUNK = pgalloc.CHUNK_SIZE
MAX_OFFSET = 2**63 - 1
PUNCH_MAX = 128 << 20
SCAN_INTERVAL_S = 0.010

COMMIT = AllocationMode.ALLOCATE_AND_COMMIT
POPULATE = AllocationMode.ALLOCATE_AND_WRITE_POPULATE


class WrongRangeError(Exception):
    """Row C1."""


class WrongCountError(Exception):
    """Rows C3, C4."""


class NoRoomError(Exception):
    """Rows B3, B9."""


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def round_down(value: int, unit: int) -> int:
    return value // unit * unit


def stretches(numbers: set[int]) -> list[tuple[int, int]]:
    """The maximal [start, end) of consecutive numbers, ascending."""
    starts = sorted(n for n in numbers if n - 1 not in numbers)
    ends = sorted(n + 1 for n in numbers if n + 1 not in numbers)
    return list(zip(starts, ends, strict=True))


def gaps_between(taken: list[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    """The free stretches between sorted (start, end), the one up to ``end`` included."""
    gaps = []
    position = 0
    for start, stop in taken:
        gaps.append((position, start))
        position = stop
    return [*gaps, (position, max(position, end))]


def place(
    taken: list[tuple[int, int]],
    file_size: int,
    length: int,
    direction: Direction,
    *,
    capacity: int = MAX_OFFSET,
    alignment: int = 0,
) -> tuple[int, int] | None:
    """Rows B4 to B10: where an allocation starts, and how large the file is then; None: no place.

    ``taken`` are the (start, end) bytes of everything that is not free, sorted.
    """
    unit = alignment or (HUGE if length >= HUGE else PAGE)  # B4
    gaps = gaps_between(taken, capacity)
    if direction is Direction.BOTTOM_UP:
        for low, high in gaps:  # B6
            start = round_up(low, unit)
            if start + length <= high:
                grown = min(round_up(start + length, CHUNK), capacity)  # B10
                return start, max(file_size, grown)
        return None
    for low, high in reversed(gaps):  # B7
        clipped = min(high, file_size)
        if clipped < length:
            break
        start = round_down(clipped - length, unit)
        if start >= low:
            return start, file_size
    size = file_size
    lowest = round_up(gaps[-1][0], unit)
    while size < capacity:  # B8
        size = CHUNK if size == 0 else 2 * size
        if size > MAX_OFFSET:
            return None
        size = min(size, capacity)
        start = round_down(size - length, unit)
        if size >= length and start >= lowest:
            return start, size
    return None


@dataclass(frozen=True)
class Page:
    """What is known of a page that is not free. Without references it waits to be reclaimed."""

    refs: int
    kind: MemoryKind
    memcg_id: int
    known_committed: bool = False


@dataclass
class Run:
    """Pages [start, end) that are used alike."""

    start: int
    end: int
    page: Page


@dataclass
class ModelFile:
    """One file. Ranges are given in page numbers, as (start, end)."""

    capacity: int
    max_allocatable_bytes: int | None = None
    manual_zeroing: bool = False
    in_memory: bool = True
    size: int = 0
    runs: list[Run] = field(default_factory=list)
    stored: set[int] = field(default_factory=set)
    """Pages the kernel holds memory for, whatever the account knows."""
    content: dict[int, int] = field(default_factory=dict)
    """The byte that fills a page, where that is not zero."""
    counts: Counter[str] = field(default_factory=Counter)
    now_s: float = 0.0
    next_scan_s: float = 0.0
    changes: int = 0
    last_scan: tuple[int, int] = (-1, 0)
    """The number of changes, and the stored bytes, that the last full scan saw."""

    # --- the usage set ----------------------------------------------------------------------------

    def at(self, page: int) -> Page | None:
        for run in self.runs:
            if run.start <= page < run.end:
                return run.page
        return None

    def parts(self, start: int, end: int) -> Iterator[Run]:
        """The runs within [start, end), cut at its edges."""
        for run in self.runs:
            low, high = max(run.start, start), min(run.end, end)
            if low < high:
                yield Run(low, high, run.page)

    def replace_range(self, start: int, end: int, new: list[Run]) -> None:
        """Put ``new`` in the place of whatever is in [start, end), and merge equals (C2)."""
        below = list(self.parts(0, start))
        above = list(self.parts(end, MAX_OFFSET))
        self.runs = []
        for run in [*below, *new, *above]:
            last = self.runs[-1] if self.runs else None
            if last is not None and last.end == run.start and last.page == run.page:
                last.end = run.end
            else:
                self.runs.append(run)

    def change(self, start: int, end: int, how: Callable[[Page], Page]) -> None:
        changed = [Run(run.start, run.end, how(run.page)) for run in self.parts(start, end)]
        self.replace_range(start, end, changed)

    def waste(self) -> list[tuple[int, int]]:
        """Pages at 0 references, touching stretches as one, ascending."""
        merged: list[tuple[int, int]] = []
        for run in self.runs:
            if run.page.refs > 0:
                continue
            if merged and merged[-1][1] == run.start:
                merged[-1] = (merged[-1][0], run.end)
            else:
                merged.append((run.start, run.end))
        return merged

    def allocated_bytes(self) -> int:
        return sum(run.end - run.start for run in self.runs) * PAGE

    # --- what the API shows -----------------------------------------------------------------------

    def segments(self) -> list[Segment]:
        return [
            Segment(
                start=run.start * PAGE,
                end=run.end * PAGE,
                kind=run.page.kind,
                known_committed=(run.end - run.start) * PAGE if run.page.known_committed else 0,
                refs=run.page.refs,
                memcg_id=run.page.memcg_id,
            )
            for run in self.runs
        ]

    def usage(self, memcg_id: int = 0) -> dict[MemoryKind, int]:
        amounts = dict.fromkeys(MemoryKind, 0)
        for run in self.runs:
            if run.page.known_committed and memcg_id in (0, run.page.memcg_id):
                amounts[run.page.kind] += (run.end - run.start) * PAGE
        return amounts

    def known_bytes(self) -> int:
        return sum(self.usage().values())

    # --- B: allocate ------------------------------------------------------------------------------

    def allocate(
        self,
        pages: int,
        kind: MemoryKind,
        direction: Direction,
        memcg_id: int,
        mode: AllocationMode,
    ) -> tuple[int, int]:
        recycled = self._recycled_place(pages, direction) if mode is POPULATE else None
        if recycled is not None:
            start, end = recycled, recycled + pages
            self.change(
                start,
                end,
                lambda page: Page(1, kind, memcg_id, known_committed=page.known_committed),
            )
            self.counts["recycled_bytes"] += pages * PAGE
        else:
            start = self._free_place(pages, direction)
            end = start + pages
            self.replace_range(start, end, [Run(start, end, Page(1, kind, memcg_id))])
        self.changes += 1
        self.counts["allocations"] += 1
        self.counts["allocated_bytes"] += pages * PAGE
        self._zero(start, end)
        prefaulted = mode is POPULATE and (recycled is not None or pages > 1)  # B15
        if mode is COMMIT or prefaulted or not self.in_memory:
            self.stored.update(range(start, end))
        if not self.in_memory:  # B12
            self.change(start, end, lambda page: replace(page, known_committed=True))
        return start, end

    def _free_place(self, pages: int, direction: Direction) -> int:
        length = pages * PAGE
        limit = self.max_allocatable_bytes
        if limit is not None and self.allocated_bytes() + length > limit:  # B3
            raise NoRoomError
        taken = [(run.start * PAGE, run.end * PAGE) for run in self.runs]
        found = place(taken, self.size, length, direction, capacity=self.capacity)
        if found is None:
            raise NoRoomError
        self.size = found[1]
        return found[0] // PAGE

    def _recycled_place(self, pages: int, direction: Direction) -> int | None:
        """Populating takes pages that wait to be reclaimed, from the 16 stretches nearest."""
        unit = HUGE // PAGE if pages * PAGE >= HUGE else 1
        up = direction is Direction.BOTTOM_UP
        waste = self.waste() if up else self.waste()[::-1]
        for low, high in waste[:16]:
            start = round_up(low, unit) if up else round_down(high - pages, unit)
            if low <= start and start + pages <= high:
                return start
        return None

    def _zero(self, start: int, end: int) -> None:
        for page in [page for page in self.content if start <= page < end]:
            del self.content[page]

    # --- C: references ----------------------------------------------------------------------------

    def check(self, start: int, end: int) -> None:
        """Row C1, and that every page has a reference (C3, C4)."""
        if start >= end:
            raise WrongRangeError
        parts = list(self.parts(start, end))
        if sum(part.end - part.start for part in parts) < end - start:
            raise WrongRangeError
        if any(part.page.refs == 0 for part in parts):
            raise WrongCountError

    def inc_ref(self, start: int, end: int, memcg_id: int = 0) -> None:
        self.check(start, end)
        self.change(
            start,
            end,
            lambda page: replace(page, refs=page.refs + 1, memcg_id=page.memcg_id or memcg_id),
        )

    def dec_ref(self, start: int, end: int) -> None:
        self.check(start, end)
        for part in self.parts(start, end):
            if part.page.refs == 1:
                self.counts["freed_bytes"] += (part.end - part.start) * PAGE
        self.change(start, end, self._dropped)

    @staticmethod
    def _dropped(page: Page) -> Page:
        if page.refs > 1:
            return replace(page, refs=page.refs - 1)
        # C4: the bytes known move to SYSTEM of the same memcg; unknown ones have none to belong to.
        memcg_id = page.memcg_id if page.known_committed else 0
        return Page(0, MemoryKind.SYSTEM, memcg_id, page.known_committed)

    def has_unique_ref(self, start: int, end: int) -> bool:
        self.check(start, end)
        return all(part.page.refs == 1 for part in self.parts(start, end))

    # --- D, E: contents ---------------------------------------------------------------------------

    def decommit(self, start: int, end: int) -> None:
        self.check(start, end)
        self._zero(start, end)
        if not self.manual_zeroing:
            self.stored -= self._in(start, end)
        self.change(start, end, lambda page: replace(page, known_committed=False))
        self.changes += 1
        self.counts["decommitted_bytes"] += (end - start) * PAGE

    def _in(self, start: int, end: int) -> set[int]:
        return {page for page in self.stored if start <= page < end}

    def write(self, start: int, end: int, stamp: int) -> None:
        for page in range(start, end):
            self.stored.add(page)
            self.content[page] = stamp

    def spill(self, pages: set[int]) -> None:
        """What a file system stores around pages that are touched: it goes by large folios."""
        assert not self.in_memory
        assert not pages & self.content.keys()
        self.stored |= pages

    def read(self, start: int, end: int) -> bytes:
        """Through a mapping, which stores a page of shared memory that was a hole."""
        if self.in_memory:
            self.stored.update(range(start, end))
        return b"".join(bytes([self.content.get(page, 0)]) * PAGE for page in range(start, end))

    # --- F: reclaim -------------------------------------------------------------------------------

    def reclaim_highest(self) -> None:
        """Rows F1, F3: one punch of the reclaimer."""
        start, end = self.waste()[-1]
        start = max(start, end - PUNCH_MAX // PAGE)
        first, last = start, end
        if self.manual_zeroing:
            first, last = round_up(start, HUGE // PAGE), round_down(end, HUGE // PAGE)
        gone = self._in(first, last)
        self.stored -= gone
        for page in gone:
            self.content.pop(page, None)
        self.replace_range(start, end, [])
        self.changes += 1
        self.counts["punched_bytes"] += (end - start) * PAGE

    def reclaim(self) -> None:
        while self.waste():
            self.reclaim_highest()

    # --- H: usage ---------------------------------------------------------------------------------

    def update_usage(self, stored: int, memcg_ids: list[int] | None = None) -> bool:
        """Row H2, with the bytes that fstat() tells. False if a scan was due but came too soon."""
        if stored == self.known_bytes() or self.last_scan == (self.changes, stored):
            return True
        if memcg_ids is None:
            if self.now_s < self.next_scan_s:
                return False
            self.next_scan_s = self.now_s + SCAN_INTERVAL_S
            self.last_scan = (self.changes, stored)
        for low, high in stretches(self.stored):
            for part in list(self.parts(low, high)):
                use = part.page
                wanted = memcg_ids is None or use.memcg_id in memcg_ids
                if use.refs > 0 and wanted:  # H3
                    self.change(
                        part.start, part.end, lambda page: replace(page, known_committed=True)
                    )
        return True


@dataclass
class ModelEvictables:
    """Section G: the numbers each user has marked."""

    marked: dict[int, set[int]] = field(default_factory=dict)

    def mark(self, user: int, start: int, end: int) -> None:
        self.marked.setdefault(user, set()).update(range(start, end))

    def unmark(self, user: int, start: int, end: int) -> None:
        self.marked.setdefault(user, set()).difference_update(range(start, end))

    def evict(self, user: int) -> list[tuple[int, int]]:
        """Row G4: the ranges that are asked for, highest first."""
        return stretches(self.marked.pop(user, set()))[::-1]
