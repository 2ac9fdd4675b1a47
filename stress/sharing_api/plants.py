"""Bugs of the owner's that a run must find. They are planted in its process only."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from pgalloc.sharing import protocol, session
from pgalloc.sharing.protocol import Op
from pgalloc.sharing.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgalloc.sharing.session import Answer

PLANTS = {
    "lost": "the owner keeps the references of some dead peers",
    "early": "the owner drops some leases while the peer has them",
    "fork": "some forked children get no leases of their own",
}
_STRIKES_EVERY = 10


def plant(name: str) -> None:
    """Plant one of them."""
    calls = itertools.count(1)
    _HOW[name](lambda: next(calls) % _STRIKES_EVERY == 0)


def _lost(strikes: Callable[[], bool]) -> None:
    end = Session.end
    kept: list[Session] = []

    def end_of_most(gone: Session) -> None:
        if strikes():
            kept.append(gone)
        else:
            end(gone)

    Session.end = end_of_most  # type: ignore[assignment, method-assign]


def _early(strikes: Callable[[], bool]) -> None:
    claim = session._HANDLERS[Op.CLAIM]

    def claim_for_now(peer: Session, payload: bytes) -> Iterator[Answer | None]:
        for answer in claim(peer, payload):
            if answer is not None and strikes():
                name, pages = protocol.pages(answer.payload)
                peer._shares[name].table.remove(*pages)
            yield answer

    session._HANDLERS[Op.CLAIM] = claim_for_now  # type: ignore[assignment]


def _fork(strikes: Callable[[], bool]) -> None:
    fork = Session.fork

    def fork_most(parent: Session) -> Session:
        child = fork(parent)
        if strikes():
            child.end()
        return child

    Session.fork = fork_most  # type: ignore[assignment, method-assign]


_HOW = {"lost": _lost, "early": _early, "fork": _fork}
