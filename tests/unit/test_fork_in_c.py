"""fork() by C code, which runs none of Python's hooks: the child gets what os.fork() gives."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import peers
import pytest
from children import Child, in_child
from conftest import HUGE, PAGE, stored
from peers import Peer
from waiting import environment, eventually

import pgalloc
from pgalloc import AllocationMode, ForkedError, MemoryFile, _core, testing
from pgalloc._core import _testing

COMMIT = AllocationMode.ALLOCATE_AND_COMMIT
POPULATE = AllocationMode.ALLOCATE_AND_WRITE_POPULATE


def with_gil() -> int:
    return int(ctypes.PyDLL(None).fork())


def without_gil() -> int:
    return int(ctypes.CDLL(None).fork())


def as_uwsgi() -> int:
    """Python is told, but in the child only."""
    pid = with_gil()
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    return pid


FORKS = [with_gil, without_gil, as_uwsgi]
Fork = Callable[[], int]


@pytest.fixture(params=FORKS)
def fork(request: pytest.FixtureRequest) -> Fork:
    chosen: Fork = request.param
    return chosen


class Turns:
    """The child goes on when it may."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def let(self) -> None:
        os.write(self._write, b".")

    def wait(self) -> None:
        assert os.read(self._read, 1) == b"."

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def turns() -> Iterator[Turns]:
    taken = Turns()
    yield taken
    taken.close()


def reuse(mf: MemoryFile, nbytes: int) -> None:
    """Others get what was freed, as far as it can be had."""
    mf.wait_for_reclaim()
    with mf.allocate(nbytes, mode=POPULATE) as other:
        other.view()[:] = b"o" * nbytes


def test_views_stay_what_they_are(mf: MemoryFile, fork: Fork, turns: Turns) -> None:
    """Row L5."""
    a = mf.allocate(4 * PAGE)
    a.view()[:] = b"i" * (4 * PAGE)
    view = a.view()

    def child() -> None:
        turns.wait()
        assert bytes(view) == b"i" * (4 * PAGE)
        assert bytes(a.view()) == b"i" * (4 * PAGE)

    forked = Child(child, fork=fork)
    assert [lease.nbytes for lease in mf.leases()] == [4 * PAGE]
    view.release()
    a.release()
    reuse(mf, 4 * PAGE)
    assert stored(mf) >= 4 * PAGE
    turns.let()
    forked.wait()
    eventually(lambda: mf.leases() == [])
    mf.wait_for_reclaim()
    assert stored(mf) == 0


def test_handles_work(mf: MemoryFile, fork: Fork) -> None:
    a = mf.allocate(4 * PAGE)

    def child() -> None:
        clone, part = a.clone(), a.slice(PAGE, 2 * PAGE)
        b = mf.allocate(2 * PAGE)
        b.view()[:1] = b"b"
        assert mf.usage() is not None
        token = pgalloc.sharing.transport.offer(b)
        received = pgalloc.sharing.transport.claim(token)
        assert bytes(received.view()[:1]) == b"b"
        for handle in (clone, part, b, received):
            handle.release()
        a.decommit()
        a.view()[:5] = b"child"
        with pytest.raises(ForkedError):
            mf.segments()
        with MemoryFile() as own, own.allocate(PAGE) as c:
            c.view()[:1] = b"c"
        assert mf._connection.flush(30)  # type: ignore[attr-defined]
        mf.close()
        assert mf.closed

    Child(child, fork=fork).wait()
    assert bytes(a.view()[:5]) == b"child"
    eventually(lambda: mf.leases() == [])
    assert mf.has_unique_ref(a.range)
    a.release()


def test_a_child_of_a_child(mf: MemoryFile, fork: Fork) -> None:
    a = mf.allocate(PAGE)
    a.view()[:4] = b"deep"

    def level(depth: int) -> None:
        assert bytes(a.view()[:4]) == b"deep"
        own = mf.allocate(PAGE)
        own.view()[0] = depth
        if depth < 3:
            # Each kind follows each.
            next_fork = [os.fork, with_gil, fork][depth]
            Child(lambda: level(depth + 1), fork=next_fork).wait()
        assert own.view()[0] == depth
        own.release()

    Child(lambda: level(0), fork=fork).wait()
    eventually(lambda: mf.leases() == [])
    assert mf.has_unique_ref(a.range)
    a.release()


