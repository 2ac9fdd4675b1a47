"""Runs one half of ``pgalloc demo oom`` in a memory group, and watches it."""

from __future__ import annotations

import enum
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pgalloc._processes.memory_group import MemoryGroup
from pgalloc.cli.oom.work import Progress, Work, decode_progress

_PERIOD_S = 0.05
_ERRORS_KEPT = 2000


class State(enum.Enum):
    """Where a half is; the value is what the table says."""

    WAITING = "waits"
    RUNNING = "runs"
    KILLED = "KILLED by the kernel"
    FINISHED = "finished"
    FAILED = "failed"
    LATE = "took too long"


@dataclass(slots=True)
class Half:
    """What is known of a half.

    Attributes:
        kind: "dict" or "cache".
        usage: bytes charged to its group when it was last asked.
        highest: the most of these, or the kernel's own mark if that is higher.
        oom_kills: how many processes of its group the kernel has killed for memory.
        errors: the end of what it wrote to standard error.
    """

    kind: str
    state: State = State.WAITING
    usage: int = 0
    highest: int = 0
    oom_kills: int = 0
    seconds: float = 0.0
    progress: Progress = field(default_factory=Progress)
    errors: str = ""


def run_half(
    half: Half,
    work: Work,
    group: MemoryGroup,
    *,
    timeout_s: float,
    changed: Callable[[], object],
) -> None:
    """Starts it, follows it to its end, and says in ``half`` how it ended.

    ``changed`` is called whenever there may be something new to show.
    """
    with tempfile.TemporaryDirectory(prefix="pgalloc-demo-") as folder:
        work_file, errors = Path(folder, "work"), Path(folder, "errors")
        work.save(work_file)
        command = [sys.executable, "-m", "pgalloc.cli.oom.child", half.kind, str(work_file)]
        # The byte code that an import writes would be the group's page cache.
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                group.command(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
            )
        half.state = State.RUNNING
        try:
            late = _follow(half, process, group, timeout_s, changed)
        finally:
            process.kill()  # changes nothing if it has ended
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        half.oom_kills = group.oom_kills
        half.highest = max(half.highest, group.peak)
        half.state = _final_state(half, process.returncode, late)
        half.errors = errors.read_text(errors="backslashreplace")[-_ERRORS_KEPT:].strip()
        changed()


def _follow(
    half: Half,
    process: subprocess.Popen[bytes],
    group: MemoryGroup,
    timeout_s: float,
    changed: Callable[[], object],
) -> bool:
    """Until its standard output ends; returns True if time was up before that."""
    assert process.stdout is not None
    begin = time.monotonic()
    lines = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (elapsed := time.monotonic() - begin) < timeout_s:
            half.seconds = elapsed
            half.usage = group.usage
            half.highest = max(half.highest, half.usage)
            changed()
            if selector.select(_PERIOD_S):
                data = os.read(process.stdout.fileno(), 1 << 16)
                if not data:
                    process.wait(timeout=timeout_s)
                    return False
                *complete, lines = (lines + data).split(b"\n")
                if complete:
                    half.progress = decode_progress(complete[-1])
    return True


def _final_state(half: Half, status: int, late: bool) -> State:
    if late:
        return State.LATE
    if status == 0 and half.progress.done and not half.oom_kills:
        return State.FINISHED
    # The kernel's count is needed too: any process may send the signal.
    if status == -9 and half.oom_kills:
        return State.KILLED
    return State.FAILED
