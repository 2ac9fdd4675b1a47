"""Section G: evictable ranges."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
from conftest import PAGE
from waiting import TIMEOUT_S, eventually

from pgalloc import DelayedEviction, EvictableRange, FileRange, MemoryFile, RangeError, testing
from pgalloc.pressure import ManualSource, discovery
from pgalloc.pressure.discovery import Candidate


class Recorder:
    """A user that remembers what it was asked for."""

    def __init__(self, action: Callable[[EvictableRange], None] | None = None) -> None:
        self.ranges: list[EvictableRange] = []
        self.action = action

    def evict(self, range: EvictableRange) -> None:
        self.ranges.append(range)
        if self.action is not None:
            self.action(range)


@pytest.fixture
def manual() -> Iterator[MemoryFile]:
    with MemoryFile(delayed_eviction=DelayedEviction.MANUAL) as mf:
        yield mf


def evict_all(mf: MemoryFile) -> None:
    mf.start_evictions()
    assert mf.wait_for_evictions(TIMEOUT_S)


def let_the_reclaimer_be_idle(mf: MemoryFile) -> None:
    """Row F5: evictions that it starts when it is idle have begun and ended.

    It takes the second range only after it was idle behind the first.
    """
    for _ in range(2):
        mf.dec_ref(mf.allocate_range(PAGE))
        assert mf.wait_for_reclaim(TIMEOUT_S)
    assert mf.wait_for_evictions(TIMEOUT_S)


def let_evictors_end(mf: MemoryFile) -> None:
    """Of a closed file: from here on no callback runs."""
    threads = mf._evictor._threads
    eventually(lambda: all(thread.is_gone() for thread in threads), "the end of the evictors")


def test_g1_users_are_hashable_objects_with_evict(manual: MemoryFile) -> None:
    for bad in (object(), None, 5, lambda r: None):
        with pytest.raises(TypeError):
            manual.mark_evictable(bad, EvictableRange(0, 1))  # type: ignore[arg-type]

    class Unhashable(Recorder):
        __hash__ = None  # type: ignore[assignment]

    with pytest.raises(TypeError):
        manual.mark_evictable(Unhashable(), EvictableRange(0, 1))
    assert manual._evictables.empty()


@pytest.mark.parametrize("range_", [(0, 1), FileRange(0, 1), None, 5])
def test_g1_ranges_are_evictable_ranges(manual: MemoryFile, range_: object) -> None:
    user = Recorder()
    for call in (manual.mark_evictable, manual.mark_unevictable):
        with pytest.raises(TypeError):
            call(user, range_)  # type: ignore[arg-type]
    assert manual._evictables.empty()


def test_g1_an_empty_range_is_an_error(manual: MemoryFile) -> None:
    with pytest.raises(RangeError):
        manual.mark_evictable(Recorder(), EvictableRange(7, 7))
    assert manual._evictables.empty()


def test_g1_ranges_are_64_bit_numbers(manual: MemoryFile) -> None:
    user = Recorder()
    manual.mark_evictable(user, EvictableRange(0, 2**64 - 1))
    evict_all(manual)
    assert user.ranges == [EvictableRange(0, 2**64 - 1)]


def test_g2_marking_adds_what_is_missing_and_merges(manual: MemoryFile) -> None:
    user = Recorder()
    for start, end in ((10, 20), (15, 30), (30, 35), (12, 13), (40, 50)):
        manual.mark_evictable(user, EvictableRange(start, end))
    evict_all(manual)
    assert user.ranges == [EvictableRange(40, 50), EvictableRange(10, 35)]


def test_g2_disabled_evicts_at_once() -> None:
    with MemoryFile(delayed_eviction=DelayedEviction.DISABLED) as mf:
        done = threading.Event()
        mf.mark_evictable(Recorder(lambda r: done.set()), EvictableRange(0, 1))
        assert done.wait(TIMEOUT_S)
        assert mf.wait_for_evictions(TIMEOUT_S)


def test_g2_manual_waits_to_be_told(manual: MemoryFile) -> None:
    user = Recorder()
    manual.mark_evictable(user, EvictableRange(0, 1))
    let_the_reclaimer_be_idle(manual)
    assert user.ranges == []
    evict_all(manual)
    assert user.ranges == [EvictableRange(0, 1)]


def test_g2_memcg_pressure_waits_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = Candidate("quiet", "quiet", ManualSource, 0)  # this machine may be under pressure
    monkeypatch.setattr(discovery, "candidates", lambda **_: iter([quiet]))
    with MemoryFile(use_host_memcg_pressure=True) as mf:
        assert mf.should_cache_evictable
        user = Recorder()
        mf.mark_evictable(user, EvictableRange(0, 1))
        let_the_reclaimer_be_idle(mf)
        assert user.ranges == []
        evict_all(mf)
        assert user.ranges == [EvictableRange(0, 1)]


def test_g3_unmarking_splits(manual: MemoryFile) -> None:
    user = Recorder()
    manual.mark_evictable(user, EvictableRange(0, 100))
    manual.mark_unevictable(user, EvictableRange(40, 60))
    manual.mark_unevictable(user, EvictableRange(200, 300))
    evict_all(manual)
    assert user.ranges == [EvictableRange(60, 100), EvictableRange(0, 40)]


def test_g3_unknown_users_are_no_error_and_idle_ones_forgotten(manual: MemoryFile) -> None:
    user = Recorder()
    manual.mark_unevictable(user, EvictableRange(0, 1))
    manual.mark_all_unevictable(user)
    manual.mark_evictable(user, EvictableRange(0, 10))
    manual.mark_unevictable(user, EvictableRange(0, 10))
    assert manual._evictor.id_of(user) is None
    manual.mark_evictable(user, EvictableRange(0, 10))
    manual.mark_all_unevictable(user)
    assert manual._evictor.id_of(user) is None
    manual.mark_evictable(user, EvictableRange(0, 10))
    evict_all(manual)
    eventually(lambda: manual._evictor.id_of(user) is None, "forgetting the user")
    assert manual._evictables.empty()


def test_g4_highest_first_and_what_is_marked_meanwhile(manual: MemoryFile) -> None:
    def mark_more(range_: EvictableRange) -> None:
        if range_.start == 50:
            manual.mark_evictable(user, EvictableRange(90, 91))
            manual.mark_evictable(user, EvictableRange(5, 6))

    user = Recorder(mark_more)
    for start in (10, 50, 30):
        manual.mark_evictable(user, EvictableRange(start, start + 1))
    evict_all(manual)
    assert [r.start for r in user.ranges] == [50, 90, 30, 10, 5]


def test_g4_one_eviction_per_user_at_a_time(manual: MemoryFile) -> None:
    """While a callback runs, others are begun and end: one of the same user would be among them."""
    log: list[str] = []

    def slowly(range_: EvictableRange) -> None:
        log.append("in")
        for _ in range(10):
            ended = threading.Event()
            manual.mark_evictable(Recorder(lambda r, ended=ended: ended.set()), range_)
            manual.start_evictions()
            assert ended.wait(TIMEOUT_S)
        log.append("out")

    user = Recorder(slowly)
    for i in range(10):
        manual.mark_evictable(user, EvictableRange(2 * i, 2 * i + 1))
        manual.start_evictions()
    assert manual.wait_for_evictions(TIMEOUT_S)
    assert log == ["in", "out"] * 10
    assert manual.stats().eviction_failures == 0


def test_g4_a_slow_user_does_not_hold_up_the_others(manual: MemoryFile) -> None:
    let_go = threading.Event()
    slow = Recorder(lambda r: let_go.wait(TIMEOUT_S) and None)
    fast = [Recorder() for _ in range(5)]
    manual.mark_evictable(slow, EvictableRange(0, 1))
    manual.start_evictions()
    for user in fast:
        manual.mark_evictable(user, EvictableRange(0, 1))
    manual.start_evictions()
    eventually(lambda: all(user.ranges for user in fast), "evicting the others")
    assert not manual.wait_for_evictions(0)
    let_go.set()
    assert manual.wait_for_evictions(TIMEOUT_S)


def test_g5_no_lock_is_held(manual: MemoryFile) -> None:
    def use_everything(range_: EvictableRange) -> None:
        manual.mark_unevictable(user, EvictableRange(0, 1))
        manual.start_evictions()
        manual.allocate(4096).release()
        assert not manual.wait_for_evictions(0.001)

    user = Recorder(use_everything)
    manual.mark_evictable(user, EvictableRange(5, 6))
    evict_all(manual)
    assert manual.stats().eviction_failures == 0


def test_g5_afterwards_the_range_is_unevictable_until_marked_again(manual: MemoryFile) -> None:
    user = Recorder()
    manual.mark_evictable(user, EvictableRange(0, 1))
    evict_all(manual)
    evict_all(manual)
    assert len(user.ranges) == 1
    manual.mark_evictable(user, EvictableRange(0, 1))
    evict_all(manual)
    assert len(user.ranges) == 2


def test_g5_exceptions_are_logged_and_counted_and_stop_nothing(
    manual: MemoryFile, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_once(range_: EvictableRange) -> None:
        if range_.start == 10:
            raise RuntimeError("planned")

    user = Recorder(fail_once)
    for start in (0, 10, 20):
        manual.mark_evictable(user, EvictableRange(start, start + 1))
    with caplog.at_level(logging.ERROR, "pgalloc"):
        evict_all(manual)
    assert [r.start for r in user.ranges] == [20, 10, 0]
    assert "planned" in caplog.text
    assert manual.stats().eviction_failures == 1
    assert manual.stats().evicted_ranges == 2


def test_g6_waiting(manual: MemoryFile) -> None:
    assert manual.wait_for_evictions(0) is True
    let_go = threading.Event()
    user = Recorder(lambda r: let_go.wait(TIMEOUT_S) and None)
    manual.mark_evictable(user, EvictableRange(0, 1))
    manual.start_evictions()
    assert manual.wait_for_evictions(0) is False
    assert manual.wait_for_evictions(0.001) is False
    let_go.set()
    assert manual.wait_for_evictions() is True


def test_many_ranges_of_many_users(manual: MemoryFile) -> None:
    users = [Recorder() for _ in range(50)]
    for user in users:
        for i in range(200):
            manual.mark_evictable(user, EvictableRange(2 * i, 2 * i + 1))
    evict_all(manual)
    for user in users:
        assert [r.start for r in user.ranges] == list(range(398, -1, -2))
    testing.verify(manual)


def test_close_during_an_eviction() -> None:
    """The callback under way ends, and none comes after it."""
    entered, let_go = threading.Event(), threading.Event()
    mf = MemoryFile(delayed_eviction=DelayedEviction.DISABLED)

    def stay(range_: EvictableRange) -> None:
        entered.set()
        assert let_go.wait(TIMEOUT_S)

    user = Recorder(stay)
    for i in range(20):
        mf.mark_evictable(user, EvictableRange(2 * i, 2 * i + 1))
    assert entered.wait(TIMEOUT_S)
    seen = len(user.ranges)
    mf.close()
    let_go.set()
    let_evictors_end(mf)
    assert len(user.ranges) == seen == 1


def test_close_during_evictions() -> None:
    for round_ in range(20):
        mf = MemoryFile(delayed_eviction=DelayedEviction.DISABLED)
        users = [Recorder() for _ in range(4)]
        for i in range(20):
            for user in users:
                mf.mark_evictable(user, EvictableRange(2 * i, 2 * i + 1))
        eventually(lambda users=users, round_=round_: len(users[0].ranges) >= round_ % 3)
        mf.close()
        seen = [len(user.ranges) for user in users]
        let_evictors_end(mf)
        for user, before in zip(users, seen, strict=True):
            assert len(user.ranges) <= before + 1


def test_equal_users_are_one_user(manual: MemoryFile) -> None:
    class Named(Recorder):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Named)

        def __hash__(self) -> int:
            return 1

    first, second = Named(), Named()
    manual.mark_evictable(first, EvictableRange(0, 1))
    manual.mark_unevictable(second, EvictableRange(0, 1))
    assert manual._evictables.empty()


# --- Users that turn on their caller -------------------------------------------------------------


class Owner(Recorder):
    """A user that gives pages of the file back, and so refers to it."""

    def __init__(self) -> None:
        super().__init__()
        self.file = MemoryFile(delayed_eviction=DelayedEviction.MANUAL)
        self.pages = self.file.allocate(PAGE)
        self.file.mark_evictable(self, EvictableRange(0, 1))


@pytest.mark.parametrize("served", [False, True])
def test_a_file_goes_though_an_evictable_user_refers_to_it(served: bool) -> None:
    """So do its threads, whether they have waited only or have run a callback."""
    user = Owner()
    file, evictor = weakref.ref(user.file), user.file._evictor
    threads = list(evictor._threads)
    if served:
        evict_all(user.file)
        threads = list(evictor._threads)
        user.file.mark_evictable(user, EvictableRange(0, 1))
    assert threads
    del user, evictor

    def collected() -> bool:
        gc.collect()
        return file() is None

    eventually(collected, "the end of the file")
    eventually(lambda: all(thread.is_gone() for thread in threads), "the end of its threads")


@pytest.mark.parametrize("method", ["__hash__", "__eq__"])
def test_users_that_are_compared_use_the_file(manual: MemoryFile, method: str) -> None:
    """Also through another thread, which they wait for."""
    other = Recorder()

    def use() -> None:
        manual.mark_evictable(other, EvictableRange(0, 1))
        manual.mark_all_unevictable(other)

    class Busy(Recorder):
        def __hash__(self) -> int:
            if method == "__hash__":
                self.work()
            return 1

        def __eq__(self, it: object) -> bool:
            if method == "__eq__":
                self.work()
            return type(it) is Busy

        def work(self) -> None:
            use()
            thread = threading.Thread(target=use)
            thread.start()
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()

    users = [Busy(), Busy()]
    for user in users:
        manual.mark_evictable(user, EvictableRange(0, 1))
    evict_all(manual)
    assert sum(len(user.ranges) for user in users) == 1
    manual.mark_evictable(users[0], EvictableRange(0, 1))
    manual.mark_all_unevictable(users[1])
    assert manual._evictables.empty()
    assert not manual._evictor._known
    assert not manual._evictor._by_hash


def test_a_user_that_changes_while_it_is_compared(manual: MemoryFile) -> None:
    """What another thread does between the comparison and the mark counts."""

    class Equal(Recorder):
        def __hash__(self) -> int:
            return 1

        def __eq__(self, it: object) -> bool:
            manual.mark_all_unevictable(first[0]) if first else None
            return True

    first: list[Equal] = []
    user = Equal()
    manual.mark_evictable(user, EvictableRange(0, 1))
    first.append(user)
    again = Equal()
    # Comparing the two unmarks the first: the second is a new one.
    manual.mark_evictable(again, EvictableRange(5, 6))
    evict_all(manual)
    assert (user.ranges, again.ranges) == ([], [EvictableRange(5, 6)])


def test_finalizers_of_garbage_use_the_file(manual: MemoryFile) -> None:
    """They run in the middle of any call that allocates an object of Python's."""

    class Garbage:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            manual.mark_all_unevictable(self)

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for i in range(2000):
            Garbage()
            user = Recorder()
            manual.mark_evictable(user, EvictableRange(i, i + 1))
            manual.mark_all_unevictable(user)
    finally:
        gc.set_threshold(*threshold)
    assert manual._evictables.empty()


class _Wild(BaseException):
    pass


@pytest.mark.parametrize("raises", ["evict", "repr", "handler"])
def test_what_callbacks_raise_ends_no_thread(manual: MemoryFile, raises: str) -> None:
    """Any exception, of any callback: what is written of one to the log calls two more."""

    class User(Recorder):
        def __repr__(self) -> str:
            if raises == "repr":
                raise _Wild
            return "a user"

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            record.getMessage()
            if raises == "handler":
                raise _Wild

    def fail(range_: EvictableRange) -> None:
        raise SystemExit

    handler = Handler()
    logger = logging.getLogger("pgalloc")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        user = User(fail)
        for i in range(3):
            manual.mark_evictable(user, EvictableRange(2 * i, 2 * i + 1))
        evict_all(manual)
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
    assert len(user.ranges) == 3
    eventually(lambda: manual.stats().eviction_failures == 3, "counting them")
