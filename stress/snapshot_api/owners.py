"""Those who own the pages of a restored file: each looks after a share of them while they load."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pgalloc
from pgalloc import PAGE_SIZE, Allocation, FileRange, MemoryFile, SnapshotCorruptError, testing
from snapshot_api.crew import Crew
from snapshot_api.meddlers import expect_zero
from snapshot_api.original import Piece
from snapshot_api.plants import Plant
from snapshot_api.stamps import PromiseBrokenError, Stamp, Stamper, Style
from snapshot_api.tally import Tally


@dataclass
class Estate:
    """A restored file, and what its owners know together."""

    file: MemoryFile
    pieces: list[Piece]
    broken: FileRange | None  # the pages of an image's damaged extent
    plant: Plant
    crew: Crew = field(default_factory=Crew)
    closing: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _adopted: int = 0

    def is_broken(self, range_: FileRange) -> bool:
        """Whether the image has lost one of these pages."""
        return self.broken is not None and self.broken.overlaps(range_)

    def count_adoption(self) -> None:
        """Drop what cannot be wanted any more as soon as every piece has all its owners."""
        with self._lock:
            self._adopted += 1
            if self._adopted < sum(piece.refs for piece in self.pieces):
                return
        left = [FileRange(row.start, row.end) for row in self.file.unadopted()]
        for piece in self.pieces:
            if any(piece.range.overlaps(range_) for range_ in left):
                raise PromiseBrokenError(f"{piece.range} has an owner, and a reference without one")
        self.file.drop_unadopted()


@dataclass
class Holding:
    """A range that one owner has a reference on."""

    allocation: Allocation
    stamp: Stamp
    exclusive: bool  # no other handle has one: the stamp may change
    from_image: bool = True

    @property
    def pages(self) -> int:
        """How long it is."""
        return self.allocation.nbytes // PAGE_SIZE


class Owner:
    """For one thread at a time."""

    def __init__(
        self, number: int, estate: Estate, seed: int, share: list[Piece], counts: Tally
    ) -> None:
        self._estate = estate
        self._random = random.Random(seed)
        self._stamper = Stamper(200 + number)
        self._to_adopt = share
        self._counts = counts
        self.holdings: list[Holding] = []
        # Each likes something best: who does everything alike does nothing often at a rare moment.
        self._favourite = self._random.choice(
            [self._check, self._decommit, self._free, self._allocate, self._rewrite]
        )

    def run(self) -> None:
        """Act at random until told to stop, or until the file is closed."""
        try:
            while not self._estate.crew.stop.is_set():
                self._step()
        except pgalloc.ClosedError:
            if not self._estate.closing.is_set():
                raise

    def look_at_all(self, when: str) -> None:
        """Take over what is left, and check all there is."""
        self.adopt_all()
        for holding in self.holdings:
            self._look(holding, when)

    def drop_all(self) -> None:
        """Let go of everything."""
        while self.holdings:
            self.holdings.pop().allocation.release()

    def adopt_all(self) -> None:
        """Take over what is left."""
        while self._to_adopt:
            self.adopt()

    def adopt(self) -> None:
        """Take over a piece: as a whole, or in two parts."""
        piece = self._to_adopt.pop(self._random.randrange(len(self._to_adopt)))
        self._counts.add("ranges adopted")
        pages = piece.range.length // PAGE_SIZE
        cut = self._random.randrange(pages) if self._random.random() < 0.3 else 0
        middle = piece.range.start + cut * PAGE_SIZE
        parts = [FileRange(piece.range.start, middle)] if cut else []
        parts.append(FileRange(middle, piece.range.end))
        if self._estate.plant.strikes("adopt"):
            self._estate.count_adoption()
            return
        for part in parts:
            allocation = Allocation.adopt(self._estate.file, part)
            stamp = piece.stamp.after((part.start - piece.range.start) // PAGE_SIZE)
            self.holdings.append(Holding(allocation, stamp, piece.refs == 1))
        self._estate.count_adoption()

    def _step(self) -> None:
        weights: dict[Callable[[], None], float] = {
            self._allocate: 6,
            self._ask: 3,
            self._save: 0.1,
        }
        if self._to_adopt:
            weights[self.adopt] = 20
        if self.holdings:
            weights |= dict.fromkeys([self._split, self._clone, self._free, self._decommit], 6)
            weights |= {self._check: 20, self._rewrite: 8}
        if self._favourite in weights:
            weights[self._favourite] *= 10
        self._random.choices(list(weights), list(weights.values()))[0]()
        self._counts.add("actions of owners")

    def _picked(self) -> Holding:
        return self._random.choice(self.holdings)

    def _view(self, holding: Holding) -> memoryview:
        how = self._random.randrange(3)
        if how == 0:
            return holding.allocation.view(readonly=True)
        if how == 1:
            return memoryview(holding.allocation)
        return self._estate.file.map_range(holding.allocation.range, "r")

    def _look(self, holding: Holding, when: str) -> None:
        range_ = holding.allocation.range
        broken = holding.from_image and self._estate.is_broken(range_)
        try:
            with self._view(holding) as view:
                if broken:
                    raise PromiseBrokenError(f"damaged pages of {range_} were handed out {when}")
                self._counts.add("pages checked", holding.stamp.expect(view, f"of {range_} {when}"))
        except SnapshotCorruptError as error:
            if not broken:
                raise PromiseBrokenError(f"{range_} is not damaged, but {error}") from error
            self._counts.add("damaged ranges refused")

    def _check(self) -> None:
        self._look(self._picked(), "at some moment")

    def _rewrite(self) -> None:
        holding = self._picked()
        if not holding.exclusive:
            return
        if holding.from_image and self._estate.is_broken(holding.allocation.range):
            return
        stamp = holding.stamp.rewritten(self._random.choice(list(Style)))
        with holding.allocation.view() as view:
            view[:] = stamp.contents(holding.pages)
        holding.stamp, holding.from_image = stamp, False
        self._look(holding, "after it was rewritten")
        self._counts.add("ranges rewritten")

    def _decommit(self) -> None:
        holding = self._picked()
        if not holding.exclusive:
            return
        if not self._estate.plant.strikes("decommit"):
            holding.allocation.decommit()
        holding.stamp = Stamp(holding.stamp.first, Style.ZERO)
        holding.from_image = False
        self._look(holding, "after decommit")
        self._counts.add("ranges decommitted")

    def _split(self) -> None:
        holding = self._picked()
        if holding.pages < 2:
            return
        cut = self._random.randrange(1, holding.pages)
        whole = holding.allocation
        rest = whole.slice(cut * PAGE_SIZE, whole.nbytes)
        holding.allocation = whole.slice(0, cut * PAGE_SIZE)
        whole.release()
        self.holdings.append(
            Holding(rest, holding.stamp.after(cut), holding.exclusive, holding.from_image)
        )

    def _clone(self) -> None:
        holding = self._picked()
        original, holding.allocation = holding.allocation, holding.allocation.clone()
        original.release()

    def _free(self) -> None:
        holding = self.holdings.pop(self._random.randrange(len(self.holdings)))
        holding.allocation.release()
        self._counts.add("ranges freed")

    def _allocate(self) -> None:
        pages = self._random.choice([1, 3, 16, 300])
        mode = self._random.choice(list(pgalloc.AllocationMode))
        allocation = self._estate.file.allocate(pages * PAGE_SIZE, mode=mode)
        stamp = self._stamper.new(pages, self._random.choice(list(Style)))
        with allocation.view() as view:
            expect_zero(view, f"of {allocation.range} on arrival")
            view[:] = stamp.contents(pages)
        self._counts.add("fresh pages", pages)
        self.holdings.append(Holding(allocation, stamp, exclusive=True, from_image=False))

    def _ask(self) -> None:
        file = self._estate.file
        what = self._random.randrange(4)
        if what == 0:
            file.wait_loaded(self._random.random() * 0.002)
        elif what == 1:
            file.load_progress()
        elif what == 2:
            file.update_usage()
        else:
            testing.verify(file)

    def _save(self) -> None:
        target = io.BytesIO()
        try:
            self._estate.file.save(target)
        except SnapshotCorruptError as error:
            if self._estate.broken is None:
                raise PromiseBrokenError(f"an undamaged file cannot be saved: {error}") from error
            return
        target.seek(0)
        pgalloc.verify_image(target)
        self._counts.add("saves of restored files")
