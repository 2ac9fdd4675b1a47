"""The torture of pgalloc through its Python API. See README.md beside this file.

Many threads allocate, mark, check, share, decommit, evict and let go at random, while others ask
for usage and statistics, prove the invariants and, with ``--fork``, fork. At the end nothing may be
left. Exits with 0 if all is well, with 1 if something was found, which is what ``--plant`` is for.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from torture_api import forks
from torture_api.marks import PromiseBrokenError
from torture_api.shelf import Shelf
from torture_api.source import PLANTS, Source
from torture_api.worker import Worker

import pgalloc
import pgalloc.testing

if TYPE_CHECKING:
    from collections.abc import Callable

    from torture_api.holding import Holding


class Run:
    """One file, its threads, and the first thing that went wrong."""

    def __init__(self, file: pgalloc.MemoryFile, options: argparse.Namespace) -> None:
        self.file = file
        self.options = options
        self.stop = threading.Event()
        self.failure: BaseException | None = None
        self.forks = 0
        self.shelf = Shelf(file)
        mailboxes: list[queue.SimpleQueue[Holding]] = [
            queue.SimpleQueue() for _ in range(options.threads)
        ]
        source = Source(file, options.plant)
        share = options.bytes_max // options.threads
        self.workers = [
            Worker(number, options.seed, source, self.shelf, mailboxes, share)
            for number in range(options.threads)
        ]

    def work(self) -> None:
        """Let all threads loose for a while."""
        jobs: list[Callable[[], None]] = [partial(self._work, worker) for worker in self.workers]
        jobs += [self._watch_usage, self._watch_invariants]
        if self.options.fork:
            jobs.append(self._fork)
        threads = [threading.Thread(target=self._guarded, args=(job,), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        self.stop.wait(self.options.seconds)
        self.stop.set()
        deadline = time.monotonic() + 120
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive() and self.failure is None:
                raise PromiseBrokenError("a thread does not come to an end")
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what a thread or a callback has found."""
        if self.failure is not None:
            raise self.failure
        if self.shelf.findings:
            raise self.shelf.findings[0]

    def audit_at_rest(self) -> None:
        """No thread works: the account must be what the kernel says."""
        self.file.start_evictions()
        if not self.file.wait_for_evictions(timeout=60) or not self.file.wait_for_reclaim(60):
            raise PromiseBrokenError("evictions or the reclaimer do not come to an end")
        while not self.file.update_usage():
            time.sleep(0.01)  # time: scans are throttled
        pgalloc.testing.verify(self.file)
        booked, stored = sum(self.file.usage().values()), self.file.total_usage()
        if booked != stored:
            raise PromiseBrokenError(f"{booked} bytes are booked, the kernel stores {stored}")

    def finish(self) -> None:
        """Let go of everything: nothing may be left."""
        while (holding := self.shelf.take()) is not None:
            holding.drop()
        for worker in self.workers:
            worker.drop_all()
        gc.collect()
        self._wait_for_children()
        self.audit_at_rest()
        self.raise_failure()
        if self.file.segments():
            raise PromiseBrokenError(f"references are lost: {self.file}")
        if self.file.total_usage() != 0:
            raise PromiseBrokenError("the kernel still stores pages")

    def _wait_for_children(self) -> None:
        """The owner hears of a child's end a moment after its parent has reaped it."""
        deadline = time.monotonic() + 60
        while self.file.leases():
            if time.monotonic() > deadline:  # time: a bound on a hang
                raise PromiseBrokenError(f"children that ended have leases: {self.file.leases()}")
            time.sleep(0.01)  # time: it polls

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self.failure = self.failure or error
            self.stop.set()

    def _work(self, worker: Worker) -> None:
        while not self.stop.is_set():
            worker.step()

    def _watch_usage(self) -> None:
        while not self.stop.wait(0.01):  # time: the load
            self.file.update_usage()
            self.file.update_usage([1, 3])
            str(self.file)
            self.raise_failure()
            if self.file.stats().lost_bytes:
                raise PromiseBrokenError("pages could be neither punched nor zeroed")

    def _watch_invariants(self) -> None:
        while not self.stop.wait(0.02):  # time: the load
            pgalloc.testing.verify(self.file)

    def _fork(self) -> None:
        self.forks = forks.keep_forking(self.file, self.stop)

    def report(self) -> None:
        """Print what was done."""
        counts: Counter[str] = sum((worker.counts for worker in self.workers), Counter())
        counts["evicted"] = self.shelf.evicted
        counts["forks"] = self.forks
        stats = self.file.stats()
        counts["callbacks that raised"] = stats.eviction_failures
        counts["punches"] = stats.punches
        counts["huge allocations"] = stats.huge_allocations
        counts["scans"] = stats.scans
        print("ok: no page shared, lost or dirty; the kernel has everything back")
        for what, count in counts.items():
            print(f"  {what:<28} {count:>12}")


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bytes-max", type=int, default=256 << 20)
    parser.add_argument("--fork", action="store_true", help="fork all the time, too")
    parser.add_argument("--plant", choices=PLANTS, help="a bug that must be found")
    return parser.parse_args()


def main() -> int:
    """Run it. The exit status."""
    options = parsed()
    logging.getLogger("pgalloc").setLevel(logging.CRITICAL)  # callbacks fail on purpose
    sys.setswitchinterval(1e-4)
    file = pgalloc.MemoryFile(capacity=64 << 30)
    run = Run(file, options)
    try:
        run.work()
        run.audit_at_rest()
        run.finish()
    except BaseException as error:
        traceback.print_exception(error)
        print(f"FAILED: {error}", flush=True)
        os._exit(1)  # what is broken must not get in the way of saying so
    run.report()
    file.close()
    if options.plant:
        print("the planted bug was not found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
