"""A signal handler that raises inside os.fork() leaves nothing half done on either side."""

from __future__ import annotations

import subprocess
import sys

import pytest
from waiting import environment

COMMON = """
import ctypes, functools, os, random, signal, sys, threading

class Interrupt(Exception):
    pass

def handler(*_):
    raise Interrupt

signal.alarm(200)  # a hang ends here
sys.unraisablehook = type  # CPython prints what hooks raise; this cannot be interrupted
# Without a look at signals in between: it is pending when the next hook begins.
raise_it = functools.partial(getattr(ctypes.CDLL(None), "raise"), int(signal.SIGUSR1))
if DETERMINISTIC:
    os.register_at_fork(after_in_parent=raise_it, after_in_child=raise_it)

import pgalloc
from pgalloc import DelayedEviction, EvictableRange, MemoryFile, _core, testing
from waiting import eventually

if DETERMINISTIC:
    os.register_at_fork(before=raise_it)

class User:
    asked = 0
    def evict(self, range):
        self.asked += 1

mf = MemoryFile(delayed_eviction=DelayedEviction.DISABLED)
user = User()
a = mf.allocate(4096)
a.view()[:4] = b"ours"
here = os.getpid()
cache = pgalloc.Cache()
cache["key"] = b"value"
server = cache.serve(sys.argv[1])

def works(number):
    \"\"\"All threads are there.\"\"\"
    user.asked = 0
    mf.mark_evictable(user, EvictableRange(2 * number, 2 * number + 1))
    assert mf.wait_for_evictions(30) and user.asked == 1
    mf.allocate(1 << 20, mode=pgalloc.AllocationMode.ALLOCATE_AND_COMMIT).release()
    eventually(lambda: os.stat(mf.fileno()).st_blocks * 512 <= 4096, "reclaim")

def in_child():
    assert bytes(a.view()[:4]) == b"ours"
    a.clone().release()
    with mf.allocate(4096) as b:
        b.view()[:1] = b"b"
    with MemoryFile(delayed_eviction=DelayedEviction.DISABLED) as own:
        mine = User()
        own.mark_evictable(mine, EvictableRange(0, 1))
        assert own.wait_for_evictions(30) and mine.asked == 1
    os._exit(0)

def fork_once():
    try:
        os.fork()
    except Interrupt:
        pass

works(0)
threads = len(os.listdir("/proc/self/task"))
descriptors = len(os.listdir("/proc/self/fd"))
forks = 0
for number in range(1, COUNT + 1):
    signal.signal(signal.SIGUSR1, handler)
    signal.signal(signal.SIGALRM, handler)
    try:
        if not DETERMINISTIC:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 8e-3), 1e-3)
        fork_once()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupt:
        pass
    while True:  # what comes late
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            break
        except Interrupt:
            pass
    if os.getpid() != here:
        try:
            in_child()
        except BaseException:
            import traceback
            traceback.print_exc()
        os._exit(1)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]) == 0
        forks += 1
    except ChildProcessError:  # the signal was there before os.fork()
        assert not DETERMINISTIC
    works(number)
    assert threading.active_count() < 10, threading.enumerate()
assert forks > COUNT / 2
eventually(lambda: len(os.listdir("/proc/self/task")) <= threads, "the end of threads")
eventually(lambda: mf.leases() == [], "the end of leases")
assert len(os.listdir("/proc/self/fd")) <= descriptors
assert _core.broker_verify() is None
assert not [t for t in threading.enumerate() if isinstance(t, threading._DummyThread)]
if os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", LOOK, sys.argv[1]]) != 0:
    sys.exit(1)
a.release()
testing.verify(mf)
server.close()
"""
LOOK = """
import sys
from pgalloc import Cache
assert bytes(Cache.connect(sys.argv[1]).get("key")) == b"value"
"""


@pytest.mark.parametrize(("when", "count"), [("in each hook", 20), ("at random", 200)])
def test_a_handler_that_raises(when: str, count: int, tmp_path: object) -> None:
    script = f"DETERMINISTIC = {when == 'in each hook'}\nCOUNT = {count}\nLOOK = {LOOK!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", script + COMMON, f"{tmp_path}/cache"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")
