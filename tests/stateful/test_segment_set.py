"""pgalloc.testing.SegmentSet against a naive list (rows M1 to M7)."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
from conftest import HUGE, PAGE
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgalloc import RangeError
from pgalloc.testing import SegmentSet

TOP = 2**64 - 1
ALIGNMENTS = [1, 2, 16, PAGE, 16 * PAGE, HUGE, 4 * HUGE, 1 << 40, 1 << 63]

Segment = tuple[int, int, int]
Gap = tuple[int, int]


class NaiveSet:
    """A sorted list of (start, end, value)."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []

    def gaps(self) -> list[Gap]:
        edges = [0, *(edge for start, end, _ in self.segments for edge in (start, end)), TOP]
        return list(zip(edges[::2], edges[1::2], strict=True))

    def insert(self, start: int, end: int, value: int, merge: bool) -> bool:
        if start >= end or any(s < end and start < e for s, e, _ in self.segments):
            return False
        self.segments = sorted([*self.segments, (start, end, value)])
        if merge:
            self.merge_at({start, end})
        return True

    def remove(self, start: int, end: int) -> None:
        self.cut_at(start)
        self.cut_at(end)
        self.segments = [s for s in self.segments if not (start <= s[0] and s[1] <= end)]

    def cut_at(self, key: int) -> None:
        pieces: list[Segment] = []
        for start, end, value in self.segments:
            if start < key < end:
                pieces += [(start, key, value), (key, end, value)]
            else:
                pieces.append((start, end, value))
        self.segments = pieces

    def merge_at(self, keys: set[int] | None = None) -> None:
        """Merge equal neighbours that touch at one of ``keys`` (None: anywhere)."""
        merged: list[Segment] = []
        for start, end, value in self.segments:
            last = merged[-1] if merged else None
            if last and last[1:] == (start, value) and (keys is None or start in keys):
                merged[-1] = (last[0], end, value)
            else:
                merged.append((start, end, value))
        self.segments = merged

    def add(self, start: int, end: int, amount: int) -> None:
        self.cut_at(start)
        self.cut_at(end)
        edges: set[int] = set()
        changed: list[Segment] = []
        for low, high, value in self.segments:
            if start <= low and high <= end:
                edges |= {low, high}
                value += amount
            changed.append((low, high, value))
        self.segments = changed
        self.merge_at(edges)

    def canonical(self) -> list[Segment]:
        copy = NaiveSet()
        copy.segments = list(self.segments)
        copy.merge_at()
        return copy.segments

    def containing(self, key: int) -> Segment | None:
        return next((s for s in self.segments if s[0] <= key < s[1]), None)

    def fitting(self, length: int, alignment: int) -> list[Gap]:
        return [
            (low, high)
            for low, high in self.gaps()
            if -(-low // alignment) * alignment + length <= high
        ]


# Near 0, somewhere in the middle, and up to the largest key.
keys = st.builds(
    lambda base, unit, count: max(0, min(TOP, base + unit * count)),
    st.sampled_from([0, 1 << 32, TOP - 8 * HUGE, TOP]),
    st.sampled_from([1, PAGE, HUGE // 4]),
    st.integers(-8, 40),
)
lengths = st.one_of(
    st.integers(1, 40),
    st.integers(1, 40).map(lambda n: n * PAGE),
    st.integers(1, 8).map(lambda n: n * HUGE),
    st.sampled_from([1 << 40, TOP - 1, TOP, 1 << 63]),
)
values = st.integers(0, 2)


class SegmentSetMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.set = SegmentSet()
        self.naive = NaiveSet()

    def edge(self, pick: int, delta: int) -> int:
        """A key at or beside an edge of some segment."""
        edges = [edge for start, end, _ in self.naive.segments for edge in (start, end)] or [0]
        return max(0, min(TOP, edges[pick % len(edges)] + delta))

    # --- M3 --------------------------------------------------------------------------------------

    @rule(start=keys, length=lengths, value=values, merge=st.booleans())
    def insert(self, start: int, length: int, value: int, merge: bool) -> None:
        end = min(TOP, start + length)
        if self.naive.insert(start, end, value, merge):
            self.set.insert(start, end, value, merge)
        else:
            with pytest.raises(RangeError):
                self.set.insert(start, end, value, merge)

    @rule(pick=st.integers(0, 999), value=values, merge=st.booleans())
    def fill_a_gap(self, pick: int, value: int, merge: bool) -> None:
        gaps = [gap for gap in self.naive.gaps() if gap[0] < gap[1]]
        if not gaps:
            return
        start, end = gaps[pick % len(gaps)]
        assert self.naive.insert(start, end, value, merge)
        self.set.insert(start, end, value, merge)

    @rule(
        start=st.sampled_from([0, 1 << 32, 5 * HUGE + PAGE]),
        count=st.integers(50, 400),
        step=st.sampled_from([2, 3 * PAGE, HUGE, HUGE + PAGE]),
        seed=st.integers(0, 9),
    )
    def insert_a_comb(self, start: int, count: int, step: int, seed: int) -> None:
        """Hundreds of segments, so that the tree gets levels."""
        self.remove_range(start, start + count * step)
        chosen = random.Random(seed)
        teeth = [(start + i * step, i % 3) for i in range(count)]
        self.naive.segments = sorted(
            [*self.naive.segments, *((at, at + step // 2, value) for at, value in teeth)]
        )
        chosen.shuffle(teeth)
        for at, value in teeth:
            self.set.insert(at, at + step // 2, value, False)

    # --- M4 --------------------------------------------------------------------------------------

    @rule(start=keys, length=lengths)
    def remove(self, start: int, length: int) -> None:
        self.remove_range(start, min(TOP, start + length))

    @rule(first=st.integers(0, 999), last=st.integers(0, 999), delta=st.integers(-2, 2))
    def remove_between_edges(self, first: int, last: int, delta: int) -> None:
        self.remove_range(*sorted((self.edge(first, delta), self.edge(last, -delta))))

    @rule(seed=st.integers(0, 9), share=st.sampled_from([0.3, 0.9]))
    def remove_many(self, seed: int, share: float) -> None:
        chosen = random.Random(seed)
        doomed = [s for s in self.naive.segments if chosen.random() < share]
        chosen.shuffle(doomed)
        for start, end, _ in doomed:
            self.set.remove(start, end)
        self.naive.segments = [s for s in self.naive.segments if s not in set(doomed)]

    def remove_range(self, start: int, end: int) -> None:
        if start >= end:
            with pytest.raises(RangeError):
                self.set.remove(start, end)
            return
        self.set.remove(start, end)
        self.naive.remove(start, end)

    @rule()
    @precondition(lambda self: len(self.naive.segments) > 500)
    def clear(self) -> None:
        self.set.clear()
        self.naive.segments.clear()

    # --- M5 --------------------------------------------------------------------------------------

    @rule(pick=st.integers(0, 999), delta=st.integers(-2, 2))
    def split(self, pick: int, delta: int) -> None:
        key = self.edge(pick, delta)
        self.set.split(key)
        self.naive.cut_at(key)

    @rule(key=keys)
    def split_anywhere(self, key: int) -> None:
        self.set.split(key)
        self.naive.cut_at(key)

    @rule()
    def merge_all(self) -> None:
        self.set.merge_all()
        self.naive.merge_at()

    @rule(
        first=st.integers(0, 999),
        last=st.integers(0, 999),
        delta=st.integers(-2, 2),
        amount=st.sampled_from([-1, 1, 2]),
    )
    def mutate(self, first: int, last: int, delta: int, amount: int) -> None:
        start, end = sorted((self.edge(first, delta), self.edge(last, -delta)))
        if start < end:
            self.set.add(start, end, amount)
            self.naive.add(start, end, amount)

    @rule(start=keys, length=lengths)
    def mutate_without_a_change(self, start: int, length: int) -> None:
        """It may merge, but splits nothing."""
        end = min(TOP, start + length)
        if start >= end:
            return
        before = self.naive.segments
        self.set.add(start, end, 0)
        self.naive.segments = self.set.segments()
        assert {s[0] for s in self.naive.segments} <= {s[0] for s in before}
        after = self.naive.canonical()
        self.naive.segments = before
        assert self.naive.canonical() == after
        self.naive.segments = self.set.segments()

    # --- M2, M6: what is found -------------------------------------------------------------------

    @rule(pick=st.integers(0, 999), delta=st.integers(-1, 1), other=keys, near=st.booleans())
    def find(self, pick: int, delta: int, other: int, near: bool) -> None:
        key = self.edge(pick, delta) if near else other
        segments = self.naive.segments
        inside = self.naive.containing(key)
        below = [s for s in segments if s[0] <= key]
        above = [s for s in segments if s[1] > key]
        assert self.set.find(key) == inside
        assert self.set.lower_bound(key) == (above[0] if above else None)
        assert self.set.upper_bound(key) == (below[-1] if below else None)
        around = [
            (low, high)
            for low, high in self.naive.gaps()
            if low <= key < high or key == high == TOP
        ]
        assert self.set.find_gap(key) == (None if inside else around[-1])

    @rule(
        pick=st.integers(0, 999),
        delta=st.integers(-1, 1),
        other=keys,
        near=st.booleans(),
        length=lengths,
        alignment=st.sampled_from(ALIGNMENTS),
    )
    def find_gaps_of_a_size(
        self, pick: int, delta: int, other: int, near: bool, length: int, alignment: int
    ) -> None:
        fitting = self.naive.fitting(length, alignment)
        first = self.set.first_large_enough_gap(length, alignment)
        last = self.set.last_large_enough_gap(length, alignment)
        assert first == (fitting[0] if fitting else None)
        assert last == (fitting[-1] if fitting else None)

        key = self.edge(pick, delta) if near else other
        inside = self.naive.containing(key)
        at = key if inside is None else inside[1]
        # The largest key counts to the last gap, though no gap contains it.
        following = [gap for gap in fitting if gap[1] > at or gap[0] >= at or at == TOP == gap[1]]
        found = self.set.next_large_enough_gap(key, length, alignment)
        assert found == (following[0] if following else None)
        at = key if inside is None else inside[0]
        preceding = [gap for gap in fitting if gap[0] <= at]
        found = self.set.prev_large_enough_gap(key, length, alignment)
        assert found == (preceding[-1] if preceding else None)

    # --- what always holds -----------------------------------------------------------------------

    @invariant()
    def the_sets_are_equal(self) -> None:
        assert self.set.verify() is None
        assert self.set.segments() == self.naive.segments
        assert self.set.gaps() == self.naive.gaps()  # M1: n + 1 of them
        assert len(self.set) == len(self.naive.segments)
        assert self.set.span() == sum(end - start for start, end, _ in self.naive.segments)


@pytest.mark.slow
@pytest.mark.timeout(0 if settings().max_examples > 1000 else 300)
def test_m1_to_m7_the_set_does_what_a_list_does() -> None:
    run_state_machine_as_test(SegmentSetMachine, settings=settings())


# --- examples for the rows -----------------------------------------------------------------------


def filled(*segments: Segment) -> SegmentSet:
    made = SegmentSet()
    for segment in segments:
        made.insert(*segment, merge=False)
    return made


def test_m1_n_segments_have_n_plus_1_gaps_empty_ones_included() -> None:
    assert SegmentSet().gaps() == [(0, TOP)]
    touching = filled((0, 10, 1), (10, 20, 2), (30, TOP, 3))
    assert touching.gaps() == [(0, 0), (10, 10), (20, 30), (TOP, TOP)]
    assert touching.verify() is None


def test_m2_finders_on_an_empty_set() -> None:
    empty = SegmentSet()
    for key in (0, 1, TOP - 1, TOP):
        assert empty.find(key) is None
        assert empty.lower_bound(key) is None
        assert empty.upper_bound(key) is None
        assert empty.find_gap(key) == (0, TOP)
    assert (len(empty), empty.span()) == (0, 0)


def test_m3_inserting_between_equals_leaves_one_segment() -> None:
    made = filled((0, 10, 1), (20, 30, 1))
    made.insert(10, 20, 1)
    assert made.segments() == [(0, 30, 1)]
    other = filled((0, 10, 1), (20, 30, 2))
    other.insert(10, 20, 2)
    assert other.segments() == [(0, 10, 1), (10, 30, 2)]


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (5, 25), (9, 10), (10, 20), (19, 21), (0, TOP), (5, 5), (7, 3)]
)
def test_m3_overlap_and_malformed_ranges_are_errors_and_change_nothing(
    start: int, end: int
) -> None:
    made = filled((0, 10, 1), (15, 20, 1))
    before = made.segments()
    with pytest.raises(RangeError):
        made.insert(start, end, 1)
    assert made.segments() == before


def test_m4_removing_splits_at_the_edges() -> None:
    made = filled((0, 100, 7))
    made.remove(40, 60)
    assert made.segments() == [(0, 40, 7), (60, 100, 7)]
    made.remove(0, TOP)
    assert (made.segments(), made.gaps()) == ([], [(0, TOP)])


def test_m5_mutating_merges_with_the_segment_after() -> None:
    made = filled((0, 10, 1), (10, 20, 2))
    made.add(0, 10, 1)
    assert made.segments() == [(0, 20, 2)]
    made.add(5, 15, 1)
    assert made.segments() == [(0, 5, 2), (5, 15, 3), (15, 20, 2)]
    made.add(5, 15, -1)
    assert made.segments() == [(0, 20, 2)]


def test_m6_misaligned_gaps_are_passed_over() -> None:
    """Each gap is long enough, and only the last has an aligned start with room."""
    made = SegmentSet()
    count = 3000
    for i in range(count):
        made.insert(i * 2 * HUGE, i * 2 * HUGE + PAGE, 1, False)
        made.insert((i * 2 + 1) * HUGE + PAGE, (i * 2 + 1) * HUGE + 2 * PAGE, 1, False)
        made.insert((i * 2 + 2) * HUGE - PAGE, (i * 2 + 2) * HUGE, 1, False)
    end = count * 2 * HUGE
    assert made.first_large_enough_gap(HUGE, HUGE) == (end, TOP)
    assert made.first_large_enough_gap(HUGE, 1) == (PAGE, HUGE + PAGE)
    made.remove(HUGE * 1001, HUGE * 1002)
    found = made.first_large_enough_gap(HUGE, HUGE)
    assert found is not None
    assert found[0] <= HUGE * 1001 < HUGE * 1002 <= found[1]
    assert made.last_large_enough_gap(HUGE, HUGE) == (end, TOP)
    assert made.prev_large_enough_gap(end - 1, HUGE, HUGE) == found
    assert made.next_large_enough_gap(0, HUGE, HUGE) == found
    assert made.verify() is None


@pytest.mark.parametrize(("length", "alignment"), [(0, 1), (1, 0), (1, 3), (1, 2**63 + 1)])
def test_m6_requests_that_make_no_sense_are_errors(length: int, alignment: int) -> None:
    made = filled((0, 10, 1))
    for search in (made.first_large_enough_gap, made.last_large_enough_gap):
        with pytest.raises(RangeError):
            search(length, alignment)
    for search_at in (made.next_large_enough_gap, made.prev_large_enough_gap):
        with pytest.raises(RangeError):
            search_at(0, length, alignment)


def test_m7_the_ordered_list_makes_the_same_set_again() -> None:
    made = SegmentSet()
    order = random.Random(7)
    starts = list(range(0, 30_000, 10))
    order.shuffle(starts)
    for start in starts:
        made.insert(start, start + order.randint(1, 10), start % 3, False)
    listed = made.segments()
    assert listed == sorted(listed)
    again = filled(*listed)
    assert again.segments() == listed
    assert again.gaps() == made.gaps()
    assert again.verify() is None


def test_clear_gives_the_nodes_back() -> None:
    made = filled(*((i * 2, i * 2 + 1, i) for i in range(10_000)))
    full = made.memory_bytes()
    made.clear()
    assert made.memory_bytes() < full // 20
    assert made.verify() is None
