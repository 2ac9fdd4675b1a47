"""How much memory this process may still commit: the limit, what is used, what is left.

A container's limit counts, not the host's memory; and every ancestor's limit counts, because the
kernel charges each level and the tightest one kills. The core reads the limits, for this and for
the guard alike. Sources: accounting/psi.rst of the kernel's documentation, and systemd's "Memory
Pressure Handling" (MEMORY_PRESSURE_WATCH).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pgalloc.pressure import guard
from pgalloc.pressure.cgroup import MemoryCgroup, find_memory_cgroup

Source = Literal["v1", "v2", "systemd", "psi", "none"]
"""Kinds of sources of pressure signals that are found from outside; "none": there is none."""


@dataclass(frozen=True, slots=True)
class LimitLevel:
    """One level of the cgroup tree, in bytes.

    Attributes:
        directory: where its files are.
        limit: the smaller of v2's ``memory.max`` and ``memory.high``, or v1's limit; None: none.
        usage: everything charged at this level, the page cache of ordinary files included.
        reclaimable: what the kernel drops before it kills: page cache of ordinary files, but for
            what has to be written first; on v2 also half of the slab that it calls reclaimable.
        kernel: memory of the kernel that is charged here, slab included. On v1 the kernel does not
            tell how much of it could be given back: none of it counts as reclaimable.
        swap_room: what may still be swapped out here; None if this level sets no bound to it.
    """

    directory: str
    limit: int | None
    usage: int
    reclaimable: int
    kernel: int = 0
    swap_room: int | None = None

    @property
    def headroom(self) -> int | None:
        """Bytes left below this level's limit; None without a limit."""
        if self.limit is None:
            return None
        return max(0, self.limit - self.usage + min(self.reclaimable, self.usage))


@dataclass(frozen=True, slots=True)
class PressureInfo:
    """What :func:`info` found; all amounts in bytes.

    Attributes:
        limit: the smallest limit of the group and all its ancestors; None if none has one.
        usage: what is charged at the level that has ``limit``; without a limit, to the group
            itself; without a group, what the whole machine uses.
        headroom: what can still be committed before the tightest level or the machine itself is
            full. Not always ``limit - usage``: another level may be tighter, and page cache that
            can be dropped counts as free.
        source: the best of ``sources``, or "none".
        cgroup_path: the group as /proc/self/cgroup names it; None without a memory controller.
        levels: every level that can be seen, the group's own first.
        sources: every source of pressure signals here, the best first.
        machine_total: MemTotal.
        machine_available: MemAvailable.
    """

    limit: int | None
    usage: int
    headroom: int
    source: Source
    cgroup_path: str | None
    levels: tuple[LimitLevel, ...]
    sources: tuple[Source, ...]
    machine_total: int
    machine_available: int


def info(
    *,
    proc: str | os.PathLike[str] = "/proc",
    root: str | os.PathLike[str] = "/",
    environ: Mapping[str, str] | None = None,
) -> PressureInfo:
    """Looks at the machine now; cheap enough (tens of file reads) to call every second.

    Args: ``proc`` and ``root`` as in :func:`pgalloc.pressure.cgroup.find_memory_cgroup`;
    ``environ`` instead of :data:`os.environ`, for systemd's variable.

    Never raises for what it finds, only TypeError for bad arguments.
    """
    if environ is not None and not isinstance(environ, Mapping):
        raise TypeError(f"environ must be a mapping, not {type(environ).__name__}")
    group = find_memory_cgroup(proc=proc, root=root)
    levels, machine_total, machine_available = _look(Path(proc), root)
    limited = [level for level in levels if level.limit is not None]
    tightest = min(limited, key=lambda level: level.limit or 0, default=None)
    if tightest is not None:
        usage = tightest.usage
    elif levels:
        usage = levels[0].usage
    else:
        usage = machine_total - machine_available
    sources = _sources(group, Path(proc), os.environ if environ is None else environ)
    return PressureInfo(
        limit=tightest.limit if tightest is not None else None,
        usage=usage,
        headroom=min([machine_available, *(level.headroom or 0 for level in limited)]),
        source=sources[0] if sources else "none",
        cgroup_path=group.path if group is not None else None,
        levels=levels,
        sources=sources,
        machine_total=machine_total,
        machine_available=machine_available,
    )


def _sources(
    group: MemoryCgroup | None, proc: Path, environ: Mapping[str, str]
) -> tuple[Source, ...]:
    found: list[Source] = []
    if group is not None:
        found.append(group.version)
    # systemd sets /dev/null where it wants the service not to watch at all.
    if environ.get("MEMORY_PRESSURE_WATCH", "/dev/null") != "/dev/null":
        found.append("systemd")
    if (proc / "pressure" / "memory").exists():
        found.append("psi")
    return tuple(found)


def _look(proc: Path, root: str | os.PathLike[str]) -> tuple[tuple[LimitLevel, ...], int, int]:
    """The levels of the group; MemTotal and MemAvailable, or what sysconf(3) knows of them."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, available = (os.sysconf(name) * page for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    levels = []
    for found in guard.look_at_limits(proc, root):
        if found["kind"] == "machine":
            total, available = found["limit"], found["available"]
            continue
        figures = ("limit", "usage", "reclaimable", "kernel", "swap_room")
        levels.append(
            LimitLevel(guard.name_of_level(found), *(found[figure] for figure in figures))
        )
    return tuple(levels), total, available
