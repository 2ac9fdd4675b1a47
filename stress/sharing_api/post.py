"""How pages, orders and reports get from one process to another: through the owner, over pipes.

A multiprocessing queue has a lock that a process which is killed takes with it, so each peer has a
pipe of its own to the owner, who passes letters on unopened. Pickled by multiprocessing all the
same: pages travel as tokens. A letter that cannot be delivered is thrown away, and its token stays
unclaimed until the next audit.
"""

from __future__ import annotations

import enum
import io
import pickle
import select
from collections import Counter
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from pgalloc import Allocation

OWNER = 255
"""The owner's number. Peers are counted from 0."""


class Letter(NamedTuple):
    """Pages for a peer, with the marks from ``first`` on."""

    first: int
    pages: Allocation


class Order(enum.Enum):
    """What the owner tells a peer."""

    REPORT = enum.auto()  # be quiet, and say what you hold
    GO_ON = enum.auto()
    LEAVE = enum.auto()  # let go of everything, then end
    END = enum.auto()  # just end


class Report(NamedTuple):
    """What a peer holds, handle by handle, and what it did since its last report."""

    ranges: list[tuple[int, int]]
    counts: Counter[str]


class Finding(NamedTuple):
    """What must not be."""

    text: str


class Stillborn(NamedTuple):
    """A peer that could not open its gifts, since its owner was in trouble. It ends."""


class Envelope(NamedTuple):
    """Something pickled, not opened yet."""

    to: int
    content: bytes

    @classmethod
    def of(cls, content: Any, to: int = OWNER) -> Envelope:
        """Pickle something; pages become an offer."""
        buffer = io.BytesIO()
        ForkingPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(content)
        return cls(to, buffer.getvalue())

    def open(self) -> Any:
        """What is in it. Claims the pages; SharingError if their offer was dropped."""
        return pickle.loads(self.content)


class Line:
    """One end of the pipe between the owner and a peer."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def fileno(self) -> int:
        """For multiprocessing.connection.wait()."""
        return self._pipe.fileno()

    def close(self) -> None:
        self._pipe.close()

    def send(self, content: Any, to: int = OWNER) -> None:
        """Pickle something, and send it."""
        self.forward(Envelope.of(content, to))

    def forward(self, envelope: Envelope) -> None:
        """Send what is pickled already."""
        self._pipe.send_bytes(bytes([envelope.to]) + envelope.content)

    def receive(self) -> Envelope:
        """The next thing; waits for it. EOFError if the other end has gone."""
        message = self._pipe.recv_bytes()
        return Envelope(message[0], message[1:])

    def waiting(self) -> Iterator[Envelope]:
        """Whatever has arrived."""
        while self._pipe.poll():
            yield self.receive()

    def last_waiting(self) -> Envelope | None:
        """The last of what has arrived; the rest is lost."""
        last = None
        with suppress(EOFError, ConnectionResetError):
            for envelope in self.waiting():
                last = envelope
        return last

    def has_room(self) -> bool:
        """Whether sending would not wait for the other side to read."""
        return bool(select.select([], [self._pipe], [], 0)[1])
