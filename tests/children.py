"""Forked children that run a function and end."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from typing import NoReturn

from waiting import eventually


class Child:
    """A forked process that runs a function; a traceback of its own is on its stderr."""

    def __init__(self, run: Callable[[], None], *, fork: Callable[[], int] = os.fork) -> None:
        self.pid = fork()
        if self.pid == 0:
            _run_and_exit(run)

    def wait(self) -> None:
        """Reap it. A child that hangs is killed, and fails the test."""
        status: list[int] = []

        def reaped() -> bool:
            pid, code = os.waitpid(self.pid, os.WNOHANG)
            status.append(code)
            return pid != 0

        try:
            eventually(reaped, "the child's end")
        except AssertionError:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise
        assert os.waitstatus_to_exitcode(status[-1]) == 0


def _run_and_exit(run: Callable[[], None]) -> NoReturn:
    try:
        run()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def in_child(run: Callable[[], None]) -> None:
    Child(run).wait()
