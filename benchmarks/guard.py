"""What the guard costs while there is room, and how soon it makes room when there is none.

``guard_idle``: processor time of the guard's thread for each second of a process that has unpinned
memory and is far from its limits. ``guard_reaction``: in a memory cgroup of 256 MiB, the time from
the moment usage has crossed into the headroom to the moment it is out again, by the kernel's own
counter; it needs the right to make a cgroup, and is left out without.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pgalloc
from benchmarks.measure import MIB, Case, Sample
from pgalloc import _core
from pgalloc._processes.memory_group import NoPlaceError, open_place

_LIMIT = 256 * MIB
_IDLE_SECONDS = 2.0

# Fills 3/4 of the limit with unpinned memory, then steps 8 MiB over the edge, several times.
_REACTION = """
import os, statistics, sys, time
import pgalloc
usage, limit = sys.argv[1], int(sys.argv[2])
fd = os.open(usage, os.O_RDONLY)
used = lambda: int(os.pread(fd, 32, 0))
edge = limit - limit // 10
times = []
step = bytes(8 << 20)
with pgalloc.MemoryFile() as file:
    held = []
    for _ in range(5):
        while used() < edge - len(step):
            held.append(file.allocate(1 << 20))
            held[-1]._write(0, step[: 1 << 20])
            held[-1].unpin()
        over = file.allocate(2 * len(step))
        over.unpin()
        over.pin()
        for at in range(0, over.nbytes, 1 << 20):
            over._write(at, step[: 1 << 20])
            if used() >= edge:
                break
        begin = time.perf_counter()
        while used() >= edge:
            pass
        times.append(time.perf_counter() - begin)
        over.release()
        file.wait_for_reclaim()
print(statistics.median(times))
"""


def _thread_ns() -> dict[str, int]:
    """Processor time of each thread of this process."""
    return {
        task.name: int((task / "schedstat").read_text().split()[0])
        for task in Path("/proc/self/task").iterdir()
    }


def _idle() -> Sample:
    before = set(os.listdir("/proc/self/task"))
    with pgalloc.MemoryFile() as file, file.allocate(MIB) as memory:
        memory.unpin()
        _core.guard_park()  # a thread that is new, and so known
        started = _thread_ns()
        _core.guard_resume()
        time.sleep(0.1)
        new = (_thread_ns().keys() - started.keys()) or (_thread_ns().keys() - before)
        begin_ns = _thread_ns()
        begin = time.perf_counter()
        time.sleep(_IDLE_SECONDS)
        end_ns = _thread_ns()
        seconds = time.perf_counter() - begin
        used_ns = sum(end_ns[task] - begin_ns[task] for task in new)
        memory.pin()
    return Sample("guard_idle", "core", round(seconds), used_ns / 1e9)


def _reaction() -> Sample:
    with open_place() as place, place.make("reaction", _LIMIT) as group:
        program = [sys.executable, "-c", _REACTION, str(group.usage_file), str(_LIMIT)]
        run = subprocess.run(
            group.command(program), capture_output=True, text=True, check=True, timeout=60
        )
    return Sample("guard_reaction", "core", 1, float(run.stdout))


def _may_make_groups() -> bool:
    try:
        with open_place():
            return True
    except NoPlaceError:
        return False


CASES = [Case("guard_idle", "core", _idle)]
if _may_make_groups():
    CASES.append(Case("guard_reaction", "core", _reaction))
