"""Where the memory limit and the signals of memory pressure come from.

* ``mountinfo``: the formats of two files of procfs.
* ``cgroup``: which memory cgroup this process is charged to (v1, v2, hybrid, containers).
* ``limits``: limit, usage and headroom, all ancestors included: :func:`info`.
* ``signals``: single sources of signals: v1 pressure levels, v2 event counters, PSI triggers.
* ``memcg_sources``: which of them to watch for a level of pressure (row N1).
* ``memcg_events``: :class:`PressureLevelListener`, a thread that waits and calls back (row N2).

Besides ``sharing`` this is the only Python room that calls the kernel. It needs no native code.
"""

from pgalloc.pressure.cgroup import MemoryCgroup, find_memory_cgroup
from pgalloc.pressure.limits import LimitLevel, PressureInfo, Source, info
from pgalloc.pressure.memcg_events import PressureLevelListener
from pgalloc.pressure.memcg_sources import NoMemoryCgroupError
from pgalloc.pressure.signals import Level

__all__ = [
    "Level",
    "LimitLevel",
    "MemoryCgroup",
    "NoMemoryCgroupError",
    "PressureInfo",
    "PressureLevelListener",
    "Source",
    "find_memory_cgroup",
    "info",
]
