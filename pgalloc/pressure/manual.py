"""Pressure by hand, for tests: signals for a Monitor.

The guard knows nothing of them; :class:`pgalloc.testing.ManualPressure` is what makes it discard.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable
from typing import Any

from pgalloc.errors import ClosedError, ForkedError
from pgalloc.pressure.descriptors import is_intact, open_into
from pgalloc.pressure.signals import Level, PressureSource, checked_level
from pgalloc.unpatched import rlock


class ManualSource(PressureSource):
    """A source that signals when it is told to: give it to a Monitor in place of the real ones.

        source = ManualSource()
        with Monitor(sources=[source]) as monitor:
            monitor.subscribe(cache.shrink)
            source.signal("critical")

    Thread safety: ``signal`` may be called from any thread, also from a callback.

    Invariant: every signal is one event, and they come in the order they were given in. Real
    sources may merge theirs.
    """

    kind = "manual"

    def __init__(self, name: str = "manual") -> None:
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, not {type(name).__name__}")
        self.name = name
        self._pid = os.getpid()
        self._lock = rlock()  # signal handlers may call it, too
        self._levels: collections.deque[Level] = collections.deque()
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE  # one read for each signal
        open_into(self, "fd", os.eventfd, 0, flags)

    def signal(self, level: Level = "low") -> None:
        """Makes one event of that level. Raises ClosedError, and ForkedError in a child."""
        level = checked_level(level)
        self._check_process()
        with self._lock:
            self._levels.append(level)
            self._ask(os.eventfd_write, 1)

    def take(self, revents: int) -> bool:
        """Takes the oldest signal."""
        self._check_process()
        with self._lock:
            try:
                self._ask(os.eventfd_read)
            except BlockingIOError:
                return False
            if not self._levels:  # a signal handler has interrupted signal()
                return False
            self.level = self._levels.popleft()
            return True

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedError("this ManualSource belongs to the parent process")

    def _ask(self, call: Callable[..., Any], *arguments: int) -> None:
        """REQUIRES: the lock; but a signal handler may close this meanwhile."""
        if not is_intact(self, "fd"):
            raise ClosedError("the descriptor of the ManualSource was closed from outside")
        try:
            call(self.fd, *arguments)
        except (OSError, ValueError):
            if self.fd < 0:
                raise ClosedError("the ManualSource is closed") from None
            raise

    def close(self) -> None:
        """Closes the descriptor; harmless when repeated."""
        if os.getpid() != self._pid:
            self._lock = rlock()  # another thread of the parent may hold the old one
        with self._lock:
            super().close()
