"""fork: a child reads its parent's views, changes nothing of the parent's, and ends quietly."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from children import Child, in_child
from conftest import CHUNK, HUGE, PAGE, stored, update_usage
from waiting import TIMEOUT_S, eventually, join

import pgalloc
from pgalloc import (
    AllocationMode,
    DelayedEviction,
    EvictableRange,
    ForkedError,
    MemoryFile,
    eviction,
    testing,
)

COMMIT = AllocationMode.ALLOCATE_AND_COMMIT


def assert_equal(one: object, other: object) -> None:
    assert one == other


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """From 3.12 on, forking with threads of the test itself is warned about, and meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*multi-threaded.*", category=DeprecationWarning)
        yield


class User:
    """An evictable user that counts."""

    def __init__(self) -> None:
        self.asked = 0

    def evict(self, range: EvictableRange) -> None:
        self.asked += 1


def test_a_child_reads_inherited_views(mf: MemoryFile) -> None:
    a = mf.allocate(CHUNK + PAGE)
    view, readonly = a.view(), a.view(readonly=True)
    mapped = mf.map_range(a.range, "r")
    view[:6] = b"before"
    view[-4:] = b"last"

    def child() -> None:
        for inherited in (view, readonly, mapped):
            assert bytes(inherited[:6]) == b"before"
            assert bytes(inherited[-4:]) == b"last"
        # What is mapped already can be mapped again: that changes no metadata.
        assert bytes(mf.map_range(a.range, "r")[:6]) == b"before"
        assert bytes(a.view()[:6]) == b"before"

    in_child(child)
    for used in (view, readonly, mapped):
        used.release()
    a.release()


def test_a_child_sees_later_writes_of_the_parent(mf: MemoryFile) -> None:
    a = mf.allocate(PAGE)
    view = a.view()
    view[0] = 0
    ready_read, ready_write = os.pipe()

    def child() -> None:
        os.read(ready_read, 1)
        assert view[0] == 42

    forked = Child(child)
    view[0] = 42
    os.write(ready_write, b"x")
    forked.wait()
    os.close(ready_read)
    os.close(ready_write)
    view.release()
    a.release()


def test_what_is_the_owners_alone_raises_forked_error(mf: MemoryFile) -> None:
    """What handles do is asked of the owner instead: see test_fork_peers."""
    range_ = mf.allocate_range(4 * PAGE)
    mf.map_range(range_)[:] = b"x" * (4 * PAGE)
    a = mf.allocate(PAGE)
    user = User()
    before = (mf.segments(), mf.stats())
    calls: list[Callable[[], Any]] = [
        lambda: mf.mark_evictable(user, EvictableRange(0, 1)),
        lambda: mf.mark_unevictable(user, EvictableRange(0, 1)),
        lambda: mf.mark_all_unevictable(user),
        mf.start_evictions,
        mf.wait_for_evictions,
        mf.update_usage,
        mf.total_usage,
        mf.segments,
        mf.wait_for_reclaim,
        mf.mark_savable,
        mf.leases,
        mf.drop_unclaimed,
        lambda: mf.serve("socket"),
        lambda: mf.file,
    ]

    def child() -> None:
        for number, call in enumerate(calls):
            try:
                call()
            except ForkedError:
                continue
            raise AssertionError(f"call {number} raised nothing")
        mf.stats()
        assert "MemoryFile" in repr(mf) + str(mf)
        assert not mf.closed

    in_child(child)
    eventually(lambda: mf.leases() == [])
    assert (mf.segments(), mf.stats()) == before
    assert bytes(mf.map_range(range_)) == b"x" * (4 * PAGE)
    a.release()


@pytest.mark.parametrize(
    "helper",
    ["verify", "bookkeeping_bytes", "pause_reclaimer", "reclaim_log", "ManualClock"],
)
def test_helpers_of_testing_raise_forked_error_too(mf: MemoryFile, helper: str) -> None:
    """They must neither abort the child nor take a lock that is never released."""
    mf.allocate_range(PAGE)

    def child() -> None:
        try:
            result = getattr(testing, helper)(mf)
            if hasattr(result, "__enter__"):
                with result:
                    pass
        except ForkedError:
            return
        raise AssertionError(f"{helper} raised nothing")

    in_child(child)


