"""Lives of files for test_faults.py: everything they do may fail, with the errno that is planned.

A Run knows what was made and what went wrong; its attempts let only planned errors pass.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import CHUNK, HUGE, PAGE, stored, update_usage

import pgalloc
from pgalloc import Allocation, AllocationMode, FileRange, MemoryFile, MemoryKind, _core, testing

COMMIT = AllocationMode.ALLOCATE_AND_COMMIT
POPULATE = AllocationMode.ALLOCATE_AND_WRITE_POPULATE


@dataclass
class Run:
    """One run of a scenario: what it made, and what went wrong in it."""

    directory: Path
    name: str = ""  # the call that fails,
    planned: int = 0  # its errno,
    first: int = 1  # and which call of that name is the first to fail
    files: list[MemoryFile] = field(default_factory=list)
    witnesses: list[tuple[MemoryFile, FileRange]] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    checks: list[Callable[[], None]] = field(default_factory=list)  # for when the fault is over

    def attempt(self, call: Callable[[], Any]) -> Any:
        """The result, or None after an error of the planned kind."""
        try:
            return call()
        except OSError as error:
            if error.errno != self.planned:
                raise AssertionError(f"{error!r} is not errno {self.planned}") from error
            # A traceback keeps the views of its frames alive, and views keep leases.
            self.errors.append(error.with_traceback(None))
        except pgalloc.Error as error:
            raise AssertionError(f"{error!r} says nothing of errno {self.planned}") from error
        finally:
            for mf in self.files:
                if not mf.closed:
                    testing.verify(mf)
        return None

    def make(self, backing: Any = None, **options: Any) -> MemoryFile | None:
        options.setdefault("capacity", 4 * CHUNK)
        made = self.attempt(lambda: MemoryFile(backing, **options))
        if made is None:
            return None
        assert isinstance(made, MemoryFile)
        self.files.append(made)
        return made

    def use(self, mf: MemoryFile | None) -> None:
        """Allocate in all modes, fill, decommit, count, free and reclaim."""
        if mf is None:
            return
        witness = self.attempt(lambda: mf.allocate_range(PAGE, kind=MemoryKind.TMPFS))
        if witness is not None and self._write(mf, witness, b"w"):
            self.witnesses.append((mf, witness))

        ranges: list[FileRange | None] = [
            self.attempt(lambda: mf.allocate_range(64 * PAGE)),
            self.attempt(lambda: mf.allocate_range(8 * PAGE, mode=COMMIT)),
            self.attempt(lambda: mf.allocate_range(HUGE + 3 * PAGE, mode=POPULATE)),
            self.attempt(lambda: mf.allocate_range(4 * PAGE, reader=_give_r)),
            self.attempt(lambda: mf.allocate_range(HUGE)),
        ]
        made = [range_ for range_ in ranges if range_ is not None]
        if ranges[0] is not None:  # every other page: cheapest to ask for by mincore
            for page in range(0, 64, 2):
                first = ranges[0].start + page * PAGE
                self._write(mf, FileRange(first, first + PAGE), b"s")
        if ranges[4] is not None:  # one page: cheapest by SEEK_DATA
            self._write(mf, FileRange(ranges[4].start + PAGE, ranges[4].start + 2 * PAGE), b"s")
        self.attempt(lambda: mf.update_usage([0]))
        self.attempt(mf.update_usage)
        self.attempt(mf.total_usage)
        with testing.pause_reclaimer(mf):  # or the number of its calls would depend on its speed
            handle = self.attempt(lambda: mf.allocate(2 * PAGE))
            if handle is not None:
                self.attempt(handle.decommit)
                self.attempt(handle.release)
            for range_ in made[:3]:
                self.attempt(lambda range_=range_: mf.decommit(range_))  # type: ignore[misc]
            for range_ in made:
                mf.dec_ref(range_)
        assert mf.wait_for_reclaim(20)
        again = self.attempt(lambda: mf.allocate_range(64 * PAGE))
        if again is not None:
            assert os.pread(mf.fileno(), again.length, again.start) == bytes(again.length)
            mf.dec_ref(again)
            assert mf.wait_for_reclaim(20)

    def use_huge(self, mf: MemoryFile | None) -> None:
        """The same for huge allocations: in areas of their own, given back whole and in parts."""
        if mf is None:
            return
        ranges: list[FileRange | None] = [
            self.attempt(lambda: mf.allocate_range(2 * HUGE, huge=True)),
            self.attempt(lambda: mf.allocate_range(HUGE + 3 * PAGE, mode=COMMIT, huge=True)),
            self.attempt(lambda: mf.allocate_range(2 * HUGE, mode=POPULATE, huge=True)),
            self.attempt(lambda: mf.allocate_range(HUGE, reader=_give_r, huge=True)),
        ]
        made = [range_ for range_ in ranges if range_ is not None]
        for range_ in made:
            self._write(mf, FileRange(range_.start, range_.start + PAGE), b"h")
        self.attempt(mf.update_usage)
        unpinned = self.attempt(lambda: mf.allocate(HUGE + PAGE, mode=COMMIT, huge=True))
        with testing.pause_reclaimer(mf):  # or the number of its calls would depend on its speed
            if unpinned is not None:
                unpinned.unpin()
                with testing.ManualPressure() as pressure:
                    pressure.demand(unpinned.nbytes)
                assert unpinned.pin() == (bytes(unpinned.view()) != bytes(unpinned.nbytes))
                unpinned.release()
            for range_ in made[:2]:
                half = FileRange(range_.start + PAGE, range_.start + HUGE // 2)
                self.attempt(lambda half=half: mf.decommit(half))  # type: ignore[misc]
            for range_ in made:
                mf.dec_ref(FileRange(range_.start + PAGE, range_.end))
        assert mf.wait_for_reclaim(20)  # parts
        recycled = None
        with testing.pause_reclaimer(mf):
            for range_ in made:
                mf.dec_ref(FileRange(range_.start, range_.start + PAGE))
            recycled = self.attempt(
                lambda: mf.allocate_range(HUGE + PAGE, mode=POPULATE, huge=True)
            )
        assert mf.wait_for_reclaim(20)
        if recycled is not None:
            mf.dec_ref(recycled)
            assert mf.wait_for_reclaim(20)
        # Nothing is left in the areas: they are for small pages again, and then not.
        for huge in (False, True):
            again = self.attempt(lambda huge=huge: mf.allocate_range(16 * HUGE, huge=huge))  # type: ignore[misc]
            if again is not None:
                assert os.pread(mf.fileno(), PAGE, again.start) == bytes(PAGE)
                mf.dec_ref(again)
                assert mf.wait_for_reclaim(20)

    def _write(self, mf: MemoryFile, range_: FileRange, byte: bytes) -> bool:
        view = self.attempt(lambda: mf.map_range(range_))
        if view is None:
            return False
        view[:] = byte * range_.length
        return True

    def close(self, mf: MemoryFile | None) -> None:
        if mf is None:
            return
        self.attempt(mf.close)
        assert mf.closed

    def check_usable(self) -> None:
        """After the fault: everything works again, and nothing that was kept is damaged."""
        for check in self.checks:
            check()
        for mf, witness in self.witnesses:
            if not mf.closed:
                assert bytes(mf.map_range(witness)) == b"w" * PAGE
        for mf in self.files:
            if mf.closed:
                continue
            with mf.allocate(3 * PAGE, mode=COMMIT) as a, a.view() as view:
                assert bytes(view) == bytes(3 * PAGE)
                view[:] = b"u" * (3 * PAGE)
            assert mf.wait_for_reclaim(20)
            update_usage(mf)
            testing.verify(mf)
            stats = mf.stats()
            assert stats.lost_bytes == 0
            if stats.punch_failures == 0 and not mf.is_disk_backed and not mf.restore_id:
                assert sum(mf.usage().values()) == stored(mf)

    def end(self) -> None:
        for mf in self.files:
            mf.close()


def _give_r(buffer: memoryview) -> int:
    buffer[:] = b"r" * len(buffer)
    return len(buffer)


Scenario = Callable[[Run], None]


def memfd(run: Run) -> None:
    run.use(run.make())
    closed_inside = run.make(decommit_on_destroy=True)
    run.use(closed_inside)
    run.close(closed_inside)


def huge(run: Run) -> None:
    """Where the kernel gives no huge pages, too: the calls are the same."""
    for choice in ("auto", "always"):
        mf = run.make(capacity=36 * HUGE, huge_pages=choice)
        run.use_huge(mf)
        run.close(mf)
    run.use_huge(run.make(capacity=36 * HUGE))


def default_capacity(run: Run) -> None:
    run.use(run.make(capacity=None))


def path(run: Run) -> None:
    new = run.directory / "new"
    made = run.make(new, disk_backed=True)
    if made is None:
        run.attempt(lambda: new.unlink(missing_ok=True))
    run.use(made)
    run.close(made)


def descriptor(run: Run) -> None:
    fd = os.open(run.directory / "adopted", os.O_RDWR | os.O_CREAT)
    made = run.make(fd, disk_backed=True)
    if made is None:
        os.fstat(fd)  # A1: still the caller's
        os.close(fd)
    run.use(made)


def file_object(run: Run) -> None:
    with open(run.directory / "object", "w+b") as file:
        made = run.make(file, disk_backed=True)
        assert not file.closed
        run.use(made)
        run.close(made)
        assert file.closed == (made is not None)


def manual_zeroing(run: Run) -> None:
    # The label says that freed pages stay stored (see check_usable()).
    made = run.make(manual_zeroing=True, restore_id="stored")
    run.use(made)
    run.use(made)


def rolled_back(run: Run) -> None:
    """A construction whose last step fails (rows A1, A4)."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(run.planned, "no memory cgroup")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgalloc.memory_file.default_monitor", refuse)
        made = run.make(run.directory / "rolled_back", use_host_memcg_pressure=True)
    assert made is None


