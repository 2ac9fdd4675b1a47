"""A table that is kept up to date on a terminal, and printed at the end everywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from typing import Self


class LiveTable:
    """Shows ``table()`` for as long as it is open."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None

    @property
    def looks_by_itself(self) -> bool:
        """Whether the table is on the screen, and drawn again some times a second."""
        return self._live is not None

    def table(self) -> Table:
        """The table as it is now."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(get_renderable=self.table, console=self.console)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self.console.print(self.table())
