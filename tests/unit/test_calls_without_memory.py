"""Each allocation of Python's in each public call fails once: an exception, and nothing is left.

In processes of their own (tests/without_memory.py), because it fails for all threads.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import without_memory
from public_calls import CALLS
from waiting import TIMEOUT_S, environment

ALL = [*CALLS, *without_memory.NOT_PUBLIC]
_PROCESSES = 4  # so that tests side by side can share them


@pytest.mark.parametrize("first", range(_PROCESSES))
def test_memory_that_runs_out(first: int) -> None:
    program = str(Path(without_memory.__file__))
    run = subprocess.run(
        [sys.executable, "-W", "ignore", program, *ALL[first::_PROCESSES]],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "all\n", run.stderr
