"""The MemoryFiles of this process, by the name that peers know them by."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, TypeVar

from pgalloc.errors import ClosedError

if TYPE_CHECKING:
    from pgalloc.memory_file import MemoryFile

_T = TypeVar("_T")

_files: weakref.WeakValueDictionary[int, MemoryFile] = weakref.WeakValueDictionary()


def add(file: MemoryFile) -> None:
    """A file that may be shared from here on."""
    _files[file._id] = file


def find(name: int) -> MemoryFile:
    """The file of a name. Raises ClosedError if it is gone."""
    file = _files.get(name)
    if file is None or file.closed:
        raise ClosedError("the owner has closed the MemoryFile")
    return file


def all_files() -> list[MemoryFile]:
    """All MemoryFiles of this process that are alive."""
    return alive(_files)


def alive(table: weakref.WeakValueDictionary[int, _T]) -> list[_T]:
    """Its values, whatever other threads and signal handlers put there meanwhile."""
    return [value for ref in table.valuerefs() if (value := ref()) is not None]
