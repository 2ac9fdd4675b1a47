"""How long a peer holds what it holds: until it lets go, or cannot see it any more."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest
from conftest import PAGE
from peers import Peer
from raw_peer import RawPeer, Stranger
from waiting import eventually

from pgalloc import MemoryFile, _core, testing
from pgalloc.sharing import protocol
from pgalloc.sharing.protocol import Op


@pytest.fixture(scope="module", autouse=True)
def stranger() -> Iterator[None]:
    """What starts with the first process is there."""
    stranger = Stranger()
    with Peer():
        pass
    yield
    stranger.close()


# In the peer: it is connected, holds two pages, and has them mapped or not.
HOLD = """
import mmap, os
import raw_protocol
from raw_peer import RawPeer
from pgalloc.sharing import protocol
from pgalloc.sharing.protocol import Op
raw = kept['raw'] = RawPeer.greeted({path!r}, own=True)
opened = raw.ask(Op.OPEN, protocol.NAME.pack({file}))
answer = raw.ask(Op.ALLOCATE, raw_protocol.ALLOCATE.pack({file}, 2 * mmap.PAGESIZE, 1, 0, 0))
_, start, end = raw_protocol.PAGES.unpack(answer.payload)
if {maps}:
    kept['map'] = mmap.mmap(opened.descriptors[0], end - start, offset=start)
os.close(opened.descriptors[0])
result = start
"""


class _Served:
    """A file, and where it is served."""

    def __init__(self, mf: MemoryFile, path: Path) -> None:
        self.mf = mf
        self.path = os.fsencode(path)

    def hold(self, peer: Peer, *, maps: bool = True) -> int:
        """Where the peer's two pages are."""
        code = HOLD.format(path=self.path, file=self.mf._id, maps=maps)
        start: int = peer.do(peers.run, code)
        return start

    def holders(self) -> list[int]:
        return sorted(lease.pid for lease in self.mf.leases())


@pytest.fixture
def served(mf: MemoryFile, tmp_path: Path) -> Iterator[_Served]:
    with mf.serve(tmp_path / "socket"):
        yield _Served(mf, tmp_path / "socket")
    eventually(lambda: mf.leases() == [], "the end of all leases")
    assert mf.wait_for_reclaim(10)
    assert mf.segments() == []
    assert _core.broker_verify() is None
    testing.verify(mf)


HANG_UP = "kept.pop('raw').close()"
TALK_NONSENSE = "kept['raw'].send(b'nonsense'); assert kept.pop('raw').is_dropped()"


@pytest.mark.parametrize("leave", [HANG_UP, TALK_NONSENSE])
def test_a_lease_outlives_the_connection_while_the_pages_are_mapped(
    served: _Served, leave: str
) -> None:
    """Row L1."""
    with Peer() as sees, Peer() as blind:
        start = served.hold(sees)
        served.hold(blind, maps=False)
        sees.do(peers.run, leave)
        blind.do(peers.run, leave)
        eventually(lambda: served.holders() == [sees.pid], "the end of what cannot be seen")
        # Pages that were given back would be given out again, as zeros.
        sees.do(peers.run, "kept['map'][:4] = b'mine'")
        with served.mf.allocate(64 * PAGE) as others:
            others.view()[:] = b"x" * others.nbytes
            assert sees.do(peers.run, "result = kept['map'][:4]") == b"mine"
        assert os.pread(served.mf.fileno(), 4, start) == b"mine"
        assert served.holders() == [sees.pid]
        sees.do(peers.run, "kept.pop('map').close()")
        eventually(lambda: served.holders() == [], "the end after munmap()")


def test_a_lease_ends_with_its_process(served: _Served) -> None:
    peer = Peer()
    served.hold(peer)
    peer.do(peers.run, HANG_UP)
    assert served.holders() == [peer.pid]
    peer.kill()
    eventually(lambda: served.holders() == [], "the end after SIGKILL")
    peer.process.close()


def test_a_lease_ends_when_its_process_runs_another_program(served: _Served) -> None:
    peer = Peer()
    served.hold(peer)
    code = "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'input()'])"
    peer._pipe.send((peers.run, (code,)))
    eventually(lambda: served.holders() == [], "the end after execve()")
    assert peer.process.is_alive()
    peer.kill()
    peer.process.close()


def test_a_process_that_is_stopped_keeps_its_leases(served: _Served) -> None:
    with Peer() as stopped, Peer() as blind:
        served.hold(stopped)
        served.hold(blind, maps=False)
        stopped.do(peers.run, HANG_UP)
        os.kill(stopped.pid, signal.SIGSTOP)
        blind.do(peers.run, HANG_UP)
        eventually(lambda: served.holders() == [stopped.pid], "the end of what cannot be seen")
        os.kill(stopped.pid, signal.SIGCONT)
        stopped.do(peers.run, "kept.pop('map').close()")


# --- descriptors that a program closes, though they are not its own -------------------------------


