"""One run of a program in a group of its own, with what the kernel says about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from limit.lowering import lower
from limit.reader import reading
from limit.sampler import Closeness, watch
from pgalloc._processes.memory_group import Place

_HERE = Path(__file__).resolve().parents[1]
_MIB = 1 << 20


@dataclass(slots=True)
class Outcome:
    """What became of a run.

    Attributes:
        status: of the program; negative for a signal.
        oom_kills: by the kernel's count.
        peak: the most that was charged at any time, by the kernel's count.
        closeness: what the sampler saw.
        lowered: whether the limit was lowered, if it was to be.
        said: the program's own object, empty if it did not come so far.
        errors: its standard error.
    """

    status: int
    oom_kills: int
    peak: int
    closeness: Closeness
    lowered: bool = True
    said: dict[str, Any] = field(default_factory=dict)
    errors: str = ""

    @property
    def killed(self) -> bool:
        """By the kernel, because of the limit."""
        return self.oom_kills > 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        """In one line."""
        near = self.closeness
        end = "OOM-KILLED" if self.killed else f"status {self.status}"
        return (
            f"{end}, highest {near.highest / _MIB:.1f} (peak {self.peak / _MIB:.1f}) MiB, "
            f"near the limit {near.near_s * 1e3:.0f} ms, at most {near.near_longest_s * 1e3:.0f} ms"
            f" at a time ({near.samples} samples, gaps up to {near.longest_gap_s * 1e3:.0f} ms)"
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """The group that a program runs in; in bytes.

    Attributes:
        limit: of the group.
        margin: usage within it is near the limit.
        lower_from: the limit that the group has first, if it is to be lowered; 0: it is not.
        lower_at: the usage at which it is lowered.
        read: a file that is read beside it all the while; "": none.
    """

    limit: int
    margin: int
    lower_from: int = 0
    lower_at: int = 0
    read: str = ""


def run(place: Place, program: str, arguments: list[str], setting: Setting) -> Outcome:
    """A fresh process in a fresh group."""
    command = [sys.executable, "-m", f"limit.{program}", *arguments]
    # The byte code that imports write would be the group's page cache.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with (
        place.make("pgalloc-limit", setting.lower_from or setting.limit) as group,
        reading(group, setting.read),
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as errors,
    ):
        process = subprocess.Popen(
            group.command(command),
            stdout=out,
            stderr=errors,
            text=True,
            cwd=_HERE,
            env=environment,
        )
        lowered = True
        try:
            if setting.lower_from:
                lowered = lower(process, group, setting.limit, setting.lower_at)
            seen = watch(process, group.usage_file, setting.limit - setting.margin)
        finally:
            process.kill()
            process.wait()
        out.seek(0)
        errors.seek(0)
        text = out.read()
        said = json.loads(text) if process.returncode == 0 else {}
        return Outcome(
            process.returncode, group.oom_kills, group.peak, seen, lowered, said, errors.read()
        )
