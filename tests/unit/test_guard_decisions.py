"""What the native guard decides, in trees that only look like cgroups, one step at a time."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PAGE
from waiting import environment, eventually

import pgalloc
from pgalloc import (
    Allocation,
    AllocationMode,
    Cache,
    MemoryFile,
    OutOfMemoryError,
    SharedList,
    _core,
    testing,
)
from pgalloc._core import _testing
from pgalloc.pressure import default_guard
from pgalloc.testing import FaultPlan

MIB = 1 << 20
COMMIT = AllocationMode.ALLOCATE_AND_COMMIT
POPULATE = AllocationMode.ALLOCATE_AND_WRITE_POPULATE
V1_UNLIMITED = 2**63 - PAGE


class Level:
    """The files of one cgroup, v1 or v2."""

    def __init__(self, path: Path, v1: bool = False) -> None:
        self.path, self.v1 = path, v1
        path.mkdir(parents=True)
        self.write("cgroup.event_control" if v1 else "memory.events", "")
        self.set(limit=None, usage=0)
        self.stat()

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def set(self, *, limit: Any = ..., usage: int | None = None, high: int | None = None) -> None:
        if limit is not ...:
            unlimited = str(V1_UNLIMITED) if self.v1 else "max"
            name = "memory.limit_in_bytes" if self.v1 else "memory.max"
            self.write(name, f"{unlimited if limit is None else limit}\n")
        if not self.v1:
            self.write("memory.high", "max\n" if high is None else f"{high}\n")
        if usage is not None:
            name = "memory.usage_in_bytes" if self.v1 else "memory.current"
            self.write(name, f"{usage}\n")

    def stat(self, *, inactive: int = 0, active: int = 0, dirty: int = 0) -> None:
        names = ["inactive_file", "active_file", "file_dirty"]
        if self.v1:
            names = ["total_inactive_file", "total_active_file", "total_dirty"]
        figures = zip(names, (inactive, active, dirty), strict=True)
        self.write("memory.stat", "".join(f"{name} {figure}\n" for name, figure in figures))


class Bench:
    """The guard, parked, watching what a test made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.before = self.counts()

    def level(self, name: str = "group", v1: bool = False) -> Level:
        return Level(self.folder / name, v1)

    def meminfo(self, total: int, available: int, swap_free: int = 0) -> str:
        path = self.folder / "meminfo"
        kib = 1024
        path.write_text(
            f"MemTotal:       {total // kib} kB\nMemFree:  1 kB\n"
            f"MemAvailable:   {available // kib} kB\nSwapFree: {swap_free // kib} kB\n"
        )
        return str(path)

    def watch(self, *levels: Level, meminfo: str | None = None) -> None:
        _core.guard_configure([(str(level.path), level.v1) for level in levels], meminfo)

    def counts(self) -> dict[str, int]:
        names = ("looks", "crossings", "shortfalls", "discards", "discarded_bytes", "refusals")
        status = _core.guard_status()
        return {name: status[name] for name in names}

    def counted(self, name: str) -> int:
        return self.counts()[name] - self.before[name]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    _core.guard_park()
    _core.guard_configure([], None)
    yield Bench(tmp_path)
    _core.guard_configure([], None)
    _core.guard_resume()
    default_guard.configure()


def unpinned(mf: MemoryFile, count: int, pages: int = 1) -> list[Allocation]:
    made = []
    for _ in range(count):
        allocation = mf.allocate(pages * PAGE)
        allocation._write(0, b"u" * allocation.nbytes)
        allocation.unpin()
        made.append(allocation)
    return made


def given_back(mf: MemoryFile) -> int:
    return mf.stats().discarded_bytes


# --- which limit counts --------------------------------------------------------------------------


