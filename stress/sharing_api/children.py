"""Children that a peer forks: each looks at its parent's pages, whatever its parent does."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from torture_api import marks

from pgalloc import PAGE_SIZE, ForkedError, OwnerGoneError, SharingError
from sharing_api.holding import Holding

if TYPE_CHECKING:
    from collections.abc import Sequence

_LOOKS = 4
_PAUSE_S = 0.01
_CHILD_SECONDS_MAX = 60.0
_AT_ONCE_MAX = 2
_WITHOUT_PAGES = 3  # an exit status


class Children:
    """Of one peer. Half of them are killed in the middle of it."""

    def __init__(self, seed: int, *, in_trouble: bool) -> None:
        self.without_pages = 0
        self._random = random.Random(seed)
        self._in_trouble = in_trouble
        self._killed_on: dict[int, float | None] = {}  # by process id; None if it may end by itself
        self._deadlines: dict[int, float] = {}

    @property
    def full(self) -> bool:
        return len(self._deadlines) >= _AT_ONCE_MAX

    def fork(self, holdings: Sequence[Holding]) -> None:
        """One more."""
        peer = os.getpid()
        child = os.fork()
        if child == 0:
            _be_the_child(
                [holding for holding in holdings if holding.pinned], peer, self._in_trouble
            )
        now = time.monotonic()
        self._deadlines[child] = now + _CHILD_SECONDS_MAX
        killed = self._random.random() < 0.5
        self._killed_on[child] = now + self._random.random() * 0.05 if killed else None

    def look_after(self) -> None:
        """Kill those whose time has come, and reap. PromiseBrokenError if one found something."""
        now = time.monotonic()
        for child, deadline in list(self._deadlines.items()):
            killed_on = self._killed_on[child]
            if killed_on is not None and now >= killed_on:  # time: the load: when it is killed
                os.kill(child, signal.SIGKILL)
            reaped, status = os.waitpid(child, os.WNOHANG)
            if reaped:
                del self._deadlines[child], self._killed_on[child]
                self._judge(os.waitstatus_to_exitcode(status), killed=killed_on is not None)
            elif now >= deadline:  # time: a bound on a hang
                os.kill(child, signal.SIGKILL)
                raise marks.PromiseBrokenError("a forked child hangs")

    def _judge(self, status: int, *, killed: bool) -> None:
        if status in (-signal.SIGSEGV, _WITHOUT_PAGES) and self._in_trouble:
            self.without_pages += 1  # its owner had no descriptor for it
        elif status != 0 and not (killed and status == -signal.SIGKILL):
            raise marks.PromiseBrokenError(f"a forked child ended with status {status}")

    def wait(self) -> None:
        """Until all have ended."""
        while self._deadlines:
            self.look_after()
            time.sleep(0.001)  # time: it polls


def _be_the_child(holdings: Sequence[Holding], peer: int, in_trouble: bool) -> NoReturn:
    status = 1
    if in_trouble:  # it may have no pages: no report of faulthandler or a sanitizer, then
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    try:
        own: list[Holding] = []
        for number in range(1, _LOOKS + 1):
            for holding in [*holdings, *own]:
                holding.check("in a forked child")
            if holdings and (new := _new_holding(holdings[0].file, number, in_trouble)):
                own.append(new)
            time.sleep(_PAUSE_S)  # time: the load: how long it lives
        status = 0
    except ForkedError:
        status = _WITHOUT_PAGES
    except BaseException:
        if os.getppid() == peer:  # else the run may be over
            traceback.print_exc()
    finally:
        os._exit(status)


def _new_holding(file: Any, number: int, in_trouble: bool) -> Holding | None:
    """The owner serves a child as it does any peer. None if it is refused, in trouble."""
    try:
        pages = file.allocate(2 * PAGE_SIZE)
    except (OwnerGoneError, ForkedError):
        raise
    except (SharingError, OSError):
        if not in_trouble:
            raise
        return None
    first = os.getpid() << 32 | number << 16
    marks.expect_zero(pages, "on arrival in a forked child")
    marks.write(pages, first)
    return Holding(first, pages)
