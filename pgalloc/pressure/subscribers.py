"""The subscribers of one Monitor, callbacks and streams, and how they are told of pressure.

Thread safety: every method may be called from any thread, from callbacks and from finalizers. The
lock may be taken again by its owner, and is never held while a callback runs.

Invariants:
  1. Callbacks run on the thread that calls ``dispatch``, in the order of subscription.
  2. After ``remove`` or ``end`` has returned no callback begins that it ended; ``remove`` has
     waited for the one that ran, unless that one called it.
  3. An exception in a callback is logged and counted, and stops nothing.
"""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from pgalloc.pressure import guard
from pgalloc.pressure.events import Callback, Mailbox, PressureEvent, is_at_least
from pgalloc.pressure.limits import info
from pgalloc.pressure.signals import LEVELS, Level
from pgalloc.pressure.watcher import Signal
from pgalloc.unpatched import rlock

_log = logging.getLogger("pgalloc.pressure")


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


class Subscription:
    """One subscriber: a callback or a mailbox. ``removed`` is final."""

    __slots__ = ("__weakref__", "level", "removed", "tells")

    def __init__(self, level: Level, tells: Callback | Mailbox) -> None:
        self.level, self.tells = level, tells
        self.removed = False

    @property
    def is_alive(self) -> bool:
        """Whether it is to be told of anything."""
        return not self.removed and not (isinstance(self.tells, Mailbox) and self.tells.ended)


class Subscribers:
    """The subscriptions of a monitor. Ended once, it takes no more."""

    def __init__(self) -> None:
        self._condition = threading.Condition(rlock())
        # A dict for its order, changed by single steps only: a finalizer may come between.
        self._all: dict[Subscription, None] = {}
        self._ended = False
        self._running: Subscription | None = None
        self._dispatcher: threading.Thread | None = None
        self._events = self._signals = self._callbacks = self._failures = 0
        self._by_level: dict[Level, int] = dict.fromkeys(LEVELS, 0)
        self._by_source: dict[str, int] = {}

    @property
    def ended(self) -> bool:
        """Whether end() was called."""
        return self._ended

    def add(self, subscription: Subscription) -> bool:
        """Subscribes. False if all subscriptions have ended already."""
        with self._condition:
            if self._ended:
                return False
            self._forget_the_dead()
            self._all[subscription] = None
            return True

    def remove(self, subscription: Subscription) -> None:
        """Ends one, and waits for its callback; harmless when repeated."""
        with self._condition:
            subscription.removed = True
            self._all.pop(subscription, None)
            if self._dispatcher is threading.current_thread():
                return
            while self._running is subscription:
                self._condition.wait()

    def unsubscriber(self, subscription: Subscription) -> Callable[[], None]:
        """``remove`` as a function that keeps neither alive."""
        return functools.partial(_remove, weakref.ref(self), weakref.ref(subscription))

    def end(self) -> None:
        """Ends all, for ever; waits for none."""
        with self._condition:
            self._ended = True
            subscriptions, self._all = self._all, {}
            for subscription in subscriptions:
                subscription.removed = True
        for subscription in subscriptions:
            if isinstance(subscription.tells, Mailbox):
                subscription.tells.end()

    def reset_in_child(self) -> None:
        """In a forked child: ends all subscriptions, without the parent's lock."""
        self._condition = threading.Condition(rlock())
        self._ended = True
        self._running = None
        subscriptions, self._all = self._all, {}
        for subscription in subscriptions:
            subscription.removed = True
            if isinstance(subscription.tells, Mailbox):
                subscription.tells.reset_in_child()

    def stats(self, dropped_sources: int) -> MonitorStats:
        """Counts since this was made."""
        with self._condition:
            return MonitorStats(
                events=self._events,
                signals=self._signals,
                by_level=dict(self._by_level),
                by_source=dict(self._by_source),
                callbacks=self._callbacks,
                failures=self._failures,
                dropped_sources=dropped_sources,
                subscribers=sum(one.is_alive for one in list(self._all)),
            )

    def dispatch(self, signals: list[Signal]) -> None:
        """Makes one event of some signals, for all subscribers to its level."""
        event = _event_of(signals)
        with self._condition:
            self._dispatcher = threading.current_thread()
            self._events += 1
            self._signals += len(signals)
            self._by_level[event.level] += 1
            for signal in signals:
                kind = signal.source.kind
                self._by_source[kind] = self._by_source.get(kind, 0) + 1
            self._forget_the_dead()
            subscriptions = list(self._all)
        for subscription in subscriptions:
            if is_at_least(event, subscription.level):
                self._tell(subscription, event)

    def _tell(self, subscription: Subscription, event: PressureEvent) -> None:
        if isinstance(subscription.tells, Mailbox):
            subscription.tells.put(event)
            return
        with self._condition:
            if subscription.removed:
                return
            self._running = subscription
            self._callbacks += 1
        try:
            subscription.tells(event)
        except BaseException:  # nothing above the thread could handle it
            with self._condition:
                self._failures += 1
            _log.exception("the pressure callback %r failed", subscription.tells)
        finally:
            with self._condition:
                self._running = None
                self._condition.notify_all()

    def _forget_the_dead(self) -> None:
        """Removes streams without a reader: their finalizers do as little as possible."""
        for subscription in list(self._all):
            if not subscription.is_alive:
                self._all.pop(subscription, None)


def deliver_to(subscribers: weakref.ref[Subscribers], signals: list[Signal]) -> None:
    """``dispatch``, for a thread that must not keep the subscribers alive."""
    strong = subscribers()
    if strong is not None:
        strong.dispatch(signals)


def _remove(subscribers: weakref.ref[Subscribers], subscription: weakref.ref[Subscription]) -> None:
    those, one = subscribers(), subscription()
    if those is not None and one is not None:
        those.remove(one)


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
