"""Which signals of a memory cgroup to watch for a level of pressure. Row N1.

The process's own group and every ancestor that lets us: reclaim at an ancestor's limit takes our
memory too, but is reported to that ancestor and above, never below. An error at the own group is
the caller's; an ancestor that refuses is only left out.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable
from pathlib import Path

from pgalloc.pressure.cgroup import MemoryCgroup
from pgalloc.pressure.signals import Level, PressureSource, PsiTrigger, V1PressureLevel, V2Events

_log = logging.getLogger("pgalloc.pressure")

# v2 counts occurrences where v1 judges severity; these are the nearest equivalents. "high" and
# "max" are reclaim at memory.high and memory.max; "oom" is an allocation about to fail. Reclaim
# at memory.max must count as low: where memory.high is not set it is the first sign there is.
_V2_COUNTERS: dict[Level, frozenset[str]] = {
    "low": frozenset({"high", "max", "oom", "oom_kill"}),
    "medium": frozenset({"max", "oom", "oom_kill"}),
    "critical": frozenset({"oom", "oom_kill"}),
}

# Low is systemd's default, 200 ms in 2 s (DefaultMemoryPressureThresholdSec=).
_PSI_WINDOW_US = 2_000_000
_PSI_LOW_US, _PSI_MEDIUM_US, _PSI_CRITICAL_US = 200_000, 600_000, 400_000


class NoMemoryCgroupError(OSError):
    """No memory controller, or none of its files can signal pressure here (errno ENOENT)."""


def open_sources(group: MemoryCgroup, level: Level) -> list[PressureSource]:
    """Opens the signals of the group and of its ancestors.

    Raises OSError (NoMemoryCgroupError if there is nothing to open) with nothing left open.
    """
    sources: list[PressureSource] = []
    try:
        for directory in group.levels():
            try:
                sources.append(_open_level(group, directory, level))
            except OSError as error:
                # The v2 root group has no event counters; its pressure file may still do.
                if directory == group.directory and not _is_v2_root(group, directory):
                    raise
                _log.debug("not watching %s: %s", directory, error)
        if group.version == "v2":
            try:
                sources.append(_open_psi(group.directory / "memory.pressure", level))
            except OSError as error:
                _log.debug("no PSI trigger in %s: %s", group.directory, error)
        if not sources:
            raise NoMemoryCgroupError(errno.ENOENT, "no pressure files", str(group.directory))
    except BaseException:
        close_all(sources)
        raise
    return sources


def close_all(sources: Iterable[PressureSource]) -> None:
    """Closes every source; harmless when repeated."""
    for source in sources:
        source.close()


def _open_level(group: MemoryCgroup, directory: Path, level: Level) -> PressureSource:
    if group.version == "v1":
        return V1PressureLevel(directory, level)
    return V2Events(directory / "memory.events", _V2_COUNTERS[level])


def _open_psi(file: Path, level: Level) -> PsiTrigger:
    if level == "critical":
        return PsiTrigger(file, "full", stall_us=_PSI_CRITICAL_US, window_us=_PSI_WINDOW_US)
    stall_us = _PSI_LOW_US if level == "low" else _PSI_MEDIUM_US
    return PsiTrigger(file, "some", stall_us=stall_us, window_us=_PSI_WINDOW_US)


def _is_v2_root(group: MemoryCgroup, directory: Path) -> bool:
    return group.version == "v2" and not (directory / "memory.events").exists()
