"""Threads of the kernel.

A threading.Thread will not do. Where gevent has patched threading it is a greenlet, and a wait in
the core would stop the one thread that runs the whole program. And a signal handler that raises
while one starts, or a lack of memory, can leave the starter waiting for ever.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from pgalloc import _core
from pgalloc.unpatched import unpatched

# How long a fork waits for a thread that is in a callback; then it goes on beside it.
PARK_TIMEOUT_S = 1.0


class _Releaser:
    """Releases a lock once: at the latest when it goes, with the arguments of a thread."""

    _lock: Any = None  # there may be no memory for __init__

    def __init__(self, lock: Any) -> None:
        self._lock = lock

    def release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    __del__ = release


class Thread:
    """A thread of the kernel. An exiting program does not wait for it.

    Thread safety: start() and join() are the owner's, the rest is for any thread.
    """

    def __init__(self, run: Callable[[], object], name: str = "") -> None:
        """Makes one that is to run this. With a name, ``threading`` lists it while it runs."""
        self._run = run
        self._name = name
        self._native_id = 0
        self._process = -1  # as process_generation() says; -1: none
        self._alive = unpatched(_thread, "allocate_lock")()  # held from start() to the end

    def start(self) -> None:
        """Start it, and wait until it runs. Raises RuntimeError if there is no thread to be had.

        If a signal handler raises here it may run all the same, and join() does not wait for it.
        """
        self._alive.acquire()
        runs = unpatched(_thread, "allocate_lock")()
        runs.acquire()
        unpatched(_thread, "start_new_thread")(self._begin, (_Releaser(runs),))
        runs.acquire()
        if self._native_id == 0:  # there was no memory for its first steps
            raise RuntimeError("can't start new thread")
        self._process = _core.process_generation()

    def join(self, timeout: float = -1) -> bool:
        """Wait until the kernel has forgotten it. False if ``timeout`` seconds passed first."""
        if self._process != _core.process_generation():
            return True  # it was not started, or in a parent of this process
        if not self._alive.acquire(timeout=timeout):
            return False
        self._alive.release()
        _core.wait_until_thread_is_gone(self._native_id)
        return True

    def is_gone(self) -> bool:
        """Whether it does not run (any more), and the kernel has forgotten it."""
        if self._process != _core.process_generation():
            return True
        return not self._alive.locked() and _core.is_thread_gone(self._native_id)

    def is_current(self) -> bool:
        """Whether the caller runs in it."""
        return bool(self._native_id == _core.thread_id())

    def _begin(self, started: _Releaser) -> None:
        process = _core.process_generation()
        try:
            with known():
                if self._name:
                    threading.current_thread().name = self._name
                self._native_id = _core.thread_id()
                started.release()
                # As in any thread of Python: debuggers and coverage see what is called here.
                if (trace := threading.gettrace()) is not None:
                    sys.settrace(trace)
                if (profile := threading.getprofile()) is not None:
                    sys.setprofile(profile)
                self._run()
        finally:
            del self._run  # what it knows may know this
            self._alive.release()
        if _core.process_generation() != process:
            # A callback forked, and returned in the child, where there is nothing to return to.
            # Left to itself the child would live for as long as any thread of the core does, or
            # run what C code does at an exit, some of which needs Python to be there.
            os._exit(0)


@contextlib.contextmanager
def known() -> Iterator[None]:
    """Drop at the end what threading.current_thread() makes up for a thread that is not its own."""
    active: dict[int, threading.Thread] = getattr(threading, "_active", {})
    me = threading.get_ident()
    listed = me in active
    try:
        yield
    finally:
        if not listed:
            active.pop(me, None)
