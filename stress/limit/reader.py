"""A process that reads a file again and again: page cache that is used, beside the program."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from pgalloc._processes.memory_group import MemoryGroup

_MIB = 1 << 20
_READ = """
import sys
piece = bytearray(1 << 20)
while True:
    with open(sys.argv[1], "rb", buffering=0) as file:
        while file.readinto(piece):
            pass
"""


@contextlib.contextmanager
def big_file(mib: int) -> Iterator[str]:
    """A file of so many MiB, none of which is in the page cache."""
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(mib):
            file.write(os.urandom(_MIB))
        file.flush()
        os.fsync(file.fileno())
        # What was written is page cache of this process's group.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield file.name


@contextlib.contextmanager
def reading(group: MemoryGroup, path: str) -> Iterator[None]:
    """While it lasts, the group has a process that reads this file; "": none."""
    if not path:
        yield
        return
    process = subprocess.Popen(group.command([sys.executable, "-I", "-S", "-c", _READ, path]))
    try:
        yield
    finally:
        process.kill()
        process.wait()
