"""The Monitor: tells Python of memory pressure, and the guard how much to keep free.

Thread safety: every method may be called from any thread, from callbacks and from finalizers.

Invariants:
  1. Callbacks run on one thread, one at a time; what ``unsubscribe()`` and ``close()`` promise is
     in ``subscribers``.
  2. The thread keeps nothing of a monitor alive but while it delivers: a monitor without other
     references ends its thread, closes its sources and takes back its headroom, also if its own
     callbacks refer to it.
  3. A monitor belongs to the process that made it; in a forked child it is of no use.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pgalloc import fork
from pgalloc.errors import ClosedError, ForkedError
from pgalloc.pressure import default_guard, discovery, guard
from pgalloc.pressure.descriptors import set_to
from pgalloc.pressure.events import Callback, EventStream, Mailbox
from pgalloc.pressure.limits import PressureInfo, info
from pgalloc.pressure.memcg_sources import NoPressureSourceError, close_all
from pgalloc.pressure.signals import Level, PressureSource, checked_level
from pgalloc.pressure.subscribers import MonitorStats, Subscribers, Subscription, deliver_to
from pgalloc.pressure.watcher import Watcher
from pgalloc.sizes import Headroom, parse_headroom
from pgalloc.uncopyable import Uncopyable
from pgalloc.unpatched import rlock


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


class Monitor(Uncopyable):
    """Watches everything that can tell of memory pressure, and passes it on.

    While it is open, the native guard keeps ``headroom`` free below every limit of this process, by
    discarding unpinned memory; with several monitors the largest wish counts. Subscribers hear of
    pressure on a thread of this monitor, which starts with the first of them.

    ``headroom`` is "10%" or 0.1 of each limit, or bytes, as an int or as "32M". ``sources`` are the
    sources to watch instead of all that exist here, for tests mostly; they belong to the monitor
    from now on, also if this fails.

    Raises TypeError, OptionError or RangeError for a bad headroom, TypeError for what is no source.
    """

    def __init__(
        self,
        headroom: Headroom = default_guard.DEFAULT_HEADROOM,
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
        self._subscribers = Subscribers()
        deliver = functools.partial(deliver_to, weakref.ref(self._subscribers))
        self._watcher = Watcher(deliver, given or ())
        _end_the_lost()
        self._held = _Held(weakref.ref(self), self._watcher)
        _held[id(self._held)] = self._held
        weakref.finalize(self, self._held.end).atexit = False
        set_to(
            self._held, "token", self._held.calls.guard_add_headroom, self._fraction, self._nbytes
        )
        fork.register(self)

    # --- subscribers -----------------------------------------------------------------------------

    def subscribe(self, callback: Callback, level: Level = "low") -> Callable[[], None]:
        """Calls ``callback(event)`` for every PressureEvent of that level and above.

        It runs on the monitor's thread; what it raises is logged and counted, and stops nothing.
        Signals that come while callbacks run are merged.

        Returns ``unsubscribe()``, which waits for the callback if it runs, unless called from it;
        so the caller must not hold a lock that the callback takes. It is harmless when repeated,
        and does not keep the monitor alive.

        Raises TypeError, ValueError for an unknown level, ClosedError, ForkedError,
        NoPressureSourceError if there is nothing to watch, and OSError if the process can have no
        more descriptors.
        """
        if not callable(callback):
            raise TypeError(f"callback must be callable, not {type(callback).__name__}")
        subscription = Subscription(checked_level(level), callback)
        unsubscribe = self._subscribers.unsubscriber(subscription)
        try:
            self._add(subscription)
        except BaseException:  # a signal handler may raise when it was added
            self._subscribers.remove(subscription)
            raise
        return unsubscribe

    def events(self, level: Level = "low") -> EventStream:
        """The events of that level and above, for ``async for``, in any asyncio loop.

        Events that come while no task waits are merged into one. Raises as :meth:`subscribe`, but
        for the callback.
        """
        mailbox = Mailbox(checked_level(level))
        stream = EventStream(mailbox, self)  # first: one that is dropped ends its subscription
        self._add(Subscription(mailbox.level, mailbox))
        return stream

    def _add(self, subscription: Subscription) -> None:
        self._check_usable()
        if not self._subscribers.add(subscription):
            self._check_usable()
        try:
            # Subscribed first: a source may have something to say already.
            if not self._watcher.start(discovery.open_everything if self._finds_sources else None):
                self._check_usable()
                raise NoPressureSourceError(2, "nothing here can signal memory pressure")
        except BaseException:
            self._subscribers.remove(subscription)
            raise

    # --- what is known ---------------------------------------------------------------------------

    def info(self) -> MonitorInfo:
        """Looks at the limits and the guard now; cheap enough to call every second."""
        self._check_usable()
        return MonitorInfo(
            info(), guard.status(), self._fraction, self._nbytes, self._watcher.names
        )

    def stats(self) -> MonitorStats:
        """Counts since the monitor was made. Works after close(), too."""
        return self._subscribers.stats(self._watcher.dropped_sources)

    @property
    def closed(self) -> bool:
        """Whether close() was called, or this is a forked child."""
        return self._subscribers.ended

    # --- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends all subscriptions and streams, the thread, and the wish for headroom.

        Waits for a running callback, unless called from it; so the caller must not hold a lock
        that the callback takes. Harmless when repeated, and in a forked child.
        """
        self._subscribers.end()
        self._held.end()
        self._watcher.stop()

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

    def reset_in_child(self) -> None:
        """After a fork, in the child: lets go of everything; this monitor is closed."""
        self._subscribers.reset_in_child()
        self._watcher.reset_in_child()

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedError("this Monitor belongs to the parent process")
        if self.closed:
            raise ClosedError("the Monitor is closed")


class _Held:
    """What a monitor has outside of Python: a wish for headroom, and a thread."""

    token: int | None = None

    def __init__(self, monitor: weakref.ref[Monitor], watcher: Watcher) -> None:
        self.monitor, self.watcher = monitor, watcher
        self.calls, self.pid = guard.calls, os.getpid()

    def end(self) -> None:
        """Lets go of it, without waiting for anything. Harmless when repeated."""
        if os.getpid() == self.pid:  # a child has neither the thread nor the guard
            if self.token is not None:
                self.calls.guard_remove_headroom(self.token)
                self.token = None
            self.watcher.stop(wait=False)
        _held.pop(id(self), None)


# No lock: each use is one operation of a dict.
_held: dict[int, _Held] = {}


def _end_the_lost() -> None:
    """Ends what a finalizer would have ended, had no signal handler interrupted it."""
    for held in list(_held.values()):
        if held.monitor() is None:
            held.end()


class _Shared:
    """The monitor that all of pgalloc shares. One instance; in a forked child a new one."""

    def __init__(self) -> None:
        self.reset_in_child()

    def park(self) -> None:
        """For :mod:`pgalloc.fork`: nothing to do, the monitor has the thread."""

    def resume(self) -> None:
        """For :mod:`pgalloc.fork`: nothing to do."""

    def reset_in_child(self) -> None:
        """In a forked child, where another thread of the parent may have the lock."""
        self.lock = rlock()
        self.monitor: weakref.ref[Monitor] | None = None


_shared = _Shared()


def default_monitor() -> Monitor:
    """The monitor that all of pgalloc shares, with the default headroom and all sources.

    It lives as long as there are references to it; do not close it, others may use it.
    """
    with _shared.lock:
        monitor = _shared.monitor() if _shared.monitor is not None else None
        if monitor is None or monitor.closed:
            monitor = Monitor()
            fork.register(_shared)
            _shared.monitor = weakref.ref(monitor)
        return monitor