@pytest.mark.parametrize("v1", [True, False])
def test_the_headroom_is_a_tenth_below_the_limit(bench: Bench, mf: MemoryFile, v1: bool) -> None:
    group = bench.level(v1=v1)
    group.set(limit=100 * MIB, usage=89 * MIB)
    bench.watch(group)
    allocations = unpinned(mf, 10, 256)
    _core.guard_step()
    assert _core.guard_status()["level"] == "none"
    assert given_back(mf) == 0
    group.set(usage=91 * MIB)
    _core.guard_step()
    # The figures do not move: it gives all there is, and says it is not enough.
    assert given_back(mf) == 10 * MIB
    status = _core.guard_status()
    assert status["level"] == "medium"
    assert (bench.counted("crossings"), bench.counted("shortfalls")) == (1, 1)
    assert bench.counted("discarded_bytes") == 10 * MIB
    group.set(usage=98 * MIB)
    _core.guard_step()
    assert _core.guard_status()["level"] == "critical"
    assert bench.counted("crossings") == 1
    group.set(usage=10 * MIB)
    _core.guard_step()
    assert _core.guard_status()["level"] == "none"
    assert not any(allocation.pin() for allocation in allocations)


def limits(limit: int | None, high: int | None) -> int | None:
    return min((bound for bound in (limit, high) if bound is not None), default=None)


@pytest.mark.parametrize("limit", [None, 100 * MIB, 300 * MIB])
@pytest.mark.parametrize("high", [None, 50 * MIB, 200 * MIB])
def test_v2_the_smaller_of_max_and_high(bench: Bench, limit: int | None, high: int | None) -> None:
    group = bench.level()
    group.set(limit=limit, high=high, usage=MIB)
    bench.watch(group)
    (level,) = _core.guard_status()["levels"]
    assert level["limit"] == limits(limit, high)
    expected = None if level["limit"] is None else level["limit"] - MIB
    assert level["available"] == _core.guard_status()["available"] == expected


def test_a_parent_may_be_tighter(bench: Bench, mf: MemoryFile) -> None:
    own, parent = bench.level("parent/own"), bench.folder / "parent"
    own.set(limit=1000 * MIB, usage=10 * MIB)
    for name in ("memory.max", "memory.high", "memory.current", "memory.stat"):
        (parent / name).write_text((own.path / name).read_text())
    (parent / "memory.max").write_text(f"{200 * MIB}\n")
    (parent / "memory.current").write_text(f"{195 * MIB}\n")
    _core.guard_configure([(str(own.path), False), (str(parent), False)], None)
    assert _core.guard_status()["available"] == 5 * MIB
    held = unpinned(mf, 3)
    _core.guard_step()
    assert given_back(mf) == 3 * PAGE
    assert not held[0].pin()


def test_the_machine_counts_beside_a_group(bench: Bench, mf: MemoryFile) -> None:
    group = bench.level()
    group.set(limit=100 * MIB, usage=MIB)
    bench.watch(group, meminfo=bench.meminfo(1000 * MIB, 200 * MIB))
    held = unpinned(mf, 1)
    assert _core.guard_status()["available"] == 99 * MIB
    assert _core.guard_step() > 0
    assert held[0].pin()
    held[0].unpin()
    bench.meminfo(1000 * MIB, 90 * MIB)  # less than a tenth, and less than the group may use
    assert _core.guard_status()["available"] == 90 * MIB
    _core.guard_step()
    assert not held[0].pin()
    group.set(limit=None)
    assert _core.guard_status()["available"] == 90 * MIB
    bench.watch(meminfo=bench.meminfo(1000 * MIB, 900 * MIB))
    assert _core.guard_status()["available"] == 900 * MIB


def test_the_machine_need_not_keep_more_free_than_the_group_may_use(
    bench: Bench, mf: MemoryFile
) -> None:
    group = bench.level()
    group.set(limit=100 * MIB, usage=MIB)
    bench.watch(group, meminfo=bench.meminfo(64_000 * MIB, 130 * MIB))
    held = unpinned(mf, 1)
    _core.guard_step()
    assert held[0].pin()


def test_without_any_limit_there_is_nothing_to_do(bench: Bench, mf: MemoryFile) -> None:
    group = bench.level(v1=True)
    group.set(usage=2**40)
    bench.watch(group)
    held = unpinned(mf, 1)
    assert _core.guard_step() == 1_000_000
    assert _core.guard_status()["available"] is None
    assert held[0].pin()


