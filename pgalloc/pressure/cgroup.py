"""Finds the directory of the memory cgroup that this process is charged to.

Three layouts exist: v1 (one hierarchy per controller), v2 (one hierarchy for all) and hybrid (v1
controllers beside an empty v2 hierarchy). Whichever of v1 and v2 *has the memory controller* is
meant here; a hybrid system therefore counts as v1.

The path that /proc/self/cgroup names is relative to the root of the reader's cgroup namespace; the
mount shows a subtree that begins at its ``root`` field, relative to the same. So the directory is

    mount point / (cgroup path minus mount root)

and containers break every part of that: no cgroup namespace (both sides are long host paths), a
namespace without a fresh mount (the mount root is ``/../..``), a process moved out of its
namespace (the path begins with ``/..``), a bind mount of another group. What cannot be resolved
exactly falls back to the nearest ancestor that is visible, whose limit holds for the process too.

Sources: cgroups(7), cgroup_namespaces(7), Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pgalloc.pressure.mountinfo import Membership, Mount, parse_cgroup, parse_mountinfo

CgroupVersion = Literal["v1", "v2"]


@dataclass(frozen=True, slots=True)
class MemoryCgroup:
    """Where the files of the memory controller lie for this process.

    Attributes:
        version: which interface the files follow.
        path: the group as /proc/self/cgroup names it.
        directory: the group's directory. v2: the nearest level where the controller is enabled,
            because that is the one that is charged.
        mount_point: the top of what is visible; never look above it.
        exact: False if the group itself is not visible and ``directory`` is an ancestor.
    """

    version: CgroupVersion
    path: str
    directory: Path
    mount_point: Path
    exact: bool

    def levels(self) -> Iterator[Path]:
        """The directories whose limits hold for this process: its own first, the top last."""
        level = self.directory
        yield level
        while level != self.mount_point:
            level = level.parent
            yield level


@dataclass(frozen=True, slots=True)
class _Place:
    """A candidate: ``missing`` counts the path components that could not be resolved."""

    directory: Path
    mount_point: Path
    missing: int


def find_memory_cgroup(
    *, proc: str | os.PathLike[str] = "/proc", root: str | os.PathLike[str] = "/"
) -> MemoryCgroup | None:
    """The memory cgroup of this process; None if there is no memory controller to be seen.

    Args:
        proc: where procfs lies; a test gives a directory with ``self/mountinfo`` and
            ``self/cgroup``.
        root: put before every mount point; a test gives the top of its fake tree.

    Never raises for what it finds: an unreadable or odd procfs means None.
    """
    self_dir = Path(proc, "self")
    try:
        mounts = parse_mountinfo(Path(self_dir, "mountinfo").read_bytes())
        memberships = parse_cgroup(Path(self_dir, "cgroup").read_bytes())
    except OSError:
        return None
    return _find_v1(mounts, memberships, Path(root)) or _find_v2(mounts, memberships, Path(root))


def _find_v1(mounts: list[Mount], memberships: list[Membership], root: Path) -> MemoryCgroup | None:
    candidates = [m for m in mounts if m.fstype == "cgroup" and "memory" in m.super_options]
    for membership in memberships:
        if "memory" in membership.controllers:
            place = _best_place(candidates, membership.path, root)
            if place is not None:
                return MemoryCgroup(
                    "v1", membership.path, place.directory, place.mount_point, place.missing == 0
                )
    return None


def _find_v2(mounts: list[Mount], memberships: list[Membership], root: Path) -> MemoryCgroup | None:
    candidates = [m for m in mounts if m.fstype == "cgroup2"]
    for membership in memberships:
        if membership.is_v2:
            place = _best_place(candidates, membership.path, root)
            if place is not None and (charged := _charged_level(place)) is not None:
                return MemoryCgroup(
                    "v2", membership.path, charged, place.mount_point, place.missing == 0
                )
    return None


def _charged_level(place: _Place) -> Path | None:
    """The nearest v2 level with the memory controller; the mount point if only it may have it."""
    level = place.directory
    while not (level / "memory.max").exists():
        if level == place.mount_point:
            # The root group has no limit files; its list of controllers says whether memory is v2.
            return level if "memory" in _words(level / "cgroup.controllers") else None
        level = level.parent
    return level


def _best_place(candidates: list[Mount], path: str, root: Path) -> _Place | None:
    """The mount that shows most of ``path``; of equals the last, which hides the ones before."""
    best: _Place | None = None
    for mount in candidates:
        place = _place(mount, path, root)
        if place is not None and (best is None or place.missing <= best.missing):
            best = place
    return best


def _place(mount: Mount, path: str, root: Path) -> _Place | None:
    mount_point = root / mount.point.lstrip("/")
    if not mount_point.is_dir():
        return None
    above = _components(mount.root)
    below = _components(path)
    while above and below and above[0] == below[0]:
        del above[0], below[0]
    if above:
        # The mount does not begin at an ancestor of the group as far as the names tell.
        found = _search(mount_point, len(above), below) if set(above) == {".."} else None
        return _Place(found or mount_point, mount_point, 0 if found else len(below) + 1)
    if ".." in below:
        return _Place(mount_point, mount_point, len(below))
    directory = mount_point.joinpath(*below)
    missing = 0
    while directory != mount_point and not directory.is_dir():
        directory = directory.parent
        missing += 1
    return _Place(directory, mount_point, missing)


def _search(mount_point: Path, depth: int, below: list[str]) -> Path | None:
    """The group ``depth`` unknown names under the mount that lists this process, if any.

    Needed only where a cgroup namespace looks at a mount from outside it: the mount root then is
    "/.." times ``depth``, and the names on the way down are hidden by the namespace.
    """
    pid = str(os.getpid())
    pattern = os.path.join(*["*"] * depth, *[glob.escape(name) for name in below])
    for directory in mount_point.glob(pattern):
        if pid in _words(directory / "cgroup.procs"):
            return directory
    return None


def _components(path: str) -> list[str]:
    return [name for name in path.split("/") if name]


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
