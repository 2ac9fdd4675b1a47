"""A peer's connection to an owner of pages.

Requests, answers and leases are native: see :class:`pgalloc._core.OwnerLink`. Here is how a process
connects, and which connections it has.

Thread safety: any thread. ``lock`` is held while a lease that has arrived finds its file, so that
there is one file for each name.

Invariant: a forked child never uses its parent's connection. It is born with native links of its
own; a Connection for each is made when one is first needed (:func:`settle`), so a child that C code
has forked has them, too.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pgalloc import _core
from pgalloc.errors import Error, OwnerGoneError, SharingError
from pgalloc.sharing import files, protocol
from pgalloc.sharing.protocol import Op
from pgalloc.sharing.tokens import Address

REQUEST_MAX_S = 60.0
"""How long a request waits for its answer, unless connect() said otherwise."""

_PAUSES_S = (0.005, 0.02, 0.1, 0.3)  # before one that was hung up on connects again
_KIND = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
_CREDENTIALS = struct.Struct("3i")  # process, user, group
_NO_SECRET = bytes(protocol.NONCE_BYTES)


class Connection:
    """To one owner."""

    def __init__(
        self, link: _core.OwnerLink, address: Address | None, timeout: float | None = None
    ) -> None:
        settle()
        self.address = address
        # PeerFiles, or in a forked child of the owner its parent's MemoryFiles. Weak: a
        # file that is not used here must not keep memory that its owner has done with.
        self.files: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self.lock = threading.RLock()
        self.link = link
        """The native connection."""
        self.generation = _core.process_generation()
        self.link.set_timeout(REQUEST_MAX_S if timeout is None else timeout)
        self._closed = False
        self.owner_pid = 0
        _all.add(self)

    @classmethod
    def to_owner(cls, address: Address) -> Connection:
        """Connect to the sender of pages. Raises OwnerGoneError if it has gone, SharingError."""
        return cls._let_in(lambda: _connected_to_sender(address), address.secret, address, None)

    @classmethod
    def to_server(cls, path: str, timeout: float | None) -> Connection:
        """Connect to what is served there. Raises OwnerGoneError if nothing is, SharingError."""
        return cls._let_in(
            lambda: _connected(path, os.geteuid(), timeout), _NO_SECRET, None, timeout
        )

    @classmethod
    def _let_in(
        cls,
        connect: Callable[[], socket.socket],
        secret: bytes,
        address: Address | None,
        timeout: float | None,
    ) -> Connection:
        """Connect, and say who this is. Owners that are short of something hang up: try again."""
        pauses_s = iter(_PAUSES_S)
        while True:
            sock = connect()
            try:
                return cls._greeted(sock, secret, address, timeout)
            except OwnerGoneError as error:
                if (pause_s := next(pauses_s, None)) is None:
                    raise OwnerGoneError(
                        "the owner of these pages does not let this process in: is it another "
                        "user's, or has it too many peers?"
                    ) from error
            time.sleep(pause_s)

    @classmethod
    def _greeted(
        cls, sock: socket.socket, secret: bytes, address: Address | None, timeout: float | None
    ) -> Connection:
        with sock:
            connection = cls(_core.OwnerLink(sock.fileno()), address, timeout)
        try:
            answer = connection.request(Op.HELLO, protocol.HELLO.pack(os.getpid(), secret))
            (connection.owner_pid,) = protocol.fields(protocol.PROCESS, answer)
            connection.link.set_owner(connection.owner_pid, address)
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def broken(self) -> bool:
        """Whether the owner has gone, or the connection was closed."""
        return self._closed or self.link.broken

    def has_hung_up(self) -> bool:
        """Whether the owner has gone: True may come late."""
        return self._closed or self.link.has_hung_up()

    def request(self, operation: Op, payload: bytes = b"") -> bytes:
        """Ask the owner. Raises what it answers, OwnerGoneError, SharingError after a time-out."""
        answer, _ = self.link.request(operation, payload)
        return answer

    def request_descriptor(
        self, operation: Op, payload: bytes = b""
    ) -> tuple[bytes, _core.ArrivedDescriptor]:
        """As :meth:`request`, for answers with a descriptor."""
        answer, descriptor = self.link.request(operation, payload)
        if descriptor is None:
            raise OwnerGoneError("the owner of these pages sent no descriptor")
        return answer, descriptor

    def break_off(self) -> None:
        """Give up on the owner: every request raises OwnerGoneError from here on."""
        self.link.break_off()
        self.forget()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the owner has all that was let go of. False if ``timeout`` seconds passed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._closed:
            return True
        if not self.link.flush(timeout):
            return False
        if deadline is not None and time.monotonic() > deadline:
            return False
        self.request(Op.PING)
        return True

    def close(self) -> None:
        """Give everything back, but what is viewed: that goes when the last view does."""
        with self.lock:
            if self._closed:
                return
            keeps = [file._leave() for file in list(self.files.values())]
            self.link.flush(1.0)
            self._closed = True
            if any(keeps):
                self.forget()  # the native link ends with what is viewed
            else:
                self.break_off()

    def forget(self) -> None:
        """Use it for nothing new."""
        self.files.clear()  # they last as long as there are handles on their pages
        if self.address is not None and _connections.get(self.address.owner) is self:
            del _connections[self.address.owner]

    def _note(self, address: Address) -> None:
        """What is sent on tells others how the owner is reached now."""
        if address != self.address and address.path:
            self.link.set_owner(self.owner_pid, address)
            self.address = address


def _connected_to_sender(address: Address) -> socket.socket:
    """By its name, or by its path from another network namespace."""
    try:
        return _connected(address.name, address.uid, None)
    except OwnerGoneError:
        if not address.path:
            raise
    try:
        return _connected(address.path, address.uid, None)
    except (OwnerGoneError, OSError) as error:
        raise OwnerGoneError(
            "the process that sent these pages has ended, or cannot be reached: no process "
            f"listens at {address.name!r}, nor at {os.fsdecode(address.path)} ({error}). "
            "In a network namespace of its own a process needs a /proc that shows the sender, and "
            "the sender's user; or let the sender serve() a path that both see, and connect() there"
        ) from None


def _connected(name: bytes | str, uid: int, timeout: float | None) -> socket.socket:
    """A socket to a process of this user, or root's. Raises OwnerGoneError, SharingError.

    One that is busy, or stopped, is waited for.
    """
    seconds = REQUEST_MAX_S if timeout is None else timeout
    deadline = time.monotonic() + seconds
    sock = socket.socket(socket.AF_UNIX, _KIND)
    try:
        while not _try_to_connect(sock, name, max(0.0, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                raise SharingError(
                    f"the process that listens at {name!r} did not answer in time "
                    f"({seconds:g} seconds): it is stopped, or others come faster than it answers"
                )
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _pid, served_by, _gid = _CREDENTIALS.unpack(credentials)
        if served_by not in (uid, 0):
            raise SharingError(f"user {served_by} listens at {name!r}, not user {uid}")
    except BaseException:
        sock.close()
        raise
    return sock


def _try_to_connect(sock: socket.socket, name: bytes | str, seconds: float) -> bool:
    """False if the other side was busy for so long, or a signal came. Raises OwnerGoneError."""
    # Not settimeout(): a socket that does not block is refused when many come at once.
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6) or 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    try:
        sock.connect(name)
    except BlockingIOError:
        return False
    except (ConnectionRefusedError, FileNotFoundError) as error:
        raise OwnerGoneError(f"no owner of pages listens at {name!r}") from error
    except OSError as error:
        raise OSError(error.errno, f"connect: {error.strerror}", name) from None
    try:
        sock.getpeername()
    except OSError:  # Python takes a wait that a signal has ended for done
        return False
    return True


_connections: dict[tuple[bytes, int], Connection] = {}  # by Address.owner
_all: weakref.WeakSet[Connection] = weakref.WeakSet()
_lock = threading.RLock()  # a signal handler may receive pages, too
_generation = _core.process_generation()


def connection_to(address: Address) -> Connection:
    """The connection of this process to an owner, which lasts as long as both do."""
    settle()
    if (known := _known(address)) is not None:
        return known
    # Without the lock: an owner that does not answer keeps no thread from another owner.
    made = Connection.to_owner(address)
    with _lock:
        if (known := _known(address)) is None:
            _connections[address.owner] = made
            return made
    made.close()
    return known


def _known(address: Address) -> Connection | None:
    with _lock:
        for each in list(_connections.values()):
            if each.has_hung_up():
                each.break_off()
        if (known := _connections.get(address.owner)) is not None:
            known._note(address)
        return known


def of_file(file: Any) -> Connection:
    """The connection through which this process, a forked child, has a file that its parent had.

    Raises ForkedError if it has none.
    """
    link: _core.OwnerLink = file._link
    settle()
    for connection in list(_all):
        if connection.link.number == link.number:
            break
    else:
        connection = _inherited(link)
    connection.files[file._id] = file
    return connection


def settle() -> None:
    """In a forked child, once: the connections are those that it was born with."""
    global _all, _generation, _lock
    if _generation == _core.process_generation():
        return
    parents = list(_all)
    _lock = threading.RLock()  # another thread of the parent may have the old one
    _connections.clear()
    _all = weakref.WeakSet()
    _generation = _core.process_generation()
    born = {link.number: _inherited(link) for link in _core.take_born_links()}
    inherited = [file for parent in parents for file in list(parent.files.values())]
    for file in [*files.all_files(), *inherited]:
        with suppress(Error):  # it is the parent's, or closed
            connection = born[file._link.number]
            connection.files[file._id] = file
    for parent in parents:
        parent.lock = threading.RLock()
        parent.files.clear()


def _inherited(link: _core.OwnerLink) -> Connection:
    owner_pid, address = link.owner()
    connection = Connection(link, None if address is None else Address(*address))
    connection.owner_pid = owner_pid
    if connection.address is not None:
        _connections[connection.address.owner] = connection
    return connection