@pytest.mark.parametrize("v1", [True, False])
def test_page_cache_that_the_kernel_drops_is_available(bench: Bench, v1: bool) -> None:
    group = bench.level(v1=v1)
    group.set(limit=100 * MIB, usage=99 * MIB)
    group.stat(inactive=50 * MIB, active=7 * MIB, dirty=20 * MIB)
    bench.watch(group)
    assert _core.guard_status()["available"] == 38 * MIB, "used lately or not"
    group.stat(inactive=5 * MIB, dirty=20 * MIB)
    assert _core.guard_status()["available"] == MIB


# --- how much goes -------------------------------------------------------------------------------


def test_hysteresis(bench: Bench) -> None:
    """Once crossed, a quarter more than the headroom has to be free."""
    group = bench.level()
    group.set(limit=100 * MIB, usage=91 * MIB)
    bench.watch(group)
    for usage, level in ((89, "none"), (91, "medium"), (89, "medium"), (87, "none"), (89, "none")):
        group.set(usage=usage * MIB)
        _core.guard_step()
        assert _core.guard_status()["level"] == level, usage
    assert bench.counted("crossings") == 1


def test_the_largest_wish_counts() -> None:
    """In a process of its own: any open Cache or Monitor has a wish."""
    check = "import sys; sys.path.append(sys.argv[1]); import test_guard_decisions as tests"
    command = [sys.executable, "-c", f"{check}; tests.check_wishes()", str(Path(__file__).parent)]
    subprocess.run(command, check=True, timeout=60, env=environment())


def check_wishes() -> None:
    with tempfile.TemporaryDirectory() as folder:
        _core.guard_park()
        _check_wishes(Bench(Path(folder)))


def _check_wishes(bench: Bench) -> None:
    group = bench.level()
    group.set(limit=1000 * MIB, usage=0)
    bench.watch(group)

    def headroom() -> Any:
        return _core.guard_status()["levels"][0]["headroom"]

    assert headroom() == 100 * MIB
    small = _core.guard_add_headroom(0.0, MIB)
    assert headroom() == MIB, "a caller's wish instead of the default"
    share = _core.guard_add_headroom(0.2, 0)
    large = _core.guard_add_headroom(0.0, 300 * MIB)
    assert headroom() == 300 * MIB
    _core.guard_remove_headroom(large)
    assert headroom() == 200 * MIB
    all_of_it = _core.guard_add_headroom(0.0, 2**62)
    assert headroom() == 500 * MIB, "never more than half"
    for token in (share, small, all_of_it, all_of_it, 2**40):
        _core.guard_remove_headroom(token)
    assert headroom() == 100 * MIB


def test_a_limit_that_shrinks_is_noticed(bench: Bench, mf: MemoryFile) -> None:
    group = bench.level()
    group.set(limit=1000 * MIB, usage=90 * MIB)
    bench.watch(group)
    held = unpinned(mf, 1)
    _core.guard_step()
    group.set(limit=95 * MIB)
    _core.guard_step()
    assert not held[0].pin()


# --- room -----------------------------------------------------------------------------------------


def test_rooms_count_as_used(bench: Bench) -> None:
    group = bench.level()
    group.set(limit=100 * MIB, usage=40 * MIB)
    bench.watch(group)
    first = _core.CommitReservation(30 * MIB)
    second = _core.CommitReservation(23 * MIB)  # within the limit, not within the headroom
    assert _core.guard_status()["available"] == 7 * MIB
    first.end()
    assert _core.guard_status()["available"] == 37 * MIB
    first.end()
    del second
    assert _core.guard_status()["available"] == 60 * MIB
    with pytest.raises(OutOfMemoryError):
        _core.CommitReservation(61 * MIB)
    assert _core.guard_status()["available"] == 60 * MIB, "what was refused promises nothing"
    assert bench.counted("refusals") == 1


def test_room_is_made_by_discarding(bench: Bench, mf: MemoryFile) -> None:
    group = bench.level()
    group.set(limit=100 * MIB, usage=83 * MIB)
    bench.watch(group)
    held = unpinned(mf, 64, 256)
    _core.CommitReservation(10 * MIB)
    lost = [allocation.pin() for allocation in held].count(False)
    assert lost >= 5


