"""What happens to shared pages when a process forks.

A forked child becomes a peer of the owners of its parent's pages, with leases from the moment of
the fork: its views stay what they are, whatever its parent does. The owner and the child are
connected by a pair of sockets that is made before the fork, so no child ever waits for one.

``before`` runs while the parent's other threads go on; the leases on its own files are taken by the
core at the very moment of the fork. Connections to other owners are locked across it, so no lease
arrives in between.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from contextlib import suppress
from typing import NamedTuple

from pgalloc import _core
from pgalloc.errors import Error, OwnerGoneError
from pgalloc.sharing import connection as connections
from pgalloc.sharing import files, protocol
from pgalloc.sharing.connection import Connection
from pgalloc.sharing.protocol import Op
from pgalloc.sharing.tokens import Address

LOCK_MAX_S = 2.0
"""How long a fork waits for a request of another thread. The child does without, then."""

_log = logging.getLogger("pgalloc")


class _Pair(NamedTuple):
    parents: socket.socket
    childs: socket.socket

    def close(self) -> None:
        self.parents.close()
        self.childs.close()


class _Fork:
    """What is prepared for one fork, from before to after."""

    def __init__(self) -> None:
        self.pair: _Pair | None = None  # for the parent's own files
        self.address: Address | None = None  # of the parent
        self.locked: list[Connection] = []
        self.childs: list[tuple[Connection, socket.socket]] = []  # to other owners

    def prepare(self) -> None:
        """In the parent, before the fork. After an error the child has fewer leases."""
        if any(not (file.closed or file._forked) for file in files.all_files()):
            self.address = Address(*_core.broker_address())
            self.pair = _Pair(*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            _core.arm_fork_leases()
        for known in connections.known_connections():
            if known.lock.acquire(timeout=LOCK_MAX_S):
                self.locked.append(known)
                if known.files and known.link.hold_answers(LOCK_MAX_S):
                    self._ask_for_child(known)

    def _ask_for_child(self, known: Connection) -> None:
        with suppress(OwnerGoneError):
            _, descriptor = known.request_descriptor(Op.FORK)
            self.childs.append((known, socket.socket(fileno=descriptor)))

    def unlock(self) -> None:
        """In the parent, after the fork: let other threads use the connections again."""
        while self.locked:
            known = self.locked.pop()
            known.link.let_answers_in()
            known.lock.release()

    def close_childs(self) -> None:
        """Close the sockets for the child: in the parent, or in another child."""
        for _, sock in self.childs:
            sock.close()


_forks: dict[int, _Fork] = {}  # by thread


def _before() -> None:
    fork = _forks[threading.get_ident()] = _Fork()
    try:
        fork.prepare()
    except (Error, OSError):
        _log.warning("a child is forked without leases on some pages", exc_info=True)


def _after_in_parent() -> None:
    fork = _forks.pop(threading.get_ident(), None)
    if fork is None:
        return
    fork.unlock()
    fork.close_childs()
    if fork.pair is None:
        return
    fork.pair.childs.close()
    _core.broker_add_child(fork.pair.parents.detach())


def _after_in_child() -> None:
    fork = _forks.pop(threading.get_ident(), None)
    for other in _forks.values():  # of threads that are not here
        other.close_childs()
        if other.pair is not None:
            other.pair.close()
    _forks.clear()
    connections.forget_all()
    if fork is None:
        return
    for known, sock in fork.childs:
        with suppress(OSError):
            _reconnect(known, sock)
    if fork.pair is not None:
        fork.pair.parents.close()
        _become_fork_peer(fork.pair.childs, fork.address)


def _become_fork_peer(sock: socket.socket, address: Address | None) -> None:
    """Become a peer of the parent."""
    _introduce(sock)
    connection = Connection(sock, address)
    connection.owner_pid = os.getppid()
    parents = {file._id: file for file in files.all_files()}
    for name in _core.become_fork_peers(connection.link, parents.values()):
        file = parents[name]
        file._become_fork_peer(connection)
        connection.files[name] = file
    connections.remember(connection)


def _reconnect(known: Connection, sock: socket.socket) -> None:
    """Become a peer of another owner, which the parent is a peer of."""
    _introduce(sock)
    connection = Connection(sock, known.address)
    connection.owner_pid = known.owner_pid
    for name, file in known.files.items():
        if not file.closed:
            file._take_fork_lease(connection)
            connection.files[name] = file
    connections.remember(connection)


def _introduce(sock: socket.socket) -> None:
    packet = protocol.pack(Op.HELLO, 0, protocol.HELLO.pack(os.getpid(), b""))
    with suppress(OSError):
        sock.send(packet, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
