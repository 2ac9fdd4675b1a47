"""The Monitor: tells Python of memory pressure, and the guard how much to keep free.

Thread safety: every method may be called from any thread, from callbacks and from finalizers. The
lock may be taken again by its owner, and is never held while a callback runs.

Invariants:
  1. Callbacks run on one thread, one at a time, in the order of subscription.
  2. After ``unsubscribe()`` or ``close()`` has returned no callback runs that it ended, except the
     one it was called from.
  3. The thread keeps the monitor alive only while it delivers: a monitor that nobody else refers
     to ends its thread, closes its sources and takes back its headroom, also if its own callbacks
     refer to it.
  4. A monitor belongs to the process that made it; in a forked child it is of no use.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, SupportsIndex

from pgalloc import fork
from pgalloc.errors import ClosedError, ForkedError
from pgalloc.pressure import default_guard, discovery, guard
from pgalloc.pressure.events import Callback, EventStream, Mailbox, PressureEvent, is_at_least
from pgalloc.pressure.limits import PressureInfo, info
from pgalloc.pressure.memcg_sources import NoPressureSourceError, close_all
from pgalloc.pressure.signals import LEVELS, Level, PressureSource, checked_level
from pgalloc.pressure.watcher import Signal, Watcher
from pgalloc.sizes import parse_headroom

_log = logging.getLogger("pgalloc.pressure")


@dataclass(frozen=True, slots=True)
class MonitorInfo:
    """What a monitor has to go by; all amounts in bytes.

    Attributes:
        pressure: the limits, looked at now.
        guard: the native guard, which all monitors share.
        headroom_fraction: the part of every limit that this monitor wants free; 0 if it named an
            amount.
        headroom_bytes: the amount that it wants free below every limit; 0 if it named a part.
        sources: what it watches, in words; empty before the first subscription.
    """

    pressure: PressureInfo
    guard: guard.GuardStatus
    headroom_fraction: float
    headroom_bytes: int
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MonitorStats:
    """What a monitor has done since it was made.

    Attributes:
        events: how many events it made; each may stand for several signals.
        signals: wake-ups of sources that were pressure.
        by_level: events of each level.
        by_source: signals of each kind of source.
        callbacks: how many callbacks it ran.
        failures: how many of them raised.
        dropped_sources: sources that failed, and are watched no more.
        subscribers: callbacks and streams that are subscribed now.
    """

    events: int
    signals: int
    by_level: dict[Level, int]
    by_source: dict[str, int]
    callbacks: int
    failures: int
    dropped_sources: int
    subscribers: int


class _Subscription:
    """One subscriber; ``removed`` is final."""

    __slots__ = ("__weakref__", "callback", "level", "mailbox", "removed")

    def __init__(self, level: Level, callback: Callback | None, mailbox: Mailbox | None) -> None:
        self.level, self.callback, self.mailbox = level, callback, mailbox
        self.removed = False

    @property
    def is_alive(self) -> bool:
        return not self.removed and not (self.mailbox is not None and self.mailbox.ended)


class Monitor:
    """Watches everything that can tell of memory pressure, and passes it on.

    While it is open, the native guard keeps ``headroom`` free below every limit of this process, by
    discarding unpinned memory; with several monitors the largest wish counts. Subscribers hear of
    pressure on a thread of this monitor, which starts with the first of them.

    ``headroom`` is "10%" of each limit, or bytes, as an int or as "32M". ``sources`` are the
    sources to watch instead of all that exist here, for tests mostly; they belong to the monitor
    from now on, also if this fails.

    Raises TypeError, OptionError or RangeError for a bad headroom, TypeError for what is no source.
    """

    def __init__(
        self,
        headroom: str | SupportsIndex = default_guard.DEFAULT_HEADROOM,
        *,
        sources: Iterable[PressureSource] | None = None,
    ) -> None:
        given = None if sources is None else list(sources)
        try:
            self._fraction, self._nbytes = parse_headroom(headroom)
            for source in given or ():
                if not isinstance(source, PressureSource):
                    raise TypeError(f"{type(source).__name__} is no PressureSource")
            default_guard.ensure()
            self._open(given)
        except BaseException:
            close_all(source for source in given or () if isinstance(source, PressureSource))
            raise

    def _open(self, given: list[PressureSource] | None) -> None:
        self._pid = os.getpid()
        self._finds_sources = given is None
        self._condition = threading.Condition(threading.RLock())
        # A dict for its order, changed by single steps only: a finalizer may come between.
        self._subscriptions: dict[_Subscription, None] = {}
        self._running: _Subscription | None = None
        self._closed = False
        self._events = self._signals = self._callbacks = self._failures = 0
        self._by_level: dict[Level, int] = dict.fromkeys(LEVELS, 0)
        self._by_source: dict[str, int] = {}
        this = weakref.ref(self)
        self._watcher = Watcher(lambda signals: _deliver(this, signals), given or ())
        token = guard.calls.guard_add_headroom(self._fraction, self._nbytes)
        self._end = weakref.finalize(self, _end, self._watcher, guard.calls, token, self._pid)
        self._end.atexit = False
        fork.register(self)

    # --- subscribers -----------------------------------------------------------------------------

    def subscribe(self, callback: Callback, level: Level = "low") -> Callable[[], None]:
        """Calls ``callback(event)`` for every PressureEvent of that level and above.

        It runs on the monitor's thread; what it raises is logged and counted, and stops nothing.
        Events that come while callbacks run are merged into one for each source.

        Returns ``unsubscribe()``, which waits for the callback if it runs, unless called from it;
        so the caller must not hold a lock that the callback takes. It is harmless when repeated.

        Raises TypeError, ValueError for an unknown level, ClosedError, ForkedError, and
        NoPressureSourceError if there is nothing to watch.
        """
        if not callable(callback):
            raise TypeError(f"callback must be callable, not {type(callback).__name__}")
        subscription = _Subscription(checked_level(level), callback, None)
        self._add(subscription)
        return functools.partial(_unsubscribe, weakref.ref(self), weakref.ref(subscription))

    def events(self, level: Level = "low") -> EventStream:
        """The events of that level and above, for ``async for``, in any asyncio loop.

        Events that come while nobody waits are merged into one. Raises as :meth:`subscribe`, but
        for the callback.
        """
        mailbox = Mailbox(checked_level(level))
        self._add(_Subscription(mailbox.level, None, mailbox))
        return EventStream(mailbox, self)

    def _add(self, subscription: _Subscription) -> None:
        with self._condition:
            self._check_usable()
            self._forget_the_dead()
            self._subscriptions[subscription] = None
        try:
            # Subscribed first: a source may have something to say already.
            if not self._watcher.start(discovery.open_everything if self._finds_sources else None):
                self._check_usable()
                raise NoPressureSourceError(2, "nothing here can signal memory pressure")
        except BaseException:
            self._remove(subscription)
            raise

    def _remove(self, subscription: _Subscription) -> None:
        with self._condition:
            subscription.removed = True
            self._subscriptions.pop(subscription, None)
            if self._watcher.is_current_thread:
                return
            while self._running is subscription:
                self._condition.wait()

    def _forget_the_dead(self) -> None:
        """Streams that nobody reads any more: their finalizers do as little as possible."""
        for subscription in list(self._subscriptions):
            if not subscription.is_alive:
                self._subscriptions.pop(subscription, None)

    # --- what is known ---------------------------------------------------------------------------

    def info(self) -> MonitorInfo:
        """Looks at the limits and the guard now; cheap enough to call every second."""
        self._check_usable()
        return MonitorInfo(
            info(), guard.status(), self._fraction, self._nbytes, self._watcher.names
        )

    def stats(self) -> MonitorStats:
        """Counts since the monitor was made. Works after close(), too."""
        with self._condition:
            return MonitorStats(
                events=self._events,
                signals=self._signals,
                by_level=dict(self._by_level),
                by_source=dict(self._by_source),
                callbacks=self._callbacks,
                failures=self._failures,
                dropped_sources=self._watcher.dropped,
                subscribers=sum(one.is_alive for one in list(self._subscriptions)),
            )

    @property
    def closed(self) -> bool:
        """Whether close() was called, or this is a forked child."""
        return self._closed or self._watcher.stopped

    # --- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends all subscriptions and streams, the thread, and the wish for headroom.

        Waits for a running callback, unless called from it; so the caller must not hold a lock
        that the callback takes. Harmless when repeated, and in a forked child.
        """
        with self._condition:
            self._closed = True
            subscriptions, self._subscriptions = self._subscriptions, {}
            for subscription in subscriptions:
                subscription.removed = True
        self._end()
        self._watcher.stop()
        for subscription in subscriptions:
            if subscription.mailbox is not None:
                subscription.mailbox.end()

    def __enter__(self) -> Self:
        self._check_usable()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def park(self) -> None:
        """Before a fork (:mod:`pgalloc.fork` calls it): ends the thread, keeps the sources."""
        self._watcher.park()

    def resume(self) -> None:
        """After a fork, in the parent: what came meanwhile is delivered now."""
        self._watcher.resume()

    def abandon(self) -> None:
        """After a fork, in the child: lets go of what was inherited."""
        self._condition = threading.Condition(threading.RLock())
        self._running = None
        self._watcher.abandon()
        for subscription in self._subscriptions:
            subscription.removed = True
            if subscription.mailbox is not None:
                subscription.mailbox.abandon()
        self._subscriptions = {}

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedError("this Monitor belongs to the parent process")
        if self.closed:
            raise ClosedError("the Monitor is closed")

    # --- on the thread ---------------------------------------------------------------------------

    def _dispatch(self, signals: list[Signal]) -> None:
        event = _event_of(signals)
        with self._condition:
            self._events += 1
            self._signals += len(signals)
            self._by_level[event.level] += 1
            for signal in signals:
                kind = signal.source.kind
                self._by_source[kind] = self._by_source.get(kind, 0) + 1
            self._forget_the_dead()
            subscriptions = list(self._subscriptions)
        for subscription in subscriptions:
            if is_at_least(event, subscription.level):
                self._tell(subscription, event)

    def _tell(self, subscription: _Subscription, event: PressureEvent) -> None:
        with self._condition:
            if subscription.removed:
                return
            if subscription.callback is not None:
                self._running = subscription
                self._callbacks += 1
        if subscription.mailbox is not None:
            subscription.mailbox.put(event)
            return
        assert subscription.callback is not None
        try:
            subscription.callback(event)
        except BaseException:  # nobody above the thread could handle it
            with self._condition:
                self._failures += 1
            _log.exception("the pressure callback %r failed", subscription.callback)
        finally:
            with self._condition:
                self._running = None
                self._condition.notify_all()


