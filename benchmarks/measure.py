"""What is measured: samples, and their medians over several rounds."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Sample:
    """One measurement of one implementation of a workload."""

    workload: str
    implementation: str
    ops: int
    seconds: float
    bytes: int = 0


@dataclass(frozen=True)
class Case:
    """One implementation of one workload; ``run`` prepares, measures, cleans up."""

    workload: str
    implementation: str
    run: Callable[[], Sample]


@dataclass(frozen=True)
class Result:
    """The median of all samples of one implementation of one workload."""

    workload: str
    implementation: str
    ops: int
    ns_per_op: float
    bytes: int
    seconds: float
    repeats: int

    def json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def seconds_of(work: Callable[[], object]) -> float:
    """How long ``work`` takes. The garbage collector does not run meanwhile."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    finally:
        if enabled:
            gc.enable()


def results(samples: list[Sample]) -> list[Result]:
    """The medians, in the order in which the implementations first appeared."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.workload, sample.implementation), []).append(sample)
    return [_median(group) for group in groups.values()]


def _median(samples: list[Sample]) -> Result:
    first = samples[0]
    seconds = statistics.median(sample.seconds for sample in samples)
    return Result(
        workload=first.workload,
        implementation=first.implementation,
        ops=first.ops,
        ns_per_op=seconds * 1e9 / first.ops,
        bytes=round(statistics.median(sample.bytes for sample in samples)),
        seconds=seconds,
        repeats=len(samples),
    )
