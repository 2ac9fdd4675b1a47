"""How many threads a save or a restore uses."""

from __future__ import annotations

import os

_THREADS_MAX = 8


def thread_count() -> int:
    """One for each processor that this process may use, within reason."""
    return min(_THREADS_MAX, len(os.sched_getaffinity(0)))
