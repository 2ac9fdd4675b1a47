"""Events of a Monitor for ``async for``, in one loop and in several."""

# ruff: noqa: F811

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading

import pytest
from pressure_by_hand import monitor, native, source, threads  # noqa: F401
from waiting import TIMEOUT_S, eventually, join

from pgalloc.pressure import (
    EventStream,
    ManualSource,
    Monitor,
    PressureEvent,
)


def test_async_for(source: ManualSource, monitor: Monitor) -> None:
    async def main() -> list[str]:
        levels: list[str] = []
        stream = monitor.events("medium")
        for level in ("low", "medium", "critical"):
            source.signal(level)
            async with asyncio.timeout(TIMEOUT_S):
                if level != "low":
                    levels.append((await anext(stream)).level)
        return levels

    assert asyncio.run(main()) == ["medium", "critical"]


def test_async_slow_consumers_get_one_event_for_many(
    source: ManualSource, monitor: Monitor
) -> None:
    async def main() -> PressureEvent:
        stream = monitor.events()
        told: list[PressureEvent] = []
        monitor.subscribe(told.append)  # after the stream
        for level in ("low", "critical", "medium"):
            source.signal(level)
        eventually(lambda: len(told) == 3)
        async with asyncio.timeout(TIMEOUT_S):
            event = await anext(stream)
            source.signal("low")
            assert (await anext(stream)).signals == 1
        return event

    event = asyncio.run(main())
    assert (event.level, event.signals) == ("critical", 3)


def test_async_several_streams_and_two_loops(source: ManualSource, monitor: Monitor) -> None:
    counts: list[int] = []

    async def read(stream: EventStream) -> int:
        count = 0
        async with asyncio.timeout(TIMEOUT_S):
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
    eventually(lambda: monitor.stats().subscribers == 6)
    for _ in range(50):
        source.signal()
    join(loops)
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

        def end_when_it_waits() -> None:
            eventually(lambda: stream._mailbox._waiter is not None, "waiting")
            end()

        asyncio.get_running_loop().run_in_executor(None, end_when_it_waits)
        async with asyncio.timeout(TIMEOUT_S):
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
            async with asyncio.timeout(TIMEOUT_S):
                async for _ in monitor.events():
                    break
            assert monitor.stats().subscribers == 0

    asyncio.run(main())
    source.signal()
    eventually(lambda: monitor.stats().events == 101)
    assert len(monitor._subscribers._all) == 0


def test_async_a_cancelled_wait_loses_no_event(source: ManualSource, monitor: Monitor) -> None:
    async def main() -> str:
        stream = monitor.events()
        task = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
        await asyncio.sleep(0)  # time: none, the task begins
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        source.signal("critical")
        async with asyncio.timeout(TIMEOUT_S):
            return (await anext(stream)).level

    assert asyncio.run(main()) == "critical"


def test_async_two_tasks_on_one_stream_is_an_error(monitor: Monitor) -> None:
    async def main() -> None:
        stream = monitor.events()
        first = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
        await asyncio.sleep(0)  # time: none, the task begins
        with pytest.raises(RuntimeError, match="another task"):
            await anext(stream)
        first.cancel()

    asyncio.run(main())


def test_async_a_loop_that_was_closed_does_no_harm(source: ManualSource, monitor: Monitor) -> None:
    loop = asyncio.new_event_loop()
    stream = monitor.events()
    step = stream.__anext__()
    with contextlib.closing(loop):
        asyncio.set_event_loop(loop)
        task = loop.create_task(step)  # type: ignore[arg-type]
        loop.run_until_complete(asyncio.sleep(0))  # time: none, the task begins
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    asyncio.set_event_loop(None)
    source.signal()
    eventually(lambda: monitor.stats().events == 1)
    del task, step
    gc.collect()
    assert asyncio.run(asyncio.wait_for(anext(stream), TIMEOUT_S)).signals == 1  # type: ignore[arg-type]


def test_import_needs_no_asyncio() -> None:
    look = (
        "import sys, pgalloc, pgalloc.pressure; "
        "assert 'asyncio' not in sys.modules; "
        "third = {'numpy', 'click', 'rich'} & set(sys.modules); assert not third, third"
    )
    subprocess.run([sys.executable, "-c", look], check=True, timeout=60)
