"""Tokens: names of pages that are on their way from one process to another."""

from __future__ import annotations

from typing import NamedTuple


class Address(NamedTuple):
    """Where the owner of pages listens.

    Attributes:
        name: of an abstract Unix socket, which belongs to a network namespace; or the path where
            the owner serves a file.
        path: of the same owner, for other network namespaces; empty if there is none.
        secret: lets in users that the owner would refuse.
        uid: the owner's user. No other process is told the secret.
    """

    name: bytes
    path: bytes
    secret: bytes
    uid: int

    @property
    def is_served(self) -> bool:
        """Whether it is what the owner serves at a path, and let in by that."""
        return not self.name.startswith(b"\0")

    @property
    def owner(self) -> tuple[bytes, int]:
        """What it is known by: the rest may change while it lives."""
        return self.name if self.is_served else self.secret, self.uid


class Token(NamedTuple):
    """Stands for a reference on pages until it is claimed, once."""

    address: Address
    nonce: bytes
