"""Every system call of the core fails, with every plausible errno, at each of its calls.

Scenarios run the whole life of a file while one call of a name fails, or all of them do. Only typed
errors may come out; invariants hold, nothing leaks, and the file works once the kernel does again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from conftest import PAGE
from fault_scenarios import LIVES, POPULATE, Run, Scenario, guarded, rolled_back
from fault_sharing import SHARING
from fault_snapshots import SNAPSHOTS, restore_in_the_background
from raw_peer import Stranger
from waiting import eventually, is_inside

import pgalloc
from pgalloc import MemoryFile, _core, testing
from pgalloc.testing import FaultPlan

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
    "open": [
        *(errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EROFS, errno.EDQUOT),
        # How file systems say that they have no unnamed files.
        *(errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT),
    ],
    "duplicate": [errno.EMFILE],
    "unlink": [errno.EACCES, errno.ENOENT, errno.EROFS],
    "link_descriptor": [
        *(errno.EEXIST, errno.EXDEV, errno.ENOENT, errno.EMLINK),
        *(errno.ENOSPC, errno.EROFS, errno.EDQUOT),
    ],
    "rename": [errno.EXDEV, errno.EACCES, errno.ENOENT, errno.ENOSPC, errno.EROFS, errno.EDQUOT],
    "fsync": [errno.ENOSPC, errno.EDQUOT, errno.EROFS],
    "pread": [errno.EFAULT, errno.EISDIR],
    "memfd_create": [errno.EMFILE, errno.ENFILE],
    "ftruncate": [errno.EFBIG, errno.ENOSPC, errno.ETXTBSY, errno.EDQUOT],
    "fallocate": [errno.ENOSPC, errno.EDQUOT, errno.EOPNOTSUPP, errno.EFBIG],
    "fstat": [errno.EOVERFLOW],
    "fstatfs": [errno.EOVERFLOW],
    "pwrite": [errno.ENOSPC, errno.EDQUOT, errno.EFBIG],
    "send": [errno.EPIPE, errno.ECONNRESET, errno.ENOBUFS, errno.EMSGSIZE],
    "eventfd": [errno.EMFILE, errno.ENFILE],
    "watch_writes": [errno.EMFILE, errno.ENFILE],
    "watch_writes_to": [errno.ENOENT, errno.ENOSPC, errno.EACCES],
    "watch_folder": [errno.ENOENT, errno.ENOSPC, errno.EACCES],
    "getrandom": [errno.EFAULT],
    "socketpair": [errno.EMFILE, errno.ENFILE],
    "socket": [errno.EMFILE, errno.ENFILE],
    "connect": [errno.EACCES, errno.ECONNREFUSED, errno.ENOENT],
    "listen_at": [errno.EMFILE, errno.ENFILE, errno.EADDRINUSE, errno.EACCES],
    "getdents": [errno.ENOENT, errno.ENOTDIR],
    "accept": [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ECONNABORTED, errno.EPROTO],
    "recvmsg": [errno.ENOBUFS],
    "sendmsg": [errno.ENOBUFS, errno.ETOOMANYREFS, errno.EMSGSIZE],
    "getsockopt": [errno.ENOPROTOOPT],
    "epoll_create": [errno.EMFILE, errno.ENFILE],
    "epoll_ctl": [errno.ENOSPC, errno.ENOENT, errno.EEXIST],
    "pidfd_open": [errno.EMFILE, errno.ENFILE, errno.ESRCH],
    "mmap": [errno.EACCES, errno.ENODEV, errno.ENFILE],
    "madvise": [errno.EFAULT],
    "mincore": [errno.EFAULT],
    "cachestat": [errno.EFAULT, errno.EOPNOTSUPP],
}
# Names that nothing calls as long as populating works.
FALLBACKS = ("mlock", "munlock")


_CHOSEN = os.environ.get("PGALLOC_SCENARIOS")  # names, with commas; all without it
SCENARIOS: list[Scenario] = [
    scenario
    for scenario in LIVES + SNAPSHOTS + SHARING
    if _CHOSEN is None or scenario.__name__ in _CHOSEN.split(",")
]
Site = TypeVar("Site")
TRIES = 10  # to hit a call that is not made every time
# A peer waits as long as its owner cannot answer: "always" is so many times here.
A_WHILE = 5
# An owner that is told so of its socket leaves it alone, and its peer waits for ever. (What was
# really closed: test_sharing_leases.py.)
NOT_OF_A_PEER = {("fstat", errno.EBADF)}
# It ends a connection, at times while the peer populates pages that it has got; here they are then
# given to others at once (owner_and_peers). tests/native/endpoint_test.cc tries it.
NOT_TRIED = {("getsockopt", errno.EBADF)}
# Their threads make more calls now and fewer then.
WITH_THREADS = (*SHARING, guarded, restore_in_the_background)


@pytest.fixture(scope="module", autouse=True)
def owner_and_peers() -> Iterator[None]:
    """Of one process, and some of another one. The broker makes no calls of its own accord."""
    stranger = Stranger()
    _core.broker_address()  # it starts once, which is no scenario
    _core.broker_set_times(look_s=1e6, accept_s=0.001)
    _core.broker_set_own_peers_end(True)
    yield
    _core.broker_set_own_peers_end(False)
    _core.broker_set_times()
    stranger.close()


@pytest.fixture(autouse=True)
def guard_as_it_was() -> Iterator[None]:
    """Here the guard sees nothing, or what a scenario shows it."""
    yield
    pgalloc.pressure.configure()


def _descriptors() -> set[int]:
    listed = {int(name) for name in os.listdir("/proc/self/fd")}
    return {fd for fd in listed if Path(f"/proc/self/fd/{fd}").exists()}  # not the listing's own


def _mapped_files(directory: Path) -> set[tuple[int, int]]:
    """Where pgalloc's files are mapped, and how many bytes."""
    found = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:pgalloc" in line or str(directory) in line:
            low, high = line.split()[0].split("-")
            found.add((int(low, 16), int(high, 16) - int(low, 16)))
    return found


