"""Processes that end without a word: what a peer held comes back, what an owner shared stays."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import peers
import pytest
from children import Child, in_child
from conftest import PAGE, stored
from peers import Peer
from waiting import environment, eventually, join

import pgalloc
from pgalloc import MemoryFile, OwnerGoneError, SharingError, testing
from pgalloc.sharing import transport

STAMP = b"still here"


def _stamped(mf: MemoryFile, pages: int = 2) -> pgalloc.Allocation:
    allocation = mf.allocate(pages * PAGE)
    allocation.view()[: len(STAMP)] = STAMP
    return allocation


def _names() -> set[str]:
    return set(os.listdir("/dev/shm"))


def _holders(mf: MemoryFile) -> set[int]:
    return {lease.pid for lease in mf.leases()}


@pytest.fixture(scope="module", autouse=True)
def keeper() -> Iterator[Peer]:
    """What starts when something is shared for the first time stays for all tests."""
    with MemoryFile() as keeper, Peer() as peer:
        peer.do(peers.keep, "for ever", keeper.allocate(PAGE))
        yield peer


# --- peers that are killed -----------------------------------------------------------------------


def _be_busy(a: pgalloc.Allocation, pipe: Connection) -> None:
    """Allocate, check, clone, unpin, send, fork and let go, for ever."""
    rng = random.Random(os.getpid())
    file, kept = a.file, [a.clone()]
    while True:
        kept.append(file.allocate(rng.randrange(1, 9) * PAGE))
        rng.choice(kept).view()[-1:] = b"x"
        kept.append(rng.choice(kept).clone())
        kept.append(rng.choice(kept).slice(0, PAGE))
        rng.choice(kept).unpin()
        pipe.send(kept[-1])  # a token that is never claimed
        if rng.random() < 0.05 and os.fork() == 0:
            time.sleep(rng.random() * 0.01)  # time: the load: children that live for a while
            os._exit(0)
        while len(kept) > 10:
            kept.pop(rng.randrange(1, len(kept))).release()


class _Busy:
    """A forked peer under way."""

    def __init__(self, a: pgalloc.Allocation) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=_be_busy, args=(a, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def read(self) -> int:
        """Take what it sent, unopened: how much that was."""
        count = 0
        while self.pipe.poll():
            self.pipe.recv_bytes()
            count += 1
        return count

    def kill(self) -> int:
        pid = self.process.pid
        assert pid is not None
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()
        return pid


def _kill_at_random(mf: MemoryFile, a: pgalloc.Allocation, *, kills: int) -> None:
    """Of four busy peers one after the other is killed, some acts later, and replaced."""
    rng = random.Random(1)
    crew = [_Busy(a) for _ in range(4)]
    for kill in range(kills):
        left = rng.randrange(40)
        while left > 0:
            left -= eventually(lambda: sum(busy.read() for busy in crew), "an act")
        victim = crew.pop(rng.randrange(len(crew)))
        pid = victim.kill()
        eventually(
            lambda pid=pid: all(lease.pid != pid or not lease.claimed for lease in mf.leases()),
            "references come back",
        )
        crew.append(_Busy(a))
        if kill % 20 == 19:
            mf.drop_unclaimed()  # leases() gets long
    for busy in crew:
        busy.kill()


@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_peers_killed_under_load(mf: MemoryFile, kills: int) -> None:
    """What they held comes back, and what they had sent when it is asked for; nothing else goes."""
    names = _names()
    a = _stamped(mf)
    _kill_at_random(mf, a, kills=kills)

    def all_is_back() -> bool:
        mf.drop_unclaimed()  # again: what a peer asked for just before it died is done as well
        return mf.leases() == []

    eventually(all_is_back, "everything comes back")
    assert mf.has_unique_ref(a.range)
    assert bytes(a.view()[: len(STAMP)]) == STAMP
    assert [(segment.start, segment.end) for segment in mf.segments() if segment.refs] == [
        (a.range.start, a.range.end)
    ]
    a.release()
    assert mf.wait_for_reclaim(10)
    assert stored(mf) == 0
    testing.verify(mf)
    new = _names() - names  # some are of other processes, and go
    eventually(lambda: not new & _names(), "the end of all names")


def test_a_peer_killed_before_it_claims(mf: MemoryFile) -> None:
    """What was sent to it stays on its way, until it is dropped."""
    a = _stamped(mf)
    with Peer() as peer:
        os.kill(peer.pid, signal.SIGSTOP)
        peer._pipe.send((peers.keep, ("a", a)))
        peer.kill()
        (lease,) = mf.leases()
        assert (lease.pid, lease.nbytes, lease.claimed) == (os.getpid(), 2 * PAGE, False)
        assert mf.drop_unclaimed() == 2 * PAGE
    assert mf.leases() == []
    assert mf.has_unique_ref(a.range)
    a.release()


# --- forks from a busy process -------------------------------------------------------------------

FORKS_FROM_BUSY_THREADS = """
import multiprocessing, os, signal, sys, threading, time
import pgalloc
from pgalloc import MemoryFile, PAGE_SIZE, testing
from waiting import eventually

