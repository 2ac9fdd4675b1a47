"""How close a group comes to its limit, asked of the kernel about once in a millisecond."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

_PERIOD_S = 0.0005


@dataclass(slots=True)
class Closeness:
    """What was seen of the usage.

    Attributes:
        samples: how many times it was asked.
        longest_gap_s: the longest time between two of them: what is shorter may have been missed.
        highest: the most bytes seen.
        near_s: for how long usage was within the margin of the limit, in all.
        near_longest_s: the same in one stretch.
    """

    samples: int = 0
    longest_gap_s: float = 0.0
    highest: int = 0
    near_s: float = 0.0
    near_longest_s: float = 0.0


def watch(process: subprocess.Popen[str], usage_file: Path, near: int) -> Closeness:
    """Samples until the process has ended; "near" begins at so many bytes."""
    seen = Closeness()
    near_since: float | None = None
    fd = os.open(usage_file, os.O_RDONLY)
    last = time.perf_counter()
    try:
        while process.poll() is None:
            usage = int(os.pread(fd, 32, 0))
            now = time.perf_counter()
            seen.samples += 1
            seen.longest_gap_s = max(seen.longest_gap_s, now - last)
            seen.highest = max(seen.highest, usage)
            if near_since is not None:
                # Until the first sample that is no longer near: never too short.
                seen.near_s += now - last
                seen.near_longest_s = max(seen.near_longest_s, now - near_since)
            if usage < near:
                near_since = None
            elif near_since is None:
                near_since = now
            last = now
            time.sleep(_PERIOD_S)  # time: how often it samples
    finally:
        os.close(fd)
    return seen
