"""Pages that were offered and not claimed yet.

Thread safety: externally synchronised (the broker's lock).

Invariant: each offer has a reference of its own on its pages, so its sender may let go of them. It
is claimed once, or dropped: by :meth:`Offers.drop_older`, when its time is over at the latest.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from pgalloc.allocation import Allocation
from pgalloc.errors import SharingError
from pgalloc.sharing.protocol import NONCE_BYTES

UNCLAIMED_MAX_S = 600.0
"""How long an offer waits to be claimed."""

_OFFERS_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Offer:
    """Pages that were sent, and their sender (process and user)."""

    pages: Allocation
    pid: int
    uid: int
    since: float  # time.monotonic()
    wall: float  # time.time()


class Offers:
    """All offers of a process."""

    def __init__(self) -> None:
        self._offers: dict[bytes, Offer] = {}  # in the order they came

    def __len__(self) -> int:
        return len(self._offers)

    def add(self, pages: Allocation, pid: int, uid: int) -> bytes:
        """Take over a handle; the name by which it can be claimed."""
        if len(self._offers) >= _OFFERS_MAX:
            raise SharingError(f"{_OFFERS_MAX} offers wait to be claimed already")
        nonce = os.urandom(NONCE_BYTES)
        self._offers[nonce] = Offer(pages, pid, uid, time.monotonic(), time.time())
        return nonce

    def claim(self, nonce: bytes) -> Allocation:
        """The handle of an offer. Raises SharingError if there is none."""
        offer = self._offers.pop(nonce, None)
        if offer is None:
            raise SharingError(
                "these pages were claimed already, or dropped, or their offer is too old: what was "
                "sent to another process can be received once"
            )
        return offer.pages

    def drop_older(self, seconds: float, file_id: int | None = None) -> int:
        """Drop what has waited that long, in one file or in all. The bytes of its pages."""
        end = time.monotonic() - seconds
        old = [
            nonce
            for nonce, offer in self._offers.items()
            if offer.since <= end and file_id in (None, offer.pages.file._id)
        ]
        nbytes = 0
        for nonce in old:
            pages = self._offers.pop(nonce).pages
            nbytes += pages.nbytes
            pages.release()
        return nbytes

    def seconds_to_next(self) -> float | None:
        """Seconds until the oldest offer is too old; None if there is none."""
        for offer in self._offers.values():
            return max(0.0, offer.since + UNCLAIMED_MAX_S - time.monotonic())
        return None

    def of_file(self, file_id: int) -> list[Offer]:
        """The offers of pages of one file."""
        return [offer for offer in self._offers.values() if offer.pages.file._id == file_id]
