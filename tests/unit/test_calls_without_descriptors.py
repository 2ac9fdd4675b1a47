"""Each public call while the process can have no descriptor more, one more, two more, and so on.

It raises what says so, nothing is left, and with enough of them it works. (test_faults.py makes
each system call of the core fail with EMFILE.)
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from public_calls import CALLS, Call, Things, start_what_stays
from waiting import eventually

import pgalloc

start_what_stays()  # now, before the guard counts it

_MORE_MAX = 64


@pytest.fixture
def things(tmp_path: Path) -> Iterator[Things]:
    made = Things(tmp_path)
    yield made
    made.close()


@contextmanager
def _at_most(more: int) -> Iterator[None]:
    """So many more descriptors can be had inside."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        highest = max(map(int, os.listdir("/proc/self/fd")))
        while (filler := os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)) <= highest:
            stack.callback(os.close, filler)
        os.close(filler)
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (filler + more, hard))
        yield


def _outcome(call: Call, things: Things) -> str:
    """What it raises; empty if it gives a result."""
    try:
        call.make(things)
    except OSError as error:
        if isinstance(error, pgalloc.Error):
            return type(error).__name__
        return errno.errorcode[error.errno or 0]
    except pgalloc.Error as error:
        return type(error).__name__
    return ""


@pytest.mark.parametrize("name", CALLS)
def test_descriptors_that_run_out(name: str, things: Things) -> None:
    call = CALLS[name]
    call.make(things)
    before = things.left()
    things.patience_s = 0.2
    for more in range(_MORE_MAX):
        with _at_most(more):
            outcome = _outcome(call, things)
        if more == 0:
            assert outcome == call.descriptors
        if outcome == "":
            break
        assert outcome in ("EMFILE", "SharingError", "OwnerGoneError")
    else:
        raise AssertionError(f"it does not work with {_MORE_MAX} descriptors")
    things.patience_s = None
    call.make(things)
    eventually(lambda: things.is_back(before))