def test_a_child_has_files_of_its_own(mf: MemoryFile) -> None:
    mf.map_range(mf.allocate_range(PAGE))[0] = 1
    update_usage(mf)
    assert pgalloc.memory_accounting().total() >= PAGE

    def child() -> None:
        assert pgalloc.memory_accounting().total() == 0  # the account is the process's
        user = User()
        with MemoryFile(delayed_eviction=DelayedEviction.DISABLED) as own:
            with own.allocate(4 * PAGE, mode=COMMIT) as a:
                a.view()[:4] = b"mine"
                update_usage(own)
                assert pgalloc.memory_accounting().total() == 4 * PAGE
            assert own.wait_for_reclaim(10)
            assert stored(own) == 0
            own.mark_evictable(user, EvictableRange(0, 1))
            eventually(lambda: user.asked, "the eviction")
            assert user.asked == 1
            testing.verify(own)
        assert pgalloc.memory_accounting().total() == 0

    before = pgalloc.memory_accounting().total()
    in_child(child)
    assert pgalloc.memory_accounting().total() == before


@pytest.mark.parametrize("ending", ["_exit", "sys.exit", "collect"])
def test_the_end_of_a_child_leaves_the_parents_pages(ending: str) -> None:
    """Row I2 is for the owner: a child that dies, or collects what it has, punches nothing."""
    with (
        MemoryFile(decommit_on_destroy=True) as plain,
        MemoryFile(delayed_eviction=DelayedEviction.MANUAL) as with_users,
        MemoryFile(use_host_memcg_pressure=True) as with_pressure,
    ):
        files = [plain, with_users, with_pressure]
        user = User()
        with_users.mark_evictable(user, EvictableRange(0, 10))
        allocations = [mf.allocate(4 * PAGE) for mf in files]
        for a in allocations:
            a.view()[:] = b"k" * (4 * PAGE)
        views = [a.view() for a in allocations]
        held: dict[str, Any] = {"files": files, "allocations": allocations, "views": views}

        def child() -> None:
            if ending == "collect":
                held.clear()
                files.clear()
                allocations.clear()
                views.clear()
                gc.collect()

        if ending == "sys.exit":
            process = multiprocessing.get_context("fork").Process(target=sys.exit, args=(0,))
            process.start()
            process.join(TIMEOUT_S)
            if process.exitcode is None:
                process.kill()
                process.join()
            assert process.exitcode == 0
        else:
            in_child(child)
        for mf, view in zip(files, views, strict=True):
            assert bytes(view) == b"k" * (4 * PAGE)
            assert stored(mf) == 4 * PAGE
            testing.verify(mf)
        with_users.start_evictions()
        assert with_users.wait_for_evictions(10)
        assert user.asked == 1
        for view in views:
            view.release()
        held.clear()
        for a in allocations:
            a.release()
        allocations.clear()


def test_the_parent_goes_on_after_a_fork(mf: MemoryFile) -> None:
    """Its reclaimer and evictors are back."""
    user = User()
    for round_ in range(5):
        in_child(lambda: None)
        with mf.allocate(HUGE, mode=COMMIT):
            pass
        # Nothing waits for it in pgalloc: the thread does it by itself.
        eventually(lambda: stored(mf) == 0, "reclaim")
        mf.mark_evictable(user, EvictableRange(0, 1))
        eventually(lambda: user.asked > round_, "the eviction")  # noqa: B023
        assert user.asked == round_ + 1


def test_waste_of_before_the_fork_is_reclaimed_after_it(mf: MemoryFile) -> None:
    ranges = [mf.allocate_range(16 * PAGE, mode=COMMIT) for _ in range(50)]
    for range_ in ranges[::2]:
        mf.dec_ref(range_)
    in_child(lambda: None)
    assert mf.wait_for_reclaim(10)
    assert stored(mf) == 25 * 16 * PAGE


FORK_WITHOUT_WARNING = """
import os, sys
from pgalloc import AllocationMode, EvictableRange, MemoryFile

class User:
    def evict(self, range):
        pass

with MemoryFile() as mf, MemoryFile(use_host_memcg_pressure=sys.argv[1] == "memcg") as other:
    user = User()
    for _ in range(20):
        mf.mark_evictable(user, EvictableRange(0, 1))
        assert mf.wait_for_evictions(10)
        mf.dec_ref(mf.allocate_range(1 << 21, mode=AllocationMode.ALLOCATE_AND_COMMIT))
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    assert mf.wait_for_reclaim(10)
"""


