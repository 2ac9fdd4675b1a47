"""The Monitor: callbacks, on sources that are signalled by hand and a fake guard."""

# ruff: noqa: F811

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import logging
import os
import random
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_guard import FakeGuard
from pressure_by_hand import monitor, native, source, threads  # noqa: F401
from waiting import TIMEOUT_S, Aim, eventually, is_inside, join

from pgalloc import ClosedError, OptionError, RangeError
from pgalloc.pressure import (
    Level,
    ManualSource,
    Monitor,
    NoPressureSourceError,
    PressureEvent,
    PressureSource,
    default_monitor,
    watcher,
)

# --- what it asks the guard for ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headroom", "wish"),
    [("10%", (0.1, 0)), ("32M", (0.0, 32 << 20)), (4096, (0.0, 4096)), ("0%", (0.0, 0))],
)
def test_the_guard_is_asked_while_a_monitor_is_open(
    native: FakeGuard, headroom: str | int, wish: tuple[float, int]
) -> None:
    with Monitor(headroom) as monitor:
        assert len(native.configured) == 1
        assert list(native.headrooms.values()) == [wish]
        found = monitor.info()
        assert (found.headroom_fraction, found.headroom_bytes) == wish
        assert threads() == 0  # there are no subscribers
    assert native.headrooms == {}


def test_bad_headroom_and_bad_sources_leave_nothing(
    native: FakeGuard, source: ManualSource
) -> None:
    bad: list[tuple[Any, type[Exception]]] = [
        ("ten", OptionError),
        ("100%", RangeError),
        (-1, RangeError),
        (1.5, RangeError),
        (None, TypeError),
    ]
    for headroom, error in bad:
        with pytest.raises(error):
            Monitor(headroom, sources=[source])
    assert source.fd == -1  # it belonged to the monitor, which failed
    other = ManualSource()
    with pytest.raises(TypeError, match="int is no PressureSource"):
        Monitor(sources=[other, 5])  # type: ignore[list-item]
    assert other.fd == -1
    with pytest.raises(TypeError):
        Monitor(sources=5)  # type: ignore[arg-type]
    assert native.headrooms == {}


# --- callbacks -----------------------------------------------------------------------------------


def test_events_come_in_order_on_one_daemon_thread(source: ManualSource, monitor: Monitor) -> None:
    seen: list[tuple[str, threading.Thread]] = []
    assert threads() == 0
    monitor.subscribe(lambda event: seen.append((event.level, threading.current_thread())))
    monitor.subscribe(lambda event: seen.append(("second", threading.current_thread())))
    assert threads() == 1
    for level in ("low", "critical", "medium"):
        source.signal(level)
    eventually(lambda: len(seen) == 6)
    assert [name for name, _ in seen] == ["low", "second", "critical", "second", "medium", "second"]
    assert {thread.name for _, thread in seen} == {"pgalloc-pressure"}
    assert all(thread.daemon for _, thread in seen)


def test_an_event_says_where_it_comes_from(
    native: FakeGuard, source: ManualSource, monitor: Monitor
) -> None:
    seen: list[PressureEvent] = []
    monitor.subscribe(seen.append)
    source.signal("medium")
    eventually(lambda: len(seen) == 1)
    assert seen == [PressureEvent("medium", "manual", "manual", 123, 1)]
    with pytest.raises(AttributeError):
        seen[0].level = "low"  # type: ignore[misc]
    native.available = None
    source.signal()
    eventually(lambda: len(seen) == 2)
    assert (seen[1].headroom or 0) > 0  # from the files of this machine


def test_levels_and_above(source: ManualSource, monitor: Monitor) -> None:
    seen: dict[Level, list[str]] = {"low": [], "medium": [], "critical": []}
    for level, events in seen.items():
        monitor.subscribe(lambda event, events=events: events.append(event.level), level)
    for level in ("critical", "medium", "low"):
        source.signal(level)
    eventually(lambda: len(seen["low"]) == 3)
    assert seen == {
        "low": ["critical", "medium", "low"],
        "medium": ["critical", "medium"],
        "critical": ["critical"],
    }
    for bad in ("none", "", None, 3):
        with pytest.raises(ValueError, match="low, medium, critical"):
            monitor.subscribe(print, bad)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="low, medium, critical"):
            monitor.events(bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="callable"):
        monitor.subscribe(None)  # type: ignore[arg-type]
    assert monitor.stats().subscribers == 3


def test_signals_before_the_first_subscription_wait_for_it(
    source: ManualSource, monitor: Monitor
) -> None:
    source.signal("critical")
    seen: list[str] = []
    monitor.subscribe(lambda event: seen.append(event.level))
    eventually(lambda: seen == ["critical"])


