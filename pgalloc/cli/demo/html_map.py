"""A page map as SVG: one row per stretch of the file, one path per state, a tooltip per row."""

from __future__ import annotations

import html
from itertools import groupby

import pgalloc
from pgalloc.cli.demo.page_map import PageMap, PageState, Run
from pgalloc.cli.units import format_bytes, format_offset

CSS_CLASS = {
    PageState.HUGE: "huge",
    PageState.COMMITTED: "committed",
    PageState.UNCOMMITTED: "uncommitted",
    PageState.WASTE: "waste",
    PageState.PART: "part",
    PageState.FREE: "free",
}

_ROWS_MAX = 48
_CELLS_PER_ROW = 512
_LABEL_WIDTH = 72
_ROW_HEIGHT = 11
_ROW_PITCH = 14
_WIDTH = _LABEL_WIDTH + 2 * _CELLS_PER_ROW


def row_bytes(page_map: PageMap) -> int:
    """Bytes per row: a power of two of huge pages, so that the rows fit one screen."""
    width = _CELLS_PER_ROW * pgalloc.PAGE_SIZE
    while width * _ROWS_MAX < page_map.extent:
        width *= 2
    return width


def render_map(page_map: PageMap, width: int, rows: int, label: str) -> str:
    """The picture; ``width`` bytes per row and the number of rows make several comparable."""
    paths: dict[PageState, list[str]] = {state: [] for state in PageState}
    texts, hits = [], []
    cells = page_map.cells(width // _CELLS_PER_ROW)
    slices = page_map.slices(width)
    for row in range(rows):
        y = row * _ROW_PITCH
        line = cells[row * _CELLS_PER_ROW : (row + 1) * _CELLS_PER_ROW]
        line += [PageState.FREE] * (_CELLS_PER_ROW - len(line))
        x = _LABEL_WIDTH
        for state, group in groupby(line):
            length = 2 * len(list(group))
            paths[state].append(f"M{x} {y}h{length}v{_ROW_HEIGHT}h-{length}z")
            x += length
        start = format_offset(row * width)
        texts.append(f'<text x="{_LABEL_WIDTH - 8}" y="{y + _ROW_HEIGHT - 2}">{start}</text>')
        hits.append(
            f'<rect class="hit" x="{_LABEL_WIDTH}" y="{y}" width="{2 * _CELLS_PER_ROW}" '
            f'height="{_ROW_HEIGHT}"><title>{_row_title(page_map, slices, row, width)}'
            "</title></rect>"
        )
    drawn = "".join(
        f'<path class="{CSS_CLASS[state]}" d="{"".join(d)}"/>' for state, d in paths.items() if d
    )
    height = max(1, rows) * _ROW_PITCH
    return (
        f'<svg class="map" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{html.escape(label)}">{drawn}{"".join(texts)}{"".join(hits)}</svg>'
    )


def _row_title(page_map: PageMap, slices: list[list[Run]], row: int, width: int) -> str:
    totals = dict.fromkeys(PageState, 0)
    for run in slices[row] if row < len(slices) else []:
        totals[run.state] += run.nbytes
    totals[PageState.FREE] = width - sum(n for s, n in totals.items() if s is not PageState.FREE)
    amounts = ", ".join(f"{s.value}: {format_bytes(n)}" for s, n in totals.items() if n)
    return html.escape(
        f"{format_offset(row * width)} to {format_offset((row + 1) * width)}: {amounts}"
    )
