"""Reads /proc/self/mountinfo and /proc/self/cgroup; knows the formats and nothing else.

Sources: proc_pid_mountinfo(5), cgroups(7) section "/proc/pid/cgroup".

Both files are bytes, not text: mount points and cgroup names may be any bytes except NUL (and
newline, which mountinfo escapes and cgroup names may not contain). Names come back as ``str`` in
the encoding of :func:`os.fsdecode`, so that opening them works whatever they contain.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_OCTAL_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount, as far as finding a cgroup needs it.

    ``root`` is the directory *inside* the file system that is visible at ``point``: "/" for an
    ordinary mount, deeper for a bind mount, and with leading ".." components when the mount was
    made outside this process's cgroup namespace.
    """

    root: str
    point: str
    fstype: str
    super_options: frozenset[str]


@dataclass(frozen=True, slots=True)
class Membership:
    """One line of /proc/self/cgroup: the group this process is in, in one hierarchy.

    ``controllers`` is empty in the v2 hierarchy (id 0); a named v1 hierarchy has "name=...".
    """

    hierarchy_id: int
    controllers: frozenset[str]
    path: str

    @property
    def is_v2(self) -> bool:
        """Whether this is the unified hierarchy, which a hybrid system has as well."""
        return self.hierarchy_id == 0 and not self.controllers


def unescape(field: bytes) -> str:
    r"""Decodes the kernel's octal escapes: ``\040`` is a space; also tab, newline, \\ and #."""
    return os.fsdecode(_OCTAL_ESCAPE.sub(lambda m: bytes([int(m[1], 8)]), field))


def parse_mountinfo(content: bytes) -> list[Mount]:
    """The mounts in the order of the file: a later one hides an earlier one at the same point.

    Lines that do not have the documented shape are left out: one odd line must not hide the rest.
    """
    mounts = []
    for line in content.split(b"\n"):
        # id parent major:minor ROOT POINT options [optional fields...] - FSTYPE source SUPEROPTIONS
        fields = line.split(b" ")
        try:
            separator = fields.index(b"-", 6)
            root, point = fields[3], fields[4]
            fstype, super_options = fields[separator + 1], fields[separator + 3]
        except (ValueError, IndexError):
            continue
        options = frozenset(unescape(option) for option in super_options.split(b","))
        mounts.append(Mount(unescape(root), unescape(point), unescape(fstype), options))
    return mounts


def parse_cgroup(content: bytes) -> list[Membership]:
    """The groups of the process. Only the first two colons separate: a path may contain more."""
    memberships = []
    for line in content.split(b"\n"):
        fields = line.split(b":", 2)
        if len(fields) != 3 or not fields[0].isdigit():
            continue
        controllers = frozenset(os.fsdecode(name) for name in fields[1].split(b",") if name)
        memberships.append(Membership(int(fields[0]), controllers, os.fsdecode(fields[2])))
    return memberships
