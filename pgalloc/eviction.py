"""Running the callbacks of evictable users on Python-owned threads.

The core decides whom to ask and for which range; its threads never run Python. A few threads here
wait in the core without the GIL and carry the question to the user. One waits at any time, so that
a callback that takes long keeps no other user waiting; above the maximum, users wait their turn.

A thread that waits keeps neither the users nor the file: all of them are garbage when the program
has let go of the file and of its users, though each refers to the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from pgalloc import _core
from pgalloc.threads import PARK_TIMEOUT_S, Thread
from pgalloc.unpatched import rlock

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


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """A user that has ranges or is being evicted."""

    id: int
    hash: int
    user: EvictableUser


class Evictor:
    """The evictable users of one MemoryFile, and the threads that run their callbacks.

    It must not keep the file alive: it knows the core's part of evictions only.

    Thread safety: any thread. A signal handler, or a finalizer that garbage collection runs, may
    come while its own thread has the lock. No method of a user is called under it.
    """

    def __init__(self, core: _core.Evictables) -> None:
        self._core = core
        self._lock = rlock()
        self._known: dict[int, _Known] = {}  # by id
        self._by_hash: dict[int, tuple[_Known, ...]] = {}
        self._last_id = 0
        self._threads: set[Thread] = set()
        self._waiting: set[Thread] = set()
        self._calling: set[Thread] = set()  # inside a callback
        self._parked = False
        self.evicted = 0
        self.failures = 0

    def id_of(self, user: EvictableUser) -> int | None:
        """The number of a user that has ranges or is being evicted."""
        found = self._find(user, self._by_hash.get(hash(user), ()))
        return found[0].id if found else None

    def mark(
        self, file: _core.MemoryFile, user: EvictableUser, range: _core.EvictableRange
    ) -> None:
        """Mark a range, and see to it that a thread runs the callbacks."""
        if not callable(getattr(user, "evict", None)):
            raise TypeError(f"an evictable user needs a method evict(range): {user!r}")
        number = hash(user)
        while True:
            candidates = self._by_hash.get(number, ())
            found = self._find(user, candidates)
            with self._lock:
                # While the user was compared, others may have come or gone.
                if self._by_hash.get(number, ()) == candidates:
                    self._mark(file, found[0] if found else self._new(user, number), range)
                    return

    def unmark(self, user: EvictableUser, range: _core.EvictableRange | None) -> None:
        """Unmark a range, or all of them."""
        for known in self._find(user, self._by_hash.get(hash(user), ())):
            with self._lock:
                if range is None:
                    self._core.unmark_all(known.id)
                else:
                    self._core.unmark(known.id, range)
                self._forget_if_unknown(known)

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
            if self._known:
                self._start_thread_if_none_waits()

    def reset_in_child(self) -> None:
        """In a forked child: the threads are not there, and one of them may have had the lock."""
        self._lock = rlock()
        self._threads.clear()
        self._waiting.clear()
        self._calling.clear()

    @staticmethod
    def _find(user: EvictableUser, candidates: tuple[_Known, ...]) -> list[_Known]:
        """This user: once, or twice if a signal handler marked it in the middle of mark()."""
        return [each for each in candidates if each.user is user or each.user == user]

    def _new(self, user: EvictableUser, number: int) -> _Known:
        self._last_id += 1
        return _Known(self._last_id, number, user)

    def _mark(self, file: _core.MemoryFile, known: _Known, range: _core.EvictableRange) -> None:
        try:
            if known.id not in self._known:
                self._by_hash[known.hash] = (*self._by_hash.get(known.hash, ()), known)
                self._known[known.id] = known
            file._mark_evictable(known.id, range)
            self._start_thread_if_none_waits()
        except BaseException:
            self._forget_if_unknown(known)
            raise

    def _forget_if_unknown(self, known: _Known) -> None:
        """The caller has ``known``, so that its finalizer does not run under the lock."""
        if self._core.knows(known.id):
            return
        self._known.pop(known.id, None)
        others = tuple(each for each in self._by_hash.get(known.hash, ()) if each.id != known.id)
        if others:
            self._by_hash[known.hash] = others
        else:
            self._by_hash.pop(known.hash, None)

    def _start_thread_if_none_waits(self) -> None:
        # A fork waits for a thread until the kernel has forgotten it: it may want the GIL.
        self._threads = {thread for thread in self._threads if not thread.is_gone()}
        if self._parked or self._waiting or len(self._threads) >= _THREADS_MAX:
            return
        core, evictor = self._core, weakref.ref(self)
        thread = Thread(lambda: _work(core, evictor, thread))
        self._threads.add(thread)
        self._waiting.add(thread)
        try:
            thread.start()
        except BaseException:
            self._threads.discard(thread)
            self._waiting.discard(thread)
            raise

    def _serve(self, user_id: int, me: Thread) -> bool:
        """What a thread does that has waited; it counts as waiting until it calls.

        Returns whether it waits again.
        """
        known = self._known.get(user_id)
        called = False
        while (range_ := self._next(user_id)) is not None:
            if known is None:
                continue
            with self._lock:
                self._waiting.discard(me)
                self._calling.add(me)
                if not called:
                    # If there is no thread to be had, other users wait for this one.
                    with contextlib.suppress(RuntimeError, MemoryError):
                        self._start_thread_if_none_waits()
            called = True
            self._evict(known.user, range_, me)
        with self._lock:
            if known is not None:
                self._forget_if_unknown(known)
            if called and (self._waiting or self._parked):
                return False
            self._waiting.add(me)
        return True

    def _evict(self, user: EvictableUser, range_: _core.EvictableRange, me: Thread) -> None:
        failed = True
        try:
            user.evict(range_)
            failed = False
        except BaseException:  # SystemExit, too: other ranges and users wait for this thread
            # The user's repr() and the handlers of the log are callbacks as well.
            with contextlib.suppress(BaseException):
                _log.exception("evicting %r of %r failed", range_, user)
        with self._lock:
            self._calling.discard(me)
            self.failures += failed
            self.evicted += not failed

    def _end(self, me: Thread) -> None:
        with self._lock:
            self._waiting.discard(me)

    def _next(self, user_id: int) -> _core.EvictableRange | None:
        while True:
            try:
                return self._core.next(user_id)
            except MemoryError:  # that range is lost; the eviction has to end all the same
                with self._lock:
                    self.failures += 1


def _work(core: _core.Evictables, evictor: weakref.ref[Evictor], me: Thread) -> None:
    try:
        while (user_id := core.wait_for_due_user()) is not None:
            due: int = user_id
            if not _with(evictor, lambda owner: owner._serve(due, me)):  # noqa: B023
                return
    finally:
        _with(evictor, lambda owner: owner._end(me))


def _with(evictor: weakref.ref[Evictor], call: Callable[[Evictor], Any]) -> Any:
    """In a function of its own: a thread that waits must not keep the evictor. None without one."""
    owner = evictor()
    return None if owner is None else call(owner)
