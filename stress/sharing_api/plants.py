"""Bugs of the owner's that a run must find. They are planted in its process only.

The broker is native, and has them built in (csrc/sharing/plant.h): every tenth time, one shows.
"""

from __future__ import annotations

from pgalloc import _core

PLANTS = {
    "lost": "the owner keeps the references of some dead peers",
    "early": "the owner drops some leases while the peer has them",
    "fork": "some forked children get no leases of their own",
}


def plant(name: str) -> None:
    """Plant one of them."""
    _core.broker_plant(name)
