"""The points of a call of pgalloc at which something else may come.

Those are where its Python code is entered, and where native code has returned to it (loops apart):
signal handlers run there, and other threads get the GIL.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pgalloc

_PACKAGE = str(Path(pgalloc.__file__).parent)


def reaches(call: Callable[[], Any], number: int, act: Callable[[], object]) -> bool:
    """Make a call, and ``act()`` at the point with that number. False if it has no such point.

    What ``act`` raises comes out of the call, as from a signal handler that ran there.
    """
    left = number

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        if event not in ("call", "c_return") or not frame.f_code.co_filename.startswith(_PACKAGE):
            return
        left -= 1
        if left < 0:
            sys.setprofile(None)
            act()

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return left < 0


def count(call: Callable[[], Any]) -> int:
    """How many points a call has."""
    found = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal found
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(_PACKAGE):
            found += 1

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return found


def some(number: int, wanted: int) -> list[int]:
    """The first, the last, and some between, of so many points; all with PGALLOC_POINTS=all."""
    choice = os.environ.get("PGALLOC_POINTS", "")
    if choice:
        wanted = number if choice == "all" else int(choice)
    if number <= wanted:
        return list(range(number))
    return sorted({round(i * (number - 1) / max(wanted - 1, 1)) for i in range(wanted)})
