"""A forked child is a peer of its parent: it keeps its pages, and can do what peers can."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import peers
import pytest
from children import Child, in_child
from conftest import CHUNK, PAGE, stored
from peers import Peer
from waiting import TIMEOUT_S, eventually, join

import pgalloc
from pgalloc import (
    AllocationMode,
    ClosedError,
    FileRange,
    ForkedError,
    MemoryFile,
    RangeError,
    _core,
    testing,
)
from pgalloc._core import _testing
from pgalloc.sharing import connection, files


class Steps:
    """A parent and its child take turns."""

    def __init__(self) -> None:
        self._to_child, self._to_parent = os.pipe(), os.pipe()

    def let(self) -> None:
        """The other side may go on."""
        os.write(self._mine[1], b".")

    def wait(self) -> None:
        """Until the other side lets this one."""
        assert select.select([self._theirs[0]], [], [], TIMEOUT_S)[0], "the other side hangs"
        assert os.read(self._theirs[0], 1) == b"."

    @property
    def _in_child(self) -> bool:
        return os.getpid() != self._pid

    _pid = 0

    def start(self, run: Callable[[], None]) -> Child:
        self._pid = os.getpid()
        return Child(run)

    @property
    def _mine(self) -> tuple[int, int]:
        return self._to_parent if self._in_child else self._to_child

    @property
    def _theirs(self) -> tuple[int, int]:
        return self._to_child if self._in_child else self._to_parent

    def close(self) -> None:
        for descriptor in (*self._to_child, *self._to_parent):
            os.close(descriptor)


@pytest.fixture
def steps() -> Any:
    taken = Steps()
    yield taken
    taken.close()


def leased(mf: MemoryFile) -> int:
    return sum(lease.nbytes for lease in mf.leases())


def test_a_childs_views_stay_what_they_are(mf: MemoryFile, steps: Steps) -> None:
    """The parent lets go of everything, and hands the pages out again if it can."""
    a = mf.allocate(4 * PAGE)
    a.view()[:] = b"i" * (4 * PAGE)
    view = a.view()

    def child() -> None:
        steps.wait()
        assert bytes(view) == b"i" * (4 * PAGE)
        assert bytes(a.view()[:1]) == b"i"

    forked = steps.start(child)
    view.release()
    a.release()
    mf.wait_for_reclaim()
    assert stored(mf) == 4 * PAGE
    assert leased(mf) == 4 * PAGE
    with mf.allocate(4 * PAGE, mode=AllocationMode.ALLOCATE_AND_WRITE_POPULATE) as other:
        other.view()[:] = b"o" * (4 * PAGE)
        steps.let()
        forked.wait()
    eventually(lambda: mf.leases() == [])
    mf.wait_for_reclaim()
    assert stored(mf) == 0


def test_a_child_that_dies_leaves_nothing(mf: MemoryFile, steps: Steps) -> None:
    a = mf.allocate(PAGE)

    def child() -> None:
        kept = [a.clone(), mf.allocate(8 * PAGE)]
        steps.let()
        signal.pause()
        del kept

    forked = steps.start(child)
    steps.wait()
    (lease,) = mf.leases()
    assert (lease.pid, lease.nbytes, lease.claimed) == (forked.pid, 9 * PAGE, True)
    os.kill(forked.pid, signal.SIGKILL)
    os.waitpid(forked.pid, 0)
    eventually(lambda: mf.leases() == [])
    assert mf.has_unique_ref(a.range)
    a.release()


def test_a_child_does_what_peers_do(mf: MemoryFile) -> None:
    a = mf.allocate(4 * PAGE)
    a.view()[:4] = b"from"

    def child() -> None:
        clone, part = a.clone(), a.slice(PAGE, 2 * PAGE)
        assert not mf.has_unique_ref(a.range)
        b = mf.allocate(2 * CHUNK, mode=AllocationMode.ALLOCATE_ONLY)
        b.view()[-1] = 7
        c = mf.allocate_range(PAGE, kind=pgalloc.MemoryKind.TMPFS)
        mf.inc_ref(c)
        mf.dec_ref(c)
        mf.dec_ref(c)
        with pytest.raises(RangeError):
            mf.dec_ref(c)
        with pytest.raises(RangeError):
            mf.inc_ref(FileRange(0, CHUNK))
        with pytest.raises(pgalloc.OutOfMemoryError):
            mf.allocate(2**62)
        filled = mf.allocate(PAGE, reader=lambda view: len(view))
        assert mf.usage() is not None
        a.decommit()
        assert bytes(a.view()[:4]) == bytes(4)
        a.view()[:2] = b"to"
        a.unpin()  # but others hold it
        assert a.pin()
        for handle in (clone, part, b, filled, a):
            handle.release()
        assert mf._connection.flush(30)  # type: ignore[attr-defined]
        mf.close()
        assert mf.closed
        with pytest.raises(pgalloc.ClosedError):
            mf.allocate(PAGE)

    in_child(child)
    assert bytes(a.view()[:2]) == b"to"
    eventually(lambda: mf.leases() == [])
    assert mf.has_unique_ref(a.range)
    testing.verify(mf)
    a.release()


def test_a_child_lets_go_of_what_it_is_peer(mf: MemoryFile, steps: Steps) -> None:
    held = [mf.allocate(PAGE) for _ in range(100)]

    def child() -> None:
        steps.wait()
        held.clear()
        steps.let()
        steps.wait()

    forked = steps.start(child)
    assert leased(mf) == 100 * PAGE
    steps.let()
    steps.wait()
    eventually(lambda: leased(mf) == 0)
    steps.let()
    forked.wait()
    held.clear()


def test_what_was_not_pinned_stays_the_parents(mf: MemoryFile, steps: Steps) -> None:
    """A child must not keep its parent from giving memory up."""
    cold, warm = mf.allocate(PAGE), mf.allocate(PAGE)
    cold.view()[:4] = warm.view()[:4] = b"data"
    cold.unpin()

    def child() -> None:
        with pytest.raises(ForkedError):
            cold.view()
        with pytest.raises(ForkedError):
            cold.pin()
        steps.wait()
        assert bytes(warm.view()[:4]) == b"data"
        cold.release()

    forked = steps.start(child)
    with testing.ManualPressure() as pressure:
        assert pressure.demand(1 << 40) == PAGE
    steps.let()
    forked.wait()
    assert not cold.pin()
    assert bytes(warm.view()[:4]) == b"data"
    eventually(lambda: mf.leases() == [])
    cold.release()
    warm.release()


def test_grandchildren(mf: MemoryFile, steps: Steps) -> None:
    a = mf.allocate(PAGE)
    a.view()[:3] = b"old"

    def child() -> None:
        own = mf.allocate(PAGE)
        own.view()[:3] = b"new"

        def grandchild() -> None:
            assert bytes(a.view()[:3]) + bytes(own.view()[:3]) == b"oldnew"
            third = mf.allocate(PAGE)
            third.view()[:3] = b"tri"
            own.clone().release()
            assert len({own.range, a.range, third.range}) == 3

        forked = Child(grandchild)
        own.release()
        forked.wait()

    forked = steps.start(child)
    forked.wait()
    eventually(lambda: mf.leases() == [])
    a.release()


def test_what_a_child_has_closed_is_closed_in_its_children(mf: MemoryFile, steps: Steps) -> None:
    a = mf.allocate(PAGE)

    def child() -> None:
        mf.close()

        def grandchild() -> None:
            assert mf.closed
            with pytest.raises(ClosedError):
                mf.allocate(PAGE)
            with pytest.raises((ClosedError, ForkedError)):
                a.view()
            a.release()

        Child(grandchild).wait()

    steps.start(child).wait()
    a.view()[:1] = b"x"
    assert not mf.closed


def test_a_child_of_a_child_outlives_it(mf: MemoryFile, steps: Steps) -> None:
    a = mf.allocate(PAGE)
    a.view()[:3] = b"old"

    def child() -> None:
        def grandchild() -> None:
            steps.wait()
            assert bytes(a.clone().view()[:3]) == b"old"
            steps.let()

        if os.fork() == 0:
            try:
                grandchild()
            finally:
                os._exit(0)

    forked = steps.start(child)
    forked.wait()
    a.release()
    mf.wait_for_reclaim()
    assert stored(mf) == PAGE
    steps.let()
    steps.wait()
    eventually(lambda: mf.leases() == [])
    eventually(lambda: stored(mf) == 0)


def test_orphans_keep_their_pages() -> None:
    """The owner dies; its child reads on, and is told when it asks."""
    program = """
