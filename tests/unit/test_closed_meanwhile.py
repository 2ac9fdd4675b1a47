"""What a call works on is closed: before it, and at points of it, as by another thread.

It gives its result or ClosedError, and nothing is left. (stress/torture.py closes under many
threads.)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import points
import pytest
from public_calls import CALLS, Call, Things, start_what_stays

start_what_stays()  # now, before the guard counts it

CLOSABLE = [name for name, call in CALLS.items() if call.on]
_POINTS = 6


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """What was closed leaves no file of its own there."""
    yield tmp_path
    assert {path.name for path in tmp_path.iterdir()} <= {"image", "saved"}


def _outcome(call: Call, things: Things) -> str:
    """What it raises; empty if it gives a result."""
    try:
        call.make(things)
    except Exception as error:
        return type(error).__name__
    return ""


@pytest.mark.parametrize("name", CLOSABLE)
def test_a_call_of_what_is_closed(name: str, folder: Path) -> None:
    call = CALLS[name]
    things = Things(folder)
    try:
        call.make(things)
        getattr(things, call.on).close()
        assert _outcome(call, things) == call.closed
        assert _outcome(call, things) == call.closed  # and the same again
    finally:
        things.close()


@pytest.mark.parametrize("name", CLOSABLE)
def test_closed_meanwhile(name: str, folder: Path) -> None:
    call = CALLS[name]
    first = Things(folder)
    try:
        call.make(first)
        number = points.count(lambda: call.make(first))
    finally:
        first.close()
    for point in points.some(number, _POINTS):
        things = Things(folder)
        try:
            _close_at(point, call, things)
        finally:
            things.close()


def _close_at(point: int, call: Call, things: Things) -> None:
    call.make(things)
    on = getattr(things, call.on)
    try:
        if not points.reaches(lambda: call.make(things), point, on.close):
            on.close()  # it has not as many points each time
    except Exception as error:
        if type(error).__name__ not in ("ClosedError", call.closed):
            raise
    if getattr(things, call.on) is on:  # and not another one, which the call has made
        assert _outcome(call, things) == call.closed, f"point {point}"
