"""Those who use the file that is being saved: they allocate, write, free, scan and fork."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from functools import partial

import pgalloc
from pgalloc import PAGE_SIZE, MemoryFile, testing
from snapshot_api.crew import Crew
from snapshot_api.original import Piece
from snapshot_api.stamps import PromiseBrokenError, Stamp, Stamper, Style
from snapshot_api.tally import Tally

_ZERO = Stamp(0, Style.ZERO)
_CHILD_SECONDS_MAX = 60.0


def expect_zero(view: memoryview, when: str) -> None:
    """Raise PromiseBrokenError unless every byte is zero."""
    _ZERO.expect(view, when)


def meddle(crew: Crew, file: MemoryFile, rng: random.Random, counts: Tally) -> None:
    """Set a few of them on a file, until the crew stops. A file that is closed ends them, too."""
    for owner in range(2):
        job = partial(_churn, crew, file, random.Random(rng.getrandbits(64)), 100 + owner, counts)
        crew.start(partial(until_closed, job), "churn")
    crew.start(partial(until_closed, partial(_scan, crew, file)), "scan")


def until_closed(job: Callable[[], object]) -> None:
    """Call it; that the file is closed is no failure."""
    try:
        job()
    except pgalloc.ClosedError:
        return


def _churn(crew: Crew, file: MemoryFile, rng: random.Random, owner: int, counts: Tally) -> None:
    stamper = Stamper(owner)
    kept: list[tuple[pgalloc.Allocation, Stamp]] = []
    while not crew.stop.is_set():
        pages = rng.choice([1, 3, 20, 200])
        allocation = file.allocate(pages * PAGE_SIZE)
        stamp = stamper.new(pages, rng.choice(list(Style)))
        with allocation.view() as view:
            expect_zero(view, "on arrival")
            view[:] = stamp.contents(pages)
        kept.append((allocation, stamp))
        counts.add("pages written beside a save", pages)
        if len(kept) > 4:
            allocation, stamp = kept.pop(rng.randrange(len(kept)))
            with allocation.view(readonly=True) as view:
                stamp.expect(view, "beside a save")
            allocation.release()
        time.sleep(rng.choice([0, 0, 0.001]))  # time: the load
    for allocation, _ in kept:
        allocation.release()


def _scan(crew: Crew, file: MemoryFile) -> None:
    while not crew.stop.wait(0.003):  # time: the load
        file.update_usage()
        testing.verify(file)


def keep_forking(crew: Crew, file: MemoryFile, piece: Piece, counts: Tally) -> None:
    """Fork until the crew stops. A child sees the stamp of a piece that stays, or an error."""
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
    while not crew.stop.wait(0.02):  # time: the load
        child = os.fork()
        if child == 0:
            _be_the_child(file, piece)
        status = _wait_for(child)
        if status != 0:
            raise PromiseBrokenError(f"a forked child ended with status {status}")
        counts.add("forks")


def _be_the_child(file: MemoryFile, piece: Piece) -> None:
    status = 1
    try:
        piece.expect(file, "in a forked child")
        status = 0
    except (pgalloc.ForkedError, pgalloc.ClosedError, pgalloc.SnapshotCorruptError):
        status = 0
    except BaseException:
        status = 2
    finally:
        os._exit(status)


def _wait_for(child: int) -> int:
    deadline = time.monotonic() + _CHILD_SECONDS_MAX
    while time.monotonic() < deadline:  # time: a bound on a hang
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)  # time: it polls
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise PromiseBrokenError("a forked child hangs")
