"""What other processes hold of the files of this one."""

from __future__ import annotations

from typing import NamedTuple

from pgalloc import _core


class Lease(NamedTuple):
    """What another process holds of a file.

    Attributes:
        pid: the process of the peer; of pages that were sent and not claimed, the sender's.
        uid: the user of that process.
        nbytes: bytes of pages.
        since: when the peer connected, or the pages were sent: seconds since the epoch.
        claimed: False for pages that were sent and not claimed: see drop_unclaimed().
    """

    pid: int
    uid: int
    nbytes: int
    since: float
    claimed: bool


def of_file(file_id: int) -> list[Lease]:
    """The leases on one file, and what was sent of it and waits to be claimed."""
    return [Lease(*lease) for lease in _core.broker_leases(file_id)]
