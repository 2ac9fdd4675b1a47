"""One peer: a process that allocates, marks, checks, shares, forks, lets go, and may be killed."""

from __future__ import annotations

import os
import random
import signal
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Any

from torture_api import marks

import pgalloc
from pgalloc import PAGE_SIZE, AllocationMode, Direction, MemoryKind
from sharing_api.children import Children
from sharing_api.holding import Holding, is_discarded
from sharing_api.post import OWNER, Envelope, Finding, Letter, Order, Report, Stillborn
from sharing_api.trouble import OF_PEERS, Trouble

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from sharing_api.post import Line

_KINDS = [kind for kind in MemoryKind if kind is not MemoryKind.MAPPED]
_SIZES = [1, 1, 2, 3, 5, 8, 16, 64, 300]  # in pages


class Peer:
    """It has the marks from ``serial << 40`` on for itself; it begins with gifts from the owner."""

    def __init__(
        self,
        line: Line,
        serial: int,
        seed: int,
        *,
        peers: int,
        bytes_max: int,
        trouble: float,
        gifts: Sequence[Letter],
    ) -> None:
        self._line = line
        self._serial = serial
        self._random = random.Random(seed << 24 | serial)
        self._children = Children(seed << 24 | serial, in_trouble=trouble > 0)
        self._trouble = Trouble(OF_PEERS, seed << 24 | serial, trouble)
        self._peers = peers
        self._bytes_max = bytes_max
        self._sequence = 0
        self._counts: Counter[str] = Counter()
        self._file: Any = gifts[0].pages.file
        self._pool = [Holding(first, pages) for first, pages in gifts]

    def live(self) -> None:
        """Until it is told to end."""
        for holding in self._pool:
            self._look_at(holding, "when it was given")
        self._trouble.begin_signals(self._file)
        while self._obey():
            self._children.look_after()
            while sum(holding.nbytes for holding in self._pool) > self._bytes_max:
                self._drop()
            self._act()
            self._counts["operations"] += 1

    # --- letters and orders ----------------------------------------------------------------------

    def _obey(self) -> bool:
        """Read what has come. Whether to go on."""
        return all(self._read(envelope) for envelope in self._line.waiting())

    def _read(self, envelope: Envelope) -> bool:
        content = self._trouble.call(envelope.open)
        if isinstance(content, Letter):
            self._take(content)
        elif content is Order.REPORT:
            self._report()
        elif content is Order.LEAVE:
            while self._pool:
                self._drop()
            return False
        elif content is Order.END:
            return False
        return True

    def _take(self, letter: Letter) -> None:
        try:
            holding = Holding(*letter)
        except pgalloc.OwnerGoneError:
            raise
        except pgalloc.SharingError:
            self._counts["letters not opened"] += 1  # dropped in an audit, or in trouble
            return
        self._look_at(holding, "when it was passed on")
        self._pool.append(holding)
        self._counts["letters received"] += 1

    def _report(self) -> None:
        """Say what is held, and keep quiet until told otherwise."""
        self._trouble.pause()
        self._children.wait()
        if isinstance(self._file, pgalloc.PeerFile) and not self._file.flush(60):
            raise marks.PromiseBrokenError("the owner does not take back what was let go of")
        ranges = [(holding.range.start, holding.range.end) for holding in self._pool]
        self._counts["calls refused"] += self._trouble.refused
        self._counts["calls that failed"] += self._trouble.failures
        self._counts["children without pages"] += self._children.without_pages
        self._children.without_pages = 0
        self._trouble.refused = self._trouble.failures = 0
        self._line.send(Report(ranges, self._counts))
        self._counts = Counter()
        order = self._line.receive().open()
        assert order is Order.GO_ON
        self._trouble.go_on()

    # --- what it does ----------------------------------------------------------------------------

    def _act(self) -> None:
        actions = [self._allocate]
        weights = [30]
        if self._pool:
            actions += [self._check, self._clone, self._slice, self._keep_only_a_view]
            weights += [14, 6, 6, 4]
            actions += [self._decommit, self._unpin, self._pin, self._clone_unpinned]
            weights += [6, 6, 5, 3]
            actions += [self._copy_to_another, self._pass_on, self._fork, self._drop]
            weights += [8, 8, 1, 14]
        self._random.choices(actions, weights)[0]()

    def _look_at(self, holding: Holding, when: str) -> None:
        self._counts["pages checked"] += holding.check(when)

    def _picked(self, *, pinned: bool = True, allocation: bool = False) -> Holding | None:
        """Any holding like that; None if there is none."""
        fitting = [
            holding
            for holding in self._pool
            if holding.pinned == pinned and not (allocation and holding.allocation is None)
        ]
        return self._random.choice(fitting) if fitting else None

    def _allocate(self) -> None:
        pages = self._random.choice(_SIZES)
        how = {
            "kind": self._random.choice(_KINDS),
            "direction": self._random.choice(list(Direction)),
            "mode": self._random.choice(list(AllocationMode)),
        }
        allocation = self._trouble.call(lambda: self._file.allocate(pages * PAGE_SIZE, **how))
        if allocation is None:
            return
        marks.expect_zero(allocation, "on arrival")
        self._sequence += 1
        first = self._serial << 40 | self._sequence << 16
        marks.write(allocation, first)
        self._pool.append(Holding(first, allocation))
        self._counts["allocations"] += 1

    def _check(self) -> None:
        holding = self._picked()
        if holding is not None:
            self._look_at(holding, "at rest")

    def _clone(self) -> None:
        holding = self._picked(allocation=True)
        if holding is not None and holding.allocation is not None:
            clone = self._trouble.call(holding.allocation.clone)
            if clone is not None:
                self._pool.append(Holding(holding.first, clone))

    def _slice(self) -> None:
        part = self._part_of(self._picked(allocation=True))
        if part is not None:
            self._pool.append(part)

    def _part_of(self, holding: Holding | None) -> Holding | None:
        if holding is None or holding.allocation is None:
            return None
        pages = holding.allocation
        start = self._random.randrange(holding.pages)
        stop = self._random.randrange(start, holding.pages) + 1
        part = self._trouble.call(lambda: pages.slice(start * PAGE_SIZE, stop * PAGE_SIZE))
        return None if part is None else Holding(holding.first + start, part)

    def _keep_only_a_view(self) -> None:
        holding = self._picked(allocation=True)
        if holding is not None:
            self._trouble.call(holding.keep_only_a_view)

    def _decommit(self) -> None:
        holding = self._picked(allocation=True)
        if holding is None or holding.allocation is None:
            return
        pages = holding.allocation
        # If the one reference is ours, only we could add another: no other looks at these pages.
        if not self._trouble.call(lambda: self._file.has_unique_ref(pages.range)):
            return
        self._look_at(holding, "before decommit")
        if not self._trouble.call(lambda: (pages.decommit(), True)):
            self._look_at(holding, "when its decommit was refused")
            return
        marks.expect_zero(pages, "after decommit")
        marks.write(pages, holding.first)
        self._counts["decommits"] += 1

    def _unpin(self) -> None:
        holding = self._picked(allocation=True)
        if holding is not None and holding.allocation is not None:
            self._trouble.call(holding.allocation.unpin)

    def _pin(self) -> None:
        """Where the contents are gone, so is the holding."""
        holding = self._picked(pinned=False)
        if holding is None or holding.allocation is None:
            return
        pinned = self._trouble.call(holding.allocation.pin)
        if pinned is None:
            return
        if pinned:
            self._look_at(holding, "when it was pinned again")
            return
        self._counts["discards seen"] += 1
        is_discarded(holding.allocation, holding.first)
        self._remove(holding)

    def _clone_unpinned(self) -> None:
        """A clone pins: whatever marks it still finds must stay."""
        holding = self._picked(pinned=False)
        if holding is None or holding.allocation is None:
            return
        clone = self._trouble.call(holding.allocation.clone)
        if clone is None:
            return
        if is_discarded(clone, holding.first):
            clone.release()
        else:
            self._pool.append(Holding(holding.first, clone))

    def _copy_to_another(self) -> None:
        part = self._part_of(self._picked(allocation=True))
        if part is not None:
            self._send(part)
            part.drop()

    def _pass_on(self) -> None:
        holding = self._picked(allocation=True)
        if holding is not None and self._send(holding):
            self._remove(holding)

    def _send(self, holding: Holding) -> bool:
        """Whether it is on its way."""
        assert holding.allocation is not None
        letter = Letter(holding.first, holding.allocation)
        to = self._random.choice([OWNER, *range(self._peers)])
        envelope = self._trouble.call(lambda: Envelope.of(letter, to))
        if envelope is None:
            return False
        self._line.forward(envelope)
        self._counts["letters sent"] += 1
        return True

    def _fork(self) -> None:
        if not self._children.full:
            self._children.fork(self._pool)
            self._counts["children"] += 1

    def _drop(self) -> None:
        holding = self._random.choice(self._pool)
        if holding.pinned:
            self._look_at(holding, "before it was dropped")
        self._remove(holding)

    def _remove(self, holding: Holding) -> None:
        self._pool.remove(holding)
        holding.drop()


def _born(line: Line, *args: Any, **options: Any) -> Peer | None:
    try:
        return Peer(line, *args, **options)
    except pgalloc.OwnerGoneError:
        raise
    except pgalloc.SharingError:
        if not options["trouble"]:
            raise
        line.send(Stillborn())
        return None


def run(line: Line, inherited: Sequence[Line], *args: Any, **options: Any) -> NoReturn:
    """What the process of a peer does; ``inherited`` is what a forked one must not keep open."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for other in inherited:
        other.close()
    status = 0
    try:
        if (peer := _born(line, *args, **options)) is not None:
            peer.live()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the owner has ended: it found something
    except BaseException:
        status = 1
        line.send(Finding(traceback.format_exc()))
    os._exit(status)
