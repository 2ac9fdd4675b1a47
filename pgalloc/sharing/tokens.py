"""Tokens: names of pages that are on their way from one process to another."""

from __future__ import annotations

from typing import NamedTuple


class Address(NamedTuple):
    """Where the owner of pages listens; ``secret`` lets in users it would refuse."""

    name: bytes
    secret: bytes


class Token(NamedTuple):
    """Stands for a reference on pages until it is claimed, once."""

    address: Address
    nonce: bytes
