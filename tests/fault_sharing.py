"""Sharing, for test_faults.py: an owner and a peer in one process, and what a failure leaves."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable
from typing import Any

from conftest import HUGE, PAGE
from fault_scenarios import COMMIT, POPULATE, Run, Scenario, _give_r

import pgalloc
from pgalloc import Allocation, MemoryFile, OwnerGoneError, PeerFile, testing
from pgalloc.sharing.broker import broker

# The owner does not read just now: that is waited out.
BUSY = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
WAIT_S = 20.0


def _ask(run: Run, call: Callable[[], Any]) -> Any:
    """As Run.attempt(). A peer that cannot send to its owner counts it as gone."""
    try:
        return run.attempt(call)
    except AssertionError as error:
        gone = isinstance(error.__cause__, OwnerGoneError)
        if not gone or run.name != "send" or run.planned in BUSY:
            raise
        run.errors.append(OwnerGoneError())
        return None


class _Pair:
    """A file, served, and a peer's connection to it."""

    def __init__(self, run: Run, mf: MemoryFile, peer: PeerFile) -> None:
        self.run = run
        self.mf = mf
        self.peer = peer
        self.handles: list[Allocation] = []

    def ask(self, call: Callable[[], Any]) -> Any:
        return _ask(self.run, call)

    def allocate(self, length: int, **options: Any) -> Allocation | None:
        handle: Allocation | None = self.ask(lambda: self.peer.allocate(length, **options))
        if handle is not None:
            self.handles.append(handle)
        return handle

    def write(self, handle: Allocation, byte: bytes) -> bool:
        """Through a view here; the owner sees it."""
        view = self.ask(handle.view)
        if view is None:
            return False
        view[:] = byte * handle.nbytes
        owners = self.ask(lambda: self.mf.map_range(handle.range, "r"))
        assert owners is None or bytes(owners) == byte * handle.nbytes
        return True

    def close(self) -> None:
        """Whatever failed, the owner has all pages back."""
        for handle in self.handles:
            handle.release()
        self.handles.clear()
        self.peer.close()


@contextlib.contextmanager
def _served(run: Run) -> Any:
    """A _Pair or None, in the folder of the run: names of sockets have to be short."""
    mf = run.make()
    if mf is None:
        yield None
        return
    held = [(segment.start, segment.refs) for segment in mf.segments()]
    channels = len(broker._channels)
    with contextlib.chdir(run.directory):
        with mf.serve("socket"):
            peer = _ask(run, lambda: pgalloc.connect("socket"))
            pair = None if peer is None else _Pair(run, mf, peer)
            del peer
            try:
                yield pair
            finally:
                if pair is not None:
                    pair.close()
                    del pair
        _wait_for_channels(channels)
    assert mf.leases() == []
    assert [(segment.start, segment.refs) for segment in mf.segments() if segment.refs] == held
    testing.verify(mf)
    run.checks.append(lambda: _check_sharing(run, mf))


def _wait_for_channels(count: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        with broker.lock:  # not in the middle of closing one
            if len(broker._channels) <= count:
                return
        # time: a bound on a hang
        assert time.monotonic() < deadline, "the owner does not learn that the peer has gone"
        time.sleep(0.0002)  # time: it polls


def _check_sharing(run: Run, mf: MemoryFile) -> None:
    """After the fault: a new peer finds everything in order."""
    channels = len(broker._channels)
    with contextlib.chdir(run.directory), mf.serve("again"), pgalloc.connect("again") as peer:
        with peer.allocate(3 * PAGE, mode=COMMIT) as pages, pages.view() as view:
            assert bytes(view) == bytes(3 * PAGE)
            view[:] = b"n" * (3 * PAGE)
        assert peer.flush(WAIT_S)
        assert mf.leases() == []
    del peer, pages, view
    _wait_for_channels(channels)


def shared(run: Run) -> None:
    """All that a peer does, to its end, while calls of both sides fail."""
    with _served(run) as pair:
        if pair is None:
            return
        whole = pair.allocate(8 * PAGE)
        pair.allocate(4 * PAGE, mode=COMMIT)
        pair.allocate(HUGE + 3 * PAGE, mode=POPULATE)
        pair.allocate(4 * PAGE, reader=_give_r)
        for handle in pair.handles:
            pair.write(handle, b"s")
        if whole is not None:
            _use_handle(pair, whole)
        for handle in pair.handles[1:]:
            pair.ask(handle.decommit)
            handle.release()
        pair.ask(lambda: pair.peer.usage())
        pair.ask(lambda: pair.peer.flush(0.1))
        pair.allocate(PAGE)


def _use_handle(pair: _Pair, whole: Allocation) -> None:
    """Clones, slices, pinning; each of them gives something back."""
    clone = pair.ask(whole.clone)
    if clone is not None:
        clone.release()
    for start in range(0, 8 * PAGE, 2 * PAGE):
        part = pair.ask(lambda start=start: whole.slice(start, start + PAGE))
        if part is not None:
            pair.handles.append(part)
    pair.ask(lambda: pair.peer.has_unique_ref(whole.range))
    single = pair.allocate(2 * PAGE)
    if single is not None and pair.write(single, b"u"):
        pair.ask(lambda: single.unpin() is None)
        pair.ask(single.pin)


def shared_for_longer(run: Run) -> None:
    """Pages that are held when the fault is over are what they were."""
    stack = contextlib.ExitStack()
    pair = stack.enter_context(_served(run))
    written = []
    if pair is not None:
        kept = pair.allocate(2 * PAGE)
        if kept is not None and pair.write(kept, b"k"):
            written.append(kept)
        _let_go(pair)

    def check() -> None:
        with stack:
            while written:
                assert bytes(written.pop()) == b"k" * (2 * PAGE)

    run.checks.append(check)


def _let_go(pair: _Pair) -> None:
    """Of something else."""
    other = pair.allocate(2 * PAGE)
    if other is not None:
        other.release()
    if pair.ask(lambda: pair.peer.flush(0.1)) and not pair.peer._connection.broken:
        assert sum(lease.nbytes for lease in pair.mf.leases()) == pair.peer.leased


SHARING: list[Scenario] = [shared, shared_for_longer]
