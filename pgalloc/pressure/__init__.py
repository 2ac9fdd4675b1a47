"""Where the memory limit and the signals of memory pressure come from.

For users: :class:`Monitor` (events for Python, headroom for the guard), :func:`info` (the limits),
:class:`ManualSource` (pressure by hand, for tests), :func:`configure`. docs/pressure.md tells more.

* ``cgroup``: which memory cgroup this process is charged to (v1, v2, hybrid, containers).
* ``limits``: limit, usage and headroom, all ancestors included: :func:`info`.
* ``signals``, ``psi``, ``systemd``, ``manual``, ``guard``: single sources of signals.
* ``memcg_sources``: which of a cgroup's to watch for a level of pressure.
* ``discovery``: which sources there are here, and what came of trying them.
* ``watcher``: the thread that waits for all of them.
* ``level_listener``: :class:`PressureLevelListener`, for one level of one cgroup.
* ``events``, ``subscribers``, ``monitor``: :class:`Monitor`, what it tells and whom.
* ``default_guard``: has the native guard find the limits, once in each process.

Only this package, ``sharing``, ``_processes`` and the command line call the kernel from Python. Of
native code only the guard is used here, by ``guard`` alone.
"""

from pgalloc.pressure.cgroup import MemoryCgroup, find_memory_cgroup
from pgalloc.pressure.default_guard import configure
from pgalloc.pressure.events import EventStream, PressureEvent
from pgalloc.pressure.guard import GuardedLimit, GuardStatus
from pgalloc.pressure.level_listener import PressureLevelListener
from pgalloc.pressure.limits import LimitLevel, PressureInfo, Source, info
from pgalloc.pressure.manual import ManualSource
from pgalloc.pressure.memcg_sources import NoMemoryCgroupError, NoPressureSourceError
from pgalloc.pressure.monitor import Monitor, MonitorInfo, default_monitor
from pgalloc.pressure.signals import Level, PressureSource
from pgalloc.pressure.subscribers import MonitorStats

__all__ = [
    "EventStream",
    "GuardStatus",
    "GuardedLimit",
    "Level",
    "LimitLevel",
    "ManualSource",
    "MemoryCgroup",
    "Monitor",
    "MonitorInfo",
    "MonitorStats",
    "NoMemoryCgroupError",
    "NoPressureSourceError",
    "PressureEvent",
    "PressureInfo",
    "PressureLevelListener",
    "PressureSource",
    "Source",
    "configure",
    "default_monitor",
    "find_memory_cgroup",
    "info",
]
