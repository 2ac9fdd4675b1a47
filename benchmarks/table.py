"""The table of a run."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from benchmarks import text
from benchmarks.judge import Line

_VERDICTS = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}


def table(lines: Sequence[Line]) -> Table:
    """A section for each workload: pgalloc, the limit, the peers."""
    result = Table(
        "workload", "implementation", title="pgalloc, the limits of this machine, and its peers"
    )
    for column in ("figure", "goal", "", "x limit", "x pgalloc", "Go 2024", "Go 2026"):
        result.add_column(column, justify="right", no_wrap=True)
    for number, line in enumerate(lines):
        is_first = number == 0 or lines[number - 1].workload is not line.workload
        if is_first and number > 0:
            result.add_section()
        result.add_row(*_cells(line, is_first), style=None if line.is_ours else "dim")
    return result


def _cells(line: Line, is_first: bool) -> list[str]:
    workload = line.workload
    return [
        workload.title if is_first else "",
        line.implementation,
        text.figure(line.figure, workload.unit),
        "" if line.goal is None else text.figure(line.goal, workload.unit),
        _VERDICTS[line.is_met],
        text.ratio(line.to_limit),
        text.ratio(line.to_ours),
        text.span(workload.go_2024, workload.unit) if is_first else "",
        text.span(workload.go_2026, workload.unit) if is_first else "",
    ]
