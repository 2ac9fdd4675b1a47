"""One way of ``pgalloc demo workers``: an owner and its workers, from their start to their end.

They are a session of their own, so that they can be counted, and killed at once: as the kernel does
with a memory cgroup under ``memory.oom.group``, and ``docker kill`` with a container. No
process survives that could clean up: multiprocessing's resource tracker is killed as well.
"""

from __future__ import annotations

import enum
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pgalloc._processes.memory import proportional_bytes
from pgalloc.cli.workers.check import Checked
from pgalloc.cli.workers.procfs import (
    Left,
    MemoryObject,
    left_of,
    members,
    memory_objects,
)

_PERIOD_S = 0.05
_END_TIMEOUT_S = 10.0
_ERRORS_KEPT = 2000


class State(enum.Enum):
    """Where a crew is; the value is what the table says."""

    WAITING = "waits"
    RUNNING = "runs"
    MEASURED = "measured"
    KILLED = "killed"
    FAILED = "failed"
    LATE = "took too long"


@dataclass(slots=True)
class Crew:
    """What is known of a crew.

    Attributes:
        way: one of ways.WAYS.
        workers: how many there are to be.
        seconds: since the owner was started, which has to read the files first.
        checked: what the workers said, in the order in which they were done.
        owner_bytes: proportional memory of the owner when all workers were done.
        workers_bytes: the same of all other processes of the crew together.
        left: what there was of it after SIGKILL.
        errors: the end of what was written to standard error.
    """

    way: str
    workers: int
    state: State = State.WAITING
    seconds: float = 0.0
    checked: list[Checked] = field(default_factory=list)
    owner_bytes: int = 0
    workers_bytes: int = 0
    left: Left = field(default_factory=Left)
    errors: str = ""

    @property
    def nbytes(self) -> int:
        """Proportional memory of all processes together."""
        return self.owner_bytes + self.workers_bytes

    @property
    def had_s(self) -> float:
        """Seconds until the last worker had everything."""
        return max((checked.had_s for checked in self.checked), default=0.0)

    @property
    def checked_s(self) -> float:
        """Seconds until the last worker had checked everything."""
        return max((checked.checked_s for checked in self.checked), default=0.0)

    @property
    def digests(self) -> int:
        """How many were right, of all workers together."""
        return sum(checked.digests for checked in self.checked)

    @property
    def wrong(self) -> int:
        """How many were wrong, of all workers together."""
        return sum(checked.wrong for checked in self.checked)


class RunningCrew:
    """The processes of a crew. What is found out about them goes into ``crew``."""

    def __init__(self, crew: Crew, data_file: Path, name: str) -> None:
        self.crew = crew
        self._objects: Iterable[MemoryObject] = ()
        self._begin = time.monotonic()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - close() does
        module = "pgalloc.cli.workers.owner"
        arguments = (crew.way, str(data_file), str(crew.workers), name)
        # It looks for modules where this process does, and nowhere else (-P).
        modules = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,  # when it ends, the owner ends
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": modules},
            start_new_session=True,
        )
        crew.state = State.RUNNING

    def follow(self, timeout_s: float, changed: Callable[[], object]) -> None:
        """Until all workers are done and have been measured, or something went wrong.

        ``changed`` is called whenever there may be something new to show.
        """
        self.crew.state = self._follow(timeout_s, changed)
        if self.crew.state is State.MEASURED:
            try:
                self._measure()
            except (OSError, KeyError) as error:
                self.crew.state = State.FAILED
                self.crew.errors = f"cannot see how much memory it has: {error!r}\n"
        self._objects = memory_objects(members(self._process.pid))
        changed()

    def kill(self) -> None:
        """All of its processes at once, if that has not been done."""
        if self._process.returncode is not None:
            return  # the number may be another's by now
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self.crew.state is State.MEASURED:
            self.crew.state = State.KILLED

    def look(self) -> None:
        """After kill(): what is left. A killed process needs a moment to let go of its memory."""
        deadline = time.monotonic() + _END_TIMEOUT_S
        while members(self._process.pid) and time.monotonic() < deadline:
            time.sleep(_PERIOD_S)
        self.crew.left = left_of(self._process.pid, self._objects)

    def close(self) -> None:
        """Kills what still runs, and keeps the end of what it wrote to standard error."""
        self.kill()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="backslashreplace")
        self.crew.errors = (self.crew.errors + said)[-_ERRORS_KEPT:].strip()
        self._errors.close()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _follow(self, timeout_s: float, changed: Callable[[], object]) -> State:
        assert self._process.stdout is not None
        lines = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while len(self.crew.checked) < self.crew.workers:
                self.crew.seconds = time.monotonic() - self._begin
                changed()
                if self.crew.seconds > timeout_s:
                    return State.LATE
                if selector.select(_PERIOD_S):
                    data = os.read(self._process.stdout.fileno(), 1 << 16)
                    if not data:
                        return State.FAILED
                    *complete, lines = (lines + data).split(b"\n")
                    self.crew.checked += map(Checked.from_json, complete)
        return State.MEASURED

    def _measure(self) -> None:
        owner = self._process.pid
        self.crew.owner_bytes = proportional_bytes(owner)
        self.crew.workers_bytes = sum(
            proportional_bytes(pid) for pid in members(owner) if pid != owner
        )
