"""What a Monitor tells: events, and the streams that ``async for`` reads them from.

Thread safety: a stream is filled by the monitor's thread and read by tasks of one event loop. Its
lock may be taken again by its owner, because finalizers may run anywhere.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from pgalloc.pressure.signals import LEVELS, Level
from pgalloc.uncopyable import Uncopyable
from pgalloc.unpatched import rlock

if TYPE_CHECKING:
    import asyncio


@dataclass(frozen=True, slots=True)
class PressureEvent:
    """Memory is short.

    Attributes:
        level: "low", "medium" or "critical": the most severe of what was merged into this event.
        source: the kind of source that said so: "guard", "v1", "v2", "psi", "systemd", "manual".
        detail: that source in words.
        headroom: bytes that could still be committed when this was made; None if unknown.
        signals: how many wake-ups of sources this stands for.
    """

    level: Level
    source: str
    detail: str = ""
    headroom: int | None = None
    signals: int = 1


def is_at_least(event: PressureEvent, level: Level) -> bool:
    """Whether an event concerns subscribers to ``level``."""
    return LEVELS.index(event.level) >= LEVELS.index(level)


def merge(earlier: PressureEvent, later: PressureEvent) -> PressureEvent:
    """One event for two: the more severe one, with the later one's headroom."""
    worse = later if is_at_least(later, earlier.level) else earlier
    return replace(worse, headroom=later.headroom, signals=earlier.signals + later.signals)


class Mailbox:
    """Room for one event between the monitor's thread and a stream.

    Invariants:
      1. What is not taken in time is merged into one event, so that nothing piles up.
      2. Once ended, nothing is handed out.
      3. It knows neither the stream nor the monitor: a stream that is forgotten can go.
    """

    def __init__(self, level: Level) -> None:
        self.level = level
        self._lock = rlock()
        self._event: PressureEvent | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether it has no reader any more, or will not be filled any more."""
        return self._ended

    def put(self, event: PressureEvent) -> None:
        """Leaves an event and wakes the reader."""
        with self._lock:
            if not self._ended:
                self._event = event if self._event is None else merge(self._event, event)
                self._wake()

    def end(self) -> None:
        """Ends it for both sides; harmless when repeated."""
        with self._lock:
            self._ended = True
            self._event = None
            self._wake()

    def reset_in_child(self) -> None:
        """In a forked child: ends it without waking the reader, which is the parent's."""
        self._lock = rlock()
        self._ended = True
        self._event = self._waiter = None

    async def take(self) -> PressureEvent:
        """Waits for an event. StopAsyncIteration at the end; RuntimeError if another task waits."""
        import asyncio  # the caller has done so already; pgalloc itself does not need it

        loop = asyncio.get_running_loop()
        while True:
            with self._lock:
                if self._ended:
                    raise StopAsyncIteration
                if self._event is not None:
                    event, self._event = self._event, None
                    return event
                if self._waiter is not None:
                    raise RuntimeError("another task waits for this stream of pressure events")
                waiter = self._waiter = loop.create_future()
            try:
                await waiter
            finally:
                with self._lock:
                    self._waiter = None

    def _wake(self) -> None:
        """REQUIRES: the lock."""
        if self._waiter is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, with its task
                self._waiter.get_loop().call_soon_threadsafe(_resolve, self._waiter)


class EventStream(Uncopyable):
    """An asynchronous iterator over the events of a Monitor: ``Monitor.events()``.

    It ends when the monitor closes or :meth:`close` is called. After breaking out of the loop there
    is nothing to do: a stream without references is gone. It may be read in any event loop,
    by one task at a time.
    """

    _instead_of_copying = "call Monitor.events() again"

    def __init__(self, mailbox: Mailbox, monitor: object) -> None:
        if not isinstance(mailbox, Mailbox):
            raise TypeError("an EventStream comes from Monitor.events()")
        self._mailbox = mailbox
        self._monitor = monitor  # which is in use as long as this is read
        self._finalizer = weakref.finalize(self, mailbox.end)
        self._finalizer.atexit = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> PressureEvent:
        return await self._mailbox.take()

    def close(self) -> None:
        """Ends the stream; a task that waits for it goes on after its loop."""
        self._mailbox.end()

    async def aclose(self) -> None:
        """As :meth:`close`, for ``contextlib.aclosing``."""
        self.close()


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


Callback = Callable[[PressureEvent], object]