import os, sys, pgalloc
mf = pgalloc.MemoryFile()
a = mf.allocate(4096)
a.view()[:6] = b"orphan"
ready, go = os.pipe()
if os.fork() == 0:
    os.close(go)
    os.read(ready, 1)
    assert bytes(a.view()[:6]) == b"orphan"
    for act in (lambda: mf.allocate(4096), mf.usage, a.decommit):
        try:
            act()
        except pgalloc.OwnerGoneError:
            continue
        raise AssertionError
    a.release()
    print("well", flush=True)
    os._exit(0)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == "well\n", done.stderr


@pytest.mark.parametrize("call", ["socketpair", "fstat", "sendmsg"])
def test_without_leases_a_child_is_told(mf: MemoryFile, call: str) -> None:
    """No descriptor is left for its connection. It cannot touch what may be others' soon."""
    a = mf.allocate(PAGE)
    view = a.view()
    view[0] = 5

    def child() -> None:
        _testing.remove_fault()
        for act in (lambda: mf.allocate(PAGE), a.clone, a.decommit, a.view, lambda: mf.close()):
            with pytest.raises(ForkedError):
                act()
        a.release()

        def touches() -> None:
            view[0]

        reader = os.fork()
        if reader == 0:
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # without a report
            touches()
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(reader, 0)[1]) == signal.SIGSEGV

    with testing.FaultPlan(call, errno.EMFILE):
        forked = Child(child)
    _core.guard_park()  # it may have got no descriptor either, and tries again
    _core.guard_resume()
    forked.wait()
    eventually(lambda: mf.leases() == [])
    assert view[0] == 5
    view.release()
    a.release()


