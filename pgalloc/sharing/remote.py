"""What a process does with pages that another one owns: by asking the owner.

A file is a PeerFile here, or in a forked child a MemoryFile of its parent: see :class:`RemoteFile`.
"""

from __future__ import annotations

import enum
from typing import Any, Protocol

from pgalloc import _core
from pgalloc.allocation import Allocation
from pgalloc.arguments import checked_flag, checked_int, checked_memcg_id
from pgalloc.enums import AllocationMode, Direction, MemoryKind
from pgalloc.errors import OptionError
from pgalloc.filling import Reader, fill, fill_range

_KINDS = tuple(MemoryKind)  # in the order of an answer to usage()


class RemoteFile(Protocol):
    """A file whose owner is another process: its pages are counted here for this process alone.

    Raises ForkedError in a child that has no fork lease.
    """

    @property
    def _id(self) -> int:
        """Its number at the owner."""

    def _remote_allocate(
        self,
        length: int,
        kind: int,
        direction: int,
        memcg_id: int,
        mode: int,
        huge: int,
        as_range: bool,
        /,
    ) -> Any:
        """New pages, as an Allocation or as a FileRange."""

    def _remote_decommit(self, range: _core.FileRange, /) -> None: ...
    def _remote_unique(self, range: _core.FileRange, /) -> bool: ...
    def _remote_usage(self, memcg_id: int, /) -> list[int]: ...


def allocate(
    file: RemoteFile, length: int, *, reader: Reader | None = None, **options: Any
) -> Allocation:
    """As MemoryFile.allocate()."""
    if reader is not None and not callable(reader):
        raise TypeError("reader must be callable, like a file's readinto")
    allocation: Allocation = _allocate(file, length, as_range=False, **options)
    return allocation if reader is None else fill(allocation, reader)


def allocate_range(
    file: RemoteFile, length: int, *, reader: Reader | None = None, **options: Any
) -> _core.FileRange:
    """As MemoryFile.allocate_range()."""
    if reader is not None:
        return fill_range(allocate(file, length, **options), reader)
    range: _core.FileRange = _allocate(file, length, as_range=True, **options)
    return range


def _allocate(
    file: RemoteFile,
    length: int,
    *,
    as_range: bool,
    kind: MemoryKind = MemoryKind.ANONYMOUS,
    direction: Direction = Direction.BOTTOM_UP,
    memcg_id: int = 0,
    mode: AllocationMode = AllocationMode.ALLOCATE_ONLY,
    huge: bool | None = False,
) -> Any:
    request = (
        checked_int(length, "length", low=1, high=2**63 - 1),
        _checked(kind, MemoryKind, "kind"),
        _checked(direction, Direction, "direction"),
        checked_memcg_id(memcg_id),
        _checked(mode, AllocationMode, "mode"),
        _wish(huge),
        as_range,
    )
    if mode == AllocationMode.ALLOCATE_ONLY:
        return file._remote_allocate(*request)
    reservation = _core.CommitReservation(request[0])
    try:
        return file._remote_allocate(*request)
    finally:
        reservation.end()


def usage(file: RemoteFile, memcg_id: int) -> dict[MemoryKind, int]:
    """As MemoryFile.usage(), of the whole file."""
    return dict(zip(_KINDS, file._remote_usage(memcg_id), strict=True))


def _wish(huge: bool | None) -> int:
    """As HugeWish of the core."""
    if huge is None:
        return 1
    return 2 if checked_flag(huge, "huge") else 0


def _checked(value: Any, kind: type[enum.IntEnum], name: str) -> int:
    if type(value) is kind:
        return value
    if type(value) is not int or value not in list(kind):
        raise OptionError(f"unknown {name}: {value!r}")
    return value
