"""What the guard costs while there is room, and how soon it makes room when there is none.

``guard_idle``: processor time of the guard's thread for each second of a process that has unpinned
memory and is far from its limits. ``guard_reaction``: in a memory cgroup of 256 MiB, the time from
the moment usage has crossed into the headroom to the moment it is out again, by the kernel's own
counter. ``guard_move`` and ``guard_limit``: a process that does nothing is moved to a memory cgroup
that others have filled, and the limit of its own is lowered to what is in use; the time until its
guard says so to a callback. These need the right to make a cgroup, and are left out without.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pgalloc
from benchmarks.measure import MIB, Case, Sample
from pgalloc import _core
from pgalloc._processes.memory_group import MemoryGroup, NoPlaceError, open_place

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

# Says when it hears of pressure, and otherwise does nothing.
_LISTENER = """
import sys, time
import pgalloc
with pgalloc.pressure.Monitor() as monitor:
    monitor.subscribe(lambda event: print(time.monotonic(), flush=True))
    print("listens", flush=True)
    sys.stdin.read()
"""
_HOG = """
import sys
held = b"1" * int(sys.argv[1])
print("holds it", flush=True)
sys.stdin.read()
"""
_IDLE_BEFORE_S = 0.3
_TIMES = 15


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


@contextlib.contextmanager
def _running(program: str, *arguments: str, group: MemoryGroup) -> Iterator[subprocess.Popen[str]]:
    """A program in a group that has said its first line, until its input ends."""
    command = group.command([sys.executable, "-c", program, *arguments])
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


def _until_it_hears(
    listener: subprocess.Popen[str], press: Callable[[], object], relieve: Callable[[], object]
) -> list[float]:
    assert listener.stdout is not None
    times = []
    for _ in range(_TIMES):
        time.sleep(_IDLE_BEFORE_S)
        begin = time.monotonic()
        press()
        times.append(float(listener.stdout.readline()) - begin)
        relieve()
    return times


def _move() -> Sample:
    with (
        open_place() as place,
        place.make("full", _LIMIT) as full,
        place.make("free", _LIMIT) as free,
    ):

        def move_to(group: MemoryGroup) -> None:
            (group.directory / "cgroup.procs").write_text(str(listener.pid))

        with (
            _running(_HOG, str(_LIMIT * 15 // 16), group=full),
            _running(_LISTENER, group=free) as listener,
        ):
            times = _until_it_hears(listener, lambda: move_to(full), lambda: move_to(free))
    return Sample("guard_move", "core", len(times), statistics.median(times))


def _limit() -> Sample:
    with open_place() as place, place.make("lowered", 4 * _LIMIT) as group:
        lowered = "memory.limit_in_bytes" if group.version == "v1" else "memory.high"

        def set_limit(nbytes: int) -> None:
            (group.directory / lowered).write_text(str(nbytes))

        with (
            _running(_HOG, str(_LIMIT * 15 // 16), group=group),
            _running(_LISTENER, group=group) as listener,
        ):
            times = _until_it_hears(
                listener, lambda: set_limit(group.usage + MIB), lambda: set_limit(4 * _LIMIT)
            )
    return Sample("guard_limit", "core", len(times), statistics.median(times))


def _may_make_groups() -> bool:
    try:
        with open_place():
            return True
    except NoPlaceError:
        return False


CASES = [Case("guard_idle", "core", _idle)]
if _may_make_groups():
    CASES.append(Case("guard_reaction", "core", _reaction))
    CASES.append(Case("guard_move", "core", _move))
    CASES.append(Case("guard_limit", "core", _limit))
