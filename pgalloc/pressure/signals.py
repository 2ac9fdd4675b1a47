"""Single sources of pressure signals: a descriptor to poll, and what a wake-up of it means.

A source opens its files in ``__init__`` and closes all of them if that fails, so a half-built one
cannot exist. It has no thread; :mod:`pgalloc.pressure.memcg_events` waits on many at once. To add
a source, derive from :class:`PressureSource`.

Facts from: Documentation/admin-guide/cgroup-v1/memory.rst section 11 "Memory Pressure",
cgroup-v2.rst "memory.events", accounting/psi.rst "Monitoring for pressure thresholds".
"""

from __future__ import annotations

import abc
import os
import select
from pathlib import Path
from typing import Literal, get_args

Level = Literal["low", "medium", "critical"]
LEVELS: tuple[Level, ...] = get_args(Level)


class PressureSource(abc.ABC):
    """One descriptor. Not thread-safe: ``take`` and ``close`` are for one thread at a time.

    Attributes:
        name: what is watched, in words.
        fd: the descriptor to poll; -1 once closed.
        poll_mask: the poll(2) events to wait for.
    """

    name: str
    fd: int
    poll_mask: int

    @abc.abstractmethod
    def take(self, revents: int) -> bool:
        """Consumes a wake-up; True if it is pressure, False if it was something else.

        Raises OSError if the source is gone for good: its cgroup was removed.
        """

    def close(self) -> None:
        """Closes the descriptor, which also ends the registration; harmless when repeated."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class V1PressureLevel(PressureSource):
    """cgroup v1: an eventfd registered for one level of ``memory.pressure_level``.

    The kernel signals at the asked level and above: low is any reclaim, medium is reclaim that
    finds little, critical is the edge of an out-of-memory kill.
    """

    poll_mask = select.POLLIN

    def __init__(self, directory: Path, level: Level) -> None:
        """Raises OSError: no such files, no permission."""
        self.name = f"v1 {directory}/memory.pressure_level {level}"
        self._file = directory / "memory.pressure_level"
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            file_fd = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _write(directory / "cgroup.event_control", f"{self.fd} {file_fd} {level}".encode())
            finally:
                os.close(file_fd)  # the registration keeps what it needs
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
    their last values: a wake-up counts if one of them rose.
    """

    poll_mask = select.POLLPRI

    def __init__(self, file: Path, counters: frozenset[str]) -> None:
        """Raises OSError: no such file (the root group has none), no permission."""
        self.name = f"v2 {file} {' '.join(sorted(counters))}"
        self._counters = counters
        self.fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._last = self._read()
        except BaseException:
            self.close()
            raise

    def take(self, revents: int) -> bool:
        """Compares the counters with those of the last call."""
        before, self._last = self._last, self._read()
        return any(value > before.get(name, 0) for name, value in self._last.items())

    def _read(self) -> dict[str, int]:
        """Reading from offset 0 is also what arms the poll again."""
        words = os.pread(self.fd, 4096, 0).decode().split()
        pairs = zip(words[0::2], words[1::2], strict=False)
        return {name: int(value) for name, value in pairs if name in self._counters}


class PsiTrigger(PressureSource):
    """A stall threshold on a ``memory.pressure`` file or on /proc/pressure/memory.

    Tasks of the group (or of the machine) lost ``stall_us`` of ``window_us`` microseconds to
    waiting for memory: ``some`` of them, or all at once (``full``). Without CAP_SYS_RESOURCE the
    kernel takes only windows that are multiples of 2 s.
    """

    poll_mask = select.POLLPRI

    def __init__(
        self, file: Path, kind: Literal["some", "full"], *, stall_us: int, window_us: int
    ) -> None:
        """Raises OSError: no PSI (CONFIG_PSI, psi=0), no permission, refused figures."""
        self.name = f"psi {file} {kind} {stall_us}/{window_us} us"
        self.fd = os.open(file, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            # The kernel puts a NUL over the last byte written, which so must not be a digit.
            os.write(self.fd, f"{kind} {stall_us} {window_us}\0".encode())
        except BaseException:
            self.close()
            raise

    def take(self, revents: int) -> bool:
        """The poll itself has consumed the event: at most one per window."""
        if revents & select.POLLERR:
            raise OSError(f"{self.name}: the trigger is gone")
        return bool(revents & select.POLLPRI)


def _write(file: Path, request: bytes) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, request)
    finally:
        os.close(fd)
