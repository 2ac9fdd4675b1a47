"""One small change to csrc, which is compiled beside the original and chosen at run time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

# What the text of a mutant has where it asks whether it is the one that was chosen.
CHOSEN = "$CHOSEN"


@dataclass(frozen=True)
class Mutant:
    """Bytes ``start`` to ``end`` of a file of csrc become ``text``."""

    file: str  # below csrc
    start: int
    end: int
    text: str
    kind: str
    function: str
    what: str  # the change, for people
    line: int
    lines: int = 0  # more than one
    nth: int = 0  # among equal changes in one function

    @property
    def room(self) -> str:
        """Its folder."""
        return self.file.partition("/")[0]

    @property
    def name(self) -> str:
        """The same as long as its function has this change: it does not depend on lines."""
        nth = f" #{self.nth + 1}" if self.nth else ""
        return f"{self.file}: {self.function}: {self.what}{nth}"

    def draw(self, seed: int) -> str:
        """Sorted by this, mutants are in an order that a change elsewhere leaves as it is."""
        return hashlib.sha256(f"{seed} {self.name}".encode()).hexdigest()


def overlap(one: Mutant, other: Mutant) -> bool:
    """Whether they change the same bytes."""
    return one.file == other.file and one.start < other.end and other.start < one.end


def weave(source: bytes, mutants: dict[int, Mutant]) -> bytes:
    """A file with all of its mutants in it, by their numbers. Lines stay where they are."""
    for number, mutant in sorted(mutants.items(), key=lambda item: -item[1].start):
        text = mutant.text.replace(CHOSEN, f"::pgalloc_mutants::chosen({number})").encode()
        source = source[: mutant.start] + text + source[mutant.end :]
    return source