def _clean_up(
    name: str, failures: int, before: set[int], mapped_before: set[tuple[int, int]], directory: Path
) -> None:
    """What stays behind because the very call that gives it back was made to fail: only that."""
    # An epoll that seems to be another's is not closed, nor what fstat calls closed (EBADF).
    leaks_max = failures if name in ("close", "epoll_ctl", "fstat") else 0

    def left() -> set[int]:
        return _descriptors() - before - set(_core.broker_descriptors())

    with contextlib.suppress(AssertionError):  # the broker closes some a moment later
        eventually(lambda: len(left()) <= leaks_max, "the end of descriptors", timeout_s=2)
    still_open = left()
    mapped = _mapped_files(directory) - mapped_before
    names = []
    for fd in still_open:
        with contextlib.suppress(OSError):  # the broker may close one at this very moment
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
            os.close(fd)
    munmap = ctypes.CDLL(None).munmap
    for low, size in mapped:
        munmap(ctypes.c_void_p(low), ctypes.c_size_t(size))
    assert len(names) <= leaks_max, f"descriptors leaked: {names}"
    assert len(mapped) <= (4 * failures if name == "munmap" else 0), "mappings leaked"
    shutil.rmtree(directory)
    directory.mkdir()


def play(scenario: Scenario, directory: Path, name: str, error: int, **plan: int) -> FaultPlan:
    """Run a scenario under a plan and check what it leaves."""
    # The guard's files are not what a failing close() is to lose.
    _core.guard_park()
    _core.guard_configure([], None)
    _core.guard_resume()
    before = _descriptors() - set(_core.broker_descriptors())
    mapped_before = _mapped_files(directory)
    account = pgalloc.memory_accounting().total()
    testing.reset_prefault()
    run = Run(directory, name, error, plan.get("first", 1))
    try:
        if name in FALLBACKS:
            _turn_populate_off()
        with FaultPlan(name, error, **plan) as fault:
            scenario(run)
        testing.reset_prefault()
        run.check_usable()
    finally:
        testing.reset_prefault()
        run.end()
    run.errors.clear()  # tracebacks hold files
    assert pgalloc.memory_accounting().total() == account
    # Counted here: until the files are gone their threads make calls of their own.
    failures = fault.failures
    _clean_up(name, failures, before, mapped_before, directory)
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


@pytest.mark.parametrize("name", testing.syscall_names())
def test_failing(directory: Path, name: str) -> None:
    """Invariant of the project: a typed error, nothing lost, usable afterwards."""
    sites = list(_sites(directory, name))
    if _CHOSEN is not None and not sites:
        return  # these make other calls
    assert sites, f"no scenario calls {name}: add one"
    _once_at_each_call(directory, name, sites)
    _always(directory, name, [scenario for scenario, number in sites if number == 1])


def _once_at_each_call(directory: Path, name: str, sites: list[tuple[Scenario, int]]) -> None:
    failed, missed = set(), []
    for (scenario, number), errors in _with_errors(name, sites):
        for error in errors:
            if scenario in SHARING and (name, error) in NOT_OF_A_PEER:
                continue
            if _fails(scenario, directory, name, error, first=number, times=1):
                failed.add(error)
            elif scenario not in WITH_THREADS:
                missed.append((scenario.__name__, number, error))
            # The call with this number was made once, and is not any more: the first one always is.
            elif _fails(scenario, directory, name, error, first=1, times=1):
                failed.add(error)
    assert missed == []
    assert failed == set(_errors(name))


def _always(directory: Path, name: str, scenarios: list[Scenario]) -> None:
    failed = set()
    for scenario, errors in _with_errors(name, scenarios):
        plan = {"times": A_WHILE} if scenario in SHARING else {}
        for error in errors:
            if scenario in SHARING and (name, error) in NOT_OF_A_PEER:
                continue
            if _fails(scenario, directory, name, error, **plan):
                failed.add(error)
    assert failed == set(_errors(name))


def _fails(scenario: Scenario, directory: Path, name: str, error: int, **plan: int) -> bool:
    """Whether the call was made, and failed."""
    return any(play(scenario, directory, name, error, **plan).failures for _ in range(TRIES))


