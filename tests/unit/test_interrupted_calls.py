"""Signal handlers that raise: each public call is interrupted at each point where they run.

Those are where a function of Python begins, and where a native one has returned (loops apart). A
profile function is called there, too, and raises: at one after the other (at 150 of those that have
more; at all with PGALLOC_POINTS=all). Nothing stays of an interrupted call that its caller cannot
let go of.
stress/interrupted.py does the same by signals, which come within native code, too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import points
import pytest
from public_calls import CALLS, Call, Things, start_what_stays
from waiting import eventually

start_what_stays()  # now, before the guard counts it


_POINTS = 150


class _Hit(BaseException):
    pass


def _raise() -> None:
    raise _Hit


def _interrupted(call: Call, things: Things, number: int) -> None:
    """Make a call that is interrupted at the point of that number."""
    with suppress(_Hit):
        points.reaches(lambda: call.make(things), number, _raise)


@pytest.fixture
def things(tmp_path: Path) -> Iterator[Things]:
    made = Things(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_left_of_an_interrupted_call(
    name: str, things: Things, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is raised in a finalizer is reported: pytest would keep it, and so what its frames have.
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    call = CALLS[name]
    call.make(things)  # what the first one makes stays: threads, sockets
    before = things.left()
    numbers = points.some(points.count(lambda: call.make(things)), _POINTS)
    for number in numbers:
        _interrupted(call, things, number)
    call.make(things)
    if call.bare:
        return  # what it had was not assigned yet
    try:
        eventually(lambda: things.is_back(before), timeout_s=5)
    except AssertionError:
        _find(call, things, numbers)


def _find(call: Call, things: Things, numbers: list[int]) -> None:
    """Fail with the point after which something stays."""
    before = things.left()
    for number in numbers:
        _interrupted(call, things, number)
        call.make(things)
        assert things.is_back(before), f"interrupted at number {number}"
    raise AssertionError("it stays after some of the points, not after each")
