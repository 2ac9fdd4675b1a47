"""Forks in the middle of everything: the child reads what it inherited, and allocates."""

from __future__ import annotations

import os
import signal
import time
import traceback
import warnings
from typing import TYPE_CHECKING

import pgalloc
from torture_api import marks
from torture_api.holding import Holding

if TYPE_CHECKING:
    import threading

    from pgalloc import MemoryFile

_CHILD_SECONDS_MAX = 60.0
_PAGES = 8
_FIRST_OF_CHILD = 0xF1 << 56


def keep_forking(file: MemoryFile, stop: threading.Event) -> int:
    """Fork until told to stop. The number of forks."""
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
    first = 0xF0 << 56
    allocation = file.allocate(_PAGES * pgalloc.PAGE_SIZE)
    marks.write(allocation, first)
    holding = Holding(first, allocation)
    forks = 0
    while not stop.wait(0.05):  # time: the load
        child = os.fork()
        if child == 0:
            _be_the_child(file, holding)
        status = _wait_for(child)
        if status != 0:
            raise marks.PromiseBrokenError(f"a forked child ended with status {status}")
        holding.check("after a fork")
        forks += 1
    holding.drop()
    return forks


def _be_the_child(file: MemoryFile, holding: Holding) -> None:
    status = 1
    try:
        holding.check("in a forked child")
        with file.allocate(_PAGES * pgalloc.PAGE_SIZE) as own:
            marks.expect_zero(own, "in a forked child")
            marks.write(own, _FIRST_OF_CHILD)
            Holding(_FIRST_OF_CHILD, own).check("of a forked child")
        try:
            file.segments()
        except pgalloc.ForkedError:
            status = 0
    except BaseException:
        traceback.print_exc()
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
    raise marks.PromiseBrokenError("a forked child hangs")
