"""How pages travel in what multiprocessing sends: as tokens.

``multiprocessing`` pickles Process arguments and whatever goes through Queues, Pipes and Pools with
a pickler of its own; so does concurrent.futures, and so do some libraries. Those are told to send
pages by token. Every other pickler gets a TypeError: a token is claimed once, and soon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pgalloc import _core
from pgalloc.allocation import Allocation
from pgalloc.errors import ClosedError, Error, SharingError
from pgalloc.raised import is_ours
from pgalloc.sharing import files, picklers, pickles
from pgalloc.sharing.connection import connection_to
from pgalloc.sharing.peer import peer_file
from pgalloc.sharing.tokens import Address, Token
from pgalloc.sharing.unattached import Unattached, attach

_RELEASED = (
    "these pages were released before they were sent: send {a_copy}, which keeps them until it is "
    "on its way"
)
_CLOSED = "the file of these pages was closed before they were sent"
_CLAIMED = (
    "these pages were claimed already, or dropped: what was sent to another process can be "
    "received once"
)
_UNREACHABLE = (
    "these pages cannot be sent on: the path at which their owner serves them is too long for a "
    "process in another folder. Connect by a shorter path, or connect() in the receiver, too"
)
_READ_ONLY = (
    "these pages cannot be sent on: they are served for reading only. connect() in the receiver, "
    "too, or send a copy of the contents"
)


def offer(pages: Allocation) -> Token:
    """A token by which another process can claim these pages. They are held until then."""
    file, range = pages.file, pages.range
    # It is in `made` as soon as it is made: a signal handler that raises finds no moment between.
    made = pickles.place()
    if isinstance(file, _core.MemoryFile) and not file._forked:
        address = Address(*_core.broker_address())
        made.extend(zip((None,), map(_core.broker_offer, (file,), (range,)), strict=True))
        return Token(address, made[0][1])
    connection = file._connection
    if connection.address is None:
        raise SharingError(_UNREACHABLE)
    if isinstance(file, _core.PeerFile) and file.readonly:
        raise SharingError(_READ_ONLY)
    made.extend(zip((connection.link,), map(file._remote_offer, (range,)), strict=True))
    return Token(connection.address, made[0][1])


def claim(token: Token) -> Allocation:
    """The pages of a token. Raises SharingError if it was claimed already, OwnerGoneError."""
    pages = _claim_own(token)
    if pages is not None:
        return pages
    connection = connection_to(token.address)
    with connection.lock:  # a child that is forked meanwhile must know all that this process holds
        lease = connection.link.claim(token.nonce)
        adopted: Allocation = peer_file(connection, lease)._adopt(lease)
        return adopted


def _claim_own(token: Token) -> Allocation | None:
    """The pages of a token of this process; None if it is another's.

    If the MemoryFile object has been collected since, its pages are claimed as any peer does it.
    """
    if not (token.address.is_served or _core.broker_is_own(token.address.secret)):
        return None
    name = _core.broker_offered_file(token.nonce)
    if name is None:
        if token.address.is_served:
            return None
        raise SharingError(_CLAIMED)
    try:
        file = files.find(name)
    except ClosedError:
        return None
    pages: Allocation = _core.broker_claim(file, token.nonce)
    return pages


def receive(
    name: bytes, path: bytes, secret: bytes, uid: int, pid: int, nonce: bytes
) -> Allocation:
    """Claim the pages of a token: called when one is unpickled."""
    return claim(Token(Address(name, path, secret, uid, pid), nonce))


def send(pages: Allocation) -> tuple[Any, ...]:
    """Offer pages: what receive() is to be called with."""
    token = offer(pages)
    return (*token.address, token.nonce)


def reduce_to(
    make: Callable[..., Any], first: tuple[Any, ...], pages: Allocation, a_copy: str
) -> Any:
    """What is pickled in place of something in pages: ``make(*first, *token)`` makes it again.

    A Queue pickles in a thread of its own, where an error would be lost, and with it what was sent.
    So pages that were released by then become something that says so where it is used; and that
    ``a_copy`` would have kept them.
    """
    try:
        return attach, (make, *first, *send(pages))
    except Error as error:
        if not (is_ours(error) and (pages.released or pages.file.closed)):
            raise
        return Unattached, (
            SharingError,
            _RELEASED.format(a_copy=a_copy) if pages.released else _CLOSED,
        )


def reduce(pages: Allocation) -> Any:
    """A token, which is pickled in place of the Allocation."""
    return reduce_to(receive, (), pages, "a clone()")


def register(kind: type[Any], how: Any) -> None:
    """Have objects of exactly this type travel as ``how(object)`` says."""
    picklers.register(kind, how)


register(Allocation, reduce)
