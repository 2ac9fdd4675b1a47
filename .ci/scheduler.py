"""Runs the jobs of plan.py side by side, and tells of each what came of it.

    python3 .ci/scheduler.py --work FOLDER [--list] [long | JOB...]

.ci/run calls it, in the checkout. CI_CORES says how many cores
there are (by default those of the machine, but no more than 2), CI_PLAN and CI_JOBS name another
plan and other functions.

Invariants:
1. choice.py says when a job starts, running.py what it has.
2. Nothing of a job outlives it, nor the scheduler, which looks at signals between two steps. A job
   that leaves a process behind has failed.
3. A failed job stops only what needs it. The exit status is 0 only if every job passed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType, ModuleType

import autopsy
import processes
import report
from choice import chains, choose, with_needs
from plan import Job
from report import Outcome
from running import PACE_S, Running

_HERE = Path(__file__).resolve().parent


class StoppedError(Exception):
    """A signal asks the scheduler to end."""


class Scheduler:
    """Goes through the jobs."""

    def __init__(self, jobs: Sequence[Job], work: Path, functions: str, cores: int) -> None:
        self.work = work
        self.functions = functions
        self.cores = cores
        self.chain = chains(jobs)
        self.waiting = list(jobs)
        self.running: list[Running] = []
        self.outcomes: dict[str, Outcome] = {}
        self.started = 0
        self.begin = time.monotonic()
        self.asked_to_stop: str | None = None

    def run(self) -> bool:
        """All jobs. Whether every one passed."""
        while self.waiting or self.running:
            self._start_what_may()
            time.sleep(PACE_S)
            for running in list(self.running):
                self._look_at(running)
                if self.asked_to_stop:
                    raise StoppedError(self.asked_to_stop)
        outcomes = list(self.outcomes.values())
        say(report.table(outcomes, self._now(), self.cores))
        return not any(outcome.failure for outcome in outcomes)

    def ask_to_stop(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        self.asked_to_stop = signal.Signals(number).name

    def end(self) -> None:
        """End what still runs, and say what it was at."""
        for running in self.running:
            running.end()
            seconds = self._now() - running.started
            say(report.block(Outcome(running.job, "stopped", seconds=seconds), running.log))
        self.running.clear()

    def _now(self) -> float:
        return time.monotonic() - self.begin

    def _start_what_may(self) -> None:
        while True:
            coming = {job.name for job in self.waiting} | {one.job.name for one in self.running}
            ready = [job for job in self.waiting if not coming & set(job.needs)]
            ends = {one.job: one.started + one.job.seconds for one in self.running}
            job = choose(ready, ends, self.chain, self.cores, self._now())
            if job is None:
                return
            self.waiting.remove(job)
            say([f"=== {job.name} started at {self._now():.0f} s"])
            self.started += 1
            self.running.append(Running(job, self.started, self.work, self.functions, self._now()))

    def _look_at(self, running: Running) -> None:
        seconds = self._now() - running.started
        if running.ended():
            self._finish(running, running.failure(), seconds, running.left_behind())
        elif seconds > running.job.limit_s:
            looks = list(autopsy.stacks(running.process.pid, running.tmp, self.work))
            running.end()
            self._finish(running, f"time-out, limit {running.job.limit_s:.0f} s", seconds, looks)

    def _finish(self, running: Running, failure: str, seconds: float, notes: list[str]) -> None:
        failure = failure or ("left processes behind" if notes else "")
        known = list(autopsy.what_it_knows(running.log, running.own_logs)) if failure else []
        outcome = Outcome(
            running.job,
            failure,
            started=running.started,
            seconds=seconds,
            cpu_s=running.cpu_s,
            why=report.shortly(running.log, known, notes) if failure else (),
        )
        self.running.remove(running)
        self.outcomes[running.job.name] = outcome
        say([*report.block(outcome, running.log), *notes])
        if failure:
            say(known)
            self._give_up_after(running.job)
        say([""])

    def _give_up_after(self, failed: Job) -> None:
        for job in [job for job in self.waiting if failed.name in job.needs]:
            if job in self.waiting:  # not already because of another one's need
                self.waiting.remove(job)
                self.outcomes[job.name] = Outcome(job, f"{failed.name} failed", ran=False)
                say([f"=== {job.name} not run: {failed.name} failed or was not run"])
                self._give_up_after(job)


def say(lines: Iterable[str]) -> None:
    """Print lines, at once."""
    for line in lines:
        print(line)
    sys.stdout.flush()


def load_plan() -> ModuleType:
    """plan.py, or what CI_PLAN names."""
    path = os.environ.get("CI_PLAN", str(_HERE / "plan.py"))
    spec = importlib.util.spec_from_file_location("plan_to_run", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def wanted(plan: ModuleType, names: Sequence[str]) -> list[Job]:
    """The named jobs and what they need; those of CI if there are no names."""
    table: tuple[Job, ...] = plan.CI + plan.LONG
    expanded = [] if names else [job.name for job in plan.CI]
    for name in names:
        expanded += [job.name for job in plan.LONG] if name == "long" else [name]
    there = {job.name for job in table if job.leaves and Path(job.leaves).exists()}
    if "long" in names:
        there.clear()  # a night is not spent on an extension of yesterday
    return with_needs(expanded, table, frozenset(there))


def main() -> int:
    """Run it. The exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--work", type=Path, required=True, help="a folder for this run")
    parser.add_argument("jobs", nargs="*", help="long: those of a night; default: those of CI")
    options = parser.parse_args()
    plan = load_plan()
    if options.list:
        say(report.listing([*plan.CI, *plan.LONG]))
        return 0
    try:
        jobs = wanted(plan, options.jobs)
    except ValueError as error:
        parser.error(str(error))
    cores = int(os.environ.get("CI_CORES", min(2, os.cpu_count() or 1)))
    functions = os.environ.get("CI_JOBS", str(_HERE / "jobs.sh"))
    scheduler = Scheduler(jobs, options.work, functions, cores)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, scheduler.ask_to_stop)
    processes.adopt_orphans()
    # A shell ignores it in what it starts with &, and jobs would inherit that.
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    try:
        return 0 if scheduler.run() else 1
    except StoppedError as stopped:
        say([f"=== {stopped}"])
        return 1
    finally:
        scheduler.end()
        if scheduler.asked_to_stop:
            say(["CI FAILED: it was stopped"])


if __name__ == "__main__":
    sys.exit(main())
