"""Exceptions out of a signal handler, at any moment of a save or a restore: like Ctrl-C's."""

from __future__ import annotations

import io
import random
import signal
from pathlib import Path
from typing import Any

import pgalloc
from pgalloc import MemoryFile
from snapshot_api.original import CAPACITY, Original
from snapshot_api.stamps import PromiseBrokenError
from snapshot_api.tally import Tally
from snapshot_api.targets import COMPRESSIONS

_LONGEST_S = 0.05


class Interrupted(BaseException):
    """What the signal handler raises."""


class _Alarm:
    """Raises Interrupted once, at some moment before it is disarmed."""

    def __init__(self) -> None:
        self._armed = False

    def arm(self, seconds: float) -> None:
        self._armed = True
        signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def disarm(self) -> None:
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, *_: Any) -> None:
        if self._armed:
            self._armed = False
            raise Interrupted


def interrupt_all(original: Original, path: Path, rng: random.Random, counts: Tally) -> None:
    """Interrupt everything that takes a while. For the main thread only."""
    alarm = _Alarm()
    compression = rng.choice(COMPRESSIONS)
    for what in ("save", "stream", "eager", "background", "forward"):
        files: list[MemoryFile] = []
        caught = None
        try:
            alarm.arm(rng.random() * _LONGEST_S + 1e-6)
            _do(what, original.file, path, compression, files)
            alarm.disarm()
        except Interrupted as interrupted:
            caught = interrupted  # with its frames, as in a debugger: they must hold up nothing
            counts.add("interrupts")
        alarm.disarm()
        for file in files:
            file.close()
        del caught
        pgalloc.verify_image(path)
    counts.add("pages checked", original.expect("after interrupted saves"))


def _do(
    what: str, file: MemoryFile, path: Path, compression: str | None, files: list[MemoryFile]
) -> None:
    if what == "save":
        file.save(path, compression=compression)
    elif what == "stream":
        file.save(io.BytesIO(), compression=compression)
    elif what == "forward":
        files.append(MemoryFile.restore(io.BytesIO(path.read_bytes()), capacity=CAPACITY))
    else:
        files.append(MemoryFile.restore(path, background=what == "background", capacity=CAPACITY))
        if not files[0].wait_loaded():
            raise PromiseBrokenError("wait_loaded() gave up")
