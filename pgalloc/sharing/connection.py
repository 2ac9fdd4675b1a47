"""A peer's connection to an owner of pages.

Requests, answers and leases are native: see :class:`pgalloc._core.OwnerLink`. Here is how a process
connects, and which connections it has.

Thread safety: any thread. ``lock`` is held while a lease that has arrived finds its file, so that
there is one file for each name.

Invariant: a forked child never uses its parent's connection. It is born with native links of its
own; a Connection for each is made when one is first needed (:func:`settled`), so a child that C
code has forked has them, too.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from itertools import chain
from typing import Any

from pgalloc import _core
from pgalloc.errors import Error, OwnerGoneError, SharingError
from pgalloc.pressure import default_guard
from pgalloc.raised import is_ours
from pgalloc.sharing import files, protocol
from pgalloc.sharing.protocol import Op
from pgalloc.sharing.tokens import Address

REQUEST_MAX_S = 60.0
"""How long a request waits for its answer, unless connect() said otherwise."""

_PAUSES_S = (0.005, 0.02, 0.1, 0.3)  # before one that was hung up on connects again
_NO_SECRET = bytes(protocol.NONCE_BYTES)


class Connection:
    """To one owner."""

    def __init__(
        self,
        link: _core.OwnerLink,
        address: Address | None,
        timeout: float | None = None,
        *,
        its: _Connections | None = None,
    ) -> None:
        self.address = address
        # PeerFiles, or in a forked child of the owner its parent's MemoryFiles. Weak: a
        # file that is not used here must not keep memory that its owner has done with.
        self.files: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self.lock = threading.RLock()
        self.link = link
        """The native connection."""
        self.path: str | None = None
        """What connect() was called with, if it was."""
        self.generation = _core.process_generation()
        default_guard.ensure()  # of the limits of this process, which pays for what it touches
        self.link.set_timeout(REQUEST_MAX_S if timeout is None else timeout)
        self._closed = False
        self.owner_pid = 0
        (settled() if its is None else its).all[link.number] = self

    @classmethod
    def to_owner(cls, address: Address) -> Connection:
        """Connect to the sender of pages. Raises OwnerGoneError if it has gone, SharingError."""

        def connect() -> Connection:
            return cls(_link_to_sender(address), address)

        connection = cls._let_in(connect, address.secret)
        if address.pid not in (0, connection.owner_pid):
            connection.close()
            raise OwnerGoneError(
                "the process that served these pages has ended, or serves no more: another one "
                f"does so at {os.fsdecode(address.name)}"
            )
        return connection

    @classmethod
    def to_server(cls, path: str, timeout: float | None) -> Connection:
        """Connect to what is served there. Raises OwnerGoneError if nothing is, SharingError.

        Errors of the kernel's name the path.
        """

        def connect() -> Connection:
            name = os.fsencode(path)
            link, user = _link_to(name, repr(path), os.geteuid(), timeout, path)
            connection = cls(link, _address_of(name, user), timeout)
            connection.path = path
            return connection

        connection = cls._let_in(connect, _NO_SECRET)
        if connection.address is not None:
            connection.address = connection.address._replace(pid=connection.owner_pid)
        return connection

    @classmethod
    def _let_in(cls, connect: Callable[[], Connection], secret: bytes) -> Connection:
        """Connect, and say who this is. Owners that are short of something hang up: try again."""
        pauses_s = iter(_PAUSES_S)
        while True:
            connection = connect()
            try:
                connection._greet(secret)
                return connection
            except OwnerGoneError as error:
                if not is_ours(error):
                    raise
                if (pause_s := next(pauses_s, None)) is None:
                    raise OwnerGoneError(
                        "the owner of these pages does not let this process in: is it another "
                        "user's, or has it too many peers?"
                    ) from error
            time.sleep(pause_s)

    def _greet(self, secret: bytes) -> None:
        try:
            answer = self.request(Op.HELLO, protocol.HELLO.pack(os.getpid(), secret))
            (self.owner_pid,) = protocol.fields(protocol.PROCESS, answer)
            self.link.set_owner(self.owner_pid, self.address and self.address[:4])
        except BaseException:
            self.break_off()  # nothing has been asked for that could come late
            raise

    def name(self, error: OSError) -> None:
        """Have an error that the kernel gave say which path was connected to."""
        if error.errno is not None and error.filename is None and self.path is not None:
            error.filename = self.path

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
        """Wait until the owner has all that was let go of. False if ``timeout`` seconds passed.

        Without one, an owner that does not answer raises SharingError as with any request.
        """
        if self._closed:
            return True
        longest_s = self.link.timeout if timeout is None else timeout
        deadline = time.monotonic() + longest_s
        if self.link.flush(longest_s) and self.link.ping(max(0.0, deadline - time.monotonic())):
            return True
        if timeout is None:
            raise SharingError("the process that owns these pages has not answered in time")
        return False

    def close(self) -> None:
        """Give everything back, but what is viewed: that goes when the last view does."""
        with self.lock:
            if self._closed:
                return
            keeps = [file._leave() for file in files.alive(self.files)]
            sent = self.link.flush(1.0)
            self._closed = True
            if any(keeps):
                self.forget()  # the native link ends with what is viewed
            elif not sent or self.link.awaits_answers:
                # Its thread gives back what late answers bring, and sends what an owner that is
                # stopped has not taken yet.
                self.link.break_off_when_settled()
                self.forget()
            else:
                self.break_off()

    def forget(self) -> None:
        """Use it for nothing new."""
        self.files.clear()  # they last as long as there are handles on their pages
        by_owner = settled().by_owner
        if self.address is not None and by_owner.get(self.address.owner) is self:
            by_owner.pop(self.address.owner, None)

    def note(self, address: Address) -> None:
        """What is sent on tells others how the owner is reached now."""
        if address != self.address and address.path:
            self.link.set_owner(self.owner_pid, address[:4])
            self.address = address


def _address_of(path: bytes, user: int) -> Address | None:
    """How others reach what is served at a path; None if they cannot."""
    whole = os.path.abspath(path)  # they may be in another folder
    if len(whole) > protocol.SOCKET_PATH_BYTES_MAX:
        return None
    return Address(whole, b"", _NO_SECRET, user)


def _link_to_sender(address: Address) -> _core.OwnerLink:
    """By its name, or by its path from another network namespace."""
    try:
        return _link_to(address.name, repr(address.name), address.uid)[0]
    except OwnerGoneError as error:
        if not address.path or not is_ours(error):
            raise
    try:
        return _link_to(address.path, repr(address.path), address.uid)[0]
    except (OwnerGoneError, OSError) as error:
        if not is_ours(error):
            raise
        raise OwnerGoneError(
            "the process that sent these pages has ended, or cannot be reached from here: no "
            f"process listens at {address.name!r}, nor at {os.fsdecode(address.path)} ({error}). "
            "If it lives, this process is in another network namespace, where it needs a /proc "
            "that shows the sender, and the sender's user; or let the sender serve() a path that "
            "both see, and connect() there"
        ) from None


def _link_to(
    name: bytes,
    shown: str,
    user: int,
    timeout: float | None = None,
    filename: str | bytes | None = None,
) -> tuple[_core.OwnerLink, int]:
    """To a process of this user, or root's; and whose it is. OwnerGoneError, SharingError."""
    longest_s = REQUEST_MAX_S if timeout is None else timeout
    return _core.connect_to_owner(
        name, shown, user, longest_s, name if filename is None else filename
    )


