"""What must be true when no thread works."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path

import pgalloc
from pgalloc import MemoryFile, _core, testing
from pgalloc.pressure import default_guard
from snapshot_api.stamps import PromiseBrokenError

_PATIENCE_S = 60.0


def at_rest(file: MemoryFile) -> None:
    """The account is what the kernel says, and nothing is pending."""
    if not file.wait_loaded(_PATIENCE_S) or not file.wait_for_reclaim(_PATIENCE_S):
        raise PromiseBrokenError("pages are neither loaded nor reclaimed in a minute")
    progress = file.load_progress()
    if file.loading or progress.pending_bytes:
        raise PromiseBrokenError(f"loaded, and yet loading: {progress}")
    while not file.update_usage():
        time.sleep(0.002)  # time: scans are throttled
    testing.verify(file)
    booked, stored = sum(file.usage().values()), file.total_usage()
    if booked != stored:
        raise PromiseBrokenError(f"{booked} bytes are booked, the kernel stores {stored}")


def nothing_left(file: MemoryFile) -> None:
    """All owners have let go of all pages."""
    if file.unadopted():
        raise PromiseBrokenError(f"references that were not adopted: {file.unadopted()}")
    _wait_for_children(file)
    at_rest(file)
    if file.segments():
        raise PromiseBrokenError(f"references are lost: {file}")
    if file.total_usage() != 0:
        raise PromiseBrokenError("the kernel still stores pages")


def _wait_for_children(file: MemoryFile) -> None:
    """The owner hears of a child's end a moment after its parent has reaped it."""
    deadline = time.monotonic() + _PATIENCE_S
    while file.leases():
        if time.monotonic() > deadline:  # time: a bound on a hang
            raise PromiseBrokenError(f"children that ended have leases: {file.leases()}")
        time.sleep(0.002)  # time: it polls


class Leftovers:
    """Descriptors, mappings, threads and booked bytes of this process, at rest."""

    def __init__(self) -> None:
        default_guard.ensure()  # it stays, with the descriptors it has open
        _core.broker_address()  # so does the broker, which the first fork would start
        self._before = self._now()

    def expect_none(self, after_interrupts: bool = False) -> None:
        """Raise PromiseBrokenError if there are more than at the beginning.

        An exception out of a signal handler can leave a thread of Python stuck before it begins
        (threading.Event is not made for them); such a one is not counted.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            gc.collect()
            now = self._now()
            if all(here <= then for here, then in zip(now, self._before, strict=True)):
                return
            if after_interrupts and now[0] <= self._before[0] and not _own_threads():
                self._before = now
                return
            if time.monotonic() > deadline:  # time: a bound on a hang
                raise PromiseBrokenError(
                    "left behind: (descriptors, mappings, threads, booked bytes) "
                    f"are {now} instead of {self._before}; {threading.enumerate()}"
                )
            time.sleep(0.005)  # time: it polls

    def _now(self) -> tuple[int, ...]:
        return (
            len(os.listdir("/proc/self/fd")),
            Path("/proc/self/maps").read_text().count("memfd:pgalloc"),
            len(os.listdir("/proc/self/task")),
            pgalloc.memory_accounting().total(),
        )


def _own_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("pgalloc") and t.is_alive()]


def only_images(folder: Path, names: set[str]) -> None:
    """No temporary file is left."""
    unexpected = {path.name for path in folder.iterdir()} - names
    if unexpected:
        raise PromiseBrokenError(f"files are left behind: {unexpected}")
