"""How many threads a save or a restore uses."""

from __future__ import annotations

import os

_THREADS_MAX = 8


def thread_count() -> int:
    """One for each processor that this process may use, within reason.

    But two on a single one: while a thread waits for the disk, the other works.
    """
    return min(_THREADS_MAX, max(2, len(os.sched_getaffinity(0))))