signal.alarm(200)  # a hang ends here
FORKS = int(sys.argv[1])
mf = MemoryFile()
kept = mf.allocate(4 * PAGE_SIZE)
kept.view()[:5] = b"still"
stop = threading.Event()
failures = []

def work(number):
    stamp = bytes([number + 1]) * PAGE_SIZE
    ours, theirs = multiprocessing.Pipe()
    try:
        while not stop.is_set():
            with mf.allocate(8 * PAGE_SIZE) as a:
                assert bytes(a) == bytes(8 * PAGE_SIZE), "dirty"
                memoryview(a)[:PAGE_SIZE] = stamp
                ours.send(a)
                with theirs.recv() as b:
                    assert bytes(memoryview(b)[:PAGE_SIZE]) == stamp, "lost"
            time.sleep(0.001)  # time: the load: the forking thread gets its turn
    except BaseException as error:
        failures.append(error)

def child():
    assert bytes(kept.view()[:5]) == b"still"
    with mf.allocate(PAGE_SIZE) as own:
        own.view()[:1] = b"x"
    os._exit(0)

# Daemons: what goes wrong here ends the program.
threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(4)]
for thread in threads:
    thread.start()
for _ in range(FORKS):
    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, status
stop.set()
for thread in threads:
    thread.join()
assert failures == [], failures
mf.drop_unclaimed()
eventually(lambda: not mf.leases(), "the end of all leases")
assert mf.has_unique_ref(kept.range)
assert bytes(kept.view()[:5]) == b"still"
kept.release()
mf.wait_for_reclaim(10)
testing.verify(mf)
assert mf.total_usage() == 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("forks", [300])
def test_forks_from_a_process_whose_threads_share(forks: int) -> None:
    """No hang, no warning, and the parent is as it was.

    From 3.12 on Python itself warns of forks from a process with threads: those are the script's.
    """
    allow = "ignore:This process:DeprecationWarning"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", allow, "-c", FORKS_FROM_BUSY_THREADS, str(forks)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")


FORKS_INSIDE = """
import ctypes, os, sys, traceback
import peers
from peers import Peer
from pgalloc import MemoryFile, PAGE_SIZE, _core

fork = ctypes.PyDLL(None).fork  # without hooks: the broker's thread goes on
# No thread may ask for the GIL at a fork: the child would wait for that thread to take it.
sys.setswitchinterval(1000)

ASK = '''
import threading
def ask(file):
    while True:
        file.allocate(4096).release()
for _ in range(2):
    threading.Thread(target=ask, args=(kept['a'].file,), daemon=True).start()
'''

def named(fds):
    # Numbers are used again: by the child's own files.
    names = set()
    for fd in fds:
        try:
            names.add(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:  # of the listing itself
            pass
    return names

def check(parents):
    still = parents & named(os.listdir("/proc/self/fd"))
    assert not still, f"descriptors of the parent's broker are open: {still}"
    assert _core.broker_figures()["channels"] == 0
    assert _core.broker_address() != address

if __name__ == "__main__":
    address = _core.broker_address()
    with MemoryFile() as mf, mf.allocate(PAGE_SIZE) as a, Peer() as peer:
        peer.do(peers.keep, "a", a)
        peer.do(peers.run, ASK)
        for _ in range(300):
            parents = named(_core.broker_descriptors())
            pid = fork()
            if pid == 0:
                try:
                    check(parents)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert status == 0, status
        assert peer.do(peers.run, "result = kept['a'].file.flush(10)")
        assert _core.broker_verify() is None
        peer.kill()
"""


def test_forks_without_hooks_in_the_middle_of_the_brokers_work(tmp_path: Path) -> None:
    """Row L5: at any moment, the child closes what is its parent's, and has its own."""
    script = tmp_path / "script.py"  # the spawned process imports it
    script.write_text(FORKS_INSIDE)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- owners that end -----------------------------------------------------------------------------


class _Owner:
    """A process that owns a file, and shares stamped pages of it when asked."""

    def __init__(self) -> None:
        self.peer = Peer()
        self.peer.do(peers.run, "import pgalloc\nkept['mf'] = pgalloc.MemoryFile()")

    def share(self) -> pgalloc.Allocation:
        self.peer.do(peers.call_and_keep, "mf", "allocate", "a", 2 * PAGE)
        self.peer.do(peers.write, "a", 0, STAMP)
        allocation: pgalloc.Allocation = self.peer.do(peers.send_back, "a")
        return allocation

    def kill(self) -> None:
        self.peer.kill()
        self.peer.process.close()


@pytest.fixture
def owner() -> _Owner:
    return _Owner()


def _requests(a: pgalloc.Allocation) -> list[Callable[[], Any]]:
    return [
        lambda: a.file.allocate(PAGE),
        lambda: a.file.usage(),
        lambda: a.file.has_unique_ref(a.range),
        a.decommit,
        a.unpin,
        lambda: transport.offer(a),
    ]


