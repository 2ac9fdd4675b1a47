"""What the native guard is told of this process's limits, and what it tells Python."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_guard import FakeGuard, fake_guard
from memory_groups import in_a_group
from waiting import environment, eventually, removed

from pgalloc import MemoryFile, OptionError, OutOfMemoryError, RangeError, _core, testing
from pgalloc._processes.memory_group import open_place
from pgalloc.pressure import configure, default_guard, find_memory_cgroup, guard, info

MIB = 1 << 20


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGuard]:
    with fake_guard(monkeypatch) as fake:
        yield fake


class FakeHost:
    """procfs and cgroup mounts below ``top``."""

    def __init__(self, top: Path) -> None:
        self.proc, self.root = top / "proc", top / "root"
        (self.proc / "self").mkdir(parents=True)
        self.mount = self.root / "cg"
        self.mount.mkdir(parents=True)

    def describe(self, mount: str, membership: str) -> None:
        (self.proc / "self/mountinfo").write_text(mount + "\n")
        self.move(membership)

    def move(self, membership: str) -> None:
        (self.proc / "self/cgroup").write_bytes(os.fsencode(membership) + b"\n")

    def level(self, path: str, **files: str) -> str:
        directory = self.mount / path
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name.replace("__", ".")).write_text(content + "\n")
        return str(directory)

    def configure(self) -> list[str]:
        configure(proc=self.proc, root=self.root)
        return self.watched()

    def watched(self) -> list[str]:
        return [level.directory for level in guard.status().levels]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeHost]:
    yield FakeHost(tmp_path)
    configure()


# --- which levels --------------------------------------------------------------------------------


def test_v1_every_level_that_is_charged_own_first(host: FakeHost) -> None:
    host.describe("1 2 0:1 / /cg rw - cgroup cgroup rw,memory", "4:memory:/pod/app:1")
    own = host.level("pod/app:1", memory__usage_in_bytes="1")
    pod = host.level("pod", memory__usage_in_bytes="1")
    top = host.level("", memory__usage_in_bytes="1")
    assert host.configure() == [own, pod, top]


def test_v1_not_above_a_parent_without_hierarchy(host: FakeHost) -> None:
    host.describe("1 2 0:1 / /cg rw - cgroup cgroup rw,memory", "4:memory:/pod/app")
    own = host.level("pod/app", memory__usage_in_bytes="1")
    host.level("pod", memory__usage_in_bytes="1", memory__use_hierarchy="0")
    host.level("", memory__usage_in_bytes="1")
    assert host.configure() == [own]


def test_v1_a_limit_above_the_mount_is_guarded_too(host: FakeHost) -> None:
    host.describe("1 2 0:1 / /cg rw - cgroup cgroup rw,memory", "4:memory:/")
    host.level(
        "",
        memory__usage_in_bytes=str(95 * MIB),
        memory__limit_in_bytes=str(2**63 - 4096),
        memory__stat=f"hierarchical_memory_limit {100 * MIB}",
    )
    host.configure()
    assert guard.status().available == 5 * MIB
    # By the name that info() gives it: `pgalloc doctor` compares them.
    names = {level.directory for level in info(proc=host.proc, root=host.root).levels}
    assert names == set(host.watched())
    host.level("", memory__limit_in_bytes=str(100 * MIB))
    assert [level.limit for level in guard.status().levels] == [100 * MIB], "that explains it"


def test_v2_levels_without_limits_now_may_get_some_later(host: FakeHost) -> None:
    host.describe("1 2 0:1 / /cg rw - cgroup2 cgroup2 rw", "0::/slice/app")
    own = host.level("slice/app", memory__max="max", memory__current="1")
    slice_ = host.level("slice", memory__max="9", memory__current="1")
    host.level("", cgroup__controllers="memory")  # the root has no memory.current
    assert host.configure() == [own, slice_]


def test_v2_bind_mount_with_octal_escapes(host: FakeHost) -> None:
    host.describe(r"1 2 0:1 /box /cg/my\040box rw - cgroup2 cgroup2 rw", "0::/box/app")
    own = host.level("my box/app", memory__max="max", memory__current="1")
    assert host.configure() == [own]


def test_hybrid_watches_the_hierarchy_that_has_the_controller(host: FakeHost) -> None:
    host.describe(
        "1 2 0:1 / /cg/unified rw - cgroup2 cgroup2 rw\n"
        "1 2 0:2 / /cg/memory rw - cgroup cgroup rw,memory",
        "4:memory:/app\n0::/app",
    )
    host.level("unified/app", cgroup__procs="1")
    own = host.level("memory/app", memory__usage_in_bytes="1")
    assert host.configure() == [own]


def test_a_mount_of_a_foreign_namespace_counts_as_far_as_it_shows(host: FakeHost) -> None:
    host.describe("1 2 0:1 /other /cg rw - cgroup cgroup rw,memory", "4:memory:/docker/mine")
    top = host.level("", memory__usage_in_bytes="1")
    assert host.configure() == [top]


def test_names_may_be_any_bytes(host: FakeHost) -> None:
    host.describe("1 2 0:1 / /cg rw - cgroup cgroup rw,memory", os.fsdecode(b"4:memory:/caf\xe9"))
    own = host.level(os.fsdecode(b"caf\xe9"), memory__usage_in_bytes="1")
    top = host.level("", memory__usage_in_bytes="1")
    assert host.configure() == [own, top]


def test_no_cgroup_leaves_the_machine(host: FakeHost) -> None:
    (host.proc / "meminfo").write_text("MemTotal: 2 kB\nMemAvailable: 1 kB\n")
    assert host.configure() == [str(host.proc / "meminfo")]
    assert default_guard.has_something_to_watch()


def test_no_procfs_leaves_nothing(host: FakeHost, tmp_path: Path) -> None:
    configure(proc=tmp_path / "none", root=tmp_path)
    assert host.watched() == []
    assert not default_guard.has_something_to_watch()


# --- what changes --------------------------------------------------------------------------------


@pytest.mark.parametrize("v1", [True, False])
def test_a_process_that_is_moved_is_followed(host: FakeHost, v1: bool) -> None:
    if v1:
        host.describe("1 2 0:1 / /cg rw - cgroup cgroup rw,memory", "4:memory:/a")
    else:
        host.describe("1 2 0:1 / /cg rw - cgroup2 cgroup2 rw", "0::/a")
    names = ("memory__usage_in_bytes", "memory__limit_in_bytes")
    usage, limit = names if v1 else ("memory__current", "memory__max")
    a = host.level("a", **{usage: "1", limit: str(100 * MIB)})
    b = host.level("b", **{usage: "1", limit: str(10 * MIB)})
    assert host.configure() == [a]
    host.move("4:memory:/b" if v1 else "0::/b")
    assert host.watched() == [b]
    with pytest.raises(OutOfMemoryError):
        _core.CommitReservation(11 * MIB)
    host.move("4:memory:/a" if v1 else "0::/a")
    _core.CommitReservation(11 * MIB)


@pytest.mark.parametrize("first", [1, 2, 3, 4, 5, 6])
def test_limits_are_found_once_there_are_descriptors(host: FakeHost, first: int) -> None:
    """Where none could be had when they were looked for, or for a part of what is to be opened."""
    host.describe("1 2 0:1 / /cg rw - cgroup2 cgroup2 rw", "0::/a")
    a = host.level("a", memory__current="1", memory__max=str(100 * MIB))
    b = host.level("b", memory__current="1", memory__max=str(10 * MIB))
    with testing.FaultPlan("open", errno.EMFILE, first=first):
        host.configure()
    assert host.watched() == [a]
    with testing.FaultPlan("open", errno.EMFILE, first=first):
        host.move("0::/b")
        host.watched()
    assert host.watched() == [b]
    with pytest.raises(OutOfMemoryError):
        _core.CommitReservation(11 * MIB)


def test_the_thread_notices_a_move_by_itself(host: FakeHost) -> None:
    host.describe("1 2 0:1 / /cg rw - cgroup2 cgroup2 rw", "0::/a")
    host.level("a", memory__current="1", memory__max=str(100 * MIB))
    host.level("b", memory__current=str(95 * MIB), memory__max=str(100 * MIB))
    host.configure()
    with MemoryFile() as file, file.allocate(4096) as pages:
        pages._write(0, b"x")
        pages.unpin()
        host.move("0::/b")
        eventually(lambda: file.stats().discarded_bytes == 4096, "the pages are discarded")


def test_a_forked_child_is_guarded_from_the_first(host: FakeHost) -> None:
    """It commits memory before any Python of pgalloc's has told its guard of limits."""
    host.describe("1 2 0:1 / /cg rw - cgroup2 cgroup2 rw", "0::/a")
    host.level("a", memory__current="1", memory__max=str(10 * MIB))
    host.configure()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OutOfMemoryError):
            _core.CommitReservation(11 * MIB)
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_child_keeps_the_headroom_of_its_parent(host: FakeHost) -> None:
    """That of configure(), and not those of its parent's Monitors."""
    host.describe("1 2 0:1 / /cg rw - cgroup2 cgroup2 rw", "0::/a")
    host.level("a", memory__current="1", memory__max=str(10 * MIB))
    configure("3M", proc=host.proc, root=host.root)
    token = _core.guard_add_headroom(0.0, 4 * MIB)
    try:
        child = os.fork()
        if child == 0:
            found = [level.headroom for level in guard.status().levels if level.limit == 10 * MIB]
            os._exit(0 if found == [3 * MIB] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        _core.guard_remove_headroom(token)
        host.configure()


# --- once in each process ------------------------------------------------------------------------


def test_ensure_configures_once(native: FakeGuard) -> None:
    workers = [threading.Thread(target=default_guard.ensure) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    default_guard.ensure()
    assert len(native.configured) == 1
    assert native.headrooms == {}  # the guard has a default of its own


def test_ensure_never_raises(
    native: FakeGuard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def refuse(proc: Any, root: Any) -> None:
        calls.append(1)
        raise MemoryError

    monkeypatch.setattr(native, "guard_follow", refuse)
    default_guard.ensure()
    default_guard.ensure()
    assert calls == [1]
    assert "could not be configured" in caplog.text
    caplog.clear()


def test_a_child_configures_anew(native: FakeGuard) -> None:
    default_guard.ensure()
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            default_guard.ensure()
            default_guard.ensure()
            status = 0 if len(native.configured) == 2 else 2
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(native.configured) == 1


def test_configure_replaces_what_it_asked_for(native: FakeGuard) -> None:
    configure("20%")
    configure("32M")
    assert list(native.headrooms.values()) == [(0.0, 32 * MIB)]
    for bad, error in (("ten", OptionError), ("100%", RangeError), ([1], TypeError)):
        with pytest.raises(error):
            configure(bad)  # type: ignore[arg-type]
    assert list(native.headrooms.values()) == [(0.0, 32 * MIB)]
    configure()
    assert native.headrooms == {}
    assert len(native.configured) == 3


# --- the real one --------------------------------------------------------------------------------


def test_the_native_guard_knows_this_machine() -> None:
    default_guard.ensure()

    def agrees() -> bool:
        """It looks twice, and what others use may change between."""
        found = guard.status()
        assert found.level in ("none", "low", "medium", "critical")
        assert found.levels
        tightest = found.tightest
        return tightest is None or (tightest.available, tightest.headroom) == (
            found.available,
            found.headroom,
        )

    eventually(agrees, "two looks that agree")


# Runs in a group with a limit: touches pages until the guard has said so to a Monitor and to a
# MemoryFile's evictable user, which then stops and lets go. No GIL is needed for the discarding,
# but nothing here is discardable: this is about hearing of it in time.
CROSSING = """
import os, sys, time
from pathlib import Path
from waiting import eventually
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
import pgalloc
from pgalloc.pressure import Monitor
events, evicted = [], []
class User:
    def evict(self, range):
        evicted.append(range)
user = User()
monitor = Monitor("25%")
monitor.subscribe(events.append)
mf = pgalloc.MemoryFile(use_host_memcg_pressure=True)
mf.mark_evictable(user, pgalloc.EvictableRange(0, 1))
found = monitor.info()
held = []
while len(held) < int(sys.argv[2]) and not (events and evicted):
    pages = mf.allocate(1 << 20)
    pages.view()[:] = b"x" * (1 << 20)
    held.append(pages)
    time.sleep(0.005)  # time: how fast it fills: there is to be memory left when it is told
eventually(lambda: events and evicted, "hearing of it")
print(found.pressure.limit, found.guard.headroom, bool(evicted), events[0].source,
      events[0].headroom is not None, monitor.stats().by_source.get("guard", 0) > 0)
"""


def test_a_real_crossing_reaches_monitors_and_evictable_users() -> None:
    group = find_memory_cgroup()
    if group is None or group.version != "v1" or not group.exact:
        pytest.skip("needs a visible v1 memory group")
    directory = group.directory / f"pgalloc-crossing-{os.getpid()}"
    try:
        directory.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a cgroup: {error}")
    try:
        (directory / "memory.limit_in_bytes").write_text(str(128 * MIB))
        run = subprocess.run(
            [sys.executable, "-c", CROSSING, str(directory), "118"],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
            env=environment(),
        )
    finally:
        eventually(lambda: removed(directory), f"removing {directory}")
    expected = [str(128 * MIB), str(32 * MIB), "True", "guard", "True", "True"]
    assert run.stdout.split() == expected, run.stderr


# In 256 MiB: a commit of 100 MiB beside a Cache of 150 MiB.
BESIDE_A_CACHE = """
import os, sys
from pathlib import Path
import pgalloc
cache = pgalloc.Cache()
value = os.urandom(1 << 20)
for key in range(150):
    cache[key] = value
file = pgalloc.MemoryFile()
def reader(rest):
    rest[: 1 << 20] = value
    return 1 << 20
if sys.argv[1] == "reader":
    kept = file.allocate(100 << 20, reader=reader)
else:
    kept = file.allocate(100 << 20, mode=pgalloc.AllocationMode[sys.argv[1]])
print(len(cache))
"""


@in_a_group
@pytest.mark.parametrize("how", ["ALLOCATE_AND_COMMIT", "ALLOCATE_AND_WRITE_POPULATE", "reader"])
def test_a_large_commit_does_not_count_twice(how: str) -> None:
    """As reserved and as used: others lost their memory to that, 115 MiB and more of it.

    About 110 MiB fit beside it; fewer if the machine is busy, and the guard keeps more free.
    """
    with open_place() as place, place.make("pgalloc-test", 256 * MIB) as group:
        run = subprocess.run(
            group.command([sys.executable, "-c", BESIDE_A_CACHE, how]),
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
            env=environment(),
        )
    assert int(run.stdout or 0) >= 55, run


# In 256 MiB: almost half of it is asked for and freed again and again, and then needed by others.
# No thread of the guard runs.
FREED_BELOW_A_LIMIT = """
import time
import pgalloc
from waiting import TIMEOUT_S
size = 120 << 20
file = pgalloc.MemoryFile()
deadline = time.monotonic() + TIMEOUT_S
left = size
while left and time.monotonic() < deadline:  # time: a bound on a hang
    file.allocate(size, mode=pgalloc.AllocationMode.ALLOCATE_AND_COMMIT).release()
    for _ in range(100):
        time.sleep(0.001)  # time: what may wait does so for longer
        left = left and file.stats().waiting_bytes
print("waits", left, flush=True)
others = bytearray(size)
print("lives")
"""


@in_a_group
def test_f6_freed_pages_for_which_the_limit_has_no_room_are_not_kept() -> None:
    with open_place() as place, place.make("pgalloc-test", 256 * MIB) as group:
        run = subprocess.run(
            group.command([sys.executable, "-c", FREED_BELOW_A_LIMIT]),
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
            env=environment(),
        )
        assert (run.stdout, group.oom_kills) == ("waits 0\nlives\n", 0), run


def test_the_log_of_a_configuration_says_nothing(
    native: FakeGuard, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "pgalloc"):
        default_guard.ensure()
    assert caplog.records == []
