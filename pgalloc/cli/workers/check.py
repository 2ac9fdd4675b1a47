"""What a worker of ``pgalloc demo workers`` does: check every digest, say so, and hold on."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

from pgalloc.cli.workers.ways import Parcel


@dataclass(frozen=True, slots=True)
class Checked:
    """What a worker found.

    Attributes:
        had_s: seconds from the moment the owner began to start workers until this one had all.
        checked_s: the same until it had read and checked all.
        digests: how many were right.
        wrong: how many were not.
    """

    had_s: float
    checked_s: float
    digests: int
    wrong: int

    def to_json(self) -> str:
        """One line, for standard output."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: bytes) -> Self:
        """Reads a line that to_json() wrote."""
        return cls(**json.loads(line))


def check(parcel: Parcel, digests: Sequence[str], begun: float) -> None:
    """Prints a line, then keeps what it has until the owner ends.

    ``begun`` is on the clock that all processes of a machine have: time.monotonic().
    """
    contents = parcel.open()
    had_s = time.monotonic() - begun
    # Where there are fewer contents than digests, the count says so.
    right = [
        hashlib.sha256(content).hexdigest() == digest
        for content, digest in zip(contents, digests, strict=False)
    ]
    checked_s = time.monotonic() - begun
    found = Checked(had_s, checked_s, sum(right), right.count(False))
    # A short line in one piece: the kernel does not mix it with those of other workers.
    sys.stdout.write(f"{found.to_json()}\n")
    sys.stdout.flush()
    owner = multiprocessing.parent_process()
    assert owner is not None, "a worker has been started by its owner"
    owner.join()