def _expect_gone(a: pgalloc.Allocation) -> None:
    for number, request in enumerate(_requests(a)):
        try:
            request()
        except OwnerGoneError:
            continue
        raise AssertionError(f"request {number} raised nothing")


def test_pages_outlive_their_owner(owner: _Owner) -> None:
    a = owner.share()
    part, view = a.slice(0, PAGE), a.view()
    owner.kill()
    _expect_gone(a)
    _expect_gone(a)  # and again: nothing hangs, and nothing else happens
    assert bytes(view[: len(STAMP)]) == STAMP
    view[-4:] = b"more"
    assert bytes(a.view()[-4:]) == b"more"
    assert bytes(part.view()[: len(STAMP)]) == STAMP
    view.release()
    for held in (part, a):
        held.release()
    a.file.close()


def test_a_fork_after_the_owners_death(owner: _Owner) -> None:
    """The child sees what its parent sees."""
    a = owner.share()
    view = a.view()
    owner.kill()

    def child() -> None:
        assert bytes(view[: len(STAMP)]) == STAMP
        for number, request in enumerate(_requests(a)):
            try:
                request()
            except (OwnerGoneError, pgalloc.ForkedError):
                continue
            raise AssertionError(f"request {number} raised nothing")

    in_child(child)
    _expect_gone(a)
    view.release()
    a.release()


def test_the_owner_dies_while_a_child_of_a_peer_lives(owner: _Owner) -> None:
    a = owner.share()
    view = a.view()
    told, tell = os.pipe()

    def child() -> None:
        assert os.read(told, 1) == b"x"
        assert bytes(view[: len(STAMP)]) == STAMP
        _expect_gone(a)

    forked = Child(child)
    owner.kill()
    os.write(tell, b"x")
    forked.wait()
    _expect_gone(a)
    os.close(told)
    os.close(tell)
    view.release()
    a.release()


@pytest.mark.leaks_allowed  # the last one's connection, until there is another
def test_dead_owners_do_not_pile_up() -> None:
    """Their memory and their connections go, though no request is sent to them again."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        owner = _Owner()
        owner.share().release()
        owner.kill()
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before + 3, "dead owners are forgotten")


def test_a_token_whose_owner_died(owner: _Owner) -> None:
    token = owner.peer.do(
        peers.run,
        "from pgalloc.sharing import transport\n"
        f"result = tuple(transport.offer(kept['mf'].allocate({PAGE})))",
    )
    owner.kill()
    with pytest.raises(OwnerGoneError):
        transport.claim(pgalloc.sharing.tokens.Token(*token))


@pytest.mark.leaks_allowed  # the handle of its process, until there is another request
def test_an_owner_dies_with_requests_under_way(owner: _Owner) -> None:
    """Every one of them ends, as gone."""
    a = owner.share()
    asked, ended = [0] * 4, []

    def ask(number: int) -> None:
        try:
            while True:
                a.file.allocate(PAGE).release()
                asked[number] += 1
        except OwnerGoneError:
            ended.append(True)

    threads = [threading.Thread(target=ask, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: min(asked) >= 3, "asking")
    owner.kill()
    join(threads)
    assert len(ended) == 4
    a.release()


def test_an_owner_that_closes_its_file_before_a_peer_forks(keeper: Peer) -> None:
    """The others of its files are served on."""
    with MemoryFile() as open_on:
        closed = MemoryFile()
        a, b = _stamped(closed), _stamped(open_on)
        keeper.do(peers.keep, "a", a)
        keeper.do(peers.keep, "b", b)
        a.release()
        closed.close()
        status = keeper.do(
            peers.run,
            "import os\npid = os.fork()\n"
            "if pid == 0: os._exit(0 if bytes(memoryview(kept['b'])[:5]) == b'still' else 1)\n"
            "result = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])",
        )
        assert status == 0
        keeper.do(peers.run, f"kept['b'].file.allocate({PAGE}).release()")
        keeper.do(peers.drop, "a", "b")
        b.release()
        eventually(lambda: open_on.leases() == [])


# --- tokens --------------------------------------------------------------------------------------


def test_a_token_is_claimed_once_by_the_first_receiver(mf: MemoryFile, keeper: Peer) -> None:
    a = _stamped(mf)
    token = transport.offer(a)
    claim = (
        "from pgalloc.sharing import transport\nfrom pgalloc.sharing.tokens import Address, Token\n"
        f"t = Token(Address(*{tuple(token.address)!r}), {token.nonce!r})\n"
        "kept['a'] = transport.claim(t)"
    )
    keeper.do(peers.run, claim)
    for again in (lambda: keeper.do(peers.run, claim), lambda: transport.claim(token)):
        with pytest.raises(SharingError, match="claimed already"):
            again()
    assert keeper.do(peers.read, "a", 0, len(STAMP)) == STAMP
    keeper.do(peers.drop, "a")
    a.release()
    eventually(lambda: mf.leases() == [])
