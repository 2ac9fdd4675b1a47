"""A fork before each public call, and at points of it, as by another thread or a signal handler.

The parent's call gives its result. The child's own call works or is refused by ForkedError, and the
child ends. (test_fork.py and those beside it look at what a child has; stress/forks.py forks a busy
process.)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import points
import pytest
from children import Child
from public_calls import CALLS, Call, Things, start_what_stays
from waiting import eventually

start_what_stays()  # now, before the guard counts it

_POINTS = 3


@pytest.fixture
def things(tmp_path: Path) -> Iterator[Things]:
    made = Things(tmp_path)
    yield made
    made.close()


def _try(call: Call, things: Things, *allowed: str) -> None:
    """In the child."""
    try:
        call.make(things)
        outcome = ""
    except Exception as error:
        outcome = type(error).__name__
        if outcome not in allowed:
            raise
    assert outcome in allowed, outcome


@pytest.mark.parametrize("name", CALLS)
def test_forked_meanwhile(name: str, things: Things) -> None:
    call = CALLS[name]
    call.make(things)
    before = things.left()
    Child(lambda: _try(call, things, call.child)).wait()

    def fork() -> None:
        Child(lambda: _try(call, things, call.child, "")).wait()

    number = points.count(lambda: call.make(things))
    for point in points.some(number, _POINTS):
        points.reaches(lambda: call.make(things), point, fork)
    eventually(lambda: things.is_back(before))
