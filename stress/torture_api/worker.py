"""One thread's share: it allocates, marks, checks, shares, passes on and lets go at random."""

from __future__ import annotations

import io
import queue
import random
from collections import Counter
from typing import TYPE_CHECKING

import pgalloc
from pgalloc import PAGE_SIZE, AllocationMode, Direction, MemoryKind
from torture_api import marks
from torture_api.holding import Holding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torture_api.shelf import Shelf
    from torture_api.source import Source

_KINDS = [kind for kind in MemoryKind if kind is not MemoryKind.MAPPED]


class Worker:
    """For one thread at a time; the source, the shelf and the mailboxes are shared."""

    def __init__(
        self,
        number: int,
        seed: int,
        source: Source,
        shelf: Shelf,
        mailboxes: Sequence[queue.SimpleQueue[Holding]],
        bytes_max: int,
    ) -> None:
        self.pool: list[Holding] = []
        self.counts: Counter[str] = Counter()
        self._number = number
        self._random = random.Random(seed * 1000 + number)
        self._source = source
        self._shelf = shelf
        self._mailboxes = mailboxes
        self._bytes_max = bytes_max
        self._sequence = 0

    def step(self) -> None:
        """Do one thing."""
        self.receive()
        while sum(holding.nbytes for holding in self.pool) > self._bytes_max:
            self._drop()
        actions = [self._allocate, self._fill, self._fail_to_fill]
        weights = [30, 6, 2]
        if self.pool:
            actions += [self._check, self._share, self._view, self._decommit, self._pass_on]
            actions += [self._shelve, self._take, self._drop]
            weights += [14, 8, 8, 6, 6, 6, 4, 14]
        self._random.choices(actions, weights)[0]()
        self.counts["operations"] += 1

    def receive(self) -> None:
        """Take what others passed on."""
        mailbox = self._mailboxes[self._number]
        while not mailbox.empty():
            holding = mailbox.get()
            self._look_at(holding, "when it was passed on")
            self.pool.append(holding)

    def drop_all(self) -> None:
        """Check everything and let go of it."""
        self.receive()
        while self.pool:
            self._drop()

    def _look_at(self, holding: Holding, when: str) -> None:
        self.counts["pages checked"] += holding.check(when)

    def _picked(self) -> Holding:
        return self._random.choice(self.pool)

    def _removed(self) -> Holding:
        return self.pool.pop(self._random.randrange(len(self.pool)))

    def _new_marks(self, pages: int) -> int:
        first = (self._number + 1) << 56 | self._sequence << 16
        self._sequence += 1
        assert pages < 1 << 16
        return first

    def _pages(self) -> int:
        return self._random.choice([1, 1, 2, 3, 5, 8, 16, 64, 512, 600, 1500])

    def _allocate(self) -> None:
        pages = self._pages()
        allocation = self._source.allocate(
            pages * PAGE_SIZE,
            kind=self._random.choice(_KINDS),
            direction=self._random.choice(list(Direction)),
            memcg_id=self._random.randrange(4),
            mode=self._random.choice(list(AllocationMode)),
            huge=self._random.choice([True, False, None]),
        )
        marks.expect_zero(allocation, "on arrival")
        first = self._new_marks(pages)
        marks.write(allocation, first)
        self.pool.append(Holding(first, allocation))
        self.counts["allocations"] += 1
        self.counts["pages marked"] += pages

    def _fill(self) -> None:
        pages = self._pages()
        first = self._new_marks(pages)
        reader = io.BytesIO(marks.contents(first, pages)).readinto
        allocation = self._source.file.allocate(pages * PAGE_SIZE, reader=reader)
        self.pool.append(Holding(first, allocation))
        self.counts["filled by a reader"] += 1

    def _fail_to_fill(self) -> None:
        pages = self._pages()
        first = self._new_marks(pages)
        data = marks.contents(first, pages)[: self._random.randrange(pages * PAGE_SIZE)]
        try:
            self._source.file.allocate(pages * PAGE_SIZE, reader=io.BytesIO(data).readinto)
        except pgalloc.FillError as error:
            whole_pages = len(data) // PAGE_SIZE
            if error.range.length != whole_pages * PAGE_SIZE:
                raise marks.PromiseBrokenError("a FillError carries the wrong range") from error
            if error.allocation is not None:
                self.pool.append(Holding(first, error.allocation))
        else:
            raise marks.PromiseBrokenError("a reader ended early without an error")
        self.counts["readers that ended early"] += 1

    def _check(self) -> None:
        self._look_at(self._picked(), "at rest")

    def _share(self) -> None:
        holding = self._picked()
        if holding.allocation is None:
            return
        pages = holding.nbytes // PAGE_SIZE
        start = self._random.randrange(pages)
        stop = self._random.randrange(start, pages) + 1
        part = holding.allocation.slice(start * PAGE_SIZE, stop * PAGE_SIZE)
        self._random.choice(self._mailboxes).put(Holding(holding.first + start, part))
        self.counts["slices shared"] += 1

    def _view(self) -> None:
        self._source.keep_only_a_view(self._picked())
        self.counts["views that outlived"] += 1

    def _decommit(self) -> None:
        holding = self._picked()
        allocation = holding.allocation
        # If the one reference is ours, only we could add another: no other looks at these pages.
        if allocation is None or not self._source.file.has_unique_ref(allocation.range):
            return
        self._look_at(holding, "before decommit")
        allocation.decommit()
        marks.expect_zero(allocation, "after decommit")
        marks.write(allocation, holding.first)
        self.counts["decommits"] += 1

    def _pass_on(self) -> None:
        self._random.choice(self._mailboxes).put(self._removed())
        self.counts["passed on"] += 1

    def _shelve(self) -> None:
        self._shelf.put(self._removed())
        self.counts["marked evictable"] += 1

    def _take(self) -> None:
        holding = self._shelf.take()
        if holding is not None:
            self.pool.append(holding)

    def _drop(self) -> None:
        holding = self._removed()
        self._look_at(holding, "before it was dropped")
        holding.drop()
