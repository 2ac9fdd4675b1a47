"""What gevent leaves to the kernel's threads when it has patched the standard library.

A lock that gevent has patched is handed on by the event loop of the thread that released it. A
thread of pgalloc that waits for one would wait until that loop turns, and the program may just be
waiting for the thread. So the locks that these threads take are the kernel's. Nothing that is done
under one gives other greenlets a turn.
"""

from __future__ import annotations

import _thread
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import threading


def unpatched(module: ModuleType, name: str) -> Any:
    """What the module had under this name before gevent patched it."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return getattr(module, name)
    return monkey.get_original(module.__name__, name)


def rlock() -> threading.RLock:
    """A threading.RLock of the kernel's threads."""
    lock: threading.RLock = unpatched(_thread, "RLock")()
    return lock


def is_held_here(lock: threading.RLock) -> bool:
    """Whether this thread has it already: a signal handler, say, in the middle of what it does."""
    return bool(lock._is_owned())  # type: ignore[attr-defined] # as threading.Condition asks
