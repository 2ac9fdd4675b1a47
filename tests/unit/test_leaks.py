"""The guard around every test finds what is left behind, and is not misled by garbage."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import leaks
import pytest
from conftest import PAGE
from waiting import eventually

from pgalloc import AllocationMode, MemoryFile


def _descriptor() -> Callable[[], None]:
    fd = os.open(os.devnull, os.O_RDONLY)
    return lambda: os.close(fd)


def _file() -> Callable[[], None]:
    mf = MemoryFile()
    mf.map_range(mf.allocate_range(PAGE, mode=AllocationMode.ALLOCATE_AND_COMMIT))
    mf.update_usage()
    return mf.close


def _thread() -> Callable[[], None]:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()

    def stop() -> None:
        end.set()
        thread.join()

    return stop


def _at_rest() -> leaks.Holdings:
    """Once no thread of an earlier test is about to end."""
    looks: list[leaks.Holdings] = []

    def the_same() -> bool:
        looks.append(leaks.holdings())
        return len(looks) > 20 and len(set(looks[-20:])) == 1

    eventually(the_same, "nothing changes any more")
    return looks[-1]


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (_descriptor, {"descriptors"}),
        (_file, {"descriptors", "mappings", "threads", "booked_bytes"}),
        (_thread, {"threads"}),
    ],
)
def test_what_stays_is_found(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Callable[[], None]], found: set[str]
) -> None:
    monkeypatch.setattr(leaks, "PATIENCE_S", 0.05)
    before = _at_rest()
    give_back = make()
    try:
        assert leaks.grown(before, leaks.holdings()).keys() == found
        with pytest.raises(pytest.fail.Exception, match="left behind"):
            leaks.check(before)
    finally:
        give_back()
    leaks.check(before)


def test_garbage_is_not_left_behind() -> None:
    """A cycle with an open file in it: only a collection ends it."""
    before = leaks.holdings()
    ring: list[object] = [open(os.devnull)]  # noqa: SIM115
    ring.append(ring)
    del ring
    assert leaks.grown(before, leaks.holdings()).keys() == {"descriptors"}
    with pytest.warns(ResourceWarning):
        leaks.check(before)
