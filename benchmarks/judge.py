"""What the figures mean: ratios to the limit, to pgalloc and to the goals. No output here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.goals import BY_NAME, Goal, Workload
from benchmarks.measure import Result

_CORE = ("core", "core, 1 thread")
_OURS = (*_CORE, "python", "Allocation", "python, populated")


@dataclass(frozen=True)
class Line:
    """One implementation of one workload, judged."""

    workload: Workload
    implementation: str
    figure: float
    goal: float | None
    """What the figure is to be at most."""
    to_limit: float | None
    """For pgalloc: its figure as a multiple of the limit's."""
    to_ours: float | None
    """For a peer: its figure as a multiple of pgalloc's."""

    @property
    def is_ours(self) -> bool:
        """Whether pgalloc did it."""
        return self.implementation in _OURS

    @property
    def is_limit(self) -> bool:
        """Whether it does no more than what cannot be avoided."""
        return self.implementation in (self.workload.limit, self.workload.python_limit)

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is met, if there is one."""
        return None if self.goal is None else self.figure <= self.goal


def judge(results: Sequence[Result]) -> list[Line]:
    """All lines, in the order of the results; within a workload pgalloc, limit, peers."""
    figures = {(result.workload, result.implementation): _figure(result) for result in results}
    lines = [_line(result, figures) for result in results]
    order = {workload: number for number, workload in enumerate(BY_NAME)}
    return sorted(lines, key=lambda line: (order[line.workload.name], _rank(line)))


def _figure(result: Result) -> float:
    if BY_NAME[result.workload].unit == "bytes":
        return result.bytes / result.ops
    return result.ns_per_op


def _rank(line: Line) -> int:
    if line.is_ours:
        return _OURS.index(line.implementation)
    return len(_OURS) + (0 if line.is_limit else 1)


def _line(result: Result, figures: dict[tuple[str, str], float]) -> Line:
    workload, implementation = BY_NAME[result.workload], result.implementation
    figure = _figure(result)
    ours = figures.get((workload.name, "python"), figures.get((workload.name, "core")))
    is_ours = implementation in _OURS
    is_peer = not is_ours and implementation not in (workload.limit, workload.python_limit)
    limit = workload.limit if implementation in _CORE else workload.python_limit or workload.limit
    limit_figure = figures.get((workload.name, limit)) if limit is not None else None
    return Line(
        workload=workload,
        implementation=implementation,
        figure=figure,
        goal=_goal(workload, implementation, figures),
        to_limit=figure / limit_figure if is_ours and limit_figure else None,
        to_ours=figure / ours if is_peer and ours else None,
    )


def _goal(
    workload: Workload, implementation: str, figures: dict[tuple[str, str], float]
) -> float | None:
    for goal in workload.goals:
        if goal.implementation == implementation:
            return _absolute(workload, goal, figures)
    return None


def _absolute(
    workload: Workload, goal: Goal, figures: dict[tuple[str, str], float]
) -> float | None:
    if goal.of is None:
        return goal.at_most
    of = figures.get((workload.name, goal.of))
    return None if of is None else goal.at_most * of
