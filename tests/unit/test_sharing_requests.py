"""What peers ask for, and what becomes of it when they do not wait for the answer."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import peers
import pytest
from conftest import PAGE
from held_call import HeldCall
from peers import Peer
from waiting import TIMEOUT_S, any_is_inside, eventually, join

import pgalloc
from pgalloc import Cache, MemoryFile, PeerFile, SharingError, testing

INTERRUPTS = 150


class Hit(BaseException):
    """Raised by a signal handler, wherever the program is."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@contextlib.contextmanager
def connected(mf: MemoryFile, path: Path) -> Iterator[PeerFile]:
    """A peer in this process. No fixture: pytest would keep it too long."""
    with mf.serve(path), pgalloc.connect(path) as peer:
        yield peer
    eventually(lambda: mf.leases() == [])


def test_a_pin_that_waits_for_a_discard_leaves_its_neighbour_alone(
    mf: MemoryFile, path: Path
) -> None:
    """What is unpinned right behind it stays an entry of its own."""
    with connected(mf, path) as peer, testing.ManualPressure() as pressure:
        pages = [peer.allocate(PAGE) for _ in range(2)]
        assert pages[0].range.end == pages[1].range.start
        for number, one in enumerate(pages):
            one.view()[:] = bytes([number + 1]) * PAGE
            one.unpin()
        pinned: list[bool] = []

        def pin_first() -> None:
            pinned.append(pages[0].pin())

        with HeldCall("fallocate") as punch:
            discards = threading.Thread(target=lambda: pressure.demand(PAGE))
            discards.start()
            punch.wait()
            pins = threading.Thread(target=pin_first)
            pins.start()
            eventually(lambda: any_is_inside(pin_first.__qualname__))
            for _ in range(500):  # the owner has seen the pin meanwhile, and lets it wait
                peer.usage()
            punch.let_go()
            join([discards, pins])
        assert (pinned, pages[1].pin()) == ([False], True)
        assert bytes(pages[1].view()) == b"\2" * PAGE
        del one
        pages.clear()


@contextlib.contextmanager
def owner_of_a_file(path: Path) -> Iterator[tuple[Peer, int]]:
    """Another process, which serves a file that it keeps as "mf", and its number."""
    with Peer() as owner:
        pid = owner.do(
            peers.run,
            "import os, pgalloc\n"
            "kept['mf'] = pgalloc.MemoryFile()\n"
            f"kept['server'] = kept['mf'].serve({os.fspath(path)!r})\n"
            "result = os.getpid()",
        )
        yield owner, pid


LEASED = "result = sum(lease.nbytes for lease in kept['mf'].leases())"


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: ") T " in Path(f"/proc/{pid}/stat").read_text(), "its stop")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def raising() -> Iterator[None]:
    def hit(number: int, frame: FrameType | None) -> None:
        raise Hit

    before = signal.signal(signal.SIGALRM, hit)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def interrupt(act: Callable[[], Any]) -> int:
    """Call it again and again, with a signal at a random moment. How often that came in time."""
    rng = random.Random(1)
    hits = 0
    for _ in range(INTERRUPTS):
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(5e-6, 2e-4))
                act()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Hit:
            hits += 1
    return hits


# --- interrupted ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("raising")
def test_what_an_interrupted_request_brings_is_given_back(mf: MemoryFile, path: Path) -> None:
    with connected(mf, path) as peer:
        assert interrupt(lambda: peer.allocate(PAGE)) > 0
        eventually(lambda: peer.flush(1) and peer.leased == 0)
        eventually(lambda: mf.leases() == [])
        assert mf.wait_for_reclaim(TIMEOUT_S)
        assert mf.segments() == []


@pytest.mark.usefixtures("raising")
def test_clones_and_slices_leak_no_reference(mf: MemoryFile, path: Path) -> None:
    with connected(mf, path) as peer:
        for pages in (mf.allocate(2 * PAGE), peer.allocate(2 * PAGE)):
            interrupt(pages.clone)
            interrupt(lambda pages=pages: pages.slice(0, PAGE))  # type: ignore[misc]
            assert pages.file.has_unique_ref(pages.range)
            pages.release()


