"""Single sources of pressure signals: a descriptor to poll, and what a wake-up of it means.

A source opens its files in ``__init__`` and closes all of them if that fails, so a half-built one
cannot exist. It has no thread; a :class:`pgalloc.pressure.watcher.Watcher` waits on many at once.

To add a source, derive from :class:`PressureSource` (``manual`` is the shortest). Its class goes
into ``pgalloc.pressure.__all__`` if users make one themselves, its kind into docs/pressure.md and
:class:`pgalloc.pressure.events.PressureEvent`. To have it opened by default, list it in
:mod:`pgalloc.pressure.discovery`, in ``limits.Source`` and in ``cli/doctor/pressure.py``.

Facts from: Documentation/admin-guide/cgroup-v1/memory.rst section 11 "Memory Pressure",
cgroup-v2.rst "memory.events".
"""

from __future__ import annotations

import abc
import os
import select
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from pgalloc.pressure.descriptors import Descriptor, close_of, open_into
from pgalloc.uncopyable import Uncopyable

Level = Literal["low", "medium", "critical"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""In ascending order of severity."""

# v2 counts occurrences where v1 judges severity; these are the nearest equivalents. "high" and
# "max" are reclaim at memory.high and memory.max; "oom" is an allocation about to fail.
V2_LEVELS: dict[str, Level] = {
    "high": "low",
    "max": "medium",
    "oom": "critical",
    "oom_kill": "critical",
    "oom_group_kill": "critical",
}


def checked_level(level: object) -> Level:
    """The level, if it is one; else ValueError."""
    for known in LEVELS:
        if isinstance(level, str) and level == known:
            return known
    text = repr(level[:40]) if isinstance(level, str) else type(level).__name__
    raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {text}")


class PressureSource(Uncopyable, abc.ABC):
    """One descriptor. Not thread-safe: ``take`` and ``close`` are for one thread at a time.

    The descriptor belongs to one object in one process: a source can neither be pickled nor
    copied. After a fork the parent's source goes on; in the child the watcher closes its copy.

    Attributes:
        kind: what sort of source this is, in one word: "v1", "v2", "psi", "systemd" ...
        name: what is watched, in words.
        fd: the descriptor to poll; -1 once closed.
        poll_mask: the poll(2) events to wait for.
        level: how severe its signals are; where they differ, the last one that ``take`` saw.
    """

    kind: str = "other"
    name: str
    fd: int
    poll_mask: int = select.POLLIN
    level: Level = "low"

    @abc.abstractmethod
    def take(self, revents: int) -> bool:
        """Consumes a wake-up; True if it is pressure, False if it was something else.

        It may say the same again while pressure lasts: a Monitor merges what comes faster than it
        is taken.

        Raises OSError if the source is gone for good: its cgroup was removed.
        """

    def close(self) -> None:
        """Closes the descriptor, which also ends the registration; harmless when repeated."""
        close_of(self, "fd")

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            self.close()


class V1PressureLevel(PressureSource):
    """cgroup v1: an eventfd registered for one level of ``memory.pressure_level``.

    The kernel signals at the asked level and above: low is any reclaim, medium is reclaim that
    finds little, critical is the edge of an out-of-memory kill. ``local``: only reclaim at this
    group's own limit counts, and not that of groups below (Linux 4.13).
    """

    kind = "v1"

    def __init__(self, directory: Path, level: Level, *, local: bool = False) -> None:
        """Raises OSError: no such files, no permission."""
        self.name = f"v1 {directory}/memory.pressure_level {level}"
        self.level = level
        self._file = directory / "memory.pressure_level"
        open_into(self, "fd", os.eventfd, 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            asked = f"{level},local" if local else level
            # The registration keeps what it needs of the file.
            with Descriptor(os.open, self._file, os.O_RDONLY | os.O_CLOEXEC) as file:
                _write(directory / "cgroup.event_control", f"{self.fd} {file.fd} {asked}".encode())
        except BaseException:
            self.close()
            raise

    def take(self, revents: int) -> bool:
        """Resets the eventfd's count: however many events came, it is one wake-up."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return False
        os.stat(self._file)  # removing the cgroup signals the eventfd one last time
        return True


class V2Events(PressureSource):
    """cgroup v2: a flat-keyed counter file, such as ``memory.events``, that can be polled.

    The file wakes its readers after any change, so the counters of interest are compared with
    their last values: a wake-up counts if one of them rose. Its level is that of the most severe.
    """

    kind = "v2"
    poll_mask = select.POLLPRI

    def __init__(self, file: Path, counters: Iterable[str]) -> None:
        """Raises OSError: no such file (the root group has none), no permission."""
        self._counters = frozenset(counters)
        self.name = f"v2 {file} {' '.join(sorted(self._counters))}"
        open_into(self, "fd", os.open, file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._last = self._read()
        except BaseException:
            self.close()
            raise

    def take(self, revents: int) -> bool:
        """Compares the counters with those of the last call."""
        before, self._last = self._last, self._read()
        risen = [name for name, value in self._last.items() if value > before.get(name, 0)]
        if risen:
            levels = (V2_LEVELS.get(name, "low") for name in risen)
            self.level = max(levels, key=LEVELS.index)
        return bool(risen)

    def _read(self) -> dict[str, int]:
        """Reading from offset 0 is also what arms the poll again."""
        words = os.pread(self.fd, 4096, 0).decode().split()
        pairs = zip(words[0::2], words[1::2], strict=False)
        return {name: int(value) for name, value in pairs if name in self._counters}


def _write(file: Path, request: bytes) -> None:
    with Descriptor(os.open, file, os.O_WRONLY | os.O_CLOEXEC) as opened:
        os.write(opened.fd, request)
