"""The processes of a job, wherever they have gone, and their end.

Invariants:
1. A process belongs to a job if it is in the session or process group of the job's first process,
   the leader, if its environment mentions the job's temporary folder, or if its parent belongs to
   the job.
2. The leader adopts what loses its parent, and the scheduler what loses the leader. What the
   scheduler has without having started it therefore belongs to the job whose leader has just ended.
   So a process is found whatever it does to its session, its environment and its parents.
3. Zombies are not counted: they hold nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None)

# Of all jobs.
leaders: set[int] = set()


def adopt_orphans() -> None:
    """From now on this process is the parent of descendants that lose theirs; kept by exec."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(frozen=True)
class Process:
    """What /proc says of one process."""

    pid: int
    name: str
    state: str
    ppid: int
    group: int
    session: int
    command: str

    def __str__(self) -> str:
        return f"pid {self.pid}, ppid {self.ppid}, state {self.state}: {self.command[:200]}"


def of_job(leader: int, folder: Path) -> list[Process]:
    """All processes of the job that the process ``leader`` began, by their ids."""
    everything = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (process := _read(entry)) is not None:
            everything[process.pid] = process
    found = {
        process.pid
        for process in everything.values()
        if leader in (process.pid, process.session, process.group)
        or (process.ppid == os.getpid() and process.pid not in leaders)
        or _mentions(process.pid, os.fsencode(folder))
    }
    before = -1
    while before != len(found):
        before = len(found)
        found |= {process.pid for process in everything.values() if process.ppid in found}
    family = [everything[pid] for pid in sorted(found)]
    _bury([process for process in family if process.state in "ZX"])
    return [process for process in family if process.state not in "ZX"]


def end(leader: int, folder: Path, patience_s: float = 5) -> list[Process]:
    """End them all: SIGTERM, and SIGKILL when their time is up. Returns what there was."""
    first = of_job(leader, folder)
    _signal(first, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while of_job(leader, folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    for _ in range(100):  # some may be forking
        if not (left := of_job(leader, folder)):
            break
        _signal(left, signal.SIGKILL)
        time.sleep(0.05)
    return first


def _bury(dead: list[Process]) -> None:
    """Of what was adopted here, not even a zombie stays. Leaders are their Popen's business."""
    for process in dead:
        if process.ppid == os.getpid() and process.pid not in leaders:
            os.waitpid(process.pid, os.WNOHANG)


def _signal(processes: list[Process], number: int) -> None:
    for process in processes:
        try:
            os.kill(process.pid, number)
        except OSError:  # it has ended
            continue


def _read(entry: Path) -> Process | None:
    try:
        stat = (entry / "stat").read_text(errors="replace")
        command = (entry / "cmdline").read_bytes()
    except OSError:
        return None
    before, _, after = stat.rpartition(")")
    name = before.partition("(")[2]
    state, ppid, group, session = after.split()[:4]
    text = " ".join(command.replace(b"\0", b" ").decode(errors="replace").split())
    return Process(
        int(entry.name), name, state, int(ppid), int(group), int(session), text or f"[{name}]"
    )


def _mentions(pid: int, folder: bytes) -> bool:
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes() + b"\0"
    except OSError:
        return False
    return b"=" + folder + b"\0" in environment or b"=" + folder + b"/" in environment
