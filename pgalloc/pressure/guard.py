"""The native guard as Python sees it: what it knows, and its crossings as a source of signals.

The guard is a thread of the core. It discards unpinned memory before a limit is reached, without
the GIL. Python only tells it where the limits are and how much to keep free, and hears of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from pgalloc import _core
from pgalloc.pressure.descriptors import open_into
from pgalloc.pressure.signals import PressureSource

GuardLevel = Literal["none", "low", "medium", "critical"]
_Record = TypeVar("_Record", "GuardedLimit", "GuardStatus")


class GuardCalls(Protocol):
    """The calls of the core that are about the guard; tests put another object in their place."""

    def guard_follow(self, proc: bytes, root: bytes) -> bool:
        """Watch the limits of this process, also when it is moved. Whether there is anything."""

    def guard_add_headroom(self, fraction: float, nbytes: int) -> int:
        """Keep that much free below every limit. Returns a token.

        The largest wish counts; without any, the guard keeps a tenth.
        """

    def guard_remove_headroom(self, token: int, /) -> None:
        """Take a wish back."""

    def guard_set_headroom(self, headroom: tuple[float, int] | None) -> None:
        """Another wish, of this process and the children that it forks; None: no more."""

    def guard_watch(self, fd: int, /) -> None:
        """Write 1 to this eventfd at each crossing."""

    def guard_unwatch(self, fd: int, /) -> None:
        """Stop that; to be called before the eventfd is closed."""

    def guard_status(self) -> dict[str, Any]:
        """What it knows and did: the fields of GuardStatus."""


calls: GuardCalls = _core


def place_to_look(
    proc: str | os.PathLike[str], root: str | os.PathLike[str]
) -> tuple[bytes, bytes]:
    """Where procfs and the mounts lie, for the core. TypeError, ValueError for what is no path."""
    places = [str(Path(path)) for path in (proc, root)]
    if any("\0" in place for place in places):
        raise ValueError("embedded null byte in a path")
    return os.fsencode(os.path.abspath(places[0])), os.fsencode(places[1])


def find_memory_group(
    proc: str | os.PathLike[str], root: str | os.PathLike[str]
) -> tuple[Literal["v1", "v2"], str, str, str, bool] | None:
    """Version, path, directory, mount point of the group, and whether that is exact."""
    return _core.find_memory_group(*place_to_look(proc, root))


def name_of_level(found: Mapping[str, Any]) -> str:
    """What the core found, as info() and the guard's status call it."""
    directory: str = found["directory"]
    return f"above {directory}" if found.get("kind") == "above" else directory


def look_at_limits(
    proc: str | os.PathLike[str], root: str | os.PathLike[str]
) -> list[dict[str, Any]]:
    """Every limit that holds for this process, read now; the machine last."""
    return _core.look_at_limits(*place_to_look(proc, root))


@dataclass(frozen=True, slots=True)
class GuardedLimit:
    """One limit that the guard watches, in bytes, as it was when the guard last looked.

    Attributes:
        directory: the cgroup's, or the machine's meminfo.
        limit: None if there is none at the moment.
        usage: what is charged there.
        reclaimable: what the kernel can drop, as in LimitLevel.
        available: what can still be committed; None without a limit.
        headroom: what the guard keeps free below the limit.
    """

    directory: str
    limit: int | None
    usage: int
    reclaimable: int
    available: int | None
    headroom: int


@dataclass(frozen=True, slots=True)
class GuardStatus:
    """The guard at one moment.

    Attributes:
        running: whether its thread runs, which it does when there is something to do for it.
        level: "none"; "low": less than the headroom is left, and it discards; "medium": there is
            nothing more to discard; "critical": and less than a quarter of the headroom is left.
        available: bytes that can still be committed at the tightest limit; None if unknown.
        headroom: bytes it keeps free there; 0 if there is no limit.
        looks: how often it looked at the limits.
        crossings: how often less than the headroom was left.
        shortfalls: how often there was nothing more to discard then.
        discards: batches of allocations that it discarded.
        discarded_bytes: how much that gave back.
        refusals: allocations that would have exceeded a limit, and failed cleanly instead.
        levels: every limit it watches.
    """

    running: bool
    level: GuardLevel
    available: int | None
    headroom: int
    looks: int
    crossings: int
    shortfalls: int
    discards: int
    discarded_bytes: int
    refusals: int
    levels: tuple[GuardedLimit, ...]

    @property
    def tightest(self) -> GuardedLimit | None:
        """The limit that will be reached first; None if there is none."""
        limited = [level for level in self.levels if level.available is not None]
        return min(limited, key=lambda level: level.available or 0, default=None)


def status() -> GuardStatus:
    """Asks the guard, which looks at every limit for this: a few short files of the kernel's."""
    return _status_of(calls.guard_status())


def _status_of(found: Mapping[str, Any]) -> GuardStatus:
    levels = tuple(
        _pick(GuardedLimit, {**level, "directory": name_of_level(level)})
        for level in found["levels"]
    )
    whole = _pick(GuardStatus, {**found, "levels": levels, "headroom": 0})
    tightest = whole.tightest
    return whole if tightest is None else replace(whole, headroom=tightest.headroom)


def _pick(record: type[_Record], found: Mapping[str, Any]) -> _Record:
    """A record of what it has fields for: the core may say more."""
    return record(**{field.name: found[field.name] for field in fields(record)})


class GuardSource(PressureSource):
    """Signals whenever the guard sees less than the headroom left, or cannot restore it.

    Invariant: the guard never has a descriptor that is closed. In a forked child the guard has
    none of its parent's.
    """

    kind = "guard"
    name = "the native guard"

    def __init__(self) -> None:
        """Raises OSError when there are no descriptors to be had."""
        self._calls, self._pid = calls, os.getpid()
        open_into(self, "fd", os.eventfd, 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._calls.guard_watch(self.fd)
        except BaseException:
            self.close()  # the guard may have it already
            raise

    def take(self, revents: int) -> bool:
        """The level is the guard's of this moment; what is restored already was low."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return False
        level: GuardLevel = self._calls.guard_status()["level"]
        self.level = "low" if level == "none" else level
        return True

    def close(self) -> None:
        """Tells the guard first; harmless when repeated."""
        if self.fd >= 0 and os.getpid() == self._pid:
            self._calls.guard_unwatch(self.fd)
        super().close()
