"""What a test leaves behind: descriptors, mappings, threads and booked bytes, counted around each.

Garbage is collected before each test, so that none of an earlier one is counted. That is cheap
because what was there when the tests began is frozen: no collection looks at it again.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

import pgalloc
from pgalloc import _core
from pgalloc.sharing import connection

PATIENCE_S = 5.0  # threads that were told to end, and what the last reference to a file lets go


class Holdings(NamedTuple):
    """What the process has."""

    descriptors: int
    mappings: int
    threads: int
    booked_bytes: int


def freeze() -> None:
    """What there is now stays. So does the broker, which listens from its first use to the end."""
    _core.broker_address()
    gc.collect()
    gc.freeze()


def begin() -> Holdings:
    """What there is before a test."""
    connection.forget_the_gone()
    gc.collect()
    return holdings()


def holdings() -> Holdings:
    return Holdings(
        len(os.listdir("/proc/self/fd")),
        # Reservations lie beside the mappings of pgalloc's files and are freed together.
        Path("/proc/self/maps").read_text().count("memfd:pgalloc"),
        len(os.listdir("/proc/self/task")),
        pgalloc.memory_accounting().total(),
    )


def grown(before: Holdings, after: Holdings) -> dict[str, tuple[int, int]]:
    """What there is more of: (before, after) by name."""
    pairs = zip(Holdings._fields, before, after, strict=True)
    return {name: (then, now) for name, then, now in pairs if now > then}


def check(before: Holdings) -> None:
    """Fail if something stays that was not there before."""
    if not grown(before, holdings()):
        return
    deadline = time.monotonic() + PATIENCE_S
    while True:
        connection.forget_the_gone()
        gc.collect()
        left = grown(before, holdings())
        if not left:
            return
        if time.monotonic() > deadline:  # time: a bound on a hang
            pytest.fail(f"left behind (before, after): {left}; {threading.enumerate()}")
        time.sleep(0.01)  # time: between two looks
