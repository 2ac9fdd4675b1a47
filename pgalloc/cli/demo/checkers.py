"""The demo's worker processes: they get the pages without a copy, and report what is in them."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

import pgalloc
from pgalloc.cli.demo.slots import digest_of

if TYPE_CHECKING:
    from typing import Self

RETURN_S = 30.0
"""How long to wait for the pages that workers held, once they are done with them."""


class CheckersGoneError(Exception):
    """A worker process has died."""


class Checkers:
    """A few processes, started when they are first needed."""

    def __init__(self, memory_file: pgalloc.MemoryFile) -> None:
        self._file = memory_file
        count = min(4, os.cpu_count() or 1)
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, mp_context=context)

    def digest(self, pages: pgalloc.Allocation, size: int) -> tuple[bytes, bool]:
        """SHA-256 of the first ``size`` bytes, as a worker sees them; whether the rest is zero."""
        try:
            return self._pool.submit(_digest, pages, size).result()
        except BrokenProcessPool as error:
            raise CheckersGoneError("a worker process has died") from error

    def wait_for_pages(self) -> None:
        """Wait until the file has all of its pages back.

        A worker says what it found on a pipe of its own; that it gave the pages back, on another.
        """
        deadline = time.monotonic() + RETURN_S
        while self._file.leases() and time.monotonic() < deadline:
            time.sleep(0.002)

    def close(self) -> None:
        """End the processes, and wait for the pages they held."""
        self._pool.shutdown(cancel_futures=True)
        self.wait_for_pages()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _digest(pages: pgalloc.Allocation, size: int) -> tuple[bytes, bool]:
    with pages, pages.view(readonly=True) as view:
        return digest_of(view, size)
