"""Callbacks and special methods that turn on their caller: typed errors, no deadlock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import CHUNK, PAGE
from hostile_zoo import EvictLater, Hands, UserError

import pgalloc
from pgalloc import (
    Allocation,
    ClosedError,
    EvictableRange,
    FileRange,
    MemoryFile,
)
from pgalloc.testing import SegmentSet


@pytest.fixture
def hands() -> Iterator[Hands]:
    held = Hands()
    yield held
    held.close()


@pytest.mark.parametrize(
    "call",
    [
        lambda mf, value: mf.allocate(value),
        lambda mf, value: mf.allocate_range(value),
        lambda mf, value: mf.allocate_range(PAGE, memcg_id=value),
        lambda mf, value: mf.inc_ref(FileRange(0, PAGE), value),
    ],
)
def test_an_index_that_closes_the_file(call: Callable[[MemoryFile, Any], Any]) -> None:
    mf = MemoryFile(capacity=CHUNK)
    mf.allocate_range(PAGE)

    class Closer:
        def __index__(self) -> int:
            mf.close()
            return PAGE

    with pytest.raises(ClosedError):
        call(mf, Closer())
    assert mf.closed


@pytest.mark.parametrize("ending", ["close", "release", "nested"])
def test_readers_that_turn_on_the_file(ending: str) -> None:
    """Row B17: the buffer stays good whatever the reader does."""
    mf = MemoryFile(capacity=CHUNK)

    def reader(buffer: memoryview) -> int:
        if ending == "close":
            mf.close()
        elif ending == "release":
            buffer.release()
            return PAGE
        else:
            mf.allocate(PAGE, reader=lambda rest: len(rest)).release()
        buffer[:4] = b"good"
        return len(buffer)

    try:
        mf.allocate(2 * PAGE, reader=reader)
    except (pgalloc.Error, ValueError):
        assert ending != "nested"
    mf.close()
    assert sum(mf.usage().values()) == 0


def test_g1_users_that_are_equal_only_by_raising(hands: Hands) -> None:
    class Odd(EvictLater):
        def __init__(self) -> None:
            self.asked = 0

        def evict(self, range: EvictableRange) -> None:
            self.asked += 1

        def __hash__(self) -> int:
            return 7

        def __eq__(self, other: object) -> bool:
            raise UserError

    mf, first, second = hands.mf, Odd(), Odd()
    mf.mark_evictable(first, EvictableRange(0, 1))
    for call in (mf.mark_evictable, mf.mark_unevictable):
        with pytest.raises(UserError):
            call(second, EvictableRange(0, 1))
    mf.start_evictions()
    assert mf.wait_for_evictions(10)
    assert (first.asked, second.asked) == (1, 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_g5_a_user_whose_hash_breaks_later_does_no_harm(hands: Hands) -> None:
    class Fickle(EvictLater):
        broken = False

        def __hash__(self) -> int:
            if self.broken:
                raise UserError
            return 7

        def evict(self, range: EvictableRange) -> None:
            self.broken = True

    class Counting(EvictLater):
        asked = 0

        def evict(self, range: EvictableRange) -> None:
            self.asked += 1

    mf, fickle, good = hands.mf, Fickle(), Counting()
    for round_ in range(3):
        if not fickle.broken:
            mf.mark_evictable(fickle, EvictableRange(0, 1))
        mf.mark_evictable(good, EvictableRange(0, 1))
        mf.start_evictions()
        assert mf.wait_for_evictions(10)
        assert good.asked == round_ + 1


def test_constructing_twice_leaks_nothing(hands: Hands) -> None:
    """MemoryFile.__init__ on a MemoryFile: refused, or a new start; never two files."""
    mf = MemoryFile(capacity=CHUNK)
    with mf.allocate(PAGE) as a:
        a.view()[:4] = b"kept"
        try:
            mf.__init__(capacity=CHUNK)
        except (TypeError, RuntimeError):
            assert not mf.closed
        assert bytes(a.view()[:4]) == b"kept"
    mf.close()  # the leak guard counts descriptors and threads


def test_objects_without_their_constructor_are_refused() -> None:
    mf = MemoryFile.__new__(MemoryFile)
    members = [name for name in dir(MemoryFile) if not name.startswith("__")]
    for name in members:
        try:
            member = getattr(mf, name)
            if callable(member) and name not in ("restore",):
                member(FileRange(0, PAGE))
        except (TypeError, ValueError, RuntimeError, AttributeError, pgalloc.Error):
            pass
    for type_ in (SegmentSet, pgalloc._core.Ledger):
        empty = type_.__new__(type_)
        for name in dir(type_):
            if name.startswith("__") and name != "__len__":
                continue
            with pytest.raises(TypeError):
                getattr(empty, name)()
    with pytest.raises((TypeError, RuntimeError)):
        Allocation(mf, FileRange(0, PAGE))