class _Connections:
    """Those of this process.

    Another process has others, which it makes when it needs them first (:func:`settled`): no lock
    is its parent's, where another thread may have had it.
    """

    def __init__(self) -> None:
        # By the numbers of their links.
        self.all: weakref.WeakValueDictionary[int, Connection] = weakref.WeakValueDictionary()
        self.by_owner: dict[tuple[bytes, int, int], Connection] = {}  # to senders of pages
        self.lock = threading.RLock()  # a signal handler may receive pages, too


class _Born:
    """The links that a forked child was born with, until there are Connections for them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._links: list[_core.OwnerLink] = []

    def links(self) -> list[_core.OwnerLink]:
        # They are given once. One call takes and keeps them, which no signal handler interrupts.
        with self._lock:
            self._links.extend(chain.from_iterable(iter(_core.take_born_links, [])))
            return list(self._links)


# By the generation of the process. Each use is one operation of a dict: other threads, and a signal
# handler, may do the same, or raise, at any moment.
_processes: dict[int, _Connections] = {_core.process_generation(): _Connections()}
_born: dict[int, _Born] = {}


def settled() -> _Connections:
    """The connections of this process: in a forked child, those that it was born with."""
    generation = _core.process_generation()
    its = _processes.get(generation)
    return _settle(generation) if its is None else its


def _settle(generation: int) -> _Connections:
    """May be called by several threads at once, and again after it was interrupted.

    Each makes a table of its own, and the first that is complete is the one.
    """
    links = _born.setdefault(generation, _Born()).links()
    its = _Connections()
    by_number = {link.number: _inherited(link, its) for link in links}
    parents = [parent for each in list(_processes.values()) for parent in files.alive(each.all)]
    inherited = [file for parent in parents for file in files.alive(parent.files)]
    for file in [*files.all_files(), *inherited]:
        try:
            connection = by_number.get(file._link.number)
        except Error as error:  # it is the parent's, or closed
            if not is_ours(error):
                raise
            continue
        if connection is not None:
            connection.files[file._id] = file
    if _processes.setdefault(generation, its) is its:
        _forget_parents(generation, parents)
    return _processes[generation]


def _forget_parents(generation: int, parents: list[Connection]) -> None:
    for number in list(_processes):
        if number != generation:
            _processes.pop(number, None)
    for number in list(_born):
        _born.pop(number, None)
    for parent in parents:
        parent.files.clear()


def _inherited(link: _core.OwnerLink, its: _Connections) -> Connection:
    owner_pid, address = link.owner()
    connection = Connection(link, None, its=its)
    connection.owner_pid = owner_pid
    if address is None:
        return connection
    connection.address = Address(*address)
    if connection.address.is_served:
        connection.address = connection.address._replace(pid=owner_pid)
    else:
        its.by_owner.setdefault(connection.address.owner, connection)
    return connection


def connection_to(address: Address) -> Connection:
    """The connection of this process to an owner, which lasts as long as both do."""
    its = settled()
    if (known := _known(its, address)) is not None:
        return known
    # Without the lock: an owner that does not answer keeps no thread from another owner.
    made = Connection.to_owner(address)
    with its.lock:
        if (known := _known(its, address)) is None:
            its.by_owner[address.owner] = made
            return made
    made.close()
    return known


def forget_the_gone() -> None:
    """Lets go of connections to owners that have gone: nothing else ends one that is not used."""
    its = settled()
    with its.lock:
        for each in list(its.by_owner.values()):
            if each.has_hung_up():
                each.break_off()


def _known(its: _Connections, address: Address) -> Connection | None:
    forget_the_gone()
    with its.lock:
        if (known := its.by_owner.get(address.owner)) is not None:
            known.note(address)
        return known


def of_file(file: Any) -> Connection:
    """The connection through which this process, a forked child, has a file that its parent had.

    Raises ForkedError if it has none.
    """
    link: _core.OwnerLink = file._link
    its = settled()
    with its.lock:
        connection = its.all.get(link.number)
        if connection is None:
            connection = _inherited(link, its)
    connection.files[file._id] = file
    return connection
