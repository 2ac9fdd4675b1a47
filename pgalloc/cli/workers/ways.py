"""The ways in which ``pgalloc demo workers`` gets a list of bytes to other processes.

A way is a context manager for the process that loads the data. It gives a parcel: an argument for
``Process``, the same for every worker. There, ``open()`` gives the contents. To add a way,
write a parcel, and list it in WAYS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.shared_memory import SharedMemory
from typing import Protocol

import pgalloc
from pgalloc.cli.workers.data import DataSet
from pgalloc.cli.workers.procfs import SHM

NOTHING = "nothing"
PLAIN = "plain"
SHARED_MEMORY = "shared_memory"
PGALLOC = "pgalloc"


class Parcel(Protocol):
    """What multiprocessing carries to a worker."""

    def open(self) -> Sequence[bytes | memoryview]:
        """The contents, valid as long as the parcel is held."""


class _Nothing:
    """No contents at all: what the processes themselves cost."""

    def open(self) -> Sequence[bytes]:
        return ()


class _Plain:
    """Pickled, sent through a pipe and unpickled, once for each worker."""

    def __init__(self, contents: Iterable[bytes]) -> None:
        self._contents = list(contents)

    def open(self) -> Sequence[bytes]:
        return self._contents


class _Segment:
    """The name of a segment, and where in it each of the contents lies."""

    def __init__(self, name: str, sizes: Sequence[int]) -> None:
        self._name = name
        self._sizes = sizes
        self._memory: SharedMemory | None = None

    def open(self) -> Sequence[memoryview]:
        self._memory = SharedMemory(self._name)
        return list(_slices(self._memory, self._sizes))


class _Pages:
    """A list in pages that this process counts: it is sent by token."""

    def __init__(self, contents: pgalloc.SharedList) -> None:
        self._contents = contents

    def open(self) -> Sequence[memoryview]:
        return self._contents


@contextmanager
def _nothing(data: DataSet, name: str) -> Iterator[Parcel]:
    yield _Nothing()


@contextmanager
def _plain(data: DataSet, name: str) -> Iterator[Parcel]:
    yield _Plain(data.contents())


@contextmanager
def _shared_memory(data: DataSet, name: str) -> Iterator[Parcel]:
    size = max(1, data.nbytes)  # there are no empty ones
    memory = SharedMemory(name, create=True, size=size)
    try:
        # Where /dev/shm is too small, this raises; writing would end the process with SIGBUS.
        with open(SHM / name, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        for place, content in zip(_slices(memory, data.sizes), data.contents(), strict=True):
            place[:] = content
            place.release()
        yield _Segment(name, data.sizes)
    finally:
        memory.close()
        memory.unlink()


@contextmanager
def _pgalloc(data: DataSet, name: str) -> Iterator[Parcel]:
    yield _Pages(pgalloc.SharedList(data.contents()))


def _slices(memory: SharedMemory, sizes: Iterable[int]) -> Iterator[memoryview]:
    buffer = memory.buf
    assert buffer is not None, "it is open"
    start = 0
    for size in sizes:
        yield buffer[start : start + size]
        start += size


Way = Callable[[DataSet, str], AbstractContextManager[Parcel]]
"""Called with the data, and with a name that is not in use, for a way that needs one."""

WAYS: dict[str, Way] = {
    NOTHING: _nothing,
    PLAIN: _plain,
    SHARED_MEMORY: _shared_memory,
    PGALLOC: _pgalloc,
}
"""In the order in which they are shown; the first one is what the others are measured against."""
