"""An evictable user: holdings that may be taken away by a callback at any time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pgalloc import EvictableRange

if TYPE_CHECKING:
    from pgalloc import MemoryFile
    from torture_api.holding import Holding

_FAILS_EVERY = 50


class PlannedError(Exception):
    """What a callback raises now and then: it must stop nothing."""


class Shelf:
    """Each holding has a number of its own. To take it out of the dictionary is to own it."""

    def __init__(self, file: MemoryFile) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._next = 0
        self._holdings: dict[int, Holding] = {}
        self.evicted = 0
        self.findings: list[BaseException] = []

    def put(self, holding: Holding) -> None:
        """Let it be evicted from now on."""
        with self._lock:
            number = self._next
            self._next += 1
            self._holdings[number] = holding
        self._file.mark_evictable(self, EvictableRange(number, number + 1))

    def take(self) -> Holding | None:
        """Take the one that has been there for the longest time."""
        with self._lock:
            number = next(iter(self._holdings), None)
            if number is None:
                return None
            holding = self._holdings.pop(number)
        self._file.mark_unevictable(self, EvictableRange(number, number + 1))
        return holding

    def evict(self, range: EvictableRange) -> None:
        """Called by pgalloc."""
        for number in _numbers(range):
            with self._lock:
                holding = self._holdings.pop(number, None)
            if holding is None:
                continue  # a worker took it back just before
            try:
                holding.check("when it was evicted")
            except BaseException as finding:
                self.findings.append(finding)
            holding.drop()
            self.evicted += 1
            if number % _FAILS_EVERY == 0:
                raise PlannedError


def _numbers(evictable: EvictableRange) -> range:
    return range(evictable.start, evictable.end)
