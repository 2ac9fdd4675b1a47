"""All the sources of pressure signals that this process can have.

In this order: the native guard, the memory cgroup and its ancestors (v1 levels or v2 counters),
then what says that tasks stall, of which the nearest is enough: what systemd wants to be watched,
or else the pressure file of the cgroup, or else that of the machine, where tasks of others count
that may only have reached limits of their own. To add a source to what every Monitor watches, add
it here.

Opening is the only way to know whether a source may be used, so nothing is promised before.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pgalloc.pressure import default_guard, systemd
from pgalloc.pressure.cgroup import MemoryCgroup, find_memory_cgroup
from pgalloc.pressure.descriptors import none_left
from pgalloc.pressure.guard import GuardSource
from pgalloc.pressure.memcg_sources import open_level
from pgalloc.pressure.psi import open_psi
from pgalloc.pressure.signals import LEVELS, PressureSource

_log = logging.getLogger("pgalloc.pressure")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A source that may exist: its kind, what it is in words, and how to open it.

    ``distance``: 0 if it is always of use; else it is opened only if none of those with a smaller
    distance could be.
    """

    kind: str
    name: str
    open: Callable[[], PressureSource]
    distance: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of trying a candidate; ``error`` is empty if it can be opened."""

    kind: str
    name: str
    error: str


def candidates(
    *,
    proc: str | os.PathLike[str] = "/proc",
    root: str | os.PathLike[str] = "/",
    environ: Mapping[str, str] | None = None,
) -> Iterator[Candidate]:
    """Every source that there is a sign of, the best first. Opens none of them.

    Args as :func:`pgalloc.pressure.info`.
    """
    environ = os.environ if environ is None else environ
    if default_guard.has_something_to_watch():
        yield Candidate("guard", "the native guard", GuardSource)
    group = find_memory_cgroup(proc=proc, root=root)
    if group is not None:
        yield from _of_group(group)
    yield from _of_stalls(group, Path(proc), environ)


def open_candidate(candidate: Candidate) -> PressureSource | None:
    """Opens one; None, and a line in the debug log, if it cannot be.

    Raises OSError if there are no descriptors left.
    """
    try:
        return candidate.open()
    except OSError as error:
        if none_left(error):
            raise
        _log.debug("not watching %s: %s", candidate.name, error)
        return None


def open_everything(environ: Mapping[str, str] | None = None) -> Iterator[PressureSource]:
    """Opens what can be opened here, one after another. The caller owns what it got."""
    nearest = 0
    for candidate in candidates(environ=environ):
        if nearest and candidate.distance > nearest:
            continue
        source = open_candidate(candidate)
        if source is not None:
            nearest = candidate.distance or nearest
            yield source


def try_everything(environ: Mapping[str, str] | None = None) -> list[Attempt]:
    """Opens each candidate and closes it again."""
    attempts = []
    for candidate in candidates(environ=environ):
        try:
            candidate.open().close()
            error = ""
        except OSError as refusal:
            error = refusal.strerror or str(refusal)
        attempts.append(Attempt(candidate.kind, candidate.name, error))
    return attempts


def _of_group(group: MemoryCgroup) -> Iterator[Candidate]:
    for directory in group.levels():
        # v1 tells a level only to those who asked for it; a v2 counter says its level itself.
        for level in LEVELS if group.version == "v1" else LEVELS[:1]:
            opens = functools.partial(open_level, group, directory, level)
            file = "memory.pressure_level" if group.version == "v1" else "memory.events"
            if (directory / file).exists():
                yield Candidate(group.version, f"{directory / file} {level}", opens)


def _of_stalls(
    group: MemoryCgroup | None, proc: Path, environ: Mapping[str, str]
) -> Iterator[Candidate]:
    if systemd.is_off(environ):
        return
    if systemd.is_set(environ):
        of_systemd = functools.partial(systemd.SystemdPressure, environ)
        yield Candidate("systemd", environ[systemd.WATCH], of_systemd, distance=1)
    files = [(proc / "pressure" / "memory", 3)]
    if group is not None and group.version == "v2":
        files.insert(0, (group.directory / "memory.pressure", 2))
    for file, distance in files:
        for level in LEVELS if file.exists() else ():
            opens = functools.partial(open_psi, file, level)
            yield Candidate("psi", f"{file} {level}", opens, distance)
