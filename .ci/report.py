"""What CI prints: the jobs beforehand, the end of each job, the table, and why what failed did so.

Of a long output often only the end is kept, so that is where failures are told again, in short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autopsy import lines_of
from plan import Job

_SHORT = 60
_TAIL_PASSED = 40
_TAIL_FAILED = 200
_LATE = 1.5
_AGAIN = 25


@dataclass(frozen=True)
class Outcome:
    """What came of a job; ``failure`` is empty if it passed. ``cpu_s`` is measured.

    ``why`` are the lines that tell most about a failure, and are printed again at the end.
    """

    job: Job
    failure: str = ""
    ran: bool = True
    started: float = 0
    seconds: float = 0
    cpu_s: float = 0
    why: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.ran:
            return f"not run ({self.failure})"
        return f"FAILED ({self.failure})" if self.failure else "passed"


def block(outcome: Outcome, log: Path) -> Iterator[str]:
    """A job's end: its output if that is short, or the end of it."""
    when = "after" if outcome.failure else "in"
    yield f"\n=== {outcome.job.name} {outcome} {when} {outcome.seconds:.0f} s"
    lines = lines_of(log)
    tail = _TAIL_FAILED if outcome.failure else _TAIL_PASSED
    if len(lines) > max(_SHORT, tail):
        yield f"(the last {tail} of {len(lines)} lines)"
        lines = lines[-tail:]
    yield from lines


def shortly(log: Path, *telling: Sequence[str]) -> tuple[str, ...]:
    """Why a job failed: the first lines of what tells something, and the last of its log."""
    first = [line for lines in telling for line in lines[:_AGAIN]]
    return (*first, *lines_of(log)[-_AGAIN:])


def listing(jobs: Sequence[Job]) -> Iterator[str]:
    """The jobs of a plan."""
    yield f"{'job':<22} {'weight':>6} {'seconds':>8}  needs"
    for job in jobs:
        mark = "  alone" if job.alone else ""
        yield f"{job.name:<22} {job.weight:>6} {job.seconds:>8.0f}  {' '.join(job.needs)}{mark}"


def table(outcomes: Sequence[Outcome], wall_s: float, cores: int) -> Iterator[str]:
    """All jobs in the order of their starts, what they cost, and the verdict as the last line."""
    yield (
        f"\n{'job':<22} {'weight':>6} {'started':>8} {'seconds':>8} {'expected':>8} "
        f"{'cpu s':>8}  result"
    )
    for one in sorted(outcomes, key=lambda one: (not one.ran, one.started)):
        times = [f"{one.started:.0f}", f"{one.seconds:.0f}", f"{one.job.seconds:.0f}"]
        times += [f"{one.cpu_s:.0f}"]
        if not one.ran:
            times = ["", "", times[2], ""]
        yield (
            f"{one.job.name:<22} {one.job.weight:>6} "
            f"{' '.join(f'{time:>8}' for time in times)}  {one}"
        )
    cpu_s = sum(one.cpu_s for one in outcomes)
    booked_s = sum(min(one.job.weight, cores) * one.seconds for one in outcomes)
    used = cpu_s / (wall_s * cores) if wall_s else 0
    yield (
        f"wall time {wall_s:.0f} s; {cpu_s:.0f} core-seconds, {used:.0%} of {cores} cores; "
        f"{booked_s:.0f} were booked"
    )
    for one in outcomes:
        if one.ran and one.seconds > _LATE * one.job.seconds:
            yield (
                f"warning: {one.job.name} took {one.seconds:.0f} s, "
                f"{one.job.seconds:.0f} s were expected"
            )
    for one in outcomes:
        if one.why:
            yield f"\n--- {one.job.name} {one}:"
            yield from one.why
    failed = [one.job.name for one in outcomes if one.failure]
    if failed:
        yield f"CI FAILED in {wall_s:.0f} s: {' '.join(failed)}"
    else:
        yield f"CI passed in {wall_s:.0f} s"
