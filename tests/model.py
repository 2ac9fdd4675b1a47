"""A model of MemoryFile in plain Python: obvious rather than fast.

It follows docs/behaviour.md, row by row, and shares no idea with the C++: pages are counted in page
numbers, the usage set is a sorted list of runs, and everything else is a dict or a set of pages.
Time does not pass in it: freed pages stay waste until reclaim() is called.

Huge pages are a matter of layout here: which areas are theirs, what is kept together, what is given
back in which order. What the kernel makes of it, the model is told: see spill().
"""

from __future__ import annotations

import itertools
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

AREAS_MIN = 16
NOTHING = (MAX_OFFSET, MAX_OFFSET)
PAGES_OF_HUGE = HUGE // PAGE
Window = tuple[int, int]

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


def area_bytes(capacity: int) -> int:
    """Row B4: a chunk, or a sixteenth of a small capacity, as a power of two."""
    share = capacity // AREAS_MIN
    power = 1 << (share.bit_length() - 1) if share else 0
    return min(max(power, HUGE), max(CHUNK, HUGE))


def place_in_windows(
    taken: list[Window],
    file_size: int,
    length: int,
    direction: Direction,
    *,
    capacity: int,
    windows: list[Window],
) -> tuple[int, int] | None:
    """What place() does, within the ``windows``: the lowest or highest start, and the size."""
    unit = HUGE if length >= HUGE else PAGE
    gaps = gaps_between(taken, capacity)
    if direction is Direction.BOTTOM_UP:
        for first, last in windows:
            for low, high in gaps:
                start = round_up(max(low, first), unit)
                if start + length <= min(high, last):
                    return start, max(file_size, min(round_up(start + length, CHUNK), capacity))
        return None
    for first, last in reversed(windows):
        for low, high in reversed(gaps):
            start = round_down(min(high, last, file_size) - length, unit)
            if start >= max(low, first):
                return start, file_size
    if not windows or windows[-1][1] < capacity:
        return None
    # B8, and only at the end: above all that is taken.
    lowest = round_up(max(gaps[-1][0], windows[-1][0]), unit)
    size = file_size
    while size < capacity:
        size = min(CHUNK if size == 0 else 2 * size, capacity)
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
    huge_pages: str = "auto"
    kernel_gives_huge_pages: bool = False
    accounting: bool = True
    size: int = 0
    runs: list[Run] = field(default_factory=list)
    stored: set[int] = field(default_factory=set)
    """Pages the kernel holds memory for, whatever the account knows."""
    content: dict[int, int] = field(default_factory=dict)
    """The byte that fills a page, where that is not zero."""
    huge_areas: set[int] = field(default_factory=set)
    """Numbers of the areas for huge pages."""
    given_back: set[int] = field(default_factory=set)
    """Pages without references and contents; the rest of their huge page is used."""
    advised_against: set[int] = field(default_factory=set)
    """Numbers of huge pages that the kernel must not make whole: they are used in part."""
    was_stored: set[int] = field(default_factory=set)
    """Pages that were punched out of a huge page, which the kernel may have left as it was."""
    releasing: tuple[int, int] = NOTHING
    """Pages on which the reclaimer is at work: neither waste nor free."""
    counts: Counter[str] = field(default_factory=Counter)
    now_s: float = 0.0
    next_scan_s: float = 0.0
    changes: int = 0
    last_scan: tuple[int, int] = (-1, 0)
    """The number of changes, and the stored bytes, that the last full scan saw."""
    last_look: tuple[int, int] = (-1, 0)
    """The same, of the last look at what is in huge pages."""

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

    # --- areas and huge pages ---------------------------------------------------------------------

    @property
    def area(self) -> int:
        return area_bytes(self.capacity)

    def is_huge(self, page: int) -> bool:
        """Whether the page lies in an area for huge pages."""
        return page * PAGE // self.area in self.huge_areas

    def by_areas(self, start: int, end: int) -> list[tuple[int, int, bool]]:
        """Pages [start, end), cut where areas of one size end: (start, end, huge)."""
        unit = self.area // PAGE
        cuts: list[tuple[int, int, bool]] = []
        if not self.huge_areas:
            return [(start, end, False)]
        while start < end:
            stop = min(end, round_down(start, unit) + unit)
            huge = self.is_huge(start)
            if cuts and cuts[-1][2] == huge:
                cuts[-1] = (cuts[-1][0], stop, huge)
            else:
                cuts.append((start, stop, huge))
            start = stop
        return cuts

    def _windows(self, huge: bool, change: bool) -> list[Window]:
        """Stretches of areas for pages of this size; with ``change``, of empty ones, too."""
        inside = -(-self.size // self.area)
        edges = [*range(0, inside * self.area, self.area), inside * self.area]
        areas = list(itertools.pairwise(edges))
        if edges[-1] < self.capacity:
            areas.append((edges[-1], self.capacity))  # all beyond the end of the file is one
        windows: list[Window] = []
        for start, end in areas:
            end = min(end, self.capacity)
            same = (start // self.area in self.huge_areas) == huge
            empty = not any(True for _ in self.parts(start // PAGE, -(-end // PAGE)))
            if not same and not (change and empty):
                continue
            if windows and windows[-1][1] == start:
                windows[-1] = (windows[-1][0], end)
            else:
                windows.append((start, end))
        return windows

    def wants_huge(self, pages: int, huge: bool | None) -> bool:
        if not self.in_memory or self.manual_zeroing or pages < PAGES_OF_HUGE:
            return False
        if self.huge_pages != "auto":
            return self.huge_pages == "always"
        return huge is True or (huge is None and self.kernel_gives_huge_pages)

    def waste(self) -> list[tuple[int, int]]:
        """Pages that wait to be given back, in that order; touching stretches of a kind are one.

        Row F1: small before huge, whole huge pages before parts of used ones, high before low.
        """
        kinds: list[list[tuple[int, int]]] = [[], [], []]
        for kind, start, end in self._waste_parts():
            same = kinds[kind]
            if same and same[-1][1] == start:
                same[-1] = (same[-1][0], end)
            else:
                same.append((start, end))
        return [stretch for kind in kinds for stretch in reversed(kind)]

    def _waste_parts(self) -> Iterator[tuple[int, int, int]]:
        """Ascending: 0 for small ones, 1 for whole huge pages, 2 for parts; start; end."""
        for run in self.runs:
            if run.page.refs > 0:
                continue
            for start, end, huge in self.by_areas(run.start, run.end):
                if not huge:
                    yield from ((0, low, high) for low, high in self._at_rest(start, end))
                    continue
                for first in range(round_down(start, PAGES_OF_HUGE), end, PAGES_OF_HUGE):
                    low, high = max(start, first), min(end, first + PAGES_OF_HUGE)
                    if self._unused(first // PAGES_OF_HUGE):
                        yield from ((1, a, b) for a, b in self._at_rest(low, high))
                        continue
                    for part in stretches(set(range(low, high)) - self.given_back):
                        yield from ((2, a, b) for a, b in self._at_rest(*part))

    def _at_rest(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What the reclaimer does not have in its hands."""
        first, last = self.releasing
        if start < min(end, first):
            yield start, min(end, first)
        if max(start, first, last) < end:
            yield max(start, last), end

    def _unused(self, huge_page: int) -> bool:
        first = huge_page * PAGES_OF_HUGE
        return all(run.page.refs == 0 for run in self.parts(first, first + PAGES_OF_HUGE))

    def _settle(self, start: int, end: int) -> None:
        """Huge pages of which nothing is used any more go as a whole: their parts wait again."""
        touched = range(start // PAGES_OF_HUGE, -(-end // PAGES_OF_HUGE))
        for huge_page in {page // PAGES_OF_HUGE for page in self.given_back}:
            if huge_page in touched and self._unused(huge_page):
                first = huge_page * PAGES_OF_HUGE
                self.given_back -= set(range(first, first + PAGES_OF_HUGE))

    def allocated_bytes(self) -> int:
        used = sum(run.end - run.start for run in self.runs)
        return (used - len(self.given_back)) * PAGE

    # --- what the API shows -----------------------------------------------------------------------

    def segments(self) -> list[Segment]:
        return [
            Segment(
                start=start * PAGE,
                end=end * PAGE,
                kind=run.page.kind,
                known_committed=(end - start) * PAGE if run.page.known_committed else 0,
                refs=run.page.refs,
                memcg_id=run.page.memcg_id,
                huge=huge,
            )
            for run in self.runs
            for start, end, huge in self.by_areas(run.start, run.end)
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
        huge: bool | None = False,
    ) -> tuple[int, int]:
        wanted = self.wants_huge(pages, huge)
        recycles = mode is POPULATE or (mode is COMMIT and self.in_memory)  # B5
        recycled = self._recycled_place(pages, direction, wanted) if recycles else None
        if recycled is not None:
            start, end = recycled, recycled + pages
            self.change(
                start,
                end,
                lambda page: Page(1, kind, memcg_id, known_committed=page.known_committed),
            )
            self.counts["recycled_bytes"] += pages * PAGE
            got_huge = wanted
        else:
            start, got_huge = self._free_place(pages, direction, wanted)
            end = start + pages
            self.replace_range(start, end, [Run(start, end, Page(1, kind, memcg_id))])
            tail = round_up(end, PAGES_OF_HUGE) if got_huge else end
            if tail > end:
                self.replace_range(end, tail, [Run(end, tail, Page(0, MemoryKind.SYSTEM, 0))])
                self.given_back.update(range(end, tail))
        if got_huge:
            self._advise(start, end)
        self.changes += 1
        self.counts["allocations"] += 1
        self.counts["allocated_bytes"] += pages * PAGE
        self.counts["huge_allocations"] += got_huge
        self._zero(start, end)
        prefaulted = mode is POPULATE and (recycled is not None or pages > 1)  # B15
        if mode is COMMIT or prefaulted or not self.in_memory:
            self.stored.update(range(start, end))
        if not self.in_memory and self.accounting:  # B12
            self.change(start, end, lambda page: replace(page, known_committed=True))
        return start, end

    def _advise(self, start: int, end: int) -> None:
        """For its huge pages, and against the last one if it ends inside that."""
        self.advised_against -= set(range(start // PAGES_OF_HUGE, end // PAGES_OF_HUGE))
        if end % PAGES_OF_HUGE:
            self.advised_against.add(end // PAGES_OF_HUGE)

    def _free_place(self, pages: int, direction: Direction, huge: bool) -> tuple[int, bool]:
        """The start, and whether it lies in areas for huge pages."""
        limit = self.max_allocatable_bytes
        if limit is not None and self.allocated_bytes() + pages * PAGE > limit:  # B3
            raise NoRoomError
        for got_huge in (True, False) if huge else (False,):
            found = self._place_of_size(pages, direction, got_huge)
            if found is None:
                continue
            start, self.size = found
            for area in range(start // self.area, -(-(start + pages * PAGE) // self.area)):
                (self.huge_areas.add if got_huge else self.huge_areas.discard)(area)
            return start // PAGE, got_huge
        raise NoRoomError

    def _place_of_size(
        self, pages: int, direction: Direction, huge: bool
    ) -> tuple[int, int] | None:
        taken = [(run.start * PAGE, run.end * PAGE) for run in self.runs]
        if not huge and not self.huge_areas:
            return place(taken, self.size, pages * PAGE, direction, capacity=self.capacity)
        length = round_up(pages * PAGE, HUGE) if huge else pages * PAGE
        for change in (False, True):
            found = place_in_windows(
                taken,
                self.size,
                length,
                direction,
                capacity=self.capacity,
                windows=self._windows(huge, change),
            )
            if found is not None:
                return found
        return None

    def _recycled_place(self, pages: int, direction: Direction, huge: bool) -> int | None:
        """Populating takes pages that wait to be reclaimed, from the 16 stretches nearest."""
        unit = PAGES_OF_HUGE if pages >= PAGES_OF_HUGE else 1
        whole = round_up(pages, PAGES_OF_HUGE) if huge else pages
        up = direction is Direction.BOTTOM_UP
        waste = sorted(
            (low, high)
            for low, high in self.waste()
            if self.is_huge(low) == huge and (not huge or self._unused(low // PAGES_OF_HUGE))
        )
        for low, high in (waste if up else waste[::-1])[:16]:
            start = round_up(low, unit) if up else round_down(high - whole, unit)
            if low <= start and start + whole <= high:
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
        self._settle(start, end)

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
            self._punch(start, end)
        self.change(start, end, lambda page: replace(page, known_committed=False))
        self.changes += 1
        self.counts["decommitted_bytes"] += (end - start) * PAGE

    def _in(self, start: int, end: int) -> set[int]:
        return {page for page in self.stored if start <= page < end}

    def _punch(self, start: int, end: int) -> None:
        gone = self._in(start, end)
        self.stored -= gone
        for page in gone:
            self.content.pop(page, None)
        whole = range(round_up(start, PAGES_OF_HUGE), round_down(end, PAGES_OF_HUGE))
        self.was_stored |= {page for page in gone if page not in whole and self.is_huge(page)}
        self.was_stored -= set(whole)

    def write(self, start: int, end: int, stamp: int) -> None:
        for page in range(start, end):
            self.stored.add(page)
            self.content[page] = stamp

    def spill(self, pages: set[int]) -> None:
        """What the kernel stores beside what is touched: large folios, huge pages."""
        if self.in_memory:
            wrong = {page for page in pages if not self._may_spill(page)}
            assert not wrong, f"committed, and nothing there was touched: {stretches(wrong)}"
        assert not pages & self.content.keys()
        self.stored |= pages

    def _may_spill(self, page: int) -> bool:
        """It shares a huge page with what is stored, or was punched out of one."""
        huge_page = page // PAGES_OF_HUGE
        if not self.is_huge(page):
            return False
        if page in self.was_stored:
            return True
        first = huge_page * PAGES_OF_HUGE
        touched = any(other in self.stored for other in range(first, first + PAGES_OF_HUGE))
        return touched and huge_page not in self.advised_against

    def read(self, start: int, end: int) -> bytes:
        """Through a mapping, which stores a page of shared memory that was a hole."""
        if self.in_memory:
            self.stored.update(range(start, end))
        return b"".join(bytes([self.content.get(page, 0)]) * PAGE for page in range(start, end))

    # --- F: reclaim -------------------------------------------------------------------------------

    def next_release(self) -> tuple[int, int]:
        """What the reclaimer takes next, 128 MiB of it at most. There is waste."""
        start, end = self.waste()[0]
        return max(start, end - PUNCH_MAX // PAGE), end

    def reclaim_next(self) -> tuple[int, int]:
        """Rows F1, F3: one punch of the reclaimer, and what it took."""
        start, end = self.next_release()
        first, last = start, end
        if self.manual_zeroing:
            first, last = round_up(start, HUGE // PAGE), round_down(end, HUGE // PAGE)
        partial = self.is_huge(start) and not self._unused(start // PAGES_OF_HUGE)
        self._punch(first, last)
        if partial:  # F1: not free before all of its huge page is
            self.replace_range(start, end, [Run(start, end, Page(0, MemoryKind.SYSTEM, 0))])
            self.given_back.update(range(start, end))
            self.advised_against.update(range(start // PAGES_OF_HUGE, -(-end // PAGES_OF_HUGE)))
        else:
            self.replace_range(start, end, [])
        self.changes += 1
        self.counts["punched_bytes"] += (end - start) * PAGE
        return start, end

    def reclaim(self) -> None:
        self.releasing = NOTHING
        while self.waste():
            self.reclaim_next()

    # --- H: usage ---------------------------------------------------------------------------------

    def update_usage(self, stored: int, memcg_ids: list[int] | None = None) -> bool:
        """Row H2, with the bytes that fstat() tells. False if a scan was due but came too soon."""
        if not self.accounting:  # H7
            return True
        now = (self.changes, stored)
        counts = stored != self.known_bytes() and self.last_scan != now
        looks = self.counts["huge_allocations"] > 0  # H6
        if not counts and not looks:
            return True
        if memcg_ids is None:
            if self.now_s < self.next_scan_s:
                return not counts and self.last_look == now
            self.next_scan_s = self.now_s + SCAN_INTERVAL_S
            self.last_scan = now
        if looks:
            self.last_look = now
        if not counts:
            return True
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