IN_PEER = """
import ctypes, os, sys
sys.path.insert(0, {unit!r})
import test_fork_in_c as forks
ready, go = os.pipe()
view = kept["a"].view()
pid = forks.{fork}()
if pid == 0:
    try:
        os.read(ready, 1)
        assert bytes(view[:4]) == b"ours", bytes(view[:4])
        b = kept["a"].file.allocate(4096)
        b.view()[:1] = b"b"
        kept["a"].clone().release()
        b.release()
        os._exit(0)
    except BaseException:
        import traceback; traceback.print_exc()
    os._exit(1)
view.release()
kept["child"] = (pid, go, ready)
"""
REAP = """
import os
pid, go, ready = kept.pop("child")
os.write(go, b".")
result = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
os.close(go)
os.close(ready)
"""


@pytest.mark.parametrize("name", [fork.__name__ for fork in FORKS])
def test_in_a_peer(mf: MemoryFile, name: str) -> None:
    unit = os.path.dirname(__file__)
    with Peer() as peer:
        a = mf.allocate(PAGE)
        a.view()[:4] = b"ours"
        peer.do(peers.keep, "a", a)
        peer.do(peers.run, IN_PEER.format(unit=unit, fork=name))
        peer.do(peers.drop, "a")
        a.release()
        reuse(mf, PAGE)
        assert peer.do(peers.run, REAP) == 0
        eventually(lambda: mf.leases() == [])
        mf.wait_for_reclaim()
        assert stored(mf) == 0


def test_an_owner_that_does_not_answer(mf: MemoryFile) -> None:
    """The fork does not wait for it for long; the child cannot touch what may be others' soon."""
    stopped = """
import os, signal
view = kept["a"].view()
os.kill(os.getppid(), signal.SIGSTOP)
while ") T " not in open(f"/proc/{os.getppid()}/stat").read():
    pass
pid = os.fork()
if pid == 0:
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # without a report
    view[0]
    os._exit(0)
status = os.waitpid(pid, 0)[1]
os.kill(os.getppid(), signal.SIGCONT)
view.release()
kept["a"].clone().release()
result = os.WTERMSIG(status)
"""
    with Peer() as peer:
        a = mf.allocate(PAGE)
        peer.do(peers.keep, "a", a)
        continues = subprocess.Popen(
            # The test itself is stopped: it must go on in any case.
            ["sh", "-c", f"sleep 50; kill -CONT {os.getpid()}"]
        )
        try:
            assert peer.do(peers.run, stopped) == signal.SIGSEGV
        finally:
            continues.kill()
            continues.wait()
        peer.do(peers.drop, "a")
        a.release()
    eventually(lambda: mf.leases() == [])


def test_the_reclaimer_is_at_work(mf: MemoryFile, fork: Fork) -> None:
    """No hook has parked it: the child has it in the middle of whatever it did."""
    a = mf.allocate(PAGE)
    view = a.view()
    view[:3] = b"raw"

    def child() -> None:
        assert bytes(view[:3]) == b"raw"
        a.clone().release()
        with MemoryFile() as own:
            own.allocate(PAGE).view()[0] = 1

    for _ in range(20):
        mf.dec_ref(mf.allocate_range(HUGE, mode=COMMIT))
        Child(child, fork=fork).wait()
    assert mf.wait_for_reclaim(10)
    assert bytes(view[:3]) == b"raw"
    view.release()
    a.release()


CHAIN = """
import ctypes, os, signal, sys
import pgalloc
from pgalloc import EvictableRange, MemoryFile
from waiting import eventually

signal.alarm(100)  # a hang ends here
class User:
    asked = 0
    def evict(self, range):
        self.asked += 1

def fork():
    return ctypes.PyDLL(None).fork()

def uwsgi():
    pid = fork()
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    return pid

def step(inherited, forks):
    users, files = [], []
    for file in inherited:
        file.allocate(4096).view()[0] = 1
    mf = MemoryFile(delayed_eviction=pgalloc.DelayedEviction.DISABLED)
    user = User()
    mf.mark_evictable(user, EvictableRange(0, 1))
    assert mf.wait_for_evictions(10) and user.asked == 1
    if forks:
        pid = forks[0]()
        if pid == 0:
            try:
                step([*inherited, mf], forks[1:])
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    # Its threads are back.
    mf.mark_evictable(user, EvictableRange(2, 3))
    assert mf.wait_for_evictions(10) and user.asked == 2
    mf.allocate(4096).release()
    assert mf.wait_for_reclaim(10)
    eventually(lambda: mf.leases() == [])
    mf.close()

step([], [{"os": os.fork, "c": fork, "uwsgi": uwsgi}[name] for name in sys.argv[1:]])
"""


