"""A memory cgroup with a limit, made to run programs in: v1 and v2.

``open_place()`` finds where this process may make groups, ``Place.make`` makes one, and
``MemoryGroup.command`` is what to run so that a program starts inside. The kernel's counters of the
group say how it ended. Everything is removed at the end, after an error too.

v2 allows processes only in the leaves of the tree. Where this process sits in a group of its own
and is alone there, it moves into a leaf for as long as the place is open, and back.

Sources: Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst ("No Internal Process
Constraint", "Memory Interface Files").
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgalloc.pressure import MemoryCgroup, find_memory_cgroup

# Enters the group, then becomes the program: all that the program ever uses is charged to the
# group. "0" stands for the process that writes.
_ENTER = "import os, sys; open(sys.argv[1], 'w').write('0'); os.execvp(sys.argv[2], sys.argv[2:])"

_REMOVE_TIMEOUT_S = 10.0


class NoPlaceError(Exception):
    """No group can be made; the text says why."""


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A group with a limit; ``directory`` has the files of its ``version``."""

    version: str
    directory: Path

    def command(self, arguments: list[str]) -> list[str]:
        """What to run instead of ``arguments``: the same program, inside the group."""
        procs = str(self.directory / "cgroup.procs")
        return [sys.executable, "-I", "-S", "-c", _ENTER, procs, *arguments]

    @property
    def usage_file(self) -> Path:
        """Where the kernel says how many bytes are charged to the group."""
        v1 = self.version == "v1"
        return self.directory / ("memory.usage_in_bytes" if v1 else "memory.current")

    @property
    def usage(self) -> int:
        """Bytes charged now."""
        return int(self.usage_file.read_text())

    @property
    def peak(self) -> int:
        """The most bytes that were ever charged; 0 if this kernel does not say (v2 before 5.19)."""
        v1 = self.version == "v1"
        file = self.directory / ("memory.max_usage_in_bytes" if v1 else "memory.peak")
        return int(file.read_text()) if file.exists() else 0

    @property
    def oom_kills(self) -> int:
        """How many processes of the group the out-of-memory killer has killed."""
        return self.count_oom_kills()

    def count_oom_kills(self) -> int:
        """The kernel's counter, from the time when the group was made."""
        file = "memory.oom_control" if self.version == "v1" else "memory.events"
        lines = (self.directory / file).read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])

    def remove(self) -> None:
        """Kills what still runs inside; only programs of this process were ever put there."""
        deadline = time.monotonic() + _REMOVE_TIMEOUT_S
        while True:
            for pid in _pids(self.directory):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                self.directory.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError as error:
                # A killed process belongs to the group until it is gone.
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


@dataclass(frozen=True, slots=True)
class Place:
    """A group below which others may be made."""

    version: str
    directory: Path

    @contextlib.contextmanager
    def make(self, name: str, limit: int) -> Iterator[MemoryGroup]:
        """A group that may use ``limit`` bytes and no swap; removed at the end.

        Raises OSError if the kernel refuses it after all.
        """
        group = MemoryGroup(self.version, self.directory / f"{name}-{os.getpid()}")
        group.directory.mkdir()
        try:
            if self.version == "v1":
                _write(group.directory / "memory.limit_in_bytes", str(limit))
                # Memory and swap together; must not be below the other at any time.
                _write_if_there(group.directory / "memory.memsw.limit_in_bytes", str(limit))
                _write_if_there(group.directory / "memory.swappiness", "0")
            else:
                _write(group.directory / "memory.max", str(limit))
                _write_if_there(group.directory / "memory.swap.max", "0")
            yield group
        finally:
            group.remove()


@contextlib.contextmanager
def open_place(group: MemoryCgroup | None = None) -> Iterator[Place]:
    """Below this process's own group (or ``group``) if possible, or else an ancestor of it.

    Raises NoPlaceError if there is none where this process may make groups.
    """
    group = group or find_memory_cgroup()
    if group is None:
        raise NoPlaceError("no memory controller is to be seen here")
    refused = ""
    with contextlib.ExitStack() as stack:
        for directory in group.levels():
            try:
                if group.version == "v2":
                    stack.enter_context(_delegating(directory))
                _try(directory, group.version)
            except OSError as error:
                refused = refused or f"{directory}: {error.strerror}"
                stack.close()
                continue
            yield Place(group.version, directory)
            return
    raise NoPlaceError(refused)


def _try(directory: Path, version: str) -> None:
    """Raises OSError unless groups with a limit can be made here."""
    limit_file = "memory.limit_in_bytes" if version == "v1" else "memory.max"
    attempt = directory / f"pgalloc-try-{os.getpid()}"
    attempt.mkdir()
    try:
        if not os.access(attempt / limit_file, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    finally:
        attempt.rmdir()


@contextlib.contextmanager
def _delegating(directory: Path) -> Iterator[None]:
    """Enables the memory controller for groups below ``directory``, and disables it again."""
    control = directory / "cgroup.subtree_control"
    if "memory" in control.read_text().split():
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            _write(control, "+memory")
        except OSError as error:
            if error.errno != errno.EBUSY or _pids(directory) != [os.getpid()]:
                raise
            stack.enter_context(_in_a_leaf(directory))
            _write(control, "+memory")
        stack.callback(_write, control, "-memory")
        yield


@contextlib.contextmanager
def _in_a_leaf(directory: Path) -> Iterator[None]:
    """Moves this process out of an inner group, and back."""
    leaf = directory / f"pgalloc-self-{os.getpid()}"
    leaf.mkdir()
    try:
        _write(leaf / "cgroup.procs", "0")
        try:
            yield
        finally:
            _write(directory / "cgroup.procs", "0")
    finally:
        leaf.rmdir()


def _pids(directory: Path) -> list[int]:
    try:
        return [int(pid) for pid in (directory / "cgroup.procs").read_text().split()]
    except FileNotFoundError:
        return []


def _write_if_there(file: Path, text: str) -> None:
    """For files that not every kernel has. If writing is refused, the limit itself still holds."""
    with contextlib.suppress(OSError):
        if file.exists():
            _write(file, text)


def _write(file: Path, text: str) -> None:
    # Unbuffered: the kernel's answer to the write is the exception, not one at close.
    fd = os.open(file, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