@pytest.mark.usefixtures("raising")
def test_an_interrupted_unpin_loses_nothing_unseen(mf: MemoryFile, path: Path) -> None:
    """Whatever pinned says, contents that were discarded are known as such."""
    with connected(mf, path) as peer:
        rng = random.Random(2)
        for _ in range(INTERRUPTS):
            pages = peer.allocate(PAGE)
            pages.view()[:4] = b"kept"
            for act in (pages.unpin, pages.pin, pages.unpin):
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, rng.uniform(5e-6, 2e-4))
                        act()
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Hit:
                    pass
            assert peer.flush(TIMEOUT_S)
            pinned = pages.pinned
            with testing.ManualPressure() as pressure:
                pressure.demand(1 << 30)
            intact = pages.pin()
            assert intact or not pinned
            assert bytes(pages.view()[:4]) == (b"kept" if intact else bytes(4))
            pages.release()


@pytest.mark.usefixtures("raising")
def test_serving_leaves_nothing_behind(mf: MemoryFile, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    names = iter(range(10**9))

    def serve() -> None:
        mf.serve(tmp_path / f"socket{next(names)}").close()

    assert interrupt(serve) > 0
    eventually(lambda: os.listdir(tmp_path) == [])
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


CALLS: dict[str, Callable[[PeerFile, pgalloc.Allocation], Any]] = {
    "allocate": lambda peer, pages: peer.allocate(PAGE),
    "allocate_range": lambda peer, pages: peer.allocate_range(PAGE),
    "clone": lambda peer, pages: pages.clone(),
    "unpin": lambda peer, pages: pages.unpin(),
    "decommit": lambda peer, pages: pages.decommit(),
    "usage": lambda peer, pages: peer.usage(),
    "has_unique_ref": lambda peer, pages: peer.has_unique_ref(pages.range),
}


def holds_a_page(peer: PeerFile) -> bool:
    """Whether that is all, and the owner knows.

    A late answer comes with the first flush, and what it brought is back with the second.
    """
    return peer.flush(TIMEOUT_S) and peer.leased == PAGE and peer.flush(TIMEOUT_S)


@pytest.mark.usefixtures("raising")
@pytest.mark.parametrize("name", [*CALLS, "pin"])
def test_a_signal_that_interrupts_no_wait_is_heeded_when_the_wait_is_over(
    path: Path, name: str
) -> None:
    """Another thread takes it; the handler runs in the main thread, in that call."""
    with owner_of_a_file(path) as (owner, pid), pgalloc.connect(path) as peer:
        pages = peer.allocate(PAGE)
        if name in ("clone", "pin"):
            pages.unpin()

        def call() -> None:
            CALLS.get(name, lambda peer, pages: pages.pin())(peer, pages)

        def take_a_signal() -> None:
            eventually(lambda: any_is_inside(call.__qualname__))
            signal.pthread_kill(threading.get_ident(), signal.SIGALRM)
            os.kill(pid, signal.SIGCONT)

        taker = threading.Thread(target=take_a_signal)
        with stopped(pid):
            taker.start()
            with pytest.raises(Hit):
                call()
        taker.join()
        eventually(lambda: holds_a_page(peer))
        assert owner.do(peers.run, LEASED) == PAGE
        assert pages.pin()
        assert peer.has_unique_ref(pages.range)
        pages.release()


@pytest.mark.parametrize("ends", ["close", "del"])
def test_what_a_late_answer_brings_is_given_back_though_the_file_has_gone(
    path: Path, ends: str
) -> None:
    """Also if this process maps the file by another connection."""
    with owner_of_a_file(path) as (owner, pid), pgalloc.connect(path) as other:
        pages = other.allocate(PAGE)
        peer = pgalloc.connect(path, timeout=0.05)
        with stopped(pid):
            with pytest.raises(SharingError):
                peer.allocate(2 * PAGE)
            if ends == "close":
                peer.close()
            del peer
            gc.collect()
        eventually(lambda: owner.do(peers.run, LEASED) == PAGE)
        pages.release()


@pytest.mark.usefixtures("raising")
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("name", [*CALLS, "pin"])
def test_a_handler_may_fork_while_an_owner_is_waited_for(
    path: Path, name: str, raises: bool
) -> None:
    """The request goes on in the parent. The child is told, or gets what its handler raises."""
    with owner_of_a_file(path) as (owner, pid), pgalloc.connect(path) as peer:
        pages = peer.allocate(PAGE)
        if name in ("clone", "pin"):
            pages.unpin()
        children = []

        def call() -> Any:
            return CALLS.get(name, lambda peer, pages: pages.pin())(peer, pages)

        def fork(number: int, frame: FrameType | None) -> None:
            os.kill(pid, signal.SIGCONT)  # or the child would have to wait for its leases
            child = os.fork()
            if child != 0:
                children.append(child)
            elif raises:
                raise Hit

        def take_a_signal() -> None:
            eventually(lambda: any_is_inside(call.__qualname__))
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

        signal.signal(signal.SIGALRM, fork)  # until the fixture puts back what was there
        here = os.getpid()
        result: Any = None
        taker = threading.Thread(target=take_a_signal)
        with stopped(pid):
            taker.start()
            try:
                result = call()
            except BaseException as error:
                if os.getpid() != here:
                    os._exit(not isinstance(error, Hit if raises else pgalloc.ForkedError))
                raise
            if os.getpid() != here:
                os._exit(2)
        taker.join()
        (child,) = children
        ended: list[int] = []
        eventually(lambda: ended.extend(os.waitpid(child, os.WNOHANG)) or ended[-2], "the child")
        assert os.waitstatus_to_exitcode(ended[-1]) == 0
        if name == "allocate_range":
            peer.dec_ref(result)
        del result
        eventually(lambda: holds_a_page(peer))
        eventually(lambda: owner.do(peers.run, LEASED) == PAGE)


def test_a_handler_may_ask_while_a_request_waits(mf: MemoryFile, path: Path) -> None:
    with connected(mf, path) as peer:
        errors: list[Exception] = []

        def act(*_: Any) -> None:
            try:
                pages = peer.allocate(PAGE)
                other = pages.clone()
                pages.unpin()
                other.release()
                pages.pin()
                pages.release()
            except Exception as error:
                errors.append(error)

        before = signal.signal(signal.SIGALRM, act)
        rng = random.Random(3)
        try:
            for _ in range(INTERRUPTS):
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(5e-6, 2e-4))
                act()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert errors == []
        assert peer.flush(TIMEOUT_S)
        assert peer.leased == 0


