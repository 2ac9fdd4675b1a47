"""A job that runs: its process, its files, and what is left of it.

Invariants:
1. It has a session of its own, nothing to read, a log, a temporary folder ($TMPDIR) and a folder
   for logs of its own ($CI_LOGS). The name of the temporary folder is short: tests make sockets
   below it, whose addresses may have 107 bytes.
2. After ``end()`` none of its processes is left, wherever it had gone.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import processes
from plan import Job

PACE_S = 0.05
# What ends by itself once the job has, such as multiprocessing's resource tracker, has so long.
_GRACE_S = 3


class Running:
    """Starts the job when it is made."""

    def __init__(self, job: Job, number: int, work: Path, functions: str, now: float) -> None:
        self.job = job
        self.started = now
        self.log = work / "logs" / f"{job.name}.log"
        self.own_logs = work / "logs" / f"{job.name}.d"
        self.tmp = work / f"t{number}"
        for folder in (self.own_logs, self.tmp):
            folder.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "CI_JOB": job.name,
            "CI_WEIGHT": str(job.weight),
            "CI_LOGS": str(self.own_logs),
            "TMPDIR": str(self.tmp),
        }
        # A child process, so that set -e holds inside whatever the job does.
        shell = ["bash", "-euo", "pipefail", "-c", 'source "$0"; "job_$1"', functions, job.name]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                shell,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=processes.adopt_orphans,
            )
        processes.leaders.add(self.process.pid)
        self.cpu_s = 0.0

    def ended(self) -> bool:
        """Whether it has. Notes its exit status and what it cost."""
        if self.process.returncode is None:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                self.cpu_s = usage.ru_utime + usage.ru_stime
        return self.process.returncode is not None

    def failure(self) -> str:
        """What its exit status says, once it has ended; empty if it passed."""
        status = self.process.returncode
        return f"exit {status}" if status > 0 else f"signal {-status}" if status else ""

    def left_behind(self) -> list[str]:
        """Once it has ended: which of its processes have not, after a moment. They are ended."""
        deadline = time.monotonic() + _GRACE_S
        while processes.of_job(self.process.pid, self.tmp) and time.monotonic() < deadline:
            time.sleep(PACE_S)
        return [f"left behind: {process}" for process in self.end()]

    def end(self) -> list[processes.Process]:
        """End all of it. Returns what there was."""
        found = processes.end(self.process.pid, self.tmp)
        while not self.ended():
            time.sleep(PACE_S)
        return found
