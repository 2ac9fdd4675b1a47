"""The end of a worker process: what it sent of its own files is claimed before it goes.

A worker that makes a MemoryFile owns what it returns. It may end at once, as each worker of a
``Pool(maxtasksperchild=1)`` does, and its pages would go with it before their receiver has claimed
them. So it waits for that; after it, receivers need their owner no more.

multiprocessing calls its finalizers at the end of each process that it has started, however that
was, and of the main program, which does not wait. A new process drops the finalizers of its parent,
and then calls what was registered for after a fork. loky and torch use the same finalizers.
"""

from __future__ import annotations

import os
import select
import sys
import time
from types import ModuleType
from typing import Any

from pgalloc import _core
from pgalloc.raised import is_ours
from pgalloc.sharing.imports import after_import

WAIT_MAX_S = 10.0
"""How long a worker waits at most."""

_LOOK_S = 0.1  # how often it is looked whether the parent lives, and for signals
_AFTER_QUEUES = -10  # a Queue has a thread that sends: it is joined at -5


class _Ends:
    """The ends of the processes that one library starts."""

    def __init__(self, util: ModuleType) -> None:
        self._util = util
        self._process = sys.modules[f"{util.__package__}.process"]
        util.register_after_fork(self, _Ends._wait_at_end)
        self._wait_at_end()

    def _wait_at_end(self) -> None:
        self._util.Finalize(None, self._wait, exitpriority=_AFTER_QUEUES)

    def _wait(self) -> None:
        parent = self._process.parent_process()
        if parent is not None:  # else this is the main program
            await_claims(parent)


def await_claims(parent: Any) -> None:
    """Wait until all is claimed that was sent of this process's files, or its parent has ended."""
    deadline = time.monotonic() + WAIT_MAX_S
    while (left := deadline - time.monotonic()) > 0:
        if _core.broker_await_claims(min(left, _LOOK_S)) or _has_ended(parent):
            return


def _has_ended(process: Any) -> bool:
    """Whether a process has, as far as the kernel says. Its sentinel may be open in siblings."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError as error:
        if not is_ours(error):
            raise
        return True
    except OSError as error:  # before Linux 5.3
        if not is_ours(error):
            raise
        return False
    try:
        look = select.poll()
        look.register(fd, select.POLLIN)
        return bool(look.poll(0))
    finally:
        os.close(fd)


_ends: list[_Ends] = []
for _library in ("multiprocessing", "multiprocess"):
    after_import(f"{_library}.util", lambda util: _ends.append(_Ends(util)))
