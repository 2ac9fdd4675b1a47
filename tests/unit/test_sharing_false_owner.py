"""A hostile owner: whatever it answers, its peers get a clear error, lose nothing, and go on."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import raw_protocol
from conftest import PAGE
from false_owner import FILE_BYTES, HONEST, NAME, Answer, FalseOwner, Reply, well
from raw_protocol import Error
from waiting import TIMEOUT_S, join

import pgalloc
from pgalloc import OwnerGoneError, SharingError
from pgalloc.sharing import connection, protocol, transport
from pgalloc.sharing.protocol import Op
from pgalloc.sharing.tokens import Address, Token

MAX64 = 2**64 - 1


def _raw(packet: bytes, descriptors: int = 0) -> Answer:
    return lambda number: Reply(packet, descriptors)


def _status(status: int, payload: bytes = b"") -> Answer:
    return lambda number: Reply(raw_protocol.pack(status, number, payload))


def _another_version(number: int) -> Reply:
    return Reply(b"\x63" + raw_protocol.pack(0, number)[1:])


def _too_long(number: int) -> Reply:
    return Reply(raw_protocol.pack(0, number).ljust(raw_protocol.PACKET_MAX + 1, b"\0"))


def _too_many_descriptors(number: int) -> Reply:
    return Reply(raw_protocol.pack(0, number), 40)


# Whatever was asked for.
LIES: dict[str, Answer] = {
    "hangs up": lambda number: None,
    "garbage": _raw(b"\xff" * 100),
    "one byte": _raw(b"\0"),
    "another version": _another_version,
    "too long": _too_long,
    "too many descriptors": _too_many_descriptors,
    "an empty answer": well(b""),
    "a short answer": well(b"\1\2\3"),
    "a long answer": well(bytes(4_000)),
    "an unknown status": _status(200),
    "a status without a text": _status(Error.RANGE),
    "a text that is none": _status(Error.RANGE, b"\xff\xfe\x80"),
    "an OSError without a number": _status(Error.SYSTEM, b"\1"),
    "an OSError with a strange number": _status(Error.SYSTEM, b"\xff\xff\xff\xff"),
}


def _clear(run: Callable[[], Any]) -> None:
    """It may succeed. If it fails, then with an exception that callers expect."""
    with contextlib.suppress(pgalloc.Error, OSError):
        run()


def _use(path: Path) -> None:
    """Everything a peer asks an owner for."""
    peer = pgalloc.connect(path)
    try:
        _clear(peer.usage)
        _clear(lambda: peer.allocate(PAGE).release())
        allocation = peer.allocate(PAGE)
        _clear(lambda: allocation.view().release())
        _clear(allocation.decommit)
        _clear(lambda: peer.has_unique_ref(allocation.range))
        _clear(lambda: ForkingPickler.dumps(allocation))
        _clear(allocation.unpin)
        _clear(allocation.pin)
        _clear(lambda: peer.flush(1))
        _clear(allocation.release)
    finally:
        peer.close()


Impatience = Callable[..., None]


@pytest.fixture
def lose_patience(monkeypatch: pytest.MonkeyPatch) -> Impatience:
    """From now on, what is not answered at once is not answered; of one that is connected, too."""

    def lose(peer: Any = None) -> None:
        monkeypatch.setattr(connection, "REQUEST_MAX_S", 0.05)
        if peer is not None:
            peer._connection.link.set_timeout(0.05)

    return lose


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "false"


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
@pytest.mark.parametrize("asked", HONEST)
def test_a_false_answer(path: Path, asked: Op, lie: Answer) -> None:
    with FalseOwner(path, {asked: lie}):
        _clear(lambda: _use(path))


_PAGES = raw_protocol.PAGES.pack(NAME, 0, PAGE)
_FILE = protocol.FILE.pack(NAME, 1 << 30, False)
CLAIMS: dict[str, Answer] = {
    "pages": well(_PAGES),
    "pages and a file": well(_PAGES + _FILE, 1),
    "a file without a descriptor": well(_PAGES + _FILE),
}
FALSE_CLAIMS: dict[str, Answer] = {
    "a descriptor without a file": well(_PAGES, 1),
    "a piece of a file": well(_PAGES + b"\1\2\3", 1),
    "a file without a capacity": well(_PAGES + protocol.FILE.pack(NAME, 0, False), 1),
    "a file that is too large": well(_PAGES + protocol.FILE.pack(NAME, MAX64, False), 1),
    "no pages": well(raw_protocol.PAGES.pack(NAME, PAGE, 0) + _FILE, 1),
}


def _claim(path: Path, answer: Answer) -> None:
    address = Address(os.fsencode(path), b"", bytes(protocol.NONCE_BYTES), os.geteuid())
    with FalseOwner(path, {Op.CLAIM: answer}):
        try:
            with transport.claim(Token(address, bytes(protocol.NONCE_BYTES))) as pages:
                assert bytes(pages.view()) == bytes(PAGE)
        finally:
            if (to_owner := connection.settled().by_owner.get(address.owner)) is not None:
                to_owner.close()


@pytest.mark.parametrize(
    "lie", [*LIES.values(), *FALSE_CLAIMS.values()], ids=[*LIES, *FALSE_CLAIMS]
)
def test_a_false_answer_to_a_claim(path: Path, lie: Answer) -> None:
    with pytest.raises((pgalloc.Error, OSError)):
        _claim(path, lie)


@pytest.mark.parametrize("answer", CLAIMS.values(), ids=CLAIMS.keys())
def test_an_honest_answer_to_a_claim(path: Path, answer: Answer) -> None:
    """What the file is may come along, or be asked for."""
    _claim(path, answer)


def test_an_honest_answer(path: Path) -> None:
    """The test of the tests: without a lie, everything works."""
    with FalseOwner(path, {}), pgalloc.connect(path) as peer:
        assert set(peer.usage().values()) == {0}
        with peer.allocate(PAGE) as allocation:
            allocation.view()[:4] = b"true"
            assert peer.has_unique_ref(allocation.range)
            allocation.unpin()
            assert allocation.pin()
            allocation.decommit()


@pytest.mark.parametrize(
    "pages",
    [
        (NAME, 0, 0),
        (NAME, PAGE, 0),
        (NAME, 1, 2),
        (NAME, 0, MAX64),
        (NAME, MAX64 - 1, MAX64),
        (NAME, FILE_BYTES, FILE_BYTES + PAGE),
        (NAME, 1 << 40, (1 << 40) + PAGE),
        (NAME + 1, 0, PAGE),
    ],
)
def test_pages_that_cannot_be(path: Path, pages: tuple[int, int, int]) -> None:
    """Beyond the end of the file, say: what would be a SIGBUS is an exception."""
    commit = pgalloc.AllocationMode.ALLOCATE_AND_COMMIT
    lies = {Op.ALLOCATE: well(raw_protocol.PAGES.pack(*pages))}
    with FalseOwner(path, lies), pgalloc.connect(path) as peer:
        _clear(lambda: bytes(peer.allocate(PAGE).view()))
        _clear(lambda: peer.allocate(PAGE, mode=commit))


@pytest.mark.parametrize("capacity", [0, 1, 4095, 2**62, 2**63, MAX64])
def test_a_capacity_that_cannot_be(path: Path, capacity: int) -> None:
    with FalseOwner(path, {Op.OPEN: well(protocol.FILE.pack(NAME, capacity, False), 1)}):
        _clear(lambda: _use(path))


@pytest.mark.parametrize("descriptors", [0, 2, 3, 4])
def test_not_one_descriptor(path: Path, descriptors: int) -> None:
    """None is left open, either: the leak guard looks."""
    file = protocol.FILE.pack(NAME, 1 << 30, False)
    with FalseOwner(path, {Op.OPEN: well(file, descriptors)}), pytest.raises(OwnerGoneError):
        pgalloc.connect(path)


@pytest.mark.parametrize("asked", [Op.HELLO, Op.SERVED, Op.ALLOCATE, Op.USAGE, Op.PING])
def test_descriptors_that_were_not_asked_for(path: Path, asked: Op) -> None:
    answers = {
        Op.HELLO: protocol.PROCESS.pack(1),
        Op.SERVED: protocol.SERVED.pack(NAME, False),
        Op.ALLOCATE: raw_protocol.PAGES.pack(NAME, 0, PAGE),
        Op.USAGE: bytes(raw_protocol.COUNTS.size),
        Op.PING: protocol.PROCESS.pack(1),
    }
    before = len(os.listdir("/proc/self/fd"))
    with FalseOwner(path, {asked: well(answers[asked], 2)}):
        _clear(lambda: _use(path))
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("what", ["a pipe", "a folder", "/dev/null", "a socket"])
def test_a_descriptor_of_something_else(path: Path, tmp_path: Path, what: str) -> None:
    ends: tuple[int, ...]
    if what == "a pipe":
        ends = os.pipe()
    elif what == "a socket":
        ends = tuple(end.detach() for end in socket.socketpair())
    else:
        ends = (os.open(tmp_path if what == "a folder" else what, os.O_RDONLY),)
    with FalseOwner(path, {}, descriptor=ends[0]):
        _clear(lambda: _use(path))
    for end in ends:
        os.close(end)


# --- owners that keep a peer waiting -------------------------------------------------------------


def _in_time(run: Callable[[], Any]) -> BaseException | None:
    """What it raised. Fails if it hangs."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    join([thread])
    return raised[0] if raised else None


