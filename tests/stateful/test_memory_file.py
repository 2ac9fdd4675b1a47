"""A hypothesis state machine drives the Python API against tests/model.py (sections B to H).

After each step the kernel, the account, the usage set and every byte are what the model says. The
reclaimer is given time to finish after each step, unless it is paused; free_and_allocate() is the
rule that does not wait, and accepts every picture the reclaimer may have reached by then.

Huge allocations are laid out the same whatever the kernel gives. Where it gives huge pages
(``stress/huge_pages.py``), the model is told what they brought, and says whether they may have.
PGALLOC_PLANT=huge makes the model wrong about parts of huge pages, which a run has to find.
"""

from __future__ import annotations

import copy
import errno
import io
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import pytest
from conftest import kernel_gives_huge_pages, stored, update_usage
from hypothesis import Phase, given, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model import (
    CHUNK,
    COMMIT,
    HUGE,
    NOTHING,
    PAGE,
    POPULATE,
    ModelEvictables,
    ModelFile,
    NoRoomError,
    WrongCountError,
    WrongRangeError,
    place,
    stretches,
)
from snapshots import merged

import pgalloc
from pgalloc import (
    Allocation,
    AllocationMode,
    DelayedEviction,
    Direction,
    EvictableRange,
    FileRange,
    FillError,
    MemoryFile,
    MemoryKind,
    OutOfMemoryError,
    RangeError,
    RefCountError,
    SnapshotError,
    testing,
)
from pgalloc.testing import ManualClock, find_available_range

