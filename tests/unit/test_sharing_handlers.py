"""What a signal handler raises while pages are received or an owner is connected to: it comes out.

Whatever it is: handlers for time-outs raise what the kernel's calls raise, too.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import PAGE
from peers import Peer
from waiting import eventually

import pgalloc
from pgalloc import MemoryFile, OwnerGoneError, SharingError
from pgalloc.sharing.unattached import Unattached, attach


class LateError(Exception):
    pass


RAISED = [
    LateError("mine"),
    TimeoutError("mine"),
    ConnectionRefusedError("mine"),
    FileNotFoundError("mine"),
    OSError(5, "mine"),
    MemoryError("mine"),
    SharingError("mine"),
    OwnerGoneError("mine"),
    ValueError("mine"),
]
each_of_them = pytest.mark.parametrize("mine", RAISED, ids=lambda error: type(error).__name__)


@pytest.fixture(scope="module", autouse=True)
def spawned() -> Iterator[Peer]:
    """One peer for many tests."""
    for peer in peers.first():
        for packet in peer.do(peers.run, OFFER):
            pickle.loads(packet)  # is connected to
        yield peer
    peers.see_ends()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@contextlib.contextmanager
def soon(mine: Exception) -> Iterator[None]:
    """A handler raises it again and again: the block waits for something that does not come."""

    def handler(*_: object) -> None:
        raise mine

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        tasks = Path(f"/proc/{pid}/task")

        def states() -> set[str]:
            return {(task / "stat").read_text().rpartition(")")[2][1] for task in tasks.iterdir()}

        eventually(lambda: states() == {"T"}, "the stop of all threads")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


OFFER = """
from multiprocessing.reduction import ForkingPickler
import pgalloc
file = kept.setdefault('file', None) or pgalloc.MemoryFile(capacity=1 << 30)
kept['file'] = file
result = [bytes(ForkingPickler.dumps(it)) for it in (file.allocate(4096), file.array(9))]
"""


@each_of_them
def test_receiving(spawned: Peer, mine: Exception) -> None:
    for packet in spawned.do(peers.run, OFFER):
        with stopped(spawned.pid), soon(mine), pytest.raises(type(mine)) as raised:
            pickle.loads(packet)
        assert raised.value is mine
        mine.__traceback__ = None
    left = "result = [it for it in kept['file'].leases()]"
    eventually(lambda: spawned.do(peers.run, left) == [], "what the late answer brought is back")


def test_what_pgalloc_raises_does_not_come_out() -> None:
    for error in (SharingError("text"), OSError(12, "text"), MemoryError("text")):
        names: dict[str, Any] = {"__name__": "pgalloc.elsewhere", "error": error}
        exec("def make(): raise error", names)
        assert type(attach(names["make"])) is Unattached
        names["__name__"] = "pgallocator"
        with pytest.raises(type(error)):
            attach(names["make"])


@each_of_them
def test_connecting_to_one_that_does_not_accept(path: Path, mine: Exception) -> None:
    kind = socket.SOCK_SEQPACKET
    with (
        socket.socket(socket.AF_UNIX, kind) as busy,
        socket.socket(socket.AF_UNIX, kind) as waiting,
    ):
        busy.bind(os.fspath(path))
        busy.listen(0)
        waiting.connect(os.fspath(path))
        with soon(mine), pytest.raises(type(mine)) as raised:
            pgalloc.connect(path)
        assert raised.value is mine
        mine.__traceback__ = None


@each_of_them
def test_connecting_to_one_that_does_not_answer(path: Path, mine: Exception) -> None:
    kind = socket.SOCK_SEQPACKET
    with socket.socket(socket.AF_UNIX, kind) as silent:
        silent.bind(os.fspath(path))
        silent.listen(8)
        with soon(mine), pytest.raises(type(mine)) as raised:
            pgalloc.connect(path)
        assert raised.value is mine
        mine.__traceback__ = None


def test_what_interrupts_gives_no_reference_back_twice(
    mf: MemoryFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handle was made, and has gone with its reference."""

    def made_and_interrupted(*arguments: Any) -> None:
        pgalloc.Allocation(*arguments)
        raise LateError

    array = mf.array(3)
    array.allocation.release()
    with monkeypatch.context() as patch:
        patch.setattr("pgalloc.sharing.arrays.travel.Allocation", made_and_interrupted)
        with pytest.raises(LateError):
            ForkingPickler.dumps(array)
    assert [segment.refs for segment in mf.segments()] == [1]
    assert list(array) == [0, 0, 0]


class Adopting(pgalloc.Allocation):
    def __init__(self, *arguments: Any) -> None:
        raise LateError


def test_nor_does_adopting(mf: MemoryFile, tmp_path: Path) -> None:
    with mf.allocate(PAGE) as a:
        range = a.range
        mf.save(tmp_path / "image")
    with MemoryFile.restore(tmp_path / "image") as restored:
        with pytest.raises(LateError):
            Adopting.adopt(restored, range)
        restored.wait_for_reclaim()
        assert not restored.segments()
