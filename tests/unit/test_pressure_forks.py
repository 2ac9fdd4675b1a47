"""Monitors across os.fork(), from other threads and from their own callbacks."""

# ruff: noqa: F811

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from pressure_by_hand import monitor, native, source, threads  # noqa: F401
from waiting import TIMEOUT_S, any_is_inside, eventually

from pgalloc import PAGE_SIZE, ForkedError, MemoryFile, fork
from pgalloc.pressure import (
    ManualSource,
    Monitor,
    PressureEvent,
    default_monitor,
    watcher,
)


def in_child(action: Callable[[], bool]) -> int:
    """The exit status of a forked child that does this: 0 if it is true."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = 0 if action() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def event_id(fd: int) -> str | None:
    """Which eventfd a descriptor is: its number may be another one's by now."""
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    except FileNotFoundError:
        return None
    return next((line for line in lines if line.startswith("eventfd-id")), None)


def test_forks_with_a_running_monitor(source: ManualSource, monitor: Monitor) -> None:
    seen: list[int] = []
    unsubscribe = monitor.subscribe(lambda event: seen.append(1))
    stream = monitor.events()
    fd, event = source.fd, event_id(source.fd)
    assert event is not None

    def child() -> bool:
        refused = 0
        for call in (lambda: monitor.subscribe(print), monitor.events, monitor.info):
            try:
                call()  # type: ignore[operator]
            except ForkedError:
                refused += 1
        unsubscribe()
        monitor.close()
        stream.close()
        state = (refused, threading.active_count(), event_id(fd) != event)
        if state != (3, 1, True):
            print("in the child:", state, threading.enumerate(), flush=True)
        return state == (3, 1, True)

    for round_number in range(1, 21):
        assert in_child(child) == 0
        source.signal()
        eventually(lambda: len(seen) == round_number)  # noqa: B023


def test_a_child_can_have_monitors_of_its_own(source: ManualSource, monitor: Monitor) -> None:
    monitor.subscribe(print)

    def child() -> bool:
        mine = ManualSource()
        seen: list[int] = []
        with Monitor(sources=[mine]) as own:
            own.subscribe(lambda event: seen.append(1))
            mine.signal()
            eventually(lambda: seen == [1])
        return default_monitor() is not monitor

    assert in_child(child) == 0


def test_a_callback_may_fork(source: ManualSource, monitor: Monitor) -> None:
    statuses: list[int] = []
    monitor.subscribe(lambda event: statuses.append(in_child(lambda: monitor.close() is None)))
    for count in (1, 2):
        source.signal()
        eventually(lambda: len(statuses) == count)  # noqa: B023
    assert statuses == [0, 0]


def test_a_child_that_returns_from_the_callback_ends(
    source: ManualSource, monitor: Monitor
) -> None:
    """It has the thread's stack, and nothing else to go on with."""
    pids: list[int] = []
    monitor.subscribe(lambda event: pids.append(os.fork()))
    source.signal()
    eventually(lambda: len(pids) == 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
    source.signal()
    eventually(lambda: len(pids) == 2)
    assert os.waitstatus_to_exitcode(os.waitpid(pids[1], 0)[1]) == 0


def test_a_child_that_returns_from_the_callback_takes_its_threads_along(
    source: ManualSource, monitor: Monitor
) -> None:
    pids: list[int] = []
    kept: list[object] = []

    def fork_and_use() -> None:
        pids.append(os.fork())
        if pids[-1] == 0:
            kept.append(MemoryFile().allocate(PAGE_SIZE))  # a file has a thread of the core

    monitor.subscribe(lambda event: fork_and_use())
    source.signal()
    eventually(lambda: len(pids) == 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0


def test_a_fork_does_not_wait_for_ever_for_a_callback(
    source: ManualSource, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A callback that needs what the forking thread holds: it goes on beside the fork."""
    monkeypatch.setattr(watcher, "PARK_TIMEOUT_S", 0.01)
    held, entered = threading.Lock(), threading.Event()
    seen: list[int] = []

    def callback(event: PressureEvent) -> None:
        entered.set()
        with held:
            seen.append(1)

    monitor.subscribe(callback)
    with held:
        source.signal()
        assert entered.wait(TIMEOUT_S)
        assert in_child(lambda: monitor.stats().subscribers == 0) == 0
        assert threads() == 1
    eventually(lambda: seen == [1])
    source.signal()
    eventually(lambda: seen == [1, 1])
    assert threads() == 1


def test_pressure_during_a_fork_is_told_after_it(source: ManualSource, monitor: Monitor) -> None:
    seen: list[str] = []
    monitor.subscribe(lambda event: seen.append(event.level))
    monitor.park()
    assert threads() == 0
    source.signal("critical")
    unsubscribe = monitor.subscribe(lambda event: None)  # starts no thread now
    unsubscribe()
    assert (threads(), seen) == (0, [])
    monitor.resume()
    eventually(lambda: seen == ["critical"])


def test_a_monitor_made_between_the_halves_of_a_fork(source: ManualSource) -> None:
    with Monitor(sources=[source]) as monitor:
        seen: list[int] = []
        monitor.subscribe(lambda event: seen.append(1))
        monitor.resume()  # it was never parked
        monitor.park()
        assert threads() == 0
        monitor.resume()
        source.signal()
        eventually(lambda: seen == [1])


def test_monitors_are_parked_around_forks(monitor: Monitor) -> None:
    assert monitor in fork._all(of_parents=False)


def test_forks_of_the_callback_and_of_another_thread_at_once(
    source: ManualSource, monitor: Monitor
) -> None:
    """Each waits for the other, but neither for ever."""
    statuses: list[int] = []
    monitor.subscribe(lambda event: statuses.append(in_child(lambda: True)))
    others: list[int] = []
    for _ in range(4):
        source.signal()
        others.append(in_child(lambda: True))
    eventually(lambda: len(statuses) == 4)
    assert statuses + others == [0] * 8


def test_a_callback_may_make_things_with_threads_during_a_fork(
    source: ManualSource, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "PARK_TIMEOUT_S", TIMEOUT_S)  # the fork waits, and not in vain
    entered, made = threading.Event(), threading.Event()

    def callback(event: PressureEvent) -> None:
        entered.set()
        # In a thread that is made for it: a signal handler would interrupt this one.
        eventually(lambda: any_is_inside("Watcher.park"), "parking")
        with Monitor(sources=[ManualSource()]) as other:
            other.subscribe(print)
            made.set()

    monitor.subscribe(callback)
    source.signal()
    assert entered.wait(TIMEOUT_S)
    assert in_child(lambda: True) == 0
    assert made.is_set()
