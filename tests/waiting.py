"""Waiting in tests: for what is so in the end, for threads, for a race to be hit.

Never for time to pass: what does not come fails the test, and says what it was. Only here may a
test sleep without a reason beside it (tests/unit/test_no_clocks.py).
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

TIMEOUT_S = 60.0
"""Longer is a hang: nothing that works takes as long, not even on a busy machine."""

_PAUSE_S = 0.001


def eventually(condition: Callable[[], Any], what: str = "it", timeout_s: float = TIMEOUT_S) -> Any:
    """Wait until something is so, and return what ``condition`` gave then."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise _hang(what)
        time.sleep(_PAUSE_S)
    return found


def join(threads: Iterable[threading.Thread], timeout_s: float = TIMEOUT_S) -> None:
    """Wait until all of them have ended."""
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            raise _hang(f"the end of {thread.name}")


def is_inside(thread: threading.Thread, function: str) -> bool:
    """Whether a thread runs a Python function of that qualified name, or waits in it, right now."""
    return _runs(sys._current_frames().get(thread.ident or 0), function)


def any_is_inside(function: str) -> bool:
    """Whether any thread is, also one that Python did not start."""
    return any(_runs(frame, function) for frame in list(sys._current_frames().values()))


def _runs(frame: FrameType | None, function: str) -> bool:
    while frame is not None:
        if frame.f_code.co_qualname == function:
            return True
        frame = frame.f_back
    return False


def removed(directory: Path) -> bool:
    """To be waited for: a cgroup is busy until its last task has been reaped."""
    with contextlib.suppress(OSError):
        directory.rmdir()
    return not directory.exists()


def environment() -> dict[str, str]:
    """For scripts in processes of their own that import what tests import."""
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


class Aim:
    """What threads that aim at a race ask whether to go on: until it was hit, and not for ever.

    >>> aim = Aim(lambda: lost >= 20, "a reader that loses its page")
    >>> while aim.goes_on():
    ...     race()
    >>> aim.assert_hit()

    Thread safety: any thread may ask.
    """

    def __init__(
        self, hit: Callable[[], Any], what: str = "the race", timeout_s: float = TIMEOUT_S
    ) -> None:
        self._hit, self._what = hit, what
        self._deadline = time.monotonic() + timeout_s
        self._over = False

    def goes_on(self) -> bool:
        if not self._over and (self._hit() or time.monotonic() > self._deadline):
            self._over = True
        return not self._over

    def give_up(self) -> None:
        """Something else has failed: all are to stop."""
        self._over = True

    def assert_hit(self) -> None:
        assert self._hit(), f"{self._what} was aimed at, and not hit"


def _hang(what: str) -> AssertionError:
    with contextlib.suppress(OSError):
        faulthandler.dump_traceback(2)  # all threads; pytest shows it below the failure
    return AssertionError(f"{what} did not happen")
