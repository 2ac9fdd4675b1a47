"""Writes a cpio archive in the "newc" format, which is what Linux wants as an initramfs.

Described in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Each entry:
"070701", 13 numbers of 8 hexadecimal digits, the name with its NUL, the data; name and data padded
to four bytes.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

_TRAILER = "TRAILER!!!"


class Archive:
    """Entries in the order of the calls; parents come by themselves, and nothing comes twice."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._names: set[str] = set()

    def add_directory(self, name: str) -> None:
        name = name.strip("/")
        if name and name not in self._names:
            self._parents(name)
            self._entry(name, stat.S_IFDIR | 0o755, b"")

    def add_bytes(self, name: str, data: bytes, *, mode: int = 0o644) -> None:
        self._new(name, stat.S_IFREG | mode, data)

    def add_symlink(self, name: str, target: str) -> None:
        self._new(name, stat.S_IFLNK | 0o777, os.fsencode(target))

    def add_file(self, name: str, source: Path) -> None:
        """A regular file, with its mode; the time too, or Python would not believe its .pyc."""
        status = source.stat()
        self._new(name, stat.S_IFREG | stat.S_IMODE(status.st_mode), source.read_bytes(), status)

    def close(self) -> None:
        """Writes the trailer; the file stays open."""
        self._entry(_TRAILER, 0, b"")

    def _new(self, name: str, mode: int, data: bytes, status: os.stat_result | None = None) -> None:
        name = name.strip("/")
        if name not in self._names:
            self._parents(name)
            self._entry(name, mode, data, int(status.st_mtime) if status else 0)

    def _parents(self, name: str) -> None:
        self.add_directory(os.path.dirname(name))

    def _entry(self, name: str, mode: int, data: bytes, mtime: int = 0) -> None:
        self._names.add(name)
        encoded = os.fsencode(name) + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        numbers = [len(self._names), mode, 0, 0, links, mtime, len(data)]
        numbers += [0, 0, 0, 0, len(encoded), 0]  # devices; no checksum in this variant
        self._pad(b"070701" + b"".join(b"%08x" % number for number in numbers) + encoded)
        self._pad(data)

    def _pad(self, data: bytes) -> None:
        self._out.write(data)
        self._out.write(b"\0" * (-len(data) % 4))