def _errors(name: str) -> list[int]:
    errors = ERRNOS + MORE_ERRNOS.get(name, [])
    return [error for error in errors if (name, error) not in NOT_TRIED]


def _sites(directory: Path, name: str) -> Iterator[tuple[Scenario, int]]:
    """Which calls of a name are made to fail: in each scenario all that differ.

    Early calls are all different; later ones repeat (a page, a run, a chunk).
    """
    for scenario in SCENARIOS:
        calls = play(scenario, directory, name, 0).calls  # and nothing fails by itself
        number = 1
        while number <= calls:
            yield scenario, number
            number += 1 if number < 12 else number // 4


def _with_errors(name: str, sites: list[Site]) -> Iterator[tuple[Site, list[int]]]:
    """The errors to try at each site: every one with PGALLOC_FAULTS=all.

    Else as many as it says, one by default: in turn, so that neighbours fail in other ways; or
    as many more as it takes to try each error of the name somewhere.
    """
    errors = _errors(name)
    each = len(errors)
    wanted = os.environ.get("PGALLOC_FAULTS", "1")
    if wanted != "all":
        each = min(each, max(int(wanted), -(-len(errors) // len(sites))))
    for i, site in enumerate(sites):
        yield site, [errors[(i * each + k) % len(errors)] for k in range(each)]


def test_a_commit_that_fails_in_its_second_piece_leaves_nothing(mf: MemoryFile) -> None:
    with FaultPlan("fallocate", errno.ENOMEM, first=2, times=1), pytest.raises(OSError) as caught:
        mf.allocate(40 << 20, mode=pgalloc.AllocationMode.ALLOCATE_AND_COMMIT)
    assert caught.value.errno == errno.ENOMEM
    assert mf.wait_for_reclaim(20)
    assert mf.segments() == []
    assert mf.total_usage() == 0
    mf.allocate(40 << 20, mode=pgalloc.AllocationMode.ALLOCATE_AND_COMMIT)


@pytest.mark.parametrize("name", ["ftruncate", "fallocate", "pwrite", "open", "madvise"])
def test_interruptions_are_retried(directory: Path, name: str) -> None:
    """One EINTR is not noticed."""
    for scenario in SCENARIOS:
        run = Run(directory)
        with FaultPlan(name, errno.EINTR, first=2, times=3):
            if scenario is not rolled_back:
                scenario(run)
        assert run.errors == []
        run.check_usable()
        run.end()
        shutil.rmtree(directory)
        directory.mkdir()


def test_a_thread_that_waits_for_a_save_learns_why_it_failed() -> None:
    """Two threads encode a stream; one of them is the first to tell the user."""
    errors: list[BaseException] = []
    with MemoryFile() as mf:
        mf.map_range(mf.allocate_range(PAGE))[0] = 1
        writer = _core.ImageWriter(mf, None, "", [], False)

        def take() -> None:
            try:
                writer.next_item()
            except (OSError, pgalloc.Error) as error:
                errors.append(error)

        first = threading.Thread(
            target=take
        )  # it has the front, which no other thread takes from it
        first.start()
        eventually(lambda: is_inside(first, take.__qualname__))
        with FaultPlan("pread", errno.EIO), pytest.raises(OSError):
            writer.next_item()
        first.join()
        writer.close()
    assert [type(error) for error in errors] == [OSError]


@pytest.mark.parametrize(
    "error", [errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EINTR, errno.EIO]
)
def test_a_peer_waits_for_an_owner_that_does_not_read(tmp_path: Path, error: int) -> None:
    with MemoryFile() as mf, mf.serve(tmp_path / "socket"):
        with pgalloc.connect(tmp_path / "socket") as peer:
            kept, dropped = peer.allocate(PAGE), peer.allocate(2 * PAGE)
            with FaultPlan("sendmsg", error, times=5) as fault:
                dropped.release()
                assert peer.flush(20)
            assert fault.failures == 5
            assert [lease.nbytes for lease in mf.leases()] == [kept.nbytes]
        del peer, kept, dropped


@pytest.mark.parametrize("error", [errno.EPIPE, errno.ECONNRESET])
def test_a_peer_that_cannot_send_counts_its_owner_as_gone(tmp_path: Path, error: int) -> None:
    """What it holds it can use, and its close() gives all of that back."""
    with MemoryFile() as mf, mf.serve(tmp_path / "socket"):
        peer = pgalloc.connect(tmp_path / "socket")
        kept, dropped = peer.allocate(PAGE), peer.allocate(2 * PAGE)
        view = kept.view()
        with FaultPlan("sendmsg", error, times=1):
            dropped.release()
            with contextlib.suppress(pgalloc.OwnerGoneError):
                peer.flush(20)
        with pytest.raises(pgalloc.OwnerGoneError):
            peer.allocate(PAGE)
        view[:4] = b"mine"
        peer.close()
        eventually(lambda: mf.leases() == [], "the end of all leases")
        assert mf.wait_for_reclaim(20)
        assert mf.segments() == []
        del peer, kept, dropped, view


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