def guarded(run: Run) -> None:
    """A guard that cannot see or sleep protects less; it does no harm and ends when it has to."""
    mount, proc = run.directory / "cgroup", run.directory / "proc"
    (proc / "self").mkdir(parents=True, exist_ok=True)
    mounted = f"1 2 0:1 / {mount} rw - cgroup cgroup rw,memory\n"
    (proc / "self" / "mountinfo").write_text(mounted)
    (proc / "self" / "cgroup").write_text("2:memory:/a\n")
    tree = mount / "a"
    tree.mkdir(parents=True, exist_ok=True)
    limit = 64 << 20
    figures = {"usage_in_bytes": limit - PAGE, "limit_in_bytes": limit, "stat": "total_dirty 0"}
    for name, figure in figures.items():
        (tree / f"memory.{name}").write_text(f"{figure}\n")
    (tree / "cgroup.event_control").touch()
    mf = run.make()
    written = None
    unpinned = None if mf is None else run.attempt(lambda: mf.allocate(4 * PAGE))
    try:
        if unpinned is not None:
            written = run.attempt(lambda: unpinned._write(0, b"d" * (4 * PAGE)) is None)
            _core.guard_follow(os.fsencode(proc), b"/")
            in_vain = _core.guard_status()["shortfalls"]
            unpinned.unpin()
            _wait_for_shortfalls(in_vain + 2, 0.1 if run.planned else 20)
    finally:
        _core.guard_park()
        _core.guard_configure([], None)
        _core.guard_resume()
    if unpinned is not None and written:
        expected = b"d" if unpinned.pin() else b"\0"
        run.checks.append(lambda: _check_contents(unpinned, expected))


def _wait_for_shortfalls(count: int, patience_s: float) -> None:
    """The guard's thread sleeps between two. One whose calls fail may not find any."""
    deadline = time.monotonic() + patience_s
    # time: a bound on a wait for what may not come
    while _core.guard_status()["shortfalls"] < count and time.monotonic() < deadline:
        time.sleep(0.0005)  # time: between two tries


def _check_contents(allocation: Allocation, letter: bytes) -> None:
    assert bytes(allocation.view()) == letter * allocation.nbytes
    allocation.release()


LIVES: list[Scenario] = [
    memfd,
    huge,
    default_capacity,
    path,
    descriptor,
    file_object,
    manual_zeroing,
    rolled_back,
    guarded,
]
