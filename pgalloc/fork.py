"""Getting across fork() without a background thread, so that nothing is half done in the child.

CPython warns after a fork when the process has more than one thread (3.12 and later), and it counts
native ones too. So all threads of pgalloc end before a fork and start again in the parent.

All that pgalloc does in ``os.fork()`` is registered here. The phases:

* before: Python threads end, then those of the core. In ``fork()`` itself the core takes leases on
  shared pages for the child (csrc/sharing/forks.h); that needs no Python.
* after it, in the parent: the core's threads start again, then Python's.
* after it, in the child: whatever was made in the parent replaces its locks, and forgets threads.

The hooks are native, and run the functions below where no signal handler can interrupt them: in a
thread made for it when the main thread forks. So nothing here, nor any ``park`` and ``resume``, may
wait for what the main thread has: not without a time limit. In the child there is no other thread;
there a function that was interrupted is called again.

A fork by C code runs no hooks. What is left to do in such a child is done when it forks itself, or
calls ``PyOS_AfterFork_Child`` as uWSGI does.
"""

from __future__ import annotations

import _thread
import atexit
import logging
import os
import time
import weakref
from typing import Protocol

from pgalloc import _core
from pgalloc.threads import known
from pgalloc.unpatched import rlock, unpatched


class Parkable(Protocol):
    """Has Python threads, or locks that a forked child must replace."""

    def park(self) -> None:
        """Stop the threads and wait until they are gone."""

    def resume(self) -> None:
        """Start them again, unless they were not stopped."""

    def reset_in_child(self) -> None:
        """In a forked child: drop the threads, which are the parent's, and replace the locks.

        May be called again after it was interrupted, and after it was done.
        """


_log = logging.getLogger("pgalloc")
# By id, with the process that they were made in. No lock: a finalizer or a signal handler may
# register something, whatever its thread is doing here; each use is one operation of a dict.
_parkables: dict[int, tuple[weakref.ref[Parkable], int]] = {}
_lock = rlock()  # several threads may fork, and a finalizer while one does
_parked = 0
_TRIES = 10  # to start a thread again, a hundredth of a second apart


def register(parkable: Parkable) -> None:
    """Park this around forks and at the end of the program; it is not kept alive.

    Made between the halves of a fork it is not parked, but resumed all the same.
    """
    key = id(parkable)
    reference = weakref.ref(parkable, lambda _: _parkables.pop(key, None))
    _parkables[key] = (reference, _core.process_generation())


def _all(*, of_parents: bool) -> list[Parkable]:
    """What was made in this process, or in those that it descends from."""
    now = _core.process_generation()
    found = [ref() for ref, made in list(_parkables.values()) if (made != now) == of_parents]
    return [parkable for parkable in found if parkable is not None]


def _park_all() -> None:
    for parkable in _all(of_parents=False):
        try:
            parkable.park()
        except Exception:
            _log.exception("%r cannot be stopped for a fork", parkable)


def _park() -> None:
    global _parked
    with known(), _lock:
        _parked += 1
        if _parked == 1:
            _park_all()


def _resume() -> None:
    global _parked
    with known(), _lock:
        if _parked == 0:
            return  # _park() was interrupted: there was no thread to be had for it
        _parked -= 1
        if _parked > 0:
            return
        for parkable in _all(of_parents=False):
            _resume_one(parkable)


def _resume_one(parkable: Parkable) -> None:
    """Also if there is no thread to be had for a moment."""
    for left in reversed(range(_TRIES)):
        try:
            parkable.resume()
            return
        except Exception:  # RuntimeError: no thread to be had for this one
            if left == 0:
                _log.exception("%r has no threads after a fork", parkable)
        time.sleep(0.01)


def _begin_child() -> list[Parkable]:
    global _lock, _parked
    _lock = rlock()  # another thread of the parent may hold the old one
    _parked = 0
    return _all(of_parents=True)


_core.set_fork_hooks(_park, _resume, _begin_child, unpatched(_thread, "start_new_thread"))
os.register_at_fork(
    before=_core.before_fork,
    after_in_parent=_core.after_fork_in_parent,
    after_in_child=_core.after_fork_in_child,
)
# A daemon thread that wakes up while the interpreter goes down cannot be helped: stop them first.
atexit.register(_park_all)
