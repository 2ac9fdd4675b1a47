"""Rows B4 to B9: where allocations go, as a pure search and on real files."""

from __future__ import annotations

import pytest

import pgalloc
from pgalloc import Direction, FileRange, MemoryFile, OutOfMemoryError, RangeError, testing
from pgalloc.testing import find_available_range as find

PAGE = pgalloc.PAGE_SIZE
HUGE = pgalloc.HUGE_PAGE_SIZE
CHUNK = pgalloc.CHUNK_SIZE
UP, DOWN = Direction.BOTTOM_UP, Direction.TOP_DOWN


@pytest.mark.parametrize(
    ("segments", "length", "alignment", "expected"),
    [
        ([], PAGE, PAGE, 0),
        ([(0, PAGE, 1)], PAGE, PAGE, PAGE),
        ([(PAGE, 2 * PAGE, 1)], PAGE, PAGE, 0),
        ([(0, PAGE, 1), (2 * PAGE, 3 * PAGE, 1)], PAGE, PAGE, PAGE),
        ([(0, PAGE, 1), (2 * PAGE, 3 * PAGE, 1)], 2 * PAGE, PAGE, 3 * PAGE),
        ([(0, PAGE, 1)], HUGE, HUGE, HUGE),
        ([(0, PAGE, 1), (2 * HUGE, 3 * HUGE, 1)], HUGE, HUGE, HUGE),
        # B5: pages at 0 references are not free.
        ([(0, PAGE, 0)], PAGE, PAGE, PAGE),
        # B6: long enough, but no aligned start fits.
        ([(0, PAGE, 1), (PAGE + HUGE, 3 * HUGE, 1)], HUGE, HUGE, 3 * HUGE),
    ],
)
def test_b6_bottom_up(
    segments: list[tuple[int, int, int]], length: int, alignment: int, expected: int
) -> None:
    assert find(segments, CHUNK, length, alignment, UP) == FileRange(expected, expected + length)


def test_b6_an_end_beyond_the_largest_offset_fails() -> None:
    top = 2**63 - PAGE
    assert find([(0, top - PAGE, 1)], 0, PAGE, PAGE, UP) == FileRange(top - PAGE, top)
    assert find([(0, top, 1)], 0, PAGE, PAGE, UP) is None
    assert find([], 0, 2**63, PAGE, UP) is None
    assert find([], 0, 2**64 - PAGE, PAGE, UP) is None


