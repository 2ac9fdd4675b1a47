"""Rows N1 and N2: the listener, on a fake v1 group whose eventfd the test signals itself."""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import TIMEOUT_S, environment, eventually, is_inside, join

from pgalloc.pressure import MemoryCgroup, NoMemoryCgroupError, PressureLevelListener, watcher
from pgalloc.pressure.memcg_sources import open_sources
from pgalloc.pressure.psi import PsiTrigger
from pgalloc.pressure.signals import Level, V1PressureLevel, V2Events


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


class FakeGroup:
    """A v1 group made of ordinary files; ``signal`` does what the kernel would do."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        (directory / "memory.pressure_level").touch()
        (directory / "cgroup.event_control").touch()
        self.group = MemoryCgroup("v1", "/fake", directory, directory, True)

    @property
    def registration(self) -> list[str]:
        return (self.directory / "cgroup.event_control").read_text().split()

    @property
    def event_fd(self) -> int:
        return int(self.registration[0])

    def signal(self, count: int = 1) -> None:
        os.eventfd_write(self.event_fd, count)


@pytest.fixture
def fake(tmp_path: Path) -> FakeGroup:
    return FakeGroup(tmp_path / "group")


def listening() -> bool:
    """Whether there is a thread that could call back."""
    return "pgalloc-pressure" in {thread.name for thread in threading.enumerate()}


def assert_quiet(listener: PressureLevelListener, fake: FakeGroup) -> None:
    """It has nothing left to call back for, and is not about to."""
    assert select.select([fake.event_fd], [], [], 0)[0] == []
    listener.park()  # waits for what it is about to do
    assert not listening()
    listener.resume()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    fds, threads = open_fds(), threading.active_count()
    yield
    assert open_fds() <= fds
    assert threading.active_count() <= threads


@pytest.mark.parametrize("level", ["low", "medium", "critical"])
def test_n1_registers_eventfd_file_and_level(fake: FakeGroup, level: Level) -> None:
    with PressureLevelListener(lambda: None, level=level, cgroup=fake.group):
        efd, file_fd, asked = fake.registration
        assert asked == level
        assert os.readlink(f"/proc/self/fd/{efd}") == "anon_inode:[eventfd]"
        assert file_fd.isdigit()


def test_n1_unknown_level_is_refused_before_anything_is_opened(fake: FakeGroup) -> None:
    with pytest.raises(ValueError, match="low, medium, critical"):
        PressureLevelListener(lambda: None, level="high", cgroup=fake.group)  # type: ignore[arg-type]
    assert fake.registration == []


@pytest.mark.parametrize("missing", ["memory.pressure_level", "cgroup.event_control"])
def test_n1_a_failed_registration_leaves_nothing_open(fake: FakeGroup, missing: str) -> None:
    (fake.directory / missing).unlink()
    with pytest.raises(FileNotFoundError):
        PressureLevelListener(lambda: None, cgroup=fake.group)


def test_n1_a_refused_write_leaves_nothing_open() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(OSError, match="No space left"):
        PsiTrigger(full, "some", stall_us=1, window_us=2)


def test_n1_a_thread_that_cannot_start_leaves_nothing_open(
    fake: FakeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: watcher.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(watcher.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="start"):
        PressureLevelListener(lambda: None, cgroup=fake.group)


def test_n1_no_controller_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(NoMemoryCgroupError) as caught:
        PressureLevelListener(lambda: None, proc=tmp_path)
    assert caught.value.errno == 2


def test_n1_ancestors_are_watched_where_they_allow_it(tmp_path: Path) -> None:
    top = FakeGroup(tmp_path / "top")
    own = FakeGroup(tmp_path / "top/own")
    (tmp_path / "top/own/leaf").mkdir()
    group = MemoryCgroup("v1", "/own", own.directory, top.directory, True)
    calls: list[int] = []
    with PressureLevelListener(lambda: calls.append(1), cgroup=group) as listener:
        assert len(listener.sources) == 2
        assert (own.registration[2], top.registration[2]) == ("low", "low,local")
        top.signal()
        eventually(lambda: bool(calls))
    (top.directory / "memory.pressure_level").unlink()
    with PressureLevelListener(lambda: None, cgroup=group) as listener:
        assert len(listener.sources) == 1


def test_n2_one_call_per_wake_up_however_many_events(fake: FakeGroup) -> None:
    calls: list[int] = []
    with PressureLevelListener(lambda: calls.append(1), cgroup=fake.group) as listener:
        for expected in (1, 2, 3):
            fake.signal(count=50)
            eventually(lambda: len(calls) >= expected)  # noqa: B023
            assert_quiet(listener, fake)
            assert len(calls) == expected


def test_n2_events_during_a_callback_bring_one_more(fake: FakeGroup) -> None:
    entered, let_go = threading.Event(), threading.Event()
    calls: list[int] = []

    def callback() -> None:
        calls.append(1)
        entered.set()
        assert let_go.wait(TIMEOUT_S)

    with PressureLevelListener(callback, cgroup=fake.group) as listener:
        fake.signal()
        assert entered.wait(TIMEOUT_S)
        for _ in range(10):
            fake.signal()
        let_go.set()
        eventually(lambda: len(calls) >= 2)
        assert_quiet(listener, fake)
        assert len(calls) == 2


def test_n2_stop_waits_for_a_running_callback_after_which_none_runs(fake: FakeGroup) -> None:
    entered, let_go = threading.Event(), threading.Event()
    log: list[str] = []

    def callback() -> None:
        log.append("in")
        entered.set()
        assert let_go.wait(TIMEOUT_S)
        log.append("out")

    listener = PressureLevelListener(callback, cgroup=fake.group)
    fake.signal()
    assert entered.wait(TIMEOUT_S)
    fake.signal()  # would be a second call
    stoppers = [threading.Thread(target=listener.stop) for _ in range(3)]
    for stopper in stoppers:
        stopper.start()
    eventually(lambda: all(is_inside(one, "Thread.join") for one in stoppers), "stop()'s waiting")
    let_go.set()
    join(stoppers)
    assert log == ["in", "out"]
    assert not listening()
    listener.stop()
    assert listener.sources == ()


def test_n2_stop_from_the_callback_does_not_wait_for_itself(fake: FakeGroup) -> None:
    calls: list[int] = []

    def callback() -> None:
        calls.append(1)
        listener.stop()
        listener.stop()

    listener = PressureLevelListener(callback, cgroup=fake.group)
    fake.signal()
    eventually(lambda: listener.sources == ())
    listener.stop()
    assert calls == [1]


@pytest.mark.parametrize("error", [ValueError("planted"), SystemExit(3)])
def test_n2_an_exception_is_logged_and_stops_nothing(
    fake: FakeGroup, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    calls: list[int] = []

    def callback() -> None:
        calls.append(1)
        raise error

    with (
        caplog.at_level(logging.ERROR, "pgalloc.pressure"),
        PressureLevelListener(callback, cgroup=fake.group),
    ):
        fake.signal()
        eventually(lambda: len(calls) == 1)
        fake.signal()
        eventually(lambda: len(calls) == 2)
    assert [record.exc_info is not None for record in caplog.records] == [True, True]


def test_n2_a_group_that_is_removed_calls_back_no_more(
    fake: FakeGroup, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    with PressureLevelListener(lambda: calls.append(1), cgroup=fake.group):
        (fake.directory / "memory.pressure_level").unlink()
        fake.signal()  # the kernel does this when it removes a v1 group
        eventually(lambda: "no more pressure signals" in caplog.text)
    assert calls == []


def test_park_ends_the_thread_and_keeps_what_happens_meanwhile(fake: FakeGroup) -> None:
    calls: list[int] = []
    listener = PressureLevelListener(lambda: calls.append(1), cgroup=fake.group)
    for round_number in range(1, 6):
        listener.park()
        assert not listening()
        fake.signal()
        assert len(calls) == round_number - 1
        listener.resume()
        eventually(lambda: len(calls) == round_number)  # noqa: B023
    listener.park()
    listener.stop()
    listener.resume()
    assert len(calls) == 5


def test_parks_of_several_threads_count_and_any_thread_may_resume(fake: FakeGroup) -> None:
    calls: list[int] = []
    with PressureLevelListener(lambda: calls.append(1), cgroup=fake.group) as listener:
        for step in (listener.park, listener.park, listener.resume):
            thread = threading.Thread(target=step)
            thread.start()
            join([thread])
        assert not listening()
        fake.signal()
        assert calls == []
        listener.resume()
        eventually(lambda: calls == [1])


def test_stop_after_park_alone_closes_everything(fake: FakeGroup) -> None:
    listener = PressureLevelListener(lambda: None, cgroup=fake.group)
    listener.park()  # as at the end of the program
    listener.stop()
    assert listener.sources == ()


def test_park_waits_for_a_callback_that_stops_the_listener(fake: FakeGroup) -> None:
    entered = threading.Event()
    forking = threading.current_thread()

    def callback() -> None:
        entered.set()
        eventually(lambda: is_inside(forking, "Watcher.park"), "parking")
        listener.stop()

    listener = PressureLevelListener(callback, cgroup=fake.group)
    fake.signal()
    assert entered.wait(TIMEOUT_S)
    listener.park()
    assert not listening()
    listener.resume()
    assert listener.sources == ()


FORKS = """
import os, sys, threading
from pathlib import Path
from waiting import eventually
from pgalloc.pressure import MemoryCgroup, PressureLevelListener
group = MemoryCgroup("v1", "/fake", Path(sys.argv[1]), Path(sys.argv[1]), True)
calls = []
listener = PressureLevelListener(lambda: calls.append(1), cgroup=group)
os.register_at_fork(before=listener.park, after_in_parent=listener.resume,
                    after_in_child=listener.reset_in_child)
