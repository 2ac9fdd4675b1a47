"""Which processes of a group are alive, what they have open, and what they leave behind.

The group is a session, which processes belong to from their birth on. Source: proc(5).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

SHM = Path("/dev/shm")

_BLOCK = 512  # what st_blocks counts, always
_DEAD = ("Z", "X")  # what is left of a process until its parent asks: no memory, no descriptors


@dataclass(frozen=True, slots=True)
class MemoryObject:
    """Memory with an inode: a memfd, or a file in /dev/shm. ``link`` is its name in procfs."""

    device: int
    inode: int
    link: str = field(compare=False)

    @property
    def name(self) -> Path | None:
        """Where it stands in /dev/shm; None for what has no name there, or none any more."""
        path = Path(self.link)
        if not path.is_relative_to(SHM):
            return None
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if (status.st_dev, status.st_ino) == (self.device, self.inode):
                return path
        return None


@dataclass(frozen=True, slots=True)
class Left:
    """What outlived a session; ``nbytes`` is the memory of its objects that are still there."""

    processes: tuple[int, ...] = ()
    names: tuple[Path, ...] = ()
    nbytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.processes or self.names or self.nbytes)


def members(session: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for pid in _all_pids():
        with contextlib.suppress(OSError):
            # The name of the program, in brackets, may have any character in it.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in _DEAD:
                found.append(pid)
    return found


def memory_objects(pids: Iterable[int]) -> dict[MemoryObject, int]:
    """What these processes have open of that kind, as far as can be seen, with its bytes."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    target = os.readlink(link)
                    if target.startswith(("/memfd:", f"{SHM}/")):
                        status = link.stat()
                        entry = MemoryObject(status.st_dev, status.st_ino, target)
                        found[entry] = status.st_blocks * _BLOCK
    return found


def left_of(session: int, objects: Iterable[MemoryObject]) -> Left:
    """What is still there of a session's processes, and of the objects that they had open."""
    open_anywhere = memory_objects(_all_pids())
    names, nbytes = [], 0
    for entry in objects:
        name = entry.name
        if name is None:
            nbytes += open_anywhere.get(entry, 0)
        else:
            names.append(name)
            nbytes += name.stat().st_blocks * _BLOCK
    return Left(tuple(members(session)), tuple(sorted(names)), nbytes)


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