def test_a_child_that_cannot_have_files_keeps_its_views(mf: MemoryFile, steps: Steps) -> None:
    """And so do its children: the leases are there, only handles are not."""
    a = mf.allocate(PAGE)
    view = a.view()
    view[:4] = b"kept"

    def child() -> None:
        _testing.remove_fault()
        with pytest.raises(ForkedError):
            mf.allocate(PAGE)
        steps.let()
        steps.wait()
        assert bytes(view[:4]) == b"kept"

        def grandchild() -> None:
            assert bytes(view[:4]) == b"kept"
            assert bytes(a.view()[:4]) == b"kept"

        in_child(grandchild)

    with testing.FaultPlan("duplicate", errno.EMFILE):
        forked = steps.start(child)
    steps.wait()
    view.release()
    a.release()
    mf.wait_for_reclaim()
    assert stored(mf) == PAGE
    steps.let()
    forked.wait()
    eventually(lambda: mf.leases() == [])
    mf.wait_for_reclaim()
    assert stored(mf) == 0


@pytest.mark.parametrize("owned", [True, False], ids=["shared", "the child's alone"])
def test_an_image_does_not_record_leases(mf: MemoryFile, steps: Steps, owned: bool) -> None:
    """No owner could adopt them. A page that only a child still has keeps one reference."""
    a, b = mf.allocate(3 * PAGE), mf.allocate(2 * PAGE)
    mf.inc_ref(FileRange(a.range.start, a.range.start + PAGE))
    child = steps.start(steps.wait)
    eventually(lambda: leased(mf) == 5 * PAGE, "the child's leases")
    if not owned:
        b.release()
    image = io.BytesIO()
    mf.save(image)
    steps.let()
    child.wait()
    image.seek(0)
    with MemoryFile.restore(image) as restored:
        left = {(row.start, row.end): row.refs for row in restored.unadopted()}
        whole, first = a.range, a.range.start + PAGE
        assert left.pop((whole.start, first)) == 2
        rest = {page for row in left for page in range(*row, PAGE)}
        assert rest == {*range(first, whole.end, PAGE), *range(*b.range, PAGE)}
        assert set(left.values()) == {1}
        assert testing.verify(restored) is None


def test_a_child_gets_leases_on_what_its_parent_has_handles_on(mf: MemoryFile) -> None:
    """Not on what only another child holds: no handle of its own would ever give that back."""
    first, second = Steps(), Steps()
    kept = mf.allocate(PAGE)

    def allocate() -> None:
        b = mf.allocate(3 * PAGE)
        first.let()
        first.wait()
        b.release()

    one = first.start(allocate)
    first.wait()
    two = second.start(second.wait)
    eventually(lambda: {lease.pid for lease in mf.leases()} == {one.pid, two.pid}, "both children")
    assert {lease.pid: lease.nbytes for lease in mf.leases()} == {one.pid: 4 * PAGE, two.pid: PAGE}
    for steps, child in ((first, one), (second, two)):
        steps.let()
        child.wait()
        steps.close()
    eventually(lambda: leased(mf) == 0, "their leases back")
    mf.wait_for_reclaim()
    assert [segment.refs for segment in mf.segments()] == [1]
    kept.release()


# --- the first use of connections in a child -----------------------------------------------------


@pytest.fixture
def other_owner() -> Iterator[Peer]:
    with Peer() as owner:
        make = "import pgalloc; kept['mf'] = pgalloc.MemoryFile(capacity=1 << 30)"
        owner.do(peers.run, make)
        yield owner
    peers.see_ends()


def pages_of(owner: Peer, mf: MemoryFile) -> list[pgalloc.Allocation]:
    make = "result = [kept['mf'].allocate(4096) for _ in range(4)]"
    return [*owner.do(peers.run, make), *(mf.allocate(PAGE) for _ in range(4))]


def use(pages: pgalloc.Allocation) -> None:
    """Sends it to itself: that asks the owner."""
    with pickle.loads(ForkingPickler.dumps(pages)) as received:
        assert bytes(received.view()[:1]) == b"\0"


