"""How the demo reads a file from disk while anything may happen to it.

The file is opened without following links and compared by identity (device, inode, size, times)
before and after each reading. So a file that changes under the demo is told apart from memory that
changes, which is what the demo is there to find.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from pgalloc.cli.files import SPECIAL, reason_of

CHANGED = "changed while it was read"
SHRANK = "shrank while it was read"

_BLOCK = 1 << 20


class CannotRead(Exception):  # noqa: N818 - the outcome of a file, not a fault of the program
    """The file is left out; ``str()`` is the reason."""


class Identity(NamedTuple):
    """Two readings with equal identities saw the same contents."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class PaddingReader:
    """Reads ``size`` bytes of a descriptor and then reports the rest of the last page as read.

    ``reader=`` must fill whole pages, or what it filled is cut down to whole pages. Fresh pages
    read as zero, so nothing needs writing into the tail; the demo checks later that it is zero
    indeed. A file that ends early is a short read (0), which the allocator reports.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._offset = 0

    def readinto(self, buffer: memoryview) -> int:
        """Like ``io.RawIOBase.readinto``."""
        left = self._size - self._offset
        if left <= 0:
            return len(buffer)
        count = os.preadv(self._fd, [buffer[:left]], self._offset)
        self._offset += count
        return count


@contextlib.contextmanager
def opened(path: str) -> Iterator[tuple[int, Identity]]:
    """The descriptor of a regular file and its identity, which must still hold at the end.

    Raises CannotRead, from the body too if the file has changed by then.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise CannotRead(reason_of(error)) from error
    try:
        identity = _identity(fd)
        yield fd, identity
        if _identity(fd) != identity:
            raise CannotRead(CHANGED)
    finally:
        os.close(fd)


def digest_on_disk(path: str, expected: Identity) -> bytes:
    """SHA-256 of the file, read through ordinary buffers. Raises CannotRead."""
    sha = hashlib.sha256()
    buffer = memoryview(bytearray(min(_BLOCK, max(1, expected.size))))
    with opened(path) as (fd, identity):
        if identity != expected:
            raise CannotRead(CHANGED)
        offset = 0
        while offset < identity.size:
            try:
                count = os.preadv(fd, [buffer[: identity.size - offset]], offset)
            except OSError as error:
                raise CannotRead(reason_of(error)) from error
            if count == 0:
                raise CannotRead(SHRANK)
            sha.update(buffer[:count])
            offset += count
    return sha.digest()


def _identity(fd: int) -> Identity:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise CannotRead(SPECIAL)
    return Identity(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )
