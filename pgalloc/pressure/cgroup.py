"""The memory cgroup that this process is charged to, as the core finds it.

v1, v2 and hybrid systems, inside of containers and out; ``csrc/guard/memory_group.h`` tells how.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pgalloc.pressure import guard

CgroupVersion = Literal["v1", "v2"]


@dataclass(frozen=True, slots=True)
class MemoryCgroup:
    """Where the files of the memory controller lie for this process.

    Attributes:
        version: which interface the files follow.
        path: the group as /proc/self/cgroup names it.
        directory: the group's directory. v2: the nearest level where the controller is enabled,
            because that is the one that is charged.
        mount_point: the top of what is visible; never look above it.
        exact: False if the group itself is not visible and ``directory`` is an ancestor.
    """

    version: CgroupVersion
    path: str
    directory: Path
    mount_point: Path
    exact: bool

    def levels(self) -> Iterator[Path]:
        """The directories whose limits hold for this process: its own first, the top last."""
        level = self.directory
        yield level
        while level != self.mount_point:
            level = level.parent
            yield level


def find_memory_cgroup(
    *, proc: str | os.PathLike[str] = "/proc", root: str | os.PathLike[str] = "/"
) -> MemoryCgroup | None:
    """The memory cgroup of this process; None if there is no memory controller to be seen.

    Args:
        proc: where procfs lies; a test gives a directory with ``self/mountinfo`` and
            ``self/cgroup``.
        root: put before every mount point; a test gives the top of its fake tree.

    Never raises for what it finds: an unreadable or odd procfs means None.
    """
    found = guard.find_memory_group(proc, root)
    if found is None:
        return None
    version, path, directory, mount_point, exact = found
    return MemoryCgroup(version, path, Path(directory), Path(mount_point), exact)
