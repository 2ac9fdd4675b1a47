"""The demo's report in a terminal, or in a pipe: 80 columns are enough, colour adds nothing new."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

import pgalloc
from pgalloc.cli.demo.page_map import PageMap, PageState
from pgalloc.cli.demo.report import Report, Snapshot
from pgalloc.cli.units import format_bytes, format_offset, format_path, format_seconds

_GLYPHS = {
    PageState.HUGE: ("▇", "H", "magenta"),
    PageState.COMMITTED: ("█", "#", "blue"),
    PageState.UNCOMMITTED: ("▒", "+", "cyan"),
    PageState.WASTE: ("▞", "x", "yellow"),
    PageState.PART: ("▁", "_", "bright_black"),
    PageState.FREE: ("·", ".", "bright_black"),
}
_MAP_COLUMNS_MAX = 64
_MAP_ROWS_MAX = 16
_STEP_COLUMNS_MAX = 12
_EXAMPLES = 3


def render_report(console: Console, report: Report) -> None:
    """Prints everything but the verdict."""
    console.print(_steps(report))
    if report.snapshots:
        console.print(_kinds(report.snapshots))
    console.print(_outcome(report))
    snapshot = report.snapshot("evicted")
    if snapshot is not None and snapshot.page_map.extent:
        for line in _map(snapshot, console):
            console.print(line, soft_wrap=True)
        console.print()
    for line in _skipped(report):
        console.print(line, soft_wrap=True)


def render_verdict(console: Console, report: Report) -> None:
    """Prints the last line; a narrow terminal does not break it."""
    verdict = report.verdict("-" if console.options.ascii_only else "—")
    console.print(Text(verdict, style="bold green" if report.ok else "bold red"), soft_wrap=True)


def _table(title: str, *columns: str, text_columns: int = 1) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for number, column in enumerate(columns):
        left = number < text_columns
        table.add_column(column, justify="left" if left else "right", no_wrap=not left)
    return table


def _steps(report: Report) -> RenderableType:
    table = _table("Steps", "step", "what", "files", "bytes", "time", "per s", text_columns=2)
    table.columns[0].max_width = _STEP_COLUMNS_MAX
    for step in report.steps:
        rate = format_bytes(int(step.nbytes / step.seconds)) if step.seconds and step.nbytes else ""
        table.add_row(
            step.name,
            step.what,
            f"{step.files:,}",
            format_bytes(step.nbytes),
            format_seconds(step.seconds),
            rate,
        )
    return table


def _kinds(snapshots: list[Snapshot]) -> RenderableType:
    """Committed bytes by kind at each moment; the sums beside what the kernel says."""
    table = _table("Memory", "", *(snapshot.moment for snapshot in snapshots))
    for kind in pgalloc.MemoryKind:
        amounts = [snapshot.committed[kind] for snapshot in snapshots]
        if any(amounts):
            name = "SYSTEM (waste)" if kind == pgalloc.MemoryKind.SYSTEM else kind.name
            table.add_row(name, *map(format_bytes, amounts))
    table.add_section()
    rows = {
        "committed": [sum(s.committed.values()) for s in snapshots],
        "allocated": [sum(s.allocated.values()) for s in snapshots],
        "kernel says": [s.kernel for s in snapshots],
    }
    if any(s.huge for s in snapshots):
        rows["in huge pages"] = [s.huge for s in snapshots]
    for name, amounts in rows.items():
        table.add_row(name, *map(format_bytes, amounts))
    return table


def _outcome(report: Report) -> RenderableType:
    table = _table("Outcome", "", "files", "bytes")
    rows = [
        ("loaded", report.files, report.file_bytes),
        ("evicted", report.evicted_files, report.evicted_bytes),
        ("reloaded", report.reloaded_files, report.reloaded_bytes),
        ("saved", report.saved_files, report.image_bytes),
    ]
    for name, files, nbytes in rows:
        table.add_row(name, f"{files:,}", format_bytes(nbytes))
    table.add_row("given back to the kernel", "", format_bytes(report.given_back_bytes))
    table.add_row("digests checked", f"{report.digests_checked:,}", "")
    return table


def _map(snapshot: Snapshot, console: Console) -> Iterable[Text]:
    page_map, ascii_only = snapshot.page_map, console.options.ascii_only
    columns = min(_MAP_COLUMNS_MAX, max(16, console.width - 14))
    cell = _cell_bytes(page_map, columns)
    yield Text(f"The file just after eviction; one character is {format_bytes(cell)}", style="bold")
    cells = page_map.cells(cell)
    for row in range(0, len(cells), columns):
        line = Text(f"{format_offset(row * cell):>10}  ")
        for state in cells[row : row + columns]:
            glyph, plain, colour = _GLYPHS[state]
            line.append(plain if ascii_only else glyph, style=colour)
        yield line
    legend = Text(" " * 12)
    for state, nbytes in page_map.bytes_by_state().items():
        glyph, plain, colour = _GLYPHS[state]
        legend.append(plain if ascii_only else glyph, style=colour)
        legend.append(f" {state.value} {format_bytes(nbytes)}")
        yield legend
        legend = Text(" " * 12)
    free_above = page_map.file_size - page_map.extent
    yield Text(f"{'':12}above: {format_bytes(free_above)} of the file, never used", style="dim")


def _cell_bytes(page_map: PageMap, columns: int) -> int:
    """The smallest power of two of pages whose cells fit the screen."""
    cell = pgalloc.PAGE_SIZE
    while cell * columns * _MAP_ROWS_MAX < page_map.extent:
        cell *= 2
    return cell


def _skipped(report: Report) -> Iterable[Text]:
    if report.skipped:
        yield Text(f"Left out: {len(report.skipped):,}", style="bold")
    for reason, paths in report.skipped_by_reason().items():
        yield Text(f"  {len(paths):,} x {reason}")
        for path in paths[:_EXAMPLES]:
            yield Text(f"      {format_path(path)}", style="dim")
        if len(paths) > _EXAMPLES:
            yield Text("      ...", style="dim")
