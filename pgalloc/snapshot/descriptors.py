"""Descriptors: those that paths like /dev/stdout name, and waiting for one in non-blocking mode."""

from __future__ import annotations

import errno
import io
import os
import re
from typing import Any

from pgalloc import _core

# What open() returns. Only these know whether they can be read and written: classes that others
# derive from io.RawIOBase often do not say.
FILES = (io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom)
_LINKS_MAX = 40  # as many as the kernel follows
_DESCRIPTOR = re.compile(rb"/proc/([0-9]+)(?:/task/[0-9]+)?/fd/([0-9]+)")


def own_descriptor(path: bytes) -> int | None:
    """The descriptor of this process that a path names; None if it is another path."""
    for _ in range(_LINKS_MAX):
        folder, name = os.path.split(path)
        path = os.path.join(os.path.realpath(folder), name)
        match = _DESCRIPTOR.fullmatch(path)
        if match is not None:
            return int(match[2]) if int(match[1]) == os.getpid() else None
        if not os.path.islink(path):
            return None
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return None


def wait_for(file: Any, what: str, *, writable: bool) -> None:
    """Until it can be written to, or else read, or until that fails.

    Raises BlockingIOError for a file without a descriptor.
    """
    try:
        descriptor = file.fileno()
    except (AttributeError, io.UnsupportedOperation):
        raise BlockingIOError(
            errno.EAGAIN, f"{what} is in non-blocking mode, and cannot be waited for"
        ) from None
    _core.wait_for_stream(descriptor, writable)
