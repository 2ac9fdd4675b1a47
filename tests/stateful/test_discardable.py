"""Discards against pin, view, slice, clone, release, save, fork and close, in every order.

The model is plain Python: a letter for each page, and handles with the pages they stand for. What
went is looked for beside the mapping; the model says whether it may have gone, whether it was
enough, and who has to hear of it. The same with halves of huge pages in the place of pages: whole
allocations, and what is cut out of them, lie in huge pages then, where the kernel gives them.
PGALLOC_PLANT=discards makes the model wrong in one case, which
a run has to find.
"""

from __future__ import annotations

import io
import itertools
import os
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from conftest import HUGE, PAGE, kernel_gives_huge_pages
from hypothesis import Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from waiting import eventually

import pgalloc
from pgalloc import Allocation, ForkedError, MemoryFile, testing

PLANTED = os.environ.get("PGALLOC_PLANT") == "discards"
LETTERS = st.integers(1, 255)


@dataclass
class Handle:
    """What an Allocation is to its user."""

    allocation: Allocation
    pages: range
    unpinned: bool = False
    order: int = 0  # of the moment from which it may go
    fair: bool = False  # nothing stood in the way of its going since then
    lost: bool = False
    may_be_lost: bool = False  # it was empty when it might have been discarded
    views: list[memoryview] = field(default_factory=list)
    released: bool = False

    @property
    def may_go(self) -> bool:
        looked_at = bool(self.views) and not PLANTED
        return self.unpinned and not looked_at and not self.released


@dataclass
class File:
    mf: MemoryFile
    unit: int  # bytes of what is called a page here
    handles: list[Handle] = field(default_factory=list)
    letters: dict[int, int] = field(default_factory=dict)  # by page; absent: zeros
    raw: dict[int, int] = field(default_factory=dict)  # references without a handle
    closed: bool = False

    def live(self) -> list[Handle]:
        """Handles that hold a reference."""
        return [h for h in self.handles if not h.released or h.views]

    def used(self) -> set[int]:
        raw = {page for page, count in self.raw.items() if count}
        return raw | {page for h in self.live() for page in h.pages}

    def can_go(self, page: int) -> bool:
        holders = [h for h in self.live() if page in h.pages]
        return not self.raw.get(page) and bool(holders) and all(h.may_go for h in holders)

    def contents(self, page: int) -> bytes:
        return os.pread(self.mf.fileno(), self.unit, page * self.unit)

    def alone(self, handle: Handle) -> bool:
        return not any(h is not handle and set(h.pages) & set(handle.pages) for h in self.live())


