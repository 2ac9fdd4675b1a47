"""A client of an owner's socket that keeps to no protocol: it sends what a test says.

It is connected by another process, which has none of the owner's memory mapped. For the owner that
one is the peer: what it holds comes back when the connection ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from typing import NamedTuple

import raw_protocol

from pgalloc.sharing import protocol
from pgalloc.sharing.protocol import Op

ANSWER_S_MAX = 30.0


_CONNECT = """
import socket, sys
line = socket.socket(fileno=int(sys.argv[1]))
while address := line.recv(200):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connected:
        try:
            connected.connect(address)
        except OSError:
            line.send(b"!")
        else:
            socket.send_fds(line, [b"."], [connected.fileno()])
"""


class Stranger:
    """The process that connects: one for as long as a test module needs it."""

    current: Stranger | None = None

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-S", "-c", _CONNECT, str(number)]
            self._process = subprocess.Popen(command, pass_fds=[number])
        self.pid = self._process.pid
        Stranger.current = self

    def connect(self, address: bytes) -> socket.socket:
        self._line.send(address)
        _, descriptors, _, _ = socket.recv_fds(self._line, 1, 1)
        if not descriptors:
            raise ConnectionRefusedError(f"no process listens at {address!r}")
        return socket.socket(fileno=descriptors[0])

    def close(self) -> None:
        Stranger.current = None
        self._line.close()
        assert self._process.wait(ANSWER_S_MAX) == 0


class Answer(NamedTuple):
    """Status 0 is success; ``descriptors`` are the caller's."""

    status: int
    payload: bytes
    descriptors: list[int]


class RawPeer:
    """One connection."""

    def __init__(self, address: bytes, *, own: bool = False) -> None:
        if own:  # this process is the peer
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.socket.connect(address)  # waits where others wait: no timeout is set yet
        else:
            self.socket = self._by_a_stranger(address)
        self.socket.settimeout(ANSWER_S_MAX)
        self._number = 0

    @staticmethod
    def _by_a_stranger(address: bytes) -> socket.socket:
        assert Stranger.current is not None, "no process connects for others"
        return Stranger.current.connect(address)

    @classmethod
    def greeted(cls, address: bytes, *, own: bool = False) -> RawPeer:
        peer = cls(address, own=own)
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
        self.send(raw_protocol.pack(kind, self._number, payload))
        return self.answer()

    def answer(self) -> Answer | None:
        """The next answer; None if the owner has hung up."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(self.socket, raw_protocol.PACKET_MAX, 4)
        except ConnectionResetError:
            return None
        if not packet:
            return None
        status, _number, payload = raw_protocol.unpack(packet)
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
