"""The demo's report as one page that needs nothing but itself: no scripts, no fonts, no network."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from html import escape

import pgalloc
from pgalloc.cli.demo.html_map import CSS_CLASS, render_map, row_bytes
from pgalloc.cli.demo.html_style import STYLE
from pgalloc.cli.demo.page_map import PageState
from pgalloc.cli.demo.report import Report, Snapshot
from pgalloc.cli.units import format_bytes, format_count, format_path, format_seconds

_STORY = {
    "loaded": "Every file has pages of its own; the index has room that it never touched.",
    "evicted": "Callbacks let every second file go; the waste is on its way back to the kernel.",
    "reloaded": "What was asked for again came back from disk, into the holes where it fits.",
    "released": "The last reference is gone, and so is the memory.",
}
_LISTED_PATHS = 50


def render_html(report: Report) -> str:
    """The whole page, as text to be written in UTF-8."""
    title = f"pgalloc demo: {format_path(report.path)}"
    style = STYLE.replace("TAB_RULES", _tab_rules(len(report.snapshots)))
    body = "\n".join(
        (
            _head(report),
            _tiles(report),
            _maps(report),
            _memory(report.snapshots),
            _steps(report),
            _left_out(report),
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _head(report: Report) -> str:
    system = os.uname()
    machine = (
        f"Linux {system.release} on {system.machine}, Python {platform.python_version()}, "
        f"{format_bytes(pgalloc.PAGE_SIZE)} pages, {format_count(report.threads, 'thread')}, "
        f"at most {format_bytes(report.limit)}"
    )
    tone = "good" if report.ok else "bad"
    return (
        "<header><h1>Files in off-heap pages, from disk and back to nothing</h1>"
        f'<p class="path">{escape(format_path(report.path))}</p>'
        f'<p class="quiet small">{escape(machine)}</p>'
        f'<p class="verdict {tone}">{escape(report.verdict())}</p></header>'
    )


def _tiles(report: Report) -> str:
    tiles = [
        (f"{report.files:,}", f"files loaded, {format_bytes(report.file_bytes)}"),
        (f"{report.digests_checked:,}", "digests checked through views"),
        (format_bytes(report.evicted_bytes), f"evicted, {report.evicted_files:,} files"),
        (format_bytes(report.reloaded_bytes), f"reloaded, {report.reloaded_files:,} files"),
        (format_bytes(report.image_bytes), f"image, restored in {report.restores} processes"),
        (format_bytes(report.given_back_bytes), "given back to the kernel"),
    ]
    items = (
        f'<li><b>{escape(value)}</b><span class="quiet small">{escape(name)}</span></li>'
        for value, name in tiles
    )
    return f'<ul class="tiles">{"".join(items)}</ul>'


def _maps(report: Report) -> str:
    if not report.snapshots:
        return ""
    biggest = max((s.page_map for s in report.snapshots), key=lambda m: m.extent)
    width = row_bytes(biggest)
    rows = max(1, -(-biggest.extent // width))
    shown = "evicted" if report.snapshot("evicted") else report.snapshots[0].moment
    tabs, figures = [], []
    for number, snapshot in enumerate(report.snapshots):
        checked = " checked" if snapshot.moment == shown else ""
        tabs.append(
            f'<input type="radio" name="moment" id="m{number}"{checked}>'
            f'<label for="m{number}">{escape(snapshot.moment)}</label>'
        )
        picture = render_map(
            snapshot.page_map, width, rows, f"page states, {snapshot.moment}; totals below"
        )
        figures.append(
            f'<figure id="f{number}"><p class="quiet">{_STORY.get(snapshot.moment, "")}</p>'
            f"{picture}{_legend(snapshot)}</figure>"
        )
    return (
        "<section><h2>The file, page by page</h2>"
        f'<p class="quiet small">One row is {format_bytes(width)}; the smallest mark is '
        f"{format_bytes(width // 512)}. Point at a row for its figures.</p>"
        f'<div class="tabs">{"".join(tabs)}{"".join(figures)}</div></section>'
    )


def _tab_rules(count: int) -> str:
    return "\n".join(f".tabs > #m{n}:checked ~ #f{n} {{ display: block; }}" for n in range(count))


def _legend(snapshot: Snapshot) -> str:
    page_map = snapshot.page_map
    totals = page_map.bytes_by_state()
    totals[PageState.FREE] += page_map.file_size - page_map.extent
    items = (
        f'<li><i class="{CSS_CLASS[state]}"></i>{escape(state.value)} '
        f"<b>{format_bytes(nbytes)}</b></li>"
        for state, nbytes in totals.items()
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _memory(snapshots: Sequence[Snapshot]) -> str:
    if not snapshots:
        return ""
    rows = []
    for kind in pgalloc.MemoryKind:
        amounts = [snapshot.committed[kind] for snapshot in snapshots]
        if any(amounts):
            waste = " (waste)" if kind == pgalloc.MemoryKind.SYSTEM else ""
            rows.append(_row(f"{kind.name}{waste}", map(format_bytes, amounts)))
    sums = {
        "committed": [sum(s.committed.values()) for s in snapshots],
        "allocated": [sum(s.allocated.values()) for s in snapshots],
        "the kernel says": [s.kernel for s in snapshots],
    }
    if any(s.huge for s in snapshots):
        sums["in huge pages"] = [s.huge for s in snapshots]
    rows += [_row(name, map(format_bytes, amounts), "sum") for name, amounts in sums.items()]
    return (
        "<section><h2>Memory by kind</h2>"
        '<p class="quiet small">Committed is what the ledger has booked, allocated is what has '
        "references; the kernel's figure is the size of the backing file's blocks.</p>"
        + _table(["", *(s.moment for s in snapshots)], rows)
        + "</section>"
    )


def _steps(report: Report) -> str:
    longest = max((step.seconds for step in report.steps), default=0) or 1
    rows = [
        f'<tr><th scope="row">{escape(step.name)}</th><td class="words quiet">{escape(step.what)}'
        f"</td><td>{step.files:,}</td><td>{format_bytes(step.nbytes)}</td>"
        f"<td>{format_seconds(step.seconds)}</td>"
        f'<td class="bar"><span style="width:{100 * step.seconds / longest:.1f}%"></span></td></tr>'
        for step in report.steps
    ]
    head = ["step", "", "files", "bytes", "time", ""]
    return f"<section><h2>Steps</h2>{_table(head, rows)}</section>"


def _left_out(report: Report) -> str:
    if not report.skipped:
        return ""
    parts = []
    for reason, paths in report.skipped_by_reason().items():
        items = [f'<li class="path">{escape(format_path(path))}</li>' for path in paths]
        if len(items) > _LISTED_PATHS:
            items[_LISTED_PATHS:] = [f"<li>and {len(items) - _LISTED_PATHS:,} more</li>"]
        parts.append(
            f"<details><summary>{len(paths):,} {escape(reason)}</summary>"
            f'<ul class="small">{"".join(items)}</ul></details>'
        )
    return f"<section><h2>Left out</h2>{''.join(parts)}</section>"


def _table(head: Iterable[str], rows: Iterable[str]) -> str:
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(name: str, cells: Iterable[str], css_class: str = "") -> str:
    columns = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr class="{css_class}"><th scope="row">{escape(name)}</th>{columns}</tr>'
