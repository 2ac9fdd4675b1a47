"""Getting across fork() without a background thread, so that nothing is half done in the child.

CPython warns after a fork when the process has more than one thread (3.12 and later), and it counts
native ones too. So all threads of pgalloc end before a fork and start again in the parent.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from typing import Protocol

from pgalloc import _core


class Parkable(Protocol):
    """Has Python threads, or locks that a forked child must replace."""

    def park(self) -> None:
        """Stop the threads and wait until they are gone."""

    def resume(self) -> None:
        """Start them again."""

    def reset_in_child(self) -> None:
        """In a forked child: drop the threads, which are the parent's, and replace the locks."""


_log = logging.getLogger("pgalloc")
_parkables: weakref.WeakSet[Parkable] = weakref.WeakSet()
# Of its own: a callback that is waited for in park() may make something that has threads. And a
# finalizer may, whatever its thread is doing here.
_registry_lock = threading.RLock()
_lock = threading.Lock()
_parked = 0


def register(parkable: Parkable) -> None:
    """Park this around forks and at the end of the program; it is not kept alive.

    Made between the halves of a fork it is not parked, but resumed all the same.
    """
    with _registry_lock:
        _parkables.add(parkable)


def _all() -> list[Parkable]:
    with _registry_lock:
        return list(_parkables)


def _park_all() -> None:
    for parkable in _all():
        parkable.park()


def _before() -> None:
    global _parked
    with _lock:
        _parked += 1
        if _parked == 1:
            _park_all()
    _core.park_threads()


def _after_in_parent() -> None:
    global _parked
    _core.resume_threads()
    with _lock:
        _parked -= 1
        if _parked == 0:
            for parkable in _all():
                try:
                    parkable.resume()
                except RuntimeError:  # no thread to be had for this one
                    _log.exception("%r has no threads after a fork", parkable)


def _after_in_child() -> None:
    global _lock, _parked, _registry_lock
    _lock = threading.Lock()  # another thread of the parent may hold the old ones
    _registry_lock = threading.RLock()
    _parked = 0
    for parkable in list(_parkables):
        parkable.reset_in_child()
    _parkables.clear()


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
# A daemon thread that wakes up while the interpreter goes down cannot be helped: stop them first.
atexit.register(_park_all)