def _descriptors() -> set[int]:
    listed = {int(name) for name in os.listdir("/proc/self/fd")}
    return {fd for fd in listed if os.path.exists(f"/proc/self/fd/{fd}")}  # not the listing's own


def _replacements() -> list[str]:
    return ["closed", "a file", "a socket", "an epoll"]


class _Replaced:
    """A descriptor of this process that is closed, or another file from here on."""

    def __init__(self, fd: int, by: str) -> None:
        self.fd = fd
        self._other: int | None = None
        if by == "closed":
            os.close(fd)
            return
        if by == "a file":
            other = os.open(os.devnull, os.O_RDONLY)
        elif by == "a socket":
            other = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).detach()
        else:
            with select.epoll() as epoll:
                other = os.dup(epoll.fileno())
        os.dup2(other, fd)
        self._other = os.fstat(other).st_ino
        os.close(other)

    def is_at(self, fd: int) -> bool:
        """Whether this is what took its place, or is not open."""
        try:
            return os.fstat(fd).st_ino == self._other and fd == self.fd  # epolls have one inode
        except OSError:
            return True

    def restore(self) -> None:
        """It is still what took its place."""
        if self._other is None:
            return
        assert os.fstat(self.fd).st_ino == self._other
        os.close(self.fd)


def _are_the_brokers(replaced: _Replaced) -> bool:
    """Whether it has noticed, and has all that it needs again."""
    descriptors = _core.broker_descriptors()
    return len(descriptors) == 6 and not any(replaced.is_at(fd) for fd in descriptors)


@pytest.mark.parametrize("by", _replacements())
@pytest.mark.parametrize(
    "which", range(6), ids=["epoll", "wake", "waker", "listener", "second listener", "its path"]
)
def test_the_broker_replaces_what_was_closed_from_outside(
    served: _Served, which: int, by: str
) -> None:
    """And does not touch what has taken its place (row L4)."""
    _core.broker_set_times(look_s=0.01)
    try:
        before = _core.broker_descriptors()
        replaced = _Replaced(before[which], by)
        eventually(lambda: _are_the_brokers(replaced), "all of them")
        with RawPeer.greeted(served.path) as peer:
            assert peer.ask(Op.PING) is not None

        def greeted_by_name() -> bool:
            try:
                with RawPeer(_core.broker_address()[0], own=True) as peer:
                    return peer.ask(Op.HELLO, protocol.HELLO.pack(1, b"")) is not None
            except ConnectionRefusedError:
                return False

        eventually(greeted_by_name, "the broker listens again")
        replaced.restore()
    finally:
        _core.broker_set_times()


SOCKETS = """
import os
result = {int(name) for name in os.listdir("/proc/self/fd")
          if os.path.exists("/proc/self/fd/" + name)}
"""

LOSE_THE_CONNECTION = """
import os, pgalloc
kept["file"] = pgalloc.connect({path!r})
kept["pages"] = kept["file"].allocate(4096)
for name in os.listdir("/proc/self/fd"):
    try:
        if "socket:" in os.readlink("/proc/self/fd/" + name) and int(name) not in {theirs}:
            os.close(int(name))
    except OSError:
        pass  # the listing's own
"""


def test_pages_that_no_view_shows_are_kept_without_a_connection(served: _Served) -> None:
    """Row L1: a handle is enough."""
    with Peer() as peer:
        theirs = peer.do(peers.run, SOCKETS)
        channels = _core.broker_figures()["channels"]
        peer.do(peers.run, LOSE_THE_CONNECTION.format(path=served.path, theirs=theirs))
        eventually(lambda: _core.broker_figures()["channels"] <= channels, "its channel's end")
        eventually(lambda: _core.broker_figures()["sessions_without_channel"] == 1)
        with served.mf.allocate(64 * PAGE) as others:
            others.view()[:] = b"x" * others.nbytes
            assert peer.do(peers.run, "result = set(kept['pages'].view())") == {0}
        assert served.holders() == [peer.pid]
        peer.do(peers.run, "kept.pop('pages').release(); kept.pop('file').close()")
        eventually(lambda: served.holders() == [], "the end after munmap()")


@pytest.mark.parametrize("by", _replacements())
def test_a_peer_whose_connection_was_closed_from_outside_keeps_its_leases(
    served: _Served, by: str
) -> None:
    _core.broker_set_times(look_s=0.01)
    try:
        with Peer() as peer:
            before = _descriptors()
            served.hold(peer)
            (fd,) = _descriptors() - before
            channels = _core.broker_figures()["channels"]
            replaced = _Replaced(fd, by)
            eventually(lambda: _core.broker_figures()["channels"] < channels, "its channel's end")
            assert served.holders() == [peer.pid]
            replaced.restore()
            peer.do(peers.run, "kept.pop('map').close()")
            eventually(lambda: served.holders() == [], "the end after munmap()")
    finally:
        _core.broker_set_times()
