"""The exceptions of pgalloc. All of them are an :class:`Error` and a standard one besides.

A system call that failed is an :class:`OSError` with its errno; its text names the call. Of images,
and of a MemoryFile that cannot be made, it begins with the operation, and ``filename`` is the path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgalloc._core import FileRange
    from pgalloc.allocation import Allocation


class Error(Exception):
    """The base of every exception that pgalloc defines."""


class RangeError(Error, ValueError):
    """A range that is malformed, misaligned or not allocated, or a bad length."""


class OptionError(Error, ValueError):
    """An unknown mode, kind, direction or policy, or options that contradict each other."""


class RefCountError(Error, RuntimeError):
    """A reference count would drop below zero, rise from zero, or exceed 2^32-1."""


class OutOfMemoryError(Error, MemoryError):
    """No place for an allocation: it exceeds ``max_allocatable_bytes`` or a memory limit."""


class AccountError(Error, ValueError):
    """A ledger entry would drop below zero or overflow."""


class FillError(Error, OSError):
    """A reader failed or ended early. Its exception is the ``__cause__``.

    ``range`` is the part that was filled, in whole pages; it may be empty. What raised this decides
    who owns that part: after :meth:`MemoryFile.allocate` it is ``allocation`` (None if empty),
    after :meth:`MemoryFile.allocate_range` the caller owns a reference on each page of ``range``.
    A copy, and what arrives in another process, has no ``allocation``.
    """

    range: FileRange
    allocation: Allocation | None

    def __init__(self, text: str, range: FileRange, allocation: Allocation | None = None) -> None:
        super().__init__(text)
        self.range = range
        self.allocation = allocation

    def __reduce__(self) -> Any:
        # The pages belong to what caught the original, and plain pickling would refuse them.
        others = {key: value for key, value in vars(self).items() if key != "allocation"}
        return type(self), (str(self), self.range), others


class ClosedError(Error, ValueError):
    """The MemoryFile, PeerFile, Cache or Monitor is closed, or the Allocation released."""


class ForkedError(Error, RuntimeError):
    """A forked child used what only its parent can: a Cache, a Monitor, parts of a MemoryFile."""


class SnapshotError(Error):
    """A snapshot cannot be taken, or cannot be restored here."""


class SnapshotCorruptError(SnapshotError):
    """An image is damaged or incomplete, or is no image at all."""


class SnapshotVersionError(SnapshotError):
    """An image of another format version, or of a machine with another page size."""


class SharingError(Error, RuntimeError):
    """Pages cannot be shared like this: a token that was used up, a peer beyond its limits."""


class OwnerGoneError(SharingError, ConnectionError):
    """The process that owns shared pages has ended, or has dropped this peer.

    Pages that are mapped stay readable; nothing more can be asked of their owner.
    """
