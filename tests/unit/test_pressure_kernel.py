"""Rows N1 and N2 against the kernel: real cgroups, a real limit, real reclaim."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import environment, eventually, removed

from pgalloc.pressure import (
    ManualSource,
    MemoryCgroup,
    Monitor,
    PressureEvent,
    PressureLevelListener,
    PressureSource,
    find_memory_cgroup,
)
from pgalloc.pressure.memcg_sources import close_all, open_level, open_sources
from pgalloc.pressure.psi import PsiTrigger, open_psi
from pgalloc.pressure.signals import LEVELS, V1PressureLevel, V2Events

MIB = 1 << 20
LIMIT_BYTES = 32 * MIB

# Runs in the limited group: fills the page cache with a file of several times the limit, so that
# the kernel must reclaim, until the listener has called back often enough.
LOAD = """
import os, sys
from pathlib import Path
from pgalloc.pressure import PressureLevelListener, info
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
found = info()
calls = []
listener = PressureLevelListener(lambda: calls.append(1), level="low")
for _ in range(200):
    if len(calls) >= 2:
        break
    with open(sys.argv[2], "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
listener.stop()
after_stop = len(calls)
with open(sys.argv[2], "rb", buffering=0) as file:
    while file.read(1 << 20):
        pass
print(found.source, found.limit, found.cgroup_path, after_stop >= 2, len(calls) == after_stop)
"""


@contextlib.contextmanager
def new_group(parent: Path, name: str) -> Iterator[Path]:
    directory = parent / f"pgalloc-{name}-{os.getpid()}"
    try:
        directory.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a cgroup below {parent}: {error}")
    try:
        yield directory
    finally:
        eventually(lambda: removed(directory), f"removing {directory}")


@pytest.fixture
def v1_memory() -> MemoryCgroup:
    group = find_memory_cgroup()
    if group is None or group.version != "v1":
        pytest.skip("the memory controller of this machine is not cgroup v1")
    if not group.exact:
        pytest.skip("this process's own memory cgroup is not visible here")
    return group


@pytest.fixture
def limited_group(v1_memory: MemoryCgroup) -> Iterator[Path]:
    with new_group(v1_memory.directory, "limited") as directory:
        (directory / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
        yield directory


@pytest.fixture(scope="module")
def written_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four times the limit, on whatever the temporary directory lies on."""
    file = tmp_path_factory.mktemp("pressure") / "big"
    with file.open("wb") as out:
        for _ in range(4 * LIMIT_BYTES // MIB):
            out.write(os.urandom(4096) * (MIB // 4096))
        out.flush()
        os.fsync(out.fileno())
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", str(file)], capture_output=True, text=True, check=False
    )
    if kind.stdout.strip() in ("tmpfs", "ramfs"):
        pytest.skip("the temporary directory has no page cache that could be reclaimed")
    return file


@pytest.fixture
def big_file(written_file: Path) -> Path:
    """None of it in memory."""
    with written_file.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return written_file


@pytest.fixture
def unified() -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, fstype, *_ = line.split(" ")
        if fstype == "cgroup2":
            return Path(point)
    pytest.skip("no cgroup2 mount")


def test_n1_n2_v1_reclaim_in_a_limited_group_calls_back(
    limited_group: Path, v1_memory: MemoryCgroup, big_file: Path
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LOAD, str(limited_group), str(big_file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    path = f"{v1_memory.path.rstrip('/')}/{limited_group.name}"
    assert run.stdout.split() == ["v1", str(LIMIT_BYTES), path, "True", "True"], run.stderr


# Runs in a group with memory.high below what it touches: each step above it is an event.
V2_LOAD = """
import mmap, os, sys
from pathlib import Path
from waiting import eventually
from pgalloc.pressure import PressureLevelListener, info
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
found = info()
calls = []
listener = PressureLevelListener(lambda: calls.append(1), level="low")
pages = mmap.mmap(-1, found.limit + (4 << 20))
for offset in range(0, len(pages), mmap.PAGESIZE):
    pages[offset] = 1
    if calls:
        break
eventually(lambda: calls, "a call")
listener.stop()
print(found.source, found.limit, found.cgroup_path)
"""


def test_n1_n2_v2_memory_high_calls_back() -> None:
    group = find_memory_cgroup()
    if group is None or group.version != "v2":
        pytest.skip("the memory controller of this machine is not cgroup v2")
    with new_group(group.mount_point, "high") as directory:
        try:
            (directory / "memory.high").write_text(str(LIMIT_BYTES))
        except OSError as error:
            pytest.skip(f"the memory controller is not enabled below the root: {error}")
        run = subprocess.run(
            [sys.executable, "-c", V2_LOAD, str(directory)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=environment(),
        )
    expected = ["v2", str(LIMIT_BYTES), f"/{directory.name}"]
    assert run.stdout.split() == expected, run.stderr


def test_n1_v1_the_parent_is_told_as_well(
    limited_group: Path, v1_memory: MemoryCgroup, big_file: Path
) -> None:
    """A listener outside sees the pressure of a child group without listeners inside."""
    calls: list[int] = []
    load = (
        "import os, sys; open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "file = open(sys.argv[2], 'rb', buffering=0)\nwhile file.read(1 << 20): pass"
    )
    group = MemoryCgroup("v1", "/", limited_group, limited_group, True)
    with PressureLevelListener(lambda: calls.append(1), cgroup=group):
        for _ in range(20):
            subprocess.run(
                [sys.executable, "-c", load, str(limited_group), str(big_file)], check=True
            )
            if calls:
                break
    assert calls


def test_n1_v2_poll_wakes_when_a_counter_file_changes(unified: Path) -> None:
    """``cgroup.events`` notifies exactly as ``memory.events`` does, without the controller."""
    with new_group(unified, "events") as directory:
        source = V2Events(directory / "cgroup.events", frozenset({"populated"}))
        try:
            poller = select.poll()
            poller.register(source.fd, source.poll_mask)
            assert not any(event & select.POLLPRI for _, event in poller.poll(0))
            child = subprocess.Popen(["sleep", "60"])
            try:
                (directory / "cgroup.procs").write_text(str(child.pid))
                assert woken(poller)
                assert source.take(0) is True
            finally:
                child.kill()
                child.wait()
            assert woken(poller)  # it fell to 0 again: a change, but no rise
            assert source.take(0) is False
        finally:
            source.close()


def woken(poller: select.poll) -> bool:
    return any(event & select.POLLPRI for _, event in poller.poll(10_000))


def stall_us(file: Path) -> int:
    """How long some task has stalled on memory, by the kernel's account."""
    return int(file.read_text().split("total=")[1].split()[0])


def test_n1_psi_trigger_fires_under_real_stalls(
    unified: Path, limited_group: Path, big_file: Path
) -> None:
    """A task stalls on memory in its v1 group; its v2 group's trigger tells (hybrid layout)."""
    with new_group(unified, "psi") as directory:
        if not (directory / "memory.pressure").exists():
            pytest.skip("the kernel has no PSI")
        before = stall_us(directory / "memory.pressure")
        trigger = PsiTrigger(
            directory / "memory.pressure", "some", stall_us=50, window_us=2_000_000
        )
        load = (
            "import os, sys\n"
            "for group in sys.argv[1:3]:\n"
            "    open(group + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
            "while True:\n"
            "    file = open(sys.argv[3], 'rb', buffering=0)\n"
            "    while file.read(1 << 20): pass\n"
        )
        arguments = [str(limited_group), str(directory), str(big_file)]
        child = subprocess.Popen([sys.executable, "-c", load, *arguments])
        try:
            poller = select.poll()
            poller.register(trigger.fd, trigger.poll_mask)
            ready = poller.poll(60_000)
            assert ready, "the stalls are not told"
            assert trigger.take(ready[0][1]) is True
            assert stall_us(directory / "memory.pressure") - before >= 50
        finally:
            trigger.close()
            child.kill()
            child.wait()


def test_n1_psi_refuses_figures_that_make_no_sense() -> None:
    file = Path("/proc/pressure/memory")
    if not os.access(file, os.W_OK):
        pytest.skip("no writable /proc/pressure/memory")
    fds = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Invalid argument"):
        PsiTrigger(file, "some", stall_us=3_000_000, window_us=2_000_000)
    assert set(os.listdir("/proc/self/fd")) <= fds


def test_a_v1_group_that_is_removed_is_dropped(
    v1_memory: MemoryCgroup, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel signals a last time when it removes the group: that is no pressure."""
    other = ManualSource()
    with new_group(v1_memory.directory, "removed") as directory:
        monitor = Monitor(sources=[V1PressureLevel(directory, "low"), other])
        seen: list[PressureEvent] = []
        monitor.subscribe(seen.append)
        assert len(monitor.info().sources) == 2
    with monitor:
        eventually(lambda: monitor.stats().dropped_sources)
        assert "no more pressure signals from v1" in caplog.text
        assert seen == []
        other.signal()
        eventually(lambda: seen)


def test_a_v2_group_that_is_removed_is_dropped(
    unified: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = ManualSource()
    with new_group(unified, "removed") as directory:
        sources: list[PressureSource] = [V2Events(directory / "cgroup.events", ["populated"])]
        if (directory / "memory.pressure").exists():
            sources.append(open_psi(directory / "memory.pressure", "low"))
        monitor = Monitor(sources=[*sources, other])
        seen: list[PressureEvent] = []
        monitor.subscribe(seen.append)
    with monitor:
        eventually(lambda: monitor.stats().dropped_sources == len(sources))
        assert "no more pressure signals from v2" in caplog.text
        assert seen == []
        other.signal()
        eventually(lambda: seen)


def test_real_stalls_reach_a_monitor(limited_group: Path, big_file: Path) -> None:
    """All the sources of this machine, while a child presses against its own limit."""
    group = MemoryCgroup("v1", "/", limited_group, limited_group, True)
    seen: list[PressureEvent] = []
    load = (
        "import os, sys; open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "file = open(sys.argv[2], 'rb', buffering=0)\nwhile file.read(1 << 20): pass"
    )
    levels = [open_level(group, limited_group, level) for level in LEVELS]
    with Monitor(sources=levels) as monitor:
        monitor.subscribe(seen.append)
        for _ in range(20):
            subprocess.run(
                [sys.executable, "-c", load, str(limited_group), str(big_file)], check=True
            )
            if seen:
                break
    assert {event.source for event in seen} == {"v1"}


def test_n1_v1_an_ancestors_limit_is_told_and_a_siblings_is_not(
    limited_group: Path, big_file: Path
) -> None:
    """Reclaim at the parent's limit concerns us; reclaim at the limit of another child does not."""
    load = (
        "import os, sys; open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "file = open(sys.argv[2], 'rb', buffering=0)\nwhile file.read(1 << 20): pass"
    )

    def press(directory: Path) -> None:
        arguments = [str(directory), str(big_file)]
        subprocess.run([sys.executable, "-c", load, *arguments], check=True)

    with new_group(limited_group, "own") as own, new_group(limited_group, "sibling") as sibling:
        (sibling / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES // 2))
        sources = open_sources(MemoryCgroup("v1", "/", own, limited_group, True), "low")
        assert len(sources) == 2
        # Is told of the children, too: of all listeners at once, so all have been told twice
        # when it is told for the second time.
        of_all = V1PressureLevel(limited_group, "low")
        told = 0
        for _ in range(20):
            press(sibling)
            told += of_all.take(select.POLLIN)
            if told == 2:
                break
        assert told == 2, "there was no pressure"
        assert not any(source.take(select.POLLIN) for source in sources)
        for _ in range(20):
            press(own)
            if any(source.take(select.POLLIN) for source in sources):
                break
        else:
            pytest.fail("the limit of the parent is not told")
        close_all([*sources, of_all])
