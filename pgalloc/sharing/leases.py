"""What other processes hold of the files of this one."""

from __future__ import annotations

from typing import NamedTuple

from pgalloc.sharing.broker import broker


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
    with broker.lock:
        held = [(session, session.nbytes(file_id)) for session in broker.sessions()]
        offers = broker.offers.of_file(file_id)
        return [
            Lease(session.pid, session.uid, nbytes, session.since, True)
            for session, nbytes in held
            if nbytes
        ] + [Lease(offer.pid, offer.uid, offer.pages.nbytes, offer.wall, False) for offer in offers]