def test_several_sources_of_one_moment_are_one_event() -> None:
    sources = [ManualSource(name) for name in ("a", "b", "c")]
    seen: list[PressureEvent] = []
    for one, level in zip(sources, ("low", "critical", "medium"), strict=True):
        one.signal(level)
    with Monitor(sources=sources) as monitor:
        monitor.subscribe(seen.append)
        eventually(lambda: sum(event.signals for event in seen) == 3)
        assert (seen[0].level, seen[0].detail, seen[0].signals) == ("critical", "b", 3)
        stats = monitor.stats()
        assert (stats.events, stats.signals) == (1, 3)
        assert stats.by_level == {"low": 0, "medium": 0, "critical": 1}
        assert stats.by_source == {"manual": 3}


@pytest.mark.parametrize("error", [ValueError("planted"), SystemExit(3), KeyboardInterrupt()])
def test_exceptions_are_logged_and_counted_and_stop_nothing(
    source: ManualSource,
    monitor: Monitor,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    seen: list[int] = []

    def fail(event: PressureEvent) -> None:
        raise error

    monitor.subscribe(fail)
    monitor.subscribe(lambda event: seen.append(1))
    with caplog.at_level(logging.ERROR, "pgalloc.pressure"):
        for _ in range(3):
            source.signal()
        eventually(lambda: len(seen) == 3)
    assert (monitor.stats().failures, monitor.stats().callbacks) == (3, 6)
    assert [record.exc_info is not None for record in caplog.records] == [True] * 3
    caplog.clear()  # the records hold the exceptions, and those the frames


def test_unsubscribe_waits_for_a_running_callback_after_which_none_runs(
    source: ManualSource, monitor: Monitor
) -> None:
    entered, let_go = threading.Event(), threading.Event()
    log: list[str] = []

    def callback(event: PressureEvent) -> None:
        log.append("in")
        entered.set()
        assert let_go.wait(TIMEOUT_S)
        log.append("out")

    unsubscribe = monitor.subscribe(callback)
    other: list[int] = []
    monitor.subscribe(lambda event: other.append(1))
    source.signal()
    source.signal()
    assert entered.wait(TIMEOUT_S)
    stoppers = [threading.Thread(target=unsubscribe) for _ in range(3)]
    for stopper in stoppers:
        stopper.start()
    waits = "Subscribers.remove"
    eventually(lambda: all(is_inside(one, waits) for one in stoppers), "unsubscribe()'s waiting")
    let_go.set()
    join(stoppers)
    assert log == ["in", "out"]
    eventually(lambda: len(other) == 2)
    assert log == ["in", "out"]
    unsubscribe()
    assert monitor.stats().subscribers == 1


def test_unsubscribing_one_does_not_wait_for_another(
    source: ManualSource, monitor: Monitor
) -> None:
    entered, let_go = threading.Event(), threading.Event()
    monitor.subscribe(lambda event: (entered.set(), let_go.wait(TIMEOUT_S)))
    unsubscribe = monitor.subscribe(lambda event: None)
    source.signal()
    assert entered.wait(TIMEOUT_S)
    unsubscribe()
    let_go.set()


def test_unsubscribe_from_callbacks(source: ManualSource, monitor: Monitor) -> None:
    log: list[str] = []

    def first(event: PressureEvent) -> None:
        log.append("first")
        unsubscribes[0]()
        unsubscribes[0]()
        unsubscribes[1]()  # whose turn would be next

    unsubscribes = [monitor.subscribe(first)]
    unsubscribes.append(monitor.subscribe(lambda event: log.append("second")))
    monitor.subscribe(lambda event: log.append("third"))
    source.signal()
    source.signal()
    eventually(lambda: log.count("third") == 2)
    assert log == ["first", "third", "third"]


def test_subscribe_from_a_callback(source: ManualSource, monitor: Monitor) -> None:
    log: list[str] = []

    def first(event: PressureEvent) -> None:
        unsubscribe()
        monitor.subscribe(lambda event: log.append("new"))

    unsubscribe = monitor.subscribe(first)
    source.signal()
    source.signal()
    eventually(lambda: log == ["new"])


def test_races_of_subscribing_and_unsubscribing(source: ManualSource, monitor: Monitor) -> None:
    """Row N2 under load: no callback runs after its unsubscribe() returned."""
    late: list[int] = []
    errors: list[BaseException] = []
    caught = 0  # callbacks that ran when they were unsubscribed
    aim = Aim(lambda: caught >= 100 or errors, "unsubscribing callbacks that run")

    def work(seed: int) -> None:
        nonlocal caught
        pause = random.Random(seed)
        try:
            while aim.goes_on():
                calls, inside, over = 0, False, False

                def callback(event: PressureEvent) -> None:
                    nonlocal calls, inside
                    calls, inside = calls + 1, True
                    os.sched_yield()
                    if over:  # noqa: B023
                        late.append(1)
                    inside = False

                unsubscribe = monitor.subscribe(callback)
                wanted = pause.randrange(3)
                while calls < wanted and aim.goes_on():
                    os.sched_yield()
                caught += inside
                unsubscribe()
                over = True
        except BaseException as error:
            errors.append(error)

    def signal() -> None:
        for number in itertools.count(1):
            source.signal()
            while monitor.stats().events < number:
                if not aim.goes_on():
                    return
                os.sched_yield()

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    pump = threading.Thread(target=signal)
    for thread in (pump, *workers):
        thread.start()
    join([*workers, pump])
    assert errors == []
    assert late == []
    aim.assert_hit()
    assert monitor.stats().subscribers == 0
    assert monitor.stats().callbacks > 0


# --- the end -------------------------------------------------------------------------------------


def test_close_waits_for_a_running_callback_after_which_none_runs(source: ManualSource) -> None:
    entered, let_go = threading.Event(), threading.Event()
    log: list[str] = []
    monitor = Monitor(sources=[source])

    def callback(event: PressureEvent) -> None:
        entered.set()
        assert let_go.wait(TIMEOUT_S)
        log.append("out")

    monitor.subscribe(callback)
    monitor.subscribe(lambda event: log.append("second"))
    source.signal()
    source.signal()
    assert entered.wait(TIMEOUT_S)
    closers = [threading.Thread(target=monitor.close) for _ in range(3)]
    for closer in closers:
        closer.start()
    eventually(lambda: all(is_inside(one, "Thread.join") for one in closers), "close()'s waiting")
    let_go.set()
    join(closers)
    assert log == ["out"]
    assert threads() == 0
    assert source.fd == -1
    monitor.close()


def test_close_from_a_callback(source: ManualSource, native: FakeGuard) -> None:
    log: list[str] = []
    monitor = Monitor(sources=[source])

    def callback(event: PressureEvent) -> None:
        monitor.close()
        monitor.close()
        log.append("closed")

    unsubscribe = monitor.subscribe(callback)
    monitor.subscribe(lambda event: log.append("too late"))
    source.signal()
    eventually(lambda: source.fd == -1)
    eventually(lambda: threads() == 0)
    assert log == ["closed"]
    assert native.headrooms == {}
    unsubscribe()
    monitor.close()


def test_a_closed_monitor_refuses(monitor: Monitor) -> None:
    unsubscribe = monitor.subscribe(lambda event: None)
    monitor.close()
    unsubscribe()
    for call in (lambda: monitor.subscribe(print), monitor.events, monitor.info, monitor.__enter__):
        with pytest.raises(ClosedError):
            call()  # type: ignore[operator]
    assert monitor.stats().subscribers == 0


def test_closing_without_ever_subscribing_closes_the_sources(source: ManualSource) -> None:
    Monitor(sources=[source]).close()
    assert source.fd == -1


def test_nothing_to_watch_is_an_error_of_subscribing(source: ManualSource) -> None:
    with Monitor(sources=[]) as monitor:
        with pytest.raises(NoPressureSourceError):
            monitor.subscribe(print)
        with pytest.raises(NoPressureSourceError):
            monitor.events()
        assert monitor.stats().subscribers == 0
    source.close()
    with Monitor(sources=[source]) as monitor, pytest.raises(NoPressureSourceError):
        monitor.subscribe(print)


def test_a_thread_that_cannot_start_leaves_no_subscription(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: watcher.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(watcher.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="start"):
            monitor.subscribe(print)
    assert monitor.stats().subscribers == 0


class Failing(PressureSource):
    """A source whose cgroup disappears at the first signal."""

    def __init__(self, error: Exception) -> None:
        self.name, self._error = "failing", error
        self.fd = os.eventfd(1)

    def take(self, revents: int) -> bool:
        raise self._error


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), ValueError("planted")])
def test_a_source_that_fails_is_dropped_and_the_others_go_on(
    source: ManualSource, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    failing = Failing(error)
    with Monitor(sources=[failing, source]) as monitor:
        seen: list[int] = []
        monitor.subscribe(lambda event: seen.append(1))
        eventually(lambda: monitor.stats().dropped_sources == 1)
        assert "no more pressure signals from failing" in caplog.text
        assert failing.fd == -1
        assert monitor.info().sources == ("manual",)
        source.signal()
        eventually(lambda: seen == [1])


def test_a_forgotten_monitor_ends_its_thread(native: FakeGuard) -> None:
    source = ManualSource()

    class Owner:
        """Refers to the monitor, and the monitor to it."""

        def __init__(self) -> None:
            self.monitor = Monitor("50%", sources=[source])
            self.unsubscribe = self.monitor.subscribe(self.on_pressure)

        def on_pressure(self, event: PressureEvent) -> None:
            pass

    owner = Owner()
    gone = weakref.ref(owner.monitor)
    source.signal()
    eventually(lambda stats=owner.monitor.stats: stats().callbacks > 0)
    assert threads() == 1
    unsubscribe = owner.unsubscribe
    del owner
    eventually(lambda: gc.collect() >= 0 and gone() is None)
    eventually(lambda: threads() == 0)
    eventually(lambda: source.fd == -1)
    assert native.headrooms == {}
    unsubscribe()


def test_a_monitor_forgotten_during_its_own_callback() -> None:
    source = ManualSource()
    holder = [Monitor(sources=[source])]
    holder[0].subscribe(lambda event: holder.clear())
    source.signal()
    eventually(lambda: source.fd == -1)
    eventually(lambda: threads() == 0)


def test_without_subscribers_forgetting_closes_the_sources(native: FakeGuard) -> None:
    source = ManualSource()
    Monitor(sources=[source])
    assert source.fd == -1
    assert native.headrooms == {}


# --- the sources of this machine -----------------------------------------------------------------


def test_a_crossing_of_the_guard_is_an_event(native: FakeGuard) -> None:
    seen: list[PressureEvent] = []
    with Monitor() as monitor:
        monitor.subscribe(lambda event: event.source == "guard" and seen.append(event))
        assert monitor.info().sources[0] == "the native guard"
        native.cross("critical")
        eventually(lambda: len(seen) == 1)
        assert seen[0].level == "critical"
    assert native.watched == []


def test_the_default_monitor_is_shared_and_goes_with_its_last_user(native: FakeGuard) -> None:
    one, two = default_monitor(), default_monitor()
    assert one is two
    assert list(native.headrooms.values()) == [(0.1, 0)]
    seen: list[int] = []
    two.subscribe(lambda event: seen.append(1))
    native.cross()
    eventually(lambda: len(seen) >= 1)
    del one, two
    eventually(lambda: threads() == 0)
    assert native.headrooms == {}
    monitor = default_monitor()
    monitor.close()
    assert default_monitor() is not monitor


def test_info_has_limits_and_guard(monitor: Monitor) -> None:
    found = monitor.info()
    assert found.pressure.machine_total > 0
    assert (found.guard.level, found.guard.levels[0].directory) == ("none", "/cg")
    assert (found.guard.available, found.guard.headroom) == (123, 10)
    assert found.sources == ()
    monitor.subscribe(print)
    assert monitor.info().sources == ("manual",)


END_OF_A_PROGRAM = """
import logging, os, sys, threading, time
import pgalloc
from pgalloc.pressure import ManualSource, Monitor, default_monitor
logging.basicConfig(level=logging.WARNING)
source = ManualSource()
monitors = [Monitor(sources=[source]), Monitor(), default_monitor()]
heard = threading.Event()
for monitor in monitors:
    monitor.subscribe(lambda event: heard.set())
stream = monitors[0].events()
source.signal()
assert heard.wait(10)
mf = pgalloc.MemoryFile(use_host_memcg_pressure=True)
source.signal()
print("end")
"""


def test_a_program_ends_without_closing_anything() -> None:
    for _ in range(3):
        run = subprocess.run(
            [sys.executable, "-X", "dev", "-c", END_OF_A_PROGRAM],
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )
        assert (run.returncode, run.stdout, run.stderr) == (0, "end\n", "")


# --- what is written about it --------------------------------------------------------------------


def test_the_examples_of_the_manual_run(native: FakeGuard) -> None:
    manual = Path(__file__).parents[2] / "docs/pressure.md"
    tour, testing = re.findall(r"```python\n(.*?)```", manual.read_text(), re.DOTALL)
    printed = io.StringIO()
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(printed):
        exec(compile(tour, str(manual), "exec"), names)
        native.cross("critical")
        eventually(lambda: "critical guard" in printed.getvalue())
        names["monitor"].close()
    heard: list[PressureEvent] = []
    names = {"cache": SimpleNamespace(shrink=heard.append)}
    exec(compile(testing, str(manual), "exec"), names)
    names["test_shrinks"]()
    assert len(heard) <= 1  # it closes at once
