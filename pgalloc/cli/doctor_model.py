"""What the doctor finds out, and what each finding means for the reader. Prints nothing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import pgalloc
from pgalloc.cli.doctor_trial import TrialStep, run_trial
from pgalloc.cli.units import format_bytes, format_path
from pgalloc.pressure import PressureInfo, PressureLevelListener, info
from pgalloc.pressure.kernel_features import Feature, probe_kernel_features


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. ``good`` is False where something useful is missing, which is never fatal."""

    name: str
    found: str
    meaning: str
    good: bool = True


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything; ``ok`` says whether what pgalloc needs works, which the trial decides."""

    machine: list[Finding]
    pressure: PressureInfo
    limits: list[Finding]
    features: tuple[Feature, ...]
    kernel: list[Finding]
    trial: list[TrialStep]

    @property
    def ok(self) -> bool:
        """Whether every step of the trial went well."""
        return not any(step.error for step in self.trial)


# For each feature: what it is called, what it means to have it, what it means to lack it.
_MEANINGS = {
    "memfd": (
        "memfd",
        "memory files need no disk",
        "MemoryFile() fails: give it a file on disk instead",
    ),
    "punch_hole": (
        "hole punching",
        "freed pages leave the machine at once",
        "freed memory is only zeroed, never given back",
    ),
    "populate_write": (
        "MADV_POPULATE_WRITE",
        "pages can be prefaulted in one call",
        "prefaulting falls back to mlock (Linux 5.14 has it)",
    ),
    "cachestat": (
        "cachestat",
        "usage scans of sparse files take milliseconds",
        "usage scans fall back to SEEK_DATA and mincore (Linux 6.5 has it)",
    ),
    "userfaultfd": (
        "userfaultfd",
        "pages can be filled when they are first touched",
        "nothing that this version needs",
    ),
    "shmem_huge_pages": (
        "huge pages (shmem)",
        "large allocations may use 2 MiB pages",
        "4 KiB pages only; MADV_HUGEPAGE is accepted without effect",
    ),
}


def examine() -> Diagnosis:
    """Looks, probes and tries; takes some milliseconds. Never raises for what it finds."""
    pressure = info()
    features = probe_kernel_features()
    return Diagnosis(
        machine=_machine(pressure),
        pressure=pressure,
        limits=[*_limits(pressure), _signals()],
        features=features,
        kernel=[_feature(feature) for feature in features],
        trial=run_trial(),
    )


def _machine(pressure: PressureInfo) -> list[Finding]:
    system = os.uname()
    available = format_bytes(pressure.machine_available)
    return [
        Finding("kernel", f"{system.sysname} {system.release}", system.machine),
        Finding("python", platform.python_version(), platform.python_implementation()),
        Finding("page size", format_bytes(pgalloc.PAGE_SIZE), "the unit of every allocation"),
        Finding("memory", format_bytes(pressure.machine_total), f"{available} available"),
    ]


def _limits(pressure: PressureInfo) -> list[Finding]:
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
        Finding(
            "pressure sources",
            ", ".join(pressure.sources) or "none",
            "what can warn before the limit is hit",
            good=bool(pressure.sources),
        ),
    ]


def _signals() -> Finding:
    """Registers for pressure and stops again: having the files is not being allowed to use them."""
    try:
        with PressureLevelListener(lambda: None) as listener:
            found = f"{len(listener.sources)} registered"
    except OSError as error:
        return Finding(
            "notification",
            error.strerror or str(error),
            "memory files cannot subscribe to pressure",
            good=False,
        )
    return Finding("notification", found, "memory files can subscribe to pressure")


def _feature(feature: Feature) -> Finding:
    name, meaning, lack = _MEANINGS[feature.name]
    found = "yes" if feature.available else "no"
    if feature.detail:
        found = f"{found}: {feature.detail}"
    return Finding(name, found, meaning if feature.available else lack, feature.available)
