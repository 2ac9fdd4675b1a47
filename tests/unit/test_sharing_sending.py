"""What is sent: offers of a pickle that fails, and pages of a file that was connected to."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pytest
from children import in_child
from conftest import PAGE
from peers import Peer
from waiting import TIMEOUT_S, eventually

import pgalloc
from pgalloc import MemoryFile, SharingError


@pytest.fixture(scope="module", autouse=True)
def spawned() -> Iterator[Peer]:
    """One peer for many tests."""
    yield from peers.first()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def all_kinds(file: Any) -> dict[str, Any]:
    array = file.array(3)
    array[:] = 7
    return {
        "Allocation": file.allocate(PAGE),
        "SharedArray": array,
        "numpy's own": np.asarray(array),
        "Shared": pgalloc.share({"a": 1}, file=file),
        "SharedList": pgalloc.SharedList([b"a", 2], file=file),
    }


def check(name: str, received: Any) -> None:
    if name == "Allocation":
        assert received.nbytes == PAGE
    elif name == "Shared":
        assert received.get() == {"a": 1}
    elif name == "SharedList":
        assert list(received) == [b"a", 2]
    else:
        assert list(received) == [7, 7, 7]


# --- a pickle that fails -------------------------------------------------------------------------


def by_a_pipe(thing: Any) -> None:
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        ours.send(thing)


def by_a_process(thing: Any) -> None:
    multiprocessing.get_context("spawn").Process(target=print, args=(thing,)).start()


def by_an_executor(thing: Any) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor:
        executor.submit(print, thing).result(TIMEOUT_S)


WAYS: list[Callable[[Any], Any]] = [ForkingPickler.dumps, by_a_pipe, by_a_process, by_an_executor]


@pytest.mark.parametrize("send", WAYS, ids=lambda send: send.__name__)
def test_what_a_failed_pickle_has_offered_is_withdrawn(
    mf: MemoryFile, send: Callable[[Any], Any]
) -> None:
    for name, thing in all_kinds(mf).items():
        with pytest.raises((pickle.PicklingError, AttributeError)):
            send((thing, thing, lambda: 0))
        assert all(lease.claimed for lease in mf.leases()), name  # a forked worker's
        assert mf.drop_unclaimed() == 0
    eventually(lambda: mf.leases() == [])


def test_so_is_what_was_asked_of_another_owner(mf: MemoryFile, spawned: Peer) -> None:
    spawned.do(peers.keep, "a", mf.allocate(PAGE))
    fail = """
from multiprocessing.reduction import ForkingPickler
for _ in range(10):
    try:
        ForkingPickler.dumps((kept['a'], lambda: 0))
    except Exception:
        pass
    else:
        raise AssertionError
kept['a'].file.flush(60)
"""
    spawned.do(peers.run, fail)
    assert [lease.claimed for lease in mf.leases()] == [True]
    spawned.do(peers.drop, "a")


class Nested:
    """Is pickled by pickling something else, which is whole then."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing
        self.packets: list[bytes] = []

    def __reduce__(self) -> Any:
        self.packets.append(bytes(ForkingPickler.dumps(self.thing)))
        return print, ()


def test_what_is_whole_stays_on_offer(mf: MemoryFile) -> None:
    with mf.allocate(PAGE) as a:
        nested = Nested(a)
        with pytest.raises((pickle.PicklingError, AttributeError)):
            ForkingPickler.dumps((a, nested, lambda: 0))
        assert len(mf.leases()) == 1
        with pickle.loads(nested.packets[0]) as b:
            assert b.range == a.range
        assert mf.leases() == []


class Interrupted(BaseException):
    pass


class Raises:
    def __reduce__(self) -> Any:
        signal.raise_signal(signal.SIGALRM)
        return print, ()


def test_a_handler_that_raises_withdraws_them_and_one_that_sends_keeps_its_own(
    mf: MemoryFile,
) -> None:
    packets = []

    def handler(*_: object) -> None:
        packets.append(bytes(ForkingPickler.dumps(a)))
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with mf.allocate(PAGE) as a:
            with pytest.raises(Interrupted):
                ForkingPickler.dumps((a, Raises()))
            assert len(mf.leases()) == 1
            pickle.loads(packets[0]).release()
            assert mf.leases() == []
    finally:
        signal.signal(signal.SIGALRM, before)


# --- sending on ----------------------------------------------------------------------------------

