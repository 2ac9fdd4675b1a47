"""``pgalloc top`` on a terminal: one table for each process, its limit above it."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pgalloc.cli.top.model import ProcessView
from pgalloc.cli.units import format_bytes, format_count, format_path

_BAR_CELLS = 20


def render_views(views: Sequence[ProcessView]) -> RenderableType:
    """All processes, one below the other."""
    return Group(*(part for view in views for part in _render(view)))


def _render(view: ProcessView) -> list[RenderableType]:
    pressure = view.pressure
    head = Text.assemble(
        (f"process {view.pid}", "bold"),
        f" {format_path(view.name)}: {format_count(len(view.files), 'file')}, ",
        (format_bytes(view.usage), "bold"),
        " in use",
    )
    if view.huge:
        head.append(f", {format_bytes(view.huge)} of it in huge pages")
    lines: list[RenderableType] = [head]
    if pressure.cgroup_path is not None:
        lines.append(Text(f"  cgroup {format_path(pressure.cgroup_path)}", style="dim"))
    if pressure.limit is None:
        lines.append(Text(f"  no limit, {format_bytes(pressure.headroom)} of the machine left"))
    else:
        share = min(1.0, pressure.usage / pressure.limit) if pressure.limit else 1.0
        lines.append(
            Text.assemble(
                f"  {format_bytes(pressure.usage)} of {format_bytes(pressure.limit)} ",
                _bar(share),
                f" headroom {format_bytes(pressure.headroom)}",
            )
        )
    lines.append(_table(view))
    return lines


def _bar(share: float) -> tuple[str, str]:
    """ASCII, so that every terminal and log shows it."""
    cells = round(share * _BAR_CELLS)
    style = "red" if share > 0.95 else "yellow" if share > 0.8 else "green"
    return f"[{'#' * cells}{'.' * (_BAR_CELLS - cells)}]", style


def _table(view: ProcessView) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1))
    table.add_column("fd", overflow="fold", max_width=16)
    for title in ("inode", "usage", "huge", "size", "share"):
        table.add_column(title, justify="right", no_wrap=True)
    for file in view.files:
        table.add_row(
            ",".join(map(str, file.descriptors)),
            str(file.inode),
            format_bytes(file.usage),
            "-" if file.huge is None else format_bytes(file.huge),
            format_bytes(file.size),
            f"{file.usage / view.usage:.0%}" if view.usage else "-",
        )
    return table
