"""Calls back when this process's memory cgroup comes under pressure. Rows N1 and N2.

Thread safety: every method may be called from any thread, ``stop`` from the callback too.

Invariants:
  1. The callback runs only on the listener's own thread, so never twice at a time.
  2. Descriptors are closed only when no thread waits on them.
  3. From ``park`` to ``resume`` the listener has no thread. A child never takes a lock that it
     inherited, and never reads the descriptors that it shares with its parent.

Lock order: ``_lock`` (start, stop and fork), then ``_fd_lock`` (the descriptors).
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pgalloc.pressure.cgroup import MemoryCgroup, find_memory_cgroup
from pgalloc.pressure.memcg_sources import NoMemoryCgroupError, close_all, open_sources
from pgalloc.pressure.signals import LEVELS, Level, PressureSource

_log = logging.getLogger("pgalloc.pressure")

# How long to wait for the kernel to reap a thread that Python has already joined.
_REAP_TIMEOUT_S = 1.0


class PressureLevelListener:
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
            ValueError: unknown level.
            NoMemoryCgroupError: there is nothing to register with.
            OSError: the kernel refused. On every error nothing is left open.
        """
        if level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {level!r}")
        group = cgroup or find_memory_cgroup(proc=proc, root=root)
        if group is None:
            raise NoMemoryCgroupError(errno.ENOENT, "no memory cgroup controller found")
        self._callback = callback
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._fd_lock = threading.Lock()
        self._stopped = False
        self._parks = 0
        self._pending = False
        self._thread: threading.Thread | None = None
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sources: list[PressureSource] = []
        try:
            self._sources.extend(open_sources(group, level))
            self._start()
        except BaseException:
            self._close()
            raise

    @property
    def sources(self) -> tuple[str, ...]:
        """What is being watched, in words; empty once stopped."""
        return tuple(source.name for source in self._sources)

    def stop(self) -> None:
        """Ends the notification: no callback runs after this returns (row N2).

        Waits for a running callback, unless called from it; so the caller must not hold a lock
        that the callback takes. Harmless when repeated. In a forked child the same as
        :meth:`abandon`.
        """
        if os.getpid() != self._pid:
            self.abandon()
            return
        if self._on_own_thread():
            self._stopped = True
            return
        with self._lock:
            self._stopped = True
            thread = self._thread
            self._wake()
        if thread is not None:
            thread.join()
        self._close()

    def park(self) -> None:
        """Before a fork: ends the thread (after a running callback) but stays registered.

        Pressure meanwhile is reported after :meth:`resume`. Parking twice needs two resumes. A
        callback that forks cannot end its own thread; there this does nothing.
        """
        if self._on_own_thread():
            return
        with self._lock:
            self._parks += 1
            thread = self._thread
            self._wake()
        if thread is not None:
            thread.join()
            _wait_until_reaped(thread)
            with self._lock:
                if self._thread is thread:
                    self._thread = None

    def resume(self) -> None:
        """After a fork, in the parent: starts the thread again unless it was stopped."""
        if self._on_own_thread():
            return
        with self._lock:
            self._parks -= 1
            if self._parks == 0 and not self._stopped:
                self._start()

    def abandon(self) -> None:
        """After a fork, in the child: lets go of what was inherited, and never calls back.

        The parent's registration is untouched.
        """
        self._lock = threading.Lock()  # another thread of the parent may hold the old ones
        self._fd_lock = threading.Lock()
        self._stopped = True
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _on_own_thread(self) -> bool:
        return self._thread is threading.current_thread()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="pgalloc-pressure", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._thread = None
            raise

    def _wake(self) -> None:
        with self._fd_lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        """The thread. In a child that its callback forked it ends without touching anything."""
        poller = select.poll()
        poller.register(self._wake_fd, select.POLLIN)
        by_fd = {source.fd: source for source in self._sources}
        for source in self._sources:
            poller.register(source.fd, source.poll_mask)
        while not self._stopped:
            if self._pending:
                self._pending = False
                self._call_back()
                if os.getpid() != self._pid:
                    return
                continue
            for fd, revents in poller.poll():
                if fd == self._wake_fd:
                    os.eventfd_read(fd)
                    continue
                try:
                    self._pending |= by_fd[fd].take(revents)
                except OSError as error:
                    _log.warning("no more pressure signals from %s: %s", by_fd[fd].name, error)
                    poller.unregister(fd)
            if self._parks:
                return
        self._close()

    def _call_back(self) -> None:
        try:
            self._callback()
        except BaseException:  # nobody above this frame could handle it
            _log.exception("the pressure callback %r failed", self._callback)

    def _close(self) -> None:
        """Closes every descriptor; for when no thread waits on them. Harmless when repeated."""
        with self._fd_lock:
            close_all(self._sources)
            self._sources = []
            if self._wake_fd >= 0:
                os.close(self._wake_fd)
                self._wake_fd = -1


def _wait_until_reaped(thread: threading.Thread) -> None:
    """Waits until the kernel's task is gone too: os.fork() counts tasks, and warns from 3.12 on."""
    task = f"/proc/self/task/{thread.native_id}"
    deadline = time.monotonic() + _REAP_TIMEOUT_S
    while os.path.exists(task) and time.monotonic() < deadline:
        time.sleep(0.0001)
