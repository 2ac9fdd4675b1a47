"""Sharing, for test_faults.py: an owner and a peer in one process, and what a failure leaves."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import raw_protocol
from conftest import HUGE, PAGE
from fault_scenarios import COMMIT, POPULATE, Run, Scenario, _give_r
from raw_peer import RawPeer
from waiting import eventually

import pgalloc
from pgalloc import Allocation, MemoryFile, OwnerGoneError, PeerFile, SharingError, _core, testing
from pgalloc.sharing import protocol, transport
from pgalloc.sharing.protocol import Op

# The owner does not read just now: that is waited out.
BUSY = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
# Of a peer that is not accepted: it is hung up on.
ACCEPTING = ("fstat", "getsockopt")
WAIT_S = 20.0


def _may_be_gone(run: Run) -> bool:
    """Whether the failing call may look to a peer as if its owner were gone."""
    if run.name == "connect":
        return run.planned in (errno.EAGAIN, errno.ECONNREFUSED, errno.ENOENT)
    return run.name in ACCEPTING or (run.name == "send" and run.planned not in BUSY)


def _ask(run: Run, call: Callable[[], Any]) -> Any:
    """As Run.attempt(). A peer that cannot send to its owner counts it as gone."""
    try:
        return run.attempt(call)
    except AssertionError as error:
        if not isinstance(error.__cause__, OwnerGoneError) or not _may_be_gone(run):
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
    channels = _channels()
    with contextlib.chdir(run.directory):
        server = _ask(run, lambda: mf.serve("socket"))
        if server is None:
            yield None
            return
        with server:
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
    eventually(lambda: mf.leases() == [], "the end of all leases")
    assert [(segment.start, segment.refs) for segment in mf.segments() if segment.refs] == held
    testing.verify(mf)
    run.checks.append(lambda: _check_sharing(run, mf))


def _channels() -> int:
    return _core.broker_figures()["channels"]


def _wait_for_channels(count: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        if _channels() <= count:
            return
        # time: a bound on a hang
        assert time.monotonic() < deadline, "the owner does not learn that the peer has gone"
        time.sleep(0.0002)  # time: it polls


def _check_sharing(run: Run, mf: MemoryFile) -> None:
    """After the fault: a new peer finds everything in order."""
    channels = _channels()
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


def strangers(run: Run) -> None:
    """What the owner does for other processes: offers, forks, and how they end."""
    with _served(run) as pair:
        if pair is None:
            return
        sent = pair.ask(lambda: pair.mf.allocate(PAGE))
        token = None if sent is None else pair.ask(lambda: transport.offer(sent))
        if token is not None:
            with contextlib.suppress(SharingError):
                transport.claim(token).release()
        if sent is not None:
            sent.release()
        with RawPeer(f"/proc/{os.getpid()}/cwd/socket".encode()) as stranger:
            _live_and_die(run, pair.mf._id, stranger)


def _live_and_die(run: Run, file: int, stranger: RawPeer) -> None:
    """Hold a page, have a child, and hang up. What fails is the owner's."""
    requests = [
        (Op.HELLO, protocol.HELLO.pack(0, bytes(protocol.NONCE_BYTES))),
        (Op.ALLOCATE, raw_protocol.ALLOCATE.pack(file, PAGE, 1, 0, 0)),
        # The owner asks whether descriptors have been read when there are several.
        *[(Op.OPEN, protocol.NAME.pack(file))] * 6,
    ]
    if run.name != "close":  # the owner would keep the child's end, and the child its leases
        requests.append((Op.FORK, b""))
    for kind, payload in requests:
        answer = stranger.ask(kind, payload)
        if answer is None:
            return
        for descriptor in answer.descriptors:
            os.close(descriptor)


def served_where_a_socket_was_left(run: Run) -> None:
    """It is taken over if no process listens there, as far as that can be found out."""
    mf = run.make()
    if mf is None:
        return
    with contextlib.chdir(run.directory):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
            left.bind("left")
        try:
            server = run.attempt(lambda: mf.serve("left"))
        except AssertionError as error:  # it may be another process's
            cause = error.__cause__
            assert isinstance(cause, OSError)
            assert cause.errno == errno.EADDRINUSE
            run.errors.append(cause.with_traceback(None))
            server = None
        if server is not None:
            # The broker has done its part once it answers.
            with RawPeer(f"/proc/{os.getpid()}/cwd/left".encode()) as stranger:
                stranger.ask(Op.HELLO, protocol.HELLO.pack(0, bytes(protocol.NONCE_BYTES)))
            server.close()
            assert not os.path.exists("left")
        elif os.path.exists("left"):
            os.unlink("left")


def _epolls_sockets() -> list[str]:
    """What the epoll and its two sockets are known by: numbers of descriptors come again."""
    with contextlib.suppress(OSError):
        return [os.readlink(f"/proc/self/fd/{fd}") for fd in _core.broker_descriptors()[1:3]]
    return []


def _wait_for_a_new_epoll(before: list[str]) -> None:
    """Until the epoll and its two sockets are new: it knows itself by them, and one is enough.

    That they are open says nothing: another file may have the number of the one that was closed.
    """
    eventually(lambda: _epolls_sockets() not in ([], before), "a new epoll")


def replaced(run: Run) -> None:
    """The broker's own descriptors are closed from outside, and it makes new ones."""
    if run.name in BY_THE_PEER:
        return
    channels = _channels()
    _core.broker_set_times(look_s=0.001, accept_s=0.001)
    for number in range(6):  # the last two are for other network namespaces
        eventually(lambda: len(_core.broker_descriptors()) >= 4, "a listener")
        before = _epolls_sockets()
        for descriptor in _core.broker_descriptors()[number : number + 1]:
            os.close(descriptor)
        if number < 3:
            _wait_for_a_new_epoll(before)
        eventually(_is_whole, "the broker has all it needs again")
    _wait_for_channels(channels)
    _core.broker_set_times(look_s=1e6, accept_s=0.001)


BY_THE_PEER = ("eventfd",)


def _is_whole() -> bool:
    """All of its descriptors are open, and a process that connects is answered."""
    descriptors = _core.broker_descriptors()
    try:
        for fd in descriptors:
            os.fstat(fd)
        with RawPeer(_core.broker_address()[0]) as peer:
            greeting = protocol.HELLO.pack(0, bytes(protocol.NONCE_BYTES))
            return len(descriptors) >= 4 and peer.ask(Op.HELLO, greeting) is not None
    except OSError:
        return False


SHARING: list[Scenario] = [
    shared,
    shared_for_longer,
    strangers,
    served_where_a_socket_was_left,
    replaced,
]