@pytest.mark.parametrize(
    ("segments", "file_size", "length", "alignment", "start"),
    [
        ([], CHUNK, PAGE, PAGE, CHUNK - PAGE),
        ([(CHUNK - PAGE, CHUNK, 1)], CHUNK, PAGE, PAGE, CHUNK - 2 * PAGE),
        ([(CHUNK // 2, CHUNK, 1)], CHUNK, HUGE, HUGE, CHUNK // 2 - HUGE),
        # The highest gap that fits, not the largest.
        (
            [(0, PAGE, 1), (4 * PAGE, 5 * PAGE, 1), (6 * PAGE, CHUNK, 1)],
            CHUNK,
            PAGE,
            PAGE,
            5 * PAGE,
        ),
        (
            [(0, PAGE, 1), (4 * PAGE, 5 * PAGE, 1), (6 * PAGE, CHUNK, 1)],
            CHUNK,
            2 * PAGE,
            PAGE,
            2 * PAGE,
        ),
        # The highest aligned start inside a gap.
        ([(2 * HUGE + PAGE, CHUNK, 1)], CHUNK, HUGE, HUGE, HUGE),
    ],
)
def test_b7_top_down(
    segments: list[tuple[int, int, int]], file_size: int, length: int, alignment: int, start: int
) -> None:
    assert find(segments, file_size, length, alignment, DOWN) == FileRange(start, start + length)


def test_b8_growth_doubles_from_a_chunk() -> None:
    assert find([], 0, PAGE, PAGE, DOWN) == FileRange(CHUNK - PAGE, CHUNK)
    assert find([(0, CHUNK, 1)], CHUNK, PAGE, PAGE, DOWN) == FileRange(2 * CHUNK - PAGE, 2 * CHUNK)
    assert find([(0, CHUNK, 1)], CHUNK, 3 * CHUNK, HUGE, DOWN) == FileRange(CHUNK, 4 * CHUNK)
    # At or above the aligned start of the trailing gap.
    assert find([(0, CHUNK + PAGE, 1)], 2 * CHUNK, CHUNK, HUGE, DOWN) == FileRange(
        3 * CHUNK, 4 * CHUNK
    )


def test_b8_overflow_fails() -> None:
    assert find([(0, 2**62, 1)], 2**62, PAGE, PAGE, DOWN) is None
    assert find([], 0, 2**63, PAGE, DOWN) is None
    assert find([], 0, 2**64 - PAGE, PAGE, DOWN) is None


def test_find_available_range_rejects_impossible_pictures() -> None:
    with pytest.raises(RangeError):
        find([(0, 2 * PAGE, 1), (PAGE, 3 * PAGE, 1)], CHUNK, PAGE, PAGE, UP)
    with pytest.raises(RangeError):
        find([(PAGE, PAGE, 1)], CHUNK, PAGE, PAGE, UP)
    with pytest.raises(RangeError):
        find([], CHUNK, PAGE, 3, UP)
    with pytest.raises(RangeError):
        find([], CHUNK, 0, PAGE, UP)
    for beyond in ([(0, 2**63, 1)], 0), ([], 2**63):
        with pytest.raises(RangeError, match="2\\^63"):
            find(*beyond, PAGE, PAGE, UP)
    assert find([(0, 2**63 - 1, 1)], 2**63 - 1, PAGE, PAGE, UP) is None
    with pytest.raises(ValueError, match=r"direction|valid"):
        find([], CHUNK, PAGE, PAGE, 2)  # type: ignore[arg-type]


def test_b4_alignment(mf: MemoryFile) -> None:
    small = mf.allocate_range(PAGE)
    below = mf.allocate_range(HUGE - PAGE)
    assert below.start == PAGE
    huge = mf.allocate_range(HUGE)
    assert huge.start % HUGE == 0
    odd = mf.allocate_range(HUGE + PAGE)
    assert odd.start % HUGE == 0
    for range_ in (small, below, huge, odd):
        mf.dec_ref(range_)


def test_b5_waste_is_not_allocatable(mf: MemoryFile) -> None:
    with testing.pause_reclaimer(mf):
        first = mf.allocate_range(PAGE)
        mf.dec_ref(first)
        second = mf.allocate_range(PAGE)
        assert not second.overlaps(first)
        assert [s.refs for s in mf.segments()] == [0, 1]
    mf.wait_for_reclaim()
    third = mf.allocate_range(PAGE)
    assert third == first
    mf.dec_ref(second)
    mf.dec_ref(third)


def test_b8_top_down_fills_up_to_the_capacity() -> None:
    with MemoryFile(capacity=3 * CHUNK) as mf:
        first = mf.allocate_range(CHUNK, direction=DOWN)
        assert (first.start, mf.total_size) == (0, CHUNK)
        second = mf.allocate_range(PAGE, direction=DOWN)
        assert (second.end, mf.total_size) == (2 * CHUNK, 2 * CHUNK)
        # Doubling would give 4 chunks; the capacity gives 3, and that is enough.
        third = mf.allocate_range(CHUNK, direction=DOWN)
        assert third == FileRange(2 * CHUNK, 3 * CHUNK)
        assert mf.total_size == 3 * CHUNK
        with pytest.raises(OutOfMemoryError):
            mf.allocate_range(CHUNK, direction=DOWN)
        testing.verify(mf)


def test_b9_no_place_is_out_of_memory_and_changes_nothing() -> None:
    with MemoryFile(capacity=4 * PAGE) as mf:
        kept = [mf.allocate_range(PAGE) for _ in range(4)]
        before = mf.segments()
        for direction in Direction:
            with pytest.raises(OutOfMemoryError):
                mf.allocate_range(PAGE, direction=direction)
        assert mf.segments() == before
        mf.dec_ref(kept[1])
        assert mf.allocate_range(PAGE) == kept[1]  # waits for the reclaimer rather than refuse


def test_b10_growth_by_chunks_and_never_shrinking(mf: MemoryFile) -> None:
    range_ = mf.allocate_range(PAGE)
    assert mf.total_size == CHUNK
    big = mf.allocate_range(CHUNK)
    assert mf.total_size == 2 * CHUNK
    mf.dec_ref(big)
    mf.dec_ref(range_)
    mf.wait_for_reclaim()
    assert mf.total_size == 2 * CHUNK
    with MemoryFile() as other:
        other.allocate_range(PAGE, direction=DOWN)
        assert other.total_size == CHUNK
        other.allocate_range(3 * CHUNK, direction=DOWN)
        assert other.total_size == 4 * CHUNK
