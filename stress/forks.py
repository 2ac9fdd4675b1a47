"""The torture of forks: one busy process forks, by Python and by C, under signals. See README.md.

Its threads allocate, mark, check, send and free. It has pages of its own and of another owner.
While a child lives, all that it inherited is freed and given to others; then it looks at its views.
At the end nothing may be left. Exits with 0 if all is well, with 1 if something was found, which is
what ``--plant`` is for.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from operator import le
from typing import Any

from torture_api import marks

from pgalloc import PAGE_SIZE, Allocation, AllocationMode, MemoryFile, _core
from pgalloc.pressure import default_guard
from pgalloc.pressure.guard import GuardSource
from pgalloc.testing import verify

_PAGES = 16
_PATIENCE_S = 60
POPULATE = AllocationMode.ALLOCATE_AND_WRITE_POPULATE


class InterruptError(Exception):
    """What the signal handler raises."""


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forks", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plant", choices=["fork"], help="some children get no leases")
    return parser.parse_args()


def own(pipe: Connection) -> None:
    """Another owner: its pages for this process, and marks of others in what it gave back."""
    with MemoryFile() as file:
        while pipe.recv() == "pages":
            with file.allocate(_PAGES * PAGE_SIZE) as pages:
                pipe.send(pages)
                pipe.recv()
            file.wait_for_reclaim()
            scribble(file)
            pipe.send("reused")
        deadline = time.monotonic() + _PATIENCE_S
        while file.leases() and time.monotonic() < deadline:  # time: a bound on a hang
            time.sleep(0.001)  # time: it polls
        pipe.send([file.leases(), file.stats().unpinned_bytes])


def scribble(file: MemoryFile) -> None:
    """Whoever holds pages that were given to others sees that now."""
    others = [file.allocate(_PAGES * PAGE_SIZE, mode=POPULATE) for _ in range(4)]
    for pages in others:
        marks.write(pages, 0xEE << 56)
    for pages in others:
        pages.release()


class Busy:
    """Threads that use the file all the time."""

    def __init__(self, file: MemoryFile, count: int) -> None:
        self._file = file
        self._stop = threading.Event()
        self.failures: list[BaseException] = []
        # Daemons: what goes wrong elsewhere ends the program.
        self._threads = [
            threading.Thread(target=self._work, args=(number,), daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, number: int) -> None:
        ours, theirs = multiprocessing.Pipe()
        first = (number + 1) << 40
        try:
            while not self._stop.wait(0.001):  # time: the load
                with self._file.allocate(_PAGES * PAGE_SIZE) as pages:
                    marks.expect_zero(pages, "on arrival")
                    marks.write(pages, first)
                    ours.send(pages)
                    with theirs.recv() as received:
                        marks.expect(received, first, "after it was sent")
                    pages.unpin()
                    if pages.pin():
                        marks.expect(pages, first, "after it was unpinned")
        except BaseException as error:
            self.failures.append(error)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_PATIENCE_S)
        if self.failures:
            raise self.failures[0]


# --- forks ---------------------------------------------------------------------------------------

_raise = getattr(ctypes.CDLL(None), "raise")  # without a look at signals behind it


def _handle(*_: object) -> None:
    raise InterruptError


def by_python() -> int:
    """Some are interrupted by a signal, in each hook."""
    return os.fork()


def by_c() -> int:
    """As uWSGI forks, which takes the second step before any Python code runs."""
    pid = int(ctypes.PyDLL(None).fork())
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    return pid


def fork(how: Callable[[], int]) -> int:
    """The child, or 0 in it, also if a handler raises in between."""
    here = os.getpid()
    known = set(_children())
    try:
        return how()
    except InterruptError:
        if os.getpid() != here:
            return 0
        return next(pid for pid in _children() if pid not in known)


def _children() -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat:
                parent = int(stat.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == os.getpid():
            found.append(int(name))
    return found


def in_child(file: MemoryFile, held: list[tuple[Allocation, memoryview, int]], go: int) -> None:
    """Look at what was inherited, once others have it."""
    status = 1
    try:
        os.read(go, 1)
        for pages, view, first in held:
            marks.expect(view, first, "in a child")
            marks.expect(pages, first, "in a child")
            with pages.clone() as clone:
                marks.expect(clone, first, "in a child's clone")
            with pages.file.allocate(_PAGES * PAGE_SIZE) as new:
                marks.expect_zero(new, "on arrival in a child")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def one(file: MemoryFile, pipe: Connection, rng: random.Random) -> None:
    """Fork once."""
    pipe.send("pages")
    theirs: Allocation = pipe.recv()
    held = []
    for pages in (file.allocate(_PAGES * PAGE_SIZE), theirs):
        first = rng.getrandbits(40)
        marks.write(pages, first)
        held.append((pages, pages.view(), first))
    ready, go = os.pipe()
    how = rng.choice([by_python, by_c])
    signal.signal(signal.SIGUSR1, _handle if rng.random() < 0.5 else signal.SIG_IGN)
    child = fork(how)
    if child == 0:
        in_child(file, held, ready)
    for pages, view, _ in held:
        view.release()
        pages.release()
    pipe.send("released")
    pipe.recv()
    file.wait_for_reclaim()
    scribble(file)
    os.write(go, b".")
    status = _wait_for(child)
    os.close(ready)
    os.close(go)
    if status != 0:
        raise marks.PromiseBrokenError(f"a forked child ended with status {status}")


def _wait_for(child: int) -> int:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:  # time: a bound on a hang
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)  # time: it polls
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise marks.PromiseBrokenError("a forked child hangs")


# --- the whole -----------------------------------------------------------------------------------


def holdings() -> tuple[int, int]:
    """Descriptors and threads."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def until(so: Callable[[], Any], what: str) -> None:
    """Wait for what must be so in the end."""
    deadline = time.monotonic() + _PATIENCE_S
    while not so():
        if time.monotonic() > deadline:  # time: a bound on a hang
            raise marks.PromiseBrokenError(f"{what} does not come")
        time.sleep(0.001)  # time: it polls


