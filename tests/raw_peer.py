"""A client of an owner's socket that keeps to no protocol: it sends what a test says."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import NamedTuple

from pgalloc.sharing import protocol
from pgalloc.sharing.protocol import Op

ANSWER_S_MAX = 30.0
_KIND = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC


class Answer(NamedTuple):
    """Status 0 is success; ``descriptors`` are the caller's."""

    status: int
    payload: bytes
    descriptors: list[int]


class RawPeer:
    """One connection."""

    def __init__(self, address: bytes) -> None:
        self.socket = socket.socket(socket.AF_UNIX, _KIND)
        self.socket.connect(address)  # waits where others wait: no timeout is set yet
        self.socket.settimeout(ANSWER_S_MAX)
        self._number = 0

    @classmethod
    def greeted(cls, address: bytes) -> RawPeer:
        peer = cls(address)
        greeting = protocol.HELLO.pack(os.getpid(), bytes(protocol.NONCE_BYTES))
        assert peer.ask(Op.HELLO, greeting) is not None
        return peer

    def send(self, packet: bytes) -> None:
        """One packet, whatever it is. Those that the owner has dropped may send, too."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.send(packet, socket.MSG_NOSIGNAL)

    def ask(self, kind: int, payload: bytes = b"") -> Answer | None:
        """The answer; None if the owner has hung up instead."""
        self._number += 1
        self.send(protocol.pack(kind, self._number, payload))
        return self.answer()

    def answer(self) -> Answer | None:
        """The next answer; None if the owner has hung up."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(self.socket, protocol.PACKET_MAX, 4)
        except ConnectionResetError:
            return None
        if not packet:
            return None
        status, _number, payload = protocol.unpack(packet)
        return Answer(status, payload, descriptors)

    def is_dropped(self) -> bool:
        """Whether the owner hangs up rather than answering."""
        return self.answer() is None

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
