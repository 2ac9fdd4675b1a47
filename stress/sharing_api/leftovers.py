"""What a process could leave behind: descriptors, threads, and names that outlive it."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from torture_api.marks import PromiseBrokenError

_SETTLE_S_MAX = 60.0  # the broker closes connections a moment after their peers have ended


class Leftovers(NamedTuple):
    """How many there are now."""

    descriptors: int
    threads: int
    names: int  # in /dev/shm

    @classmethod
    def now(cls) -> Leftovers:
        folders = ("/proc/self/fd", "/proc/self/task", "/dev/shm")
        return cls(*(len(os.listdir(folder)) for folder in folders))


def expect(before: Leftovers) -> None:
    """Raise PromiseBrokenError unless there is nothing more than that, after a moment."""
    deadline = time.monotonic() + _SETTLE_S_MAX
    while True:
        after = Leftovers.now()
        if all(now <= then for now, then in zip(after, before, strict=True)):
            return
        if time.monotonic() > deadline:  # time: a bound on a hang
            raise PromiseBrokenError(f"left behind: {after} instead of {before}")
        time.sleep(0.01)  # time: it polls
