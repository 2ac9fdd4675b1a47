"""One thread that waits on many sources of signals at once, and gets across forks.

Thread safety: every method may be called from any thread, ``stop`` from ``deliver`` too, and from
a finalizer: the lock may be taken again by its owner, and is never held while ``deliver`` runs,
while a thread is waited for, or while the thread polls.

Invariants:
  1. ``deliver`` runs only on the watcher's own thread, so never twice at a time.
  2. Descriptors are closed by the thread itself, or when there is none.
  3. ``_thread`` is None exactly when no thread will touch the sources any more. A thread decides
     to end under the lock, so a resume that comes first keeps it.
  4. From ``park`` to ``resume`` there is no thread, except one whose ``deliver`` takes longer than
     a second. A child never takes a lock of its parent's, and never reads the descriptors that
     it shares with its parent.
  5. The thread holds the watcher and ``deliver``, and nothing else. ``stop`` ends it, and so lets
     go of both.
"""

from __future__ import annotations

import errno
import logging
import os
import select
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pgalloc.pressure.descriptors import close_of, is_intact, open_into
from pgalloc.pressure.memcg_sources import close_all
from pgalloc.pressure.signals import Level, PressureSource
from pgalloc.threads import PARK_TIMEOUT_S, Thread
from pgalloc.unpatched import is_held_here, rlock, unpatched

_log = logging.getLogger("pgalloc.pressure")

# How often the thread looks whether it is to end: a program may have closed what wakes it.
_LOOK_EVERY_MS = 1000


@dataclass(frozen=True, slots=True)
class Signal:
    """One wake-up of one source that was pressure."""

    source: PressureSource
    level: Level


