"""What ``pgalloc demo workers`` promises, and whether it was kept.

The memory that the data costs is what a crew has more than one that was handed nothing and is the
same otherwise: interpreters, modules, digests. With pgalloc it may be COPIES_MAX times one copy of
the data, and GRAIN for each process, because heaps grow in steps and two runs of the same program
are not equal to the page.
"""

from __future__ import annotations

from collections.abc import Sequence

from pgalloc.cli.units import format_bytes, format_count
from pgalloc.cli.workers.crew import Crew, State
from pgalloc.cli.workers.data import DataSet
from pgalloc.cli.workers.ways import NOTHING, PGALLOC

COPIES_MAX = 1.1
GRAIN = 1 << 20


def cost_of(crew: Crew, crews: Sequence[Crew]) -> int:
    """What the data costs a crew, in bytes."""
    return crew.nbytes - _crew_of(NOTHING, crews).nbytes


def judge(crews: Sequence[Crew], data: DataSet) -> list[str]:
    """Everything that is not as promised, in words; empty means success."""
    if not data.nbytes:
        return ["there was nothing to load, so nothing was verified"]
    problems = [problem for crew in crews for problem in _problems_of(crew, data)]
    return problems or _problems_of_pgalloc(crews, data)


def verdict(crews: Sequence[Crew], data: DataSet, problems: Sequence[str], dash: str) -> str:
    """The last line: OK with the amounts, or FAILED with the problems."""
    if problems:
        return f"demo workers: FAILED {dash} {'; '.join(problems)}"
    crew = _crew_of(PGALLOC, crews)
    amount = f"{format_count(len(data.files), 'file')}, {format_bytes(data.nbytes)}"
    return (
        f"demo workers: OK {dash} {amount}: every digest matched; with pgalloc "
        f"{cost_of(crew, crews) / data.nbytes:.2f} x one copy for all {crew.workers + 1} "
        "processes, and nothing left behind"
    )


def _problems_of(crew: Crew, data: DataSet) -> list[str]:
    if crew.state is not State.KILLED:
        reason = crew.errors.rpartition("\n")[2]
        return [": ".join(filter(None, (crew.way, crew.state.value, reason)))]
    expected = 0 if crew.way == NOTHING else crew.workers * len(data.files)
    if crew.wrong or crew.digests != expected:
        wrong = format_count(crew.wrong, "wrong digest")
        return [f"{crew.way}: {wrong}, {crew.digests:,} right ones of {expected:,}"]
    return []


def _problems_of_pgalloc(crews: Sequence[Crew], data: DataSet) -> list[str]:
    crew = _crew_of(PGALLOC, crews)
    left = crew.left
    problems = []
    cost, allowed = cost_of(crew, crews), int(data.nbytes * COPIES_MAX) + GRAIN * (crew.workers + 1)
    if cost > allowed:
        problems.append(
            f"{PGALLOC}: {format_bytes(cost)} for {format_bytes(data.nbytes)}, "
            f"which is more than {format_bytes(allowed)}"
        )
    if left:
        problems.append(
            f"{PGALLOC}: left behind processes {list(left.processes)}, "
            f"names {[str(name) for name in left.names]}, {format_bytes(left.nbytes)}"
        )
    return problems


def _crew_of(way: str, crews: Sequence[Crew]) -> Crew:
    return next(crew for crew in crews if crew.way == way)