@pytest.mark.parametrize("asked", [Op.HELLO, Op.SERVED, Op.OPEN])
def test_an_owner_that_never_answers_accepts_no_peer(
    path: Path, asked: Op, lose_patience: Impatience
) -> None:
    silence = threading.Event()

    def stay_silent(number: int) -> None:
        silence.wait(TIMEOUT_S)

    lose_patience()
    with FalseOwner(path, {asked: stay_silent}):
        raised = _in_time(lambda: pgalloc.connect(path))
        silence.set()
    assert isinstance(raised, SharingError)


def test_an_owner_that_stops_answering(path: Path, lose_patience: Impatience) -> None:
    """Each request fails by itself: the pages stay, and the owner may come back."""
    silence = threading.Event()

    def stay_silent(number: int) -> None:
        silence.wait(TIMEOUT_S)

    with FalseOwner(path, {Op.USAGE: stay_silent}):
        peer = pgalloc.connect(path)
        allocation = peer.allocate(PAGE)
        view = allocation.view()
        view[:4] = b"kept"
        lose_patience(peer)
        assert isinstance(_in_time(peer.usage), SharingError)
        assert isinstance(_in_time(lambda: peer.allocate(PAGE)), SharingError)
        silence.set()
        assert bytes(view[:4]) == b"kept"
        view.release()
        allocation.release()
        peer.close()


class _Talkative(FalseOwner):
    """It answers requests of tomorrow, one after the other, as long as the peer listens."""

    def answer_all(self, connection: socket.socket) -> None:
        while packet := connection.recv(raw_protocol.PACKET_MAX):
            kind, number, _ = raw_protocol.unpack(packet)
            reply = HONEST[Op(kind)](number)
            assert reply is not None
            if kind != Op.USAGE:
                self.send(connection, reply)
                continue
            while self.send(connection, Reply(raw_protocol.pack(0, number + 1000))):
                pass
            return


def test_an_owner_that_answers_what_was_not_asked(path: Path, lose_patience: Impatience) -> None:
    """Answers to other requests do not count, however many come."""
    with _Talkative(path, {}):
        peer = pgalloc.connect(path)
        lose_patience(peer)
        assert isinstance(_in_time(peer.usage), SharingError)
        peer.close()


def test_close_hangs_up(path: Path) -> None:
    """Though objects that knew the owner are still there."""
    with FalseOwner(path, {}) as owner:
        peer = pgalloc.connect(path)
        allocation = peer.allocate(PAGE)
        assert not owner.left.is_set()
        peer.close()
        assert owner.left.wait(TIMEOUT_S)
        assert peer.closed
        allocation.release()
