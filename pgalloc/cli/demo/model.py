"""The demo's run: load, check, evict, reload, save, restore elsewhere, release. Prints nothing.

The steps run one after another; within a step several threads work on different files.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pgalloc
from pgalloc.cli.demo.catalogue import Entry
from pgalloc.cli.demo.checkers import Checkers, CheckersGoneError
from pgalloc.cli.demo.index import Index, Record
from pgalloc.cli.demo.page_map import PageMap, PageState
from pgalloc.cli.demo.reading import CannotRead
from pgalloc.cli.demo.report import Progress, Report, Snapshot, Step
from pgalloc.cli.demo.slots import Shelf, Slot
from pgalloc.cli.demo.snapshot import SnapshotSteps
from pgalloc.cli.files import Found, Skipped
from pgalloc.cli.units import format_bytes, format_count, format_path
from pgalloc.testing import pause_reclaimer, verify

WAIT_S = 120.0
"""How long to wait for evictions or reclaim before saying that they hang."""

SETTLE_S = 5.0
"""How long to wait for the account to agree with the kernel; scans are throttled."""


class Demo:
    """One run: files that cannot be used go to ``report.skipped``, faults to ``report.problems``.

    The methods raise pgalloc.Error, OSError or MemoryError only where the machine fails the
    allocator itself.
    """

    def __init__(
        self, memory_file: pgalloc.MemoryFile, found: Found, report: Report, progress: Progress
    ) -> None:
        self.report = report
        report.skipped.extend(found.skipped)
        self._file = memory_file
        self._progress = progress
        self._slots = {number: Slot(number, file) for number, file in enumerate(found.files)}
        self._index: Index | None = None

    def run(self) -> None:
        """Takes all steps in order; what is found out goes to the report."""
        self.load()
        self.hash()
        with Checkers(self._file) as checkers:
            self.check("check", checkers)
            self.snapshot("loaded", settle=True)
            self.evict()
            self.snapshot("evicted", settle=False)
            self.reload()
            self.check("check again", checkers)
        self.snapshot("reloaded", settle=True)
        self.save_and_restore()
        self.release()
        self.snapshot("released", settle=True)
        self.conclude()

    def load(self) -> None:
        """Reads every file into pages of its own, through ``reader=``."""
        self._index = Index.allocate(self._file, len(self._slots))
        self._each("load", "from disk into pages", self._all(), self._load_one)

    def hash(self) -> None:
        """Reads every file from disk again, and writes its SHA-256 digest into the index."""
        index = self._need_index()

        def hash_one(slot: Slot) -> None:
            index[slot.number] = Record(slot.digest_on_disk(), slot.size, slot.start)

        self._each("hash", "SHA-256 of the disk", self._all(), hash_one)
        self.report.files = len(self._slots)
        self.report.file_bytes = sum(slot.size for slot in self._slots.values())

    def check(self, name: str, checkers: Checkers) -> None:
        """Has worker processes compare every file in memory with the index, without a copy."""
        in_memory = [slot for slot in self._all() if slot.in_memory]
        what = "SHA-256 in worker processes"
        check_one = functools.partial(self._check_one, checkers)
        try:
            self.report.digests_checked += self._each(name, what, in_memory, check_one)
        except CheckersGoneError as error:
            self._problem(f"{name}: {error}")
        checkers.wait_for_pages()

    def evict(self) -> None:
        """Marks every second file evictable, on as many users as threads, and evicts them."""
        chosen = [slot for slot in self._all() if slot.nbytes][::2]
        shelves = [Shelf(self._slots) for _ in range(self.report.threads)]
        nbytes = sum(slot.nbytes for slot in chosen)
        with self._step("evict", "half, by callbacks", len(chosen), nbytes):
            for slot in chosen:
                shelf = shelves[slot.number % len(shelves)]
                numbers = pgalloc.EvictableRange(slot.number, slot.number + 1)
                self._file.mark_evictable(shelf, numbers)
            self._file.start_evictions()
            if not self._file.wait_for_evictions(timeout=WAIT_S):
                self._problem(f"evictions still run after {WAIT_S:.0f} s")
        gone = [slot for slot in chosen if slot.evicted and not slot.in_memory]
        if len(gone) != len(chosen):
            self._problem(f"only {len(gone)} of {format_count(len(chosen), 'file')} were evicted")
        self.report.evicted_files = len(gone)
        self.report.evicted_bytes = sum(slot.nbytes for slot in gone)

    def reload(self) -> None:
        """Asks for every second evicted file again: it comes back from disk, the rest does not."""
        asked = [slot for slot in self._all() if slot.evicted][::2]
        self._each("reload", "half of those, again", asked, self._load_one)
        back = [slot for slot in asked if slot.in_memory]
        self.report.reloaded_files = len(back)
        self.report.reloaded_bytes = sum(slot.nbytes for slot in back)

    def save_and_restore(self) -> None:
        """Saves everything with a hook that says where it is; new processes must find it again."""
        index = self._need_index()
        entries = []
        for slot in self._all():
            if slot.in_memory:
                digest = index[slot.number].digest.hex()
                path = slot.source.path
                entries.append(Entry(slot.number, path, slot.size, digest, slot.start))
        SnapshotSteps(self._file, index.range, entries, self.report, self._progress).run()

    def release(self) -> None:
        """Drops every reference and waits until the kernel has its memory back."""
        held = [slot for slot in self._all() if slot.in_memory]
        nbytes = sum(slot.nbytes for slot in held)
        with self._step("release", "all, until reclaimed", len(held), nbytes):
            for slot in held:
                slot.let_go()
                self._progress.advance(slot.nbytes)
            self._need_index().release()
            self._wait_for_reclaim()

    def snapshot(self, moment: str, *, settle: bool) -> None:
        """Records the account; with ``settle`` it must agree with the kernel, to the byte."""
        if settle:
            self._settle(moment)
        with pause_reclaimer(self._file):  # or the parts of the picture would not fit together
            page_map = PageMap.of(self._file.segments(), self._file.total_size)
            committed = self._file.usage()
            kernel = self._file.total_usage()
            huge = self._file.huge_usage()
        allocated = dict.fromkeys(pgalloc.MemoryKind, 0)
        for run in page_map.runs:
            if run.kind is not None and run.state not in (PageState.WASTE, PageState.PART):
                allocated[run.kind] += run.nbytes
        self.report.snapshots.append(Snapshot(moment, allocated, committed, kernel, page_map, huge))
        try:
            verify(self._file)
        except AssertionError as error:
            self._problem(f"{moment}: an invariant is broken: {error}")

    def conclude(self) -> None:
        """Checks that nothing is left in the file's account."""
        left = sum(self._file.usage().values())
        if left or self._file.total_usage():
            kernel = format_bytes(self._file.total_usage())
            self._problem(f"the account ended at {format_bytes(left)}, the kernel at {kernel}")
        self.report.given_back_bytes = self._file.stats().punched_bytes

    def _load_one(self, slot: Slot) -> None:
        slot.load(self._file)

    def _check_one(self, checkers: Checkers, slot: Slot) -> None:
        expected = self._need_index()[slot.number]
        digest, tail_is_zero = slot.digest_by(checkers.digest)
        path = format_path(slot.source.path)
        if digest != expected.digest or slot.size != expected.size:
            self._problem(f"wrong digest: {path}")
        if not tail_is_zero:
            self._problem(f"bytes behind the end of the file: {path}")

    def _settle(self, moment: str) -> None:
        self._wait_for_reclaim()
        deadline = time.monotonic() + SETTLE_S
        while True:
            self._file.update_usage()
            account, kernel = sum(self._file.usage().values()), self._file.total_usage()
            if account == kernel:
                return
            if time.monotonic() > deadline:
                self._problem(
                    f"{moment}: the account says {account:,}, the kernel {kernel:,} bytes"
                )
                return
            time.sleep(0.005)

    def _wait_for_reclaim(self) -> None:
        if not self._file.wait_for_reclaim(timeout=WAIT_S):
            self._problem(f"memory is still being reclaimed after {WAIT_S:.0f} s")

    def _each(
        self, name: str, what: str, slots: Sequence[Slot], work: Callable[[Slot], None]
    ) -> int:
        """Does ``work`` on every slot, in threads; files that cannot be read leave the run.

        Returns how many were done.
        """

        def attempt(slot: Slot) -> Skipped | None:
            try:
                work(slot)
            except CannotRead as error:
                return Skipped(slot.source.path, str(error))
            finally:
                self._progress.advance(slot.nbytes)
            return None

        nbytes = sum(slot.nbytes for slot in slots)
        with (
            self._step(name, what, len(slots), nbytes),
            ThreadPoolExecutor(self.report.threads, "pgalloc-demo") as pool,
        ):
            try:
                outcomes = list(pool.map(attempt, slots))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for slot, skipped in zip(slots, outcomes, strict=True):
            if skipped is not None:
                slot.let_go()
                del self._slots[slot.number]
                self.report.skipped.append(skipped)
        return len(slots) - sum(skipped is not None for skipped in outcomes)

    @contextlib.contextmanager
    def _step(self, name: str, what: str, files: int, nbytes: int) -> Iterator[None]:
        self._progress.begin(name, nbytes)
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self.report.steps.append(Step(name, what, seconds, files, nbytes))

    def _all(self) -> list[Slot]:
        return list(self._slots.values())

    def _need_index(self) -> Index:
        if self._index is None:
            raise ValueError("load() comes first")
        return self._index

    def _problem(self, what: str) -> None:
        self.report.problems.append(what)
