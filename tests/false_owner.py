"""A false owner of pages: it listens like one, and answers as a test says."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import raw_protocol
from conftest import PAGE

from pgalloc.sharing import protocol
from pgalloc.sharing.protocol import Op

NAME = 7  # of its file
FILE_BYTES = 4 * PAGE


class Reply(NamedTuple):
    """A packet, with as many descriptors of its file."""

    packet: bytes
    descriptors: int = 0


Answer = Callable[[int], "Reply | None"]
"""From the number of a request to the reply; None hangs up."""


def well(payload: bytes, descriptors: int = 0) -> Answer:
    """What an honest owner would answer."""
    return lambda number: Reply(raw_protocol.pack(0, number, payload), descriptors)


HONEST: Mapping[Op, Answer] = {
    Op.HELLO: well(protocol.PROCESS.pack(1)),
    Op.SERVED: well(protocol.SERVED.pack(NAME, False)),
    Op.OPEN: well(protocol.FILE.pack(NAME, 1 << 30, False), 1),
    Op.ALLOCATE: well(raw_protocol.PAGES.pack(NAME, 0, PAGE)),
    Op.DECOMMIT: well(b""),
    Op.UNIQUE: well(b"\1"),
    Op.UNPIN: well(b"\1"),
    Op.PIN: well(b"\1"),
    Op.USAGE: well(bytes(raw_protocol.COUNTS.size)),
    Op.OFFER: well(bytes(protocol.NONCE_BYTES)),
    Op.PING: well(protocol.PROCESS.pack(1)),
    Op.MAKE_ROOM: well(bytes(8)),  # has nothing to give
}
"""What Python's own peers ask for."""

NOT_HERE: Mapping[Op, str] = {
    Op.CLAIM: "its answers are the tests' own",
    Op.FORK: "native/owner_link_test.cc",
    Op.PART: "has no answer",
    Op.RELEASE: "has no answer",
    Op.CACHE: "its answers are the tests' own",
}
"""And what has no honest answer here, with the reason, or the place where lies are tried."""


class FalseOwner:
    """Serves one connection after the other in a thread; ``lies`` replace honest answers."""

    def __init__(
        self, path: Path, lies: Mapping[Op, Answer], *, descriptor: int | None = None
    ) -> None:
        self._answers = {**HONEST, **lies}
        self._memory = os.memfd_create("false owner", os.MFD_CLOEXEC)
        os.ftruncate(self._memory, FILE_BYTES)
        self._sent = self._memory if descriptor is None else descriptor
        self.left = threading.Event()
        """The latest peer has hung up, or has been hung up on."""
        self._connection: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(os.fspath(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                self._connection, _ = self._listener.accept()
            except OSError:
                return
            with self._connection:
                self.left.clear()
                self.answer_all(self._connection)
            self.left.set()

    def answer_all(self, connection: socket.socket) -> None:
        """Answer one peer until it leaves."""
        while packet := connection.recv(raw_protocol.PACKET_MAX):
            kind, number, _ = raw_protocol.unpack(packet)
            if number == 0:
                continue
            reply = self._answers[Op(kind)](number)
            if reply is None or not self.send(connection, reply):
                return

    def send(self, connection: socket.socket, reply: Reply) -> bool:
        """Whether the peer is still there."""
        try:
            sent = [self._sent] * reply.descriptors
            socket.send_fds(connection, [reply.packet], sent, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def close(self) -> None:
        for listening in (self._listener, self._connection):  # wakes accept() and recv()
            if listening is not None and listening.fileno() >= 0:
                with contextlib.suppress(OSError):  # the peer has left
                    listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        os.close(self._memory)

    def __enter__(self) -> FalseOwner:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
