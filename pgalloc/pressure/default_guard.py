"""Tells the native guard where the limits of this process are, once in each process.

Thread safety: all functions may be called from any thread.

Invariants:
  1. :func:`ensure` never raises, and costs one look at a flag once the guard is configured.
  2. A forked child, which has a guard of its own, configures it anew. That guard follows the
     child's limits before, too, with the headroom that its parent configured.
"""

from __future__ import annotations

import logging
import os

from pgalloc import fork
from pgalloc.pressure import guard
from pgalloc.sizes import Headroom, parse_headroom
from pgalloc.unpatched import rlock

DEFAULT_HEADROOM = "10%"
"""What a Monitor asks for, and what the guard keeps free without being asked."""

_log = logging.getLogger("pgalloc.pressure")


class _Configuration:
    """What the guard of this process was told. One instance, for :mod:`pgalloc.fork`."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.lock = rlock()
        self.done = False
        self.watches = False

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
                _configure("/proc", "/")
    except Exception:  # an allocation must succeed, guarded or not
        _configuration.done = True
        _log.warning("the memory guard could not be configured", exc_info=True)


def configure(
    headroom: Headroom | None = None,
    *,
    proc: str | os.PathLike[str] = "/proc",
    root: str | os.PathLike[str] = "/",
) -> None:
    """Says how much the guard is to keep free, and has it find the limits anew.

    The first MemoryFile has it find them by itself, and the guard follows by itself when a limit is
    changed or this process is moved to another cgroup. Call it to ask for headroom for as long as
    the process lives, and for the children that it forks, or after it got another mount of its
    cgroup.

    Args:
        headroom: "10%" or 0.1 of every limit, or bytes, as an int or as "32M"; None takes back what
            an earlier call asked for. The largest wish counts, those of open Monitors included; if
            there is none the guard keeps a tenth.
        proc: where procfs lies, for tests.
        root: put before every mount point, for tests.

    Raises TypeError, OptionError or RangeError for a bad headroom.
    """
    wish = None if headroom is None else parse_headroom(headroom)
    with _configuration.lock:
        _configure(proc, root)
        guard.calls.guard_set_headroom(wish)


def has_something_to_watch() -> bool:
    """Whether the guard has a limit or MemAvailable to go by."""
    ensure()
    return _configuration.watches


def _configure(proc: str | os.PathLike[str], root: str | os.PathLike[str]) -> None:
    watches = guard.calls.guard_follow(*guard.place_to_look(proc, root))
    _configuration.watches = watches
    _configuration.done = True
    fork.register(_configuration)
