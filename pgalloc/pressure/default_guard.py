"""Tells the native guard where the limits of this process are, once in each process.

Thread safety: all functions may be called from any thread.

Invariants:
  1. :func:`ensure` never raises, and costs one look at a flag once the guard is configured.
  2. A forked child configures anew: it may be moved to another cgroup, and it has a guard of its
     own.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import SupportsIndex

from pgalloc import fork
from pgalloc.pressure import guard
from pgalloc.pressure.cgroup import MemoryCgroup, find_memory_cgroup
from pgalloc.pressure.limits import charged_directories
from pgalloc.sizes import parse_headroom

DEFAULT_HEADROOM = "10%"
"""What a Monitor asks for, and what the guard keeps free without being asked."""

_log = logging.getLogger("pgalloc.pressure")


class _Configuration:
    """What the guard of this process was told. One instance, for :mod:`pgalloc.fork`."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.lock = threading.RLock()
        self.done = False
        self.watches = False
        self.token: int | None = None

    def park(self) -> None:
        """For :mod:`pgalloc.fork`: nothing to do, the guard has no Python thread."""

    def resume(self) -> None:
        """For :mod:`pgalloc.fork`: nothing to do."""

    def reset_in_child(self) -> None:
        """In a forked child: its guard is not configured yet."""
        self._reset()


_configuration = _Configuration()


def ensure() -> None:
    """Configures the guard unless that was done. Never raises."""
    if _configuration.done:
        return
    try:
        with _configuration.lock:
            if not _configuration.done:
                _configure(None, "/proc", "/")
    except Exception:  # an allocation must succeed, guarded or not
        _configuration.done = True
        _log.warning("the memory guard could not be configured", exc_info=True)


def configure(
    headroom: str | SupportsIndex | None = None,
    *,
    proc: str | os.PathLike[str] = "/proc",
    root: str | os.PathLike[str] = "/",
) -> None:
    """Finds the memory cgroup of this process again, and says how much the guard is to keep free.

    The first MemoryFile does this by itself. Call it after the process was moved to another cgroup
    or got another mount of it, or to ask for headroom for as long as the process lives.

    Args:
        headroom: "10%" of every limit, or bytes, as an int or as "32M"; None takes back what an
            earlier call asked for. The largest wish counts, those of open Monitors included; if
            there is none the guard keeps a tenth.
        proc: where procfs lies, for tests.
        root: put before every mount point, for tests.

    Raises TypeError, OptionError or RangeError for a bad headroom.
    """
    if headroom is not None:
        parse_headroom(headroom)
    with _configuration.lock:
        _configure(headroom, proc, root)


def has_something_to_watch() -> bool:
    """Whether the guard has a limit or MemAvailable to go by."""
    ensure()
    return _configuration.watches


def _configure(
    headroom: str | SupportsIndex | None, proc: str | os.PathLike[str], root: str | os.PathLike[str]
) -> None:
    group = find_memory_cgroup(proc=proc, root=root)
    levels = _levels(group) if group is not None else []
    meminfo = os.path.join(proc, "meminfo")
    readable = os.access(meminfo, os.R_OK)
    guard.calls.guard_configure(levels, meminfo if readable else None)
    before = _configuration.token
    _configuration.token = (
        None if headroom is None else guard.calls.guard_add_headroom(*parse_headroom(headroom))
    )
    if before is not None:
        guard.calls.guard_remove_headroom(before)
    _configuration.watches = bool(levels) or readable
    _configuration.done = True
    fork.register(_configuration)


def _levels(group: MemoryCgroup) -> list[tuple[str, bool]]:
    is_v1 = group.version == "v1"
    levels = []
    for directory in charged_directories(group):
        try:
            str(directory).encode()
        except UnicodeEncodeError:
            _log.warning("the guard does not watch %r: its name is not UTF-8", str(directory))
        else:
            levels.append((str(directory), is_v1))
    return levels
