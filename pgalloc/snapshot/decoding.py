"""Waiting for pages that are on their way from an image, and decoding those that are encoded.

The core loads pages as they are by itself, with threads of its own and in whatever thread needs
them. Encoded extents it hands out here: to a thread that waits for one, or to the threads below.
"""

from __future__ import annotations

import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from pgalloc import _core, fork
from pgalloc.errors import OutOfMemoryError, SnapshotError
from pgalloc.snapshot.codec import Codec, zstd
from pgalloc.threads import PARK_TIMEOUT_S, Thread

if TYPE_CHECKING:
    from pgalloc.memory_file import MemoryFile

_ASYNC_SLICE_S = 0.05


def load(
    memory_file: MemoryFile,
    range: _core.FileRange | None,
    timeout_s: float | None,
    *,
    ignore_broken: bool,
) -> bool:
    """As load_range(), with errors that name the image."""
    with memory_file._image:
        return load_range(memory_file, range, timeout_s, ignore_broken=ignore_broken)


def load_range(
    memory_file: _core.MemoryFile,
    range: _core.FileRange | None,
    timeout_s: float | None,
    *,
    ignore_broken: bool,
) -> bool:
    """Load a range (None: everything), or wait until it is loaded. False when the time is over.

    Raises OutOfMemoryError if there is no room for it below the memory limits.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        there, extent = memory_file._load(range, left, ignore_broken)
        if extent is not None:
            decode(extent)
        elif there or left is not None:
            return there


def decode(extent: _core.ArrivingExtent, codec: Codec | None = None) -> None:
    """Decode an extent into its place. If it is damaged, touching its pages is an error."""
    try:
        raw = (codec or zstd()).decode(extent.encoded(), extent.raw_length)
    except SnapshotError as error:
        extent.fail(str(error))
    else:
        extent.deliver(raw)
    finally:
        extent.close()  # undelivered, it waits again


async def loaded(memory_file: MemoryFile) -> None:
    """Return when nothing is on its way any more."""
    import asyncio  # the caller has it already; pgalloc itself does not need it

    while not await asyncio.to_thread(memory_file.wait_loaded, _ASYNC_SLICE_S):
        pass


class Decoders:
    """Threads that load an image with encoded extents in the background.

    They must not keep the file alive, and they end when all is loaded.
    """

    def __init__(self, memory_file: MemoryFile, count: int) -> None:
        self._file = weakref.ref(memory_file)
        self._count = count
        self._codec = zstd()
        self._stops = False
        self._threads: list[Thread] = []
        fork.register(self)
        self.resume()

    def park(self) -> None:
        """Stop the threads and wait until they are gone."""
        self._stops = True
        for thread in self._threads:
            if not thread.is_current():
                thread.join(PARK_TIMEOUT_S)
        self._threads.clear()

    def resume(self) -> None:
        """Start them, if there is work."""
        memory_file = self._file()
        if memory_file is None or memory_file.closed or not memory_file.loading:
            return
        if not _core._testing.loaders_allowed():
            return
        self._stops = False
        for _ in range(self._count):
            thread = Thread(self._work)
            try:
                thread.start()
            except RuntimeError:
                return  # no thread to be had: threads that need pages decode them
            self._threads.append(thread)

    def reset_in_child(self) -> None:
        """In a forked child: the threads are not there."""
        self._threads.clear()

    def _work(self) -> None:
        with suppress(OutOfMemoryError):  # no room now: pages are loaded when they are needed
            self._load_all()

    def _load_all(self) -> None:
        while not self._stops:
            memory_file = self._file()
            if memory_file is None:
                return
            more, extent = memory_file._load_next()
            del memory_file
            if extent is not None:
                decode(extent, self._codec)
            elif not more:
                return
