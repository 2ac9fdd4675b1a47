"""What a Peer does with memory that was handed over to it; called there."""

from __future__ import annotations

import mmap
import os
import socket
from itertools import repeat
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

import pgalloc
from benchmarks.measure import seconds_of

ROUND_TRIPS = 5_000

_kept: list[Any] = []


def read(memory: Any, step: int) -> None:
    """Looks at one byte in ``step``."""
    if not np.frombuffer(memory, np.uint8)[::step].all():
        raise RuntimeError("what was handed over is not what was written")


def read_pages(pages: pgalloc.Allocation, step: int) -> None:
    """As read(), and lets go of them."""
    with pages:
        read(pages, step)


def read_segment(name: str, step: int) -> None:
    """As read(), of shared_memory with this name."""
    memory = SharedMemory(name)
    read(memory.buf, step)
    memory.close()


def read_descriptor(descriptor: Any, nbytes: int, step: int) -> None:
    """As read(), of a DupFd."""
    fd = descriptor.detach()
    mapping = mmap.mmap(fd, nbytes)
    os.close(fd)
    read(mapping, step)
    mapping.close()


def keep(array: Any) -> None:
    """Look at a number of each page, and hold it."""
    array[:: pgalloc.PAGE_SIZE // array.itemsize].sum()
    _kept.append(array)


def keep_segment(name: str) -> None:
    """As keep(), of shared_memory with this name."""
    memory = SharedMemory(name)
    _kept.append(memory)
    keep(np.frombuffer(memory.buf, np.float64))  # type: ignore[arg-type]


def flush(pages: pgalloc.Allocation) -> float:
    """Seconds of ROUND_TRIPS to the owner."""
    file = _file_of(pages)

    def work() -> None:
        for _ in repeat(None, ROUND_TRIPS):
            file.flush()

    return seconds_of(work)


def allocate(pages: pgalloc.Allocation) -> float:
    """Seconds of ROUND_TRIPS allocations that are released, until the owner has all back."""
    file = _file_of(pages)

    def work() -> None:
        for _ in repeat(None, ROUND_TRIPS):
            file.allocate(pgalloc.PAGE_SIZE).release()
        file.flush()

    return seconds_of(work)


def send_packets(descriptor: Any) -> float:
    """Seconds of ROUND_TRIPS through a socket whose other end sends back what it gets."""
    with socket.socket(fileno=descriptor.detach()) as connection:

        def work() -> None:
            for _ in repeat(None, ROUND_TRIPS):
                connection.send(b"ping")
                connection.recv(64)

        return seconds_of(work)


def _file_of(pages: pgalloc.Allocation) -> pgalloc.PeerFile:
    file = pages.file
    assert isinstance(file, pgalloc.PeerFile), "it is another process's"
    return file