@pytest.mark.parametrize("pressure", ["memcg", "none"])
def test_no_warning_of_threads(pressure: str) -> None:
    """3.12 and later count threads after os.fork(), native ones too (3.11 warns of nothing).

    In a process of its own: pytest and its plugins have threads.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK_WITHOUT_WARNING, pressure],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_forks_from_busy_threads() -> None:
    """100 forks from 4 threads that allocate, write, decommit and free all the while."""
    failures: list[BaseException] = []
    mf = MemoryFile()
    forks_left = threading.Semaphore(100)

    def child() -> None:
        mf.allocate(PAGE).view()[0] = 1

    def work(number: int) -> None:
        stamp = bytes([number + 1])
        try:
            while forks_left.acquire(blocking=False):
                for _ in range(5):
                    with mf.allocate(8 * PAGE) as a, a.view() as view:
                        assert bytes(view) == bytes(8 * PAGE)
                        view[:] = stamp * (8 * PAGE)
                        mf.update_usage()
                        assert bytes(view) == stamp * (8 * PAGE)
                        if number % 2:
                            a.decommit()
                in_child(child)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    join(threads, 2 * TIMEOUT_S)
    assert failures == []
    eventually(lambda: mf.leases() == [])
    assert mf.wait_for_reclaim(10)
    testing.verify(mf)
    assert (mf.segments(), stored(mf)) == ([], 0)
    mf.close()


def test_forks_while_evictions_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each callback lasts until a child has been forked and has ended."""
    monkeypatch.setattr(eviction, "PARK_TIMEOUT_S", 10 * TIMEOUT_S)  # it is not used up
    running, may_end = threading.Semaphore(0), threading.Semaphore(0)

    class Lasting(User):
        def evict(self, range: EvictableRange) -> None:
            running.release()
            assert may_end.acquire(timeout=TIMEOUT_S)
            super().evict(range)

    with MemoryFile(delayed_eviction=DelayedEviction.DISABLED) as mf:
        users = [Lasting() for _ in range(12)]
        for i in range(20):
            for user in users:
                mf.mark_evictable(user, EvictableRange(2 * i, 2 * i + 1))
            assert running.acquire(timeout=TIMEOUT_S)
            in_child(lambda: None)
            may_end.release(12)
        assert mf.wait_for_evictions(TIMEOUT_S)
        assert [user.asked for user in users] == [20] * 12
        assert mf.stats().eviction_failures == 0


def test_a_callback_may_fork() -> None:
    class Forking(User):
        def evict(self, range: EvictableRange) -> None:
            in_child(lambda: None)
            self.asked += 1

    with MemoryFile(delayed_eviction=DelayedEviction.DISABLED) as mf:
        user = Forking()
        for i in range(5):
            mf.mark_evictable(user, EvictableRange(2 * i, 2 * i + 1))
        assert mf.wait_for_evictions(30)
        assert user.asked == 5


class Forks:
    """A length or a memcg id. Reading it forks."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.child: int | None = None

    def __index__(self) -> int:
        if self.child is None:
            self.child = os.fork()
        return self.value


@pytest.mark.parametrize("what", ["allocate", "allocate_range", "memcg_id", "inc_ref"])
def test_reading_an_argument_may_fork(mf: MemoryFile, what: str) -> None:
    """The child asks its parent, or is refused: it never uses what is the parent's."""
    length = Forks(PAGE)
    memcg_id = Forks(1)
    kept = mf.allocate(PAGE)
    calls: dict[str, Callable[[], Any]] = {
        "allocate": lambda: mf.allocate(length),
        "allocate_range": lambda: pgalloc.Allocation(mf, mf.allocate_range(length)),
        "memcg_id": lambda: mf.allocate(PAGE, memcg_id=memcg_id),
        "inc_ref": lambda: mf.inc_ref(kept.range, memcg_id),
    }
    result: Any = None
    with contextlib.suppress(ForkedError):
        result = calls[what]()
    child = memcg_id.child if length.child is None else length.child
    if child == 0:
        try:
            if what == "inc_ref":
                mf.dec_ref(kept.range)
            elif result is not None:
                result.view()[:5] = b"child"
                result.release()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert child is not None
    if result is not None:
        result.view()[:6] = b"parent"
    assert os.waitpid(child, 0)[1] == 0
    eventually(lambda: mf.leases() == [])
    if result is not None:
        assert bytes(result.view()[:6]) == b"parent"
    assert mf.has_unique_ref(kept.range) == (what != "inc_ref")
    if what == "inc_ref":
        mf.dec_ref(kept.range)


