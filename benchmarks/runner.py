"""Runs everything in turns, so that no implementation has the machine for itself."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import (
    arrays,
    caches,
    churn,
    driver,
    eviction,
    give_back,
    guard,
    huge_pages,
    kv,
    mapping,
    pairs,
    populate,
    references,
    sharing,
    sharing_memory,
    snapshots,
    usage,
)
from benchmarks.goals import BY_NAME
from benchmarks.measure import GIB, Case, Result, Sample, results

_FAMILIES = (
    pairs,
    references,
    mapping,
    populate,
    give_back,
    churn,
    huge_pages,
    usage,
    eviction,
    snapshots,
    arrays,
    kv,
    caches,
    guard,
    sharing,
    sharing_memory,
)
CASES: list[Case] = [case for family in _FAMILIES for case in family.CASES]


def warm_up() -> None:
    """Touch 4 GiB: memory the machine has not seen for a while is slow to come."""
    size = 4 * GIB
    with mmap.mmap(-1, size) as memory:
        for offset in range(0, size, mmap.PAGESIZE):
            memory[offset] = 1


def measure(
    workloads: Sequence[str],
    repeats: int,
    driver_path: Path | None,
    progress: Callable[[str], None],
) -> list[Result]:
    """The medians of ``repeats`` rounds, in the order of ``workloads``."""
    samples: list[Sample] = []
    warm_up()
    for round_number in range(repeats):
        for part in _parts(workloads, driver_path, round_number):
            progress(f"round {round_number + 1} of {repeats}: {part.workload}")
            samples += part.run()
    wanted = [result for result in results(samples) if result.workload in workloads]
    return sorted(wanted, key=lambda result: workloads.index(result.workload))


class _Part:
    """One step of a round: a Python case, or a run of the driver."""

    def __init__(self, workload: str, run: Callable[[], list[Sample]]) -> None:
        self.workload = workload
        self.run = run


def _parts(workloads: Sequence[str], driver_path: Path | None, round_number: int) -> list[_Part]:
    parts: list[_Part] = []
    runs_of_driver: set[str] = set()
    for workload in workloads:
        name = BY_NAME[workload].driver
        if name is not None and driver_path is not None and name not in runs_of_driver:
            runs_of_driver.add(name)
            parts.append(_driver_part(workload, driver_path, name, round_number))
        parts += [_case_part(case) for case in CASES if case.workload == workload]
    return parts if round_number % 2 == 0 else parts[::-1]


def _driver_part(workload: str, driver_path: Path, name: str, round_number: int) -> _Part:
    return _Part(workload, lambda: driver.run(driver_path, name, round_number))


def _case_part(case: Case) -> _Part:
    return _Part(case.workload, lambda: [case.run()])
