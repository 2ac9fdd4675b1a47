"""``pgalloc demo workers`` on a terminal: all ways in one live table; elsewhere plain lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgalloc.cli.live_table import LiveTable
from pgalloc.cli.units import format_bytes, format_seconds
from pgalloc.cli.workers.crew import Crew, State
from pgalloc.cli.workers.verdict import cost_of
from pgalloc.cli.workers.ways import NOTHING, PGALLOC, PLAIN, SHARED_MEMORY

_LABELS = {
    NOTHING: "no data",
    PLAIN: "list of bytes",
    SHARED_MEMORY: "shared_memory",
    PGALLOC: "pgalloc",
}
_STYLES = {
    State.WAITING: "dim",
    State.RUNNING: "bold",
    State.MEASURED: "bold",
    State.KILLED: "bold",
    State.FAILED: "bold red",
    State.LATE: "bold red",
}
_WAS_MEASURED = (State.MEASURED, State.KILLED)
_NOT_YET = ""


class Screen(LiveTable):
    """Shows all crews for as long as it is open; ``update`` may be called at any rate."""

    def __init__(self, console: Console, crews: Sequence[Crew], nbytes: int) -> None:
        super().__init__(console)
        self._crews = crews
        self._nbytes = nbytes
        self._shown = [State.WAITING for _ in crews]

    def update(self) -> None:
        """Prints what has changed, unless the table on the screen shows it anyway."""
        if self.looks_by_itself:
            return
        for crew, shown in zip(self._crews, self._shown, strict=True):
            if crew.state is not shown:
                text = f"{_LABELS[crew.way]}: {crew.state.value}"
                if crew.state is State.MEASURED:
                    text += f" after {format_seconds(crew.seconds)}"
                self.console.print(Text(text), soft_wrap=True)
        self._shown = [crew.state for crew in self._crews]

    def table(self) -> Table:
        """All crews as they are now, a column each."""
        table = Table(box=box.SIMPLE, padding=(0, 1))
        table.add_column("", no_wrap=True)
        for crew in self._crews:
            table.add_column(_LABELS[crew.way], justify="right", no_wrap=True)
        table.add_row("", *map(_state, self._crews))
        self._rows(table, _WAS_MEASURED, {
            "all workers had it": lambda crew: format_seconds(crew.had_s),
            "and had checked it": lambda crew: format_seconds(crew.checked_s),
            "digests checked": lambda crew: f"{crew.digests:,}",
            "wrong digests": lambda crew: f"{crew.wrong:,}",
            "memory of the owner": lambda crew: format_bytes(crew.owner_bytes),
            "of the workers": lambda crew: format_bytes(crew.workers_bytes),
            "for the data": lambda crew: format_bytes(cost_of(crew, self._crews)),
            "x one copy": self._copies,
        })  # fmt: skip
        table.add_section()
        self._rows(table, (State.KILLED,), {
            "left: processes": lambda crew: f"{len(crew.left.processes)}",
            "names in /dev/shm": lambda crew: f"{len(crew.left.names)}",
            "memory": lambda crew: format_bytes(crew.left.nbytes),
        })  # fmt: skip
        return table

    def _rows(
        self, table: Table, states: Sequence[State], rows: dict[str, Callable[[Crew], str]]
    ) -> None:
        for label, text in rows.items():
            table.add_row(
                label, *(text(crew) if crew.state in states else _NOT_YET for crew in self._crews)
            )

    def _copies(self, crew: Crew) -> str:
        return f"{cost_of(crew, self._crews) / self._nbytes:.2f}" if self._nbytes else _NOT_YET


def _state(crew: Crew) -> Text:
    text = crew.state.value
    if crew.state is State.RUNNING:
        text += f" {crew.seconds:.0f} s"
    return Text(text, _STYLES[crew.state])
