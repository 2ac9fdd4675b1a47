"""Pressure by hand, for tests: signals for a Monitor.

The guard knows nothing of them; :class:`pgalloc.testing.ManualPressure` is what makes it discard.
"""

from __future__ import annotations

import collections
import os
import threading

from pgalloc.pressure.signals import Level, PressureSource, checked_level


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
        self._lock = threading.Lock()
        self._levels: collections.deque[Level] = collections.deque()
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE  # one read for each signal
        self.fd = os.eventfd(0, flags)

    def signal(self, level: Level = "low") -> None:
        """Makes one event of that level. Raises ValueError once closed."""
        level = checked_level(level)
        with self._lock:
            if self.fd < 0:
                raise ValueError("signal of a closed source")
            self._levels.append(level)
            os.eventfd_write(self.fd, 1)

    def take(self, revents: int) -> bool:
        """Takes the oldest signal."""
        with self._lock:
            try:
                os.eventfd_read(self.fd)
            except BlockingIOError:
                return False
            self.level = self._levels.popleft()
            return True

    def close(self) -> None:
        """Closes the descriptor; harmless when repeated."""
        if os.getpid() != self._pid:
            self._lock = threading.Lock()  # another thread of the parent may hold the old one
        with self._lock:
            super().close()