class Watcher:
    """Calls ``deliver`` with the signals of one wake-up, which may stand for many events.

    It owns its sources, the ``given`` ones from now on. A source that fails is dropped, with a
    warning; the others go on.
    """

    def __init__(
        self, deliver: Callable[[list[Signal]], object], given: Iterable[PressureSource] = ()
    ) -> None:
        self._deliver = deliver
        self._given = list(given)
        self._pid = os.getpid()
        self._lock = rlock()
        self._sources: list[PressureSource] = []
        self._signals: list[Signal] = []
        self._thread: Thread | None = None
        self._wake_fd = -1
        self._stopped = False
        self._parks = 0
        self._dropped_sources = 0

    @property
    def names(self) -> tuple[str, ...]:
        """What is being watched, in words; empty before start and once stopped."""
        return tuple(source.name for source in list(self._sources))

    @property
    def dropped_sources(self) -> int:
        """How many sources have failed."""
        return self._dropped_sources

    @property
    def stopped(self) -> bool:
        """Whether stop was called, or this is a forked child."""
        return self._stopped

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller is ``deliver``."""
        thread = self._thread
        return thread is not None and thread.is_current()

    def start(self, open_sources: Callable[[], Iterable[PressureSource]] | None = None) -> bool:
        """Opens sources, or takes the given ones, and starts the thread; harmless when repeated.

        False, with nothing left open, if there are no sources or the watcher was stopped. Raises
        what opening a source or starting a thread raises, with nothing left open either.
        """
        with self._lock:
            if self._stopped:
                return False
            if self._wake_fd >= 0:
                self._start_thread()
                return True
            try:
                for source in self._given if open_sources is None else open_sources():
                    if source.fd >= 0:
                        self._sources.append(source)
                if not self._sources:
                    self._close()
                    return False
                open_into(self, "_wake_fd", os.eventfd, 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._start_thread()
            except BaseException:
                self._close()
                raise
            if self._stopped:  # by a finalizer that ran just now
                self.stop(wait=False)
            return not self._stopped

    def stop(self, *, wait: bool = True) -> None:
        """Ends the thread and closes the sources: afterwards ``deliver`` does not run.

        Waits for a running ``deliver``, unless called from it or told not to wait, or by a signal
        handler in the middle of a call of this; so the caller must not hold a lock that
        ``deliver`` takes. Harmless when repeated. In a forked child the same as
        :meth:`reset_in_child`.
        """
        if os.getpid() != self._pid:
            self.reset_in_child()
            return
        wait = wait and not is_held_here(self._lock)
        with self._lock:
            self._stopped = True
            self._forget_thread_that_is_gone()
            thread = self._thread
            if thread is None:
                self._close()
            elif not thread.is_current():
                self._wake()
        if wait and thread is not None and not thread.is_current():
            thread.join()
            with self._lock:
                self._forget_thread_that_is_gone()
                if self._thread is None:
                    self._close()

    def park(self) -> None:
        """Before a fork: ends the thread but keeps the sources open.

        Pressure meanwhile is reported after :meth:`resume`. Parking twice needs two resumes. A
        callback that forks cannot end its own thread; there this does nothing.
        """
        if self.is_current_thread:
            return
        if not self._lock.acquire(timeout=PARK_TIMEOUT_S):
            return  # by the thread that forks: its signal handler does
        try:
            self._parks += 1
            thread = self._thread
            if thread is not None:
                self._wake()
        finally:
            self._lock.release()
        if thread is not None:
            thread.join(PARK_TIMEOUT_S)

    def resume(self) -> None:
        """After a fork, in the parent: starts the thread again unless it was stopped."""
        if self.is_current_thread or self._parks == 0:
            return
        with self._lock:
            if self._parks == 0:
                return  # made after the others were parked
            self._parks -= 1
            self._start_thread()

    def reset_in_child(self) -> None:
        """After a fork, in the child: lets go of everything, and never delivers.

        The parent's registrations are untouched.
        """
        self._lock = rlock()  # another thread of the parent may hold the old one
        self._stopped = True
        self._close()

    def _start_thread(self) -> None:
        """REQUIRES: the lock."""
        self._forget_thread_that_is_gone()
        if self._thread is not None or self._parks or self._stopped or self._wake_fd < 0:
            return
        thread = Thread(lambda: self._run(thread), "pgalloc-pressure")
        self._thread = thread
        try:
            thread.start()
        except BaseException:
            self._thread = None
            raise

    def _forget_thread_that_is_gone(self) -> None:
        """There may have been no memory for its first steps. REQUIRES: the lock."""
        if self._thread is not None and self._thread.is_gone():
            self._thread = None

    def _run(self, thread: Thread) -> None:
        """The thread."""
        with self._lock:
            if self._thread is not thread:
                return  # what started it was interrupted, and has closed all
        while not self._has_run():
            pass

    def _has_run(self) -> bool:
        """Whether it ran to its end. If not, there was no memory for what Python needs here."""
        try:
            self._watch()
        except MemoryError:
            return False
        return True

    def _watch(self) -> None:
        """In a child that ``deliver`` forked it ends without touching anything."""
        poller = unpatched(select, "poll")()
        poller.register(self._wake_fd, select.POLLIN)
        by_fd = {source.fd: source for source in self._sources}
        for source in self._sources:
            poller.register(source.fd, source.poll_mask)
        while self._goes_on():
            if self._signals:
                signals, self._signals = self._signals, []
                try:
                    self._deliver(signals)
                except BaseException:  # nothing above this frame could handle it
                    _log.exception("delivering pressure signals failed")
                del signals
                if os.getpid() != self._pid:
                    return
                continue
            for fd, revents in poller.poll(_LOOK_EVERY_MS):
                if fd == self._wake_fd:
                    if is_intact(self, "_wake_fd"):
                        os.eventfd_read(fd)
                    else:
                        poller.unregister(fd)
                    continue
                source = by_fd[fd]
                try:
                    if not is_intact(source, "fd"):
                        raise OSError(errno.EBADF, "its descriptor was closed from outside")
                    if source.take(revents):
                        self._signals.append(Signal(source, source.level))
                except Exception as error:
                    _log.warning("no more pressure signals from %s: %s", source.name, error)
                    poller.unregister(fd)
                    self._drop(source)

    def _goes_on(self) -> bool:
        """Whether the thread has more to do; if not, it must touch nothing afterwards."""
        with self._lock:
            if self._stopped:
                self._thread = None
                self._close()
                return False
            if self._parks:
                self._thread = None
                return False
            return True

    def _drop(self, source: PressureSource) -> None:
        with self._lock:
            self._sources.remove(source)
            self._dropped_sources += 1
            close_all([source])

    def _wake(self) -> None:
        """REQUIRES: the lock."""
        if self._wake_fd >= 0 and is_intact(self, "_wake_fd"):
            os.eventfd_write(self._wake_fd, 1)

    def _close(self) -> None:
        """REQUIRES: the lock, and that no thread waits. Harmless when repeated."""
        sources, self._sources = [*self._sources, *self._given], []
        self._given = []
        close_all(sources)
        self._signals = []
        close_of(self, "_wake_fd")
