"""What the other processes of benchmarks/crowded.py do. Times are of each op, in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pgalloc import PAGE_SIZE
from pgalloc.sharing import transport

_kept: list[Any] = []


def _times(count: int, act: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        act()
        times.append(time.perf_counter() - begin)
    return times


def requests(pages: Any, count: int) -> list[float]:
    """Ask what the pages of the file are used for."""
    return _times(count, pages.file.usage)


def pairs(pages: Any, count: int) -> list[float]:
    """Allocate a page and let go of it."""
    return _times(count, lambda: pages.file.allocate(PAGE_SIZE).release())


def first_byte(pages: Any) -> int:
    """Read it."""
    return pages.view()[0]  # type: ignore[no-any-return]


def packets(handed: Any, count: int) -> list[float]:
    """Send a packet over a socket, and have it back."""
    import socket

    with socket.socket(fileno=handed.detach()) as line:
        return _times(count, lambda: (line.send(b"x" * 32), line.recv(64)))


def hold(pages: Any, unpinned: int, offers: int) -> None:
    """So many ranges that are unpinned, and so many offers."""
    for _ in range(unpinned):
        handle = pages.file.allocate(PAGE_SIZE)
        handle.unpin()
        _kept.append(handle)
    _kept.append(pages)
    for _ in range(offers):
        transport.offer(pages)
