"""Pressure stall information: triggers, whose first event is not to be believed.

A trigger that was just armed may fire at once: the kernel compares the stall it knows of now with
what it knew when it last looked, and without a trigger it had no reason to look for long. So each
event is checked against the ``total=`` counter of the same file, read anew.

Facts from: Documentation/accounting/psi.rst "Monitoring for pressure thresholds", kernel/sched/
psi.c.
"""

from __future__ import annotations

import os
import re
import select
from pathlib import Path
from typing import Literal

from pgalloc.pressure.descriptors import open_into
from pgalloc.pressure.signals import Level, PressureSource

# Low is systemd's default, 200 ms in 2 s (DefaultMemoryPressureThresholdSec=). Without
# CAP_SYS_RESOURCE the kernel takes only windows that are multiples of 2 s.
PSI_WINDOW_US = 2_000_000
_PSI_LOW_US, _PSI_MEDIUM_US, _PSI_CRITICAL_US = 200_000, 600_000, 400_000


class StallTotal:
    """How long tasks have stalled on memory, by the ``total=`` of a pressure file.

    Invariant: ``rose`` is True only if the total grew by ``stall_us`` since it last was, or since
    this was made. A file without that counter is believed whatever happens.
    """

    def __init__(self, file: Path, kind: str, stall_us: int) -> None:
        """Raises OSError: no such file, no permission."""
        self._file = file
        self._pattern = re.compile(rb"^%s\b.*\btotal=(\d{1,20})" % kind.encode(), re.M)
        self._stall_us = stall_us
        self._last = self._read()

    def rose(self) -> bool:
        """Whether that much was added. Raises OSError if the file is gone."""
        total = self._read()
        if total is None or self._last is None:
            self._last = total
            return True
        if total - self._last < self._stall_us:
            return False
        self._last = total
        return True

    def _read(self) -> int | None:
        with self._file.open("rb", buffering=0) as file:
            match = self._pattern.search(file.read(4096))  # two lines; never trust a path
        return int(match[1]) if match else None


class PsiTrigger(PressureSource):
    """A stall threshold on a ``memory.pressure`` file or on /proc/pressure/memory.

    Tasks of the group (or of the machine) lost ``stall_us`` of ``window_us`` microseconds to
    waiting for memory: ``some`` of them, or all at once (``full``).
    """

    kind = "psi"
    poll_mask = select.POLLPRI

    def __init__(
        self,
        file: Path,
        kind: Literal["some", "full"],
        *,
        stall_us: int,
        window_us: int,
        level: Level = "low",
    ) -> None:
        """Raises OSError: no PSI (CONFIG_PSI, psi=0), no permission, refused figures."""
        self.name = f"psi {file} {kind} {stall_us}/{window_us} us"
        self.level = level
        open_into(self, "fd", os.open, file, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._total = StallTotal(file, kind, stall_us)
            # The kernel puts a NUL over the last byte written, which so must not be a digit.
            os.write(self.fd, f"{kind} {stall_us} {window_us}\0".encode())
        except BaseException:
            self.close()
            raise

    def take(self, revents: int) -> bool:
        """The poll itself has consumed the event: at most one per window."""
        if revents & (select.POLLERR | select.POLLNVAL):
            raise OSError(f"{self.name}: the trigger is gone")
        return bool(revents & select.POLLPRI) and self._total.rose()


def open_psi(file: Path, level: Level) -> PsiTrigger:
    """A trigger that means that level. Raises OSError."""
    if level == "critical":
        kind: Literal["some", "full"] = "full"
        stall_us = _PSI_CRITICAL_US
    else:
        kind = "some"
        stall_us = _PSI_LOW_US if level == "low" else _PSI_MEDIUM_US
    return PsiTrigger(file, kind, stall_us=stall_us, window_us=PSI_WINDOW_US, level=level)