# --- not answered --------------------------------------------------------------------------------


def test_a_peer_is_answered_while_its_owner_keeps_the_gil(mf: MemoryFile) -> None:
    with Peer() as peer:
        peer.do(peers.keep, "a", mf.allocate(PAGE))
        code = f"""
import time
answered, end = 0, time.monotonic() + 0.5
while time.monotonic() < end:
    kept["a"].file.allocate({PAGE}).release()
    answered += 1
result = answered
"""
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(peer.do(peers.run, code)))
        asking.start()
        ctypes.PyDLL(None).usleep(1_000_000)  # with the GIL
        asking.join()
        assert answers[0] > 0


def test_a_request_that_takes_too_long_fails_alone(path: Path) -> None:
    """What it would have brought is given back when the answer comes."""
    with owner_of_a_file(path) as (owner, pid), pgalloc.connect(path, timeout=0.2) as peer:
        kept = peer.allocate(PAGE)
        view = kept.view()
        view[:4] = b"kept"
        with stopped(pid):
            with pytest.raises(SharingError, match="not answered in time"):
                peer.allocate(PAGE)
            assert bytes(view[:4]) == b"kept"
        eventually(lambda: holds_a_page(peer))
        eventually(lambda: owner.do(peers.run, LEASED) == PAGE)
        peer.allocate(PAGE).release()
        view.release()


# --- views ---------------------------------------------------------------------------------------


def test_a_flush_waits_as_long_as_it_was_told(path: Path) -> None:
    with owner_of_a_file(path) as (_, pid), pgalloc.connect(path, timeout=TIMEOUT_S) as peer:
        peer.allocate(PAGE).release()
        with stopped(pid):
            assert not peer.flush(timeout=0.01)
            assert not peer.flush(timeout=0)
        assert peer.flush(timeout=TIMEOUT_S)
    with owner_of_a_file(path) as (_, pid), pgalloc.connect(path, timeout=0.01) as peer:
        with stopped(pid), pytest.raises(SharingError):
            peer.flush()
        assert peer.flush(timeout=TIMEOUT_S)