class DiscardMachine(RuleBasedStateMachine):
    def __init__(self, unit: int) -> None:
        super().__init__()
        self.unit = unit
        self.pressure = testing.ManualPressure()
        self.pressure.__enter__()
        self.files = [File(MemoryFile(), unit), File(MemoryFile(), unit)]
        self.clock = itertools.count(1)

    def pick(self, data: st.DataObject, *, released: bool = False) -> tuple[File, Handle] | None:
        found = [(f, h) for f in self.files for h in f.handles if released or not h.released]
        found = [(f, h) for f, h in found if not f.closed]
        return data.draw(st.sampled_from(found)) if found else None

    def queue(self, handle: Handle) -> None:
        handle.order = next(self.clock)
        handle.fair = True

    # --- coming ----------------------------------------------------------------------------------

    @rule(which=st.integers(0, 1), pages=st.integers(1, 4), letter=LETTERS)
    def allocate(self, which: int, pages: int, letter: int) -> None:
        file = self.files[which]
        if file.closed:
            return
        file.mf.wait_for_reclaim(20)
        allocation = file.mf.allocate(pages * self.unit, huge=True)
        allocation._write(0, bytes([letter]) * allocation.nbytes)
        first = allocation.range.start // self.unit
        handle = Handle(allocation, range(first, first + pages))
        assert not any(p in h.pages for p in handle.pages for h in file.live())
        file.handles.append(handle)
        for page in handle.pages:
            file.letters[page] = letter

    @rule(data=st.data())
    def clone_or_slice(self, data: st.DataObject) -> None:
        found = self.pick(data)
        if found is None:
            return
        file, handle = found
        start = data.draw(st.integers(0, len(handle.pages) - 1))
        stop = data.draw(st.integers(start + 1, len(handle.pages)))
        made = handle.allocation.slice(start * self.unit, stop * self.unit)
        if stop - start == len(handle.pages) and data.draw(st.booleans()):
            made = handle.allocation.clone()
        assert made.pinned
        file.handles.append(Handle(made, handle.pages[start:stop]))

    # --- pinning ---------------------------------------------------------------------------------

    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        found = self.pick(data)
        if found is None:
            return
        handle = found[1]
        handle.allocation.unpin()
        if not handle.unpinned:
            handle.unpinned = True
            self.queue(handle)

    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        found = self.pick(data)
        if found is None:
            return
        handle = found[1]
        intact = handle.allocation.pin()
        if not handle.may_be_lost or handle.lost:
            assert intact != handle.lost
        handle.unpinned = handle.lost = handle.may_be_lost = False

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        found = self.pick(data)
        if found is not None:
            found[1].views.append(found[1].allocation.view())

    @rule(data=st.data())
    def stop_looking(self, data: st.DataObject) -> None:
        found = [(f, h) for f in self.files for h in f.handles if h.views]
        if found:
            handle = data.draw(st.sampled_from(found))[1]
            handle.views.pop().release()
            if handle.may_go:
                self.queue(handle)

    @rule(data=st.data(), letter=LETTERS)
    def write(self, data: st.DataObject, letter: int) -> None:
        """Through the mapping, whether it is pinned or not."""
        found = self.pick(data)
        if found is None:
            return
        file, handle = found
        page = data.draw(st.sampled_from(handle.pages))
        file.mf.map_range(pgalloc.FileRange(page * self.unit, (page + 1) * self.unit))[:] = (
            bytes([letter]) * self.unit
        )
        file.letters[page] = letter

    # --- going -----------------------------------------------------------------------------------

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        found = self.pick(data, released=True)
        if found is None:
            return
        found[1].allocation.release()
        found[1].released = True

    @rule(data=st.data(), act=st.sampled_from(["inc", "dec", "decommit"]))
    def raw_references(self, data: st.DataObject, act: str) -> None:
        found = self.pick(data)
        if found is None:
            return
        file, handle = found
        page = data.draw(st.sampled_from(handle.pages))
        one = pgalloc.FileRange(page * self.unit, (page + 1) * self.unit)
        if act == "decommit":
            file.mf.decommit(one)
            file.letters.pop(page, None)
        elif act == "inc":
            file.mf.inc_ref(one)
            file.raw[page] = file.raw.get(page, 0) + 1
        elif file.raw.get(page):
            file.mf.dec_ref(one)
            file.raw[page] -= 1

    @rule(pages=st.integers(1, 6))
    def demand(self, pages: int) -> None:
        """Whole allocations, oldest first, over both files, until it is enough."""
        files = [f for f in self.files if not f.closed]
        could: int = 0
        for file in files:
            whole = [h for h in file.live() if h.may_go and all(map(file.can_go, h.pages))]
            could += len({p for h in whole for p in h.pages} & file.letters.keys())
            for handle in file.live():
                handle.fair = handle.fair and handle.may_go and file.alone(handle)
                handle.fair = handle.fair and all(map(file.can_go, handle.pages))
        given_back = self.pressure.demand(pages * self.unit)
        fair: list[tuple[int, bool, int]] = []
        gone_pages = 0
        for file in files:
            written = file.used() & file.letters.keys()
            gone = {page for page in written if file.contents(page) == bytes(self.unit)}
            gone_pages += len(gone)
            self.learn(file, gone)
            for handle in file.live():
                went = gone.issuperset(handle.pages)
                stayed = file.letters.keys() >= set(handle.pages)
                if handle.fair and went != stayed:
                    fair.append((handle.order, went, len(handle.pages)))
                handle.fair = handle.fair and stayed
        if self.unit == PAGE or not kernel_gives_huge_pages():
            assert gone_pages * self.unit == given_back
        # Else, where a part of a huge page was written to, the kernel may have had all of it.
        assert gone_pages * self.unit <= given_back
        assert given_back >= min(pages, could) * self.unit
        went = [order for order, went, _ in fair if went]
        stayed = [order for order, went, _ in fair if not went]
        assert not went or not stayed or max(went) < min(stayed), "not the oldest first"

    def learn(self, file: File, gone: set[int]) -> None:
        assert all(file.can_go(page) for page in gone), "it was needed"
        empty = {page for page in file.used() if page not in file.letters}
        # What is lost already may go page by page, when it was written to again.
        lost = [handle for handle in file.live() if handle.lost]
        for page in gone:
            del file.letters[page]
        for handle in file.live():
            if not handle.may_go:
                continue
            if gone & set(handle.pages):
                handle.lost = True
            if any(page in empty and file.can_go(page) for page in handle.pages):
                handle.may_be_lost = True
        for page in gone:
            whole = [h for h in file.live() if page in h.pages]
            wholly = (
                any(h is one for one in lost) or not file.letters.keys() & set(h.pages)
                for h in whole
            )
            assert any(wholly), "half an allocation"

    @rule(which=st.integers(0, 1))
    def save(self, which: int) -> None:
        file = self.files[which]
        if file.closed:
            return
        image = io.BytesIO()
        file.mf.save(image)
        with MemoryFile.restore(io.BytesIO(image.getvalue())) as restored:
            for page in file.used():
                expected = bytes([file.letters.get(page, 0)]) * self.unit
                assert os.pread(restored.fileno(), self.unit, page * self.unit) == expected

    @rule(really=st.integers(0, 7))
    @precondition(lambda self: any(not f.closed and f.live() for f in self.files))
    def fork(self, really: int) -> None:
        if really:
            return
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for file in self.files:
                    for handle in file.handles:
                        if handle.released or file.closed:
                            continue
                        try:
                            assert handle.allocation.pin()
                        except ForkedError:  # it had no owner
                            assert handle.unpinned
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        for file in self.files:  # the child's leases come back a moment later
            eventually(lambda file=file: file.closed or not file.mf.leases())

    @rule(which=st.integers(0, 1), really=st.integers(0, 9))
    def close(self, which: int, really: int) -> None:
        if really == 0:
            self.files[which].mf.close()
            self.files[which].closed = True

    # --- what always holds -----------------------------------------------------------------------

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        for file in self.files:
            if file.closed:
                continue
            testing.verify(file.mf)
            used = file.used()
            segments = [s for s in file.mf.segments() if s.refs]
            unit = self.unit
            assert {p for s in segments for p in range(s.start // unit, s.end // unit)} == used
            for page in used:
                expected = bytes([file.letters.get(page, 0)]) * self.unit
                assert file.contents(page) == expected
            unpinned = {p for h in file.live() if h.may_go for p in h.pages}
            assert file.mf.stats().unpinned_bytes == len(unpinned) * self.unit
            for handle in file.handles:
                if not handle.released:
                    assert handle.allocation.pinned != handle.may_go

    def teardown(self) -> None:
        for file in self.files:
            for handle in file.handles:
                while handle.views:
                    handle.views.pop().release()
            file.mf.close()
        self.pressure.__exit__()


@pytest.mark.slow
@pytest.mark.timeout(0 if settings().max_examples > 1000 else 300)
@pytest.mark.parametrize("unit", [PAGE, HUGE // 2], ids=["pages", "huge_pages"])
def test_discards_do_what_the_model_does(unit: int) -> None:
    phases = [Phase.generate] if PLANTED else list(settings().phases)
    examples = 2 * settings().max_examples  # they are cheap, and a lost handle is rare
    run_state_machine_as_test(
        lambda: DiscardMachine(unit),  # type: ignore[arg-type]
        settings=settings(phases=phases, max_examples=examples),
    )
