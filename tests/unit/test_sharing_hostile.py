"""A hostile client on an owner's sockets: the owner and its honest peers are not harmed."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import peers
import pytest
import raw_protocol
from conftest import PAGE
from peers import Peer
from raw_peer import RawPeer, Stranger
from raw_protocol import native_enum
from waiting import eventually

import pgalloc
from pgalloc import FileRange, MemoryFile, _core, testing
from pgalloc.sharing import protocol
from pgalloc.sharing.protocol import Op

A_STAMP, B_STAMP = b"claimed by token", b"allocated over the path"
OUTSIDE = 1 << 40  # an offset that no file of these tests reaches
MAX64 = 2**64 - 1
UNGREETED_MAX = 64  # peers.cc


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Scene:
    """An owner's file, served, and an honest peer in another process that came by both ways."""

    def __init__(self, mf: MemoryFile, path: Path, honest: Peer) -> None:
        self.mf = mf
        self.path = os.fsencode(path)
        self.honest = honest
        self.a = mf.allocate(3 * PAGE)
        self.a.view()[: len(A_STAMP)] = A_STAMP
        honest.do(peers.keep, "a", self.a)
        honest.do(peers.run, f"import pgalloc\nkept['p'] = pgalloc.connect({os.fspath(path)!r})")
        honest.do(peers.run, f"kept['b'] = kept['p'].allocate({4 * PAGE})")
        honest.do(peers.write, "b", 0, B_STAMP)
        self._leases = self._held()
        self._segments = mf.segments()
        self._descriptors = _descriptors()

    def address(self, listener: str) -> bytes:
        return self.path if listener == "path" else _core.broker_address()[0]

    @property
    def honests_pages(self) -> FileRange:
        """Those that no other process has a reference on."""
        range_: FileRange = self.honest.do(peers.attribute, "b", "range")
        return range_

    def check_served(self) -> None:
        """The honest peer is served, and its pages are as they were."""
        assert self.honest.do(peers.read, "a", 0, len(A_STAMP)) == A_STAMP
        assert self.honest.do(peers.read, "b", 0, len(B_STAMP)) == B_STAMP
        for file in ("kept['a'].file", "kept['p']"):
            self.honest.do(peers.run, f"with {file}.allocate({PAGE}) as c: c.decommit()")

    def check_unharmed(self) -> None:
        """The attackers have gone: nothing is left of them, and nothing else has changed."""
        self.check_served()
        eventually(lambda: self._held() == self._leases, "leases as before")
        eventually(lambda: _descriptors() <= self._descriptors, "descriptors as before")
        assert self.mf.wait_for_reclaim(10)
        testing.verify(self.mf)
        assert _core.broker_verify() is None
        assert self.mf.segments() == self._segments

    def _held(self) -> list[tuple[int, int, bool]]:
        return sorted((lease.pid, lease.nbytes, lease.claimed) for lease in self.mf.leases())


@pytest.fixture(scope="module")
def honest() -> Iterator[Peer]:
    """One honest process for all tests; what starts with the first sharing stays as long as it."""
    with MemoryFile() as keeper, Peer() as peer:
        peer.do(peers.keep, "for ever", keeper.allocate(PAGE))
        yield peer


@pytest.fixture(scope="module", autouse=True)
def stranger() -> Iterator[None]:
    """Attackers come from a process of their own."""
    stranger = Stranger()
    yield
    stranger.close()


@pytest.fixture
def scene(mf: MemoryFile, honest: Peer, tmp_path: Path) -> Iterator[Scene]:
    path = tmp_path / "pages"
    with mf.serve(path):
        scene = Scene(mf, path, honest)
        yield scene
        scene.check_unharmed()
        honest.do(peers.run, "kept['p'].close()")
        honest.do(peers.drop, "a", "b", "p")
        scene.a.release()


both_listeners = pytest.mark.parametrize("listener", ["abstract", "path"])