def test_views_keep_their_pages_after_close(mf: MemoryFile, path: Path) -> None:
    with Cache("1M") as cache, mf.serve(path), cache.serve(f"{path}.cache"):
        cache["k"] = b"v" * 5000
        with Peer() as peer:
            peer.do(
                peers.run,
                f"""
import pgalloc
with pgalloc.connect({os.fspath(path)!r}) as file:
    kept["view"] = file.allocate({PAGE}).view()
    kept["view"][:4] = b"mine"
with pgalloc.Cache.connect({os.fspath(path) + ".cache"!r}) as reader:
    kept["value"] = reader["k"]
""",
            )
            for n in range(3):
                cache["k" if n == 0 else f"k{n}"] = b"z" * 5000
            others = [mf.allocate(PAGE) for _ in range(3)]
            for pages in others:
                pages.view()[:4] = b"next"
            seen = "result = bytes(kept['view'][:4]), bytes(kept['value'][:4])"
            assert peer.do(peers.run, seen) == (b"mine", b"vvvv")
            peer.do(peers.run, "kept['view'][:4] = b'mine'; kept.clear()")
            eventually(lambda: mf.leases() == [])
            assert [bytes(pages.view()[:4]) for pages in others] == [b"next"] * 3


# --- what a peer cannot do -----------------------------------------------------------------------


def test_the_memory_cannot_be_shrunk(mf: MemoryFile, path: Path) -> None:
    with connected(mf, path) as peer:
        pages = mf.allocate(PAGE)
        pages.view()[:2] = b"hi"
        for fd in (mf.fileno(), peer.fileno()):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, 0)
            own = os.dup(fd)
            with pytest.raises(PermissionError):
                MemoryFile(own)
            os.close(own)
        assert os.fstat(mf.fileno()).st_mode & 0o777 == 0o600
        assert bytes(pages.view()[:2]) == b"hi"


def test_limits_of_a_peer(mf: MemoryFile, path: Path) -> None:
    limits = pgalloc.Limits(nbytes=4 * PAGE, unpinned=2)
    with mf.serve(path, limits=limits), pgalloc.connect(path) as peer:
        held = [peer.allocate(PAGE) for _ in range(4)]
        with pytest.raises(pgalloc.OutOfMemoryError, match="4"):
            peer.allocate(PAGE)
        held.pop().release()
        assert peer.flush(TIMEOUT_S)
        for pages in held[:2]:
            pages.unpin()
        with pytest.raises(SharingError, match="2 ranges"):
            held[2].unpin()
        assert held[2].pinned
        held[0].pin()
        held[2].unpin()
        del held, pages


def test_l7_connections_of_one_process_share_its_limits(mf: MemoryFile, path: Path) -> None:
    limits = pgalloc.Limits(nbytes=6 * PAGE, unpinned=2)
    with mf.serve(path, limits=limits), contextlib.ExitStack() as ends:
        peers = [ends.enter_context(pgalloc.connect(path)) for _ in range(3)]
        held = [ends.enter_context(peer.allocate(PAGE)) for peer in peers * 2]
        with pytest.raises(pgalloc.OutOfMemoryError, match=f"has {6 * PAGE} and asks"):
            peers[0].allocate(PAGE)
        for pages in held[:2]:
            pages.unpin()
        for pages in held[2:]:
            with pytest.raises(SharingError, match="2 ranges"):
                pages.unpin()
        held[0].pin()
        held[2].unpin()


def test_l7_what_a_peer_has_sent_is_limited(mf: MemoryFile, path: Path) -> None:
    with (
        mf.serve(path, limits=pgalloc.Limits(unclaimed=3 * PAGE)),
        pgalloc.connect(path) as peer,
        peer.allocate(2 * PAGE) as first,
        peer.allocate(2 * PAGE) as second,
    ):
        for _ in range(2):  # the same pages count once
            peer._remote_offer(first.range)
        with pytest.raises(SharingError, match=f"cannot send {2 * PAGE} bytes: {2 * PAGE} bytes"):
            peer._remote_offer(second.range)
        assert peer.has_unique_ref(second.range)
        assert mf.drop_unclaimed() == 2 * 2 * PAGE
        peer._remote_offer(second.range)
        mf.drop_unclaimed()