SERVE = """
import pgalloc
kept['mf'] = pgalloc.MemoryFile(capacity=1 << 30)
kept['server'] = kept['mf'].serve({path!r})
"""
UNCLAIMED = "result = [lease for lease in kept['mf'].leases() if not lease.claimed]"


@pytest.fixture
def owner(path: Path) -> Iterator[Peer]:
    with Peer() as owner:
        owner.do(peers.run, SERVE.format(path=os.fspath(path)))
        yield owner
    peers.see_ends()


def test_pages_of_a_file_that_was_connected_to_are_sent_on(
    owner: Peer, path: Path, spawned: Peer
) -> None:
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs, pgalloc.connect(path) as peer:
        for name, thing in all_kinds(peer).items():
            ours.send(thing)
            received = theirs.recv()
            check(name, received)
            spawned.do(peers.keep, "it", thing)
            check(name, spawned.do(peers.send_back, "it"))
            spawned.do(peers.drop, "it")
            owner.do(peers.keep, "it", thing)  # its own
            check(name, owner.do(peers.send_back, "it"))
            owner.do(peers.drop, "it")
            del received
        assert owner.do(peers.run, UNCLAIMED) == []
        a = peer.allocate(PAGE)
        owner.do(peers.keep, "a", a)
        assert owner.do(peers.run, "result = kept.pop('a').file is kept['mf']")
        queue: Any = multiprocessing.Queue()
        queue.put(a)
        with queue.get(timeout=TIMEOUT_S) as b:
            assert b.range == a.range
        queue.close()
        queue.join_thread()

        def send_in_a_child() -> None:
            ours.send(a)

        in_child(send_in_a_child)
        with theirs.recv() as c:
            assert c.range == a.range
        a.release()


def test_pages_of_the_next_owner_at_a_path_are_received(owner: Peer, path: Path) -> None:
    """A process that knows the one before, which lives on, connects to the next one."""
    with Peer() as sender, Peer() as next_owner:
        connect = f"import pgalloc; kept['p'] = pgalloc.connect({os.fspath(path)!r})"
        allocate = "kept['it'] = kept['p'].allocate(pgalloc.PAGE_SIZE)"
        sender.do(peers.run, f"{connect}; {allocate}")
        before = sender.do(peers.send_back, "it")
        owner.do(peers.run, "kept['server'].close()")
        next_owner.do(peers.run, SERVE.format(path=os.fspath(path)))
        sender.do(peers.run, f"{connect}; {allocate}; kept['it'].view()[:4] = b'next'")
        with sender.do(peers.send_back, "it") as after, before:
            assert bytes(after.view()[:4]) == b"next"
            assert bytes(before.view()[:4]) == bytes(4)
        sender.do(peers.run, "kept.clear()")
    peers.see_ends()


def test_closing_the_file_leaves_what_was_received(owner: Peer, path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        peer = pgalloc.connect(path)
        with peer.allocate(PAGE) as a:
            a.view()[:4] = b"here"
            ours.send(a)
        b = theirs.recv()
        peer.close()
        c = b.clone()
        assert bytes(c.view()[:4]) == b"here"
        b.file.allocate(PAGE).release()
        b.release()
        c.release()


def test_a_path_that_others_cannot_use_says_so(mf: MemoryFile, tmp_path: Path) -> None:
    """Its whole name is too long; here it is in the working directory."""
    folder = tmp_path / ("d" * 100)
    folder.mkdir()
    (tmp_path / "short").symlink_to(folder)
    with (
        mf.serve(tmp_path / "short" / "s"),
        contextlib.chdir(folder),
        pgalloc.connect("s") as peer,
        peer.allocate(PAGE) as a,
        pytest.raises(SharingError, match="too long"),
    ):
        ForkingPickler.dumps(a)
    assert mf.drop_unclaimed() == 0


@pytest.mark.parametrize("kind", ["Allocation", "Shared", "SharedList"])
@pytest.mark.parametrize("ends", ["release", "close"])
def test_what_was_let_go_of_before_it_was_pickled_says_so_at_its_first_use(
    kind: str, ends: str
) -> None:
    """A Queue pickles later, in a thread whose errors its user does not see."""
    mf = MemoryFile()
    thing = all_kinds(mf)[kind]
    if ends == "release":
        thing.release()
    mf.close()
    received = pickle.loads(ForkingPickler.dumps(thing))
    with pytest.raises(SharingError, match=f"{ends}d before they were sent"):
        received.release()