efd = int(Path(sys.argv[1], "cgroup.event_control").read_text().split()[0])
for i in range(50):
    os.eventfd_write(efd, 1)
    pid = os.fork()
    if pid == 0:
        alone = threading.active_count() == 1
        listener.stop()  # harmless
        os._exit(0 if alone and not os.path.exists(f"/proc/self/fd/{efd}") else 1)
    assert os.waitpid(pid, 0)[1] == 0
before = len(calls)
os.eventfd_write(efd, 1)
eventually(lambda: len(calls) > before)
listener.stop()
print("done")
"""

FORK_AND_RETURN = """
import os, sys
from pathlib import Path
from waiting import eventually
from pgalloc.pressure import MemoryCgroup, PressureLevelListener
group = MemoryCgroup("v1", "/fake", Path(sys.argv[1]), Path(sys.argv[1]), True)
status = []
def callback():
    pid = os.fork()
    if pid:
        status.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
listener = PressureLevelListener(callback, cgroup=group)
efd = int(Path(sys.argv[1], "cgroup.event_control").read_text().split()[0])
for n in (1, 2):
    os.eventfd_write(efd, 1)
    eventually(lambda: len(status) >= n)
listener.stop()
print(*status)
"""

FORK_IN_CALLBACK = """
import os, sys
from pathlib import Path
from waiting import eventually
from pgalloc.pressure import MemoryCgroup, PressureLevelListener
group = MemoryCgroup("v1", "/fake", Path(sys.argv[1]), Path(sys.argv[1]), True)
status = []
def callback():
    pid = os.fork()
    if pid == 0:
        listener.stop()
        os._exit(7)
    status.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
