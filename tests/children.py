"""Forked children that run a function and end."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

import pytest

TIMEOUT_S = 30


class Child:
    """A forked process that runs a function; a traceback of its own is on its stderr."""

    def __init__(self, run: Callable[[], None], *, fork: Callable[[], int] = os.fork) -> None:
        self.pid = fork()
        if self.pid == 0:
            _run_and_exit(run)

    def wait(self) -> None:
        """Reap it. A child that hangs is killed, and fails the test."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid != 0:
                assert os.waitstatus_to_exitcode(status) == 0
                return
            time.sleep(0.001)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        pytest.fail("the child hangs")


def _run_and_exit(run: Callable[[], None]) -> NoReturn:
    try:
        run()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def in_child(run: Callable[[], None]) -> None:
    Child(run).wait()