KINDS = [kind for kind in MemoryKind if kind is not MemoryKind.MAPPED]
MEMCGS = [0, 1, 7]
SMALL = [1, 1, 2, 3, 5, 8, 16]
MIDDLE = [HUGE // PAGE - 1, HUGE // PAGE, HUGE // PAGE + 1, 2 * HUGE // PAGE + 3]
BIG = [CHUNK // PAGE - 2, CHUNK // PAGE, CHUNK // PAGE + 1]
HUGE_ONES = [*MIDDLE, 2 * HUGE // PAGE, 3 * HUGE // PAGE - 1]
CUTS = [*range(21), 100, 511, 512, 513, 700]
PLANTED = os.environ.get("PGALLOC_PLANT") == "huge"
FILL_MAX = 16  # pages that a step writes at most


@dataclass(eq=False)
class Handle:
    """An Allocation and what the model has to know of it."""

    allocation: Allocation
    start: int
    end: int
    views: int = 0
    released: bool = False

    @property
    def holds(self) -> bool:
        return not self.released or self.views > 0


@dataclass(eq=False)
class View:
    handle: Handle
    view: memoryview


@dataclass
class Reader:
    """Gives ``available`` bytes of a stamp in steps, then ends as ``ending`` says."""

    stamp: int
    available: int
    step: int
    ending: str

    def __call__(self, buffer: memoryview) -> Any:
        if self.available == 0:
            if self.ending == "raise":
                raise OSError(errno.EIO, "planned")
            return {"end": 0, "none": None, "too many": len(buffer) + 1, "negative": -1}[
                self.ending
            ]
        count = min(self.available, self.step, len(buffer))
        buffer[:count] = bytes([self.stamp]) * count
        self.available -= count
        return count


readers = st.builds(
    Reader,
    stamp=st.integers(1, 255),
    available=st.one_of(
        st.just(FILL_MAX * PAGE),
        st.integers(0, FILL_MAX).map(lambda n: n * PAGE),
        st.integers(0, 9999),
    ),
    step=st.sampled_from([100, PAGE, 3 * PAGE + 1, FILL_MAX * PAGE]),
    ending=st.sampled_from(["end", "raise", "none", "too many", "negative"]),
)


@dataclass(eq=False)
class User:
    """An evictable user that remembers what it was asked for."""

    asked: list[tuple[int, int]] = field(default_factory=list)

    def evict(self, range: EvictableRange) -> None:
        self.asked.append((range.start, range.end))


class PlantedModel(ModelFile):
    """Wrong: parts of huge pages are free as soon as they were punched."""

    def _unused(self, huge_page: int) -> bool:
        return True


class MemoryFileMachine(RuleBasedStateMachine):
    """Every rule does one thing to the file and to the model, and compares the outcomes."""

    def __init__(self, *, on_disk: bool = False, **options: Any) -> None:
        super().__init__()
        self.backing = tempfile.TemporaryFile() if on_disk else None  # noqa: SIM115
        self.on_disk = on_disk
        self.account_before = pgalloc.memory_accounting().total()
        self.mf = MemoryFile(self.backing, **options)
        self.model = (PlantedModel if PLANTED else ModelFile)(
            capacity=self.mf.capacity,
            max_allocatable_bytes=options.get("max_allocatable_bytes"),
            manual_zeroing=options.get("manual_zeroing", False),
            in_memory=not on_disk,
            huge_pages=options.get("huge_pages", "auto"),
            kernel_gives_huge_pages=kernel_gives_huge_pages(),
            accounting=options.get("accounting", True),
        )
        self.policy = options.get("delayed_eviction", DelayedEviction.DEFAULT)
        self.clock = ManualClock(self.mf)
        self.clock.__enter__()
        self.pauses: list[AbstractContextManager[None]] = []
        self.handles: list[Handle] = []
        self.views: list[View] = []
        self.raw: list[tuple[int, int]] = []  # each is one reference on its pages, owned here
        self.users = [User(), User()]
        self.evictables = ModelEvictables()

    # --- helpers ---------------------------------------------------------------------------------

    def settle(self) -> None:
        """Unless it is paused, let the reclaimer finish, in the file and in the model."""
        if not self.pauses:
            assert self.mf.wait_for_reclaim(30)
            self.model.reclaim()

    def near(self, pick: int, offset: int, pages: int) -> tuple[int, int]:
        """Some pages around the start of some run, or (pages 0) exactly that run."""
        runs = self.model.runs
        if not runs:
            return max(0, offset), max(0, offset) + max(1, pages)
        run = runs[pick % len(runs)]
        if pages == 0:
            return run.start, run.end
        start = max(0, run.start + offset)
        return start, start + pages

    def agree(self, real: Callable[[], Any], model: Callable[[], Any]) -> Any:
        """Both succeed with the same result, or both fail in the same way, changing nothing."""
        before = copy.deepcopy(self.model)
        try:
            expected = model()
        except WrongRangeError:
            with pytest.raises((RangeError, RefCountError)):
                real()
            self.model = before
            return None
        except WrongCountError:
            with pytest.raises((RefCountError, RangeError)):
                real()
            self.model = before
            return None
        except NoRoomError:
            with pytest.raises(OutOfMemoryError):
                real()
            self.model = before
            return None
        assert real() == expected
        return expected

    def owner_may_drop(self, start: int, end: int) -> bool:
        """Whether the references that dec_ref() would take are not another's.

        True as well for what must be refused.
        """
        try:
            self.model.check(start, end)
        except (WrongRangeError, WrongCountError):
            return True
        return False

    # --- B: allocate -----------------------------------------------------------------------------

    @rule(
        pages=st.sampled_from(SMALL * 4 + MIDDLE + BIG),
        kind=st.sampled_from(KINDS),
        direction=st.sampled_from(Direction),
        memcg_id=st.sampled_from(MEMCGS),
        mode=st.sampled_from(AllocationMode),
        as_handle=st.booleans(),
        reader=st.none() | readers,
    )
    def allocate(
        self,
        pages: int,
        kind: MemoryKind,
        direction: Direction,
        memcg_id: int,
        mode: AllocationMode,
        as_handle: bool,
        reader: Reader | None,
        huge: bool | None = False,
    ) -> None:
        if pages in BIG:
            mode = AllocationMode.ALLOCATE_ONLY
            if self.on_disk:  # all of it is stored there
                pages = MIDDLE[-1]
        if pages > FILL_MAX:
            reader = None
        self.settle()
        length = pages * PAGE
        call: Any = self.mf.allocate if as_handle else self.mf.allocate_range
        arguments: dict[str, Any] = {
            "kind": kind,
            "direction": direction,
            "memcg_id": memcg_id,
            "mode": mode,
            "reader": reader,
            "huge": huge,
        }
        model = copy.deepcopy(self.model)
        try:
            start, end = model.allocate(pages, kind, direction, memcg_id, mode, huge)
        except NoRoomError:
            with pytest.raises(OutOfMemoryError):
                call(length, **arguments)
            return
        self.model = model
        available = length if reader is None else min(length, reader.available)
        if available == length:
            result = call(length, **arguments)
            range_ = result.range if as_handle else result
            assert tuple(range_) == (start * PAGE, end * PAGE)
            kept: Any = result
        else:
            # No pytest.raises: its cycle through this frame would keep the allocation alive.
            try:
                kept = call(length, **arguments)
            except FillError as error:
                kept, range_ = error.allocation, error.range
            else:
                raise AssertionError("the reader's failure was passed over")
            end = start + available // PAGE
            assert tuple(range_) == (start * PAGE, end * PAGE)
            assert (kept is not None) == (as_handle and end > start)
        if reader is not None:
            self.model.write(start, start + -(-available // PAGE), reader.stamp)
        if available < length:
            self.model.dec_ref(end, start + pages)
            self.settle()
        if end == start:
            return
        if as_handle:
            self.handles.append(Handle(kept, start, end))
        else:
            self.raw.append((start, end))

    @rule(
        pages=st.sampled_from(HUGE_ONES),
        direction=st.sampled_from(Direction),
        mode=st.sampled_from(AllocationMode),
        as_handle=st.booleans(),
        huge=st.sampled_from([True, True, None, False]),
    )
    def allocate_huge(
        self,
        pages: int,
        direction: Direction,
        mode: AllocationMode,
        as_handle: bool,
        huge: bool | None,
    ) -> None:
        self.allocate(
            pages=pages,
            kind=MemoryKind.ANONYMOUS,
            direction=direction,
            memcg_id=pages % 2,
            mode=mode,
            as_handle=as_handle,
            reader=None,
            huge=huge,
        )

    @rule(
        pick=st.integers(0, 99),
        pages=st.sampled_from(SMALL + MIDDLE),
        direction=st.sampled_from(Direction),
        mode=st.sampled_from([AllocationMode.ALLOCATE_ONLY, POPULATE]),
        huge=st.booleans(),
    )
    # With manual_zeroing, what a punch empties depends on what was freed together (F3).
    @precondition(lambda self: self.raw and not self.pauses and not self.model.manual_zeroing)
    def free_and_allocate(
        self, pick: int, pages: int, direction: Direction, mode: AllocationMode, huge: bool
    ) -> None:
        """B3, B5, F1: what was freed just now is waste, or free, or partly so; never shared."""
        start, end = self.raw.pop(pick % len(self.raw))
        self.model.dec_ref(start, end)
        possible = []
        picture = copy.deepcopy(self.model)
        while True:
            outcome = copy.deepcopy(picture)
            try:
                found = outcome.allocate(pages, MemoryKind.TMPFS, direction, 0, mode, huge)
            except NoRoomError:
                pass  # B3, B9: it waits for the reclaimer before it refuses
            else:
                possible.append((found, outcome))
            if picture.releasing != NOTHING:
                picture.releasing = NOTHING
                picture.reclaim_next()
            elif picture.waste():
                picture.releasing = picture.next_release()
            else:
                break
        self.mf.dec_ref(FileRange(start * PAGE, end * PAGE))
        try:
            got = self.mf.allocate_range(
                pages * PAGE, kind=MemoryKind.TMPFS, direction=direction, mode=mode, huge=huge
            )
        except OutOfMemoryError:
            assert not possible
            self.settle()
            return
        for found, outcome in possible:
            recycled = outcome.counts["recycled_bytes"] == self.mf.stats().recycled_bytes
            if (found[0] * PAGE, found[1] * PAGE) == tuple(got) and recycled:
                self.model = outcome
                break
        else:
            raise AssertionError(f"{got} is none of {[found for found, _ in possible]}")
        with self.mf.map_range(FileRange(got.start, got.start + PAGE)) as view:
            assert bytes(view) == self.model.read(found[0], found[0] + 1) == bytes(PAGE)
        # Free it again, so that what follows does not depend on who was faster. Not before the rest
        # of a recycled huge page was punched, which is punched once more when all of it is free.
        self.settle()
        self.mf.dec_ref(got)
        self.model.dec_ref(*found)
        self.settle()

    # --- C: references ---------------------------------------------------------------------------

    @rule(
        pick=st.integers(0, 99),
        offset=st.integers(-3, 12),
        pages=st.integers(0, 9),
        memcg_id=st.sampled_from(MEMCGS),
    )
    def inc_ref(self, pick: int, offset: int, pages: int, memcg_id: int) -> None:
        start, end = self.near(pick, offset, pages)
        range_ = FileRange(start * PAGE, end * PAGE)
        before = copy.deepcopy(self.model.runs)
        self.agree(
            lambda: self.mf.inc_ref(range_, memcg_id),
            lambda: self.model.inc_ref(start, end, memcg_id),
        )
        if self.model.runs != before:
            self.raw.append((start, end))

    @rule(pick=st.integers(0, 99), cut=st.sampled_from(CUTS))
    @precondition(lambda self: self.raw)
    def dec_ref(self, pick: int, cut: int) -> None:
        """All of what is owned, or the first pages of it."""
        start, end = self.raw.pop(pick % len(self.raw))
        middle = start + cut
        if start < middle < end:
            self.raw.append((middle, end))
            end = middle
        self.agree(
            lambda: self.mf.dec_ref(FileRange(start * PAGE, end * PAGE)),
            lambda: self.model.dec_ref(start, end),
        )
        self.settle()

    @rule(pick=st.integers(0, 99), offset=st.integers(-3, 40), pages=st.integers(0, 40))
    def wrong_dec_ref(self, pick: int, offset: int, pages: int) -> None:
        start, end = self.near(pick, offset, pages)
        if not self.owner_may_drop(start, end):
            return
        with pytest.raises((RangeError, RefCountError)):
            self.mf.dec_ref(FileRange(start * PAGE, end * PAGE))

    @rule(
        pick=st.integers(0, 99),
        shift=st.sampled_from([(1, 0), (0, 1), (0, -1), (PAGE // 2, PAGE // 2)]),
        call=st.sampled_from(["inc_ref", "dec_ref", "has_unique_ref", "decommit"]),
    )
    def misaligned(self, pick: int, shift: tuple[int, int], call: str) -> None:
        """Row C1."""
        start, end = self.near(pick, 0, 0)
        with pytest.raises(RangeError):
            getattr(self.mf, call)(FileRange(start * PAGE + shift[0], end * PAGE + shift[1]))

    @rule(pick=st.integers(0, 99), offset=st.integers(-3, 12), pages=st.integers(0, 9))
    def has_unique_ref(self, pick: int, offset: int, pages: int) -> None:
        start, end = self.near(pick, offset, pages)
        self.agree(
            lambda: self.mf.has_unique_ref(FileRange(start * PAGE, end * PAGE)),
            lambda: self.model.has_unique_ref(start, end),
        )

    # --- D, E: contents --------------------------------------------------------------------------

    @rule(
        pick=st.integers(0, 99),
        offset=st.sampled_from([*range(-3, 13), 500, 512]),
        pages=st.sampled_from([*range(10), 30, 512, 600]),
    )
    def decommit(self, pick: int, offset: int, pages: int) -> None:
        start, end = self.near(pick, offset, pages)
        self.agree(
            lambda: self.mf.decommit(FileRange(start * PAGE, end * PAGE)),
            lambda: self.model.decommit(start, end),
        )

    @rule(
        pick=st.integers(0, 99),
        offset=st.integers(-3, 12),
        pages=st.integers(1, FILL_MAX),
        stamp=st.integers(1, 255),
    )
    def write(self, pick: int, offset: int, pages: int, stamp: int) -> None:
        start, end = self.near(pick, offset, pages)
        try:
            self.model.check(start, end)
        except (WrongRangeError, WrongCountError):
            return
        with self.mf.map_range(FileRange(start * PAGE, end * PAGE)) as view:
            view[:] = bytes([stamp]) * len(view)
        self.model.write(start, end, stamp)

    @rule(pick=st.integers(0, 99), offset=st.integers(-3, 12), pages=st.integers(1, 4))
    def read(self, pick: int, offset: int, pages: int) -> None:
        start, end = self.near(pick, offset, pages)
        try:
            self.model.check(start, end)
        except (WrongRangeError, WrongCountError):
            return
        with self.mf.map_range(FileRange(start * PAGE, end * PAGE), "r") as view:
            assert bytes(view) == self.model.read(start, end)

    # --- the handle ------------------------------------------------------------------------------

    def _drop_if_unheld(self, handle: Handle) -> None:
        if not handle.holds:
            self.model.dec_ref(handle.start, handle.end)
            self.handles.remove(handle)
            self.settle()

    def _live(self, pick: int) -> Handle | None:
        live = [handle for handle in self.handles if not handle.released]
        return live[pick % len(live)] if live else None

    @rule(pick=st.integers(0, 99))
    def clone(self, pick: int) -> None:
        if (handle := self._live(pick)) is None:
            return
        self.handles.append(Handle(handle.allocation.clone(), handle.start, handle.end))
        self.model.inc_ref(handle.start, handle.end)

    @rule(
        pick=st.integers(0, 99),
        first=st.sampled_from([*range(7), 510, 512]),
        pages=st.sampled_from([*range(1, 7), 512]),
    )
    def slice(self, pick: int, first: int, pages: int) -> None:
        if (handle := self._live(pick)) is None:
            return
        start, end = handle.start + first, handle.start + first + pages
        if end > handle.end:
            with pytest.raises(RangeError):
                handle.allocation.slice(first * PAGE, (first + pages) * PAGE)
            return
        part = handle.allocation.slice(first * PAGE, (first + pages) * PAGE)
        self.handles.append(Handle(part, start, end))
        self.model.inc_ref(start, end)

    @rule(pick=st.integers(0, 99), readonly=st.booleans())
    def view(self, pick: int, readonly: bool) -> None:
        if (handle := self._live(pick)) is None:
            return
        self.views.append(View(handle, handle.allocation.view(readonly=readonly)))
        handle.views += 1

    @rule(pick=st.integers(0, 99))
    def release_handle(self, pick: int) -> None:
        if (handle := self._live(pick)) is None:
            return
        handle.allocation.release()
        handle.released = True
        self._drop_if_unheld(handle)

    @rule(pick=st.integers(0, 99))
    def forget_handle(self, pick: int) -> None:
        """The same by the end of the object's life; views keep it alive."""
        if (handle := self._live(pick)) is None:
            return
        handle.released = True
        del handle.allocation
        self._drop_if_unheld(handle)

    @rule(pick=st.integers(0, 99))
    @precondition(lambda self: self.views)
    def release_view(self, pick: int) -> None:
        view = self.views.pop(pick % len(self.views))
        view.view.release()
        view.handle.views -= 1
        self._drop_if_unheld(view.handle)

    @rule(pick=st.integers(0, 99), page=st.integers(0, 30), stamp=st.integers(1, 255))
    @precondition(lambda self: self.views)
    def use_view(self, pick: int, page: int, stamp: int) -> None:
        """Row E4: a view reaches its pages, whatever became of the handle."""
        view = self.views[pick % len(self.views)]
        page %= view.handle.end - view.handle.start
        at = slice(page * PAGE, (page + 1) * PAGE)
        number = view.handle.start + page
        assert bytes(view.view[at]) == self.model.read(number, number + 1)
        if not view.view.readonly:
            view.view[at] = bytes([stamp]) * PAGE
            self.model.write(number, number + 1, stamp)

    @rule(pick=st.integers(0, 99))
    def decommit_handle(self, pick: int) -> None:
        if (handle := self._live(pick)) is None:
            return
        handle.allocation.decommit()
        self.model.decommit(handle.start, handle.end)

    # --- F: reclaim ------------------------------------------------------------------------------

    @rule()
    @precondition(lambda self: len(self.pauses) < 2)
    def pause_reclaimer(self) -> None:
        pause = testing.pause_reclaimer(self.mf)
        pause.__enter__()
        self.pauses.append(pause)

    @rule()
    @precondition(lambda self: self.pauses)
    def resume_reclaimer(self) -> None:
        """Row F1: highest first, touching ranges as one, 128 MiB at most."""
        with testing.reclaim_log(self.mf) as log:
            self.pauses.pop().__exit__(None, None, None)
            if self.pauses:
                return
            assert self.mf.wait_for_reclaim(30)
        expected = []
        while self.model.waste():
            expected.append(self.model.reclaim_next())
        assert [(r.start // PAGE, r.end // PAGE) for r in log] == expected

    @rule()
    def wait_for_reclaim(self) -> None:
        waiting = bool(self.model.waste())
        assert self.mf.wait_for_reclaim(0 if waiting else 30) is not waiting

    # --- G: evictions ----------------------------------------------------------------------------

    @rule(user=st.integers(0, 1), start=st.integers(0, 40), length=st.integers(1, 20))
    def mark_evictable(self, user: int, start: int, length: int) -> None:
        self.mf.mark_evictable(self.users[user], EvictableRange(start, start + length))
        self.evictables.mark(user, start, start + length)
        if self.policy is not DelayedEviction.MANUAL:
            self._evictions_follow([user])

    @rule(user=st.integers(0, 1), start=st.integers(0, 40), length=st.integers(1, 20))
    def mark_unevictable(self, user: int, start: int, length: int) -> None:
        self.mf.mark_unevictable(self.users[user], EvictableRange(start, start + length))
        self.evictables.unmark(user, start, start + length)

    @rule(user=st.integers(0, 1))
    def mark_all_unevictable(self, user: int) -> None:
        self.mf.mark_all_unevictable(self.users[user])
        self.evictables.unmark(user, 0, 100)

    @rule()
    def evict(self) -> None:
        self.mf.start_evictions()
        assert self.mf.wait_for_evictions(30)
        self._evictions_follow([0, 1])

    def _evictions_follow(self, users: list[int]) -> None:
        """Row G4, in the order asked for; ENABLED evicts when the reclaimer gets to it (F5)."""
        for number in users:
            user, expected = self.users[number], self.evictables.evict(number)
            deadline = time.monotonic() + 30
            # time: a bound on a hang
            while len(user.asked) < len(expected) and time.monotonic() < deadline:
                time.sleep(0.0002)  # time: it polls
            assert user.asked == expected
            user.asked.clear()
        assert self.mf.wait_for_evictions(30)

    # --- H: usage --------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 0.005, 0.010, 1.0]))
    def update_usage(self, seconds: float) -> None:
        self.learn()
        self.clock.advance(seconds)
        self.model.now_s = round(self.model.now_s + seconds, 3)
        self.model.next_scan_s = round(self.model.next_scan_s, 3)
        assert self.mf.update_usage() == self.model.update_usage(stored(self.mf))

    @rule(memcg_ids=st.lists(st.sampled_from([*MEMCGS, 99]), max_size=3))
    def update_usage_of(self, memcg_ids: list[int]) -> None:
        self.learn()
        expected = self.model.update_usage(stored(self.mf), memcg_ids)
        assert self.mf.update_usage(memcg_ids) == expected

    # --- J: save and restore ---------------------------------------------------------------------

    @rule(mode=st.sampled_from(["eager", "background", "stream"]), zstd=st.booleans())
    @precondition(lambda self: not self.pauses)
    def save_and_restore(self, mode: str, zstd: bool) -> None:
        """The image holds what the model says; that saving changes nothing, the invariants show."""
        image = io.BytesIO()
        if any(self.evictables.marked.values()):
            with pytest.raises(SnapshotError):
                self.mf.save(image)
            return
        self.mf.save(image, compression="zstd" if zstd else None)
        self.model.reclaim()
        source: Any = io.BytesIO(image.getvalue())
        with tempfile.TemporaryFile() as file:
            if mode != "stream":
                file.write(image.getvalue())
                file.seek(0)
                source = file
            restored = MemoryFile.restore(source, background=mode == "background")
        with restored:
            found, expected = (
                [s for s in merged(segments) if s.refs]
                for segments in (restored.segments(), self.model.segments())
            )
            assert found == expected
            assert restored.total_size == self.model.size
            assert restored.wait_loaded(30)
            owned = {
                page for page in self.model.content if (use := self.model.at(page)) and use.refs
            }
            update_usage(restored)
            assert stored(restored) == sum(restored.usage().values())
            if not self.model.kernel_gives_huge_pages:
                assert stored(restored) == len(owned) * PAGE
            for page in owned:
                expected_bytes = bytes([self.model.content[page]]) * PAGE
                assert os.pread(restored.fileno(), PAGE, page * PAGE) == expected_bytes
            testing.verify(restored)

    # --- what always holds -----------------------------------------------------------------------

    @invariant()
    def the_file_is_what_the_model_says(self) -> None:
        segments, expected = self.mf.segments(), self.model.segments()
        assert segments == expected
        assert [s.huge for s in segments] == [s.huge for s in expected]
        assert self.mf.total_size == self.model.size == os.fstat(self.mf.fileno()).st_size
        testing.verify(self.mf)

    @invariant()
    def the_account_is_right(self) -> None:
        for memcg_id in MEMCGS if self.model.accounting else ():
            assert self.mf.usage(memcg_id) == self.model.usage(memcg_id)
        known = self.model.known_bytes()
        assert pgalloc.memory_accounting().total() == self.account_before + known
        stats = self.mf.stats()
        for name, count in self.model.counts.items():
            assert getattr(stats, name) == count, name

    def with_data(self) -> set[int]:
        """Pages that the kernel has contents of, asked beside the mapping."""
        fd = self.mf.fileno()
        with_data: set[int] = set()
        position = 0
        while position < self.model.size:
            try:
                data = os.lseek(fd, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break
            position = os.lseek(fd, data, os.SEEK_HOLE)
            with_data.update(range(data // PAGE, -(-position // PAGE)))
        return with_data

    def learn(self) -> set[int]:
        """What the kernel has. It may be more than was touched: the model says which."""
        with_data = self.with_data()
        more = with_data - self.model.stored
        if more and (self.on_disk or self.model.kernel_gives_huge_pages):
            self.model.spill(more)
        return with_data

    @invariant()
    def the_kernel_agrees(self) -> None:
        if not self.on_disk:  # there, the file system's own blocks count too
            self.learn()
            assert stored(self.mf) == len(self.model.stored) * PAGE == self.mf.total_usage()

    @invariant()
    def every_byte_is_right(self) -> None:
        """Asked beside the mapping, where looking commits nothing: holes are zeros."""
        fd = self.mf.fileno()
        with_data = self.learn()
        assert with_data <= self.model.stored
        used: set[int] = set()
        for low, high in stretches(with_data):
            used.update(
                p for r in self.model.parts(low, high) if r.page.refs for p in range(r.start, r.end)
            )
        for page in used:
            expected = bytes([self.model.content.get(page, 0)]) * PAGE
            assert os.pread(fd, PAGE, page * PAGE) == expected
        for page in self.model.content.keys() - with_data:
            use = self.model.at(page)
            assert use is None or use.refs == 0, "a page was emptied under its owner"

    def teardown(self) -> None:
        while self.pauses:
            self.pauses.pop().__exit__(None, None, None)
        self.clock.__exit__(None, None, None)
        self.mf.close()
        for view in self.views:  # I2: they stay valid
            len(bytes(view.view[:PAGE]))
            view.view.release()
        assert pgalloc.memory_accounting().total() == self.account_before
        if self.backing is not None:
            assert self.backing.closed


class HugeMachine(MemoryFileMachine):
    """Fewer rules that have nothing to do with huge pages, and more that do."""

    mark_evictable = mark_unevictable = mark_all_unevictable = evict = None  # type: ignore[assignment]
    misaligned = wrong_dec_ref = has_unique_ref = None  # type: ignore[assignment]

    def _free_one(self, pick: int) -> None:
        start, end = self.raw.pop(pick % len(self.raw))
        self.model.dec_ref(start, end)
        self.mf.dec_ref(FileRange(start * PAGE, end * PAGE))

    @rule(data=st.data())
    @precondition(lambda self: self.raw)
    def free_a_part(self, data: st.DataObject) -> None:
        """Row F1: what is around it stays; its huge pages are given back in parts."""
        index = data.draw(st.integers(0, len(self.raw) - 1))
        start, end = self.raw.pop(index)
        low = data.draw(st.sampled_from([start, start + 1, (start + end) // 2]))
        high = data.draw(st.sampled_from([low + 1, (low + end + 1) // 2, end]))
        low, high = min(low, end - 1), min(max(high, low + 1), end)
        self.raw += [part for part in ((start, low), (high, end)) if part[0] < part[1]]
        self.mf.dec_ref(FileRange(low * PAGE, high * PAGE))
        self.model.dec_ref(low, high)
        self.settle()

    @rule(
        picks=st.lists(st.integers(0, 99), min_size=1, max_size=3),
        pages=st.sampled_from(HUGE_ONES),
        direction=st.sampled_from(Direction),
        mode=st.sampled_from([POPULATE, COMMIT]),
    )
    @precondition(lambda self: self.raw)
    def recycle(
        self, picks: list[int], pages: int, direction: Direction, mode: AllocationMode
    ) -> None:
        """Row B5: huge pages that wait are used again; the rest of the last one waits on."""
        self.settle()
        if len(self.pauses) < 2:
            self.pause_reclaimer()
        for pick in picks:
            if self.raw:
                self._free_one(pick)
        self.allocate_huge(pages=pages, direction=direction, mode=mode, as_handle=False, huge=True)

    @rule()
    @precondition(lambda self: self.raw)
    def free_all_raw(self) -> None:
        """Areas without pages may change sides."""
        while self.raw:
            self._free_one(0)
        self.settle()


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {"capacity": 8 * CHUNK},
    "tight": {"capacity": 40 * PAGE, "delayed_eviction": DelayedEviction.MANUAL},
    "maximum": {
        "capacity": 5 * CHUNK + 3 * HUGE,
        "max_allocatable_bytes": CHUNK + 40 * PAGE,
        "delayed_eviction": DelayedEviction.DISABLED,
    },
    "manual_zeroing": {"capacity": 8 * CHUNK, "manual_zeroing": True},
    "on_disk": {"capacity": 8 * CHUNK, "on_disk": True},
    "no_account": {"capacity": 8 * CHUNK, "accounting": False},
    # Areas of two huge pages, which change sides; of one, and all that can be is huge.
    "huge": {"capacity": 40 * HUGE},
    "huge_always": {
        "capacity": 23 * HUGE + 5 * PAGE,
        "huge_pages": "always",
        "max_allocatable_bytes": 19 * HUGE,
    },
}


@pytest.mark.slow
@pytest.mark.timeout(0 if settings().max_examples > 1000 else 300)
@pytest.mark.parametrize("variant", VARIANTS)
def test_b_to_h_the_file_does_what_the_model_does(variant: str) -> None:
    options = VARIANTS[variant]
    phases = [Phase.generate] if PLANTED else list(settings().phases)
    machine = HugeMachine if variant.startswith("huge") else MemoryFileMachine
    run_state_machine_as_test(
        lambda: machine(**options),  # type: ignore[arg-type]
        settings=settings(phases=phases),
    )


def test_h3_what_a_file_system_stores_around_what_was_touched_is_booked() -> None:
    """ext4 commits large folios: of 1,027 pages, one more. The next owner of that page has it."""
    machine = MemoryFileMachine(capacity=8 * CHUNK, on_disk=True)
    common: dict[str, Any] = {"kind": MemoryKind.SYSTEM, "memcg_id": 0, "reader": None}
    common["as_handle"] = False
    steps: list[Callable[[], None]] = [
        lambda: machine.allocate(1027, direction=Direction.TOP_DOWN, mode=POPULATE, **common),
        lambda: machine.dec_ref(cut=0, pick=0),
        lambda: machine.allocate(
            CHUNK // PAGE - 2,
            direction=Direction.BOTTOM_UP,
            mode=AllocationMode.ALLOCATE_ONLY,
            **common,
        ),
        lambda: machine.update_usage(seconds=0.0),
    ]
    for step in steps:
        step()
        machine.every_byte_is_right()
        machine.the_account_is_right()
        machine.the_file_is_what_the_model_says()
    machine.teardown()


# --- rows B4 to B9 on arbitrary pictures ---------------------------------------------------------

UNITS = [PAGE, HUGE - PAGE, HUGE, CHUNK - HUGE, CHUNK]


@st.composite
def pictures(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    segments = []
    position = 0
    for _ in range(draw(st.integers(0, 12))):
        start = position + draw(st.sampled_from([0, *UNITS])) * draw(st.integers(0, 3))
        end = start + draw(st.sampled_from(UNITS)) * draw(st.integers(1, 3))
        segments.append((start, end, draw(st.integers(0, 2))))  # B5: 0 references is not free
        position = end
    return segments


@settings(max_examples=settings().max_examples * 15)
@given(
    segments=pictures(),
    spare=st.sampled_from([0, 0, 1, 2, 7]),
    length=st.one_of(
        st.tuples(st.sampled_from(UNITS), st.integers(1, 5)).map(lambda t: t[0] * t[1]),
        st.integers(1, 2**51 - 1).map(lambda n: n * PAGE),
    ),
    alignment=st.sampled_from([PAGE, HUGE, CHUNK]),
    direction=st.sampled_from(Direction),
)
def test_b4_to_b9_placement_is_the_models(
    segments: list[tuple[int, int, int]],
    spare: int,
    length: int,
    alignment: int,
    direction: Direction,
) -> None:
    end = segments[-1][1] if segments else 0
    file_size = -(-end // CHUNK) * CHUNK + spare * CHUNK
    taken = [(start, stop) for start, stop, _ in segments]
    expected = place(taken, file_size, length, direction, alignment=alignment)
    found = find_available_range(segments, file_size, length, alignment, direction)
    assert (found and (found.start, found.end)) == (
        expected and (expected[0], expected[0] + length)
    )
