"""Hand memory over to another process, and ask the owner of pages from there.

``hand_over``: contents that lie ready in 1 MiB or 1 GiB go to a process that runs already, through
a ``multiprocessing.Queue``. The clock stops when that process has read the first byte, or one byte
of each page, and has said so. Making the contents does not count. Every time, the other process
maps pages it has not had before, but for those that it gets as a copy.

``round_trip`` and ``peer_pair``: a peer asks the owner. The limit is a packet to another process
and back.
"""

from __future__ import annotations

import mmap
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np

import pgalloc
from benchmarks import in_peer
from benchmarks.measure import GIB, MIB, Case, Sample, seconds_of
from benchmarks.peers import the_peer
from benchmarks.shared import named_block


@dataclass(frozen=True)
class _Size:
    name: str
    nbytes: int
    ops: int


_SIZES = (_Size("1m", MIB, 100), _Size("1g", GIB, 1))

HandOver = Callable[[int, int], None]
"""Called with the number of the op, and the step in which bytes are read."""


@contextmanager
def _pgalloc(size: _Size) -> Iterator[HandOver]:
    with pgalloc.MemoryFile() as file, ExitStack() as stack:
        pages = [stack.enter_context(file.allocate(size.nbytes)) for _ in range(size.ops)]
        for part in pages:
            _fill(part)
        yield lambda op, step: the_peer().ask(in_peer.read_pages, pages[op], step)


@contextmanager
def _pickle(size: _Size) -> Iterator[HandOver]:
    contents = b"\1" * size.nbytes
    yield lambda op, step: the_peer().ask(in_peer.read, contents, step)


@contextmanager
def _shared_memory(size: _Size) -> Iterator[HandOver]:
    with named_block(size.nbytes) as memory:
        _fill(memory.buf)
        yield lambda op, step: the_peer().ask(in_peer.read_segment, memory.name, step)


@contextmanager
def _descriptor(size: _Size) -> Iterator[HandOver]:
    fd = os.memfd_create("benchmark")
    os.ftruncate(fd, size.nbytes)
    with mmap.mmap(fd, size.nbytes) as mapping:
        _fill(mapping)
        yield lambda op, step: the_peer().ask(in_peer.read_descriptor, DupFd(fd), size.nbytes, step)
    os.close(fd)


def _fill(memory: Any) -> None:
    np.frombuffer(memory, np.uint8).fill(1)


_WAYS: dict[str, Callable[[_Size], AbstractContextManager[HandOver]]] = {
    "python": _pgalloc,
    "shared_memory": _shared_memory,
    "DupFd of a memfd": _descriptor,
    "pickle": _pickle,
}


def _hand_over(workload: str, name: str, size: _Size, step: int) -> Sample:
    the_peer()
    with _WAYS[name](size) as hand_over:

        def work() -> None:
            for op in range(size.ops):
                hand_over(op, step)

        return Sample(workload, name, size.ops, seconds_of(work), size.nbytes)


def _hand_over_case(name: str, size: _Size, pages: bool) -> Case:
    workload = f"hand_over_{size.name}{'_pages' if pages else ''}"
    step = pgalloc.PAGE_SIZE if pages else size.nbytes
    return Case(workload, name, lambda: _hand_over(workload, name, size, step))


def _ask(workload: str, function: Callable[[pgalloc.Allocation], float]) -> Sample:
    with pgalloc.MemoryFile() as file, file.allocate(pgalloc.PAGE_SIZE) as pages:
        seconds = the_peer().ask(function, pages)
    return Sample(workload, "python", in_peer.ROUND_TRIPS, seconds)


def _socket(workload: str) -> Sample:
    """A thread of this process answers, as with pgalloc."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def answer() -> None:
        while packet := ours.recv(64):
            ours.send(packet)

    thread = threading.Thread(target=answer)
    thread.start()
    with ours, theirs:
        handed = DupFd(theirs.fileno())
        seconds = the_peer().ask(in_peer.send_packets, handed)
        ours.shutdown(socket.SHUT_RDWR)
        thread.join()
    return Sample(workload, "socket", in_peer.ROUND_TRIPS, seconds)


CASES = [
    *(
        _hand_over_case(name, size, pages)
        for size in _SIZES
        for pages in (False, True)
        for name in _WAYS
        if (name, size.name, pages) != ("pickle", "1g", False)  # takes seconds, as with the pages
    ),
    Case("round_trip", "python", lambda: _ask("round_trip", in_peer.flush)),
    Case("round_trip", "socket", lambda: _socket("round_trip")),
    Case("peer_pair", "python", lambda: _ask("peer_pair", in_peer.allocate)),
    Case("peer_pair", "socket", lambda: _socket("peer_pair")),
]