# --- no protocol at all --------------------------------------------------------------------------


@both_listeners
@pytest.mark.parametrize("greeted", [False, True])
def test_random_packets(scene: Scene, listener: str, *, greeted: bool) -> None:
    rng = random.Random(1)
    enter = RawPeer.greeted if greeted else RawPeer
    for _ in range(150):
        with enter(scene.address(listener)) as attacker:
            for _ in range(5):
                attacker.send(rng.randbytes(rng.choice([1, 7, 8, 9, 24, 100, 65535])))
    scene.check_served()


NO_PEER_SENDS = {
    "nothing": b"",
    "half a header": raw_protocol.pack(Op.PING, 1)[:5],
    "another version": b"\x02" + raw_protocol.pack(Op.PING, 1)[1:],
    "something reserved": struct.pack("<BBHI", raw_protocol.VERSION, Op.PING, 7, 1),
    "too much": raw_protocol.pack(Op.PING, 1).ljust(raw_protocol.PACKET_MAX + 1, b"\0"),
    "far too much": raw_protocol.pack(Op.PING, 1).ljust(3 * raw_protocol.PACKET_MAX, b"\0"),
    "an unknown request": raw_protocol.pack(200, 1),
    "request 0": raw_protocol.pack(0, 1),
    "half a greeting": raw_protocol.pack(Op.HELLO, 1, b"\0" * 5),
    "a greeting and more": raw_protocol.pack(Op.HELLO, 1, b"\0" * (protocol.HELLO.size + 1)),
    "half a range to release": raw_protocol.pack(Op.RELEASE, 1, b"\0" * 23),
}


@both_listeners
@pytest.mark.parametrize("packet", NO_PEER_SENDS.values(), ids=NO_PEER_SENDS.keys())
def test_what_no_peer_sends_ends_the_connection(scene: Scene, listener: str, packet: bytes) -> None:
    with RawPeer.greeted(scene.address(listener)) as attacker:
        attacker.send(packet)
        assert attacker.is_dropped()


@both_listeners
@pytest.mark.parametrize("kind", list(Op)[1:])
def test_a_request_before_the_greeting_is_refused(scene: Scene, listener: str, kind: Op) -> None:
    with RawPeer(scene.address(listener)) as attacker:
        attacker.send(raw_protocol.pack(kind, 1, bytes(24)))
        assert attacker.is_dropped()


@both_listeners
@pytest.mark.parametrize("kind", list(Op))
def test_random_payloads(scene: Scene, listener: str, kind: Op) -> None:
    """Each is answered, or ends the connection; lengths that fit are among them."""
    rng = random.Random(kind)
    attacker = RawPeer.greeted(scene.address(listener))
    for _ in range(150):
        payload = rng.randbytes(rng.choice([0, 1, 8, 9, 12, 16, 20, 24, 26, 40, 48, 1000, 4000]))
        attacker.send(raw_protocol.pack(kind, rng.choice([1, MAX64 >> 32]), payload))
        if kind == Op.PART:  # what it begins is answered
            attacker.send(raw_protocol.pack(rng.choice(sorted(set(Op) - {Op.HELLO, Op.PART})), 1))
        answer = attacker.answer()
        if answer is None:
            attacker.close()
            attacker = RawPeer.greeted(scene.address(listener))
            continue
        for descriptor in answer.descriptors:
            os.close(descriptor)
    attacker.close()


# --- the protocol, without the right to anything -------------------------------------------------


def _file(scene: Scene) -> int:
    return scene.mf._id


ABOUT_PAGES = [Op.RELEASE, Op.DECOMMIT, Op.UNIQUE, Op.UNPIN, Op.PIN, Op.OFFER]


def test_every_request_about_pages_is_tried() -> None:
    asks = {name: op.comment.split("->")[0] for name, op in native_enum("Op").items()}
    about_pages = {
        name for name, fields in asks.items() if re.match(r"(any number of )?pages\b", fields)
    }
    assert {kind.name for kind in ABOUT_PAGES} == about_pages


