"""How much memory this process may still commit: the limit, what is used, what is left.

A container's limit counts, not the host's memory; and every ancestor's limit counts, because the
kernel charges each level and the tightest one kills. Sources: Documentation/admin-guide/
cgroup-v1/memory.rst, cgroup-v2.rst ("Memory Interface Files"), accounting/psi.rst, and
systemd's "Memory Pressure Handling" (MEMORY_PRESSURE_WATCH).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pgalloc.pressure.cgroup import MemoryCgroup, find_memory_cgroup

Source = Literal["v1", "v2", "systemd", "psi", "none"]
"""Kinds of sources of pressure signals that are found from outside; "none": there is none."""

# "Unlimited" in v1 is LONG_MAX rounded down to a page, which depends on the page size. No machine
# has 2^62 bytes, so anything from there on means the same.
_V1_UNLIMITED_BYTES = 1 << 62


@dataclass(frozen=True, slots=True)
class LimitLevel:
    """One level of the cgroup tree, in bytes.

    Attributes:
        directory: where its files are.
        limit: the smaller of v2's ``memory.max`` and ``memory.high``, or v1's limit; None: none.
        usage: everything charged at this level, the page cache of ordinary files included.
        reclaimable: inactive page cache of ordinary files, which the kernel drops before it kills.
    """

    directory: str
    limit: int | None
    usage: int
    reclaimable: int

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
    levels = _levels(group) if group is not None else ()
    machine_total, machine_available = _machine(Path(proc))
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


def charged_directories(group: MemoryCgroup) -> list[Path]:
    """The directories whose usage counts what this process commits, the group's own first."""
    usage = "memory.usage_in_bytes" if group.version == "v1" else "memory.current"
    charged: list[Path] = []
    for directory in group.levels():
        if charged and _number(directory / "memory.use_hierarchy") == 0:
            break  # v1 kernels before 5.11: such a parent is not charged for its children
        # The root group of v2, and levels without the controller, have no such file.
        if _number(directory / usage) is not None:
            charged.append(directory)
    return charged


def _levels(group: MemoryCgroup) -> tuple[LimitLevel, ...]:
    is_v1 = group.version == "v1"
    look = _look_at_v1 if is_v1 else _look_at_v2
    levels = [look(directory) for directory in charged_directories(group)]
    if is_v1 and levels:
        levels.extend(_hidden_level_v1(group, levels))
    return tuple(levels)


def _look_at_v2(directory: Path) -> LimitLevel:
    usage = _number(directory / "memory.current") or 0
    limits = [_number(directory / name) for name in ("memory.max", "memory.high")]
    limit = min((value for value in limits if value is not None), default=None)
    reclaimable = _stat(directory).get("inactive_file", 0)
    return LimitLevel(str(directory), limit, usage, reclaimable)


def _look_at_v1(directory: Path) -> LimitLevel:
    usage = _number(directory / "memory.usage_in_bytes") or 0
    limit = _v1_limit(_number(directory / "memory.limit_in_bytes"))
    reclaimable = _stat(directory).get("total_inactive_file", 0)
    return LimitLevel(str(directory), limit, usage, reclaimable)


def _hidden_level_v1(group: MemoryCgroup, seen: list[LimitLevel]) -> list[LimitLevel]:
    """A limit above the mount point, which only ``hierarchical_memory_limit`` betrays."""
    limit = _v1_limit(_stat(group.directory).get("hierarchical_memory_limit"))
    if limit is None or any(level.limit is not None and level.limit <= limit for level in seen):
        return []
    top = seen[-1]
    return [LimitLevel(f"above {group.mount_point}", limit, top.usage, top.reclaimable)]


def _v1_limit(value: int | None) -> int | None:
    return None if value is None or value >= _V1_UNLIMITED_BYTES else value


def _machine(proc: Path) -> tuple[int, int]:
    """MemTotal and MemAvailable; without a readable meminfo what sysconf(3) knows."""
    amounts: dict[str, int] = {}
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            amounts[name] = int(rest.split()[0]) * 1024
        return amounts["MemTotal"], amounts["MemAvailable"]
    except (OSError, ValueError, IndexError, KeyError):
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page


def _stat(directory: Path) -> dict[str, int]:
    try:
        pairs = (line.split() for line in (directory / "memory.stat").read_text().splitlines())
        return {name: int(value) for name, value in pairs}
    except (OSError, ValueError):
        return {}


def _number(file: Path) -> int | None:
    """The number in a one-line file; None for "max", or if it cannot be read."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
