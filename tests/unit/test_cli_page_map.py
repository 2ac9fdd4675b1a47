"""The page map: runs, cells and the pictures made of them."""

from __future__ import annotations

from pgalloc import MemoryKind, Segment
from pgalloc.cli.demo.html_map import CSS_CLASS, render_map, row_bytes
from pgalloc.cli.demo.html_style import STYLE
from pgalloc.cli.demo.page_map import PageMap, PageState, Run

PAGE = 4096
MIB = 1 << 20
C, U, W, F = PageState.COMMITTED, PageState.UNCOMMITTED, PageState.WASTE, PageState.FREE


def page_map() -> PageMap:
    """[committed 0-2][free 2-3][waste 3-4][uncommitted 4-8][committed 8-9] in pages."""
    return PageMap.of(
        [
            Segment(0, PAGE, MemoryKind.PAGE_CACHE, PAGE, 1, 0),
            Segment(PAGE, 2 * PAGE, MemoryKind.PAGE_CACHE, PAGE, 7, 0),
            Segment(3 * PAGE, 4 * PAGE, MemoryKind.SYSTEM, PAGE, 0, 0),
            Segment(4 * PAGE, 8 * PAGE, MemoryKind.ANONYMOUS, 0, 1, 0),
            Segment(8 * PAGE, 9 * PAGE, MemoryKind.ANONYMOUS, PAGE, 1, 0),
        ],
        file_size=MIB,
    )


def test_runs_cover_everything_and_join_equal_neighbours() -> None:
    runs = page_map().runs
    assert runs[0] == Run(0, 2 * PAGE, C, MemoryKind.PAGE_CACHE)
    assert [(run.state, run.nbytes // PAGE) for run in runs] == [
        (C, 2),
        (F, 1),
        (W, 1),
        (U, 4),
        (C, 1),
    ]
    assert page_map().extent == 9 * PAGE
    assert sum(page_map().bytes_by_state().values()) == 9 * PAGE


def test_huge_pages_and_their_free_parts() -> None:
    huge = 512 * PAGE
    pages = PageMap.of(
        [
            Segment(0, 2 * huge, MemoryKind.ANONYMOUS, 2 * huge, 1, 0, True, 2 * huge),
            Segment(2 * huge, 4 * huge, MemoryKind.PAGE_CACHE, 2 * huge, 1, 0, True, huge),
            Segment(4 * huge, 5 * huge, MemoryKind.SYSTEM, 0, 0, 0, True, 0),
            Segment(5 * huge, 6 * huge, MemoryKind.SYSTEM, huge, 0, 0, True, 0),
        ],
        file_size=8 * huge,
    )
    huge_state, part = PageState.HUGE, PageState.PART
    assert [(run.state, run.nbytes // huge) for run in pages.runs] == [
        (huge_state, 2),
        (huge_state, 1),
        (C, 1),
        (part, 1),
        (W, 1),
    ]
    totals = pages.bytes_by_state()
    assert (totals[huge_state], totals[part]) == (3 * huge, huge)
    picture = render_map(pages, 512 * PAGE, rows=6, label="pages")
    assert 'class="huge"' in picture
    assert 'class="part"' in picture
    assert "used, in huge pages: 2 MiB" in picture
    for state in PageState:
        assert f".{CSS_CLASS[state]} {{" in STYLE


def test_gap_before_the_first_segment_and_no_segment_at_all() -> None:
    late = PageMap.of([Segment(5 * PAGE, 6 * PAGE, MemoryKind.TMPFS, 0, 1, 0)], MIB)
    assert late.runs[0] == Run(0, 5 * PAGE, PageState.FREE)
    empty = PageMap.of([], MIB)
    assert (empty.runs, empty.extent, empty.cells(PAGE)) == ((), 0, [])


def test_cells_show_what_prevails() -> None:
    assert page_map().cells(PAGE)[:4] == [C, C, F, W]
    assert page_map().cells(4 * PAGE) == [C, U, C]
    assert page_map().cells(16 * PAGE) == [U]


def test_slices_cut_at_every_multiple() -> None:
    pieces = page_map().slices(3 * PAGE)
    assert [sum(run.nbytes for run in piece) // PAGE for piece in pieces] == [3, 3, 3]
    assert len({(run.start // (3 * PAGE)) for piece in pieces for run in piece}) == 3


def test_rows_of_the_picture_fit_a_screen() -> None:
    for extent in (0, 1, MIB, 3 << 30, 1 << 43):
        width = row_bytes(PageMap((), extent, extent))
        assert width & (width - 1) == 0
        assert extent <= 48 * width


def test_the_picture_is_complete_and_small() -> None:
    picture = render_map(page_map(), 512 * PAGE, rows=2, label='a "label"')
    assert picture.count("<rect") == 2
    assert 'class="waste"' in picture
    assert 'aria-label="a &quot;label&quot;"' in picture
    assert "used, committed: 12 KiB" in picture
    assert len(picture) < 4000
