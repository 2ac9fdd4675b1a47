"""What one process may take at most, so that it leaves something to the others."""

from __future__ import annotations

from dataclasses import dataclass

from pgalloc import _core
from pgalloc.arguments import checked_int


@dataclass(frozen=True)
class Limits:
    """For :meth:`MemoryFile.serve`: limits of each process. A request beyond them raises there.

    They are over all connections of the process, but for ``requests``. Bytes are those of one file.
    Defaults are shares of what can be allocated in the file: ``max_allocatable_bytes``, or its
    capacity.

    Attributes:
        nbytes: bytes of pages that it may allocate and hold (OutOfMemoryError); None: a half.
        requests: under way at once on each connection; more wait.
        children: forked children that are alive, with its leases (SharingError).
        unpinned: ranges that it has unpinned (SharingError).
        unclaimed: bytes of pages that it has sent and that no receiver has claimed yet
            (SharingError); what it sends several times counts once. None: a quarter.
    """

    nbytes: int | None = None
    requests: int = 64
    children: int = 1024
    unpinned: int = 1 << 20
    unclaimed: int | None = None

    def __post_init__(self) -> None:
        """Raises TypeError or RangeError for what is no such number."""
        for name in ("nbytes", "unclaimed"):
            if getattr(self, name) is not None:
                self._check(name, high=2**63)
        self._check("requests", low=1, high=2**31)
        self._check("children", high=2**31)
        self._check("unpinned", high=2**62)

    def _check(self, name: str, *, low: int = 0, high: int) -> None:
        object.__setattr__(self, name, checked_int(getattr(self, name), name, low=low, high=high))


def native_limits(limits: Limits | None) -> _core.PeerLimits:
    """As native code wants them; None means the defaults. Raises TypeError."""
    if limits is None:
        limits = Limits()
    if not isinstance(limits, Limits):
        raise TypeError(f"limits must be a pgalloc.Limits, not {type(limits).__name__}")
    return _core.PeerLimits(
        limits.nbytes,
        limits.unclaimed,
        limits.requests,
        limits.children,
        limits.unpinned,
    )
