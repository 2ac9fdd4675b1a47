"""Running the callbacks of evictable users on Python-owned threads.

The core decides whom to ask and for which range; its threads never run Python. A few threads here
wait in the core without the GIL and carry the question to the user. One waits at any time, so that
a callback that takes long keeps no other user waiting; above the maximum, users wait their turn.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Protocol

from pgalloc import _core
from pgalloc.threads import PARK_TIMEOUT_S, Thread

_log = logging.getLogger("pgalloc")

_THREADS_MAX = 8
_SLICE_S = 0.005


class EvictableUser(Protocol):
    """Something hashable that can let go of memory.

    ``evict`` runs on a thread of pgalloc with no lock held. It may race with ``mark_unevictable``,
    need not free anything, and may mark ranges again. An exception it raises is logged and counted.
    """

    def evict(self, range: _core.EvictableRange, /) -> Any:
        """Let go of what ``range`` stands for, if that is possible."""

    def __hash__(self) -> int: ...


class Evictor:
    """The evictable users of one MemoryFile, and the threads that run their callbacks.

    It must not keep the file alive: it knows the core's part of evictions only.
    """

    def __init__(self, core: _core.Evictables) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._ids: dict[EvictableUser, int] = {}
        self._users: dict[int, EvictableUser] = {}
        self._last_id = 0
        self._threads: set[Thread] = set()
        self._waiting: set[Thread] = set()
        self._calling: set[Thread] = set()  # inside a callback
        self._parked = False
        self.evicted = 0
        self.failures = 0

    def id_of(self, user: EvictableUser) -> int | None:
        """The number of a user that has ranges or is being evicted."""
        with self._lock:
            return self._ids.get(user)

    def mark(
        self, file: _core.MemoryFile, user: EvictableUser, range: _core.EvictableRange
    ) -> None:
        """Mark a range, and see to it that a thread runs the callbacks."""
        if not callable(getattr(user, "evict", None)):
            raise TypeError(f"an evictable user needs a method evict(range): {user!r}")
        with self._lock:
            known = self._ids.get(user)
            user_id = self._last_id + 1 if known is None else known
            file._mark_evictable(user_id, range)
            if known is None:
                self._last_id = user_id
                self._ids[user] = user_id
                self._users[user_id] = user
            self._start_thread_if_none_waits()

    def unmark(self, user: EvictableUser, range: _core.EvictableRange | None) -> None:
        """Unmark a range, or all of them."""
        with self._lock:
            user_id = self._ids.get(user)
            if user_id is None:
                return
            if range is None:
                self._core.unmark_all(user_id)
            else:
                self._core.unmark(user_id, range)
            self._forget_if_unknown(user_id)

    def park(self) -> None:
        """Stop the threads and wait until they are gone. Callbacks under way go on."""
        if not self._lock.acquire(timeout=PARK_TIMEOUT_S):
            return  # the thread that forks has it: a signal handler does so
        try:
            self._parked = True
            ending = self._threads - self._calling
        finally:
            self._lock.release()
        self._core.pause()
        until = time.monotonic() + PARK_TIMEOUT_S
        for thread in ending:
            # One that was about to call goes on: what is called may wait for what forks.
            while thread not in self._calling and time.monotonic() < until:
                if thread.is_current() or thread.join(_SLICE_S):
                    break

    def resume(self) -> None:
        """Undo park()."""
        if not self._parked:
            return
        self._core.resume()
        with self._lock:
            self._parked = False
            if self._users:
                self._start_thread_if_none_waits()

    def reset_in_child(self) -> None:
        """In a forked child: the threads are not there, and one of them may have had the lock."""
        self._lock = threading.Lock()
        self._threads.clear()
        self._waiting.clear()
        self._calling.clear()

    def _forget_if_unknown(self, user_id: int) -> None:
        if user_id in self._users and not self._core.knows(user_id):
            del self._ids[self._users.pop(user_id)]

    def _start_thread_if_none_waits(self) -> None:
        # A fork waits for a thread until the kernel has forgotten it: it may want the GIL.
        self._threads = {thread for thread in self._threads if not thread.is_gone()}
        if self._parked or self._waiting or len(self._threads) >= _THREADS_MAX:
            return
        thread = Thread(lambda: self._work(thread))
        self._threads.add(thread)
        self._waiting.add(thread)
        try:
            thread.start()
        except BaseException:
            self._threads.discard(thread)
            self._waiting.discard(thread)
            raise

    def _work(self, me: Thread) -> None:
        try:
            while True:
                user_id = self._core.wait_for_due_user()
                with self._lock:
                    self._waiting.discard(me)
                    if user_id is None:
                        return
                    self._start_thread_if_none_waits()
                self._evict(user_id, me)
                with self._lock:
                    if self._waiting or self._parked:
                        return
                    self._waiting.add(me)
        finally:
            with self._lock:
                self._waiting.discard(me)

    def _evict(self, user_id: int, me: Thread) -> None:
        with self._lock:
            user = self._users.get(user_id)
        while (range_ := self._core.next(user_id)) is not None:
            if user is None:
                continue
            with self._lock:
                self._calling.add(me)
            failed = True
            try:
                user.evict(range_)
                failed = False
            except BaseException:  # SystemExit, too: other ranges and users wait for this thread
                _log.exception("evicting %r of %r failed", range_, user)
            with self._lock:
                self._calling.discard(me)
                self.failures += failed
                self.evicted += not failed
        with self._lock:
            self._forget_if_unknown(user_id)
