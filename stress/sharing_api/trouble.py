"""Trouble in one process: system calls that fail, no free descriptor, handlers that re-enter.

A call of pgalloc may be refused then, by a typed error that leaves everything as it was.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pgalloc
from pgalloc.testing import FaultPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

_SHORT = [errno.ENOMEM, errno.ENOBUFS, errno.EIO]
_FULL = [errno.EMFILE, errno.ENFILE]
_SOCKET = {
    "sendmsg": [*_SHORT, errno.EAGAIN, errno.EINTR, errno.ETOOMANYREFS],
    "recvmsg": [*_SHORT, errno.EAGAIN, errno.EINTR],
    "getsockopt": _SHORT,
    "accept": [*_SHORT, *_FULL, errno.EINTR, errno.ECONNABORTED],
    "epoll_wait": [*_SHORT, errno.EINTR],
    "epoll_ctl": [errno.ENOMEM, errno.ENOSPC],
    "epoll_create": [errno.ENOMEM, *_FULL],
    "poll": [errno.ENOMEM, errno.EINTR],
    "duplicate": _FULL,
}
# A fork of a peer asks its owner for a socket pair: without one the child has no pages, by design.
OF_OWNERS = _SOCKET
OF_PEERS = {
    **_SOCKET,
    "socketpair": [errno.ENOMEM, *_FULL],
    "mmap": [errno.ENOMEM],
    "connect_to": [errno.ENOMEM, errno.EAGAIN, *_FULL],
    "fstat": _SHORT,
}
_RETURN_S = 0.005  # between signals


class Trouble:
    """For one process. Without ``rate`` there is none, and nothing is refused."""

    def __init__(self, calls: dict[str, list[int]], seed: int, rate: float) -> None:
        self.refused = 0
        self.failures = 0
        self._calls = calls
        self._random = random.Random(seed)
        self._rate = rate

    def some(self) -> AbstractContextManager[None]:
        """A block in which there may be some."""
        if self._random.random() >= self._rate:
            return nullcontext()
        return self._no_descriptor() if self._random.random() < 0.2 else self._failing_call()

    def call(self, act: Callable[[], Any]) -> Any:
        """What ``act`` returns, in some trouble; None if it was refused."""
        if not self._rate:
            return act()
        try:
            with self.some():
                return act()
        except (pgalloc.OwnerGoneError, pgalloc.ForkedError):
            raise  # the owner lives, and this process is no child
        except (pgalloc.Error, OSError):
            self.refused += 1
            return None

    @contextmanager
    def _failing_call(self) -> Iterator[None]:
        name = self._random.choice(list(self._calls))
        with FaultPlan(
            name,
            self._random.choice(self._calls[name]),
            first=self._random.choice([1, 1, 1, 2, 3, 5]),
            times=self._random.choice([1, 1, 2, 3, 30]),
        ) as plan:
            yield
        self.failures += plan.failures

    @contextmanager
    def _no_descriptor(self) -> Iterator[None]:
        """The table is full: what needs a descriptor gets none."""
        with os.scandir("/proc/self/fd") as entries:
            first_free = max(int(entry.name) for entry in entries) + 1
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
        try:
            with suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in taken:
                os.close(descriptor)
        self.failures += 1

    # --- signals ---------------------------------------------------------------------------------

    def begin_signals(self, file: Any) -> None:
        """From here on a handler allocates and releases a page every few milliseconds."""
        if not self._rate:
            return

        def handler(_signal: int, _frame: Any) -> None:
            with suppress(pgalloc.SharingError, pgalloc.OutOfMemoryError, OSError):
                file.allocate(pgalloc.PAGE_SIZE).release()

        signal.signal(signal.SIGALRM, handler)
        self.go_on()

    def go_on(self) -> None:
        """Signals come again."""
        if self._rate:
            signal.setitimer(signal.ITIMER_REAL, _RETURN_S, _RETURN_S)

    def pause(self) -> None:
        """No signal comes until go_on()."""
        if self._rate:
            signal.setitimer(signal.ITIMER_REAL, 0)
