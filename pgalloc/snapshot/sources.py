"""Where an image is read from: a file that can be read at any place, or bytes in order."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pgalloc import _core
from pgalloc.errors import OptionError, SnapshotCorruptError
from pgalloc.named_errors import About, name_of
from pgalloc.snapshot.descriptors import FILES, own_descriptor, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator


class Source:
    """What restore() and its like were given, opened.

    Attributes:
        about: names it in errors.
        image: the image in a plain file; None for a stream.
    """

    def __init__(self, about: About, image: _core.ImageFile | None, file: Any, begin: int) -> None:
        self.about = about
        self.image = image
        self._file = file
        self._begin = begin
        self._read: Callable[[int], Any] | None = getattr(file, "read", None)
        if not callable(self._read):
            self._read = None

    def read_exactly(self, size: int) -> bytes:
        """So many bytes of a stream. Raises SnapshotCorruptError where it ends early."""
        parts = []
        left = size
        while left:
            part = self._some(left)
            if not part:
                raise SnapshotCorruptError("the image ends early: the source has no more bytes")
            if len(part) > left:
                raise OSError(errno.EIO, "read() of the source returned more than was asked for")
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def finish(self) -> None:
        """After all of the image was read: what follows it is next in a file object."""
        if self.image is not None and self._file is not None:
            self._file.seek(self._begin + self.image.image_bytes)

    def _some(self, size: int) -> bytes:
        while True:
            part = self._read(size) if self._read is not None else self._read_into(size)
            if part is not None:
                break
            wait_for(self._file, "the source", writable=False)
        if not isinstance(part, (bytes, bytearray, memoryview)):
            raise TypeError(f"read() of the source returned {type(part).__name__}, not bytes")
        return bytes(part)

    def _read_into(self, size: int) -> bytearray | None:
        buffer = bytearray(size)
        count = self._file.readinto(buffer)
        if count is None:
            return None
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"readinto() of the source returned {type(count).__name__}, not an int")
        if not 0 <= count <= size:
            raise OSError(errno.EIO, f"readinto() of the source returned {count} for {size} bytes")
        return buffer[:count]


@contextmanager
def opened(source: Any, operation: str, *, at_any_place: bool = False) -> Iterator[Source]:
    """A path, or a file object, which is the caller's to close.

    With ``at_any_place`` an OptionError for what can only be read in order, before it is opened.
    """
    if isinstance(source, (str, bytes, os.PathLike)):
        name = os.fspath(source)
        path = os.fsencode(name)
        if b"\0" in path:
            raise OptionError("the path has a NUL byte")
        about = About(operation, name)
        with about:
            # Opened for a look only, a FIFO would lose the writer that waits for a reader.
            status = os.stat(path)
            plain = _is_plain(status) or (at_any_place and stat.S_ISREG(status.st_mode))
            if plain:
                found = Source(about, _core.ImageFile(path), None, 0)
        if plain:
            yield found
            return
        _check_order_matters_not(at_any_place)
        with about:
            file = _opened_stream(path, status)
        with file:
            yield Source(about, None, file, 0)
        return
    if isinstance(source, io.TextIOBase) or not (
        callable(getattr(source, "read", None)) or callable(getattr(source, "readinto", None))
    ):
        raise TypeError(f"source must be a path or a binary file, not {type(source).__name__}")
    about = About(operation, name_of(source))
    with about:
        if isinstance(source, FILES) and not source.readable():
            raise io.UnsupportedOperation(errno.EBADF, "the source is not open for reading")
        image, begin = None, 0
        if _is_plain_object(source):
            if isinstance(source, io.BufferedRandom):
                source.flush()
            begin = source.tell()
            image = _core.ImageFile(source.fileno(), begin)
    if image is None:
        _check_order_matters_not(at_any_place)
    yield Source(about, image, source, begin)


def _opened_stream(path: bytes, status: os.stat_result) -> io.FileIO:
    descriptor = own_descriptor(path) if stat.S_ISSOCK(status.st_mode) else None
    if descriptor is None:
        return io.FileIO(path)
    # As /dev/stdin may be: a socket cannot be opened a second time.
    return io.FileIO(path, opener=lambda path, flags: os.dup(descriptor))


def _is_plain(status: os.stat_result) -> bool:
    """Whether it can be read at any place: files that /proc makes up seem to be empty."""
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


def _is_plain_object(source: Any) -> bool:
    """Whether its bytes are those of its descriptor: not so of what is derived from these types."""
    file = source.raw if type(source) in (io.BufferedReader, io.BufferedRandom) else source
    return type(file) is io.FileIO and _is_plain(os.fstat(file.fileno()))


def _check_order_matters_not(at_any_place: bool) -> None:
    if at_any_place:
        raise OptionError("a background restore needs a path of a file, or a plain file object")
