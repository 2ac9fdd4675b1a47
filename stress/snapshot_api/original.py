"""The file that is saved: pieces of all kinds, made by several threads at once."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import partial

from pgalloc import PAGE_SIZE, AllocationMode, Direction, FileRange, MemoryFile, MemoryKind
from snapshot_api.crew import Crew
from snapshot_api.stamps import Stamp, Stamper, Style

CAPACITY = 64 << 30
HOOK = "pieces"
_KINDS = [kind for kind in MemoryKind if kind is not MemoryKind.MAPPED]


@dataclass(frozen=True)
class Piece:
    """A range that keeps its stamp as long as it is being saved."""

    range: FileRange
    stamp: Stamp
    refs: int

    def expect(self, file: MemoryFile, when: str) -> int:
        """Raise PromiseBrokenError unless the stamp is there. The number of pages."""
        with file.map_range(self.range, "r") as view:
            return self.stamp.expect(view, when)


class Original:
    """A file, and what is in it."""

    def __init__(self, rng: random.Random, threads: int, pages_max: int) -> None:
        self.file = MemoryFile(capacity=CAPACITY, restore_id="original")
        self.pieces: list[Piece] = []
        pages = rng.choice([pages_max // 60, pages_max // 6, pages_max // 2, pages_max])
        # Large pieces take long to punch and to look at, so that more happens meanwhile.
        large = pages == pages_max
        sizes = [pages // 20, pages // 5] if large else [1, 2, 3, 7, 16, 64, 300, 700, 1500]
        share = pages // threads
        crew = Crew()
        for owner in range(threads):
            job = partial(self._fill, owner, rng.getrandbits(64), share, sizes)
            crew.start(job, "filler")
        crew.finish()
        self.file.save_hook(HOOK, save=self._index)

    def _fill(self, owner: int, seed: int, pages_max: int, sizes: list[int]) -> None:
        rng = random.Random(seed)
        stamper = Stamper(owner)
        pages = 0
        while pages < pages_max:
            count = rng.choice(sizes)
            pages += count
            style = rng.choice(list(Style))
            committed = style is Style.ZERO and rng.random() < 0.5
            range_ = self.file.allocate_range(
                count * PAGE_SIZE,
                kind=rng.choice(_KINDS),
                direction=rng.choice(list(Direction)),
                memcg_id=rng.randrange(3),
                mode=AllocationMode.ALLOCATE_AND_COMMIT
                if committed
                else AllocationMode.ALLOCATE_ONLY,
            )
            stamp = stamper.new(count, style)
            if style is not Style.ZERO:
                with self.file.map_range(range_) as view:
                    view[:] = stamp.contents(count)
            if self.pieces and rng.random() < 0.2:  # a hole
                self.file.dec_ref(range_)
                continue
            refs = rng.choice([1, 1, 1, 2])
            for _ in range(refs - 1):
                self.file.inc_ref(range_)
            self.pieces.append(Piece(range_, stamp, refs))

    def expect(self, when: str) -> int:
        """Raise PromiseBrokenError unless all of it is as it was. The number of pages."""
        return sum(piece.expect(self.file, when) for piece in self.pieces)

    def _index(self) -> bytes:
        rows = [(*p.range, p.stamp.first, int(p.stamp.style), p.refs) for p in self.pieces]
        return json.dumps(rows).encode()


def pieces_from(payload: bytes) -> list[Piece]:
    """What the hook stored."""
    return [
        Piece(FileRange(start, end), Stamp(first, Style(style)), refs)
        for start, end, first, style, refs in json.loads(payload)
    ]
