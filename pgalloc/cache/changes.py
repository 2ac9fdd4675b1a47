"""Changes of a cache's tables: one at a time, whatever comes in between.

Thread safety: any thread. The lock may be taken again by its owner: a finalizer or a signal handler
that uses the cache may run anywhere, also in the middle of a change.

Invariants:
  1. A change begins with tables that are right, and up to date with what was discarded.
  2. What is asked for in the middle of a change by its own thread is done at its end.
  3. After a change that something cut short (KeyboardInterrupt, no memory) the tables are mended
     before they are used again. An Error of this package comes before anything was changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from pgalloc import _core
from pgalloc.cache.integrity import mend
from pgalloc.cache.store import Store
from pgalloc.errors import ClosedError, Error, ForkedError
from pgalloc.unpatched import rlock

T = TypeVar("T")


class Changes:
    """The lock of a cache, and what is done under it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.closed = False
        self._process = _core.process_generation()
        self.lock = rlock()
        self._busy = self._broken = False
        self._waiting: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    @property
    def under_way(self) -> bool:
        """Whether the caller, who has the lock, is in the middle of a change."""
        return self._busy

    @property
    def forked(self) -> bool:
        """Whether this is a forked child of the process that made it."""
        return bool(self._process != _core.process_generation())

    def make(self, act: Callable[..., T], *arguments: Any, otherwise: T) -> T:
        """``act(*arguments)`` on the tables; ``otherwise`` if that has to wait for its turn."""
        self.check_usable()  # first: in a child that C forked another thread may have the lock
        with self.lock:
            self.check_usable()
            if self._busy:
                self._waiting.append((act, arguments))
                return otherwise
            self._busy = True
            try:
                if self._broken:
                    mend(self._store)
                    self._broken = False
                self._store.tidy()
                result = act(*arguments)
                while self._waiting:
                    later, with_these = self._waiting.popleft()
                    later(*with_these)
                return result
            except Error:
                raise
            except BaseException:
                self._broken = True
                raise
            finally:
                self._busy = False

    def catch_up(self) -> None:
        """Have the tables say what is there now."""
        self.make(_nothing, otherwise=None)

    def check_usable(self) -> None:
        """Raises ForkedError or ClosedError."""
        if self.forked:
            raise ForkedError(
                "this Cache is the parent process's: make one in the forked child, or serve() it "
                "in the parent and Cache.connect() in the child"
            )
        if self.closed or self._store.file.closed:
            raise ClosedError("the Cache is closed")

    def park(self) -> None:
        """For :mod:`pgalloc.fork`: nothing to do, a cache has no thread."""

    def resume(self) -> None:
        """For :mod:`pgalloc.fork`: nothing to do."""

    def reset_in_child(self) -> None:
        """In a forked child, where another thread may have had the lock."""
        self.lock = rlock()
        self._busy = False


def _nothing() -> None:
    pass
