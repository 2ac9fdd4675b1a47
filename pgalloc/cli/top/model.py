"""What ``pgalloc top`` knows of a process: the pgalloc files it has open, and its memory limit.

Everything comes from procfs and the cgroup file system; the process itself notices nothing. A file
is one of pgalloc's if it is a memfd of that name. Files on disk have the names that their owners
gave them, and cannot be told from others.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgalloc.cli.top.huge import huge_bytes_by_inode
from pgalloc.pressure import PressureInfo, info

# procfs shows a memfd as a file without a name in any folder.
_LINK = "/memfd:pgalloc (deleted)"
_BLOCK = 512  # what st_blocks counts, always


class LookError(Exception):
    """There is nothing to be seen, and the text says why."""


@dataclass(frozen=True, slots=True)
class LiveFile:
    """A file, in bytes.

    Attributes:
        descriptors: the process's numbers for it.
        inode: the same for every process that has this file.
        size: how far its pages reach.
        usage: what the kernel has given for it.
        huge: what of it this process has mapped by huge pages; None if the kernel does not tell.
    """

    descriptors: tuple[int, ...]
    inode: int
    size: int
    usage: int
    huge: int | None


@dataclass(frozen=True, slots=True)
class ProcessView:
    """A process at one moment; ``pressure`` is what its own memory cgroup says."""

    pid: int
    name: str
    files: tuple[LiveFile, ...]
    pressure: PressureInfo

    @property
    def usage(self) -> int:
        """Bytes that the kernel has given for all its files."""
        return sum(file.usage for file in self.files)

    @property
    def huge(self) -> int | None:
        """Bytes of all its files that it has mapped by huge pages; None if that is not known."""
        known = [file.huge for file in self.files if file.huge is not None]
        return sum(known) if len(known) == len(self.files) else None


def look_at(pid: int) -> ProcessView:
    """Raises LookError if there is no such process, it may not be seen, or has no such files."""
    folder = Path("/proc", str(pid))
    try:
        files = tuple(_files(folder))
        name = (folder / "comm").read_text(errors="backslashreplace").rstrip("\n")
        if not files:
            raise LookError(f"process {pid} ({name}) has no pgalloc files open")
        return ProcessView(pid, name, files, _pressure_of(folder))
    except PermissionError:
        raise LookError(f"process {pid}: no permission to see what it has open") from None
    except (FileNotFoundError, ProcessLookupError):
        raise LookError(f"there is no process {pid}") from None


def look_around() -> list[ProcessView]:
    """All processes of this user that have pgalloc files, as far as they can be seen."""
    views = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        with contextlib.suppress(LookError, FileNotFoundError):
            if os.stat(f"/proc/{pid}").st_uid == os.geteuid():
                views.append(look_at(pid))
    return views


def _files(folder: Path) -> Iterator[LiveFile]:
    """In the order of the smallest descriptor; a file with several counts once."""
    descriptors: dict[int, list[int]] = {}
    stats: dict[int, os.stat_result] = {}
    for descriptor in sorted(map(int, os.listdir(folder / "fd"))):
        link = folder / "fd" / str(descriptor)
        # A descriptor may be closed while this runs.
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(link) == _LINK:
                status = os.stat(link)
                descriptors.setdefault(status.st_ino, []).append(descriptor)
                stats[status.st_ino] = status
    huge = huge_bytes_by_inode(folder, _LINK) if stats else {}
    for inode, numbers in descriptors.items():
        status = stats[inode]
        mapped = None if huge is None else huge.get(inode, 0)
        yield LiveFile(tuple(numbers), inode, status.st_size, status.st_blocks * _BLOCK, mapped)


def _pressure_of(folder: Path) -> PressureInfo:
    """``pressure.info()`` as if this process were in the other one's group.

    It gets a procfs whose ``self`` belongs to the other process, but for the mounts: the group's
    files are read here, through what is mounted here.
    """
    with tempfile.TemporaryDirectory(prefix="pgalloc-top-") as name:
        proc = Path(name)
        (proc / "self").mkdir()
        (proc / "self" / "mountinfo").symlink_to("/proc/self/mountinfo")
        (proc / "self" / "cgroup").symlink_to(folder / "cgroup")
        for shared in ("meminfo", "pressure"):
            (proc / shared).symlink_to(f"/proc/{shared}")
        return info(proc=proc, environ={})
