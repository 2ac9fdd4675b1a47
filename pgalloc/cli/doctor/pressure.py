"""What the doctor finds out about memory limits and pressure. Prints nothing."""

from __future__ import annotations

from dataclasses import dataclass

from pgalloc.cli.units import format_bytes, format_path
from pgalloc.pressure import GuardedLimit, GuardStatus, Monitor, PressureInfo, info
from pgalloc.pressure.discovery import Attempt, try_everything


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. ``good`` is False where something useful is missing, which is never fatal."""

    name: str
    found: str
    meaning: str
    good: bool = True


@dataclass(frozen=True, slots=True)
class PressureDiagnosis:
    """Limits, guard and sources; ``at_the_limit`` says in words what pgalloc will do."""

    pressure: PressureInfo
    guard: GuardStatus
    attempts: list[Attempt]
    limits: list[Finding]
    sources: list[Finding]
    at_the_limit: list[str]


# What a source of each kind is good for.
_KINDS = {
    "guard": "tells when the headroom is touched",
    "v1": "memory.pressure_level: tells of reclaim, often late",
    "v2": "memory.events: counts reclaim at memory.high and memory.max",
    "systemd": "MEMORY_PRESSURE_WATCH: what the service manager wants watched",
    "psi": "tells when tasks have to wait for memory",
}


def examine_pressure() -> PressureDiagnosis:
    """Looks at the limits, and opens every source once. Never raises for what it finds."""
    pressure = info()
    with Monitor() as monitor:
        guard = monitor.info().guard
    attempts = try_everything()
    return PressureDiagnosis(
        pressure,
        guard,
        attempts,
        limits=[*_limits(pressure, guard), _guard(guard)],
        sources=_sources(attempts),
        at_the_limit=_at_the_limit(guard, attempts),
    )


def _limits(pressure: PressureInfo, guard: GuardStatus) -> list[Finding]:
    if pressure.cgroup_path is None:
        cgroup = Finding("cgroup", "none found", "only the machine's own memory counts", good=False)
    else:
        path = format_path(pressure.cgroup_path)
        version = next(source for source in pressure.sources if source in ("v1", "v2"))
        cgroup = Finding("cgroup", version, path)
    if pressure.limit is None:
        limit = Finding("limit", "none", "the machine's memory is the limit")
    else:
        where = next(level for level in pressure.levels if level.limit == pressure.limit)
        own = where == pressure.levels[0]
        meaning = "of this cgroup" if own else f"of {format_path(where.directory)}"
        limit = Finding("limit", format_bytes(pressure.limit), meaning)
    return [
        cgroup,
        limit,
        Finding("usage", format_bytes(pressure.usage), "charged there now"),
        Finding("headroom", format_bytes(pressure.headroom), "can still be committed"),
        *_levels(pressure, guard),
    ]


def _levels(pressure: PressureInfo, guard: GuardStatus) -> list[Finding]:
    """Every level that has a limit, and which of them will be hit first."""
    limited = [level for level in pressure.levels if level.limit is not None]
    tightest = min(limited, key=lambda level: level.headroom or 0, default=None)
    guarded = {level.directory for level in guard.levels}
    findings = []
    for level in limited:
        left = f"{format_bytes(level.headroom or 0)} of {format_bytes(level.limit or 0)} left"
        words = [format_path(level.directory)]
        if level is tightest:
            words.append("(the tightest)")
        if level.directory not in guarded:
            words.append("(not guarded: its files are not visible here)")
        findings.append(Finding("level", left, " ".join(words), level.directory in guarded))
    return findings


def _guard(guard: GuardStatus) -> Finding:
    tightest = guard.tightest
    if tightest is None:
        return Finding("guard", "sees no limit", "nothing is discarded in time", good=False)
    where = "of the machine" if _is_machine(tightest) else "below the tightest limit"
    return Finding("guard", f"keeps {format_bytes(guard.headroom)} free", where)


def _sources(attempts: list[Attempt]) -> list[Finding]:
    """One line for each kind: how many can be opened, or why the first cannot."""
    findings = []
    for kind in dict.fromkeys(attempt.kind for attempt in attempts):
        tried = [attempt for attempt in attempts if attempt.kind == kind]
        opened = [attempt for attempt in tried if not attempt.error]
        if opened:
            found = "opened" if len(tried) == 1 else f"{len(opened)} of {len(tried)} opened"
        else:
            found = f"no: {tried[0].error}"
        findings.append(Finding(f"source {kind}", found, _KINDS.get(kind, ""), bool(opened)))
    working = ", ".join(dict.fromkeys(a.kind for a in attempts if not a.error))
    heading = Finding(
        "pressure sources",
        working or "none",
        "opened just now: what can warn before the limit is hit",
        good=bool(working),
    )
    return [heading, *findings]


def _at_the_limit(guard: GuardStatus, attempts: list[Attempt]) -> list[str]:
    tightest = guard.tightest
    if tightest is None:
        return [
            "No limit can be seen from here, so nothing is discarded before the kernel runs out "
            "of memory."
        ]
    sentences = [
        f"When less than {format_bytes(guard.headroom)} is left below {_name_of(tightest)}, "
        "pgalloc discards unpinned memory, oldest first, and cache entries, until a quarter more "
        "than that is left. A native thread does it; it needs neither the GIL nor a signal.",
        "Memory in use is never taken: evictable users are asked to let go of theirs, and "
        "allocations that commit at once fail with OutOfMemoryError if they would pass the limit. "
        "If what is in use passes it all the same, the kernel kills the process.",
    ]
    if all(attempt.error for attempt in attempts):
        sentences.append(
            "No source of signals can be opened: MemoryFile(use_host_memcg_pressure=True) and "
            "Monitor.subscribe() fail here."
        )
    return sentences


def _name_of(level: GuardedLimit) -> str:
    limit = format_bytes(level.limit or 0)
    if _is_machine(level):
        return f"the machine's {limit}"
    return f"the {limit} of {format_path(level.directory)}"


def _is_machine(level: GuardedLimit) -> bool:
    return level.directory.endswith("/meminfo")