def test_threads_of_a_child_use_what_it_was_born_with_at_once(
    mf: MemoryFile, other_owner: Peer
) -> None:
    everything = pages_of(other_owner, mf)

    def child() -> None:
        sys.setswitchinterval(1e-6)
        failed: list[BaseException] = []
        together = threading.Barrier(len(everything))

        def work(pages: pgalloc.Allocation) -> None:
            try:
                together.wait()
                use(pages)
                MemoryFile(capacity=CHUNK).close()
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(pages,)) for pages in everything]
        for thread in threads:
            thread.start()
        join(threads)
        assert not failed, failed

    for _ in range(15):
        in_child(child)
    for pages in everything:
        pages.release()


def test_what_interrupts_the_first_use_in_a_child_leaves_nothing_half_done(
    mf: MemoryFile, other_owner: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that raises at each step, and one that uses pages itself."""
    everything = pages_of(other_owner, mf)
    steps = {"_inherited": connection, "alive": files, "_forget_parents": connection}

    def child(name: str, act: Callable[[], None], number: int) -> None:
        calls = 0
        real = getattr(steps[name], name)

        def interrupted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                act()
            return real(*arguments, **options)

        monkeypatch.setattr(steps[name], name, interrupted)
        with contextlib.suppress(InterruptedError):
            use(everything[0])
        for pages in everything:
            use(pages)
        assert connection.settled() is connection.settled()

    def fail() -> None:
        raise InterruptedError

    for name in steps:
        for act in (fail, lambda: use(everything[-1]), lambda: use(everything[0])):
            for number in (1, 2):
                in_child(partial(child, name, act, number))
    for pages in everything:
        pages.release()


def test_a_child_has_no_socket_that_is_being_connected(tmp_path: Path) -> None:
    """The owner would take the child for the peer, and keep what a dead one held."""

    def sockets() -> set[str]:
        found = set()
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/self/fd/{name}"))
        return {name for name in found if name.startswith("socket:")}

    path = os.fspath(tmp_path / "socket")
    kind = socket.SOCK_SEQPACKET
    with (
        socket.socket(socket.AF_UNIX, kind) as busy,
        socket.socket(socket.AF_UNIX, kind) as waiting,
    ):
        busy.bind(path)
        busy.listen(0)
        waiting.connect(path)
        before = sockets()

        def connect() -> None:
            with contextlib.suppress(pgalloc.OwnerGoneError):
                pgalloc.connect(path, timeout=TIMEOUT_S)

        connecting = threading.Thread(target=connect)
        connecting.start()
        threads = eventually(lambda: sockets() - before, "a socket of the thread's")

        def child() -> None:
            assert not sockets() & threads  # but those that it was born with

        in_child(child)
        assert sockets() >= threads
        busy.close()  # refuses those that wait
        waiting.close()
        join([connecting])
    assert sockets() <= before


def test_a_process_that_is_a_peer_of_its_own_forks(mf: MemoryFile, tmp_path: Path) -> None:
    """Its own broker gives the child its leases, though its threads end before a fork."""
    path = tmp_path / "socket"
    with mf.serve(path), pgalloc.connect(path) as peer, peer.allocate(PAGE) as a:
        view = a.view()

        def child() -> None:
            assert bytes(view[:5]) == b"hello"
            assert not peer.has_unique_ref(a.range)  # its owner answers
            view[:5] = b"child"
            a.release()

        for _ in range(3):
            view[:5] = b"hello"
            in_child(child)
            assert bytes(view[:5]) == b"child"
        view.release()
    eventually(lambda: mf.leases() == [], "the end of leases")


TWO_THAT_FORK = """
import os, sys, pgalloc
mine, other = sys.argv[1:3]
mf = pgalloc.MemoryFile()
with mf.serve(mine):
    print("served", flush=True)
    sys.stdin.readline()
    with pgalloc.connect(other) as peer, peer.allocate(pgalloc.PAGE_SIZE) as a:
        view = a.view()
        view[:5] = b"hello"
        print("connected", flush=True)
        sys.stdin.readline()
        for number in range(20):
            pid = os.fork()
            if pid == 0:
                os._exit(bytes(view[:5]) != b"hello" or peer.has_unique_ref(a.range))
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, number
        del view
    print("done", flush=True)
    sys.stdin.readline()
"""


def test_two_that_are_peers_of_each_other_fork(tmp_path: Path) -> None:
    """At once: each asks the other for leases for its child."""
    paths = [tmp_path / "one", tmp_path / "two"]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_THAT_FORK, *order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for order in (paths, reversed(paths))
    ]
    for word in ("served", "connected", "done"):
        for each in both:
            assert each.stdout is not None
            assert each.stdout.readline() == f"{word}\n"
        for each in both:
            assert each.stdin is not None
            print(file=each.stdin, flush=True)
    for each in both:
        with each:
            assert each.wait(TIMEOUT_S) == 0
