"""Sharing: pages in several processes, counted by their owner."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import peers
import pytest
from conftest import CHUNK, PAGE, stored
from peers import Peer
from waiting import eventually

import pgalloc
from pgalloc import (
    AllocationMode,
    FileRange,
    MemoryFile,
    MemoryKind,
    OutOfMemoryError,
    OwnerGoneError,
    RangeError,
    SharingError,
    _core,
    testing,
)

METHODS = ["spawn", "fork", "forkserver"]


@pytest.fixture(scope="module", autouse=True)
def spawned() -> Iterator[Peer]:
    """One peer for many tests."""
    yield from peers.first()


def leased(memory_file: MemoryFile) -> int:
    return sum(lease.nbytes for lease in memory_file.leases())


def is_free(memory_file: MemoryFile) -> bool:
    memory_file.wait_for_reclaim()
    return not memory_file.segments()


def test_an_owner_that_is_reached_in_another_way_is_the_same(mf: MemoryFile) -> None:
    """One file, and one mapping: however many addresses an owner has had."""
    with mf.allocate(PAGE) as a, Peer() as peer:
        peer.do(peers.keep, "a", a)
        door = _core.broker_descriptors()[5]
        before = _core.broker_address()[1]
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, door)  # as programs do: it is not the broker's any more
        os.close(null)
        _core.broker_set_times(look_s=0.01)
        try:
            eventually(lambda: _core.broker_address()[1] not in (before, b""), "another door")
        finally:
            _core.broker_set_times()
            os.close(door)
        peer.do(peers.keep, "b", a)
        assert peer.do(peers.run, "result = kept['a'].file is kept['b'].file")
        sends = peer.do(peers.run, "result = kept['a'].file._connection.address.path")
        assert sends == _core.broker_address()[1]


# --- on the way ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_there_and_back_by_process_arguments_and_queues(mf: MemoryFile, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    a = mf.allocate(PAGE)
    a.view()[0:5] = b"hello"
    results = context.Queue()
    child = context.Process(target=peers.echo, args=(a, results))
    child.start()
    pid, seen, b = results.get(timeout=60)
    child.join()
    assert (pid, seen) == (child.pid, b"HELLO")
    assert bytes(a.view()[:5]) == b"HELLO"
    assert b.file is mf
    assert bytes(b.view()) == b"b" * (2 * PAGE)
    eventually(lambda: mf.leases() == [], "the return of the leases")
    assert mf.has_unique_ref(a.range)
    assert mf.has_unique_ref(b.range)
    a.release()
    b.release()
    results.close()
    results.join_thread()
    child.close()
    eventually(lambda: is_free(mf))


@pytest.mark.parametrize("method", METHODS)
def test_pools_and_executors(mf: MemoryFile, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        pages = [mf.allocate(PAGE * count) for count in range(1, 9)]
        lengths = list(executor.map(peers.length, pages))
    assert lengths == [PAGE * count for count in range(1, 9)]
    with context.Pool(2) as pool:
        assert pool.map(peers.length, pages) == lengths
        pool.close()
        pool.join()
    del pages
    eventually(lambda: is_free(mf))


def test_what_is_sent_may_be_let_go_of_at_once(mf: MemoryFile, spawned: Peer) -> None:
    spawned.do(peers.keep, "a", _stamped(mf, b"gone here"))
    assert spawned.do(peers.read, "a", 0, 9) == b"gone here"
    spawned.do(peers.drop, "a")
    eventually(lambda: is_free(mf))


def _stamped(memory_file: MemoryFile, stamp: bytes, nbytes: int = PAGE) -> pgalloc.Allocation:
    a = memory_file.allocate(nbytes)
    a.view()[: len(stamp)] = stamp
    return a


def test_what_is_sent_to_oneself_is_ones_own(mf: MemoryFile) -> None:
    receiver, sender = multiprocessing.Pipe()
    with receiver, sender, _stamped(mf, b"x") as a:
        sender.send(a)
        assert [lease.claimed for lease in mf.leases()] == [False]
        with receiver.recv() as b:
            assert b.file is mf
            assert b.range == a.range
            assert not mf.has_unique_ref(a.range)
        assert mf.leases() == []


def test_pickling_elsewhere_is_refused(mf: MemoryFile) -> None:
    with mf.allocate(PAGE) as a:
        for thing in (a, mf, pgalloc.share(1), pgalloc.SharedList([])):
            with pytest.raises(TypeError, match="multiprocessing"):
                pickle.dumps(thing)


def test_a_token_is_claimed_once(mf: MemoryFile) -> None:
    from multiprocessing.reduction import ForkingPickler

    with mf.allocate(PAGE) as a:
        packet = bytes(ForkingPickler.dumps(a))
        pickle.loads(packet).release()
        late = pickle.loads(packet)
        with pytest.raises(SharingError, match="claimed already"):
            late.view()


def test_unclaimed_pages_are_visible_and_can_be_dropped(mf: MemoryFile) -> None:
    receiver, sender = multiprocessing.Pipe()
    with receiver, sender:
        sender.send(mf.allocate(3 * PAGE))
        (lease,) = mf.leases()
        assert (lease.pid, lease.nbytes, lease.claimed) == (os.getpid(), 3 * PAGE, False)
        assert mf.drop_unclaimed(older_than=1000) == 0
        assert mf.drop_unclaimed() == 3 * PAGE
        assert mf.leases() == []
        assert is_free(mf)
        late = receiver.recv()
        with pytest.raises(SharingError):
            late.view()


def test_unclaimed_pages_wait_as_long_as_their_sender_lives(mf: MemoryFile) -> None:
    """Those of this process for ever; those of a peer for a while after its end (row L2)."""
    _core.broker_set_times(after_sender_s=0.0)
    receiver, sender = multiprocessing.Pipe()
    try:
        with receiver, sender, Peer() as peer:
            sender.send(mf.allocate(PAGE))
            peer.do(peers.keep, "a", mf.allocate(2 * PAGE))
            offer = "from pgalloc.sharing import transport\ntransport.offer(kept.pop('a'))"
            peer.do(peers.run, offer)
            offers = [(os.getpid(), PAGE), (peer.pid, 2 * PAGE)]
            eventually(lambda: _unclaimed(mf) == sorted(offers), "both wait")
            peer.kill()
            eventually(lambda: _unclaimed(mf) == offers[:1], "the offer of the dead one ends")
            with receiver.recv() as mine:
                assert mine.nbytes == PAGE
    finally:
        _core.broker_set_times()
    eventually(lambda: is_free(mf))


def _unclaimed(memory_file: MemoryFile) -> list[tuple[int, int]]:
    leases = memory_file.leases()
    return sorted((lease.pid, lease.nbytes) for lease in leases if not lease.claimed)


def test_l7_a_sender_that_is_faster_than_its_receivers_is_told_so(spawned: Peer) -> None:
    with MemoryFile(capacity=16 * PAGE) as mf:
        spawned.do(peers.keep, "a", mf.allocate(PAGE))
        send = """