@pytest.mark.parametrize(
    "chain", ["os c os", "c os c", "c c os os", "os uwsgi os", "uwsgi c uwsgi", "c uwsgi os c"]
)
def test_forks_of_every_kind_follow_each_other(chain: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHAIN, *chain.split()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")


# What a fork asks the kernel for, and what its child does.
CALLS = ["socketpair", "pass_credentials", "set_receive_timeout", "fstat", "sendmsg", "recvmsg"]
CALLS += ["duplicate", "poll", "mmap", "eventfd"]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_of_the_kernel_fails(mf: MemoryFile, call: str, turns: Turns) -> None:
    """Row L6: a child reads what its parent had, or nothing; and its parent is as it was."""
    for first in range(1, 9):
        a = mf.allocate(PAGE)
        a.view()[:4] = b"ours"
        view = a.view()

        def child(view: memoryview = view, a: pgalloc.Allocation = a) -> None:
            _testing.remove_fault()
            turns.wait()
            try:
                a.clone().release()
                mf.allocate(PAGE).release()
            except (pgalloc.Error, OSError):
                pass
            reader = os.fork()
            if reader == 0:
                signal.signal(signal.SIGSEGV, signal.SIG_DFL)
                os._exit(0 if bytes(view[:4]) == b"ours" else 1)
            status = os.waitpid(reader, 0)[1]
            assert status == 0 or os.WTERMSIG(status) == signal.SIGSEGV, status

        with testing.FaultPlan(call, errno.ENOMEM, first=first, times=1):
            forked = Child(child)
        view.release()
        a.release()
        reuse(mf, PAGE)
        turns.let()
        forked.wait()
        eventually(lambda: mf.leases() == [])
        assert _core.broker_verify() is None
    mf.wait_for_reclaim()
    assert stored(mf) == 0
    in_child(lambda: mf.allocate(PAGE).release())


BUSY = """
import ctypes, os, signal, sys, threading
import multiprocessing
import pgalloc
from pgalloc import MemoryFile, PAGE_SIZE, testing
from waiting import eventually

signal.alarm(200)  # a hang ends here
# No thread may ask for the GIL between the two steps of a fork: the child would wait for it.
sys.setswitchinterval(1000)
mf = MemoryFile()
kept = mf.allocate(4 * PAGE_SIZE)
kept.view()[:5] = b"still"
stop = threading.Event()
failures = []

def work(number):
    stamp = bytes([number + 1]) * PAGE_SIZE
    ours, theirs = multiprocessing.Pipe()
    try:
        while not stop.wait(0.001):
            with mf.allocate(8 * PAGE_SIZE) as a:
                assert bytes(a) == bytes(8 * PAGE_SIZE), "dirty"
                memoryview(a)[:PAGE_SIZE] = stamp
                ours.send(a)
                with theirs.recv() as b:
                    assert bytes(memoryview(b)[:PAGE_SIZE]) == stamp, "lost"
    except BaseException as error:
        failures.append(error)

threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(3)]
for thread in threads:
    thread.start()
for _ in range(100):
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        try:
            assert bytes(kept.view()[:5]) == b"still"
            with mf.allocate(PAGE_SIZE) as own:
                own.view()[:1] = b"x"
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stop.set()
for thread in threads:
    thread.join()
assert failures == [], failures
mf.drop_unclaimed()
eventually(lambda: not mf.leases(), "the end of all leases")
assert mf.has_unique_ref(kept.range)
kept.release()
mf.wait_for_reclaim(10)
testing.verify(mf)
assert mf.total_usage() == 0
"""


def test_from_a_process_whose_threads_share() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUSY],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")
