"""Eight spawned workers look at all pages of the same numpy array of 1 GiB, and keep it.

What counts is the proportional memory of them and of the owner together (a page that N processes
map counts one Nth in each), less what the same processes had before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import pgalloc
from benchmarks import in_peer
from benchmarks.measure import GIB, Case, Sample, seconds_of
from benchmarks.peers import Peer
from benchmarks.shared import buffer_of, named_block
from pgalloc._processes.memory import proportional_bytes

_WORKERS = 8
_ELEMENTS = GIB // np.dtype(np.float64).itemsize


@contextmanager
def _workers() -> Iterator[list[Peer]]:
    workers = [Peer() for _ in range(_WORKERS)]
    try:
        for worker in workers:
            worker.warm_up()
        yield workers
    finally:
        for worker in workers:
            worker.close()


def _together(workers: list[Peer]) -> int:
    return sum(map(proportional_bytes, (os.getpid(), *(worker.pid for worker in workers))))


def _hand_to_all(workers: list[Peer], function: Callable[[Any], None], argument: Any) -> float:
    def work() -> None:
        for worker in workers:
            worker.ask(function, argument)

    return seconds_of(work)


def _pgalloc() -> Sample:
    with _workers() as workers, pgalloc.MemoryFile() as file:
        before = _together(workers)
        array = file.array(_ELEMENTS, np.float64)
        array.fill(1)
        seconds = _hand_to_all(workers, in_peer.keep, array)
        return Sample("workers_memory", "python", GIB, seconds, _together(workers) - before)


def _shared_memory() -> Sample:
    with _workers() as workers:
        before = _together(workers)
        with named_block(GIB) as memory:
            np.frombuffer(buffer_of(memory), np.float64).fill(1)
            seconds = _hand_to_all(workers, in_peer.keep_segment, memory.name)
            used = _together(workers) - before
        return Sample("workers_memory", "shared_memory", GIB, seconds, used)


CASES = [
    Case("workers_memory", "python", _pgalloc),
    Case("workers_memory", "shared_memory", _shared_memory),
]
