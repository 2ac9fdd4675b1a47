"""What the demo found out: plain data, filled by the model and read by the renderers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import pgalloc
from pgalloc.cli.demo.page_map import PageMap
from pgalloc.cli.files import Skipped
from pgalloc.cli.units import format_bytes, format_count

RESTORES = 2
"""One new process restores the image whole at once, another one in the background."""


class Progress(Protocol):
    """Told how far a step is; ``advance`` comes from several threads."""

    def begin(self, step: str, total: int) -> None:
        """A step starts, which handles ``total`` bytes."""

    def advance(self, nbytes: int) -> None:
        """``nbytes`` more of the step's bytes are done."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step as it went: ``seconds`` by the wall clock, ``files`` and ``nbytes`` handled."""

    name: str
    what: str
    seconds: float
    files: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The account at one moment, in bytes.

    Attributes:
        moment: what had just happened.
        allocated: pages with references, by kind.
        committed: the ledger, by kind; SYSTEM is waste that awaits the reclaimer.
        kernel: what the kernel has given to the backing file (st_blocks).
        page_map: the states of all pages.
        huge: what of it is in huge pages.
    """

    moment: str
    allocated: dict[pgalloc.MemoryKind, int]
    committed: dict[pgalloc.MemoryKind, int]
    kernel: int
    page_map: PageMap
    huge: int = 0


@dataclass(slots=True)
class Report:
    """The whole run. ``problems`` says in words what went wrong; empty means success."""

    path: str
    threads: int
    limit: int
    steps: list[Step] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    files: int = 0
    file_bytes: int = 0
    digests_checked: int = 0
    evicted_files: int = 0
    evicted_bytes: int = 0
    reloaded_files: int = 0
    reloaded_bytes: int = 0
    saved_files: int = 0
    image_bytes: int = 0
    restores: int = 0
    """How many new processes restored the image, with or without problems."""
    given_back_bytes: int = 0

    @property
    def ok(self) -> bool:
        """Whether all that the demo promises was verified; loading nothing verifies nothing."""
        return not self.problems and self.files > 0 and self.restores == RESTORES

    def snapshot(self, moment: str) -> Snapshot | None:
        """The snapshot of that name, if the run got so far."""
        return next((s for s in self.snapshots if s.moment == moment), None)

    def skipped_by_reason(self) -> dict[str, list[str]]:
        """Paths that were left out, the most frequent reason first."""
        reasons: dict[str, list[str]] = {}
        for skipped in self.skipped:
            reasons.setdefault(skipped.reason, []).append(skipped.path)
        return dict(sorted(reasons.items(), key=lambda item: -len(item[1])))

    def verdict(self, dash: str = "—") -> str:
        """The last line: OK with the amounts, or FAILED with all problems."""
        if self.ok:
            amount = f"{format_count(self.files, 'file')}, {format_bytes(self.file_bytes)}"
            return (
                f"demo: OK {dash} {amount}: every digest matched, "
                f"here and in {self.restores} new processes, account at zero"
            )
        reason = "; ".join(self.problems) or "there was no file to load, so nothing was verified"
        return f"demo: FAILED {dash} {reason}"
