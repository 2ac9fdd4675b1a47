"""The Monitor: callbacks and streams, on sources that are signalled by hand and a fake guard."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_guard import FakeGuard, fake_guard

import pgalloc
from pgalloc import ClosedError, ForkedError, OptionError, RangeError, fork
from pgalloc.pressure import (
    EventStream,
    Level,
    ManualSource,
    Monitor,
    NoPressureSourceError,
    PressureEvent,
    PressureSource,
    default_monitor,
    discovery,
)

WAIT_S = 10.0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.001)


def threads() -> int:
    return sum(thread.name == "pgalloc-pressure" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGuard]:
    with fake_guard(monkeypatch) as fake:
        yield fake


@pytest.fixture
def source() -> ManualSource:
    return ManualSource()


@pytest.fixture
def monitor(source: ManualSource) -> Iterator[Monitor]:
    with Monitor(sources=[source]) as monitor:
        yield monitor
    assert monitor.closed


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
        assert threads() == 0  # nobody has subscribed
    assert native.headrooms == {}


def test_bad_headroom_and_bad_sources_leave_nothing(
    native: FakeGuard, source: ManualSource
) -> None:
    bad: list[tuple[Any, type[Exception]]] = [
        ("ten", OptionError),
        ("100%", RangeError),
        (-1, RangeError),
        (0.1, TypeError),
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
    wait_for(lambda: len(seen) == 6)
    assert [name for name, _ in seen] == ["low", "second", "critical", "second", "medium", "second"]
    assert {thread.name for _, thread in seen} == {"pgalloc-pressure"}
    assert all(thread.daemon for _, thread in seen)


def test_an_event_says_where_it_comes_from(
    native: FakeGuard, source: ManualSource, monitor: Monitor
) -> None:
    seen: list[PressureEvent] = []
    monitor.subscribe(seen.append)
    source.signal("medium")
    wait_for(lambda: len(seen) == 1)
    assert seen == [PressureEvent("medium", "manual", "manual", 123, 1)]
    with pytest.raises(AttributeError):
        seen[0].level = "low"  # type: ignore[misc]
    native.available = None
    source.signal()
    wait_for(lambda: len(seen) == 2)
    assert (seen[1].headroom or 0) > 0  # from the files of this machine


def test_levels_and_above(source: ManualSource, monitor: Monitor) -> None:
    seen: dict[Level, list[str]] = {"low": [], "medium": [], "critical": []}
    for level, events in seen.items():
        monitor.subscribe(lambda event, events=events: events.append(event.level), level)
    for level in ("critical", "medium", "low"):
        source.signal(level)
    wait_for(lambda: len(seen["low"]) == 3)
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
    wait_for(lambda: seen == ["critical"])


def test_several_sources_of_one_moment_are_one_event() -> None:
    sources = [ManualSource(name) for name in ("a", "b", "c")]
    seen: list[PressureEvent] = []
    for source, level in zip(sources, ("low", "critical", "medium"), strict=True):
        source.signal(level)
    with Monitor(sources=sources) as monitor:
        monitor.subscribe(seen.append)
        wait_for(lambda: sum(event.signals for event in seen) == 3)
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
        wait_for(lambda: len(seen) == 3)
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
        assert let_go.wait(WAIT_S)
        log.append("out")

    unsubscribe = monitor.subscribe(callback)
    other: list[int] = []
    monitor.subscribe(lambda event: other.append(1))
    source.signal()
    source.signal()
    assert entered.wait(WAIT_S)
    stoppers = [threading.Thread(target=unsubscribe) for _ in range(3)]
    for stopper in stoppers:
        stopper.start()
    time.sleep(0.05)
    assert all(stopper.is_alive() for stopper in stoppers)
    let_go.set()
    for stopper in stoppers:
        stopper.join(WAIT_S)
    assert log == ["in", "out"]
    wait_for(lambda: len(other) == 2)
    assert log == ["in", "out"]
    unsubscribe()
    assert monitor.stats().subscribers == 1


def test_unsubscribing_one_does_not_wait_for_another(
    source: ManualSource, monitor: Monitor
) -> None:
    entered, let_go = threading.Event(), threading.Event()
    monitor.subscribe(lambda event: (entered.set(), let_go.wait(WAIT_S)))
    unsubscribe = monitor.subscribe(lambda event: None)
    source.signal()
    assert entered.wait(WAIT_S)
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
    wait_for(lambda: log.count("third") == 2)
    assert log == ["first", "third", "third"]


def test_subscribe_from_a_callback(source: ManualSource, monitor: Monitor) -> None:
    log: list[str] = []

    def first(event: PressureEvent) -> None:
        unsubscribe()
        monitor.subscribe(lambda event: log.append("new"))

    unsubscribe = monitor.subscribe(first)
    source.signal()
    source.signal()
    wait_for(lambda: log == ["new"])


def test_races_of_subscribing_and_unsubscribing(source: ManualSource, monitor: Monitor) -> None:
    """Row N2 under load: no callback runs after its unsubscribe() returned."""
    late: list[int] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def work(seed: int) -> None:
        try:
            pause = random.Random(seed)
            for _ in range(100):
                over = False

                def callback(event: PressureEvent) -> None:
                    time.sleep(0)
                    if over:  # noqa: B023
                        late.append(1)

                unsubscribe = monitor.subscribe(callback)
                time.sleep(pause.random() * 0.002)
                unsubscribe()
                over = True
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    pump = threading.Thread(target=lambda: [signal_slowly() for _ in iter(done.is_set, True)])

    def signal_slowly() -> None:
        source.signal()
        time.sleep(0.0005)

    for thread in (pump, *workers):
        thread.start()
    for worker in workers:
        worker.join(50)
    done.set()
    pump.join(WAIT_S)
    assert errors == []
    assert late == []
    assert monitor.stats().subscribers == 0
    assert monitor.stats().callbacks > 0


# --- the end -------------------------------------------------------------------------------------


def test_close_waits_for_a_running_callback_after_which_none_runs(source: ManualSource) -> None:
    entered, let_go = threading.Event(), threading.Event()
    log: list[str] = []
    monitor = Monitor(sources=[source])

    def callback(event: PressureEvent) -> None:
        entered.set()
        assert let_go.wait(WAIT_S)
        log.append("out")

    monitor.subscribe(callback)
    monitor.subscribe(lambda event: log.append("second"))
    source.signal()
    source.signal()
    assert entered.wait(WAIT_S)
    closers = [threading.Thread(target=monitor.close) for _ in range(3)]
    for closer in closers:
        closer.start()
    time.sleep(0.05)
    assert all(closer.is_alive() for closer in closers)
    let_go.set()
    for closer in closers:
        closer.join(WAIT_S)
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
    wait_for(lambda: source.fd == -1)
    wait_for(lambda: threads() == 0)
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
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
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
        wait_for(lambda: monitor.stats().dropped_sources == 1)
        assert "no more pressure signals from failing" in caplog.text
        assert failing.fd == -1
        assert monitor.info().sources == ("manual",)
        source.signal()
        wait_for(lambda: seen == [1])


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
    deadline = time.monotonic() + WAIT_S
    while owner.monitor.stats().callbacks == 0:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert threads() == 1
    unsubscribe = owner.unsubscribe
    del owner
    wait_for(lambda: gc.collect() >= 0 and gone() is None)
    wait_for(lambda: threads() == 0)
    wait_for(lambda: source.fd == -1)
    assert native.headrooms == {}
    unsubscribe()


def test_a_monitor_forgotten_during_its_own_callback() -> None:
    source = ManualSource()
    holder = [Monitor(sources=[source])]
    holder[0].subscribe(lambda event: holder.clear())
    source.signal()
    wait_for(lambda: source.fd == -1)
    wait_for(lambda: threads() == 0)


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
        wait_for(lambda: len(seen) == 1)
        assert seen[0].level == "critical"
    assert native.watched == []


def test_the_default_monitor_is_shared_and_goes_with_its_last_user(native: FakeGuard) -> None:
    one, two = default_monitor(), default_monitor()
    assert one is two
    assert list(native.headrooms.values()) == [(0.1, 0)]
    seen: list[int] = []
    two.subscribe(lambda event: seen.append(1))
    native.cross()
    wait_for(lambda: len(seen) >= 1)
    del one, two
    wait_for(lambda: threads() == 0)
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


# --- async ---------------------------------------------------------------------------------------


def test_async_for(source: ManualSource, monitor: Monitor) -> None:
    async def main() -> list[str]:
        levels: list[str] = []
        stream = monitor.events("medium")
        for level in ("low", "medium", "critical"):
            source.signal(level)
            async with asyncio.timeout(WAIT_S):
                if level != "low":
                    levels.append((await anext(stream)).level)
        return levels

    assert asyncio.run(main()) == ["medium", "critical"]


def test_async_slow_consumers_get_one_event_for_many(
    source: ManualSource, monitor: Monitor
) -> None:
    async def main() -> PressureEvent:
        stream = monitor.events()
        for level in ("low", "critical", "medium"):
            source.signal(level)
        wait_for(lambda: monitor.stats().events == 3)
        async with asyncio.timeout(WAIT_S):
            event = await anext(stream)
            waiter = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
            await asyncio.sleep(0.02)
            assert not waiter.done()
            waiter.cancel()
        return event

    event = asyncio.run(main())
    assert (event.level, event.signals) == ("critical", 3)


def test_async_several_streams_and_two_loops(source: ManualSource, monitor: Monitor) -> None:
    counts: list[int] = []

    async def read(stream: EventStream) -> int:
        count = 0
        async with asyncio.timeout(WAIT_S):
            async for event in stream:
                count += event.signals
                if count == 50:
                    return count
        return count

    async def main() -> None:
        counts.extend(await asyncio.gather(*[read(monitor.events()) for _ in range(3)]))

    loops = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(2)]
    for loop in loops:
        loop.start()
    wait_for(lambda: monitor.stats().subscribers == 6)
    for _ in range(50):
        source.signal()
    for loop in loops:
        loop.join(WAIT_S)
    assert counts == [50] * 6
    gc.collect()
    assert monitor.stats().subscribers == 0


@pytest.mark.parametrize("ending", ["monitor", "stream"])
def test_async_the_loop_ends_with_its_monitor_or_its_stream(
    source: ManualSource, ending: str
) -> None:
    monitor = Monitor(sources=[source])

    async def main() -> None:
        stream = monitor.events()
        end = monitor.close if ending == "monitor" else stream.close
        asyncio.get_running_loop().run_in_executor(None, lambda: (time.sleep(0.05), end()))
        async with asyncio.timeout(WAIT_S):
            async for _ in stream:
                pytest.fail("there was no pressure")
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await stream.aclose()

    asyncio.run(main())
    monitor.close()


def test_async_breaking_out_leaves_nothing(source: ManualSource, monitor: Monitor) -> None:
    async def main() -> None:
        for _ in range(100):
            source.signal()
            async with asyncio.timeout(WAIT_S):
                async for _ in monitor.events():
                    break
            assert monitor.stats().subscribers == 0

    asyncio.run(main())
    source.signal()
    wait_for(lambda: monitor.stats().events == 101)
    assert len(monitor._subscriptions) == 0


def test_async_a_cancelled_wait_loses_no_event(source: ManualSource, monitor: Monitor) -> None:
    async def main() -> str:
        stream = monitor.events()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)  # type: ignore[arg-type]
        source.signal("critical")
        async with asyncio.timeout(WAIT_S):
            return (await anext(stream)).level

    assert asyncio.run(main()) == "critical"


def test_async_two_tasks_on_one_stream_is_an_error(monitor: Monitor) -> None:
    async def main() -> None:
        stream = monitor.events()
        first = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task"):
            await anext(stream)
        first.cancel()

    asyncio.run(main())


def test_async_a_loop_that_was_closed_hurts_nobody(source: ManualSource, monitor: Monitor) -> None:
    loop = asyncio.new_event_loop()
    stream = monitor.events()
    step = stream.__anext__()
    with contextlib.closing(loop):
        asyncio.set_event_loop(loop)
        task = loop.create_task(step)  # type: ignore[arg-type]
        loop.run_until_complete(asyncio.sleep(0))
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    asyncio.set_event_loop(None)
    source.signal()
    wait_for(lambda: monitor.stats().events == 1)
    del task, step
    gc.collect()
    assert asyncio.run(asyncio.wait_for(anext(stream), WAIT_S)).signals == 1  # type: ignore[arg-type]


def test_import_needs_no_asyncio() -> None:
    look = (
        "import sys, pgalloc, pgalloc.pressure; "
        "assert 'asyncio' not in sys.modules; "
        "third = {'numpy', 'click', 'rich'} & set(sys.modules); assert not third, third"
    )
    subprocess.run([sys.executable, "-c", look], check=True, timeout=60)


# --- forks ---------------------------------------------------------------------------------------


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


def test_forks_with_a_running_monitor(source: ManualSource, monitor: Monitor) -> None:
    seen: list[int] = []
    unsubscribe = monitor.subscribe(lambda event: seen.append(1))
    stream = monitor.events()
    fd = source.fd

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
        alone = threading.active_count() == 1
        return refused == 3 and alone and not os.path.exists(f"/proc/self/fd/{fd}")

    for round_number in range(1, 21):
        assert in_child(child) == 0
        source.signal()
        wait_for(lambda: len(seen) == round_number)  # noqa: B023


def test_a_child_can_have_monitors_of_its_own(source: ManualSource, monitor: Monitor) -> None:
    monitor.subscribe(print)

    def child() -> bool:
        mine = ManualSource()
        seen: list[int] = []
        with Monitor(sources=[mine]) as own:
            own.subscribe(lambda event: seen.append(1))
            mine.signal()
            wait_for(lambda: seen == [1])
        return default_monitor() is not monitor

    assert in_child(child) == 0


def test_a_callback_may_fork(source: ManualSource, monitor: Monitor) -> None:
    statuses: list[int] = []
    monitor.subscribe(lambda event: statuses.append(in_child(lambda: monitor.close() is None)))
    for count in (1, 2):
        source.signal()
        wait_for(lambda: len(statuses) == count)  # noqa: B023
    assert statuses == [0, 0]


def test_a_child_that_returns_from_the_callback_ends(
    source: ManualSource, monitor: Monitor
) -> None:
    """It has the thread's stack, and nothing else to go on with."""
    pids: list[int] = []
    monitor.subscribe(lambda event: pids.append(os.fork()))
    source.signal()
    wait_for(lambda: len(pids) == 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
    source.signal()
    wait_for(lambda: len(pids) == 2)
    assert os.waitstatus_to_exitcode(os.waitpid(pids[1], 0)[1]) == 0


def test_a_fork_does_not_wait_for_ever_for_a_callback(
    source: ManualSource, monitor: Monitor
) -> None:
    """A callback that needs what the forking thread holds: it goes on beside the fork."""
    held, entered = threading.Lock(), threading.Event()
    seen: list[int] = []

    def callback(event: PressureEvent) -> None:
        entered.set()
        with held:
            seen.append(1)

    monitor.subscribe(callback)
    with held:
        source.signal()
        assert entered.wait(WAIT_S)
        assert in_child(lambda: monitor.stats().subscribers == 0) == 0
        assert threads() == 1
    wait_for(lambda: seen == [1])
    source.signal()
    wait_for(lambda: seen == [1, 1])
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
    wait_for(lambda: seen == ["critical"])


def test_a_monitor_made_between_the_halves_of_a_fork(source: ManualSource) -> None:
    with Monitor(sources=[source]) as monitor:
        seen: list[int] = []
        monitor.subscribe(lambda event: seen.append(1))
        monitor.resume()  # it was never parked
        monitor.park()
        assert threads() == 0
        monitor.resume()
        source.signal()
        wait_for(lambda: seen == [1])


def test_monitors_are_parked_around_forks(monitor: Monitor) -> None:
    assert monitor in fork._parkables


def test_the_module_of_all_this_is_public() -> None:
    assert pgalloc.pressure.Monitor is Monitor
    assert ManualSource.poll_mask == select.POLLIN
    assert discovery.Candidate.__doc__
