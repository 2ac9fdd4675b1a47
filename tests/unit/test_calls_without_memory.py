"""Each allocation in each public call fails once: an exception, and nothing is left.

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

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests/preload/failing_new.cc"
PRELOADED = ROOT / "build/libfailing_new.so"

ALL = [*CALLS, *without_memory.NOT_PUBLIC]
_PROCESSES = 4  # so that tests side by side can share them


def _expect_all(kind: str, first: int, **variables: str) -> None:
    program = str(Path(without_memory.__file__))
    run = subprocess.run(
        [sys.executable, "-W", "ignore", program, kind, *ALL[first::_PROCESSES]],
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "all\n", run.stderr


@pytest.mark.parametrize("first", range(_PROCESSES))
def test_memory_of_python_s_that_runs_out(first: int) -> None:
    _expect_all("python", first)


@pytest.mark.parametrize("first", range(_PROCESSES))
def test_native_memory_that_runs_out(first: int) -> None:
    assert PRELOADED.exists(), f"{PRELOADED} is not there: pip install -e '.[test]'"
    newer = SOURCE.stat().st_mtime > PRELOADED.stat().st_mtime
    assert not newer, f"{SOURCE} is newer: install again"
    _expect_all("native", first, LD_PRELOAD=str(PRELOADED))