from multiprocessing import Pipe
ours, theirs = kept['pipe'] = kept.get('pipe') or Pipe()
pages = kept['a'].file.allocate(4096 * 2)
kept['last'] = pages
theirs.send(pages)
"""
        for _ in range(2):
            spawned.do(peers.run, send)
        with pytest.raises(SharingError, match="wait to be claimed"):
            spawned.do(peers.run, send)
        assert spawned.do(peers.read, "last", 0, 1) == b"\0"  # it has it still
        spawned.do(peers.run, "result = kept['pipe'][0].recv().release()")
        spawned.do(peers.run, send)
        assert mf.drop_unclaimed() == 2 * 2 * PAGE
        spawned.do(peers.drop, "a", "last", "pipe")
        eventually(lambda: is_free(mf))


def test_l7_a_child_may_allocate_what_there_is_and_inherits_all(spawned: Peer) -> None:
    with MemoryFile(capacity=16 * PAGE) as mf:
        spawned.do(peers.keep, "a", mf.allocate(9 * PAGE))
        spawned.do(peers.run, f"kept['b'] = kept['a'].file.allocate({6 * PAGE})")
        with mf.allocate(PAGE):
            forked = """
import os
pid = os.fork()
if pid == 0:
    os._exit(bytes(kept['b'])[0] + bytes(kept['a'])[0])