def test_a_value_needs_room_for_its_key(bench: Bench) -> None:
    group = bench.level()
    group.set(limit=100 * MIB, usage=0)
    bench.watch(group)
    with pgalloc.Cache(headroom=0) as cache:
        cache["short"] = b"small"
        group.set(usage=98 * MIB)
        _core.guard_step()
        for value in (b"small", bytes(5000)):
            with pytest.raises(OutOfMemoryError):
                cache["k" * (4 * MIB)] = value
        assert list(cache) == ["short"]
        pgalloc.testing.verify_cache(cache)


def test_small_commits_cost_no_look(bench: Bench) -> None:
    group = bench.level()
    group.set(limit=1000 * MIB, usage=0)
    bench.watch(group)
    _core.guard_step()
    before = bench.counts()["looks"]
    for _ in range(1000):
        _core.CommitReservation(PAGE)
    assert bench.counts()["looks"] - before == 1, "only the one that asks for the count"
    group.set(usage=905 * MIB)
    for _ in range(5000):
        _core.CommitReservation(200 << 10)
    assert bench.counts()["looks"] - before > 1, "credit ends"


def test_half_of_what_was_free_at_the_last_look_needs_no_other(bench: Bench) -> None:
    group = bench.level()
    group.set(limit=1000 * MIB, usage=0)
    bench.watch(group)
    _core.guard_step()
    group.set(usage=899 * MIB)  # 1 MiB above the headroom
    _core.guard_step()
    before = bench.counts()["looks"]
    for _ in range(8):
        _core.CommitReservation(MIB // 16)
    assert bench.counts()["looks"] - before == 1, "only the one that asks for the count"
    _core.CommitReservation(MIB // 16)
    assert bench.counts()["looks"] - before == 3


def commit(mf: MemoryFile, how: str, nbytes: int) -> None:
    match how:
        case "cache":
            with Cache(file=mf) as cache:
                cache["k"] = bytes(nbytes)
        case "reader":
            mf.allocate(nbytes, reader=lambda part: len(part)).release()
        case "range":
            mf.dec_ref(mf.allocate_range(nbytes, mode=COMMIT))
        case "share":
            pgalloc.share(bytearray(nbytes - PAGE), file=mf).release()
        case "list":
            SharedList([bytes(nbytes - PAGE)], file=mf).release()
        case _:
            mf.allocate(nbytes, mode=COMMIT if how == "commit" else POPULATE).release()


COMMITS = ["commit", "populate", "reader", "cache", "range", "share", "list"]


@pytest.mark.parametrize("how", COMMITS)
@pytest.mark.parametrize("v1", [True, False])
def test_what_cannot_fit_is_refused(bench: Bench, mf: MemoryFile, how: str, v1: bool) -> None:
    group = bench.level(v1=v1)
    group.set(limit=20 * MIB, usage=16 * MIB)
    bench.watch(group, meminfo=bench.meminfo(1000 * MIB, 900 * MIB))
    commit(mf, how, 2 * MIB)
    for nbytes in (5 * MIB, 30 * MIB):
        with pytest.raises(OutOfMemoryError):
            commit(mf, how, nbytes)
    assert bench.counted("refusals") == 2
    assert mf.wait_for_reclaim(20)
    assert mf.segments() == [], "the reference was released"
    # Swap is a way out, and page cache is dropped.
    bench.meminfo(1000 * MIB, 900 * MIB, swap_free=3 * MIB)
    commit(mf, how, 5 * MIB)
    bench.meminfo(1000 * MIB, 900 * MIB)
    group.stat(inactive=MIB, active=3 * MIB)
    commit(mf, how, 6 * MIB)
    with pytest.raises(OutOfMemoryError):
        commit(mf, how, 9 * MIB)


@pytest.fixture(params=[None, "zstd"])
def image(tmp_path: Path, request: pytest.FixtureRequest) -> bytes:
    """Eight pages that are full, in an extent of their own each."""
    stream = io.BytesIO()
    with MemoryFile() as file, file.allocate(8 * PAGE) as pages:
        pages._write(0, os.urandom(8 * PAGE))
        file.mark_savable()
        file.save(stream, compression=request.param)
    return stream.getvalue()


def open_files() -> int:
    """Each has a descriptor of its own."""
    gc.collect()
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself
            count += "memfd:" in os.readlink(entry)
    return count


@pytest.mark.parametrize("eager_from", ["stream", "path"])
def test_a_restore_that_does_not_fit_is_refused_whole(
    bench: Bench, image: bytes, tmp_path: Path, eager_from: str
) -> None:
    path = tmp_path / "image"
    path.write_bytes(image)
    group = bench.level()
    group.set(limit=20 * MIB, usage=20 * MIB - PAGE)
    bench.watch(group)
    before = open_files()
    with pytest.raises(OutOfMemoryError, match="would exceed the memory limit"):
        MemoryFile.restore(path if eager_from == "path" else io.BytesIO(image))
    assert open_files() == before
    group.set(usage=0)
    MemoryFile.restore(path).close()


def test_pages_that_come_later_wait_for_room(bench: Bench, image: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(image)
    group = bench.level()
    group.set(limit=20 * MIB, usage=20 * MIB - PAGE)
    bench.watch(group)
    with MemoryFile.restore(path, background=True) as file:
        for _ in range(2):
            with pytest.raises(OutOfMemoryError):
                file.wait_loaded()
        assert file.loading
        group.set(usage=0)
        assert file.wait_loaded(30)
        testing.verify(file)


def test_what_can_never_fit_costs_nothing(bench: Bench, mf: MemoryFile) -> None:
    group = bench.level()
    group.set(limit=20 * MIB, usage=10 * MIB)
    bench.watch(group)
    held = unpinned(mf, 4)
    with pytest.raises(OutOfMemoryError):
        _core.CommitReservation(21 * MIB)
    assert all(allocation.pin() for allocation in held)


def test_an_estimate_refuses_nothing(bench: Bench, mf: MemoryFile) -> None:
    bench.watch(meminfo=bench.meminfo(100 * MIB, MIB))
    commit(mf, "commit", 5 * MIB)
    assert bench.counted("refusals") == 0


# --- files that are not what they should be ------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n", "max\n", "-1\n", "x", "99999999999999999999999\n"])
@pytest.mark.parametrize("name", ["memory.max", "memory.current", "memory.stat", "memory.high"])
def test_garbage_is_no_limit(bench: Bench, mf: MemoryFile, name: str, text: str) -> None:
    group = bench.level()
    group.set(limit=100 * MIB, usage=50 * MIB)
    bench.watch(group)
    held = unpinned(mf, 1)
    group.write(name, text)
    _core.guard_step()
    expected = None if name in ("memory.max", "memory.current") else 50 * MIB
    assert _core.guard_status()["available"] == expected
    assert held[0].pin()
    _core.CommitReservation(MIB).end()


@pytest.mark.parametrize("v1", [True, False])
def test_a_group_that_goes(bench: Bench, mf: MemoryFile, v1: bool) -> None:
    group, gone = bench.level(v1=v1), bench.level("gone", v1)
    group.set(limit=100 * MIB, usage=20 * MIB)
    gone.set(limit=50 * MIB, usage=20 * MIB)
    bench.watch(group, gone)
    assert _core.guard_status()["available"] == 30 * MIB
    for path in gone.path.iterdir():
        os.truncate(path, 0)  # as reading a removed group's open file fails
        path.unlink()
    _core.guard_step()
    assert _core.guard_status()["available"] == 80 * MIB
    bench.watch(group, gone)
    assert len(_core.guard_status()["levels"]) == 1
    _core.guard_configure([(str(bench.folder / "nowhere"), v1)], str(bench.folder / "nothing"))
    assert _core.guard_status()["levels"] == []


# --- how often it looks --------------------------------------------------------------------------


def test_looks_get_rarer_while_nothing_can_be_discarded(bench: Bench) -> None:
    group = bench.level()
    group.set(limit=100 * MIB, usage=99 * MIB)
    bench.watch(group)
    _testing.use_manual_guard_clock(10**18, 0)  # a look that takes longer makes them rarer, too
    try:
        delays = [_core.guard_step() for _ in range(12)]
    finally:
        _testing.use_real_guard_clock()
    assert delays[0] >= 1000
    assert all(b >= a for a, b in itertools.pairwise(delays))
    assert delays[-1] >= 200_000


@pytest.fixture
def at_the_limit(bench: Bench, mf: MemoryFile) -> Allocation:
    """All that could be given back is, and this one is pinned again."""
    group = bench.level()
    group.set(limit=100 * MIB, usage=99 * MIB)
    bench.watch(group)
    (allocation,) = unpinned(mf, 1)
    _core.guard_step()
    assert not allocation.pin()
    return allocation


@contextlib.contextmanager
def looking_takes(seconds: float) -> Iterator[None]:
    """Looking for memory to give back, by the guard's clock."""
    _testing.use_manual_guard_clock(10**18, round(seconds * 1e9))
    try:
        yield
    finally:
        _testing.use_real_guard_clock()


def test_looking_in_vain_takes_a_ninth_of_the_time(at_the_limit: Allocation) -> None:
    """What others pin cannot be given back. It has to be watched, but not all the time."""
    with at_the_limit.clone():
        at_the_limit.unpin()
        for seconds in (0.001, 0.01, 0.1):
            with looking_takes(seconds):
                assert [_core.guard_step() for _ in range(5)] == [8e6 * seconds] * 5
        assert at_the_limit.pin()


@pytest.mark.parametrize("others_pin_it", [False, True])
def test_the_thread_sleeps_as_long_as_it_is_to(
    at_the_limit: Allocation, others_pin_it: bool
) -> None:
    """At its limit with nothing to give, and with pages that cannot be given back."""
    with at_the_limit.clone(), looking_takes(0.003):
        if others_pin_it:
            at_the_limit.unpin()
        # None that comes is shorter: test_looks_get_rarer_while_nothing_can_be_discarded.
        delay_us = _core.guard_step()
        with FaultPlan("poll") as sleeps:
            begin = time.monotonic()
            _core.guard_resume()
            try:
                eventually(lambda: sleeps.calls > 2, "sleeping three times")
                took_s = time.monotonic() - begin
            finally:
                _core.guard_park()
        # time: a sleep is never shorter than it was to be, however busy the machine is
        assert took_s * 1e6 >= 2 * delay_us >= 48_000
        if others_pin_it:
            assert at_the_limit.pin()


def test_its_thread_runs_unless_it_is_parked(bench: Bench, mf: MemoryFile) -> None:
    group = bench.level()
    group.set(limit=1000 * MIB, usage=0)
    bench.watch(group)
    (held,) = unpinned(mf, 1)
    for _ in range(2):
        assert not _core.guard_status()["running"]
        _core.guard_resume()
        try:
            assert _core.guard_status()["running"]
        finally:
            _core.guard_park()
    held.release()


def test_far_from_the_limit_it_looks_once_a_second(bench: Bench) -> None:
    group = bench.level()
    group.set(limit=1 << 40, usage=0)
    bench.watch(group)
    assert _core.guard_step() == 1_000_000
    delays = []
    for percent in (0, 50, 80, 88, 89.9):
        group.set(limit=1000 * MIB, usage=int(percent * 10 * MIB))
        delays.append(_core.guard_step())
    assert delays == sorted(delays, reverse=True)
    assert delays[0] > 5 * delays[-1]
    assert delays[-1] >= 1000


# --- who hears of it -----------------------------------------------------------------------------


def test_watchers_hear_each_time_it_gets_worse(bench: Bench) -> None:
    group = bench.level()
    group.set(limit=100 * MIB, usage=50 * MIB)
    bench.watch(group)
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def heard() -> bool:
        try:
            return os.eventfd_read(fd) > 0
        except BlockingIOError:
            return False

    _core.guard_watch(fd)
    try:
        for usage, level, expected in (
            (50, "none", False),
            (91, "medium", True),
            (92, "medium", False),
            (98, "critical", True),
            (91, "critical", False),  # it does not get better step by step
            (50, "none", False),
            (99, "critical", True),
        ):
            group.set(usage=usage * MIB)
            _core.guard_step()
            assert _core.guard_status()["level"] == level, usage
            assert heard() is expected, usage
        assert bench.counted("crossings") == 2
        _core.guard_unwatch(fd)
        for usage in (50, 99):
            group.set(usage=usage * MIB)
            _core.guard_step()
        assert not heard()
    finally:
        _core.guard_unwatch(fd)
        os.close(fd)
