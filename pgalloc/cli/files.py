"""Which files a demo loads: every regular file below a path, as far as the limit goes.

Nothing here is fatal but the path itself: what cannot be loaded is left out with the reason.
Symbolic links below the path are not followed, so loops cannot happen and no file counts twice
that way.
"""

from __future__ import annotations

import os
import stat
import sysconfig
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

LINK = "symbolic link, not followed"
SPECIAL = "not a regular file"
OVER_LIMIT = "over --limit"

# Installed packages lie inside the standard library's folder but are no part of it.
_NOT_STANDARD = ("site-packages", "dist-packages")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to load; ``size`` in bytes when it was found."""

    path: str
    size: int


class KnownFile(NamedTuple):
    """A file whose contents are known by their SHA-256 digest, hexadecimal."""

    path: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that is not loaded, and why."""

    path: str
    reason: str


@dataclass(slots=True)
class Found:
    """The outcome of a search; ``nbytes`` counts the files' sizes rounded up to pages."""

    files: list[SourceFile] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    nbytes: int = 0


def where_to_look(path: str | None) -> tuple[str, Collection[str]]:
    """The path, and the folders below it to pass over; without a path the standard library."""
    if path:
        return path, ()
    return sysconfig.get_path("stdlib"), _NOT_STANDARD


def round_up(size: int, page_size: int) -> int:
    """``size`` rounded up to whole pages."""
    return -(-size // page_size) * page_size


def reason_of(error: OSError) -> str:
    """The kernel's words without the path, which the report shows beside it."""
    if isinstance(error, FileNotFoundError):
        return "vanished"
    return error.strerror or str(error)


def find_files(path: str, *, limit: int, page_size: int, without: Collection[str] = ()) -> Found:
    """Looks at ``path`` (a file or a folder) in a stable order.

    A file whose pages would take the total above ``limit`` bytes is left out; a smaller one after
    it may still fit. Folders whose name is in ``without`` are passed over. Raises OSError if
    ``path`` itself cannot be looked at.
    """
    found = Found()
    top = os.path.realpath(path)
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        _consider(found, top, status, limit, page_size)
        return found
    entries = _list(top)
    while entries:
        entry = entries.pop()
        try:
            if entry.is_symlink():
                found.skipped.append(Skipped(entry.path, LINK))
            elif entry.is_dir(follow_symlinks=False):
                if entry.name not in without:
                    entries.extend(_list(entry.path))
            else:
                _consider(found, entry.path, entry.stat(follow_symlinks=False), limit, page_size)
        except OSError as error:
            found.skipped.append(Skipped(entry.path, reason_of(error)))
    return found


def _list(directory: str) -> list[os.DirEntry[str]]:
    """The entries in descending order: the caller pops from the end."""
    with os.scandir(directory) as entries:
        return sorted(entries, key=lambda entry: os.fsencode(entry.name), reverse=True)


def _consider(found: Found, path: str, status: os.stat_result, limit: int, page_size: int) -> None:
    nbytes = round_up(status.st_size, page_size)
    if not stat.S_ISREG(status.st_mode):
        found.skipped.append(Skipped(path, SPECIAL))
    elif found.nbytes + nbytes > limit:
        found.skipped.append(Skipped(path, OVER_LIMIT))
    else:
        found.files.append(SourceFile(path, status.st_size))
        found.nbytes += nbytes