@both_listeners
@pytest.mark.parametrize("kind", ABOUT_PAGES)
def test_pages_that_others_hold(scene: Scene, listener: str, kind: Op) -> None:
    own = scene.a.range
    with RawPeer.greeted(scene.address(listener)) as attacker:
        for range_ in [
            scene.honests_pages,
            own,
            (min(own.start, scene.honests_pages.start), max(own.end, scene.honests_pages.end)),
            (0, OUTSIDE),
            (OUTSIDE, OUTSIDE + PAGE),
            (own.start, own.start),
            (own.end, own.start),
            (own.start + 1, own.start + 2),
            (0, MAX64),
            (MAX64 - 1, MAX64),
        ]:
            answer = attacker.ask(kind, raw_protocol.PAGES.pack(_file(scene), *range_))
            assert answer is not None
            assert answer.status != 0
        scene.check_served()


@pytest.mark.parametrize("kind", ABOUT_PAGES)
def test_own_pages_and_one_more(scene: Scene, kind: Op) -> None:
    """A request is for all of its pages: the attacker's own do not let it in to others."""
    with RawPeer.greeted(scene.path) as attacker:
        answer = attacker.ask(Op.ALLOCATE, raw_protocol.ALLOCATE.pack(_file(scene), PAGE, 1, 0, 0))
        assert answer is not None
        _, start, end = raw_protocol.PAGES.unpack(answer.payload)
        for range_ in [(start, end + PAGE), (start - PAGE, end), (start - PAGE, end + PAGE)]:
            answer = attacker.ask(
                kind, raw_protocol.PAGES.pack(_file(scene), range_[0] % 2**64, range_[1])
            )
            assert answer is not None
            assert answer.status != 0
        scene.check_served()


def test_what_was_released_cannot_be_released_again(scene: Scene) -> None:
    with RawPeer.greeted(scene.path) as attacker:
        answer = attacker.ask(Op.ALLOCATE, raw_protocol.ALLOCATE.pack(_file(scene), PAGE, 1, 0, 0))
        assert answer is not None
        statuses = []
        for _ in range(3):
            again = attacker.ask(Op.RELEASE, answer.payload)
            assert again is not None
            statuses.append(again.status == 0)
        assert statuses == [True, False, False]


@both_listeners
def test_numbers_without_measure(scene: Scene, listener: str) -> None:
    with RawPeer.greeted(scene.address(listener)) as attacker:
        for length in (0, 2**63, MAX64, MAX64 - PAGE):
            for name in (_file(scene), MAX64):
                request = raw_protocol.ALLOCATE.pack(name, length, 1, 0, 0)
                answer = attacker.ask(Op.ALLOCATE, request)
                assert answer is not None
                assert answer.status != 0
        for kind, direction in [(99, 0), (255, 0), (1, 9)]:
            request = raw_protocol.ALLOCATE.pack(_file(scene), PAGE, kind, direction, 0)
            answer = attacker.ask(Op.ALLOCATE, request)
            assert answer is not None
            assert answer.status != 0


def test_files_it_was_not_let_into(scene: Scene) -> None:
    """A listener serves one file."""
    with MemoryFile() as other, RawPeer.greeted(scene.path) as attacker:
        for kind, request in [
            (Op.OPEN, protocol.NAME.pack(other._id)),
            (Op.ALLOCATE, raw_protocol.ALLOCATE.pack(other._id, PAGE, 1, 0, 0)),
            (Op.USAGE, raw_protocol.USAGE.pack(other._id, 0)),
        ]:
            answer = attacker.ask(kind, request)
            assert answer is not None
            assert answer.status != 0
            assert answer.descriptors == []
        assert other.segments() == []