result = os.waitpid(pid, 0)[1]
"""
            assert spawned.do(peers.run, forked) == 0
        spawned.do(peers.drop, "a", "b")
        eventually(lambda: is_free(mf))


# --- what a peer can do --------------------------------------------------------------------------


def test_references_of_a_peer(mf: MemoryFile, spawned: Peer) -> None:
    a = _stamped(mf, b"0123", 4 * PAGE)
    spawned.do(peers.keep, "a", a)
    spawned.do(peers.call_and_keep, "a", "clone", "b")
    spawned.do(peers.call_and_keep, "a", "slice", "c", PAGE, 3 * PAGE)
    spawned.do(peers.keep, "twice", a)
    assert leased(mf) == 4 * PAGE
    spawned.do(peers.run, "import sys; result = kept['a'].file.flush(10)")
    assert [segment.refs for segment in mf.segments()] == [2]
    assert spawned.do(peers.attribute, "c", "nbytes") == 2 * PAGE
    spawned.do(peers.drop, "a", "b", "twice")
    eventually(lambda: [segment.refs for segment in mf.segments()] == [1, 2, 1])
    a.release()
    eventually(lambda: [tuple(s)[:2] for s in mf.segments()] == [(PAGE, 3 * PAGE)])
    spawned.do(peers.run, "kept['v'] = kept.pop('c').view()")  # a view holds the pages by itself
    spawned.do(peers.run, "kept['v'][0] = 7")
    assert leased(mf) == 2 * PAGE
    spawned.do(peers.drop, "v")
    eventually(lambda: is_free(mf))


def test_a_peer_that_misuses_ranges(mf: MemoryFile, spawned: Peer) -> None:
    spawned.do(peers.keep, "a", mf.allocate(2 * PAGE))
    others = mf.allocate(PAGE)
    for call in ("inc_ref", "dec_ref", "has_unique_ref", "decommit"):
        for bad in (others.range, FileRange(0, 1), FileRange(0, 0), FileRange(PAGE, 4 * PAGE)):
            with pytest.raises((RangeError, pgalloc.RefCountError)):
                spawned.do(
                    peers.run, f"kept['a'].file.{call}(__import__('pgalloc').FileRange{tuple(bad)})"
                )
    with pytest.raises(RangeError):
        spawned.do(peers.call, "a", "slice", 1, 2)
    with pytest.raises(PermissionError):
        spawned.do(peers.run, "kept['a'].file.map_range(kept['a'].range, 'rx')")
    with pytest.raises(RangeError):
        spawned.do(
            peers.run, f"kept['a'].file.map_range(__import__('pgalloc').FileRange(0, {2 * CHUNK}))"
        )
    assert (
        bytes(
            spawned.do(
                peers.run,
                "f = kept['a'].file; result = bytes(f.map_range(kept['a'].range, 'r')[:1])",
            )
        )
        == b"\0"
    )
    spawned.do(peers.drop, "a")
    eventually(lambda: leased(mf) == 0)
    others.release()


@pytest.mark.parametrize("mode", list(AllocationMode))
def test_a_peer_allocates(mf: MemoryFile, spawned: Peer, mode: AllocationMode) -> None:
    spawned.do(peers.keep, "a", mf.allocate(PAGE))
    spawned.do(
        peers.run,
        "from pgalloc import *\n"
        f"f = kept['a'].file; kept['b'] = f.allocate({3 * PAGE}, kind=MemoryKind.TMPFS,"
        f" direction=Direction.TOP_DOWN, memcg_id=5, mode=AllocationMode({int(mode)}))",
    )
    (segment,) = [s for s in mf.segments() if s.kind is MemoryKind.TMPFS]
    assert (segment.refs, segment.memcg_id, segment.end - segment.start) == (1, 5, 3 * PAGE)
    assert leased(mf) == 4 * PAGE
    if mode is not AllocationMode.ALLOCATE_ONLY:
        assert stored(mf) >= 3 * PAGE
    for bad in (0, -1, 1, 2**63, 2**70, "x", True):
        with pytest.raises((RangeError, TypeError)):
            spawned.do(peers.run, f"kept['a'].file.allocate({bad!r})")
    with pytest.raises(OutOfMemoryError):
        spawned.do(peers.run, f"kept['a'].file.allocate({2**62})")
    with pytest.raises(AssertionError, match="FillError"):
        spawned.do(peers.run, f"kept['a'].file.allocate({PAGE}, reader=lambda view: 0)")
    filled = "def read(view): view[:] = b'r' * len(view); return len(view)\n"
    spawned.do(peers.run, f"{filled}kept['c'] = kept['a'].file.allocate({PAGE}, reader=read)")
    c = spawned.do(peers.send_back, "c")
    assert bytes(c.view()) == b"r" * PAGE
    spawned.do(peers.drop, "a", "b", "c")
    c.release()
    eventually(lambda: is_free(mf))


def test_a_peer_sees_usage_and_decommits(mf: MemoryFile, spawned: Peer) -> None:
    a = mf.allocate(256 << 20, mode=AllocationMode.ALLOCATE_AND_COMMIT)
    eventually(mf.update_usage)
    spawned.do(peers.keep, "a", a)
    usage = spawned.do(peers.run, "result = kept['a'].file.usage()")
    assert usage == mf.usage()
    assert usage[MemoryKind.ANONYMOUS] == a.nbytes
    spawned.do(peers.call, "a", "decommit")
    assert stored(mf) == 0
    assert mf.usage()[MemoryKind.ANONYMOUS] == 0
    spawned.do(peers.drop, "a")
    eventually(lambda: leased(mf) == 0)
    a.release()


def test_unique_references_are_counted_in_all_processes(mf: MemoryFile, spawned: Peer) -> None:
    a = mf.allocate(PAGE)
    spawned.do(peers.keep, "a", a)
    unique = "result = kept['a'].file.has_unique_ref(kept['a'].range)"
    assert not spawned.do(peers.run, unique)
    a.release()
    assert spawned.do(peers.run, unique)
    spawned.do(peers.call_and_keep, "a", "clone", "b")
    assert not spawned.do(peers.run, unique)
    spawned.do(peers.drop, "a", "b")
    eventually(lambda: is_free(mf))


def test_a_peer_unpins_and_pins(mf: MemoryFile, spawned: Peer) -> None:
    with testing.ManualPressure() as pressure:
        spawned.do(peers.keep, "a", _stamped(mf, b"precious"))
        pressure.demand(1 << 40)
        assert spawned.do(peers.read, "a", 0, 8) == b"precious"
        spawned.do(peers.call, "a", "unpin")
        assert not spawned.do(peers.attribute, "a", "pinned")
        assert spawned.do(peers.call, "a", "pin")
        assert spawned.do(peers.read, "a", 0, 8) == b"precious"
        spawned.do(peers.call_and_keep, "a", "clone", "b")
        spawned.do(peers.call, "a", "unpin")  # another handle has it pinned
        pressure.demand(1 << 40)
        assert spawned.do(peers.call, "a", "pin")
        spawned.do(peers.drop, "b")
        spawned.do(peers.call, "a", "unpin")
        pressure.demand(1 << 40)
        assert not spawned.do(peers.call, "a", "pin")
        assert spawned.do(peers.read, "a", 0, 8) == bytes(8)
        spawned.do(peers.call, "a", "unpin")
        assert spawned.do(peers.read, "a", 0, 8) == bytes(8)  # a view pins
        assert spawned.do(peers.attribute, "a", "pinned")
        spawned.do(peers.write, "a", 0, b"again")
        spawned.do(peers.call, "a", "unpin")
        pressure.demand(1 << 40)
        assert spawned.do(peers.read, "a", 0, 5) == bytes(5)  # gone, and this view pins
        spawned.do(peers.call_and_keep, "a", "clone", "b")
        spawned.do(peers.call, "a", "unpin")  # another handle has it pinned
        assert spawned.do(peers.call, "a", "pin"), "nothing went since the last unpin()"
        spawned.do(peers.drop, "a", "b")
        eventually(lambda: is_free(mf))


# --- lives and deaths ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_peer_that_is_killed(mf: MemoryFile, method: str) -> None:
    a = _stamped(mf, b"mine", 4 * PAGE)
    peer = Peer(method)
    peer.do(peers.keep, "a", a)
    peer.do(peers.run, f"kept['b'] = [kept['a'].file.allocate({PAGE}) for _ in range(100)]")
    peer.do(peers.run, "kept['v'] = kept['a'].view()")
    assert leased(mf) >= 104 * PAGE
    peer.kill()
    eventually(lambda: mf.leases() == [])
    assert mf.has_unique_ref(a.range)
    assert bytes(a.view()[:4]) == b"mine"
    peer.process.close()
    a.release()
    eventually(lambda: is_free(mf))


@pytest.mark.leaks_allowed  # the handle of its process, until there is another request
def test_an_owner_that_is_killed() -> None:
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    owner = context.Process(target=peers.own, args=(theirs,))
    owner.start()
    assert pipe.poll(peers.TIMEOUT_S), "the owner does not start"
    a = pipe.recv()
    b = a.clone()
    assert a.file.leased == PAGE
    owner.kill()
    owner.join()
    assert bytes(a.view()[:9]) == b"inherited"
    a.view()[:4] = b"more"
    assert bytes(b.view()[:4]) == b"more"
    for request in (
        lambda: a.file.allocate(PAGE),
        lambda: a.file.usage(),
        lambda: a.decommit(),
        lambda: a.unpin(),
        lambda: a.file.has_unique_ref(a.range),
        lambda: pipe.send(a),
    ):
        with pytest.raises(OwnerGoneError):
            request()
    a.release()
    b.release()
    pipe.close()
    theirs.close()
    owner.close()


def test_a_file_that_its_owner_closes(spawned: Peer) -> None:
    with MemoryFile() as mf:
        spawned.do(peers.keep, "a", _stamped(mf, b"still here"))
    assert spawned.do(peers.read, "a", 0, 10) == b"still here"
    with pytest.raises(pgalloc.ClosedError):
        spawned.do(peers.run, f"kept['a'].file.allocate({PAGE})")
    spawned.do(peers.drop, "a")


def test_pages_beyond_the_first_chunk(mf: MemoryFile, spawned: Peer) -> None:
    a = mf.allocate(3 * CHUNK)
    for chunk in range(3):
        a.view()[chunk * CHUNK : chunk * CHUNK + 1] = bytes([chunk + 1])
    spawned.do(peers.keep, "a", a)
    sums = "v = memoryview(kept['a']); result = [v[at] for at in range(0, len(v), 1 << 30)]"
    assert spawned.do(peers.run, sums) == [1, 2, 3]
    spawned.do(peers.drop, "a")
    a.release()
    eventually(lambda: is_free(mf))
