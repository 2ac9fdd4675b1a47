"""A progress bar on standard error; nothing at all where that is not a terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


class BarProgress:
    """One bar, used for one step after the other."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description:12}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TimeElapsedColumn(),
        )
        self._bar = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        )
        self._task: TaskID = self._bar.add_task("starting", total=None)

    def begin(self, step: str, total: int) -> None:
        """Starts the bar again, at 0 of ``total`` bytes."""
        self._bar.reset(self._task, total=total, description=step)

    def advance(self, nbytes: int) -> None:
        """Moves it; may come from any thread."""
        self._bar.advance(self._task, nbytes)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
