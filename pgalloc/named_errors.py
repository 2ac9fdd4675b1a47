"""Errors that say which file they are about, and which operation of pgalloc failed."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from pgalloc.errors import SnapshotError
from pgalloc.raised import is_ours


class About:
    """A block whose errors concern one file: those that pgalloc raises in it are told its name.

    It becomes the ``filename`` of an OSError, whose text begins with the operation; the text of a
    SnapshotError begins with it. What callbacks and signal handlers raise stays as it is.

    Thread safety: any thread, any number of times.
    """

    def __init__(self, operation: str, name: Any) -> None:
        self.name = name
        self._operation = operation

    def __enter__(self) -> About:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, SnapshotError):
            if self.name is not None and is_ours(error):
                error.args = (f"{self.name!r}: {error}",)
        elif isinstance(error, OSError) and error.errno is not None and is_ours(error):
            error.strerror = f"{self._operation}: {error.strerror}"
            error.args = (error.errno, error.strerror)  # what is pickled
            if self.name is not None:
                error.filename = self.name


def name_of(file: Any) -> Any:
    """What errors call a file object: its own name (a path or a descriptor), or what it is."""
    name = getattr(file, "name", None)
    if isinstance(name, (str, bytes, int)) and not isinstance(name, bool):
        return name
    return f"<{type(file).__name__}>"
