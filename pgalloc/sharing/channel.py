"""The owner's end of one peer's connection: packets, and the request under way.

Thread safety: externally synchronised (the broker's lock).

Invariants:
  1. Nothing here waits. An answer that the peer does not read is kept, and no other request is
     begun before it is gone.
  2. Descriptors are closed once they are sent, or cannot be.
"""

from __future__ import annotations

import hmac
import logging
import os
import socket
import struct
import time
from collections.abc import Generator
from typing import Any

from pgalloc.errors import Error
from pgalloc.sharing import protocol
from pgalloc.sharing.protocol import Op, Packet, ProtocolError
from pgalloc.sharing.session import Answer, Scope, Session

GREETING_MAX_S = 10.0
"""How long a peer may take to say who it is."""

_log = logging.getLogger("pgalloc")


class Listener:
    """A listening socket, and what the peers that connect to it may use."""

    def __init__(self, sock: socket.socket, scope: Scope) -> None:
        self.socket = sock
        self.scope = scope


class Channel:
    """One peer. What it does wrong is a ProtocolError; when it has gone, a ConnectionError."""

    def __init__(self, sock: socket.socket, session: Session, *, greeted: bool) -> None:
        self.socket = sock
        self.session = session
        self.greeted = greeted
        self.since = time.monotonic()
        self.steps: Generator[Answer | None] | None = None  # of the request under way
        self.unsent: tuple[bytes, tuple[int, ...]] | None = None
        self._number = 0

    def close(self) -> None:
        """Let go of the descriptors, and of all the peer held."""
        self.steps = None
        self.close_descriptors()
        self.session.end()

    def close_descriptors(self) -> None:
        """Let go of the descriptors only."""
        self.socket.close()
        if self.unsent is not None:
            _close_all(self.unsent[1])
            self.unsent = None

    def receive(self) -> Packet | None:
        """The next packet, if one is there."""
        try:
            # Not recvmsg(): descriptors that were not asked for stay with the kernel.
            packet = self.socket.recv(protocol.PACKET_MAX + 1)
        except (BlockingIOError, InterruptedError):
            return None
        if not packet:
            raise ConnectionResetError("the peer has gone")
        return protocol.unpack(packet)

    def greet(self, packet: Packet, secret: bytes) -> None:
        """Authenticate the peer. Raises ProtocolError if it may not connect."""
        if packet.kind != Op.HELLO:
            raise ProtocolError("a peer has to say who it is first")
        if len(packet.payload) != protocol.HELLO.size:
            raise ProtocolError("a malformed greeting")
        pid, shown = protocol.HELLO.unpack(packet.payload)
        uid = self.session.uid
        if uid != os.geteuid() and not hmac.compare_digest(shown, secret):
            raise ProtocolError(f"user {uid} is not user {os.geteuid()}")
        if self.session.pid == 0:  # a child, connected before it was born
            self.session.pid = pid
        self.greeted = True
        if packet.number:
            payload = protocol.PROCESS.pack(os.getpid())
            self._send(protocol.pack(0, packet.number, payload), ())

    def begin(self, number: int, steps: Generator[Answer | None]) -> None:
        """Begin a request: do its first step."""
        self._number = number
        self.steps = steps
        self.step()

    def step(self) -> None:
        """One step of the request under way. The last one has the answer."""
        assert self.steps is not None
        try:
            answer = next(self.steps, None)
        except ProtocolError:
            raise
        except Exception as error:
            self.steps = None
            self._refuse(error)
            return
        if answer is None:
            return
        self.steps.close()  # what it held, it holds no longer
        self.steps = None
        if self._number:
            packet = protocol.pack(0, self._number, answer.payload)
            self._send(packet, answer.descriptors)
        else:
            _close_all(answer.descriptors)

    def _refuse(self, error: Exception) -> None:
        if not isinstance(error, (Error, OSError, MemoryError, ValueError)):
            _log.error("a request of a peer (pid %d) failed", self.session.pid, exc_info=error)
        if self._number:
            self._send(protocol.pack_error(self._number, error), ())

    def send_again(self) -> None:
        """What the peer did not read before."""
        assert self.unsent is not None
        packet, descriptors = self.unsent
        self.unsent = None
        self._send(packet, descriptors)

    def _send(self, packet: bytes, descriptors: tuple[int, ...]) -> None:
        rights: list[Any] = []
        if descriptors:
            numbers = struct.pack(f"{len(descriptors)}i", *descriptors)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)]
        try:
            self.socket.sendmsg([packet], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            self.unsent = (packet, descriptors)
            return
        except BaseException:
            _close_all(descriptors)
            raise
        _close_all(descriptors)


def _close_all(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
