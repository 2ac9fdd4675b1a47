"""Lowers the limit of a group once its program has begun to fill it."""

from __future__ import annotations

import os
import subprocess
import time

from pgalloc._processes.memory_group import MemoryGroup

_PERIOD_S = 0.0002


def lower(process: subprocess.Popen[str], group: MemoryGroup, limit: int, least: int) -> bool:
    """To ``limit`` as soon as ``least`` bytes are in use. Whether it reads back as that.

    It does not where the kernel refuses it, because more was in use already.
    """
    name = "memory.limit_in_bytes" if group.version == "v1" else "memory.max"
    fd = os.open(group.usage_file, os.O_RDONLY)
    try:
        while process.poll() is None and int(os.pread(fd, 32, 0)) < least:
            time.sleep(_PERIOD_S)  # time: how often it looks
    finally:
        os.close(fd)
    try:
        (group.directory / name).write_text(str(limit))
    except OSError:
        return False
    return int((group.directory / name).read_text()) == limit
