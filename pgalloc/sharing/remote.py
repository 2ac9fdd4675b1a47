"""What a process does with pages that another one owns: by asking the owner.

A file is a PeerFile here, or in a forked child a MemoryFile of its parent: see :class:`RemoteFile`.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Protocol

from pgalloc import _core
from pgalloc.allocation import Allocation
from pgalloc.arguments import checked_int, checked_memcg_id
from pgalloc.enums import AllocationMode, Direction, MemoryKind
from pgalloc.errors import ClosedError, OptionError, OwnerGoneError, RangeError
from pgalloc.filling import Reader, fill, fill_range
from pgalloc.sharing import protocol
from pgalloc.sharing.protocol import Op

if TYPE_CHECKING:
    from pgalloc.sharing.connection import Connection
    from pgalloc.sharing.unpinned import Unpinned


class RemoteFile(Protocol):
    """A file whose owner is another process: its pages are counted here for this process alone."""

    @property
    def closed(self) -> bool:
        """Whether this process has let go of it."""

    def dec_ref(self, range: _core.FileRange, /) -> None:
        """Let go of a reference on each page; the owner learns of the last one."""

    @property
    def _id(self) -> int:
        """Its number at the owner."""

    @property
    def _connection(self) -> Connection:
        """To the owner. Raises ForkedError in a child that has no fork lease."""

    @property
    def _unpinned(self) -> Unpinned:
        """What the owner may discard of what this process holds."""

    def _adopt_local(self, range: _core.FileRange, /) -> None:
        """Count a lease that the owner has given as one handle of this process."""

    def _holds_local(self, range: _core.FileRange, /) -> bool:
        """Whether this process has a handle on each page."""

    def _has_unique_ref_local(self, range: _core.FileRange, /) -> bool:
        """Whether this process has one handle on each page."""

    def _prepare_local(self, range: _core.FileRange, mode: int, /) -> None:
        """Commit or populate new pages, as an AllocationMode says."""


def allocate(
    file: RemoteFile, length: int, *, reader: Reader | None = None, **options: Any
) -> Allocation:
    """As MemoryFile.allocate()."""
    if reader is not None and not callable(reader):
        raise TypeError("reader must be callable, like a file's readinto")
    allocation = _handle(file, allocate_range(file, length, **options))
    return allocation if reader is None else fill(allocation, reader)


def allocate_range(
    file: RemoteFile,
    length: int,
    *,
    kind: MemoryKind = MemoryKind.ANONYMOUS,
    direction: Direction = Direction.BOTTOM_UP,
    memcg_id: int = 0,
    mode: AllocationMode = AllocationMode.ALLOCATE_ONLY,
    reader: Reader | None = None,
) -> _core.FileRange:
    """As MemoryFile.allocate_range()."""
    length = checked_int(length, "length", low=1, high=2**63 - 1)
    request = protocol.ALLOCATE.pack(
        file._id,
        length,
        _checked(kind, MemoryKind, "kind"),
        _checked(direction, Direction, "direction"),
        checked_memcg_id(memcg_id),
    )
    mode = AllocationMode(_checked(mode, AllocationMode, "mode"))
    if reader is not None and not callable(reader):
        raise TypeError("reader must be callable, like a file's readinto")
    commits = mode is not AllocationMode.ALLOCATE_ONLY
    reservation = _core.CommitReservation(length) if commits else None
    try:
        range = adopt(file, file._connection.request(Op.ALLOCATE, request))
        try:
            file._prepare_local(range, mode)
        except BaseException:
            file.dec_ref(range)
            raise
    finally:
        if reservation is not None:
            reservation.end()
    return range if reader is None else fill_range(_handle(file, range), reader)


def _handle(file: RemoteFile, range: _core.FileRange) -> Allocation:
    return Allocation(file, range)  # type: ignore[arg-type]  # it takes both kinds of file


def adopt(file: RemoteFile, payload: bytes) -> _core.FileRange:
    """Take over the lease that an answer brought."""
    _name, range = protocol.pages(payload)
    try:
        with file._connection.lock:
            file._unpinned.before_another(file, range)
            file._adopt_local(range)
    except BaseException:
        file._connection.link.give_back(file._id, range)
        raise
    return range


def decommit(file: RemoteFile, range: _core.FileRange) -> None:
    """As MemoryFile.decommit(), of pages that this process has a lease on."""
    if not file._holds_local(_checked_range(range)):
        raise RangeError("this process has no lease on all of these pages")
    _ask_about(file, Op.DECOMMIT, range)


def has_unique_ref(file: RemoteFile, range: _core.FileRange) -> bool:
    """Whether one handle of one process holds each page, and this process it is."""
    if not file._has_unique_ref_local(_checked_range(range)):
        return False
    return _ask_about(file, Op.UNIQUE, range) == b"\1"


def unpin(file: RemoteFile, range: _core.FileRange) -> None:
    """Let the owner discard pages. REQUIRES: one handle of this process is on them."""
    _ask_about(file, Op.UNPIN, range)


def pin(file: RemoteFile, range: _core.FileRange) -> bool:
    """Whether the contents are what they were when they were unpinned."""
    return _ask_about(file, Op.PIN, range) == b"\1"


def usage(file: RemoteFile, memcg_id: int) -> dict[MemoryKind, int]:
    """As MemoryFile.usage(), of the whole file."""
    answer = file._connection.request(Op.USAGE, protocol.USAGE.pack(file._id, memcg_id))
    return dict(zip(MemoryKind, protocol.fields(protocol.COUNTS, answer), strict=True))


def offer(file: RemoteFile, range: _core.FileRange) -> bytes:
    """A nonce for pages this process has a lease on."""
    return _ask_about(file, Op.OFFER, range)


def _ask_about(file: RemoteFile, operation: Op, range: _core.FileRange) -> bytes:
    payload = protocol.pack_pages(file._id, _checked_range(range))
    try:
        return bytes(file._connection.request(operation, payload))
    except OwnerGoneError:
        if file.closed:
            raise ClosedError("the shared file is closed") from None
        raise


def _checked_range(range: _core.FileRange) -> _core.FileRange:
    if not isinstance(range, _core.FileRange):
        raise TypeError(f"range must be a FileRange, not {type(range).__name__}")
    return range


def _checked(value: Any, kind: type[enum.IntEnum], name: str) -> int:
    if type(value) not in (kind, int) or value not in list(kind):
        raise OptionError(f"unknown {name}: {value!r}")
    return int(value)
