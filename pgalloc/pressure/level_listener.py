"""Calls back when this process's memory cgroup comes under pressure.

The listener watches one level of one group and tells nothing but that it happened; a
:class:`pgalloc.pressure.Monitor` watches everything there is. Both wait in a ``Watcher``, whose
invariants are theirs: the callback runs on one thread, never twice at a time, not after stop().

Thread safety: every method may be called from any thread, ``stop`` from the callback too.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pgalloc.pressure.cgroup import MemoryCgroup, find_memory_cgroup
from pgalloc.pressure.memcg_sources import NoMemoryCgroupError, open_sources
from pgalloc.pressure.signals import Level, checked_level
from pgalloc.pressure.watcher import Signal, Watcher
from pgalloc.uncopyable import Uncopyable

_log = logging.getLogger("pgalloc.pressure")


# Rows N1 and N2.
class PressureLevelListener(Uncopyable):
    """Calls ``callback()`` once per wake-up; several events may coalesce into one wake-up.

    An exception in the callback is logged and stops nothing.
    """

    def __init__(
        self,
        callback: Callable[[], object],
        *,
        level: Level = "low",
        cgroup: MemoryCgroup | None = None,
        proc: str | os.PathLike[str] = "/proc",
        root: str | os.PathLike[str] = "/",
    ) -> None:
        """Registers with the kernel and starts the thread.

        Args:
            callback: called without arguments on a daemon thread.
            level: "low", "medium" or "critical"; that level and the ones above it call back.
            cgroup: the group to watch instead of this process's own.
            proc: where to look for the own group, as in ``find_memory_cgroup``.
            root: likewise.

        Raises:
            TypeError: the callback cannot be called, the group is none.
            ValueError: unknown level.
            NoMemoryCgroupError: there is nothing to register with.
            OSError: the kernel refused. On every error nothing is left open.
        """
        if not callable(callback):
            raise TypeError(f"callback must be callable, not {type(callback).__name__}")
        if cgroup is not None and not isinstance(cgroup, MemoryCgroup):
            raise TypeError(f"cgroup must be a MemoryCgroup, not {type(cgroup).__name__}")
        level = checked_level(level)
        group = cgroup or find_memory_cgroup(proc=proc, root=root)
        if group is None:
            raise NoMemoryCgroupError(errno.ENOENT, "no memory cgroup controller found")
        self._callback = callback
        self._watcher = Watcher(self._call_back)
        try:
            self._watcher.start(lambda: open_sources(group, level))
        except BaseException:
            self._watcher.stop(wait=False)  # a signal handler may raise when it has started
            raise

    @property
    def sources(self) -> tuple[str, ...]:
        """What is being watched, in words; empty once stopped."""
        return self._watcher.names

    def stop(self) -> None:
        """Ends the notification: no callback runs after this returns.

        Waits for a running callback, unless called from it; so the caller must not hold a lock
        that the callback takes. Harmless when repeated. In a forked child the same as
        :meth:`reset_in_child`.
        """
        self._watcher.stop()

    def park(self) -> None:
        """Before a fork: ends the thread (after a running callback) but stays registered.

        Pressure meanwhile is reported after :meth:`resume`. Parking twice needs two resumes. A
        callback that forks cannot end its own thread; there this does nothing.
        """
        self._watcher.park()

    def resume(self) -> None:
        """After a fork, in the parent: starts the thread again unless it was stopped."""
        self._watcher.resume()

    def reset_in_child(self) -> None:
        """After a fork, in the child: lets go of everything, and never calls back.

        The parent's registration is untouched.
        """
        self._watcher.reset_in_child()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _call_back(self, signals: list[Signal]) -> None:
        try:
            self._callback()
        except BaseException:  # nothing above the thread could handle it
            _log.exception("the pressure callback %r failed", self._callback)
