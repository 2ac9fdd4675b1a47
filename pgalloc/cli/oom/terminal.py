"""``pgalloc demo oom`` on a terminal: both halves in one live table; elsewhere plain lines."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgalloc.cli.live_table import LiveTable
from pgalloc.cli.oom.half import Half, State
from pgalloc.cli.units import format_bytes, format_seconds

_LINE_PERIOD_S = 1.0
_LABELS = {"dict": "plain dict", "cache": "pgalloc.Cache"}
_STYLES = {
    State.WAITING: "dim",
    State.RUNNING: "bold",
    State.KILLED: "bold red",
    State.FINISHED: "bold green",
    State.FAILED: "bold red",
    State.LATE: "bold red",
}


class Screen(LiveTable):
    """Shows both halves for as long as it is open; ``update`` may be called at any rate."""

    def __init__(self, console: Console, halves: Sequence[Half], limit: int) -> None:
        super().__init__(console)
        self._halves = halves
        self._limit = limit
        self._shown_at = 0.0
        self._shown_states = [State.WAITING for _ in halves]

    def update(self) -> None:
        """Prints what has changed, unless the table on the screen shows it anyway."""
        if self.looks_by_itself:
            return
        now = time.monotonic()
        for half, shown in zip(self._halves, self._shown_states, strict=True):
            late = half.state is State.RUNNING and now > self._shown_at + _LINE_PERIOD_S
            if half.state is not shown or late:
                self.console.print(Text(self._line(half)), soft_wrap=True)
                self._shown_at = now
        self._shown_states = [half.state for half in self._halves]

    def _line(self, half: Half) -> str:
        progress = half.progress
        return (
            f"{_LABELS[half.kind]} {half.state.value}: {format_seconds(half.seconds)}, "
            f"{format_bytes(half.usage)} of {format_bytes(self._limit)} charged, "
            f"{progress.values:,} values of {format_bytes(progress.nbytes)}, "
            f"{progress.hits:,} hits, {progress.discards:,} discards"
        )

    def table(self) -> Table:
        """Both halves as they are now, a column each."""
        table = Table(box=box.SIMPLE, padding=(0, 1))
        table.add_column("", no_wrap=True)
        for half in self._halves:
            table.add_column(_LABELS[half.kind], justify="right", min_width=20)
        limit = format_bytes(self._limit)
        rows: list[tuple[str, list[Text | str]]] = [
            ("", [Text(half.state.value, _STYLES[half.state]) for half in self._halves]),
            ("charged at last", [format_bytes(half.usage) for half in self._halves]),
            ("highest", [format_bytes(half.highest) for half in self._halves]),
            ("limit", [limit for _ in self._halves]),
            ("values", [f"{half.progress.values:,}" for half in self._halves]),
            ("their bytes", [format_bytes(half.progress.nbytes) for half in self._halves]),
            ("hits", [f"{half.progress.hits:,}" for half in self._halves]),
            ("misses", [f"{half.progress.misses:,}" for half in self._halves]),
            ("discards", [f"{half.progress.discards:,}" for half in self._halves]),
            ("wrong digests", [f"{half.progress.wrong:,}" for half in self._halves]),
            ("time", [format_seconds(half.seconds) for half in self._halves]),
        ]
        for name, cells in rows:
            table.add_row(name, *cells)
        return table
