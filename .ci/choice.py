"""Which job starts next: pure functions of what is ready, what runs, and when that should end.

Invariants:
1. A job starts only if its weight fits beside what runs; one that runs alone has no neighbour.
2. The order is strict. First is the ready job with the longest chain: its own expected seconds and
   those of what depends on it. If it does not fit it waits, and nothing may delay it: a later job
   takes the idle core only if it should end before the first could start. So no job of two cores
   is starved by small ones. Where an estimate was too low, the core stays idle instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from graphlib import TopologicalSorter

from plan import Job


def with_needs(wanted: Iterable[str], table: Sequence[Job], there: frozenset[str]) -> list[Job]:
    """The wanted jobs, and what they need but for what is ``there``, in the table's order."""
    by_name = {job.name: job for job in table}
    if len(by_name) != len(table):
        raise ValueError("two jobs have one name")
    names: set[str] = set()
    todo = list(wanted)
    unknown = {*todo, *(need for job in table for need in job.needs)} - by_name.keys()
    if unknown:
        raise ValueError(f"no such job: {', '.join(sorted(unknown))}")
    while todo:
        name = todo.pop()
        if name not in names:
            names.add(name)
            todo += [need for need in by_name[name].needs if need not in there]
    return [job for job in table if job.name in names]


def chains(jobs: Sequence[Job]) -> dict[str, float]:
    """How many seconds each job and the longest chain of its dependents should take."""
    dependents: dict[str, list[str]] = {job.name: [] for job in jobs}
    for job in jobs:
        for need in job.needs:
            if need in dependents:
                dependents[need].append(job.name)
    seconds = {job.name: job.seconds for job in jobs}
    chain: dict[str, float] = {}
    for name in TopologicalSorter(dependents).static_order():  # dependents come first
        chain[name] = seconds[name] + max((chain[after] for after in dependents[name]), default=0)
    return chain


def choose(
    ready: Sequence[Job],
    ends: Mapping[Job, float],
    chain: Mapping[str, float],
    cores: int,
    now: float,
) -> Job | None:
    """The job to start now, if any. ``ends``: what runs, and when that should end."""
    ordered = sorted(ready, key=lambda job: -chain[job.name])
    if not ordered:
        return None
    if _fits(ordered[0], ends, cores):
        return ordered[0]
    until = _when(ordered[0], ends, cores, now)
    for job in ordered[1:]:
        if _fits(job, ends, cores) and now + job.seconds <= until:
            return job
    return None


def _fits(job: Job, running: Iterable[Job], cores: int) -> bool:
    """A job that is heavier than the machine weighs as much as the machine."""
    running = list(running)
    if job.alone or any(other.alone for other in running):
        return not running
    return sum(min(other.weight, cores) for other in [*running, job]) <= cores


def _when(job: Job, ends: Mapping[Job, float], cores: int, now: float) -> float:
    """When the job should fit. What runs for longer than expected may end at any moment."""
    left = sorted(ends, key=lambda other: ends[other])
    moment = now
    while left and not _fits(job, left, cores):
        moment = max(now, ends[left.pop(0)])
    return moment
