"""Where an image is written to: a file that it replaces, or what takes bytes in order."""

from __future__ import annotations

import contextlib
import errno
import io
import operator
import os
import stat
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from pgalloc import _core
from pgalloc.errors import ClosedError, OptionError
from pgalloc.named_errors import name_of
from pgalloc.raised import is_ours
from pgalloc.snapshot.descriptors import FILES, own_descriptor, wait_for

if TYPE_CHECKING:
    from pgalloc.memory_file import MemoryFile


# How often a path is looked at while other programs, or other saves, replace the file there.
_LOOKS = 100


class Target:
    """What save() was given, opened.

    Attributes:
        new_file: the file that is to take the place of what is there now; None for a stream.
    """

    def __init__(
        self, new_file: _core.NewImageFile | None, file: Any, opened: io.FileIO | None
    ) -> None:
        self.new_file = new_file
        self._file = file
        self._opened = opened  # the same, if it is not the caller's

    def write(self, block: bytes) -> None:
        """Write all of it to the stream."""
        rest: bytes | memoryview = block
        while rest:
            count = self._write_some(rest)
            if count == 0:
                wait_for(self._file, "the target", writable=True)
            rest = memoryview(rest)[count:]

    def _write_some(self, data: bytes | memoryview) -> int:
        """How many bytes it took; 0 if it is in non-blocking mode, and takes none now."""
        try:
            count = self._file.write(data)
        except BlockingIOError as error:
            if not isinstance(self._file, io.BufferedIOBase) or not is_ours(error):
                raise
            return getattr(error, "characters_written", 0)
        if count is None:
            # Others than these say nothing of their success.
            return 0 if isinstance(self._file, io.RawIOBase) else len(data)
        try:
            count = operator.index(count)
        except TypeError:
            raise TypeError(
                f"write() of the target returned {type(count).__name__}, not a number of bytes"
            ) from None
        if not 0 < count <= len(data):
            raise OSError(
                errno.EIO, f"write() of the target returned {count} for {len(data)} bytes"
            )
        return count

    def finish(self) -> None:
        """After the last write()."""
        if self._opened is not None and stat.S_ISBLK(os.fstat(self._opened.fileno()).st_mode):
            os.fsync(self._opened.fileno())

    def close(self) -> None:
        """Let go of what was opened, in any state."""
        if self.new_file is not None:
            self.new_file.close()
        if self._opened is not None:
            self._opened.close()


def checked(target: Any) -> tuple[Any, bytes | None]:
    """What errors call it; and its path, or None for a file object."""
    if isinstance(target, (str, bytes, os.PathLike)):
        name = os.fspath(target)
        path = os.fsencode(name)
        if b"\0" in path:
            raise OptionError("the path has a NUL byte")
        if not path or path.endswith(b"/"):
            raise OptionError(f"the path {name!r} has no file name")
        return name, path
    if isinstance(target, io.TextIOBase) or not callable(getattr(target, "write", None)):
        raise TypeError(f"target must be a path or a binary file, not {type(target).__name__}")
    return name_of(target), None


def opened(target: Any, path: bytes | None, backings: Collection[MemoryFile]) -> Target:
    """What checked() has looked at. Raises OSError for what cannot be written to.

    Raises OptionError for the backing of one of ``backings``: an image in place of the pages of a
    live file would be the end of them.
    """
    if path is not None:
        return _opened_path(path, backings)
    status = _status_of(target)
    if status is not None:
        _check_no_backing(status, backings, name_of(target))
    if isinstance(target, FILES) and not target.writable():
        raise io.UnsupportedOperation(errno.EBADF, "the target is not open for writing")
    return Target(None, target, None)


def _status_of(target: Any) -> os.stat_result | None:
    """Of the file that a file object stands for, if it does."""
    fileno = getattr(target, "fileno", None)
    try:
        return os.fstat(fileno()) if callable(fileno) else None
    except (OSError, TypeError, ValueError):
        return None


def _opened_path(path: bytes, backings: Collection[MemoryFile]) -> Target:
    descriptor = own_descriptor(path)
    if descriptor is not None:
        # From where it is. Opened by its path, a file would be replaced or written over, while
        # other programs go on writing to it.
        _check_no_backing(os.fstat(descriptor), backings, os.fsdecode(path))
        return _stream(io.FileIO(path, "w", opener=lambda path, flags: os.dup(descriptor)))
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return _new(os.path.realpath(path))  # where a symbolic link leads to nothing: there
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        return _stream(io.FileIO(path, "w", opener=lambda path, flags: _core.open_stream(path)))
    _check_no_backing(status, backings, os.fsdecode(path))
    # Through symbolic links: what they lead to is replaced, not they.
    return _new(_named(path))


def _named(path: bytes) -> bytes:
    """The path without symbolic links of the file that ``path`` leads to.

    Raises OptionError if it has none, as one that was opened and deleted since.
    """
    for _ in range(_LOOKS):
        real = os.path.realpath(path)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return real  # deleted by now: a new one, then
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(status, os.stat(real)):
                return real
    raise OptionError(f"{os.fsdecode(path)!r} leads to a file without a name")


def _new(path: bytes) -> Target:
    return Target(_core.NewImageFile(path), None, None)


def _stream(file: io.FileIO) -> Target:
    return Target(None, file, file)


def _check_no_backing(
    status: os.stat_result, backings: Collection[MemoryFile], name: object
) -> None:
    if not stat.S_ISREG(status.st_mode):
        return
    for file in backings:
        with contextlib.suppress(ClosedError, OSError):
            if os.path.samestat(status, os.fstat(file.fileno())):
                raise OptionError(f"the target {name!r} is the backing of a MemoryFile")