def test_a_reader_cannot_write(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "to read"
    with scene.mf.serve(path, readonly=True), RawPeer.greeted(os.fsencode(path)) as attacker:
        answer = attacker.ask(Op.OPEN, protocol.NAME.pack(_file(scene)))
        assert answer is not None
        (descriptor,) = answer.descriptors
        with pytest.raises(OSError):
            os.pwrite(descriptor, b"x", scene.honests_pages.start)
        with pytest.raises(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)
        answer = attacker.ask(Op.ALLOCATE, raw_protocol.ALLOCATE.pack(_file(scene), PAGE, 1, 0, 0))
        assert answer is not None
        assert answer.status != 0


@both_listeners
def test_tokens_are_not_guessed(scene: Scene, listener: str) -> None:
    rng = random.Random(1)
    with RawPeer.greeted(scene.address(listener)) as attacker:
        for size in [0, 1, 15, 16, 17, 4000] + [16] * 100:
            answer = attacker.ask(Op.CLAIM, rng.randbytes(size))
            assert answer is not None
            assert answer.status != 0


# --- what costs the owner something --------------------------------------------------------------


@both_listeners
def test_half_open_greetings(scene: Scene, listener: str) -> None:
    """The newest UNGREETED_MAX of them are let in, for ten seconds."""
    before = _descriptors()
    with ExitStack() as attackers:
        for _ in range(3 * UNGREETED_MAX):
            attackers.enter_context(RawPeer(scene.address(listener)))
        scene.check_served()
        theirs = 3 * UNGREETED_MAX
        assert _descriptors() <= before + theirs + UNGREETED_MAX + 1
        _core.broker_set_times(greeting_s=0.05)
        try:
            eventually(
                lambda: _descriptors() <= before + theirs,
                "channels without a greeting are dropped",
            )
        finally:
            _core.broker_set_times()


def _send_all_that_fits(attacker: RawPeer, kind: Op, payload: bytes) -> int:
    """How many requests that is."""
    with contextlib.suppress(BlockingIOError):
        for number in range(1, 100_000):
            attacker.socket.send(raw_protocol.pack(kind, number, payload))
    return number - 1


@both_listeners
@pytest.mark.parametrize("kind", [Op.PING, Op.OPEN, Op.FORK, Op.USAGE])
def test_answers_that_are_never_read(scene: Scene, listener: str, kind: Op) -> None:
    """The owner stops reading such a peer, and what it would have answered goes with it."""
    request = raw_protocol.USAGE if kind == Op.USAGE else protocol.NAME
    payload = request.pack(_file(scene), *[0] * (kind == Op.USAGE))
    with RawPeer.greeted(scene.address(listener)) as attacker:
        attacker.socket.setblocking(False)
        sent = idle = 0
        while idle < 3:  # the owner serves others three times, and does not read
            fits = _send_all_that_fits(attacker, kind, payload)
            sent, idle = sent + fits, 0 if fits else idle + 1
            assert sent < 50_000
            scene.check_served()


@both_listeners
def test_descriptors_sent_along(scene: Scene, listener: str) -> None:
    before = _descriptors()
    with RawPeer.greeted(scene.address(listener)) as attacker, open(os.devnull, "rb") as null:
        for number in range(1, 51):
            packets = [raw_protocol.pack(Op.PING, number)]
            socket.send_fds(attacker.socket, packets, [null.fileno()] * 50)
            answer = attacker.answer()
            assert answer is not None
            assert answer.status == 0
        assert _descriptors() <= before + 3  # both ends, and what is sent


@both_listeners
def test_children_without_end(scene: Scene, listener: str) -> None:
    """By and by the owner refuses more of them, and goes on serving those who are there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    children: list[int] = []
    try:
        with RawPeer.greeted(scene.address(listener)) as attacker:
            for _ in range(1000):
                answer = attacker.ask(Op.FORK)
                if answer is None or answer.status != 0:
                    break
                children += answer.descriptors
            else:
                pytest.fail("1000 children")
            scene.check_served()
    finally:
        for child in children:
            os.close(child)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_child_cannot_pass_for_another_process(scene: Scene) -> None:
    """The owner looks whether a process ends: the kernel says which, not the child."""
    with RawPeer.greeted(scene.address("path"), own=True) as parent:
        answer = parent.ask(Op.FORK)
        assert answer is not None
        (descriptor,) = answer.descriptors
        with RawPeer.__new__(RawPeer) as child:
            child.socket, child._number = socket.socket(fileno=descriptor), 0
            child.socket.settimeout(60)
            child.ask(Op.HELLO, protocol.HELLO.pack(1, bytes(protocol.NONCE_BYTES)))
            request = raw_protocol.ALLOCATE.pack(_file(scene), 5 * PAGE, 1, 0, 0)
            allocated = child.ask(Op.ALLOCATE, request)
            assert allocated is not None
            (lease,) = (each for each in scene.mf.leases() if each.nbytes == 5 * PAGE)
            assert lease.pid == os.getpid()
            # This process has the file mapped: its end alone would not end the lease.
            child.ask(Op.RELEASE, allocated.payload)


def _come_and_go(address: bytes, times: int) -> None:
    for number in range(times):
        with RawPeer(address) as attacker:
            if number % 3:
                attacker.send(raw_protocol.pack(Op.HELLO, 0, bytes(protocol.HELLO.size)))
            if number % 3 == 2:
                attacker.send(raw_protocol.pack(Op.PING, 1))


@both_listeners
def test_ten_thousand_connections_that_come_and_go(scene: Scene, listener: str) -> None:
    for _ in range(10):
        _come_and_go(scene.address(listener), 1000)
        scene.check_served()


def _hold_everything(scene: Scene, attacker: RawPeer) -> None:
    """A lease, an unpinned lease, an offer and a child's copy of it all."""
    for _ in range(3):
        answer = attacker.ask(
            Op.ALLOCATE, raw_protocol.ALLOCATE.pack(_file(scene), 5 * PAGE, 1, 0, 0)
        )
        assert answer is not None
        assert answer.status == 0
    assert attacker.ask(Op.UNPIN, answer.payload) is not None
    assert attacker.ask(Op.OFFER, answer.payload) is not None


def _hang_up(scene: Scene, attacker: RawPeer) -> None:
    attacker.close()


def _talk_nonsense(scene: Scene, attacker: RawPeer) -> None:
    attacker.send(b"nonsense")
    assert attacker.is_dropped()


@pytest.mark.parametrize("leave", [_hang_up, _talk_nonsense])
def test_what_an_attacker_held_comes_back(
    scene: Scene, leave: Callable[[Scene, RawPeer], None]
) -> None:
    with RawPeer.greeted(scene.path) as attacker:
        _hold_everything(scene, attacker)
        assert sum(lease.nbytes for lease in scene.mf.leases()) > 15 * PAGE
        leave(scene, attacker)
    assert scene.mf.drop_unclaimed() == 5 * PAGE


def test_an_attacker_does_not_unpin_what_others_hold(scene: Scene) -> None:
    """Pages go only when all who hold them have unpinned them, whatever one of them says."""
    token = pgalloc.sharing.transport.offer(scene.a)
    with RawPeer.greeted(_core.broker_address()[0]) as attacker:
        answer = attacker.ask(Op.CLAIM, token.nonce)
        assert answer is not None
        assert answer.status == 0
        pages = answer.payload[: raw_protocol.PAGES.size]
        for descriptor in answer.descriptors:
            os.close(descriptor)
        unpinned = attacker.ask(Op.UNPIN, pages)
        assert unpinned is not None
        with testing.ManualPressure() as pressure:
            pressure.demand(1 << 30)
        scene.check_served()
        assert attacker.ask(Op.RELEASE, pages) is not None