@pytest.mark.parametrize("what", ["save", "stream", "evictions", "reclaim"])
def test_a_signal_handler_that_forks_during_a_wait(tmp_path: Path, what: str) -> None:
    """The child waits for nothing that is not there: it is told, or it has what it waited for."""
    program = f"""
import os, signal, sys, threading, time
import pgalloc
from pgalloc import EvictableRange, MemoryFile, testing
from pgalloc._core import _testing

what, path = {what!r}, {str(tmp_path / "image")!r}
child = None

def fork(*_):
    global child
    if child is None:
        child = os.fork()

class Slow:
    def write(self, block):
        os.kill(os.getpid(), signal.SIGUSR1)
        return len(block)

class User:
    def evict(self, range):
        os.kill(os.getpid(), signal.SIGUSR1)
        released.wait(60)

def signal_in_the_middle():
    while not _testing.hold_reached():
        time.sleep(0.001)  # time: it polls
    os.kill(os.getpid(), signal.SIGUSR1)
    while child is None:
        time.sleep(0.001)  # time: it polls
    _testing.let_go()

released = threading.Event()
signal.signal(signal.SIGUSR1, fork)
signal.signal(signal.SIGALRM, fork)
mf = MemoryFile()
pages = mf.allocate(64 << 20)
pages.view()[:: pgalloc.PAGE_SIZE] = b"x" * (pages.nbytes // pgalloc.PAGE_SIZE)
try:
    if what == "save":
        assert _testing.install_hold("pwrite", 1)
        threading.Thread(target=signal_in_the_middle).start()
        mf.save(path, compression=None)
        _testing.remove_fault()
        assert os.path.exists(path)
    elif what == "stream":
        mf.save(Slow())
    elif what == "evictions":
        threading.Timer(0.5, released.set).start()  # time: a fork waits for callbacks
        mf.mark_evictable(User(), EvictableRange(0, 1))
        mf.start_evictions()
        mf.wait_for_evictions()
    else:
        with testing.pause_reclaimer(mf):
            signal.setitimer(signal.ITIMER_REAL, 0.06)
            mf.allocate(pgalloc.PAGE_SIZE).release()
            mf.wait_for_reclaim(0.5)
except pgalloc.ForkedError:
    assert child == 0
if child == 0:
    os._exit(0)
assert child is not None, "the wait was over before the signal"
sys.exit(os.waitpid(child, 0)[1] != 0)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0


WITHOUT_THREADS = """
import io, logging, os, resource, sys, tempfile
import pgalloc
from pgalloc import AllocationMode, MemoryFile

logging.basicConfig()

if os.getuid() == 0:
    os.setuid(65534)  # root may have as many as it wants
mf = MemoryFile()
if sys.argv[1] == "share":
    folder = tempfile.mkdtemp()
    server = mf.serve(folder + "/socket")
    peer = pgalloc.connect(folder + "/socket", timeout=10)
a, b = (mf.allocate(1 << 21, mode=AllocationMode.ALLOCATE_AND_COMMIT) for _ in range(2))
soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
try:
    os.fork()
except BlockingIOError:
    pass
else:
    raise AssertionError("there is no limit")
a.release()
resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
if sys.argv[1] == "share":
    mf.allocate(4096)
    peer.allocate(4096).release()
    peer.close()
while mf.leases():  # of the child that never was
    pass
if sys.argv[1] == "wait":
    assert mf.wait_for_reclaim(60)
elif sys.argv[1] == "save":
    mf.save(io.BytesIO())
b.release()
while os.stat(mf.fileno()).st_blocks:
    pass
mf.stats()  # logs what the core has warned of
"""


@pytest.mark.parametrize("act", ["wait", "save", "release", "share"])
def test_threads_that_could_not_start_again_start_when_they_are_needed(act: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THREADS, act],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "could not be started again" in done.stderr


def test_nested_forks(mf: MemoryFile) -> None:
    a = mf.allocate(PAGE)
    view = a.view()
    view[:4] = b"deep"

    def level(depth: int) -> None:
        assert bytes(view[:4]) == b"deep"
        own = MemoryFile()
        b = own.allocate(PAGE)
        b.view()[0] = depth

        def grandchild() -> None:
            assert b.view()[0] == depth
            for inherited in (mf, own):
                inherited.allocate(PAGE).view()[0] = 1
            if depth < 3:
                level(depth + 1)

        in_child(grandchild)
        testing.verify(own)
        own.close()

    in_child(lambda: level(1))
    view.release()
    a.release()
