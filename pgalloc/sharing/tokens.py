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
        pid: of one that serves, as it says: another one may serve at its path later. Else 0.
    """

    name: bytes
    path: bytes
    secret: bytes
    uid: int
    pid: int = 0

    @property
    def is_served(self) -> bool:
        """Whether it is what the owner serves at a path, and let in by that."""
        return not self.name.startswith(b"\0")

    @property
    def owner(self) -> tuple[bytes, int, int]:
        """What it is known by: the rest may change while it lives."""
        return self.name if self.is_served else self.secret, self.uid, self.pid


class Token(NamedTuple):
    """Stands for a reference on pages until it is claimed, once."""

    address: Address
    nonce: bytes