@pytest.mark.parametrize("limit", ["capacity", "max_allocatable_bytes"])
def test_l7_by_default_a_peer_takes_half_of_a_file(path: Path, limit: str) -> None:
    options: dict[str, Any] = {limit: 8 * PAGE}
    with MemoryFile(**options) as mf:
        with mf.serve(path), pgalloc.connect(path) as peer:
            with pytest.raises(pgalloc.OutOfMemoryError, match=f"hold {4 * PAGE} bytes"):
                peer.allocate(5 * PAGE)
            half = peer.allocate(4 * PAGE)
            with pytest.raises(pgalloc.OutOfMemoryError, match=f"has {4 * PAGE} and asks"):
                peer.allocate(PAGE)
            mf.allocate(4 * PAGE).release()  # the others'
            half.release()
            assert peer.flush(TIMEOUT_S)
        assert mf.wait_for_reclaim(TIMEOUT_S)
        without_limit = pgalloc.Limits(nbytes=2**63)
        with mf.serve(path, limits=without_limit), pgalloc.connect(path) as peer:
            peer.allocate(8 * PAGE).release()
            assert peer.flush(TIMEOUT_S)


# --- caches --------------------------------------------------------------------------------------


def test_a_reader_takes_the_keys_that_a_cache_takes(path: Path) -> None:
    with Cache("1M") as cache, cache.serve(path), Cache.connect(path) as reader:
        for key in ("k", "L" * 70_000, ("t", 1, b"x" * 200_000)):
            cache[key] = b"value"
            assert bytes(reader[key]) == b"value"
            assert key in reader
        assert "other" not in reader
        assert set(reader) == set(cache)
        assert len(reader) == 3


def raised_by(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except (SharingError, MemoryError, OSError) as error:
        return error
    return None


WITH_LITTLE_MEMORY = """
import resource, sys, pgalloc
cache = pgalloc.Cache("8M")
cache["k"] = b"value"
server = cache.serve(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    size = int(open("/proc/self/statm").read().split()[0]) * pgalloc.PAGE_SIZE
    limit = size + int(line) if int(line) >= 0 else -1
    resource.setrlimit(resource.RLIMIT_AS, (limit, -1))
    print("limited", flush=True)
"""


def test_an_owner_without_memory_for_a_reader_serves_others(path: Path) -> None:
    command = [sys.executable, "-c", WITH_LITTLE_MEMORY, os.fspath(path)]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"

        def limit(nbytes: int) -> None:
            print(nbytes, file=owner.stdin, flush=True)
            assert owner.stdout.readline() == "limited\n"  # type: ignore[union-attr]

        with Cache.connect(path) as other:
            assert bytes(other["k"]) == b"value"
            for nbytes in (0, 1 << 19, 1 << 20, 1 << 21, 3 << 20):
                limit(nbytes)
                for _ in range(3):
                    error = raised_by(lambda: Cache.connect(path).close())
                    assert error is None or str(error)
                limit(-1)
                assert bytes(other["k"]) == b"value"
        owner.stdin.close()


HOLDS_ITS_GIL = """
import ctypes, sys, pgalloc
cache = pgalloc.Cache("8M")
for number in range(1000):
    cache[number] = b"%d" % number * 200
server = cache.serve(sys.argv[1])
print("ready", flush=True)
ctypes.PyDLL(None).pause()
"""


def test_an_owner_that_holds_its_gil_is_read_all_the_while(path: Path) -> None:
    command = [sys.executable, "-c", HOLDS_ITS_GIL, os.fspath(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        with Cache.connect(path) as reader:
            views = [reader[number] for number in range(1000)]
            assert reader.get("other") is None
            with stopped(owner.pid):
                assert bytes(reader[7]) == b"7" * 200
            owner.kill()
            owner.wait()
            # What was there when it ended is still found.
            assert bytes(reader[999]) == b"999" * 200
            assert all(bytes(view) == b"%d" % n * 200 for n, view in enumerate(views))


# --- signals -------------------------------------------------------------------------------------


def test_core_threads_take_no_signals(mf: MemoryFile, path: Path) -> None:
    """Python wants them in its own threads: one that comes elsewhere interrupts no wait."""
    with connected(mf, path) as peer:
        peer.allocate(PAGE).release()  # starts the link's thread
        assert peer.flush(TIMEOUT_S)
        python = {thread.native_id for thread in threading.enumerate()}
        others = {int(task) for task in os.listdir("/proc/self/task")} - python
        quiet = 0
        for task in others:
            status = Path(f"/proc/self/task/{task}/status").read_text()
            blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
            quiet += bool(blocked & 1 << (signal.SIGALRM - 1))
        assert quiet >= 3  # the reclaimer, the broker and the link, at least
