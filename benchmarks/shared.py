"""multiprocessing.shared_memory, as the peers use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory


@contextmanager
def named_block(size: int) -> Iterator[SharedMemory]:
    """A block of shared memory that is gone when the ``with`` block ends."""
    memory = SharedMemory(create=True, size=size)
    try:
        yield memory
    finally:
        discard(memory)


@contextmanager
def shared_block(size: int) -> Iterator[memoryview]:
    """The bytes of a named_block()."""
    with named_block(size) as memory:
        yield buffer_of(memory)


def buffer_of(memory: SharedMemory) -> memoryview:
    """Its bytes."""
    buffer = memory.buf
    if buffer is None:
        raise ValueError("the shared memory is closed")
    return buffer


def discard(memory: SharedMemory) -> None:
    """Unmap and remove it."""
    memory.close()
    memory.unlink()
