"""Every system call of the core fails, with every plausible errno, at each of its calls.

Scenarios run the whole life of a file while one call of a name fails, or all of them do. Only typed
errors may come out; invariants hold, nothing leaks, and the file works once the kernel does again.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import CHUNK, HUGE, PAGE, stored, update_usage

import pgalloc
import pgalloc.pressure
from pgalloc import AllocationMode, FileRange, MemoryFile, MemoryKind, testing
from pgalloc.testing import FaultPlan

COMMIT = AllocationMode.ALLOCATE_AND_COMMIT
POPULATE = AllocationMode.ALLOCATE_AND_WRITE_POPULATE

ERRNOS = [
    errno.EINTR,
    errno.ENOMEM,
    errno.EAGAIN,
    errno.EIO,
    errno.EPERM,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EBADF,
]
MORE_ERRNOS = {
    "open": [errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EROFS, errno.EDQUOT],
    "duplicate": [errno.EMFILE],
    "unlink": [errno.EACCES, errno.ENOENT, errno.EROFS],
    "memfd_create": [errno.EMFILE, errno.ENFILE],
    "ftruncate": [errno.EFBIG, errno.ENOSPC, errno.ETXTBSY, errno.EDQUOT],
    "fallocate": [errno.ENOSPC, errno.EDQUOT, errno.EOPNOTSUPP, errno.EFBIG],
    "fstat": [errno.EOVERFLOW],
    "fstatfs": [errno.EOVERFLOW],
    "pwrite": [errno.ENOSPC, errno.EDQUOT, errno.EFBIG],
    "mmap": [errno.EACCES, errno.ENODEV, errno.ENFILE],
    "madvise": [errno.EFAULT],
    "mincore": [errno.EFAULT],
    "cachestat": [errno.EFAULT, errno.EOPNOTSUPP],
}
# Names that nothing calls as long as populating works.
FALLBACKS = ("mlock", "munlock")


@dataclass
class Run:
    """One run of a scenario: what it made, and what went wrong in it."""

    directory: Path
    planned: int = 0
    files: list[MemoryFile] = field(default_factory=list)
    witnesses: list[tuple[MemoryFile, FileRange]] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def attempt(self, call: Callable[[], Any]) -> Any:
        """The result, or None after an error of the planned kind."""
        try:
            return call()
        except OSError as error:
            if error.errno != self.planned:
                raise AssertionError(f"{error!r} is not errno {self.planned}") from error
            self.errors.append(error)
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


def abandoned(run: Run) -> None:
    """A construction whose last step fails (rows A1, A4)."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(run.planned, "no memory cgroup")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pgalloc.pressure, "PressureLevelListener", refuse)
        made = run.make(run.directory / "abandoned", use_host_memcg_pressure=True)
    assert made is None


SCENARIOS: list[Scenario] = [
    memfd,
    default_capacity,
    path,
    descriptor,
    file_object,
    manual_zeroing,
    abandoned,
]


def _descriptors() -> set[int]:
    listed = {int(name) for name in os.listdir("/proc/self/fd")}
    return {fd for fd in listed if Path(f"/proc/self/fd/{fd}").exists()}  # not the listing's own


