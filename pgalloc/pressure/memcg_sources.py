"""Which signals of a memory cgroup to watch for a level of pressure.

The process's own group and every ancestor that lets us: reclaim at an ancestor's limit takes our
memory too, but is reported to that ancestor and above, never below. Of an ancestor only its own
limit counts: what its other children do at theirs takes nothing from us. An error at the own group
is the caller's; an ancestor that refuses is only left out.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable
from pathlib import Path

from pgalloc.pressure.cgroup import MemoryCgroup
from pgalloc.pressure.descriptors import none_left
from pgalloc.pressure.psi import open_psi
from pgalloc.pressure.signals import (
    LEVELS,
    V2_LEVELS,
    Level,
    PressureSource,
    V1PressureLevel,
    V2Events,
)

_log = logging.getLogger("pgalloc.pressure")


class NoPressureSourceError(OSError):
    """There is nothing here that could signal pressure (errno ENOENT)."""


class NoMemoryCgroupError(NoPressureSourceError):
    """No memory controller, or none of its files can signal pressure here (errno ENOENT)."""


# Row N1.
def open_sources(group: MemoryCgroup, level: Level) -> list[PressureSource]:
    """Opens the signals of the group and of its ancestors.

    Raises OSError (NoMemoryCgroupError if there is nothing to open) with nothing left open.
    """
    sources: list[PressureSource] = []
    try:
        for directory in group.levels():
            try:
                sources.append(open_level(group, directory, level))
            except OSError as error:
                # The v2 root group has no event counters; its pressure file may still do.
                own = directory == group.directory and not _is_v2_root(group, directory)
                if own or none_left(error):
                    raise
                _log.debug("not watching %s: %s", directory, error)
        if group.version == "v2":
            try:
                sources.append(open_psi(group.directory / "memory.pressure", level))
            except OSError as error:
                if none_left(error):
                    raise
                _log.debug("no PSI trigger in %s: %s", group.directory, error)
        if not sources:
            raise NoMemoryCgroupError(errno.ENOENT, "no pressure files", str(group.directory))
    except BaseException:
        close_all(sources)
        raise
    return sources


def open_level(group: MemoryCgroup, directory: Path, level: Level) -> PressureSource:
    """Opens the signals of one directory of the path, at that level and above. Raises OSError."""
    is_ancestor = directory != group.directory
    if group.version == "v1":
        return V1PressureLevel(directory, level, local=is_ancestor)
    local = directory / "memory.events.local"  # Linux 5.2
    file = local if is_ancestor and local.exists() else directory / "memory.events"
    return V2Events(file, _counters(level))


def close_all(sources: Iterable[PressureSource]) -> None:
    """Closes every source; harmless when repeated."""
    for source in sources:
        source.close()


def _counters(level: Level) -> set[str]:
    """Where memory.high is not set, reclaim at memory.max is the first sign there is: so low has
    the counters of all levels."""
    least = LEVELS.index(level)
    return {name for name, its_level in V2_LEVELS.items() if LEVELS.index(its_level) >= least}


def _is_v2_root(group: MemoryCgroup, directory: Path) -> bool:
    return group.version == "v2" and not (directory / "memory.events").exists()