listener = PressureLevelListener(callback, cgroup=group)
os.register_at_fork(before=listener.park, after_in_parent=listener.resume,
                    after_in_child=listener.reset_in_child)
efd = int(Path(sys.argv[1], "cgroup.event_control").read_text().split()[0])
for n in (1, 2):
    os.eventfd_write(efd, 1)
    eventually(lambda: len(status) >= n)
listener.stop()
print(*status)
"""


def run_script(script: str, directory: Path, *options: str) -> str:
    run = subprocess.run(
        [sys.executable, *options, "-c", script, str(directory)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment(),
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_forks_warn_of_no_thread_and_the_child_lets_go(fake: FakeGroup) -> None:
    assert run_script(FORKS, fake.directory, "-W", "error") == "done"


def test_a_callback_may_fork(fake: FakeGroup) -> None:
    assert run_script(FORK_IN_CALLBACK, fake.directory) == "7 7"


def test_a_child_that_returns_from_the_callback_leaves_the_parents_events(
    fake: FakeGroup,
) -> None:
    assert run_script(FORK_AND_RETURN, fake.directory) == "0 0"


def test_n1_v2_counters_that_rose_are_pressure(tmp_path: Path) -> None:
    file = tmp_path / "memory.events"
    file.write_text("low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n")
    source = V2Events(file, frozenset({"max", "oom"}))
    assert source.take(0) is False
    file.write_text("low 5\nhigh 5\nmax 0\noom 0\noom_kill 0\n")
    assert source.take(0) is False
    file.write_text("low 5\nhigh 5\nmax 1\noom 0\noom_kill 0\n")
    assert source.take(0) is True
    assert source.take(0) is False
    source.close()
    source.close()


def test_n1_v2_opens_counters_of_each_level(tmp_path: Path) -> None:
    (tmp_path / "slice/app").mkdir(parents=True)
    for level in (tmp_path / "slice", tmp_path / "slice/app"):
        (level / "memory.events").write_text("max 0\n")
    group = MemoryCgroup("v2", "/slice/app", tmp_path / "slice/app", tmp_path, True)
    sources = open_sources(group, "low")
    assert [type(source) for source in sources] == [V2Events, V2Events]
    for source in sources:
        source.close()
    (tmp_path / "slice/memory.events.local").write_text("max 0\n")
    (tmp_path / "slice/app/memory.events.local").write_text("max 0\n")
    sources = open_sources(group, "low")
    assert [source.name.split()[1] for source in sources] == [
        str(tmp_path / "slice/app/memory.events"),
        str(tmp_path / "slice/memory.events.local"),
    ]
    for source in sources:
        source.close()


def test_n1_v2_without_any_file_is_a_typed_error(tmp_path: Path) -> None:
    group = MemoryCgroup("v2", "/", tmp_path, tmp_path, True)
    with pytest.raises(NoMemoryCgroupError):
        PressureLevelListener(lambda: None, cgroup=group)


def test_n1_v1_needs_real_files(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"memory\.pressure_level"):
        V1PressureLevel(tmp_path, "low")
