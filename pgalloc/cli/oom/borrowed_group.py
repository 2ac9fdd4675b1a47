"""The memory cgroup that this process is in already, where none of its own can be made.

That is so in a container with a memory limit. Programs started in it share its limit with this
process, and ask to be killed first. Sources: proc(5), "oom_score_adj"; cgroup-v2.rst,
"memory.oom.group".
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from pgalloc._processes.memory_group import MemoryGroup, NoPlaceError
from pgalloc.pressure import find_memory_cgroup, info

_VOLUNTEER = (
    "import os, sys; open('/proc/self/oom_score_adj', 'w').write('1000');"
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


@dataclass(frozen=True, slots=True)
class BorrowedGroup(MemoryGroup):
    """A group with a ``limit`` in bytes, and the kernel's count of kills when it was borrowed."""

    limit: int
    kills_before: int

    def command(self, arguments: list[str]) -> list[str]:
        """What to run instead of ``arguments``: the same program, the first to be killed."""
        return [sys.executable, "-I", "-S", "-c", _VOLUNTEER, *arguments]

    @property
    def oom_kills(self) -> int:
        """How many processes of the group were killed since it was borrowed."""
        return self.count_oom_kills() - self.kills_before

    @property
    def peak(self) -> int:
        """0 for unknown: the kernel's mark may be from before the group was borrowed."""
        return 0

    def remove(self) -> None:
        """Does nothing: the group was not made here."""


def borrow_group(limit_max: int) -> BorrowedGroup:
    """The group of this process, if it has a limit of at most ``limit_max`` bytes.

    Raises NoPlaceError with the reason if it is not fit for programs that will be killed.
    """
    group = find_memory_cgroup()
    levels = info().levels
    if group is None or not levels:
        raise NoPlaceError("no memory controller is to be seen here")
    limit = levels[0].limit
    if limit is None or Path(levels[0].directory) != group.directory:
        raise NoPlaceError("the group of this process has no limit of its own")
    if limit > limit_max:
        raise NoPlaceError("the limit of this process's own group is too large to be used up")
    together = group.directory / "memory.oom.group"
    if together.exists() and together.read_text().strip() == "1":
        raise NoPlaceError("a limit here kills all processes of the group together")
    kills = MemoryGroup(group.version, group.directory).count_oom_kills()
    return BorrowedGroup(group.version, group.directory, limit, kills)
