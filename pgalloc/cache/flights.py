"""Results that are being computed: one caller computes, the others wait for its result.

Thread safety: any thread, task and event loop; no lock is held but a flight's own. A flight is a
computation of one key, led by the caller that came first.

Invariants:
  1. A flight's lock is held exactly as long as it is led. Whatever ends its leader (a signal
     handler, a cancelled task) lets go of the lock, and one of those who wait leads the next.
  2. No computation waits for itself, by whatever others: it computes anew instead.
  3. An event loop that has stopped keeps no caller in another one waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from pgalloc import _core
from pgalloc.cache.keys import Key

MISSING: Any = object()
_LOOK_S = 1.0  # how often a task looks whether the loop of another one still runs


class _Work:
    """A computation, and those that it waits for."""

    __slots__ = ("waits_for",)

    def __init__(self) -> None:
        self.waits_for: set[_Work] = set()

    def needs(self, works: tuple[_Work, ...]) -> bool:
        """Whether it is one of these, or waits for one, directly or not."""
        seen, todo = {self}, [self]
        while todo:
            work = todo.pop()
            if work in works:
                return True
            new = {*work.waits_for} - seen
            seen |= new
            todo.extend(new)
        return False


_under_way: ContextVar[tuple[_Work, ...]] = ContextVar("pgalloc.cached", default=())


class _Flight:
    """A computation that others may wait for."""

    __slots__ = ("error", "has_result", "lock", "loop", "result", "thread", "waiting", "work")

    def __init__(self, loop: Any = None) -> None:
        self.lock = threading.Lock()
        self.work = _Work()
        self.loop = loop
        self.thread = threading.get_ident()
        self.waiting: list[tuple[Any, Any]] = []  # event loops, and futures of theirs
        self.has_result = False
        self.result: Any = None
        self.error: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether there is nothing to wait for (any more)."""
        return not self.lock.locked() or (self.loop is not None and not self.loop.is_running())

    def outcome(self) -> Any:
        """What it computed, or the exception that it raised."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                del self  # the exception knows this frame
        return memoryview(self.result) if type(self.result) is memoryview else self.result

    def wake(self) -> None:
        """Have the tasks that wait look again."""
        for loop, future in self.waiting:
            with suppress(RuntimeError):  # that loop is closed
                loop.call_soon_threadsafe(_wake, future)


def _wake(future: Any) -> None:
    if not future.done():
        future.set_result(None)


@contextmanager
def _computing(work: _Work) -> Iterator[None]:
    with _waiting_for(work):
        token = _under_way.set((*_under_way.get(), work))
        try:
            yield
        finally:
            with suppress(ValueError):  # a task that was thrown away ends in another context
                _under_way.reset(token)


@contextmanager
def _waiting_for(work: _Work) -> Iterator[bool]:
    """Whether what is computed here would wait for itself."""
    above = _under_way.get()
    if not above:
        yield False
        return
    # Known first: of two that begin to wait for each other one at least sees it.
    above[-1].waits_for.add(work)
    try:
        yield work.needs(above)
    finally:
        above[-1].waits_for.discard(work)


class Flights:
    """Those of one function.

    ``look(key)`` is what is kept, or MISSING; ``keep(key, data, store)`` is what callers get.
    """

    def __init__(self, look: Callable[[Key], Any], keep: Callable[[Key, Any, bool], Any]) -> None:
        self._look = look
        self._keep = keep
        self._flights: dict[Key, _Flight] = {}
        self._process = _core.process_generation()

    def forget(self) -> None:
        """Keep nothing of what is being computed now."""
        self._flights.clear()

    def _leave_parents(self) -> None:
        """In a forked child: the threads that lead its parent's flights are not here."""
        if self._process != _core.process_generation():
            self._process = _core.process_generation()
            self._flights = {}

    def run(self, key: Key, compute: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The result of the flight of a key, led here if there is none."""
        self._leave_parents()
        mine: Any = _Flight()
        other = found = None
        try:
            with mine.lock:
                while (other := self._flights.setdefault(key, mine)) is not mine:
                    with _waiting_for(other.work) as would_wait_for_itself:
                        if not other.ended:
                            if would_wait_for_itself or other.thread == mine.thread:
                                return self._keep(key, compute(*args, **kwargs), True)
                            with other.lock:
                                pass
                            if other.has_result:
                                return other.outcome()
                    self._drop(key, other)
                with self._led(key, mine):
                    if (found := self._look(key)) is MISSING:
                        found = self._keep(
                            key, compute(*args, **kwargs), self._flights.get(key) is mine
                        )
                    mine.result, mine.has_result = found, True
                return mine.outcome()
        finally:
            mine = other = found = None  # an exception that it has knows this frame

    async def run_async(
        self, key: Key, compute: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any
    ) -> Any:
        """run() for a coroutine function."""
        import asyncio

        self._leave_parents()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # trio's, say
            return self._keep(key, await compute(*args, **kwargs), True)
        mine: Any = _Flight(loop)
        other = found = None
        try:
            with mine.lock:
                while (other := self._flights.setdefault(key, mine)) is not mine:
                    with _waiting_for(other.work) as would_wait_for_itself:
                        if not other.ended:
                            if would_wait_for_itself:
                                return self._keep(key, await compute(*args, **kwargs), True)
                            future = loop.create_future()
                            other.waiting.append((loop, future))
                            while not other.ended:
                                await asyncio.wait([future], timeout=_LOOK_S)
                            if other.has_result:
                                return other.outcome()
                    self._drop(key, other)
                with self._led(key, mine):
                    if (found := self._look(key)) is MISSING:
                        found = self._keep(
                            key, await compute(*args, **kwargs), self._flights.get(key) is mine
                        )
                    mine.result, mine.has_result = found, True
                return mine.outcome()
        finally:
            mine.wake()
            mine = other = found = None  # an exception that it has knows this frame

    @contextmanager
    def _led(self, key: Key, mine: _Flight) -> Iterator[None]:
        try:
            with _computing(mine.work):
                yield
        except Exception as error:
            mine.error, mine.has_result = error, True
            raise
        finally:
            self._drop(key, mine)
            del mine  # an exception that it has knows this frame

    def _drop(self, key: Key, flight: _Flight) -> None:
        # Between the two another thread may do the same, and begin a flight: then two compute.
        if self._flights.get(key) is flight:
            self._flights.pop(key, None)
