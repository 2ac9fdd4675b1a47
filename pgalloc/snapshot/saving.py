"""Saving: threads, targets, compression."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pgalloc import _core
from pgalloc.errors import OptionError, SnapshotError
from pgalloc.snapshot import decoding
from pgalloc.snapshot.codec import Codec, zstd
from pgalloc.snapshot.hooks import Hooks
from pgalloc.snapshot.threads import thread_count
from pgalloc.threads import Thread

if TYPE_CHECKING:
    from pgalloc.memory_file import MemoryFile

_RESTORE_ID_LENGTH_MAX = 65536  # as the image format limits it


def save(
    memory_file: MemoryFile,
    target: Any,
    hooks: Hooks,
    *,
    keep_zeros: bool,
    compression: str | None,
    level: int | None,
) -> None:
    """See MemoryFile.save()."""
    codec = _checked_codec(compression, level)
    path = _checked_target(target)
    _check_restore_id(memory_file.restore_id)
    # What the hooks say of unpinned memory must be true of the image, too.
    held = _core.HeldDiscards(memory_file)
    try:
        payloads = hooks.collect()
        decoding.load(memory_file, None, None, ignore_broken=False)
        writer = _core.ImageWriter(memory_file, path, memory_file.restore_id, payloads, keep_zeros)
        with _workers(writer, codec) as failures:
            if path is None:
                while (block := writer.next_block()) is not None:
                    _write_all(target, block)
            else:
                writer.wait()
        if failures:
            raise failures[0]
    finally:
        held.release()


def _checked_codec(compression: str | None, level: int | None) -> Codec | None:
    if compression is None:
        if level is not None:
            raise OptionError("level is for compression")
        return None
    if not isinstance(compression, str) or compression != "zstd":
        raise OptionError(f"compression must be None or 'zstd', not {compression!r}")
    if level is not None and (isinstance(level, bool) or not isinstance(level, int)):
        raise TypeError(f"level must be an int, not {type(level).__name__}")
    return zstd(level)


def _check_restore_id(restore_id: str) -> None:
    try:
        length = len(restore_id.encode())
    except UnicodeEncodeError:
        raise SnapshotError(f"the restore_id {restore_id!r} cannot be stored as UTF-8") from None
    if length > _RESTORE_ID_LENGTH_MAX:
        raise SnapshotError(f"the restore_id is longer than {_RESTORE_ID_LENGTH_MAX} bytes")


def _checked_target(target: Any) -> bytes | None:
    """A path, or None for a file object."""
    if isinstance(target, (str, bytes, os.PathLike)):
        path = os.fsencode(target)
        if b"\0" in path:
            raise OptionError("the path has a NUL byte")
        if not path or path.endswith(b"/"):
            raise OptionError("the path has no file name")
        # Through symbolic links: what they lead to is replaced, not they.
        return os.path.realpath(path)
    if not callable(getattr(target, "write", None)):
        raise TypeError(f"target must be a path or a binary file, not {type(target).__name__}")
    return None


def _write_all(target: Any, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        count = target.write(rest)
        if count is None or not 0 < count <= len(rest):
            raise OSError(f"write() of the target returned {count!r} for {len(rest)} bytes")
        rest = rest[count:]


@contextmanager
def _workers(writer: _core.ImageWriter, codec: Codec | None) -> Iterator[list[BaseException]]:
    """Threads that read, check and encode while the block runs; what went wrong in them."""
    failures: list[BaseException] = []
    threads = [
        Thread(lambda: _encode(writer, codec, failures))
        for _ in range(thread_count() if codec is not None else 0)
    ]
    try:
        if codec is None:
            writer.start(thread_count())
        for thread in threads:
            thread.start()
        yield failures
    except BaseException:
        writer.give_up()
        # What a worker met comes first: it is why the writer gave up.
        if failures:
            raise failures[0] from None
        raise
    finally:
        for thread in threads:
            thread.join()
        writer.close()


def _encode(writer: _core.ImageWriter, codec: Codec | None, failures: list[BaseException]) -> None:
    assert codec is not None
    try:
        while (item := writer.next_item()) is not None:
            writer.finish_item(item, codec.encode(item.raw()))
    except BaseException as error:
        failures.append(error)
        with contextlib.suppress(ValueError):  # closed already
            writer.give_up()
