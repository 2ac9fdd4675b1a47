"""Row A4: files that use memory-cgroup pressure evict on every source that there is."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest
from waiting import TIMEOUT_S, eventually

from pgalloc import EvictableRange, MemoryFile
from pgalloc.pressure import ManualSource, default_monitor, discovery, watcher
from pgalloc.pressure.discovery import Candidate

KINDS = ("guard", "v1", "v2", "systemd", "psi")
DISTANCES = {"systemd": 1, "psi": 2}


class User:
    def __init__(self) -> None:
        self.ranges: list[EvictableRange] = []

    def evict(self, range: EvictableRange) -> None:
        self.ranges.append(range)


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ManualSource]]:
    """One source by hand in the place of each kind, as long as a file listens."""
    opened: dict[str, ManualSource] = {}

    def open_by_hand(kind: str) -> ManualSource:
        opened[kind] = ManualSource(kind)
        return opened[kind]

    monkeypatch.setattr(
        discovery,
        "candidates",
        lambda **_: (
            Candidate(kind, kind, lambda kind=kind: open_by_hand(kind), DISTANCES.get(kind, 0))
            for kind in KINDS
        ),
    )
    yield opened
    eventually(lambda: all(source.fd == -1 for source in opened.values()))


def threads() -> int:
    return sum(thread.name == "pgalloc-pressure" for thread in threading.enumerate())


@pytest.mark.parametrize("kind", ["guard", "v1", "v2", "systemd"])
def test_a4_every_source_starts_evictions(sources: dict[str, ManualSource], kind: str) -> None:
    with MemoryFile(use_host_memcg_pressure=True) as mf:
        assert "psi" not in sources  # systemd speaks for it
        user = User()
        for count, level in enumerate(("low", "medium", "critical"), start=1):
            mf.mark_evictable(user, EvictableRange(0, count))
            sources[kind].signal(level)
            eventually(lambda: len(user.ranges) == count)  # noqa: B023
        assert mf.wait_for_evictions(TIMEOUT_S)


def test_a4_all_files_share_one_thread_and_each_stops_by_itself(
    sources: dict[str, ManualSource],
) -> None:
    files = [MemoryFile(use_host_memcg_pressure=True) for _ in range(3)]
    users = [User() for _ in files]
    assert threads() == 1
    monitor = default_monitor()
    assert monitor.stats().subscribers == 3
    files[1].close()
    for n in (0, 2):
        files[n].mark_evictable(users[n], EvictableRange(0, 1))
    sources["v2"].signal()
    eventually(lambda: all(users[n].ranges for n in (0, 2)))
    assert users[1].ranges == []
    files.clear()  # forgotten, not closed
    gc.collect()
    assert monitor.stats().subscribers == 0
    del monitor
    eventually(lambda: threads() == 0)


def test_a4_a_closed_file_leaves_no_thread(sources: dict[str, ManualSource]) -> None:
    with MemoryFile(use_host_memcg_pressure=True):
        assert threads() == 1
    eventually(lambda: threads() == 0)


def test_a4_construction_that_fails_leaves_no_thread(
    sources: dict[str, ManualSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: watcher.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(watcher.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="start"):
            MemoryFile(use_host_memcg_pressure=True)
    assert all(source.fd == -1 for source in sources.values())
    with MemoryFile(use_host_memcg_pressure=True) as mf:  # and it works again
        assert mf.should_cache_evictable


def test_a4_a_user_may_close_the_file_in_evict(sources: dict[str, ManualSource]) -> None:
    mf = MemoryFile(use_host_memcg_pressure=True)
    closed = threading.Event()

    class Closer(User):
        def evict(self, range: EvictableRange) -> None:
            mf.close()
            closed.set()

    mf.mark_evictable(Closer(), EvictableRange(0, 1))
    sources["guard"].signal()
    assert closed.wait(TIMEOUT_S)