def torture(options: argparse.Namespace) -> None:
    """All of it."""
    rng = random.Random(options.seed)
    ours, theirs = multiprocessing.Pipe()
    owner = multiprocessing.get_context("spawn").Process(target=own, args=(theirs,))
    owner.start()
    theirs.close()
    with MemoryFile() as file:
        one(file, ours, rng)  # starts what stays
        until(lambda: not file.leases(), "the end of leases")
        before = holdings()
        if options.plant:
            _core.broker_plant(options.plant)
        busy = Busy(file, options.threads)
        for _ in range(options.forks):
            one(file, ours, rng)
            if busy.failures:
                break
        busy.end()
        file.drop_unclaimed()
        until(lambda: not file.leases(), "the end of leases")
        file.wait_for_reclaim()
        verify(file)
        if _core.broker_verify() is not None or file.segments():
            raise marks.PromiseBrokenError(f"left: {_core.broker_verify()} {file.segments()}")
        del busy
        until(lambda: all(map(le, holdings(), before)), f"{holdings()} down to {before}")
        ours.send("end")
        left = ours.recv()
        if left != [[], 0]:
            raise marks.PromiseBrokenError(f"left at the other owner: {left}")
    owner.join()


def main() -> int:
    """Run it. The exit status."""
    options = parsed()
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
    default_guard.ensure()
    # No thread may ask for the GIL between the two steps of by_c(): the child would wait for it.
    sys.setswitchinterval(1000)
    _core.broker_address()
    GuardSource().close()  # starts the guard's thread, which stays
    sys.unraisablehook = type  # type: ignore[assignment] # CPython prints what hooks raise
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    hook = functools.partial(_raise, int(signal.SIGUSR1))
    os.register_at_fork(before=hook)  # registered last: runs before pgalloc's
    try:
        torture(options)
    except BaseException as error:
        traceback.print_exception(error)
        print(f"FAILED: {error}", flush=True)
        for child in _children():
            os.kill(child, signal.SIGKILL)
        os._exit(1)  # what is broken must not get in the way of saying so
    if options.plant:
        print("the planted bug was not found")
    else:
        print(f"{options.forks} forks, nothing lost and nothing left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