def _mapped_files(directory: Path) -> list[tuple[int, int]]:
    """Where pgalloc's files are mapped."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:pgalloc" in line or str(directory) in line:
            low, high = line.split()[0].split("-")
            found.append((int(low, 16), int(high, 16) - int(low, 16)))
    return found


def _clean_up(name: str, failures: int, before: set[int], directory: Path) -> None:
    """What stays behind because the very call that gives it back was made to fail: only that."""
    still_open = _descriptors() - before
    mapped = _mapped_files(directory)
    for fd in still_open:
        os.close(fd)
    munmap = ctypes.CDLL(None).munmap
    for low, size in mapped:
        munmap(ctypes.c_void_p(low), ctypes.c_size_t(size))
    assert len(still_open) <= (failures if name == "close" else 0), "descriptors leaked"
    assert len(mapped) <= (4 * failures if name == "munmap" else 0), "mappings leaked"
    shutil.rmtree(directory)
    directory.mkdir()


def play(scenario: Scenario, directory: Path, name: str, error: int, **plan: int) -> FaultPlan:
    """Run a scenario under a plan and check what it leaves."""
    before = _descriptors()
    account = pgalloc.memory_accounting().total()
    testing.reset_prefault()
    run = Run(directory, planned=error)
    try:
        if name in FALLBACKS:
            _turn_populate_off()
        with FaultPlan(name, error, **plan) as fault:
            scenario(run)
            failures = fault.failures
        testing.reset_prefault()
        run.check_usable()
    finally:
        testing.reset_prefault()
        run.end()
    run.errors.clear()  # tracebacks hold files
    assert pgalloc.memory_accounting().total() == account
    _clean_up(name, failures, before, directory)
    assert failures == fault.failures
    return fault


def _turn_populate_off() -> None:
    with MemoryFile() as mf:
        mf.map_range(mf.allocate_range(2 * PAGE))
        with FaultPlan("madvise", errno.ENOSYS):
            mf.allocate_range(2 * PAGE, mode=POPULATE)
    assert testing.prefault_methods() == (False, True)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "backing"
    made.mkdir()
    yield made
    testing.reset_prefault()


def test_every_call_of_the_table_is_made_by_some_scenario(directory: Path) -> None:
    """And no scenario fails by itself."""
    for name in testing.syscall_names():
        calls = sum(play(scenario, directory, name, 0).calls for scenario in SCENARIOS)
        assert calls > 0, f"no scenario calls {name}: add one"


@pytest.mark.slow
@pytest.mark.parametrize("name", testing.syscall_names())
def test_failing_once_at_each_call(directory: Path, name: str) -> None:
    """Invariant of the project: a typed error, nothing lost, usable afterwards."""
    failed = 0
    for scenario in SCENARIOS:
        for error in ERRNOS + MORE_ERRNOS.get(name, []):
            number = 1
            while play(scenario, directory, name, error, first=number, times=1).failures:
                failed += 1
                # Early calls are all different; later ones repeat (a page, a run, a chunk).
                number += 1 if number < 12 else number // 4
    assert failed > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", testing.syscall_names())
def test_failing_always(directory: Path, name: str) -> None:
    failed = 0
    for scenario in SCENARIOS:
        for error in ERRNOS + MORE_ERRNOS.get(name, []):
            failed += play(scenario, directory, name, error).failures
    assert failed > 0


@pytest.mark.parametrize("name", ["ftruncate", "fallocate", "pwrite", "open", "madvise"])
def test_interruptions_are_retried(directory: Path, name: str) -> None:
    """One EINTR is nobody's business."""
    for scenario in SCENARIOS:
        run = Run(directory)
        with FaultPlan(name, errno.EINTR, first=2, times=3):
            if scenario is not abandoned:
                scenario(run)
        assert run.errors == []
        run.check_usable()
        run.end()
        shutil.rmtree(directory)
        directory.mkdir()


# --- the real kernel, made to fail from outside --------------------------------------------------

PROGRAM = textwrap.dedent("""
    import errno, os, sys
    import pgalloc
    from pgalloc import AllocationMode, MemoryFile, testing

    planned = int(sys.argv[1])
    seen = []

    def attempt(call):
        try:
            return call()
        except OSError as error:
            assert error.errno == planned, error
            seen.append(error.errno)

    for options in ({}, {"manual_zeroing": True}):
        mf = attempt(lambda: MemoryFile(**options))
        if mf is None:
            continue
        size = 64 * pgalloc.PAGE_SIZE
        for mode in AllocationMode:
            a = attempt(lambda: mf.allocate(size, mode=mode))
            if a is None:
                continue
            a.view()[::8192] = b"x" * (size // 8192)
            attempt(mf.update_usage)
            attempt(a.decommit)
            a.release()
        assert mf.wait_for_reclaim(20)
        testing.verify(mf)
        mf.close()
    assert pgalloc.memory_accounting().total() == 0
    print("failures:", len(seen))
""")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not on PATH")
@pytest.mark.parametrize(
    ("call", "error", "when", "visible"),
    [
        ("memfd_create", "EMFILE", "1", True),
        ("ftruncate", "ENOSPC", "2", True),
        ("fallocate", "ENOSPC", "1", True),
        ("fallocate", "EINTR", "1..3", False),
        ("fallocate", "EIO", "2+", True),
        ("pwrite64", "EIO", "1", True),
        ("mincore", "EAGAIN", "1+", False),  # cachestat answers, or the error is visible
    ],
)
def test_failures_injected_by_strace(
    tmp_path: Path, call: str, error: str, when: str, visible: bool
) -> None:
    log = tmp_path / "log"
    program = [sys.executable, "-c", PROGRAM, str(getattr(errno, error))]
    inject = f"inject={call}:error={error}:when={when}"
    done = subprocess.run(
        ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={call}", "-e", inject, *program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if visible:
        assert "failures: 0" not in done.stdout
        assert "(INJECTED)" in log.read_text()
