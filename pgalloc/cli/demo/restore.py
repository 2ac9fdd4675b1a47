"""The demo's other process: ``python -m pgalloc.cli.demo.restore IMAGE MODE THREADS``.

It restores the image, takes every file over, compares every digest with what was saved, gives all
of it back, and prints an Outcome. MODE is "eager" or "background". Exit status 0 says that an
Outcome was printed, with problems or without.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pgalloc
from pgalloc.cli.demo.catalogue import HOOK, Entry, decode
from pgalloc.cli.demo.index import Index
from pgalloc.cli.demo.outcome import Outcome
from pgalloc.cli.demo.slots import digest_of
from pgalloc.cli.units import format_bytes, format_count, format_path
from pgalloc.testing import verify

MODES = ("eager", "background")

_WAIT_S = 120.0


class Restored:
    """One run over a restored memory file. Fills ``outcome``."""

    def __init__(self, started: float, outcome: Outcome) -> None:
        self._started = started
        self._outcome = outcome
        self._index_range: pgalloc.FileRange | None = None
        self._entries: Iterator[Entry] = iter(())
        self._allocations: dict[int, pgalloc.Allocation] = {}

    def attach(self, memory_file: pgalloc.MemoryFile, payload: bytes) -> None:
        """The restore hook: decodes no more than it must, so that the first file is soon there."""
        self._index_range, self._entries = decode(payload)

    def run(self, memory_file: pgalloc.MemoryFile, threads: int) -> None:
        """Adopts, checks and releases everything."""
        if self._index_range is None:
            self._problem("the restore hook was not called")
            return
        entries = self._adopt_all(memory_file)
        index = Index(pgalloc.Allocation.adopt(memory_file, self._index_range))
        with ThreadPoolExecutor(threads, "pgalloc-demo") as pool:
            right = list(pool.map(lambda entry: self._check(entry, index), entries))
        self._outcome.files = sum(right)
        self._check_loaded(memory_file)
        if left := sum(range.length for range in memory_file.unadopted()):
            self._problem(f"{format_bytes(left)} were left unadopted")
        verify(memory_file)
        for allocation in self._allocations.values():
            allocation.release()
        index.release()
        self._check_empty(memory_file)

    def _adopt_all(self, memory_file: pgalloc.MemoryFile) -> list[Entry]:
        entries = []
        for entry in self._entries:
            entries.append(entry)
            if entry.range is None:
                continue
            allocation = pgalloc.Allocation.adopt(memory_file, entry.range)
            self._allocations[entry.number] = allocation
            if self._outcome.first_file_s is None:
                with allocation.view(readonly=True) as view:
                    bytes(view[:: pgalloc.PAGE_SIZE])
                self._outcome.first_file_s = time.perf_counter() - self._started
        return entries

    def _check(self, entry: Entry, index: Index) -> bool:
        """Whether pages, hook and index agree about a file."""
        allocation = self._allocations.get(entry.number)
        if allocation is None:
            digest, tail_is_zero = hashlib.sha256().digest(), True
        else:
            with allocation.view(readonly=True) as view:
                digest, tail_is_zero = digest_of(view, entry.size)
        record = index[entry.number]
        path = format_path(entry.path)
        if digest.hex() != entry.digest:
            self._problem(f"wrong digest: {path}")
        elif (record.digest, record.size) != (digest, entry.size):
            self._problem(f"the index has another digest: {path}")
        elif not tail_is_zero:
            self._problem(f"bytes behind the end of the file: {path}")
        else:
            return True
        return False

    def _check_loaded(self, memory_file: pgalloc.MemoryFile) -> None:
        if not memory_file.wait_loaded(timeout=_WAIT_S):
            self._problem(f"pages are still being loaded after {_WAIT_S:.0f} s")
        progress = memory_file.load_progress()
        if memory_file.loading or progress.failed_bytes:
            self._problem(f"{format_bytes(progress.failed_bytes)} could not be loaded")

    def _check_empty(self, memory_file: pgalloc.MemoryFile) -> None:
        if not memory_file.wait_for_reclaim(timeout=_WAIT_S):
            self._problem(f"memory is still being reclaimed after {_WAIT_S:.0f} s")
        account, kernel = sum(memory_file.usage().values()), memory_file.total_usage()
        if account or kernel or memory_file.segments():
            segments = format_count(len(memory_file.segments()), "segment")
            self._problem(
                f"the account ended at {format_bytes(account)}, "
                f"the kernel at {format_bytes(kernel)}, with {segments}"
            )

    def _problem(self, what: str) -> None:
        self._outcome.problems.append(what)


def restore(image: str, mode: str, threads: int) -> Outcome:
    """Restores ``image`` and looks at all of it; what fails is among the problems."""
    outcome = Outcome()
    started = time.perf_counter()
    restored = Restored(started, outcome)
    try:
        with pgalloc.MemoryFile.restore(
            image, background=mode == "background", hooks={HOOK: restored.attach}
        ) as memory_file:
            outcome.returned_s = time.perf_counter() - started
            restored.run(memory_file, threads)
    except (pgalloc.Error, OSError, MemoryError, AssertionError) as error:
        outcome.problems.append(f"{type(error).__name__}: {error}")
    if not outcome.problems and (left := pgalloc.memory_accounting().total()):
        outcome.problems.append(f"the process's account ended at {format_bytes(left)}")
    return outcome


if __name__ == "__main__":
    print(restore(sys.argv[1], sys.argv[2], int(sys.argv[3])).to_json())
