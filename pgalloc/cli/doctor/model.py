"""What the doctor finds out, and what each finding means for the reader. Prints nothing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import pgalloc
from pgalloc.cli.doctor.kernel_features import Feature, probe_kernel_features
from pgalloc.cli.doctor.pressure import Finding, PressureDiagnosis, examine_pressure
from pgalloc.cli.doctor.trial import TrialStep, run_trial
from pgalloc.cli.units import format_bytes
from pgalloc.pressure import PressureInfo


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything; ``ok`` says whether what pgalloc needs works, which the trial decides."""

    machine: list[Finding]
    limits: PressureDiagnosis
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
        "huge=True gets them; Caches, share() and copies of arrays use them by themselves",
        "small pages only, which are slower to commit and to give back",
    ),
}


def examine() -> Diagnosis:
    """Looks, probes and tries; takes some milliseconds. Never raises for what it finds."""
    limits = examine_pressure()
    features = probe_kernel_features()
    return Diagnosis(
        machine=_machine(limits.pressure),
        limits=limits,
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


def _feature(feature: Feature) -> Finding:
    name, meaning, lack = _MEANINGS[feature.name]
    found = "yes" if feature.available else "no"
    if feature.detail:
        found = f"{found}: {feature.detail}"
    if feature.remedy:
        lack = f"{lack}; {feature.remedy}"
    return Finding(name, found, meaning if feature.available else lack, feature.available)
