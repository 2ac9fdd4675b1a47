"""A peer's connection to an owner of pages: requests and their answers.

Thread safety: any thread; one request at a time is under way. What is let go of takes another path,
the native OwnerLink, which waits for no answer.

Invariants:
  1. An answer that no thread waits for any more (its request was interrupted) is not lost: the
     lease it brings is given back, its descriptor is closed.
  2. Once the owner has gone, every request raises OwnerGoneError at once.
  3. A forked child never uses its parent's connection; it gets one of its own before the fork.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
import weakref
from contextlib import suppress
from typing import Any, NamedTuple

from pgalloc import _core, fork
from pgalloc.errors import OwnerGoneError
from pgalloc.sharing import protocol
from pgalloc.sharing.protocol import Op
from pgalloc.sharing.tokens import Address

REQUEST_MAX_S = 60.0
"""How long an owner may take to answer before it counts as gone."""

_KIND = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
_RELEASE = protocol.pack(Op.RELEASE, 0)


class _Reply(NamedTuple):
    status: int
    payload: bytes
    descriptors: list[int]

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


class Connection:
    """To one owner; ``socket`` is taken over."""

    def __init__(self, sock: socket.socket, address: Address | None) -> None:
        sock.settimeout(REQUEST_MAX_S)
        self.address = address
        # PeerFiles, or in a forked child of the owner its parent's MemoryFiles. Weak: a
        # file that is not used here must not keep memory that its owner has done with.
        self.files: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self.lock = threading.RLock()
        self._socket = sock
        self._link = _core.OwnerLink(sock.fileno(), _RELEASE)
        self._number = 0
        self._waiting: set[int] = set()  # numbers of requests
        self._replies: dict[int, _Reply] = {}  # those that came while another was waited for
        self._operations: dict[int, int] = {}
        self._closed = False
        self.owner_pid = 0
        fork.register(self)
        _all.add(self)

    @classmethod
    def open(cls, name: bytes | str, secret: bytes, address: Address | None) -> Connection:
        """Connect. Raises OwnerGoneError if no process listens, OSError, SharingError."""
        sock = socket.socket(socket.AF_UNIX, _KIND)
        try:
            # Not settimeout(): a socket that does not block is refused when many come at once.
            seconds = struct.pack("ll", int(REQUEST_MAX_S), 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
            try:
                sock.connect(name)
            except (ConnectionRefusedError, FileNotFoundError, BlockingIOError) as error:
                raise OwnerGoneError(f"no owner of pages listens at {name!r}") from error
            connection = cls(sock, address)
        except BaseException:
            sock.close()
            raise
        try:
            answer = connection.request(Op.HELLO, protocol.HELLO.pack(os.getpid(), secret))
            (connection.owner_pid,) = protocol.fields(protocol.PROCESS, answer)
        except OwnerGoneError as error:
            connection.close()
            raise OwnerGoneError(
                f"the owner of pages at {name!r} did not let this process in: is it another user's?"
            ) from error
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def link(self) -> _core.OwnerLink:
        """The native end of the connection, which gives leases back."""
        return self._link

    @property
    def broken(self) -> bool:
        """Whether the owner has gone, or the connection was closed."""
        return self._closed or self._link.broken

    def has_hung_up(self) -> bool:
        """Whether the owner has gone: True may come late."""
        if self.broken:
            return True
        poll = select.poll()
        try:
            poll.register(self._socket, 0)
        except ValueError:  # another thread has closed it
            return True
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    def request(self, operation: Op, payload: bytes = b"") -> bytes:
        """Ask the owner. Raises what it answers, or OwnerGoneError."""
        reply = self._exchange(operation, payload)
        reply.close()  # whatever came along
        return reply.payload

    def request_descriptor(self, operation: Op, payload: bytes = b"") -> tuple[bytes, int]:
        """As :meth:`request`, for answers with a descriptor, which is the caller's."""
        reply = self._exchange(operation, payload)
        if len(reply.descriptors) != 1:
            reply.close()
            raise OwnerGoneError("the owner of these pages sent no descriptor")
        return reply.payload, reply.descriptors[0]

    def _exchange(self, operation: Op, payload: bytes) -> _Reply:
        with self.lock:
            if self.broken:
                self.break_off()  # the link may have been the first to notice
                raise OwnerGoneError("the process that owns these pages has ended")
            self._number = number = self._number % (2**32 - 1) + 1
            packet = protocol.pack(operation, number, payload)
            self._operations[number] = operation
            try:
                self._waiting.add(number)
                self._socket.send(packet, socket.MSG_NOSIGNAL)
                deadline = time.monotonic() + REQUEST_MAX_S
                while number not in self._replies:
                    if time.monotonic() > deadline:
                        raise TimeoutError("no answer")
                    self._receive()
                reply = self._replies.pop(number)
                del self._operations[number]
            except OSError as error:
                self.break_off()
                raise OwnerGoneError(
                    f"the process that owns these pages has ended, or does not answer: {error}"
                ) from error
            finally:
                self._waiting.discard(number)
                if number in self._replies:  # interrupted when it had come
                    self._give_up(operation, self._replies.pop(number))
        if reply.status != 0:
            reply.close()
            raise protocol.exception(reply.status, reply.payload)
        return reply

    def _receive(self) -> None:
        packet, ancillary, flags, _ = self._socket.recvmsg(
            protocol.PACKET_MAX, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC
        )
        descriptors = [
            number
            for level, kind, data in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            for (number,) in struct.iter_unpack("i", data[: len(data) // 4 * 4])
        ]
        if not packet or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            _Reply(0, b"", descriptors).close()
            raise ConnectionResetError("the connection ended")
        try:
            status, number, payload = protocol.unpack(packet)
        except protocol.ProtocolError as error:
            _Reply(0, b"", descriptors).close()
            raise ConnectionResetError(str(error)) from error
        reply = _Reply(status, payload, descriptors)
        if number in self._waiting:
            self._replies[number] = reply
        else:
            self._give_up(self._operations.pop(number, 0), reply)

    def _give_up(self, operation: int, reply: _Reply) -> None:
        """The answer to a request that was interrupted."""
        reply.close()
        if reply.status != 0:
            return
        if operation in (Op.CLAIM, Op.ALLOCATE, Op.VALUE) and reply.payload:
            name, start, end = protocol.PAGES.unpack_from(reply.payload)
            self._link.give_back(name, _core.FileRange(start, end))

    def break_off(self) -> None:
        """Give up on the owner: every request raises OwnerGoneError from here on."""
        self._link.break_off()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # the link has a descriptor of its own
        self._socket.close()
        self.files.clear()  # they last as long as there are handles on their pages
        if self.address is not None and _connections.get(self.address) is self:
            del _connections[self.address]

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the owner has all that was let go of. False if ``timeout`` seconds passed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._closed:
            return True
        if not self._link.flush(timeout):
            return False
        if deadline is not None and time.monotonic() > deadline:
            return False
        self.request(Op.PING)
        return True

    def close(self) -> None:
        """Give everything back. Views stay mapped."""
        with self.lock:
            if self._closed:
                return
            for file in list(self.files.values()):
                file._leave()
            self._link.flush(1.0)
            self._closed = True
            self.break_off()

    # --- forks -----------------------------------------------------------------------------------

    def park(self) -> None:
        """For :mod:`pgalloc.fork`: stop the native thread."""
        self._link.park()

    def resume(self) -> None:
        """Undo park()."""
        self._link.resume()

    def reset_in_child(self) -> None:
        """In a forked child: the connection is the parent's."""
        self.lock = threading.RLock()
        self._closed = True
        self._socket.close()


_connections: dict[Address, Connection] = {}
_all: weakref.WeakSet[Connection] = weakref.WeakSet()
_lock = threading.Lock()


def connection_to(address: Address) -> Connection:
    """The connection of this process to an owner, which lasts as long as both do."""
    with _lock:
        for known in list(_connections.values()):
            if known.has_hung_up():
                known.break_off()
        connection = _connections.get(address)
        if connection is not None:
            return connection
        connection = Connection.open(address.name, address.secret, address)
        _connections[address] = connection
        return connection


def known_connections() -> list[Connection]:
    """The connections of this process that are not broken."""
    return [connection for connection in list(_all) if not connection.broken]


def forget_all() -> None:
    """In a forked child: the connections are the parent's."""
    global _lock
    _lock = threading.Lock()
    _connections.clear()
    _all.clear()


def remember(connection: Connection) -> None:
    """A connection that a forked child was born with."""
    if connection.address is not None:
        _connections[connection.address] = connection