def _event_of(signals: list[Signal]) -> PressureEvent:
    worst = max(signals, key=lambda signal: LEVELS.index(signal.level))
    source = worst.source
    return PressureEvent(worst.level, source.kind, source.name, _headroom(), len(signals))


def _headroom() -> int | None:
    """What the guard knows, which costs nothing; else what the files say."""
    try:
        available = guard.status().available
        return info().headroom if available is None else available
    except Exception:  # an event without a figure is better than none
        _log.debug("headroom is not known", exc_info=True)
        return None


def _unsubscribe(monitor: weakref.ref[Monitor], subscription: weakref.ref[_Subscription]) -> None:
    """Holds neither: whoever forgets a monitor but keeps this has forgotten it."""
    owner, one = monitor(), subscription()
    if owner is not None and one is not None:
        owner._remove(one)


def _deliver(monitor: weakref.ref[Monitor], signals: list[Signal]) -> None:
    strong = monitor()
    if strong is not None:
        strong._dispatch(signals)


def _end(watcher: Watcher, calls: guard.GuardCalls, token: int, pid: int) -> None:
    """Lets go of everything outside of Python, without waiting for anything."""
    if os.getpid() == pid:  # a child has neither the thread nor the guard
        calls.guard_remove_headroom(token)
        watcher.stop(wait=False)


_shared: weakref.ref[Monitor] | None = None
_shared_lock = threading.RLock()


def default_monitor() -> Monitor:
    """The monitor that all of pgalloc shares, with the default headroom and all sources.

    It lives as long as somebody refers to it; do not close it, others may use it.
    """
    global _shared
    with _shared_lock:
        monitor = _shared() if _shared is not None else None
        if monitor is None or monitor.closed:
            monitor = Monitor()
            _shared = weakref.ref(monitor)
        return monitor


def _forget_shared() -> None:
    """In a forked child: another thread of the parent may have the lock."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.RLock()


os.register_at_fork(after_in_child=_forget_shared)
